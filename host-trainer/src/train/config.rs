//! The configuration of a run: one flat TOML file per task, and `key = value` overrides on top of it.
//!
//! Every key is listed once, in [`KEYS`], with what it expects and how it is set; an unknown key, a wrong type and a value
//! outside its range are errors that name what was expected and what was found.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rankpatch_format::adapter::{MAX_TASK_BYTES, Pooling};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::TrainError;
use crate::lora::{HEAD, LoraConfig};
use crate::optim::AdamWConfig;
use crate::schedule::{Decay, Schedule};
use crate::{Error, Result};

/// Which data set a task reads, and with it what is learned and measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatasetKind {
    /// Person names, one a line; the network learns to write them. Measured in bits per character.
    Names,
    /// Requests with an intent each; a task head tells the intent. Measured in accuracy.
    Intents,
    /// Recordings of spoken digits; a task head tells the speaker. Measured in accuracy.
    Speakers,
}

impl DatasetKind {
    /// Whether the task brings a head of its own.
    pub fn classifies(self) -> bool {
        !matches!(self, Self::Names)
    }
}

/// Where training runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A CUDA device if this build and machine have one, otherwise the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device.
    Cuda,
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
pub struct TrainConfig {
    /// Name of the task; it goes into the adapter.
    pub task: String,
    /// The base: what an importer reads, or a base image.
    pub base: PathBuf,
    /// Which data set.
    pub dataset: DatasetKind,
    /// Where the data lie.
    pub data: PathBuf,
    /// Tokens of a request, with the one that starts a sequence; longer requests are cut. `None` refuses what the base cannot
    /// take.
    #[serde(default)]
    pub max_length: Option<usize>,
    /// What a task head reads of the feature rows.
    pub pooling: Pooling,
    /// LoRA.
    pub lora: LoraConfig,
    /// Examples of one step.
    pub batch_size: usize,
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
    /// Steps between two checkpoints; 0 writes none.
    pub save_steps: u64,
    /// Fraction of the run, at its end, that trains on fake-quantized factors.
    pub quantization_aware: f64,
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
            dataset: DatasetKind::Names,
            data: PathBuf::new(),
            max_length: None,
            pooling: Pooling::Mean,
            lora: LoraConfig::default(),
            batch_size: 32,
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
            save_steps: 0,
            quantization_aware: 0.2,
            device: DeviceKind::Auto,
            sequence: 1,
        }
    }
}

/// What a value is set from, and whether it fitted.
type Setter = fn(&mut TrainConfig, &Value) -> Option<()>;

/// One key of the configuration.
struct Key {
    name: &'static str,
    /// Another name for it, PEFT's as a rule.
    alias: &'static str,
    expected: &'static str,
    set: Setter,
}

const fn key(name: &'static str, alias: &'static str, expected: &'static str, set: Setter) -> Key {
    Key { name, alias, expected, set }
}

const NAMES: &str = "a list of strings";
const COUNT: &str = "a whole number, 0 or more";
const POSITIVE: &str = "a whole number, 1 or more";
const RATE: &str = "a number, 0 or more";
const FACTOR: &str = "a number above 0";
const FRACTION: &str = "a number from 0 to 1";

