//! Attention of one key head and the query heads that read it, a few queries at a time.
//!
//! A block of queries against all keys fits the first-level cache, so scores never go to memory.

use super::super::gemm::{Mat, Packed, Target, multiply, outer};
use super::super::math;
use super::super::simd::{LANES, largest, sum, sum_by, vectorized};
use super::AttentionShape;
use super::relative::{HeadParts, HeadTables, TableGrads, Tables};

/// Queries of one block.
const QUERIES: usize = 12;

/// One sequence's part of the inputs.
#[derive(Clone, Copy)]
pub(super) struct Sequence<'a> {
    pub(super) shape: &'a AttentionShape,
    /// Valid keys.
    pub(super) length: usize,
    /// [seq, n_heads * head_size].
    pub(super) q: &'a [f32],
    /// [seq, n_kv_heads * head_size].
    pub(super) k: &'a [f32],
    /// [seq, n_kv_heads * head_size].
    pub(super) v: &'a [f32],
    /// Relative positions, if there are any; then there are as many key heads as query heads.
    pub(super) tables: Option<Tables<'a>>,
}

/// What the backward reads besides.
#[derive(Clone, Copy)]
pub(super) struct Outputs<'a> {
    /// Output of the forward, [seq, n_heads * head_size].
    pub(super) y: &'a [f32],
    /// Its gradient.
    pub(super) dy: &'a [f32],
    /// [n_heads, seq].
    pub(super) log_sums: &'a [f32],
}

/// Gradients of one key head and the query heads that read it.
pub(super) struct HeadGrads {
    /// For each query head [seq, head_size].
    pub(super) dq: Vec<Vec<f32>>,
    /// [seq, head_size].
    pub(super) dk: Vec<f32>,
    /// [seq, head_size].
    pub(super) dv: Vec<f32>,
    /// Those of this head's part of the relative positions.
    pub(super) tables: TableGrads,
}

/// The queries `start..start + count` of one head.
pub(super) struct Block {
    pub(super) start: usize,
    pub(super) count: usize,
    /// Keys that the last of them sees.
    pub(super) visible: usize,
}

/// Outputs [seq, head_size] of the query heads of one key head; `log_sums` [heads of the group, seq] gets the logarithm of
/// each query's sum of exponentials.
pub(super) fn forward(sequence: &Sequence<'_>, kv_head: usize, log_sums: &mut [f32]) -> Vec<Vec<f32>> {
    let &AttentionShape { seq, head_size, .. } = sequence.shape;
    let k = sequence.gather(sequence.k, kv_head);
    let keys = Packed::transposed(&k, sequence.length, head_size);
    let mut tables = sequence.head_tables(kv_head, &k);
    let values = Packed::new(&sequence.gather(sequence.v, kv_head), sequence.length, head_size);
    let stride = sequence.stride();
    let mut scores = vec![0.0; QUERIES * stride];
    let mut queries = vec![0.0; QUERIES * head_size];
    let heads = sequence.heads(kv_head).zip(log_sums.chunks_exact_mut(seq));
    heads
        .map(|(head, log_sums)| {
            let mut y = vec![0.0; seq * head_size];
            for block in sequence.blocks() {
                let Block { start, count, visible } = block;
                sequence.scores(&block, head, &keys, &mut queries, &mut scores);
                if let Some(tables) = &mut tables {
                    let queries = Mat::new(&queries[..count * head_size], head_size);
                    tables.add(&block, queries, &mut scores, stride);
                }
                let mut inverse = [0.0; QUERIES];
                for (i, scores) in scores.chunks_exact_mut(stride).enumerate().take(count) {
                    let (seen, hidden) = scores[..visible].split_at_mut(sequence.visible(start + i));
                    hidden.fill(0.0);
                    (log_sums[start + i], inverse[i]) = vectorized(
                        #[inline(always)]
                        || {
                            let largest = largest(seen, f32::NEG_INFINITY);
                            let sum = exp_all(seen, largest);
                            (largest + math::ln(sum), 1.0 / sum)
                        },
                    );
                }
                let y = &mut y[start * head_size..][..count * head_size];
                multiply(
                    Target::new(y, count, head_size),
                    &[(Mat::strided(&scores, stride, visible), &values)],
                );
                for (y, inverse) in y.chunks_exact_mut(head_size).zip(inverse) {
                    for y in y {
                        *y *= inverse;
                    }
                }
            }
            y
        })
        .collect()
}

