//! The operators that are not linear, on plain slices. Rows are contiguous; `width` is the row length. They know
//! nothing of graphs or arenas. Lengths are the caller's promise: rows beyond a slice are left out, nothing panics.

use rankpatch_format::base::Matrix;

use crate::math;

/// y = x / sqrt(mean(x^2) + eps) * weight, in place, per row of `weight.len()`.
pub(crate) fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    for row in x.chunks_exact_mut(weight.len().max(1)) {
        let inverse = math::inv_sqrt(math::dot(row, row) / row.len() as f32 + eps);
        row.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * inverse * weight);
    }
}

/// y = (x - mean) / sqrt(var + eps) * weight + bias, in place, per row of `weight.len()`.
pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    for row in x.chunks_exact_mut(weight.len().max(1)) {
        let len = row.len() as f32;
        let mean = math::sum(row) / len;
        let inverse = math::inv_sqrt(math::sum_of_squares(row, mean) / len + eps);
        for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
            *x = (*x - mean) * inverse * weight + bias;
        }
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

/// The heads of an attention operator.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) scale: f32,
}

/// y = softmax(scale q k^T) v for one query row over the key rows that `k` and `v` hold.
///
/// `q`, `y`: `[n_heads * head_size]`; `k`, `v`: `[keys, n_kv_heads * head_size]`; `scores`: room for one number a key.
/// Sums over keys run in order; the scores' sum and the dot products in four lanes.
pub(crate) fn attend(q: &[f32], k: &[f32], v: &[f32], y: &mut [f32], scores: &mut [f32], heads: Heads) {
    let head_size = (q.len() / heads.n_heads.max(1)).max(1);
    let kv_width = (head_size * heads.n_kv_heads).max(1);
    let group = (heads.n_heads / heads.n_kv_heads.max(1)).max(1);
    let (keys, values) = (k.chunks_exact(kv_width), v.chunks_exact(kv_width));
    let Some(scores) = scores.get_mut(..keys.len()) else { return };
    for (head, (q, y)) in q.chunks_exact(head_size).zip(y.chunks_exact_mut(head_size)).enumerate() {
        let start = head / group * head_size;
        let part = start..start + head_size;
        for (score, key) in scores.iter_mut().zip(keys.clone()) {
            *score = math::dot(q, key.get(part.clone()).unwrap_or(&[])) * heads.scale;
        }
        let max = math::max(scores);
        scores.iter_mut().for_each(|score| *score = math::exp(*score - max));
        let inverse = 1.0 / math::sum(scores);
        weigh(scores, values.clone().map(|value| value.get(part.clone()).unwrap_or(&[])), y);
        y.iter_mut().for_each(|y| *y *= inverse);
    }
}

/// y = sum_j scores\[j\] * values\[j\], rows in order.
fn weigh<'a>(scores: &[f32], values: impl Iterator<Item = &'a [f32]> + Clone, y: &mut [f32]) {
    // Eight columns at a time stay in registers over all rows.
    let (groups, tail) = y.as_chunks_mut::<8>();
    for (at, group) in groups.iter_mut().enumerate() {
        let mut sum = [0.0; 8];
        for (score, value) in scores.iter().zip(values.clone()) {
            let Some(value) = value.get(8 * at..).and_then(<[f32]>::first_chunk::<8>) else { continue };
            sum.iter_mut().zip(value).for_each(|(sum, value)| *sum += score * value);
        }
        *group = sum;
    }
    let from = 8 * groups.len();
    tail.fill(0.0);
    for (score, value) in scores.iter().zip(values) {
        let value = value.get(from..).unwrap_or(&[]);
        tail.iter_mut().zip(value).for_each(|(sum, value)| *sum += score * value);
    }
}

/// y\[t\] = scale\[id\] * codes\[id\]: a row of an embedding table, dequantized. `codes` is scratch of one row.
pub(crate) fn embed(table: &Matrix<'_>, id: usize, codes: &mut [i8], y: &mut [f32]) {
    let Some(codes) = codes.get_mut(..table.cols) else { return };
    table.layout.read_row(table.codes, table.cols, id, codes);
    let scale = table.scales.get(id).copied().unwrap_or(0.0);
    y.iter_mut().zip(codes).for_each(|(y, code)| *y = f32::from(*code) * scale);
}

/// sums\[i\] += rows\[t, i\], rows in order.
pub(crate) fn accumulate(rows: &[f32], sums: &mut [f32]) {
    for row in rows.chunks_exact(sums.len().max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
}
