//! The training operators on an NVIDIA GPU: each a kernel or a few products, with a backward of its own.
//!
//! Arguments were checked by the operators of the same names. Activations and their gradients are f32 or bf16, one type for
//! a whole network; weights of products take the activations' type; norms' weights, biases, factors, losses and every sum
//! are f32. Nothing here is known of the CPU's code, which is the oracle of the tests.

pub(in crate::ops) mod attention;
pub(crate) mod kernels;
#[cfg(test)]
mod tests;

use candle_core::{DType, Result, Tensor};

use super::graph::{Backward, Output, node};
use super::loss::GroupLosses;
use kernels::{Arg, NULL, Product, Side, Work, int, launch, multiply, pointer, unwritten};

/// The kernel of an operator for the type of a tensor.
fn kernel(name: &str, x: &Tensor) -> String {
    let kind = if x.dtype() == DType::BF16 { "bf16" } else { "f32" };
    format!("{name}_{kind}")
}

fn like(x: &Tensor) -> Result<Tensor> {
    unwritten(x.shape(), x.dtype(), x.device())
}

fn one(grad: Tensor) -> Result<Vec<Option<Tensor>>> {
    Ok(vec![Some(grad)])
}

/// RMSNorm, or LayerNorm with a bias.
pub(super) fn norm(
    op: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let x = x.contiguous()?;
    let f32s = |x: &Tensor| x.detach().to_dtype(DType::F32)?.contiguous();
    let weight = f32s(weight)?;
    let bias = bias.map(f32s).transpose()?;
    let y = like(&x)?;
    let args = [
        pointer(&x)?,
        pointer(&weight)?,
        bias.as_ref().map_or(Ok(NULL), pointer)?,
        pointer(&y)?,
        int(rows)?,
        int(width)?,
        Arg::Float(eps),
    ];
    launch(x.device(), &kernel("norm_forward", &x), Work::Rows(rows), &args)?;
    node(&[&x], Output::Device(y), (rows, width), || Norm { op, weight, centered: bias.is_some(), eps })
}

struct Norm {
    op: &'static str,
    weight: Tensor,
    centered: bool,
    eps: f32,
}

impl Backward for Norm {
    fn name(&self) -> &'static str {
        self.op
    }

    fn device(&self, inputs: &[Tensor], grad: &Tensor, _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let x = &inputs[0];
        let (rows, width) = x.dims2()?;
        let dx = like(x)?;
        let args = [
            pointer(x)?,
            pointer(&self.weight)?,
            pointer(grad)?,
            pointer(&dx)?,
            int(rows)?,
            int(width)?,
            Arg::Float(self.eps),
            Arg::Int(self.centered.into()),
        ];
        launch(x.device(), &kernel("norm_backward", x), Work::Rows(rows), &args)?;
        one(dx)
    }
}

/// Elementwise operators of one input, numbered as the kernel does.
#[derive(Clone, Copy)]
pub(super) enum Unary {
    Silu,
    Gelu,
    GeluErf,
    Tanh,
}

/// One of them for each value.
pub(super) fn unary(x: &Tensor, kind: Unary) -> Result<Tensor> {
    let x = x.contiguous()?;
    let count = x.elem_count();
    let y = like(&x)?;
    let args = [pointer(&x)?, pointer(&y)?, int(count)?, Arg::Int(kind as i32)];
    launch(x.device(), &kernel("unary_forward", &x), Work::Values(count), &args)?;
    node(&[&x], Output::Device(y), x.shape(), || kind)
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

    fn device(&self, inputs: &[Tensor], grad: &Tensor, _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let x = &inputs[0];
        let count = x.elem_count();
        let dx = like(x)?;
        let args = [pointer(x)?, pointer(grad)?, pointer(&dx)?, int(count)?, Arg::Int(*self as i32)];
        launch(x.device(), &kernel("unary_backward", x), Work::Values(count), &args)?;
        one(dx)
    }
}

/// Elementwise operators of two inputs.
#[derive(Clone, Copy)]
pub(super) enum Binary {
    Add,
    Mul,
    SiluMul,
}

/// `a + b`, `a * b` or `silu(a) * b`.
pub(super) fn binary(a: &Tensor, b: &Tensor, kind: Binary) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let y = match kind {
        Binary::Add => a.detach().add(&b.detach())?,
        Binary::Mul => a.detach().mul(&b.detach())?,
        Binary::SiluMul => {
            let (count, y) = (a.elem_count(), like(&a)?);
            let args = [pointer(&a)?, pointer(&b)?, pointer(&y)?, int(count)?];
            launch(a.device(), &kernel("silu_mul_forward", &a), Work::Values(count), &args)?;
            y
        }
    };
    node(&[&a, &b], Output::Device(y), a.shape(), || kind)
}

impl Backward for Binary {
    fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Mul => "mul",
            Self::SiluMul => "silu_mul",
        }
    }

    fn device(&self, inputs: &[Tensor], grad: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let [a, b] = inputs else { unreachable!("a binary operator has two inputs") };
        let if_wanted = |index: usize, grad: &dyn Fn() -> Result<Tensor>| {
            if wanted[index] { grad().map(Some) } else { Ok(None) }
        };
        match self {
            Self::Add => Ok(vec![wanted[0].then(|| grad.clone()), wanted[1].then(|| grad.clone())]),
            Self::Mul => Ok(vec![if_wanted(0, &|| grad.mul(b))?, if_wanted(1, &|| grad.mul(a))?]),
            Self::SiluMul => {
                let count = a.elem_count();
                let (da, db) = (if_wanted(0, &|| like(a))?, if_wanted(1, &|| like(b))?);
                let at = |grad: &Option<Tensor>| grad.as_ref().map_or(Ok(NULL), pointer);
                let args = [pointer(a)?, pointer(b)?, pointer(grad)?, at(&da)?, at(&db)?, int(count)?];
                launch(a.device(), &kernel("silu_mul_backward", a), Work::Values(count), &args)?;
                Ok(vec![da, db])
            }
        }
    }
}

