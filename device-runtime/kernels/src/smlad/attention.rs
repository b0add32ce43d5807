//! Attention with SMLAD: two products of 16-bit codes an instruction. Softmax multiplies by SMMUL and SMLAWB.

use crate::attention::{BLOCK_KEYS, EXP2_NEG, portable};

#[cfg(not(target_abi = "eabihf"))]
pub(crate) use portable::code_groups;

#[cfg(target_abi = "eabihf")]
pub(crate) fn code_groups(x: &[[f32; 8]], factor: f32, magic: f32, words: &mut [[u32; 4]]) {
    let groups = x.len().min(words.len());
    if groups > 0 {
        // SAFETY: there is at least one group in both.
        unsafe { code_groups_of_eight(x.as_ptr().cast(), words.as_mut_ptr().cast(), groups, factor, magic) }
    }
}

/// See `kernels::attention::code_words`.
///
/// # Safety
/// At least one group of eight values, and of four words.
#[cfg(target_abi = "eabihf")]
#[unsafe(naked)]
unsafe extern "C" fn code_groups_of_eight(
    x: *const f32,
    words: *mut u32,
    groups: usize,
    factor: f32,
    magic: f32,
) {
    dsp_asm!(
        // In a library the assembler is not told of the target's FPU.
        ".fpu fpv4-sp-d16",
        "push {{r4-r10, lr}}",
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
        "vmov r9, r10, d7",
        "pkhbt r3, r3, r4, lsl #16",
        "pkhbt r4, r5, r6, lsl #16",
        "pkhbt r5, r7, r8, lsl #16",
        "pkhbt r6, r9, r10, lsl #16",
        "stm r1!, {{r3-r6}}",
        "subs r2, #1",
        "bne 2b",
        "pop {{r4-r10, pc}}",
    )
}

pub(crate) fn scores(query: &[u32], keys: &[u32], scores: &mut [i32]) -> i32 {
    let kernel = match query.len() {
        4 => scores_4,
        8 => scores_8,
        16 => scores_16,
        32 => scores_32,
        words => return scores_of_words(query, keys, scores, words / 2),
    };
    if scores.is_empty() {
        return i32::MIN;
    }
    // SAFETY: there is at least one score, and for each a key as long as the query, whose length is the kernel's.
    unsafe { kernel(query.as_ptr(), keys.as_ptr(), scores.as_mut_ptr(), scores.len()) }
}

/// [`scores`] of heads of any other size, two words at a time.
#[cold]
fn scores_of_words(query: &[u32], keys: &[u32], scores: &mut [i32], pairs: usize) -> i32 {
    debug_assert!(pairs > 0 && query.len() == 2 * pairs, "expected pairs of words, found {}", query.len());
    if scores.is_empty() || pairs == 0 {
        return i32::MIN;
    }
    // SAFETY: there is at least one score, and for each a key as long as the query, which has at least one pair of words.
    unsafe { scores_any(query.as_ptr(), keys.as_ptr(), scores.as_mut_ptr(), scores.len(), pairs) }
}

/// Words of a query, four of which are in r4 to r7, times those of a key.
macro_rules! four_words {
    ($first:literal) => {
        concat!(
            "ldm r1!, {{r8-r11}}\n",
            $first,
            "\n smlad r12, r5, r9, r12\n smlad r12, r6, r10, r12\n smlad r12, r7, r11, r12\n"
        )
    };
}

/// Stores a score and keeps the largest, in lr.
macro_rules! store_score {
    () => {
        "str r12, [r2], #4\n cmp r12, lr\n it gt\n movgt lr, r12\n subs r3, #1\n"
    };
}

/// One key against the query in r4 to r7. A new largest score, in lr, is rare, so it branches away and back.
macro_rules! one_key {
    ($label:literal) => {
        concat!(
            four_words!("smuad r12, r4, r8"),
            "str r12, [r2], #4\n cmp r12, lr\n bgt ",
            $label,
            "1f\n",
            $label,
            "0:\n"
        )
    };
}

