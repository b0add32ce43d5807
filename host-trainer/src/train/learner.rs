//! One task while it is trained: its factors, its optimizer, the order of its data, and what it has been through.
//!
//! It draws the batch of a step and learns from gradients; how a batch runs over the base, alone or with those of other
//! tasks, it does not know.

mod head;
mod parts;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use rankpatch_format::BaseId;
use rankpatch_format::adapter::Pooling;
use rankpatch_format::graph::TensorId;
use rankpatch_format::write::{BiasData, Network};
use sha2::{Digest as _, Sha256};

use super::batches::{Order, Targets, split_by_length};
use super::checkpoint::Checkpoint;
use super::evaluate::evaluate_float;
use super::run::open_device;
use super::stopping::{Best, Patience};
use super::watch::Watch;
use super::{Method, Metric, TaskData, TrainConfig, TrainError};
use crate::executor::{Model, TaskHead, dequantize};
use crate::import::hf::modules;
use crate::lora::{BoundSite, FloatAdapter, HEAD, HeadWeights, InitLora, SiteFactors};
use crate::optim::{AdamW, Param};
use crate::rng::Rng;
use crate::schedule::Schedule;
use crate::{Error, Result, quant};
use parts::{Start, principal_start, running};

pub(crate) use parts::Values;

/// Rows that running one part of a batch on its own costs beyond its own rows, see [`split_by_length`].
const PART_OVERHEAD: usize = 48;

/// A base on the device that trains, and who it is. Nothing in it is ever trained, so many tasks share one; unless it was made
/// for one task that trains it in full.
#[derive(Debug)]
pub struct FrozenBase {
    /// The network.
    pub model: Model,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: BaseId,
}

impl FrozenBase {
    /// Puts a quantized network on a device.
    ///
    /// # Errors
    /// As [`Model::new`].
    pub fn new(network: &Network, device: &Device) -> Result<Self> {
        Self::with_dtype(network, device, DType::F32)
    }

    /// Puts a network on the device that a task asks for, as bf16 if it asks for that; with variables for weights, for this task
    /// alone, if it trains them in full.
    ///
    /// # Errors
    /// As [`Model::new`]; [`TrainError::Device`]; [`TrainError::BadValue`] for bf16 on the CPU, which has no operators for
    /// it.
    pub fn for_task(network: &Network, config: &TrainConfig) -> Result<Self> {
        let device = open_device(config.device)?;
        if config.method == Method::Full {
            if config.bf16 {
                let expected = "false with method = \"full\" (weights are trained in f32)".into();
                return Err(TrainError::BadValue { key: "bf16", expected, found: "true".into() }.into());
            }
            let model = Model::trainable(network, &device)?;
            return Ok(Self { model, name: network.name.clone(), id: network.id() });
        }
        if !config.bf16 {
            return Self::new(network, &device);
        }
        if !device.is_cuda() {
            let expected = "false on the CPU (bf16 needs a GPU: --device cuda)".into();
            return Err(TrainError::BadValue { key: "bf16", expected, found: "true".into() }.into());
        }
        Self::with_dtype(network, &device, DType::BF16)
    }

    fn with_dtype(network: &Network, device: &Device, dtype: DType) -> Result<Self> {
        let model = Model::with_dtype(network, device, dtype)?;
        Ok(Self { model, name: network.name.clone(), id: network.id() })
    }
}

/// A task in training.
#[derive(Debug)]
pub struct Learner {
    config: TrainConfig,
    data: TaskData,
    data_digest: String,
    base_id: BaseId,
    device: Device,
    sites: Vec<BoundSite>,
    /// The base's tensors that are trained as biases.
    biases: Vec<TensorId>,
    pooling: Pooling,
    optimizer: AdamW,
    schedule: Schedule,
    order: Order,
    watch: Watch,
    patience: Patience,
    step: u64,
    /// First step that is quantization-aware.
    quantized_from: u64,
    /// The trained tensors before that step; empty as long as there are none.
    unquantized: Values,
    /// Whether ranks have been trimmed.
    trimmed: bool,
    /// By site; empty unless the factors start at the base's principal directions.
    starts: BTreeMap<u16, Start>,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// Loss of the batch, in nats.
    pub loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Rows of input, padding not counted.
    pub rows: usize,
}

