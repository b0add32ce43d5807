//! Adapters through Hugging Face PEFT itself, both ways. Opt-in: it needs a Python with the library, whose path the environment
//! variable `RANKPATCH_PEFT_PYTHON` gives; `tests/peft/README.md` has the command.

use std::fs;
use std::path::Path;
use std::process::Command;

use candle_core::{Device, Tensor, Var};
use rankpatch_format::adapter::Pooling;
use rankpatch_format::graph::TensorId;
use rankpatch_format::write::{BiasData, Network};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::json;

use crate::data::test_data::carried;
use crate::executor::{Batch, Model};
use crate::files::f32_bytes;
use crate::import::hf::modules;
use crate::lora::{Bias, FloatAdapter, HeadWeights, LoraConfig, SiteFactors};
use crate::rng::Rng;
use crate::train::{factors, task_head, with_biases};
use crate::{import, peft};

const LENGTHS: [usize; 3] = [9, 4, 1];
const TOLERANCE: f32 = 1e-4;

/// A configuration here, and the same as arguments of PEFT's `LoraConfig`.
struct Case {
    name: &'static str,
    family: &'static str,
    config: LoraConfig,
    options: serde_json::Value,
    /// Whether each module is one site.
    same_shapes: bool,
    /// The class of `transformers`, if it is not the one that the folder names, and the number of labels that it gets.
    class: Option<(&'static str, usize)>,
}

fn cases() -> [Case; 10] {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    [
        Case {
            name: "llama-patterns",
            family: "llama",
            config: LoraConfig {
                rank: 4,
                alpha: 6.0,
                target_modules: names(&["q_proj", "k_proj", "mlp.down_proj"]),
                rank_pattern: [("k_proj".into(), 2)].into(),
                alpha_pattern: [("down_proj".into(), 3.0), ("layers.0.self_attn.q_proj".into(), 5.0)].into(),
                ..LoraConfig::default()
            },
            options: json!({
                "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj", "mlp.down_proj"],
                "rank_pattern": {"k_proj": 2},
                "alpha_pattern": {"down_proj": 3.0, "layers.0.self_attn.q_proj": 5.0},
            }),
            same_shapes: true,
            class: None,
        },
        Case {
            name: "llama-rslora",
            family: "llama",
            config: LoraConfig { rank: 3, alpha: 7.0, use_rslora: true, ..LoraConfig::default() },
            options: json!({"r": 3, "lora_alpha": 7, "use_rslora": true, "target_modules": "all-linear"}),
            same_shapes: true,
            class: None,
        },
        Case {
            name: "gpt2",
            family: "gpt2",
            config: LoraConfig { rank: 3, alpha: 4.0, ..LoraConfig::default() },
            options: json!({"r": 3, "lora_alpha": 4, "target_modules": "all-linear"}),
            same_shapes: false,
            class: None,
        },
        Case {
            name: "bert-head",
            family: "bert",
            config: LoraConfig {
                rank: 2,
                alpha: 5.0,
                target_modules: names(&["query", "dense"]),
                exclude_modules: names(&["pooler.dense"]),
                modules_to_save: names(&["head"]),
                ..LoraConfig::default()
            },
            options: json!({
                "r": 2, "lora_alpha": 5, "target_modules": ["query", "dense"],
                "exclude_modules": ["pooler.dense"], "modules_to_save": ["classifier"],
            }),
            same_shapes: true,
            class: None,
        },
        Case {
            name: "bert-all-biases",
            family: "bert",
            config: LoraConfig {
                rank: 2,
                alpha: 5.0,
                target_modules: names(&["query", "output.dense"]),
                modules_to_save: names(&["head"]),
                bias: Bias::All,
                ..LoraConfig::default()
            },
            options: json!({
                "r": 2, "lora_alpha": 5, "target_modules": ["query", "output.dense"], "bias": "all",
                "modules_to_save": ["classifier"],
            }),
            same_shapes: true,
            class: None,
        },
        Case {
            name: "gpt2-all-biases",
            family: "gpt2",
            config: LoraConfig {
                rank: 3,
                alpha: 4.0,
                target_modules: names(&["c_attn", "mlp.c_proj"]),
                bias: Bias::All,
                ..LoraConfig::default()
            },
            options: json!({
                "r": 3, "lora_alpha": 4, "target_modules": ["c_attn", "mlp.c_proj"], "bias": "all",
            }),
            same_shapes: false,
            class: None,
        },
        Case {
            name: "deberta-all-biases",
            family: "deberta-v2",
            config: LoraConfig {
                rank: 2,
                alpha: 5.0,
                target_modules: names(&["query_proj", "output.dense"]),
                modules_to_save: names(&["head"]),
                bias: Bias::All,
                ..LoraConfig::default()
            },
            options: json!({
                "r": 2, "lora_alpha": 5, "target_modules": ["query_proj", "output.dense"], "bias": "all",
                "modules_to_save": ["classifier"],
            }),
            same_shapes: true,
            class: None,
        },
        Case {
            name: "qwen2-own-biases",
            family: "qwen2",
            config: LoraConfig {
                rank: 3,
                alpha: 4.0,
                target_modules: names(&["k_proj", "v_proj", "up_proj"]),
                bias: Bias::LoraOnly,
                ..LoraConfig::default()
            },
            options: json!({
                "r": 3, "lora_alpha": 4, "target_modules": ["k_proj", "v_proj", "up_proj"], "bias": "lora_only",
            }),
            same_shapes: true,
            class: None,
        },
        Case {
            name: "gpt2-score",
            family: "gpt2",
            config: LoraConfig {
                rank: 3,
                alpha: 4.0,
                target_modules: names(&["c_fc"]),
                modules_to_save: names(&["head"]),
                ..LoraConfig::default()
            },
            options: json!({
                "r": 3, "lora_alpha": 4, "target_modules": ["c_fc"], "modules_to_save": ["score"],
            }),
            same_shapes: true,
            class: Some(("GPT2ForSequenceClassification", 3)),
        },
        Case {
            name: "stories260k",
            family: "stories260k",
            config: LoraConfig { rank: 4, alpha: 6.0, ..LoraConfig::default() },
            options: json!({"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}),
            same_shapes: true,
            class: None,
        },
    ]
}

/// Random factors for what a configuration binds to, and a random head.
fn random(network: &Network, config: &LoraConfig, outputs: Option<usize>) -> FloatAdapter {
    let mut rng = Rng::new(12, "peft library");
    let mut values = |count: usize| -> Vec<f32> { (0..count).map(|_| 0.3 * rng.normal()).collect() };
    let with_head = !config.modules_to_save.is_empty();
    let read = if with_head { network.features } else { network.output };
    let sites = config.bind(network, read).unwrap();
    let tensors = config.biases(network, &sites, read);
    let sites = sites
        .into_iter()
        .map(|site| SiteFactors {
            lora_a: values(site.rank * site.in_features),
            lora_b: values(site.out_features * site.rank),
            site,
        })
        .collect();
    let width = network.shapes().unwrap()[usize::from(network.features)].width as usize;
    let labels = match outputs {
        Some(outputs) => (0..outputs).map(|output| format!("label {output}")).collect(),
        None => network.labels.clone(),
    };
    let head = with_head.then(|| HeadWeights {
        pooling: Pooling::Last,
        weight: values(labels.len() * width),
        bias: values(if modules::head_has_bias(network) { labels.len() } else { 0 }),
        labels,
    });
    let len = |tensor: TensorId| network.tensors[usize::from(tensor)].shape().cols as usize;
    let biases = tensors.into_iter().map(|tensor| BiasData { tensor, values: values(len(tensor)) });
    let biases = biases.collect();
    let (task, base_id, config) = ("library".into(), network.id(), config.clone());
    FloatAdapter { task, base_id, config, sites, biases, head }
}

fn logits(network: &Network, adapter: &FloatAdapter, rows: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let model = Model::new(network, &Device::Cpu).unwrap();
    let model = with_biases(&model, adapter).unwrap();
    let factors = factors(adapter, &Device::Cpu).unwrap();
    let head = task_head(adapter, &Device::Cpu).unwrap();
    let one = |ids: &Vec<u32>| {
        let found =
            model.forward(&Batch::tokens(std::slice::from_ref(ids)), &factors, head.as_ref()).unwrap();
        found.flatten_all().unwrap().to_vec1().unwrap()
    };
    rows.iter().map(one).collect()
}

/// The gradients of half the sum of all squared logits at the biases, under their names in a PEFT folder.
fn bias_gradients(
    network: &Network,
    adapter: &FloatAdapter,
    rows: &[Vec<u32>],
) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let model = Model::new(network, &Device::Cpu).unwrap();
    let variable = |bias: &BiasData| {
        (bias.tensor, Var::from_slice(&bias.values, bias.values.len(), &Device::Cpu).unwrap())
    };
    let variables: Vec<(TensorId, Var)> = adapter.biases.iter().map(variable).collect();
    let model = model.with_biases(variables.iter().map(|(id, var)| (*id, var.as_tensor().clone())));
    let factors = factors(adapter, &Device::Cpu).unwrap();
    let head = task_head(adapter, &Device::Cpu).unwrap();
    let half_square = |ids: &Vec<u32>| {
        let logits = model.forward(&Batch::tokens(std::slice::from_ref(ids)), &factors, head.as_ref());
        (logits.unwrap().sqr().unwrap().sum_all().unwrap() * 0.5).unwrap()
    };
    let loss = rows.iter().map(half_square).reduce(|a, b| (a + b).unwrap()).unwrap();
    let grads = loss.backward().unwrap();
    let biases = variables.iter().map(|(tensor, var)| BiasData {
        tensor: *tensor,
        values: grads.get(var).unwrap().to_vec1().unwrap(),
    });
    let gradients = FloatAdapter { biases: biases.collect(), head: None, ..adapter.clone() };
    let files = peft::contents(&gradients, network, Path::new("")).unwrap();
    let (_, bytes) = files.iter().find(|(path, _)| path.ends_with("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(bytes).unwrap();
    file.iter()
        .filter(|(name, _)| name.rsplit('.').next() == Some("bias"))
        .map(|(name, view)| (format!("grad.{name}"), view.shape().to_vec(), view.data().to_vec()))
        .collect()
}

#[test]
fn peft_library_agrees_both_ways() {
    let Some(python) = std::env::var_os("RANKPATCH_PEFT_PYTHON") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(13, "ids");
    let mut written = Vec::new();
    for Case { name, family, config, options, same_shapes, class } in cases() {
        let base = if family == "stories260k" {
            carried("bases").join(family).join("stories260K.bin")
        } else {
            carried("hf-golden").join(family)
        };
        let base = base.canonicalize().unwrap();
        let network = import::load(&base).unwrap();
        let path = folder.path().join(name);
        let adapter = random(&network, &config, class.map(|(_, outputs)| outputs));
        peft::write(&adapter, &network, &path.join("ours")).unwrap();
        let about = json!({"base": base, "options": options, "same_shapes": same_shapes, "class": class});
        fs::write(path.join("case.json"), about.to_string()).unwrap();

        // Ids that every small vocabulary has, without those for padding.
        let rows = LENGTHS.map(|length| (0..length).map(|_| 3 + rng.below(40) as u32).collect::<Vec<u32>>());
        let ours = logits(&network, &adapter, &rows);
        let mut tensors = Vec::new();
        for (name, shape, gradient) in bias_gradients(&network, &adapter, &rows) {
            tensors.push((name, Dtype::F32, shape, gradient));
        }
        for (n, (ids, logits)) in rows.iter().zip(&ours).enumerate() {
            let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            tensors.push((format!("ids.{n}"), Dtype::I32, vec![rows[n].len()], ids));
            // A row of logits for each id, or one for all.
            let width = if adapter.head.is_some() { logits.len() } else { logits.len() / rows[n].len() };
            tensors.push((
                format!("logits.{n}"),
                Dtype::F32,
                vec![logits.len() / width, width],
                f32_bytes(logits),
            ));
        }
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        fs::write(path.join("ours.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        written.push((name, path, network, adapter, rows));
    }

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/peft/check.py");
    let status = Command::new(python).arg(script).arg(folder.path()).status().unwrap();
    assert!(status.success(), "the library does not agree with what was written: {status}");

    for (name, path, network, ours, rows) in written {
        let theirs = peft::read(&path.join("theirs"), &network).unwrap();
        let indices = |adapter: &FloatAdapter| -> Vec<u16> {
            adapter.sites.iter().map(|factors| factors.site.index).collect()
        };
        assert_eq!(indices(&theirs), indices(&ours), "{name}: PEFT adapts other modules");
        let golden = candle_core::safetensors::load(path.join("theirs.safetensors"), &Device::Cpu).unwrap();
        let found = logits(&network, &theirs, &rows);
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (mut worst, mut largest) = (0.0f32, 1.0f32);
        for (n, found) in found.iter().enumerate() {
            let golden = flat(&golden[&format!("logits.{n}")]);
            assert_eq!(found.len(), golden.len(), "{name}");
            worst = found.iter().zip(&golden).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
            largest = golden.iter().map(|value| value.abs()).fold(largest, f32::max);
        }
        assert!(worst < TOLERANCE * largest, "{name}: written there, read here, logits differ by {worst}");
    }
}
