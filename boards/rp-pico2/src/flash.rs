//! The Pico 2's flash chip through embassy's driver: sectors of 4 KiB, words of 4 bytes.
//!
//! The chip programs pages of 256 bytes, in which a byte of ones changes nothing: the driver fills pages up with ones, so a
//! word can be written alone. While the chip works nothing can be read from it, so the driver runs from RAM with interrupts
//! masked: inference and USB pause for as long as a sector is erased. The USB hardware holds the host
//! off meanwhile.
#![expect(unsafe_code, reason = "a controller's contract is about memory")]

use core::ptr::NonNull;

use embassy_rp::flash::{Blocking, ERASE_SIZE, FLASH_BASE, Flash};
use embassy_rp::peripherals::FLASH;
use rankpatch_board::{Controller, ControllerFault};

/// Bytes of the chip.
pub(crate) const FLASH_BYTES: usize = 4 * 1024 * 1024;

/// The flash chip.
pub struct Qspi(pub(crate) Flash<'static, FLASH, Blocking, FLASH_BYTES>);

fn offset(address: NonNull<u8>) -> u32 {
    (address.as_ptr().expose_provenance() - FLASH_BASE.addr()) as u32
}

impl Controller for Qspi {
    const WORD_BYTES: usize = 4;
    const PAGE_BYTES: usize = ERASE_SIZE;

    unsafe fn erase(&mut self, page: NonNull<u8>) -> Result<(), ControllerFault> {
        let start = offset(page);
        self.0.blocking_erase(start, start + ERASE_SIZE as u32).map_err(|_| ControllerFault)
    }

    unsafe fn program(&mut self, at: NonNull<u8>, words: &[u8]) -> Result<(), ControllerFault> {
        self.0.blocking_write(offset(at), words).map_err(|_| ControllerFault)
    }
}
