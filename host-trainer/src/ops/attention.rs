//! Softmax attention with grouped heads, causal or bidirectional, over padded batches; with relative positions or without.

use candle_core::{D, Tensor};
use rayon::prelude::*;

use super::graph::{Backward, HostArgs, Output, Sink, node, with_host};
use super::{Result, check};
pub use batches::attention_batches;
use head::{HeadGrads, Outputs, Sequence};
use relative::Tables;
pub use relative::{RelativePositions, bucket};

mod batches;
mod head;
mod relative;

/// Shape and masks of one attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionShape {
    /// Sequences in the batch.
    pub batch: usize,
    /// Rows of each sequence, padding included.
    pub seq: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`. Query head `h` reads key head `h / (n_heads / n_kv_heads)`.
    pub n_kv_heads: usize,
    /// Values of one head.
    pub head_size: usize,
    /// Whether position `t` sees only the keys `0..=t`.
    pub causal: bool,
    /// Factor of the scores, as a rule `1 / sqrt(head_size)`.
    pub scale: f32,
    /// Valid keys of each sequence, 1 to `seq`; keys from there on are padding, which nothing sees. Rows of padded
    /// queries are computed too (they see the valid keys). Empty: nothing is padded.
    pub lengths: Vec<usize>,
}

impl AttentionShape {
    fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
        let op = "attention";
        let &Self { batch, seq, n_heads, n_kv_heads, head_size, .. } = self;
        let positive = [batch, seq, n_heads, n_kv_heads, head_size].into_iter().all(|n| n > 0);
        check::value(op, "the shape", positive, || "every number at least 1".into(), format!("{self:?}"))?;
        let divides = n_heads % n_kv_heads == 0;
        check::value(op, "n_kv_heads", divides, || format!("a divisor of n_heads {n_heads}"), n_kv_heads)?;
        check::value(op, "scale", self.scale.is_finite(), || "a finite number".into(), self.scale)?;
        check::shape(op, "q", q, &[batch * seq, n_heads * head_size])?;
        check::shape(op, "k", k, &[batch * seq, n_kv_heads * head_size])?;
        check::shape(op, "v", v, &[batch * seq, n_kv_heads * head_size])?;
        let counted = self.lengths.is_empty() || self.lengths.len() == batch;
        check::value(
            op,
            "the number of lengths",
            counted,
            || format!("{batch} or none"),
            self.lengths.len(),
        )?;
        for &length in &self.lengths {
            check::value(op, "a length", (1..=seq).contains(&length), || format!("1 to {seq}"), length)?;
        }
        Ok(())
    }

    fn length(&self, sequence: usize) -> usize {
        self.lengths.get(sequence).copied().unwrap_or(self.seq)
    }

    /// One sequence of the batch. Behind the sequences of `q` and `k` there may be a table.
    fn sequence<'a>(
        &'a self,
        b: usize,
        [q, k, v]: [&'a [f32]; 3],
        positions: Option<&'a RelativePositions>,
    ) -> Sequence<'a> {
        let q_rows = self.seq * self.n_heads * self.head_size;
        let kv_rows = self.seq * self.n_kv_heads * self.head_size;
        let table =
            |x: &'a [f32], rows: usize| Some(&x[self.batch * rows..]).filter(|table| !table.is_empty());
        let tables = positions.map(|positions| Tables {
            positions,
            keys: table(k, kv_rows),
            queries: table(q, q_rows),
        });
        Sequence {
            shape: self,
            tables,
            length: self.length(b),
            q: &q[b * q_rows..][..q_rows],
            k: &k[b * kv_rows..][..kv_rows],
            v: &v[b * kv_rows..][..kv_rows],
        }
    }

    /// Keys that query `t` of a sequence with `length` valid keys sees.
    fn visible(&self, t: usize, length: usize) -> usize {
        if self.causal { length.min(t + 1) } else { length }
    }
}

/// `y = softmax(scale * q k^T + mask) v` for each sequence and head.
///
/// `q` [batch * seq, n_heads * head_size], `k` and `v` [batch * seq, n_kv_heads * head_size]; gives the shape of `q`.
/// Neither forward nor backward keeps the probabilities: they are computed again from one number a row.
///
/// # Errors
/// If a shape or type does not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    shape.check(q, k, v)?;
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        return Ok(super::cuda::attention::attention(q, k, v, shape)?);
    }
    fused(q, k, v, shape, None)
}

/// [`attention`] in plain candle operators.
///
/// # Errors
/// If a shape does not fit.
pub fn attention_composed(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    shape.check(q, k, v)?;
    composed(q, k, v, shape, None)
}

/// `y = softmax(s + mask) v` with `s[i, j] = scale * (q[i] k[j] + q[i] K[b(i - j)] + k[j] Q[b(i - j)])` for each sequence and
/// head, as many heads of keys as of queries, in both directions.
///
/// `q` and `k` [batch * seq, width], each perhaps followed by the rows of a table [table_rows, width]: Q behind `q`, K behind
/// `k`, one of them at least; `v` [batch * seq, width], and so is the result. `positions` is b.
///
/// # Errors
/// If a shape or type does not fit.
pub fn relative_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: &AttentionShape,
    positions: &RelativePositions,
) -> Result<Tensor> {
    check_relative(q, k, v, shape, positions)?;
    fused(q, k, v, shape, Some(positions))
}

/// [`relative_attention`] in plain candle operators.
///
/// # Errors
/// If a shape does not fit.
pub fn relative_attention_composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: &AttentionShape,
    positions: &RelativePositions,
) -> Result<Tensor> {
    check_relative(q, k, v, shape, positions)?;
    composed(q, k, v, shape, Some(positions))
}

fn check_relative(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: &AttentionShape,
    positions: &RelativePositions,
) -> Result<()> {
    let op = "relative_attention";
    let &AttentionShape { batch, seq, n_heads, n_kv_heads, causal, .. } = shape;
    let both = !causal && n_heads == n_kv_heads;
    let expected = || "as many key heads as query heads, and no causal mask".into();
    check::value(op, "the shape", both, expected, format!("{shape:?}"))?;
    let max = positions.max_rows();
    check::value(op, "the sequence length", seq <= max, || format!("at most {max}"), seq)?;
    let (tokens, table) = (batch * seq, positions.table_rows());
    let mut tables = 0;
    for (what, x) in [("the rows of q", q), ("the rows of k", k)] {
        let (rows, _) = check::matrix(op, what, x)?;
        let fits = rows == tokens || rows == tokens + table;
        check::value(op, what, fits, || format!("{tokens}, or {} with a table", tokens + table), rows)?;
        tables += usize::from(rows > tokens);
    }
    check::value(op, "the number of tables", tables > 0, || "1 or 2".into(), tables)?;
    shape.check(&q.narrow(0, 0, tokens)?, &k.narrow(0, 0, tokens)?, v)
}

fn fused(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: &AttentionShape,
    positions: Option<&RelativePositions>,
) -> Result<Tensor> {
    if !q.device().is_cpu() {
        return composed(q, k, v, shape, positions);
    }
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let (y, log_sums) = with_host(&[q.detach(), k.detach()], &v.detach(), |inputs, v| {
        forward([inputs[0], inputs[1], v], shape, positions)
    })?;
    let dims = (shape.batch * shape.seq, shape.n_heads * shape.head_size);
    Ok(node(&[&q, &k, &v], Output::Host(y), dims, || Attention {
        shape: shape.clone(),
        positions: positions.cloned(),
        log_sums,
    })?)
}

fn composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: &AttentionShape,
    positions: Option<&RelativePositions>,
) -> Result<Tensor> {
    let &AttentionShape { batch, seq, n_heads, n_kv_heads, head_size, .. } = shape;
    let group = n_heads / n_kv_heads;
    let tokens = batch * seq;
    let heads = |x: &Tensor, n: usize| {
        let x = x.narrow(0, 0, tokens)?.reshape((batch, seq, n, head_size))?;
        x.transpose(1, 2)?.contiguous()
    };
    let repeat = |x: &Tensor| {
        let x =
            heads(x, n_kv_heads)?.unsqueeze(2)?.broadcast_as((batch, n_kv_heads, group, seq, head_size))?;
        x.reshape((batch, n_heads, seq, head_size))
    };
    // Products of rows [batch, n_heads, seq, head_size] with the table behind the sequences of `x`.
    let with_table = |rows: &Tensor, x: &Tensor, n: usize| {
        let table = x.narrow(0, tokens, n)?.reshape((n, n_heads, head_size))?.permute((1, 2, 0))?;
        rows.matmul(&table.unsqueeze(0)?.broadcast_as((batch, n_heads, head_size, n))?.contiguous()?)
    };
    let (queries, keys, values) = (heads(q, n_heads)?, repeat(k)?, repeat(v)?);
    let mut scores = queries.matmul(&keys.transpose(2, 3)?.contiguous()?)?;
    if let Some(positions) = positions {
        let n = positions.table_rows();
        // [query, key], and the transpose.
        let places: Vec<u32> = (0..seq).flat_map(|i| positions.of_query(i)[..seq].to_vec()).collect();
        let places = Tensor::from_vec(places, (1, 1, seq, seq), scores.device())?;
        let spread = |x: &Tensor| x.broadcast_as((batch, n_heads, seq, seq))?.contiguous();
        if k.dim(0)? > tokens {
            scores = (scores + with_table(&queries, k, n)?.gather(&spread(&places)?, 3)?)?;
        }
        if q.dim(0)? > tokens {
            let by_key = with_table(&keys, q, n)?.gather(&spread(&places.transpose(2, 3)?)?, 3)?;
            scores = (scores + by_key.transpose(2, 3)?)?;
        }
    }
    let scores = (scores * f64::from(shape.scale))?;
    let mask: Vec<f32> = (0..batch)
        .flat_map(|b| (0..seq).map(move |t| (b, t)))
        .flat_map(|(b, t)| {
            let visible = shape.visible(t, shape.length(b));
            (0..seq).map(move |key| if key < visible { 0.0 } else { f32::NEG_INFINITY })
        })
        .collect();
    let mask = Tensor::from_vec(mask, (batch, 1, seq, seq), scores.device())?;
    let scores = scores.broadcast_add(&mask)?;
    let largest = scores.max_keepdim(D::Minus1)?.detach();
    let weights = scores.broadcast_sub(&largest)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    Ok(weights.matmul(&values)?.transpose(1, 2)?.reshape((tokens, n_heads * head_size))?)
}

/// Returns the output and, for each (sequence, head, query), the logarithm of the sum of exponentials.
fn forward(
    inputs: [&[f32]; 3],
    shape: &AttentionShape,
    positions: Option<&RelativePositions>,
) -> (Vec<f32>, Vec<f32>) {
    let &AttentionShape { seq, n_heads, n_kv_heads, head_size, .. } = shape;
    let mut y = vec![0.0; shape.batch * seq * n_heads * head_size];
    let mut log_sums = vec![0.0; shape.batch * n_heads * seq];
    let outputs = y.par_chunks_mut(seq * n_heads * head_size).zip(log_sums.par_chunks_mut(n_heads * seq));
    outputs.enumerate().for_each(|(b, (y, log_sums))| {
        let sequence = shape.sequence(b, inputs, positions);
        let groups: Vec<Vec<Vec<f32>>> = log_sums
            .par_chunks_mut(n_heads / n_kv_heads * seq)
            .enumerate()
            .map(|(kv_head, log_sums)| head::forward(&sequence, kv_head, log_sums))
            .collect();
        scatter(y, false, groups.iter().flatten().map(Vec::as_slice), head_size);
    });
    (y, log_sums)
}

/// Writes heads [seq, head_size] side by side into rows.
fn scatter<'a>(
    y: &mut [f32],
    accumulate: bool,
    heads: impl Iterator<Item = &'a [f32]> + Clone,
    head_size: usize,
) {
    let width = heads.clone().count() * head_size;
    for (head, x) in heads.enumerate() {
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(head_size)) {
            for (y, x) in y[head * head_size..].iter_mut().zip(x) {
                *y = if accumulate { *y + x } else { *x };
            }
        }
    }
}

struct Attention {
    shape: AttentionShape,
    positions: Option<RelativePositions>,
    log_sums: Vec<f32>,
}

impl Backward for Attention {
    fn name(&self) -> &'static str {
        if self.positions.is_some() { "relative_attention" } else { "attention" }
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let shape = &self.shape;
        let &AttentionShape { batch, seq, n_heads, n_kv_heads, head_size, .. } = shape;
        let (q_rows, kv_rows) = (seq * n_heads * head_size, seq * n_kv_heads * head_size);
        let &[q, k, v] = args.inputs else { unreachable!("attention has three inputs") };
        let (q_tokens, kv_tokens) = (batch * q_rows, batch * kv_rows);
        let parts: Vec<Vec<HeadGrads>> = (0..batch)
            .into_par_iter()
            .map(|b| {
                let sequence = shape.sequence(b, [q, k, v], self.positions.as_ref());
                let outputs = Outputs {
                    y: &args.output[b * q_rows..][..q_rows],
                    dy: &args.grad[b * q_rows..][..q_rows],
                    log_sums: &self.log_sums[b * n_heads * seq..][..n_heads * seq],
                };
                let kv_heads = (0..n_kv_heads).into_par_iter();
                kv_heads.map(|kv_head| head::backward(&sequence, &outputs, kv_head)).collect()
            })
            .collect();
        let [dq, dk, dv] = sinks else { unreachable!("attention has three inputs") };
        // Every sequence adds to the table's gradient, one after the other.
        let sum_tables = |d: &mut [f32], accumulate: bool, grads: fn(&HeadGrads) -> &[f32]| {
            if d.is_empty() {
                return;
            }
            for (b, parts) in parts.iter().enumerate() {
                scatter(d, accumulate || b > 0, parts.iter().map(grads), head_size);
            }
        };
        dq.write(q.len(), |dq, accumulate| {
            let (dq, table) = dq.split_at_mut(q_tokens);
            sum_tables(table, accumulate, |part| &part.tables.queries);
            dq.par_chunks_mut(q_rows).zip(&parts).for_each(|(dq, parts)| {
                scatter(dq, accumulate, parts.iter().flat_map(|part| &part.dq).map(Vec::as_slice), head_size);
            });
        });
        dk.write(k.len(), |dk, accumulate| {
            let (dk, table) = dk.split_at_mut(kv_tokens);
            sum_tables(table, accumulate, |part| &part.tables.keys);
            dk.par_chunks_mut(kv_rows).zip(&parts).for_each(|(dk, parts)| {
                scatter(dk, accumulate, parts.iter().map(|part| part.dk.as_slice()), head_size);
            });
        });
        dv.write(v.len(), |dv, accumulate| {
            dv.par_chunks_mut(kv_rows).zip(&parts).for_each(|(dv, parts)| {
                scatter(dv, accumulate, parts.iter().map(|part| part.dv.as_slice()), head_size);
            });
        });
    }
}
