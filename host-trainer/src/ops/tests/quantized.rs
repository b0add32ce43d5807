//! Fake quantization inside the graph.

use super::*;
use crate::quant;

on_each_device!(
    the_forward_is_what_the_codes_stand_for,
    the_gradient_passes_straight_through,
    training_can_leave_a_zero_b,
);

const RANK: usize = 3;
const INNER: usize = 13;
const OUT: usize = 10;
const SCALING: f32 = 16.0 / RANK as f32;

fn row_scale() -> Vec<f32> {
    values(&random("w0", &[OUT, INNER]))
        .chunks(INNER)
        .map(|row| row.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0)
        .collect()
}

fn the_forward_is_what_the_codes_stand_for() {
    let (a, b) = (random("a", &[RANK, INNER]), (random("b", &[OUT, RANK]) * 0.01).unwrap());
    let row_scale = row_scale();
    let (new_a, new_b) = fake_quant_lora(&a, &b, &row_scale, SCALING).unwrap();
    let delta = values(&(new_b.matmul(&new_a).unwrap() * f64::from(SCALING)).unwrap());
    let codes =
        quant::quantize_lora(&values(&a), &values(&b), RANK, INNER, OUT, &row_scale, SCALING).unwrap();
    let largest = delta.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    for o in 0..OUT {
        for i in 0..INNER {
            let sum: f64 = (0..RANK)
                .map(|j| {
                    f64::from(codes.b[o * RANK + j])
                        * f64::from(codes.c[j])
                        * f64::from(codes.a[j * INNER + i])
                })
                .sum();
            let device = f64::from(row_scale[o]) * sum;
            let found = f64::from(delta[o * INNER + i]);
            assert!((found - device).abs() < 1e-6 * f64::from(largest), "[{o}, {i}]: {found} {device}");
        }
    }
}

fn the_gradient_passes_straight_through() {
    let (a, b) = (variable("a", &[RANK, INNER]), variable("b", &[OUT, RANK]));
    let (x, w0) = (random("x", &[20, INNER]), random("w0", &[OUT, INNER]));
    let row_scale = row_scale();
    let forward = |a: &Tensor, b: &Tensor| {
        own_loss(&lora_linear(&x, &w0, None, &LoraFactors { a, b, scaling: SCALING, dropout_mask: None })?)
    };
    let quantized = || {
        let (new_a, new_b) = fake_quant_lora(&a, &b, &row_scale, SCALING)?;
        forward(&new_a, &new_b)
    };
    let own = differentiate(quantized).unwrap();
    assert!(own.own_walk);
    let by_candle = quantized().unwrap().backward().unwrap();
    // What the quantized factors would get as variables is what the factors get.
    let (new_a, new_b) = fake_quant_lora(&a.detach(), &b.detach(), &row_scale, SCALING).unwrap();
    let (new_a, new_b) = (Var::from_tensor(&new_a).unwrap(), Var::from_tensor(&new_b).unwrap());
    let expected = forward(&new_a, &new_b).unwrap().backward().unwrap();
    for (factor, quantized) in [(&a, &new_a), (&b, &new_b)] {
        assert_ne!(bits(factor), bits(quantized), "quantization moves values");
        assert_close("own walk", grad(&own.grads, factor), grad(&expected, quantized), 1e-6);
        assert_close("candle", grad(&by_candle, factor), grad(&expected, quantized), 1e-6);
    }
}

fn training_can_leave_a_zero_b() {
    let a = variable("a", &[RANK, INNER]);
    let b = Var::zeros((OUT, RANK), candle_core::DType::F32, &device()).unwrap().into_inner();
    let (x, w0) = (random("x", &[20, INNER]), random("w0", &[OUT, INNER]));
    let own = differentiate(|| {
        let (a, b) = fake_quant_lora(&a, &b, &row_scale(), SCALING)?;
        own_loss(&lora_linear(
            &x,
            &w0,
            None,
            &LoraFactors { a: &a, b: &b, scaling: SCALING, dropout_mask: None },
        )?)
    })
    .unwrap();
    assert!(values(grad(&own.grads, &b)).iter().any(|g| g.abs() > 1e-3), "b must be able to start");
    assert!(values(grad(&own.grads, &a)).iter().all(|&g| g == 0.0));
}
