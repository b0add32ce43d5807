//! Row-major matrix times packed vector, two rows at a time: the down-projections, and bases that were not laid out for
//! SMLAD.

use core::ptr;

use super::ROW_MAJOR_BLOCKS;

/// Columns of a vector, or of two, packed.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    /// The first column, a multiple of 4.
    pub(super) start: usize,
    /// How many blocks of four columns.
    pub(super) blocks: usize,
    /// Two words a block; for two vectors four.
    pub(super) words: &'a [i32],
    /// If the matrix has one to three columns behind the blocks: the words of its last four columns, zero for those that
    /// are in a block.
    pub(super) tail: Option<&'a [i32]>,
}

/// `z += A x + 128 * even_sum` for some columns of a row-major matrix `[z.len(), k]`, where `even_sum` is the sum of the
/// packed codes of even index.
pub(super) fn down(a: &[i8], k: usize, columns: Columns<'_>, z: &mut [i32]) {
    let aligned = a.as_ptr().addr().is_multiple_of(4) && k.is_multiple_of(4);
    let kernel = if aligned { row_pairs_aligned } else { row_pairs };
    // SAFETY: the aligned kernel gets aligned rows.
    unsafe { rows(kernel, a, k, &columns, 2, [z, &mut []]) };
}

/// `z = A x` of a whole vector packed in `words`: the most frequent case of an adapter. False, and nothing done, if `a` or `k` is not a
/// multiple of 4, or there are too many columns.
#[inline]
pub(super) fn down_at_once(a: &[i8], k: usize, words: &[i32], even_sum: i32, z: &mut [i32]) -> bool {
    if !a.as_ptr().addr().is_multiple_of(4) {
        return false;
    }
    if !fits(a, k, words, 2, z.len()) || z.len() % 2 == 1 || z.is_empty() {
        // SAFETY: the kernel takes one vector, and gets aligned rows.
        return unsafe { at_once(row_pairs_aligned, a, k, words, 2, [even_sum, 0], [z, &mut []]) };
    }
    // As there, for an even number of rows, which is nearly every rank.
    let frame = Frame::at_once(k, words, [even_sum, 0], [z, &mut []]);
    // SAFETY: there is a pair of rows and a block; the kernel reads `k` bytes of each row, aligned to 4, and two words a block,
    // and writes `z`.
    unsafe { row_pairs_aligned(a.as_ptr(), a.as_ptr().add(k), &frame) };
    true
}

/// Whether all columns of so many rows can be summed at once.
fn fits(a: &[i8], k: usize, words: &[i32], words_per_block: usize, rows: usize) -> bool {
    (4..=4 * ROW_MAJOR_BLOCKS).contains(&k)
        && k.is_multiple_of(4)
        && words.len() == words_per_block * (k / 4)
        && a.len() >= rows * k
}

/// [`down_at_once`] for two vectors, wherever `a` lies; `z0` and `z1` are of one length.
#[inline]
pub(super) fn down2_at_once(
    a: &[i8],
    k: usize,
    words: &[i32],
    even_sums: [i32; 2],
    [z0, z1]: [&mut [i32]; 2],
) -> bool {
    // SAFETY: the results are of one length.
    z0.len() == z1.len() && unsafe { at_once(two_by_two, a, k, words, 4, even_sums, [z0, z1]) }
}

/// Runs `kernel` on all rows and columns, without a sum that is written twice. False, and nothing done, as [`down_at_once`] says.
///
/// # Safety
/// [`two_by_two`] needs results of one length, [`row_pairs_aligned`] `a` aligned to 4.
// One copy for both kernels: what is set up here is little beside their work.
#[inline(never)]
unsafe fn at_once(
    kernel: Kernel,
    a: &[i8],
    k: usize,
    words: &[i32],
    words_per_block: usize,
    even_sums: [i32; 2],
    [z0, z1]: [&mut [i32]; 2],
) -> bool {
    if !fits(a, k, words, words_per_block, z0.len()) {
        return false;
    }
    let (pairs, odd) = (z0.len() & !1, z0.len() % 2);
    let mut frame = Frame::at_once(k, words, even_sums, [&mut *z0, &mut *z1]);
    // SAFETY: there is a block; the kernel reads `k` bytes of each row and so many words a block, and writes the sums of pairs of rows.
    // A last row is paired with itself.
    unsafe {
        if pairs > 0 {
            kernel(a.as_ptr(), a.as_ptr().add(k), &frame);
        }
        if odd > 0 {
            let mut last = [[0; 2]; 2];
            let row = a.as_ptr().add(pairs * k);
            frame.z0 = last[0].as_mut_ptr();
            frame.z0_end = frame.z0.wrapping_add(2);
            frame.z1 = last[1].as_mut_ptr();
            kernel(row, row, &frame);
            for (z, last) in [z0, z1].into_iter().zip(last) {
                if let Some(z) = z.last_mut() {
                    *z = last[0];
                }
            }
        }
    }
    true
}

