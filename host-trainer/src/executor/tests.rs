//! The executor with factors and heads: what they compute, what they leave out, and that gradients are right through a
//! whole network.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use rankpatch_format::adapter::Pooling;
use rankpatch_format::write::Network;

use super::{Batch, Factors, Input, Model, TaskHead};
use crate::Error;
use crate::base::quantize;
use crate::data::test_data::carried;
use crate::ops::{cross_entropy, value_and_grad};
use crate::rng::Rng;

fn network(name: &str) -> Network {
    quantize(&crate::import::load(&carried("bases").join(name)).unwrap()).unwrap()
}

fn model(name: &str) -> Model {
    Model::new(&network(name), &Device::Cpu).unwrap()
}

fn random(rng: &mut Rng, shape: (usize, usize), size: f32) -> Tensor {
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| size * rng.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Random factors of this rank for every site, those of the head of the network included.
fn factors(model: &Model, rank: usize, seed: u64) -> BTreeMap<u16, Factors> {
    let mut rng = Rng::new(seed, "executor tests");
    let sites = (0..).zip(model.sites());
    sites
        .map(|(index, site)| {
            let lora_a = random(&mut rng, (rank, site.in_features), 0.1);
            let lora_b = random(&mut rng, (site.out_features, rank), 0.1);
            (index, Factors { lora_a, lora_b, scaling: 0.7, dropout_mask: None })
        })
        .collect()
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

fn assert_close(found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= bound, "{index}: expected {expected}, found {found}");
    }
}

