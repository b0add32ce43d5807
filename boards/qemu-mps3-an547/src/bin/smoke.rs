//! Proves the board support; see `smoke.rs` of `qemu-mps2-an386`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
#[path = "../../../qemu-mps2-an386/src/smoke.rs"]
mod device;

#[cfg(target_os = "none")]
use qemu_mps3_an547 as support;

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
qemu_mps3_an547::log_panics!();
