//! The nRF51's flash controller: write enable, erase enable, whole words, pages of 1 KiB, bits that a write only clears.
//!
//! The core stands still while the controller works on the flash that the program runs from, so waiting for
//! `READY` costs nothing more. Erased flash is 0xFF; QEMU starts flash that no image fills as zeros, which counts as
//! written until it is erased.
#![expect(unsafe_code, reason = "registers, and stores to flash")]

use core::ptr::NonNull;

use rankpatch_board::{Controller, ControllerFault, Register};

const NVMC: usize = 0x4001_E000;
// SAFETY: the registers of the nRF51's NVMC.
static READY: Register = unsafe { Register::at(NVMC + 0x400) };
// SAFETY: as above.
static CONFIG: Register = unsafe { Register::at(NVMC + 0x504) };
// SAFETY: as above. Only `Nvmc::erase` writes it, with the address of a page.
static ERASEPAGE: Register = unsafe { Register::at(NVMC + 0x508) };

const READ_ONLY: u32 = 0;
const WRITE_ENABLE: u32 = 1;
const ERASE_ENABLE: u32 = 2;

/// The flash controller.
#[derive(Debug)]
pub struct Nvmc(());

impl Nvmc {
    /// The one controller.
    ///
    /// # Safety
    /// Called at most once.
    pub(crate) unsafe fn take() -> Self {
        Self(())
    }

    /// Works on the flash in a mode in which it can be changed, and goes back to read-only whatever happens.
    fn enabled(mode: u32, work: impl FnOnce() -> bool) -> Result<(), ControllerFault> {
        wait();
        CONFIG.write(mode);
        wait();
        let done = work();
        CONFIG.write(READ_ONLY);
        wait();
        if done { Ok(()) } else { Err(ControllerFault) }
    }
}

fn wait() {
    while READY.read() & 1 == 0 {}
}

impl Controller for Nvmc {
    const WORD_BYTES: usize = 4;
    const PAGE_BYTES: usize = 1024;

    unsafe fn erase(&mut self, page: NonNull<u8>) -> Result<(), ControllerFault> {
        let words = page.cast::<u32>();
        Self::enabled(ERASE_ENABLE, || {
            ERASEPAGE.write(page.as_ptr().expose_provenance() as u32);
            wait();
            // SAFETY: a page of flash, says the caller.
            (0..Self::PAGE_BYTES / 4).all(|i| unsafe { words.add(i).read_volatile() } == u32::MAX)
        })
    }

    unsafe fn program(&mut self, at: NonNull<u8>, words: &[u8]) -> Result<(), ControllerFault> {
        let target = at.cast::<u32>();
        Self::enabled(WRITE_ENABLE, || {
            words.as_chunks::<4>().0.iter().enumerate().all(|(i, word)| {
                let word = u32::from_le_bytes(*word);
                // SAFETY: an aligned word of flash, says the caller; a store is how this controller is told to program.
                unsafe {
                    target.add(i).write_volatile(word);
                    wait();
                    target.add(i).read_volatile() == word
                }
            })
        })
    }
}
