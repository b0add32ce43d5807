//! Linear layers: trained, frozen, and ([`lora`]) with low-rank factors beside a frozen weight.

use candle_core::Tensor;
use rayon::prelude::*;

use super::gemm::{Mat, Packed, Target, multiply, outer};
use super::graph::{Backward, HostArgs, Output, Sink, node, with_values};
use super::parallel::sum_in_order;
use super::{Result, check};

pub(super) mod lora;

/// Rows that one thread multiplies at a time: a multiple of the kernels' tiles, and few enough that small batches
/// still make several pieces.
const ROWS: usize = 96;

/// `y = x w^T + bias`.
///
/// `x` [rows, in], `w` [out, in], `bias` [out]; gives [rows, out]. Each of the three gets a gradient exactly if it is (or
/// depends on) a `Var`; for a frozen weight nothing of its size is ever computed.
///
/// # Errors
/// If a shape or type does not fit.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let dims = Dims::check("linear", x, w, bias)?;
    if !x.device().is_cpu() {
        return linear_on_device(x, w, bias, &dims);
    }
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    let mut y = vec![0.0; dims.rows * dims.out];
    let packed = with_values(&w, |w| Packed::transposed(w, dims.out, dims.inner))?;
    let (frozen_bias, bias) = split_bias(bias)?;
    with_values(&x, |x| {
        y.par_chunks_mut(ROWS * dims.out).zip(x.par_chunks(ROWS * dims.inner)).for_each(|(y, x)| {
            let target = with_bias(y, dims.out, frozen_bias.as_deref());
            multiply(target, &[(Mat::new(x, dims.inner), &packed)]);
        });
    })?;
    finish_linear(&x, &w, bias, dims, Output::Host(y))
}

/// `y = x w0^T + bias` with everything but `x` frozen, even if it is a `Var`.
///
/// # Errors
/// If a shape or type does not fit.
pub fn frozen_linear(x: &Tensor, w0: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear(x, &w0.detach(), bias.map(Tensor::detach).as_ref())
}

/// The formula of [`linear`] in plain candle operators.
///
/// # Errors
/// If a shape or type does not fit.
pub fn linear_composed(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&w.t()?)?;
    Ok(match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    })
}

#[derive(Clone, Copy)]
struct Dims {
    rows: usize,
    inner: usize,
    out: usize,
}

impl Dims {
    fn check(op: &'static str, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (rows, inner) = check::matrix(op, "x", x)?;
        let (out, _) = check::matrix(op, "the weight", w)?;
        check::shape(op, "the weight", w, &[out, inner])?;
        if let Some(bias) = bias {
            check::shape(op, "the bias", bias, &[out])?;
        }
        check::value(op, "the weight's width", inner > 0 && out > 0, || "at least 1".into(), inner.min(out))?;
        Ok(Self { rows, inner, out })
    }
}

fn finish_linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, dims: Dims, y: Output) -> Result<Tensor> {
    let shape = (dims.rows, dims.out);
    let y = if w.track_op() {
        node(&[x, w], y, shape, || Linear { frozen: None, dims })?
    } else {
        node(&[x], y, shape, || Linear { frozen: Some(w.clone()), dims })?
    };
    match bias {
        Some(bias) => super::elementwise::add_bias(&y, bias),
        None => Ok(y),
    }
}

fn linear_on_device(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, dims: &Dims) -> Result<Tensor> {
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    let y = product(&x.detach(), &w.detach())?;
    finish_linear(&x, &w, bias, *dims, Output::Device(y))
}

/// `x w^T` in the type of `x`, on a device.
fn product(x: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
    x.matmul(&w.to_dtype(x.dtype())?.t()?)
}

/// The gradient `dy^T x` for a trained weight, on a device.
fn weight_gradient(grad: &Tensor, x: &Tensor) -> candle_core::Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return super::cuda::weight_gradient(grad, x);
    }
    grad.t()?.matmul(x)
}

/// The gradient `dy w` for the input of a linear layer, on a device.
fn input_gradient(grad: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
    grad.matmul(&w.to_dtype(grad.dtype())?)
}

/// Backward of a linear layer whose second input is the weight, unless that is frozen.
struct Linear {
    frozen: Option<Tensor>,
    dims: Dims,
}

impl Backward for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let Dims { rows, inner, out } = self.dims;
        let grad = &*args.grad;
        let dx = |w: &[f32], sink: &mut Sink<'_>| {
            sink.write(rows * inner, |dx, accumulate| {
                let w = Packed::new(w, out, inner);
                dx.par_chunks_mut(ROWS * inner).zip(grad.par_chunks(ROWS * out)).for_each(|(dx, dy)| {
                    let target = Target::new(dx, dy.len() / out, inner).accumulate(accumulate);
                    multiply(target, &[(Mat::new(dy, out), &w)]);
                });
            });
        };
        match &self.frozen {
            Some(w) => with_values(w, |w| dx(w, &mut sinks[0])).expect("the forward read the same weight"),
            None => dx(args.inputs[1], &mut sinks[0]),
        }
        let Some(sink) = sinks.get_mut(1) else { return };
        sink.write(out * inner, |dw, accumulate| {
            let pieces = grad.par_chunks(ROWS * out).zip(args.inputs[0].par_chunks(ROWS * inner));
            let partial: Vec<Vec<f32>> = pieces
                .map(|(dy, x)| {
                    let mut dw = vec![0.0; out * inner];
                    let (target, rows) = (Target::new(&mut dw, out, inner), dy.len() / out);
                    outer(target, Mat::new(dy, out), Mat::new(x, inner), rows);
                    dw
                })
                .collect();
            sum_in_order(dw, accumulate, partial.iter().map(Vec::as_slice));
        });
    }

    fn device(
        &self,
        inputs: &[Tensor],
        grad: &Tensor,
        wanted: &[bool],
    ) -> candle_core::Result<Vec<Option<Tensor>>> {
        let w = self.frozen.as_ref().unwrap_or_else(|| &inputs[1]);
        let dx = if wanted[0] { Some(input_gradient(grad, w)?) } else { None };
        let dw = match wanted.get(1) {
            Some(true) => Some(weight_gradient(grad, &inputs[0])?.to_dtype(w.dtype())?),
            _ => None,
        };
        Ok(vec![dx, dw])
    }
}

/// A frozen bias is added inside the product, a trained one by an operator of its own: (frozen values, trained tensor).
fn split_bias(bias: Option<&Tensor>) -> Result<(Option<Vec<f32>>, Option<&Tensor>)> {
    match bias {
        Some(bias) if !bias.track_op() => Ok((Some(bias.to_vec1()?), None)),
        trained => Ok((None, trained)),
    }
}

/// Rows for a product that begin as the bias, or as nothing.
fn with_bias<'a>(y: &'a mut [f32], out: usize, bias: Option<&[f32]>) -> Target<'a> {
    if let Some(bias) = bias {
        for row in y.chunks_exact_mut(out) {
            row.copy_from_slice(bias);
        }
    }
    let rows = y.len() / out;
    Target::new(y, rows, out).accumulate(bias.is_some())
}
