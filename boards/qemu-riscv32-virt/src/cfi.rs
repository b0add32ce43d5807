//! Common-flash-interface NOR with Intel's command set: two 16-bit chips side by side, so each command goes to both
//! halves of a 32-bit word.
//!
//! While a command is under way the bank answers reads with its status, so every operation ends in the mode in which the
//! memory can be read. The program runs from elsewhere. QEMU's chips accept a write over any old value; the rules of NOR
//! flash are kept by [`FlashPartition`](rankpatch_board::FlashPartition) before it comes to that.
#![expect(unsafe_code, reason = "commands are stores to flash")]

use core::ptr::NonNull;

use rankpatch_board::{Controller, ControllerFault, Resume};

/// The same command, or status, for both chips.
const fn both(chip: u32) -> u32 {
    chip << 16 | chip
}

const READ_ARRAY: u32 = both(0xFF);
const CLEAR_STATUS: u32 = both(0x50);
const ERASE_SETUP: u32 = both(0x20);
const ERASE_CONFIRM: u32 = both(0xD0);
const PROGRAM_WORD: u32 = both(0x40);
const STATUS_READY: u32 = both(0x80);
/// Erase failed, program failed, voltage low, block locked.
const STATUS_ERRORS: u32 = both(0x3A);

/// The bank of chips.
#[derive(Debug)]
pub struct CfiFlash(());

impl CfiFlash {
    /// The one bank.
    ///
    /// # Safety
    /// Called at most once.
    pub(crate) unsafe fn take() -> Self {
        Self(())
    }
}

/// One word of the bank, to which commands go and from which status comes.
#[derive(Clone, Copy)]
struct Word(NonNull<u32>);

impl Word {
    fn write(self, value: u32) {
        // SAFETY: a word of the bank, say the callers of the functions below; a store to it is a command or its data.
        unsafe { self.0.write_volatile(value) };
    }

    fn read(self) -> u32 {
        // SAFETY: as above.
        unsafe { self.0.read_volatile() }
    }

    /// Waits until both chips are ready and says whether they have no error to report.
    fn finish(self) -> bool {
        loop {
            let status = self.read();
            if status & STATUS_READY == STATUS_READY {
                return status & STATUS_ERRORS == 0;
            }
        }
    }

    /// Leaves the command mode.
    fn end(self, succeeded: bool) -> Result<(), ControllerFault> {
        if !succeeded {
            self.write(CLEAR_STATUS);
        }
        self.write(READ_ARRAY);
        if succeeded { Ok(()) } else { Err(ControllerFault) }
    }
}

impl Controller for CfiFlash {
    const WORD_BYTES: usize = 4;
    const PAGE_BYTES: usize = 256 << 10;
    /// A whole file lies in one sector, so an upload that went on at a page would always begin anew. The emulator writes a word
    /// whole or not at all.
    const RESUME: Resume = Resume::Word;

    unsafe fn erase(&mut self, page: NonNull<u8>) -> Result<(), ControllerFault> {
        let first = Word(page.cast());
        first.write(ERASE_SETUP);
        first.write(ERASE_CONFIRM);
        let done = first.finish();
        first.end(done)
    }

    unsafe fn program(&mut self, at: NonNull<u8>, words: &[u8]) -> Result<(), ControllerFault> {
        let target = at.cast::<u32>();
        let mut done = true;
        for (i, word) in words.as_chunks::<4>().0.iter().enumerate() {
            // SAFETY: within the range of the bank that the caller names.
            let at = Word(unsafe { target.add(i) });
            at.write(PROGRAM_WORD);
            at.write(u32::from_le_bytes(*word));
            done = at.finish();
            if !done {
                break;
            }
        }
        Word(target).end(done)
    }
}
