//! Row-major matrix times packed vector, two rows at a time: the down-projections, and bases that were not laid out for
//! SMLAD.

use core::arch::naked_asm;
use core::ptr;

/// Some of a vector's columns, packed.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    /// The first column, a multiple of 4.
    pub(super) start: usize,
    /// How many blocks of four columns, at most [`super::ROW_MAJOR_BLOCKS`].
    pub(super) blocks: usize,
    /// Two words a block; for two vectors four.
    pub(super) words: &'a [i32],
    /// The words of the last four columns of the matrix, where some of them are in no block: zero for those that are.
    pub(super) tail: Option<&'a [i32]>,
}

/// `z += A x` for some columns of a row-major matrix `[z.len(), k]`; then `z -= 128 * even_sum`.
pub(super) fn down(a: &[i8], k: usize, columns: Columns<'_>, even_sum: i32, z: &mut [i32]) {
    let aligned = a.as_ptr().addr().is_multiple_of(4) && k.is_multiple_of(4);
    let kernel = if aligned { row_pairs_aligned } else { row_pairs };
    let (pairs, last) = z.as_chunks_mut::<2>();
    let (even, odd) = a.split_at(a.len().min(2 * pairs.len() * k));
    if !pairs.is_empty() {
        run(kernel, even, k, columns, [even_sum, 0], pairs, None);
    }
    if let [last] = last {
        // A last row is paired with itself.
        let mut pair = [[*last; 2]];
        run(kernel, odd, k, columns, [even_sum, 0], &mut pair, None);
        [[*last, _]] = pair;
    }
}

/// [`down`] for two vectors; `z0` and `z1` are of one length.
pub(super) fn down2(
    a: &[i8],
    k: usize,
    columns: Columns<'_>,
    even_sums: [i32; 2],
    [z0, z1]: [&mut [i32]; 2],
) {
    let ((pairs0, last0), (pairs1, last1)) = (z0.as_chunks_mut::<2>(), z1.as_chunks_mut::<2>());
    let (even, odd) = a.split_at(a.len().min(2 * pairs0.len() * k));
    if !pairs0.is_empty() {
        run(two_by_two, even, k, columns, even_sums, pairs0, Some(pairs1));
    }
    if let ([last0], [last1]) = (last0, last1) {
        let (mut pair0, mut pair1) = ([[*last0; 2]], [[*last1; 2]]);
        run(two_by_two, odd, k, columns, even_sums, &mut pair0, Some(&mut pair1));
        ([[*last0, _]], [[*last1, _]]) = (pair0, pair1);
    }
}

/// Runs `kernel` on the pairs of rows of `a`; on a single row as if it were two.
fn run(
    kernel: Kernel,
    a: &[i8],
    k: usize,
    columns: Columns<'_>,
    even_sums: [i32; 2],
    z0: &mut [[i32; 2]],
    z1: Option<&mut [[i32; 2]]>,
) {
    let Columns { start, blocks, words, tail } = columns;
    let vectors = 1 + usize::from(z1.is_some());
    let single = a.len() == k;
    let end = start + 4 * blocks;
    // The last four columns begin inside or at the end of the blocks.
    let tail_fits = tail.is_none_or(|tail| tail.len() >= 2 * vectors && k >= 4 && end + 4 > k);
    let fits = !z0.is_empty()
        && (a.len() >= 2 * z0.len() * k || single && z0.len() == 1)
        && z1.as_ref().is_none_or(|z1| z1.len() == z0.len())
        && (blocks > 0 || tail.is_some())
        && end <= k
        && words.len() >= 2 * vectors * blocks
        && tail_fits;
    if !fits {
        debug_assert!(false, "row-major matrix: expected {} pairs of rows of {k} columns", z0.len());
        return;
    }
    let (stride, done) = (if single { 0 } else { k }, if tail.is_some() { k } else { end });
    let z0 = z0.as_mut_ptr_range();
    let block_bytes = if vectors == 1 { 8 } else { 16 };
    let frame = Frame {
        pack: words.as_ptr(),
        pack_end: words.as_ptr().wrapping_byte_add(block_bytes * blocks),
        z0: z0.start,
        z0_end: z0.end,
        z1: z1.map_or(ptr::null_mut(), <[_]>::as_mut_ptr),
        correction0: 128 * even_sums[0],
        correction1: 128 * even_sums[1],
        skip: (2 * stride).wrapping_sub(done - start),
        blocks,
        unused: 0,
        tail: tail.map_or(ptr::null(), <[_]>::as_ptr),
        overlap: (end + 4).wrapping_sub(k),
    };
    // SAFETY: for each row, the kernel reads the columns start..end and with a tail k-4..k of its four or eight words; for each
    // block two or four words. `a` and `words` have them. It writes z0, which is not empty, and as much of z1, if any. The
    // aligned kernel gets `a` and `k` aligned to 4, and `start` always is: so is every row.
    unsafe { kernel(a.as_ptr().add(start), a.as_ptr().add(start + stride), &frame) }
}

