//! The portable kernels, in safe Rust: what the host and cores without the DSP extension run, and what the others must
//! equal bit for bit. Lengths were checked by the functions of the parent module, which say what each one computes.
//!
//! Sums wrap. Within the documented limits they never do; beyond them a wrong sum is better than a panic on a device.

use super::layout::decode_word;

pub(super) fn up_add(b: &[i8], v: &[i16], shift: u32, acc: &mut [i32]) {
    // Ranks that are common get a loop of constant length, which the compiler unrolls.
    match v.len() {
        0 => {}
        1 => up_add_const::<1>(b, v, shift, acc),
        2 => up_add_const::<2>(b, v, shift, acc),
        4 => up_add_const::<4>(b, v, shift, acc),
        8 => up_add_const::<8>(b, v, shift, acc),
        16 => up_add_const::<16>(b, v, shift, acc),
        r => {
            for (acc, row) in acc.iter_mut().zip(b.chunks_exact(r)) {
                *acc = acc.wrapping_add(shifted(low_rank_dot(row, v), shift));
            }
        }
    }
}

fn up_add_const<const R: usize>(b: &[i8], v: &[i16], shift: u32, acc: &mut [i32]) {
    let (rows, _) = b.as_chunks::<R>();
    let Some(v) = v.first_chunk::<R>() else { return };
    for (acc, row) in acc.iter_mut().zip(rows) {
        *acc = acc.wrapping_add(shifted(low_rank_dot(row, v), shift));
    }
}

#[inline]
fn low_rank_dot(row: &[i8], v: &[i16]) -> i32 {
    row.iter().zip(v).fold(0, |sum, (&b, &v)| sum.wrapping_add(i32::from(b).wrapping_mul(i32::from(v))))
}

/// `(sum + round) >> shift`.
#[inline]
fn shifted(sum: i32, shift: u32) -> i32 {
    sum.wrapping_add((1 << shift) >> 1) >> shift
}

/// `acc[o] = sum_i w[o,i] * x[i]`, row-major.
pub(super) fn row_major(w: &[i8], x: &[i8], acc: &mut [i32]) {
    let k = x.len();
    if k == 0 {
        acc.fill(0);
        return;
    }
    // Without vector registers, four rows share the loads of `x`. With them, the compiler does best with one row.
    let (acc4, acc1) = if cfg!(target_pointer_width = "32") { acc.as_chunks_mut::<4>() } else { (&mut [][..], acc) };
    let (w4, w1) = w.split_at_checked(acc4.len() * 4 * k).unwrap_or((w, &[]));
    for (acc, rows) in acc4.iter_mut().zip(w4.chunks_exact(4 * k)) {
        *acc = dot4(rows, x);
    }
    for (acc, row) in acc1.iter_mut().zip(w1.chunks_exact(k)) {
        *acc = dot(row, x);
    }
}

/// The product of a row and a vector. Sums of 32 products, a constant number, become vector instructions.
pub(super) fn dot(row: &[i8], x: &[i8]) -> i32 {
    let ((row32, row_rest), (x32, x_rest)) = (row.as_chunks::<32>(), x.as_chunks::<32>());
    let sum = |row: &[i8], x: &[i8]| row.iter().zip(x).fold(0, |sum, (&w, &x)| mul_add(sum, w, x));
    row32.iter().zip(x32).fold(sum(row_rest, x_rest), |total, (row, x)| total.wrapping_add(sum(row, x)))
}

fn dot4(rows: &[i8], x: &[i8]) -> [i32; 4] {
    let mut rest = rows.chunks_exact(x.len().max(1));
    let [a, b, c, d] = [(); 4].map(|()| rest.next().unwrap_or(&[]));
    let mut sums = [0i32; 4];
    for ((((&x, &a), &b), &c), &d) in x.iter().zip(a).zip(b).zip(c).zip(d) {
        let [s0, s1, s2, s3] = sums;
        sums = [mul_add(s0, a, x), mul_add(s1, b, x), mul_add(s2, c, x), mul_add(s3, d, x)];
    }
    sums
}

/// `acc = W x` for a `Dsp4x4` matrix.
pub(super) fn dsp4x4(w: &[i8], x: &[i8], acc: &mut [i32]) {
    acc.fill(0);
    let (words, _) = w.as_chunks::<4>();
    let (blocks, _) = words.as_chunks::<4>();
    // A group of four rows is a row of blocks of four words.
    for (group, acc) in blocks.chunks_exact(x.len().div_ceil(4).max(1)).zip(acc.chunks_mut(4)) {
        acc.iter_mut().zip(dot_blocks(group, x)).for_each(|(acc, sum)| *acc = sum);
    }
}

/// The sums of one group of four rows.
fn dot_blocks(blocks: &[[[i8; 4]; 4]], x: &[i8]) -> [i32; 4] {
    let (x4, rest) = x.as_chunks::<4>();
    let mut last = [0i8; 4];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    // The padded columns of the last block are zero; zero activations there cost nothing and need no such trust.
    let groups = x4.iter().chain(core::iter::once(&last));
    let mut sums = [0i32; 4];
    for (block, x) in blocks.iter().zip(groups) {
        for (sum, &word) in sums.iter_mut().zip(block) {
            *sum = decode_word(word).iter().zip(x).fold(*sum, |sum, (&w, &x)| mul_add(sum, w, x));
        }
    }
    sums
}

#[inline]
fn mul_add(sum: i32, w: i8, x: i8) -> i32 {
    sum.wrapping_add(i32::from(w).wrapping_mul(i32::from(x)))
}
