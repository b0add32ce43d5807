//! The configuration of a run: one flat TOML file per task, and `key = value` overrides on top of it.
//!
//! Every key is listed once, in `keys.rs`, with what it expects and how it is set; an unknown key, a wrong type and a value
//! outside its range are errors that name what was expected and what was found.

mod keys;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use keys::{KEYS, Key, bad_value, describe, find, readings};
use rankpatch_format::adapter::Pooling;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::TrainError;
use crate::data::recordings;
use crate::lora::{HEAD, InitLora, LoraConfig};
use crate::optim::AdamWConfig;
use crate::schedule::{Decay, Schedule};
use crate::{Error, Result};

/// Which data set a task reads, and with it what is learned and measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatasetKind {
    /// JSON lines: `text` and `label`, `prompt` and `completion`, or `text`.
    Jsonl,
    /// CSV with the same columns.
    Csv,
    /// Plain text, an example a line.
    Text,
    /// One text from its beginning to its end, which is measured; the network learns to go on. In pieces of whole lines.
    Document,
    /// Stories, each ended by a line `<|endoftext|>`; the network learns to write them. Measured in bits per character.
    Stories,
    /// Feature arrays with a class each, a safetensors file.
    Features,
    /// Recordings with a class each, a folder of samples and an index.
    Recordings,
    /// Person names, one a line; the network learns to write them. Measured in bits per character.
    Names,
    /// Requests with an intent each; a task head tells the intent. Measured in accuracy.
    Intents,
    /// The same requests with the slots in each; a task head tells for each word whether it begins one, goes on with one, or is outside.
    /// Measured in the F1 of the slots.
    Slots,
    /// Recordings of spoken digits; a task head tells the speaker. Measured in accuracy.
    Speakers,
}

impl DatasetKind {
    /// Whether the task brings a head of its own; `None` if that is seen in the data.
    pub fn classifies(self) -> Option<bool> {
        match self {
            Self::Jsonl | Self::Csv => None,
            Self::Text | Self::Document | Self::Stories | Self::Names => Some(false),
            Self::Features | Self::Recordings | Self::Intents | Self::Slots | Self::Speakers => Some(true),
        }
    }
}

/// What is trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Low-rank factors beside the frozen base, and a task head.
    #[default]
    Lora,
    /// Every weight of the base, and a task head: what an adapter is compared with. It makes another base.
    Full,
}

/// Where training runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The first CUDA device if this build and machine have one, otherwise the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this number.
    Cuda(usize),
}

impl std::str::FromStr for DeviceKind {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => other.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or(()),
        }
    }
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// Optimizer steps.
    Steps(u64),
    /// Passes over the training data, not necessarily whole.
    Epochs(f64),
}

/// The configuration of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainConfig {
    /// Name of the task; it goes into the adapter.
    pub task: String,
    /// The base: what an importer reads, or a base image.
    pub base: PathBuf,
    /// What is trained. With [`Method::Full`] whatever is about factors does not count, `quantization_aware` included.
    pub method: Method,
    /// Which data set.
    pub dataset: DatasetKind,
    /// Where the data lie.
    pub data: PathBuf,
    /// The part that is set apart for measuring, where it has a file of its own.
    pub test_data: Option<PathBuf>,
    /// Otherwise the fraction of `data` that is set apart, of each class the same.
    pub test_fraction: f64,
    /// What chooses it: not the seed of the run, so that what is set apart stays apart.
    pub split_seed: u64,
    /// Whether training texts are put one behind the other and cut into windows of `max_length` tokens, without padding.
    pub packing: bool,
    /// Tokens of an example, with the one that starts a sequence; longer ones are cut. `None` refuses what the base cannot
    /// take.
    pub max_length: Option<usize>,
    /// `tokenizer.json` of a base without a tokenizer of its own, or the folder of it; `None` looks into the folder that the base
    /// is imported from.
    pub tokenizer: Option<PathBuf>,
    /// How the index of recordings is read.
    pub recordings: recordings::Options,
    /// Names of the base's own outputs, in their order: the task head starts as the layer that writes them. None for a new head.
    pub output_labels: Vec<String>,
    /// What a task head reads of the feature rows.
    pub pooling: Pooling,
    /// LoRA.
    pub lora: LoraConfig,
    /// Examples of one batch.
    pub batch_size: usize,
    /// Batches whose gradients one step sums up: as if `batch_size` were so many times as large, with the memory of one.
    pub gradient_accumulation_steps: usize,
    /// How long the run is.
    pub length: Length,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Factor of the learning rate for every lora_b (LoRA+).
    pub loraplus_lr_ratio: f64,
    /// Factor of the learning rate for the task head.
    pub head_lr_ratio: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// How the rate falls after it.
    pub lr_scheduler_type: Decay,
    /// Last rate as a fraction of the highest.
    pub min_lr_ratio: f64,
    /// AdamW.
    pub optimizer: AdamWConfig,
    /// Seed of everything random.
    pub seed: u64,
    /// Steps between two evaluations; 0 evaluates at the end only.
    pub eval_steps: u64,
    /// Evaluations in a row without a better result after which the run ends, with the factors of the best; 0 never does.
    pub early_stopping_patience: u64,
    /// Steps between two checkpoints; 0 writes none.
    pub save_steps: u64,
    /// Fraction of the run, at its end, that trains on fake-quantized factors.
    pub quantization_aware: f64,
    /// Before the quantization-aware part, trims the rank of each site to what keeps this fraction of the squared singular
    /// values of its update. `None` keeps the ranks.
    pub explained_variance: Option<f64>,
    /// Whether the base and the activations are bf16, which needs a GPU; factors, moments, the loss and sums stay f32.
    pub bf16: bool,
    /// Where to train.
    pub device: DeviceKind,
    /// Sequence number of the adapter file.
    pub sequence: u32,
}

