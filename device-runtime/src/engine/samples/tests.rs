//! The front end against its formula in double precision, on the small network of the fixtures and on a network that streams; pieces against wholes.

extern crate std;
use std::vec;
use std::vec::Vec;

use rankpatch_format::base::Base;
use rankpatch_format::digest::XorShift32;
use rankpatch_format::fixture;
use rankpatch_format::front_end::{FFT_SAMPLES, FrontEnd};
use rankpatch_format::graph::Op;
use rankpatch_format::layout::Layout;
use rankpatch_format::write::{Network, Tensor};

use crate::tests::{image, memory};
use crate::{Engine, Error, arena_bytes, arena_layout};

/// Samples that complete the 13 frames of the fixture, and some more.
const CLIP: usize = 60 + 12 * 25 + 17;

fn noise(len: usize) -> Vec<i16> {
    let mut random = XorShift32::new(8);
    (0..len).map(|_| (random.next_u32() >> 16) as u16 as i16).collect()
}

/// The formula of the operator, in f64 and with a Fourier transform by its definition.
fn expected(front_end: &FrontEnd<'_>, samples: &[i16]) -> Vec<f64> {
    let bands = front_end.bands.len();
    let mut features = Vec::new();
    for at in 0..front_end.frames(samples.len()) {
        let frame = &samples[at * front_end.hop..][..front_end.frame];
        let x: Vec<f64> =
            frame.iter().zip(front_end.window).map(|(x, w)| f64::from(*x) * f64::from(*w)).collect();
        let magnitude = |k: usize| {
            let angle = |t: usize| -std::f64::consts::TAU * (k * t % FFT_SAMPLES) as f64 / FFT_SAMPLES as f64;
            let re: f64 = x.iter().enumerate().map(|(t, x)| x * angle(t).cos()).sum();
            let im: f64 = x.iter().enumerate().map(|(t, x)| x * angle(t).sin()).sum();
            re.hypot(im)
        };
        let mut weights = front_end.mel;
        let mut logs = Vec::new();
        for [first, count] in front_end.bands {
            let (own, rest) = weights.split_at(*count as usize);
            weights = rest;
            let bins = own.iter().zip(*first as usize..);
            let energy: f64 = bins.map(|(weight, bin)| f64::from(*weight) * magnitude(bin)).sum();
            logs.push(energy.max(f64::from(front_end.floor)).ln());
        }
        for (k, row) in front_end.dct.chunks(bands / 2).enumerate() {
            let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
            let terms = row.iter().enumerate();
            features.push(terms.map(|(n, d)| f64::from(*d) * (logs[n] + sign * logs[bands - 1 - n])).sum());
        }
    }
    features
}

#[test]
fn features_are_those_of_the_formula() {
    let image = image(&fixture::listener(), Layout::RowMajor, 1);
    let base = Base::new(image.bytes()).unwrap();
    let front_end = base.front_end().unwrap();
    assert_eq!((front_end.width(), base.feature_width()), (9, 9));
    let mut arena = memory(arena_bytes(&base, 13));
    let mut engine = Engine::new(base, arena.bytes_mut(), 13).unwrap();
    let square = (0..CLIP).map(|i| if i / 7 % 2 == 0 { i16::MAX } else { i16::MIN }).collect();
    let impulse = (0..CLIP).map(|i| if i == 130 { -20_000 } else { 0 }).collect();
    for (name, samples) in
        [("noise", noise(CLIP)), ("silence", vec![0; CLIP]), ("square", square), ("impulse", impulse)]
    {
        engine.reset();
        assert_eq!(engine.push_samples(&samples), Ok(13), "{name}");
        let found = engine.pushed_features();
        let expected = expected(&front_end, &samples);
        assert_eq!(found.len(), expected.len());
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(*found) - expected).abs();
            assert!(error < 1e-4, "{name}, number {index}: expected {expected}, found {found}");
        }
    }
}

