//! The training loop.
//!
//! A step is: draw a batch, run it forward and backward against the frozen base, clip, AdamW. In the last part of a run the
//! forward pass uses the factors as they will be written, and their gradients go straight through to the float factors.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use rankpatch_format::BaseId;
use rankpatch_format::adapter::Pooling;
use rankpatch_format::write::Network;

use super::batches::{Order, Targets, split_by_length};
use super::checkpoint::Checkpoint;
use super::config::DeviceKind;
use super::evaluate::evaluate_float;
use super::report::{Event, Phase, Reporter};
use super::stopping::Patience;
use super::watch::Watch;
use super::{TaskData, TrainConfig, TrainError};
use crate::executor::{Factors, Model, TaskHead};
use crate::lora::{BoundSite, FloatAdapter, HEAD, HeadWeights, InitLora, SiteFactors};
use crate::optim::{AdamW, Param};
use crate::rng::Rng;
use crate::schedule::Schedule;
use crate::{Error, Result, ops, quant};

/// Rows that running one part of a batch on its own costs beyond its own rows, see [`split_by_length`].
const PART_OVERHEAD: usize = 48;

/// Steps over which the loss that a run ends with is averaged.
const FINAL_STEPS: u64 = 50;

/// A run: a network, a task's data and what has been learned so far.
#[derive(Debug)]
pub struct Trainer {
    config: TrainConfig,
    data: TaskData,
    data_digest: String,
    model: Model,
    base_name: String,
    base_id: BaseId,
    sites: Vec<BoundSite>,
    pooling: Pooling,
    optimizer: AdamW,
    schedule: Schedule,
    order: Order,
    watch: Watch,
    patience: Patience,
    stop: Option<&'static AtomicBool>,
    step: u64,
    /// First step that is quantization-aware.
    quantized_from: u64,
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

/// Opens the device that a configuration asks for.
///
/// # Errors
/// [`TrainError::Device`] for `cuda` without a CUDA build or device.
pub fn open_device(kind: DeviceKind) -> Result<Device> {
    match kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Auto => Ok(Device::cuda_if_available(0)?),
        DeviceKind::Cuda(ordinal) => Device::new_cuda(ordinal).map_err(|error| {
            let reason = error.to_string().trim_end().into();
            TrainError::Device { found: format!("cuda:{ordinal}"), reason }.into()
        }),
    }
}

/// Names of the two tensors of a site, as in PEFT's files.
fn factor_names(site: &str) -> (String, String) {
    (format!("{site}.lora_A.weight"), format!("{site}.lora_B.weight"))
}

/// Names of the two tensors of the task head.
fn head_names() -> (String, String) {
    (format!("{HEAD}.weight"), format!("{HEAD}.bias"))
}

impl Trainer {
    /// Binds a configuration to a quantized network and the data of a task, with fresh factors: lora_a uniform as in PEFT,
    /// lora_b zero, the weight of a head uniform in +-1/sqrt(width) and its bias zero.
    ///
    /// # Errors
    /// Those of [`crate::lora::LoraConfig::bind`]; [`TrainError::Base`] if the network is not quantized,
    /// [`TrainError::Data`] if the examples do not fit it or have fewer than two classes, [`TrainError::Device`].
    pub fn new(mut config: TrainConfig, network: &Network, data: TaskData) -> Result<Self> {
        if config.dataset.classifies().is_none() && !data.labels.is_empty() {
            config.lora.modules_to_save = vec![HEAD.into()];
        }
        let device = open_device(config.device)?;
        let classifies = !config.lora.modules_to_save.is_empty();
        let read = if classifies { network.features } else { network.output };
        let sites = config.lora.bind(network, read)?;
        let model = Model::new(network, &device)?;
        if let Some(site) = sites.iter().find(|site| model.row_scales(site.index).is_empty()) {
            let expected = "a quantized base".into();
            return Err(
                TrainError::Base { expected, found: format!("float weights at {}", site.name) }.into()
            );
        }
        data.check(&model, classifies)?;

        let mut params = BTreeMap::new();
        for site in &sites {
            let (lora_a, lora_b) = factor_names(&site.name);
            let mut rng = Rng::new(config.seed, &format!("init/{}", site.name));
            let count = site.rank * site.in_features;
            let values = match config.lora.init_lora_weights {
                InitLora::Kaiming => rng.kaiming_uniform(site.in_features, count),
                InitLora::Gaussian => (0..count).map(|_| rng.normal() / site.rank as f32).collect(),
            };
            let a = Var::from_vec(values, (site.rank, site.in_features), &device)?;
            let b = Var::zeros((site.out_features, site.rank), candle_core::DType::F32, &device)?;
            params.insert(lora_a, Param::new(a));
            params.insert(lora_b, Param { rate_factor: config.loraplus_lr_ratio, ..Param::new(b) });
        }
        if classifies {
            let (outputs, width) = (data.labels.len(), model.features_width());
            let (weight, bias) = head_names();
            let values = Rng::new(config.seed, "init/head").kaiming_uniform(width, outputs * width);
            let head = |var| Param { rate_factor: config.head_lr_ratio, ..Param::new(var) };
            params.insert(weight, head(Var::from_vec(values, (outputs, width), &device)?));
            let zeros = Var::zeros(outputs, candle_core::DType::F32, &device)?;
            params.insert(bias, Param { decay: false, ..head(zeros) });
        }
        let steps = config.steps(data.train.len());
        // A row that is the whole sequence has nothing to pool; files say `last` then.
        let pooling = if model.features_are_one_row() { Pooling::Last } else { config.pooling };
        Ok(Self {
            schedule: config.schedule(steps),
            quantized_from: config.first_quantized_step(steps),
            order: Order::new(config.seed, data.train.len(), config.effective_batch()),
            watch: Watch::new(params.keys().cloned()),
            patience: Patience::new(config.early_stopping_patience),
            stop: None,
            optimizer: AdamW::new(params, config.optimizer)?,
            base_name: network.name.clone(),
            base_id: network.id(),
            step: 0,
            data_digest: data.digest(),
            config,
            data,
            model,
            sites,
            pooling,
        })
    }

