//! Row-major matrices, of any alignment and width, times a vector: the down-projections, and bases that were not laid
//! out for Helium. The loops predicate their tails themselves.

/// `acc[o] = sum_i w[o,i] * x[i]`; `w` is `[acc.len(), x.len()]`.
pub(super) fn row_major(w: &[i8], x: &[i8], acc: &mut [i32]) {
    let k = x.len();
    let Some(w) = w.get(..acc.len() * k).filter(|_| k > 0) else {
        debug_assert!(k == 0, "row_major: the matrix is too short");
        acc.fill(0);
        return;
    };
    let (groups, rest) = acc.as_chunks_mut::<4>();
    if !groups.is_empty() {
        // SAFETY: there is a group, and `w` has four rows of `k` codes for each; `x` has `k`, at least one.
        unsafe { four_rows(w.as_ptr(), x.as_ptr(), k, groups.len(), groups.as_mut_ptr().cast()) };
    }
    if rest.is_empty() {
        return;
    }
    let rows = w.chunks_exact(k).skip(groups.len() * 4);
    for (sum, row) in rest.iter_mut().zip(rows) {
        // SAFETY: the row has `k` codes as well.
        *sum = unsafe { one_row(row.as_ptr(), x.as_ptr(), k) };
    }
}

/// The first row begins at `$row`; sums begin at zero.
macro_rules! four_starts {
    ($row:literal) => {
        concat!(
            "mov r1, ",
            $row,
            "\n",
            "add r3, r1, r8\n",
            "add r5, r3, r8\n",
            "add r7, r5, r8\n",
            "mov r9, r10\n",
            "ldm sp, {{r0, r2, r4, r6}}\n",
        )
    };
}

/// Sixteen columns of four rows.
macro_rules! four_rows {
    () => {
        "
        vldrb.u8 q0, [r9], #16
        vldrb.u8 q1, [r1], #16
        vmladava.s8 r0, q0, q1
        vldrb.u8 q2, [r3], #16
        vmladava.s8 r2, q0, q2
        vldrb.u8 q3, [r5], #16
        vmladava.s8 r4, q0, q3
        vldrb.u8 q1, [r7], #16
        vmladava.s8 r6, q0, q1
        "
    };
}

/// The sums of `groups` groups of four rows.
///
/// # Safety
/// `groups` and `k` are at least 1; `w` is good for four rows of `k` bytes a group, `x` for `k` bytes, `acc` for four words
/// a group.
#[unsafe(naked)]
unsafe extern "C" fn four_rows(w: *const i8, x: *const i8, k: usize, groups: usize, acc: *mut i32) {
    // r1, r3, r5, r7: the rows; r9: x; r0, r2, r4, r6: sums; r8: k; r10: x; r11: acc; r12: groups left.
    helium_asm!(
        "push {{r4-r11, lr}}",
        "ldr r11, [sp, #36]",
        "vmov.i32 q0, #0",
        "vpush {{d0-d1}}", // what sums begin with
        "mov r12, r3",
        "mov r10, r1",
        "mov r8, r2",
        "mov r7, r0",
        "tst r2, #63",
        "bne 4f",
        "2:", // 64 columns a turn, which leaves none: a row's end is the next one's start
        four_starts!("r7"),
        "lsr lr, r8, #6",
        "dls lr, lr",
        "3:",
        repeat!(4, four_rows!()),
        "le lr, 3b",
        "stm r11!, {{r0, r2, r4, r6}}",
        "subs r12, #1",
        "bne 2b",
        "add sp, #16",
        "pop {{r4-r11, pc}}",
        "4:",
        four_starts!("r7"),
        "dlstp.8 lr, r8",
        "5:",
        four_rows!(),
        "letp lr, 5b",
        "stm r11!, {{r0, r2, r4, r6}}",
        // Pointers have moved by whole vectors; the next row lies `k` behind the start of the last.
        "sub r9, r9, r10",
        "sub r7, r7, r9",
        "add r7, r7, r8",
        "subs r12, #1",
        "bne 4b",
        "add sp, #16",
        "pop {{r4-r11, pc}}",
    )
}

/// The sum of one row.
///
/// # Safety
/// `k` is at least 1; `w` and `x` are good for `k` bytes.
#[unsafe(naked)]
unsafe extern "C" fn one_row(w: *const i8, x: *const i8, k: usize) -> i32 {
    helium_asm!(
        "push {{r7, lr}}",
        "mov r3, r0",
        "mov r0, #0",
        "dlstp.8 lr, r2",
        "2:",
        "vldrb.u8 q0, [r1], #16",
        "vldrb.u8 q1, [r3], #16",
        "vmladava.s8 r0, q0, q1",
        "letp lr, 2b",
        "pop {{r7, pc}}",
    )
}