/// Every key there is.
const KEYS: &[Key] = &[
    key("task", "", "a name of 1 to 32 bytes", |c, v| {
        c.task = v.as_str().filter(|name| (1..=MAX_TASK_BYTES).contains(&name.len()))?.into();
        Some(())
    }),
    key("base", "", "a path", |c, v| path(v).map(|path| c.base = path)),
    key("dataset", "", "\"names\", \"intents\" or \"speakers\"", |c, v| {
        choice(v).map(|kind| c.dataset = kind)
    }),
    key("data", "", "a path", |c, v| path(v).map(|path| c.data = path)),
    key("max_length", "max_seq_length", POSITIVE, |c, v| positive(v).map(|n| c.max_length = Some(n))),
    key("pooling", "", "\"mean\" or \"last\"", |c, v| {
        c.pooling = match v.as_str()? {
            "mean" => Pooling::Mean,
            "last" => Pooling::Last,
            _ => return None,
        };
        Some(())
    }),
    key("rank", "r", POSITIVE, |c, v| positive(v).map(|n| c.lora.rank = n)),
    key("alpha", "lora_alpha", FACTOR, |c, v| factor(v).map(|x| c.lora.alpha = x)),
    key("dropout", "lora_dropout", "a number from 0 to below 1", |c, v| {
        c.lora.dropout = fraction(v).filter(|p| *p < 1.0)?;
        Some(())
    }),
    key("target_modules", "", "a list of site names, or \"all-linear\"", |c, v| {
        names(v).filter(|names| !names.is_empty()).map(|names| c.lora.target_modules = names)
    }),
    key("exclude_modules", "", NAMES, |c, v| names(v).map(|names| c.lora.exclude_modules = names)),
    key("use_rslora", "", "true or false", |c, v| v.as_bool().map(|yes| c.lora.use_rslora = yes)),
    key("rank_pattern", "", "a table from site names to ranks of 1 or more", |c, v| {
        table(v, positive).map(|ranks| c.lora.rank_pattern = ranks)
    }),
    key("alpha_pattern", "", "a table from site names to numbers above 0", |c, v| {
        table(v, factor).map(|alphas| c.lora.alpha_pattern = alphas)
    }),
    key("modules_to_save", "", "[\"head\"] or []", |c, v| {
        c.lora.modules_to_save = names(v).filter(|names| names.iter().all(|name| name == HEAD))?;
        Some(())
    }),
    key("batch_size", "per_device_train_batch_size", POSITIVE, |c, v| positive(v).map(|n| c.batch_size = n)),
    key("steps", "max_steps", POSITIVE, |c, v| positive(v).map(|n| c.length = Length::Steps(n as u64))),
    key("epochs", "num_train_epochs", FACTOR, |c, v| factor(v).map(|n| c.length = Length::Epochs(n))),
    key("learning_rate", "lr", FACTOR, |c, v| factor(v).map(|x| c.learning_rate = x)),
    key("loraplus_lr_ratio", "", FACTOR, |c, v| factor(v).map(|x| c.loraplus_lr_ratio = x)),
    key("head_lr_ratio", "", FACTOR, |c, v| factor(v).map(|x| c.head_lr_ratio = x)),
    key("warmup_steps", "", COUNT, |c, v| count(v).map(|n| c.warmup_steps = n)),
    key("lr_scheduler_type", "", "\"constant\", \"linear\" or \"cosine\"", |c, v| {
        choice(v).map(|decay| c.lr_scheduler_type = decay)
    }),
    key("min_lr_ratio", "", FRACTION, |c, v| fraction(v).map(|x| c.min_lr_ratio = x)),
    key("beta1", "adam_beta1", "a number from 0 to below 1", |c, v| {
        c.optimizer.beta1 = fraction(v).filter(|beta| *beta < 1.0)?;
        Some(())
    }),
    key("beta2", "adam_beta2", "a number from 0 to below 1", |c, v| {
        c.optimizer.beta2 = fraction(v).filter(|beta| *beta < 1.0)?;
        Some(())
    }),
    key("eps", "adam_epsilon", FACTOR, |c, v| factor(v).map(|x| c.optimizer.eps = x)),
    key("weight_decay", "", RATE, |c, v| rate(v).map(|x| c.optimizer.weight_decay = x)),
    key("max_grad_norm", "", "a number, 0 or more (0 does not clip)", |c, v| {
        rate(v).map(|x| c.optimizer.max_grad_norm = (x > 0.0).then_some(x))
    }),
    key("seed", "", COUNT, |c, v| count(v).map(|n| c.seed = n)),
    key("eval_steps", "", COUNT, |c, v| count(v).map(|n| c.eval_steps = n)),
    key("save_steps", "", COUNT, |c, v| count(v).map(|n| c.save_steps = n)),
    key("quantization_aware", "", FRACTION, |c, v| fraction(v).map(|x| c.quantization_aware = x)),
    key("device", "", "\"auto\", \"cpu\" or \"cuda\"", |c, v| choice(v).map(|device| c.device = device)),
    key("sequence", "", "a whole number from 0 to 4294967295", |c, v| {
        c.sequence = u32::try_from(count(v)?).ok()?;
        Some(())
    }),
];

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
        let table: Table = text.parse().map_err(|error: toml::de::Error| TrainError::Toml {
            origin: origin.to_owned(),
            reason: error.to_string().trim_end().to_owned(),
        })?;
        let mut config = Self::default();
        let mut given = BTreeSet::new();
        for (name, value) in &table {
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
        for path in [&mut config.base, &mut config.data] {
            if !path.as_os_str().is_empty() {
                *path = folder.join(&*path);
            }
        }
        let (key, alias) = ("steps", "epochs");
        if given.contains(key) && given.contains(alias) {
            return Err(TrainError::DuplicateKey { origin: origin.into(), key, alias }.into());
        }
        for (name, text) in overrides {
            let key = find(&name.replace('-', "_"), "the command line")?;
            given.insert(key.name);
            let fits = readings(text).iter().any(|value| (key.set)(&mut config, value).is_some());
            if !fits {
                return Err(bad_value(key, format!("{text:?}")).into());
            }
        }
        let missing = KEYS.iter().find(|key| REQUIRED.contains(&key.name) && !given.contains(key.name));
        if let Some(Key { name: key, expected, .. }) = missing {
            return Err(TrainError::MissingKey { origin: origin.to_owned(), key, expected }.into());
        }
        if !given.contains("modules_to_save") && config.dataset.classifies() {
            config.lora.modules_to_save = vec![HEAD.into()];
        }
        let head = !config.lora.modules_to_save.is_empty();
        if head != config.dataset.classifies() {
            let expected =
                if head { "[] (the task has no head)" } else { "[\"head\"] (the task trains a head)" };
            return Err(TrainError::BadValue {
                key: "modules_to_save",
                expected: expected.into(),
                found: format!("{:?}", config.lora.modules_to_save),
            }
            .into());
        }
        Ok(config)
    }

    /// Steps of the run over a training set of so many examples; at least 1.
    pub fn steps(&self, examples: usize) -> u64 {
        let steps = match self.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => (epochs * examples as f64 / self.batch_size as f64).ceil() as u64,
        };
        steps.max(1)
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

