//! Matrices in the layout `Mve4x16` times one vector, or two.

use core::ptr;

/// Rows of a group.
const GROUP: usize = 4;

/// `acc = W x` for a `Mve4x16` matrix of `acc.len()` rows.
pub(super) fn gemv(w: &[i8], x: &[i8], acc: &mut [i32]) {
    let blocks = x.len().div_ceil(16);
    let group_bytes = blocks * 16 * GROUP;
    if x.is_empty() || w.len() < acc.len().div_ceil(GROUP) * group_bytes {
        debug_assert!(x.is_empty(), "gemv: the matrix is too short");
        acc.fill(0);
        return;
    }
    let (pairs, rest) = acc.as_chunks_mut::<{ 2 * GROUP }>();
    let turns = Turns::new(x.len());
    let frame = |w: *const i8, skip: usize, acc: &mut [[i32; 2 * GROUP]]| {
        let acc = acc.as_mut_ptr_range();
        let (acc, acc_end) = (acc.start.cast(), acc.end.cast());
        GemvFrame {
            x: x.as_ptr(),
            turns: turns.turns,
            first: 0,
            entry: 0,
            tail: turns.tail,
            skip,
            w,
            acc,
            acc_end,
            units: turns.units,
        }
    };
    let rest_w = w.as_ptr().wrapping_add(pairs.len() * 2 * group_bytes);
    if !pairs.is_empty() {
        // SAFETY: there is a pair of groups; `w` has `group_bytes` for each group and `x` the columns that `turns` counts.
        unsafe { gemv_groups(&mut frame(w.as_ptr(), group_bytes, pairs)) };
    }
    // One group or two are left. A single one is taken twice.
    let groups = rest.len().div_ceil(GROUP);
    if groups > 0 {
        let mut last = [[0; 2 * GROUP]];
        // SAFETY: as above; with one group left, its second does not move on.
        unsafe { gemv_groups(&mut frame(rest_w, (groups - 1) * group_bytes, &mut last)) };
        rest.iter_mut().zip(last.as_flattened()).for_each(|(to, from)| *to = *from);
    }
}

/// `acc0 = W x0`, `acc1 = W x1` for a `Mve4x16` matrix; the vectors are of one length, the results too.
pub(super) fn gemm2(w: &[i8], [x0, x1]: [&[i8]; 2], [acc0, acc1]: [&mut [i32]; 2]) {
    let k = x0.len();
    let group_bytes = k.div_ceil(16) * 16 * GROUP;
    let fits =
        x1.len() == k && acc1.len() == acc0.len() && w.len() >= acc0.len().div_ceil(GROUP) * group_bytes;
    if k == 0 || !fits {
        debug_assert!(fits, "gemm2: the matrix is too short");
        acc0.fill(0);
        acc1.fill(0);
        return;
    }
    let turns = Turns::new(k);
    let frame = |acc0: &mut [[i32; GROUP]], acc1: &mut [[i32; GROUP]]| {
        let range = acc0.as_mut_ptr_range();
        GemmFrame {
            x0: x0.as_ptr(),
            x1: x1.as_ptr(),
            turns: turns.turns,
            first: 0,
            entry: 0,
            tail: turns.tail,
            acc0: range.start.cast(),
            acc1: acc1.as_mut_ptr().cast(),
            acc0_end: range.end.cast(),
            units: turns.units,
        }
    };
    let ((groups0, rest0), (groups1, rest1)) = (acc0.as_chunks_mut(), acc1.as_chunks_mut());
    let rest_w = w.as_ptr().wrapping_add(groups0.len() * group_bytes);
    if !groups0.is_empty() {
        // SAFETY: there is a group; `w` has `group_bytes` for each, and both vectors the columns that `turns` counts.
        unsafe { gemm2_groups(w.as_ptr(), &mut frame(groups0, groups1)) };
    }
    if !rest0.is_empty() {
        let (mut last0, mut last1) = ([[0; GROUP]], [[0; GROUP]]);
        // SAFETY: as above, for the group of which some rows are padding.
        unsafe { gemm2_groups(rest_w, &mut frame(&mut last0, &mut last1)) };
        rest0.iter_mut().zip(last0.as_flattened()).for_each(|(to, from)| *to = *from);
        rest1.iter_mut().zip(last1.as_flattened()).for_each(|(to, from)| *to = *from);
    }
}

