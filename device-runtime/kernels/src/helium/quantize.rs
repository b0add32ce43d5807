//! The two loops of quantization, four values an instruction.
//!
//! Vector floating-point instructions take subnormal numbers for zero. That changes no code: `1 / inverse` is at least
//! 2^-107, so what is below 2^-126, before the multiplication or after it, is rounded to zero anyway.

/// The largest of `max` and all magnitudes, both as bits shifted left by one.
pub(crate) fn max_doubled_bits(x: &[[f32; 8]], max: u32) -> u32 {
    if x.is_empty() {
        return max;
    }
    // SAFETY: there is at least one group.
    unsafe { max_groups(x.as_ptr().cast(), x.len(), max) }
}

/// `codes = low byte of (x * inverse + magic)`; the two slices are of one length.
pub(crate) fn codes(x: &[[f32; 8]], codes: &mut [[i8; 8]], inverse: f32, magic: f32) {
    let groups = x.len().min(codes.len());
    if groups > 0 {
        // SAFETY: there is at least one group, and as many of `codes`.
        unsafe {
            code_groups(
                x.as_ptr().cast(),
                codes.as_mut_ptr().cast(),
                groups,
                inverse.to_bits(),
                magic.to_bits(),
            );
        }
    }
}

/// See [`max_doubled_bits`].
///
/// # Safety
/// At least one group of eight.
#[unsafe(naked)]
unsafe extern "C" fn max_groups(x: *const f32, groups: usize, max: u32) -> u32 {
    helium_asm!(
        "push {{r7, lr}}",
        "dls lr, r1",
        "2:",
        "vldrw.u32 q0, [r0], #16",
        "vadd.i32 q0, q0, q0",
        "vldrw.u32 q1, [r0], #16",
        "vadd.i32 q1, q1, q1",
        "vmaxv.u32 r2, q0",
        "vmaxv.u32 r2, q1",
        "le lr, 2b",
        "mov r0, r2",
        "pop {{r7, pc}}",
    )
}

/// See [`codes`]; the floats as bits.
///
/// # Safety
/// At least one group of eight.
#[unsafe(naked)]
unsafe extern "C" fn code_groups(x: *const f32, codes: *mut i8, groups: usize, inverse: u32, magic: u32) {
    helium_asm!(
        "push {{r7, lr}}",
        "ldr r12, [sp, #8]",
        "dls lr, r2",
        "2:",
        "vldrw.u32 q0, [r0], #16",
        "vmul.f32 q0, q0, r3",
        "vldrw.u32 q1, [r0], #16",
        "vadd.f32 q0, q0, r12",
        "vmul.f32 q1, q1, r3",
        "vstrb.32 q0, [r1], #4",
        "vadd.f32 q1, q1, r12",
        "vstrb.32 q1, [r1], #4",
        "le lr, 2b",
        "pop {{r7, pc}}",
    )
}
