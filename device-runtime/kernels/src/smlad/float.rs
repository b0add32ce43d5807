//! Loops over vectors of floats on a core with an FPU, eight at a time.

use core::cell::Cell;

use crate::float::{EXP2_NEG, GELU_CUBIC, GELU_TO_POWER, TO_POWER};

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
            dequantize_bias_groups(
                acc.cast(),
                row_scales.cast(),
                y.cast(),
                groups,
                scale,
                bias.as_ptr().cast(),
            );
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

pub(crate) fn silu(y: &mut [f32]) {
    if !y.is_empty() {
        // SAFETY: there is at least one value.
        unsafe { silu_values(y.as_mut_ptr(), y.len(), &EXP2_NEG, TO_POWER, 1.0) };
    }
}

pub(crate) fn gelu(y: &mut [f32]) {
    if !y.is_empty() {
        // SAFETY: there is at least one value.
        unsafe { gelu_values(y.as_mut_ptr(), y.len(), &EXP2_NEG, GELU_TO_POWER, 1.0, GELU_CUBIC) };
    }
}

pub(crate) fn scale(x: &[[Cell<f32>; 8]], factor: f32, weight: &[[f32; 8]], y: &[[Cell<f32>; 8]]) {
    let groups = y.len().min(x.len()).min(weight.len());
    if groups > 0 {
        // SAFETY: there is at least one group in all of them, and cells may be written.
        unsafe {
            scale_groups(
                x.as_ptr().cast(),
                weight.as_ptr().cast(),
                y.as_ptr().cast_mut().cast(),
                groups,
                factor,
            );
        };
    }
}

pub(crate) fn normalize(
    x: &[[Cell<f32>; 8]],
    [mean, factor]: [f32; 2],
    weight: &[[f32; 8]],
    bias: &[[f32; 8]],
    y: &[[Cell<f32>; 8]],
) {
    let groups = y.len().min(x.len()).min(weight.len()).min(bias.len());
    if groups > 0 {
        let (x, weight, bias, y) = (x.as_ptr(), weight.as_ptr(), bias.as_ptr(), y.as_ptr().cast_mut());
        // SAFETY: there is at least one group in all of them, and cells may be written.
        unsafe { normalize_groups(x.cast(), weight.cast(), y.cast(), groups, mean, factor, bias.cast()) };
    }
}

pub(crate) fn lanes_of_sum(x: &[[Cell<f32>; 8]]) -> [f32; 4] {
    lanes(x, |x, groups, lanes| {
        // SAFETY: there is at least one group.
        unsafe { sum_groups(x, groups, lanes) }
    })
}

pub(crate) fn lanes_of_squares(x: &[[Cell<f32>; 8]]) -> [f32; 4] {
    lanes(x, |x, groups, lanes| {
        // SAFETY: there is at least one group.
        unsafe { square_groups(x, groups, lanes) }
    })
}

pub(crate) fn lanes_of_deviations(x: &[[Cell<f32>; 8]], mean: f32) -> [f32; 4] {
    lanes(x, |x, groups, lanes| {
        // SAFETY: there is at least one group.
        unsafe { deviation_groups(x, groups, lanes, mean) }
    })
}

