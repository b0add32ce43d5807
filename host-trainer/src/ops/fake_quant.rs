//! Fake quantization of low-rank factors: the forward sees what the device will see, the gradient passes straight through.

use candle_core::Tensor;

use super::graph::{Backward, HostArgs, Output, Sink, node, with_host};
use super::{Result, check};
use crate::quant;

/// The factors as the exporter will write them, dequantized.
///
/// `a` [rank, in], `b` [out, rank], `row_scale` [out] (the base weight's row scales). Gives `(a', b')` such that
/// `scaling * b' a'` is `row_scale[o] * sum over j of B[o, j] c[j] A[j, i]` with the codes and scales of
/// [`quant::quantize_lora`]. The gradient of `a'` is given to `a` unchanged, and that of `b'` to `b`.
///
/// # Errors
/// If a shape or type does not fit, or the factors cannot be quantized (see [`quant::QuantError`]).
pub fn fake_quant_lora(a: &Tensor, b: &Tensor, row_scale: &[f32], scaling: f32) -> Result<(Tensor, Tensor)> {
    let op = "fake_quant_lora";
    let (rank, inner) = check::matrix(op, "lora_a", a)?;
    let out = row_scale.len();
    check::shape(op, "lora_b", b, &[out, rank])?;
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let device = a.device();
    let cpu = candle_core::Device::Cpu;
    let (new_a, new_b) = with_host(&[a.detach().to_device(&cpu)?], &b.detach().to_device(&cpu)?, |a, b| {
        let codes = quant::quantize_lora(a[0], b, rank, inner, out, row_scale, scaling)?;
        Ok::<_, quant::QuantError>(codes.dequantize(row_scale, scaling))
    })??;
    let straight = |x: &Tensor, values: Vec<f32>, shape: (usize, usize)| {
        let values = if device.is_cpu() {
            Output::Host(values)
        } else {
            Output::Device(Tensor::from_vec(values, shape, device)?)
        };
        node(&[x], values, shape, || StraightThrough)
    };
    Ok((straight(&a, new_a, (rank, inner))?, straight(&b, new_b, (out, rank))?))
}

struct StraightThrough;

impl Backward for StraightThrough {
    fn name(&self) -> &'static str {
        "fake_quant_lora"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        sinks[0].pass(args.grad.take());
    }

    fn device(&self, _: &[Tensor], grad: &Tensor, _: &[bool]) -> candle_core::Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(grad.clone())])
    }
}
