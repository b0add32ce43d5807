//! What is to be adapted: the LoRA configuration in PEFT's words, the sites of a network that it binds to, and the factors
//! that training makes for them.
//!
//! This module knows names, ranks and scalings. It does not know how factors are trained, quantized or written.

use std::collections::{BTreeMap, BTreeSet};

use rankpatch_format::adapter::Pooling;
use rankpatch_format::graph::{Op, TensorId, ValueId};
use rankpatch_format::write::{BiasData, Network, Tensor};
use rankpatch_format::{BaseId, MAX_RANK};
use serde::{Deserialize, Serialize};

use crate::import::hf::modules::fused;
use crate::train::TrainError;

/// `target_modules` that stands for every site but the one that writes the network's output.
pub const ALL_LINEAR: &str = "all-linear";

/// The name of the task head in `modules_to_save` and in PEFT files.
pub const HEAD: &str = "head";

/// How the factors start. The first step sees the base as it is, whichever way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InitLora {
    /// lora_a uniform in +-1/sqrt(in_features), PEFT's `true`: Kaiming's with a = sqrt(5). lora_b zero.
    #[default]
    Kaiming,
    /// lora_a normal with standard deviation 1/rank, PEFT's `"gaussian"`. lora_b zero.
    Gaussian,
    /// Both at the base weight's greatest singular values, PEFT's `"pissa"`, and trained beside what is left of the weight.
    ///
    /// The base in flash stays whole, so the update is what the factors have moved by: scaling * (lora_b lora_a - their
    /// start), an update of twice the rank.
    Pissa,
}

/// Which biases of the base are trained beside the factors, from the values that they have: PEFT's `bias`. A layer without one
/// gets none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Those of the adapted sites.
    LoraOnly,
    /// Those of all linear layers and all LayerNorms that the task reads.
    All,
}

impl Bias {
    /// PEFT's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::LoraOnly => "lora_only",
            Self::All => "all",
        }
    }

    /// What a word stands for.
    pub fn of(word: &str) -> Option<Self> {
        [Self::None, Self::LoraOnly, Self::All].into_iter().find(|bias| bias.word() == word)
    }

    /// That of an adapter with these biases and sites.
    pub(crate) fn found(network: &Network, biases: &[BiasData], sites: &[SiteFactors]) -> Self {
        let own = site_biases(network, sites.iter().map(|factors| factors.site.index));
        match biases {
            [] => Self::None,
            _ if biases.iter().all(|bias| own.contains(&bias.tensor)) => Self::LoraOnly,
            _ => Self::All,
        }
    }

    // Runs of before have an identity without it.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// LoRA configuration.
///
/// A pattern names a site by its whole dotted name (`layers.0.attn.q`), by the end of it (`attn.q`, `q`), with `*` for any
/// characters (`layers.*.ffn.*`), or, if it has other signs of one, by a regular expression for the whole name
/// (`layers\.[02]\..*`); in `rank_pattern` and `alpha_pattern` for the name from one of its dots on, as in PEFT. A
/// module that is cut into sites (GPT-2's `c_attn`) names them all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank of the update.
    #[doc(alias = "r")]
    pub rank: usize,
    /// Numerator of the scaling.
    #[doc(alias = "lora_alpha")]
    pub alpha: f64,
    /// Probability that an input of the low-rank path is dropped in training.
    #[doc(alias = "lora_dropout")]
    pub dropout: f64,
    /// Patterns of the sites to adapt, or [`ALL_LINEAR`]. None if only a task head is trained.
    pub target_modules: Vec<String>,
    /// Patterns of sites to leave out.
    pub exclude_modules: Vec<String>,
    /// `alpha / sqrt(rank)` instead of `alpha / rank`.
    pub use_rslora: bool,
    /// Other ranks for some sites; of several patterns that fit, the longest decides. (In PEFT the first does.)
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas for some sites, likewise.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Modules trained in full: [`HEAD`] or nothing.
    pub modules_to_save: Vec<String>,
    /// How lora_a starts.
    #[serde(default)]
    pub init_lora_weights: InitLora,
    /// Biases trained beside the factors.
    #[serde(default, skip_serializing_if = "Bias::is_none")]
    pub bias: Bias,
}

