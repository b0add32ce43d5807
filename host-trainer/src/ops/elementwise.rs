//! Elementwise operators: addition, product, SiLU, the gated SiLU, GELU in both forms, tanh, and the bias of a linear layer.

use candle_core::Tensor;
use rayon::prelude::*;

use super::graph::{Backward, HostArgs, Output, Sink, node, with_host, with_values};
use super::{Result, check, math, parallel};

/// `sqrt(2 / pi)`.
const GELU_SLOPE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// `y = a + b`, both of one shape.
///
/// # Errors
/// If the shapes differ or a type is not f32.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary("add", a, b, Binary::Add)
}

/// `y = a * b` elementwise, both of one shape.
///
/// # Errors
/// If the shapes differ or a type is not f32.
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    binary("mul", a, b, Binary::Mul)
}

/// `y = silu(gate) * up`, both of one shape: the gate of a Llama's feed-forward part in one pass.
///
/// # Errors
/// If the shapes differ or a type is not f32.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    binary("silu_mul", gate, up, Binary::SiluMul)
}

/// `y = x / (1 + exp(-x))`.
///
/// # Errors
/// If the type is not f32.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    unary("silu", x, Unary::Silu)
}

/// `y = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
///
/// # Errors
/// If the type is not f32.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    unary("gelu", x, Unary::Gelu)
}

/// `y = 0.5 x (1 + erf(x / sqrt(2)))`.
///
/// # Errors
/// If the type is not f32.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    unary("gelu_erf", x, Unary::GeluErf)
}

/// `y = tanh(x)`.
///
/// # Errors
/// If the type is not f32.
pub fn tanh(x: &Tensor) -> Result<Tensor> {
    unary("tanh", x, Unary::Tanh)
}

/// `y[r, c] = x[r, c] + bias[c]`; both may have gradients.
///
/// # Errors
/// If a shape or type does not fit.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (rows, width) = check::matrix("add_bias", "x", x)?;
    check::shape("add_bias", "the bias", bias, &[width])?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return Ok(super::cuda::add_bias(x, bias)?);
    }
    if !x.device().is_cpu() {
        return Ok(x.broadcast_add(bias)?);
    }
    let (x, bias) = (x.contiguous()?, bias.contiguous()?);
    let mut y = vec![0.0; rows * width];
    with_values(&x, |x| {
        with_values(&bias, |bias| {
            let piece = parallel::rows_per_piece(width) * width.max(1);
            y.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(y, x)| {
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    for ((y, x), bias) in y.iter_mut().zip(x).zip(bias) {
                        *y = x + bias;
                    }
                }
            });
        })
    })??;
    Ok(node(&[&x, &bias], Output::Host(y), (rows, width), || AddBias { width })?)
}

/// [`silu`] in plain candle operators.
///
/// # Errors
/// Those of the tensor library.
pub fn silu_composed(x: &Tensor) -> Result<Tensor> {
    Ok(x.silu()?)
}

/// [`gelu`] in plain candle operators.
///
/// # Errors
/// Those of the tensor library.
pub fn gelu_composed(x: &Tensor) -> Result<Tensor> {
    let cubic = (x.sqr()?.mul(x)? * f64::from(GELU_CUBIC))?;
    let inner = ((x + cubic)? * f64::from(GELU_SLOPE))?;
    Ok((x * ((inner.tanh()? + 1.0)? * 0.5)?)?)
}

/// [`gelu_erf`] in plain candle operators.
///
/// # Errors
/// Those of the tensor library.
pub fn gelu_erf_composed(x: &Tensor) -> Result<Tensor> {
    Ok(x.gelu_erf()?)
}

/// [`tanh`] in plain candle operators.
///
/// # Errors
/// Those of the tensor library.
pub fn tanh_composed(x: &Tensor) -> Result<Tensor> {
    Ok(x.tanh()?)
}

#[derive(Clone, Copy)]
enum Unary {
    Silu,
    Gelu,
    GeluErf,
    Tanh,
}

fn unary(op: &'static str, x: &Tensor, kind: Unary) -> Result<Tensor> {
    check::float(op, "x", x)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        use super::cuda::Unary as OnDevice;
        let kind = match kind {
            Unary::Silu => OnDevice::Silu,
            Unary::Gelu => OnDevice::Gelu,
            Unary::GeluErf => OnDevice::GeluErf,
            Unary::Tanh => OnDevice::Tanh,
        };
        return Ok(super::cuda::unary(x, kind)?);
    }
    if !x.device().is_cpu() {
        return match kind {
            Unary::Silu => silu_composed(x),
            Unary::Gelu => gelu_composed(x),
            Unary::GeluErf => gelu_erf_composed(x),
            Unary::Tanh => tanh_composed(x),
        };
    }
    let x = x.contiguous()?;
    let mut y = vec![0.0; x.elem_count()];
    with_values(&x, |x| match kind {
        Unary::Silu => parallel::map1(&mut y, false, x, |x| x * math::sigmoid(x)),
        Unary::Gelu => parallel::map1(&mut y, false, x, |x| 0.5 * x * (1.0 + math::tanh(gelu_inner(x)))),
        Unary::GeluErf => parallel::map1(&mut y, false, x, |x| x * math::normal(x).0),
        Unary::Tanh => parallel::map1(&mut y, false, x, math::tanh),
    })?;
    Ok(node(&[&x], Output::Host(y), x.shape(), || kind)?)
}

