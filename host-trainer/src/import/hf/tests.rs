//! Small random models of each family against what `transformers` computes, and what the importers refuse.
//!
//! `tests/data/hf-golden/make.py` makes the folders.

use std::collections::BTreeMap;
use std::fs;

use candle_core::Device;
use rankpatch_format::layout::Layout;
use safetensors::{Dtype, SafeTensors};

use super::load;
use crate::base::{Image, quantize};
use crate::data::test_data::carried;
use crate::executor::{Batch, Model};
use crate::sim::Simulator;

mod deberta;
mod refused;

/// Bound on the difference to a golden value, float weights on the float executor.
const BOUND: f32 = 1e-4;

/// What a folder says that its model computes.
struct Golden {
    ids: Vec<Vec<u16>>,
    logits: Vec<Vec<f32>>,
    features: Vec<Vec<f32>>,
}

fn golden(family: &str) -> Golden {
    let bytes = fs::read(carried("hf-golden").join(family).join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str, kind| {
        let view = file.tensor(name).ok()?;
        assert_eq!(view.dtype(), kind);
        Some(view.data().as_chunks::<4>().0.to_vec())
    };
    let floats = |name: &str| -> Vec<Vec<f32>> {
        let all = (0..).map_while(|n| words(&format!("{name}.{n}"), Dtype::F32));
        all.map(|words| words.into_iter().map(f32::from_le_bytes).collect()).collect()
    };
    let ids = (0..).map_while(|n| words(&format!("ids.{n}"), Dtype::I32));
    let ids = ids.map(|words| words.into_iter().map(|word| i32::from_le_bytes(word) as u16).collect());
    let golden = Golden { ids: ids.collect(), logits: floats("logits"), features: floats("features") };
    assert_eq!((golden.ids.len(), golden.logits.len(), golden.features.len()), (3, 3, 3));
    golden
}

/// The largest difference between rows of a batch, padding left out, and golden values.
fn difference(found: &candle_core::Tensor, ids: &[Vec<u16>], golden: &[Vec<f32>]) -> f32 {
    let (rows, width) = found.dims2().unwrap();
    let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
    let padded = rows / ids.len() * width;
    let pairs = found.chunks_exact(padded).zip(golden).flat_map(|(found, golden)| {
        assert!(golden.len() <= found.len() && golden.len() >= width);
        found.iter().zip(golden)
    });
    pairs.map(|(found, golden)| (found - golden).abs()).fold(0.0, f32::max)
}

/// Loads a family's folder and compares it, on the device's code too.
fn compare(family: &str) -> rankpatch_format::write::Network {
    let network = reproduces(family);
    device_agrees(family, &network, &golden(family).ids);
    network
}

/// Loads a family's folder and compares the float executor.
fn reproduces(family: &str) -> rankpatch_format::write::Network {
    let network = load(&carried("hf-golden").join(family)).unwrap();
    let Golden { ids, logits, features } = golden(family);
    let model = Model::new(&network, &Device::Cpu).unwrap();
    let batch = Batch::tokens(&ids);
    let none = BTreeMap::new();
    let worst = difference(&model.forward(&batch, &none, None).unwrap(), &ids, &logits);
    assert!(worst < BOUND, "{family}: an output is off by {worst}");
    let worst = difference(&model.features(&batch, &none).unwrap(), &ids, &features);
    assert!(worst < BOUND, "{family}: a feature is off by {worst}");
    network
}

/// The device's code on the quantized base against the float executor on the same codes: they differ by the rounding of
/// activations to 8 bits.
fn device_agrees(family: &str, network: &rankpatch_format::write::Network, ids: &[Vec<u16>]) {
    let quantized = quantize(network).unwrap();
    let model = Model::new(&quantized, &Device::Cpu).unwrap();
    let simulator = Simulator::new(Image::build(&quantized, Layout::RowMajor, 4).unwrap()).unwrap();
    let streaming = simulator.base().unwrap().streaming();
    let (mut error, mut size, mut count) = (0.0f64, 0.0f64, 0);
    for ids in ids {
        let expected = model.forward(&Batch::tokens(&[ids]), &BTreeMap::new(), None).unwrap();
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let found = if streaming {
            simulator.logits(std::slice::from_ref(ids)).unwrap().remove(0)
        } else {
            simulator.outputs(&[crate::sim::Input::Tokens(ids)]).unwrap().remove(0)
        };
        assert_eq!(found.len(), expected.len(), "{family}");
        for (found, expected) in found.iter().zip(&expected) {
            error += f64::from(found - expected).powi(2);
            size += f64::from(*expected).powi(2);
            count += 1;
        }
    }
    let relative = (error / size).sqrt();
    assert!(
        count > 8 && relative < DEVICE_BOUND,
        "{family}: on the device's code outputs differ by {relative}"
    );
    assert!(relative > 1e-6, "{family}: the device rounds, this is the float executor");
}

/// Bound on the relative difference (rms) that rounding of activations makes in these small networks of large weights.
const DEVICE_BOUND: f64 = 0.05;

#[test]
fn llama_with_every_option() {
    let network = compare("llama");
    assert_eq!((network.name.as_str(), network.max_rows), ("llama", 64));
    assert_eq!(network.site_names.len(), 2 * 7 + 1);
    assert_eq!(network.site_names[1], "model.layers.0.self_attn.k_proj");
    assert_eq!(network.site_names[13], "model.layers.1.mlp.down_proj");
    assert_eq!(network.site_names[14], "lm_head");
}

#[test]
fn llama_in_shards_of_bfloat16_with_a_tied_output() {
    let network = compare("llama-tied");
    assert_eq!(network.tensor_names.iter().filter(|name| name.ends_with("lm_head.weight")).count(), 0);
}

#[test]
fn mistral_within_its_window() {
    assert_eq!(compare("mistral").max_rows, 12, "the window, not the positions");
}

#[test]
fn qwen2_in_half_precision() {
    compare("qwen2");
}

#[test]
fn gpt2_has_three_sites_where_it_has_one_module() {
    let network = compare("gpt2");
    assert_eq!(
        network.site_names[..4],
        [
            "transformer.h.0.attn.c_attn.q",
            "transformer.h.0.attn.c_attn.k",
            "transformer.h.0.attn.c_attn.v",
            "transformer.h.0.attn.c_proj"
        ]
    );
}

#[test]
fn bert_reads_the_pooler() {
    let network = compare("bert");
    assert_eq!((network.max_rows, network.labels.join(" ").as_str()), (26, "calm loud odd"));
    assert_eq!(network.site_names.len(), 2 * 6 + 2);
    assert_eq!(
        network.site_names[11..],
        ["bert.encoder.layer.1.output.dense", "bert.pooler.dense", "classifier"]
    );
}

#[test]
fn roberta_starts_behind_the_padding() {
    let network = compare("roberta");
    assert_eq!(network.max_rows, 22);
    assert_eq!(network.site_names[12..], ["classifier.dense", "classifier.out_proj"]);
}
