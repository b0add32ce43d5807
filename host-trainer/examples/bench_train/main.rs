//! One configuration of `cargo xtask bench-train`, in a process of its own so that its peak of memory is its own.
//!
//! The argument is a JSON object, see [`Config`]. Each line of the input is a number of steps to take; the answer is a line
//! `{"seconds": [..]}` with the time of each. At the end of the input comes a line with the loss, the bytes of gradients and
//! optimizer, and the peak of memory. `xtask/src/bench_train/with_peft.py` speaks the same way, so both can take turns.
#![expect(clippy::print_stdout, reason = "the numbers are the product")]

mod graph;
mod networks;
mod peak;

use std::io::BufRead as _;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rankpatch::base::quantize;
use rankpatch::lora::LoraConfig;
use rankpatch::rng::Rng;
use rankpatch::train::{DeviceKind, Example, Length, Sequence, Target, TaskData, TrainConfig, Trainer};
use serde_json::json;

use graph::GraphRun;

/// A shape and how it is trained.
#[derive(Debug, Clone, serde::Deserialize)]
pub(crate) struct Config {
    /// `llama` (RMSNorm, rotary positions, gated SiLU, tied classifier) or `gpt2`.
    pub(crate) family: String,
    pub(crate) dim: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) vocab: usize,
    /// Of the update; 0 trains every weight of a linear layer in full.
    pub(crate) rank: usize,
    /// Tasks that are trained at once.
    pub(crate) tasks: usize,
    /// Whether the base and the activations are bf16.
    pub(crate) bf16: bool,
    /// Sequences of a step, of each task.
    pub(crate) batch: usize,
    /// Tokens of a sequence.
    pub(crate) seq: usize,
    /// `cpu` or `cuda:N`.
    pub(crate) device: String,
}

/// What is measured.
enum Run {
    Lora(Box<Trainer>),
    Graph(Box<GraphRun>),
}

impl Run {
    fn step(&mut self) -> Result<f64> {
        match self {
            Self::Lora(trainer) => Ok(trainer.train_step()?.loss),
            Self::Graph(run) => run.step(),
        }
    }

    /// Numbers that are trained.
    fn trained(&self) -> usize {
        match self {
            Self::Lora(trainer) => trainer.trained(),
            Self::Graph(run) => run.trained(),
        }
    }
}

fn main() -> Result<()> {
    let config = std::env::args().nth(1).context("expected a configuration in JSON")?;
    let config: Config = serde_json::from_str(&config).context("the configuration")?;
    let mut run = start(&config)?;
    let first = run.step()?;
    // Building the model needs more than training it: what counts begins now.
    peak::reset();
    let mut last = first;
    for line in std::io::stdin().lock().lines() {
        let steps: usize = line?.trim().parse().context("expected a number of steps")?;
        let mut seconds = Vec::with_capacity(steps);
        for _ in 0..steps {
            let start = Instant::now();
            last = run.step()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        println!("{}", json!({ "seconds": seconds }));
    }
    ensure!(last.is_finite() && last < first, "expected the loss to fall from {first}, found {last}");
    println!(
        "{}",
        json!({
            "first_loss": first,
            "last_loss": last,
            "trained": run.trained(),
            // f32: a gradient and two moments for each.
            "gradient_and_optimizer_bytes": 12 * run.trained(),
            "peak_bytes": peak::peak_bytes(),
        })
    );
    Ok(())
}

fn start(config: &Config) -> Result<Run> {
    let network = networks::build(config)?;
    let device: DeviceKind = config
        .device
        .parse()
        .ok()
        .with_context(|| format!("expected a device, found {:?}", config.device))?;
    // A fixed set of texts that the run sees again and again, so that the loss must fall.
    let mut rng = Rng::new(1, "tokens");
    let texts = (0..config.batch * config.tasks).map(|_| {
        let ids = (0..=config.seq).map(|_| rng.below(config.vocab as u64) as u32).collect();
        Example { sequence: Sequence::Tokens(ids), target: Target::Next { given: 0, characters: config.seq } }
    });
    let train: Vec<Example> = texts.collect();
    if config.rank == 0 || config.tasks > 1 {
        let how = (config.tasks, config.rank);
        return Ok(Run::Graph(Box::new(GraphRun::new(&network, &train, device, how)?)));
    }
    let data = TaskData { test: train[..1].to_vec(), train, labels: Vec::new(), width: 0 };
    let rank = config.rank;
    let train_config = TrainConfig {
        task: "bench".into(),
        lora: LoraConfig { rank, alpha: 2.0 * rank as f64, ..LoraConfig::default() },
        batch_size: config.batch,
        length: Length::Steps(u64::from(u32::MAX)),
        learning_rate: 1e-2,
        warmup_steps: 0,
        quantization_aware: 0.0,
        bf16: config.bf16,
        device,
        ..TrainConfig::default()
    };
    Ok(Run::Lora(Box::new(Trainer::new(train_config, &quantize(&network)?, data)?)))
}