impl Default for LoraConfig {
    /// PEFT's defaults: rank 8, alpha 8, no dropout; on every linear layer.
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            target_modules: vec![ALL_LINEAR.into()],
            exclude_modules: Vec::new(),
            use_rslora: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            modules_to_save: Vec::new(),
            init_lora_weights: InitLora::Kaiming,
            bias: Bias::None,
        }
    }
}

impl LoraConfig {
    /// The scaling of an update of this rank and alpha: `alpha / rank`, or `alpha / sqrt(rank)`.
    pub fn scaling(&self, rank: usize, alpha: f64) -> f64 {
        let rank = rank as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// The alpha with which an update of this rank has this scaling.
    pub(crate) fn alpha_for(&self, scaling: f64, rank: usize) -> f64 {
        let rank = rank as f64;
        scaling * if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// The alpha of a site.
    pub fn alpha_of(&self, site: &str) -> f64 {
        most_specific(&self.alpha_pattern, site).copied().unwrap_or(self.alpha)
    }

    /// The rank of a site.
    pub fn rank_of(&self, site: &str) -> usize {
        most_specific(&self.rank_pattern, site).copied().unwrap_or(self.rank)
    }

    /// The sites of `network` that this configuration adapts, in canonical order.
    ///
    /// `read` is the value that the task reads: the network's output, or its features if the task has a head.
    ///
    /// # Errors
    /// [`TrainError::NoSite`] if a pattern fits nothing, [`TrainError::BadValue`] if `exclude_modules` leaves nothing, and
    /// [`TrainError::SiteNotRead`] if the task does not depend on a site that was named; each lists what there is.
    /// [`TrainError::Rank`] for a rank that an adapter file cannot hold.
    pub fn bind(&self, network: &Network, read: ValueId) -> Result<Vec<BoundSite>, TrainError> {
        let reached = ancestors(&network.ops, read);
        let sites: Vec<Candidate<'_>> = candidates(network);
        let known = || sites.iter().map(|site| site.name).collect::<Vec<_>>().join(", ");
        let no_site =
            |key, pattern: &str| TrainError::NoSite { key, pattern: pattern.to_owned(), known: known() };
        let excluded =
            |site: &Candidate<'_>| self.exclude_modules.iter().any(|pattern| fits(pattern, site.name));
        let mut bound = Vec::new();
        let all = self.target_modules.iter().any(|pattern| pattern == ALL_LINEAR);
        for pattern in self.target_modules.iter().filter(|pattern| *pattern != ALL_LINEAR) {
            let mut fitting = sites.iter().filter(|site| fits(pattern, site.name)).peekable();
            fitting.peek().ok_or_else(|| no_site("target_modules", pattern))?;
            if let Some(site) = fitting.find(|site| !excluded(site) && !reached[usize::from(site.value)]) {
                return Err(TrainError::SiteNotRead { site: site.name.to_owned() });
            }
        }
        if let Some(pattern) =
            self.exclude_modules.iter().find(|pattern| !sites.iter().any(|site| fits(pattern, site.name)))
        {
            return Err(no_site("exclude_modules", pattern));
        }
        let ranks = self.rank_pattern.keys().map(|pattern| ("rank_pattern", pattern));
        let alphas = self.alpha_pattern.keys().map(|pattern| ("alpha_pattern", pattern));
        for (key, pattern) in ranks.chain(alphas) {
            if !sites.iter().any(|site| fits_ending(pattern, site.name)) {
                return Err(no_site(key, pattern));
            }
        }
        for site in &sites {
            let linear = all && site.value != network.output && reached[usize::from(site.value)];
            let named = self.target_modules.iter().any(|pattern| fits(pattern, site.name));
            if !(linear || named) || excluded(site) {
                continue;
            }
            let rank = self.rank_of(site.name);
            let max = if self.init_lora_weights == InitLora::Pissa { MAX_RANK / 2 } else { MAX_RANK };
            if rank == 0 || rank > max as usize {
                return Err(TrainError::Rank { site: site.name.to_owned(), max, found: rank });
            }
            let alpha = self.alpha_of(site.name);
            bound.push(BoundSite {
                index: site.index,
                name: site.name.to_owned(),
                in_features: site.in_features,
                out_features: site.out_features,
                rank,
                alpha,
                scaling: self.scaling(rank, alpha),
            });
        }
        // Nothing was asked for: the base stays as it is, and a head is all that is trained.
        let head_only = self.target_modules.is_empty() && !self.modules_to_save.is_empty();
        if bound.is_empty() && !head_only {
            let targets = self.target_modules.join(", ");
            if self.exclude_modules.is_empty() {
                return Err(no_site("target_modules", &targets));
            }
            let expected = format!("something left of target_modules = {targets:?}");
            let found = format!("{:?}", self.exclude_modules.join(", "));
            return Err(TrainError::BadValue { key: "exclude_modules", expected, found });
        }
        Ok(bound)
    }

    /// The tensors of `network` that are trained as biases, in ascending order; `sites` and `read` are those of
    /// [`LoraConfig::bind`].
    pub fn biases(&self, network: &Network, sites: &[BoundSite], read: ValueId) -> Vec<TensorId> {
        let reached = ancestors(&network.ops, read);
        let found: BTreeSet<TensorId> = match self.bias {
            Bias::None => BTreeSet::new(),
            Bias::LoraOnly => site_biases(network, sites.iter().map(|site| site.index)),
            Bias::All => {
                let read = network.ops.iter().zip(reached).filter(|(_, reached)| *reached);
                read.filter_map(|(op, _)| op.bias()).collect()
            }
        };
        found.into_iter().collect()
    }
}

/// The biases of some sites.
fn site_biases(network: &Network, sites: impl Iterator<Item = u16>) -> BTreeSet<TensorId> {
    let linear: Vec<&Op> = network.ops.iter().filter(|op| matches!(op, Op::Linear { .. })).collect();
    sites.filter_map(|site| linear.get(usize::from(site))?.bias()).collect()
}

/// A site that an adapter patches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoundSite {
    /// Index of the site.
    pub index: u16,
    /// Its dotted name.
    pub name: String,
    /// Inputs of the linear operator.
    pub in_features: usize,
    /// Outputs of the linear operator.
    pub out_features: usize,
    /// Rank of the update.
    pub rank: usize,
    /// Alpha of the update.
    pub alpha: f64,
    /// What lora_b lora_a is multiplied with.
    pub scaling: f64,
}

/// Float factors of one site: delta_weight = scaling * lora_b lora_a.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteFactors {
    /// The site.
    pub site: BoundSite,
    /// `[rank, in_features]`, row-major.
    pub lora_a: Vec<f32>,
    /// `[out_features, rank]`, row-major.
    pub lora_b: Vec<f32>,
}

