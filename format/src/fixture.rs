//! Small random networks and adapters for tests: odd sizes, ranks that differ from alpha, every operator. Not part of
//! the format.
#![allow(clippy::indexing_slicing, clippy::expect_used, reason = "test data of fixed sizes")]

use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;

use half::f16;

use crate::adapter::{Pooling, SelfTest};
use crate::digest::XorShift32;
use crate::graph::{Op, TensorId, ValueId};
use crate::layout::Layout;
use crate::tokenizer::TokenizerInfo;
use crate::write::{AdapterData, BiasData, HeadData, Network, PatchData, Tensor, Vocabulary};

/// Builds a network operator by operator.
struct Builder {
    network: Network,
    random: XorShift32,
}

impl Builder {
    fn new(name: &str, max_rows: u32, seed: u32) -> Self {
        let network = Network {
            name: name.into(),
            ops: Vec::new(),
            tensors: Vec::new(),
            tensor_names: Vec::new(),
            site_names: Vec::new(),
            labels: Vec::new(),
            output: 0,
            features: 0,
            max_rows,
            vocabulary: None,
        };
        Self { network, random: XorShift32::new(seed) }
    }

    fn uniform(&mut self) -> f32 {
        self.random.feature() / 32.0
    }

    fn code(&mut self) -> i8 {
        ((self.random.next_u32() >> 9) % 255) as i16 as i8
    }

    fn tensor(&mut self, name: &str, tensor: Tensor) -> TensorId {
        self.network.tensors.push(tensor);
        self.network.tensor_names.push(name.into());
        self.network.tensors.len() as TensorId - 1
    }

    fn floats(&mut self, name: &str, rows: u32, cols: u32, around: f32) -> TensorId {
        let data = (0..rows * cols).map(|_| around + 0.3 * self.uniform()).collect();
        self.tensor(name, Tensor::Floats { rows, cols, data })
    }

    fn codes(&mut self, name: &str, rows: u32, cols: u32) -> TensorId {
        let codes = (0..rows * cols).map(|_| self.code().max(-127)).collect();
        let scales = (0..rows).map(|_| 0.004 + 0.002 * self.uniform()).collect();
        self.tensor(name, Tensor::Codes { rows, cols, codes, scales })
    }

    fn op(&mut self, op: Op) -> ValueId {
        self.network.ops.push(op);
        self.network.ops.len() as ValueId - 1
    }

    fn linear(&mut self, name: &str, input: ValueId, rows: u32, cols: u32, bias: bool) -> ValueId {
        let weight = self.codes(name, rows, cols);
        let bias = bias.then(|| self.floats(&alloc::format!("{name}.bias"), 1, rows, 0.0));
        self.network.site_names.push(name.into());
        self.op(Op::Linear { input, weight, bias })
    }
}

/// A causal decoder: 39 byte-and-piece tokens at most 300, width 12, two query heads on one key head, hidden width 10, two layers.
pub fn decoder() -> Network {
    let mut b = Builder::new("tiny-decoder", 24, 5);
    let vocabulary = vocabulary();
    let vocab_size = vocabulary.pieces.len() as u32;
    let table = b.codes("embed", vocab_size, 12);
    let inv_freq = b.tensor(
        "inv_freq",
        Tensor::Floats { rows: 1, cols: 3, data: vec![1.0, 0.046_415_888, 0.002_154_434_7] },
    );
    let mut x = b.op(Op::Embedding { table });
    for layer in 0..2 {
        let name = |part: &str| alloc::format!("layers.{layer}.{part}");
        let weight = b.floats(&name("norm1"), 1, 12, 1.0);
        let normed = b.op(Op::RmsNorm { input: x, weight, eps: 1e-5 });
        let q = b.linear(&name("attn.q"), normed, 12, 12, false);
        let k = b.linear(&name("attn.k"), normed, 6, 12, false);
        let v = b.linear(&name("attn.v"), normed, 6, 12, layer == 1);
        let q = b.op(Op::Rope { input: q, inv_freq });
        let k = b.op(Op::Rope { input: k, inv_freq });
        let y = b.op(Op::Attention { q, k, v, n_heads: 2, n_kv_heads: 1, causal: true, scale: 0.408_248_3 });
        let y = b.linear(&name("attn.o"), y, 12, 12, false);
        x = b.op(Op::Add { a: x, b: y });
        let weight = b.floats(&name("norm2"), 1, 12, 1.0);
        let normed = b.op(Op::RmsNorm { input: x, weight, eps: 1e-5 });
        let gate = b.linear(&name("ffn.gate"), normed, 10, 12, false);
        let gate = b.op(Op::Silu { input: gate });
        let up = b.linear(&name("ffn.up"), normed, 10, 12, false);
        let hidden = b.op(Op::Mul { a: gate, b: up });
        let y = b.linear(&name("ffn.down"), hidden, 12, 10, true);
        x = b.op(Op::Add { a: x, b: y });
    }
    let weight = b.floats("norm", 1, 12, 1.0);
    b.network.features = b.op(Op::RmsNorm { input: x, weight, eps: 1e-5 });
    let features = b.network.features;
    b.network.site_names.push("lm_head".into());
    b.network.output = b.op(Op::Linear { input: features, weight: table, bias: None });
    b.network.vocabulary = Some(vocabulary);
    b.network
}

