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
pub use fault::{fail, succeed};
