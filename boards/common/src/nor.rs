//! NOR flash semantics over plain memory, for boards whose partition is RAM in disguise.
//!
//! There is no flash controller behind this driver: an emulated machine without one would accept any write. So the rules
//! that real NOR flash has are enforced here in software, strictly, for the firmware above to be held to them:
//! erase sets whole pages to 0xFF; writes are whole, aligned words; a word is written at most once per erase.
//! What this cannot show is a torn operation or wear: those are simulated on the host.
#![expect(unsafe_code, reason = "the partition is memory that no Rust object owns")]

use core::fmt;
use core::ptr::NonNull;

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash};

use crate::Slots;
use crate::pins::Pins;

/// Bytes per erase page.
pub const PAGE_BYTES: usize = 2048;
/// Bytes per written word.
pub const WORD_BYTES: usize = 4;
/// Words per unit of the record of written words.
const WORDS_PER_UNIT: usize = 32;
const ERASED: u8 = 0xFF;

/// Why the flash refused an operation. Nothing was changed, unless the controller failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NorError {
    /// An offset or a length is no multiple of the unit.
    NotAligned {
        /// The offset or length found.
        found: u32,
        /// What it must be a multiple of, in bytes.
        unit: u32,
    },
    /// The range ends behind the partition, or before it starts.
    OutOfBounds {
        /// First offset of the range.
        start: u32,
        /// Offset behind the range.
        end: u64,
        /// Bytes in the partition.
        capacity: u32,
    },
    /// The word was written since its last erase, or holds something other than 0xFF.
    NotErased {
        /// Offset of the word.
        offset: u32,
    },
    /// The range touches a slot that is pinned because an adapter is read from it.
    Pinned {
        /// The slot's number.
        slot: u32,
    },
    /// The flash controller reported a failure; the page or the words there may have changed.
    Controller {
        /// Offset of the page or of the first word.
        offset: u32,
    },
}

impl fmt::Display for NorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotAligned { found, unit } => {
                write!(f, "expected a multiple of {unit} bytes, found {found}")
            }
            Self::OutOfBounds { start, end, capacity } => {
                write!(f, "expected a range within 0..{capacity}, found {start}..{end}")
            }
            Self::NotErased { offset } => {
                write!(
                    f,
                    "expected an erased word at offset {offset}, found a written one: erase the page first"
                )
            }
            Self::Pinned { slot } => {
                write!(
                    f,
                    "expected a slot that is not in use, found slot {slot} pinned: detach its adapter first"
                )
            }
            Self::Controller { offset } => {
                write!(f, "expected the flash controller to finish, found a failure at offset {offset}")
            }
        }
    }
}

impl core::error::Error for NorError {}

impl NorFlashError for NorError {
    fn kind(&self) -> NorFlashErrorKind {
        match self {
            Self::NotAligned { .. } => NorFlashErrorKind::NotAligned,
            Self::OutOfBounds { .. } => NorFlashErrorKind::OutOfBounds,
            Self::NotErased { .. } | Self::Pinned { .. } | Self::Controller { .. } => {
                NorFlashErrorKind::Other
            }
        }
    }
}

/// Memory that behaves like a NOR flash partition of up to [`MAX_SLOTS`](rankpatch_runtime::slots::MAX_SLOTS) slots.
#[derive(Debug)]
pub struct NorRam {
    start: NonNull<u8>,
    capacity: usize,
    slot_bytes: usize,
    /// One bit per word: written since the last erase. `[capacity / 4 / 32]`
    written: &'static mut [u32],
    pinned: Pins,
}

impl NorRam {
    /// Length of the `written` record for a partition of `capacity` bytes.
    pub const fn record_len(capacity: usize) -> usize {
        capacity.div_ceil(WORD_BYTES * WORDS_PER_UNIT)
    }