/// With `p` the probabilities and `d[t] = sum over c of dy[t, c] y[t, c]`:
/// `dv = p^T dy`, `ds = p * (dy v^T - d)`, `dq = scale ds k`, `dk = scale ds^T q`.
pub(super) fn backward(sequence: &Sequence<'_>, outputs: &Outputs<'_>, kv_head: usize) -> HeadGrads {
    let &AttentionShape { seq, n_heads, head_size, scale, .. } = sequence.shape;
    let length = sequence.length;
    let (k, v) = (sequence.gather(sequence.k, kv_head), sequence.gather(sequence.v, kv_head));
    let keys = Packed::transposed(&k, length, head_size);
    let values = Packed::transposed(&v, length, head_size);
    let key_rows = Packed::new(&k, length, head_size);
    let mut tables = sequence.head_tables(kv_head, &k);
    if let Some(tables) = &mut tables {
        tables.start_backward(head_size);
    }
    let width = n_heads * head_size;
    let stride = sequence.stride();
    let mut queries = vec![0.0; QUERIES * head_size];
    let mut grads = vec![0.0; QUERIES * head_size];
    let (mut p, mut ds) = (vec![0.0; QUERIES * stride], vec![0.0; QUERIES * stride]);
    // Transposed, [head_size, stride]: the long side is contiguous, as the kernel likes it.
    let (mut dk, mut dv) = (vec![0.0; head_size * stride], vec![0.0; head_size * stride]);
    let heads = sequence.heads(kv_head).map(|head| {
        let mut dq = vec![0.0; seq * head_size];
        let log_sums = &outputs.log_sums[head * seq..][..seq];
        for block in sequence.blocks() {
            let Block { start, count, visible } = block;
            sequence.scores(&block, head, &keys, &mut queries, &mut p);
            if let Some(tables) = &mut tables {
                tables.add(&block, Mat::new(&queries[..count * head_size], head_size), &mut p, stride);
            }
            gather_rows(&mut grads, &outputs.dy[start * width..], width, head, head_size, 1.0);
            let grads = &grads[..count * head_size];
            let target = Target::strided(&mut ds, stride, count, visible);
            multiply(target, &[(Mat::new(grads, head_size), &values)]);
            // Whole register tiles: what is behind the visible keys is zero.
            let padded = visible.next_multiple_of(2 * LANES);
            let rows = p
                .chunks_exact_mut(stride)
                .zip(ds.chunks_exact_mut(stride))
                .zip(grads.chunks_exact(head_size));
            for (i, ((p, ds), dy)) in rows.enumerate() {
                let t = start + i;
                let y = &outputs.y[t * width + head * head_size..][..head_size];
                let (p, hidden) = p[..padded].split_at_mut(sequence.visible(t));
                hidden.fill(0.0);
                let (ds, hidden) = ds[..padded].split_at_mut(p.len());
                hidden.fill(0.0);
                vectorized(
                    #[inline(always)]
                    || {
                        let delta = sum_by(head_size, |c| dy[c] * y[c]);
                        let log_sum = log_sums[t];
                        for (p, ds) in p.iter_mut().zip(ds) {
                            *p = math::exp(*p - log_sum);
                            *ds = *p * (*ds - delta);
                        }
                    },
                );
            }
            let queries = Mat::new(&queries[..count * head_size], head_size);
            let to = &mut dq[start * head_size..][..count * head_size];
            let target = Target::new(to, count, head_size);
            let by_key = (Mat::strided(&ds, stride, visible), &key_rows);
            let tables = tables.as_mut();
            match tables.and_then(|tables| tables.backward(&block, queries, &ds, stride)) {
                Some(by_table) => multiply(target, &[by_key, by_table]),
                None => multiply(target, &[by_key]),
            }
            for dq in to {
                *dq *= scale;
            }
            let target = |to| Target::strided(to, stride, head_size, padded).accumulate(true);
            // The queries were scaled when they were gathered.
            outer(target(&mut dk), queries, Mat::new(&ds, stride), count);
            outer(target(&mut dv), Mat::new(grads, head_size), Mat::new(&p, stride), count);
        }
        dq
    });
    let dq = heads.collect();
    let mut dk = rows_of(&dk, stride, seq, length);
    let tables = tables.map(|tables| tables.finish(&k, &mut dk[..length * head_size], scale));
    HeadGrads { dq, dk, dv: rows_of(&dv, stride, seq, length), tables: tables.unwrap_or_default() }
}

