//! Every operator against its composed formula and against finite differences, on both ways to differentiate.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::graph::{device_gradients, differentiate};
use super::*;
use crate::devices::{device, on_each_device};
use crate::rng::Rng;

mod groups;
mod linear;
mod others;
mod products;
mod quantized;
mod relative;
mod walk;

/// Largest error allowed, relative to the largest value: f32 sums of some hundred terms in another order.
const TOLERANCE: f32 = 2e-5;

/// Standard normal numbers.
fn random(name: &str, shape: &[usize]) -> Tensor {
    let mut rng = Rng::new(7, name);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal()).collect();
    Tensor::from_vec(values, shape, &device()).unwrap()
}

/// The same as a variable.
fn variable(name: &str, shape: &[usize]) -> Tensor {
    Var::from_tensor(&random(name, shape)).unwrap().into_inner()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (values(found), values(expected));
    let size = expected.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let error = (found - expected).abs();
        assert!(
            error <= tolerance * size,
            "{what}[{i}]: found {found}, expected {expected} (largest {size})"
        );
    }
}

/// A loss that only our operators make: the sum of `y` with fixed random weights, divided by the number of rows.
fn own_loss(y: &Tensor) -> Result<Tensor> {
    let (rows, width) = y.dims2()?;
    let weighted = mul(y, &random("loss", &[rows, width]))?;
    let sums =
        frozen_linear(&weighted, &Tensor::ones((1, width), candle_core::DType::F32, &device())?, None)?;
    mean_pool(&sums, rows, &[rows])
}

/// The same from candle's operators.
fn candle_loss(y: &Tensor) -> Tensor {
    let weighted = y.mul(&random("loss", y.dims())).unwrap();
    (weighted.sum_all().unwrap() / y.dim(0).unwrap() as f64).unwrap()
}

/// The same in f64.
fn exact_loss(y: &Tensor) -> f64 {
    let weights = values(&random("loss", y.dims()));
    let sum: f64 = values(y).iter().zip(weights).map(|(y, w)| f64::from(*y) * f64::from(w)).sum();
    sum / y.dim(0).unwrap() as f64
}

/// Checks the value, and the gradients of every tensor in `inputs`, of `fused` against `composed` and finite differences;
/// that both ways to differentiate agree; and that one and two threads give the same bits.
fn check_operator(
    name: &str,
    inputs: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor> + Sync,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let y = fused(inputs).unwrap();
    let oracle = composed(inputs).unwrap();
    assert_close(name, &y, &oracle, TOLERANCE);
    let oracle_grads = candle_loss(&oracle).backward().unwrap();
    let candle_grads = candle_loss(&y).backward().unwrap();
    let own = differentiate(|| own_loss(&fused(inputs)?)).unwrap();
    assert!(own.own_walk, "{name}: the recorded walk must be taken");
    let exact = exact_loss(&y);
    assert!((f64::from(values(&own.loss)[0]) - exact).abs() < 1e-4 * exact.abs().max(1.0), "{name}: loss");
    for (i, input) in inputs.iter().enumerate() {
        if !input.is_variable() {
            assert!(own.grads.get(input).is_none(), "{name}: input {i} is frozen");
            assert!(candle_grads.get(input).is_none(), "{name}: input {i} is frozen");
            continue;
        }
        let expected = oracle_grads.get(input).unwrap();
        let what = format!("{name}: gradient of input {i}");
        assert_close(&what, candle_grads.get(input).unwrap(), expected, TOLERANCE);
        assert_close(&what, own.grads.get(input).unwrap(), expected, TOLERANCE);
        check_differences(&what, inputs, i, expected, &fused);
    }
    check_device_gradients(name, inputs, &fused, &oracle_grads);
    check_threads(name, inputs, &fused);
}

/// Checks the backward for GPUs, where it is made of candle's operators, on the device of the test.
fn check_device_gradients(
    name: &str,
    inputs: &[Tensor],
    fused: &impl Fn(&[Tensor]) -> Result<Tensor>,
    expected: &GradStore,
) {
    let dims = fused(inputs).unwrap().dims().to_vec();
    let grad = (random("loss", &dims) / dims[0] as f64).unwrap();
    let forward = || fused(inputs).map_err(candle_core::Error::wrap);
    let grads = match device_gradients(forward, grad) {
        Ok(grads) => grads,
        // It has a kernel there, and this is the node of the CPU.
        Err(candle_core::Error::BackwardNotSupported { .. }) => return,
        Err(error) => panic!("{name}: {error}"),
    };
    for (i, input) in inputs.iter().enumerate() {
        let found = grads.get(input);
        assert_eq!(found.is_some(), input.is_variable(), "{name}: gradient of input {i} on a device");
        if let Some(found) = found {
            let what = format!("{name}: gradient of input {i} on a device");
            assert_close(&what, found, expected.get(input).unwrap(), TOLERANCE);
        }
    }
}

/// Central differences at a few random places, with a step that balances curvature against rounding.
fn check_differences(
    what: &str,
    inputs: &[Tensor],
    index: usize,
    grad: &Tensor,
    fused: &impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    const STEP: f32 = 4e-3;
    let grad = values(grad);
    let size = grad.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    let mut rng = Rng::new(11, what);
    for _ in 0..12 {
        let place = rng.below(grad.len() as u64) as usize;
        let moved = |by: f32| {
            let mut changed: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
            let mut values = values(&inputs[index]);
            values[place] += by;
            changed[index] = Tensor::from_vec(values, inputs[index].shape(), &device()).unwrap();
            exact_loss(&fused(&changed).unwrap())
        };
        let found = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
        let error = (found - f64::from(grad[place])).abs();
        assert!(
            error < 6e-3 * f64::from(size),
            "{what}[{place}]: difference {found}, gradient {}",
            grad[place]
        );
    }
}

fn check_threads(name: &str, inputs: &[Tensor], fused: &(impl Fn(&[Tensor]) -> Result<Tensor> + Sync)) {
    if !device().is_cpu() {
        return;
    }
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let y = fused(inputs).unwrap();
            let own = differentiate(|| own_loss(&fused(inputs)?)).unwrap();
            let grads = inputs.iter().filter_map(|input| own.grads.get(input)).map(bits).collect::<Vec<_>>();
            (bits(&y), bits(&own.loss), grads)
        })
    };
    let one = run(1);
    assert_eq!(one, run(1), "{name}: two runs differ");
    assert_eq!(one, run(2), "{name}: one and two threads differ");
    assert_eq!(one, run(3), "{name}: one and three threads differ");
}

fn grad<'a>(grads: &'a GradStore, x: &Tensor) -> &'a Tensor {
    grads.get(x).expect("a gradient")
}
