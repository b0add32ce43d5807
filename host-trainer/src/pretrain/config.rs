//! The configuration of a base from scratch: the keys of a task but for those of adapters, and a table `[model]` with its shape.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::import::llama2c::FIRST_PIECE;
use crate::optim::AdamWConfig;
use crate::schedule::Decay;
use crate::train::config::parse_table;
use crate::train::{Method, TrainConfig, TrainError};
use crate::{Error, Result};

/// The table of the shape.
const MODEL: &str = "model";
/// What a base is called here and a task is called there.
const NAME: (&str, &str) = ("name", "task");
/// Keys without which there is no run.
const REQUIRED: &[&str] = &["task", "dataset", "data"];
/// Keys of adapters, and of bases that are there already.
const REFUSED: &[&str] = &[
    "base",
    "method",
    "tokenizer",
    "pooling",
    "rank",
    "alpha",
    "dropout",
    "target_modules",
    "exclude_modules",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "modules_to_save",
    "loraplus_lr_ratio",
    "head_lr_ratio",
    "quantization_aware",
    "explained_variance",
    "bf16",
    "sequence",
];

/// A base to train from scratch.
#[derive(Debug, Clone, PartialEq)]
pub struct PretrainConfig {
    /// What is built.
    pub shape: Shape,
    /// How it is trained; its task is the base's name.
    pub train: TrainConfig,
}

/// The shape of a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Shape {
    /// Writes text.
    Decoder(Decoder),
    /// Classifies signals.
    Encoder(Encoder),
}

/// A decoder like Llama's: RMSNorm before each part, rotary positions, grouped attention, SiLU gates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decoder {
    /// Ids: three special ones, 256 bytes, and the pieces that are learned.
    pub vocab_size: usize,
    /// A tokenizer of llama2.c (`tok*.bin`) of so many ids; `None` learns one from the training texts.
    pub tokenizer: Option<PathBuf>,
    /// Further spellings of every training text, each with this probability that a merge is passed over (BPE-dropout), so that
    /// the network also knows words in parts.
    #[serde(default)]
    pub merge_dropout: Vec<f32>,
    /// Width.
    pub dim: usize,
    /// Width of the feed-forward part.
    pub hidden_dim: usize,
    /// Layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads, as many as query heads if not said.
    pub n_kv_heads: Option<usize>,
    /// Longest sequence.
    pub context: usize,
    /// Whether the classifier is the embedding.
    #[serde(default = "yes")]
    pub shared_classifier: bool,
    /// Standard deviation of the weights at the start.
    #[serde(default = "init_std")]
    pub init_std: f32,
}

/// An encoder like a Keyword Transformer: class token, learned positions, attention in both directions, LayerNorm behind each part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// Width.
    pub dim: usize,
    /// Width of the feed-forward part.
    pub hidden_dim: usize,
    /// Layers.
    pub n_layers: usize,
    /// Heads.
    pub n_heads: usize,
    /// Most feature rows; the longest example's if not said.
    pub max_rows: Option<usize>,
    /// Standard deviation of the weights at the start.
    #[serde(default = "init_std")]
    pub init_std: f32,
}

fn yes() -> bool {
    true
}

fn init_std() -> f32 {
    0.02
}

