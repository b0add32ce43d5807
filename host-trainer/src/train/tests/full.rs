//! Full fine-tuning: every weight learns, runs repeat themselves and resume, and what comes out is another base.

use candle_core::Device;

use super::tiny::{class_config, classes, config, network, texts};
use crate::base::{Image, quantize};
use crate::executor::{Batch, Model};
use crate::import;
use crate::sim::Simulator;
use crate::train::{
    FullyTrained, Length, Method, MetricName, TaskData, TrainConfig, Trainer, evaluate_float,
};
use rankpatch_format::fixture;
use rankpatch_format::layout::Layout;
use rankpatch_format::write::{Network, Tensor};

fn full(config: TrainConfig) -> TrainConfig {
    TrainConfig { method: Method::Full, length: Length::Steps(40), learning_rate: 5e-3, ..config }
}

fn trained(config: TrainConfig, network: &Network, data: TaskData) -> (Trainer, FullyTrained) {
    let mut trainer = Trainer::new(config, network, data).unwrap();
    trainer.run(&mut (), None).unwrap();
    let result = FullyTrained::of(trainer.learner(), trainer.model(), network).unwrap();
    (trainer, result)
}

fn numbers(network: &Network) -> Vec<u32> {
    let values = network.tensors.iter().flat_map(|tensor| match tensor {
        Tensor::Floats { data, .. } | Tensor::Matrix { data, .. } => data.clone(),
        Tensor::Codes { .. } => panic!("a float network"),
    });
    values.map(f32::to_bits).collect()
}

#[test]
fn every_weight_learns_and_the_frozen_base_stays() {
    let base = network();
    let (trainer, FullyTrained { network, head }) = trained(full(config()), &base, texts());
    assert!(head.is_none());
    let before = Model::new(&base, &Device::Cpu).unwrap();
    for (id, name) in base.tensor_names.iter().enumerate() {
        let id = id as u16;
        let moved = before.numbers(id).unwrap() != trainer.model().numbers(id).unwrap();
        assert_eq!(
            moved,
            name != "inv_freq",
            "{name}: rotary frequencies are constants, all else is trained"
        );
    }
    // Embedding 11 * 12, attention 12 * 12 + 2 * 6 * 12, feed-forward 3 * 10 * 12, classifier 11 * 12, norm 12.
    assert_eq!(trainer.trained(), 132 + 288 + 360 + 132 + 12);
    assert_eq!(trainer.first_quantized_step(), 40, "there are no factors to round");

    let frozen = evaluate_float(&before, None, &texts().test).unwrap();
    let found = evaluate_float(trainer.model(), None, &texts().test).unwrap();
    assert_eq!(found.name, MetricName::BitsPerCharacter);
    assert!(found.value < 0.5 * frozen.value, "from {frozen:?} to {found:?}");
    // What was written is what was measured, in float to the bit.
    let again = Model::new(&network, &Device::Cpu).unwrap();
    assert_eq!(evaluate_float(&again, None, &texts().test).unwrap(), found);
}

/// The same gradients as those of the operators on their own, which tests there compare with finite differences: here that of
/// the loss along the direction of one step of plain descent.
#[test]
fn a_step_goes_down_the_loss_as_far_as_its_gradient_says() {
    let config = TrainConfig { length: Length::Steps(1), warmup_steps: 0, ..full(config()) };
    let loss = |rate: f64| {
        let config = TrainConfig { learning_rate: rate, length: Length::Steps(2), ..config.clone() };
        // Both steps see all examples, so the second has the loss after the first.
        let config = TrainConfig { batch_size: 60, ..config };
        let mut trainer = Trainer::new(config, &network(), texts()).unwrap();
        let first = trainer.train_step().unwrap();
        (first.loss, trainer.train_step().unwrap().loss)
    };
    // AdamW's first step moves every number by the rate against its gradient's sign.
    let ((start, small), (_, large)) = (loss(1e-5), loss(2e-5));
    let (small, large) = (start - small, start - large);
    assert!(small > 0.0 && (large / small - 2.0).abs() < 0.1, "{small} {large}");
}

#[test]
fn runs_repeat_themselves_on_any_number_of_threads_and_resume() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let config = TrainConfig { length: Length::Steps(10), ..full(class_config()) };
            numbers(&trained(config, &network(), classes()).1.network)
        })
    };
    let one = run(1);
    assert_eq!(one, run(1));
    assert_eq!(one, run(3));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let config = || TrainConfig { length: Length::Steps(10), save_steps: 6, ..full(class_config()) };
    let mut whole = Trainer::new(config(), &network(), classes()).unwrap();
    whole.run(&mut (), Some(&path)).unwrap();
    let mut resumed = Trainer::new(config(), &network(), classes()).unwrap();
    resumed.resume(&path).unwrap();
    assert_eq!(resumed.step(), 6);
    resumed.run(&mut (), None).unwrap();
    let result = FullyTrained::of(resumed.learner(), resumed.model(), &network()).unwrap();
    assert_eq!(numbers(&result.network), one);
    let lora = TrainConfig { method: Method::Lora, ..config() };
    let error = Trainer::new(lora, &network(), classes()).unwrap().resume(&path).unwrap_err().to_string();
    assert!(error.contains("method of the saved run"), "{error}");
}

