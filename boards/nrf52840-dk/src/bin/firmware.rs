//! The firmware: the shared application on this board. A panic is logged over RTT.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use panic_probe as _;

#[cfg(not(target_os = "none"))]
fn main() {}

/// Bytes of a frame: chunks of 1,120 bytes.
#[cfg(target_os = "none")]
const FRAME_BYTES: usize = rankpatch_board::app::USUAL_FRAME;

#[cfg(target_os = "none")]
#[cortex_m_rt::entry]
fn main() -> ! {
    rankpatch_board::app::run_with::<_, FRAME_BYTES>(nrf52840_dk::board::take(), 2)
}