fn find(name: &str, origin: &str) -> Result<&'static Key> {
    if let Some(key) = KEYS.iter().find(|key| key.name == name || (key.alias == name && !name.is_empty())) {
        return Ok(key);
    }
    let names = || KEYS.iter().flat_map(|key| [key.name, key.alias]).filter(|name| !name.is_empty());
    let nearest = names()
        .map(|known| (strsim::damerau_levenshtein(known, name), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len().max(name.len()).div_ceil(3));
    Err(TrainError::UnknownKey {
        origin: origin.to_owned(),
        found: name.to_owned(),
        nearest: nearest.map(|(_, known)| known.to_owned()),
        known: KEYS.iter().map(|key| key.name).collect::<Vec<_>>().join(", "),
    }
    .into())
}

fn bad_value(key: &Key, found: String) -> TrainError {
    TrainError::BadValue { key: key.name, expected: key.expected.into(), found }
}

fn describe(value: &Value) -> String {
    format!("{} {value}", value.type_str())
}

/// What an override may mean: the TOML value that it looks like, or a string.
fn readings(text: &str) -> Vec<Value> {
    let value = format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
    value.into_iter().chain([Value::String(text.to_owned())]).collect()
}

fn path(value: &Value) -> Option<PathBuf> {
    value.as_str().filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn choice<T: for<'de> Deserialize<'de>>(value: &Value) -> Option<T> {
    value.is_str().then(|| value.clone().try_into().ok())?
}

fn count(value: &Value) -> Option<u64> {
    value.as_integer().and_then(|number| number.try_into().ok())
}

fn positive(value: &Value) -> Option<usize> {
    count(value).filter(|number| *number > 0).and_then(|number| number.try_into().ok())
}

fn number(value: &Value) -> Option<f64> {
    let whole = || value.as_integer().map(|number| number as f64);
    value.as_float().or_else(whole).filter(|number| number.is_finite())
}

fn rate(value: &Value) -> Option<f64> {
    number(value).filter(|number| *number >= 0.0)
}

fn factor(value: &Value) -> Option<f64> {
    number(value).filter(|number| *number > 0.0)
}

fn fraction(value: &Value) -> Option<f64> {
    rate(value).filter(|number| *number <= 1.0)
}

/// A list of names; a string is a list of names between commas.
fn names(value: &Value) -> Option<Vec<String>> {
    let names: Vec<String> = match value {
        Value::String(text) if text.is_empty() => Vec::new(),
        Value::String(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
        Value::Array(items) => {
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>()?
        }
        _ => return None,
    };
    names.iter().all(|name| !name.is_empty()).then_some(names)
}

fn table<T>(value: &Value, item: fn(&Value) -> Option<T>) -> Option<BTreeMap<String, T>> {
    value.as_table()?.iter().map(|(name, value)| Some((name.clone(), item(value)?))).collect()
}
