//! `adapter_config.json`: what PEFT writes there, and whether it is plain LoRA.

use std::fmt;
use std::path::Path;

use regex::Regex;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::lora::{Bias, HEAD, InitLora, LoraConfig, SiteFactors};
use crate::{Error, Result};

/// The fields that this crate writes; of those it reads, all but `peft_type`, `r` and `lora_alpha` may be missing.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the fields are those of PEFT's file")]
pub(super) struct PeftConfig {
    pub(super) peft_type: String,
    /// With a type PEFT asks the base for methods that only a `transformers` model has; without one it takes any.
    #[serde(default)]
    pub(super) task_type: Option<String>,
    #[serde(default)]
    pub(super) base_model_name_or_path: Option<String>,
    #[serde(default)]
    pub(super) inference_mode: bool,
    pub(super) r: usize,
    pub(super) lora_alpha: f64,
    #[serde(default)]
    pub(super) lora_dropout: f64,
    #[serde(default)]
    pub(super) target_modules: Option<OneOrMany>,
    #[serde(default)]
    pub(super) exclude_modules: Option<OneOrMany>,
    #[serde(default)]
    pub(super) modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    pub(super) use_rslora: bool,
    #[serde(default)]
    pub(super) use_dora: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) rank_pattern: Patterns<usize>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) alpha_pattern: Patterns<f64>,
    #[serde(default = "none")]
    pub(super) bias: String,
    /// How the base keeps its weights, which does not matter to the factors.
    #[serde(default)]
    pub(super) fan_in_fan_out: bool,
    #[serde(default = "yes")]
    pub(super) init_lora_weights: Value,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A table of patterns in the order of the file: the first that fits counts.
#[derive(Debug)]
pub(super) struct Patterns<T>(Vec<(String, T)>);

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> FromIterator<(String, T)> for Patterns<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(patterns: I) -> Self {
        Self(patterns.into_iter().collect())
    }
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(pattern, value)| (pattern, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Patterns<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table from patterns to numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut patterns = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    patterns.push(entry);
                }
                Ok(Patterns(patterns))
            }
        }
        deserializer.deserialize_map(InOrder(std::marker::PhantomData))
    }
}

impl<T: Copy> Patterns<T> {
    /// As PEFT looks a pattern up: a regular expression for the module's path from one of its dots, or from its start, to its end.
    fn get(&self, module: &str) -> Option<T> {
        let fits = |pattern: &str| regex(pattern).is_ok_and(|regex| regex.is_match(module));
        self.0.iter().find(|(pattern, _)| fits(pattern)).map(|(_, value)| *value)
    }
}

fn regex(pattern: &str) -> std::result::Result<Regex, regex::Error> {
    Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
}

impl PeftConfig {
    /// Plain LoRA of this rank and alpha, on nothing yet.
    pub(super) fn new(r: usize, lora_alpha: f64) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: None,
            base_model_name_or_path: None,
            inference_mode: true,
            r,
            lora_alpha,
            lora_dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            modules_to_save: None,
            use_rslora: false,
            use_dora: false,
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            bias: none(),
            fan_in_fan_out: false,
            init_lora_weights: yes(),
        }
    }

    /// The alpha of a module.
    pub(super) fn alpha_of(&self, module: &str) -> f64 {
        self.alpha_pattern.get(module).unwrap_or(self.lora_alpha)
    }

    /// What scaling follows from.
    pub(super) fn plain(&self) -> LoraConfig {
        LoraConfig { use_rslora: self.use_rslora, ..LoraConfig::default() }
    }

    /// The configuration with which these sites would be trained again: whole names, whose meaning needs no patterns.
    pub(super) fn lora(&self, sites: &[SiteFactors], has_head: bool) -> LoraConfig {
        let sites = || sites.iter().map(|factors| &factors.site);
        LoraConfig {
            rank: self.r,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            target_modules: sites().map(|site| site.name.clone()).collect(),
            exclude_modules: Vec::new(),
            use_rslora: self.use_rslora,
            rank_pattern: sites()
                .filter(|site| site.rank != self.r)
                .map(|site| (site.name.clone(), site.rank))
                .collect(),
            alpha_pattern: sites()
                .filter(|site| site.alpha != self.lora_alpha)
                .map(|site| (site.name.clone(), site.alpha))
                .collect(),
            modules_to_save: has_head.then(|| HEAD.to_owned()).into_iter().collect(),
            // It says how training started, which does not matter any more.
            init_lora_weights: InitLora::default(),
            bias: Bias::of(&self.bias).unwrap_or_default(),
        }
    }
}

