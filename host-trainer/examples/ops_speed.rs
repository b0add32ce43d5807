//! Speed of the training operators: one LoRA step (forward, backward, AdamW) of a decoder shaped like stories260K.
//!
//! `cargo run -p rankpatch --example ops_speed` (the dev profile optimizes this package fully); the number of threads is
//! rayon's (`RAYON_NUM_THREADS`).
#![expect(clippy::print_stdout, reason = "the numbers are the product")]

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use rankpatch::ops::{self, AttentionShape, LoraFactors, RopeTable};
use rankpatch::optim::{AdamW, AdamWConfig, Param};
use rankpatch::rng::Rng;

const DIM: usize = 64;
const HIDDEN: usize = 172;
const LAYERS: usize = 5;
const HEADS: usize = 8;
const KV_HEADS: usize = 4;
const VOCAB: usize = 512;
const RANK: usize = 8;
const SCALING: f32 = 2.0;
const EPS: f32 = 1e-5;

fn main() -> anyhow::Result<()> {
    println!("threads {}", rayon::current_num_threads());
    for (rows, inner, out) in [(4096, 64, 64), (4096, 64, 172), (4096, 172, 64), (4096, 256, 256)] {
        measure_linear(rows, inner, out)?;
    }
    for (batch, seq, steps) in [(64, 16, 60), (16, 256, 15)] {
        measure(batch, seq, steps)?;
    }
    Ok(())
}

/// Rate of one low-rank layer alone: 3 products forward, 5 backward.
fn measure_linear(rows: usize, inner: usize, out: usize) -> anyhow::Result<()> {
    let mut rng = Rng::new(1, "linear");
    let mut matrix = |rows: usize, cols: usize| {
        let values: Vec<f32> = (0..rows * cols).map(|_| rng.normal()).collect();
        Tensor::from_vec(values, (rows, cols), &Device::Cpu)
    };
    let x = Var::from_tensor(&matrix(rows, inner)?)?;
    let layer = Layer {
        w0: matrix(out, inner)?,
        a: Var::from_tensor(&matrix(RANK, inner)?)?,
        b: Var::from_tensor(&matrix(out, RANK)?)?,
    };
    let ones = Tensor::ones((1, out), candle_core::DType::F32, &Device::Cpu)?;
    let mut best = [f64::INFINITY; 2];
    for _ in 0..100 {
        let start = Instant::now();
        layer.forward(&x)?;
        best[0] = best[0].min(start.elapsed().as_secs_f64());
        // The sum of all outputs is a loss that costs next to nothing.
        let start = Instant::now();
        ops::value_and_grad(|| {
            let sums = ops::frozen_linear(&layer.forward(&x)?, &ones, None)?;
            ops::mean_pool(&sums, rows, &[rows])
        })?;
        best[1] = best[1].min(start.elapsed().as_secs_f64());
    }
    let forward = 2.0 * rows as f64 * (inner * out + RANK * (inner + out)) as f64;
    let backward = 2.0 * rows as f64 * (inner * out + 2 * RANK * (inner + out)) as f64;
    println!(
        "lora_linear {rows} x {inner} -> {out}: forward {:.1} GFLOP/s, forward + backward {:.1} GFLOP/s",
        forward / best[0] / 1e9,
        (forward + backward) / best[1] / 1e9
    );
    Ok(())
}

/// A frozen linear layer and its factors.
struct Layer {
    w0: Tensor,
    a: Var,
    b: Var,
}

impl Layer {
    fn forward(&self, x: &Tensor) -> ops::Result<Tensor> {
        let lora = LoraFactors { a: &self.a, b: &self.b, scaling: SCALING, dropout_mask: None };
        ops::lora_linear(x, &self.w0, None, &lora)
    }
}

struct Decoder {
    table: Tensor,
    layers: Vec<BTreeMap<&'static str, Layer>>,
    norms: Vec<Tensor>,
    inv_freq: Vec<f32>,
}

