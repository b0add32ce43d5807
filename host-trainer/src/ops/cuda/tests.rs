//! The kernels as a program, the GPU against the CPU on whole blocks, and bf16 against f32. Single operators are tested where
//! they are tested on the CPU, by the same bodies.

use candle_core::{DType, Device, Tensor, Var};

use super::super::{
    AttentionShape, LoraFactors, LoraGroup, RopeTable, StackedFactors, add, attention, cross_entropy,
    frozen_linear, gelu, layer_norm, lora_linear, rms_norm, rope, silu_mul, value_and_grad,
};
use super::kernels::program;
use crate::devices::{device, on_gpu};
use crate::ops;
use crate::rng::Rng;

/// Largest error of bf16 allowed, relative to the largest value: eight bits of a value, some twenty roundings in a row.
const TOLERANCE: f32 = 4e-2;

/// Needs NVRTC, but no GPU.
#[test]
fn every_kernel_compiles() {
    let program = program().unwrap();
    let typed = [
        "norm_forward",
        "norm_backward",
        "unary_forward",
        "unary_backward",
        "silu_mul_forward",
        "silu_mul_backward",
        "rope",
        "add_bias",
        "sum_rows",
        "add_product",
        "move_heads",
        "softmax_forward",
        "softmax_backward",
        "cross_entropy_forward",
        "cross_entropy_backward",
    ];
    let typed = typed.iter().flat_map(|name| [format!("{name}_f32"), format!("{name}_bf16")]);
    for name in typed.chain(["sum_all_f32", "adamw_squares", "adamw_update"].map(String::from)) {
        assert!(program.contains(&format!(".entry {name}(")), "{name}");
    }
}

#[test]
fn a_block_in_bf16_agrees_with_f32() {
    on_gpu(|| assert_close(&block(&device(), DType::BF16), &block(&device(), DType::F32), TOLERANCE));
}

#[test]
fn a_block_agrees_with_the_cpu() {
    on_gpu(|| assert_close(&block(&device(), DType::F32), &block(&Device::Cpu, DType::F32), 1e-4));
}

#[test]
fn a_classifier_agrees_with_the_cpu() {
    on_gpu(|| assert_close(&classifier(&device()), &classifier(&Device::Cpu), 1e-4));
}

/// Compares the loss and the gradients of two runs, relative to the largest value of each.
fn assert_close(found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (number, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len());
        let size = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert!(size > 0.0, "value {number} is zero everywhere");
        for (found, expected) in found.iter().zip(expected) {
            let error = (found - expected).abs();
            assert!(
                error <= tolerance * size,
                "value {number}: found {found}, expected {expected} (largest {size})"
            );
        }
    }
}

fn random(name: &str, shape: &[usize], device: &Device) -> Tensor {
    let mut rng = Rng::new(5, name);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| 0.5 * rng.normal()).collect();
    Tensor::from_vec(values, shape, device).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// What is in no block: moved rows, dropout, groups of tasks, trained weights and biases. The loss and all gradients.
