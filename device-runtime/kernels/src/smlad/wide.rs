//! Matrices of 16-bit codes: SMLAD multiplies two of them as they stand.

/// `x` has a multiple of eight words, at least eight; `w` so many for each of `acc`.
pub(crate) fn gemv16(w: &[u32], x: &[u32], acc: &mut [i32]) {
    if !acc.is_empty() {
        // SAFETY: there is at least one row, and its length is a positive multiple of eight words.
        unsafe { rows(w.as_ptr(), x.as_ptr(), acc.as_mut_ptr(), acc.len(), x.len() / 8) }
    }
}

macro_rules! four_words {
    () => {
        "ldm r0!, {{r4-r7}}\n ldm r1!, {{r8-r11}}\n smlad r12, r4, r8, r12\n smlad r12, r5, r9, r12\n \
         smlad r12, r6, r10, r12\n smlad r12, r7, r11, r12\n"
    };
}

/// See [`gemv16`].
///
/// # Safety
/// At least one row, of at least one group of eight words.
#[unsafe(naked)]
unsafe extern "C" fn rows(w: *const u32, x: *const u32, acc: *mut i32, rows: usize, groups: usize) {
    dsp_asm!(
        "push {{r4-r11, lr}}",
        "2:",
        "ldr lr, [sp, #36]",
        "mov r12, #0",
        "3:",
        four_words!(),
        four_words!(),
        "subs lr, #1",
        "bne 3b",
        "ldr lr, [sp, #36]",
        "sub r1, r1, lr, lsl #5",
        "str r12, [r2], #4",
        "subs r3, #1",
        "bne 2b",
        "pop {{r4-r11, pc}}",
    )
}
