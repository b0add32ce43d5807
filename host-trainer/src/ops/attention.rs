//! Softmax attention with grouped heads, causal or bidirectional, over padded batches.

use candle_core::{D, Tensor};
use rayon::prelude::*;

use super::graph::{Backward, HostArgs, Output, Sink, node, with_host};
use super::{Result, check, math};

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
        check::value(op, "the number of lengths", counted, || format!("{batch} or none"), self.lengths.len())?;
        for &length in &self.lengths {
            check::value(op, "a length", (1..=seq).contains(&length), || format!("1 to {seq}"), length)?;
        }
        Ok(())
    }

    fn length(&self, sequence: usize) -> usize {
        self.lengths.get(sequence).copied().unwrap_or(self.seq)
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
    if !q.device().is_cpu() {
        return attention_composed(q, k, v, shape);
    }
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let (y, log_sums) = with_host(&[q.detach(), k.detach()], &v.detach(), |inputs, v| {
        forward(inputs[0], inputs[1], v, shape)
    })?;
    let dims = q.dims().to_vec();
    Ok(node(&[&q, &k, &v], Output::Host(y), dims, || Attention { shape: shape.clone(), log_sums })?)
}

/// [`attention`] in plain candle operators.
///
/// # Errors
/// If a shape does not fit.
pub fn attention_composed(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape) -> Result<Tensor> {
    shape.check(q, k, v)?;
    let &AttentionShape { batch, seq, n_heads, n_kv_heads, head_size, .. } = shape;
    let group = n_heads / n_kv_heads;
    let heads = |x: &Tensor, n: usize| x.reshape((batch, seq, n, head_size))?.transpose(1, 2)?.contiguous();
    let repeat = |x: &Tensor| {
        let x = heads(x, n_kv_heads)?.unsqueeze(2)?.broadcast_as((batch, n_kv_heads, group, seq, head_size))?;
        x.reshape((batch, n_heads, seq, head_size))
    };
    let (q, k, v) = (heads(q, n_heads)?, repeat(k)?, repeat(v)?);
    let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * f64::from(shape.scale))?;
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
    Ok(weights.matmul(&v)?.transpose(1, 2)?.reshape((batch * seq, n_heads * head_size))?)
}

/// Returns the output and, for each (sequence, head, query), the logarithm of the sum of exponentials.
fn forward(q: &[f32], k: &[f32], v: &[f32], shape: &AttentionShape) -> (Vec<f32>, Vec<f32>) {
    let &AttentionShape { seq, n_heads, n_kv_heads, head_size, .. } = shape;
    let (q_width, kv_width) = (n_heads * head_size, n_kv_heads * head_size);
    let group = n_heads / n_kv_heads;
    let mut y = vec![0.0; q.len()];
    let mut log_sums = vec![0.0; shape.batch * n_heads * seq];
    let outputs = y.par_chunks_mut(seq * q_width).zip(log_sums.par_chunks_mut(n_heads * seq));
    outputs.enumerate().for_each(|(b, (y, log_sums))| {
        let q = &q[b * seq * q_width..][..seq * q_width];
        let k = &k[b * seq * kv_width..][..seq * kv_width];
        let v = &v[b * seq * kv_width..][..seq * kv_width];
        let length = shape.length(b);
        let heads: Vec<Vec<f32>> = log_sums
            .par_chunks_mut(seq)
            .enumerate()
            .map(|(head, log_sums)| {
                let k = Head::columns(k, kv_width, head / group, head_size);
                let v = Head::rows(v, kv_width, head / group, head_size);
                let mut y = vec![0.0; seq * head_size];
                let mut scores = vec![0.0; seq];
                for (t, (y, log_sum)) in y.chunks_exact_mut(head_size).zip(log_sums).enumerate() {
                    let q = &q[t * q_width + head * head_size..][..head_size];
                    let scores = &mut scores[..shape.visible(t, length)];
                    k.scores(scores, q, shape.scale);
                    let largest = scores.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s));
                    for score in scores.iter_mut() {
                        *score = math::exp(*score - largest);
                    }
                    let sum: f32 = scores.iter().sum();
                    *log_sum = largest + sum.ln();
                    for (weight, v) in scores.iter().zip(v.0.chunks_exact(head_size)) {
                        for (y, v) in y.iter_mut().zip(v) {
                            *y += weight * v;
                        }
                    }
                    for y in y {
                        *y /= sum;
                    }
                }
                y
            })
            .collect();
        scatter(y, false, &heads, head_size);
    });
    (y, log_sums)
}

/// One head of a sequence, gathered.
struct Head(Vec<f32>);

impl Head {
    /// [seq, head_size].
    fn rows(x: &[f32], width: usize, head: usize, head_size: usize) -> Self {
        Self(x.chunks_exact(width).flat_map(|row| &row[head * head_size..][..head_size]).copied().collect())
    }

    /// [head_size, seq].
    fn columns(x: &[f32], width: usize, head: usize, head_size: usize) -> Self {
        let columns = (0..head_size).flat_map(|c| x.chunks_exact(width).map(move |row| row[head * head_size + c]));
        Self(columns.collect())
    }

    /// `scores[j] = scale * sum over c of q[c] * self[c, j]`, for a head stored by columns.
    fn scores(&self, scores: &mut [f32], q: &[f32], scale: f32) {
        let seq = self.0.len() / q.len();
        scores.fill(0.0);
        for (q, column) in q.iter().zip(self.0.chunks_exact(seq)) {
            let q = q * scale;
            for (score, k) in scores.iter_mut().zip(column) {
                *score += q * k;
            }
        }
    }
}

