//! Operators that trainers run and devices do not: what networks need that are adapted for a server or a phone.
//!
//! A base image holds none of them ([`crate::write::Network::write`] refuses), so no device's reader knows them and no
//! firmware carries them. A network that has them is trained from its importer's files, and its adapters leave as PEFT folders.

use serde::Serialize;

use super::{Op, Rows, Shape, TensorId, TensorShape, ValueId};
use crate::{Result, What};

/// One operator of [`Op::Host`]. Formulas use x for the input, y for the output, t for a row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum HostOp {
    /// y = the rows of x, then those of a table `[n, width]`, each plus b. In a batch the table comes once, behind all
    /// sequences: a site that reads y projects tokens and table with one weight and one pair of factors.
    AppendTable {
        /// x.
        input: ValueId,
        /// The table, f32.
        table: TensorId,
        /// b `[width]`: the bias of the norm that the table has gone through.
        bias: Option<TensorId>,
    },
    /// DeBERTa's disentangled attention, in both directions, per head: y = softmax(scale s) v with
    /// s\[i, j\] = q\[i\] k\[j\] + q\[i\] K\[b(i - j)\] + k\[j\] Q\[b(i - j)\].
    ///
    /// Q and K `[2 n, width]` are the rows of a table behind the tokens' rows of `q` and `k`; a term whose table is not there
    /// is left out. b(d) = d + n within 0..2 n, for d = the bucket of the distance: with m = `buckets` / 2 a distance of at
    /// most m is its own bucket, a longer one, up to `max_distance` - 1,
    /// sign(d) (m + ceil(ln(|d| / m) / ln((`max_distance` - 1) / m) (m - 1))).
    RelativeAttention {
        /// q `[rows, width]`, then perhaps Q.
        q: ValueId,
        /// k `[rows, width]`, then perhaps K.
        k: ValueId,
        /// v `[rows, width]`.
        v: ValueId,
        /// Heads, as many of keys and values as of queries.
        n_heads: u16,
        /// The factor before the softmax: 1 / sqrt(head_size * (1 + tables)).
        scale: f32,
        /// Buckets of distances in one direction; 0: every distance is one.
        buckets: u16,
        /// The distance from which on all are one bucket.
        max_distance: u16,
    },
    /// y\[t\] = W (x\[t - reach\], ..., x\[t + reach\]) + b, with the int8 matrix W `[out, (2 reach + 1) width]`; rows outside
    /// of the sequence are zero. It is frozen: no site.
    Convolution {
        /// x.
        input: ValueId,
        /// W; of each of its rows, the first `width` columns belong to x\[t - reach\].
        weight: TensorId,
        /// b `[out]`.
        bias: TensorId,
        /// Rows on either side.
        reach: u8,
    },
}

impl HostOp {
    /// The operator in words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AppendTable { .. } => "a table appended to rows",
            Self::RelativeAttention { .. } => "attention over relative positions",
            Self::Convolution { .. } => "a convolution over tokens",
        }
    }

    /// See [`Op::inputs`].
    pub(super) fn inputs(&self) -> [Option<ValueId>; 3] {
        match *self {
            Self::AppendTable { input, .. } | Self::Convolution { input, .. } => [Some(input), None, None],
            Self::RelativeAttention { q, k, v, .. } => [Some(q), Some(k), Some(v)],
        }
    }

    /// See [`Op::infer`], which lends its look-ups.
    pub(super) fn infer(
        &self,
        index: u16,
        tensor: impl Fn(TensorId) -> Result<TensorShape>,
        value: impl Fn(ValueId) -> Result<Shape>,
    ) -> Result<Shape> {
        let mismatch = |what, expected, found| super::mismatch(index, what, expected, found);
        let tokens = Rows::Tokens { extra: 0 };
        match *self {
            Self::AppendTable { input, table, bias } => {
                let (x, t) = (value(input)?, tensor(table)?);
                if t.quantized || t.cols != x.width {
                    return mismatch(What::PositionTableWidth, x.width, t.cols);
                }
                if let Some(bias) = bias {
                    let b = tensor(bias)?;
                    if b.quantized || b.rows != 1 || b.cols != x.width {
                        return mismatch(What::VectorLength, x.width, b.cols);
                    }
                }
                if x.rows != tokens {
                    return mismatch(What::TokenRows, 0, 1);
                }
                Ok(Shape { rows: Rows::Tabled { table: t.rows }, width: x.width })
            }
            Self::RelativeAttention { q, k, v, n_heads, scale, .. } => {
                let (q, k, v) = (value(q)?, value(k)?, value(v)?);
                if q.width.checked_rem(n_heads.into()) != Some(0) {
                    return mismatch(What::Heads, q.width, n_heads.into());
                }
                for (what, x) in [(What::KeyWidth, k), (What::ValueHeadWidth, v)] {
                    if x.width != q.width {
                        return mismatch(what, q.width, x.width);
                    }
                }
                let table = |rows| match rows {
                    Rows::Tabled { table } => Some(table),
                    rows => (rows == tokens).then_some(0),
                };
                let (Some(queries), Some(keys)) = (table(q.rows), table(k.rows)) else {
                    return mismatch(What::AttentionRows, 0, 1);
                };
                // Two tables are one table, projected twice; its rows stand for distances in both directions.
                let rows = queries.max(keys);
                if v.rows != tokens || rows == 0 || (queries > 0 && keys > 0 && queries != keys) {
                    return mismatch(What::AttentionRows, queries, keys);
                }
                if !rows.is_multiple_of(2) {
                    return mismatch(What::PositionTableRows, rows + 1, rows);
                }
                super::positive(index, What::AttentionScale, scale)?;
                Ok(v)
            }
            Self::Convolution { input, weight, bias, reach } => {
                let (x, w, b) = (value(input)?, tensor(weight)?, tensor(bias)?);
                let expected = x.width.saturating_mul(u32::from(reach) * 2 + 1);
                if !w.quantized || w.cols != expected {
                    return mismatch(What::InFeatures, expected, w.cols);
                }
                if b.quantized || b.rows != 1 || b.cols != w.rows {
                    return mismatch(What::VectorLength, w.rows, b.cols);
                }
                if x.rows != tokens {
                    return mismatch(What::TokenRows, 0, 1);
                }
                Ok(Shape { rows: x.rows, width: w.rows })
            }
        }
    }
}

/// The first operator of a network that only a trainer runs.
pub(crate) fn first(ops: &[Op]) -> Option<(u16, HostOp)> {
    (0..).zip(ops).find_map(|(index, op)| match op {
        Op::Host(op) => Some((index, *op)),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