/// For each pair of rows, the first of which are given: `z += (sum >> 8) - correction`.
type Kernel = unsafe extern "C" fn(a: *const i8, second: *const i8, frame: &Frame);

/// What the loops keep on the stack.
#[repr(C)]
struct Frame {
    pack: *const i32,
    pack_end: *const i32,
    z0: *mut [i32; 2],
    z0_end: *mut [i32; 2],
    z1: *mut [i32; 2],
    correction0: i32,
    correction1: i32,
    /// From where a row was left to the next pair's.
    skip: usize,
    /// Blocks; then those before the unrolled loop.
    blocks: usize,
    /// Where the unrolled loop is entered; the kernels fill it in.
    unused: usize,
    /// The words of the tail, or null.
    tail: *const i32,
    /// How many columns back from the end of the blocks the tail begins.
    overlap: usize,
}

/// Saves registers, puts the frame of r2 on the stack, and the entry of a loop at 3 into it: the loop takes so many units
/// (r3, lost) times `$repeat` a turn, and the first turn enters so that the rest fits; without units, at 4.
macro_rules! enter {
    ($units:expr, $repeat:tt, $unit_bytes:literal) => {
        concat!(
            "push {{r4-r11, lr}}\n",
            "sub sp, #52\n",
            "mov r12, sp\n",
            "ldm r2!, {{r4-r9}}\n",
            "stm r12!, {{r4-r9}}\n",
            "ldm r2, {{r4-r9}}\n",
            "stm r12, {{r4-r9}}\n",
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
            "str r4, [sp, #36]\n",
        )
    };
}

/// Four codes in `$w` times a block.
macro_rules! plain {
    ($w:literal, $odd:literal, $even:literal, $sum:literal) => {
        concat!(
            "eor ", $w, ", ", $w, ", #0x00800080\n",
            "smlad ", $sum, ", ", $w, ", ", $odd, ", ", $sum, "\n",
            "uxtb16 ", $w, ", ", $w, "\n",
            "smlad ", $sum, ", ", $w, ", ", $even, ", ", $sum, "\n",
        )
    };
}

/// Three blocks of a row, in r3-r5, times r6-r11.
macro_rules! plain3 {
    ($load:expr, $sum:literal) => {
        concat!(
            $load, "\n",
            plain!("r3", "r6", "r7", $sum),
            plain!("r4", "r8", "r9", $sum),
            plain!("r5", "r10", "r11", $sum),
        )
    };
}

