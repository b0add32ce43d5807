//! A base that only hosts run trains as any other: DeBERTa, whose factors act on tokens and positions.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use rankpatch_format::write::Network;

use super::tiny;
use crate::base::quantize;
use crate::data::test_data::carried;
use crate::executor::{Batch, Joins};
use crate::import::hf::modules::{self, ModuleBias};
use crate::lora::{Bias, FloatAdapter, LoraConfig};
use crate::rng::Rng;
use crate::train::{
    Event, Example, FrozenBase, Learner, Length, ManyReporter, ManyTrainer, MetricName, Sequence, Target,
    TaskData, TrainConfig, Trainer, evaluate_float,
};
use crate::{executor, import, peft};

/// Random ids between two marks; the class is the order of the marks, which only their distance tells.
fn orders() -> TaskData {
    let mut rng = Rng::new(17, "orders");
    let mut example = || {
        let class = rng.below(2) as usize;
        let marks = if class == 0 { [3, 4] } else { [4, 3] };
        let others: Vec<u64> = (0..2 + rng.below(12)).map(|_| 5 + rng.below(56)).collect();
        let ids = [1, marks[0]].into_iter().chain(others).chain([marks[1]]).map(|id| id as _).collect();
        Example { sequence: Sequence::Tokens(ids), target: Target::Class(class) }
    };
    let train = (0..120).map(|_| example()).collect();
    let test = (0..40).map(|_| example()).collect();
    TaskData { train, test, labels: vec!["up".into(), "down".into()], width: 0 }
}

fn network(name: &str) -> Network {
    quantize(&import::load(&carried("hf-golden").join(name)).unwrap()).unwrap()
}

fn config(steps: u64) -> TrainConfig {
    TrainConfig {
        lora: LoraConfig {
            rank: 4,
            alpha: 8.0,
            dropout: 0.05,
            target_modules: ["query_proj", "key_proj", "value_proj"].map(String::from).to_vec(),
            ..tiny::class_config().lora
        },
        length: Length::Steps(steps),
        learning_rate: 1e-2,
        ..tiny::class_config()
    }
}

fn trained(steps: u64, threads: usize) -> (Trainer, FloatAdapter) {
    let network = network("deberta-v3");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut trainer = Trainer::new(config(steps), &network, orders()).unwrap();
        trainer.run(&mut (), None).unwrap();
        let adapter = trainer.adapter().unwrap();
        (trainer, adapter)
    })
}

#[test]
fn a_relative_network_learns_an_order() {
    let (trainer, adapter) = trained(150, 2);
    let names: Vec<&str> = adapter.sites.iter().map(|factors| factors.site.name.as_str()).collect();
    assert_eq!(names.len(), 6);
    assert_eq!(names[3], "deberta.encoder.layer.1.attention.self.query_proj");
    let found = evaluate_float(trainer.model(), Some(&adapter), &trainer.data().test).unwrap();
    assert_eq!(found.name, MetricName::Accuracy);
    assert!(found.value > 0.8, "accuracy {} where guessing gives 0.5", found.value);
}

#[test]
fn the_same_bits_with_any_number_of_threads() {
    let one = trained(6, 1).1;
    assert_eq!(one, trained(6, 3).1);
    assert!(one.sites.iter().all(|factors| factors.lora_b.iter().any(|value| *value != 0.0)));
}

/// Each task has its own share of the positions: the table is projected by its factors.
#[test]
fn tasks_side_by_side_learn_what_they_learn_alone() {
    let network = network("deberta-v2");
    let other = TrainConfig {
        lora: LoraConfig {
            rank: 3,
            target_modules: ["query_proj", "embed_proj", "output.dense"].map(String::from).to_vec(),
            ..config(1).lora
        },
        batch_size: 5,
        seed: 3,
        ..config(5)
    };
    let tasks = [config(7), other, TrainConfig { batch_size: 3, seed: 8, ..config(4) }];
    let alone = tasks.clone().map(|config| {
        let mut trainer = Trainer::new(config, &network, orders()).unwrap();
        trainer.run(&mut (), None).unwrap();
        trainer.adapter().unwrap()
    });
    let base = FrozenBase::new(&network, &Device::Cpu).unwrap();
    // Otherwise each would run in a pass of its own, and what follows would say nothing.
    assert_eq!(base.model.joins(), Joins::All);
    let learners = tasks.map(|config| Learner::new(&base, &network, config, orders()).unwrap());
    let mut many = ManyTrainer::new(base, learners.into());
    while !many.advance(&mut Quiet).is_empty() {}
    for (task, expected) in alone.iter().enumerate() {
        assert_eq!(&many.learner(task).adapter().unwrap(), expected, "task {task}");
    }
}

#[test]
fn batches_in_one_pass_have_the_rows_that_they_have_alone() {
    let base = FrozenBase::new(&network("deberta-v2"), &Device::Cpu).unwrap();
    let ids: [Vec<Vec<u32>>; 3] =
        [vec![vec![7, 9, 30, 4]; 2], vec![vec![5, 8, 6, 20, 41, 3, 12]], vec![vec![11]]];
    let batches = ids.map(|ids| Batch::tokens(&ids));
    let rows = |output: Tensor| output.to_vec2::<f32>().unwrap();
    let alone = batches.iter().map(|batch| rows(base.model.forward(batch, &BTreeMap::new(), None).unwrap()));
    let alone: Vec<Vec<f32>> = alone.flatten().collect();
    let together = base.model.forward_many(&batches.each_ref(), &BTreeMap::new(), false).unwrap();
    assert_eq!(rows(together), alone);
    assert_eq!(alone.len(), 4, "one row a sequence");
    assert_ne!(alone[0], alone[2], "and not the same of all");
}

/// `bias = "all"`: everything that the model's folder calls a bias, the norm of the table and the convolution included.
#[test]
fn all_biases_are_those_of_the_folder() {
    for name in ["deberta-v2", "deberta-v3"] {
        let network = network(name);
        let file = carried("hf-golden").join(name).join("model.safetensors");
        let file = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        let stored = file.keys().filter_map(|key| key.strip_suffix(".bias"));
        let stored: BTreeSet<&str> = stored.collect();
        let known = modules::biases(&network);
        assert_eq!(known.iter().map(|bias| bias.module.as_str()).collect::<BTreeSet<_>>(), stored, "{name}");

        let all = TrainConfig { lora: LoraConfig { bias: Bias::All, ..config(9).lora }, ..config(9) };
        let mut trainer = Trainer::new(all, &network, orders()).unwrap();
        trainer.run(&mut (), None).unwrap();
        let adapter = trainer.adapter().unwrap();
        for ModuleBias { module, parts, .. } in &known {
            let (tensor, _) = parts[0];
            let Some(found) = adapter.biases.iter().find(|bias| bias.tensor == tensor) else {
                // The head of a task stands in the place of the model's.
                assert!(["classifier"].contains(&module.as_str()), "{name}: {module} is not trained");
                continue;
            };
            let base = executor::dequantize(&network.tensors[usize::from(tensor)]);
            // The softmax does not see a key's bias, but through the other table.
            let moved = found.values.iter().zip(base.iter()).any(|(found, base)| found != base);
            assert!(moved, "{name}: {module} has not moved");
        }
        let folder = tempfile::tempdir().unwrap();
        peft::write(&adapter, &network, folder.path()).unwrap();
        assert_eq!(peft::read(folder.path(), &network).unwrap().biases, adapter.biases);
    }
}

struct Quiet;

impl ManyReporter for Quiet {
    fn event(&mut self, _: usize, _: &Event<'_>) {}
}
