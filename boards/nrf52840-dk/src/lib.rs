//! Board support for Nordic's nRF52840 DK (PCA10056): a Cortex-M4F with 1 MiB of flash and 256 KiB of RAM.
//!
//! The UART that the debugger bridges to USB is the link, with hardware flow control; the log goes over RTT. On a host this
//! package is empty, so that `cargo check --workspace` and editors need no target.
#![cfg_attr(target_os = "none", no_std)]

#[cfg(target_os = "none")]
pub mod board;
#[cfg(target_os = "none")]
#[path = "../../embassy/clock.rs"]
pub mod clock;
#[cfg(target_os = "none")]
mod flash;
#[cfg(target_os = "none")]
#[path = "../../embassy/memory.rs"]
mod memory;
#[cfg(target_os = "none")]
#[path = "../../embassy/pipes.rs"]
pub mod pipes;

#[cfg(target_os = "none")]
pub use flash::Nvmc;
