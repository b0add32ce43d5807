//! Adapter slots in NOR flash: contiguous places that are read where they lie. A file is uploaded in pieces, read back
//! from flash, and becomes valid by one last write, its record.
//!
//! Each word is written at most once per erase. Whether a slot holds a file follows from its content alone: the record
//! states length and checksum, and carries a checksum itself, so one that was cut off while being written counts as
//! none. This module knows bytes and slots, neither adapters nor links.

use embedded_storage::nor_flash::NorFlash;

/// First bytes of a record.
const MAGIC: [u8; 4] = *b"RPS1";
/// The file starts here in its slot; the record lies before it.
pub const FILE_OFFSET: usize = 64;
/// Largest word that this module can stage.
pub const MAX_WRITE_SIZE: usize = 64;

const RECORD_BYTES: usize = 16;

/// Why a slot cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotError {
    /// There is no such slot.
    NoSuchSlot {
        /// Slots of the partition.
        expected: usize,
        /// Index asked for.
        found: usize,
    },
    /// The file does not fit into a slot, or is empty.
    WrongLength {
        /// Bytes that a slot takes.
        expected: usize,
        /// Bytes of the file.
        found: usize,
    },
    /// The flash reported an error, or words larger than [`MAX_WRITE_SIZE`].
    Flash,
    /// Not all bytes have arrived.
    Incomplete {
        /// Bytes of the file.
        expected: u32,
        /// Bytes that arrived.
        found: u32,
    },
    /// What lies in flash is not what was announced.
    Corrupt {
        /// CRC-32 announced.
        expected: u32,
        /// CRC-32 read back.
        found: u32,
    },
}

/// The file in a slot's bytes, if its record is whole and its checksum right.
pub fn file(slot: &[u8]) -> Option<&[u8]> {
    let (record, crc) = slot.first_chunk::<RECORD_BYTES>()?.split_last_chunk::<4>()?;
    let [magic, len, file_crc] = record.as_chunks::<4>().0 else { return None };
    if *magic != MAGIC || u32::from_le_bytes(*crc) != rankpatch_format::crc32(record) {
        return None;
    }
    let file = slot.get(FILE_OFFSET..)?.get(..u32::from_le_bytes(*len) as usize)?;
    (rankpatch_format::crc32(file) == u32::from_le_bytes(*file_crc)).then_some(file)
}

/// The bytes of slot `index` in a partition of slots of `slot_bytes`.
pub fn slot(partition: &[u8], slot_bytes: usize, index: usize) -> Option<&[u8]> {
    let start = index.checked_mul(slot_bytes)?;
    partition.get(start..start.checked_add(slot_bytes)?)
}

/// An upload under way.
#[derive(Debug)]
pub struct Upload {
    slot: usize,
    /// Offset of the slot in the partition.
    start: usize,
    len: u32,
    crc: u32,
    /// Bytes that arrived.
    next: u32,
    /// The last bytes that arrived, until they fill a word.
    staged: heapless::Vec<u8, MAX_WRITE_SIZE>,
}

impl Upload {
    /// Erases slot `index` and expects a file of `len` bytes with the checksum `crc`.
    ///
    /// # Errors
    /// [`SlotError::NoSuchSlot`], [`SlotError::WrongLength`] before anything is erased; [`SlotError::Flash`].
    pub fn begin<F: NorFlash>(
        flash: &mut F,
        slot_bytes: usize,
        index: usize,
        len: u32,
        crc: u32,
    ) -> Result<Self, SlotError> {
        let expected = flash.capacity().checked_div(slot_bytes).unwrap_or(0);
        if index >= expected {
            return Err(SlotError::NoSuchSlot { expected, found: index });
        }
        let expected = slot_bytes.saturating_sub(FILE_OFFSET) / F::WRITE_SIZE * F::WRITE_SIZE;
        if len == 0 || len as usize > expected {
            return Err(SlotError::WrongLength { expected, found: len as usize });
        }
        // All checks come before the erase: a refusal leaves the slot as it was.
        if F::WRITE_SIZE > MAX_WRITE_SIZE || !FILE_OFFSET.is_multiple_of(F::WRITE_SIZE) {
            return Err(SlotError::Flash);
        }
        erase(flash, slot_bytes, index)?;
        Ok(Self { slot: index, start: index * slot_bytes, len, crc, next: 0, staged: heapless::Vec::new() })
    }

