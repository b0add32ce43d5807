//! The loops of the audio front end on a core with an FPU. The terms and their order are those of `front_end/portable.rs`, but for products with 1.

use crate::front_end::factors::{HALVES, TWIDDLES};
use crate::front_end::{LN_POLYNOMIAL, Points, SQRT_HALF};

/// Sixteen samples at a time: the `memcpy` of Rust's library needs six times the instructions where one of the places is not that of a word.
pub(crate) fn copy_samples(to: &mut [i16], from: &[[u8; 2]]) {
    let ((to16, to), (from16, from)) = (to.as_chunks_mut::<16>(), from.as_chunks::<16>());
    let groups = to16.len().min(from16.len());
    if groups > 0 {
        // SAFETY: there is at least one group in both.
        unsafe { copy_groups(to16.as_mut_ptr(), from16.as_ptr(), groups) };
    }
    if to16.len() == from16.len() {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = i16::from_le_bytes(*from));
    }
}

/// See `front_end::portable::spectrum`.
pub(crate) fn spectrum(window: &[f32], samples: &[i16], x: &mut Points) {
    windowed(window, samples, x);
    let points = x.as_mut_ptr();
    // SAFETY: 64 times four points; then blocks of four times q points, 64 / q of them, and for each q as many factors.
    unsafe {
        first_stages(points, 64);
        let mut twiddles = TWIDDLES.as_ptr();
        for q in [4, 16, 64] {
            two_stages(points, q, 64 / q, twiddles);
            twiddles = twiddles.add(q);
        }
    }
    let [re, im] = x[0];
    // SAFETY: 128 points from the second on and before the end, which meet in the middle, and a factor for each.
    unsafe { magnitudes(points.add(1), points.add(x.len()), HALVES.as_ptr(), HALVES.len()) };
    x[0][0] = 2.0 * (re + im).abs();
}

/// Samples times window in pairs, zeros behind them; the pairs in bit-reversed order.
fn windowed(window: &[f32], samples: &[i16], x: &mut Points) {
    let len = window.len().min(samples.len()).min(2 * x.len());
    let fours = len / 8;
    if fours > 0 {
        // SAFETY: there are eight times as many samples and values of the window, and no more than there are numbers in `x`.
        unsafe { window_pairs(samples.as_ptr(), window.as_ptr(), x.as_mut_ptr(), fours) };
    }
    let (samples, window) = (samples.get(8 * fours..len), window.get(8 * fours..len));
    let (samples, window) = (samples.unwrap_or(&[]), window.unwrap_or(&[]));
    let mut terms = samples.iter().zip(window).map(|(sample, window)| f32::from(*sample) * window);
    for pair in 4 * fours as u32..x.len() as u32 {
        if let Some(x) = x.get_mut(pair.reverse_bits() as usize >> 24) {
            *x = terms.next().map_or([0.0; 2], |first| [first, terms.next().unwrap_or(0.0)]);
        }
    }
}

/// See `front_end::portable::sum_bands`.
pub(crate) fn sum_bands(bands: &[[f32; 2]], weights: &[f32], points: &Points, energies: &mut [f32]) {
    let count = bands.len().min(energies.len());
    if count > 0 {
        let (bands, energies) = (bands.as_ptr(), energies.as_mut_ptr());
        // SAFETY: there is at least one band, and an energy for each; nothing beyond the weights and points is read.
        unsafe { band_sums(bands, count, weights.as_ptr(), weights.len(), points.as_ptr(), energies) };
    }
}

/// See `front_end::portable::logarithms`.
pub(crate) fn logarithms(l: &mut [f32], floor: f32) {
    if !l.is_empty() {
        // SAFETY: there is at least one value.
        unsafe {
            logarithms_of(
                l.as_mut_ptr(),
                l.len(),
                &LN_POLYNOMIAL,
                SQRT_HALF,
                floor,
                0.5,
                1.0,
                core::f32::consts::LN_2,
            );
        }
    }
}

