//! The keys of a configuration: what each expects, and how a TOML value sets it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rankpatch_format::adapter::{MAX_TASK_BYTES, Pooling};
use serde::Deserialize;
use toml::{Table, Value};

use super::{DeviceKind, Length, TrainConfig, TrainError};
use crate::Result;
use crate::data::recordings;
use crate::lora::{Bias, HEAD, InitLora, is_regex};

/// What a value is set from, and whether it fitted.
type Setter = fn(&mut TrainConfig, &Value) -> Option<()>;

/// One key of the configuration.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// Another name for it, PEFT's as a rule.
    pub(super) alias: &'static str,
    pub(super) expected: &'static str,
    pub(super) set: Setter,
}

const fn key(name: &'static str, alias: &'static str, expected: &'static str, set: Setter) -> Key {
    Key { name, alias, expected, set }
}

const NAMES: &str = "a list of names, globs or regular expressions of sites";
const COUNT: &str = "a whole number, 0 or more";
const POSITIVE: &str = "a whole number, 1 or more";
const RATE: &str = "a number, 0 or more";
const FACTOR: &str = "a number above 0";
const FRACTION: &str = "a number from 0 to 1";

/// Every key there is.
pub(super) const KEYS: &[Key] = &[
    key("task", "", "a name of 1 to 32 bytes that a file can have", |c, v| {
        c.task = v
            .as_str()
            .filter(|name| (1..=MAX_TASK_BYTES).contains(&name.len()) && is_file_name(name))?
            .into();
        Some(())
    }),
    key("base", "", "a path", |c, v| path(v).map(|path| c.base = path)),
    key(
        "dataset",
        "",
        "\"jsonl\", \"csv\", \"text\", \"document\", \"stories\", \"features\", \"recordings\", \"names\", \"intents\", \"slots\" or \"speakers\"",
        |c, v| choice(v).map(|kind| c.dataset = kind),
    ),
    key("data", "", "a path", |c, v| path(v).map(|path| c.data = path)),
    key("test_data", "", "a path", |c, v| path(v).map(|path| c.test_data = Some(path))),
    key("test_fraction", "", "a number above 0 and below 1", |c, v| {
        c.test_fraction = fraction(v).filter(|part| *part > 0.0 && *part < 1.0)?;
        Some(())
    }),
    key("split_seed", "data_seed", COUNT, |c, v| count(v).map(|n| c.split_seed = n)),
    key("packing", "", "true or false", |c, v| v.as_bool().map(|yes| c.packing = yes)),
    key("max_length", "max_seq_length", POSITIVE, |c, v| positive(v).map(|n| c.max_length = Some(n))),
    key("tokenizer", "", "a path", |c, v| path(v).map(|path| c.tokenizer = Some(path))),
    key(
        "recordings",
        "",
        "a table of `sample_rate` (8000 or 16000), `label`, `split` (columns), `where` (values of columns) and `augment`",
        |c, v| {
            let options: recordings::Options = v.clone().try_into().ok()?;
            let gain = options.augment.noise_gain;
            let fits = [8000, 16_000].contains(&options.sample_rate) && gain >= 0.0 && gain.is_finite();
            c.recordings = Some(options).filter(|_| fits)?;
            Some(())
        },
    ),
    key("output_labels", "", "a list of names of classes", |c, v| {
        let names = v.as_array()?.iter().map(|name| name.as_str().map(str::to_owned));
        c.output_labels = names.collect::<Option<_>>()?;
        Some(())
    }),
    key("pooling", "", "\"mean\", \"last\", \"every\" or \"reread\"", |c, v| {
        c.pooling = match v.as_str()? {
            "mean" => Pooling::Mean,
            "last" => Pooling::Last,
            "every" => Pooling::Every,
            "reread" => Pooling::Reread,
            _ => return None,
        };
        Some(())
    }),
    key("method", "", "\"lora\" or \"full\"", |c, v| choice(v).map(|method| c.method = method)),
    key("rank", "r", POSITIVE, |c, v| positive(v).map(|n| c.lora.rank = n)),
    key("alpha", "lora_alpha", FACTOR, |c, v| factor(v).map(|x| c.lora.alpha = x)),
    key("dropout", "lora_dropout", "a number from 0 to below 1", |c, v| {
        c.lora.dropout = fraction(v).filter(|p| *p < 1.0)?;
        Some(())
    }),
    key(
        "target_modules",
        "",
        "a list of names, globs or regular expressions of sites, or \"all-linear\"",
        |c, v| names(v).map(|names| c.lora.target_modules = names),
    ),
    key("exclude_modules", "", NAMES, |c, v| names(v).map(|names| c.lora.exclude_modules = names)),
    key("use_rslora", "", "true or false", |c, v| v.as_bool().map(|yes| c.lora.use_rslora = yes)),
    key("rank_pattern", "", "a table from patterns of sites to ranks of 1 or more", |c, v| {
        table(v, positive).map(|ranks| c.lora.rank_pattern = ranks)
    }),
    key("alpha_pattern", "", "a table from patterns of sites to numbers above 0", |c, v| {
        table(v, factor).map(|alphas| c.lora.alpha_pattern = alphas)
    }),
    key("bias", "", "\"none\", \"lora_only\" or \"all\"", |c, v| {
        c.lora.bias = Bias::of(v.as_str()?)?;
        Some(())
    }),
    key(
        "init_lora_weights",
        "init",
        "true (PEFT's kaiming), \"kaiming\", \"gaussian\" or \"pissa\"",
        |c, v| {
            c.lora.init_lora_weights = match (v.as_bool(), v.as_str()) {
                (Some(true), _) | (_, Some("kaiming")) => InitLora::Kaiming,
                (_, Some("gaussian")) => InitLora::Gaussian,
                (_, Some("pissa")) => InitLora::Pissa,
                _ => return None,
            };
            Some(())
        },
    ),
    key("modules_to_save", "", "[\"head\"] or []", |c, v| {
        c.lora.modules_to_save = names(v).filter(|names| names.iter().all(|name| name == HEAD))?;
        Some(())
    }),
    key("batch_size", "per_device_train_batch_size", POSITIVE, |c, v| positive(v).map(|n| c.batch_size = n)),
    key("gradient_accumulation_steps", "", POSITIVE, |c, v| {
        positive(v).map(|n| c.gradient_accumulation_steps = n)
    }),
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
    key("optim", "optimizer", "\"adamw\"", |_, v| v.as_str().filter(|name| *name == "adamw").map(|_| ())),
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
    key("early_stopping_patience", "", COUNT, |c, v| count(v).map(|n| c.early_stopping_patience = n)),
    key("save_steps", "", COUNT, |c, v| count(v).map(|n| c.save_steps = n)),
    key("quantization_aware", "", FRACTION, |c, v| fraction(v).map(|x| c.quantization_aware = x)),
    key("explained_variance", "", "a number above 0, at most 1", |c, v| {
        c.explained_variance = Some(fraction(v).filter(|part| *part > 0.0)?);
        Some(())
    }),
    key("bf16", "", "true or false", |c, v| v.as_bool().map(|yes| c.bf16 = yes)),
    key("device", "", "\"auto\", \"cpu\", \"cuda\" or \"cuda:N\"", |c, v| {
        c.device = v.as_str()?.parse::<DeviceKind>().ok()?;
        Some(())
    }),
    key("sequence", "", "a whole number from 0 to 4294967295", |c, v| {
        c.sequence = u32::try_from(count(v)?).ok()?;
        Some(())
    }),
];

