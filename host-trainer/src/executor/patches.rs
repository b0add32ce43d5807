//! The factors that patch the sites in a pass: one set for all rows, or a set for each batch.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::Factors;
use crate::Result;
use crate::ops::{self, LoraFactors, LoraGroup};

/// The factors of one site for many batches that run together.
#[derive(Debug, Clone)]
pub struct StackedFactors {
    /// lora_a of the batches that have factors here, one below the other: `[sum of ranks, in_features]`.
    pub lora_a: Tensor,
    /// lora_b of these batches, each row-major `[out_features, rank]`, one behind the other:
    /// `[out_features * sum of ranks]`.
    pub lora_b: Tensor,
    /// One for each batch.
    pub groups: Vec<StackedGroup>,
}

/// What a batch has at a site.
#[derive(Debug, Clone, Default)]
pub struct StackedGroup {
    /// Rank of its factors; 0 for a batch that gets the base alone.
    pub rank: usize,
    /// As in [`Factors`].
    pub scaling: f64,
    /// As in [`Factors`], for the rows of the batch.
    pub dropout_mask: Option<Tensor>,
}

/// The factors of a pass, by site.
#[derive(Clone, Copy)]
pub(super) enum Patches<'a> {
    /// The same for all rows.
    One(&'a BTreeMap<u16, Factors>),
    /// Other ones for each batch.
    Many(&'a BTreeMap<u16, StackedFactors>),
}

impl Patches<'_> {
    /// The sites that are patched.
    pub(super) fn sites(self) -> impl Iterator<Item = u16> {
        let (one, many) = match self {
            Self::One(factors) => (Some(factors.keys()), None),
            Self::Many(factors) => (None, Some(factors.keys())),
        };
        one.into_iter().flatten().chain(many.into_iter().flatten()).copied()
    }

    /// The linear operator at a site; `rows` are those of each batch.
    pub(super) fn linear(
        self,
        site: u16,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        rows: impl Iterator<Item = usize>,
    ) -> Result<Tensor> {
        match self {
            Self::One(factors) => {
                if let Some(factors) = factors.get(&site) {
                    let lora = LoraFactors {
                        a: &factors.lora_a,
                        b: &factors.lora_b,
                        scaling: factors.scaling as f32,
                        dropout_mask: factors.dropout_mask.as_ref(),
                    };
                    return Ok(ops::lora_linear(x, weight, bias, &lora)?);
                }
            }
            Self::Many(factors) => {
                if let Some(StackedFactors { lora_a, lora_b, groups }) = factors.get(&site) {
                    let groups = groups.iter().zip(rows).map(|(group, rows)| LoraGroup {
                        rows,
                        rank: group.rank,
                        scaling: group.scaling as f32,
                        dropout_mask: group.dropout_mask.as_ref(),
                    });
                    let groups: Vec<LoraGroup<'_>> = groups.collect();
                    let lora = ops::StackedFactors { a: lora_a, b: lora_b, groups: &groups };
                    return Ok(ops::lora_linear_groups(x, weight, bias, &lora)?);
                }
            }
        }
        Ok(ops::linear(x, weight, bias)?)
    }
}