    /// The slot that is written.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// The file as it lies in flash, once all of it has arrived.
    pub fn file<'p>(&self, partition: &'p [u8]) -> Option<&'p [u8]> {
        let start = self.start + FILE_OFFSET;
        if self.next == self.len { partition.get(start..start + self.len as usize) } else { None }
    }

    /// Whether a new announcement is that of this upload, so that it can go on.
    pub fn is_for(&self, slot: usize, len: u32, crc: u32) -> bool {
        (self.slot, self.len, self.crc) == (slot, len, crc)
    }

    /// The offset in the file that is needed next.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// Stores `data`, which starts at `offset` in the file, and returns the offset needed next. Bytes that are already
    /// there are passed over; a gap, or bytes after the end of the file, store nothing.
    ///
    /// # Errors
    /// [`SlotError::Flash`]; the upload must then begin again.
    pub fn chunk<F: NorFlash>(&mut self, flash: &mut F, offset: u32, data: &[u8]) -> Result<u32, SlotError> {
        let end = offset.saturating_add(data.len() as u32);
        if offset > self.next || end > self.len {
            return Ok(self.next);
        }
        for byte in data.get((self.next - offset) as usize..).unwrap_or(&[]) {
            // A full buffer is written below, so there is always room.
            if self.staged.push(*byte).is_err() {
                return Err(SlotError::Flash);
            }
            self.next += 1;
            if self.staged.len() == F::WRITE_SIZE || (self.next == self.len) {
                self.write_staged(flash)?;
            }
        }
        Ok(self.next)
    }

    /// Writes the staged bytes, which end at `next`, as one word, filled up with the erased value.
    fn write_staged<F: NorFlash>(&mut self, flash: &mut F) -> Result<(), SlotError> {
        let at = self.start + FILE_OFFSET + self.next as usize - self.staged.len();
        self.staged.resize(F::WRITE_SIZE, 0xff).map_err(|_| SlotError::Flash)?;
        flash.write(at as u32, &self.staged).map_err(|_| SlotError::Flash)?;
        self.staged.clear();
        Ok(())
    }

    /// Checks what lies in flash and writes the record: the file is in the slot from then on.
    ///
    /// `partition` gives the flash as it can be read in place now.
    ///
    /// # Errors
    /// [`SlotError::Incomplete`] leaves the upload under way; [`SlotError::Corrupt`], [`SlotError::Flash`] end it. The slot is
    /// then empty.
    pub fn finish<F: NorFlash>(
        &self,
        flash: &mut F,
        partition: impl Fn(&F) -> &[u8],
    ) -> Result<(), SlotError> {
        if self.next != self.len {
            return Err(SlotError::Incomplete { expected: self.len, found: self.next });
        }
        let start = self.start + FILE_OFFSET;
        let stored = partition(flash).get(start..start + self.len as usize).unwrap_or(&[]);
        let (expected, found) = (self.crc, rankpatch_format::crc32(stored));
        if expected != found {
            return Err(SlotError::Corrupt { expected, found });
        }
        let mut record = [0xff; FILE_OFFSET];
        let words = [MAGIC, self.len.to_le_bytes(), self.crc.to_le_bytes()];
        record.as_chunks_mut::<4>().0.iter_mut().zip(words).for_each(|(to, word)| *to = word);
        let crc = rankpatch_format::crc32(record.first_chunk::<12>().unwrap_or(&[0; 12])).to_le_bytes();
        if let Some(to) = record.as_chunks_mut::<4>().0.get_mut(3) {
            *to = crc;
        }
        let bytes = record.get(..RECORD_BYTES.next_multiple_of(F::WRITE_SIZE)).unwrap_or(&[]);
        flash.write(self.start as u32, bytes).map_err(|_| SlotError::Flash)?;
        match partition(flash).get(self.start..).and_then(file) {
            Some(_) => Ok(()),
            None => Err(SlotError::Flash),
        }
    }
}

