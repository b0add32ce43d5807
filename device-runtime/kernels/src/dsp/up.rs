//! The up-projection of a low-rank update, three or four rows at a time with the vector in registers.
//!
//! SMMLAR does rounding, shift and addition at once: `acc + ((sum * 2^(32-n) + 2^31) >> 32)` is
//! `acc + ((sum + 2^(n-1)) >> n)`.

/// The highest rank that [`up_add`] takes.
const MAX_RANK: usize = 256;

/// Reads `b`, `[.., r]` row-major, and `v`, `[r]` of `i16` at any alignment, and adds to all of `acc..acc_end`.
type Kernel = unsafe extern "C" fn(
    b: *const i8,
    v: *const i16,
    acc: *mut i32,
    acc_end: *const i32,
    multiplier: i32,
    r: usize,
);

/// `acc[o] += (sum_j B[o,j] * v[j] + round) >> shift` for as many first rows as the fast loops can take; returns how many.
pub(super) fn up_add(b: &[i8], v: &[i16], shift: u32, acc: &mut [i32]) -> usize {
    // The multiplier 2^(32-shift) must fit; shifts below 2 are for updates far larger than what they are added to.
    if !(2..=14).contains(&shift) {
        return 0;
    }
    let multiplier = 1 << (32 - shift);
    let aligned = b.as_ptr().addr().is_multiple_of(4);
    let kernel: Kernel = match (v.len(), aligned) {
        (1, _) => up1,
        (2, _) => up2,
        (4, true) => up4,
        (8, true) => up8,
        (16, true) => up16,
        _ => return up_any_rank(b, v, multiplier, acc),
    };
    // All but rank 8 take four rows at a time.
    let rows = if v.len() == 8 { acc.len() } else { acc.len() / 4 * 4 };
    let Some(acc) = acc.get_mut(..rows) else { return 0 };
    if rows == 0 || b.len() < rows * v.len() {
        return 0;
    }
    let acc = acc.as_mut_ptr_range();
    // SAFETY: `acc` is not empty, a multiple of four long where that is needed, and `b` has a row of the kernel's rank for each. The
    // kernels that ask for it get `b` aligned to 4, and with it each group of rows.
    unsafe { kernel(b.as_ptr(), v.as_ptr(), acc.start, acc.end, multiplier, v.len()) };
    rows
}

fn up_any_rank(b: &[i8], v: &[i16], multiplier: i32, acc: &mut [i32]) -> usize {
    let r = v.len();
    if !(1..=MAX_RANK).contains(&r) {
        return 0;
    }
    let mut words = [0i16; MAX_RANK];
    for (j, v) in v.iter().enumerate() {
        // As `SXTB16` finds the codes in a word: (v0, v2), (v1, v3). The two lowest bits of the index change places.
        if let Some(word) = words.get_mut(j & !3 | (j & 1) << 1 | (j >> 1) & 1) {
            *word = *v;
        }
    }
    // The loop reads whole words: up to three bytes beyond a row, which must not be beyond the matrix.
    let readable = b.len().saturating_sub(r.next_multiple_of(4) - r);
    let rows = acc.len().min(readable / r) / 4 * 4;
    let Some(acc) = acc.get_mut(..rows) else { return 0 };
    if rows == 0 {
        return 0;
    }
    let acc = acc.as_mut_ptr_range();
    // SAFETY: `acc` is a positive multiple of four long, and `b` has a row of `r` bytes for each and what the loop reads beyond
    // the last. `words` has eight bytes for each four of `r`, aligned to 2; the function reads it with single loads.
    unsafe { up_any(b.as_ptr(), words.as_ptr(), acc.start, acc.end, multiplier, r) };
    rows
}

/// Four elements of the vector, at `$at` of r1, as `(v0, v2)` and `(v1, v3)`. r12 is lost.
macro_rules! load_v {
    ($at:literal, $even:literal, $odd:literal) => {
        concat!(
            "ldr ",
            $even,
            ", [r1, #",
            $at,
            "]\n",
            "ldr r12, [r1, #",
            $at,
            " + 4]\n",
            "pkhtb ",
            $odd,
            ", r12, ",
            $even,
            ", asr #16\n",
            "pkhbt ",
            $even,
            ", ",
            $even,
            ", r12, lsl #16\n",
        )
    };
}