impl Default for TrainConfig {
    /// A run without a task: what a file leaves out has these values.
    fn default() -> Self {
        Self {
            task: String::new(),
            base: PathBuf::new(),
            method: Method::Lora,
            dataset: DatasetKind::Names,
            data: PathBuf::new(),
            test_data: None,
            test_fraction: 0.1,
            split_seed: 0,
            packing: false,
            max_length: None,
            tokenizer: None,
            recordings: recordings::Options::default(),
            output_labels: Vec::new(),
            pooling: Pooling::Mean,
            lora: LoraConfig::default(),
            batch_size: 32,
            gradient_accumulation_steps: 1,
            length: Length::Epochs(1.0),
            learning_rate: 5e-3,
            loraplus_lr_ratio: 1.0,
            head_lr_ratio: 1.0,
            warmup_steps: 20,
            lr_scheduler_type: Decay::Linear,
            min_lr_ratio: 0.0,
            optimizer: AdamWConfig { weight_decay: 0.0, max_grad_norm: Some(1.0), ..AdamWConfig::default() },
            seed: 0,
            eval_steps: 0,
            early_stopping_patience: 0,
            save_steps: 0,
            quantization_aware: 0.2,
            explained_variance: None,
            bf16: false,
            device: DeviceKind::Auto,
            sequence: 1,
        }
    }
}

/// What messages call the overrides.
const COMMAND_LINE: &str = "the command line";

/// Keys without which there is no task.
const REQUIRED: &[&str] = &["task", "base", "dataset", "data"];

