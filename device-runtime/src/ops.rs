//! The operators that are not linear, on plain slices. Rows are contiguous; `width` is the row length. They know
//! nothing of graphs or arenas. Lengths are the caller's promise: rows beyond a slice are left out, nothing panics.

use core::cell::Cell;

use rankpatch_format::base::Matrix;

use crate::kernels::float;
use crate::math;

/// With a bias y = (x - mean) / sqrt(var + eps) * weight + bias, without one y = x / sqrt(mean(x^2) + eps) * weight, per row of
/// `weight.len()`; `y` is `x`, or apart from it.
pub(crate) fn norm(x: &[Cell<f32>], weight: &[f32], bias: Option<&[f32]>, eps: f32, y: &[Cell<f32>]) {
    let width = weight.len().max(1);
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact(width)) {
        norm_row(x, weight, bias, eps, y);
    }
}

/// [`norm`] of one row.
// Not inlined: there would be one loop over rows with a bias and one without.
#[inline(never)]
fn norm_row(x: &[Cell<f32>], weight: &[f32], bias: Option<&[f32]>, eps: f32, y: &[Cell<f32>]) {
    let width = weight.len() as f32;
    let (mean, squares) = if bias.is_some() {
        let mean = float::sum(x) / width;
        (mean, float::sum_of_deviations(x, mean))
    } else {
        (0.0, float::sum_of_squares(x))
    };
    let inverse = math::inv_sqrt(squares / width + eps);
    match bias {
        Some(bias) => float::normalize(x, [mean, inverse], weight, bias, y),
        None => float::scale(x, inverse, weight, y),
    }
}

/// Rotary position, in place: in each head the pair (2i, 2i+1) turns by position * inv_freq\[i\]. The first row is at
/// `position`.
pub(crate) fn rope(x: &mut [f32], width: usize, inv_freq: &[f32], position: usize) {
    let head_size = 2 * inv_freq.len();
    for (row, position) in x.chunks_exact_mut(width.max(1)).zip(position..) {
        // The angle is the same in every head: frequency by frequency, so that each needs one sine and cosine.
        for (i, freq) in inv_freq.iter().enumerate() {
            let (sin, cos) = math::sin_cos(position as f32 * freq);
            for head in row.chunks_exact_mut(head_size.max(1)) {
                if let Some([a, b]) = head.get_mut(2 * i..2 * i + 2) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}

/// y\[t\] = scale\[id\] * codes\[id\]: a row of an embedding table, dequantized. `codes` is scratch of one row.
pub(crate) fn embed(table: &Matrix<'_>, id: usize, codes: &mut [i8], y: &mut [f32]) {
    let Some(codes) = codes.get_mut(..table.cols) else { return };
    table.layout.read_row(table.codes, table.cols, id, codes);
    let scale = table.scales.get(id).unwrap_or(0.0);
    y.iter_mut().zip(codes).for_each(|(y, code)| *y = f32::from(*code) * scale);
}

/// sums\[i\] += rows\[t, i\], rows in order.
pub(crate) fn accumulate(rows: &[f32], sums: &mut [f32]) {
    for row in rows.chunks_exact(sums.len().max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
}