/// [`encoder`] behind a front end: frames of 60 samples every 25 become its 9 features, from 8 bands.
pub fn listener() -> Network {
    let mut network = encoder();
    network.name = "tiny-listener".into();
    let mut b = Builder { network, random: XorShift32::new(4) };
    let window = (0..60).map(|i| (0.2 + 0.8 * b.uniform().abs() + 0.01 * i as f32) / 32_768.0).collect();
    let window = b.tensor("frontend.window", Tensor::Floats { rows: 1, cols: 60, data: window });
    // Overlapping bands of 1 to 40 bins, one without any, the last up to the end of the spectrum.
    let bands = [[1, 1], [1, 3], [2, 5], [0, 0], [5, 17], [16, 40], [40, 40], [216, 40]];
    let bins: u32 = bands.iter().map(|[_, bins]| bins).sum();
    let bands = bands.into_iter().flatten().map(|number| number as f32).collect();
    let bands = b.tensor("frontend.bands", Tensor::Floats { rows: 8, cols: 2, data: bands });
    let mel = (0..bins).map(|_| b.uniform().abs()).collect();
    let mel = b.tensor("frontend.mel", Tensor::Floats { rows: 1, cols: bins, data: mel });
    let dct = b.floats("frontend.dct", 9, 4, 0.1);
    b.network.ops[0] =
        Op::Mfcc { sample_rate: 8000, frame: 60, hop: 25, floor: 1e-9, window, bands, mel, dct };
    b.network
}

/// A bidirectional encoder: 9 features, width 15, three heads, hidden width 22, two post-norm layers, 5 outputs.
pub fn encoder() -> Network {
    let mut b = Builder::new("tiny-encoder", 13, 9);
    let x = b.op(Op::Features { width: 9 });
    let weight = b.floats("scale", 1, 9, 0.2);
    let x = b.op(Op::Scale { input: x, weight });
    let x = b.linear("embed", x, 15, 9, true);
    let token = b.floats("class_token", 1, 15, 0.0);
    let x = b.op(Op::PrependToken { input: x, token });
    let table = b.floats("positions", 14, 15, 0.0);
    let mut x = b.op(Op::AddPosition { input: x, table });
    for layer in 0..2 {
        let name = |part: &str| alloc::format!("layers.{layer}.{part}");
        let q = b.linear(&name("attn.q"), x, 15, 15, false);
        let k = b.linear(&name("attn.k"), x, 15, 15, false);
        let v = b.linear(&name("attn.v"), x, 15, 15, false);
        let y = b.op(Op::Attention { q, k, v, n_heads: 3, n_kv_heads: 3, causal: false, scale: 0.447_213_6 });
        let y = b.linear(&name("attn.o"), y, 15, 15, true);
        let y = b.op(Op::Add { a: y, b: x });
        let (weight, bias) = (b.floats(&name("norm1.w"), 1, 15, 1.0), b.floats(&name("norm1.b"), 1, 15, 0.0));
        x = b.op(Op::LayerNorm { input: y, weight, bias, eps: 1e-6 });
        let y = b.linear(&name("ffn.up"), x, 22, 15, true);
        let y = b.op(Op::Gelu { input: y });
        let y = b.linear(&name("ffn.down"), y, 15, 22, true);
        let y = b.op(Op::Add { a: x, b: y });
        let (weight, bias) = (b.floats(&name("norm2.w"), 1, 15, 1.0), b.floats(&name("norm2.b"), 1, 15, 0.0));
        x = b.op(Op::LayerNorm { input: y, weight, bias, eps: 1e-6 });
    }
    let class = b.op(Op::SelectRow { input: x, row: 0 });
    let mean = b.op(Op::MeanPool { input: x });
    b.network.features = b.op(Op::Add { a: class, b: mean });
    let features = b.network.features;
    b.network.output = b.linear("head", features, 5, 15, true);
    b.network.labels = (0..5).map(|i| alloc::format!("class {i}")).collect();
    b.network
}

