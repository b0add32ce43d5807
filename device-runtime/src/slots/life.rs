//! The life of an installed file: on trial, confirmed, rolled back. Each step is words in the journal, nothing is moved.

use super::journal::Entry;
use super::mark::Mark;
use super::{Activation, MappedFlash, SlotError, Slots};

/// How far a slot's file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Life {
    /// There is no file.
    Empty,
    /// An upload is under way, or was cut off and can go on.
    Uploading,
    /// It is installed and not active.
    Installed,
    /// It is active until it is confirmed, rolled back or a reset comes.
    OnTrial,
    /// It is active, or what a trial falls back to.
    Confirmed,
    /// It was active last, and is not wanted.
    RolledBack,
}

impl<F: MappedFlash> Slots<F> {
    /// How far the file in `slot` has come.
    ///
    /// # Errors
    /// [`SlotError::NoSuchSlot`].
    pub fn life(&self, slot: usize) -> Result<Life, SlotError> {
        self.geometry.slot(slot)?;
        let is =
            |activation: Option<Activation>| activation.is_some_and(|activation| activation.slot == slot);
        Ok(if is(self.state.trial) {
            Life::OnTrial
        } else if is(self.state.confirmed) {
            Life::Confirmed
        } else if self.state.rolled_back == Some(slot) {
            Life::RolledBack
        } else if self.state.is_installed(slot) {
            Life::Installed
        } else if self.partial(slot)?.is_some() {
            Life::Uploading
        } else {
            Life::Empty
        })
    }

    /// Makes room in the journal, so that the activations that follow write one word of it each and erase nothing. To be called
    /// when there is time, and once after a reset before anything is activated. Erases one page, or does nothing.
    ///
    /// # Errors
    /// [`SlotError::Flash`].
    pub fn prepare(&mut self) -> Result<(), SlotError> {
        self.journal.prepare(&mut self.flash, &self.geometry, &self.state)
    }

    fn append(&mut self, entries: &[Entry]) -> Result<(), SlotError> {
        self.journal.append(&mut self.flash, &self.geometry, &mut self.state, entries)
    }

    /// Writes a mark and the seal that proves it.
    pub(super) fn append_sealed(&mut self, mark: Mark) -> Result<(), SlotError> {
        self.append(&[Entry::Mark(mark), Entry::Mark(Mark::Seal)])
    }

    /// Commits an install: the word of `Installed` makes both file and number count.
    pub(super) fn append_install(&mut self, slot: usize, sequence: u32) -> Result<(), SlotError> {
        let commit = [Mark::Installed(slot), Mark::Seal].map(Entry::Mark);
        let [installed, seal] = commit;
        self.append(&[Entry::Sequence(sequence), installed, seal])
    }

    /// Starts the trial of an installed file, which the caller has applied and tested: one word. It stays active until
    /// [`confirm`](Self::confirm) makes it lasting; a reset before that goes back to what is confirmed. Starting what is already
    /// on trial or confirmed, with the same flag, changes nothing, unless it ends the trial of another.
    ///
    /// # Errors
    /// [`SlotError::NoSuchSlot`], [`SlotError::Empty`], [`SlotError::Flash`].
    pub fn start_trial(&mut self, activation: Activation) -> Result<(), SlotError> {
        self.geometry.slot(activation.slot)?;
        if !self.state.is_installed(activation.slot) {
            return Err(SlotError::Empty { slot: activation.slot });
        }
        if self.state.active() == Some(activation) {
            return Ok(());
        }
        self.append(&[Entry::Mark(Mark::Trial(activation))])
    }

    /// Makes what is on trial lasting: it is active after a reset from now on. Does nothing if what is active is confirmed.
    ///
    /// # Errors
    /// [`SlotError::NothingActive`], [`SlotError::Flash`].
    pub fn confirm(&mut self) -> Result<(), SlotError> {
        match (self.state.trial, self.state.confirmed) {
            (Some(_), _) => self.append_sealed(Mark::Confirmed),
            (None, Some(_)) => Ok(()),
            (None, None) => Err(SlotError::NothingActive),
        }
    }

    /// Goes back from `slot`, if that is active: from a trial to what is confirmed, else to what was confirmed before, else to the
    /// plain base. Returns what is active now.
    ///
    /// # Errors
    /// [`SlotError::NoSuchSlot`], [`SlotError::Flash`].
    pub fn roll_back(&mut self, slot: usize) -> Result<Option<Activation>, SlotError> {
        self.geometry.slot(slot)?;
        if self.state.active().is_some_and(|active| active.slot == slot) {
            self.append_sealed(Mark::RolledBack)?;
        }
        Ok(self.state.active())
    }

    /// Goes back to the plain base, lastingly.
    ///
    /// # Errors
    /// [`SlotError::Flash`].
    pub fn deactivate(&mut self) -> Result<(), SlotError> {
        if self.state.active().is_some() { self.append_sealed(Mark::Base) } else { Ok(()) }
    }
}