/// Writes heads [seq, head_size] side by side into rows.
fn scatter(y: &mut [f32], accumulate: bool, heads: &[Vec<f32>], head_size: usize) {
    let width = heads.len() * head_size;
    y.par_chunks_mut(width).enumerate().for_each(|(t, y)| {
        for (y, head) in y.chunks_exact_mut(head_size).zip(heads) {
            for (y, x) in y.iter_mut().zip(&head[t * head_size..]) {
                *y = if accumulate { *y + x } else { *x };
            }
        }
    });
}

struct Attention {
    shape: AttentionShape,
    log_sums: Vec<f32>,
}

impl Backward for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn host(&self, args: HostArgs<'_>, sinks: &mut [Sink]) {
        let shape = &self.shape;
        let &AttentionShape { batch, seq, n_heads, n_kv_heads, head_size, .. } = shape;
        let (q_width, kv_width) = (n_heads * head_size, n_kv_heads * head_size);
        let &[q, k, v] = args.inputs else { unreachable!("attention has three inputs") };
        let (y, dy) = (args.output, &*args.grad);
        // Gradients of all heads: [batch][kv head] -> (dq of each head of the group, dk, dv).
        let parts: Vec<Vec<HeadGrads>> = (0..batch)
            .into_par_iter()
            .map(|b| {
                let rows = |width: usize| b * seq * width..(b + 1) * seq * width;
                let (q, y, dy) = (&q[rows(q_width)], &y[rows(q_width)], &dy[rows(q_width)]);
                let (k, v) = (&k[rows(kv_width)], &v[rows(kv_width)]);
                (0..n_kv_heads)
                    .into_par_iter()
                    .map(|kv_head| {
                        let log_sums = &self.log_sums[b * n_heads * seq..][..n_heads * seq];
                        head_grads(shape, shape.length(b), kv_head, [q, k, v, y, dy], log_sums)
                    })
                    .collect()
            })
            .collect();
        let [dq, dk, dv] = sinks else { unreachable!("attention has three inputs") };
        let spread = |sink: &mut Sink, len: usize, width: usize, pick: &dyn Fn(&HeadGrads) -> Vec<Vec<f32>>| {
            sink.write(len, |grad, accumulate| {
                for (grad, parts) in grad.chunks_exact_mut(seq * width).zip(&parts) {
                    let heads: Vec<Vec<f32>> = parts.iter().flat_map(pick).collect();
                    scatter(grad, accumulate, &heads, head_size);
                }
            });
        };
        spread(dq, q.len(), q_width, &|part| part.dq.clone());
        spread(dk, k.len(), kv_width, &|part| vec![part.dk.clone()]);
        spread(dv, v.len(), kv_width, &|part| vec![part.dv.clone()]);
    }
}

/// Gradients of one key head and the query heads that read it.
struct HeadGrads {
    dq: Vec<Vec<f32>>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// With `p` the probabilities and `d[t] = sum over c of dy[t, c] y[t, c]`:
/// `dv = p^T dy`, `ds = p * (dy v^T - d)`, `dq = scale ds k`, `dk = scale ds^T q`.
fn head_grads(
    shape: &AttentionShape,
    length: usize,
    kv_head: usize,
    [q, k, v, y, dy]: [&[f32]; 5],
    log_sums: &[f32],
) -> HeadGrads {
    let &AttentionShape { seq, n_heads, n_kv_heads, head_size, scale, .. } = shape;
    let (q_width, kv_width) = (n_heads * head_size, n_kv_heads * head_size);
    let group = n_heads / n_kv_heads;
    let k_columns = Head::columns(k, kv_width, kv_head, head_size);
    let v_columns = Head::columns(v, kv_width, kv_head, head_size);
    let k_rows = Head::rows(k, kv_width, kv_head, head_size);
    let mut dk = vec![0.0; seq * head_size];
    let mut dv = vec![0.0; seq * head_size];
    let (mut p, mut dp) = (vec![0.0; seq], vec![0.0; seq]);
    let dq = (kv_head * group..(kv_head + 1) * group)
        .map(|head| {
            let mut dq = vec![0.0; seq * head_size];
            for (t, dq) in dq.chunks_exact_mut(head_size).enumerate() {
                let row = t * q_width + head * head_size..t * q_width + (head + 1) * head_size;
                let (q, y, dy) = (&q[row.clone()], &y[row.clone()], &dy[row]);
                let visible = shape.visible(t, length);
                let (p, dp) = (&mut p[..visible], &mut dp[..visible]);
                k_columns.scores(p, q, scale);
                let log_sum = log_sums[head * seq + t];
                for p in p.iter_mut() {
                    *p = math::exp(*p - log_sum);
                }
                v_columns.scores(dp, dy, 1.0);
                let delta: f32 = dy.iter().zip(y).map(|(dy, y)| dy * y).sum();
                for (dp, p) in dp.iter_mut().zip(&*p) {
                    *dp = *p * (*dp - delta) * scale;
                }
                for (ds, k) in dp.iter().zip(k_rows.0.chunks_exact(head_size)) {
                    for (dq, k) in dq.iter_mut().zip(k) {
                        *dq += ds * k;
                    }
                }
                for ((ds, p), (dk, dv)) in
                    dp.iter().zip(&*p).zip(dk.chunks_exact_mut(head_size).zip(dv.chunks_exact_mut(head_size)))
                {
                    for ((dk, q), (dv, dy)) in dk.iter_mut().zip(q).zip(dv.iter_mut().zip(dy)) {
                        *dk += ds * q;
                        *dv += p * dy;
                    }
                }
            }
            dq
        })
        .collect();
    HeadGrads { dq, dk, dv }
}