    /// Takes over `capacity` bytes from `start` on. Whatever is there that is not 0xFF counts as written, as after any reset.
    ///
    /// # Panics
    /// If the slots or the partition are not whole pages, or if `written` is not [`record_len`](NorRam::record_len) long: the
    /// board's memory map is wrong.
    ///
    /// # Safety
    /// The range is readable and writable memory for the rest of the program and nothing else accesses it.
    pub unsafe fn new(
        start: NonNull<u8>,
        capacity: usize,
        slot_bytes: usize,
        written: &'static mut [u32],
    ) -> Self {
        assert!(slot_bytes > 0 && slot_bytes.is_multiple_of(PAGE_BYTES), "expected slots of whole pages");
        assert!(capacity.is_multiple_of(PAGE_BYTES), "expected a partition of whole pages");
        assert!(written.len() == Self::record_len(capacity), "expected one bit per word in the record");
        written.fill(0);
        let mut flash = Self { start, capacity, slot_bytes, written, pinned: Pins::default() };
        for word in 0..capacity / WORD_BYTES {
            let erased = flash.bytes()[word * WORD_BYTES..][..WORD_BYTES] == [ERASED; WORD_BYTES];
            if !erased {
                flash.mark(word);
            }
        }
        flash
    }

    fn mark(&mut self, word: usize) {
        self.written[word / WORDS_PER_UNIT] |= 1 << (word % WORDS_PER_UNIT);
    }

