//! The firmware: the shared application on this board.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
#[riscv_rt::entry]
fn main() -> ! {
    rankpatch_board::app::run(qemu_riscv32_virt::board::take())
}

#[cfg(target_os = "none")]
qemu_riscv32_virt::log_panics!();
