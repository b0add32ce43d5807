//! The host executor: runs a network's graph on candle tensors in float, with gradients to the low-rank factors and the
//! task head.
//!
//! It knows the graph and the training operators; it does not know where a network comes from, what a loss is or how
//! anything is trained. Weights are the dequantized int8 codes where the network is quantized, so that training sees the
//! base that the device has.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use rankpatch_format::adapter::Pooling;
use rankpatch_format::graph::{Op, Rows, Shape, TensorId, ValueId};
use rankpatch_format::write::{self, Network};

use crate::ops::{self, AttentionShape, RelativePositions, RopeTable};
use crate::{Error, Result};

mod batch;
mod host;
mod patches;
#[cfg(test)]
mod tests;
mod variables;

pub use batch::{Batch, Input};
use patches::Patches;
pub use patches::{StackedFactors, StackedGroup};
pub(crate) use variables::tensors;

/// The low-rank factors of one site: delta_weight = scaling * lora_b lora_a.
#[derive(Debug, Clone)]
pub struct Factors {
    /// `[rank, in_features]`.
    pub lora_a: Tensor,
    /// `[out_features, rank]`.
    pub lora_b: Tensor,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scaling: f64,
    /// LoRA dropout, `[rows of the site, in_features]` of 0 or `1 / (1 - p)`; on the low-rank path only. See
    /// [`Model::site_rows`].
    pub dropout_mask: Option<Tensor>,
}

/// A task's own output layer: y = weight pool(features) + bias.
#[derive(Debug, Clone)]
pub struct TaskHead {
    /// How the rows of the features become one.
    pub pooling: Pooling,
    /// `[n_out, width]`.
    pub weight: Tensor,
    /// `[n_out]`; `None` for a head without.
    pub bias: Option<Tensor>,
}

/// One linear operator that factors may patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteInfo {
    /// Dotted path.
    pub name: String,
    /// out_features.
    pub out_features: usize,
    /// in_features.
    pub in_features: usize,
    /// Whether this site writes the network's output.
    pub writes_output: bool,
}

/// A network on a device (CPU or GPU), ready to run. Nothing in it is ever trained, unless it was made
/// [trainable](Model::trainable), but biases that [`Model::with_biases`] puts there.
#[derive(Debug, Clone)]
pub struct Model {
    ops: Vec<Op>,
    shapes: Vec<Shape>,
    tensors: Vec<Tensor>,
    /// Those that are weights of a trainable model.
    variables: BTreeMap<TensorId, Var>,
    /// What is added where the graph says to add a tensor as a bias; its own for those that are not here.
    biases: BTreeMap<TensorId, Tensor>,
    /// inv_freq of each rotary operator, by tensor.
    inv_freq: BTreeMap<TensorId, Vec<f32>>,
    /// The relative positions that each operator reads, if it reads any.
    positions: Vec<Option<RelativePositions>>,
    /// The site that each operator is, if it is one.
    site_of: Vec<Option<u16>>,
    sites: Vec<SiteInfo>,
    row_scales: Arc<[Vec<f32>]>,
    output: ValueId,
    features: ValueId,
    max_rows: usize,
    /// Type of matrices and activations.
    dtype: DType,
    device: Device,
}

/// Which batches a network takes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joins {
    /// Any.
    All,
    /// Those of sequences of one number of rows, padding included.
    OfOneLength,
}

/// Values, while a pass runs.
struct Pass<'a> {
    /// What runs; the rows of a value are those of the first batch, then those of the second, and so on.
    batches: &'a [&'a Batch],
    values: Vec<Option<Tensor>>,
    ropes: HashMap<TensorId, RopeTable>,
}

/// Sequences of one length that lie one behind the other.
struct Run {
    /// Rows of each, padding included.
    rows: usize,
    /// Rows of each that count.
    lengths: Vec<usize>,
}

impl Model {
    /// Puts a network on `device`. Codes are dequantized once: W\[o, i\] = scales\[o\] * codes\[o, i\].
    ///
    /// # Errors
    /// If an operator's shapes do not fit or the device refuses a tensor.
    pub fn new(network: &Network, device: &Device) -> Result<Self> {
        Self::with_dtype(network, device, DType::F32)
    }

