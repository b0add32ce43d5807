//! One task, trained: [`ManyTrainer`] with a single one.
//!
//! A step is: draw a batch, run it forward and backward against the frozen base, clip, AdamW. In the last part of a run the
//! forward pass uses the factors as they will be written, and their gradients go straight through to the float factors.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use candle_core::Device;
use rankpatch_format::write::Network;

use super::config::DeviceKind;
use super::learner::{FrozenBase, Learner, StepOutcome};
use super::many::ManyTrainer;
use super::report::{Event, ManyReporter, Reporter};
use super::{TaskData, TrainConfig, TrainError};
use crate::Result;
use crate::executor::Model;
use crate::lora::FloatAdapter;

/// A run: a network, a task's data and what has been learned so far.
#[derive(Debug)]
pub struct Trainer(ManyTrainer);

/// Opens the device that a configuration asks for.
///
/// # Errors
/// [`TrainError::Device`] for `cuda` without a CUDA build or device.
pub fn open_device(kind: DeviceKind) -> Result<Device> {
    match kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        // A build with CUDA also runs on machines without a GPU.
        DeviceKind::Auto => Ok(Device::new_cuda(0).unwrap_or(Device::Cpu)),
        DeviceKind::Cuda(ordinal) => Device::new_cuda(ordinal).map_err(|error| {
            let reason = error.to_string().trim_end().into();
            TrainError::Device { found: format!("cuda:{ordinal}"), reason }.into()
        }),
    }
}

/// What a trainer of one task reports.
struct Only<'r>(&'r mut dyn Reporter);

impl ManyReporter for Only<'_> {
    fn event(&mut self, _: usize, event: &Event<'_>) {
        self.0.event(event);
    }
}

impl Trainer {
    /// Opens the device, puts the base there and binds the task to it, see [`Learner::new`].
    ///
    /// # Errors
    /// Those of [`Learner::new`]; [`TrainError::Device`].
    pub fn new(config: TrainConfig, network: &Network, data: TaskData) -> Result<Self> {
        let base = FrozenBase::for_task(network, &config)?;
        let learner = Learner::new(&base, network, config, data)?;
        Ok(Self(ManyTrainer::new(base, vec![learner])))
    }

    /// Has [`run`](Self::run) stop after the step under way once `flag` is set.
    pub fn stop_on(&mut self, flag: &'static AtomicBool) {
        self.0.stop_on(flag);
    }

    /// Trains from where the run stands to its end. With a path, writes a checkpoint there every `save_steps` steps, and when it
    /// is stopped.
    ///
    /// # Errors
    /// [`TrainError::Diverged`], [`TrainError::NoGradient`], [`TrainError::Interrupted`], and what the operators and the file system refuse.
    pub fn run(&mut self, reporter: &mut dyn Reporter, checkpoint: Option<&Path>) -> Result<()> {
        self.0.take_up(0, checkpoint.map(Path::to_path_buf));
        let ended = self.0.advance(&mut Only(reporter));
        ended.into_iter().next().map_or(Ok(()), |(_, result)| result)
    }

    /// Takes one step.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn train_step(&mut self) -> Result<StepOutcome> {
        self.0.take_up(0, None);
        let stepped = self.0.train_step().into_iter().next();
        stepped.expect("a task that was taken up takes a step").1
    }

    /// The task.
    pub fn learner(&self) -> &Learner {
        self.0.learner(0)
    }

    /// Steps taken so far.
    pub fn step(&self) -> u64 {
        self.learner().step()
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.learner().steps()
    }

    /// The first step of the quantization-aware part.
    pub fn first_quantized_step(&self) -> u64 {
        self.learner().first_quantized_step()
    }

    /// Numbers that are trained.
    pub fn trained(&self) -> usize {
        self.learner().trained()
    }

    /// The configuration.
    pub fn config(&self) -> &TrainConfig {
        self.learner().config()
    }

    /// The base on the training device.
    pub fn model(&self) -> &Model {
        &self.0.base().model
    }

    /// The data.
    pub fn data(&self) -> &TaskData {
        self.learner().data()
    }

    /// What has been learned so far, in float.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub fn adapter(&self) -> Result<FloatAdapter> {
        self.learner().adapter()
    }

    /// What training in float came to, see [`Learner::unquantized`].
    ///
    /// # Errors
    /// If the device cannot be read.
    pub fn unquantized(&self) -> Result<Option<FloatAdapter>> {
        self.learner().unquantized()
    }

    /// Writes a checkpoint, see [`Learner::save`].
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        self.learner().save(path)
    }

    /// Goes on from a checkpoint, see [`Learner::resume`].
    ///
    /// # Errors
    /// As [`Learner::resume`].
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        self.0.learner_mut(0).resume(path)
    }
}