/// The batch of a step, and the gradients that were found for it so far.
pub(super) struct Drawn {
    /// The batch in parts of similar length, those of one accumulated batch after those of the one before.
    pub(super) parts: Vec<Targets>,
    /// The variables of the forward pass by name: the trained ones, or in the quantization-aware part new ones with the
    /// values that their codes stand for.
    pub(super) variables: BTreeMap<String, Var>,
    rows: usize,
    /// Sum of the weights of all parts.
    total: f32,
    loss: f64,
    grads: BTreeMap<String, Tensor>,
}

impl Drawn {
    /// Takes the mean loss of a part and its gradients, which count as much as the part has of the weights.
    pub(super) fn add(
        &mut self,
        part: usize,
        loss: f32,
        grads: impl IntoIterator<Item = (String, Tensor)>,
    ) -> Result<()> {
        let share = f64::from(self.parts[part].weights.iter().sum::<f32>() / self.total);
        self.loss += share * f64::from(loss);
        for (name, grad) in grads {
            let grad = if self.parts.len() > 1 { (grad * share)? } else { grad };
            let sum = match self.grads.remove(&name) {
                Some(sum) => (sum + grad)?,
                None => grad,
            };
            self.grads.insert(name, sum);
        }
        Ok(())
    }
}

/// Names of the two tensors of a site, as in PEFT's files.
pub(super) fn factor_names(site: &str) -> (String, String) {
    (format!("{site}.lora_A.weight"), format!("{site}.lora_B.weight"))
}

/// Name of the variable of a weight of the base.
pub(super) fn weight_name(network: &Network, id: TensorId) -> String {
    network
        .tensor_names
        .get(usize::from(id))
        .map_or_else(|| format!("base/{id}"), |name| format!("base/{name}"))
}

/// Names of the two tensors of the task head.
pub(super) fn head_names() -> (String, String) {
    (format!("{HEAD}.weight"), format!("{HEAD}.bias"))
}

/// Name of a trained bias: no file keeps names of tensors.
fn bias_name(tensor: TensorId) -> String {
    format!("bias.{tensor}")
}

