//! Packing a vector into the words that the matrix kernels multiply by.

use core::mem::MaybeUninit;

/// For a vector whose length is no multiple of four: `odd, even` of its last, incomplete block, filled up with zeros at the
/// end; `odd, even` of its last four codes, zero for those of complete blocks; and the sum of what is of even index there.
// Once for all who pack: lengths are multiples of four as a rule.
#[cold]
#[inline(never)]
pub(super) fn tails(x: &[i8]) -> ([i32; 2], [i32; 2], i32) {
    // The rest begins here, as far from the end of `last` as from that of `x`.
    let start = x.len() & !3;
    let first = core::array::from_fn(|i| x.get(start + i).copied().unwrap_or(0));
    let last: [i8; 4] = core::array::from_fn(|i| {
        let at = (x.len() + i).wrapping_sub(4);
        if at < start { 0 } else { x.get(at).copied().unwrap_or(0) }
    });
    (block(first), block(last), i32::from(last[0]) + i32::from(last[2]))
}

/// `odd, even` of a block: `(x1, x3), (256 x0 - x1, 256 x2 - x3)`.
fn block(codes: [i8; 4]) -> [i32; 2] {
    let [x0, x1, x2, x3] = codes.map(i32::from);
    let pair = |low: i32, high: i32| high << 16 | low & 0xffff;
    [pair(x1, x3), pair(256 * x0 - x1, 256 * x2 - x3)]
}

/// `odd, even` of each block, and the sum of the codes of even index. `words` is two a block.
pub(super) fn blocks(blocks: &[[i8; 4]], words: &mut [i32]) -> i32 {
    let (words, _) = words.as_chunks_mut::<2>();
    if blocks.is_empty() || words.len() < blocks.len() {
        return 0;
    }
    // SAFETY: there is at least one block, and two words for each.
    unsafe { pack_blocks(blocks.as_ptr().cast(), words.as_mut_ptr().cast(), blocks.len()) >> 8 }
}

/// [`blocks`] into memory that nobody wrote to before; also gives the words that it wrote.
pub(super) fn blocks_uninit<'a>(blocks: &[[i8; 4]], words: &'a mut [MaybeUninit<i32>]) -> (&'a [i32], i32) {
    let (words, _) = words.as_chunks_mut::<2>();
    if blocks.is_empty() || words.len() < blocks.len() {
        return (&[], 0);
    }
    // SAFETY: there is at least one block, and two words for each, all of which are written before they are read.
    unsafe {
        let sum = pack_blocks(blocks.as_ptr().cast(), words.as_mut_ptr().cast(), blocks.len());
        (core::slice::from_raw_parts(words.as_ptr().cast(), 2 * blocks.len()), sum >> 8)
    }
}

/// `odd0, even0, odd1, even1` of each block of two vectors, and the sums of their codes of even index. `words` is four a
/// block.
pub(super) fn pair_blocks(blocks0: &[[i8; 4]], blocks1: &[[i8; 4]], words: &mut [i32]) -> [i32; 2] {
    let (words, _) = words.as_chunks_mut::<4>();
    let mut sums = [0; 2];
    if blocks0.is_empty() || blocks0.len() != blocks1.len() || words.len() < blocks0.len() {
        return sums;
    }
    // SAFETY: there is at least one block of either vector, and four words for each.
    unsafe {
        pack_pair_blocks(
            blocks0.as_ptr().cast(),
            blocks1.as_ptr().cast(),
            words.as_mut_ptr().cast(),
            blocks0.len(),
            &mut sums,
        );
    }
    sums.map(|sum| sum >> 8)
}

/// A word of four codes in `$odd` becomes `odd`; `$even` becomes `(256 x0, 256 x2)`, is added to `$sum`, and becomes
/// `even`. Needs the word `(1, 1)` in `$ones`.
macro_rules! pack_block {
    ($odd:literal, $even:literal, $sum:literal, $ones:literal) => {
        concat!(
            "bic ",
            $even,
            ", ",
            $odd,
            ", #0xff00ff00\n",
            "sxtb16 ",
            $odd,
            ", ",
            $odd,
            ", ror #8\n",
            "lsl ",
            $even,
            ", ",
            $even,
            ", #8\n",
            "smlad ",
            $sum,
            ", ",
            $even,
            ", ",
            $ones,
            ", ",
            $sum,
            "\n",
            "ssub16 ",
            $even,
            ", ",
            $even,
            ", ",
            $odd,
            "\n",
        )
    };
}

/// Packs `blocks` blocks; returns 256 times the sum of the codes of even index.
///
/// # Safety
/// At least one block; `x` good for 4 bytes a block at any alignment, `words` for two words a block.
#[unsafe(naked)]
unsafe extern "C" fn pack_blocks(x: *const i8, words: *mut i32, blocks: usize) -> i32 {
    dsp_asm!(
        "push {{r4-r11, lr}}",
        "mov r3, #0x00010001",
        "mov r12, #0",
        "ands lr, r2, #3",
        "beq 3f",
        "2:", // blocks mod 4
        "ldr r4, [r0], #4",
        pack_block!("r4", "r5", "r12", "r3"),
        "strd r4, r5, [r1], #8",
        "subs lr, #1",
        "bne 2b",
        "3:",
        "lsrs r2, r2, #2",
        "beq 5f",
        "4:",
        "ldr r4, [r0], #4",
        "ldr r6, [r0], #4",
        "ldr r8, [r0], #4",
        "ldr r10, [r0], #4",
        pack_block!("r4", "r5", "r12", "r3"),
        pack_block!("r6", "r7", "r12", "r3"),
        pack_block!("r8", "r9", "r12", "r3"),
        pack_block!("r10", "r11", "r12", "r3"),
        "stm r1!, {{r4-r11}}",
        "subs r2, #1",
        "bne 4b",
        "5:",
        "mov r0, r12",
        "pop {{r4-r11, pc}}",
    )
}

/// Packs `blocks` blocks of two vectors; writes 256 times the sums of their codes of even index.
///
/// # Safety
/// At least one block; `x0` and `x1` good for 4 bytes a block at any alignment, `words` for four words a block, `sums`
/// for two.
#[unsafe(naked)]
unsafe extern "C" fn pack_pair_blocks(
    x0: *const i8,
    x1: *const i8,
    words: *mut i32,
    blocks: usize,
    sums: &mut [i32; 2],
) {
    dsp_asm!(
        "push {{r4-r10, lr}}",
        "mov r8, #0x00010001",
        "mov r9, #0",
        "mov r10, #0",
        "2:",
        "ldr r4, [r0], #4",
        "ldr r6, [r1], #4",
        pack_block!("r4", "r5", "r9", "r8"),
        pack_block!("r6", "r7", "r10", "r8"),
        "stm r2!, {{r4-r7}}",
        "subs r3, #1",
        "bne 2b",
        "ldr r0, [sp, #32]",
        "strd r9, r10, [r0]",
        "pop {{r4-r10, pc}}",
    )
}