/// A float task head: y = weight pool(features) + bias.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadWeights {
    /// How the feature rows become one.
    pub pooling: Pooling,
    /// `[labels.len(), width]`, row-major.
    pub weight: Vec<f32>,
    /// `[labels.len()]`, or empty: heads of models whose classifiers have no bias in `transformers` have none here.
    pub bias: Vec<f32>,
    /// Names of the outputs.
    pub labels: Vec<String>,
}

/// An adapter in float, as it is trained: what an export quantizes and a PEFT folder holds.
#[derive(Debug, Clone, PartialEq)]
pub struct FloatAdapter {
    /// Name of the task.
    pub task: String,
    /// The base that it was trained on.
    pub base_id: BaseId,
    /// The configuration.
    pub config: LoraConfig,
    /// Factors, in ascending order of their sites.
    pub sites: Vec<SiteFactors>,
    /// Biases in the place of the base's, in ascending order of their tensors.
    pub biases: Vec<BiasData>,
    /// The task head, if the task has its own.
    pub head: Option<HeadWeights>,
}

/// A linear operator that could be adapted.
struct Candidate<'a> {
    index: u16,
    name: &'a str,
    value: ValueId,
    in_features: usize,
    out_features: usize,
}

fn candidates(network: &Network) -> Vec<Candidate<'_>> {
    let linear = (0..).zip(&network.ops).filter_map(|(value, op)| match op {
        Op::Linear { weight, .. } => Some((value, network.tensors.get(usize::from(*weight))?.shape())),
        _ => None,
    });
    let names = network.site_names.iter().map(String::as_str);
    (0..)
        .zip(names.zip(linear))
        .map(|(index, (name, (value, shape)))| Candidate {
            index,
            name,
            value,
            in_features: shape.cols as usize,
            out_features: shape.rows as usize,
        })
        .collect()
}

