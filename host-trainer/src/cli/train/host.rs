//! The end of a run on a base that devices do not run: a PEFT folder, measured in float.

use std::path::{Path, PathBuf};

use rankpatch_format::write::Network;
use serde::Serialize;

use super::super::console::fields;
use super::super::exit::Outcome;
use super::{PEFT, failed};
use crate::lora::FloatAdapter;
use crate::report::{History, SUMMARY};
use crate::train::{Metric, Trainer, evaluate_float};
use crate::{files, peft};

/// What such a run made: `summary.json` without what only a device's code can say.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    task: String,
    base: String,
    base_id: String,
    sites: usize,
    rank: usize,
    alpha: f64,
    /// Numbers that were trained: factors and head.
    trained: usize,
    steps: u64,
    /// The task's metric on the test set, float factors.
    metric: Metric,
    training_seconds: f64,
    peft: PathBuf,
}

/// Writes the PEFT folder and the summary.
pub(super) fn finish(
    trainer: &Trainer,
    adapter: &FloatAdapter,
    network: &Network,
    history: &History,
    out: &Path,
) -> Outcome<Summary> {
    let summary = Summary {
        task: adapter.task.clone(),
        base: network.name.clone(),
        base_id: network.id().to_string(),
        sites: adapter.sites.len(),
        rank: adapter.config.rank,
        alpha: adapter.config.alpha,
        trained: trainer.trained(),
        steps: trainer.step(),
        metric: evaluate_float(trainer.model(), Some(adapter), &trainer.data().test)?,
        training_seconds: history.seconds,
        peft: out.join(PEFT),
    };
    peft::write(adapter, network, &summary.peft).map_err(failed)?;
    let text = serde_json::to_string_pretty(&summary).map_err(std::io::Error::other)?;
    // Last, since a folder with a summary is that of a finished run.
    files::write_atomically(&out.join(SUMMARY), (text + "\n").as_bytes()).map_err(failed)?;
    Ok(summary)
}

impl Summary {
    pub(super) fn text(&self) -> String {
        let Metric { name, value, examples } = self.metric;
        fields(&[
            ("task", self.task.clone()),
            ("base", format!("{} ({}), which devices do not run", self.base, self.base_id)),
            ("sites", format!("{}, rank {}, alpha {}", self.sites, self.rank, self.alpha)),
            (name.as_str(), format!("adapter in float {value:.4} ({examples} examples)")),
            ("trained in", format!("{:.1} s", self.training_seconds)),
            ("PEFT", self.peft.display().to_string()),
        ])
    }
}
