//! A base that only hosts run trains as any other: DeBERTa, whose factors act on tokens and positions.

use super::tiny;
use crate::base::quantize;
use crate::data::test_data::carried;
use crate::import;
use crate::lora::{FloatAdapter, LoraConfig};
use crate::rng::Rng;
use crate::train::{
    Example, Length, MetricName, Sequence, Target, TaskData, TrainConfig, Trainer, evaluate_float,
};

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

fn trained(steps: u64, threads: usize) -> (Trainer, FloatAdapter) {
    let network = quantize(&import::load(&carried("hf-golden/deberta-v3")).unwrap()).unwrap();
    let config = TrainConfig {
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
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut trainer = Trainer::new(config, &network, orders()).unwrap();
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