macro_rules! row_pairs {
    ($(#[$doc:meta])* $name:ident, $repeat:tt, $unit_bytes:literal, $load:ident) => {
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C" fn $name(a: *const i8, second: *const i8, frame: &Frame) {
            naked_asm!(
                enter!(
                    "mov r4, #3\n ldr r5, [sp, #32]\n udiv r3, r5, r4\n mls r5, r3, r4, r5\n str r5, [sp, #32]",
                    $repeat,
                    $unit_bytes
                ),
                "2:", // a pair of rows
                "ldr r2, [sp, #0]",
                "ldrd r5, r8, [sp, #32]",
                "mov r12, #0",
                "mov lr, #0",
                "cbz r5, 6f",
                "5:", // blocks mod 3
                "ldrd r6, r7, [r2], #8",
                "ldr r3, [r0], #4",
                "ldr r4, [r1], #4",
                plain!("r3", "r6", "r7", "r12"),
                plain!("r4", "r6", "r7", "lr"),
                "subs r5, #1",
                "bne 5b",
                "6:",
                "bx r8",
                ".p2align 2",
                "3:",
                repeat!(
                    $repeat,
                    "ldm.w r2!, {{r6-r11}}",
                    plain3!($load!("r0"), "r12"),
                    plain3!($load!("r1"), "lr")
                ),
                "ldr r3, [sp, #4]",
                "cmp r2, r3",
                "bne 3b",
                ".p2align 2",
                "4:",
                "ldrd r5, r8, [sp, #40]",
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
                "ldr r4, [sp, #28]",
                "ldr r5, [sp, #20]",
                "ldrd r6, r7, [r2]",
                "sub r6, r6, r5",
                "sub r7, r7, r5",
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

row_pairs!(
    /// A [`Kernel`] for one vector.
    ///
    /// # Safety
    /// At least one pair of rows, and one block or a tail; pointers good for what is read and written.
    row_pairs, 2, "124", load3
);
row_pairs!(
    /// [`row_pairs`] for rows that are aligned to 4.
    ///
    /// # Safety
    /// As there.
    row_pairs_aligned, 4, "108", load3_aligned
);

/// Four codes in `$w` times a block of two vectors, in r6-r9.
macro_rules! plain_two {
    ($w:literal, $sum0:literal, $sum1:literal) => {
        concat!(
            "eor ", $w, ", ", $w, ", #0x00800080\n",
            "smlad ", $sum0, ", ", $w, ", r6, ", $sum0, "\n",
            "smlad ", $sum1, ", ", $w, ", r8, ", $sum1, "\n",
            "uxtb16 ", $w, ", ", $w, "\n",
            "smlad ", $sum0, ", ", $w, ", r7, ", $sum0, "\n",
            "smlad ", $sum1, ", ", $w, ", r9, ", $sum1, "\n",
        )
    };
}

/// A [`Kernel`] for two vectors.
///
/// # Safety
/// At least one pair of rows, and one block or a tail; pointers good for what is read and written.
#[unsafe(naked)]
unsafe extern "C" fn two_by_two(a: *const i8, second: *const i8, frame: &Frame) {
    naked_asm!(
        enter!("ldr r3, [sp, #32]", 4, "60"),
        "2:", // a pair of rows
        "ldr r2, [sp, #0]",
        "mov r10, #0",
        "mov r11, #0",
        "mov r12, #0",
        "mov lr, #0",
        "ldr pc, [sp, #36]",
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
        "ldrd r5, r8, [sp, #40]",
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
        "ldrd r8, r9, [sp, #24]",
        "ldrd r6, r7, [r2]",
        "sub r6, r6, r5",
        "sub r7, r7, r5",
        "add r6, r6, r10, asr #8",
        "add r7, r7, r11, asr #8",
        "strd r6, r7, [r2], #8",
        "ldrd r6, r7, [r4]",
        "sub r6, r6, r8",
        "sub r7, r7, r8",
        "add r6, r6, r12, asr #8",
        "add r7, r7, lr, asr #8",
        "strd r6, r7, [r4], #8",
        "str r2, [sp, #8]",
        "str r4, [sp, #16]",
        "add r0, r9",
        "add r1, r9",
        "cmp r2, r3",
        "bne 2b",
        "add sp, #52",
        "pop {{r4-r11, pc}}",
    )
}
