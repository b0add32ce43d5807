//! Proves the board support; see `smoke.rs` of `qemu-mps2-an386`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
#[path = "../smoke.rs"]
mod device;

#[cfg(target_os = "none")]
use qemu_mps2_an386 as support;

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
qemu_mps2_an386::log_panics!();