/// See `front_end::portable::cosines`. Four rows at a time share what they read.
pub(crate) fn cosines(dct: &[f32], sums: &[f32], differences: &[f32], y: &mut [f32]) {
    let half = sums.len().min(differences.len());
    let mut rows = dct;
    for y in y.chunks_mut(4) {
        let (four, rest) = rows.split_at_checked(4 * half).unwrap_or((rows, &[]));
        rows = rest;
        if half > 0 && half.is_multiple_of(8) && four.len() == 4 * half && y.len() == 4 {
            // SAFETY: four rows of `half` numbers, four of `y`, and a whole number of eights.
            unsafe { four_rows(four.as_ptr(), sums.as_ptr(), differences.as_ptr(), y.as_mut_ptr(), half) };
            continue;
        }
        for ((k, y), row) in y.iter_mut().enumerate().zip(four.chunks(half.max(1))) {
            let terms = if k % 2 == 0 { sums } else { differences };
            *y = row.iter().zip(terms).fold(0.0, |sum, (weight, term)| sum + weight * term);
        }
    }
}

/// See [`copy_samples`]. Single words may lie anywhere on these cores.
///
/// # Safety
/// At least one group of sixteen in both.
#[unsafe(naked)]
unsafe extern "C" fn copy_groups(to: *mut [i16; 16], from: *const [[u8; 2]; 16], groups: usize) {
    dsp_asm!(
        "push {{r4, r5}}",
        "2:",
        "ldr r3, [r1], #4\n ldr r4, [r1], #4\n ldr r5, [r1], #4\n ldr r12, [r1], #4",
        "str r3, [r0], #4\n str r4, [r0], #4\n str r5, [r0], #4\n str r12, [r0], #4",
        "ldr r3, [r1], #4\n ldr r4, [r1], #4\n ldr r5, [r1], #4\n ldr r12, [r1], #4",
        "str r3, [r0], #4\n str r4, [r0], #4\n str r5, [r0], #4\n str r12, [r0], #4",
        "subs r2, #1",
        "bne 2b",
        "pop {{r4, r5}}",
        "bx lr",
    )
}

/// See [`windowed`]: eight samples at a time, whose pairs go to bit-reversed places: 0, 128, 64 and 192 from the first.
///
/// # Safety
/// At least eight samples, `fours` times eight of them and of the window, and room for as many at `x`, which is 256 points.
#[unsafe(naked)]
unsafe extern "C" fn window_pairs(samples: *const i16, window: *const f32, x: *mut [f32; 2], fours: usize) {
    dsp_asm!(
        ".fpu fpv4-sp-d16",
        "push {{r4-r8, lr}}",
        "mov r8, #0",
        "2:",
        "ldrsh r4, [r0], #2\n ldrsh r5, [r0], #2\n ldrsh r6, [r0], #2\n ldrsh r7, [r0], #2",
        "vmov s0, s1, r4, r5\n vmov s2, s3, r6, r7",
        "ldrsh r4, [r0], #2\n ldrsh r5, [r0], #2\n ldrsh r6, [r0], #2\n ldrsh r7, [r0], #2",
        "vmov s4, s5, r4, r5\n vmov s6, s7, r6, r7",
        "vldmia r1!, {{s8-s15}}",
        "vcvt.f32.s32 s0, s0\n vcvt.f32.s32 s1, s1\n vcvt.f32.s32 s2, s2\n vcvt.f32.s32 s3, s3",
        "vcvt.f32.s32 s4, s4\n vcvt.f32.s32 s5, s5\n vcvt.f32.s32 s6, s6\n vcvt.f32.s32 s7, s7",
        "vmul.f32 s0, s0, s8\n vmul.f32 s1, s1, s9\n vmul.f32 s2, s2, s10\n vmul.f32 s3, s3, s11",
        "vmul.f32 s4, s4, s12\n vmul.f32 s5, s5, s13\n vmul.f32 s6, s6, s14\n vmul.f32 s7, s7, s15",
        "rbit r12, r8",
        "add r8, #1",
        "add r12, r2, r12, lsr #23",
        "add lr, r12, #1024",
        "vstr d0, [r12]",
        "vstr d1, [lr]",
        "vstr d2, [r12, #512]",
        "vstr d3, [lr, #512]",
        "subs r3, #1",
        "bne 2b",
        "pop {{r4-r8, pc}}",
    )
}

/// Two stages on four points in s0-s7 whose factors are 1: c = x2 + x3 and d = x2 - x3 meet a = x0 + x1 and b = x0 - x1, d turned by a quarter.
macro_rules! plain {
    () => {
        concat!(
            "vadd.f32 s8, s0, s2\n vadd.f32 s9, s1, s3\n vsub.f32 s10, s0, s2\n vsub.f32 s11, s1, s3\n",
            "vadd.f32 s12, s4, s6\n vadd.f32 s13, s5, s7\n vsub.f32 s14, s4, s6\n vsub.f32 s15, s5, s7\n",
            "vadd.f32 s0, s8, s12\n vadd.f32 s1, s9, s13\n vsub.f32 s4, s8, s12\n vsub.f32 s5, s9, s13\n",
            "vadd.f32 s2, s10, s15\n vsub.f32 s3, s11, s14\n vsub.f32 s6, s10, s15\n vadd.f32 s7, s11, s14\n",
        )
    };
}

