//! Loops over vectors of floats on a core with an FPU, eight at a time.

use core::arch::naked_asm;

pub(crate) fn dequantize(acc: &[[i32; 8]], scale: f32, row_scales: &[[f32; 8]], y: &mut [[f32; 8]]) {
    let groups = y.len().min(acc.len()).min(row_scales.len());
    if groups > 0 {
        let (acc, row_scales, y) = (acc.as_ptr(), row_scales.as_ptr(), y.as_mut_ptr());
        // SAFETY: there is at least one group in all of them.
        unsafe { dequantize_groups(acc.cast(), row_scales.cast(), y.cast(), groups, scale) };
    }
}

pub(crate) fn dequantize_bias(
    acc: &[[i32; 8]],
    scale: f32,
    row_scales: &[[f32; 8]],
    bias: &[[f32; 8]],
    y: &mut [[f32; 8]],
) {
    let groups = y.len().min(acc.len()).min(row_scales.len()).min(bias.len());
    if groups > 0 {
        let (acc, row_scales, y) = (acc.as_ptr(), row_scales.as_ptr(), y.as_mut_ptr());
        // SAFETY: there is at least one group in all of them.
        unsafe {
            dequantize_bias_groups(acc.cast(), row_scales.cast(), y.cast(), groups, scale, bias.as_ptr().cast());
        }
    }
}

pub(crate) fn add(y: &mut [[f32; 8]], x: &[[f32; 8]]) {
    let groups = y.len().min(x.len());
    if groups > 0 {
        // SAFETY: there is at least one group in both.
        unsafe { add_groups(y.as_mut_ptr().cast(), x.as_ptr().cast(), groups) }
    }
}

pub(crate) fn mul(y: &mut [[f32; 8]], x: &[[f32; 8]]) {
    let groups = y.len().min(x.len());
    if groups > 0 {
        // SAFETY: there is at least one group in both.
        unsafe { mul_groups(y.as_mut_ptr().cast(), x.as_ptr().cast(), groups) }
    }
}

/// One instruction on eight pairs of registers: `$op s8, s16` to `$op s15, s23` and the like.
macro_rules! eight {
    ($op:literal, $d:literal, [$($n:literal),+], $other:literal, [$($m:literal),+]) => {
        concat!($($op, " ", $d, $n, ", ", $d, $n, ", ", $other, $m, "\n",)+)
    };
}

macro_rules! scaled {
    () => {
        concat!(
            "vldmia r0!, {{s8-s15}}\n",
            "vldmia r1!, {{s16-s23}}\n",
            "vcvt.f32.s32 s8, s8\n vcvt.f32.s32 s9, s9\n vcvt.f32.s32 s10, s10\n vcvt.f32.s32 s11, s11\n",
            "vcvt.f32.s32 s12, s12\n vcvt.f32.s32 s13, s13\n vcvt.f32.s32 s14, s14\n vcvt.f32.s32 s15, s15\n",
            eight!("vmul.f32", "s", [16, 17, 18, 19, 20, 21, 22, 23], "s", [0, 0, 0, 0, 0, 0, 0, 0]),
            eight!("vmul.f32", "s", [8, 9, 10, 11, 12, 13, 14, 15], "s", [16, 17, 18, 19, 20, 21, 22, 23]),
        )
    };
}

/// See [`dequantize`].
///
/// # Safety
/// At least one group of eight in each.
#[unsafe(naked)]
unsafe extern "C" fn dequantize_groups(
    acc: *const i32,
    row_scales: *const f32,
    y: *mut f32,
    groups: usize,
    scale: f32,
) {
    naked_asm!(
        // In a library the assembler is not told of the target's FPU.
        ".fpu fpv4-sp-d16",
        "vpush {{s16-s23}}",
        "2:",
        scaled!(),
        "vstmia r2!, {{s8-s15}}",
        "subs r3, #1",
        "bne 2b",
        "vpop {{s16-s23}}",
        "bx lr",
    )
}

/// See [`dequantize_bias`].
///
/// # Safety
/// At least one group of eight in each.
#[unsafe(naked)]
unsafe extern "C" fn dequantize_bias_groups(
    acc: *const i32,
    row_scales: *const f32,
    y: *mut f32,
    groups: usize,
    scale: f32,
    bias: *const f32,
) {
    naked_asm!(
        ".fpu fpv4-sp-d16",
        "ldr r12, [sp]",
        "vpush {{s16-s23}}",
        "2:",
        scaled!(),
        "vldmia r12!, {{s16-s23}}",
        eight!("vadd.f32", "s", [8, 9, 10, 11, 12, 13, 14, 15], "s", [16, 17, 18, 19, 20, 21, 22, 23]),
        "vstmia r2!, {{s8-s15}}",
        "subs r3, #1",
        "bne 2b",
        "vpop {{s16-s23}}",
        "bx lr",
    )
}

macro_rules! in_place {
    ($name:ident, $op:literal) => {
        /// See the function that calls it.
        ///
        /// # Safety
        /// At least one group of eight in each.
        #[unsafe(naked)]
        unsafe extern "C" fn $name(y: *mut f32, x: *const f32, groups: usize) {
            naked_asm!(
                ".fpu fpv4-sp-d16",
                "2:",
                "vldmia r0, {{s0-s7}}",
                "vldmia r1!, {{s8-s15}}",
                eight!($op, "s", [0, 1, 2, 3, 4, 5, 6, 7], "s", [8, 9, 10, 11, 12, 13, 14, 15]),
                "vstmia r0!, {{s0-s7}}",
                "subs r2, #1",
                "bne 2b",
                "bx lr",
            )
        }
    };
}

in_place!(add_groups, "vadd.f32");
in_place!(mul_groups, "vmul.f32");
