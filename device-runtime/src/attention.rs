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

/// Keys and values so far, and which part of each row one head reads.
#[derive(Clone, Copy)]
struct Past<'a> {
    /// `[keys, width]`.
    k: &'a [f32],
    /// `[keys, width]`.
    v: &'a [f32],
    width: usize,
    /// First column of the head.
    start: usize,
    scale: f32,
}

/// y = softmax(scale q k^T) v for one query row over the key rows that `k` and `v` hold.
///
/// `q`, `y`: `[n_heads * head_size]`; `k`, `v`: `[keys, n_kv_heads * head_size]`; `scores`: room for one number a key, or
/// two to take two query heads of the same key head at once.
pub(crate) fn attend(q: &[f32], k: &[f32], v: &[f32], y: &mut [f32], scores: &mut [f32], heads: Heads) {
    let head_size = (q.len() / heads.n_heads.max(1)).max(1);
    let width = (head_size * heads.n_kv_heads).max(1);
    let group = (heads.n_heads / heads.n_kv_heads.max(1)).max(1);
    let keys = k.len() / width;
    let together = if scores.len() >= 2 * keys { 2 * head_size } else { head_size };
    let groups = q.chunks(group * head_size).zip(y.chunks_mut(group * head_size));
    for (kv_head, (q, y)) in groups.enumerate() {
        let past = Past { k, v, width, start: kv_head * head_size, scale: heads.scale };
        for (q, y) in q.chunks(together).zip(y.chunks_mut(together)) {
            let Some(scores) = scores.get_mut(..q.len() / head_size * keys) else { return };
            match (head_size, q.len() / head_size) {
                (8, 2) => heads_of::<8, 2>(q, past, y, scores),
                (8, 1) => heads_of::<8, 1>(q, past, y, scores),
                (16, 2) => heads_of::<16, 2>(q, past, y, scores),
                (16, 1) => heads_of::<16, 1>(q, past, y, scores),
                _ => {
                    for (q, y) in q.chunks(head_size).zip(y.chunks_mut(head_size)) {
                        head_of_any_size(q, past, y, scores.get_mut(..keys).unwrap_or_default());
                    }
                }
            }
        }
    }
}

/// `G` heads of `N` columns that read the same keys, which are loaded once for all of them.
fn heads_of<const N: usize, const G: usize>(q: &[f32], past: Past<'_>, y: &mut [f32], scores: &mut [f32]) {
    let (queries, []) = q.as_chunks::<N>() else { return };
    let Ok(queries): Result<[[f32; N]; G], _> = queries.try_into() else { return };
    let scores = scores.as_chunks_mut::<G>().0;
    let part = past.start..past.start + N;
    let mut max = [f32::NEG_INFINITY; G];
    for (scores, row) in scores.iter_mut().zip(past.k.chunks_exact(past.width)) {
        let Some(key) = row.get(part.clone()).and_then(<[f32]>::first_chunk::<N>) else { return };
        for ((score, query), max) in scores.iter_mut().zip(&queries).zip(&mut max) {
            *score = dot_array(query, key) * past.scale;
            *max = if *score > *max { *score } else { *max };
        }
    }
    let total = exponentials(scores, max);
    let mut sums = [[0.0; N]; G];
    for (scores, row) in scores.iter().zip(past.v.chunks_exact(past.width)) {
        let Some(value) = row.get(part.clone()).and_then(<[f32]>::first_chunk::<N>) else { return };
        for (score, sums) in scores.iter().zip(&mut sums) {
            sums.iter_mut().zip(value).for_each(|(sum, value)| *sum += score * value);
        }
    }
    for ((y, sums), total) in y.as_chunks_mut::<N>().0.iter_mut().zip(sums).zip(total) {
        let inverse = 1.0 / total;
        *y = sums.map(|sum| sum * inverse);
    }
}

