//! Models in the folders that Hugging Face's `transformers` writes: `config.json` and `model.safetensors`, the latter also in
//! shards with `model.safetensors.index.json`.
//!
//! [`load`] chooses the importer by `model_type`; each architecture is one file here. What they share is reading: options
//! ([`config`]), tensors ([`weights`]) and operators named after modules ([`parts`]). A site is named as the module in
//! `transformers`, with the prefix that it has in a model with a head (`model.layers.0.self_attn.q_proj`,
//! `bert.encoder.layer.0.output.dense`), so that PEFT's `target_modules` mean here what they mean there; where
//! modules and sites differ, [`modules`] says how.
//!
//! An option that changes what a network computes is either understood or refused by name. So is a tensor that no part of
//! the graph reads.

mod bert;
mod config;
mod deberta;
mod gpt2;
mod llama;
pub(crate) mod modules;
mod parts;
#[cfg(test)]
mod tests;
mod weights;

use std::path::Path;

use rankpatch_format::base::MAX_NAME_BYTES;
use rankpatch_format::write::Network;

use crate::{Error, Result};
use config::Config;
use parts::Parts;
use weights::Weights;

/// The file that says which architecture a folder holds.
pub(super) const CONFIG: &str = "config.json";

/// Builds the graph of an architecture.
type Build = fn(&mut Parts) -> Result<Ends>;

/// Importers by `model_type`.
const FAMILIES: [(&str, Build); 7] = [
    ("bert", bert::build),
    ("deberta-v2", deberta::build),
    ("gpt2", gpt2::build),
    ("llama", |parts| llama::build(parts, llama::Kind::Llama)),
    ("mistral", |parts| llama::build(parts, llama::Kind::Mistral)),
    ("qwen2", |parts| llama::build(parts, llama::Kind::Qwen2)),
    ("roberta", bert::build_roberta),
];

/// What an importer says of the graph that it has built.
struct Ends {
    /// What the network puts out.
    output: rankpatch_format::graph::ValueId,
    /// What a task head reads.
    features: rankpatch_format::graph::ValueId,
    /// Longest sequence.
    max_rows: usize,
    /// Names of the outputs, if they are classes.
    labels: Vec<String>,
}

/// Whether a folder is one of Hugging Face's.
pub(super) fn is_folder(path: &Path) -> bool {
    path.join(CONFIG).is_file()
}

/// Loads a model from a folder, whose name the network gets.
///
/// | `model_type` | sites | a task head reads |
/// | --- | --- | --- |
/// | `llama`, `mistral`, `qwen2` | `model.layers.N.self_attn.{q,k,v,o}_proj`, `.mlp.{gate,up,down}_proj`, `lm_head` | the last norm's rows |
/// | `gpt2` | `transformer.h.N.attn.c_attn.{q,k,v}`, `.attn.c_proj`, `.mlp.{c_fc,c_proj}`, `lm_head` | the last norm's rows |
/// | `bert` | `bert.encoder.layer.N.attention.self.{query,key,value}`, `.attention.output.dense`, `.intermediate.dense`, `.output.dense`, `bert.pooler.dense`, `classifier` | tanh of the pooler on the first row |
/// | `roberta` | the same under `roberta`; `classifier.dense`, `classifier.out_proj` | tanh of `classifier.dense` on the first row, or that row |
/// | `deberta-v2` (v2, v3) | `deberta.encoder.layer.N.attention.self.{query,key,value}_proj`, `.attention.output.dense`, `.intermediate.dense`, `.output.dense`, `pooler.dense`, `classifier` | the pooler on the first row, or that row |
///
/// # Errors
/// [`Error::Io`]; [`Error::UnknownFile`] for another architecture or a file that is no safetensors file; [`Error::Field`] for an
/// option that is missing or not supported, or for tensors that the architecture does not have;
/// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::TensorType`] with the tensor's name.
pub fn load(folder: &Path) -> Result<Network> {
    let config = Config::read(&folder.join(CONFIG))?;
    let model_type = config.text("model_type")?;
    let Some((_, build)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
        let known: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        return Err(Error::field(config.path(), "model_type", known.join(", "), format!("{model_type:?}")));
    };
    let mut parts = Parts::new(config, Weights::open(folder)?);
    let Ends { output, features, max_rows, labels } = build(&mut parts)?;
    parts.finish(name_of(folder), output, features, max_rows, labels)
}

/// The folder's name, cut to what an image holds.
fn name_of(folder: &Path) -> String {
    let full = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    let name = full.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let end = (0..=name.len().min(MAX_NAME_BYTES)).rev().find(|end| name.is_char_boundary(*end));
    name[..end.unwrap_or(0)].to_owned()
}