/// The first two stages of the transform, all of whose factors are 1.
///
/// # Safety
/// Four times `fours` points, and at least four.
#[unsafe(naked)]
unsafe extern "C" fn first_stages(x: *mut [f32; 2], fours: usize) {
    dsp_asm!(
        ".fpu fpv4-sp-d16",
        "2:",
        "vldmia r0, {{s0-s7}}",
        plain!(),
        "vstmia r0!, {{s0-s7}}",
        "subs r1, #1",
        "bne 2b",
        "bx lr",
    )
}

/// The product of the factor in `$wr`, `$wi` and the point in `$cr`, `$ci`, in the point's place; four registers are overwritten.
macro_rules! times {
    ($wr:literal, $wi:literal, $cr:literal, $ci:literal, [$t0:literal, $t1:literal, $t2:literal, $t3:literal]) => {
        concat!(
            "vmul.f32 ",
            $t0,
            ", ",
            $wr,
            ", ",
            $cr,
            "\n vmul.f32 ",
            $t1,
            ", ",
            $wi,
            ", ",
            $ci,
            "\n",
            "vmul.f32 ",
            $t2,
            ", ",
            $wr,
            ", ",
            $ci,
            "\n vmul.f32 ",
            $t3,
            ", ",
            $wi,
            ", ",
            $cr,
            "\n",
            "vsub.f32 ",
            $cr,
            ", ",
            $t0,
            ", ",
            $t1,
            "\n vadd.f32 ",
            $ci,
            ", ",
            $t2,
            ", ",
            $t3,
            "\n",
        )
    };
}

/// Two stages of the transform on `blocks` blocks of four times `q` points.
///
/// # Safety
/// So many points, and `q` factors; at least one block, and `q` at least 2.
#[unsafe(naked)]
unsafe extern "C" fn two_stages(x: *mut [f32; 2], q: usize, blocks: usize, twiddles: *const [f32; 4]) {
    dsp_asm!(
        ".fpu fpv4-sp-d16",
        "push {{r4-r7, lr}}",
        "lsl lr, r1, #3",
        "2:",
        "add r4, r0, lr\n add r5, r4, lr\n add r6, r5, lr",
        "add r12, r3, #16",
        "sub r7, r1, #1",
        "vldmia r0, {{s0-s1}}\n vldmia r4, {{s2-s3}}\n vldmia r5, {{s4-s5}}\n vldmia r6, {{s6-s7}}",
        plain!(),
        "vstmia r0!, {{s0-s1}}\n vstmia r4!, {{s2-s3}}\n vstmia r5!, {{s4-s5}}\n vstmia r6!, {{s6-s7}}",
        "3:",
        "vldmia r0, {{s0-s1}}\n vldmia r4, {{s2-s3}}\n vldmia r5, {{s4-s5}}\n vldmia r6, {{s6-s7}}",
        "vldmia r12!, {{s8-s11}}",
        times!("s8", "s9", "s2", "s3", ["s12", "s13", "s14", "s15"]),
        times!("s8", "s9", "s6", "s7", ["s12", "s13", "s14", "s15"]),
        // a and b, then c and d.
        "vadd.f32 s12, s0, s2\n vadd.f32 s13, s1, s3\n vsub.f32 s14, s0, s2\n vsub.f32 s15, s1, s3",
        "vadd.f32 s2, s4, s6\n vadd.f32 s3, s5, s7\n vsub.f32 s6, s4, s6\n vsub.f32 s7, s5, s7",
        times!("s10", "s11", "s2", "s3", ["s0", "s1", "s4", "s5"]),
        times!("s10", "s11", "s6", "s7", ["s0", "s1", "s4", "s5"]),
        "vadd.f32 s0, s12, s2\n vadd.f32 s1, s13, s3\n vsub.f32 s4, s12, s2\n vsub.f32 s5, s13, s3",
        // The factor of d is that of c turned by a quarter.
        "vadd.f32 s2, s14, s7\n vsub.f32 s3, s15, s6\n vsub.f32 s12, s14, s7\n vadd.f32 s13, s15, s6",
        "vstmia r0!, {{s0-s1}}\n vstmia r4!, {{s2-s3}}\n vstmia r5!, {{s4-s5}}\n vstmia r6!, {{s12-s13}}",
        "subs r7, #1",
        "bne 3b",
        "mov r0, r6",
        "subs r2, #1",
        "bne 2b",
        "pop {{r4-r7, pc}}",
    )
}