fn gelu_inner(x: f32) -> f32 {
    GELU_SLOPE * (x + GELU_CUBIC * x * x * x)
}

impl Backward for Unary {
    fn name(&self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluErf => "gelu_erf",
            Self::Tanh => "tanh",
        }
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let x = args.inputs[0];
        sinks[0].write(x.len(), |dx, accumulate| match self {
            Self::Silu => parallel::map2(dx, accumulate, x, &args.grad, |x, dy| dy * silu_slope(x)),
            Self::Gelu => parallel::map2(dx, accumulate, x, &args.grad, |x, dy| {
                let tanh = math::tanh(gelu_inner(x));
                let inner_slope = GELU_SLOPE * (1.0 + 3.0 * GELU_CUBIC * x * x);
                dy * (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner_slope)
            }),
            Self::GeluErf => parallel::map2(dx, accumulate, x, &args.grad, |x, dy| {
                let (below, density) = math::normal(x);
                dy * (below + x * density)
            }),
            Self::Tanh => parallel::map2(dx, accumulate, x, &args.grad, |x, dy| {
                let tanh = math::tanh(x);
                dy * (1.0 - tanh * tanh)
            }),
        });
    }
}

fn silu_slope(x: f32) -> f32 {
    let sigmoid = math::sigmoid(x);
    sigmoid * (1.0 + x * (1.0 - sigmoid))
}

#[derive(Clone, Copy)]
enum Binary {
    Add,
    Mul,
    SiluMul,
}

fn binary(op: &'static str, a: &Tensor, b: &Tensor, kind: Binary) -> Result<Tensor> {
    check::float(op, "the first operand", a)?;
    check::shape(op, "the second operand", b, a.dims())?;
    #[cfg(feature = "cuda")]
    if a.device().is_cuda() {
        use super::cuda::Binary as OnDevice;
        let kind = match kind {
            Binary::Add => OnDevice::Add,
            Binary::Mul => OnDevice::Mul,
            Binary::SiluMul => OnDevice::SiluMul,
        };
        return Ok(super::cuda::binary(a, b, kind)?);
    }
    if !a.device().is_cpu() {
        return Ok(match kind {
            Binary::Add => a.add(b)?,
            Binary::Mul => a.mul(b)?,
            Binary::SiluMul => a.silu()?.mul(b)?,
        });
    }
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let mut y = vec![0.0; a.elem_count()];
    with_host(&[a.detach()], &b.detach(), |a, b| {
        let a = a[0];
        match kind {
            Binary::Add => parallel::map2(&mut y, false, a, b, |a, b| a + b),
            Binary::Mul => parallel::map2(&mut y, false, a, b, |a, b| a * b),
            Binary::SiluMul => parallel::map2(&mut y, false, a, b, |a, b| a * math::sigmoid(a) * b),
        }
    })?;
    Ok(node(&[&a, &b], Output::Host(y), a.shape(), || kind)?)
}

impl Backward for Binary {
    fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Mul => "mul",
            Self::SiluMul => "silu_mul",
        }
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let [first, second] = sinks else { unreachable!("a binary operator has two inputs") };
        let (a, b) = (args.inputs[0], args.inputs[1]);
        match self {
            Self::Add => {
                first.pass((&*args.grad).into());
                second.pass(args.grad.take());
            }
            Self::Mul => {
                first.write(a.len(), |da, accumulate| {
                    parallel::map2(da, accumulate, b, &args.grad, |b, dy| b * dy);
                });
                second.write(b.len(), |db, accumulate| {
                    parallel::map2(db, accumulate, a, &args.grad, |a, dy| a * dy);
                });
            }
            Self::SiluMul => {
                let (wanted_a, wanted_b) = (first.buffer(a.len()), second.buffer(b.len()));
                parallel::map3_to_2(wanted_a, wanted_b, [a, b, &args.grad], |a, b, dy| {
                    let sigmoid = math::sigmoid(a);
                    (dy * b * sigmoid * (1.0 + a * (1.0 - sigmoid)), dy * a * sigmoid)
                });
            }
        }
    }
}

struct AddBias {
    width: usize,
}

impl Backward for AddBias {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let width = self.width;
        sinks[1].write(width, |db, accumulate| parallel::sum_rows(db, accumulate, &args.grad));
        sinks[0].pass(args.grad.take());
    }
}
