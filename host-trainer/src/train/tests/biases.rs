//! Trained biases: which are trained, that everything a run passes through keeps them, and that the device's code adds them.

use std::collections::BTreeMap;
use std::fs;

use candle_core::Device;
use rankpatch_format::adapter::Adapter;
use rankpatch_format::graph::{Op, TensorId};
use rankpatch_format::layout::Layout;
use rankpatch_format::link::Mode;
use rankpatch_format::write::{AdapterData, Network};

use super::tiny::{biased, class_config, classes, config, texts};
use crate::base::{Image, quantize};
use crate::data::test_data::carried;
use crate::executor::dequantize as numbers;
use crate::export::{dequantize, export};
use crate::lora::{Bias, FloatAdapter, LoraConfig};
use crate::sim::Simulator;
use crate::train::{
    Example, FrozenBase, Learner, Length, ManyTrainer, Sequence, Target, TaskData, TrainConfig, Trainer,
    evaluate_float,
};
use crate::{import, peft};

fn with(config: TrainConfig, bias: Bias, modules: &str) -> TrainConfig {
    let target_modules = modules.split(',').map(String::from).collect();
    TrainConfig {
        lora: LoraConfig { target_modules, bias, ..config.lora },
        length: Length::Steps(24),
        ..config
    }
}

fn trained(network: &Network, config: TrainConfig, data: TaskData) -> (Trainer, FloatAdapter) {
    let mut trainer = Trainer::new(config, network, data).unwrap();
    trainer.run(&mut (), None).unwrap();
    let adapter = trainer.adapter().unwrap();
    (trainer, adapter)
}

/// Biases that are not the base's.
fn changed(network: &Network, adapter: &FloatAdapter) -> Vec<TensorId> {
    let other = adapter.biases.iter().filter(|bias| {
        let base = numbers(&network.tensors[usize::from(bias.tensor)]);
        assert_eq!(bias.values.len(), base.len());
        bias.values.iter().zip(base.iter()).all(|(found, base)| found != base)
    });
    other.map(|bias| bias.tensor).collect()
}

#[test]
fn the_biases_that_peft_names_are_trained() {
    let network = biased();
    let of = |op: usize| network.ops[op].bias().unwrap();
    let [key, down, norm] = [3, 13, 15].map(of);
    assert!(norm < down && down < key, "not in the order of the graph");
    for (bias, modules, expected) in [
        (Bias::None, "all-linear", vec![]),
        (Bias::LoraOnly, "attn.q", vec![]),
        (Bias::LoraOnly, "ffn.down", vec![down]),
        (Bias::LoraOnly, "all-linear", vec![down, key]),
        (Bias::All, "attn.q", vec![norm, down, key]),
    ] {
        let (trainer, adapter) = trained(&network, with(config(), bias, modules), texts());
        assert_eq!(trainer.learner().biases(), expected, "{bias:?} {modules}");
        assert_eq!(changed(&network, &adapter), expected, "{bias:?} {modules}");
        let plain = trained(&network, with(config(), Bias::None, modules), texts()).0;
        let numbers: usize = adapter.biases.iter().map(|bias| bias.values.len()).sum();
        assert_eq!(trainer.trained(), plain.trained() + numbers);
    }
    // A head reads the features: what lies behind them is not read, and its biases are not trained.
    let mut behind = biased();
    let Some(Op::Linear { bias, .. }) = behind.ops.last_mut() else { unreachable!() };
    *bias = None;
    behind.features = 14;
    let (trainer, _) = trained(&behind, with(class_config(), Bias::All, "attn.q"), classes());
    assert_eq!(trainer.learner().biases(), [down, key]);
}

/// Weight decay pulls factors and not biases: with a rate that is all decay they stay near the base's.
#[test]
fn biases_do_not_decay() {
    let network = biased();
    let run = |weight_decay: f64| {
        let mut config = with(config(), Bias::All, "attn.q");
        config.length = Length::Steps(1);
        config.optimizer.weight_decay = weight_decay;
        trained(&network, config, texts()).1
    };
    let (plain, decayed) = (run(0.0), run(10.0));
    assert_eq!(plain.biases, decayed.biases);
    assert_ne!(plain.sites, decayed.sites);
}

