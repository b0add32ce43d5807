//! Board support for the QEMU machine `mps2-an386`: a Cortex-M4F with two UARTs, timers and memory used here.
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
mod logger;
#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
pub mod memory;
#[cfg(target_os = "none")]
mod register;
#[cfg(target_os = "none")]
pub mod stack;
#[cfg(target_os = "none")]
pub mod uart;
#[cfg(target_os = "none")]
mod vectors;

#[cfg(target_os = "none")]
pub use fault::{fail, panicked, succeed};

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