/// Erases slot `index`.
///
/// # Errors
/// [`SlotError::NoSuchSlot`], [`SlotError::Flash`].
pub fn erase<F: NorFlash>(flash: &mut F, slot_bytes: usize, index: usize) -> Result<(), SlotError> {
    let expected = flash.capacity().checked_div(slot_bytes).unwrap_or(0);
    if index >= expected {
        return Err(SlotError::NoSuchSlot { expected, found: index });
    }
    let start = index * slot_bytes;
    flash.erase(start as u32, (start + slot_bytes) as u32).map_err(|_| SlotError::Flash)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use embedded_storage::nor_flash::{ErrorType, NorFlashErrorKind, ReadNorFlash};

    use super::*;

    /// NOR flash: erase sets ones, a word is written once per erase. `fail_after` operations, everything fails.
    struct Flash<const WORD: usize> {
        bytes: Vec<u8>,
        written: Vec<bool>,
        operations_left: usize,
    }

    impl<const WORD: usize> Flash<WORD> {
        fn new(len: usize) -> Self {
            Self { bytes: vec![0; len], written: vec![true; len / WORD], operations_left: usize::MAX }
        }

        fn spend(&mut self) -> Result<(), NorFlashErrorKind> {
            self.operations_left = self.operations_left.checked_sub(1).ok_or(NorFlashErrorKind::Other)?;
            Ok(())
        }
    }

    impl<const WORD: usize> ErrorType for Flash<WORD> {
        type Error = NorFlashErrorKind;
    }

    impl<const WORD: usize> ReadNorFlash for Flash<WORD> {
        const READ_SIZE: usize = 1;
        fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), NorFlashErrorKind> {
            bytes.copy_from_slice(&self.bytes[offset as usize..][..bytes.len()]);
            Ok(())
        }
        fn capacity(&self) -> usize {
            self.bytes.len()
        }
    }

    impl<const WORD: usize> NorFlash for Flash<WORD> {
        const WRITE_SIZE: usize = WORD;
        const ERASE_SIZE: usize = 256;
        fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
            self.spend()?;
            assert!(from.is_multiple_of(256) && to.is_multiple_of(256));
            self.bytes[from as usize..to as usize].fill(0xff);
            self.written[from as usize / WORD..to as usize / WORD].fill(false);
            Ok(())
        }
        fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
            self.spend()?;
            assert!((offset as usize).is_multiple_of(WORD) && bytes.len().is_multiple_of(WORD));
            for (i, word) in bytes.chunks(WORD).enumerate() {
                let at = offset as usize / WORD + i;
                assert!(!self.written[at], "word {at} is written twice");
                self.written[at] = true;
                self.bytes[at * WORD..][..WORD].copy_from_slice(word);
            }
            Ok(())
        }
    }

    const SLOT: usize = 1024;

    fn install<const WORD: usize>(
        flash: &mut Flash<WORD>,
        slot: usize,
        file: &[u8],
        chunk: usize,
    ) -> Result<(), SlotError> {
        let crc = rankpatch_format::crc32(file);
        let mut upload = Upload::begin(flash, SLOT, slot, file.len() as u32, crc)?;
        while (upload.next() as usize) < file.len() {
            let at = upload.next() as usize;
            upload.chunk(flash, at as u32, &file[at..file.len().min(at + chunk)])?;
        }
        upload.finish(flash, |flash| &flash.bytes)
    }

    fn stored<const WORD: usize>(flash: &Flash<WORD>, index: usize) -> Option<&[u8]> {
        slot(&flash.bytes, SLOT, index).and_then(file)
    }

    fn every_length_and_chunk<const WORD: usize>() {
        let content: Vec<u8> = (0..960u32).map(|i| (i * 7 + 3) as u8).collect();
        for len in [1, 2, 31, 32, 33, 127, 500, 959, 960] {
            for chunk in [1, 3, 32, 100, 1024] {
                let mut flash = Flash::<WORD>::new(4 * SLOT);
                install(&mut flash, 2, &content[..len], chunk).unwrap();
                assert_eq!(stored(&flash, 2), Some(&content[..len]), "{len} bytes by {chunk}");
                assert_eq!(stored(&flash, 1), None);
            }
        }
    }

    #[test]
    fn files_come_back_for_every_word_size() {
        every_length_and_chunk::<1>();
        every_length_and_chunk::<4>();
        every_length_and_chunk::<8>();
        every_length_and_chunk::<32>();
    }

    #[test]
    fn a_failure_at_any_operation_leaves_no_file() {
        let content = [0x5a; 300];
        let mut operations = 0;
        loop {
            let mut flash = Flash::<8>::new(2 * SLOT);
            flash.operations_left = operations;
            if install(&mut flash, 1, &content, 64).is_ok() {
                break;
            }
            assert_eq!(stored(&flash, 1), None, "after {operations} operations");
            operations += 1;
        }
        // One erase, 38 words, the record.
        assert_eq!(operations, 1 + 38 + 1);
    }

    #[test]
    fn gaps_and_repeats_store_nothing() {
        let mut flash = Flash::<4>::new(2 * SLOT);
        let content = [9; 100];
        let mut upload = Upload::begin(&mut flash, SLOT, 0, 100, rankpatch_format::crc32(&content)).unwrap();
        assert_eq!(upload.chunk(&mut flash, 0, &content[..50]), Ok(50));
        assert_eq!(upload.chunk(&mut flash, 60, &content[60..]), Ok(50), "a gap");
        assert_eq!(upload.chunk(&mut flash, 0, &content[..50]), Ok(50), "a repeat");
        assert_eq!(upload.chunk(&mut flash, 50, &[9; 60]), Ok(50), "beyond the end");
        assert_eq!(upload.chunk(&mut flash, u32::MAX, &[1]), Ok(50), "overflow");
        let incomplete = SlotError::Incomplete { expected: 100, found: 50 };
        assert_eq!(upload.finish(&mut flash, |flash| &flash.bytes), Err(incomplete));
        assert_eq!(upload.chunk(&mut flash, 40, &content[40..]), Ok(100), "an overlap goes on where it must");
        assert_eq!(upload.finish(&mut flash, |flash| &flash.bytes), Ok(()));
        assert_eq!(stored(&flash, 0), Some(&content[..]));
    }

    #[test]
    fn damage_is_noticed() {
        let mut flash = Flash::<4>::new(2 * SLOT);
        install(&mut flash, 0, &[7; 40], 16).unwrap();
        for bit in (0..RECORD_BYTES * 8).chain(FILE_OFFSET * 8..(FILE_OFFSET + 40) * 8) {
            flash.bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(stored(&flash, 0), None, "bit {bit}");
            flash.bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let mut upload = Upload::begin(&mut flash, SLOT, 1, 4, 0xdead_beef).unwrap();
        upload.chunk(&mut flash, 0, &[1, 2, 3, 4]).unwrap();
        let found = rankpatch_format::crc32(&[1, 2, 3, 4]);
        let finished = upload.finish(&mut flash, |flash| &flash.bytes);
        assert_eq!(finished, Err(SlotError::Corrupt { expected: 0xdead_beef, found }));
        assert_eq!(stored(&flash, 1), None);
    }

    #[test]
    fn wrong_places_and_lengths_are_refused_before_erasing() {
        let mut flash = Flash::<4>::new(2 * SLOT);
        let begin = |flash: &mut _, slot, len| Upload::begin(flash, SLOT, slot, len, 0).map(|_| ());
        assert_eq!(begin(&mut flash, 2, 10), Err(SlotError::NoSuchSlot { expected: 2, found: 2 }));
        assert_eq!(begin(&mut flash, 0, 0), Err(SlotError::WrongLength { expected: 960, found: 0 }));
        assert_eq!(begin(&mut flash, 0, 961), Err(SlotError::WrongLength { expected: 960, found: 961 }));
        assert!(flash.bytes.iter().all(|byte| *byte == 0), "nothing was erased");
    }
}
