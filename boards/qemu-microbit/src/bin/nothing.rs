//! What `receive` is compared with: the same program without the receiver.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use panic_halt as _;

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
#[cortex_m_rt::entry]
fn main() -> ! {
    rankpatch_board::receive::nothing(qemu_microbit::board::take())
}
