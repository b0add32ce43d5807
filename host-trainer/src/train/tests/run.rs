//! Tests of the loop: it learns, it repeats itself bit for bit, it resumes, and it refuses what would learn nothing.

use std::sync::atomic::AtomicBool;

use super::tiny::{class_config, classes, config, network, texts};
use crate::Error;
use crate::export::{dequantize, export, quantize};
use crate::lora::{FloatAdapter, LoraConfig};
use crate::train::{
    Event, Length, MetricName, Phase, Reporter, Sequence, Target, TaskData, TrainConfig, TrainError, Trainer,
    evaluate_float,
};

/// Keeps what a run says that tests look at.
#[derive(Default)]
struct Log {
    losses: Vec<f64>,
    metrics: Vec<f64>,
    quantized_from: Option<u64>,
    lines: Vec<String>,
}

impl Reporter for Log {
    fn event(&mut self, event: &Event<'_>) {
        self.lines.push(serde_json::to_string(event).unwrap());
        match event {
            Event::Step { loss, .. } => self.losses.push(*loss),
            Event::Evaluated { metric, .. } => self.metrics.push(metric.value),
            Event::PhaseChanged { step, phase: Phase::QuantizationAware } => {
                self.quantized_from = Some(*step);
            }
            _ => {}
        }
    }
}

fn run(config: TrainConfig, data: TaskData) -> (FloatAdapter, Log) {
    let mut trainer = Trainer::new(config, &network(), data).unwrap();
    let mut log = Log::default();
    trainer.run(&mut log, None).unwrap();
    (trainer.adapter().unwrap(), log)
}

