//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`, in and out.
//!
//! Keys are PEFT's: `base_model.model.<module>.lora_A.weight` `[rank, in_features]`, `...lora_B.weight`
//! `[out_features, rank]`, for the bias of an adapted module `...base_layer.bias`, of another one `...bias`, and for the task head
//! `base_model.model.head.{weight,bias}`. A module is a site, or what
//! `transformers` calls it ([`crate::import::hf`]): rows of lora_b are then in its order, several sites may lie in one
//! module, and the head is that of its classifiers (`classifier`, `score`). What PEFT has no field for (the
//! task's name, the base's identity, pooling and labels of the head) lies beside them in `rankpatch.json`, which may be missing.
//!
//! What a folder says beyond plain LoRA is refused by name, never passed over: an adapter that loads computes what PEFT computes.

mod config;
mod factors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rankpatch_format::adapter::{MAX_TASK_BYTES, Pooling};
use rankpatch_format::graph::TensorId;
use rankpatch_format::write::{BiasData, Network};
use rankpatch_format::{BaseId, MAX_RANK};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::executor::dequantize;
use crate::import::hf::modules::{self, ModuleBias};
use crate::lora::{Bias, FloatAdapter, HEAD, HeadWeights, InitLora};
use crate::{Error, Result, files};
use config::{OneOrMany, PeftConfig};
use factors::ModuleFactors;

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
/// What PEFT wrote before safetensors.
const PICKLE: &str = "adapter_model.bin";
const EXTRA: &str = "rankpatch.json";
const PREFIX: &str = "base_model.model.";
/// What task heads are called: here, and in the classes of `transformers`.
const HEADS: [&str; 4] = [HEAD, "score", "classifier", "classifier.out_proj"];
/// With all biases PEFT writes that of a saved module three times: as it was before, and as it is under two names.
const OTHER_BIASES: [&str; 2] = [".original_module.bias", ".modules_to_save.bias"];
/// Sites that a message lists.
const NAMED_SITES: usize = 12;

/// What PEFT has no field for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Extra {
    task: String,
    base_id: String,
    #[serde(default)]
    pooling: Option<Pooling>,
    #[serde(default)]
    labels: Vec<String>,
}

/// Writes an adapter of `network` as a PEFT folder. The network's name goes into `base_model_name_or_path`.
///
/// # Errors
/// [`Error::Write`].
pub fn write(adapter: &FloatAdapter, network: &Network, folder: &Path) -> Result<()> {
    files::write_together(&contents(adapter, network, folder)?)
}