/// Rank 1: a word is a row's code four times over.
///
/// # Safety
/// See [`up_add`].
#[unsafe(naked)]
unsafe extern "C" fn up1(
    b: *const i8,
    v: *const i16,
    acc: *mut i32,
    acc_end: *const i32,
    multiplier: i32,
    r: usize,
) {
    dsp_asm!(
        "push {{r4-r11, lr}}",
        "mov r12, r3",
        "ldrsh r3, [r1]",
        "mov r1, r2",
        "ldr r2, [sp, #36]",
        "2:",
        "ldr r4, [r0], #4",
        "sxtb16 r5, r4",
        "sxtb16 r4, r4, ror #8",
        "smulbb r6, r5, r3",
        "smulbb r7, r4, r3",
        "smultb r8, r5, r3",
        "smultb r9, r4, r3",
        "ldm r1, {{r4, r5, r10, r11}}",
        "smmlar r4, r6, r2, r4",
        "smmlar r5, r7, r2, r5",
        "smmlar r10, r8, r2, r10",
        "smmlar r11, r9, r2, r11",
        "stm r1!, {{r4, r5, r10, r11}}",
        "cmp r1, r12",
        "bne 2b",
        "pop {{r4-r11, pc}}",
    )
}

/// Rank 2: a word is two rows.
///
/// # Safety
/// See [`up_add`].
#[unsafe(naked)]
unsafe extern "C" fn up2(
    b: *const i8,
    v: *const i16,
    acc: *mut i32,
    acc_end: *const i32,
    multiplier: i32,
    r: usize,
) {
    dsp_asm!(
        "push {{r4-r11, lr}}",
        "mov r12, r3",
        "ldr r3, [r1]",
        "mov r1, r2",
        "ldr r2, [sp, #36]",
        "2:",
        "ldr r4, [r0], #4",
        "ldr r5, [r0], #4",
        "sxtb16 r6, r4",
        "sxtb16 r4, r4, ror #8",
        "smulbb r7, r6, r3",
        "smlabt r7, r4, r3, r7",
        "smultb r8, r6, r3",
        "smlatt r8, r4, r3, r8",
        "sxtb16 r6, r5",
        "sxtb16 r5, r5, ror #8",
        "smulbb r9, r6, r3",
        "smlabt r9, r5, r3, r9",
        "smultb r10, r6, r3",
        "smlatt r10, r5, r3, r10",
        "ldm r1, {{r4, r5, r6, r11}}",
        "smmlar r4, r7, r2, r4",
        "smmlar r5, r8, r2, r5",
        "smmlar r6, r9, r2, r6",
        "smmlar r11, r10, r2, r11",
        "stm r1!, {{r4, r5, r6, r11}}",
        "cmp r1, r12",
        "bne 2b",
        "pop {{r4-r11, pc}}",
    )
}

/// One row of rank 4, the word of which becomes the sum.
macro_rules! row4 {
    ($w:literal) => {
        concat!(
            "sxtb16 r9, ",
            $w,
            "\n",
            "sxtb16 ",
            $w,
            ", ",
            $w,
            ", ror #8\n",
            "smuad r9, r9, r3\n",
            "smlad ",
            $w,
            ", ",
            $w,
            ", r4, r9\n",
        )
    };
}

/// Rank 4, aligned: a word is a row.
///
/// # Safety
/// See [`up_add`].
#[unsafe(naked)]
unsafe extern "C" fn up4(
    b: *const i8,
    v: *const i16,
    acc: *mut i32,
    acc_end: *const i32,
    multiplier: i32,
    r: usize,
) {
    dsp_asm!(
        "push {{r4-r11, lr}}",
        "mov r5, r3",
        load_v!("0", "r3", "r4"),
        "mov r12, r5",
        "mov r1, r2",
        "ldr r2, [sp, #36]",
        "2:",
        "ldm r0!, {{r5-r8}}",
        row4!("r5"),
        row4!("r6"),
        row4!("r7"),
        row4!("r8"),
        "ldm r1, {{r9, r10, r11, lr}}",
        "smmlar r9, r5, r2, r9",
        "smmlar r10, r6, r2, r10",
        "smmlar r11, r7, r2, r11",
        "smmlar lr, r8, r2, lr",
        "stm r1!, {{r9, r10, r11, lr}}",
        "cmp r1, r12",
        "bne 2b",
        "pop {{r4-r11, pc}}",
    )
}

