//! `rankpatch train --dry-run`: what a run would train, write and need.

use std::fmt::Write as _;

use rankpatch_format::write::Tensor;
use serde::Serialize;

use super::super::console::{fields, grouped};
use super::super::exit::Outcome;
use super::super::task::Trainable;
use crate::export::{Exported, export};
use crate::lora::BoundSite;
use crate::train::Trainer;

/// Bytes of an f32.
const FLOAT: usize = 4;

/// A run before its first step.
#[derive(Debug, Serialize)]
pub(super) struct Plan {
    task: String,
    base: String,
    base_id: String,
    sites: Vec<BoundSite>,
    /// Biases of the base that are trained, and numbers in them.
    biases: [usize; 2],
    /// Numbers trained: factors, biases and head.
    trained: usize,
    /// Numbers of the base, which stay as they are.
    frozen: usize,
    payload_bytes: usize,
    /// `None` for a base that devices do not run: no file is written.
    adapter_file_bytes: Option<usize>,
    examples: usize,
    test_examples: usize,
    labels: Vec<String>,
    steps: u64,
    first_quantized_step: u64,
    examples_per_step: usize,
    memory: Memory,
}

/// Bytes that training holds besides activations, which depend on the length of the examples.
#[derive(Debug, Serialize)]
struct Memory {
    base_bytes: usize,
    /// Values, gradients and both moments of AdamW.
    trained_bytes: usize,
    /// The same if every number of the base were trained.
    full_fine_tuning_bytes: usize,
}

impl Plan {
    pub(super) fn new(trainer: &Trainer, base: &Trainable, sequence: u32) -> Outcome<Self> {
        let adapter = trainer.adapter()?;
        let network = base.network();
        // The self-test's digest has the same length whatever it is.
        let Exported { data, file } = export(&adapter, network, sequence, |_| Ok(0))?;
        let factors = data.patches.iter().map(|patch| patch.lora_a.len() + patch.lora_b.len()).sum::<usize>();
        let payload_bytes = factors + data.head.map_or(0, |head| head.codes.len());
        let trained = trainer.trained();
        let biases = [adapter.biases.len(), adapter.biases.iter().map(|bias| bias.values.len()).sum()];
        let elements = |tensor: &Tensor| tensor.shape().rows as usize * tensor.shape().cols as usize;
        let frozen = network.tensors.iter().map(elements).sum();
        let data = trainer.data();
        Ok(Self {
            task: adapter.task.clone(),
            base: network.name.clone(),
            base_id: adapter.base_id.to_string(),
            sites: adapter.sites.into_iter().map(|factors| factors.site).collect(),
            biases,
            trained,
            frozen,
            payload_bytes,
            adapter_file_bytes: matches!(base, Trainable::Device(_)).then_some(file.len()),
            examples: data.train.len(),
            test_examples: data.test.len(),
            labels: data.labels.clone(),
            steps: trainer.steps(),
            first_quantized_step: trainer.first_quantized_step(),
            examples_per_step: trainer.config().effective_batch().min(data.train.len()),
            memory: Memory {
                base_bytes: FLOAT * frozen,
                trained_bytes: 4 * FLOAT * trained,
                full_fine_tuning_bytes: 4 * FLOAT * (frozen + trained),
            },
        })
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let width = self.sites.iter().map(|site| site.name.len()).max().unwrap_or(0);
        let _ = writeln!(
            text,
            "{:width$} {:>6} {:>6} {:>5} {:>8} {:>9}",
            "site", "in", "out", "rank", "scaling", "numbers"
        );
        for site in &self.sites {
            let numbers = site.rank * (site.in_features + site.out_features);
            let BoundSite { name, in_features, out_features, rank, scaling, .. } = site;
            let _ = writeln!(
                text,
                "{name:width$} {in_features:>6} {out_features:>6} {rank:>5} {scaling:>8.3} {:>9}",
                grouped(numbers)
            );
        }
        let labels = if self.labels.is_empty() { "none".into() } else { self.labels.join(", ") };
        let biases = match self.biases {
            [0, _] => String::new(),
            [count, numbers] => format!(" and {count} biases ({} numbers)", grouped(numbers)),
        };
        let Memory { base_bytes, trained_bytes, full_fine_tuning_bytes } = self.memory;
        text + &fields(&[
            ("task", format!("{} on {} ({})", self.task, self.base, self.base_id)),
            (
                "trained",
                format!(
                    "{} numbers in {} sites{biases}, beside {} that stay",
                    grouped(self.trained),
                    self.sites.len(),
                    grouped(self.frozen)
                ),
            ),
            (
                "file",
                match self.adapter_file_bytes {
                    Some(bytes) => {
                        format!("{} bytes, payload {}", grouped(bytes), grouped(self.payload_bytes))
                    }
                    None => "none, a PEFT folder only: devices do not run this base".into(),
                },
            ),
            (
                "examples",
                format!("{} to train, {} to measure", grouped(self.examples), grouped(self.test_examples)),
            ),
            ("classes", labels),
            (
                "steps",
                format!(
                    "{} of {} examples, quantization-aware from step {}",
                    grouped(self.steps),
                    grouped(self.examples_per_step),
                    grouped(self.first_quantized_step)
                ),
            ),
            (
                "memory",
                format!(
                    "base {} bytes, factors with gradients and moments {} (all of the base: {}), and activations",
                    grouped(base_bytes),
                    grouped(trained_bytes),
                    grouped(full_fine_tuning_bytes)
                ),
            ),
        ])
    }
}
