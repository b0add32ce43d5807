//! Bases from Hugging Face folders: they train on texts, what is exported computes the same on the device's code, and their PEFT
//! folders go in and out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use rankpatch_format::graph::Op;
use rankpatch_format::layout::Layout;
use rankpatch_format::link::Mode;
use rankpatch_format::write::{self, Network};

use super::tiny;
use crate::base::{Image, quantize};
use crate::data::test_data::carried;
use crate::executor::{Batch, Model};
use crate::export::export;
use crate::lora::{FloatAdapter, LoraConfig};
use crate::rng::Rng;
use crate::sim::Simulator;
use crate::train::{
    DatasetKind, Example, Length, Sequence, Target, TaskData, TrainConfig, Trainer, evaluate_float, factors,
    task_head,
};
use crate::{import, peft};

fn folder(family: &str) -> PathBuf {
    carried("hf-golden").join(family)
}

/// A file of 40 texts, with a class each if `classes`.
fn texts(classes: bool) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("texts.jsonl");
    let mut rng = Rng::new(3, "texts of cats");
    let line = |_| {
        let cat = rng.below(2) == 0;
        let text = format!(
            "the {} sat on the {}",
            if cat { "cat" } else { "hat" },
            ["mat", "cat"][rng.below(2) as usize]
        );
        if classes {
            format!("{}\n", serde_json::json!({"text": text, "label": if cat { "yes" } else { "no" }}))
        } else {
            format!("{}\n", serde_json::json!({"prompt": "that's", "completion": text}))
        }
    };
    fs::write(&path, (0..40).map(line).collect::<String>()).unwrap();
    (folder, path)
}

fn trained(network: &Network, config: TrainConfig, data: TaskData) -> (Trainer, FloatAdapter) {
    let mut trainer = Trainer::new(config, network, data).unwrap();
    trainer.run(&mut (), None).unwrap();
    let adapter = trainer.adapter().unwrap();
    (trainer, adapter)
}

/// Exports an adapter and measures it on the device's code, against the float executor.
fn device_agrees(network: &Network, trainer: &Trainer, adapter: &FloatAdapter, bound: f64) -> f64 {
    let image = Image::build(network, Layout::RowMajor, 4).unwrap();
    let device = |file: &[u8]| Simulator::new(image.clone())?.with_adapter(file.to_vec(), Mode::Streamed);
    let file = export(adapter, network, 1, |file| device(file)?.self_test_digest()).unwrap().file;
    let device = device(&file).unwrap();
    assert_eq!(device.session(|engine| Ok(engine.self_test()?)).unwrap(), device.self_test_digest().unwrap());
    let float = evaluate_float(trainer.model(), Some(adapter), &trainer.data().test).unwrap();
    let found = device.evaluate(&trainer.data().test).unwrap();
    assert!((found.value - float.value).abs() <= bound * float.value, "{found:?}, in float {float:?}");
    float.value
}

#[test]
fn bases_from_folders_train_on_texts() {
    for (family, modules, classes) in [
        ("llama", "q_proj,v_proj,down_proj", false),
        ("gpt2", "c_attn,c_fc", false),
        ("bert", "all-linear", true),
    ] {
        let (_folder, data) = texts(classes);
        let network = quantize(&import::load(&folder(family)).unwrap()).unwrap();
        let image = Image::build(&network, Layout::RowMajor, 4).unwrap();
        let config = TrainConfig {
            base: folder(family),
            dataset: DatasetKind::Jsonl,
            data,
            max_length: Some(20),
            lora: LoraConfig {
                rank: 3,
                alpha: 6.0,
                target_modules: modules.split(',').map(String::from).collect(),
                modules_to_save: if classes { vec!["head".into()] } else { Vec::new() },
                ..LoraConfig::default()
            },
            batch_size: 8,
            length: Length::Steps(60),
            learning_rate: 1e-2,
            ..tiny::config()
        };
        let data = TaskData::load(&config, &image.base().unwrap()).unwrap();
        assert_eq!(data.labels.len(), if classes { 2 } else { 0 });
        let (trainer, adapter) = trained(&network, config, data);
        let measured = device_agrees(&network, &trainer, &adapter, 0.05);
        if classes {
            assert!(measured > 0.9, "{family}: accuracy {measured}");
        } else {
            let before = evaluate_float(trainer.model(), None, &trainer.data().test).unwrap().value;
            assert!(measured < before / 3.0, "{family}: {before} bits per character became {measured}");
        }
        if family == "gpt2" {
            assert_eq!(adapter.sites.len(), 2 * 4, "three parts of c_attn, and c_fc");
        }
        // Out and in again, with the same update at each site.
        let path = tempfile::tempdir().unwrap();
        peft::write(&adapter, &network, path.path()).unwrap();
        let read = peft::read(path.path(), &network).unwrap();
        assert_eq!(read.sites.len(), adapter.sites.len());
        let test = &trainer.data().test;
        let [found, expected] = [&read, &adapter]
            .map(|adapter| evaluate_float(trainer.model(), Some(adapter), test).unwrap().value);
        assert!(
            (found - expected).abs() < 1e-5 * expected,
            "{family}: {found}, before it was written {expected}"
        );
    }
}

