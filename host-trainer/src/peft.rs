//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`, in and out.
//!
//! Keys are PEFT's: `base_model.model.<module>.lora_A.weight` `[rank, in_features]`, `...lora_B.weight`
//! `[out_features, rank]`, and for the task head `base_model.model.head.{weight,bias}`. A module is a site, or what
//! `transformers` calls it ([`crate::import::hf`]): rows of lora_b are then in its order, several sites may lie in one
//! module, and the head is that of its classifiers (`classifier`, `score`). What PEFT has no field for (the
//! task's name, the base's identity, pooling and labels of the head) lies beside them in `rankpatch.json`, which may be missing.

mod factors;

use std::collections::BTreeMap;
use std::path::Path;

use rankpatch_format::BaseId;
use rankpatch_format::adapter::{MAX_TASK_BYTES, Pooling};
use rankpatch_format::write::Network;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::import::hf::modules;
use crate::lora::{FloatAdapter, HEAD, HeadWeights, InitLora, LoraConfig};
use crate::{Error, Result, files};
use factors::ModuleFactors;

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
const EXTRA: &str = "rankpatch.json";
const PREFIX: &str = "base_model.model.";

/// The fields of `adapter_config.json` that this crate writes; of those it reads, all but `r` and `lora_alpha` may be
/// missing.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the fields are those of PEFT's file")]
struct PeftConfig {
    peft_type: String,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    #[serde(default)]
    inference_mode: bool,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    target_modules: Option<OneOrMany>,
    #[serde(default)]
    exclude_modules: Option<OneOrMany>,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
    #[serde(default = "none")]
    bias: String,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default = "yes")]
    init_lora_weights: serde_json::Value,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(name) => vec![name],
            Self::Many(names) => names,
        }
    }
}

fn none() -> String {
    "none".into()
}