/// See `front_end::portable::magnitudes`. The middle point is its own partner.
///
/// # Safety
/// `count` points from `low` on, `count` before `high`, and as many factors; at least one.
#[unsafe(naked)]
unsafe extern "C" fn magnitudes(
    low: *mut [f32; 2],
    high: *mut [f32; 2],
    halves: *const [f32; 2],
    count: usize,
) {
    dsp_asm!(
        ".fpu fpv4-sp-d16",
        "2:",
        "vldmia r0, {{s0-s1}}",
        "vldmdb r1!, {{s2-s3}}",
        "vldmia r2!, {{s4-s5}}",
        // The sum in s6 and s7, the difference in s8 and s9.
        "vadd.f32 s6, s0, s2\n vadd.f32 s7, s1, s3\n vsub.f32 s8, s0, s2\n vsub.f32 s9, s1, s3",
        "vmul.f32 s10, s4, s7\n vmul.f32 s11, s5, s8\n vmul.f32 s12, s5, s7\n vmul.f32 s13, s4, s8",
        "vadd.f32 s10, s10, s11\n vsub.f32 s11, s12, s13",
        "vadd.f32 s12, s6, s10\n vadd.f32 s13, s9, s11\n vsub.f32 s14, s6, s10\n vsub.f32 s15, s11, s9",
        "vmul.f32 s12, s12, s12\n vmul.f32 s13, s13, s13\n vmul.f32 s14, s14, s14\n vmul.f32 s15, s15, s15",
        "vadd.f32 s12, s12, s13\n vadd.f32 s14, s14, s15",
        "vsqrt.f32 s12, s12\n vsqrt.f32 s14, s14",
        "vstr s14, [r1]",
        // The imaginary part may be anything.
        "vstmia r0!, {{s12-s13}}",
        "subs r3, #1",
        "bne 2b",
        "bx lr",
    )
}

/// See [`sum_bands`]. A band beyond the points or the weights, and those behind it, are 0.
///
/// # Safety
/// `n_bands` bands and energies, at least one; `n_weights` weights; 256 points.
#[unsafe(naked)]
unsafe extern "C" fn band_sums(
    bands: *const [f32; 2],
    n_bands: usize,
    weights: *const f32,
    n_weights: usize,
    points: *const [f32; 2],
    energies: *mut f32,
) {
    dsp_asm!(
        ".fpu fpv4-sp-d16",
        "push {{r4-r8, lr}}",
        "ldrd r4, r5, [sp, #24]",
        "mov r12, #0",
        "2:",
        "vldmia r0!, {{s0-s1}}",
        "vcvt.u32.f32 s0, s0\n vcvt.u32.f32 s1, s1",
        "vmov r6, r7, s0, s1",
        "vmov s2, r12",
        "cmp r6, #256",
        "bhi 6f",
        "rsb r8, r6, #256",
        "cmp r7, r8",
        "bhi 6f",
        "subs r3, r3, r7",
        "blo 6f",
        "add r6, r4, r6, lsl #3",
        "subs r7, #2",
        "blo 4f",
        "3:",
        "vldmia r6!, {{s4-s7}}",
        "vldmia r2!, {{s8-s9}}",
        "vmul.f32 s4, s4, s8\n vmul.f32 s6, s6, s9",
        "vadd.f32 s2, s2, s4\n vadd.f32 s2, s2, s6",
        "subs r7, #2",
        "bhs 3b",
        "4:",
        // -1 if one is left, -2 if none is.
        "adds r7, #1",
        "bne 5f",
        "vldr s4, [r6]",
        "vldmia r2!, {{s8}}",
        "vmul.f32 s4, s4, s8",
        "vadd.f32 s2, s2, s4",
        "5:",
        "vstmia r5!, {{s2}}",
        "subs r1, #1",
        "bne 2b",
        "pop {{r4-r8, pc}}",
        "6:",
        "mov r3, #0",
        "b 5b",
    )
}

