//! Board support for the QEMU machine `mps3-an547`: a Cortex-M55 with two UARTs, the system counter and memory used here.
//!
//! Its UARTs are those of `mps2-an386`, and what lies between them and the application is the same code, included from
//! there; this package has the addresses, the interrupt and the counter. On a host it is empty, so that
//! `cargo check --workspace` and editors need no target.
#![cfg_attr(target_os = "none", no_std)]

#[cfg(target_os = "none")]
pub mod board;
#[cfg(target_os = "none")]
pub mod counter;
#[cfg(target_os = "none")]
#[path = "../../qemu-mps2-an386/src/fault.rs"]
mod fault;
#[cfg(target_os = "none")]
#[path = "../../qemu-mps2-an386/src/logger.rs"]
mod logger;
#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
#[path = "../../qemu-mps2-an386/src/memory.rs"]
pub mod memory;
#[cfg(target_os = "none")]
#[path = "../../qemu-mps2-an386/src/register.rs"]
mod register;
#[cfg(target_os = "none")]
#[path = "../../qemu-mps2-an386/src/stack.rs"]
pub mod stack;
#[cfg(target_os = "none")]
#[path = "../../qemu-mps2-an386/src/uart.rs"]
pub mod uart;
#[cfg(target_os = "none")]
#[path = "../../qemu-mps2-an386/src/vectors.rs"]
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
