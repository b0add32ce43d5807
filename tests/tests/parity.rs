//! The device's code against the float executor, with factors that no rounding was trained into.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rankpatch::base::Image;
use rankpatch::executor::{Batch, Factors, Input as Rows, Model};
use rankpatch::quant::quantize_lora;
use rankpatch::sim::{Input, Simulator};
use rankpatch_format::digest::XorShift32;
use rankpatch_format::fixture;
use rankpatch_format::layout::Layout;
use rankpatch_format::link::Mode;
use rankpatch_format::write::{Network, PatchData, Tensor as Weights};

const ALPHA: f64 = 5.0;

/// Random float factors for every site, and the same as a file: ranks 1 to 7, alpha 5, so never equal.
fn adapter(network: &Network) -> (BTreeMap<u16, Factors>, Vec<u8>) {
    let mut random = XorShift32::new(99);
    let mut uniform = |count: usize, bound: f32| -> Vec<f32> {
        (0..count).map(|_| random.feature() / 32.0 * bound).collect()
    };
    let mut data = fixture::adapter(network, &[], None, 1.0, 1);
    let mut factors = BTreeMap::new();
    for (site, (_, weight)) in (0u16..).zip(network.sites()) {
        let Weights::Codes { rows, cols, scales, .. } = weight else { unreachable!("a quantized site") };
        let (rows, cols) = (*rows as usize, *cols as usize);
        let rank = 1 + usize::from(site) % 7;
        let scaling = ALPHA / rank as f64;
        let (a, b) = (uniform(rank * cols, 0.2), uniform(rank * rows, 0.2));
        let codes = quantize_lora(&a, &b, rank, cols, rows, scales, scaling as f32).unwrap();
        data.patches.push(PatchData { site, scales: codes.c, lora_a: codes.a, lora_b: codes.b });
        let tensor = |values, shape| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        let pair = Factors {
            lora_a: tensor(a, (rank, cols)),
            lora_b: tensor(b, (rows, rank)),
            scaling,
            dropout_mask: None,
        };
        factors.insert(site, pair);
    }
    (factors, data.write().unwrap())
}

/// |a - b| / |b|.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// Streamed stays within 6 % of float factors on the dequantized base, merged within 8 %, of outputs that the adapter changes by more than
/// 30 %: what int8 activations and factors cost on networks this small and random. One forgotten scaling would be far outside.
#[test]
fn the_device_computes_what_the_trainer_computes() {
    for network in [fixture::decoder(), fixture::encoder()] {
        let (factors, file) = adapter(&network);
        let model = Model::new(&network, &Device::Cpu).unwrap();
        let ids: Vec<u16> = vec![1, 259, 7, 268, 33, 260, 261, 5, 265, 100, 9];
        let mut random = XorShift32::new(3);
        let features: Vec<f32> = (0..13 * 9).map(|_| random.feature() / 8.0).collect();
        let (input, rows, device_input) = if network.vocabulary.is_some() {
            (Rows::Tokens(ids.iter().map(|id| u32::from(*id)).collect()), ids.len(), Input::Tokens(&ids))
        } else {
            (Rows::Features(features.clone()), 13, Input::Features(&features))
        };
        let batch = Batch { input, sequences: 1, rows, lengths: vec![rows] };
        let float = |factors: &BTreeMap<u16, Factors>| -> Vec<f32> {
            let output = model.forward(&batch, factors, None).unwrap();
            let output: Vec<Vec<f32>> = output.to_vec2().unwrap();
            output.last().unwrap().clone()
        };
        let (plain, adapted) = (float(&BTreeMap::new()), float(&factors));
        assert!(distance(&plain, &adapted) > 0.3, "the adapter changes the output");
        let image = Image::build(&network, Layout::Dsp4x4, 4).unwrap();
        let simulator = Simulator::new(image).unwrap();
        let device = |simulator: &Simulator| simulator.outputs(&[device_input]).unwrap().remove(0);
        let base = distance(&device(&simulator), &plain);
        let streamed = simulator.clone().with_adapter(file.clone(), Mode::Streamed).unwrap();
        let streamed = distance(&device(&streamed), &adapted);
        let merged = simulator.with_adapter(file, Mode::Merged).unwrap();
        let merged = distance(&device(&merged), &adapted);
        println!("{}: base {base:.4}, streamed {streamed:.4}, merged {merged:.4}", network.name);
        assert!(base < 0.06, "base is off by {base}");
        assert!(streamed < 0.06, "streamed is off by {streamed}");
        assert!(merged < 0.08, "merged is off by {merged}");
    }
}