/// A head over the mean of the rows becomes the output of the network, which then runs on the device's code without an adapter.
#[test]
fn a_head_becomes_the_output_and_the_network_survives_its_folder() {
    let base = network();
    let config = TrainConfig { length: Length::Steps(80), learning_rate: 1e-2, ..full(class_config()) };
    let (trainer, result) = trained(config, &base, classes());
    let FullyTrained { network, head } = result;
    assert!(head.is_none());
    assert_eq!(network.labels, ["low", "high"]);
    assert_eq!(network.site_names.last().unwrap(), "head");
    assert!(!network.tensor_names.iter().any(|name| name == "classifier"), "nothing reads it any more");
    let adapter = trainer.adapter().unwrap();
    let found = evaluate_float(trainer.model(), Some(&adapter), &classes().test).unwrap();
    assert!(found.value > 0.7, "{found:?}");
    let model = Model::new(&network, &Device::Cpu).unwrap();
    assert_eq!(evaluate_float(&model, None, &classes().test).unwrap(), found);

    let folder = tempfile::tempdir().unwrap();
    for (path, bytes) in import::network::contents(&network, None, folder.path()).unwrap() {
        crate::files::write_atomically(&path, &bytes).unwrap();
    }
    let read = import::load(folder.path()).unwrap();
    assert_eq!(read, network);
    let image = Image::build(&read, Layout::RowMajor, 4).unwrap();
    let device = Simulator::new(image).unwrap().evaluate(&classes().test).unwrap();
    // int8 weights and activations: one of 40 examples may fall on the other side.
    assert!((device.value - found.value).abs() <= 0.051, "{device:?} {found:?}");
}

/// The last row has no operator of its own: such a head stays beside the network.
#[test]
fn a_head_over_the_last_row_stays_beside() {
    let config = TrainConfig { pooling: rankpatch_format::adapter::Pooling::Last, ..full(class_config()) };
    let (_, FullyTrained { network, head }) = trained(config, &self::network(), classes());
    let head = head.unwrap();
    assert_eq!((head.labels.len(), head.weight.len(), head.bias.len()), (2, 2 * 12, 2));
    let folder = tempfile::tempdir().unwrap();
    for (path, bytes) in import::network::contents(&network, Some(&head), folder.path()).unwrap() {
        crate::files::write_atomically(&path, &bytes).unwrap();
    }
    assert_eq!(import::load(folder.path()).unwrap(), network);
    let bytes = std::fs::read(folder.path().join("network.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("task.head.weight").unwrap().shape(), [2, 12]);
}

/// Position tables, class tokens, biases and the features' scale of an encoder; a vocabulary that goes out and in.
#[test]
fn encoders_train_and_vocabularies_are_kept() {
    let encoder = quantize(&fixture::encoder()).unwrap();
    let model = Model::trainable(&encoder, &Device::Cpu).unwrap();
    let names = |head: bool| -> Vec<&str> {
        model.variables(head).keys().map(|id| encoder.tensor_names[usize::from(*id)].as_str()).collect()
    };
    assert!(names(true).len() < names(false).len(), "{:?} {:?}", names(true), names(false));
    let width = model.input_width();
    let values: Vec<f32> = (0..3 * width).map(|i| (i as f32 * 0.7).sin()).collect();
    let batch = Batch::features(&[values], width);
    let (_, grads) = crate::ops::value_and_grad(|| -> crate::Result<_> {
        let outputs = model.forward(&batch, &std::collections::BTreeMap::new(), None)?;
        let target = candle_core::Tensor::new(&[1u32], &Device::Cpu)?;
        let weight = candle_core::Tensor::new(&[1f32], &Device::Cpu)?;
        Ok(crate::ops::cross_entropy(&outputs, &target, &weight)?)
    })
    .unwrap();
    for (id, var) in model.variables(false) {
        assert!(grads.get(&var).is_some(), "{}", encoder.tensor_names[usize::from(id)]);
    }

    let decoder = fixture::decoder();
    let float = |tensor: &Tensor| match tensor {
        Tensor::Codes { rows, cols, .. } => {
            let data = crate::executor::dequantize(tensor).into_owned();
            Tensor::Matrix { rows: *rows, cols: *cols, data }
        }
        other => other.clone(),
    };
    let network = Network { tensors: decoder.tensors.iter().map(float).collect(), ..decoder };
    let folder = tempfile::tempdir().unwrap();
    for (path, bytes) in import::network::contents(&network, None, folder.path()).unwrap() {
        crate::files::write_atomically(&path, &bytes).unwrap();
    }
    assert!(network.vocabulary.is_some());
    assert_eq!(import::load(folder.path()).unwrap(), network);
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused =
        |config: TrainConfig| Trainer::new(config, &network(), texts()).map(|_| ()).unwrap_err().to_string();
    let error = refused(TrainConfig { bf16: true, ..full(config()) });
    assert!(error.contains("bf16: expected false with method = \"full\""), "{error}");
    let text = "task = \"t\"\nbase = \"b\"\ndataset = \"names\"\ndata = \"d\"\nmethod = \"full\"\nexplained_variance = 0.9\n";
    let error = TrainConfig::parse(text, "t.toml", std::path::Path::new(""), &[]).unwrap_err().to_string();
    assert!(error.contains("explained_variance: expected method = \"lora\" with it"), "{error}");
    let shared = crate::train::FrozenBase::new(&network(), &Device::Cpu).unwrap();
    let error =
        crate::train::Learner::new(&shared, &network(), full(config()), texts()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("a base of its own for each task"), "{error}");
}
