//! DeBERTa: parity, gradients against PEFT's, buckets, and what is refused.
//!
//! `tests/data/hf-golden/make_deberta.py` makes the folders.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor, Var};
use rankpatch_format::graph::{HostOp, Op};
use rankpatch_format::write::Network;
use serde_json::json;

use super::refused::Copy;
use super::{golden, reproduces};
use crate::Error;
use crate::base::{Image, quantize};
use crate::data::test_data::carried;
use crate::executor::{Batch, Factors, Model};
use crate::ops::{bucket, cross_entropy, value_and_grad};
use rankpatch_format::layout::Layout;

/// PEFT's alpha / r in the golden file.
const SCALING: f64 = 5.0 / 3.0;

fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(carried("hf-golden").join(name), &Device::Cpu).unwrap()
}

fn host_ops(network: &Network) -> Vec<HostOp> {
    let host = network.ops.iter().filter_map(|op| match op {
        Op::Host(op) => Some(*op),
        _ => None,
    });
    host.collect()
}

#[test]
fn version_3() {
    let network = reproduces("deberta-v3");
    assert_eq!((network.max_rows, network.labels.join(" ").as_str()), (32, "entails neutral contradicts"));
    assert_eq!(network.site_names.len(), 2 * 6 + 2);
    assert_eq!(
        network.site_names[..3],
        ["query_proj", "key_proj", "value_proj"]
            .map(|name| format!("deberta.encoder.layer.0.attention.self.{name}"))
    );
    assert_eq!(network.site_names[12..], ["pooler.dense", "classifier"]);
    let [HostOp::AppendTable { .. }, HostOp::RelativeAttention { buckets: 8, max_distance: 32, .. }, ..] =
        host_ops(&network)[..]
    else {
        panic!("{:?}", host_ops(&network))
    };
}

#[test]
fn version_2_with_its_convolution_and_a_narrow_embedding() {
    let network = reproduces("deberta-v2");
    assert_eq!(network.site_names[0], "deberta.embeddings.embed_proj");
    let convolutions =
        host_ops(&network).into_iter().filter(|op| matches!(op, HostOp::Convolution { reach: 1, .. }));
    assert_eq!(convolutions.count(), 1, "and it is no site");
    assert_eq!(network.site_names.len(), 1 + 2 * 6 + 2);
}

#[test]
fn a_body_alone_with_one_kind_of_positions() {
    let network = reproduces("deberta-bare");
    assert_eq!(network.site_names.last().unwrap(), "deberta.encoder.layer.1.output.dense");
    assert!(network.labels.is_empty());
}