/// Three special pieces, 256 bytes, then letters and some merges.
fn vocabulary() -> Vocabulary {
    let mut pieces: Vec<(Vec<u8>, f32)> =
        ["<unk>", "<s>", "</s>"].iter().map(|piece| (piece.as_bytes().to_vec(), 0.0)).collect();
    pieces.extend((0..=255u8).map(|byte| (vec![byte], 0.0)));
    let learned = [" ", "a", "b", "c", "ab", "bc", " a", "abc", "é", "ca", "cab"];
    let first = pieces.len() as u16;
    pieces.extend(learned.iter().zip(1u8..).map(|(piece, i)| (piece.as_bytes().to_vec(), -f32::from(i))));
    let searchable = (first..pieces.len() as u16).collect();
    let vocab_size = pieces.len() as u32;
    let info =
        TokenizerInfo { offset: 0, len: 0, vocab_size, bos: 1, eos: 2, byte_base: 3, prefix_space: true };
    Vocabulary { pieces, searchable, info }
}

/// An adapter for some sites of `network`: (site, rank), with random factors whose update is about `strength` times the
/// base's weights. `head` gives the outputs of a task head. The digest of the self-test is not right yet.
pub fn adapter(
    network: &Network,
    sites: &[(u16, usize)],
    head: Option<usize>,
    strength: f32,
    seed: u32,
) -> AdapterData {
    let mut b = Builder::new("", 1, seed);
    let shapes: Vec<(usize, usize)> = network
        .sites()
        .map(|(_, weight)| (weight.shape().rows as usize, weight.shape().cols as usize))
        .collect();
    let patches = sites
        .iter()
        .map(|&(site, rank)| {
            let (rows, cols) = shapes.get(usize::from(site)).copied().unwrap_or((3, 3));
            PatchData {
                site,
                scales: (0..rank)
                    .map(|_| f16::from_f32(strength * (1.5 + b.uniform()) * 0.01 / rank.max(1) as f32))
                    .collect(),
                lora_a: (0..rank * cols).map(|_| b.code().max(-127)).collect(),
                lora_b: (0..rank * rows).map(|_| b.code().max(-127)).collect(),
            }
        })
        .collect();
    let shapes = network.shapes().expect("a valid network");
    let width = shapes[usize::from(network.features)].width as usize;
    let pooled = shapes[usize::from(network.features)].rows == crate::graph::Rows::One;
    let head = head.map(|n_out| HeadData {
        pooling: if pooled { Pooling::Last } else { Pooling::Mean },
        codes: (0..n_out * width).map(|_| b.code().max(-127)).collect(),
        scales: (0..n_out).map(|_| f16::from_f32(0.01 + 0.005 * b.uniform())).collect(),
        bias: (0..n_out).map(|_| b.uniform()).collect(),
        labels: (0..n_out).map(|i| i.to_string()).collect::<Vec<String>>(),
    });
    AdapterData {
        task: "tiny".into(),
        base_id: network.id(),
        sequence: 7,
        alpha: 3.0,
        patches,
        biases: Vec::new(),
        head,
        self_test: SelfTest { seed: 11, rows: 5, digest: 0 },
    }
}

/// Other values for every bias of `network`.
pub fn biases(network: &Network, seed: u32) -> Vec<BiasData> {
    let mut b = Builder::new("", 1, seed);
    let tensors: alloc::collections::BTreeSet<TensorId> = network.ops.iter().filter_map(Op::bias).collect();
    let len = |tensor: TensorId| network.tensors[usize::from(tensor)].shape().cols;
    let bias = |tensor| BiasData { tensor, values: (0..len(tensor)).map(|_| b.uniform()).collect() };
    tensors.into_iter().map(bias).collect()
}

/// The network with all numbers that may be halves rounded to halves.
pub fn halved(mut network: Network) -> Network {
    let halvable = network.halvable();
    for (tensor, halvable) in network.tensors.iter_mut().zip(halvable) {
        let numbers = match tensor {
            Tensor::Floats { data, .. } | Tensor::Codes { scales: data, .. } if halvable => data,
            _ => continue,
        };
        numbers.iter_mut().for_each(|number| *number = f16::from_f32(*number).to_f32());
    }
    network
}

/// The image of `network` with all numbers as f32, also those that are halves.
pub fn image_in_f32(network: &Network, layout: Layout, pass_rows: u32) -> Vec<u8> {
    network
        .write_halves(layout, pass_rows, &vec![false; network.tensors.len()])
        .expect("a network of this module")
}

/// `bytes` at an address that is a multiple of 16, which images need.
#[derive(Debug, Clone)]
pub struct Aligned {
    words: Vec<u128>,
    len: usize,
}

impl Aligned {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut words = vec![0u128; bytes.len().div_ceil(16)];
        bytemuck::cast_slice_mut::<u128, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { words, len: bytes.len() }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}