impl Learner {
    /// Binds a configuration to a quantized network and the data of a task, with fresh factors: lora_a uniform as in PEFT,
    /// lora_b zero, the weight of a head uniform in +-1/sqrt(width) and its bias zero, biases of the base as they are. A head has a bias
    /// unless the base's classifiers in `transformers` have none. With `output_labels` it starts as the base's output layer instead. A base that devices do not run gets no quantization-aware part.
    ///
    /// A task that trains in full starts at the weights of the network, which may be float.
    ///
    /// # Errors
    /// Those of [`crate::lora::LoraConfig::bind`]; [`TrainError::Base`] if the network is not quantized or has no output layer for
    /// `output_labels`, [`TrainError::BadValue`] if those do not fit, [`TrainError::Data`] if the examples do not fit it or have fewer than two classes.
    pub fn new(
        base: &FrozenBase,
        network: &Network,
        mut config: TrainConfig,
        data: TaskData,
    ) -> Result<Self> {
        if config.dataset.classifies().is_none() && !data.labels.is_empty() {
            config.lora.modules_to_save = vec![HEAD.into()];
        }
        if network.check_operators().is_err() {
            // There is no file for devices, so factors are never rounded: there is nothing to prepare them for.
            config.quantization_aware = 0.0;
        }
        let FrozenBase { model, id, .. } = base;
        let device = model.device();
        let classifies = !config.lora.modules_to_save.is_empty();
        let read = if classifies { network.features } else { network.output };
        let full = config.method == Method::Full;
        if full != model.is_trainable() {
            let expected = "a base of its own for each task with method = \"full\"".into();
            return Err(TrainError::Base {
                expected,
                found: "one for many tasks, or the other way round".into(),
            }
            .into());
        }
        let sites = if full { Vec::new() } else { config.lora.bind(network, read)? };
        let biases = if full { Vec::new() } else { config.lora.biases(network, &sites, read) };
        if let Some(site) = sites.iter().find(|site| model.row_scales(site.index).is_empty()) {
            let expected = "a quantized base".into();
            return Err(
                TrainError::Base { expected, found: format!("float weights at {}", site.name) }.into()
            );
        }
        data.check(model, classifies)?;
        let bf16 = model.dtype() == DType::BF16;
        if config.bf16 != bf16 {
            let expected = format!("{bf16}, as the other tasks of the base have it");
            return Err(TrainError::BadValue { key: "bf16", expected, found: config.bf16.to_string() }.into());
        }

        let (mut params, mut starts) = (BTreeMap::new(), BTreeMap::new());
        for site in &sites {
            let (lora_a, lora_b) = factor_names(&site.name);
            let mut rng = Rng::new(config.seed, &format!("init/{}", site.name));
            let count = site.rank * site.in_features;
            let values = match config.lora.init_lora_weights {
                InitLora::Kaiming | InitLora::Pissa => rng.kaiming_uniform(site.in_features, count),
                InitLora::Gaussian => (0..count).map(|_| rng.normal() / site.rank as f32).collect(),
            };
            let zeros = vec![0.0; site.out_features * site.rank];
            let (values, zeros) = if config.lora.init_lora_weights == InitLora::Pissa {
                let start = principal_start(network, site, &values)?;
                starts.insert(site.index, start.clone());
                start
            } else {
                (values, zeros)
            };
            let a = Var::from_vec(values, (site.rank, site.in_features), device)?;
            let b = Var::from_vec(zeros, (site.out_features, site.rank), device)?;
            params.insert(lora_a, Param::new(a));
            params.insert(lora_b, Param { rate_factor: config.loraplus_lr_ratio, ..Param::new(b) });
        }
        for (id, var) in model.variables(classifies) {
            // Of norms and biases nothing decays.
            let decay = var.rank() > 1;
            params.insert(weight_name(network, id), Param { decay, ..Param::new(var) });
        }
        if classifies {
            let (outputs, width) = (data.labels.len(), model.features_width());
            let (weight, bias) = head_names();
            let (values, start) = if config.output_labels.is_empty() {
                let mut rng = Rng::new(config.seed, "init/head");
                (rng.kaiming_uniform(width, outputs * width), vec![0.0; outputs])
            } else {
                head::of_base(network, &data.labels, &config.output_labels)?
            };
            let head = |var| Param { rate_factor: config.head_lr_ratio, ..Param::new(var) };
            params.insert(weight, head(Var::from_vec(values, (outputs, width), device)?));
            if full || modules::head_has_bias(network) {
                let start = Var::from_vec(start, outputs, device)?;
                params.insert(bias, Param { decay: false, ..head(start) });
            }
        }
        // A bias may get no gradient: the softmax does not see that of keys.
        let watch = Watch::new(params.keys().cloned());
        for tensor in &biases {
            let values = network.tensors.get(usize::from(*tensor)).map(dequantize).unwrap_or_default();
            let var = Var::from_slice(&values, values.len(), device)?;
            params.insert(bias_name(*tensor), Param { decay: false, ..Param::new(var) });
        }
        let steps = config.steps(data.train.len());
        // A row that is the whole sequence has nothing to pool; files say `last` then.
        let pooling = if model.features_are_one_row() { Pooling::Last } else { config.pooling };
        Ok(Self {
            schedule: config.schedule(steps),
            quantized_from: config.first_quantized_step(steps),
            order: Order::new(config.seed, data.train.len(), config.effective_batch()),
            watch,
            patience: Patience::new(config.early_stopping_patience),
            optimizer: AdamW::new(params, config.optimizer)?,
            base_id: *id,
            device: device.clone(),
            step: 0,
            unquantized: Values::new(),
            trimmed: false,
            starts,
            data_digest: data.digest(),
            sites: sites.into_iter().map(|site| running(site, &config.lora)).collect(),
            biases,
            config,
            data,
            pooling,
        })
    }