impl<'a> Sequence<'a> {
    /// Values from one query's scores to the next one's.
    fn stride(&self) -> usize {
        self.length.next_multiple_of(2 * LANES)
    }

    fn heads(&self, kv_head: usize) -> impl Iterator<Item = usize> + use<'a> {
        let group = self.shape.n_heads / self.shape.n_kv_heads;
        kv_head * group..(kv_head + 1) * group
    }

    /// Keys that query `t` sees.
    fn visible(&self, t: usize) -> usize {
        self.shape.visible(t, self.length)
    }

    fn blocks(&self) -> impl Iterator<Item = Block> {
        let seq = self.shape.seq;
        (0..seq).step_by(QUERIES).map(move |start| {
            let count = QUERIES.min(seq - start);
            Block { start, count, visible: self.visible(start + count - 1) }
        })
    }

    /// The valid rows of one key head, [length, head_size].
    fn gather(&self, x: &[f32], kv_head: usize) -> Vec<f32> {
        let &AttentionShape { n_kv_heads, head_size, .. } = self.shape;
        let mut rows = vec![0.0; self.length * head_size];
        gather_rows(&mut rows, x, n_kv_heads * head_size, kv_head, head_size, 1.0);
        rows
    }

    /// The relative positions of one head, whose valid keys are `k`.
    fn head_tables(&self, head: usize, k: &[f32]) -> Option<HeadTables<'a>> {
        let &AttentionShape { n_heads, head_size, scale, .. } = self.shape;
        let Tables { positions, keys, queries } = self.tables?;
        let gather = |table: &[f32], factor| {
            let mut rows = vec![0.0; positions.table_rows() * head_size];
            gather_rows(&mut rows, table, n_heads * head_size, head, head_size, factor);
            rows
        };
        let keys = keys.map(|table| gather(table, 1.0));
        let queries = queries.map(|table| gather(table, scale));
        Some(HeadTables::new(positions, HeadParts { keys, queries, k, head_size, block: QUERIES }))
    }

    /// `queries` gets the block's queries times the scale, `scores` their products with the keys.
    fn scores(&self, block: &Block, head: usize, keys: &Packed, queries: &mut [f32], scores: &mut [f32]) {
        let &AttentionShape { n_heads, head_size, scale, .. } = self.shape;
        let &Block { start, count, visible } = block;
        let width = n_heads * head_size;
        gather_rows(queries, &self.q[start * width..], width, head, head_size, scale);
        let queries = Mat::new(&queries[..count * head_size], head_size);
        multiply(Target::strided(scores, self.stride(), count, visible), &[(queries, keys)]);
    }
}

/// Copies one head of as many rows as there are (in `x`, or room for in `rows`), times a factor.
fn gather_rows(rows: &mut [f32], x: &[f32], width: usize, head: usize, head_size: usize, factor: f32) {
    for (to, from) in rows.chunks_exact_mut(head_size).zip(x.chunks_exact(width)) {
        for (to, from) in to.iter_mut().zip(&from[head * head_size..]) {
            *to = from * factor;
        }
    }
}

/// `values = exp(values - shift)`; returns their sum.
#[inline(always)]
fn exp_all(values: &mut [f32], shift: f32) -> f32 {
    for value in &mut *values {
        *value = math::exp(*value - shift);
    }
    sum(values)
}

/// [head_size, stride] to [seq, head_size]; rows from `length` on are zero.
fn rows_of(columns: &[f32], stride: usize, seq: usize, length: usize) -> Vec<f32> {
    let head_size = columns.len() / stride;
    let mut rows = vec![0.0; seq * head_size];
    for (c, column) in columns.chunks_exact(stride).enumerate() {
        for (row, value) in rows.chunks_exact_mut(head_size).zip(&column[..length]) {
            row[c] = *value;
        }
    }
    rows
}
