//! The two loops of quantization on a core with an FPU, eight values at a time.

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
        unsafe { code_groups(x.as_ptr().cast(), codes.as_mut_ptr().cast(), groups, inverse, magic) }
    }
}

/// A new maximum is rare, so it branches away and back: about the logarithm of the length times in a random vector.
macro_rules! max_of {
    ($value:literal, $label:literal) => {
        concat!("cmp r2, ", $value, ", lsl #1\n blo ", $label, "1f\n", $label, "0:\n")
    };
}

macro_rules! new_max {
    ($value:literal, $label:literal) => {
        concat!($label, "1:\n lsl r2, ", $value, ", #1\n b ", $label, "0b\n")
    };
}

/// See [`max_doubled_bits`].
///
/// # Safety
/// At least one group of eight.
#[unsafe(naked)]
unsafe extern "C" fn max_groups(x: *const f32, groups: usize, max: u32) -> u32 {
    dsp_asm!(
        "push {{r4-r10, lr}}",
        "20:",
        "ldm r0!, {{r3-r10}}",
        max_of!("r3", "3"),
        max_of!("r4", "4"),
        max_of!("r5", "5"),
        max_of!("r6", "6"),
        max_of!("r7", "7"),
        max_of!("r8", "8"),
        max_of!("r9", "9"),
        max_of!("r10", "10"),
        "subs r1, #1",
        "bne 20b",
        "mov r0, r2",
        "pop {{r4-r10, pc}}",
        new_max!("r3", "3"),
        new_max!("r4", "4"),
        new_max!("r5", "5"),
        new_max!("r6", "6"),
        new_max!("r7", "7"),
        new_max!("r8", "8"),
        new_max!("r9", "9"),
        new_max!("r10", "10"),
    )
}

/// See [`codes`].
///
/// # Safety
/// At least one group of eight.
#[unsafe(naked)]
unsafe extern "C" fn code_groups(x: *const f32, codes: *mut i8, groups: usize, inverse: f32, magic: f32) {
    dsp_asm!(
        // In a library the assembler is not told of the target's FPU.
        ".fpu fpv4-sp-d16",
        "push {{r4-r8, lr}}",
        "2:",
        "vldmia r0!, {{s8-s15}}",
        "vmul.f32 s8, s8, s0",
        "vmul.f32 s9, s9, s0",
        "vmul.f32 s10, s10, s0",
        "vmul.f32 s11, s11, s0",
        "vmul.f32 s12, s12, s0",
        "vmul.f32 s13, s13, s0",
        "vmul.f32 s14, s14, s0",
        "vmul.f32 s15, s15, s0",
        "vadd.f32 s8, s8, s1",
        "vadd.f32 s9, s9, s1",
        "vadd.f32 s10, s10, s1",
        "vadd.f32 s11, s11, s1",
        "vadd.f32 s12, s12, s1",
        "vadd.f32 s13, s13, s1",
        "vadd.f32 s14, s14, s1",
        "vadd.f32 s15, s15, s1",
        "vmov r3, r4, d4",
        "vmov r5, r6, d5",
        "vmov r7, r8, d6",
        "vmov r12, lr, d7",
        "strb r4, [r1, #1]",
        "strb r5, [r1, #2]",
        "strb r6, [r1, #3]",
        "strb r7, [r1, #4]",
        "strb r8, [r1, #5]",
        "strb r12, [r1, #6]",
        "strb lr, [r1, #7]",
        "strb r3, [r1], #8",
        "subs r2, #1",
        "bne 2b",
        "pop {{r4-r8, pc}}",
    )
}