/// One row of rank 8: two words, of which the first is lost, and the sum.
macro_rules! row8 {
    ($w0:literal, $w1:literal, $sum:literal) => {
        concat!(
            "sxtb16 ",
            $sum,
            ", ",
            $w0,
            "\n",
            "sxtb16 ",
            $w0,
            ", ",
            $w0,
            ", ror #8\n",
            "smuad ",
            $sum,
            ", ",
            $sum,
            ", r3\n",
            "smlad ",
            $sum,
            ", ",
            $w0,
            ", r4, ",
            $sum,
            "\n",
            "sxtb16 ",
            $w0,
            ", ",
            $w1,
            "\n",
            "sxtb16 ",
            $w1,
            ", ",
            $w1,
            ", ror #8\n",
            "smlad ",
            $sum,
            ", ",
            $w0,
            ", r5, ",
            $sum,
            "\n",
            "smlad ",
            $sum,
            ", ",
            $w1,
            ", r6, ",
            $sum,
            "\n",
        )
    };
}

/// Rank 8, aligned: two words a row.
///
/// # Safety
/// See [`up_add`].
#[unsafe(naked)]
unsafe extern "C" fn up8(
    b: *const i8,
    v: *const i16,
    acc: *mut i32,
    acc_end: *const i32,
    multiplier: i32,
    r: usize,
) {
    // Stack: 0 acc_end.
    dsp_asm!(
        "push {{r3-r11, lr}}",
        // The loop takes so many times 3 rows a turn; the first turn enters so that the rest fits.
        "sub r7, r3, r2",
        "lsr r7, r7, #2",
        "mov r8, #3",
        "udiv r9, r7, r8",
        "mls r10, r9, r8, r7", // rows mod 3
        "adr.w r11, 3f",
        "mov r8, #6",
        "udiv r7, r9, r8",
        "mls r7, r7, r8, r9",
        "cmp r7, #0",
        "ittt ne",
        "rsbne r7, r7, #6",
        "movne r8, #120",
        "mlane r11, r7, r8, r11",
        "orr r11, r11, #1",
        load_v!("0", "r3", "r4"),
        load_v!("8", "r5", "r6"),
        "mov r1, r2",
        "ldr r2, [sp, #40]",
        "cmp r10, #0",
        "beq 5f",
        "2:", // a row
        "ldr r7, [r0], #4",
        "ldr r8, [r0], #4",
        row8!("r7", "r8", "lr"),
        "ldr r7, [r1]",
        "smmlar r7, lr, r2, r7",
        "str r7, [r1], #4",
        "subs r10, #1",
        "bne 2b",
        "5:",
        "cmp r9, #0",
        "beq 4f",
        "bx r11",
        ".p2align 2",
        "3:",
        repeat!(
            6,
            "ldm.w r0!, {{r7-r12}}",
            row8!("r7", "r8", "lr"),
            row8!("r9", "r10", "r7"),
            row8!("r11", "r12", "r8"),
            "ldm.w r1, {{r9-r11}}",
            "smmlar r9, lr, r2, r9",
            "smmlar r10, r7, r2, r10",
            "smmlar r11, r8, r2, r11",
            "stm.w r1!, {{r9-r11}}"
        ),
        "ldr r7, [sp]",
        "cmp r1, r7",
        "bne 3b",
        "4:",
        "pop {{r3-r11, pc}}",
    )
}

/// Half a row of rank 16: two words and the sum, which `$first` begins.
macro_rules! half16 {
    ($load:expr, $first:expr, $sum:literal) => {
        concat!(
            $load,
            "\n",
            "sxtb16 r8, r6\n",
            "sxtb16 r6, r6, ror #8\n",
            $first,
            "\n",
            "smlad ",
            $sum,
            ", r6, r3, ",
            $sum,
            "\n",
            "sxtb16 r8, r7\n",
            "sxtb16 r7, r7, ror #8\n",
            "smlad ",
            $sum,
            ", r8, r4, ",
            $sum,
            "\n",
            "smlad ",
            $sum,
            ", r7, r5, ",
            $sum,
            "\n",
        )
    };
}

