//! A slot partition in memory-mapped NOR flash that a real controller writes and erases.
//!
//! [`FlashPartition`] holds whoever uses it to the rules that all NOR flash has, before the controller sees anything: whole
//! pages, aligned words, no write over bytes that are not erased, and nothing in a pinned slot. What is left to a board is
//! a [`Controller`]: how one page is erased and how words are programmed.
#![expect(unsafe_code, reason = "the partition is memory that only the controller changes")]

use core::ptr::NonNull;

use embedded_storage::nor_flash::{ErrorType, NorFlash, ReadNorFlash};

use rankpatch_runtime::slots::{Layout, MappedFlash, Resume};

use crate::flash::usual_layout;
use crate::pins::Pins;
use crate::{NorError, Slots};

const ERASED: u8 = 0xFF;

/// A flash controller reported that an operation failed, or did not become ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerFault;

/// How one kind of flash is erased and programmed.
pub trait Controller {
    /// Bytes per programmed word.
    const WORD_BYTES: usize;
    /// Bytes per erase page.
    const PAGE_BYTES: usize;
    /// Where an upload goes on after a reset. [`Resume::Page`] is right for every flash.
    const RESUME: Resume = Resume::Page;

    /// Sets every byte of the page that starts at `page` to 0xFF and returns when that is done.
    ///
    /// # Errors
    /// What the controller reports.
    ///
    /// # Safety
    /// A page of this controller's flash starts there, and no reference into it is alive.
    unsafe fn erase(&mut self, page: NonNull<u8>) -> Result<(), ControllerFault>;

    /// Programs `words`, a multiple of [`WORD_BYTES`](Controller::WORD_BYTES) long, from `at` on and returns when that is done.
    ///
    /// # Errors
    /// What the controller reports; some of the words may be programmed then.
    ///
    /// # Safety
    /// The range is erased flash of this controller, word-aligned, and no reference into it is alive.
    unsafe fn program(&mut self, at: NonNull<u8>, words: &[u8]) -> Result<(), ControllerFault>;
}

/// A partition behind a controller: up to [`MAX_SLOTS`](rankpatch_runtime::slots::MAX_SLOTS) slots, and after them whatever
/// whole pages are left.
#[derive(Debug)]
pub struct FlashPartition<C> {
    controller: C,
    start: NonNull<u8>,
    capacity: usize,
    slot_bytes: usize,
    pinned: Pins,
}

impl<C: Controller> FlashPartition<C> {
    /// Takes over `capacity` bytes from `start` on, with whatever they hold.
    ///
    /// # Panics
    /// If slots or partition are not whole pages: the board's memory map is wrong.
    ///
    /// # Safety
    /// The range is readable flash behind `controller` for the rest of the program, a page starts at `start`, and nothing
    /// else writes to it.
    pub unsafe fn new(controller: C, start: NonNull<u8>, capacity: usize, slot_bytes: usize) -> Self {
        assert!(slot_bytes > 0 && slot_bytes.is_multiple_of(C::PAGE_BYTES), "expected slots of whole pages");
        assert!(capacity.is_multiple_of(C::PAGE_BYTES), "expected a partition of whole pages");
        Self { controller, start, capacity, slot_bytes, pinned: Pins::default() }
    }

    /// The checked range, as indices of the partition.
    fn range(&self, start: u32, end: u64, unit: usize) -> Result<core::ops::Range<usize>, NorError> {
        let unit = unit as u32;
        if start as u64 > end || end > self.capacity as u64 {
            return Err(NorError::OutOfBounds { start, end, capacity: self.capacity as u32 });
        }
        // `end` is at most the capacity now, which is a 32-bit figure on every device.
        for found in [start, end as u32] {
            if !found.is_multiple_of(unit) {
                return Err(NorError::NotAligned { found, unit });
            }
        }
        Ok(start as usize..end as usize)
    }