/// [`down`] for two vectors; `z0` and `z1` are of one length.
pub(super) fn down2(a: &[i8], k: usize, columns: Columns<'_>, [z0, z1]: [&mut [i32]; 2]) {
    if z0.len() != z1.len() {
        debug_assert!(false, "down2: {} and {} results", z0.len(), z1.len());
        return;
    }
    // SAFETY: both results are of one length.
    unsafe { rows(two_by_two, a, k, &columns, 4, [z0, z1]) };
}

/// Runs `kernel`, which takes so many words a block, on all rows and columns.
///
/// # Safety
/// [`two_by_two`] needs results of one length, [`row_pairs_aligned`] `a` and `k` aligned to 4.
// One copy for all kernels: what is set up here is little beside their work.
#[inline(never)]
unsafe fn rows(
    kernel: Kernel,
    a: &[i8],
    k: usize,
    columns: &Columns<'_>,
    words_per_block: usize,
    [z0, z1]: [&mut [i32]; 2],
) {
    let &Columns { start, blocks, words, tail } = columns;
    let end = start + 4 * blocks;
    let tail_fits = tail.is_none_or(|tail| tail.len() >= words_per_block && k >= 4 && end + 4 > k);
    if a.len() < z0.len() * k || end > k || words.len() < words_per_block * blocks || !tail_fits {
        debug_assert!(false, "expected a row-major matrix of {} x {k}", z0.len());
        return;
    }
    let (pairs, odd) = (z0.len() & !1, z0.len() % 2);
    // SAFETY: `a` has `k` bytes for each row, and `z0` and if need be `z1` a sum. The last row of an odd number is paired with
    // itself; of the two sums the first counts.
    unsafe {
        if pairs > 0 {
            let first = a.as_ptr();
            chunks(kernel, [first, first.add(k)], k, columns, words_per_block, [z0, z1], pairs);
        }
        if odd > 0 {
            let mut last = [[0; 2]; 2];
            let row = a.as_ptr().add(pairs * k);
            chunks(
                kernel,
                [row, row],
                k,
                columns,
                words_per_block,
                last.each_mut().map(|last| &mut last[..]),
                2,
            );
            for (z, last) in [z0, z1].into_iter().zip(last) {
                if let Some(z) = z.last_mut() {
                    *z = z.wrapping_add(last[0]);
                }
            }
        }
    }
}

/// For each pair of rows, the first of which are given: `z += sum >> 8`.
type Kernel = unsafe extern "C" fn(a: *const i8, second: *const i8, frame: &Frame);

/// What the loops keep on the stack.
#[repr(C)]
struct Frame {
    pack: *const i32,
    pack_end: *const i32,
    z0: *mut i32,
    z0_end: *mut i32,
    /// Those of the second vector.
    z1: *mut i32,
    /// From where a row was left to the next pair's.
    skip: usize,
    /// Blocks; the kernels keep those before the unrolled loop here.
    blocks: usize,
    /// Where the unrolled loop is entered; the kernels fill it in.
    entry: usize,
    /// The words of the tail, or null.
    tail: *const i32,
    /// How many columns back from the end of the blocks the tail begins.
    overlap: usize,
    /// What the sums of each vector begin with, times 256; where that is odd, sums are added to what is there. [`row_pairs`] always adds.
    begin: [i32; 2],
}

