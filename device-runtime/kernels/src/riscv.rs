//! The products of four rows on RISC-V with multiplication (RV32IM): a load that extends signs, a multiplication and an addition
//! a product, without a step of any pointer for eight columns.
#![allow(
    unsafe_code,
    reason = "a loop of naked assembly; the compiler keeps too much in registers and then in memory"
)]

use core::arch::naked_asm;

/// A column of four rows.
macro_rules! column {
    ($at:literal) => {
        concat!(
            "lb t4, ",
            $at,
            "(a1)\n",
            "lb t5, ",
            $at,
            "(a4)\n",
            "lb t6, ",
            $at,
            "(a5)\n",
            "mul t5, t5, t4\n",
            "mul t6, t6, t4\n",
            "add t0, t0, t5\n",
            "add t1, t1, t6\n",
            "lb t5, ",
            $at,
            "(a6)\n",
            "lb t6, ",
            $at,
            "(a7)\n",
            "mul t5, t5, t4\n",
            "mul t6, t6, t4\n",
            "add t2, t2, t5\n",
            "add t3, t3, t6\n",
        )
    };
}

/// All pointers, so many columns on.
macro_rules! step {
    ($columns:literal) => {
        concat!(
            "addi a1, a1, ",
            $columns,
            "\n",
            "addi a4, a4, ",
            $columns,
            "\n",
            "addi a5, a5, ",
            $columns,
            "\n",
            "addi a6, a6, ",
            $columns,
            "\n",
            "addi a7, a7, ",
            $columns,
            "\n",
        )
    };
}

/// The products of four rows with one vector of `k` codes.
///
/// # Safety
/// All pointers are good for `k` bytes, and `k` is at least 1.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn dot4(rows: &[*const i8; 4], x: *const i8, k: usize, sums: &mut [i32; 4]) {
    // a4-a7: rows; a1: x; a0: the end of x in eights; a2: its end; t0-t3: sums.
    naked_asm!(
        // In a library the assembler is not told of the target's extensions.
        ".option push",
        ".option arch, +m",
        "lw a4, 0(a0)",
        "lw a5, 4(a0)",
        "lw a6, 8(a0)",
        "lw a7, 12(a0)",
        "li t0, 0",
        "li t1, 0",
        "li t2, 0",
        "li t3, 0",
        "andi a0, a2, -8",
        "add a0, a0, a1",
        "add a2, a2, a1",
        "beq a1, a0, 3f",
        "2:",
        column!("0"),
        column!("1"),
        column!("2"),
        column!("3"),
        column!("4"),
        column!("5"),
        column!("6"),
        column!("7"),
        step!("8"),
        "bne a1, a0, 2b",
        "3:",
        "beq a1, a2, 5f",
        "4:",
        column!("0"),
        step!("1"),
        "bne a1, a2, 4b",
        "5:",
        "sw t0, 0(a3)",
        "sw t1, 4(a3)",
        "sw t2, 8(a3)",
        "sw t3, 12(a3)",
        "ret",
        ".option pop",
    )
}
