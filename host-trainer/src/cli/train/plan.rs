//! `rankpatch train --dry-run`: what a run would train, write and need.

use std::fmt::Write as _;

use rankpatch_format::adapter::Adapter;
use rankpatch_format::write::Tensor;
use serde::Serialize;

use super::super::console::{Table, fields, grouped};
use super::super::exit::Outcome;
use super::super::task::Trainable;
use crate::export::export;
use crate::lora::BoundSite;
use crate::train::{Learner, Method};

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
    /// Bytes of all codes of the adapter file. `None` for a base that devices do not run: no file is written.
    payload_bytes: Option<usize>,
    /// As `payload_bytes`.
    adapter_file_bytes: Option<usize>,
    examples: usize,
    test_examples: usize,
    labels: Vec<String>,
    steps: u64,
    first_quantized_step: u64,
    examples_per_step: usize,
    memory: Memory,
    #[serde(skip)]
    method: Method,
    /// Whether ranks are trimmed before the file is written, which then is smaller.
    #[serde(skip)]
    trims: bool,
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
    pub(super) fn new(learner: &Learner, base: &Trainable) -> Outcome<Self> {
        let adapter = learner.adapter()?;
        let network = base.network();
        let (payload_bytes, adapter_file_bytes) = match base {
            Trainable::Device(base) if learner.config().method == Method::Lora => {
                // The self-test's digest has the same length whatever it is.
                let file = export(&adapter, network, learner.config().sequence, |_| Ok(0))?.file;
                let payload = Adapter::new(&file, &base.image.base()?)?.payload_bytes();
                (Some(payload), Some(file.len()))
            }
            _ => (None, None),
        };
        let trained = learner.trained();
        let biases = [adapter.biases.len(), adapter.biases.iter().map(|bias| bias.values.len()).sum()];
        let elements = |tensor: &Tensor| tensor.shape().rows as usize * tensor.shape().cols as usize;
        let frozen = network.tensors.iter().map(elements).sum();
        let data = learner.data();
        Ok(Self {
            task: adapter.task.clone(),
            base: network.name.clone(),
            base_id: adapter.base_id.to_string(),
            sites: adapter.sites.into_iter().map(|factors| factors.site).collect(),
            biases,
            trained,
            frozen,
            payload_bytes,
            adapter_file_bytes,
            examples: data.train.len(),
            test_examples: data.test.len(),
            labels: data.labels.clone(),
            steps: learner.steps(),
            first_quantized_step: learner.first_quantized_step(),
            examples_per_step: learner.config().effective_batch().min(data.train.len()),
            memory: Memory {
                base_bytes: FLOAT * frozen,
                trained_bytes: 4 * FLOAT * trained,
                full_fine_tuning_bytes: 4 * FLOAT * (frozen + trained),
            },
            method: learner.config().method,
            trims: learner.config().explained_variance.is_some(),
        })
    }

    /// One line of it, for a plan of many tasks; `done` tells that it would be skipped. The columns are sites, ranks, numbers
    /// trained, bytes of the file, examples to train on and to measure with, steps.
    pub(super) fn row(&self, table: &mut Table, done: bool) {
        let ranks = || self.sites.iter().map(|site| site.rank);
        let ranks = match (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0)) {
            (low, high) if low < high => format!("{low}-{high}"),
            (rank, _) => rank.to_string(),
        };
        table.row(&[
            &self.task,
            &self.base,
            &self.sites.len(),
            &ranks,
            &grouped(self.trained),
            &self.adapter_file_bytes.map_or_else(|| "-".into(), grouped),
            &format!("{}+{}", grouped(self.examples), grouped(self.test_examples)),
            &grouped(self.steps),
            &if done { "was done" } else { "" },
        ]);
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
                match (self.adapter_file_bytes, self.payload_bytes) {
                    (Some(bytes), Some(payload)) => {
                        let most = if self.trims { "at most " } else { "" };
                        format!("{most}{} bytes, payload {}", grouped(bytes), grouped(payload))
                    }
                    _ if self.method == Method::Full => "none, another base: its weights are trained".into(),
                    _ => "none, a PEFT folder only: devices do not run this base".into(),
                },
            ),
            (
                "examples",
                format!("{} to train, {} to measure", grouped(self.examples), grouped(self.test_examples)),
            ),
            ("classes", labels),
            ("steps", {
                let steps =
                    format!("{} of {} examples", grouped(self.steps), grouped(self.examples_per_step));
                match self.first_quantized_step {
                    first if first < self.steps => {
                        format!("{steps}, quantization-aware from step {}", grouped(first))
                    }
                    _ => format!("{steps}, none of them quantization-aware"),
                }
            }),
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
