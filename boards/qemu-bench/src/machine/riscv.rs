//! RISC-V: the counter of retired instructions, which QEMU derives from virtual time: 2^7 ns each under `-icount shift=7`.

use core::arch::{asm, global_asm};

global_asm!(
    ".section .init, \"ax\"",
    ".global _start",
    "_start:",
    "la sp, _stack_start",
    "la t0, _bss_start",
    "la t1, _bss_end",
    "1:",
    "bgeu t0, t1, 2f",
    "sw zero, 0(t0)",
    "addi t0, t0, 4",
    "j 1b",
    "2:",
    "tail {run}",
    run = sym crate::kernels::run,
);

pub(crate) fn start_counter() {}

#[inline(always)]
pub(crate) fn now() -> u32 {
    let count: u32;
    // SAFETY: reads a counter.
    unsafe { asm!("csrr {}, minstret", out(reg) count, options(nostack)) };
    count
}

/// Instructions since `start`, at most 2^25.
#[inline(always)]
pub(crate) fn instructions_since(start: u32) -> u32 {
    (now().wrapping_sub(start) + 64) >> 7
}

/// Executes 2 x `turns` instructions and a few more.
#[inline(never)]
pub(super) fn spin(turns: u32) {
    // SAFETY: counts a register down.
    unsafe {
        asm!("1:", "addi {turns}, {turns}, -1", "bnez {turns}, 1b", turns = inout(reg) turns => _, options(nomem, nostack));
    }
}

/// # Safety
/// `argument` is what the operation expects.
pub(super) unsafe fn semihosting(operation: usize, argument: usize) {
    // SAFETY: the emulator knows these three instructions, none of them compressed and all on one page, and writes its
    // result to a0; the rest is the caller's promise.
    unsafe {
        asm!(
            ".option push",
            ".option norvc",
            ".balign 16",
            "slli zero, zero, 0x1f",
            "ebreak",
            "srai zero, zero, 7",
            ".option pop",
            inout("a0") operation => _,
            in("a1") argument,
            options(nostack)
        );
    }
}
