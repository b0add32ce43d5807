//! Attention: products by cuBLAS over [sequences, heads], the softmax between them by a kernel.
//!
//! Query heads that share a key head lie behind each other, so they are rows of one product and no key is copied. The
//! backward computes the scores again; what is kept of the forward is one number a query.

use candle_core::{DType, Result, Tensor};

use super::super::attention::AttentionShape;
use super::super::graph::{Backward, Output, node};
use super::kernel;
use super::kernels::{Arg, NULL, Product, Side, Work, int, launch, multiply, pointer, unwritten};

/// `softmax(scale * q k^T + mask) v`.
pub(in crate::ops) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: &AttentionShape,
) -> Result<Tensor> {
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let &AttentionShape { batch, seq, n_heads, n_kv_heads, ref lengths, .. } = shape;
    let lengths: Option<Tensor> = if lengths.is_empty() {
        None
    } else {
        let lengths: Vec<u32> = lengths.iter().map(|length| *length as u32).collect();
        Some(Tensor::from_vec(lengths, batch, q.device())?)
    };
    let op = Attention {
        shape: shape.clone(),
        lengths,
        log_sums: unwritten(batch * n_heads * seq, DType::F32, q.device())?,
    };
    let heads = |x: &Tensor, heads| op.move_heads(x, heads, false);
    let scores = op.products(Side::Plain(&heads(&q, n_heads)?), &heads(&k, n_kv_heads)?)?;
    let rows = batch * n_heads * seq;
    let mut args = vec![pointer(&scores)?, pointer(&op.log_sums)?];
    args.extend(op.rows_args(rows)?);
    launch(q.device(), &kernel("softmax_forward", &q), Work::Rows(rows), &args)?;
    let y = op.weighted(Side::Plain(&scores), &heads(&v, n_kv_heads)?)?;
    let y = op.move_heads(&y, n_heads, true)?;
    let dims = q.dims().to_vec();
    node(&[&q, &k, &v], Output::Device(y), dims, || op)
}

struct Attention {
    shape: AttentionShape,
    lengths: Option<Tensor>,
    /// [batch, n_heads, seq].
    log_sums: Tensor,
}

impl Attention {
    /// [batch * seq, heads * head_size] to [batch, heads, seq, head_size], or back.
    fn move_heads(&self, x: &Tensor, heads: usize, back: bool) -> Result<Tensor> {
        let &AttentionShape { batch, seq, head_size, .. } = &self.shape;
        let shape =
            if back { vec![batch * seq, heads * head_size] } else { vec![batch, heads, seq, head_size] };
        let y = unwritten(shape, x.dtype(), x.device())?;
        let args = [
            pointer(x)?,
            pointer(&y)?,
            int(batch)?,
            int(seq)?,
            int(heads)?,
            int(head_size)?,
            Arg::Int(back.into()),
        ];
        launch(x.device(), &kernel("move_heads", x), Work::Values(x.elem_count()), &args)?;
        Ok(y)
    }

    /// The arguments that both softmax kernels end with.
    fn rows_args(&self, rows: usize) -> Result<[Arg; 6]> {
        let &AttentionShape { seq, n_heads, causal, scale, .. } = &self.shape;
        let lengths = self.lengths.as_ref().map_or(Ok(NULL), pointer)?;
        Ok([lengths, int(rows)?, int(seq)?, int(n_heads)?, Arg::Int(causal.into()), Arg::Float(scale)])
    }

    /// Queries (or gradients of outputs) times keys (or values), transposed: [batch, n_heads, seq, seq].
    fn products(&self, rows: Side<'_>, keys: &Tensor) -> Result<Tensor> {
        let &AttentionShape { batch, seq, n_heads, n_kv_heads, head_size, .. } = &self.shape;
        let scores = unwritten((batch, n_heads, seq, seq), keys.dtype(), keys.device())?;
        let product = Product {
            batch: batch * n_kv_heads,
            rows: n_heads / n_kv_heads * seq,
            cols: seq,
            inner: head_size,
            factor: 1.0,
            accumulate: false,
        };
        multiply(&scores, rows, Side::Transposed(keys), &product)?;
        Ok(scores)
    }

    /// Weights [batch, n_heads, seq, seq] times values (or keys): a row for each query, or, if the weights are
    /// transposed, for each key the sum over the queries of its group.
    fn weighted(&self, weights: Side<'_>, values: &Tensor) -> Result<Tensor> {
        let &AttentionShape { batch, seq, n_heads, n_kv_heads, head_size, .. } = &self.shape;
        let queries = n_heads / n_kv_heads * seq;
        let (heads, rows, inner) = match weights {
            Side::Plain(_) => (n_heads, queries, seq),
            Side::Transposed(_) => (n_kv_heads, seq, queries),
        };
        let y = unwritten((batch, heads, seq, head_size), values.dtype(), values.device())?;
        let product = Product {
            batch: batch * n_kv_heads,
            rows,
            cols: head_size,
            inner,
            factor: 1.0,
            accumulate: false,
        };
        multiply(&y, weights, Side::Plain(values), &product)?;
        Ok(y)
    }
}

impl Backward for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    /// `dv = p^T dy`, `ds = scale p * (dy v^T - sum of p dy v^T)`, `dq = ds k`, `dk = ds^T q`.
    fn device(&self, inputs: &[Tensor], grad: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let [q, k, v] = inputs else { unreachable!("attention has three inputs") };
        let &AttentionShape { batch, seq, n_heads, n_kv_heads, .. } = &self.shape;
        let (q, dy) = (self.move_heads(q, n_heads, false)?, self.move_heads(grad, n_heads, false)?);
        let (k, v) = (self.move_heads(k, n_kv_heads, false)?, self.move_heads(v, n_kv_heads, false)?);
        let p = self.products(Side::Plain(&q), &k)?;
        let ds = self.products(Side::Plain(&dy), &v)?;
        let rows = batch * n_heads * seq;
        let mut args = vec![pointer(&p)?, pointer(&ds)?, pointer(&self.log_sums)?];
        args.extend(self.rows_args(rows)?);
        launch(grad.device(), &kernel("softmax_backward", grad), Work::Rows(rows), &args)?;
        let back = |x: Tensor, heads| self.move_heads(&x, heads, true).map(Some);
        Ok(vec![
            if wanted[0] { back(self.weighted(Side::Plain(&ds), &k)?, n_heads)? } else { None },
            if wanted[1] { back(self.weighted(Side::Transposed(&ds), &q)?, n_kv_heads)? } else { None },
            if wanted[2] { back(self.weighted(Side::Transposed(&p), &dy)?, n_kv_heads)? } else { None },
        ])
    }
}
