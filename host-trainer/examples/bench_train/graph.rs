//! The same graph on the same operators, trained in another way than the trainer does: in full, or for many tasks at once.
//!
//! In full, every weight of a linear layer is trained, and its bias; the embedding and the norms stay frozen, which favours
//! full fine-tuning in the comparison. For many tasks, each has its rows and, at every site but the classifier, its factors.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use candle_core::{Device, Tensor, Var};
use rankpatch::ops::{self, AttentionShape, LoraGroup, RopeTable, StackedFactors};
use rankpatch::optim::{AdamW, AdamWConfig, Param};
use rankpatch::rng::Rng;
use rankpatch::train::{DeviceKind, Example, Sequence, open_device};
use rankpatch_format::graph::{Op, ValueId};
use rankpatch_format::write::{self, Network};

/// A run over one batch, again and again.
pub(crate) struct GraphRun {
    ops: Vec<Op>,
    output: ValueId,
    /// Weights by their place: variables where a linear layer reads them.
    tensors: Vec<Tensor>,
    /// Stacked factors of the tasks, by the place of the operator; none when training in full.
    factors: BTreeMap<usize, (Var, Var)>,
    tasks: usize,
    rank: usize,
    optimizer: AdamW,
    batch: usize,
    seq: usize,
    ids: Tensor,
    targets: Tensor,
    weights: Tensor,
    device: Device,
}

impl GraphRun {
    /// With rank 0 in full; otherwise so many tasks, to whom the examples belong one after the other.
    pub(crate) fn new(
        network: &Network,
        examples: &[Example],
        device: DeviceKind,
        (tasks, rank): (usize, usize),
    ) -> Result<Self> {
        let device = open_device(device)?;
        let mut tensors = network.tensors.iter().map(|t| float(t, &device)).collect::<Result<Vec<_>>>()?;
        let mut params = BTreeMap::new();
        let mut factors = BTreeMap::new();
        for (index, op) in network.ops.iter().enumerate() {
            let Op::Linear { weight, bias, .. } = *op else { continue };
            if rank > 0 {
                if index == usize::from(network.output) {
                    continue;
                }
                let (out, inner) = tensors[usize::from(weight)].dims2()?;
                let values = Rng::new(3, "factors").kaiming_uniform(inner, tasks * rank * inner);
                let a = Var::from_vec(values, (tasks * rank, inner), &device)?;
                let b = Var::zeros(tasks * out * rank, candle_core::DType::F32, &device)?;
                params.insert(format!("{index}.a"), Param::new(a.clone()));
                params.insert(format!("{index}.b"), Param::new(b.clone()));
                factors.insert(index, (a, b));
                continue;
            }
            for id in [weight].into_iter().chain(bias).map(usize::from) {
                if !tensors[id].is_variable() {
                    let var = Var::from_tensor(&tensors[id])?;
                    tensors[id] = var.as_tensor().clone();
                    params.insert(format!("tensor.{id}"), Param::new(var));
                }
            }
        }
        let (mut ids, mut targets) = (Vec::new(), Vec::new());
        for example in examples {
            let Sequence::Tokens(tokens) = &example.sequence else { bail!("expected token ids") };
            ids.extend(tokens[..tokens.len() - 1].iter().copied());
            targets.extend(tokens[1..].iter().copied());
        }
        let rows = ids.len();
        Ok(Self {
            ops: network.ops.clone(),
            output: network.output,
            tensors,
            factors,
            tasks,
            rank,
            optimizer: AdamW::new(
                params,
                AdamWConfig { max_grad_norm: Some(1.0), ..AdamWConfig::default() },
            )?,
            batch: examples.len(),
            seq: rows / examples.len(),
            ids: Tensor::from_vec(ids, rows, &device)?,
            targets: Tensor::from_vec(targets, rows, &device)?,
            weights: Tensor::ones(rows, candle_core::DType::F32, &device)?,
            device,
        })
    }

