//! The up-projection of a low-rank update. With few columns a row is one multiplication, and adding its sum at its scale costs
//! as much as forming it, so that is done for sixteen rows at a time.
//!
//! VQRDMLAH does rounding, shift and addition at once: with the multiplier `2^(31-n)`,
//! `(acc * 2^32 + 2 * sum * 2^(31-n) + 2^31) >> 32` is `acc + ((sum + 2^(n-1)) >> n)`.

/// `acc[o] += (sum_j B[o,j] * v[j] + round) >> shift` for as many first rows as the fast loops can take; returns how many.
pub(super) fn up_add(b: &[i8], v: &[i16], shift: u32, acc: &mut [i32]) -> usize {
    // The multiplier 2^(31-shift) must fit.
    if !(1..=14).contains(&shift) || b.len() < acc.len() * v.len() {
        return 0;
    }
    let multiplier = 1 << (31 - shift);
    let vectors;
    let (kernel, v): (Kernel, _) = match *v {
        [_] => return up_one(b, v, multiplier, acc),
        [_, _] => return up_two(b, v, multiplier, acc),
        [v0, v1, v2, v3] => {
            // A row in the lower half of a register, and one in the upper.
            vectors = [v0, v1, v2, v3, 0, 0, 0, 0, 0, 0, 0, 0, v0, v1, v2, v3];
            (up4, &vectors[..])
        }
        [_, _, _] | [_, _, _, _, _] | [_, _, _, _, _, _] | [_, _, _, _, _, _, _] => (up_small, v),
        [_, _, _, _, _, _, _, _] => (up8, v),
        _ if v.len() == 16 => (up16, v),
        _ => return up_any_rank(b, v, shift, acc),
    };
    if acc.len() >= 4 {
        // SAFETY: `acc` has at least four rows, and `b` one of the kernel's rank for each. `v` is as long as the kernel reads.
        unsafe { kernel(v.as_ptr(), b.as_ptr(), acc.len(), acc.as_mut_ptr(), multiplier, v.len()) };
    }
    acc.len() & !3
}

fn up_one(b: &[i8], v: &[i16], multiplier: i32, acc: &mut [i32]) -> usize {
    if let (false, &[v]) = (acc.is_empty(), v) {
        // SAFETY: there is a row, and `b` has a code for each.
        unsafe { up1(b.as_ptr(), i32::from(v), acc.as_mut_ptr(), acc.len(), multiplier) };
    }
    acc.len()
}

fn up_two(b: &[i8], v: &[i16], multiplier: i32, acc: &mut [i32]) -> usize {
    if let (false, &[v0, v1]) = (acc.is_empty(), v) {
        let both = i32::from(v1) << 16 | i32::from(v0) & 0xffff;
        // SAFETY: there is a row, and `b` has two codes for each.
        unsafe { up2(b.as_ptr(), both, acc.as_mut_ptr(), acc.len(), multiplier) };
    }
    acc.len()
}

fn up_any_rank(b: &[i8], v: &[i16], shift: u32, acc: &mut [i32]) -> usize {
    if shift < 2 || v.is_empty() || acc.is_empty() {
        return 0;
    }
    // SAFETY: there is a row and a column, and `b` has a row of `v.len()` codes for each of `acc`.
    unsafe { up_any(b.as_ptr(), v.as_ptr(), acc.as_mut_ptr(), acc.len(), v.len(), 1 << (32 - shift)) };
    acc.len()
}

/// Adds to so many rows, at least four, but not to those behind the last multiple of four: `b` has as many of the kernel's rank, and
/// `v` one number a column; at rank 4 there are two vectors of eight. `r` matters only where a kernel serves several ranks.
type Kernel =
    unsafe extern "C" fn(v: *const i16, b: *const i8, rows: usize, acc: *mut i32, multiplier: i32, r: usize);