/// Loss and gradients of LoRA are PEFT's, positions' share in those of queries and keys included.
#[test]
fn gradients_are_those_of_peft() {
    for family in ["deberta-v3", "deberta-v2"] {
        let network = reproduces(family);
        let model = Model::new(&network, &Device::Cpu).unwrap();
        let golden_file = tensors(&format!("{family}/golden.safetensors"));
        let mut factors = BTreeMap::new();
        for (index, site) in (0u16..).zip(model.sites()) {
            let factor = |which: &str| {
                let tensor = golden_file.get(&format!("factor.{}.lora_{which}", site.name))?;
                Some(Var::from_tensor(tensor).unwrap().into_inner())
            };
            let (Some(lora_a), Some(lora_b)) = (factor("A"), factor("B")) else { continue };
            factors.insert(index, Factors { lora_a, lora_b, scaling: SCALING, dropout_mask: None });
        }
        let modules = golden_file.keys().filter(|name| name.starts_with("factor.")).count() / 2;
        assert_eq!((factors.len(), modules), if family == "deberta-v3" { (6, 6) } else { (9, 9) });

        let batch = Batch::tokens(&golden(family).ids);
        let labels = golden_file["labels"].to_vec1::<i32>().unwrap();
        let labels: Vec<u32> = labels.into_iter().map(i32::cast_unsigned).collect();
        let labels = Tensor::new(labels, &Device::Cpu).unwrap();
        let weights = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
        let (loss, grads) = value_and_grad(|| {
            cross_entropy(&model.forward(&batch, &factors, None).unwrap(), &labels, &weights)
        })
        .unwrap();
        let (found, expected) =
            (loss.to_scalar::<f32>().unwrap(), golden_file["loss"].to_vec1::<f32>().unwrap()[0]);
        assert!((found - expected).abs() < 1e-5 * expected, "{family}: loss {found}, expected {expected}");
        for (index, site) in &factors {
            let name = &model.sites()[usize::from(*index)].name;
            for (which, var) in [("A", &site.lora_a), ("B", &site.lora_b)] {
                let expected = &golden_file[&format!("grad.{name}.lora_{which}")];
                let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let (found, expected) = (values(grads.get(var).unwrap()), values(expected));
                let size = expected.iter().fold(0.0f32, |size, value| size.max(value.abs()));
                assert!(size > 1e-3, "{name}: a gradient of {size} tells nothing");
                for (found, expected) in found.iter().zip(&expected) {
                    let error = (found - expected).abs();
                    assert!(
                        error < 1e-4 * size,
                        "{family} {name} lora_{which}: {found}, expected {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn buckets_are_those_of_transformers() {
    let file = tensors("deberta-buckets.safetensors");
    assert_eq!(file.len(), 3);
    for (name, expected) in file {
        let (buckets, far) = name.split_once('.').unwrap();
        let (buckets, far): (i64, i64) = (buckets.parse().unwrap(), far.parse().unwrap());
        let expected: Vec<i64> = expected.to_vec1::<i32>().unwrap().into_iter().map(i64::from).collect();
        let found: Vec<i64> = (1 - far..far).map(|distance| bucket(distance, buckets, far)).collect();
        assert_eq!(found, expected, "{name}");
    }
}

/// Devices do not run it: there is no base image, and the message says what to do instead.
#[test]
fn no_base_image_is_made() {
    let network = quantize(&reproduces("deberta-v3")).unwrap();
    let error = Image::build(&network, Layout::RowMajor, 4).unwrap_err();
    let Error::Format(rankpatch_format::Error::HostOperator { name, .. }) = error else { panic!("{error}") };
    assert_eq!(name, "a table appended to rows");
}

#[test]
fn options_that_are_not_supported() {
    for (key, value, part) in [
        (
            "relative_attention",
            json!(false),
            "relative_attention: expected true: nothing else is supported, found false",
        ),
        ("share_att_key", json!(false), "share_att_key: expected true"),
        ("share_att_key", json!(null), "share_att_key: expected true: nothing else is supported, found null"),
        ("pos_att_type", json!("p2p|c2p"), r#"pos_att_type: expected some of c2p, p2c, found "p2p|c2p""#),
        ("pos_att_type", json!([]), "pos_att_type: expected c2p, p2c or both, found []"),
        ("norm_rel_ebd", json!("batch_norm"), "norm_rel_ebd: expected some of none, layer_norm"),
        (
            "position_buckets",
            json!(70_000),
            "position_buckets: expected a whole number up to 65535, found 70000",
        ),
        ("conv_kernel_size", json!(4), "conv_kernel_size: expected an odd number up to 511, found 4"),
        ("conv_groups", json!(2), "conv_groups: expected 1: nothing else is supported, found 2"),
        ("attention_head_size", json!(6), "attention_head_size: expected 8"),
        ("type_vocab_size", json!(-1), "type_vocab_size: expected a whole number"),
        (
            "architectures",
            json!(["DebertaV2ForTokenClassification"]),
            "architectures: expected DebertaV2ForSequenceClassification or",
        ),
    ] {
        let error = Copy::of("deberta-v2").option(key, Some(value)).error().to_string();
        assert!(error.contains(part) && error.contains("config.json"), "{error}");
    }
    // Twice as many buckets as the table has rows.
    let error = Copy::of("deberta-v3").option("position_buckets", Some(json!(16))).error().to_string();
    assert!(
        error
            .ends_with(r#""deberta.encoder.rel_embeddings.weight": expected shape [32, 24], found [16, 24]"#),
        "{error}"
    );
    // Without the option the convolution's tensors belong to nothing.
    let error = Copy::of("deberta-v2").option("conv_kernel_size", None).error().to_string();
    assert!(error.contains("also deberta.encoder.conv.LayerNorm.bias"), "{error}");
}