fn classifier(device: &Device) -> Vec<Vec<f32>> {
    let (batch, seq, width, classes) = (3, 4, 6, 5);
    let rows = batch * (seq + 1);
    let frozen = |name: &str, shape: &[usize]| random(name, shape, device);
    let trained = |name: &str, shape: &[usize]| Var::from_tensor(&frozen(name, shape)).unwrap();
    let (token, head, bias) =
        (trained("token", &[width]), trained("head", &[classes, width]), trained("bias", &[classes]));
    // Two groups alike, rows of the base alone, and one with dropout.
    let (a, b) = (trained("a", &[2 + 2 + 3, width]), trained("b", &[width * 7]));
    let mask = frozen("mask", &[4, width]).abs().unwrap();
    let group = |rows, rank, scaling| LoraGroup { rows, rank, scaling, dropout_mask: None };
    let masked = LoraGroup { dropout_mask: Some(&mask), ..group(4, 3, 1.5) };
    let groups = [group(4, 2, 0.7), group(4, 2, 0.7), group(rows - 12, 0, 1.0), masked];
    let targets = Tensor::new(&[1u32, 4, 0, 2], &Device::Cpu).unwrap();
    let weights = Tensor::new(&[1.0f32, 0.5, 2.0, 1.0], &Device::Cpu).unwrap();
    let (loss, grads) = value_and_grad(|| {
        let x = ops::prepend_token(&frozen("x", &[batch * seq, width]), &token, seq)?;
        let x = ops::add_positions(&x, &frozen("table", &[seq + 2, width]), seq + 1)?;
        let lora = StackedFactors { a: &a, b: &b, groups: &groups };
        let y = ops::lora_linear_groups(&x, &frozen("w0", &[width, width]), None, &lora)?;
        let y = ops::mul(&y, &ops::tanh(&ops::gelu_erf(&ops::silu(&y)?)?)?)?;
        let pooled = ops::mean_pool(&y, seq + 1, &[5, 1, 3])?;
        let picked = ops::select_rows(&pooled, &[2, 0, 2, 1])?;
        cross_entropy(&ops::linear(&picked, &head, Some(&bias))?, &targets, &weights)
    })
    .unwrap();
    let grads = [&token, &head, &bias, &a, &b].map(|var| values(grads.get(var).unwrap()));
    [values(&loss)].into_iter().chain(grads).collect()
}

/// A block of a transformer with every kernel in it: its loss, and the gradients of its factors, which are f32 in any case.
fn block(device: &Device, kind: DType) -> Vec<Vec<f32>> {
    let (batch, seq, width, classes, rank) = (2, 9, 16, 11, 3);
    let rows = batch * seq;
    let random = |name: &str, shape: &[usize]| random(name, shape, device);
    // Rounded to bf16 for both, so that only what is computed differs.
    let frozen = |name: &str, shape: &[usize]| {
        let rounded = random(name, shape).to_dtype(DType::BF16).unwrap();
        rounded.to_dtype(kind).unwrap()
    };
    let a = Var::from_tensor(&random("a", &[rank, width])).unwrap();
    let b = Var::from_tensor(&random("b", &[width, rank])).unwrap();
    let norm = random("norm", &[width]);
    let positions: Vec<u32> = (0..rows as u32).map(|row| row % seq as u32).collect();
    let table = RopeTable::new(&positions, &[1.0, 0.1], device).unwrap();
    let (n_heads, n_kv_heads, head_size) = (4, 2, 4);
    let lengths = vec![seq, seq - 3];
    let shape =
        AttentionShape { batch, seq, n_heads, n_kv_heads, head_size, causal: true, scale: 0.5, lengths };
    let targets: Vec<u32> = (0..rows as u32).map(|row| row % classes as u32).collect();
    let targets = Tensor::from_vec(targets, rows, &Device::Cpu).unwrap();
    let weights = Tensor::ones(rows, DType::F32, &Device::Cpu).unwrap();
    let (loss, grads) = value_and_grad(|| {
        let x = frozen("x", &[rows, width]);
        let lora = LoraFactors { a: &a, b: &b, scaling: 0.7, dropout_mask: None };
        let q = lora_linear(&rms_norm(&x, &norm, 1e-5)?, &frozen("q", &[width, width]), None, &lora)?;
        let narrow = |name: &str| frozen_linear(&q, &frozen(name, &[n_kv_heads * head_size, width]), None);
        let y = attention(&rope(&q, &table)?, &rope(&narrow("k")?, &table)?, &narrow("v")?, &shape)?;
        let y = add(&y, &silu_mul(&q, &gelu(&y)?)?)?;
        let y = layer_norm(&y, &norm, &norm, 1e-5)?;
        let bias = random("bias", &[classes]);
        let logits = frozen_linear(&y, &frozen("head", &[classes, width]), Some(&bias))?;
        cross_entropy(&logits, &targets, &weights)
    })
    .unwrap();
    vec![values(&loss), values(grads.get(&a).unwrap()), values(grads.get(&b).unwrap())]
}
