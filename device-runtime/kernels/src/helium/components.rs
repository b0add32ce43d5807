//! The two loops over the rank components, four at a time.
//!
//! No number here is subnormal: a scale is at least 2^-24 and a sum is an integer.

/// `z[j] = bits of scales[j] * z[j]`; returns the largest of their magnitudes as bits shifted left by one.
pub(crate) fn products(z: &mut [i32], scales: &[[u8; 2]]) -> u32 {
    let rank = z.len().min(scales.len());
    if rank == 0 {
        return 0;
    }
    // SAFETY: there is a component, and a scale for each.
    unsafe { scale_all(z.as_mut_ptr(), scales.as_ptr().cast(), rank) }
}

/// `v[j] = z[j] * factor`, rounded and saturated, with `z` as bits.
pub(crate) fn codes(z: &[i32], factor: f32, v: &mut [i16]) {
    let rank = z.len().min(v.len());
    if rank > 0 {
        // SAFETY: there is a component, and a code for each.
        unsafe { round_all(z.as_ptr().cast(), v.as_mut_ptr(), rank, factor.to_bits()) }
    }
}

/// See [`products`].
///
/// # Safety
/// At least one component, and as many scales, f16 at any alignment.
#[unsafe(naked)]
unsafe extern "C" fn scale_all(z: *mut i32, scales: *const u8, rank: usize) -> u32 {
    helium_asm!(
        "push {{r7, lr}}",
        "mov r3, #0",
        "dlstp.32 lr, r2",
        "2:",
        "vldrw.u32 q0, [r0]",
        "vcvt.f32.s32 q0, q0",
        "vldrh.u32 q1, [r1], #8",
        "vcvtb.f32.f16 q1, q1",
        "vmul.f32 q0, q0, q1",
        "vstrw.32 q0, [r0], #16",
        "vadd.i32 q0, q0, q0",
        "vmaxv.u32 r3, q0",
        "letp lr, 2b",
        "mov r0, r3",
        "pop {{r7, pc}}",
    )
}

/// See [`codes`]; the factor as bits.
///
/// # Safety
/// At least one component, and as many codes.
#[unsafe(naked)]
unsafe extern "C" fn round_all(z: *const f32, v: *mut i16, rank: usize, factor: u32) {
    helium_asm!(
        "push {{r7, lr}}",
        "movw r12, #32767",
        "vdup.32 q2, r12",
        "vneg.s32 q3, q2",
        "dlstp.32 lr, r2",
        "2:",
        "vldrw.u32 q0, [r0], #16",
        "vmul.f32 q0, q0, r3",
        "vcvtn.s32.f32 q0, q0",
        "vmin.s32 q0, q0, q2",
        "vmax.s32 q0, q0, q3",
        "vstrh.32 q0, [r1], #8",
        "letp lr, 2b",
        "pop {{r7, pc}}",
    )
}
