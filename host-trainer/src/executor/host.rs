//! The operators of a graph that only trainers run.

use candle_core::Tensor;
use rankpatch_format::graph::{HostOp, Op, Rows, Shape, ValueId};

use super::{Batch, Model, Pass};
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
        Ok(match op {
            HostOp::AppendTable { input, table, bias } => {
                let table = self.tensor(table);
                let mut table = if table.rank() == 1 { table.unsqueeze(0)? } else { table.clone() };
                if let Some(bias) = bias {
                    table = ops::add_bias(&table, self.bias(bias))?;
                }
                let batches: Vec<usize> =
                    pass.batches.iter().map(|batch| self.all_rows(input, batch)).collect();
                ops::append_table(pass.get(input)?, &table, &batches)?
            }
            HostOp::RelativeAttention { q, k, v, n_heads, scale, .. } => {
                let n_heads = usize::from(n_heads);
                let positions = self.positions[usize::from(index)].as_ref();
                let positions = positions.ok_or_else(|| super::missing(index.into()))?;
                self.each_batch(pass, [q, k, v], |batch, [q, k, v]| {
                    let shape = AttentionShape {
                        batch: batch.sequences,
                        seq: batch.rows,
                        n_heads,
                        n_kv_heads: n_heads,
                        head_size: v.dim(1)? / n_heads,
                        causal: false,
                        scale,
                        lengths: batch.lengths.clone(),
                    };
                    Ok(ops::relative_attention(q, k, v, &shape, positions)?)
                })?
            }
            HostOp::Convolution { input, weight, bias, reach } => {
                let x = self.each_batch(pass, [input], |batch, [x]| {
                    Ok(ops::neighbours(x, batch.rows, &batch.lengths, reach.into())?)
                })?;
                ops::linear(&x, self.tensor(weight), Some(self.bias(bias)))?
            }
        })
    }

    /// Runs an operator on the rows that each batch has of some values, and puts what it gives one behind the other.
    fn each_batch<const N: usize>(
        &self,
        pass: &Pass<'_>,
        values: [ValueId; N],
        run: impl Fn(&Batch, [&Tensor; N]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut inputs = Vec::with_capacity(N);
        for value in values {
            inputs.push(pass.get(value)?);
        }
        if let [batch] = pass.batches {
            return run(batch, std::array::from_fn(|i| inputs[i]));
        }
        let mut first = [0; N];
        let mut parts = Vec::with_capacity(pass.batches.len());
        for batch in pass.batches {
            let mut own = Vec::with_capacity(N);
            for ((input, value), first) in inputs.iter().zip(values).zip(&mut first) {
                let rows = self.all_rows(value, batch);
                own.push(ops::slice_rows(input, *first, rows)?);
                *first += rows;
            }
            parts.push(run(batch, std::array::from_fn(|i| &own[i]))?);
        }
        Ok(ops::concat_rows(&parts)?)
    }
}
