//! NOR flash that is strict: what real flash only suffers once in a while is a panic here, and so a finding.

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};
use rankpatch_runtime::slots::MappedFlash;

/// Bytes per page.
pub(super) const PAGE: usize = 256;

/// Flash with words of `WORD` bytes.
#[derive(Clone, Debug)]
pub(super) struct Nor<const WORD: usize> {
    bytes: Vec<u8>,
    /// Whether the word was erased since the last reset and not written since then.
    writable: Vec<bool>,
    erased: u8,
    /// The power is cut inside the operation after so many.
    operations_left: usize,
    /// Bits of a torn operation.
    noise: u32,
}

impl<const WORD: usize> Nor<WORD> {
    /// Flash that holds `bytes` and then erased bytes.
    pub(super) fn new(bytes: &[u8], capacity: usize, erased: u8) -> Self {
        let mut all = bytes.to_vec();
        all.resize(capacity, erased);
        Self {
            bytes: all,
            writable: vec![false; capacity / WORD],
            erased,
            operations_left: usize::MAX,
            noise: 1,
        }
    }

    /// The same flash after a reset: what looks erased need not be.
    pub(super) fn after_reset(mut self) -> Self {
        self.writable.fill(false);
        self.operations_left = usize::MAX;
        self
    }

    /// Cuts the power inside the operation after `operations` more.
    pub(super) fn cut_after(&mut self, operations: usize, noise: u32) {
        (self.operations_left, self.noise) = (operations, noise | 1);
    }

    /// Changes byte `at`, in whose operation the power is cut, to a mix of what it is and `to`.
    fn tear(&mut self, at: usize, to: u8) {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 17;
        self.noise ^= self.noise << 5;
        let mask = self.noise as u8;
        self.bytes[at] = self.bytes[at] & !mask | to & mask;
    }

    /// Whether this operation is torn.
    fn spend(&mut self) -> Result<bool, NorFlashErrorKind> {
        match self.operations_left {
            usize::MAX => Ok(false),
            0 => Err(NorFlashErrorKind::Other),
            1 => {
                self.operations_left = 0;
                Ok(true)
            }
            _ => {
                self.operations_left -= 1;
                Ok(false)
            }
        }
    }
}

impl<const WORD: usize> ErrorType for Nor<WORD> {
    type Error = NorFlashErrorKind;
}

impl<const WORD: usize> ReadNorFlash for Nor<WORD> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        bytes.copy_from_slice(&self.bytes[offset as usize..][..bytes.len()]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl<const WORD: usize> NorFlash for Nor<WORD> {
    const WRITE_SIZE: usize = WORD;
    const ERASE_SIZE: usize = PAGE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        let (from, to) = (from as usize, to as usize);
        assert!(
            from.is_multiple_of(PAGE) && to.is_multiple_of(PAGE) && from <= to,
            "an erase of half a page"
        );
        for page in (from..to).step_by(PAGE) {
            let torn = self.spend()?;
            self.writable[page / WORD..(page + PAGE) / WORD].fill(!torn);
            if torn {
                (page..page + PAGE).for_each(|at| self.tear(at, self.erased));
                return Err(NorFlashErrorKind::Other);
            }
            self.bytes[page..page + PAGE].fill(self.erased);
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        let start = offset as usize;
        assert!(start.is_multiple_of(WORD) && bytes.len().is_multiple_of(WORD), "a write of half a word");
        for (i, word) in bytes.chunks(WORD).enumerate() {
            let index = start / WORD + i;
            assert!(
                std::mem::take(&mut self.writable[index]),
                "word {index} was not erased since the last reset, or is written twice"
            );
            if self.spend()? {
                word.iter().enumerate().for_each(|(j, byte)| self.tear(index * WORD + j, *byte));
                return Err(NorFlashErrorKind::Other);
            }
            self.bytes[index * WORD..][..WORD].copy_from_slice(word);
        }
        Ok(())
    }
}

impl<const WORD: usize> MappedFlash for Nor<WORD> {
    fn mapped(&self) -> &[u8] {
        &self.bytes
    }
}
