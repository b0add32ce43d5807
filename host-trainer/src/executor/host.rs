//! The operators of a graph that only trainers run.

use candle_core::Tensor;
use rankpatch_format::graph::{HostOp, Op, Rows, Shape, ValueId};

use super::{Model, Pass};
use crate::Result;
use crate::ops::{self, AttentionShape, RelativePositions};

/// The relative positions of each operator that has any, by operator.
pub(super) fn positions(ops: &[Op], shapes: &[Shape], max_rows: usize) -> Vec<Option<RelativePositions>> {
    let of = |op: &Op| {
        let Op::Host(HostOp::RelativeAttention { q, k, buckets, max_distance, .. }) = *op else {
            return None;
        };
        let table = [q, k].into_iter().find_map(|value| match shapes[usize::from(value)].rows {
            Rows::Tabled { table } => Some(table as usize),
            _ => None,
        })?;
        Some(RelativePositions::new(table, buckets.into(), max_distance.into(), max_rows))
    };
    ops.iter().map(of).collect()
}

impl Model {
    pub(super) fn run_host(&self, index: ValueId, op: HostOp, pass: &Pass<'_>) -> Result<Tensor> {
        // Networks with these operators do not take several.
        let batch = pass.batches[0];
        Ok(match op {
            HostOp::AppendTable { input, table } => {
                let table = self.tensor(table);
                let table = if table.rank() == 1 { table.unsqueeze(0)? } else { table.clone() };
                ops::append_table(pass.get(input)?, &table)?
            }
            HostOp::RelativeAttention { q, k, v, n_heads, scale, .. } => {
                let n_heads = usize::from(n_heads);
                let shape = AttentionShape {
                    batch: batch.sequences,
                    seq: batch.rows,
                    n_heads,
                    n_kv_heads: n_heads,
                    head_size: self.width(q) / n_heads,
                    causal: false,
                    scale,
                    lengths: batch.lengths.clone(),
                };
                let positions = self.positions[usize::from(index)].as_ref();
                let positions = positions.ok_or_else(|| super::missing(index.into()))?;
                ops::relative_attention(pass.get(q)?, pass.get(k)?, pass.get(v)?, &shape, positions)?
            }
            HostOp::Convolution { input, weight, bias, reach } => {
                let x = ops::neighbours(pass.get(input)?, batch.rows, &batch.lengths, reach.into())?;
                ops::linear(&x, self.tensor(weight), Some(self.bias(bias)))?
            }
        })
    }
}
