//! Training operators on candle tensors, each with a hand-written backward.
//!
//! Conventions: activations are f32 `[rows, width]`, row-major, with `rows = batch * sequence length`; weights are
//! `[out, in]` as in PEFT and PyTorch. An operator gives a gradient to an input exactly if that input is, or depends on, a
//! [`candle_core::Var`]; frozen weights cost nothing in the backward.
//!
//! | operator | signature | gradients to |
//! | --- | --- | --- |
//! | [`lora_linear`] | `(x, w0, bias: Option, &LoraFactors { a, b, scaling, dropout_mask })` | x, bias, a, b; never w0 |
//! | [`lora_linear_groups`] | `(x, w0, bias: Option, &StackedFactors { a, b, groups })` | as `lora_linear` |
//! | [`linear`] | `(x, w, bias: Option)` | x, w, bias |
//! | [`frozen_linear`] | `(x, w0, bias: Option)` | x |
//! | [`embedding`] | `(table, ids: u32 tensor)` | table |
//! | [`rms_norm`], [`layer_norm`] | `(x, weight, [bias,] eps)` | x, weight, bias |
//! | [`rope`] | `(x, &RopeTable::new(positions, inv_freq, device))` | x |
//! | [`attention`] | `(q, k, v, &AttentionShape)` | q, k, v |
//! | [`attention_batches`] | `(q, k, v, &[AttentionShape])` | q, k, v |
//! | [`relative_attention`] | `(q, k, v, &AttentionShape, &RelativePositions)` | q, k, v |
//! | [`silu`], [`gelu`], [`gelu_erf`], [`tanh`] | `(x)` | x |
//! | [`silu_mul`] | `(gate, up)`, `silu(gate) * up` in one pass | gate, up |
//! | [`add`], [`mul`] | `(a, b)` | a, b |
//! | [`add_bias`] | `(x, bias)` | x, bias |
//! | [`add_positions`] | `(x, table, seq)` | x, table |
//! | [`prepend_token`] | `(x, token, seq)` | x, token |
//! | [`append_table`] | `(x, table, batches)` | x, table |
//! | [`concat_rows`] | `(parts)` | each part |
//! | [`neighbours`] | `(x, seq, lengths: &[usize], reach)` | x |
//! | [`select_rows`] | `(x, rows: &[u32])` | x |
//! | [`slice_rows`] | `(x, start, count)` | x |
//! | [`mean_pool`] | `(x, seq, lengths: &[usize])` | x |
//! | [`cross_entropy`] | `(logits, targets: u32 tensor, weights: f32 tensor)`, a scalar | logits |
//! | [`cross_entropy_groups`] | `(logits, targets, weights, groups: &[usize])`, a sum of means, and each | logits |
//! | [`fake_quant_lora`] | `(a, b, row_scale: &[f32], scaling)`, gives `(a', b')` | a, b, straight through |
//!
//! Train with [`value_and_grad`]: `let (loss, grads) = value_and_grad(|| forward(...))?`. It is faster and smaller than
//! `loss.backward()`, which works too. Do not put other candle operators (not even `reshape`) between these on the
//! path from a `Var` to the loss: gradients stay right, but the fast walk is given up for candle's.
//!
//! On the CPU every operator is one fused pass, cut into pieces that depend on shapes alone: the bits do not depend on
//! the number of threads. On an NVIDIA GPU (feature `cuda`) they are kernels and cuBLAS products with the same backward;
//! activations may be bf16 there. `*_composed` are the same formulas in candle's operators, the oracles of the tests.

#![allow(
    clippy::inline_always,
    reason = "a kernel gets vector instructions only where it is inlined; see `simd`"
)]

mod attention;
mod check;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod elementwise;
mod error;
mod fake_quant;
mod gemm;
mod graph;
mod linear;
mod loss;
pub(crate) mod math;
mod neighbours;
mod norm;
mod parallel;
mod rope;
mod rows;
mod simd;
#[cfg(test)]
mod tests;

pub use attention::{
    AttentionShape, RelativePositions, attention, attention_batches, attention_composed, bucket,
    relative_attention, relative_attention_composed,
};
pub use elementwise::{
    add, add_bias, gelu, gelu_composed, gelu_erf, gelu_erf_composed, mul, silu, silu_composed, silu_mul,
    tanh, tanh_composed,
};
pub use error::{OpError, Result};
pub use fake_quant::fake_quant_lora;
pub use graph::value_and_grad;
pub use linear::lora::{
    LoraFactors, LoraGroup, StackedFactors, lora_linear, lora_linear_composed, lora_linear_groups,
    lora_linear_groups_composed,
};
pub use linear::{frozen_linear, linear, linear_composed};
pub use loss::{GroupLosses, cross_entropy, cross_entropy_composed, cross_entropy_groups};
pub use neighbours::{neighbours, neighbours_composed};
pub use norm::{layer_norm, layer_norm_composed, rms_norm, rms_norm_composed};
pub use rope::{RopeTable, rope, rope_composed};
pub use rows::{
    add_positions, append_table, concat_rows, embedding, mean_pool, mean_pool_composed, prepend_token,
    select_rows, slice_rows,
};