/// How the columns of a vector are taken: a first block that begins the sums, blocks in turns of four, a predicated tail.
struct Turns {
    /// Complete blocks of sixteen columns.
    units: usize,
    /// Turns of the loop, the first of which may be partial.
    turns: usize,
    /// Columns behind the complete blocks.
    tail: usize,
}

impl Turns {
    fn new(k: usize) -> Self {
        let units = k / 16;
        Self { units, turns: units.saturating_sub(1).div_ceil(4), tail: k % 16 }
    }
}

/// What the loops of [`gemv_groups`] keep in memory; the offsets are in its code.
#[repr(C)]
struct GemvFrame {
    x: *const i8,
    turns: usize,
    /// Where a group begins, and where its loop is entered; the function fills them in.
    first: usize,
    entry: usize,
    tail: usize,
    /// From a group to the next.
    skip: usize,
    w: *const i8,
    acc: *mut i32,
    acc_end: *mut i32,
    units: usize,
}

/// As [`GemvFrame`], for [`gemm2_groups`].
#[repr(C)]
struct GemmFrame {
    x0: *const i8,
    x1: *const i8,
    turns: usize,
    first: usize,
    entry: usize,
    tail: usize,
    acc0: *mut i32,
    acc1: *mut i32,
    acc0_end: *mut i32,
    units: usize,
}

const _: () = assert!(size_of::<ptr::NonNull<i8>>() == 4, "the frames are read by 32-bit code");

/// Saves registers, keeps the frame in r11 and writes its jumps: `first` at `$first` is 5 if there is a complete block,
/// otherwise 6; `entry` is where the loop at 3 has as many units (of `$unit_bytes`) ahead as the first of its turns needs,
/// or 4 if there are none.
macro_rules! enter {
    ($frame:literal, $first:literal, $unit_bytes:literal) => {
        concat!(
            "push {{r4-r11, lr}}\n",
            "sub sp, #4\n",
            "mov r11, ",
            $frame,
            "\n",
            "ldr r4, [r11, #36]\n", // complete blocks
            "adr.w r5, 6f\n",
            "adr.w r6, 4f\n",
            "cbz r4, 1f\n",
            "adr.w r5, 5f\n",
            "subs r4, #1\n",
            "beq 1f\n",
            "adr.w r6, 3f\n",
            "rsb r4, r4, #0\n",
            "and r4, r4, #3\n", // units that the first turn leaves out
            "mov r7, #",
            $unit_bytes,
            "\n",
            "mla r6, r4, r7, r6\n",
            "1:\n",
            "orr r5, r5, #1\n",
            "orr r6, r6, #1\n",
            "strd r5, r6, [r11, #",
            $first,
            "]\n",
        )
    };
}

/// Eight rows of sixteen columns times q0. `$mla` is VMLADAVA, or VMLADAV where the sums begin.
macro_rules! eight_rows {
    ($x:expr, $mla:literal) => {
        concat!(
            $x,
            "\n",
            "vldrb.u8 q1, [r1], #16\n",
            $mla,
            " r0, q0, q1\n",
            "vldrb.u8 q2, [r1], #16\n",
            $mla,
            " r2, q0, q2\n",
            "vldrb.u8 q3, [r1], #16\n",
            $mla,
            " r4, q0, q3\n",
            "vldrb.u8 q1, [r1], #16\n",
            $mla,
            " r6, q0, q1\n",
            "vldrb.u8 q2, [r3], #16\n",
            $mla,
            " r8, q0, q2\n",
            "vldrb.u8 q3, [r3], #16\n",
            $mla,
            " r10, q0, q3\n",
            "vldrb.u8 q1, [r3], #16\n",
            $mla,
            " r12, q0, q1\n",
            "vldrb.u8 q2, [r3], #16\n",
            $mla,
            " lr, q0, q2\n",
        )
    };
}

