//! The program that proves the board support; see `rankpatch_board::smoke`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
#[riscv_rt::entry]
fn main() -> ! {
    rankpatch_board::smoke::run(qemu_riscv32_virt::board::take(), qemu_riscv32_virt::counter::instructions)
}

#[cfg(target_os = "none")]
qemu_riscv32_virt::log_panics!();
