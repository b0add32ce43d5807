//! The options of a `config.json`, each read by name, with every one that nobody reads accounted for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Options that say nothing about what a network computes on a sequence: identity, training, special ids, generation. Those of
/// one architecture only are named by its importer.
const WITHOUT_EFFECT: [&str; 32] = [
    "architectures",
    "model_type",
    "transformers_version",
    "_name_or_path",
    "torch_dtype",
    "dtype",
    "use_cache",
    "initializer_range",
    "gradient_checkpointing",
    "problem_type",
    "finetuning_task",
    "task_specific_params",
    "id2label",
    "label2id",
    "tokenizer_class",
    "prefix",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "unk_token_id",
    "return_dict",
    "chunk_size_feed_forward",
    "_attn_implementation",
    "attn_implementation",
    "max_length",
    "temperature",
    "top_k",
    "top_p",
    "do_sample",
];

/// What the word dropout is spelt like: nothing is dropped in a frozen base.
const DROPOUT: [&str; 2] = ["dropout", "pdrop"];

/// The options of a model.
pub(super) struct Config {
    path: PathBuf,
    values: Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl Config {
    /// Reads the file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io(path))?;
        let values = serde_json::from_slice(&text)
            .map_err(|error| Error::field(path, "content", "a JSON object", error))?;
        Ok(Self { path: path.to_owned(), values, read: RefCell::default() })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key that is there and not null.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A value of the wrong kind or outside its domain.
    pub(super) fn refuse(&self, key: &str, expected: impl std::fmt::Display) -> Error {
        let found = self.values.get(key).map_or("nothing".into(), Value::to_string);
        Error::field(&self.path, key, expected, found)
    }

    /// A number of things, 1 or more.
    pub(super) fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.refuse(key, "a whole number from 1"))
    }

    /// A number of things, 1 or more, if it is stated.
    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // Sizes are multiplied: 2^31 leaves room for that.
        let size = value.as_u64().filter(|size| (1..1 << 31).contains(size));
        size.map(|size| Some(size as usize)).ok_or_else(|| self.refuse(key, "a whole number from 1"))
    }

    /// A positive number, or `default` if it is not stated.
    pub(super) fn positive(&self, key: &str, default: Option<f64>) -> Result<f64> {
        let found = match self.get(key) {
            None => default,
            Some(value) => value.as_f64(),
        };
        found.filter(|value| *value > 0.0).ok_or_else(|| self.refuse(key, "a number above 0"))
    }

    /// A switch, or `default` if it is not stated.
    pub(super) fn switch(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(key, "true or false")),
        }
    }

    /// A word.
    pub(super) fn text(&self, key: &str) -> Result<&str> {
        self.get(key).and_then(Value::as_str).ok_or_else(|| self.refuse(key, "a word"))
    }

    /// Refuses an option that is stated and has none of the supported values.
    pub(super) fn only(&self, key: &str, supported: &[Value]) -> Result<()> {
        match self.get(key) {
            Some(value) if !supported.contains(value) => {
                let words: Vec<String> = supported.iter().map(Value::to_string).collect();
                Err(self.refuse(key, format!("{}: nothing else is supported", words.join(" or "))))
            }
            _ => Ok(()),
        }
    }

    /// The names of classes in the order of their ids, if there are just `count`.
    pub(super) fn labels(&self, count: usize) -> Vec<String> {
        let names = self.get("id2label").and_then(Value::as_object);
        let name = |class: usize| names?.get(&class.to_string())?.as_str().map(str::to_owned);
        let named: Option<Vec<String>> = (0..count).map(name).collect();
        named.unwrap_or_else(|| (0..count).map(|class| class.to_string()).collect())
    }

    /// Says that options have no effect in this architecture.
    pub(super) fn without_effect(&self, keys: &[&str]) {
        self.read.borrow_mut().extend(keys.iter().map(|key| (*key).to_owned()));
    }

    /// Refuses an option that nobody has read and that is not known to have no effect. One that is off (null, false, empty) is
    /// passed over: an architecture that has no such option computes the same.
    pub(super) fn finish(&self) -> Result<()> {
        let read = self.read.borrow();
        let off = |value: &Value| match value {
            Value::Null => true,
            Value::Bool(on) => !on,
            Value::Array(values) => values.is_empty(),
            Value::Object(values) => values.is_empty(),
            Value::Number(_) | Value::String(_) => false,
        };
        let harmless = |key: &str| {
            read.contains(key)
                || WITHOUT_EFFECT.contains(&key)
                || DROPOUT.iter().any(|word| key.contains(word))
        };
        match self.values.iter().find(|(key, value)| !harmless(key) && !off(value)) {
            None => Ok(()),
            Some((key, _)) => Err(self.refuse(key, "no such option: what it would change is not known")),
        }
    }
}
