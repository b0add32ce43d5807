//! `summary.json`: what a run made, in numbers.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::train::MetricName;
use crate::{Error, Result, files};

/// File of the results, in the output folder of a run.
pub const SUMMARY: &str = "summary.json";

/// What a run made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Name of the task.
    pub task: String,
    /// Name of the base.
    pub base: String,
    /// The base.
    pub base_id: String,
    /// Sites that are adapted.
    pub sites: usize,
    /// Rank of most sites.
    pub rank: usize,
    /// Alpha of most sites.
    pub alpha: f64,
    /// Numbers that were trained: factors and head.
    pub trained: usize,
    /// Steps taken.
    pub steps: u64,
    /// Bytes of all codes of the adapter file.
    pub payload_bytes: usize,
    /// Bytes of the adapter file.
    pub adapter_file_bytes: usize,
    /// Digest of the self-test.
    pub self_test_digest: String,
    /// The task's metric.
    pub metric: Metrics,
    /// Seconds of training, evaluations included; of all parts of a run that was stopped.
    pub training_seconds: f64,
    /// The adapter file.
    pub adapter: PathBuf,
    /// The PEFT folder.
    pub peft: PathBuf,
}

/// The task's metric, each measured on the test set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// What is measured.
    pub name: MetricName,
    /// Examples of the test set.
    pub examples: usize,
    /// The base alone, with the device's code; `None` if the task needs a head that the base lacks.
    pub base: Option<f64>,
    /// Float factors, in the trainer.
    pub adapter_float: f64,
    /// The file, streamed, with the device's code.
    pub adapter_device: f64,
}

impl Summary {
    /// Writes it into the output folder of its run.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(SUMMARY);
        let json = serde_json::to_string_pretty(self)
            .map_err(|error| Error::field(&path, "content", "plain values", error))?;
        files::write_atomically(&path, (json + "\n").as_bytes())
    }

    /// Reads that of a finished run.
    ///
    /// # Errors
    /// [`Error::UnknownFile`] if the folder is none of a finished run, [`Error::Field`] if the summary is damaged,
    /// [`Error::Io`].
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(SUMMARY);
        if !path.is_file() {
            let found = if folder.is_dir() {
                format!("a folder without {SUMMARY}")
            } else if folder.exists() {
                "a file".into()
            } else {
                "nothing".into()
            };
            let expected = "the output folder of a finished run".into();
            return Err(Error::UnknownFile { path: folder.to_owned(), expected, found });
        }
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::field(&path, "content", "the summary of a run", error))
    }
}
