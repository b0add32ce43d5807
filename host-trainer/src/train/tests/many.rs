//! Tests of many tasks at once: each gets what it gets alone, bit for bit, whatever trains beside it.

use std::sync::atomic::AtomicBool;

use candle_core::Device;

use super::tiny::{class_config, classes, config, network, texts};
use crate::Error;
use crate::lora::{FloatAdapter, LoraConfig};
use crate::train::{
    Event, FrozenBase, Learner, Length, ManyReporter, ManyTrainer, Reporter, TaskData, TrainConfig,
    TrainError, Trainer,
};

/// What tasks said, as JSON lines, times left out.
#[derive(Default)]
struct Logs(Vec<Vec<String>>);

impl ManyReporter for Logs {
    fn event(&mut self, task: usize, event: &Event<'_>) {
        let mut line = serde_json::to_value(event).unwrap();
        line.as_object_mut()
            .unwrap()
            .retain(|key, _| !["seconds", "tokens_per_second"].contains(&key.as_str()));
        self.0.resize(self.0.len().max(task + 1), Vec::new());
        self.0[task].push(line.to_string());
    }
}

impl Reporter for Logs {
    fn event(&mut self, event: &Event<'_>) {
        ManyReporter::event(self, 0, event);
    }
}

/// Tasks that have as little in common as tasks on one base can.
fn tasks() -> Vec<(TrainConfig, TaskData)> {
    let other = TrainConfig {
        lora: LoraConfig {
            rank: 5,
            alpha: 2.0,
            target_modules: vec!["attn.q".into(), "ffn.down".into(), "classifier".into()],
            ..LoraConfig::default()
        },
        batch_size: 7,
        gradient_accumulation_steps: 2,
        length: Length::Steps(17),
        learning_rate: 0.01,
        loraplus_lr_ratio: 4.0,
        seed: 3,
        quantization_aware: 0.5,
        ..config()
    };
    let stopped = TrainConfig {
        length: Length::Steps(200),
        learning_rate: 0.3,
        eval_steps: 3,
        early_stopping_patience: 2,
        quantization_aware: 0.0,
        ..class_config()
    };
    let shorter = TaskData { train: texts().train[..23].to_vec(), ..texts() };
    vec![
        (TrainConfig { length: Length::Steps(24), eval_steps: 10, ..config() }, texts()),
        (other, shorter),
        (stopped, classes()),
        (TrainConfig { length: Length::Steps(9), seed: 1, batch_size: 5, ..class_config() }, classes()),
    ]
}

fn many(tasks: Vec<(TrainConfig, TaskData)>) -> ManyTrainer {
    let network = network();
    let base = FrozenBase::new(&network, &Device::Cpu).unwrap();
    let learners =
        tasks.into_iter().map(|(config, data)| Learner::new(&base, &network, config, data).unwrap());
    let learners = learners.collect();
    ManyTrainer::new(base, learners)
}

/// Trains to the end of all tasks; the order in which they ended, and whether they succeeded.
fn run(trainer: &mut ManyTrainer, reporter: &mut dyn ManyReporter) -> Vec<(usize, Result<(), Error>)> {
    let mut all = Vec::new();
    loop {
        let ended = trainer.advance(reporter);
        if ended.is_empty() {
            return all;
        }
        all.extend(ended);
    }
}

fn adapters(trainer: &ManyTrainer) -> Vec<FloatAdapter> {
    (0..tasks().len()).map(|task| trainer.learner(task).adapter().unwrap()).collect()
}

#[test]
fn a_task_learns_what_it_learns_alone() {
    let mut alone = Vec::new();
    let mut said = Vec::new();
    for (config, data) in tasks() {
        let mut trainer = Trainer::new(config, &network(), data).unwrap();
        let mut log = Logs::default();
        trainer.run(&mut log, None).unwrap();
        alone.push(trainer.adapter().unwrap());
        said.extend(log.0);
    }
    assert!(said[2].iter().any(|line| line.contains("early_stopped")), "{:?}", said[2].last());
    // All rows at once, and passes with room for some tasks only.
    for rows in [100_000, 90] {
        let mut trainer = many(tasks());
        trainer.limit_rows(rows);
        let mut logs = Logs::default();
        let ended = run(&mut trainer, &mut logs);
        let order: Vec<usize> = ended.iter().map(|(task, _)| *task).collect();
        assert_eq!(order, [3, 2, 1, 0], "tasks leave when their own steps are taken");
        assert!(ended.iter().all(|(_, result)| result.is_ok()), "{ended:?}");
        assert_eq!(logs.0, said, "losses, rates and metrics of {rows} rows a pass");
        assert_eq!(adapters(&trainer), alone, "factors of {rows} rows a pass");
    }
}

#[test]
fn stopped_tasks_go_on_from_checkpoints_of_their_own() {
    static STOP: AtomicBool = AtomicBool::new(true);
    let mut whole = many(tasks());
    run(&mut whole, &mut ());
    let folder = tempfile::tempdir().unwrap();
    let path = |task: usize| folder.path().join(format!("{task}/checkpoint.safetensors"));
    let mut stopped = many(tasks());
    (0..4).for_each(|task| stopped.checkpoint_at(task, path(task)));
    for _ in 0..5 {
        assert!(stopped.train_step().iter().all(|(_, outcome)| outcome.is_ok()));
    }
    stopped.stop_on(&STOP);
    let ended = run(&mut stopped, &mut ());
    for (_, result) in &ended {
        let Err(Error::Train(TrainError::Interrupted { step: 6, .. })) = result else { panic!("{result:?}") };
    }
    assert_eq!(ended.len(), 4);

    // Resumed beside tasks that are elsewhere: one starts anew.
    let network = network();
    let base = FrozenBase::new(&network, &Device::Cpu).unwrap();
    let learners = tasks().into_iter().enumerate().map(|(task, (config, data))| {
        let mut learner = Learner::new(&base, &network, config, data).unwrap();
        if task != 1 {
            learner.resume(&path(task)).unwrap();
            assert_eq!(learner.step(), 6);
        }
        learner
    });
    let learners = learners.collect();
    let mut resumed = ManyTrainer::new(base, learners);
    run(&mut resumed, &mut ());
    assert_eq!(adapters(&resumed), adapters(&whole));
}

#[test]
fn a_task_that_fails_takes_no_other_with_it() {
    let mut tasks = tasks();
    tasks.truncate(2);
    let diverging = TrainConfig { learning_rate: 1e30, warmup_steps: 0, ..config() };
    tasks.insert(
        1,
        (
            TrainConfig {
                optimizer: crate::optim::AdamWConfig { max_grad_norm: None, ..diverging.optimizer },
                ..diverging
            },
            texts(),
        ),
    );
    let mut trainer = many(tasks);
    let ended = run(&mut trainer, &mut ());
    assert_eq!(ended[0].0, 1);
    assert!(ended[0].1.is_err() && ended[1..].iter().all(|(_, result)| result.is_ok()), "{ended:?}");
    let mut others = self::tasks();
    others.truncate(2);
    for ((config, data), task) in others.into_iter().zip([0, 2]) {
        let mut alone = Trainer::new(config, &network(), data).unwrap();
        alone.run(&mut (), None).unwrap();
        assert_eq!(trainer.learner(task).adapter().unwrap(), alone.adapter().unwrap());
    }
}