/// See [`logarithms`] and `front_end::ln`.
///
/// # Safety
/// At least one value.
#[unsafe(naked)]
unsafe extern "C" fn logarithms_of(
    l: *mut f32,
    count: usize,
    polynomial: *const [f32; 9],
    sqrt_half: u32,
    floor: f32,
    half: f32,
    one: f32,
    ln_2: f32,
) {
    dsp_asm!(
        ".fpu fpv4-sp-d16",
        "vpush {{s16-s24}}",
        "vldmia r2, {{s16-s24}}",
        "2:",
        "vldr s4, [r0]",
        "vmul.f32 s4, s4, s1",
        "vcmp.f32 s4, s0",
        "vmrs APSR_nzcv, fpscr",
        // A NaN, too.
        "it le",
        "vmovle.f32 s4, s0",
        "vmov r2, s4",
        "sub r2, r3",
        "asr r12, r2, #23",
        "bfc r2, #23, #9",
        "add r2, r3",
        "vmov s4, s5, r2, r12",
        "vcvt.f32.s32 s5, s5",
        "vsub.f32 s4, s4, s2",
        // f in s4, the exponent in s5, P in s6.
        "vmul.f32 s6, s16, s4\n vadd.f32 s6, s6, s17\n vmul.f32 s6, s6, s4\n vadd.f32 s6, s6, s18",
        "vmul.f32 s6, s6, s4\n vadd.f32 s6, s6, s19\n vmul.f32 s6, s6, s4\n vadd.f32 s6, s6, s20",
        "vmul.f32 s6, s6, s4\n vadd.f32 s6, s6, s21\n vmul.f32 s6, s6, s4\n vadd.f32 s6, s6, s22",
        "vmul.f32 s6, s6, s4\n vadd.f32 s6, s6, s23\n vmul.f32 s6, s6, s4\n vadd.f32 s6, s6, s24",
        "vmul.f32 s7, s4, s4",
        "vmul.f32 s8, s4, s7\n vmul.f32 s8, s8, s6",
        "vmul.f32 s7, s7, s1\n vsub.f32 s8, s8, s7",
        "vadd.f32 s4, s4, s8",
        "vmul.f32 s5, s5, s3\n vadd.f32 s4, s4, s5",
        "vstmia r0!, {{s4}}",
        "subs r1, #1",
        "bne 2b",
        "vpop {{s16-s24}}",
        "bx lr",
    )
}

/// Eight products of a row at `$row` with the registers from `$m0` on, added to `$sum` in order.
macro_rules! row {
    ($row:literal, $sum:literal, [$($m:literal),+]) => {
        concat!(
            "vldmia ", $row, "!, {{s20-s27}}\n",
            row!(@mul [20, 21, 22, 23, 24, 25, 26, 27], [$($m),+]),
            row!(@add $sum, [20, 21, 22, 23, 24, 25, 26, 27]),
        )
    };
    (@mul [$($n:literal),+], [$($m:literal),+]) => {
        concat!($("vmul.f32 s", $n, ", s", $n, ", s", $m, "\n",)+)
    };
    (@add $sum:literal, [$($n:literal),+]) => {
        concat!($("vadd.f32 ", $sum, ", ", $sum, ", s", $n, "\n",)+)
    };
}

/// See [`cosines`].
///
/// # Safety
/// Four rows of `half` numbers, as many sums and differences, four of `y`; `half` is a multiple of 8, and not 0.
#[unsafe(naked)]
unsafe extern "C" fn four_rows(
    rows: *const f32,
    sums: *const f32,
    differences: *const f32,
    y: *mut f32,
    half: usize,
) {
    dsp_asm!(
        ".fpu fpv4-sp-d16",
        "ldr r12, [sp]",
        "push {{r4-r6, lr}}",
        "vpush {{s16-s27}}",
        "add r4, r0, r12, lsl #2\n add r5, r4, r12, lsl #2\n add r6, r5, r12, lsl #2",
        "mov lr, #0",
        "vmov s0, s1, lr, lr\n vmov s2, s3, lr, lr",
        "2:",
        "vldmia r1!, {{s4-s11}}",
        "vldmia r2!, {{s12-s19}}",
        row!("r0", "s0", [4, 5, 6, 7, 8, 9, 10, 11]),
        row!("r4", "s1", [12, 13, 14, 15, 16, 17, 18, 19]),
        row!("r5", "s2", [4, 5, 6, 7, 8, 9, 10, 11]),
        row!("r6", "s3", [12, 13, 14, 15, 16, 17, 18, 19]),
        "subs r12, #8",
        "bne 2b",
        "vstmia r3, {{s0-s3}}",
        "vpop {{s16-s27}}",
        "pop {{r4-r6, pc}}",
    )
}
