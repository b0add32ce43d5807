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
    let mut last = [0; 2];
    let mut rows =
        Rows { len: z.len(), z0: z.as_mut_ptr(), z1: ptr::null_mut(), last0: &mut last, last1: &mut [0; 2] };
    // SAFETY: `z` is as long as said; the aligned kernel gets aligned rows.
    unsafe { run(kernel, a, k, columns, 2, &mut rows) };
    if let (true, [.., z]) = (z.len() % 2 == 1, z) {
        *z = z.wrapping_add(last[0]);
    }
}

/// `z = A x` of a whole vector packed in `words`, in one call of a kernel: the most frequent case of an adapter. False, and nothing
/// done, if `a` or `k` is not a multiple of 4, there are too many columns, or an odd number of rows.
#[inline]
pub(super) fn down_at_once(a: &[i8], k: usize, words: &[i32], even_sum: i32, z: &mut [i32]) -> bool {
    let aligned = a.as_ptr().addr().is_multiple_of(4) && k.is_multiple_of(4);
    let fits = words.len() == k / 2 && a.len() >= z.len() * k;
    if !aligned || !fits || !(4..=4 * ROW_MAJOR_BLOCKS).contains(&k) || z.len() % 2 == 1 || z.is_empty() {
        return false;
    }
    let z = z.as_mut_ptr_range();
    let words = words.as_ptr_range();
    let frame = Frame {
        pack: words.start,
        pack_end: words.end,
        z0: z.start,
        z0_end: z.end,
        // 256 times what the sums begin with.
        z1: ptr::without_provenance_mut((-(even_sum << 15)).cast_unsigned() as usize),
        skip: k,
        blocks: k / 4,
        entry: 0,
        tail: ptr::null(),
        overlap: 0,
    };
    // SAFETY: there is a pair of rows and a block; the kernel reads `k` bytes of each row, aligned to 4, and two words a block,
    // and writes `z`.
    unsafe { row_pairs_at_once(a.as_ptr(), a.as_ptr().add(k), &frame) };
    true
}

/// [`down`] for two vectors; `z0` and `z1` are of one length.
pub(super) fn down2(a: &[i8], k: usize, columns: Columns<'_>, [z0, z1]: [&mut [i32]; 2]) {
    if z0.len() != z1.len() {
        debug_assert!(false, "down2: {} and {} results", z0.len(), z1.len());
        return;
    }
    let (mut last0, mut last1) = ([0; 2], [0; 2]);
    let mut rows = Rows {
        len: z0.len(),
        z0: z0.as_mut_ptr(),
        z1: z1.as_mut_ptr(),
        last0: &mut last0,
        last1: &mut last1,
    };
    // SAFETY: `z0` and `z1` are as long as said.
    unsafe { run(two_by_two, a, k, columns, 4, &mut rows) };
    if let (true, [.., z0], [.., z1]) = (z0.len() % 2 == 1, z0, z1) {
        *z0 = z0.wrapping_add(last0[0]);
        *z1 = z1.wrapping_add(last1[0]);
    }
}

/// Where the sums of so many rows go; those of an odd last row go to `last0` and `last1`.
struct Rows<'a> {
    len: usize,
    z0: *mut i32,
    z1: *mut i32,
    last0: &'a mut [i32; 2],
    last1: &'a mut [i32; 2],
}

