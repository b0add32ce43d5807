//! A head that starts as the output layer of its base: it has that layer's numbers, and tells what the base alone tells.

use candle_core::Device;
use rankpatch_format::adapter::Pooling;
use rankpatch_format::graph::Op;
use rankpatch_format::layout::Layout;
use rankpatch_format::link::Mode;
use rankpatch_format::write::{Network, Tensor};

use super::tiny::{VOCAB, class_config, classes, network};
use crate::base::Image;
use crate::executor::dequantize;
use crate::export::export;
use crate::rng::Rng;
use crate::sim::{Input, Simulator};
use crate::train::{FrozenBase, Learner, Sequence, Target, TrainConfig};

/// The outputs that are called as the two classes of the task.
const HIGH: usize = 2;
const LOW: usize = 7;

/// The tiny network with biases at its outputs.
fn base() -> Network {
    let mut network = network();
    let mut rng = Rng::new(12, "outputs");
    let data = (0..VOCAB).map(|_| 0.5 * rng.normal()).collect();
    let id = network.tensors.len() as u16;
    network.tensors.push(Tensor::Floats { rows: 1, cols: VOCAB.into(), data });
    network.tensor_names.push("classifier.bias".into());
    let Some(Op::Linear { bias, .. }) = network.ops.last_mut() else { unreachable!() };
    *bias = Some(id);
    network
}

fn learner(network: &Network, names: &[String]) -> crate::Result<Learner> {
    let config = TrainConfig { output_labels: names.to_vec(), pooling: Pooling::Last, ..class_config() };
    Learner::new(&FrozenBase::new(network, &Device::Cpu).unwrap(), network, config, classes())
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = (0..VOCAB).map(|output| format!("output {output}")).collect();
    (names[LOW], names[HIGH]) = ("low".into(), "high".into());
    names
}

#[test]
fn it_has_the_rows_of_the_outputs_with_the_names_of_its_classes() {
    let network = base();
    let head = learner(&network, &names()).unwrap().adapter().unwrap().head.unwrap();
    let tensor = |name: &str| {
        let id = network.tensor_names.iter().position(|found| found == name).unwrap();
        dequantize(&network.tensors[id]).into_owned()
    };
    let (weight, bias) = (tensor("classifier"), tensor("classifier.bias"));
    let row = |output: usize| &weight[12 * output..][..12];
    assert_eq!(head.labels, ["low", "high"]);
    assert_eq!(head.weight, [row(LOW), row(HIGH)].concat());
    assert_eq!(head.bias, [bias[LOW], bias[HIGH]]);
}

#[test]
fn the_base_alone_is_measured_with_it() {
    let network = base();
    let learner = learner(&network, &names()).unwrap();
    let alone = learner.base_alone(&network).unwrap().unwrap();
    assert!(alone.sites.is_empty());
    let plain = Simulator::new(Image::build(&network, Layout::RowMajor, 4).unwrap()).unwrap();
    let file = export(&alone, &network, 0, |_| Ok(0)).unwrap().file;
    let test = &learner.data().test;
    let found = plain.clone().with_adapter(file, Mode::Streamed).unwrap().evaluate(test).unwrap().value;
    let right = test.iter().filter(|example| {
        let Sequence::Tokens(ids) = &example.sequence else { unreachable!() };
        let ids: Vec<u16> = ids.iter().map(|id| *id as u16).collect();
        let logits = plain.outputs(&[Input::Tokens(&ids)]).unwrap().remove(0);
        example.target == Target::Class(usize::from(logits[HIGH] > logits[LOW]))
    });
    let expected = right.count() as f64 / test.len() as f64;
    // One of the 40 examples may lie on the border: the head has codes of its own.
    assert!((found - expected).abs() < 0.026, "{found} {expected}");
    assert!((0.1..0.9).contains(&expected), "{expected}: this shows nothing");
}

#[test]
fn names_that_do_not_fit_are_refused() {
    let network = base();
    let failure = |names: &[String]| learner(&network, names).unwrap_err().to_string();
    let few = failure(&["low".into(), "high".into()]);
    assert!(few.contains("11 names") && few.contains("found 2"), "{few}");
    let mut others = names();
    others[LOW] = "deep".into();
    let unknown = failure(&others);
    assert!(unknown.contains("low, a class of the task") && unknown.contains("deep"), "{unknown}");
    let mut pooled = base();
    pooled.output = 0;
    let odd = learner(&pooled, &names()).unwrap_err().to_string();
    assert!(odd.contains("a linear layer over its features"), "{odd}");
}