#[test]
fn pieces_of_any_size_change_nothing() {
    let image = image(&fixture::listener(), Layout::Dsp4x4, 1);
    let base = Base::new(image.bytes()).unwrap();
    let mut arena = memory(arena_bytes(&base, 13));
    let mut engine = Engine::new(base, arena.bytes_mut(), 13).unwrap();
    let samples = noise(CLIP);
    let whole = engine.run_samples(&samples).unwrap().to_vec();
    engine.push_samples(&samples).unwrap();
    let features = engine.pushed_features().to_vec();
    assert_eq!(engine.run_pushed().unwrap(), whole, "a push after a run begins a clip");
    assert_eq!(engine.run_features(&features).unwrap(), whole, "features that were made elsewhere");
    let mut random = XorShift32::new(5);
    for longest in [1, 2, 24, 25, 26, 61, 200] {
        let mut rest = &samples[..];
        while !rest.is_empty() {
            let len = (1 + random.next_u32() as usize % longest).min(rest.len());
            let waiting = engine.push_samples(&rest[..len]).unwrap();
            rest = &rest[len..];
            let heard = samples.len() - rest.len();
            assert_eq!(waiting, base.front_end().unwrap().frames(heard), "as soon as it is complete");
            assert_eq!(engine.heard(), heard);
        }
        assert_eq!(engine.pushed_features(), features, "pieces of up to {longest}");
        assert_eq!(engine.run_pushed().unwrap(), whole);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let listener = image(&fixture::listener(), Layout::RowMajor, 1);
    let base = Base::new(listener.bytes()).unwrap();
    let mut arena = memory(arena_bytes(&base, 13));
    let mut engine = Engine::new(base, arena.bytes_mut(), 13).unwrap();
    assert_eq!(engine.run_pushed(), Err(Error::SequenceTooLong { expected: 13, found: 0 }));
    assert_eq!(engine.push_samples(&[1; 59]), Ok(0));
    assert_eq!(engine.run_pushed(), Err(Error::SequenceTooLong { expected: 13, found: 0 }));
    let too_long = Err(Error::SequenceTooLong { expected: 13, found: 14 });
    assert_eq!(engine.push_samples(&vec![1; 1 + 13 * 25]), too_long);
    assert_eq!(engine.push_samples(&vec![1; 13 * 25]), Ok(13));
    let output = engine.run_pushed().unwrap().to_vec();
    assert_eq!(engine.run_samples(&vec![1; 59 + 13 * 25]).unwrap(), output);
    // Nothing of an earlier clip is left.
    engine.push_samples(&noise(100)).unwrap();
    engine.reset();
    assert_eq!(engine.push_samples(&vec![1; 59 + 13 * 25]), Ok(13));
    assert_eq!(engine.run_pushed().unwrap(), output);

    let encoder = image(&fixture::encoder(), Layout::RowMajor, 1);
    let base = Base::new(encoder.bytes()).unwrap();
    let mut arena = memory(arena_bytes(&base, 13));
    assert_eq!(arena_layout(&base, 13).samples, 0);
    let mut engine = Engine::new(base, arena.bytes_mut(), 13).unwrap();
    assert_eq!(engine.push_samples(&[0; 60]), Err(Error::WrongInput { expected: 9, found: 60 }));
}

/// Causal attention over the fixture's features: a network that reads sound as it comes.
fn streaming(first: Op, tensors: Vec<Tensor>) -> Network {
    let attention = Op::Attention { q: 0, k: 0, v: 0, n_heads: 1, n_kv_heads: 1, causal: true, scale: 0.4 };
    Network {
        name: "hears".into(),
        ops: vec![first, attention],
        tensor_names: vec![std::string::String::new(); tensors.len()],
        tensors,
        site_names: Vec::new(),
        labels: Vec::new(),
        output: 1,
        features: 1,
        max_rows: 24,
        vocabulary: None,
    }
}

#[test]
fn a_network_that_streams_hears_without_an_end() {
    let listener = fixture::listener();
    let features = {
        let image = image(&listener, Layout::RowMajor, 1);
        let base = Base::new(image.bytes()).unwrap();
        let mut arena = memory(arena_bytes(&base, 13));
        let mut engine = Engine::new(base, arena.bytes_mut(), 13).unwrap();
        engine.push_samples(&noise(CLIP)).unwrap();
        engine.pushed_features().to_vec()
    };
    let network = streaming(listener.ops[0], listener.tensors.clone());
    let mut seen = Vec::new();
    for pass_rows in [1, 3, 24] {
        let image = image(&network, Layout::RowMajor, pass_rows);
        let base = Base::new(image.bytes()).unwrap();
        let mut arena = memory(arena_bytes(&base, 24));
        let mut engine = Engine::new(base, arena.bytes_mut(), 24).unwrap();
        seen.push(engine.run_features(&features).unwrap().to_vec());
        for piece in [7, 60, 133, CLIP] {
            engine.reset();
            for part in noise(CLIP).chunks(piece) {
                assert_eq!(engine.push_samples(part), Ok(0));
            }
            assert_eq!(engine.position(), 13);
            seen.push(engine.run_pushed().unwrap().to_vec());
        }
        engine.push_samples(&noise(8)).unwrap();
        assert_eq!(engine.position(), 14, "17 samples were left, of which 35 more than a hop");
    }
    assert!(seen.iter().all(|output| *output == seen[0]), "{seen:?}");
}