/// Folders that Hugging Face PEFT has written, against logits that it has computed with them.
#[test]
fn folders_of_the_peft_library_compute_the_same() {
    for (family, sites) in [("llama", 2 * 4), ("gpt2", 2 * 5), ("bert", 2 * 3)] {
        let network = import::load(&folder(family)).unwrap();
        let path = folder(family).join("peft");
        let adapter = peft::read(&path, &network).unwrap();
        assert_eq!(adapter.sites.len(), sites, "{family}");
        assert_eq!(adapter.head.is_some(), family == "bert");
        let worst = difference(&network, &adapter, family);
        assert!(worst < 1e-4, "{family}: a logit is off by {worst}");
        // What goes out again is what came in.
        let out = tempfile::tempdir().unwrap();
        peft::write(&adapter, &network, out.path()).unwrap();
        let tensors = |folder: &Path| {
            let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            file.iter()
                .map(|(name, view)| (name.to_owned(), view.data().to_vec()))
                .collect::<BTreeMap<_, _>>()
        };
        assert!(tensors(out.path()) == tensors(&path), "{family}: other tensors");
    }
}

/// The largest difference to the golden logits of a family with its adapter.
fn difference(network: &Network, adapter: &FloatAdapter, family: &str) -> f32 {
    let read = |path: PathBuf| candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let bytes = fs::read(folder(family).join("golden.safetensors")).unwrap();
    let ids = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let golden = read(folder(family).join("peft/golden.safetensors"));
    let model = Model::new(network, &Device::Cpu).unwrap();
    let factors = factors(adapter, &Device::Cpu).unwrap();
    let head = task_head(adapter, &Device::Cpu).unwrap();
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let one = |n: usize| {
        let ids = ids.tensor(&format!("ids.{n}")).unwrap();
        let ids: Vec<u32> = ids.data().as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let found = flat(&model.forward(&Batch::tokens(&[ids]), &factors, head.as_ref()).unwrap());
        let golden = flat(&golden[&format!("logits.{n}")]);
        assert_eq!(found.len(), golden.len(), "{family}");
        found.iter().zip(&golden).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    (0..3).map(one).fold(0.0, f32::max)
}

/// More ids than a device's link can name: a host trains, exports and measures.
#[test]
fn a_vocabulary_beyond_sixteen_bits() {
    const VOCAB: u32 = 70_001;
    let mut rng = Rng::new(8, "wide");
    let mut floats =
        |count: u32, spread: f32| (0..count).map(|_| spread * rng.normal()).collect::<Vec<f32>>();
    let (table, linear) = (floats(VOCAB * 6, 1.0), floats(30, 0.5));
    let network = Network {
        name: "wide".into(),
        ops: vec![
            Op::Embedding { table: 0 },
            Op::Linear { input: 0, weight: 1, bias: None },
            Op::Tanh { input: 1 },
            Op::Linear { input: 2, weight: 2, bias: None },
            Op::Linear { input: 3, weight: 0, bias: None },
        ],
        tensors: vec![
            write::Tensor::Matrix { rows: VOCAB, cols: 6, data: table },
            write::Tensor::Matrix { rows: 5, cols: 6, data: linear.clone() },
            write::Tensor::Matrix { rows: 6, cols: 5, data: linear },
        ],
        tensor_names: vec!["table".into(), "in".into(), "out".into()],
        site_names: vec!["in".into(), "out".into(), "lm_head".into()],
        labels: Vec::new(),
        output: 4,
        features: 3,
        max_rows: 8,
        vocabulary: None,
    };
    let network = quantize(&network).unwrap();
    let text = |start: u32| Example {
        sequence: Sequence::Tokens((0..5).map(|i| VOCAB - 1 - (start + i) % 9).collect()),
        target: Target::Next { given: 0, characters: 4 },
    };
    let data = TaskData {
        train: (0..18).map(text).collect(),
        test: (0..4).map(text).collect(),
        labels: Vec::new(),
        width: 0,
    };
    let config =
        TrainConfig { batch_size: 6, length: Length::Steps(20), learning_rate: 1e-2, ..tiny::config() };
    let (trainer, adapter) = trained(&network, config, data);
    let measured = device_agrees(&network, &trainer, &adapter, 0.05);
    let before = evaluate_float(trainer.model(), None, &trainer.data().test).unwrap().value;
    assert!(measured < before, "{before} bits per character became {measured}");
}

#[test]
fn an_image_larger_than_its_offsets_is_refused() {
    let mut network = tiny::network();
    network.tensors.push(write::Tensor::Matrix { rows: 1 << 20, cols: 1 << 12, data: Vec::new() });
    let error = Image::build(&network, Layout::RowMajor, 1).unwrap_err().to_string();
    assert!(error.starts_with("base image: expected less than 4 GiB of int8 weights, found 4299"), "{error}");
}
