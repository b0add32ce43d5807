//! Counts instructions of the integer kernels on one emulated core, and first sweeps them against plain loops there.
//!
//! Each line of the output that starts with `bench` has the form `bench NAME ROWS COLS RANK TOKENS INSTRUCTIONS MACS`;
//! `cargo xtask bench` collects them. A count covers the call with its checks and stores, and nothing around it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod front_end;
#[cfg(target_os = "none")]
mod kernels;
#[cfg(target_os = "none")]
mod machine;

#[cfg(not(target_os = "none"))]
fn main() {}