/// The loops of a rank whose code for four rows, with sums in r0, r2, r4, r6 or in r8, r10, r12, lr, is `$low` and `$high`, and whose
/// vectors `$load` loads. Sums pass through the stack. r1: b; r3: acc; r7: v; r9: multiplier; r11: turns left.
macro_rules! up {
    ($(#[$doc:meta])* $name:ident, $load:literal, $low:expr, $high:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// See [`Kernel`].
        #[unsafe(naked)]
        unsafe extern "C" fn $name(
            v: *const i16,
            b: *const i8,
            rows: usize,
            acc: *mut i32,
            multiplier: i32,
            r: usize,
        ) {
            helium_asm!(
                "push {{r2, r4-r11, lr}}", // the rows at 0
                "ldr r9, [sp, #40]",
                "vpush {{d8-d15}}",
                "mov r7, r0",
                "lsrs r11, r2, #5",
                $load,
                "beq 4f",
                "2:",
                repeat!(
                    2,
                    $low,
                    $high,
                    "push {{r0, r2, r4, r6, r8, r10, r12, lr}}",
                    $low,
                    $high,
                    "push {{r0, r2, r4, r6, r8, r10, r12, lr}}",
                    "vpop {{d8-d15}}",
                    "vldmia r3, {{d0-d7}}",
                    "vqrdmlah.s32 q0, q6, r9",
                    "vqrdmlah.s32 q1, q7, r9",
                    "vqrdmlah.s32 q2, q4, r9",
                    "vqrdmlah.s32 q3, q5, r9",
                    "vstmia r3!, {{d0-d7}}",
                    $load
                ),
                "subs r11, #1",
                "bne 2b",
                "4:",
                "ldr r11, [sp, #64]", // the rows
                "ands r11, r11, #28",
                "beq 6f",
                "5:",
                $low,
                "push {{r0, r2, r4, r6}}",
                "vpop {{d8-d9}}",
                "vldrw.u32 q5, [r3]",
                "vqrdmlah.s32 q5, q4, r9",
                "vstrw.32 q5, [r3], #16",
                "subs r11, #4",
                "bne 5b",
                "6:",
                "vpop {{d8-d15}}",
                "pop {{r2, r4-r11, pc}}",
            )
        }
    };
}

macro_rules! rows4 {
    ($s0:literal, $s1:literal, $s2:literal, $s3:literal) => {
        concat!(
            "vldrb.s16 q0, [r1], #8\n",
            "vmladav.s16 ",
            $s0,
            ", q0, q6\n",
            "vldrb.s16 q1, [r1], #8\n",
            "vmladav.s16 ",
            $s1,
            ", q0, q7\n",
            "vmladav.s16 ",
            $s2,
            ", q1, q6\n",
            "vmladav.s16 ",
            $s3,
            ", q1, q7\n",
        )
    };
}

up!(
    /// Rank 4: two rows a register.
    up4,
    "vldrh.u16 q6, [r7]\n vldrh.u16 q7, [r7, #16]",
    rows4!("r0", "r2", "r4", "r6"),
    rows4!("r8", "r10", "r12", "lr")
);

macro_rules! rows8 {
    ($s0:literal, $s1:literal, $s2:literal, $s3:literal) => {
        concat!(
            "vldrb.s16 q0, [r1], #8\n",
            "vmladav.s16 ",
            $s0,
            ", q0, q6\n",
            "vldrb.s16 q1, [r1], #8\n",
            "vmladav.s16 ",
            $s1,
            ", q1, q6\n",
            "vldrb.s16 q2, [r1], #8\n",
            "vmladav.s16 ",
            $s2,
            ", q2, q6\n",
            "vldrb.s16 q3, [r1], #8\n",
            "vmladav.s16 ",
            $s3,
            ", q3, q6\n",
        )
    };
}

up!(
    /// Rank 8: a row a register.
    up8,
    "vldrh.u16 q6, [r7]",
    rows8!("r0", "r2", "r4", "r6"),
    rows8!("r8", "r10", "r12", "lr")
);

macro_rules! row16 {
    ($sum:literal) => {
        concat!(
            "vldrb.s16 q0, [r1], #8\n",
            "vmladav.s16 ",
            $sum,
            ", q0, q6\n",
            "vldrb.s16 q1, [r1], #8\n",
            "vmladava.s16 ",
            $sum,
            ", q1, q7\n",
        )
    };
}

up!(
    /// Rank 16: two registers a row.
    up16,
    "vldrh.u16 q6, [r7]\n vldrh.u16 q7, [r7, #16]",
    concat!(row16!("r0"), row16!("r2"), row16!("r4"), row16!("r6")),
    concat!(row16!("r8"), row16!("r10"), row16!("r12"), row16!("lr"))
);

/// A row of less than eight columns.
macro_rules! row_small {
    ($sum:literal) => {
        concat!("vpst\n", "vldrbt.s16 q0, [r1]\n", "add r1, r1, r8\n", "vmladav.s16 ", $sum, ", q0, q6\n",)
    };
}

/// Ranks 3, 5, 6 and 7: a row a register, the rest of which predication keeps zero.
///
/// # Safety
/// See [`Kernel`].
#[unsafe(naked)]
unsafe extern "C" fn up_small(
    v: *const i16,
    b: *const i8,
    rows: usize,
    acc: *mut i32,
    multiplier: i32,
    r: usize,
) {
    // r1: b; r3: acc; r8: rank; r9: multiplier.
    helium_asm!(
        "push {{r4-r9, lr}}",
        "ldrd r9, r8, [sp, #28]",
        "vpush {{d12-d13}}",
        "vctp.16 r8",
        "vpst",
        "vldrht.u16 q6, [r0]",
        "lsr lr, r2, #2",
        "dls lr, lr",
        "2:",
        row_small!("r0"),
        row_small!("r2"),
        row_small!("r4"),
        row_small!("r6"),
        "vmov q1[2], q1[0], r0, r4",
        "vmov q1[3], q1[1], r2, r6",
        "vldrw.u32 q2, [r3]",
        "vqrdmlah.s32 q2, q1, r9",
        "vstrw.32 q2, [r3], #16",
        "le lr, 2b",
        "vpop {{d12-d13}}",
        "pop {{r4-r9, pc}}",
    )
}

/// Rank 1: four rows a register.
///
/// # Safety
/// At least one row; `b` has a code and `acc` a sum for each.
#[unsafe(naked)]
unsafe extern "C" fn up1(b: *const i8, v: i32, acc: *mut i32, rows: usize, multiplier: i32) {
    helium_asm!(
        "push {{r7, lr}}",
        "ldr r12, [sp, #8]",
        "dlstp.32 lr, r3",
        "2:",
        "vldrb.s32 q0, [r0], #4",
        "vmul.i32 q0, q0, r1",
        "vldrw.u32 q1, [r2]",
        "vqrdmlah.s32 q1, q0, r12",
        "vstrw.32 q1, [r2], #16",
        "letp lr, 2b",
        "pop {{r7, pc}}",
    )
}

/// Rank 2: four rows a register, first and second codes in turn.
///
/// # Safety
/// At least one row; `b` has two codes and `acc` a sum for each.
#[unsafe(naked)]
unsafe extern "C" fn up2(b: *const i8, both: i32, acc: *mut i32, rows: usize, multiplier: i32) {
    helium_asm!(
        "push {{r7, lr}}",
        "ldr r12, [sp, #8]",
        "vdup.32 q3, r1",
        "dlstp.32 lr, r3",
        "2:",
        "vldrb.s16 q0, [r0], #8",
        "vmullb.s16 q1, q0, q3",
        "vmullt.s16 q2, q0, q3",
        "vadd.i32 q1, q1, q2",
        "vldrw.u32 q2, [r2]",
        "vqrdmlah.s32 q2, q1, r12",
        "vstrw.32 q2, [r2], #16",
        "letp lr, 2b",
        "pop {{r7, pc}}",
    )
}

/// Any rank. The multiplier is `2^(32-n)`: SMMLAR does not double.
///
/// # Safety
/// At least one row and one column; `b` has a row of `r` codes and `acc` a sum for each, `v` has `r` numbers.
#[unsafe(naked)]
unsafe extern "C" fn up_any(
    b: *const i8,
    v: *const i16,
    acc: *mut i32,
    rows: usize,
    r: usize,
    multiplier: i32,
) {
    // r0: sum; r4: row; r5: v; r6: sum so far; r7: multiplier; r8: rank; r9: v.
    helium_asm!(
        "push {{r4-r9, lr}}",
        "ldrd r8, r7, [sp, #28]",
        "mov r9, r1",
        "mov r1, r0",
        "2:",
        "mov r4, r1",
        "mov r5, r9",
        "mov r0, #0",
        "dlstp.16 lr, r8",
        "3:",
        "vldrb.s16 q0, [r4], #8",
        "vldrh.u16 q1, [r5], #16",
        "vmladava.s16 r0, q0, q1",
        "letp lr, 3b",
        "ldr r6, [r2]",
        "smmlar r6, r0, r7, r6",
        "str r6, [r2], #4",
        "add r1, r1, r8",
        "subs r3, #1",
        "bne 2b",
        "pop {{r4-r9, pc}}",
    )
}