/// The files of a PEFT folder, with their paths in `folder`. Same adapter, same bytes.
///
/// # Errors
/// [`Error::Field`] if the adapter's factors do not have the shapes that it states.
pub fn contents(adapter: &FloatAdapter, network: &Network, folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let FloatAdapter { config, sites, biases, head, .. } = adapter;
    let all = modules::modules(network);
    let written: Vec<ModuleFactors> =
        all.iter().filter_map(|module| ModuleFactors::of(module, sites, config)).collect();
    let head_name = modules::head(network).unwrap_or(HEAD);
    let other_ranks = written.iter().filter(|factors| factors.rank != config.rank);
    let other_alphas = written.iter().filter(|factors| factors.alpha != config.alpha);
    let peft = PeftConfig {
        base_model_name_or_path: Some(network.name.clone()),
        lora_dropout: config.dropout,
        // Whole names: they mean the same to every reader, whatever its patterns are.
        target_modules: Some(OneOrMany::Many(written.iter().map(|factors| factors.name.clone()).collect())),
        // PEFT keeps a whole child of the model.
        modules_to_save: head.is_some().then(|| head_name.split('.').take(1).map(str::to_owned).collect()),
        use_rslora: config.use_rslora,
        rank_pattern: other_ranks.map(|factors| (factors.name.clone(), factors.rank)).collect(),
        alpha_pattern: other_alphas.map(|factors| (factors.name.clone(), factors.alpha)).collect(),
        fan_in_fan_out: modules::fan_in_fan_out(network),
        init_lora_weights: match config.init_lora_weights {
            // The factors of a run that started with `pissa` are those of a plain update.
            InitLora::Kaiming | InitLora::Pissa => true.into(),
            InitLora::Gaussian => "gaussian".into(),
        },
        bias: config.bias.word().into(),
        ..PeftConfig::new(config.rank, config.alpha)
    };
    let extra = Extra {
        task: adapter.task.clone(),
        base_id: adapter.base_id.to_string(),
        pooling: head.as_ref().map(|head| head.pooling),
        labels: head.as_ref().map(|head| head.labels.clone()).unwrap_or_default(),
    };

    let mut tensors = Vec::new();
    for ModuleFactors { name, rank, shape: [inner, out], lora_a, lora_b, .. } in &written {
        let (dims_a, dims_b) = (vec![*rank, *inner], vec![*out, *rank]);
        tensors.push((format!("{PREFIX}{name}.lora_A.weight"), dims_a, files::f32_bytes(lora_a)));
        tensors.push((format!("{PREFIX}{name}.lora_B.weight"), dims_b, files::f32_bytes(lora_b)));
    }
    let own = |tensor: TensorId| biases.iter().find(|bias| bias.tensor == tensor);
    for ModuleBias { module, len, parts } in modules::biases(network) {
        if parts.iter().all(|(tensor, _)| own(*tensor).is_none()) {
            continue;
        }
        let mut values = vec![0.0; len];
        for (tensor, part) in parts {
            let bias = own(tensor).map_or_else(|| base_bias(network, tensor), |bias| bias.values.clone());
            values[part.first_row..][..part.rows].copy_from_slice(&part.give(&bias, 1));
        }
        let layer = if written.iter().any(|factors| factors.name == module) { ".base_layer" } else { "" };
        tensors.push((format!("{PREFIX}{module}{layer}.bias"), vec![len], files::f32_bytes(&values)));
    }
    if let Some(head) = head {
        let outputs = head.labels.len();
        let shape = vec![outputs, head.weight.len() / outputs.max(1)];
        tensors.push((format!("{PREFIX}{head_name}.weight"), shape, files::f32_bytes(&head.weight)));
        if !head.bias.is_empty() {
            tensors.push((format!("{PREFIX}{head_name}.bias"), vec![outputs], files::f32_bytes(&head.bias)));
        }
    }
    let path = folder.join(TENSORS);
    let views = tensors
        .iter()
        .map(|(name, dims, bytes)| Ok((name, TensorView::new(Dtype::F32, dims.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = views
        .and_then(|views| safetensors::serialize(views, Some(metadata)))
        .map_err(|error| Error::field(&path, "tensors", "shapes that fit", error))?;
    let (extra_path, config_path) = (folder.join(EXTRA), folder.join(CONFIG));
    let (extra, peft) = (json(&extra_path, &extra)?, json(&config_path, &peft)?);
    Ok(vec![(path, bytes), (extra_path, extra), (config_path, peft)])
}

/// Reads a PEFT folder as an adapter for `network`.
///
/// The tensors decide which sites are adapted and their ranks; the configuration gives the scalings. Tensors may be f32, f16 or
/// bf16, and their keys may carry an adapter's name (`lora_A.default.weight`). A saved module `head`, `score` or `classifier` is
/// the task head. Without `rankpatch.json` the task has the folder's name, its head reads the mean over the rows (`score` the
/// last one, as in `transformers`), and the classes are numbered.
///
/// # Errors
/// [`Error::Io`]; [`Error::Field`] for another method than LoRA, a tensor that belongs to no site, half a pair, or another base;
/// [`Error::TensorShape`] and [`Error::TensorType`].
pub fn read(folder: &Path, network: &Network) -> Result<FloatAdapter> {
    let config_path = folder.join(CONFIG);
    let peft = config::read(&config_path)?;
    let extra = read_extra(&folder.join(EXTRA), network.id())?;

    let path = folder.join(TENSORS);
    if !path.exists() && folder.join(PICKLE).exists() {
        let expected = format!("{TENSORS} (convert it: PEFT's save_pretrained writes safetensors)");
        return Err(Error::field(folder, "tensors", expected, PICKLE));
    }
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Error::field(&path, "content", "safetensors", error))?;
    let mut tensors: BTreeMap<String, (String, TensorView<'_>)> = BTreeMap::new();
    for (key, view) in file.iter() {
        if peft.bias == Bias::All.word() && OTHER_BIASES.iter().any(|end| key.ends_with(end)) {
            continue;
        }
        if let Some((other, _)) = tensors.insert(plain_key(key), (key.to_owned(), view)) {
            return Err(Error::field(&path, "tensors", "those of one adapter", format!("{other} and {key}")));
        }
    }
    let mut take = |name: &str, expected: &[Option<usize>]| -> Result<Option<(Vec<usize>, Vec<f32>)>> {
        // A model that was adapted without a head has no name of its body before its modules.
        let mut keys = [Some(name), modules::without_body(name)].into_iter().flatten();
        let Some((key, view)) = keys.find_map(|key| tensors.remove(key)) else { return Ok(None) };
        let found = view.shape().to_vec();
        let fits = |(found, wanted): (&usize, &Option<usize>)| wanted.is_none_or(|wanted| wanted == *found);
        if found.len() != expected.len() || !found.iter().zip(expected).all(fits) {
            // What may be any number is as found.
            let any = |at: usize| found.get(at).copied().unwrap_or_default();
            let expected =
                (0..).zip(expected).map(|(at, wanted)| wanted.unwrap_or_else(|| any(at))).collect();
            return Err(Error::TensorShape { path: path.clone(), tensor: key, expected, found });
        }
        Ok(Some((found, files::f32_values(&path, &key, &view)?)))
    };

    let mut sites = Vec::new();
    for module in modules::modules(network) {
        let (name, inner, out) = (&module.name, module.in_features, module.out_features);
        let (name_a, name_b) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
        let half = |there: &str, absent: &str| {
            Error::field(&path, "tensors", format!("{PREFIX}{absent} beside {there}"), "none")
        };
        let Some((dims, lora_a)) = take(&name_a, &[None, Some(inner)])? else {
            if take(&name_b, &[Some(out), None])?.is_some() {
                return Err(half(&name_b, &name_a));
            }
            continue;
        };
        let rank = dims[0];
        if rank == 0 || rank > MAX_RANK as usize {
            return Err(Error::field(&path, format!("rank of {name_a}"), format!("1 to {MAX_RANK}"), rank));
        }
        let Some((_, lora_b)) = take(&name_b, &[Some(out), Some(rank)])? else {
            return Err(half(&name_a, &name_b));
        };
        let (alpha, shape) = (peft.alpha_of(name), [inner, out]);
        let factors = ModuleFactors { name: name.clone(), rank, alpha, shape, lora_a, lora_b };
        sites.extend(factors.sites(&module, &peft.plain()));
    }
    // In the order of the sites, as everything that reads factors expects.
    sites.sort_by_key(|factors| factors.site.index);
    let mut head = None;
    for module in HEADS {
        let Some((dims, weight)) =
            take(&format!("{module}.weight"), &[None, Some(features_width(network)?)])?
        else {
            continue;
        };
        let bias = take(&format!("{module}.bias"), &[Some(dims[0])])?;
        let bias = bias.map_or_else(Vec::new, |(_, bias)| bias);
        let numbered = || (0..dims[0]).map(|class| class.to_string()).collect();
        let labels =
            extra.as_ref().map(|extra| extra.labels.clone()).filter(|labels| labels.len() == dims[0]);
        let pooling = extra.as_ref().and_then(|extra| extra.pooling);
        let pooling = pooling.unwrap_or(if module == "score" { Pooling::Last } else { Pooling::Mean });
        head = Some(HeadWeights { pooling, weight, bias, labels: labels.unwrap_or_else(numbered) });
    }
    // After the head, which may have the name of the base's own output layer.
    let mut biases = BTreeMap::new();
    for ModuleBias { module, len, parts } in modules::biases(network) {
        if peft.bias == Bias::None.word() {
            break;
        }
        let mut found = None;
        for name in [format!("{module}.base_layer.bias"), format!("{module}.bias")] {
            found = found.or(take(&name, &[Some(len)])?);
        }
        let Some((_, values)) = found else { continue };
        for (tensor, part) in parts {
            let values = part.take(&values, 1);
            // One that was never trained is the base's.
            if values != base_bias(network, tensor) {
                biases.insert(tensor, BiasData { tensor, values });
            }
        }
    }
    let biases: Vec<BiasData> = biases.into_values().collect();
    if let Some((key, _)) = tensors.values().next() {
        let mut known: Vec<&str> = network.site_names.iter().map(String::as_str).take(NAMED_SITES).collect();
        if network.site_names.len() > NAMED_SITES {
            known.push("...");
        }
        let expected = format!("factors of a site of {} ({}) or a head", network.name, known.join(", "));
        return Err(Error::field(&path, "tensor", expected, format!("{key} (of another architecture?)")));
    }
    if sites.is_empty() && biases.is_empty() && head.is_none() {
        return Err(Error::field(&path, "tensors", "factors of at least one site", "none"));
    }
    let folder_name = || {
        let full = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
        let name = full.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let end = (0..=name.len().min(MAX_TASK_BYTES)).rev().find(|end| name.is_char_boundary(*end));
        name[..end.unwrap_or(0)].to_owned()
    };
    let task = extra.map_or_else(folder_name, |extra| extra.task);
    let config = peft.lora(&sites, head.is_some());
    Ok(FloatAdapter { task, base_id: network.id(), config, sites, biases, head })
}

/// A tensor's key without PEFT's prefix and without an adapter's name: `q.lora_A.default.weight` is `q.lora_A.weight`, and
/// `score.modules_to_save.default.weight` is `score.weight`.
fn plain_key(key: &str) -> String {
    let mut parts: Vec<&str> = key.strip_prefix(PREFIX).unwrap_or(key).split('.').collect();
    if let [.., kind, _, "weight" | "bias"] = parts.as_slice() {
        let name = parts.len() - 2;
        if *kind == "modules_to_save" {
            parts.drain(name - 1..=name);
        } else if kind.starts_with("lora_") {
            parts.remove(name);
        }
    }
    parts.join(".")
}

fn read_extra(path: &Path, base_id: BaseId) -> Result<Option<Extra>> {
    if !path.exists() {
        return Ok(None);
    }
    let extra: Extra = read_json(path)?;
    if extra.base_id != base_id.to_string() {
        return Err(Error::field(path, "base_id", base_id, extra.base_id));
    }
    Ok(Some(extra))
}

/// The numbers of a bias of the base.
fn base_bias(network: &Network, tensor: TensorId) -> Vec<f32> {
    network.tensors.get(usize::from(tensor)).map(|tensor| dequantize(tensor).into_owned()).unwrap_or_default()
}

fn features_width(network: &Network) -> Result<usize> {
    let shapes = network.shapes()?;
    Ok(shapes.get(usize::from(network.features)).map_or(0, |shape| shape.width as usize))
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::field(path, "content", "the fields of an adapter", error))
}

fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::field(path, "content", "plain values", error))?;
    text.push('\n');
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lose_prefix_and_adapter_name() {
        for (key, expected) in [
            ("base_model.model.layers.0.attn.q.lora_A.weight", "layers.0.attn.q.lora_A.weight"),
            ("base_model.model.layers.0.attn.q.lora_A.default.weight", "layers.0.attn.q.lora_A.weight"),
            ("base_model.model.head.weight", "head.weight"),
            ("base_model.model.score.modules_to_save.mine.bias", "score.bias"),
            ("layers.0.q.lora_B.weight", "layers.0.q.lora_B.weight"),
            ("weight", "weight"),
            ("", ""),
        ] {
            assert_eq!(plain_key(key), expected);
        }
    }
}