impl TrainConfig {
    /// Reads a file and applies overrides. Paths in the file are relative to its folder, paths in overrides to the current
    /// one.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`TrainConfig::parse`].
    pub fn load(path: &Path, overrides: &[(String, String)]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, &path.display().to_string(), folder, overrides)
    }

    /// Reads TOML and applies overrides, whose keys may be written with `-` for `_`.
    ///
    /// `origin` names the text in messages; relative paths in it are relative to `folder`.
    ///
    /// # Errors
    /// [`TrainError::Toml`], [`TrainError::UnknownKey`], [`TrainError::DuplicateKey`], [`TrainError::MissingKey`],
    /// [`TrainError::BadValue`].
    pub fn parse(text: &str, origin: &str, folder: &Path, overrides: &[(String, String)]) -> Result<Self> {
        let table = parse_table(text, origin)?;
        Self::from_table(Self::default(), &table, origin, folder, overrides, (REQUIRED, &[]))
    }

    /// The same on top of other defaults, with other keys `required` and some `refused`.
    pub(crate) fn from_table(
        defaults: Self,
        table: &Table,
        origin: &str,
        folder: &Path,
        overrides: &[(String, String)],
        (required, refused): (&[&str], &[&str]),
    ) -> Result<Self> {
        let find = |name: &str, origin: &str| match find(name, origin) {
            Ok(key) if refused.contains(&key.name) => {
                let known = KEYS.iter().map(|key| key.name).filter(|name| !refused.contains(name));
                let known = known.collect::<Vec<_>>().join(", ");
                let (origin, found) = (origin.to_owned(), name.to_owned());
                Err(Error::from(TrainError::UnknownKey { origin, found, nearest: None, known }))
            }
            found => found,
        };
        let mut config = defaults;
        let mut given = BTreeSet::new();
        for (name, value) in table {
            let key = find(name, origin)?;
            if !given.insert(key.name) {
                return Err(TrainError::DuplicateKey {
                    origin: origin.into(),
                    key: key.name,
                    alias: key.alias,
                }
                .into());
            }
            (key.set)(&mut config, value).ok_or_else(|| bad_value(key, describe(value)))?;
        }
        let optional = [&mut config.test_data, &mut config.tokenizer].into_iter().flatten();
        for path in [&mut config.base, &mut config.data].into_iter().chain(optional) {
            if !path.as_os_str().is_empty() {
                *path = folder.join(&*path);
            }
        }
        let (key, alias) = ("steps", "epochs");
        if given.contains(key) && given.contains(alias) {
            return Err(TrainError::DuplicateKey { origin: origin.into(), key, alias }.into());
        }
        let mut lengths = 0;
        for (name, text) in overrides {
            let key_of_override = find(&name.replace('-', "_"), COMMAND_LINE)?;
            lengths += usize::from([key, alias].contains(&key_of_override.name));
            if lengths > 1 {
                return Err(TrainError::DuplicateKey { origin: COMMAND_LINE.into(), key, alias }.into());
            }
            let key = key_of_override;
            given.insert(key.name);
            let fits = readings(text).iter().any(|value| (key.set)(&mut config, value).is_some());
            if !fits {
                return Err(bad_value(key, format!("{text:?}")).into());
            }
        }
        let missing = KEYS.iter().find(|key| required.contains(&key.name) && !given.contains(key.name));
        if let Some(Key { name: key, expected, .. }) = missing {
            return Err(TrainError::MissingKey { origin: origin.to_owned(), key, expected }.into());
        }
        if let Some(classifies) = config.dataset.classifies() {
            if classifies && !given.contains("modules_to_save") {
                config.lora.modules_to_save = vec![HEAD.into()];
            }
            let head = !config.lora.modules_to_save.is_empty();
            if head != classifies {
                let expected =
                    if head { "[] (the task has no head)" } else { "[\"head\"] (the task trains a head)" };
                let found = format!("{:?}", config.lora.modules_to_save);
                return Err(conflict("modules_to_save", expected, found));
            }
        }
        let tags = config.dataset == DatasetKind::Slots;
        if tags && !given.contains("pooling") {
            config.pooling = Pooling::Reread;
        }
        if tags != config.pooling.is_every_row() {
            let expected = if tags {
                "\"every\" or \"reread\" with dataset = \"slots\" (each word has an answer)"
            } else {
                "\"mean\" or \"last\" (a sequence has one answer)"
            };
            return Err(conflict("pooling", expected, format!("{:?}", config.pooling).to_lowercase()));
        }
        if config.packing && config.dataset.classifies() == Some(true) {
            return Err(conflict("packing", "false (classes belong to whole examples)", "true".into()));
        }
        if config.lora.init_lora_weights == InitLora::Pissa && config.lora.dropout > 0.0 {
            let expected = "0 with init_lora_weights = \"pissa\" (it would drop parts of the base)";
            return Err(conflict("dropout", expected, config.lora.dropout.to_string()));
        }
        if config.method == Method::Full && config.explained_variance.is_some() {
            let expected = "method = \"lora\" with it (it lowers ranks)";
            return Err(conflict("explained_variance", expected, "method = \"full\"".into()));
        }
        if config.dataset == DatasetKind::Document && config.max_length.is_none() {
            return Err(conflict(
                "dataset",
                "max_length, the size of a piece, with \"document\"",
                "none".into(),
            ));
        }
        if config.packing && config.dataset == DatasetKind::Document {
            return Err(conflict("packing", "false (a document is one text)", "true".into()));
        }
        if config.packing && config.max_length.is_none() {
            return Err(conflict("packing", "max_length, the size of a window, with it", "none".into()));
        }
        if config.early_stopping_patience > 0 && config.eval_steps == 0 {
            return Err(conflict("early_stopping_patience", "eval_steps above 0 with it", "0".into()));
        }
        Ok(config)
    }

    /// Steps of the run over a training set of so many examples; at least 1.
    pub fn steps(&self, examples: usize) -> u64 {
        let steps = match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => {
                (epochs * examples as f64 / self.effective_batch() as f64).ceil() as u64
            }
        };
        steps.max(1)
    }

    /// Examples of one step.
    pub fn effective_batch(&self) -> usize {
        self.batch_size * self.gradient_accumulation_steps
    }

    /// The learning rate over a run of `steps`.
    pub fn schedule(&self, steps: u64) -> Schedule {
        Schedule {
            peak: self.learning_rate,
            warmup: self.warmup_steps.min(steps),
            steps,
            decay: self.lr_scheduler_type,
            floor: self.min_lr_ratio,
        }
    }

    /// The first step of the quantization-aware part of a run of `steps`; `steps` if there is none.
    pub fn first_quantized_step(&self, steps: u64) -> u64 {
        if self.method == Method::Full {
            return steps;
        }
        steps - ((steps as f64 * self.quantization_aware).round() as u64).min(steps)
    }

    /// The keys that have another name too, PEFT's as a rule: key and other name.
    pub fn aliases() -> impl Iterator<Item = (&'static str, &'static str)> {
        KEYS.iter().map(|key| (key.name, key.alias)).filter(|(_, alias)| !alias.is_empty())
    }

    /// Every key with what it expects, for help texts.
    pub fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
        KEYS.iter().map(|key| (key.name, key.expected))
    }
}

/// A file of keys.
pub(crate) fn parse_table(text: &str, origin: &str) -> Result<Table> {
    let refused = |error: toml::de::Error| TrainError::Toml {
        origin: origin.to_owned(),
        reason: error.to_string().trim_end().to_owned(),
    };
    Ok(text.parse().map_err(refused)?)
}

fn conflict(key: &'static str, expected: &str, found: String) -> Error {
    TrainError::BadValue { key, expected: expected.into(), found }.into()
}