#[test]
fn a_resumed_run_and_a_run_beside_others_learn_the_same_biases() {
    let network = biased();
    let tasks = || {
        [
            (with(config(), Bias::All, "all-linear"), texts()),
            (with(config(), Bias::LoraOnly, "ffn.down"), texts()),
            (with(config(), Bias::None, "attn.q"), texts()),
            (with(class_config(), Bias::All, "attn.v"), classes()),
        ]
    };
    let alone = tasks().map(|(config, data)| trained(&network, config, data).1);
    assert!(alone[3].head.is_some() && alone[3].biases.len() == 3);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    for ((config, data), expected) in tasks().into_iter().zip(&alone) {
        // Before, and in, the quantization-aware part.
        for stop in [7, 22] {
            let mut trainer = Trainer::new(config.clone(), &network, data.clone()).unwrap();
            for _ in 0..stop {
                let _ = trainer.train_step().unwrap();
            }
            trainer.learner().save(&path).unwrap();
            let mut resumed = Trainer::new(config.clone(), &network, data.clone()).unwrap();
            resumed.resume(&path).unwrap();
            resumed.run(&mut (), None).unwrap();
            assert_eq!(&resumed.adapter().unwrap(), expected);
        }
    }
    let base = FrozenBase::new(&network, &Device::Cpu).unwrap();
    let learners = tasks().map(|(config, data)| Learner::new(&base, &network, config, data).unwrap());
    let mut many = ManyTrainer::new(base, learners.into());
    while !many.advance(&mut Quiet).is_empty() {}
    for (task, expected) in alone.iter().enumerate() {
        assert_eq!(&many.learner(task).adapter().unwrap(), expected, "task {task}");
    }
}

struct Quiet;

impl crate::train::ManyReporter for Quiet {
    fn event(&mut self, _: usize, _: &crate::train::Event<'_>) {}
}

#[test]
fn the_device_adds_the_biases_and_lets_go_of_them() {
    let network = biased();
    for (config, data) in [(config(), texts()), (class_config(), classes())] {
        let (trainer, adapter) = trained(&network, with(config, Bias::All, "all-linear"), data);
        let image = Image::build(&network, Layout::RowMajor, 4).unwrap();
        let device = |file: &[u8], mode| Simulator::new(image.clone())?.with_adapter(file.to_vec(), mode);
        let write = |adapter: &FloatAdapter| {
            export(adapter, &network, 3, |file| device(file, Mode::Streamed)?.self_test_digest())
                .unwrap()
                .file
        };
        let file = write(&adapter);
        let test = &trainer.data().test;
        let float = evaluate_float(trainer.model(), Some(&adapter), test).unwrap().value;
        let without = FloatAdapter { biases: Vec::new(), ..adapter.clone() };
        let unbiased = evaluate_float(trainer.model(), Some(&without), test).unwrap().value;
        let plain = Simulator::new(image.clone()).unwrap().evaluate(test).map(|metric| metric.value);
        for mode in [Mode::Streamed, Mode::Merged] {
            let device = device(&file, mode).unwrap();
            let found = device.evaluate(test).unwrap().value;
            assert!((found - float).abs() <= 0.03 * float, "{mode:?}: {found}, in float {float}");
            device.session(|engine| Ok(engine.self_test()?)).unwrap();
            if let Ok(plain) = plain {
                let found = device.without_adapter().evaluate(test).unwrap().value;
                assert_eq!(found.to_bits(), plain.to_bits());
            }
        }
        // The biases do something, and a file without them has another digest.
        if adapter.head.is_none() {
            assert!((unbiased - float).abs() > 1e-3 * float, "{unbiased} {float}");
        }
        assert_ne!(write(&without), file);
        // A file, and a PEFT folder, give back the very same numbers.
        let base = image.base().unwrap();
        let data = AdapterData::read(&Adapter::new(&file, &base).unwrap(), &base);
        let read = dequantize(&data, &network).unwrap();
        assert_eq!((&read.biases, read.config.bias), (&adapter.biases, Bias::All));
        let folder = tempfile::tempdir().unwrap();
        peft::write(&adapter, &network, folder.path()).unwrap();
        let read = peft::read(folder.path(), &network).unwrap();
        assert_eq!((&read.biases, read.config.bias), (&adapter.biases, Bias::All));
        assert_eq!(read.sites, adapter.sites);
    }
}

/// Tensors of a PEFT folder: names and shapes.
fn keys(folder: &std::path::Path) -> BTreeMap<String, Vec<usize>> {
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec())).collect()
}