    /// The same with matrices, and so activations, of another type: bf16 on a GPU. Vectors stay f32, as do factors, the
    /// loss and everything that is summed.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn with_dtype(network: &Network, device: &Device, dtype: DType) -> Result<Self> {
        let shapes = network.shapes()?;
        let mut tensors = Vec::with_capacity(network.tensors.len());
        for tensor in &network.tensors {
            let shape = tensor.shape();
            let dims = (shape.rows as usize, shape.cols as usize);
            let tensor = Tensor::from_slice(&dequantize(tensor), dims, device)?;
            // Vectors are one row in the format and have one dimension in the operators.
            tensors.push(if shape.rows == 1 && !shape.quantized {
                tensor.flatten_all()?
            } else {
                tensor.to_dtype(dtype)?
            });
        }
        let mut site_of = Vec::with_capacity(network.ops.len());
        let mut sites = Vec::new();
        let mut row_scales = Vec::new();
        let mut inv_freq = BTreeMap::new();
        for (index, op) in (0u16..).zip(&network.ops) {
            site_of.push(None);
            match *op {
                Op::Linear { weight, .. } => {
                    let tensor = &network.tensors[usize::from(weight)];
                    let site = sites.len() as u16;
                    site_of[usize::from(index)] = Some(site);
                    let name = network.site_names.get(usize::from(site)).cloned();
                    sites.push(SiteInfo {
                        name: name.unwrap_or_else(|| format!("site.{site}")),
                        out_features: tensor.shape().rows as usize,
                        in_features: tensor.shape().cols as usize,
                        writes_output: index == network.output,
                    });
                    row_scales.push(match tensor {
                        write::Tensor::Codes { scales, .. } => scales.clone(),
                        _ => Vec::new(),
                    });
                }
                Op::Rope { inv_freq: id, .. } => {
                    inv_freq.insert(id, dequantize(&network.tensors[usize::from(id)]).into_owned());
                }
                _ => {}
            }
        }
        Ok(Self {
            ops: network.ops.clone(),
            positions: host::positions(&network.ops, &shapes, network.max_rows as usize),
            shapes,
            tensors,
            variables: BTreeMap::new(),
            biases: BTreeMap::new(),
            inv_freq,
            site_of,
            sites,
            row_scales: row_scales.into(),
            output: network.output,
            features: network.features,
            max_rows: network.max_rows as usize,
            dtype,
            device: device.clone(),
        })
    }

    /// The same network over the same weights with other biases, `[out_features]` or `[width]` each; those that are variables get
    /// gradients.
    #[must_use]
    pub fn with_biases(&self, biases: impl IntoIterator<Item = (TensorId, Tensor)>) -> Self {
        Self { biases: biases.into_iter().collect(), ..self.clone() }
    }

    /// The sites in canonical order.
    pub fn sites(&self) -> &[SiteInfo] {
        &self.sites
    }

    /// The base weight's row scales at a site `[out_features]`; empty if the network is not quantized or there is no
    /// such site.
    pub fn row_scales(&self, site: u16) -> &[f32] {
        self.row_scales.get(usize::from(site)).map_or(&[], Vec::as_slice)
    }

    /// Rows of the input of a site in a pass over `batch`, for dropout masks: sequences times rows, or one a sequence
    /// where a row was selected, and those of a table that was appended to all; 0 if there is no such site.
    pub fn site_rows(&self, site: u16, batch: &Batch) -> usize {
        let op = self.site_of.iter().position(|of| *of == Some(site));
        op.map_or(0, |op| self.all_rows(op as ValueId, batch))
    }

    /// Width of the feature rows that the network reads; 0 if it reads token ids.
    pub fn input_width(&self) -> usize {
        match self.ops.first() {
            Some(Op::Features { .. } | Op::Mfcc { .. }) => self.width(0),
            _ => 0,
        }
    }

    /// Width of the value that a task head reads.
    pub fn features_width(&self) -> usize {
        self.width(self.features)
    }

    /// Whether the value that a task head reads is one row per sequence already.
    pub fn features_are_one_row(&self) -> bool {
        self.shapes.get(usize::from(self.features)).is_some_and(|shape| shape.rows == Rows::One)
    }

    /// Width of the output.
    pub fn output_width(&self) -> usize {
        self.width(self.output)
    }

    /// Longest sequence.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Type of matrices and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn width(&self, value: ValueId) -> usize {
        self.shapes.get(usize::from(value)).map_or(0, |shape| shape.width as usize)
    }

    /// Runs a batch; `factors` patch the sites they are filed under.
    ///
    /// Without a head, gives the network's output: `[sequences * rows, width]`, or `[sequences, width]` if the output is
    /// one row. With a head, gives `[sequences, n_out]`. Operators that the result does not need do not run: a head
    /// stops the pass at the features. Rows of padding hold unspecified values.
    ///
    /// # Errors
    /// If the batch does not fit the network, factors are filed under no site, or a factor or the head has the wrong
    /// shape.
    pub fn forward(
        &self,
        batch: &Batch,
        factors: &BTreeMap<u16, Factors>,
        head: Option<&TaskHead>,
    ) -> Result<Tensor> {
        let target = if head.is_some() { self.features } else { self.output };
        let value = self.value(target, &[batch], Patches::One(factors))?;
        match head {
            None => Ok(value),
            Some(head) => self.apply_head(&value, batch, head),
        }
    }

    /// Runs a batch as far as the value that a task head reads: `[sequences * rows, width]`, or `[sequences, width]` if
    /// that is one row. With a frozen body these may be computed once and kept.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn features(&self, batch: &Batch, factors: &BTreeMap<u16, Factors>) -> Result<Tensor> {
        self.value(self.features, &[batch], Patches::One(factors))
    }

    /// Runs many batches over the base together, each with factors of its own, and gives the rows of the network's output of
    /// all of them, one batch behind the other; with `heads` those of the value that task heads read.
    ///
    /// A batch gets the bits that it gets alone.
    ///
    /// # Errors
    /// As [`Model::forward`]; [`Error::Batch`] if the network does not take these batches together, see [`Model::joins`].
    pub fn forward_many(
        &self,
        batches: &[&Batch],
        factors: &BTreeMap<u16, StackedFactors>,
        heads: bool,
    ) -> Result<Tensor> {
        let target = if heads { self.features } else { self.output };
        self.value(target, batches, Patches::Many(factors))
    }

    /// Applies a task's head to one of the batches of [`Model::forward_many`]: `[sequences, n_out]`.
    ///
    /// # Errors
    /// If the head has the wrong shape.
    pub fn head_of(
        &self,
        features: &Tensor,
        batches: &[&Batch],
        index: usize,
        head: &TaskHead,
    ) -> Result<Tensor> {
        let rows = |batch: &&Batch| self.all_rows(self.features, batch);
        let first = batches[..index].iter().map(rows).sum();
        let own = ops::slice_rows(features, first, rows(&batches[index]))?;
        self.apply_head(&own, batches[index], head)
    }

    /// Which batches [`Model::forward_many`] takes together.
    pub fn joins(&self) -> Joins {
        let any = |found: fn(&Op) -> bool| self.ops.iter().any(found);
        if any(|op| matches!(op, Op::PrependToken { .. } | Op::MeanPool { .. })) {
            Joins::OfOneLength
        } else {
            Joins::All
        }
    }

    fn value(&self, target: ValueId, batches: &[&Batch], factors: Patches<'_>) -> Result<Tensor> {
        for batch in batches {
            self.check(batch)?;
        }
        if let Some(found) = factors.sites().find(|site| usize::from(*site) >= self.sites.len()) {
            return Err(Error::UnknownSite { found, n_sites: self.sites.len() });
        }
        let target = usize::from(target);
        let uses = self.uses(target);
        let mut left = uses.clone();
        let mut pass = Pass { batches, values: vec![None; self.ops.len()], ropes: HashMap::new() };
        for index in 0..=target {
            // SiLU with one reader, a product, runs inside of that product.
            if left[index] == 0 || self.is_gate(index, &uses) {
                continue;
            }
            let value = self.run(index, &mut pass, factors, &uses)?;
            pass.values[index] = Some(value);
            for input in self.read_by(index, &uses) {
                left[input] -= 1;
                if left[input] == 0 {
                    pass.values[input] = None;
                }
            }
        }
        pass.take(target)
    }

    /// How often each value is read on the way to `target`; 0 for those that are not needed.
    fn uses(&self, target: usize) -> Vec<u32> {
        let mut uses = vec![0; self.ops.len()];
        uses[target] = 1;
        for index in (0..=target).rev() {
            if uses[index] > 0 {
                for input in self.ops[index].inputs().into_iter().flatten() {
                    uses[usize::from(input)] += 1;
                }
            }
        }
        uses
    }

    /// Whether this is a SiLU that its only reader, a product, computes.
    fn is_gate(&self, index: usize, uses: &[u32]) -> bool {
        let reads = |op: &Op| matches!(*op, Op::Mul { a, b } if usize::from(a) == index && a != b);
        let mut needed = self.ops.iter().zip(uses).filter(|(_, uses)| **uses > 0).map(|(op, _)| op);
        matches!(self.ops[index], Op::Silu { .. }) && uses[index] == 1 && needed.any(reads)
    }

    /// The values that an operator reads, those of a SiLU that runs inside of it instead of the SiLU itself.
    fn read_by(&self, index: usize, uses: &[u32]) -> Vec<usize> {
        let inputs = self.ops[index].inputs().into_iter().flatten().map(usize::from);
        inputs
            .map(|input| match self.ops[input] {
                Op::Silu { input: x } if self.is_gate(input, uses) => usize::from(x),
                _ => input,
            })
            .collect()
    }

    fn run(&self, index: usize, pass: &mut Pass<'_>, factors: Patches<'_>, uses: &[u32]) -> Result<Tensor> {
        let batches = pass.batches;
        Ok(match self.ops[index] {
            Op::Embedding { table } => {
                let ids: Vec<u32> = batches.iter().flat_map(|batch| batch.ids()).copied().collect();
                let count = ids.len();
                ops::embedding(self.tensor(table), &Tensor::from_vec(ids, count, &self.device)?)?
            }
            // Of samples, the device's code has made rows already: see `crate::features`.
            Op::Features { .. } | Op::Mfcc { .. } => {
                let values: Vec<f32> = batches.iter().flat_map(|batch| batch.values()).copied().collect();
                let width = self.width(0);
                let rows = values.len() / width;
                Tensor::from_vec(values, (rows, width), &self.device)?.to_dtype(self.dtype)?
            }
            Op::Linear { input, weight, bias } => {
                let (x, w) = (pass.get(input)?, self.tensor(weight));
                let bias = bias.map(|bias| self.bias(bias));
                match self.site_of[index] {
                    None => ops::linear(x, w, bias)?,
                    Some(site) => {
                        let rows = batches.iter().map(|batch| self.all_rows(input, batch));
                        factors.linear(site, x, w, bias, rows)?
                    }
                }
            }
            Op::RmsNorm { input, weight, eps } => ops::rms_norm(pass.get(input)?, self.tensor(weight), eps)?,
            Op::LayerNorm { input, weight, bias, eps } => {
                ops::layer_norm(pass.get(input)?, self.tensor(weight), self.bias(bias), eps)?
            }
            Op::Rope { input, inv_freq } => {
                let table = match pass.ropes.get(&inv_freq) {
                    Some(table) => table.clone(),
                    None => self.rope_table(inv_freq, input, batches)?,
                };
                pass.ropes.insert(inv_freq, table.clone());
                ops::rope(pass.get(input)?, &table)?
            }
            Op::AddPosition { input, table } => {
                let table = self.tensor(table);
                let table = if table.rank() == 1 { table.unsqueeze(0)? } else { table.clone() };
                if let Some(rows) = self.one_length(input, batches) {
                    ops::add_positions(pass.get(input)?, &table, rows)?
                } else {
                    let positions = self.positions(input, batches);
                    let positions = Tensor::new(positions.as_slice(), &self.device)?;
                    ops::add(pass.get(input)?, &ops::embedding(&table, &positions)?)?
                }
            }
            Op::Attention { q, k, v, n_heads, n_kv_heads, causal, scale } => {
                let n_heads = usize::from(n_heads);
                let shapes = self.runs(q, batches).into_iter().map(|run| AttentionShape {
                    batch: run.lengths.len(),
                    seq: run.rows,
                    n_heads,
                    n_kv_heads: n_kv_heads.into(),
                    head_size: self.width(q) / n_heads,
                    causal,
                    scale,
                    // A causal row never sees the padding after it.
                    lengths: if causal { Vec::new() } else { run.lengths },
                });
                let (q, k, v) = (pass.get(q)?, pass.get(k)?, pass.get(v)?);
                match &shapes.collect::<Vec<_>>()[..] {
                    [shape] => ops::attention(q, k, v, shape)?,
                    shapes => ops::attention_batches(q, k, v, shapes)?,
                }
            }
            Op::Silu { input } => ops::silu(pass.get(input)?)?,
            Op::Gelu { input } => ops::gelu(pass.get(input)?)?,
            Op::GeluErf { input } => ops::gelu_erf(pass.get(input)?)?,
            Op::Tanh { input } => ops::tanh(pass.get(input)?)?,
            Op::Add { a, b } => ops::add(pass.get(a)?, pass.get(b)?)?,
            Op::Mul { a, b } => match self.ops[usize::from(a)] {
                Op::Silu { input } if self.is_gate(a.into(), uses) => {
                    ops::silu_mul(pass.get(input)?, pass.get(b)?)?
                }
                _ => ops::mul(pass.get(a)?, pass.get(b)?)?,
            },
            Op::Scale { input, weight } => {
                pass.get(input)?.broadcast_mul(&self.tensor(weight).to_dtype(self.dtype)?)?
            }
            Op::PrependToken { input, token } => {
                ops::prepend_token(pass.get(input)?, self.tensor(token), self.the_length(input, batches)?)?
            }
            Op::SelectRow { input, row } => {
                let mut first = 0;
                let mut picked = Vec::new();
                for run in self.runs(input, batches) {
                    for _ in &run.lengths {
                        picked.push(first + row);
                        first += run.rows as u32;
                    }
                }
                ops::select_rows(pass.get(input)?, &picked)?
            }
            Op::MeanPool { input } => {
                let lengths: Vec<usize> =
                    batches.iter().flat_map(|batch| self.lengths(input, batch)).collect();
                ops::mean_pool(pass.get(input)?, self.the_length(input, batches)?, &lengths)?
            }
            Op::Host(op) => self.run_host(index as ValueId, op, pass)?,
        })
    }

    fn apply_head(&self, features: &Tensor, batch: &Batch, head: &TaskHead) -> Result<Tensor> {
        let rows = self.rows(self.features, batch);
        let lengths = self.lengths(self.features, batch);
        let pooled = match head.pooling {
            _ if self.features_are_one_row() => features.clone(),
            Pooling::Every | Pooling::Reread => features.clone(),
            Pooling::Mean => ops::mean_pool(features, rows, &lengths)?,
            Pooling::Last => {
                let last: Vec<u32> =
                    lengths.iter().enumerate().map(|(s, length)| (s * rows + length - 1) as u32).collect();
                ops::select_rows(features, &last)?
            }
        };
        Ok(ops::linear(&pooled, &head.weight, head.bias.as_ref())?)
    }

    fn check(&self, batch: &Batch) -> Result<()> {
        let fail = |what, expected: String, found: String| Err(Error::Batch { what, expected, found });
        let &Batch { sequences, rows, ref lengths, ref input } = batch;
        if sequences == 0 {
            return fail("sequences of a batch", "at least 1".into(), "0".into());
        }
        if rows == 0 || rows > self.max_rows {
            return fail("rows of a sequence", format!("1 to {}", self.max_rows), rows.to_string());
        }
        if lengths.len() != sequences {
            return fail("lengths of a batch", sequences.to_string(), lengths.len().to_string());
        }
        if let Some(length) = lengths.iter().find(|length| !(1..=rows).contains(*length)) {
            return fail("a length of a batch", format!("1 to {rows}"), length.to_string());
        }
        let (found, width) = match (input, self.ops.first()) {
            (Input::Tokens(ids), Some(Op::Embedding { .. })) => (ids.len(), 1),
            (Input::Features(values), Some(Op::Features { .. } | Op::Mfcc { .. })) => {
                (values.len(), self.width(0))
            }
            _ => return Err(self.wrong_input(batch)),
        };
        let expected = sequences * rows * width;
        if found == expected {
            Ok(())
        } else {
            fail(
                "values of a batch",
                format!("{sequences} * {rows} * {width} = {expected}"),
                found.to_string(),
            )
        }
    }

    fn wrong_input(&self, batch: &Batch) -> Error {
        let expected = match self.input_width() {
            0 => "token ids".into(),
            width => format!("features of width {width}"),
        };
        let found = match batch.input {
            Input::Tokens(_) => "token ids".into(),
            Input::Features(_) => "features".into(),
        };
        Error::Batch { what: "input of the network", expected, found }
    }

    fn rope_table(&self, inv_freq: TensorId, input: ValueId, batches: &[&Batch]) -> Result<RopeTable> {
        let inv_freq = self.inv_freq.get(&inv_freq).map_or(&[][..], Vec::as_slice);
        Ok(RopeTable::new(&self.positions(input, batches), inv_freq, &self.device)?)
    }

    /// The position of each row of a value in its sequence.
    fn positions(&self, value: ValueId, batches: &[&Batch]) -> Vec<u32> {
        let of =
            |batch: &&Batch| (0..batch.sequences).map(|_| self.rows(value, batch) as u32).collect::<Vec<_>>();
        batches.iter().flat_map(of).flat_map(|rows| 0..rows).collect()
    }

    /// The sequences of a value, neighbours of one length together.
    fn runs(&self, value: ValueId, batches: &[&Batch]) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for batch in batches {
            let (rows, lengths) = (self.rows(value, batch), self.lengths(value, batch));
            match runs.last_mut() {
                Some(run) if run.rows == rows => run.lengths.extend(lengths),
                _ => runs.push(Run { rows, lengths }),
            }
        }
        runs
    }

    /// Rows of each sequence of a value, if that is one number.
    fn one_length(&self, value: ValueId, batches: &[&Batch]) -> Option<usize> {
        match &self.runs(value, batches)[..] {
            [run] => Some(run.rows),
            _ => None,
        }
    }

    fn the_length(&self, value: ValueId, batches: &[&Batch]) -> Result<usize> {
        self.one_length(value, batches).ok_or_else(|| Error::Batch {
            what: "rows of the sequences that run together",
            expected: "one number (the network moves rows from sequence to sequence)".into(),
            found: "several".into(),
        })
    }

    /// Rows of one sequence of a value, padding included.
    fn rows(&self, value: ValueId, batch: &Batch) -> usize {
        self.shapes[usize::from(value)].rows.count(batch.rows)
    }

    /// Rows of a batch in a value: those of its sequences, and behind them those of a table, if there is one.
    fn all_rows(&self, value: ValueId, batch: &Batch) -> usize {
        match self.shapes[usize::from(value)].rows {
            Rows::Tabled { table } => batch.sequences * batch.rows + table as usize,
            rows => batch.sequences * rows.count(batch.rows),
        }
    }

    /// Rows of each sequence of a value that count.
    fn lengths(&self, value: ValueId, batch: &Batch) -> Vec<usize> {
        let rows = self.shapes[usize::from(value)].rows;
        batch.lengths.iter().map(|length| rows.count(*length)).collect()
    }

    fn bias(&self, id: TensorId) -> &Tensor {
        self.biases.get(&id).unwrap_or_else(|| self.tensor(id))
    }

    fn tensor(&self, id: TensorId) -> &Tensor {
        // `Network::shapes` looked every tensor up.
        &self.tensors[usize::from(id)]
    }
}

impl Pass<'_> {
    fn get(&self, value: ValueId) -> Result<&Tensor> {
        self.values[usize::from(value)].as_ref().ok_or_else(|| missing(value.into()))
    }

    fn take(mut self, value: usize) -> Result<Tensor> {
        self.values[value].take().ok_or_else(|| missing(value))
    }
}

/// A value that is read before it is written, which `Network::shapes` rules out.
fn missing(value: usize) -> Error {
    Error::Batch { what: "graph", expected: format!("value {value} to be computed"), found: "nothing".into() }
}

/// The numbers of a tensor, row-major.
pub(crate) fn dequantize(tensor: &write::Tensor) -> Cow<'_, [f32]> {
    match tensor {
        write::Tensor::Floats { data, .. } | write::Tensor::Matrix { data, .. } => Cow::Borrowed(data),
        write::Tensor::Codes { cols, codes, scales, .. } => {
            let rows = codes.chunks_exact((*cols as usize).max(1));
            let rows = rows
                .zip(scales)
                .flat_map(|(row, scale)| row.iter().map(move |code| f32::from(*code) * scale));
            Cow::Owned(rows.collect())
        }
    }
}