/// Rank 16, aligned: four words a row, taken in halves.
///
/// # Safety
/// See [`up_add`].
#[unsafe(naked)]
unsafe extern "C" fn up16(
    b: *const i8,
    v: *const i16,
    acc: *mut i32,
    acc_end: *const i32,
    multiplier: i32,
    r: usize,
) {
    // Stack: 0 the vector in 8 words, 32 acc_end.
    dsp_asm!(
        "push {{r3-r11, lr}}",
        "ldr lr, [sp, #40]",
        load_v!("0", "r4", "r5"),
        load_v!("8", "r6", "r7"),
        load_v!("16", "r8", "r9"),
        load_v!("24", "r10", "r11"),
        "push {{r4-r11}}",
        "mov r1, r2",
        "2:",
        "ldrd r2, r3, [sp, #0]",
        "ldrd r4, r5, [sp, #8]",
        half16!("ldrd r6, r7, [r0, #0]", "smuad r9, r8, r2", "r9"),
        half16!("ldrd r6, r7, [r0, #16]", "smuad r10, r8, r2", "r10"),
        half16!("ldrd r6, r7, [r0, #32]", "smuad r11, r8, r2", "r11"),
        half16!("ldrd r6, r7, [r0, #48]", "smuad r12, r8, r2", "r12"),
        "ldrd r2, r3, [sp, #16]",
        "ldrd r4, r5, [sp, #24]",
        half16!("ldrd r6, r7, [r0, #8]", "smlad r9, r8, r2, r9", "r9"),
        half16!("ldrd r6, r7, [r0, #24]", "smlad r10, r8, r2, r10", "r10"),
        half16!("ldrd r6, r7, [r0, #40]", "smlad r11, r8, r2, r11", "r11"),
        half16!("ldrd r6, r7, [r0, #56]", "smlad r12, r8, r2, r12", "r12"),
        "ldm r1, {{r2-r5}}",
        "smmlar r2, r9, lr, r2",
        "smmlar r3, r10, lr, r3",
        "smmlar r4, r11, lr, r4",
        "smmlar r5, r12, lr, r5",
        "stm r1!, {{r2-r5}}",
        "add r0, #64",
        "ldr r6, [sp, #32]",
        "cmp r1, r6",
        "bne 2b",
        "add sp, #32",
        "pop {{r3-r11, pc}}",
    )
}

/// A word of a row, and its sum.
macro_rules! word_any {
    ($load:literal, $sum:literal) => {
        concat!(
            $load,
            "\n",
            "sxtb16 r11, r10\n",
            "sxtb16 r10, r10, ror #8\n",
            "smlad ",
            $sum,
            ", r11, r4, ",
            $sum,
            "\n",
            "smlad ",
            $sum,
            ", r10, r5, ",
            $sum,
            "\n",
        )
    };
}

/// Any rank: four rows side by side. Beyond a row's end it reads the next row's codes, times zeros.
///
/// # Safety
/// See [`up_add`].
#[unsafe(naked)]
unsafe extern "C" fn up_any(
    b: *const i8,
    v: *const i16,
    acc: *mut i32,
    acc_end: *const i32,
    multiplier: i32,
    r: usize,
) {
    // Stack: 0 v, 4 words a row, 8 acc_end, 12 from the end of a first row to the next group's.
    // r0, r0 + r1, r0 + 2 r1, r0 + r2: the four rows; lr: acc.
    dsp_asm!(
        "push {{r4-r11, lr}}",
        "sub sp, #20",
        "mov lr, r2",
        "ldr r4, [sp, #60]", // r
        "add r5, r4, #3",
        "lsr r5, r5, #2",
        "strd r1, r5, [sp, #0]",
        "mov r1, r4",
        "add r2, r4, r4, lsl #1",
        "sub r4, r4, r5",
        "lsl r4, r4, #2",
        "strd r3, r4, [sp, #8]",
        "2:", // four rows
        "ldrd r3, r12, [sp, #0]",
        "mov r6, #0",
        "mov r7, #0",
        "mov r8, #0",
        "mov r9, #0",
        "3:", // four columns
        "ldr r4, [r3], #4",
        "ldr r5, [r3], #4",
        word_any!("ldr r10, [r0, r1]", "r7"),
        word_any!("ldr r10, [r0, r1, lsl #1]", "r8"),
        word_any!("ldr r10, [r0, r2]", "r9"),
        word_any!("ldr r10, [r0], #4", "r6"),
        "subs r12, #1",
        "bne 3b",
        "ldm lr, {{r3, r4, r5, r10}}",
        "ldr r11, [sp, #56]", // multiplier
        "smmlar r3, r6, r11, r3",
        "smmlar r4, r7, r11, r4",
        "smmlar r5, r8, r11, r5",
        "smmlar r10, r9, r11, r10",
        "stm lr!, {{r3, r4, r5, r10}}",
        "ldrd r3, r4, [sp, #8]",
        "add r0, r4",
        "cmp lr, r3",
        "bne 2b",
        "add sp, #20",
        "pop {{r4-r11, pc}}",
    )
}
