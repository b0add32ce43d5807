//! The two loops over the rank components on a core with an FPU.

/// 1.5 * 2^23: adding it leaves a float below 2^22, rounded to the nearest even integer, in the low bits of the sum.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// `z[j] = bits of scales[j] * z[j]`; returns the largest of their magnitudes as bits shifted left by one.
pub(crate) fn products(z: &mut [i32], scales: &[[u8; 2]]) -> u32 {
    let rank = z.len().min(scales.len());
    if rank == 0 {
        return 0;
    }
    // SAFETY: there is a component, and a scale for each.
    unsafe { scale_all(z.as_mut_ptr(), scales.as_ptr().cast(), rank) }
}

/// `v[j] = z[j] * factor`, rounded, with `z` as bits.
pub(crate) fn codes(z: &[i32], factor: f32, v: &mut [i16]) {
    let rank = z.len().min(v.len());
    if rank > 0 {
        // SAFETY: there is a component, and a code for each.
        unsafe { round_all(z.as_ptr(), v.as_mut_ptr(), rank, factor, ROUND_MAGIC) }
    }
}

/// See [`products`].
///
/// # Safety
/// At least one component, and as many scales, f16 at any alignment.
#[unsafe(naked)]
unsafe extern "C" fn scale_all(z: *mut i32, scales: *const u8, rank: usize) -> u32 {
    dsp_asm!(
        // In a library the assembler is not told of the target's FPU.
        ".fpu fpv4-sp-d16",
        "mov r3, #0",
        "2:",
        "ldrh r12, [r1], #2",
        "vldr s0, [r0]",
        "vmov s1, r12",
        "vcvt.f32.s32 s0, s0",
        "vcvtb.f32.f16 s1, s1",
        "vmul.f32 s0, s0, s1",
        "vmov r12, s0",
        "str r12, [r0], #4",
        "cmp r3, r12, lsl #1",
        "it lo",
        "lsllo r3, r12, #1",
        "subs r2, #1",
        "bne 2b",
        "mov r0, r3",
        "bx lr",
    )
}

/// See [`codes`].
///
/// # Safety
/// At least one component, and as many codes.
#[unsafe(naked)]
unsafe extern "C" fn round_all(z: *const i32, v: *mut i16, rank: usize, factor: f32, magic: f32) {
    dsp_asm!(
        ".fpu fpv4-sp-d16",
        "2:",
        "vldmia r0!, {{s2}}",
        "vmul.f32 s2, s2, s0",
        "vadd.f32 s2, s2, s1",
        "vmov r3, s2",
        "strh r3, [r1], #2",
        "subs r2, #1",
        "bne 2b",
        "bx lr",
    )
}