/// The dot product in four lanes, as [`math::dot`], of a length that is a multiple of 4 and at least 4.
///
/// Lanes begin with their first term where those of [`math::dot`] begin with 0 plus it. That only differs in the sign of a zero, which
/// no later step of attention sees: the exponential of either zero's distance to the maximum is the same.
fn dot_array<const N: usize>(x: &[f32; N], y: &[f32; N]) -> f32 {
    let ([first, rest @ ..], [y_first, y_rest @ ..]) = (x.as_chunks::<4>().0, y.as_chunks::<4>().0) else {
        return 0.0;
    };
    let mut lanes = [0, 1, 2, 3].map(|lane: usize| product(first, y_first, lane));
    for (x, y) in rest.iter().zip(y_rest) {
        lanes.iter_mut().zip(x.iter().zip(y)).for_each(|(lane, (x, y))| *lane += x * y);
    }
    let [l0, l1, l2, l3] = lanes;
    (l0 + l1) + (l2 + l3)
}

fn product(x: &[f32; 4], y: &[f32; 4], lane: usize) -> f32 {
    x.get(lane).copied().unwrap_or(0.0) * y.get(lane).copied().unwrap_or(0.0)
}

/// One head of any size.
fn head_of_any_size(q: &[f32], past: Past<'_>, y: &mut [f32], scores: &mut [f32]) {
    let part = past.start..past.start + q.len();
    let mut max = f32::NEG_INFINITY;
    for (score, row) in scores.iter_mut().zip(past.k.chunks_exact(past.width)) {
        *score = math::dot(q, row.get(part.clone()).unwrap_or(&[])) * past.scale;
        max = if *score > max { *score } else { max };
    }
    let [total] = exponentials(scores.as_chunks_mut::<1>().0, [max]);
    let inverse = 1.0 / total;
    // Sixteen columns at a time stay in registers over all rows.
    let (groups, tail) = y.as_chunks_mut::<16>();
    let mut from = past.start;
    for group in groups {
        let mut sums = [0.0; 16];
        for (score, row) in scores.iter().zip(past.v.chunks_exact(past.width)) {
            let Some(value) = row.get(from..from + 16).and_then(<[f32]>::first_chunk::<16>) else { return };
            sums.iter_mut().zip(value).for_each(|(sum, value)| *sum += *score * value);
        }
        *group = sums.map(|sum| sum * inverse);
        from += 16;
    }
    tail.fill(0.0);
    for (score, row) in scores.iter().zip(past.v.chunks_exact(past.width)) {
        let value = row.get(from..part.end).unwrap_or(&[]);
        tail.iter_mut().zip(value).for_each(|(sum, value)| *sum += *score * value);
    }
    tail.iter_mut().for_each(|sum| *sum *= inverse);
}

/// scores\[j\] = exp(scores\[j\] - max), and their sum in four lanes over j, as [`math::sum`]; for `G` heads at once.
fn exponentials<const G: usize>(scores: &mut [[f32; G]], max: [f32; G]) -> [f32; G] {
    let mut lanes = [[0.0; G]; 4];
    let step = |lanes: &mut [f32; G], scores: &mut [f32; G]| {
        for ((lane, score), max) in lanes.iter_mut().zip(scores).zip(max) {
            *score = math::exp_at_most_88(*score - max);
            *lane += *score;
        }
    };
    let (groups, tail) = scores.as_chunks_mut::<4>();
    for group in groups {
        lanes.iter_mut().zip(group).for_each(|(lanes, scores)| step(lanes, scores));
    }
    lanes.iter_mut().zip(tail).for_each(|(lanes, scores)| step(lanes, scores));
    let [l0, l1, l2, l3] = lanes;
    let mut total = [0.0; G];
    for ((((total, l0), l1), l2), l3) in total.iter_mut().zip(l0).zip(l1).zip(l2).zip(l3) {
        *total = (l0 + l1) + (l2 + l3);
    }
    total
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
            [(8, 8, 4), (8, 3, 1), (16, 3, 1), (64, 1, 1), (6, 2, 1), (5, 3, 3), (19, 4, 2), (32, 2, 2)]
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