    /// Draws the batch of the next step.
    pub(super) fn draw(&mut self, model: &Model) -> Result<Drawn> {
        let width = self.data.width;
        let examples = &self.data.train;
        let drawn = self.order.step(self.step).to_vec();
        let rows = drawn.iter().map(|index| examples[*index].rows(width)).sum();
        let parts: Vec<Targets> = drawn
            .chunks(self.config.batch_size)
            .flat_map(|batch| split_by_length(batch, |index| examples[index].rows(width), PART_OVERHEAD))
            .map(|part| Targets::new(part.iter().map(|index| &examples[*index]), width))
            .collect();
        let total: f32 = parts.iter().flat_map(|part| &part.weights).sum();
        let variables = self.forward_variables(model)?;
        Ok(Drawn { parts, variables, rows, total, loss: 0.0, grads: BTreeMap::new() })
    }

    /// Takes the step for which all parts have their gradients.
    pub(super) fn learn(&mut self, mut drawn: Drawn) -> Result<StepOutcome> {
        let loss = drawn.loss;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step: self.step, loss }.into());
        }
        self.watch.step(|name| -> Result<_> {
            let Some(grad) = drawn.grads.get(name) else { return Ok(None) };
            Ok(Some(grad.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?))
        })?;
        // Straight through: the gradient at the quantized value is that of the float value.
        let mut grads = GradStore::default();
        for (name, param) in self.optimizer.params() {
            if let Some(grad) = drawn.grads.remove(name.as_str()) {
                grads.insert(&param.var, self.trained_part(name, grad)?);
            }
        }
        let learning_rate = self.schedule.rate(self.step);
        let report = self.optimizer.step(&grads, learning_rate)?;
        self.step += 1;
        Ok(StepOutcome { loss, learning_rate, grad_norm: report.grad_norm, rows: drawn.rows })
    }

    /// Measures the float factors on the part that is set apart.
    pub(super) fn evaluate(&mut self, model: &Model) -> Result<Metric> {
        let metric = evaluate_float(model, Some(&self.adapter()?), &self.data.test)?;
        if self.patience.limit > 0 && self.patience.hear(self.step, &metric) {
            self.patience.values =
                self.values()?.into_iter().map(|(name, (_, values))| (name, values)).collect();
        }
        Ok(metric)
    }

    /// With early stopping: goes back to the factors of the best result, if that is not the last one.
    pub(super) fn keep_best(&mut self) -> Result<Option<Best>> {
        let Some(best) = self.patience.best.filter(|best| best.step < self.step) else { return Ok(None) };
        for (name, param) in self.optimizer.params() {
            if let Some(values) = self.patience.values.get(name) {
                param.var.set(&Tensor::from_slice(values, param.var.dims(), &self.device)?)?;
            }
        }
        Ok(Some(best))
    }

    /// Whether early stopping has ended the run.
    pub(super) fn is_out_of_patience(&self) -> bool {
        self.patience.is_over()
    }

    /// What must be so at the end of a run, see [`Watch::finish`].
    pub(super) fn check_gradients(&self) -> Result<()> {
        Ok(self.watch.finish()?)
    }

    /// What tells this run from others, as hexadecimal digits: a SHA-256 over the configuration (but for where files lie and
    /// where it computes), the base and the data. Two runs of one identity make the same adapter.
    pub fn identity(&self) -> String {
        let mut config = serde_json::to_value(&self.config).unwrap_or_default();
        if let Some(config) = config.as_object_mut() {
            config.retain(|key, _| {
                !["base", "data", "test_data", "device", "save_steps"].contains(&key.as_str())
            });
        }
        let mut hash = Sha256::new();
        hash.update(format!("{config}\n{}\n{}", self.base_id, self.data_digest));
        hash.finalize().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }

    /// The sites that are adapted, in canonical order.
    pub fn sites(&self) -> &[BoundSite] {
        &self.sites
    }

    /// The base's tensors that are trained as biases, in ascending order.
    pub fn biases(&self) -> &[TensorId] {
        &self.biases
    }

    /// Shape and values of every trained tensor.
    fn values(&self) -> Result<Values> {
        let params = self.optimizer.params().iter();
        let values = params.map(|(name, param)| {
            let host = param.var.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?;
            Ok((name.clone(), (param.var.dims().to_vec(), host)))
        });
        values.collect()
    }

    /// Steps taken so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.schedule.steps
    }

    /// The first step of the quantization-aware part.
    pub fn first_quantized_step(&self) -> u64 {
        self.quantized_from
    }

    /// Numbers that are trained.
    pub fn trained(&self) -> usize {
        self.optimizer.params().values().map(|param| param.var.elem_count()).sum()
    }

    /// The configuration.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The data.
    pub fn data(&self) -> &TaskData {
        &self.data
    }

    /// What has been learned so far, in float.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub fn adapter(&self) -> Result<FloatAdapter> {
        let values = |name: &str| -> Result<Vec<f32>> {
            let var = &self.variable(name)?;
            Ok(var.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?)
        };
        self.adapter_of(&values)
    }

    /// What the base alone makes of the task, for which it must be told how its outputs are called: its own output layer as a
    /// head, and nothing else. None without `output_labels`.
    ///
    /// # Errors
    /// As [`Learner::new`] and [`Learner::adapter`].
    pub fn base_alone(&self, network: &Network) -> Result<Option<FloatAdapter>> {
        let mut adapter = self.adapter()?;
        let (false, Some(head)) = (self.config.output_labels.is_empty(), adapter.head.as_mut()) else {
            return Ok(None);
        };
        (head.weight, head.bias) = head::of_base(network, &head.labels, &self.config.output_labels)?;
        adapter.sites.clear();
        adapter.biases.clear();
        Ok(Some(adapter))
    }

    /// The adapter whose tensors have these values.
    fn adapter_of(&self, values: &dyn Fn(&str) -> Result<Vec<f32>>) -> Result<FloatAdapter> {
        let sites = self.sites.iter().map(|site| {
            let (lora_a, lora_b) = factor_names(&site.name);
            let (lora_a, lora_b) = (values(&lora_a)?, values(&lora_b)?);
            Ok(self.beside_start(SiteFactors { site: site.clone(), lora_a, lora_b }))
        });
        let sites = sites.collect::<Result<Vec<_>>>()?;
        let biases = self
            .biases
            .iter()
            .map(|tensor| Ok(BiasData { tensor: *tensor, values: values(&bias_name(*tensor))? }));
        let head = if self.data.labels.is_empty() {
            None
        } else {
            let (weight, bias) = head_names();
            let has_bias = self.optimizer.params().contains_key(&bias);
            Some(HeadWeights {
                pooling: self.pooling,
                weight: values(&weight)?,
                bias: if has_bias { values(&bias)? } else { Vec::new() },
                labels: self.data.labels.clone(),
            })
        };
        Ok(FloatAdapter {
            task: self.config.task.clone(),
            base_id: self.base_id,
            config: self.config.lora.clone(),
            sites,
            biases: biases.collect::<Result<_>>()?,
            head,
        })
    }

    /// Writes a checkpoint from which [`Learner::resume`] goes on as if the run had not stopped.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        Checkpoint {
            config: self.config.clone(),
            base_id: self.base_id,
            data: self.data_digest.clone(),
            step: self.step,
            values: self.values()?,
            state: self.optimizer.state()?,
            best: self.patience.best,
            best_values: self.patience.values.clone(),
            unquantized: self.unquantized.clone(),
            trimmed: self.trimmed,
        }
        .write(path)
    }

    /// Goes on from a checkpoint of the same configuration on the same base.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Field`] if the checkpoint is of another run.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let checkpoint = Checkpoint::read(path)?;
        checkpoint.check(path, &self.config, self.base_id, &self.data_digest)?;
        if checkpoint.trimmed {
            self.adopt_ranks(&checkpoint.values)?;
        }
        let mut values = Vec::new();
        for (name, param) in self.optimizer.params() {
            let (dims, host) = checkpoint
                .values
                .get(name)
                .ok_or_else(|| Error::field(path, "tensors", format!("a tensor {name:?}"), "none"))?;
            if dims != param.var.dims() {
                let what = format!("shape of {name}");
                return Err(Error::field(path, what, format!("{:?}", param.var.dims()), format!("{dims:?}")));
            }
            values.push(Tensor::from_slice(host, dims.as_slice(), &self.device)?);
        }
        self.optimizer.restore(checkpoint.state)?;
        for (param, values) in self.optimizer.params().values().zip(values) {
            param.var.set(&values)?;
        }
        (self.step, self.unquantized) = (checkpoint.step, checkpoint.unquantized);
        (self.patience.best, self.patience.values) = (checkpoint.best, checkpoint.best_values);
        // The first part of the run has watched already.
        self.watch = Watch::new(std::iter::empty());
        Ok(())
    }

    fn variable(&self, name: &str) -> Result<&Var> {
        let param = self.optimizer.params().get(name);
        Ok(&param.ok_or_else(|| candle_core::Error::Msg(format!("there is no variable {name}")))?.var)
    }

    /// See [`Drawn::variables`].
    fn forward_variables(&self, model: &Model) -> Result<BTreeMap<String, Var>> {
        let trained =
            || self.optimizer.params().iter().map(|(name, param)| (name.clone(), param.var.clone()));
        let mut variables: BTreeMap<String, Var> = trained().collect();
        let quantized = self.step >= self.quantized_from;
        if !quantized && self.starts.is_empty() {
            return Ok(variables);
        }
        let device = &self.device;
        let FloatAdapter { sites, head, .. } = self.adapter()?;
        for SiteFactors { site, lora_a, lora_b } in sites {
            let (rank, inner, out) = (site.rank, site.in_features, site.out_features);
            let (a, b) = if quantized {
                let (row_scales, scaling) = (model.row_scales(site.index), site.scaling as f32);
                let codes = quant::quantize_lora(&lora_a, &lora_b, rank, inner, out, row_scales, scaling)
                    .map_err(|source| Error::Quant { tensor: site.name.clone(), source })?;
                codes.dequantize(row_scales, scaling)
            } else {
                (lora_a, lora_b)
            };
            let (name_a, name_b) = factor_names(&site.name);
            variables.insert(name_a, Var::from_vec(a, (rank, inner), device)?);
            variables.insert(name_b, Var::from_vec(b, (out, rank), device)?);
        }
        if let Some(head) = head.filter(|_| quantized) {
            let outputs = head.labels.len();
            let width = head.weight.len() / outputs;
            let codes = quant::quantize_head(&head.weight, outputs, width)
                .map_err(|source| Error::Quant { tensor: HEAD.into(), source })?;
            variables.insert(head_names().0, Var::from_vec(codes.dequantize(), (outputs, width), device)?);
        }
        Ok(variables)
    }

    /// The task's head, of the variables of a step; `None` if the task has none.
    pub(super) fn head(&self, variables: &BTreeMap<String, Var>) -> Option<TaskHead> {
        (!self.data.labels.is_empty()).then(|| {
            let (weight, bias) = head_names();
            TaskHead {
                pooling: self.pooling,
                weight: variables[&weight].as_tensor().clone(),
                bias: variables.get(&bias).map(|bias| bias.as_tensor().clone()),
            }
        })
    }

    /// The base with the biases of a step in it.
    pub(super) fn with_biases<'m>(
        &self,
        model: &'m Model,
        variables: &BTreeMap<String, Var>,
    ) -> Cow<'m, Model> {
        if self.biases.is_empty() {
            return Cow::Borrowed(model);
        }
        let bias = |tensor: &TensorId| (*tensor, variables[&bias_name(*tensor)].as_tensor().clone());
        Cow::Owned(model.with_biases(self.biases.iter().map(bias)))
    }

    /// 0 with the probability of dropout, otherwise 1 / (1 - p): a pure function of seed, step, part and site.
    pub(super) fn dropout_mask(&self, site: &BoundSite, rows: usize, part: usize) -> Result<Option<Tensor>> {
        let p = self.config.lora.dropout as f32;
        if p == 0.0 {
            return Ok(None);
        }
        let mut rng = Rng::new(self.config.seed, &format!("dropout/{}/{part}/{}", self.step, site.name));
        let keep = 1.0 / (1.0 - p);
        let mask: Vec<f32> =
            (0..rows * site.in_features).map(|_| if rng.uniform() < p { 0.0 } else { keep }).collect();
        Ok(Some(Tensor::from_vec(mask, (rows, site.in_features), &self.device)?))
    }
}