/// Examples for any vocabulary of 40 ids.
fn some_classes() -> TaskData {
    let example = |at: u32| Example {
        sequence: Sequence::Tokens((0..4 + at % 3).map(|i| 3 + (at * 7 + i * 5) % 30).collect()),
        target: Target::Class(at as usize % 2),
    };
    let labels = vec!["a".into(), "b".into()];
    TaskData { train: (0..12).map(example).collect(), test: (0..4).map(example).collect(), labels, width: 0 }
}

#[test]
fn folders_name_biases_as_peft_does() {
    let short =
        |bias, modules: &str| TrainConfig { length: Length::Steps(3), ..with(class_config(), bias, modules) };
    for (family, bias, modules, names, absent) in [
        (
            "bert",
            Bias::LoraOnly,
            "query,attention.output.dense",
            vec![("encoder.layer.0.attention.self.query.base_layer.bias", 24)],
            vec!["encoder.layer.0.attention.self.key.bias", "embeddings.LayerNorm.bias"],
        ),
        (
            "bert",
            Bias::All,
            "query",
            vec![
                ("encoder.layer.0.attention.self.query.base_layer.bias", 24),
                ("encoder.layer.0.attention.self.key.bias", 24),
                ("encoder.layer.1.attention.output.LayerNorm.bias", 24),
                ("encoder.layer.1.output.LayerNorm.bias", 24),
                ("embeddings.LayerNorm.bias", 24),
                ("pooler.dense.bias", 24),
            ],
            vec!["encoder.layer.0.attention.self.query.bias"],
        ),
        (
            "gpt2",
            Bias::All,
            "c_attn.q",
            vec![
                ("h.0.attn.c_attn.base_layer.bias", 60),
                ("h.1.ln_1.bias", 20),
                ("h.1.ln_2.bias", 20),
                ("ln_f.bias", 20),
                ("h.0.mlp.c_proj.bias", 20),
            ],
            vec!["h.0.attn.c_attn.bias", "score.bias"],
        ),
        (
            "llama",
            Bias::All,
            "q_proj",
            vec![
                ("layers.0.self_attn.q_proj.base_layer.bias", 36),
                ("layers.0.self_attn.k_proj.bias", 12),
                ("layers.1.mlp.down_proj.bias", 24),
            ],
            vec!["score.bias", "layers.0.self_attn.q_proj.bias"],
        ),
    ] {
        let network = quantize(&import::load(&carried("hf-golden").join(family)).unwrap()).unwrap();
        let (_, adapter) = trained(&network, short(bias, modules), some_classes());
        let folder = tempfile::tempdir().unwrap();
        peft::write(&adapter, &network, folder.path()).unwrap();
        let found = keys(folder.path());
        let body = match family {
            "gpt2" => "transformer",
            "llama" => "model",
            body => body,
        };
        let full = |name: &str| {
            let body = if name == "score.bias" { String::new() } else { format!("{body}.") };
            format!("base_model.model.{body}{name}")
        };
        for (name, len) in names {
            assert_eq!(found.get(&full(name)), Some(&vec![len]), "{family} {name}: {found:?}");
        }
        for name in absent {
            assert!(!found.contains_key(&full(name)), "{family} {name}: {found:?}");
        }
        let read = peft::read(folder.path(), &network).unwrap();
        // What is the base's to the bit is not the adapter's.
        let base = |tensor: TensorId| numbers(&network.tensors[usize::from(tensor)]).into_owned();
        let own = adapter.biases.iter().filter(|bias| bias.values != base(bias.tensor));
        assert!(own.eq(&read.biases), "{family}");
        assert_eq!(read.head, adapter.head);
        assert_eq!(read.config.bias, bias);
    }
}

#[test]
fn a_base_that_only_hosts_run_trains_the_biases_of_its_sites() {
    let network = quantize(&import::load(&carried("hf-golden").join("deberta-v3")).unwrap()).unwrap();
    let config = with(class_config(), Bias::LoraOnly, "query_proj");
    let (_, adapter) = trained(&network, TrainConfig { length: Length::Steps(3), ..config }, some_classes());
    assert_eq!(changed(&network, &adapter).len(), adapter.sites.len());
    let folder = tempfile::tempdir().unwrap();
    peft::write(&adapter, &network, folder.path()).unwrap();
    assert_eq!(peft::read(folder.path(), &network).unwrap().biases, adapter.biases);
}