/// Runs `kernel` on the columns of some pairs of rows, as many at a time as a sum can take, and adds the sums of so many
/// rows to `z0` and `z1`.
///
/// # Safety
/// At least one pair of rows of `k` bytes, the first two of which are given, and room for their sums. `words` and `tail` of the columns
/// are as long as their number says.
#[inline(never)]
#[allow(clippy::too_many_arguments, reason = "a matrix, columns and results")]
unsafe fn chunks(
    kernel: Kernel,
    [first, second]: [*const i8; 2],
    k: usize,
    columns: &Columns<'_>,
    words_per_block: usize,
    [z0, z1]: [&mut [i32]; 2],
    rows: usize,
) {
    let end = columns.start + 4 * columns.blocks;
    let last_tail = columns.tail.map_or(ptr::null(), <[i32]>::as_ptr);
    let (mut column, mut pack) = (columns.start, columns.words.as_ptr());
    loop {
        let blocks = ROW_MAJOR_BLOCKS.min((end - column) / 4);
        let next = column + 4 * blocks;
        let tail = if next == end { last_tail } else { ptr::null() };
        let done = if tail.is_null() { next } else { k };
        if done == column {
            return;
        }
        let pack_end = pack.wrapping_add(words_per_block * blocks);
        let frame = Frame {
            pack,
            pack_end,
            z0: z0.as_mut_ptr(),
            z0_end: z0.as_mut_ptr().wrapping_add(rows),
            z1: z1.as_mut_ptr(),
            skip: 2 * k - (done - column),
            blocks,
            entry: 0,
            tail,
            overlap: (next + 4).wrapping_sub(k),
            begin: [1; 2],
        };
        // SAFETY: the kernel reads, of each row, the columns column..next and with a tail k-4..k; for each block
        // `words_per_block` words, and the tail's. It writes the sums of the pairs of rows. `column` is a multiple of 4, so each row is
        // aligned if the first and `k` are.
        unsafe { kernel(first.add(column), second.add(column), &frame) };
        if next == end {
            return;
        }
        (column, pack) = (next, pack_end);
    }
}

impl Frame {
    /// For all columns, and all pairs of rows.
    #[inline]
    fn at_once(k: usize, words: &[i32], even_sums: [i32; 2], [z0, z1]: [&mut [i32]; 2]) -> Self {
        let words = words.as_ptr_range();
        Self {
            pack: words.start,
            pack_end: words.end,
            z0: z0.as_mut_ptr(),
            z0_end: z0.as_mut_ptr().wrapping_add(z0.len() & !1),
            z1: z1.as_mut_ptr(),
            skip: k,
            blocks: k / 4,
            entry: 0,
            tail: ptr::null(),
            overlap: 0,
            begin: even_sums.map(|even_sum| -(even_sum << 15)),
        }
    }
}

/// Saves registers, puts the frame of r2 on the stack, and the entry of a loop at 3 into it: the loop takes so many units
/// (r3, lost) times `$repeat` a turn, and the first turn enters so that the rest fits; without units, at 4.
macro_rules! enter {
    ($units:expr, $repeat:tt, $unit_bytes:literal) => {
        concat!(
            "push {{r4-r11, lr}}\n",
            "sub sp, #52\n",
            "mov r12, sp\n",
            "ldrd r4, r5, [r2, #40]\n",
            "strd r4, r5, [r12, #40]\n",
            "ldm r2, {{r2-r11}}\n",
            "stm r12, {{r2-r11}}\n",
            $units,
            "\n",
            "adr.w r4, 3f\n",
            "adr.w r5, 4f\n",
            "cmp r3, #0\n",
            "it eq\n",
            "moveq r4, r5\n",
            "ands r3, r3, #",
            $repeat,
            " - 1\n",
            "ittt ne\n",
            "rsbne r3, r3, #",
            $repeat,
            "\n",
            "movne r5, #",
            $unit_bytes,
            "\n",
            "mlane r4, r3, r5, r4\n",
            "orr r4, r4, #1\n",
            "str r4, [sp, #28]\n",
        )
    };
}