fn lanes(x: &[[Cell<f32>; 8]], kernel: impl FnOnce(*const f32, usize, *mut [f32; 4])) -> [f32; 4] {
    let mut lanes = [0.0; 4];
    if !x.is_empty() {
        kernel(x.as_ptr().cast(), x.len(), &raw mut lanes);
    }
    lanes
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
    dsp_asm!(
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
    dsp_asm!(
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
            dsp_asm!(
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

/// See `kernels::float::scale`.
///
/// # Safety
/// At least one group of eight in each.
#[unsafe(naked)]
unsafe extern "C" fn scale_groups(
    x: *const f32,
    weight: *const f32,
    y: *mut f32,
    groups: usize,
    factor: f32,
) {
    dsp_asm!(
        ".fpu fpv4-sp-d16",
        "vpush {{s16-s23}}",
        "2:",
        "vldmia r0!, {{s8-s15}}",
        "vldmia r1!, {{s16-s23}}",
        eight!("vmul.f32", "s", [8, 9, 10, 11, 12, 13, 14, 15], "s", [0, 0, 0, 0, 0, 0, 0, 0]),
        eight!("vmul.f32", "s", [8, 9, 10, 11, 12, 13, 14, 15], "s", [16, 17, 18, 19, 20, 21, 22, 23]),
        "vstmia r2!, {{s8-s15}}",
        "subs r3, #1",
        "bne 2b",
        "vpop {{s16-s23}}",
        "bx lr",
    )
}

/// See `kernels::float::normalize`.
///
/// # Safety
/// At least one group of eight in each.
#[unsafe(naked)]
unsafe extern "C" fn normalize_groups(
    x: *const f32,
    weight: *const f32,
    y: *mut f32,
    groups: usize,
    mean: f32,
    factor: f32,
    bias: *const f32,
) {
    dsp_asm!(
        ".fpu fpv4-sp-d16",
        "ldr r12, [sp]",
        "vpush {{s16-s23}}",
        "2:",
        "vldmia r0!, {{s8-s15}}",
        "vldmia r1!, {{s16-s23}}",
        eight!("vsub.f32", "s", [8, 9, 10, 11, 12, 13, 14, 15], "s", [0, 0, 0, 0, 0, 0, 0, 0]),
        eight!("vmul.f32", "s", [8, 9, 10, 11, 12, 13, 14, 15], "s", [1, 1, 1, 1, 1, 1, 1, 1]),
        eight!("vmul.f32", "s", [8, 9, 10, 11, 12, 13, 14, 15], "s", [16, 17, 18, 19, 20, 21, 22, 23]),
        "vldmia r12!, {{s16-s23}}",
        eight!("vadd.f32", "s", [8, 9, 10, 11, 12, 13, 14, 15], "s", [16, 17, 18, 19, 20, 21, 22, 23]),
        "vstmia r2!, {{s8-s15}}",
        "subs r3, #1",
        "bne 2b",
        "vpop {{s16-s23}}",
        "bx lr",
    )
}

macro_rules! lanes_of {
    ($name:ident, ($($mean:ident)?), $($term:expr)?) => {
        /// Adds terms of `x` to four lanes.
        ///
        /// # Safety
        /// At least one group of eight.
        #[unsafe(naked)]
        unsafe extern "C" fn $name(x: *const f32, groups: usize, lanes: *mut [f32; 4] $(, $mean: f32)?) {
            dsp_asm!(
                ".fpu fpv4-sp-d16",
                "vldmia r2, {{s4-s7}}",
                "2:",
                "vldmia r0!, {{s8-s15}}",
                $($term,)?
                eight!("vadd.f32", "s", [4, 5, 6, 7], "s", [8, 9, 10, 11]),
                eight!("vadd.f32", "s", [4, 5, 6, 7], "s", [12, 13, 14, 15]),
                "subs r1, #1",
                "bne 2b",
                "vstmia r2, {{s4-s7}}",
                "bx lr",
            )
        }
    };
}

macro_rules! squares {
    () => {
        eight!("vmul.f32", "s", [8, 9, 10, 11, 12, 13, 14, 15], "s", [8, 9, 10, 11, 12, 13, 14, 15])
    };
}

lanes_of!(sum_groups, (),);
lanes_of!(square_groups, (), squares!());
lanes_of!(
    deviation_groups,
    (mean),
    concat!(
        eight!("vsub.f32", "s", [8, 9, 10, 11, 12, 13, 14, 15], "s", [0, 0, 0, 0, 0, 0, 0, 0]),
        squares!()
    )
);

/// The rest of an activation: x is in s8, what becomes its power in s9; see `kernels::float::sigmoid_product`.
macro_rules! sigmoid_product {
    () => {
        concat!(
            "vcvt.s32.f32 s9, s9\n",
            "vmov r3, s9\n",
            "ssat r12, #22, r3\n",
            "eor r2, r12, r12, asr #31\n",
            "sub r2, r2, r12, asr #31\n",
            "smlawb r12, r8, r2, r7\n",
            "smlawb r12, r12, r2, r6\n",
            "smlawb r12, r12, r2, r5\n",
            "smlawb r12, r12, r2, r4\n",
            "add r2, #0x8000\n",
            "lsr r2, #16\n",
            "lsr r12, r2\n",
            "vmov s9, r12\n",
            "vcvt.f32.s32 s9, s9, #30\n",
            "vadd.f32 s10, s9, s1\n",
            "cmp r3, #0\n",
            "it mi\n",
            "vmulmi.f32 s8, s8, s9\n",
            "vdiv.f32 s8, s8, s10\n",
            "vstmia r0!, {{s8}}\n",
            "subs r1, #1\n",
        )
    };
}

/// See `kernels::float::silu`.
///
/// # Safety
/// At least one value.
#[unsafe(naked)]
unsafe extern "C" fn silu_values(
    y: *mut f32,
    count: usize,
    coefficients: *const [i32; 5],
    to_power: f32,
    one: f32,
) {
    dsp_asm!(
        ".fpu fpv4-sp-d16",
        "push {{r4-r8, lr}}",
        "ldm r2, {{r4-r8}}",
        "2:",
        "vldr s8, [r0]",
        "vmul.f32 s9, s8, s0",
        sigmoid_product!(),
        "bne 2b",
        "pop {{r4-r8, pc}}",
    )
}

/// See `kernels::float::gelu`.
///
/// # Safety
/// At least one value.
#[unsafe(naked)]
unsafe extern "C" fn gelu_values(
    y: *mut f32,
    count: usize,
    coefficients: *const [i32; 5],
    to_power: f32,
    one: f32,
    cubic: f32,
) {
    dsp_asm!(
        ".fpu fpv4-sp-d16",
        "push {{r4-r8, lr}}",
        "ldm r2, {{r4-r8}}",
        "2:",
        "vldr s8, [r0]",
        "vmul.f32 s9, s8, s8",
        "vmul.f32 s9, s9, s8",
        "vmul.f32 s9, s9, s2",
        "vadd.f32 s9, s8, s9",
        "vmul.f32 s9, s9, s0",
        sigmoid_product!(),
        "bne 2b",
        "pop {{r4-r8, pc}}",
    )
}