/// `dy^T x` in f32, as cuBLAS summed it.
pub(super) fn weight_gradient(grad: &Tensor, x: &Tensor) -> Result<Tensor> {
    let ((rows, out), inner) = (grad.dims2()?, x.dim(1)?);
    let dw = unwritten((out, inner), DType::F32, x.device())?;
    let product = Product { batch: 1, rows: out, cols: inner, inner: rows, factor: 1.0, accumulate: false };
    multiply(&dw, Side::Transposed(grad), Side::Plain(x), &product)?;
    Ok(dw)
}

/// `x[r, c] + bias[c]`, the bias in f32.
pub(super) fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (x, bias) = (x.contiguous()?, bias.contiguous()?);
    let y = like(&x)?;
    let values = bias.detach().to_dtype(DType::F32)?;
    let args = [pointer(&x)?, pointer(&values)?, pointer(&y)?, int(rows)?, int(width)?];
    launch(x.device(), &kernel("add_bias", &x), Work::Values(rows * width), &args)?;
    node(&[&x, &bias], Output::Device(y), (rows, width), || AddBias)
}

struct AddBias;

impl Backward for AddBias {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn device(&self, inputs: &[Tensor], grad: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let (rows, width) = grad.dims2()?;
        let db = if wanted[1] {
            let sum = unwritten(width, DType::F32, grad.device())?;
            let args = [pointer(grad)?, pointer(&sum)?, int(rows)?, int(width)?];
            launch(grad.device(), &kernel("sum_rows", grad), Work::Rows(width), &args)?;
            Some(sum.to_dtype(inputs[1].dtype())?)
        } else {
            None
        };
        Ok(vec![wanted[0].then(|| grad.clone()), db])
    }
}

/// Rotary positions: `cosines` and `sines` [rows, half].
pub(super) fn rope(x: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let op = Rope { cosines: cosines.clone(), sines: sines.clone() };
    let y = op.rotate(&x, 1.0)?;
    node(&[&x], Output::Device(y), x.shape(), || op)
}

struct Rope {
    cosines: Tensor,
    sines: Tensor,
}

impl Rope {
    fn rotate(&self, x: &Tensor, direction: f32) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let half = self.cosines.dim(1)?;
        let y = like(x)?;
        let args = [
            pointer(x)?,
            pointer(&self.cosines)?,
            pointer(&self.sines)?,
            pointer(&y)?,
            int(rows)?,
            int(width)?,
            int(half)?,
            Arg::Float(direction),
        ];
        launch(x.device(), &kernel("rope", x), Work::Values(rows * width / 2), &args)?;
        Ok(y)
    }
}

impl Backward for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn device(&self, _: &[Tensor], grad: &Tensor, _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        one(self.rotate(grad, -1.0)?)
    }
}

/// Cross-entropy of groups of rows, in f32: `weights` are divided by the sum of their group already.
pub(super) fn cross_entropy(
    logits: &Tensor,
    targets: Vec<u32>,
    weights: Vec<f32>,
    groups: &[usize],
) -> Result<GroupLosses> {
    let (rows, classes) = logits.dims2()?;
    let device = logits.device().clone();
    let logits = logits.contiguous()?;
    // Rows without a weight may have a target that is no class; the kernels do not read it.
    let targets = Tensor::from_vec(targets, rows, &device)?;
    let weights = Tensor::from_vec(weights, rows, &device)?;
    let log_sums = unwritten(rows, DType::F32, &device)?;
    let losses = unwritten(rows, DType::F32, &device)?;
    let args = [
        pointer(&logits)?,
        pointer(&targets)?,
        pointer(&weights)?,
        pointer(&log_sums)?,
        pointer(&losses)?,
        int(rows)?,
        int(classes)?,
    ];
    launch(&device, &kernel("cross_entropy_forward", &logits), Work::Rows(rows), &args)?;
    let sum = |losses: &Tensor, count: usize| {
        let sum = unwritten((), DType::F32, &device)?;
        launch(&device, "sum_all_f32", Work::Rows(1), &[pointer(losses)?, pointer(&sum)?, int(count)?])?;
        Ok::<_, candle_core::Error>(sum)
    };
    let mut first = 0;
    let each = groups.iter().map(|&count| {
        first += count;
        sum(&losses.narrow(0, first - count, count)?, count)
    });
    let each = each.collect::<Result<Vec<_>>>()?;
    let total = sum(&losses, rows)?;
    let total = node(&[&logits], Output::Device(total), (), || CrossEntropy { targets, weights, log_sums })?;
    Ok(GroupLosses { total, each })
}

struct CrossEntropy {
    targets: Tensor,
    weights: Tensor,
    log_sums: Tensor,
}

impl Backward for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn device(&self, inputs: &[Tensor], grad: &Tensor, _: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let logits = &inputs[0];
        let (rows, classes) = logits.dims2()?;
        let dx = like(logits)?;
        let args = [
            pointer(logits)?,
            pointer(&self.targets)?,
            pointer(&self.weights)?,
            pointer(&self.log_sums)?,
            pointer(grad)?,
            pointer(&dx)?,
            int(rows)?,
            int(classes)?,
        ];
        launch(logits.device(), &kernel("cross_entropy_backward", logits), Work::Rows(rows), &args)?;
        one(dx)
    }
}