    fn is_written(&self, word: usize) -> bool {
        self.written[word / WORDS_PER_UNIT] >> (word % WORDS_PER_UNIT) & 1 == 1
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

impl ErrorType for NorRam {
    type Error = NorError;
}

impl ReadNorFlash for NorRam {
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

impl NorFlash for NorRam {
    const WRITE_SIZE: usize = WORD_BYTES;
    const ERASE_SIZE: usize = PAGE_BYTES;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorError> {
        let range = self.range(from, to as u64, PAGE_BYTES)?;
        self.refuse_pinned(&range)?;
        let units = range.start / (WORD_BYTES * WORDS_PER_UNIT)..range.end / (WORD_BYTES * WORDS_PER_UNIT);
        self.written[units].fill(0);
        // SAFETY: `range` lies within the partition, which `new`'s caller gave to this driver alone. No reference into
        // it is alive: `bytes` borrows `self`, which is borrowed mutably here, and pinned slots were refused above.
        unsafe { self.start.add(range.start).write_bytes(ERASED, range.len()) };
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorError> {
        let range = self.range(offset, offset as u64 + bytes.len() as u64, WORD_BYTES)?;
        self.refuse_pinned(&range)?;
        let words = range.start / WORD_BYTES..range.end / WORD_BYTES;
        if let Some(word) = words.clone().find(|&word| self.is_written(word)) {
            return Err(NorError::NotErased { offset: (word * WORD_BYTES) as u32 });
        }
        words.for_each(|word| self.mark(word));
        // SAFETY: as in `erase`; `bytes` is a live reference and so lies outside the partition.
        unsafe {
            self.start.add(range.start).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        };
        Ok(())
    }
}

impl Slots for NorRam {
    fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `new`'s caller gave this initialized memory to the driver for good; it is written only through `&mut self`.
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
    use std::string::ToString;
    use std::vec;

    const SLOT: usize = 2 * PAGE_BYTES;
    const CAPACITY: usize = 3 * SLOT;

    /// A partition as an emulator leaves it at reset: all zero.
    fn flash() -> NorRam {
        let memory = Box::leak(vec![0u8; CAPACITY].into_boxed_slice());
        let record = Box::leak(vec![u32::MAX; NorRam::record_len(CAPACITY)].into_boxed_slice());
        // SAFETY: the memory was leaked above and is known to nobody else.
        unsafe { NorRam::new(NonNull::from(memory).cast(), CAPACITY, SLOT, record) }
    }

    #[test]
    fn zeroed_memory_must_be_erased_before_the_first_write() {
        let mut flash = flash();
        assert_eq!(flash.write(8, &[1, 2, 3, 4]), Err(NorError::NotErased { offset: 8 }));
        flash.erase(0, PAGE_BYTES as u32).unwrap();
        flash.write(8, &[1, 2, 3, 4]).unwrap();
        assert_eq!(flash.bytes()[7..13], [0xFF, 1, 2, 3, 4, 0xFF]);
        assert_eq!(flash.bytes()[PAGE_BYTES], 0, "an erase must not reach the next page");
    }

    #[test]
    fn a_word_is_written_once_even_if_it_was_written_with_ff() {
        let mut flash = flash();
        flash.erase(0, CAPACITY as u32).unwrap();
        flash.write(4, &[0xFF; 4]).unwrap();
        let before = flash.bytes().to_vec();
        assert_eq!(flash.write(0, &[7; 8]), Err(NorError::NotErased { offset: 4 }));
        assert_eq!(flash.bytes(), before, "a refused write must change nothing");
        flash.erase(0, PAGE_BYTES as u32).unwrap();
        flash.write(0, &[7; 8]).unwrap();
    }

    #[test]
    fn misaligned_and_outlying_ranges_are_refused() {
        let mut flash = flash();
        let capacity = CAPACITY as u32;
        flash.erase(0, capacity).unwrap();
        assert_eq!(flash.write(2, &[0; 4]), Err(NorError::NotAligned { found: 2, unit: 4 }));
        assert_eq!(flash.write(4, &[0; 3]), Err(NorError::NotAligned { found: 7, unit: 4 }));
        let unit = PAGE_BYTES as u32;
        assert_eq!(flash.erase(4, unit), Err(NorError::NotAligned { found: 4, unit }));
        assert_eq!(flash.erase(0, unit + 1), Err(NorError::NotAligned { found: unit + 1, unit }));
        let outside = NorError::OutOfBounds { start: capacity, end: capacity as u64 + 4, capacity };
        assert_eq!(flash.write(capacity, &[0; 4]), Err(outside));
        assert_eq!(flash.read(capacity, &mut [0; 4]), Err(outside));
        assert_eq!(flash.erase(2 * unit, unit).unwrap_err().kind(), NorFlashErrorKind::OutOfBounds);
        assert_eq!(flash.write(u32::MAX - 3, &[0; 8]).unwrap_err().kind(), NorFlashErrorKind::OutOfBounds);
        assert_eq!(outside.to_string(), "expected a range within 0..12288, found 12288..12292");
        let mut read = [0; 3];
        flash.read(1, &mut read).unwrap();
        assert_eq!(read, [0xFF; 3]);
    }

    #[test]
    fn a_pinned_slot_is_protected_and_its_neighbours_are_not() {
        let mut flash = flash();
        flash.erase(0, CAPACITY as u32).unwrap();
        flash.write(SLOT as u32, &[1, 2, 3, 4]).unwrap();
        let pinned = flash.pin(1).unwrap();
        let (slot, page) = (SLOT as u32, PAGE_BYTES as u32);
        for (from, to) in [(slot, 2 * slot), (0, slot + page), (2 * slot - page, 3 * slot)] {
            assert_eq!(flash.erase(from, to), Err(NorError::Pinned { slot: 1 }));
        }
        assert_eq!(flash.write(slot + 8, &[0; 4]), Err(NorError::Pinned { slot: 1 }));
        flash.erase(0, slot).unwrap();
        flash.write(2 * slot, &[5; 4]).unwrap();
        assert_eq!(pinned[..4], [1, 2, 3, 4]);
        assert!(flash.pin(3).is_none());
        // SAFETY: `pinned` is not used below.
        unsafe { flash.unpin(1) };
        flash.erase(slot, 2 * slot).unwrap();
        assert_eq!(flash.bytes()[SLOT], 0xFF);
    }
}