/// Runs `kernel`, which takes so many words a block, on all rows and columns.
///
/// # Safety
/// `z0`, and `z1` if the kernel takes two vectors, are `len` long. [`row_pairs_aligned`] needs `a` and `k` aligned to 4.
unsafe fn run(
    kernel: Kernel,
    a: &[i8],
    k: usize,
    columns: Columns<'_>,
    words_per_block: usize,
    rows: &mut Rows<'_>,
) {
    let Columns { start, blocks, words, tail } = columns;
    let end = start + 4 * blocks;
    let tail_fits = tail.is_none_or(|tail| tail.len() >= words_per_block && k >= 4 && end + 4 > k);
    if a.len() < rows.len * k || end > k || words.len() < words_per_block * blocks || !tail_fits {
        debug_assert!(false, "expected a row-major matrix of {} x {k}", rows.len);
        return;
    }
    let (mut column, mut pack) = (start, words.as_ptr());
    loop {
        let blocks = ROW_MAJOR_BLOCKS.min((end - column) / 4);
        let next = column + 4 * blocks;
        let pack_end = pack.wrapping_add(words_per_block * blocks);
        let (tail, done) = match tail {
            Some(tail) if next == end => (tail.as_ptr(), k),
            _ => (ptr::null(), next),
        };
        if done == column {
            return;
        }
        let mut frame = Frame {
            pack,
            pack_end,
            z0: rows.z0,
            z0_end: rows.z0.wrapping_add(rows.len & !1),
            z1: rows.z1,
            skip: 2 * k - (done - column),
            blocks,
            entry: 0,
            tail,
            overlap: (next + 4).wrapping_sub(k),
        };
        // SAFETY: the kernel reads, of each row, the columns column..next and with a tail k-4..k; for each block
        // `words_per_block` words, and the tail's. `a`, `words` and `tail` have them. It writes the pairs of rows of `z0`, and
        // with two vectors of `z1`. A last row is paired with itself. `column` is a multiple of 4, so each row is aligned if
        // `a` and `k` are.
        unsafe {
            let first = a.as_ptr().add(column);
            if rows.len > 1 {
                kernel(first, first.add(k), &frame);
            }
            if rows.len % 2 == 1 {
                let last = first.add((rows.len - 1) * k);
                frame.z0 = rows.last0.as_mut_ptr();
                frame.z0_end = frame.z0.add(2);
                frame.z1 = rows.last1.as_mut_ptr();
                kernel(last, last, &frame);
            }
        }
        if next == end {
            return;
        }
        (column, pack) = (next, pack_end);
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
    /// Those of the second vector; for one vector, what [`down_at_once`] says.
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
}

/// Saves registers, puts the frame of r2 on the stack, and the entry of a loop at 3 into it: the loop takes so many units
/// (r3, lost) times `$repeat` a turn, and the first turn enters so that the rest fits; without units, at 4.
macro_rules! enter {
    ($units:expr, $repeat:tt, $unit_bytes:literal) => {
        concat!(
            "push {{r4-r11, lr}}\n",
            "sub sp, #44\n",
            "mov r12, sp\n",
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

macro_rules! row_pairs {
    ($(#[$doc:meta])* $name:ident, $repeat:tt, $unit_bytes:literal, $load:ident, $begin:literal, $sums:literal) => {
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C" fn $name(a: *const i8, second: *const i8, frame: &Frame) {
            dsp_asm!(
                enter!(
                    "mov r4, #3\n udiv r3, r8, r4\n mls r8, r3, r4, r8\n str r8, [sp, #24]",
                    $repeat,
                    $unit_bytes
                ),
                "2:", // a pair of rows
                "ldr r2, [sp, #0]",
                "ldrd r5, r8, [sp, #24]",
                $begin,
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
                $sums,
                "strd r6, r7, [r2], #8",
                "str r2, [sp, #8]",
                "add r0, r4",
                "add r1, r4",
                "cmp r2, r3",
                "bne 2b",
                "add sp, #44",
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
    row_pairs,
    2,
    "124",
    load3,
    "mov r12, #0\n mov lr, #0",
    "ldrd r6, r7, [r2]\n add r6, r6, r12, asr #8\n add r7, r7, lr, asr #8"
);
row_pairs!(
    /// [`row_pairs`] for rows that are aligned to 4.
    ///
    /// # Safety
    /// As there.
    row_pairs_aligned,
    2,
    "108",
    load3_aligned,
    "mov r12, #0\n mov lr, #0",
    "ldrd r6, r7, [r2]\n add r6, r6, r12, asr #8\n add r7, r7, lr, asr #8"
);
row_pairs!(
    /// [`row_pairs_aligned`] for all columns: `z = sum >> 8`, where sums begin with the frame's `z1`.
    ///
    /// # Safety
    /// As there.
    row_pairs_at_once,
    8,
    "108",
    load3_aligned,
    "ldr r12, [sp, #16]\n mov lr, r12",
    "asr r6, r12, #8\n asr r7, lr, #8"
);

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
        "mov r10, #0",
        "mov r11, #0",
        "mov r12, #0",
        "mov lr, #0",
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
        "ldrd r6, r7, [r2]",
        "add r6, r6, r10, asr #8",
        "add r7, r7, r11, asr #8",
        "strd r6, r7, [r2], #8",
        "ldrd r6, r7, [r4]",
        "add r6, r6, r12, asr #8",
        "add r7, r7, lr, asr #8",
        "strd r6, r7, [r4], #8",
        "str r2, [sp, #8]",
        "str r4, [sp, #16]",
        "add r0, r5",
        "add r1, r5",
        "cmp r2, r3",
        "bne 2b",
        "add sp, #44",
        "pop {{r4-r11, pc}}",
    )
}
