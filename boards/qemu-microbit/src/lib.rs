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
pub use fault::{fail, succeed};
#[cfg(target_os = "none")]
pub use nvmc::Nvmc;
