//! Slots over flash of any word and page, as one type: so that the lives of devices are compiled once.

use rankpatch_runtime::slots::{
    Activation, Announcement, FinishError, Layout, Progress, SlotError, Slots, State,
};

use super::flash::{Flash, Nor};

/// [`Slots`] over a flash of any sizes.
pub(crate) trait Partition {
    fn nor(&mut self) -> &mut Nor;
    fn reset(self: Box<Self>, layout: Layout) -> Result<Box<dyn Partition>, SlotError>;
    fn state(&self) -> &State;
    fn pages_opened(&self) -> u32;
    fn find(&self, announcement: &Announcement) -> Option<usize>;
    fn pick(&self, announcement: &Announcement) -> Option<usize>;
    fn verified(&self, slot: usize) -> Result<&[u8], SlotError>;
    fn is_partial(&self, slot: usize) -> bool;
    fn stored_digest(&self, len: u32) -> Option<[u8; 32]>;
    fn begin(&mut self, slot: usize, announcement: Announcement) -> Result<Progress, SlotError>;
    fn poll(&mut self) -> Result<Progress, SlotError>;
    fn chunk(&mut self, offset: u32, data: &[u8]) -> Result<Progress, SlotError>;
    fn finish(&mut self, admit: &mut Admit<'_>) -> Result<usize, FinishError<String>>;
    fn prepare(&mut self) -> Result<(), SlotError>;
    fn start_trial(&mut self, activation: Activation) -> Result<(), SlotError>;
    fn confirm(&mut self) -> Result<(), SlotError>;
    fn roll_back(&mut self, slot: usize) -> Result<Option<Activation>, SlotError>;
    fn remove(&mut self, slot: usize) -> Result<(), SlotError>;
    fn deactivate(&mut self) -> Result<(), SlotError>;
    fn abort(&mut self) -> Result<(), SlotError>;
}

/// Decides about a file and the floor.
pub(crate) type Admit<'a> = dyn FnMut(&[u8], u32) -> Result<u32, String> + 'a;

impl<const WORD: usize, const PAGE: usize> Partition for Slots<Flash<WORD, PAGE>> {
    fn nor(&mut self) -> &mut Nor {
        &mut self.flash_mut().0
    }
    fn reset(self: Box<Self>, layout: Layout) -> Result<Box<dyn Partition>, SlotError> {
        let mut flash = self.into_flash();
        flash.0.restore_power();
        Slots::mount(flash, layout).map(|slots| Box::new(slots) as _).map_err(|unmounted| unmounted.error)
    }
    fn state(&self) -> &State {
        self.state()
    }
    fn pages_opened(&self) -> u32 {
        self.journal_erases()
    }
    fn find(&self, announcement: &Announcement) -> Option<usize> {
        self.find(announcement)
    }
    fn pick(&self, announcement: &Announcement) -> Option<usize> {
        self.pick(announcement)
    }
    fn verified(&self, slot: usize) -> Result<&[u8], SlotError> {
        self.verified(slot)
    }
    fn is_partial(&self, slot: usize) -> bool {
        self.partial(slot) != Ok(None)
    }
    fn stored_digest(&self, len: u32) -> Option<[u8; 32]> {
        self.stored_digest(len)
    }
    fn begin(&mut self, slot: usize, announcement: Announcement) -> Result<Progress, SlotError> {
        self.begin(slot, announcement)
    }
    fn poll(&mut self) -> Result<Progress, SlotError> {
        self.poll()
    }
    fn chunk(&mut self, offset: u32, data: &[u8]) -> Result<Progress, SlotError> {
        self.chunk(offset, data)
    }
    fn finish(&mut self, admit: &mut Admit<'_>) -> Result<usize, FinishError<String>> {
        self.finish(admit)
    }
    fn prepare(&mut self) -> Result<(), SlotError> {
        self.prepare()
    }
    fn start_trial(&mut self, activation: Activation) -> Result<(), SlotError> {
        self.start_trial(activation)
    }
    fn confirm(&mut self) -> Result<(), SlotError> {
        self.confirm()
    }
    fn roll_back(&mut self, slot: usize) -> Result<Option<Activation>, SlotError> {
        self.roll_back(slot)
    }
    fn remove(&mut self, slot: usize) -> Result<(), SlotError> {
        self.remove(slot)
    }
    fn deactivate(&mut self) -> Result<(), SlotError> {
        self.deactivate()
    }
    fn abort(&mut self) -> Result<(), SlotError> {
        self.abort()
    }
}
