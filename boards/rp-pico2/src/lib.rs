//! Board support for the Raspberry Pi Pico 2: an RP2350 with two Cortex-M33, 4 MiB of flash and 520 KiB of RAM.
//!
//! USB is the link, as a serial port; the log goes over RTT. On a host this package is empty, so that
//! `cargo check --workspace` and editors need no target.
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
mod usb;

#[cfg(target_os = "none")]
pub use flash::Qspi;
