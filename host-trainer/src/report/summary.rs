//! `summary.json`: what a run made, in numbers.
//!
//! A base that devices do not run has no adapter file and no numbers of the device's code: those fields are not in its file,
//! all others mean the same.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::Site;
use crate::train::{Method, MetricName, number_or_nan};
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
    /// What was trained. With [`Method::Full`] there are no sites, no adapter and no PEFT folder but `model`.
    #[serde(default)]
    pub method: Method,
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
    /// The file for devices; its fields stand among the others in `summary.json`. `None` on a base that devices do not run.
    // Read by `Summary::read`: numbers do not survive serde's flattening in every build of its JSON.
    #[serde(flatten, skip_deserializing)]
    pub file: Option<AdapterFile>,
    /// The task's metric.
    pub metric: Metrics,
    /// Seconds of training, evaluations included; of all parts of a run that was stopped.
    pub training_seconds: f64,
    /// The PEFT folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peft: Option<PathBuf>,
    /// Bytes of the files in it.
    pub peft_bytes: usize,
    /// The folder of the network whose weights were trained, see [`crate::import::network`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// Every site in canonical order.
    pub per_site: Vec<Site>,
}

/// The adapter as devices take it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterFile {
    /// Where it is.
    pub adapter: PathBuf,
    /// Its bytes.
    pub adapter_file_bytes: usize,
    /// Bytes of all its codes.
    pub payload_bytes: usize,
    /// Digest of its self-test.
    pub self_test_digest: String,
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
    /// The base alone, with the device's code (in the trainer if devices do not run the base); `None` if the task needs a head
    /// that the base lacks.
    pub base: Option<f64>,
    /// The factors when the quantization-aware part began. `None` for a run without such a part: its file, if it has one, holds
    /// codes that were made after training.
    pub after_training: Option<AfterTraining>,
    /// Float factors, in the trainer.
    #[serde(deserialize_with = "number_or_nan")]
    pub adapter_float: f64,
    /// Float factors, hardly rounded, with the device's code; `None` where the device has no room for three times the rank.
    pub adapter_float_device: Option<f64>,
    /// The file, streamed, with the device's code; of a network that was trained in full its int8 image. `None`, and no field, on
    /// a base that devices do not run.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_number_or_nan")]
    pub adapter_device: Option<f64>,
}

impl Metrics {
    /// What the run is worth, and what told: the device's code where there is a file for devices, float otherwise.
    pub fn result(&self) -> (f64, &'static str) {
        match self.adapter_device {
            Some(value) => (value, "on the device"),
            None => (self.adapter_float, "in float"),
        }
    }
}

/// A field that is there; null is NaN.
fn some_number_or_nan<'d, D: Deserializer<'d>>(
    deserializer: D,
) -> std::result::Result<Option<f64>, D::Error> {
    number_or_nan(deserializer).map(Some)
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
        let read = || -> serde_json::Result<Self> {
            let mut summary: Self = serde_json::from_slice(&text)?;
            if summary.method == Method::Lora && summary.metric.adapter_device.is_some() {
                summary.file = Some(serde_json::from_slice(&text)?);
            }
            Ok(summary)
        };
        read().map_err(|error| Error::field(&path, "content", "the summary of a run", error))
    }
}
