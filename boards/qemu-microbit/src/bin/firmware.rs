//! The firmware: the shared application on this board, with frames that fit its RAM.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

/// Bytes of a frame: chunks of 256 bytes.
#[cfg(target_os = "none")]
const FRAME_BYTES: usize = 280;

#[cfg(target_os = "none")]
#[cortex_m_rt::entry]
fn main() -> ! {
    rankpatch_board::app::run_with::<_, FRAME_BYTES>(qemu_microbit::board::take(), 2)
}

#[cfg(target_os = "none")]
qemu_microbit::log_panics!();