/// Fields that make more of an adapter than LoRA, or another thing, unless they are off.
const OTHER_METHODS: [&str; 15] = [
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
    "loftq_config",
];

/// Starts of training that change the base too: the factors alone do not say what the adapter does.
const OTHER_BASES: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Reads the file and refuses what is not plain LoRA.
pub(super) fn read(path: &Path) -> Result<PeftConfig> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    let malformed = |error| Error::field(path, "content", "the fields of an adapter", error);
    let fields: Map<String, Value> = serde_json::from_slice(&text).map_err(malformed)?;
    let peft_type = fields.get("peft_type").and_then(Value::as_str).unwrap_or("nothing");
    if peft_type != "LORA" {
        return Err(Error::field(path, "peft_type", "\"LORA\"", format!("{peft_type:?}")));
    }
    for name in OTHER_METHODS {
        let off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(values) => values.is_empty(),
            Value::Object(values) => values.is_empty(),
            _ => false,
        };
        if let Some(value) = fields.get(name).filter(|value| !off(value)) {
            return Err(Error::field(path, name, "none: plain LoRA", value));
        }
    }
    let peft: PeftConfig = serde_json::from_slice(&text).map_err(malformed)?;
    let init = peft.init_lora_weights.as_str().unwrap_or("");
    let plain_init = !OTHER_BASES.iter().any(|start| init.starts_with(start));
    let base = "one that leaves the base as it is (PEFT converts: path_initial_model_for_weight_conversion)";
    let broken =
        || peft.alpha_pattern.0.iter().map(|(pattern, _)| pattern).find(|pattern| regex(pattern).is_err());
    for (what, fits, expected, found) in [
        (
            "bias",
            Bias::of(&peft.bias).is_some(),
            "\"none\", \"lora_only\" or \"all\"",
            format!("{:?}", peft.bias),
        ),
        ("init_lora_weights", plain_init, base, format!("{init:?}")),
        ("r", peft.r > 0, "1 or more", peft.r.to_string()),
        ("lora_alpha", peft.lora_alpha > 0.0, "a number above 0", peft.lora_alpha.to_string()),
        (
            "alpha_pattern",
            peft.alpha_pattern.0.iter().all(|(_, alpha)| *alpha > 0.0) && broken().is_none(),
            "regular expressions with numbers above 0",
            format!("{:?}", peft.alpha_pattern.0),
        ),
    ] {
        if !fits {
            return Err(Error::field(path, what, expected, found));
        }
    }
    Ok(peft)
}

fn none() -> String {
    "none".into()
}

fn yes() -> Value {
    true.into()
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> std::result::Result<Patterns<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_that_fits_a_modules_end_counts() {
        let text = r#"{"layers\\.(0|2)\\.attn\\.[qk]": 3.0, "q": 5.0, "attn.*": 7.0}"#;
        let patterns: Patterns<f64> = serde_json::from_str(text).unwrap();
        let found = ["layers.0.attn.q", "model.layers.2.attn.k", "layers.1.attn.q", "attn.o", "ffn.up", "xq"]
            .map(|module| patterns.get(module));
        assert_eq!(found, [Some(3.0), Some(3.0), Some(5.0), Some(7.0), None, None]);
        assert_eq!(serde_json::to_string(&patterns).unwrap(), text.replace(": ", ":").replace(", ", ","));
    }
}
