//! The portable kernels, in safe Rust: what the host and cores without the DSP extension run, and what the others must
//! equal bit for bit. Lengths were checked by the functions of the parent module, which say what each one computes.
//!
//! Sums wrap. Within the documented limits they never do; beyond them a wrong sum is better than a panic on a device.

use rankpatch_format::layout::{Layout, decode_dsp_word};

pub(super) fn up_add(b: &[i8], v: &[i16], shift: u32, acc: &mut [i32]) {
    // Ranks that are common get a loop of constant length, which the compiler unrolls.
    match v.len() {
        0 => {}
        1 => up_add_const::<1>(b, v, shift, acc),
        2 => up_add_const::<2>(b, v, shift, acc),
        4 => up_add_const::<4>(b, v, shift, acc),
        8 => up_add_const::<8>(b, v, shift, acc),
        16 => up_add_const::<16>(b, v, shift, acc),
        _ => up_add_any(b, v, shift, acc),
    }
}

/// [`up_add`] in one loop for all ranks but 0.
pub(super) fn up_add_any(b: &[i8], v: &[i16], shift: u32, acc: &mut [i32]) {
    for (acc, row) in acc.iter_mut().zip(b.chunks_exact(v.len().max(1))) {
        *acc = acc.wrapping_add(shifted(low_rank_dot(row, v), shift));
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
    // Without vector registers, four rows share the loads of `x`. With them, the compiler does best with one row.
    row_major_by(cfg!(target_pointer_width = "32"), w, x, acc);
}

/// [`row_major`] with or without groups of four rows.
#[inline]
pub(super) fn row_major_by(four: bool, w: &[i8], x: &[i8], acc: &mut [i32]) {
    let k = x.len();
    if k == 0 {
        acc.fill(0);
        return;
    }
    let (acc4, acc1) = if four { acc.as_chunks_mut::<4>() } else { (&mut [][..], acc) };
    let (w4, w1) = w.split_at_checked(acc4.len() * 4 * k).unwrap_or((w, &[]));
    for (acc, rows) in acc4.iter_mut().zip(w4.chunks_exact((4 * k).max(1))) {
        *acc = dot4(rows, x);
    }
    for (acc, row) in acc1.iter_mut().zip(w1.chunks_exact(k)) {
        *acc = dot(row, x);
    }
}

/// The product of a row and a vector.
pub(super) fn dot(row: &[i8], x: &[i8]) -> i32 {
    let (sum, row, x) = dot_chunks::<32>(0, row, x);
    let (sum, row, x) = dot_chunks::<4>(sum, row, x);
    dot_chunks::<1>(sum, row, x).0
}

/// `sum` plus the products of complete chunks, and the rest of both. A constant number of products in a row is what the
/// compiler turns into vector instructions.
#[inline]
fn dot_chunks<'a, const N: usize>(sum: i32, row: &'a [i8], x: &'a [i8]) -> (i32, &'a [i8], &'a [i8]) {
    let ((rows, row_rest), (xs, x_rest)) = (row.as_chunks::<N>(), x.as_chunks::<N>());
    let sum = rows.iter().zip(xs).fold(sum, |sum, (row, x)| {
        sum.wrapping_add(row.iter().zip(x).fold(0, |sum, (&w, &x)| mul_add(sum, w, x)))
    });
    (sum, row_rest, x_rest)
}

/// The products of four rows and a vector.
fn dot4(rows: &[i8], x: &[i8]) -> [i32; 4] {
    let mut rows = rows.chunks_exact(x.len().max(1));
    let [a, b, c, d] = [(); 4].map(|()| rows.next().unwrap_or(&[]).as_chunks::<4>());
    let (x4, x_rest) = x.as_chunks::<4>();
    let mut sums = [0i32; 4];
    for ((((x, a), b), c), d) in x4.iter().zip(a.0).zip(b.0).zip(c.0).zip(d.0) {
        for ((((&x, &a), &b), &c), &d) in x.iter().zip(a).zip(b).zip(c).zip(d) {
            let [s0, s1, s2, s3] = sums;
            sums = [mul_add(s0, a, x), mul_add(s1, b, x), mul_add(s2, c, x), mul_add(s3, d, x)];
        }
    }
    for (sum, (_, rest)) in sums.iter_mut().zip([a, b, c, d]) {
        *sum = dot_chunks::<1>(*sum, rest, x_rest).0;
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
            *sum = decode_dsp_word(word).iter().zip(x).fold(*sum, |sum, (&w, &x)| mul_add(sum, w, x));
        }
    }
    sums
}

/// `acc = W x` for a `Mve4x16` matrix.
pub(super) fn mve4x16(w: &[i8], x: &[i8], acc: &mut [i32]) {
    acc.fill(0);
    let (vectors, _) = w.as_chunks::<16>();
    let (blocks, _) = vectors.as_chunks::<4>();
    // A group of four rows is a row of blocks of four vectors; `x` ends before the padding of the last one.
    for (group, acc) in blocks.chunks_exact(x.len().div_ceil(16).max(1)).zip(acc.chunks_mut(4)) {
        for (block, x) in group.iter().zip(x.chunks(16)) {
            for (sum, row) in acc.iter_mut().zip(block) {
                *sum = row.iter().zip(x).fold(*sum, |sum, (&w, &x)| mul_add(sum, w, x));
            }
        }
    }
}

/// `acc = W x` for a matrix in a layout of another core, code by code: small and slow.
#[cfg_attr(not(target_os = "none"), allow(dead_code, reason = "for cores with kernels of their own"))]
#[cold]
#[inline(never)]
pub(super) fn foreign(layout: Layout, w: &[i8], x: &[i8], acc: &mut [i32]) {
    for (row, acc) in acc.iter_mut().enumerate() {
        let codes = x.iter().enumerate().map(|(col, &value)| (layout.code(w, x.len(), row, col), value));
        *acc = codes.fold(0, |sum, (w, x)| mul_add(sum, w, x));
    }
}

#[inline]
fn mul_add(sum: i32, w: i8, x: i8) -> i32 {
    sum.wrapping_add(i32::from(w).wrapping_mul(i32::from(x)))
}