/// Four codes in `$w` times a block.
macro_rules! plain {
    ($w:literal, $odd:literal, $even:literal, $sum:literal) => {
        concat!(
            "eor ",
            $w,
            ", ",
            $w,
            ", #0x00800080\n",
            "smlad ",
            $sum,
            ", ",
            $w,
            ", ",
            $odd,
            ", ",
            $sum,
            "\n",
            "uxtb16 ",
            $w,
            ", ",
            $w,
            "\n",
            "smlad ",
            $sum,
            ", ",
            $w,
            ", ",
            $even,
            ", ",
            $sum,
            "\n",
        )
    };
}

/// Three blocks of a row, in r3-r5, times r6-r11.
macro_rules! plain3 {
    ($load:expr, $sum:literal) => {
        concat!(
            $load,
            "\n",
            plain!("r3", "r6", "r7", $sum),
            plain!("r4", "r8", "r9", $sum),
            plain!("r5", "r10", "r11", $sum),
        )
    };
}

/// The loop over pairs of rows for one vector, up to the sums of a pair, times 256, in r12 and lr. It begins with `$begin`.
macro_rules! sums_of_pair {
    ($repeat:tt, $unit_bytes:literal, $load:ident, $begin:literal) => {
        concat!(
            enter!(
                "mov r4, #3\n udiv r3, r8, r4\n mls r8, r3, r4, r8\n str r8, [sp, #24]",
                $repeat,
                $unit_bytes
            ),
            "2:\n", // a pair of rows
            "ldr r2, [sp, #0]\n",
            "ldrd r5, r8, [sp, #24]\n",
            $begin,
            "\n",
            "cbz r5, 6f\n",
            "5:\n", // blocks mod 3
            "ldrd r6, r7, [r2], #8\n",
            "ldr r3, [r0], #4\n",
            "ldr r4, [r1], #4\n",
            plain!("r3", "r6", "r7", "r12"),
            plain!("r4", "r6", "r7", "lr"),
            "subs r5, #1\n",
            "bne 5b\n",
            "6:\n",
            "bx r8\n",
            ".p2align 2\n",
            "3:\n",
            repeat!(
                $repeat,
                "ldm.w r2!, {{r6-r11}}",
                plain3!($load!("r0"), "r12"),
                plain3!($load!("r1"), "lr")
            ),
            "ldr r3, [sp, #4]\n",
            "cmp r2, r3\n",
            "bne 3b\n",
            ".p2align 2\n",
            "4:\n",
        )
    };
}

macro_rules! load3 {
    ($row:literal) => {
        concat!("ldr.w r3, [", $row, "], #4\n ldr.w r4, [", $row, "], #4\n ldr.w r5, [", $row, "], #4")
    };
}

macro_rules! load3_aligned {
    ($row:literal) => {
        concat!("ldm.w ", $row, "!, {{r3-r5}}")
    };
}

/// A [`Kernel`] for one vector.
///
/// # Safety
/// At least one pair of rows, and one block or a tail; pointers good for what is read and written.
#[unsafe(naked)]
unsafe extern "C" fn row_pairs(a: *const i8, second: *const i8, frame: &Frame) {
    dsp_asm!(
        sums_of_pair!(2, "124", load3, "mov r12, #0\n mov lr, #0"),
        "ldrd r5, r8, [sp, #32]",
        "cbz r5, 7f",
        "sub r0, r8", // the tail
        "sub r1, r8",
        "ldrd r6, r7, [r5]",
        "ldr r3, [r0], #4",
        "ldr r4, [r1], #4",
        plain!("r3", "r6", "r7", "r12"),
        plain!("r4", "r6", "r7", "lr"),
        "7:",
        "ldrd r2, r3, [sp, #8]",
        "ldr r4, [sp, #20]",
        "ldrd r6, r7, [r2]",
        "add r6, r6, r12, asr #8",
        "add r7, r7, lr, asr #8",
        "strd r6, r7, [r2], #8",
        "str r2, [sp, #8]",
        "add r0, r4",
        "add r1, r4",
        "cmp r2, r3",
        "bne 2b",
        "add sp, #52",
        "pop {{r4-r11, pc}}",
    )
}