fn refusal(config: TrainConfig, data: TaskData) -> Error {
    Trainer::new(config, &network(), data).map(|_| ()).unwrap_err()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn file(adapter: &FloatAdapter) -> Vec<u8> {
    export(adapter, &network(), 1, |_| Ok(7)).unwrap().file
}

#[test]
fn a_run_learns_to_continue_texts() {
    let (adapter, log) = run(TrainConfig { eval_steps: 25, ..config() }, texts());
    let (first, last) = (mean(&log.losses[..5]), mean(&log.losses[55..]));
    assert!(last < 0.5 * first, "loss went from {first} to {last}");
    assert_eq!(log.quantized_from, Some(48), "the last fifth is quantization-aware");
    assert_eq!(log.metrics.len(), 3, "after 25, 50 and 60 steps");
    assert_eq!(adapter.sites.len(), 6, "all-linear leaves the classifier out");

    let model = crate::executor::Model::new(&network(), &candle_core::Device::Cpu).unwrap();
    let base = evaluate_float(&model, None, &texts().test).unwrap();
    let adapted = evaluate_float(&model, Some(&adapter), &texts().test).unwrap();
    assert_eq!(adapted.name, MetricName::BitsPerCharacter);
    assert_eq!(adapted.value, log.metrics[2]);
    assert!(adapted.value < 0.6 * base.value, "{base:?} {adapted:?}");

    // What is written is what was trained: the codes do as well as the floats.
    let written = dequantize(&quantize(&adapter, &network(), 1).unwrap(), &network()).unwrap();
    let written = evaluate_float(&model, Some(&written), &texts().test).unwrap();
    assert!((written.value - adapted.value).abs() < 0.02 * adapted.value, "{written:?} {adapted:?}");
}

/// Four batches of 4 summed up are one batch of 16: the same sums, in another order.
#[test]
fn accumulated_gradients_are_those_of_one_large_batch() {
    let config = || TrainConfig { length: Length::Steps(6), quantization_aware: 0.0, ..config() };
    let without_dropout = |config: TrainConfig| TrainConfig {
        lora: crate::lora::LoraConfig { dropout: 0.0, ..config.lora },
        ..config
    };
    let (_, whole) = run(without_dropout(config()), texts());
    let parts = TrainConfig { batch_size: 4, gradient_accumulation_steps: 4, ..config() };
    let (_, summed) = run(without_dropout(parts), texts());
    for (expected, found) in whole.losses.iter().zip(&summed.losses) {
        assert!((expected / found - 1.0).abs() < 1e-4, "expected {expected}, found {found}");
    }
}

#[test]
fn a_run_without_patience_left_ends_with_its_best_factors() {
    // A rate at which it soon gets worse.
    let config = || TrainConfig {
        length: Length::Steps(200),
        learning_rate: 0.3,
        eval_steps: 5,
        early_stopping_patience: 3,
        quantization_aware: 0.0,
        ..class_config()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let mut trainer =
        Trainer::new(TrainConfig { save_steps: 10, ..config() }, &network(), classes()).unwrap();
    let mut log = Log::default();
    trainer.run(&mut log, Some(&path)).unwrap();
    let best = log.metrics.iter().copied().fold(0.0, f64::max);
    let at = log.metrics.iter().position(|value| *value == best).unwrap();
    assert_eq!(log.metrics.len(), at + 4, "three evaluations after the best one: {:?}", log.metrics);
    assert_eq!(trainer.step(), 5 * (at as u64 + 4));
    let found = evaluate_float(trainer.model(), Some(&trainer.adapter().unwrap()), &classes().test).unwrap();
    assert_eq!(found.value, best);
    assert!(log.lines.iter().any(|line| line.contains("early_stopped")), "{:?}", log.lines.last());

    let mut resumed = Trainer::new(config(), &network(), classes()).unwrap();
    resumed.resume(&path).unwrap();
    resumed.run(&mut (), None).unwrap();
    assert_eq!(file(&trainer.adapter().unwrap()), file(&resumed.adapter().unwrap()));
    let mut other = Trainer::new(TrainConfig { eval_steps: 6, ..config() }, &network(), classes()).unwrap();
    assert!(other.resume(&path).unwrap_err().to_string().contains("eval_steps of the saved run"));
}

#[test]
fn a_run_that_is_asked_to_stop_leaves_a_checkpoint_of_its_step() {
    static STOP: AtomicBool = AtomicBool::new(true);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let mut trainer = Trainer::new(config(), &network(), texts()).unwrap();
    trainer.stop_on(&STOP);
    let error = trainer.run(&mut (), Some(&path)).unwrap_err();
    assert!(matches!(error, Error::Train(TrainError::Interrupted { step: 1, steps: 60 })), "{error}");
    let mut resumed = Trainer::new(config(), &network(), texts()).unwrap();
    resumed.resume(&path).unwrap();
    assert_eq!(resumed.step(), 1);
    resumed.run(&mut (), None).unwrap();
    assert_eq!(file(&resumed.adapter().unwrap()), file(&run(config(), texts()).0));
    // Other data are another run.
    let mut data = texts();
    data.train.swap(0, 1);
    let mut other = Trainer::new(config(), &network(), data).unwrap();
    let error = other.resume(&path).unwrap_err().to_string();
    assert!(error.contains("digest of the saved run's data"), "{error}");
}

#[test]
fn a_run_learns_to_tell_classes() {
    let (adapter, log) = run(class_config(), classes());
    let (first, last) = (mean(&log.losses[..5]), mean(&log.losses[55..]));
    assert!(last < 0.5 * first, "loss went from {first} to {last}");
    assert!(*log.metrics.last().unwrap() > 0.8, "{:?}", log.metrics);
    assert_eq!(adapter.head.unwrap().labels, ["low", "high"]);
    assert!(
        log.lines[0].starts_with(r#"{"event":"started","task":"tiny","base":"tiny","sites":6,"#),
        "{}",
        log.lines[0]
    );
    assert!(log.lines.last().unwrap().starts_with(r#"{"event":"finished","steps":60,"#));
}

#[test]
fn the_same_seed_gives_the_same_file_on_any_number_of_threads() {
    let with_threads = |threads, seed| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            file(&run(TrainConfig { seed, length: Length::Steps(12), ..class_config() }, classes()).0)
        })
    };
    let one = with_threads(1, 3);
    assert_eq!(one, with_threads(1, 3));
    assert_eq!(one, with_threads(2, 3));
    assert_ne!(one, with_threads(2, 4));
}

#[test]
fn a_resumed_run_gives_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/checkpoint.safetensors");
    let config = || TrainConfig { length: Length::Steps(20), save_steps: 8, ..class_config() };
    let mut whole = Trainer::new(config(), &network(), classes()).unwrap();
    whole.run(&mut (), Some(&path)).unwrap();

    let mut resumed = Trainer::new(config(), &network(), classes()).unwrap();
    resumed.resume(&path).unwrap();
    assert_eq!(resumed.step(), 16, "the last checkpoint");
    resumed.run(&mut (), None).unwrap();
    assert_eq!(file(&whole.adapter().unwrap()), file(&resumed.adapter().unwrap()));

    let mut other = Trainer::new(TrainConfig { seed: 1, ..config() }, &network(), classes()).unwrap();
    let error = other.resume(&path).unwrap_err().to_string();
    assert!(error.contains("seed of the saved run: expected 1, found 9"), "{error}");
    std::fs::write(&path, b"no checkpoint").unwrap();
    assert!(matches!(other.resume(&path), Err(Error::Field { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(other.resume(&path), Err(Error::Io { .. })));
}

#[test]
fn fine_splits_of_a_batch_do_not_change_what_a_step_is() {
    // With one text a batch there is nothing to split; four equal batches of one must give the loss of one of four.
    let one = |indices: &[usize]| {
        let data = texts();
        let train = indices.iter().map(|index| data.train[*index].clone()).collect();
        let config = TrainConfig { batch_size: indices.len(), length: Length::Steps(1), ..config() };
        let config = TrainConfig { lora: crate::lora::LoraConfig { dropout: 0.0, ..config.lora }, ..config };
        let tokens: usize = indices.iter().map(|index| data.train[*index].rows(0)).sum();
        let mut trainer = Trainer::new(config, &network(), TaskData { train, ..data }).unwrap();
        (trainer.train_step().unwrap().loss * tokens as f64, tokens as f64)
    };
    let (whole, tokens) = one(&[0, 1, 2, 3]);
    let parts: Vec<(f64, f64)> = (0..4).map(|index| one(&[index])).collect();
    let sum: f64 = parts.iter().map(|part| part.0).sum();
    assert!((whole - sum).abs() < 1e-4 * sum, "{whole} {sum}");
    assert_eq!(tokens, parts.iter().map(|part| part.1).sum::<f64>());
}

#[test]
fn rslora_and_patterns_reach_the_factors() {
    let mut config = TrainConfig { length: Length::Steps(4), ..config() };
    config.lora.use_rslora = true;
    config.lora.target_modules = vec!["attn.q".into(), "layers.*.ffn.*".into()];
    config.lora.exclude_modules = vec!["up".into()];
    config.lora.rank_pattern = [("gate".to_owned(), 5), ("*".to_owned(), 2)].into();
    config.lora.alpha_pattern = [("layers.0.ffn.down".to_owned(), 9.0)].into();
    let (adapter, _) = run(config, texts());
    let found: Vec<_> =
        adapter.sites.iter().map(|f| (f.site.name.as_str(), f.site.rank, f.site.scaling)).collect();
    let root = |rank: f64| rank.sqrt();
    assert_eq!(
        found,
        [
            ("layers.0.attn.q", 2, 6.0 / root(2.0)),
            ("layers.0.ffn.gate", 5, 6.0 / root(5.0)),
            ("layers.0.ffn.down", 2, 9.0 / root(2.0)),
        ]
    );
    assert_eq!(adapter.sites[1].lora_a.len(), 5 * 12);
    assert_eq!(adapter.sites[1].lora_b.len(), 10 * 5);
}

/// PEFT's `target_modules` as a string: a regular expression for the whole name.
#[test]
fn sites_are_named_by_regular_expressions_too() {
    let mut config = TrainConfig { length: Length::Steps(1), ..config() };
    config.lora.target_modules = vec![r"layers\.\d+\.(attn\.[qk]|ffn\.up)".into()];
    config.lora.exclude_modules = vec![".*[.]k".into()];
    config.lora.rank_pattern = [("(up|down)".to_owned(), 5), ("layers.0.attn.q".to_owned(), 2)].into();
    let (adapter, _) = run(config, texts());
    let found: Vec<_> = adapter.sites.iter().map(|f| (f.site.name.as_str(), f.site.rank)).collect();
    assert_eq!(found, [("layers.0.attn.q", 2), ("layers.0.ffn.up", 5)]);
}

#[test]
fn patterns_that_fit_nothing_are_refused_with_the_sites_there_are() {
    let binding = |targets: &[&str]| {
        let mut config = config();
        config.lora.target_modules = targets.iter().map(ToString::to_string).collect();
        refusal(config, texts())
    };
    for targets in [&["q_proj"][..], &["q", "attn"], &["*.norm"], &[""], &["attn.(q|k)"]] {
        let error = binding(targets);
        assert!(matches!(error, Error::Train(TrainError::NoSite { .. })), "{error}");
        let message = error.to_string();
        assert!(
            message.contains("layers.0.attn.q, layers.0.attn.k") && message.contains(targets.last().unwrap()),
            "{message}"
        );
    }
    let mut config = config();
    config.lora.exclude_modules = vec!["*".into()];
    let error = refusal(config, texts()).to_string();
    assert_eq!(
        error,
        "exclude_modules: expected something left of target_modules = \"all-linear\", found \"*\""
    );
    let refused = |key: &str, set: &dyn Fn(&mut LoraConfig)| {
        let mut config = self::config();
        set(&mut config.lora);
        let error = refusal(config, texts()).to_string();
        assert!(
            error.starts_with(&format!("{key} binds to nothing")) && error.contains("\"attn.z\""),
            "{error}"
        );
    };
    refused("exclude_modules", &|lora| lora.exclude_modules = vec!["attn.z".into()]);
    refused("rank_pattern", &|lora| lora.rank_pattern = [("attn.z".to_owned(), 2)].into());
    refused("alpha_pattern", &|lora| lora.alpha_pattern = [("attn.z".to_owned(), 2.0)].into());
    let mut config = class_config();
    config.lora.target_modules = vec!["classifier".into()];
    let error = refusal(config, classes());
    assert!(
        matches!(&error, Error::Train(TrainError::SiteNotRead { site }) if site == "classifier"),
        "{error}"
    );
    let mut config = class_config();
    config.lora.rank_pattern = [("v".to_owned(), 257)].into();
    let error = refusal(config, classes()).to_string();
    assert!(error.contains("layers.0.attn.v: expected 1 to 256, found 257"), "{error}");
}

#[test]
fn a_site_that_gets_no_gradient_stops_the_run() {
    // Without its reader the feed-forward part is cut off: what is behind a weight of zeros learns nothing.
    let mut network = network();
    let down = network.tensor_names.iter().position(|name| name == "layers.0.ffn.down").unwrap();
    if let rankpatch_format::write::Tensor::Codes { codes, .. } = &mut network.tensors[down] {
        codes.fill(0);
    }
    let mut config = config();
    config.lora.target_modules = vec!["q".into(), "gate".into()];
    let mut trainer = Trainer::new(config, &network, texts()).unwrap();
    let error = trainer.run(&mut (), None).unwrap_err();
    let named = |tensor: &str| tensor == "layers.0.ffn.gate.lora_A.weight, layers.0.ffn.gate.lora_B.weight";
    assert!(
        matches!(&error, Error::Train(TrainError::NoGradient { tensor, steps: 4 }) if named(tensor)),
        "{error}"
    );
    assert_eq!(trainer.step(), 3);
}

#[test]
fn a_task_of_texts_without_sites_has_nothing_to_train() {
    let lora = LoraConfig { target_modules: Vec::new(), ..config().lora };
    let error = refusal(TrainConfig { lora, ..config() }, texts()).to_string();
    assert!(error.starts_with("target_modules binds to nothing"), "{error}");
}

#[test]
fn data_that_does_not_fit_is_refused() {
    let refused = |config: TrainConfig, data: TaskData, text: &str| {
        let error = refusal(config, data);
        assert!(matches!(error, Error::Train(TrainError::Data { .. })), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    let mut data = classes();
    data.train.iter_mut().for_each(|example| example.target = Target::Class(1));
    refused(class_config(), data, "at least two classes, found only high");
    let mut data = classes();
    data.train[5].target = Target::Class(2);
    refused(class_config(), data, "a class below 2, found Class(2) in training example 5");
    refused(class_config(), TaskData { train: Vec::new(), ..classes() }, "at least one training example");
    refused(config(), TaskData { test: Vec::new(), ..texts() }, "at least one test example");
    refused(config(), classes(), "texts without classes, found 2 classes");
    refused(config(), TaskData { width: 40, ..texts() }, "token ids, found feature rows of width 40");
    let mut data = texts();
    data.test[0].sequence = Sequence::Tokens(vec![1; 18]);
    refused(config(), data, "1 to 16 rows of input (max_length cuts texts), found 17 in test example 0");
}

#[test]
fn a_float_base_is_refused() {
    let mut network = network();
    for tensor in &mut network.tensors {
        if let rankpatch_format::write::Tensor::Codes { rows, cols, codes, .. } = tensor {
            let data = codes.iter().map(|code| f32::from(*code)).collect();
            *tensor = rankpatch_format::write::Tensor::Matrix { rows: *rows, cols: *cols, data };
        }
    }
    let error = Trainer::new(config(), &network, texts()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("expected a quantized base, found float weights at layers.0.attn.q"), "{error}");
}

#[test]
fn an_adapter_of_another_base_is_not_exported() {
    let adapter = run(TrainConfig { length: Length::Steps(1), ..config() }, texts()).0;
    let mut other = network();
    other.max_rows += 1;
    let error = quantize(&adapter, &other, 1).unwrap_err();
    assert!(matches!(error, Error::Train(TrainError::Base { .. })), "{error}");
}

#[test]
fn bf16_is_refused_on_the_cpu() {
    let error = refusal(TrainConfig { bf16: true, ..config() }, texts()).to_string();
    assert_eq!(error, "bf16: expected false on the CPU (bf16 needs a GPU: --device cuda), found true");
}