macro_rules! new_max {
    ($label:literal) => {
        concat!($label, "1:\n mov lr, r12\n b ", $label, "0b\n")
    };
}

/// Scores of heads of eight columns: the query stays in registers.
///
/// # Safety
/// As `scores_of_many`, with 4 words.
#[unsafe(naked)]
unsafe extern "C" fn scores_4(query: *const u32, keys: *const u32, scores: *mut i32, count: usize) -> i32 {
    dsp_asm!(
        "push {{r4-r11, lr}}",
        "mov lr, #0x80000000",
        "ldm r0, {{r4-r7}}",
        "subs r3, #4",
        "blo 3f",
        "2:",
        one_key!("4"),
        one_key!("5"),
        one_key!("6"),
        one_key!("7"),
        "subs r3, #4",
        "bhs 2b",
        "3:",
        "adds r3, #4",
        "beq 9f",
        "8:",
        one_key!("3"),
        "subs r3, #1",
        "bne 8b",
        "9:",
        "mov r0, lr",
        "pop {{r4-r11, pc}}",
        new_max!("3"),
        new_max!("4"),
        new_max!("5"),
        new_max!("6"),
        new_max!("7"),
    )
}

macro_rules! scores_of_many {
    ($name:ident, $words:literal, $($more:expr),+) => {
        /// Scores of `count` keys of a fixed number of words.
        ///
        /// # Safety
        /// `query` points to so many words, `keys` to so many for each of `count` keys, `scores` to `count`; `count` is at
        /// least 1.
        #[unsafe(naked)]
        unsafe extern "C" fn $name(
            query: *const u32,
            keys: *const u32,
            scores: *mut i32,
            count: usize,
        ) -> i32 {
            dsp_asm!(
                "push {{r4-r11, lr}}",
                "mov lr, #0x80000000",
                "2:",
                "ldm r0!, {{r4-r7}}",
                four_words!("smuad r12, r4, r8"),
                $($more,)+
                concat!("subs r0, #", $words, " * 4"),
                store_score!(),
                "bne 2b",
                "mov r0, lr",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}

macro_rules! more_words {
    () => {
        concat!("ldm r0!, {{r4-r7}}\n", four_words!("smlad r12, r4, r8, r12"))
    };
}

scores_of_many!(scores_8, "8", more_words!());
scores_of_many!(scores_16, "16", more_words!(), more_words!(), more_words!());
scores_of_many!(
    scores_32,
    "32",
    more_words!(),
    more_words!(),
    more_words!(),
    more_words!(),
    more_words!(),
    more_words!(),
    more_words!()
);

/// Scores of `count` keys of so many pairs of words.
///
/// # Safety
/// `query` points to so many words, `keys` to so many for each of `count` keys, `scores` to `count`; `count` and `pairs` are at
/// least 1.
#[unsafe(naked)]
unsafe extern "C" fn scores_any(
    query: *const u32,
    keys: *const u32,
    scores: *mut i32,
    count: usize,
    pairs: usize,
) -> i32 {
    dsp_asm!(
        "push {{r4-r10, lr}}",
        "mov lr, #0x80000000",
        "2:",
        "ldr r4, [sp, #32]",
        "mov r5, r0",
        "mov r12, #0",
        "3:",
        "ldrd r6, r7, [r5], #8",
        "ldrd r8, r9, [r1], #8",
        "smlad r12, r6, r8, r12",
        "smlad r12, r7, r9, r12",
        "subs r4, #1",
        "bne 3b",
        store_score!(),
        "bne 2b",
        "mov r0, lr",
        "pop {{r4-r10, pc}}",
    )
}

pub(crate) fn softmax(scores: &[i32], max: i32, slope: i32, weights: &mut [u32]) -> u32 {
    let (pairs, rest) = scores.as_chunks::<2>();
    let (whole, last) = weights.split_at_mut_checked(pairs.len()).unwrap_or_default();
    let mut total = 0;
    if !pairs.is_empty() && whole.len() == pairs.len() {
        // SAFETY: there is at least one pair of scores, and a word for each.
        total = unsafe {
            weights_of(pairs.as_ptr().cast(), whole.as_mut_ptr(), pairs.len(), max, slope, &EXP2_NEG)
        };
    }
    if let ([score], [word, ..]) = (rest, last) {
        *word = portable::weight(max.wrapping_sub(*score), slope);
        total += *word;
    }
    total
}

/// The weight of the score in a register, through r12: see `portable::weight`.
macro_rules! weight_of {
    ($score:literal) => {
        concat!(
            "sub r12, r3, ",
            $score,
            "\n",
            "smmul r12, r12, r4\n",
            "usat r12, #20, r12\n",
            "smlawb ",
            $score,
            ", r8, r12, r7\n",
            "smlawb ",
            $score,
            ", ",
            $score,
            ", r12, r6\n",
            "smlawb ",
            $score,
            ", ",
            $score,
            ", r12, r5\n",
            // The shift: 2, and the power rounded.
            "add r12, #0x28000\n",
            "lsr r12, #16\n",
            "lsrs ",
            $score,
            ", r12\n",
            // The last bit shifted out rounds.
            "adc ",
            $score,
            ", #0\n",
            "add lr, ",
            $score,
            "\n",
        )
    };
}

macro_rules! two_weights {
    () => {
        concat!(
            "ldrd r9, r10, [r0], #8\n",
            weight_of!("r9"),
            weight_of!("r10"),
            "orr r9, r9, r10, lsl #16\n",
            "str r9, [r1], #4\n",
        )
    };
}

/// Weights of pairs of scores, and their sum.
///
/// # Safety
/// `scores` points to two for each of `pairs`, `weights` to one; there is at least one.
#[unsafe(naked)]
unsafe extern "C" fn weights_of(
    scores: *const i32,
    weights: *mut u32,
    pairs: usize,
    max: i32,
    slope: i32,
    coefficients: *const [i32; 4],
) -> u32 {
    dsp_asm!(
        "push {{r4-r10, lr}}",
        "ldr r4, [sp, #32]",
        "ldr r5, [sp, #36]",
        "ldm r5, {{r5-r8}}",
        "mov lr, #0",
        "lsrs r2, #1",
        "bcc 3f",
        two_weights!(),
        "3:",
        "cmp r2, #0",
        "beq 4f",
        "2:",
        two_weights!(),
        two_weights!(),
        "subs r2, #1",
        "bne 2b",
        "4:",
        "mov r0, lr",
        "pop {{r4-r10, pc}}",
    )
}

pub(crate) fn weigh(values: &[u32], weights: &[u32], totals: &mut [i32]) {
    let columns = totals.len();
    let kernel = match columns {
        8 => weigh_8,
        16 => weigh_16,
        32 => weigh_32,
        64 => weigh_64,
        _ => return weigh_fours(values, weights, totals),
    };
    for (totals, from) in totals.as_chunks_mut::<8>().0.iter_mut().zip((0..).step_by(8)) {
        *totals = [0; 8];
        let mut values = values.as_ptr().wrapping_add(from);
        for weights in weights.chunks(BLOCK_KEYS / 2) {
            // SAFETY: there is at least one word of weights, and for each a row of so many columns, of which the eight
            // from `from` on lie within it.
            unsafe { kernel(values, weights.as_ptr(), weights.len(), totals) };
            values = values.wrapping_add(BLOCK_KEYS / 2 * columns);
        }
    }
}

/// [`weigh`] for heads of any other size, four columns at a time.
#[cold]
fn weigh_fours(values: &[u32], weights: &[u32], totals: &mut [i32]) {
    let columns = totals.len();
    let (fours, rest) = totals.as_chunks_mut::<4>();
    debug_assert!(rest.is_empty(), "expected columns by fours, found {columns}");
    for (totals, from) in fours.iter_mut().zip((0..).step_by(4)) {
        *totals = [0; 4];
        let mut values = values.as_ptr().wrapping_add(from);
        for weights in weights.chunks(BLOCK_KEYS / 2) {
            // SAFETY: as in `weigh`, with four columns.
            unsafe { weigh_any(values, weights.as_ptr(), weights.len(), totals, 4 * columns) };
            values = values.wrapping_add(BLOCK_KEYS / 2 * columns);
        }
    }
}

/// Adds the weighted sums of four columns over one block, shortened, to `totals`.
///
/// # Safety
/// `weights` points to `pairs` words, at least one; `values` to four words in each of so many rows of `row_bytes` bytes.
#[unsafe(naked)]
unsafe extern "C" fn weigh_any(
    values: *const u32,
    weights: *const u32,
    pairs: usize,
    totals: *mut [i32; 4],
    row_bytes: usize,
) {
    dsp_asm!(
        "push {{r4-r9, lr}}",
        "ldr r12, [sp, #28]",
        "mov r4, #512",
        "mov r5, r4",
        "mov r6, r4",
        "mov r7, r4",
        "2:",
        "ldr lr, [r1], #4",
        "ldrd r8, r9, [r0]",
        "smlad r4, r8, lr, r4",
        "smlad r5, r9, lr, r5",
        "ldrd r8, r9, [r0, #8]",
        "smlad r6, r8, lr, r6",
        "smlad r7, r9, lr, r7",
        "add r0, r12",
        "subs r2, #1",
        "bne 2b",
        "ldm r3, {{r0, r1, r2, r8}}",
        "add r0, r0, r4, asr #10",
        "add r1, r1, r5, asr #10",
        "add r2, r2, r6, asr #10",
        "add r8, r8, r7, asr #10",
        "stm r3, {{r0, r1, r2, r8}}",
        "pop {{r4-r9, pc}}",
    )
}

macro_rules! weigh_columns {
    ($name:ident, $row:literal) => {
        /// Adds the weighted sums of eight columns over one block, shortened, to `totals`.
        ///
        /// # Safety
        /// `weights` points to `pairs` words, at least one; `values` to eight words in each of so many rows of a fixed
        /// length.
        #[unsafe(naked)]
        unsafe extern "C" fn $name(
            values: *const u32,
            weights: *const u32,
            pairs: usize,
            totals: *mut [i32; 8],
        ) {
            dsp_asm!(
                "push {{r3-r11, lr}}",
                "mov r4, #512",
                "mov r5, r4",
                "mov r6, r4",
                "mov r7, r4",
                "mov r8, r4",
                "mov r9, r4",
                "mov r10, r4",
                "mov r11, r4",
                "2:",
                "ldr r12, [r1], #4",
                "ldrd r3, lr, [r0], #8",
                "smlad r4, r3, r12, r4",
                "smlad r5, lr, r12, r5",
                "ldrd r3, lr, [r0], #8",
                "smlad r6, r3, r12, r6",
                "smlad r7, lr, r12, r7",
                "ldrd r3, lr, [r0], #8",
                "smlad r8, r3, r12, r8",
                "smlad r9, lr, r12, r9",
                // To the same columns of the next row.
                concat!("ldrd r3, lr, [r0], #", $row, " * 4 - 24"),
                "smlad r10, r3, r12, r10",
                "smlad r11, lr, r12, r11",
                "subs r2, #1",
                "bne 2b",
                "pop {{lr}}",
                "ldm lr, {{r0-r3}}",
                "add r0, r0, r4, asr #10",
                "add r1, r1, r5, asr #10",
                "add r2, r2, r6, asr #10",
                "add r3, r3, r7, asr #10",
                "stm lr!, {{r0-r3}}",
                "ldm lr, {{r0-r3}}",
                "add r0, r0, r8, asr #10",
                "add r1, r1, r9, asr #10",
                "add r2, r2, r10, asr #10",
                "add r3, r3, r11, asr #10",
                "stm lr, {{r0-r3}}",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}

weigh_columns!(weigh_8, "8");
weigh_columns!(weigh_16, "16");
weigh_columns!(weigh_32, "32");
weigh_columns!(weigh_64, "64");