    fn refuse_pinned(&self, range: &core::ops::Range<usize>) -> Result<(), NorError> {
        match self.pinned.first_in(range, self.slot_bytes) {
            Some(slot) => Err(NorError::Pinned { slot: slot as u32 }),
            None => Ok(()),
        }
    }
}

impl<C: Controller> ErrorType for FlashPartition<C> {
    type Error = NorError;
}

impl<C: Controller> ReadNorFlash for FlashPartition<C> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), NorError> {
        let range = self.range(offset, offset as u64 + bytes.len() as u64, Self::READ_SIZE)?;
        bytes.copy_from_slice(&self.bytes()[range]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.capacity
    }
}

impl<C: Controller> NorFlash for FlashPartition<C> {
    const WRITE_SIZE: usize = C::WORD_BYTES;
    const ERASE_SIZE: usize = C::PAGE_BYTES;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorError> {
        let range = self.range(from, to as u64, C::PAGE_BYTES)?;
        self.refuse_pinned(&range)?;
        for offset in range.step_by(C::PAGE_BYTES) {
            // SAFETY: `offset` is the start of a page of the partition, which `new`'s caller gave to this driver alone. No
            // reference into it is alive: `bytes` borrows `self`, and pinned slots were refused.
            unsafe { self.controller.erase(self.start.add(offset)) }
                .map_err(|ControllerFault| NorError::Controller { offset: offset as u32 })?;
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorError> {
        let range = self.range(offset, offset as u64 + bytes.len() as u64, C::WORD_BYTES)?;
        self.refuse_pinned(&range)?;
        if let Some(found) = self.bytes()[range.clone()].iter().position(|&byte| byte != ERASED) {
            let word = (range.start + found) / C::WORD_BYTES * C::WORD_BYTES;
            return Err(NorError::NotErased { offset: word as u32 });
        }
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the range is aligned, within the partition and erased; references as in `erase`.
        unsafe { self.controller.program(self.start.add(range.start), bytes) }
            .map_err(|ControllerFault| NorError::Controller { offset })
    }
}

impl<C: Controller> MappedFlash for FlashPartition<C> {
    fn mapped(&self) -> &[u8] {
        self.bytes()
    }
}

impl<C: Controller> Slots for FlashPartition<C> {
    fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    fn layout(&self) -> Layout {
        let usual = usual_layout(self.capacity, self.slot_bytes, C::PAGE_BYTES);
        Layout { resume: C::RESUME, ..usual }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: readable flash for the whole program, says `new`'s caller; it changes only through `&mut self`.
        unsafe { NonNull::slice_from_raw_parts(self.start, self.capacity).as_ref() }
    }

    fn pin(&mut self, index: usize) -> Option<&'static [u8]> {
        if index >= self.capacity / self.slot_bytes {
            return None;
        }
        self.pinned.pin(index)?;
        // SAFETY: the slot lies within the partition; `erase` and `write` refuse it until the caller of `unpin` has
        // promised that this borrow is over.
        Some(unsafe {
            NonNull::slice_from_raw_parts(self.start.add(index * self.slot_bytes), self.slot_bytes).as_ref()
        })
    }

    unsafe fn unpin(&mut self, index: usize) {
        self.pinned.unpin(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec;

    const PAGE: usize = 64;
    const SLOT: usize = 2 * PAGE;
    const CAPACITY: usize = 4 * SLOT;

    /// Memory whose bits only an erase sets, in 8-byte words; fails when the count of operations is used up.
    struct Bits {
        operations_left: usize,
    }

    impl Bits {
        fn spend(&mut self) -> Result<(), ControllerFault> {
            self.operations_left = self.operations_left.checked_sub(1).ok_or(ControllerFault)?;
            Ok(())
        }
    }

    impl Controller for Bits {
        const WORD_BYTES: usize = 8;
        const PAGE_BYTES: usize = PAGE;

        unsafe fn erase(&mut self, page: NonNull<u8>) -> Result<(), ControllerFault> {
            self.spend()?;
            // SAFETY: a page of the leaked memory below, says the caller.
            unsafe { page.write_bytes(ERASED, PAGE) };
            Ok(())
        }

        unsafe fn program(&mut self, at: NonNull<u8>, words: &[u8]) -> Result<(), ControllerFault> {
            for (i, word) in words.chunks_exact(8).enumerate() {
                self.spend()?;
                for (j, byte) in word.iter().enumerate() {
                    // SAFETY: a range of the leaked memory below, says the caller.
                    unsafe {
                        let at = at.add(8 * i + j);
                        at.write(at.read() & byte);
                    }
                }
            }
            Ok(())
        }
    }

    fn flash(operations_left: usize) -> FlashPartition<Bits> {
        let memory = Box::leak(vec![0u8; CAPACITY].into_boxed_slice());
        // SAFETY: the memory was leaked above and is known to nobody else.
        unsafe { FlashPartition::new(Bits { operations_left }, NonNull::from(memory).cast(), CAPACITY, SLOT) }
    }

    #[test]
    fn only_erased_words_are_written_and_only_whole_ones() {
        let mut flash = flash(usize::MAX);
        assert_eq!(flash.write(16, &[1; 8]), Err(NorError::NotErased { offset: 16 }), "zeros are not erased");
        flash.erase(0, SLOT as u32).unwrap();
        flash.write(16, &[7; 16]).unwrap();
        let before = flash.bytes().to_vec();
        assert_eq!(flash.write(8, &[0; 24]), Err(NorError::NotErased { offset: 16 }));
        assert_eq!(flash.write(4, &[0; 8]), Err(NorError::NotAligned { found: 4, unit: 8 }));
        assert_eq!(flash.write(8, &[0; 7]), Err(NorError::NotAligned { found: 15, unit: 8 }));
        assert_eq!(flash.erase(32, 64), Err(NorError::NotAligned { found: 32, unit: 64 }));
        let outside = NorError::OutOfBounds { start: 504, end: 520, capacity: 512 };
        assert_eq!(flash.write(504, &[0; 16]), Err(outside));
        assert_eq!(flash.bytes(), before, "a refused operation must change nothing");
        assert_eq!(before[15..33], [[0xFF; 1].as_slice(), &[7; 16], &[0xFF]].concat());
        assert_eq!(before[SLOT], 0, "an erase must not reach the next slot");
        let mut read = [0; 3];
        flash.read(31, &mut read).unwrap();
        assert_eq!(read, [7, 0xFF, 0xFF]);
    }

    #[test]
    fn pinned_slots_are_protected_until_they_are_unpinned() {
        let mut flash = flash(usize::MAX);
        flash.erase(0, CAPACITY as u32).unwrap();
        flash.write(SLOT as u32, &[9; 8]).unwrap();
        let pinned = flash.pin(1).unwrap();
        assert_eq!(flash.erase(0, CAPACITY as u32), Err(NorError::Pinned { slot: 1 }));
        assert_eq!(flash.write(SLOT as u32 + 8, &[0; 8]), Err(NorError::Pinned { slot: 1 }));
        flash.erase(0, SLOT as u32).unwrap();
        assert_eq!(pinned[..9], [9, 9, 9, 9, 9, 9, 9, 9, 0xFF]);
        assert!(flash.pin(4).is_none());
        // SAFETY: `pinned` is not used below.
        unsafe { flash.unpin(1) };
        flash.erase(SLOT as u32, 2 * SLOT as u32).unwrap();
    }

    #[test]
    fn a_failing_controller_is_reported_with_the_place() {
        let mut flash = flash(1);
        assert_eq!(flash.erase(0, 128), Err(NorError::Controller { offset: 64 }));
        assert_eq!(flash.write(8, &[1; 8]), Err(NorError::Controller { offset: 8 }));
    }
}
