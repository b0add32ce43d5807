//! What full fine-tuning comes to: another network, with the task's head in it where the graph has an operator for that.
//!
//! It knows graphs and weights; files are [`crate::import::network`]'s business.

use rankpatch_format::adapter::Pooling;
use rankpatch_format::graph::Op;
use rankpatch_format::write::{Network, Tensor};

use super::learner::Learner;
use crate::Result;
use crate::executor::{Model, dequantize, tensors};
use crate::lora::{HEAD, HeadWeights};

/// A base whose weights a task has trained.
#[derive(Debug, Clone, PartialEq)]
pub struct FullyTrained {
    /// The network in float.
    pub network: Network,
    /// The task head, unless it is the network's output: pooling of the last row has no operator, since a device that reads
    /// text row by row has the last one anyway.
    pub head: Option<HeadWeights>,
}

impl FullyTrained {
    /// What a run has come to so far; `network` is the one that it started from, `model` the one that it trains.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub fn of(learner: &Learner, model: &Model, network: &Network) -> Result<Self> {
        let mut trained = network.clone();
        let variables = model.variables(false).into_keys().chain(model.variables(true).into_keys());
        for id in variables {
            let data = model.numbers(id)?;
            let tensor = &mut trained.tensors[usize::from(id)];
            let shape = tensor.shape();
            *tensor = match tensor {
                Tensor::Floats { .. } => Tensor::Floats { rows: shape.rows, cols: shape.cols, data },
                _ => Tensor::Matrix { rows: shape.rows, cols: shape.cols, data },
            };
        }
        // What is behind the features has not been trained; it is the base as it was trained on.
        for tensor in &mut trained.tensors {
            if let Tensor::Codes { rows, cols, .. } = *tensor {
                *tensor = Tensor::Matrix { rows, cols, data: dequantize(tensor).into_owned() };
            }
        }
        let head = learner.adapter()?.head;
        Ok(match head {
            Some(head) if head.pooling == Pooling::Mean || model.features_are_one_row() => {
                let one_row = model.features_are_one_row();
                Self { network: with_head(trained, head, one_row), head: None }
            }
            head => Self { network: trained, head },
        })
    }
}

/// The network as far as its features, and behind them the head as its output.
fn with_head(network: Network, head: HeadWeights, one_row: bool) -> Network {
    let Network {
        name,
        mut ops,
        tensors: old,
        tensor_names,
        mut site_names,
        features,
        max_rows,
        vocabulary,
        ..
    } = network;
    ops.truncate(usize::from(features) + 1);
    let n_sites = ops.iter().filter(|op| matches!(op, Op::Linear { .. })).count();
    site_names.truncate(n_sites);
    // Tensors that are still read, in their order.
    let mut kept: Vec<Option<u16>> = vec![None; old.len()];
    for op in &mut ops {
        tensors(op).into_iter().for_each(|(id, _)| kept[usize::from(*id)] = Some(0));
    }
    let mut next = 0;
    for place in kept.iter_mut().flatten() {
        *place = next;
        next += 1;
    }
    for op in &mut ops {
        for (id, _) in tensors(op) {
            *id = kept[usize::from(*id)].unwrap_or_default();
        }
    }
    let named =
        |(id, tensor)| (tensor_names.get(id).cloned().unwrap_or_else(|| format!("tensor.{id}")), tensor);
    let (mut names, mut tensors): (Vec<String>, Vec<Tensor>) =
        old.into_iter().enumerate().filter(|(id, _)| kept[*id].is_some()).map(named).unzip();
    let HeadWeights { weight, bias, labels, .. } = head;
    let outputs = labels.len() as u32;
    names.extend([format!("{HEAD}.weight"), format!("{HEAD}.bias")]);
    tensors.extend([
        Tensor::Matrix { rows: outputs, cols: weight.len() as u32 / outputs, data: weight },
        Tensor::Floats { rows: 1, cols: outputs, data: bias },
    ]);
    let mut input = features;
    if !one_row {
        ops.push(Op::MeanPool { input });
        input += 1;
    }
    ops.push(Op::Linear { input, weight: next, bias: Some(next + 1) });
    site_names.push(HEAD.into());
    let output = ops.len() as u16 - 1;
    // A head that an adapter brings reads what this one reads.
    Network {
        name,
        ops,
        tensors,
        tensor_names: names,
        site_names,
        labels,
        output,
        features: input,
        max_rows,
        vocabulary,
    }
}