pub(super) fn find(name: &str, origin: &str) -> Result<&'static Key> {
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

pub(super) fn bad_value(key: &Key, found: String) -> TrainError {
    TrainError::BadValue { key: key.name, expected: key.expected.into(), found }
}

pub(super) fn describe(value: &Value) -> String {
    format!("{} {value}", value.type_str())
}

/// What an override may mean: the TOML value that it looks like, or a string.
pub(super) fn readings(text: &str) -> Vec<Value> {
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

/// A list of names; a string is one regular expression, or a list of names between commas.
fn names(value: &Value) -> Option<Vec<String>> {
    let names: Vec<String> = match value {
        Value::String(text) if text.is_empty() => Vec::new(),
        Value::String(text) if is_regex(text) => vec![text.clone()],
        Value::String(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
        Value::Array(items) => {
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>()?
        }
        _ => return None,
    };
    names.iter().all(|name| !name.is_empty() && is_pattern(name)).then_some(names)
}

fn table<T>(value: &Value, item: fn(&Value) -> Option<T>) -> Option<BTreeMap<String, T>> {
    let entry =
        |(name, value): (&String, &Value)| Some((name.clone(), item(value).filter(|_| is_pattern(name))?));
    value.as_table()?.iter().map(entry).collect()
}

/// Whether files and folders can have this name, on their own and with an ending, within the folder that they are meant for.
fn is_file_name(name: &str) -> bool {
    !name.starts_with('.') && !name.contains(|c: char| c.is_control() || matches!(c, '/' | '\\'))
}

/// Whether a pattern can be understood.
fn is_pattern(pattern: &str) -> bool {
    !is_regex(pattern) || regex::Regex::new(pattern).is_ok()
}
