//! The figures that the README states, measured again: what quantization costs the bases, and what the three tasks reach,
//! trained from nothing here and now.

use std::sync::Mutex;

use rankpatch::executor::Model;
use rankpatch::export::{dequantize, export};
use rankpatch::sim::{Input, Simulator};
use rankpatch::train::{Event, Reporter, TaskData, TrainConfig, Trainer, evaluate_float};
use rankpatch_format::adapter::Adapter;
use rankpatch_format::fixture;
use rankpatch_format::layout::Layout;
use rankpatch_format::link::Mode;
use rankpatch_format::write::AdapterData;

use crate::{TASKS, adapter, golden_clips, image, path};

/// Trainings use all cores themselves: one at a time.
static TRAINING: Mutex<()> = Mutex::new(());

struct Silent;

impl Reporter for Silent {
    fn event(&mut self, _event: &Event<'_>) {}
}

/// What a task must reach, as (float, device) -> right or wrong.
fn check(task: &str, float: f64, device: f64) {
    println!("{task}: float {float:.4}, device {device:.4}");
    if task == "names" {
        assert!(float <= 3.1, "bits per character: expected at most 3.1, found {float}");
        assert!(device <= float * 1.02, "expected at most 2 % above {float}, found {device}");
    } else {
        let least = if task == "intent" { 0.97 } else { 0.99 };
        assert!(float >= least, "accuracy: expected at least {least}, found {float}");
        assert!(device >= float - 0.01, "expected at most a point below {float}, found {device}");
    }
}

fn config(task: &str) -> TrainConfig {
    TrainConfig::load(&path("host-trainer/tasks").join(format!("{task}.toml")), &[]).unwrap()
}

fn train(task: &str, base: &str) {
    let _alone = TRAINING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let image = image(base, Layout::RowMajor);
    let network = rankpatch_format::write::Network::read(&image.base().unwrap());
    let config = config(task);
    let data = TaskData::load(&config, &image.base().unwrap()).unwrap();
    let mut trainer = Trainer::new(config, &network, data).unwrap();
    trainer.run(&mut Silent, None).unwrap();
    let trained = trainer.adapter().unwrap();
    let digest = |file: &[u8]| {
        Simulator::new(image.clone())?.with_adapter(file.to_vec(), Mode::Streamed)?.self_test_digest()
    };
    let exported = export(&trained, &network, 1, digest).unwrap();
    let test = &trainer.data().test;
    let float = evaluate_float(trainer.model(), Some(&trained), test).unwrap().value;
    let device = Simulator::new(image).unwrap().with_adapter(exported.file, Mode::Streamed).unwrap();
    check(task, float, device.evaluate(test).unwrap().value);
}

#[test]
fn names_are_learned() {
    train("names", "stories260k");
}

#[test]
fn intents_are_learned() {
    train("intent", "stories260k");
}

#[test]
fn speakers_are_learned() {
    train("speaker", "kwt1");
}

/// What a carried adapter reaches on the data set apart, as (float, device), and its simulator.
fn measure(task: &str, base: &str) -> (f64, f64, Simulator) {
    let image = image(base, Layout::Dsp4x4);
    let network = rankpatch_format::write::Network::read(&image.base().unwrap());
    let test = TaskData::load(&config(task), &image.base().unwrap()).unwrap().test;
    let simulator = Simulator::new(image).unwrap().with_adapter(adapter(task), Mode::Streamed).unwrap();
    let float = {
        let base = simulator.base().unwrap();
        let file = simulator.adapter().unwrap().unwrap();
        let float = dequantize(&AdapterData::read(&file, &base), &network).unwrap();
        let model = Model::new(&network, &candle_core::Device::Cpu).unwrap();
        evaluate_float(&model, Some(&float), &test).unwrap().value
    };
    let device = simulator.evaluate(&test).unwrap().value;
    (float, device, simulator)
}

/// The adapters in `tests/data/adapters` are what they claim to be.
#[test]
fn carried_adapters_hold_what_they_promise() {
    for (task, base) in TASKS {
        let (float, device, simulator) = measure(task, base);
        check(task, float, device);
        let merged = simulator.with_adapter(adapter(task), Mode::Merged).unwrap();
        let image = image(base, Layout::Dsp4x4);
        let test = TaskData::load(&config(task), &image.base().unwrap()).unwrap().test;
        println!("{task}: merged {:.4}", merged.evaluate(&test).unwrap().value);
    }
}

/// Two tasks of a base with 33,952 parameters, for 16 KB of RAM: names at most 0.2 bits a character worse than with eight times the
/// base, and the intent of 93 of 100 requests from their first 18 tokens.
#[test]
fn adapters_of_the_small_base_hold_what_they_promise() {
    let (float, device, _) = measure("small-names", "requests33k");
    println!("small-names: float {float:.4}, device {device:.4}");
    assert!(device <= 3.17 && device <= float * 1.02, "bits per character: float {float}, device {device}");
    let (float, device, _) = measure("small-intent", "requests33k");
    println!("small-intent: float {float:.4}, device {device:.4}");
    assert!(device >= 0.93 && device >= float - 0.01, "accuracy: float {float}, device {device}");
}

/// int8 weights and activations cost stories260K at most 0.015 nats per token: 1.2236 is the float figure of `golden.json`.
#[test]
fn quantization_hardly_costs_the_stories() {
    let stories = rankpatch::data::text::stories(&path("tests/data/tinystories-sample/stories.txt")).unwrap();
    let image = image("stories260k", Layout::Dsp4x4);
    let mut sequences: Vec<Vec<u16>> = Vec::new();
    for story in &stories {
        let mut ids = rankpatch::data::text::encode(&image.base().unwrap(), story).unwrap();
        ids.truncate(512);
        sequences.push(ids);
    }
    let tokens: usize = sequences.iter().map(|ids| ids.len() - 1).sum();
    let nats = Simulator::new(image).unwrap().negative_log_likelihoods(&sequences).unwrap();
    let mean = nats.iter().sum::<f64>() / tokens as f64;
    println!("stories260K on the device's code: {mean:.4} nats per token over {tokens} tokens");
    assert!(mean <= 1.2236 + 0.015, "{mean}");
}

/// The quantized KWT-1 agrees with the original on at least 99 % of the carried golden clips.
#[test]
fn quantization_hardly_costs_the_keywords() {
    let (clips, golden) = golden_clips();
    let inputs: Vec<Input<'_>> = clips.iter().map(|clip| Input::Features(clip)).collect();
    let found = Simulator::new(image("kwt1", Layout::Dsp4x4)).unwrap().classify(&inputs).unwrap();
    let equal = found.iter().zip(&golden).filter(|(found, golden)| found == golden).count();
    println!("KWT-1 on the device's code: {equal} of {} as in float", golden.len());
    assert!(equal * 100 >= golden.len() * 99, "{equal} of {}", golden.len());
}

/// Rank 4 on q and v of every layer of KWT-1: the payload is r (d + k) bytes a matrix exactly, and all the rest of the file below
/// 3 % of it.
#[test]
fn files_are_hardly_larger_than_their_payload() {
    let image = image("kwt1", Layout::RowMajor);
    let base = image.base().unwrap();
    let network = rankpatch_format::write::Network::read(&base);
    let sites: Vec<(u16, usize)> = base
        .sites()
        .filter(|site| site.name.ends_with("attn.q") || site.name.ends_with("attn.v"))
        .map(|site| (site.index, 4))
        .collect();
    assert_eq!(sites.len(), 24);
    let file = fixture::adapter(&network, &sites, None, 0.1, 1).write().unwrap();
    let payload = Adapter::new(&file, &base).unwrap().payload_bytes();
    assert_eq!(payload, 24 * 4 * (64 + 64));
    let rest = file.len() - payload;
    println!("KWT-1, q and v, rank 4: payload {payload} bytes, everything else {rest}");
    assert!(rest * 100 <= payload * 5, "{rest} bytes beside a payload of {payload}");
}
