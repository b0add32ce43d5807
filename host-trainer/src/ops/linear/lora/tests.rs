//! The way of devices without kernels, on the CPU, where it can be compared.

use candle_core::{Device, Tensor};

use super::{Backward as _, Dims, Group, LoraLinear, forward_device, host};
use crate::rng::Rng;

fn random(name: &str, shape: &[usize]) -> Tensor {
    let mut rng = Rng::new(3, name);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (found, expected) = (values(found), values(expected));
    let size = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= 2e-5 * size, "{what}: found {found}, expected {expected}");
    }
}

#[test]
fn the_composed_way_computes_what_the_fused_one_does() {
    let (rows, inner, out) = (130, 5, 7);
    let dims = Dims { rows, inner, out };
    let group = |rows, rank, scaling, mask| Group { rows, rank, scaling, mask };
    let mask = random("mask", &[99, inner]);
    let groups =
        || vec![group(30, 2, 0.7, None), group(1, 0, 1.0, None), group(99, 3, 1.9, Some(mask.clone()))];
    let (x, w0) = (random("x", &[rows, inner]), random("w0", &[out, inner]));
    let (a, b) = (random("a", &[5, inner]), random("b", &[5 * out]));
    let (y, z) = forward_device(&x, &w0, &a, &b, &groups()).unwrap();
    let (fused_y, fused_z) = host::forward(&x, &w0, &a, &b, &groups(), None, dims).unwrap();
    let fused_y = Tensor::from_vec(fused_y, (rows, out), &Device::Cpu).unwrap();
    let fused_z = Tensor::from_vec(fused_z, 30 * 2 + 99 * 3, &Device::Cpu).unwrap();
    assert_close("y", &y, &fused_y);
    assert_close("z", &z, &fused_z);

    let dy = random("dy", &[rows, out]);
    let node = LoraLinear { w0: w0.clone(), groups: groups(), z, dims };
    let found = node.device(&[x.clone(), a.clone(), b.clone()], &dy, &[true, true, true]).unwrap();
    let var = |t: &Tensor| candle_core::Var::from_tensor(t).unwrap().into_inner();
    let inputs = [var(&x), var(&a), var(&b)];
    let mask = mask.clone();
    let stacked: Vec<super::LoraGroup> = node
        .groups
        .iter()
        .map(|group| super::LoraGroup {
            rows: group.rows,
            rank: group.rank,
            scaling: group.scaling,
            dropout_mask: group.mask.as_ref().map(|_| &mask),
        })
        .collect();
    let lora = super::StackedFactors { a: &inputs[1], b: &inputs[2], groups: &stacked };
    let fused = super::lora_linear_groups(&inputs[0], &w0, None, &lora).unwrap();
    let grads = fused.mul(&dy).unwrap().sum_all().unwrap().backward().unwrap();
    for ((found, input), what) in found.iter().zip(&inputs).zip(["dx", "da", "db"]) {
        assert_close(what, found.as_ref().unwrap(), grads.get(input).unwrap());
    }
}
