//! Networks with random weights.
//!
//! Matrices, position tables and the class token are normal with the standard deviation `init_std`; what is added to the residual
//! stream (`attn.o`, `ffn.down`) has it divided by sqrt(2 layers), as in GPT-2, so that the stream starts as wide however deep the
//! network is. Norms start at one, biases at zero. Each tensor has its own stream of the seed.

use rankpatch_format::graph::Op;
use rankpatch_format::write::{Network, Vocabulary};

use super::config::{Decoder, Encoder};
use crate::Result;
use crate::import::build::{Builder, Frame};
use crate::import::llama2c;
use crate::rng::Rng;

/// As in KWT.
const LAYER_NORM_EPS: f32 = 1e-6;

struct Start {
    seed: u64,
    init_std: f32,
    n_layers: usize,
}

impl Start {
    fn weights(&self, name: &str, count: usize) -> Vec<f32> {
        let deep = name.ends_with("attn.o") || name.ends_with("ffn.down");
        let std = if deep { self.init_std / (2.0 * self.n_layers as f32).sqrt() } else { self.init_std };
        let mut rng = Rng::new(self.seed, &format!("pretrain/{name}"));
        (0..count).map(|_| std * rng.normal()).collect()
    }
}

pub(super) fn decoder(name: &str, shape: &Decoder, vocabulary: Vocabulary, seed: u64) -> Result<Network> {
    let &Decoder {
        vocab_size, dim, hidden_dim, n_layers, n_heads, context, shared_classifier, init_std, ..
    } = shape;
    let n_kv_heads = shape.n_kv_heads.unwrap_or(n_heads);
    let start = Start { seed, init_std, n_layers };
    let config = llama2c::Config {
        dim,
        hidden_dim,
        n_layers,
        n_heads,
        n_kv_heads,
        vocab_size,
        seq_len: context,
        shared_classifier,
    };
    llama2c::graph(name.into(), &config, vocabulary, |name, count| {
        if name.ends_with("norm") { vec![1.0; count] } else { start.weights(name, count) }
    })
}

/// An encoder as far as the class token's row; its head is the task's, which becomes the output at the end of the run. `columns` are
/// the powers of two by which the features' columns are multiplied first.
pub(super) fn encoder(
    name: &str,
    shape: &Encoder,
    columns: Vec<f32>,
    max_rows: usize,
    seed: u64,
) -> Result<Network> {
    let &Encoder { dim, hidden_dim, n_layers, n_heads, init_std, .. } = shape;
    let start = Start { seed, init_std, n_layers };
    let width = columns.len();
    let mut net = Builder::default();
    let linear = |net: &mut Builder, name: &str, input, rows: usize, cols: usize, biased: bool| {
        net.linear(name, input, rows, start.weights(name, rows * cols), biased.then(|| vec![0.0; rows]))
    };
    let norm = |net: &mut Builder, name: &str, input| {
        let weight = net.floats(format!("{name}.weight"), 1, vec![1.0; dim]);
        let bias = net.floats(format!("{name}.bias"), 1, vec![0.0; dim]);
        net.op(Op::LayerNorm { input, weight, bias, eps: LAYER_NORM_EPS })
    };
    let x = net.op(Op::Features { width: width as u32 });
    let weight = net.floats("embed.scale", 1, columns);
    let x = net.op(Op::Scale { input: x, weight });
    let x = linear(&mut net, "embed.patch", x, dim, width, true);
    let token = net.floats("embed.class_token", 1, start.weights("embed.class_token", dim));
    let x = net.op(Op::PrependToken { input: x, token });
    let positions = max_rows + 1;
    let table = net.floats("embed.position", positions, start.weights("embed.position", positions * dim));
    let mut x = net.op(Op::AddPosition { input: x, table });
    for layer in 0..n_layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let q = linear(&mut net, &name("attn.q"), x, dim, dim, false);
        let k = linear(&mut net, &name("attn.k"), x, dim, dim, false);
        let v = linear(&mut net, &name("attn.v"), x, dim, dim, false);
        let scale = 1.0 / ((dim / n_heads) as f32).sqrt();
        let heads = n_heads as u16;
        let mut a =
            net.op(Op::Attention { q, k, v, n_heads: heads, n_kv_heads: heads, causal: false, scale });
        if layer + 1 == n_layers {
            // Behind the last attention only the class token's row is read.
            a = net.op(Op::SelectRow { input: a, row: 0 });
            x = net.op(Op::SelectRow { input: x, row: 0 });
        }
        let o = linear(&mut net, &name("attn.o"), a, dim, dim, true);
        let sum = net.op(Op::Add { a: x, b: o });
        let h = norm(&mut net, &name("norm1"), sum);
        let up = linear(&mut net, &name("ffn.up"), h, hidden_dim, dim, true);
        let up = net.op(Op::Gelu { input: up });
        let down = linear(&mut net, &name("ffn.down"), up, dim, hidden_dim, true);
        let sum = net.op(Op::Add { a: h, b: down });
        x = norm(&mut net, &name("norm2"), sum);
    }
    net.finish(Frame {
        name: name.into(),
        labels: Vec::new(),
        output: x,
        features: x,
        max_rows: max_rows as u32,
        vocabulary: None,
    })
}
