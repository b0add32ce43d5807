//! `summary.json`: what a run made, in numbers.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Site;
use crate::train::{MetricName, number_or_nan};
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
    /// Every site in canonical order.
    pub per_site: Vec<Site>,
}

/// The task's metric, each measured on the test set.
///
/// What rounding the factors costs is the distance from `float_device` to `device`, both with the device's code: in
/// `after_training` of factors that knew nothing of it, in `adapter_float_device` and `adapter_device` of factors that were
/// trained as codes. The distance between the two `device` values is what the quantization-aware part bought; it has also had
/// more steps. Rounding the final float factors gives the trained codes themselves, so there is no fourth kind of factors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// What is measured.
    pub name: MetricName,
    /// Examples of the test set.
    pub examples: usize,
    /// The base alone, with the device's code; `None` if the task needs a head that the base lacks.
    pub base: Option<f64>,
    /// The factors when the quantization-aware part began. `None` for a run without such a part: its file holds codes that were
    /// made after training.
    pub after_training: Option<AfterTraining>,
    /// Float factors, in the trainer.
    #[serde(deserialize_with = "number_or_nan")]
    pub adapter_float: f64,
    /// Float factors, hardly rounded, with the device's code; `None` where the device has no room for three times the rank.
    pub adapter_float_device: Option<f64>,
    /// The file, streamed, with the device's code.
    #[serde(deserialize_with = "number_or_nan")]
    pub adapter_device: f64,
}

/// The metric of the factors that training in float came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AfterTraining {
    /// Steps taken.
    pub step: u64,
    /// The float factors, in the trainer.
    #[serde(deserialize_with = "number_or_nan")]
    pub float: f64,
    /// The float factors, hardly rounded, with the device's code; `None` where there is no room for them.
    pub float_device: Option<f64>,
    /// The codes that they are rounded to, with the device's code.
    #[serde(deserialize_with = "number_or_nan")]
    pub device: f64,
}

impl Summary {
    /// The lowest and the highest rank of a site.
    pub fn ranks(&self) -> (usize, usize) {
        let ranks = || self.per_site.iter().map(|site| site.rank);
        (ranks().min().unwrap_or(self.rank), ranks().max().unwrap_or(self.rank))
    }

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
