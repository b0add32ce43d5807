//! Tests of what lies between the float and the quantization-aware part: trimmed ranks, and the factors that the part starts from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::tiny::{class_config, classes, config, network, texts};
use crate::executor::Model;
use crate::export::export;
use crate::lora::FloatAdapter;
use crate::train::{Event, Length, Reporter, TaskData, TrainConfig, Trainer, evaluate_float};
use crate::{peft, spectrum};

fn file(adapter: &FloatAdapter) -> Vec<u8> {
    export(adapter, &network(), 1, |_| Ok(7)).unwrap().file
}

/// Keeps each checkpoint under its step, and what was trimmed.
struct Watch {
    path: PathBuf,
    checkpoints: BTreeMap<u64, Vec<u8>>,
    /// Step, ranks before and after, numbers left.
    trimmed: Vec<(u64, usize, usize, usize)>,
    metrics: Vec<f64>,
}

impl Watch {
    fn new(folder: &Path) -> Self {
        let path = folder.join("checkpoint.safetensors");
        Self { path, checkpoints: BTreeMap::new(), trimmed: Vec::new(), metrics: Vec::new() }
    }
}

impl Reporter for Watch {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Saved { step } => {
                self.checkpoints.insert(*step, std::fs::read(&self.path).unwrap());
            }
            Event::Trimmed { step, ranks_before, ranks, trained, .. } => {
                self.trimmed.push((*step, *ranks_before, *ranks, *trained));
            }
            Event::Evaluated { metric, .. } => self.metrics.push(metric.value),
            _ => {}
        }
    }
}

fn run(config: TrainConfig, data: TaskData) -> (Trainer, Watch) {
    let folder = tempfile::tempdir().unwrap();
    let mut watch = Watch::new(folder.path());
    let mut trainer = Trainer::new(config, &network(), data).unwrap();
    let path = watch.path.clone();
    trainer.run(&mut watch, Some(&path)).unwrap();
    (trainer, watch)
}

#[test]
fn ranks_are_trimmed_before_codes_are_trained() {
    let config = TrainConfig { explained_variance: Some(0.9), ..config() };
    let (trainer, watch) = run(config.clone(), texts());
    let adapter = trainer.adapter().unwrap();
    let ranks: Vec<usize> = adapter.sites.iter().map(|factors| factors.site.rank).collect();
    assert_eq!(watch.trimmed, [(48, 6 * 3, ranks.iter().sum(), trainer.trained())]);
    assert!(
        ranks.iter().all(|rank| (1..=3).contains(rank)) && ranks.iter().any(|rank| *rank < 3),
        "{ranks:?}"
    );
    for factors in &adapter.sites {
        assert_eq!(factors.site.scaling, 2.0, "the scaling stays");
        assert_eq!(factors.site.alpha, 2.0 * factors.site.rank as f64);
    }
    let model = Model::new(&network(), &candle_core::Device::Cpu).unwrap();
    let measure = |adapter| evaluate_float(&model, adapter, &texts().test).unwrap().value;
    assert!(measure(Some(&adapter)) < 0.7 * measure(None), "{} {}", measure(Some(&adapter)), measure(None));

    // The ranks are those of the float factors before.
    let mut whole =
        Trainer::new(TrainConfig { explained_variance: None, ..config }, &network(), texts()).unwrap();
    for _ in 0..48 {
        whole.train_step().unwrap();
    }
    let whole = whole.adapter().unwrap();
    for (before, after) in whole.sites.iter().zip(&trainer.unquantized().unwrap().unwrap().sites) {
        let expected = spectrum::singular_values(before).unwrap();
        let found = spectrum::singular_values(after).unwrap();
        assert_eq!(found.len(), spectrum::sufficient_rank(&expected, 0.9));
        for (expected, found) in expected.iter().zip(found) {
            assert!((expected - found).abs() < 1e-5 * expected, "{expected} {found}");
        }
    }

    // A folder with a rank and an alpha per site says the same when it is read.
    let folder = tempfile::tempdir().unwrap();
    peft::write(&adapter, &network(), folder.path()).unwrap();
    let read = peft::read(folder.path(), &network()).unwrap();
    assert_eq!(read.sites, adapter.sites);
}

#[test]
fn a_run_resumed_on_either_side_of_the_trimming_gives_the_same_file() {
    let config = || TrainConfig {
        length: Length::Steps(20),
        save_steps: 2,
        explained_variance: Some(0.9),
        loraplus_lr_ratio: 4.0,
        ..class_config()
    };
    let (whole, watch) = run(config(), classes());
    assert_eq!(watch.trimmed.len(), 1);
    let (expected, before) = (file(&whole.adapter().unwrap()), whole.unquantized().unwrap());
    assert!(before.is_some());
    let folder = tempfile::tempdir().unwrap();
    for step in [14, 16, 18, 20] {
        let path = folder.path().join("checkpoint.safetensors");
        std::fs::write(&path, &watch.checkpoints[&step]).unwrap();
        let mut resumed = Trainer::new(config(), &network(), classes()).unwrap();
        resumed.resume(&path).unwrap();
        resumed.run(&mut (), None).unwrap();
        assert_eq!(file(&resumed.adapter().unwrap()), expected, "from step {step}");
        assert_eq!(resumed.unquantized().unwrap(), before, "from step {step}");
    }
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let (alone, _) = one.install(|| run(config(), classes()));
    assert_eq!(file(&alone.adapter().unwrap()), expected, "on one thread");
}

#[test]
fn without_a_quantization_aware_part_trimming_comes_last() {
    let config = TrainConfig { quantization_aware: 0.0, explained_variance: Some(0.8), ..config() };
    let (trainer, watch) = run(config, texts());
    assert_eq!(trainer.unquantized().unwrap(), None);
    let adapter = trainer.adapter().unwrap();
    assert_eq!((watch.trimmed.len(), watch.trimmed[0].0), (1, 60));
    let found = evaluate_float(trainer.model(), Some(&adapter), &texts().test).unwrap();
    assert_eq!(watch.metrics.len(), 2, "before and after");
    assert_eq!(watch.metrics[1], found.value);
    assert_ne!(watch.metrics[0], watch.metrics[1]);
}

#[test]
fn early_stopping_counts_anew_after_trimming() {
    let config = TrainConfig {
        explained_variance: Some(0.9),
        eval_steps: 4,
        early_stopping_patience: 50,
        ..class_config()
    };
    let (trainer, watch) = run(config, classes());
    assert_eq!(watch.trimmed[0].0, 48);
    let found = evaluate_float(trainer.model(), Some(&trainer.adapter().unwrap()), &classes().test).unwrap();
    let after = &watch.metrics[12..];
    assert_eq!(
        found.value,
        after.iter().copied().fold(0.0, f64::max),
        "the best of the trimmed factors: {after:?}"
    );
}