    pub(crate) fn step(&mut self) -> Result<f64> {
        let loss = || -> Result<Tensor, Box<dyn std::error::Error + Send + Sync>> { Ok(self.loss()?) };
        let (loss, grads) = ops::value_and_grad(loss).map_err(|error| anyhow::anyhow!(error))?;
        self.optimizer.step(&grads, 1e-3)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    pub(crate) fn trained(&self) -> usize {
        self.optimizer.params().values().map(|param| param.var.elem_count()).sum()
    }

    fn loss(&self) -> ops::Result<Tensor> {
        let mut values: Vec<Option<Tensor>> = vec![None; self.ops.len()];
        for index in 0..=usize::from(self.output) {
            let value = self.value(index, &values)?;
            values[index] = Some(value);
        }
        ops::cross_entropy(get(&values, self.output)?, &self.targets, &self.weights)
    }

    fn value(&self, index: usize, values: &[Option<Tensor>]) -> ops::Result<Tensor> {
        let tensor = |id: u16| &self.tensors[usize::from(id)];
        let get = |id: ValueId| get(values, id);
        match self.ops[index] {
            Op::Embedding { table } => ops::embedding(tensor(table), &self.ids),
            Op::Linear { input, weight, bias } => {
                let (x, weight, bias) = (get(input)?, tensor(weight), bias.map(tensor));
                let Some((a, b)) = self.factors.get(&index) else { return ops::linear(x, weight, bias) };
                let rows = x.dim(0)? / self.tasks;
                let group = LoraGroup { rows, rank: self.rank, scaling: 2.0, dropout_mask: None };
                let groups = vec![group; self.tasks];
                ops::lora_linear_groups(x, weight, bias, &StackedFactors { a, b, groups: &groups })
            }
            Op::RmsNorm { input, weight, eps } => ops::rms_norm(get(input)?, tensor(weight), eps),
            Op::LayerNorm { input, weight, bias, eps } => {
                ops::layer_norm(get(input)?, tensor(weight), tensor(bias), eps)
            }
            Op::Rope { input, inv_freq } => {
                let positions: Vec<u32> = (0..self.batch).flat_map(|_| 0..self.seq as u32).collect();
                let inv_freq: Vec<f32> = tensor(inv_freq).to_vec1()?;
                ops::rope(get(input)?, &RopeTable::new(&positions, &inv_freq, &self.device)?)
            }
            Op::AddPosition { input, table } => ops::add_positions(get(input)?, tensor(table), self.seq),
            Op::Attention { q, k, v, n_heads, n_kv_heads, causal, scale } => {
                let q = get(q)?;
                let shape = AttentionShape {
                    batch: self.batch,
                    seq: self.seq,
                    n_heads: n_heads.into(),
                    n_kv_heads: n_kv_heads.into(),
                    head_size: q.dim(1)? / usize::from(n_heads),
                    causal,
                    scale,
                    lengths: Vec::new(),
                };
                ops::attention(q, get(k)?, get(v)?, &shape)
            }
            Op::Silu { input } => ops::silu(get(input)?),
            Op::Gelu { input } => ops::gelu(get(input)?),
            Op::Add { a, b } => ops::add(get(a)?, get(b)?),
            Op::Mul { a, b } => ops::mul(get(a)?, get(b)?),
            ref other => {
                Err(candle_core::Error::Msg(format!("no shape of this benchmark has {other:?}")).into())
            }
        }
    }
}

fn get(values: &[Option<Tensor>], id: ValueId) -> ops::Result<&Tensor> {
    let missing = || candle_core::Error::Msg(format!("value {id} is read before it is written"));
    Ok(values[usize::from(id)].as_ref().ok_or_else(missing)?)
}

fn float(tensor: &write::Tensor, device: &Device) -> Result<Tensor> {
    let (data, rows, cols) = match tensor {
        write::Tensor::Floats { rows, cols, data } | write::Tensor::Matrix { rows, cols, data } => {
            (data, *rows as usize, *cols as usize)
        }
        write::Tensor::Codes { .. } => bail!("expected float weights"),
    };
    let vector = rows == 1 && matches!(tensor, write::Tensor::Floats { .. });
    Ok(if vector {
        Tensor::from_slice(data, cols, device)?
    } else {
        Tensor::from_slice(data, (rows, cols), device)?
    })
}