/// For each pair of groups of four rows: `acc = W x`.
///
/// # Safety
/// At least one pair of groups; `w` good for both groups of each pair, the second `skip` bytes behind the first, `x` for
/// `16 * units + tail` codes, at least one.
#[unsafe(naked)]
unsafe extern "C" fn gemv_groups(frame: &mut GemvFrame) {
    helium_asm!(
        enter!("r0", "8", "68"),
        "ldr r3, [r11, #24]", // w
        "2:",                 // a pair of groups
        "mov r1, r3",
        "ldrd r5, r7, [r11, #0]",
        "ldr r9, [r11, #20]",
        "add r3, r1, r9",
        "ldr pc, [r11, #8]",
        "6:", // less than a block
        "mov r0, #0",
        "mov r2, #0",
        "mov r4, #0",
        "mov r6, #0",
        "mov r8, #0",
        "mov r10, #0",
        "mov r12, #0",
        "mov lr, #0",
        "b 4f",
        "5:", // the first block
        eight_rows!("vldrb.u8 q0, [r5], #16", "vmladav.s8"),
        "ldr pc, [r11, #12]",
        ".p2align 2",
        "3:",
        repeat!(4, eight_rows!("vldrb.u8 q0, [r5], #16", "vmladava.s8")),
        "subs r7, #1",
        "bne 3b",
        ".p2align 2",
        "4:",
        "ldr r7, [r11, #16]",
        "cbz r7, 7f",
        "vctp.8 r7",
        "vpst",
        eight_rows!("vldrbt.u8 q0, [r5]", "vmladava.s8"),
        "7:",
        "ldrd r9, r5, [r11, #28]",
        "stm r9!, {{r0, r2, r4, r6, r8, r10, r12, lr}}",
        "str r9, [r11, #28]",
        "cmp r9, r5",
        "bne 2b",
        "add sp, #4",
        "pop {{r4-r11, pc}}",
    )
}

/// Four rows of sixteen columns times q0 and q1.
macro_rules! four_rows_twice {
    ($x:expr, $mla:literal) => {
        concat!(
            $x,
            "\n",
            "vldrb.u8 q2, [r1], #16\n",
            $mla,
            " r0, q0, q2\n",
            $mla,
            " r8, q1, q2\n",
            "vldrb.u8 q3, [r1], #16\n",
            $mla,
            " r2, q0, q3\n",
            $mla,
            " r10, q1, q3\n",
            "vldrb.u8 q2, [r1], #16\n",
            $mla,
            " r4, q0, q2\n",
            $mla,
            " r12, q1, q2\n",
            "vldrb.u8 q3, [r1], #16\n",
            $mla,
            " r6, q0, q3\n",
            $mla,
            " lr, q1, q3\n",
        )
    };
}

/// For each group of four rows: `acc0 = W x0, acc1 = W x1`.
///
/// # Safety
/// At least one group; `w` good for each, `x0` and `x1` for `16 * units + tail` codes, at least one.
#[unsafe(naked)]
unsafe extern "C" fn gemm2_groups(w: *const i8, frame: &mut GemmFrame) {
    helium_asm!(
        enter!("r1", "12", "56"),
        "mov r1, r0",
        "2:", // a group
        "ldrd r3, r5, [r11, #0]",
        "ldr r7, [r11, #8]",
        "ldr pc, [r11, #12]",
        "6:", // less than a block
        "mov r0, #0",
        "mov r2, #0",
        "mov r4, #0",
        "mov r6, #0",
        "mov r8, #0",
        "mov r10, #0",
        "mov r12, #0",
        "mov lr, #0",
        "b 4f",
        "5:", // the first block
        four_rows_twice!("vldrb.u8 q0, [r3], #16\n vldrb.u8 q1, [r5], #16", "vmladav.s8"),
        "ldr pc, [r11, #16]",
        ".p2align 2",
        "3:",
        repeat!(4, four_rows_twice!("vldrb.u8 q0, [r3], #16\n vldrb.u8 q1, [r5], #16", "vmladava.s8")),
        "subs r7, #1",
        "bne 3b",
        ".p2align 2",
        "4:",
        "ldr r7, [r11, #20]",
        "cbz r7, 7f",
        "vctp.8 r7",
        "vpstt",
        four_rows_twice!("vldrbt.u8 q0, [r3]\n vldrbt.u8 q1, [r5]", "vmladava.s8"),
        "7:",
        "ldrd r3, r5, [r11, #24]",
        "ldr r9, [r11, #32]",
        "stm r3!, {{r0, r2, r4, r6}}",
        "stm r5!, {{r8, r10, r12, lr}}",
        "strd r3, r5, [r11, #24]",
        "cmp r3, r9",
        "bne 2b",
        "add sp, #4",
        "pop {{r4-r11, pc}}",
    )
}
