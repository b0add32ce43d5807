//! The nRF52840's NVMC through embassy's driver: pages of 4 KiB, words of 4 bytes.
//!
//! The chip allows two writes of a word between erases; the slots use one. The core stands still while the controller works on
//! the flash that the program runs from, for as long as a page is erased: inference pauses, and the UART's flow control holds the
//! host off.
#![expect(unsafe_code, reason = "a controller's contract is about memory")]

use core::ptr::NonNull;

use embassy_nrf::nvmc;
use embedded_storage::nor_flash::NorFlash as _;
use rankpatch_board::{Controller, ControllerFault};

/// The flash controller.
pub struct Nvmc(pub(crate) nvmc::Nvmc<'static>);

impl Controller for Nvmc {
    const WORD_BYTES: usize = 4;
    const PAGE_BYTES: usize = nvmc::PAGE_SIZE;

    unsafe fn erase(&mut self, page: NonNull<u8>) -> Result<(), ControllerFault> {
        // The flash starts at address 0.
        let start = page.as_ptr().expose_provenance() as u32;
        self.0.erase(start, start + Self::PAGE_BYTES as u32).map_err(|_| ControllerFault)
    }

    unsafe fn program(&mut self, at: NonNull<u8>, words: &[u8]) -> Result<(), ControllerFault> {
        self.0.write(at.as_ptr().expose_provenance() as u32, words).map_err(|_| ControllerFault)
    }
}
