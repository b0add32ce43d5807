//! Fixed pieces of work over rayon's threads. The pieces depend on the shapes alone, so results do not depend on the
//! number of threads.

use rayon::prelude::*;

use super::simd::vectorized;

/// Values an elementwise piece has at least; below it a thread costs more than it brings.
const PIECE: usize = 16 * 1024;

/// `sum += term`.
pub(super) fn add_assign(sum: &mut [f32], term: &[f32]) {
    sum.par_chunks_mut(PIECE).zip(term.par_chunks(PIECE)).for_each(|(sum, term)| {
        for (sum, term) in sum.iter_mut().zip(term) {
            *sum += term;
        }
    });
}

/// `out = f(a)`, or `out += f(a)`.
pub(super) fn map1(out: &mut [f32], accumulate: bool, a: &[f32], f: impl Fn(f32) -> f32 + Sync) {
    out.par_chunks_mut(PIECE).zip(a.par_chunks(PIECE)).for_each(|(out, a)| {
        vectorized(
            #[inline(always)]
            || {
                for (out, &a) in out.iter_mut().zip(a) {
                    *out = if accumulate { *out + f(a) } else { f(a) };
                }
            },
        );
    });
}

/// `out = f(a, b)`, or `out += f(a, b)`.
pub(super) fn map2(
    out: &mut [f32],
    accumulate: bool,
    a: &[f32],
    b: &[f32],
    f: impl Fn(f32, f32) -> f32 + Sync,
) {
    out.par_chunks_mut(PIECE).zip(a.par_chunks(PIECE).zip(b.par_chunks(PIECE))).for_each(|(out, (a, b))| {
        vectorized(
            #[inline(always)]
            || {
                for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                    *out = if accumulate { *out + f(a, b) } else { f(a, b) };
                }
            },
        );
    });
}

/// Cuts `values` into slices of these lengths.
pub(super) fn cut(values: &mut [f32], lengths: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    let mut rest = values;
    lengths
        .map(|length| {
            let (slice, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            slice
        })
        .collect()
}

/// Rows of `width` values that make one piece.
pub(super) fn rows_per_piece(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// An output, and whether to add to what is there.
pub(super) type Out<'a> = (&'a mut [f32], bool);

/// `(x, y) = f(a, b, c)`, or `+=`, in one pass; an output may be left out.
pub(super) fn map3_to_2(
    x: Option<Out<'_>>,
    y: Option<Out<'_>>,
    [a, b, c]: [&[f32]; 3],
    f: impl Fn(f32, f32, f32) -> (f32, f32) + Sync,
) {
    let inputs = a.par_chunks(PIECE).zip(b.par_chunks(PIECE).zip(c.par_chunks(PIECE)));
    match (x, y) {
        (Some((x, add_x)), Some((y, add_y))) => {
            let outputs = x.par_chunks_mut(PIECE).zip(y.par_chunks_mut(PIECE));
            outputs.zip(inputs).for_each(|((x, y), (a, (b, c)))| {
                vectorized(
                    #[inline(always)]
                    || {
                        for ((((x, y), &a), &b), &c) in x.iter_mut().zip(y).zip(a).zip(b).zip(c) {
                            let (for_x, for_y) = f(a, b, c);
                            *x = if add_x { *x + for_x } else { for_x };
                            *y = if add_y { *y + for_y } else { for_y };
                        }
                    },
                );
            });
        }
        (Some((out, add)), None) => map3(out, add, [a, b, c], |a, b, c| f(a, b, c).0),
        (None, Some((out, add))) => map3(out, add, [a, b, c], |a, b, c| f(a, b, c).1),
        (None, None) => {}
    }
}

/// `out = f(a, b, c)`, or `out += f(a, b, c)`.
fn map3(out: &mut [f32], accumulate: bool, [a, b, c]: [&[f32]; 3], f: impl Fn(f32, f32, f32) -> f32 + Sync) {
    let inputs = a.par_chunks(PIECE).zip(b.par_chunks(PIECE).zip(c.par_chunks(PIECE)));
    out.par_chunks_mut(PIECE).zip(inputs).for_each(|(out, (a, (b, c)))| {
        vectorized(
            #[inline(always)]
            || {
                for (((out, &a), &b), &c) in out.iter_mut().zip(a).zip(b).zip(c) {
                    *out = if accumulate { *out + f(a, b, c) } else { f(a, b, c) };
                }
            },
        );
    });
}

/// `sum[c] = sum over r of x[r, c]` (or `+=`), in an order that the shapes alone fix.
pub(super) fn sum_rows(sum: &mut [f32], accumulate: bool, x: &[f32]) {
    let width = sum.len();
    if width == 0 {
        return;
    }
    let partial: Vec<Vec<f32>> = x
        .par_chunks(rows_per_piece(width) * width)
        .map(|x| {
            let mut sum = vec![0.0f32; width];
            for row in x.chunks_exact(width) {
                for (sum, x) in sum.iter_mut().zip(row) {
                    *sum += x;
                }
            }
            sum
        })
        .collect();
    sum_in_order(sum, accumulate, partial.iter().map(Vec::as_slice));
}

/// `sum = the sum of the terms` (or `+=`), each as long as the sum, in their order.
pub(super) fn sum_in_order<'a>(sum: &mut [f32], accumulate: bool, terms: impl Iterator<Item = &'a [f32]>) {
    if !accumulate {
        sum.fill(0.0);
    }
    for term in terms {
        for (sum, term) in sum.iter_mut().zip(term) {
            *sum += term;
        }
    }
}