impl PretrainConfig {
    /// Reads a file and applies overrides of keys of training. Paths in the file are relative to its folder.
    ///
    /// # Errors
    /// As [`TrainConfig::load`]; [`TrainError::MissingKey`] without a table `[model]`, [`TrainError::Toml`] for one that does not
    /// fit, [`TrainError::BadValue`] for a shape that is none.
    pub fn load(path: &Path, overrides: &[(String, String)]) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, &path.display().to_string(), folder, overrides)
    }

    /// Reads TOML; see [`PretrainConfig::load`].
    ///
    /// # Errors
    /// As [`PretrainConfig::load`].
    pub fn parse(text: &str, origin: &str, folder: &Path, overrides: &[(String, String)]) -> Result<Self> {
        let mut table: Table = parse_table(text, origin)?;
        let expected = "a table [model] with kind = \"decoder\" or \"encoder\" and its sizes";
        let model = table.remove(MODEL).ok_or(TrainError::MissingKey {
            origin: origin.into(),
            key: MODEL,
            expected,
        })?;
        let mut shape: Shape = model.try_into().map_err(|error: toml::de::Error| TrainError::Toml {
            origin: format!("[model] of {origin}"),
            reason: error.to_string().trim_end().to_owned(),
        })?;
        if let Some(name) = table.remove(NAME.0) {
            if table.contains_key(NAME.1) {
                let origin = origin.into();
                return Err(TrainError::DuplicateKey { origin, key: NAME.1, alias: NAME.0 }.into());
            }
            table.insert(NAME.1.into(), name);
        }
        shape.check()?;
        let mut defaults = Self::defaults();
        if let Shape::Decoder(decoder) = &mut shape {
            // A sequence of the context and the token behind it.
            defaults.max_length = Some(decoder.context + 1);
            decoder.tokenizer = decoder.tokenizer.take().map(|path| folder.join(path));
        }
        let keys = (REQUIRED, REFUSED);
        let mut train = TrainConfig::from_table(defaults, &table, origin, folder, overrides, keys)?;
        if matches!(shape, Shape::Decoder(_)) {
            // It learns texts, of whatever class.
            train.lora.modules_to_save.clear();
        }
        Ok(Self { shape, train })
    }

    /// What a file leaves out.
    fn defaults() -> TrainConfig {
        TrainConfig {
            method: Method::Full,
            learning_rate: 1e-3,
            warmup_steps: 100,
            lr_scheduler_type: Decay::Cosine,
            min_lr_ratio: 0.1,
            optimizer: AdamWConfig { weight_decay: 0.1, max_grad_norm: Some(1.0), ..AdamWConfig::default() },
            ..TrainConfig::default()
        }
    }

    /// The configuration as a table, for reports.
    pub fn model(&self) -> Value {
        Value::try_from(&self.shape).unwrap_or(Value::Table(Table::new()))
    }
}

impl Shape {
    /// Checks that the sizes fit each other.
    fn check(&self) -> Result<()> {
        let bad =
            |key, expected: String, found: String| Err(TrainError::BadValue { key, expected, found }.into());
        let (dim, n_heads, sizes, init_std) = match self {
            Self::Decoder(d) => {
                let n_kv_heads = d.n_kv_heads.unwrap_or(d.n_heads);
                let sizes = [
                    ("dim", d.dim),
                    ("hidden_dim", d.hidden_dim),
                    ("n_layers", d.n_layers),
                    ("n_heads", d.n_heads),
                    ("n_kv_heads", n_kv_heads),
                    ("context", d.context),
                    ("vocab_size", d.vocab_size),
                ];
                (d.dim, d.n_heads, sizes.to_vec(), d.init_std)
            }
            Self::Encoder(e) => {
                let sizes = [
                    ("dim", e.dim),
                    ("hidden_dim", e.hidden_dim),
                    ("n_layers", e.n_layers),
                    ("n_heads", e.n_heads),
                    ("max_rows", e.max_rows.unwrap_or(1)),
                ];
                (e.dim, e.n_heads, sizes.to_vec(), e.init_std)
            }
        };
        if let Some((key, found)) = sizes.into_iter().find(|(_, size)| !(1..=65_535).contains(size)) {
            return bad(key, "1 to 65535".into(), found.to_string());
        }
        if !(init_std > 0.0 && init_std.is_finite()) {
            return bad("init_std", "a number above 0".into(), init_std.to_string());
        }
        // Rotary positions turn pairs.
        let pairs = if matches!(self, Self::Decoder(_)) { 2 } else { 1 };
        if !dim.is_multiple_of(pairs * n_heads) {
            let what = if pairs == 2 { "that leaves an even head size" } else { "" };
            return bad(
                "n_heads",
                format!("a divisor of dim {dim} {what}").trim_end().into(),
                n_heads.to_string(),
            );
        }
        if let Self::Decoder(Decoder { n_kv_heads: Some(n_kv_heads), n_heads, .. }) = self
            && !n_heads.is_multiple_of(*n_kv_heads)
        {
            return bad("n_kv_heads", format!("a divisor of n_heads {n_heads}"), n_kv_heads.to_string());
        }
        if let Self::Decoder(Decoder { merge_dropout, .. }) = self
            && let Some(found) = merge_dropout.iter().find(|part| !(0.0..=1.0).contains(*part))
        {
            return bad("merge_dropout", "numbers from 0 to 1".into(), found.to_string());
        }
        if let Self::Decoder(Decoder { vocab_size, .. }) = self
            && *vocab_size < usize::from(FIRST_PIECE)
        {
            let expected = format!("at least {FIRST_PIECE}: three special ids and 256 bytes");
            return bad("vocab_size", expected, vocab_size.to_string());
        }
        Ok(())
    }
}
