//! Which tensors of a network are weights, and a model whose weights are variables.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use rankpatch_format::graph::{HostOp, Op, TensorId};
use rankpatch_format::write::Network;

use super::Model;
use crate::Result;

/// The tensors that an operator reads, to be renumbered, and whether each is a weight: rotary frequencies, the scale of
/// features and the tables of a front end are constants.
pub(crate) fn tensors(op: &mut Op) -> Vec<(&mut TensorId, bool)> {
    match op {
        Op::Linear { weight, bias, .. } | Op::Host(HostOp::AppendTable { table: weight, bias, .. }) => {
            [weight].into_iter().chain(bias.as_mut()).map(|id| (id, true)).collect()
        }
        Op::LayerNorm { weight, bias, .. } | Op::Host(HostOp::Convolution { weight, bias, .. }) => {
            vec![(weight, true), (bias, true)]
        }
        Op::Embedding { table: weight }
        | Op::RmsNorm { weight, .. }
        | Op::AddPosition { table: weight, .. }
        | Op::PrependToken { token: weight, .. } => vec![(weight, true)],
        Op::Rope { inv_freq: constant, .. } | Op::Scale { weight: constant, .. } => vec![(constant, false)],
        Op::Mfcc { window, bands, mel, dct, .. } => {
            [window, bands, mel, dct].into_iter().map(|id| (id, false)).collect()
        }
        Op::Features { .. }
        | Op::Attention { .. }
        | Op::Silu { .. }
        | Op::Gelu { .. }
        | Op::GeluErf { .. }
        | Op::Tanh { .. }
        | Op::Add { .. }
        | Op::Mul { .. }
        | Op::SelectRow { .. }
        | Op::MeanPool { .. }
        | Op::Host(HostOp::RelativeAttention { .. }) => Vec::new(),
    }
}

impl Model {
    /// Puts a network on `device` with variables for weights: a pass then gives them gradients, and whoever sets one changes
    /// the model. Clones of it share them. Types are f32.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn trainable(network: &Network, device: &Device) -> Result<Self> {
        let mut model = Self::new(network, device)?;
        for mut op in model.ops.clone() {
            for (id, _) in tensors(&mut op).into_iter().filter(|(_, is_weight)| *is_weight) {
                let tensor = &mut model.tensors[usize::from(*id)];
                if !tensor.is_variable() {
                    let var = Var::from_tensor(&tensor.copy()?)?;
                    *tensor = var.as_tensor().clone();
                    model.variables.insert(*id, var);
                }
            }
        }
        Ok(model)
    }

    /// Whether weights are variables.
    pub fn is_trainable(&self) -> bool {
        !self.variables.is_empty()
    }

    /// The variables that the output depends on, or with `head` what a task head reads; by tensor. None unless the model is
    /// [trainable](Model::trainable).
    pub fn variables(&self, head: bool) -> BTreeMap<TensorId, Var> {
        let uses = self.uses(usize::from(if head { self.features } else { self.output }));
        let read = self.ops.iter().zip(uses).filter(|(_, uses)| *uses > 0);
        let ids = read.flat_map(|(op, _)| {
            let mut op = *op;
            tensors(&mut op).into_iter().map(|(id, _)| *id).collect::<Vec<_>>()
        });
        ids.filter_map(|id| Some((id, self.variables.get(&id)?.clone()))).collect()
    }

    /// A tensor as it is now, row-major.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub(crate) fn numbers(&self, id: TensorId) -> Result<Vec<f32>> {
        let host: Tensor = self.tensor(id).flatten_all()?.to_device(&Device::Cpu)?;
        Ok(host.to_dtype(candle_core::DType::F32)?.to_vec1()?)
    }
}
