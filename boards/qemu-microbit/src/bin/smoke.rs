//! The program that proves the board support; see `rankpatch_board::smoke`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
#[cortex_m_rt::entry]
fn main() -> ! {
    rankpatch_board::smoke::run(qemu_microbit::board::take(), qemu_microbit::counter::instructions)
}

#[cfg(target_os = "none")]
qemu_microbit::log_panics!();