/// [`row_pairs`] for rows that are aligned to 4, without a tail: `z = sum >> 8`, or `z += sum >> 8` if the frame says so by an odd
/// beginning; sums are multiples of 256 but for that.
///
/// # Safety
/// As there.
#[unsafe(naked)]
unsafe extern "C" fn row_pairs_aligned(a: *const i8, second: *const i8, frame: &Frame) {
    dsp_asm!(
        sums_of_pair!(8, "108", load3_aligned, "ldr r12, [sp, #40]\n mov lr, r12"),
        "ldrd r2, r3, [sp, #8]",
        "ldr r4, [sp, #20]",
        "lsls r5, r12, #31",
        "bne 8f",
        "asr r6, r12, #8",
        "asr r7, lr, #8",
        "7:",
        "strd r6, r7, [r2], #8",
        "str r2, [sp, #8]",
        "add r0, r4",
        "add r1, r4",
        "cmp r2, r3",
        "bne 2b",
        "add sp, #52",
        "pop {{r4-r11, pc}}",
        "8:",
        "ldrd r6, r7, [r2]",
        "add r6, r6, r12, asr #8",
        "add r7, r7, lr, asr #8",
        "b 7b",
    )
}

/// Four codes in `$w` times a block of two vectors, in r6-r9.
macro_rules! plain_two {
    ($w:literal, $sum0:literal, $sum1:literal) => {
        concat!(
            "eor ",
            $w,
            ", ",
            $w,
            ", #0x00800080\n",
            "smlad ",
            $sum0,
            ", ",
            $w,
            ", r6, ",
            $sum0,
            "\n",
            "smlad ",
            $sum1,
            ", ",
            $w,
            ", r8, ",
            $sum1,
            "\n",
            "uxtb16 ",
            $w,
            ", ",
            $w,
            "\n",
            "smlad ",
            $sum0,
            ", ",
            $w,
            ", r7, ",
            $sum0,
            "\n",
            "smlad ",
            $sum1,
            ", ",
            $w,
            ", r9, ",
            $sum1,
            "\n",
        )
    };
}

/// A [`Kernel`] for two vectors.
///
/// # Safety
/// At least one pair of rows, and one block or a tail; pointers good for what is read and written.
#[unsafe(naked)]
unsafe extern "C" fn two_by_two(a: *const i8, second: *const i8, frame: &Frame) {
    dsp_asm!(
        enter!("mov r3, r8", 4, "60"),
        "2:", // a pair of rows
        "ldr r2, [sp, #0]",
        "ldrd r10, r12, [sp, #40]",
        "mov r11, r10",
        "mov lr, r12",
        "ldr pc, [sp, #28]",
        ".p2align 2",
        "3:",
        repeat!(
            4,
            "ldm.w r2!, {{r6-r9}}",
            "ldr.w r3, [r0], #4",
            "ldr.w r4, [r1], #4",
            plain_two!("r3", "r10", "r12"),
            plain_two!("r4", "r11", "lr")
        ),
        "ldr r5, [sp, #4]",
        "cmp r2, r5",
        "bne 3b",
        "4:",
        "ldrd r5, r8, [sp, #32]",
        "cbz r5, 7f",
        "sub r0, r8", // the tail
        "sub r1, r8",
        "ldm r5, {{r6-r9}}",
        "ldr r3, [r0], #4",
        "ldr r4, [r1], #4",
        plain_two!("r3", "r10", "r12"),
        plain_two!("r4", "r11", "lr"),
        "7:",
        "ldrd r2, r3, [sp, #8]",
        "ldrd r4, r5, [sp, #16]",
        "add r0, r5",
        "add r1, r5",
        "lsls r5, r10, #31",
        "bne 9f",
        "asr r10, r10, #8",
        "asr r11, r11, #8",
        "asr r12, r12, #8",
        "asr lr, lr, #8",
        "8:",
        "strd r10, r11, [r2], #8",
        "strd r12, lr, [r4], #8",
        "str r2, [sp, #8]",
        "str r4, [sp, #16]",
        "cmp r2, r3",
        "bne 2b",
        "add sp, #52",
        "pop {{r4-r11, pc}}",
        "9:",
        "ldrd r6, r7, [r2]",
        "add r10, r6, r10, asr #8",
        "add r11, r7, r11, asr #8",
        "ldrd r6, r7, [r4]",
        "add r12, r6, r12, asr #8",
        "add lr, r7, lr, asr #8",
        "b 8b",
    )
}