    /// Has [`run`](Self::run) stop after the step under way once `flag` is set.
    pub fn stop_on(&mut self, flag: &'static AtomicBool) {
        self.stop = Some(flag);
    }

    /// Trains from where the run stands to its end. With a path, writes a checkpoint there every `save_steps` steps, and when it
    /// is stopped.
    ///
    /// # Errors
    /// [`TrainError::Diverged`], [`TrainError::NoGradient`], [`TrainError::Interrupted`], and what the operators and the file system refuse.
    pub fn run(&mut self, reporter: &mut dyn Reporter, checkpoint: Option<&Path>) -> Result<()> {
        let start = Instant::now();
        let steps = self.schedule.steps;
        reporter.event(&Event::Started {
            task: &self.config.task,
            base: &self.base_name,
            sites: self.sites.len(),
            trained: self.trained(),
            examples: self.data.train.len(),
            test_examples: self.data.test.len(),
            first_step: self.step,
            steps,
        });
        let (mut rows, mut recent, mut recent_steps) = (0, 0.0, 0u32);
        while self.step < steps {
            if self.step == self.quantized_from && self.step > 0 {
                reporter.event(&Event::PhaseChanged { step: self.step, phase: Phase::QuantizationAware });
            }
            let outcome = self.train_step()?;
            rows += outcome.rows;
            if self.step + FINAL_STEPS > steps {
                recent += outcome.loss;
                recent_steps += 1;
            }
            let seconds = start.elapsed().as_secs_f64();
            reporter.event(&Event::Step {
                step: self.step,
                steps,
                loss: outcome.loss,
                learning_rate: outcome.learning_rate,
                grad_norm: outcome.grad_norm,
                tokens_per_second: rows as f64 / seconds.max(1e-9),
                seconds,
            });
            if every(self.config.eval_steps, self.step) && self.step < steps {
                self.evaluate(reporter)?;
            }
            if let Some(path) = checkpoint.filter(|_| every(self.config.save_steps, self.step)) {
                self.save(path)?;
                reporter.event(&Event::Saved { step: self.step });
            }
            if self.patience.is_over() {
                break;
            }
            if self.step < steps && self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                if let Some(path) = checkpoint {
                    self.save(path)?;
                    reporter.event(&Event::Saved { step: self.step });
                }
                return Err(TrainError::Interrupted { step: self.step, steps }.into());
            }
        }
        self.watch.finish()?;
        if !self.patience.is_over() {
            self.evaluate(reporter)?;
        }
        self.keep_best(reporter)?;
        let steps = self.step;
        let loss = recent / f64::from(recent_steps.max(1));
        reporter.event(&Event::Finished { steps, loss, seconds: start.elapsed().as_secs_f64() });
        Ok(())
    }

    /// Measures the float factors on the part that is set apart.
    fn evaluate(&mut self, reporter: &mut dyn Reporter) -> Result<()> {
        let metric = evaluate_float(&self.model, Some(&self.adapter()?), &self.data.test)?;
        reporter.event(&Event::Evaluated { step: self.step, metric });
        if self.patience.limit > 0 && self.patience.hear(self.step, &metric) {
            self.patience.values =
                self.values()?.into_iter().map(|(name, (_, values))| (name, values)).collect();
        }
        Ok(())
    }

    /// With early stopping: goes back to the factors of the best result.
    fn keep_best(&mut self, reporter: &mut dyn Reporter) -> Result<()> {
        let Some(best) = self.patience.best.filter(|best| best.step < self.step) else { return Ok(()) };
        for (name, param) in self.optimizer.params() {
            if let Some(values) = self.patience.values.get(name) {
                param.var.set(&Tensor::from_slice(values, param.var.dims(), self.model.device())?)?;
            }
        }
        reporter.event(&Event::EarlyStopped { step: self.step, best_step: best.step, value: best.value });
        Ok(())
    }

    /// Shape and values of every trained tensor.
    fn values(&self) -> Result<BTreeMap<String, (Vec<usize>, Vec<f32>)>> {
        let params = self.optimizer.params().iter();
        let values = params.map(|(name, param)| {
            let host = param.var.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?;
            Ok((name.clone(), (param.var.dims().to_vec(), host)))
        });
        values.collect()
    }

    /// Takes one step.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn train_step(&mut self) -> Result<StepOutcome> {
        let width = self.data.width;
        let examples = &self.data.train;
        let drawn = self.order.step(self.step).to_vec();
        let rows = drawn.iter().map(|index| examples[*index].rows(width)).sum();
        let parts: Vec<Targets> = drawn
            .chunks(self.config.batch_size)
            .flat_map(|batch| split_by_length(batch, |index| examples[index].rows(width), PART_OVERHEAD))
            .map(|part| Targets::new(part.iter().map(|index| &examples[*index]), width))
            .collect();

        let forward = self.forward_variables()?;
        let total: f32 = parts.iter().flat_map(|part| &part.weights).sum();
        let mut loss = 0.0;
        let mut sums: BTreeMap<&str, Tensor> = BTreeMap::new();
        for (index, part) in parts.iter().enumerate() {
            let share = f64::from(part.weights.iter().sum::<f32>() / total);
            let (value, grads) = ops::value_and_grad(|| self.loss(&forward, part, index))?;
            loss += share * f64::from(value.to_scalar::<f32>()?);
            for (name, var) in &forward {
                let Some(grad) = grads.get(var) else { continue };
                let grad = if parts.len() > 1 { (grad * share)? } else { grad.clone() };
                let sum = match sums.remove(name.as_str()) {
                    Some(sum) => (sum + grad)?,
                    None => grad,
                };
                sums.insert(name, sum);
            }
        }
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step: self.step, loss }.into());
        }
        self.watch.step(|name| -> Result<_> {
            let Some(grad) = sums.get(name) else { return Ok(None) };
            Ok(Some(grad.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?))
        })?;
        // Straight through: the gradient at the quantized value is that of the float value.
        let mut grads = GradStore::default();
        for (name, param) in self.optimizer.params() {
            if let Some(grad) = sums.remove(name.as_str()) {
                grads.insert(&param.var, grad);
            }
        }
        let learning_rate = self.schedule.rate(self.step);
        let report = self.optimizer.step(&grads, learning_rate)?;
        self.step += 1;
        Ok(StepOutcome { loss, learning_rate, grad_norm: report.grad_norm, rows })
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

    /// The base on the training device.
    pub fn model(&self) -> &Model {
        &self.model
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
        let sites = self.sites.iter().map(|site| {
            let (lora_a, lora_b) = factor_names(&site.name);
            Ok(SiteFactors { site: site.clone(), lora_a: values(&lora_a)?, lora_b: values(&lora_b)? })
        });
        let sites = sites.collect::<Result<Vec<_>>>()?;
        let head = if self.data.labels.is_empty() {
            None
        } else {
            let (weight, bias) = head_names();
            Some(HeadWeights {
                pooling: self.pooling,
                weight: values(&weight)?,
                bias: values(&bias)?,
                labels: self.data.labels.clone(),
            })
        };
        Ok(FloatAdapter {
            task: self.config.task.clone(),
            base_id: self.base_id,
            config: self.config.lora.clone(),
            sites,
            head,
        })
    }

    /// Writes a checkpoint from which [`Trainer::resume`] goes on as if the run had not stopped.
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
            state: self.optimizer.state().clone(),
            best: self.patience.best,
            best_values: self.patience.values.clone(),
        }
        .write(path)
    }

    /// Goes on from a checkpoint of the same configuration on the same base.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Field`] if the checkpoint is of another run. Nothing is changed then.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let checkpoint = Checkpoint::read(path)?;
        checkpoint.check(path, &self.config, self.base_id, &self.data_digest)?;
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
            values.push(Tensor::from_slice(host, dims.as_slice(), self.model.device())?);
        }
        self.optimizer.restore(checkpoint.state)?;
        for (param, values) in self.optimizer.params().values().zip(values) {
            param.var.set(&values)?;
        }
        self.step = checkpoint.step;
        (self.patience.best, self.patience.values) = (checkpoint.best, checkpoint.best_values);
        // The first part of the run has watched already.
        self.watch = Watch::new(std::iter::empty());
        Ok(())
    }

    fn variable(&self, name: &str) -> Result<&Var> {
        let param = self.optimizer.params().get(name);
        Ok(&param.ok_or_else(|| candle_core::Error::Msg(format!("there is no variable {name}")))?.var)
    }

    /// The variables of a step's forward pass by name: the trained ones, or in the quantization-aware part new ones with the
    /// values that their codes stand for.
    fn forward_variables(&self) -> Result<BTreeMap<String, Var>> {
        let trained =
            || self.optimizer.params().iter().map(|(name, param)| (name.clone(), param.var.clone()));
        let mut variables: BTreeMap<String, Var> = trained().collect();
        if self.step < self.quantized_from {
            return Ok(variables);
        }
        let device = self.model.device();
        let FloatAdapter { sites, head, .. } = self.adapter()?;
        for SiteFactors { site, lora_a, lora_b } in sites {
            let (rank, inner, out) = (site.rank, site.in_features, site.out_features);
            let (row_scales, scaling) = (self.model.row_scales(site.index), site.scaling as f32);
            let codes = quant::quantize_lora(&lora_a, &lora_b, rank, inner, out, row_scales, scaling)
                .map_err(|source| Error::Quant { tensor: site.name.clone(), source })?;
            let (a, b) = codes.dequantize(row_scales, scaling);
            let (name_a, name_b) = factor_names(&site.name);
            variables.insert(name_a, Var::from_vec(a, (rank, inner), device)?);
            variables.insert(name_b, Var::from_vec(b, (out, rank), device)?);
        }
        if let Some(head) = head {
            let outputs = head.labels.len();
            let width = head.weight.len() / outputs;
            let codes = quant::quantize_head(&head.weight, outputs, width)
                .map_err(|source| Error::Quant { tensor: HEAD.into(), source })?;
            variables.insert(head_names().0, Var::from_vec(codes.dequantize(), (outputs, width), device)?);
        }
        Ok(variables)
    }

    /// The loss of one part of the step's batch.
    fn loss(&self, variables: &BTreeMap<String, Var>, part: &Targets, index: usize) -> Result<Tensor> {
        let device = self.model.device();
        let mut factors = BTreeMap::new();
        for site in &self.sites {
            let (lora_a, lora_b) = factor_names(&site.name);
            let rows = self.model.site_rows(site.index, &part.batch);
            factors.insert(
                site.index,
                Factors {
                    lora_a: variables[&lora_a].as_tensor().clone(),
                    lora_b: variables[&lora_b].as_tensor().clone(),
                    scaling: site.scaling,
                    dropout_mask: self.dropout_mask(site, rows, index)?,
                },
            );
        }
        let head = (!self.data.labels.is_empty()).then(|| {
            let (weight, bias) = head_names();
            TaskHead {
                pooling: self.pooling,
                weight: variables[&weight].as_tensor().clone(),
                bias: variables[&bias].as_tensor().clone(),
            }
        });
        let outputs = self.model.forward(&part.batch, &factors, head.as_ref())?;
        let targets = Tensor::from_slice(&part.targets, part.targets.len(), device)?;
        let weights = Tensor::from_slice(&part.weights, part.weights.len(), device)?;
        Ok(ops::cross_entropy(&outputs, &targets, &weights)?)
    }

    /// 0 with the probability of dropout, otherwise 1 / (1 - p): a pure function of seed, step, part and site.
    fn dropout_mask(&self, site: &BoundSite, rows: usize, part: usize) -> Result<Option<Tensor>> {
        let p = self.config.lora.dropout as f32;
        if p == 0.0 {
            return Ok(None);
        }
        let mut rng = Rng::new(self.config.seed, &format!("dropout/{}/{part}/{}", self.step, site.name));
        let keep = 1.0 / (1.0 - p);
        let mask: Vec<f32> =
            (0..rows * site.in_features).map(|_| if rng.uniform() < p { 0.0 } else { keep }).collect();
        Ok(Some(Tensor::from_vec(mask, (rows, site.in_features), self.model.device())?))
    }
}

fn every(steps: u64, step: u64) -> bool {
    steps > 0 && step.is_multiple_of(steps)
}
