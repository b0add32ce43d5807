//! The products of four rows on Arm cores without the DSP extension (Cortex-M0, M0+, M3), in assembly because the compiler runs
//! out of registers on them.
#![allow(unsafe_code, reason = "a loop of naked assembly that uses every register")]

use core::arch::naked_asm;

/// A column of four rows on Armv6-M; leaves the flags of the index.
#[cfg(not(target_has_atomic = "32"))]
macro_rules! column6 {
    () => {
        "
        ldrsb r6, [r4, r5]
        ldrsb r7, [r0, r5]
        muls r7, r6, r7
        add r8, r7
        ldrsb r7, [r1, r5]
        muls r7, r6, r7
        add r9, r7
        ldrsb r7, [r2, r5]
        muls r7, r6, r7
        add r10, r7
        ldrsb r7, [r3, r5]
        muls r7, r6, r7
        add r11, r7
        adds r5, #1
        "
    };
}

/// The products of four rows with one vector of `k` codes.
///
/// # Safety
/// All pointers are good for `k` bytes, and `k` is at least 1.
// Cores of Armv6-M have no compare-and-swap, which is how the two are told apart; nor MLA, nor loads that move a pointer.
#[cfg(not(target_has_atomic = "32"))]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn dot4(rows: &[*const i8; 4], x: *const i8, k: usize, sums: &mut [i32; 4]) {
    // r0-r3: ends of the rows; r4: end of x; r5: index, up to zero; r8-r11: sums.
    naked_asm!(
        "push {{r4-r7, lr}}",
        "mov r4, r8",
        "mov r5, r9",
        "mov r6, r10",
        "mov r7, r11",
        "push {{r3-r7}}",
        "adds r4, r1, r2",
        "negs r5, r2",
        "mov r6, r2",
        "ldm r0!, {{r1, r2, r3, r7}}",
        "adds r0, r1, r6",
        "adds r1, r2, r6",
        "adds r2, r3, r6",
        "adds r3, r7, r6",
        "movs r7, #0",
        "mov r8, r7",
        "mov r9, r7",
        "mov r10, r7",
        "mov r11, r7",
        // The loop takes four columns a turn; the first turn enters so that the rest fits. A column is 28 bytes.
        "movs r7, #3",
        "ands r6, r7",
        "beq 3f",
        "cmp r6, #2",
        "beq 4f",
        "bhi 5f",
        "b 6f",
        "3:",
        column6!(),
        "5:",
        column6!(),
        "4:",
        column6!(),
        "6:",
        column6!(),
        "beq 7f",
        "b 3b",
        "7:",
        "pop {{r3-r7}}",
        "mov r0, r8",
        "mov r1, r9",
        "mov r2, r10",
        "mov r8, r4",
        "mov r4, r11",
        "mov r9, r5",
        "mov r10, r6",
        "mov r11, r7",
        "stm r3!, {{r0, r1, r2, r4}}",
        "pop {{r4-r7, pc}}",
    )
}

/// A column of four rows on Armv7-M.
#[cfg(target_has_atomic = "32")]
macro_rules! column7 {
    () => {
        "
        ldrsb r9, [r4], #1
        ldrsb r10, [r0], #1
        ldrsb r12, [r1], #1
        ldrsb lr, [r2], #1
        mla r5, r10, r9, r5
        ldrsb r10, [r3], #1
        mla r6, r12, r9, r6
        mla r7, lr, r9, r7
        mla r8, r10, r9, r8
        "
    };
}

/// The products of four rows with one vector of `k` codes.
///
/// # Safety
/// All pointers are good for `k` bytes, and `k` is at least 1.
#[cfg(target_has_atomic = "32")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn dot4(rows: &[*const i8; 4], x: *const i8, k: usize, sums: &mut [i32; 4]) {
    // r0-r3: rows; r4: x; r5-r8: sums; r11: turns left.
    naked_asm!(
        "push {{r3-r11, lr}}",
        "mov r4, r1",
        "add r11, r2, #3",
        "lsr r11, r11, #2",
        "ands r12, r2, #3",
        "ldm r0, {{r0-r3}}",
        "mov r5, #0",
        "mov r6, #0",
        "mov r7, #0",
        "mov r8, #0",
        // The loop takes four columns a turn; the first turn enters so that the rest fits.
        "beq 3f",
        "cmp r12, #2",
        "beq 4f",
        "bhi 5f",
        "b 6f",
        ".p2align 2",
        "3:",
        column7!(),
        "5:",
        column7!(),
        "4:",
        column7!(),
        "6:",
        column7!(),
        "subs r11, r11, #1",
        "bne 3b",
        "pop {{r3}}",
        "stm r3, {{r5-r8}}",
        "pop {{r4-r11, pc}}",
    )
}