impl Decoder {
    fn new(params: &mut BTreeMap<String, Param>) -> anyhow::Result<Self> {
        let mut rng = Rng::new(1, "base");
        let mut matrix = |rows: usize, cols: usize| {
            let bound = (cols as f32).sqrt().recip();
            let values: Vec<f32> = (0..rows * cols).map(|_| bound * rng.normal()).collect();
            Tensor::from_vec(values, (rows, cols), &Device::Cpu)
        };
        let kv = DIM / HEADS * KV_HEADS;
        let shapes = [
            ("q", DIM, DIM),
            ("k", kv, DIM),
            ("v", kv, DIM),
            ("o", DIM, DIM),
            ("gate", HIDDEN, DIM),
            ("up", HIDDEN, DIM),
            ("down", DIM, HIDDEN),
        ];
        let mut layers = Vec::new();
        for layer in 0..LAYERS {
            let mut parts = BTreeMap::new();
            for (name, out, inner) in shapes {
                let a = Var::from_vec(
                    Rng::new(1, name).kaiming_uniform(inner, RANK * inner),
                    (RANK, inner),
                    &Device::Cpu,
                )?;
                let b = Var::from_tensor(&(matrix(out, RANK)? * 0.1)?)?;
                params.insert(format!("layers.{layer}.{name}.lora_a"), Param::new(a.clone()));
                params.insert(format!("layers.{layer}.{name}.lora_b"), Param::new(b.clone()));
                parts.insert(name, Layer { w0: matrix(out, inner)?, a, b });
            }
            layers.push(parts);
        }
        let norms = (0..=2 * LAYERS).map(|_| Tensor::ones(DIM, candle_core::DType::F32, &Device::Cpu));
        let head = DIM / HEADS;
        Ok(Self {
            table: matrix(VOCAB, DIM)?,
            layers,
            norms: norms.collect::<Result<_, _>>()?,
            inv_freq: (0..head / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / head as f32)).collect(),
        })
    }

    fn logits(&self, ids: &Tensor, batch: usize, seq: usize) -> ops::Result<Tensor> {
        let positions: Vec<u32> = (0..batch).flat_map(|_| 0..seq as u32).collect();
        let rope = RopeTable::new(&positions, &self.inv_freq, &Device::Cpu)?;
        let shape = AttentionShape {
            batch,
            seq,
            n_heads: HEADS,
            n_kv_heads: KV_HEADS,
            head_size: DIM / HEADS,
            causal: true,
            scale: ((DIM / HEADS) as f32).sqrt().recip(),
            lengths: vec![],
        };
        let mut x = ops::embedding(&self.table, ids)?;
        for (parts, norms) in self.layers.iter().zip(self.norms.chunks(2)) {
            let normed = ops::rms_norm(&x, &norms[0], EPS)?;
            let q = ops::rope(&parts["q"].forward(&normed)?, &rope)?;
            let k = ops::rope(&parts["k"].forward(&normed)?, &rope)?;
            let v = parts["v"].forward(&normed)?;
            let attended = ops::attention(&q, &k, &v, &shape)?;
            x = ops::add(&x, &parts["o"].forward(&attended)?)?;
            let normed = ops::rms_norm(&x, &norms[1], EPS)?;
            let gated = ops::silu_mul(&parts["gate"].forward(&normed)?, &parts["up"].forward(&normed)?)?;
            x = ops::add(&x, &parts["down"].forward(&gated)?)?;
        }
        ops::frozen_linear(&ops::rms_norm(&x, &self.norms[2 * LAYERS], EPS)?, &self.table, None)
    }
}

fn measure(batch: usize, seq: usize, steps: usize) -> anyhow::Result<()> {
    let mut params = BTreeMap::new();
    let decoder = Decoder::new(&mut params)?;
    let mut optim = AdamW::new(params, AdamWConfig::default())?;
    let mut rng = Rng::new(1, "tokens");
    let rows = batch * seq;
    let mut tokens = || {
        let tokens: Vec<u32> = (0..rows).map(|_| rng.below(VOCAB as u64) as u32).collect();
        Tensor::from_vec(tokens, rows, &Device::Cpu)
    };
    let (ids, targets) = (tokens()?, tokens()?);
    let weights = Tensor::ones(rows, candle_core::DType::F32, &Device::Cpu)?;
    let loss = || ops::cross_entropy(&decoder.logits(&ids, batch, seq)?, &targets, &weights);

    let mut best = [f64::INFINITY; 3];
    let (mut first, mut last) = (0.0, 0.0);
    for step in 0..steps {
        let start = Instant::now();
        let value = loss()?.to_scalar::<f32>()?;
        best[0] = best[0].min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let (_, grads) = ops::value_and_grad(loss)?;
        best[1] = best[1].min(start.elapsed().as_secs_f64());
        optim.step(&grads, 1e-3)?;
        best[2] = best[2].min(start.elapsed().as_secs_f64());
        if step == 0 {
            first = value;
        }
        last = value;
    }
    let start = Instant::now();
    loss()?.backward()?;
    let candle = start.elapsed().as_secs_f64();
    let rate = |seconds: f64| rows as f64 / seconds / 1000.0;
    println!(
        "batch {batch:3} x {seq:3}: forward {:6.1} k tokens/s, forward + backward {:6.1} (by candle's walk {:6.1}), with \
         AdamW {:6.1} ({:.1} ms a step); loss {first:.3} -> {last:.3}",
        rate(best[0]),
        rate(best[1]),
        rate(candle),
        rate(best[2]),
        best[2] * 1e3,
    );
    Ok(())
}
