//! A board's partition as the slots of `rankpatch_runtime` see it.

use embedded_storage::nor_flash::{ErrorType, NorFlash, ReadNorFlash};
use rankpatch_runtime::slots::{Layout, MAX_JOURNAL_PAGES, MAX_SLOTS, MIN_JOURNAL_PAGES, MappedFlash};

use crate::Slots;

/// A partition that is read in place.
#[derive(Debug)]
pub struct Mapped<S>(pub S);

impl<S: Slots> ErrorType for Mapped<S> {
    type Error = S::Error;
}

impl<S: Slots> ReadNorFlash for Mapped<S> {
    const READ_SIZE: usize = S::READ_SIZE;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Self::Error> {
        self.0.read(offset, bytes)
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

impl<S: Slots> NorFlash for Mapped<S> {
    const WRITE_SIZE: usize = S::WRITE_SIZE;
    const ERASE_SIZE: usize = S::ERASE_SIZE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Self::Error> {
        self.0.erase(from, to)
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Self::Error> {
        self.0.write(offset, bytes)
    }
}

impl<S: Slots> MappedFlash for Mapped<S> {
    fn mapped(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// Slots from the start of a partition of `capacity` bytes, as many as leave room for the smallest journal behind them, and a
/// journal of as many of the pages that are left as are of use.
pub fn usual_layout(capacity: usize, slot_bytes: usize, page_bytes: usize) -> Layout {
    let slots = capacity.saturating_sub(MIN_JOURNAL_PAGES * page_bytes).checked_div(slot_bytes).unwrap_or(0);
    let n_slots = slots.min(MAX_SLOTS);
    let left = capacity.saturating_sub(n_slots * slot_bytes).checked_div(page_bytes).unwrap_or(0);
    Layout { journal_pages: left.min(MAX_JOURNAL_PAGES), ..Layout::new(n_slots, slot_bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_takes_what_slots_leave() {
        let layout = |capacity, slot, page| {
            let layout = usual_layout(capacity, slot, page);
            (layout.n_slots, layout.journal_pages)
        };
        assert_eq!(layout(512 * 1024, 64 * 1024, 4096), (7, 8));
        assert_eq!(layout(64 * 1024, 16 * 1024, 1024), (3, 8));
        assert_eq!(layout(67 * 1024, 16 * 1024, 1024), (4, 3));
        assert_eq!(layout(1 << 21, 16 * 1024, 1024), (32, 8));
        assert_eq!(layout(32 * 4096 + 3 * 1024, 4096, 1024), (32, 3));
        assert_eq!(layout(1024, 1024, 1024), (0, 1), "refused when it is mounted");
    }
}