/// Factors beside a weight compute what the weight with their product added computes.
#[test]
fn factors_act_like_the_merged_weight() {
    use rankpatch_format::write::Tensor as Stored;
    for (name, batch) in [
        ("stories260k", Batch::tokens(&[&[1u16, 403, 407, 261][..], &[1, 300]])),
        ("kwt1", Batch::features(&[kwt_features(1, 30), kwt_features(2, 21)], 40)),
    ] {
        let mut network = network(name);
        let model = Model::new(&network, &Device::Cpu).unwrap();
        let mut factors = factors(&model, 3, 5);
        let weights: Vec<u16> = network
            .ops
            .iter()
            .filter_map(|op| match op {
                rankpatch_format::graph::Op::Linear { weight, .. } => Some(*weight),
                _ => None,
            })
            .collect();
        if name == "stories260k" {
            // The output layer's weight is also the embedding, which factors at the output do not change.
            factors.remove(&35);
        }
        for (site, f) in &factors {
            let weight = &mut network.tensors[usize::from(weights[usize::from(*site)])];
            let delta = (f.lora_b.matmul(&f.lora_a).unwrap() * f.scaling).unwrap();
            let delta: Vec<f32> = delta.flatten_all().unwrap().to_vec1().unwrap();
            let Stored::Codes { rows, cols, codes, scales } = &*weight else { panic!("a site has codes") };
            let scales = scales.iter().flat_map(|scale| std::iter::repeat_n(*scale, *cols as usize));
            let data = codes.iter().zip(scales).zip(delta).map(|((q, s), d)| f32::from(*q) * s + d).collect();
            *weight = Stored::Matrix { rows: *rows, cols: *cols, data };
        }
        let merged = Model::new(&network, &Device::Cpu).unwrap();
        let found = rows(&model.forward(&batch, &factors, None).unwrap());
        let expected = rows(&merged.forward(&batch, &BTreeMap::new(), None).unwrap());
        let plain = rows(&model.forward(&batch, &BTreeMap::new(), None).unwrap());
        assert_close(&found[0], &expected[0], 2e-3);
        assert_close(found.last().unwrap(), expected.last().unwrap(), 2e-3);
        let moved = found[0].iter().zip(&plain[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(moved > 0.1, "{name}: factors moved the output by {moved} only");
    }
}

fn kwt_features(seed: u64, frames: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed, "features");
    (0..frames * 40).map(|i| rng.normal() * if i % 40 == 0 { 60.0 } else { 2.0 }).collect()
}

/// A sequence gives the same logits alone and padded in a batch.
#[test]
fn padding_is_not_seen() {
    let model = model("stories260k");
    let factors = factors(&model, 2, 9);
    let sequences: [&[u16]; 3] = [&[1, 403, 407, 261, 378], &[1, 300], &[1, 13, 50]];
    let together = rows(&model.forward(&Batch::tokens(&sequences), &factors, None).unwrap());
    for (index, sequence) in sequences.iter().enumerate() {
        let alone = rows(&model.forward(&Batch::tokens(&[sequence]), &factors, None).unwrap());
        for (t, alone) in alone.iter().enumerate() {
            assert_close(&together[index * 5 + t], alone, 1e-4);
        }
    }
}

#[test]
fn heads_pool_what_counts() {
    let mut rng = Rng::new(1, "heads");
    let model = model("stories260k");
    assert_eq!((model.features_width(), model.features_are_one_row()), (64, false));
    let sequences: [&[u16]; 2] = [&[1, 403, 407, 261, 378], &[1, 300]];
    let batch = Batch::tokens(&sequences);
    let features = rows(&model.features(&batch, &BTreeMap::new()).unwrap());
    let weight = random(&mut rng, (7, 64), 0.2);
    let bias = Tensor::from_vec((0..7).map(|i| i as f32).collect(), 7, &Device::Cpu).unwrap();
    let expected = |x: &[f32]| -> Vec<f32> {
        let weight = rows(&weight);
        (0..7).map(|o| o as f32 + weight[o].iter().zip(x).map(|(w, x)| w * x).sum::<f32>()).collect()
    };
    let mean = |rows: &[Vec<f32>]| -> Vec<f32> {
        (0..64).map(|i| rows.iter().map(|row| row[i]).sum::<f32>() / rows.len() as f32).collect()
    };
    let head = |pooling| TaskHead { pooling, weight: weight.clone(), bias: Some(bias.clone()) };
    let found = rows(&model.forward(&batch, &BTreeMap::new(), Some(&head(Pooling::Last))).unwrap());
    assert_close(&found[0], &expected(&features[4]), 1e-4);
    assert_close(&found[1], &expected(&features[6]), 1e-4);
    let found = rows(&model.forward(&batch, &BTreeMap::new(), Some(&head(Pooling::Mean))).unwrap());
    assert_close(&found[0], &expected(&mean(&features[..5])), 1e-4);
    assert_close(&found[1], &expected(&mean(&features[5..7])), 1e-4);
}

/// The class token's row is the features of a KWT, and its own head on them is its output.
#[test]
fn the_features_of_a_kwt_are_one_row() {
    let model = model("kwt1");
    assert!(model.features_are_one_row());
    let batch = Batch::features(&[kwt_features(1, 98), kwt_features(2, 98)], 40);
    let network = network("kwt1");
    let tensor = |name: &str| {
        let id = network.tensor_names.iter().position(|n| n == name).unwrap();
        model.tensors[id].clone()
    };
    let head =
        TaskHead { pooling: Pooling::Last, weight: tensor("head.weight"), bias: Some(tensor("head.bias")) };
    let found = rows(&model.forward(&batch, &BTreeMap::new(), Some(&head)).unwrap());
    let expected = rows(&model.forward(&batch, &BTreeMap::new(), None).unwrap());
    for (found, expected) in found.iter().zip(&expected) {
        assert_close(found, expected, 0.0);
    }
    let sites = model.sites();
    assert!(sites[73].writes_output && !sites[72].writes_output);
    assert_eq!((model.site_rows(0, &batch), model.site_rows(1, &batch)), (2 * 98, 2 * 99));
    assert_eq!((model.site_rows(70, &batch), model.site_rows(74, &batch)), (2, 0));
    assert_eq!(model.row_scales(0).len(), 64);
}

/// The gradient of one site's lora_b, and of another's lora_a, against central differences of the loss through the whole
/// network.
#[test]
fn gradients_reach_the_factors_through_a_whole_network() {
    for (name, site_b, site_a) in
        [("stories260k", "layers.0.attn.k", "layers.2.ffn.down"), ("kwt1", "layers.1.attn.v", "embed.patch")]
    {
        let model = model(name);
        let (batch, targets, weights) = if name == "kwt1" {
            let clips = [kwt_features(3, 12), kwt_features(4, 9)];
            (Batch::features(&clips, 40), vec![2u32, 7], vec![1.0f32, 1.0])
        } else {
            // The last row of each sequence predicts nothing, nor does padding.
            let sequences: [&[u16]; 2] = [&[1, 403, 407, 261], &[1, 300, 44]];
            let targets = vec![403, 407, 261, 0, 300, 44, 0, 0];
            (Batch::tokens(&sequences), targets, vec![1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
        };
        let n = targets.len();
        let targets = Tensor::from_vec(targets, n, &Device::Cpu).unwrap();
        let weights = Tensor::from_vec(weights, n, &Device::Cpu).unwrap();
        let mut factors = factors(&model, 2, 13);
        let index = |name: &str| model.sites().iter().position(|s| s.name == name).unwrap() as u16;
        let (site_b, site_a) = (index(site_b), index(site_a));
        let lora_b = Var::from_tensor(&factors[&site_b].lora_b).unwrap();
        let lora_a = Var::from_tensor(&factors[&site_a].lora_a).unwrap();
        let forward = |factors: &BTreeMap<u16, Factors>| {
            let logits = model.forward(&batch, factors, None)?;
            Ok::<_, Error>(cross_entropy(&logits, &targets, &weights)?)
        };
        factors.get_mut(&site_b).unwrap().lora_b = lora_b.as_tensor().clone();
        factors.get_mut(&site_a).unwrap().lora_a = lora_a.as_tensor().clone();
        let (_, grads) = value_and_grad(|| forward(&factors)).unwrap();
        let plain = forward(&factors).unwrap().backward().unwrap();
        for (var, of_b) in [(&lora_b, true), (&lora_a, false)] {
            let flat = |grad: &Tensor| grad.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let grad = flat(grads.get(var).unwrap());
            assert_close(&flat(plain.get(var).unwrap()), &grad, 1e-5);
            // Along the gradient the loss changes fastest, so that rounding of the loss matters least.
            let length = grad.iter().map(|g| g * g).sum::<f32>().sqrt();
            assert!(length > 1e-3, "{name}: the gradient vanishes: {length}");
            let shape = var.shape().clone();
            let direction: Vec<f32> = grad.iter().map(|g| g / length).collect();
            let direction = Tensor::from_vec(direction, shape, &Device::Cpu).unwrap();
            let step = 0.01;
            let loss = |by: f64| {
                let mut factors = factors.clone();
                let moved = (var.as_detached_tensor() + (&direction * by).unwrap()).unwrap();
                if of_b {
                    factors.get_mut(&site_b).unwrap().lora_b = moved;
                } else {
                    factors.get_mut(&site_a).unwrap().lora_a = moved;
                }
                f64::from(forward(&factors).unwrap().to_scalar::<f32>().unwrap())
            };
            let slope = (loss(step) - loss(-step)) / (2.0 * step);
            let error = (slope - f64::from(length)).abs() / f64::from(length);
            assert!(error < 0.01, "{name}: expected the slope {length}, found {slope}");
        }
    }
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let model = model("stories260k");
    let none = BTreeMap::new();
    let fails = |batch: &Batch, part: &str| {
        let error = model.forward(batch, &none, None).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    fails(&Batch::tokens::<u16>(&[[]; 0]), "sequences of a batch: expected at least 1, found 0");
    fails(&Batch::tokens(&[vec![1u16; 513]]), "rows of a sequence: expected 1 to 512, found 513");
    fails(&Batch::features(&[vec![0.0; 80]], 40), "expected token ids, found features");
    fails(&Batch::tokens(&[&[1u16, 2][..], &[]]), "a length of a batch: expected 1 to 2, found 0");
    let good = Batch::tokens(&[&[1u16, 2, 3][..], &[4]]);
    assert_eq!(good.input, Input::Tokens(vec![1, 2, 3, 4, 0, 0]));
    fails(&Batch { lengths: vec![3], ..good.clone() }, "lengths of a batch: expected 2, found 1");
    fails(&Batch { input: Input::Tokens(vec![1; 5]), ..good.clone() }, "expected 2 * 3 * 1 = 6, found 5");
    fails(&Batch { input: Input::Tokens(vec![512; 6]), ..good.clone() }, "an id is 512, expected below 512");
    let factors = BTreeMap::from([(36, factors(&model, 2, 1)[&0].clone())]);
    let error = model.forward(&good, &factors, None).unwrap_err();
    assert!(matches!(error, Error::UnknownSite { found: 36, n_sites: 36 }), "{error}");
    let wrong = BTreeMap::from([(1, super::tests::factors(&model, 2, 1)[&0].clone())]);
    let error = model.forward(&good, &wrong, None).unwrap_err();
    assert!(matches!(error, Error::Op(_)) && error.to_string().contains("lora_b"), "{error}");
}
