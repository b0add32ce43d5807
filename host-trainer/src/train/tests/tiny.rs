//! A tiny random decoder, quantized, and data that it can learn.

use rankpatch_format::graph::Op;
use rankpatch_format::write::{Network, Tensor};

use crate::base::quantize;
use crate::lora::LoraConfig;
use crate::rng::Rng;
use crate::schedule::Decay;
use crate::train::{DeviceKind, Example, Length, Sequence, Target, TaskData, TrainConfig};

/// Ids of the network.
pub(super) const VOCAB: u16 = 11;

/// One block: attention with two heads over a width of 12, a gated feed-forward part of 10, a classifier. Not square
/// anywhere it can be avoided.
pub(super) fn network() -> Network {
    let mut rng = Rng::new(5, "tiny");
    let (mut tensors, mut tensor_names) = (Vec::new(), Vec::new());
    let mut matrix = |name: &str, rows: u32, cols: u32, spread: f32| {
        let data = (0..rows * cols).map(|_| spread * rng.normal()).collect();
        tensors.push(Tensor::Matrix { rows, cols, data });
        tensor_names.push(name.to_owned());
        tensors.len() as u16 - 1
    };
    let vocab = u32::from(VOCAB);
    let table = matrix("embedding", vocab, 12, 1.0);
    let names =
        ["layers.0.attn.q", "layers.0.attn.k", "layers.0.attn.v", "layers.0.ffn.gate", "layers.0.ffn.up"];
    let shapes = [(12, 12), (6, 12), (6, 12), (10, 12), (10, 12)];
    let [q, k, v, gate, up] = std::array::from_fn(|i| matrix(names[i], shapes[i].0, shapes[i].1, 0.3));
    let down = matrix("layers.0.ffn.down", 12, 10, 0.3);
    let classifier = matrix("classifier", vocab, 12, 0.3);
    let vector = |cols: u32| Tensor::Floats { rows: 1, cols, data: vec![1.0; cols as usize] };
    tensors.extend([vector(12), Tensor::Floats { rows: 1, cols: 3, data: vec![1.0, 0.3, 0.1] }]);
    tensor_names.extend(["norm".to_owned(), "inv_freq".to_owned()]);
    let (norm, inv_freq) = (tensors.len() as u16 - 2, tensors.len() as u16 - 1);
    let linear = |input, weight| Op::Linear { input, weight, bias: None };
    let ops = vec![
        Op::Embedding { table },
        Op::RmsNorm { input: 0, weight: norm, eps: 1e-5 },
        linear(1, q),
        linear(1, k),
        linear(1, v),
        Op::Rope { input: 2, inv_freq },
        Op::Rope { input: 3, inv_freq },
        Op::Attention { q: 5, k: 6, v: 4, n_heads: 2, n_kv_heads: 1, causal: true, scale: 0.408 },
        Op::Add { a: 0, b: 7 },
        linear(8, gate),
        linear(8, up),
        Op::Silu { input: 9 },
        Op::Mul { a: 11, b: 10 },
        linear(12, down),
        Op::Add { a: 8, b: 13 },
        linear(14, classifier),
    ];
    let site_names = names.into_iter().chain(["layers.0.ffn.down", "classifier"]).map(String::from).collect();
    let network = Network {
        name: "tiny".into(),
        ops,
        tensors,
        tensor_names,
        site_names,
        labels: Vec::new(),
        output: 15,
        features: 14,
        max_rows: 16,
        vocabulary: None,
    };
    quantize(&network).unwrap()
}

/// The same with biases at two sites, and at a LayerNorm before the classifier.
pub(super) fn biased() -> Network {
    let mut network = network();
    let mut rng = Rng::new(8, "biases");
    let mut bias = |cols: u32| {
        let data = (0..cols).map(|_| 0.2 * rng.normal()).collect();
        network.tensors.push(Tensor::Floats { rows: 1, cols, data });
        network.tensor_names.push(format!("bias.{cols}"));
        network.tensors.len() as u16 - 1
    };
    // The tensors are not in the order of the graph.
    let [norm, down, k, weight] = [12, 12, 6, 12].map(&mut bias);
    for (op, own) in [(3, k), (13, down)] {
        let Op::Linear { bias, .. } = &mut network.ops[op] else { unreachable!() };
        *bias = Some(own);
    }
    network.ops.insert(15, Op::LayerNorm { input: 14, weight, bias: norm, eps: 1e-5 });
    let Some(Op::Linear { input, .. }) = network.ops.last_mut() else { unreachable!() };
    *input = 15;
    (network.features, network.output) = (15, 16);
    network
}

/// Texts in which each id is the one before it plus 3 (modulo the vocabulary), of 2 to 9 ids.
pub(super) fn texts() -> TaskData {
    let mut rng = Rng::new(6, "texts");
    let mut text = || {
        let (first, len) = (rng.below(VOCAB.into()) as u32, 2 + rng.below(8) as u32);
        let ids = (0..len).map(|i| (first + 3 * i) % u32::from(VOCAB)).collect();
        Example {
            sequence: Sequence::Tokens(ids),
            target: Target::Next { given: 0, characters: len as usize - 1 },
        }
    };
    let train = (0..60).map(|_| text()).collect();
    let test = (0..20).map(|_| text()).collect();
    TaskData { train, test, labels: Vec::new(), width: 0 }
}

/// Sequences of random ids; the class says whether the sum of the ids is large.
pub(super) fn classes() -> TaskData {
    let mut rng = Rng::new(7, "classes");
    let mut example = || {
        let ids: Vec<u32> = (0..3 + rng.below(5)).map(|_| rng.below(VOCAB.into()) as u32).collect();
        let class = usize::from(ids.iter().filter(|id| **id > 5).count() * 2 > ids.len());
        Example { sequence: Sequence::Tokens(ids), target: Target::Class(class) }
    };
    let train = (0..80).map(|_| example()).collect();
    let test = (0..40).map(|_| example()).collect();
    TaskData { train, test, labels: vec!["low".into(), "high".into()], width: 0 }
}

/// A short run with alpha != rank and everything switched on.
pub(super) fn config() -> TrainConfig {
    TrainConfig {
        task: "tiny".into(),
        lora: LoraConfig { rank: 3, alpha: 6.0, dropout: 0.1, ..LoraConfig::default() },
        batch_size: 16,
        length: Length::Steps(60),
        learning_rate: 0.02,
        warmup_steps: 4,
        lr_scheduler_type: Decay::Linear,
        seed: 9,
        device: DeviceKind::Cpu,
        ..TrainConfig::default()
    }
}

/// The same for [`classes`].
pub(super) fn class_config() -> TrainConfig {
    let mut config = config();
    config.lora.modules_to_save = vec!["head".into()];
    config
}
