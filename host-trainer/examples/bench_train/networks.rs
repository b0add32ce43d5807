//! Networks with random weights in the shapes of published models.

use anyhow::{Result, bail, ensure};
use rankpatch::rng::Rng;
use rankpatch_format::graph::{Op, TensorId, ValueId};
use rankpatch_format::write::{Network, Tensor};

use super::Config;

const EPS: f32 = 1e-5;

/// The network of a configuration.
pub(crate) fn build(config: &Config) -> Result<Network> {
    ensure!(config.vocab <= 1 << 16, "expected at most 65536 ids, found {}", config.vocab);
    let mut net = Parts::new();
    let table = net.matrix(config.vocab, config.dim);
    let x = net.op(Op::Embedding { table });
    let features = match config.family.as_str() {
        "llama" => llama(&mut net, config, x),
        "gpt2" => gpt2(&mut net, config, x),
        other => bail!("expected the family llama or gpt2, found {other:?}"),
    };
    let output = net.site("lm_head".into(), Op::Linear { input: features, weight: table, bias: None });
    let network = Network {
        name: config.family.clone(),
        ops: net.ops,
        tensor_names: (0..net.tensors.len()).map(|id| format!("tensor.{id}")).collect(),
        tensors: net.tensors,
        site_names: net.sites,
        labels: Vec::new(),
        output,
        features,
        max_rows: config.seq as u32,
        vocabulary: None,
    };
    network.shapes()?;
    Ok(network)
}

struct Parts {
    rng: Rng,
    ops: Vec<Op>,
    tensors: Vec<Tensor>,
    sites: Vec<String>,
}

impl Parts {
    fn new() -> Self {
        Self { rng: Rng::new(2, "base"), ops: Vec::new(), tensors: Vec::new(), sites: Vec::new() }
    }

    fn op(&mut self, op: Op) -> ValueId {
        self.ops.push(op);
        (self.ops.len() - 1) as ValueId
    }

    fn site(&mut self, name: String, op: Op) -> ValueId {
        self.sites.push(name);
        self.op(op)
    }

    fn tensor(&mut self, tensor: Tensor) -> TensorId {
        self.tensors.push(tensor);
        (self.tensors.len() - 1) as TensorId
    }

    fn random(&mut self, rows: usize, cols: usize) -> Vec<f32> {
        let bound = (cols as f32).sqrt().recip();
        (0..rows * cols).map(|_| self.rng.uniform_in(-bound, bound)).collect()
    }

    fn matrix(&mut self, rows: usize, cols: usize) -> TensorId {
        let data = self.random(rows, cols);
        self.tensor(Tensor::Matrix { rows: rows as u32, cols: cols as u32, data })
    }

    /// A table that stays in float.
    fn table(&mut self, rows: usize, cols: usize) -> TensorId {
        let data = self.random(rows, cols);
        self.tensor(Tensor::Floats { rows: rows as u32, cols: cols as u32, data })
    }

    fn vector(&mut self, data: Vec<f32>) -> TensorId {
        self.tensor(Tensor::Floats { rows: 1, cols: data.len() as u32, data })
    }

    fn linear(&mut self, name: String, input: ValueId, out: usize, inner: usize, bias: bool) -> ValueId {
        let weight = self.matrix(out, inner);
        let bias = bias.then(|| self.vector(vec![0.01; out]));
        self.site(name, Op::Linear { input, weight, bias })
    }
}

fn llama(net: &mut Parts, config: &Config, mut x: ValueId) -> ValueId {
    let &Config { dim, hidden, layers, heads, kv_heads, .. } = config;
    let head = dim / heads;
    let inv_freq = (0..head / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / head as f32)).collect();
    let inv_freq = net.vector(inv_freq);
    let rms_norm = |net: &mut Parts, input| {
        let weight = net.vector(vec![1.0; dim]);
        net.op(Op::RmsNorm { input, weight, eps: EPS })
    };
    for layer in 0..layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let h = rms_norm(net, x);
        let q = net.linear(name("attn.q"), h, dim, dim, false);
        let k = net.linear(name("attn.k"), h, kv_heads * head, dim, false);
        let v = net.linear(name("attn.v"), h, kv_heads * head, dim, false);
        let q = net.op(Op::Rope { input: q, inv_freq });
        let k = net.op(Op::Rope { input: k, inv_freq });
        let attention = net.op(attention(config, q, k, v));
        let o = net.linear(name("attn.o"), attention, dim, dim, false);
        x = net.op(Op::Add { a: x, b: o });
        let h = rms_norm(net, x);
        let gate = net.linear(name("ffn.gate"), h, hidden, dim, false);
        let gate = net.op(Op::Silu { input: gate });
        let up = net.linear(name("ffn.up"), h, hidden, dim, false);
        let gated = net.op(Op::Mul { a: gate, b: up });
        let down = net.linear(name("ffn.down"), gated, dim, hidden, false);
        x = net.op(Op::Add { a: x, b: down });
    }
    rms_norm(net, x)
}

fn gpt2(net: &mut Parts, config: &Config, x: ValueId) -> ValueId {
    let &Config { dim, hidden, layers, seq, .. } = config;
    let positions = net.table(seq, dim);
    let mut x = net.op(Op::AddPosition { input: x, table: positions });
    let layer_norm = |net: &mut Parts, input| {
        let (weight, bias) = (net.vector(vec![1.0; dim]), net.vector(vec![0.0; dim]));
        net.op(Op::LayerNorm { input, weight, bias, eps: EPS })
    };
    for layer in 0..layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let h = layer_norm(net, x);
        let [q, k, v] = ["attn.q", "attn.k", "attn.v"].map(|part| net.linear(name(part), h, dim, dim, true));
        let attention = net.op(attention(config, q, k, v));
        let o = net.linear(name("attn.o"), attention, dim, dim, true);
        x = net.op(Op::Add { a: x, b: o });
        let h = layer_norm(net, x);
        let up = net.linear(name("ffn.up"), h, hidden, dim, true);
        let up = net.op(Op::Gelu { input: up });
        let down = net.linear(name("ffn.down"), up, dim, hidden, true);
        x = net.op(Op::Add { a: x, b: down });
    }
    layer_norm(net, x)
}

fn attention(config: &Config, q: ValueId, k: ValueId, v: ValueId) -> Op {
    let head = (config.dim / config.heads) as f32;
    let (n_heads, n_kv_heads) = (config.heads as u16, config.kv_heads as u16);
    Op::Attention { q, k, v, n_heads, n_kv_heads, causal: true, scale: head.sqrt().recip() }
}