fn yes() -> serde_json::Value {
    true.into()
}

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
/// [`Error::Io`].
pub fn write(adapter: &FloatAdapter, network: &Network, folder: &Path) -> Result<()> {
    let FloatAdapter { config, sites, head, .. } = adapter;
    let all = modules::modules(network);
    let written: Vec<ModuleFactors> =
        all.iter().filter_map(|module| ModuleFactors::of(module, sites, config)).collect();
    let head_name = modules::head(network).unwrap_or(HEAD);
    let names = |names: &[String]| (!names.is_empty()).then(|| OneOrMany::Many(names.to_vec()));
    let other_ranks = written.iter().filter(|factors| factors.rank != config.rank);
    let other_alphas = written.iter().filter(|factors| factors.alpha != config.alpha);
    let peft = PeftConfig {
        peft_type: "LORA".into(),
        // With a type PEFT asks the base for methods that only a `transformers` model has; without one it takes any.
        task_type: None,
        base_model_name_or_path: Some(network.name.clone()),
        inference_mode: true,
        r: config.rank,
        lora_alpha: config.alpha,
        lora_dropout: config.dropout,
        // Whole names: they mean the same to every reader, whatever its patterns are.
        target_modules: names(&written.iter().map(|factors| factors.name.clone()).collect::<Vec<_>>()),
        exclude_modules: None,
        // PEFT keeps a whole child of the model.
        modules_to_save: head.is_some().then(|| head_name.split('.').take(1).map(str::to_owned).collect()),
        use_rslora: config.use_rslora,
        use_dora: false,
        rank_pattern: other_ranks.map(|factors| (factors.name.clone(), factors.rank)).collect(),
        alpha_pattern: other_alphas.map(|factors| (factors.name.clone(), factors.alpha)).collect(),
        bias: none(),
        fan_in_fan_out: modules::fan_in_fan_out(network),
        init_lora_weights: match config.init_lora_weights {
            // The factors of a run that started with `pissa` are those of a plain update.
            InitLora::Kaiming | InitLora::Pissa => yes(),
            InitLora::Gaussian => "gaussian".into(),
        },
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
    if let Some(head) = head {
        let outputs = head.bias.len();
        let shape = vec![outputs, head.weight.len() / outputs.max(1)];
        tensors.push((format!("{PREFIX}{head_name}.weight"), shape, files::f32_bytes(&head.weight)));
        tensors.push((format!("{PREFIX}{head_name}.bias"), vec![outputs], files::f32_bytes(&head.bias)));
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
    files::write_atomically(&path, &bytes)?;
    write_json(&folder.join(EXTRA), &extra)?;
    write_json(&folder.join(CONFIG), &peft)
}

/// Reads a PEFT folder as an adapter for `network`.
///
/// The tensors decide which sites are adapted; the configuration gives the scalings. Without `rankpatch.json` the task has the
/// folder's name, its head reads the mean over the rows, and the classes are numbered.
///
/// # Errors
/// [`Error::Io`]; [`Error::Field`] for another method than LoRA, a tensor that belongs to no site, half a pair, or another base;
/// [`Error::TensorShape`] and [`Error::TensorType`].
pub fn read(folder: &Path, network: &Network) -> Result<FloatAdapter> {
    let config_path = folder.join(CONFIG);
    let config = read_config(&config_path)?;
    let extra = read_extra(&folder.join(EXTRA), network.id())?;

    let path = folder.join(TENSORS);
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Error::field(&path, "content", "safetensors", error))?;
    let mut tensors: BTreeMap<String, TensorView<'_>> =
        file.iter().map(|(name, view)| (name.to_owned(), view)).collect();
    let mut take = |name: &str, expected: [Option<usize>; 2]| -> Result<Option<(Vec<usize>, Vec<f32>)>> {
        // A model that was adapted without a head has no name of its body before its modules.
        let keys = [Some(name), modules::without_body(name)].into_iter().flatten();
        let view = keys.map(|name| format!("{PREFIX}{name}")).find_map(|key| tensors.remove(&key));
        let Some(view) = view else { return Ok(None) };
        let found = view.shape().to_vec();
        let wanted: Vec<Option<usize>> = expected.into_iter().take(found.len().max(1)).collect();
        let fits =
            found.iter().zip(&wanted).all(|(found, wanted)| wanted.is_none_or(|wanted| wanted == *found));
        if !fits || found.is_empty() || found.len() > 2 {
            let expected = expected.into_iter().map(Option::unwrap_or_default).collect();
            return Err(Error::TensorShape { path: path.clone(), tensor: name.to_owned(), expected, found });
        }
        Ok(Some((found, files::f32_values(&path, name, &view)?)))
    };

    let mut sites = Vec::new();
    for module in modules::modules(network) {
        let (name, inner, out) = (&module.name, module.in_features, module.out_features);
        let (name_a, name_b) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
        let Some((dims, lora_a)) = take(&name_a, [None, Some(inner)])? else { continue };
        let rank = dims[0];
        let Some((_, lora_b)) = take(&name_b, [Some(out), Some(rank)])? else {
            return Err(Error::field(&path, "tensors", format!("{PREFIX}{name_b} beside {name_a}"), "none"));
        };
        let (alpha, shape) = (config.alpha_of(name), [inner, out]);
        let factors = ModuleFactors { name: name.clone(), rank, alpha, shape, lora_a, lora_b };
        sites.extend(factors.sites(&module, &config));
    }
    let heads = [Some(HEAD), modules::head(network)].into_iter().flatten();
    let width = features_width(network)?;
    let mut head = None;
    for name in heads {
        if let Some((dims, weight)) = take(&format!("{name}.weight"), [None, Some(width)])? {
            head = Some((name, dims, weight));
            break;
        }
    }
    let head = match head {
        None => None,
        Some((name, dims, weight)) => {
            let bias = take(&format!("{name}.bias"), [Some(dims[0]), None])?;
            let bias = bias.map_or_else(|| vec![0.0; dims[0]], |(_, bias)| bias);
            let numbered = || (0..dims[0]).map(|class| class.to_string()).collect();
            let labels =
                extra.as_ref().map(|extra| extra.labels.clone()).filter(|labels| labels.len() == dims[0]);
            let pooling = extra.as_ref().and_then(|extra| extra.pooling).unwrap_or(Pooling::Mean);
            Some(HeadWeights { pooling, weight, bias, labels: labels.unwrap_or_else(numbered) })
        }
    };
    if let Some(name) = tensors.keys().next() {
        let known = network.site_names.join(", ");
        return Err(Error::field(&path, "tensor", format!("factors of a site ({known}) or a head"), name));
    }
    if sites.is_empty() && head.is_none() {
        return Err(Error::field(&path, "tensors", "factors of at least one site", "none"));
    }
    let folder_name = || {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let end = (0..=name.len().min(MAX_TASK_BYTES)).rev().find(|end| name.is_char_boundary(*end));
        name[..end.unwrap_or(0)].to_owned()
    };
    let task = extra.map_or_else(folder_name, |extra| extra.task);
    Ok(FloatAdapter { task, base_id: network.id(), config, sites, head })
}

fn read_config(path: &Path) -> Result<LoraConfig> {
    let peft: PeftConfig = read_json(path)?;
    for (what, fits, expected, found) in [
        ("peft_type", peft.peft_type == "LORA", "\"LORA\"", format!("{:?}", peft.peft_type)),
        ("use_dora", !peft.use_dora, "false", peft.use_dora.to_string()),
        ("bias", peft.bias == "none", "\"none\"", format!("{:?}", peft.bias)),
        ("r", peft.r > 0, "1 or more", peft.r.to_string()),
        ("lora_alpha", peft.lora_alpha > 0.0, "a number above 0", peft.lora_alpha.to_string()),
    ] {
        if !fits {
            return Err(Error::field(path, what, expected, found));
        }
    }
    Ok(LoraConfig {
        rank: peft.r,
        alpha: peft.lora_alpha,
        dropout: peft.lora_dropout,
        target_modules: peft.target_modules.map(OneOrMany::into_vec).unwrap_or_default(),
        exclude_modules: peft.exclude_modules.map(OneOrMany::into_vec).unwrap_or_default(),
        use_rslora: peft.use_rslora,
        rank_pattern: peft.rank_pattern,
        alpha_pattern: peft.alpha_pattern,
        modules_to_save: peft.modules_to_save.unwrap_or_default(),
        // It says how training started, which does not matter any more.
        init_lora_weights: InitLora::default(),
    })
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

fn features_width(network: &Network) -> Result<usize> {
    let shapes = network.shapes()?;
    Ok(shapes.get(usize::from(network.features)).map_or(0, |shape| shape.width as usize))
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::field(path, "content", "the fields of an adapter", error))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::field(path, "content", "plain values", error))?;
    text.push('\n');
    files::write_atomically(path, text.as_bytes())
}
