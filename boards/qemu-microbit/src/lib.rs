//! Board support for the QEMU machine `microbit`: an nRF51822 with a Cortex-M0, 256 KiB of flash behind its real
//! controller, and 16 KiB of RAM.
//!
//! Programs in `src/bin` call [`board::take`] once and work on what it returns. On a host this package is empty, so that
//! `cargo check --workspace` and editors need no target.
#![cfg_attr(target_os = "none", no_std)]

#[cfg(target_os = "none")]
pub mod board;
#[cfg(target_os = "none")]
pub mod counter;
#[cfg(target_os = "none")]
mod fault;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod nvmc;
#[cfg(target_os = "none")]
pub mod uart;

#[cfg(target_os = "none")]
pub use fault::{fail, panicked, succeed};
#[cfg(target_os = "none")]
pub use nvmc::Nvmc;

/// Defines what a panic of a program does: it is logged and ends the emulator. The programs that `cargo xtask sizes` compares
/// stop without a word instead, so that no message is counted.
#[macro_export]
macro_rules! log_panics {
    () => {
        #[panic_handler]
        #[inline(always)]
        #[expect(clippy::inline_always, reason = "as of the function that it calls")]
        fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
            $crate::panicked(info)
        }
    };
}