/// For each value, whether `read` depends on it.
fn ancestors(ops: &[Op], read: ValueId) -> Vec<bool> {
    let mut reached = vec![false; ops.len()];
    if let Some(read) = reached.get_mut(usize::from(read)) {
        *read = true;
    }
    for value in (0..ops.len()).rev().filter(|value| *value <= usize::from(read)) {
        if reached[value] {
            for input in ops[value].inputs().into_iter().flatten() {
                reached[usize::from(input)] = true;
            }
        }
    }
    reached
}

/// The row scales of a site's quantized weight `[out_features]`; `None` if there is no such site or it is not quantized.
pub fn row_scales(network: &Network, site: u16) -> Option<&[f32]> {
    match network.sites().nth(usize::from(site))?.1 {
        Tensor::Codes { scales, .. } => Some(scales),
        _ => None,
    }
}

fn most_specific<'a, T>(patterns: &'a BTreeMap<String, T>, name: &str) -> Option<&'a T> {
    let fitting = patterns.iter().filter(|(pattern, _)| fits_ending(pattern, name));
    fitting.max_by_key(|(pattern, _)| pattern.len()).map(|(_, value)| value)
}

/// Whether a pattern of `rank_pattern` or `alpha_pattern` names a site.
fn fits_ending(pattern: &str, name: &str) -> bool {
    if is_regex(pattern) {
        regex_fits(&format!(r"(?:.*\.)?(?:{pattern})"), name)
    } else {
        fits(pattern, name)
    }
}

/// Whether a pattern (see [`LoraConfig`]) names a site, or the module that the site is a part of.
fn fits(pattern: &str, name: &str) -> bool {
    fits_name(pattern, name) || fused(name).is_some_and(|(module, _)| fits_name(pattern, module))
}

fn fits_name(pattern: &str, name: &str) -> bool {
    if is_regex(pattern) {
        return regex_fits(pattern, name);
    }
    if pattern.contains('*') {
        return glob(pattern.as_bytes(), name.as_bytes());
    }
    name.strip_suffix(pattern)
        .is_some_and(|before| !pattern.is_empty() && (before.is_empty() || before.ends_with('.')))
}

/// Whether a pattern has signs that neither a name nor one with `*` has.
pub(crate) fn is_regex(pattern: &str) -> bool {
    pattern.contains(['\\', '(', '[', '|', '^', '$', '+', '?', '{'])
}

fn regex_fits(pattern: &str, name: &str) -> bool {
    regex::Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|regex| regex.is_match(name))
}

fn glob(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|taken| glob(rest, &name[taken..])),
        Some((first, rest)) => {
            name.split_first().is_some_and(|(head, tail)| head == first && glob(rest, tail))
        }
    }
}
