//! The firmware, except that it also accepts unsigned adapters. A program of its own, so that nobody builds it by mistake.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
#[cortex_m_rt::entry]
fn main() -> ! {
    rankpatch_board::app::run(qemu_mps2_an386::board::take())
}

#[cfg(target_os = "none")]
qemu_mps2_an386::log_panics!();
