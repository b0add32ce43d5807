//! Attention of one query row over the keys and values so far. It knows neither graphs nor caches.
//!
//! The loops are the same for every head size; common ones are compiled with the size known, which keeps a query head in
//! registers. The order of every sum is that of `format/SPEC.md`, section 4.

use crate::math;

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
pub(crate) fn attend(q: &[f32], k: &[f32], v: &[f32], y: &mut [f32], scores: &mut [f32], heads: Heads) {
    let head_size = (q.len() / heads.n_heads.max(1)).max(1);
    let kv_width = (head_size * heads.n_kv_heads).max(1);
    let group = (heads.n_heads / heads.n_kv_heads.max(1)).max(1);
    let Some(scores) = scores.get_mut(..k.len() / kv_width) else { return };
    for (head, (q, y)) in q.chunks_exact(head_size).zip(y.chunks_exact_mut(head_size)).enumerate() {
        let start = head / group * head_size;
        // From here on, each chunk of `kv_width` begins with this head's part of a row.
        let (k, v) = (k.get(start..).unwrap_or(&[]), v.get(start..).unwrap_or(&[]));
        let sum = match head_size {
            8 => one_head::<8>(q, k, v, y, scores, kv_width, heads.scale),
            16 => one_head::<16>(q, k, v, y, scores, kv_width, heads.scale),
            _ => any_head(q, k, v, y, scores, kv_width, heads.scale),
        };
        let inverse = 1.0 / sum;
        y.iter_mut().for_each(|y| *y *= inverse);
    }
}

/// One head of `N` columns: y = sum_j e_j v_j and the return value sum_j e_j.
fn one_head<const N: usize>(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    y: &mut [f32],
    scores: &mut [f32],
    kv_width: usize,
    scale: f32,
) -> f32 {
    let (Some(q), Some(y)) = (q.first_chunk::<N>(), y.first_chunk_mut::<N>()) else { return 1.0 };
    let q = *q;
    let mut max = f32::NEG_INFINITY;
    for (score, key) in scores.iter_mut().zip(k.chunks(kv_width)) {
        let Some(key) = key.first_chunk::<N>() else { break };
        *score = dot_array(&q, key) * scale;
        max = if *score > max { *score } else { max };
    }
    let total = exponentials(scores, max);
    let mut sum = [0.0; N];
    for (score, value) in scores.iter().zip(v.chunks(kv_width)) {
        let Some(value) = value.first_chunk::<N>() else { break };
        for i in 0..N {
            sum[i] += *score * value[i];
        }
    }
    *y = sum;
    total
}

/// The dot product in four lanes, as [`math::dot`], of a length that is a multiple of 4.
fn dot_array<const N: usize>(x: &[f32; N], y: &[f32; N]) -> f32 {
    let mut lanes = [0.0; 4];
    for i in 0..N {
        lanes[i % 4] += x[i] * y[i];
    }
    (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
}

/// One head of any size.
fn any_head(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    y: &mut [f32],
    scores: &mut [f32],
    kv_width: usize,
    scale: f32,
) -> f32 {
    let mut max = f32::NEG_INFINITY;
    for (score, key) in scores.iter_mut().zip(k.chunks(kv_width)) {
        *score = math::dot(q, key.get(..q.len()).unwrap_or(&[])) * scale;
        max = if *score > max { *score } else { max };
    }
    let total = exponentials(scores, max);
    // Sixteen columns at a time stay in registers over all rows.
    let (groups, tail) = y.as_chunks_mut::<16>();
    let mut from = 0;
    for group in groups {
        let mut sum = [0.0; 16];
        for (score, value) in scores.iter().zip(v.get(from..).unwrap_or(&[]).chunks(kv_width)) {
            let Some(value) = value.first_chunk::<16>() else { break };
            for i in 0..16 {
                sum[i] += *score * value[i];
            }
        }
        *group = sum;
        from += 16;
    }
    tail.fill(0.0);
    for (score, value) in scores.iter().zip(v.get(from..).unwrap_or(&[]).chunks(kv_width)) {
        tail.iter_mut().zip(value).for_each(|(sum, value)| *sum += *score * value);
    }
    total
}

/// scores\[j\] = exp(scores\[j\] - max), and their sum in four lanes, as [`math::sum`].
fn exponentials(scores: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0; 4];
    let (groups, tail) = scores.as_chunks_mut::<4>();
    for group in groups {
        for i in 0..4 {
            group[i] = math::exp(group[i] - max);
            lanes[i] += group[i];
        }
    }
    for (lane, score) in lanes.iter_mut().zip(tail) {
        *score = math::exp(*score - max);
        *lane += *score;
    }
    (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use rankpatch_format::digest::XorShift32;

    use super::*;

    /// The definition, with the sums of `math`, which every head size must match bit for bit.
    fn reference(q: &[f32], k: &[f32], v: &[f32], heads: Heads) -> Vec<f32> {
        let head_size = q.len() / heads.n_heads;
        let kv_width = head_size * heads.n_kv_heads;
        let mut y = vec![0.0; q.len()];
        for head in 0..heads.n_heads {
            let part = head * heads.n_kv_heads / heads.n_heads * head_size;
            let row = |x: &[f32], j: usize| x[j * kv_width + part..][..head_size].to_vec();
            let q = &q[head * head_size..][..head_size];
            let keys = k.len() / kv_width;
            let scores: Vec<f32> = (0..keys).map(|j| math::dot(q, &row(k, j)) * heads.scale).collect();
            let max = math::max(&scores);
            let scores: Vec<f32> = scores.iter().map(|score| math::exp(score - max)).collect();
            let inverse = 1.0 / math::sum(&scores);
            for i in 0..head_size {
                let mut sum = 0.0;
                scores.iter().enumerate().for_each(|(j, score)| sum += score * row(v, j)[i]);
                y[head * head_size + i] = sum * inverse;
            }
        }
        y
    }

    #[test]
    fn every_head_size_follows_the_definition_bit_for_bit() {
        let mut random = XorShift32::new(6);
        for (head_size, n_heads, n_kv_heads) in
            [(8, 8, 4), (16, 3, 1), (64, 1, 1), (6, 2, 1), (5, 3, 3), (19, 4, 2), (32, 2, 2)]
        {
            for keys in [1, 2, 3, 4, 7, 50] {
                let mut values =
                    |count: usize| -> Vec<f32> { (0..count).map(|_| random.feature() / 16.0).collect() };
                let (q, k) = (values(n_heads * head_size), values(keys * n_kv_heads * head_size));
                let v = values(keys * n_kv_heads * head_size);
                let heads = Heads { n_heads, n_kv_heads, scale: 0.3 };
                let (mut y, mut scores) = (vec![f32::NAN; q.len()], vec![f32::NAN; keys + 1]);
                attend(&q, &k, &v, &mut y, &mut scores, heads);
                assert_eq!(
                    y,
                    reference(&q, &k, &v, heads),
                    "{n_heads} heads of {head_size} over {keys} keys"
                );
            }
        }
    }
}
