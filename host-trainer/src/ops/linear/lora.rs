//! The low-rank layer as one operator, for one set of factors or for many beside the same frozen weight.
//!
//! Its backward is five products and never forms the gradient of the frozen weight, which is as large as the weight itself
//! and which candle's own matmul would compute and keep. With many sets of factors the products with the frozen weight run
//! over all rows together; a group of rows with its own factors gets the bits that it gets alone.

#[cfg(feature = "cuda")]
mod device;
mod host;

use candle_core::{Device, Tensor};

use super::super::elementwise::add_bias;
use super::super::graph::{Backward, HostArgs, Output, Sink, node};
use super::super::{Result, check};
use super::{Dims, ROWS, linear_composed, split_bias, sum_in_order, with_bias};

/// The low-rank factors of one linear layer.
#[derive(Clone, Copy, Debug)]
pub struct LoraFactors<'a> {
    /// `lora_a`, [rank, in]. Gets a gradient if it is (or depends on) a `Var`.
    pub a: &'a Tensor,
    /// `lora_b`, [out, rank]. Gets a gradient if it is (or depends on) a `Var`.
    pub b: &'a Tensor,
    /// What the product of the factors is multiplied with: `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA.
    pub scaling: f32,
    /// LoRA dropout: [rows, in], 0 or `1 / (1 - p)`; multiplies `x` on the low-rank path only.
    pub dropout_mask: Option<&'a Tensor>,
}

/// Rows of a linear layer that have factors of their own, or none. They follow the rows of the group before.
#[derive(Clone, Copy, Debug)]
pub struct LoraGroup<'a> {
    /// Number of rows.
    pub rows: usize,
    /// Rank of the factors; 0 for rows that get the base alone.
    pub rank: usize,
    /// As in [`LoraFactors`].
    pub scaling: f32,
    /// As in [`LoraFactors`], for the rows of the group: [rows, in].
    pub dropout_mask: Option<&'a Tensor>,
}

/// The factors of many groups of rows, stacked so that they are two inputs of one operator.
#[derive(Clone, Copy, Debug)]
pub struct StackedFactors<'a> {
    /// The groups' `lora_a`, one below the other: [sum of ranks, in]. Gets a gradient if it is (or depends on) a `Var`.
    pub a: &'a Tensor,
    /// The groups' `lora_b`, each row-major [out, rank], one behind the other: [out * sum of ranks]. Gets a gradient
    /// likewise.
    pub b: &'a Tensor,
    /// The groups, in the order of the rows; together they are all rows.
    pub groups: &'a [LoraGroup<'a>],
}

/// `y = x w0^T + bias + scaling * ((x * mask) lora_a^T) lora_b^T`.
///
/// `x` [rows, in], `w0` [out, in] (always frozen), `bias` [out]; gives [rows, out]. With `z = scaling * (x * mask) lora_a^T`,
/// kept from the forward, and `dz = scaling * dy lora_b`, the backward is
/// `dx = dy w0 + (dz lora_a) * mask`, `d lora_a = dz^T (x * mask)`, `d lora_b = dy^T z`.
///
/// # Errors
/// If a shape or type does not fit.
pub fn lora_linear(x: &Tensor, w0: &Tensor, bias: Option<&Tensor>, lora: &LoraFactors<'_>) -> Result<Tensor> {
    let op = "lora_linear";
    let dims = Dims::check(op, x, w0, bias)?;
    let (rank, _) = check::matrix(op, "lora_a", lora.a)?;
    check::shape(op, "lora_b", lora.b, &[dims.out, rank])?;
    let LoraFactors { scaling, dropout_mask, .. } = *lora;
    let group = LoraGroup { rows: dims.rows, rank, scaling, dropout_mask };
    run(op, x, w0, bias, &StackedFactors { a: lora.a, b: lora.b, groups: &[group] }, dims)
}

/// [`lora_linear`] with other factors for each group of rows, and the same frozen weight for all: what a group gets, forward
/// and backward, has the bits of [`lora_linear`] on its rows alone (of [`super::frozen_linear`] at rank 0).
///
/// `x` [rows, in], `w0` [out, in] (always frozen), `bias` [out]; gives [rows, out].
///
/// # Errors
/// If a shape or type does not fit, a group has no row, the groups do not have all rows, or no group has factors.
pub fn lora_linear_groups(
    x: &Tensor,
    w0: &Tensor,
    bias: Option<&Tensor>,
    lora: &StackedFactors<'_>,
) -> Result<Tensor> {
    let op = "lora_linear_groups";
    let dims = Dims::check(op, x, w0, bias)?;
    let ranks: usize = lora.groups.iter().map(|group| group.rank).sum();
    check::shape(op, "the stacked lora_b", lora.b, &[dims.out * ranks])?;
    run(op, x, w0, bias, lora, dims)
}

fn run(
    op: &'static str,
    x: &Tensor,
    w0: &Tensor,
    bias: Option<&Tensor>,
    lora: &StackedFactors<'_>,
    dims: Dims,
) -> Result<Tensor> {
    let ranks: usize = lora.groups.iter().map(|group| group.rank).sum();
    check::value(op, "the rank", ranks > 0, || "at least 1".into(), ranks)?;
    check::shape(op, "lora_a", lora.a, &[ranks, dims.inner])?;
    let rows: usize = lora.groups.iter().map(|group| group.rows).sum();
    check::value(op, "the rows of the groups", rows == dims.rows, || dims.rows.to_string(), rows)?;
    let groups = lora.groups.iter().map(|group| {
        check::value(op, "the rows of a group", group.rows > 0, || "at least 1".into(), group.rows)?;
        let mask = group.dropout_mask.filter(|_| group.rank > 0);
        if let Some(mask) = mask {
            check::shape(op, "dropout_mask", mask, &[group.rows, dims.inner])?;
        }
        let mask = mask.map(|mask| mask.detach().contiguous()).transpose()?;
        Ok(Group { rows: group.rows, rank: group.rank, scaling: group.scaling, mask })
    });
    let groups = groups.collect::<Result<Vec<_>>>()?;
    let x = x.contiguous()?;
    let w0 = w0.detach().contiguous()?;
    let (a, b) = (lora.a.contiguous()?, lora.b.contiguous()?);
    let (y, z, bias) = if x.device().is_cpu() {
        let (frozen_bias, bias) = split_bias(bias)?;
        let (y, z) = host::forward(&x, &w0, &a, &b, &groups, frozen_bias.as_deref(), dims)?;
        let count = z.len();
        (Output::Host(y), Tensor::from_vec(z, count, &Device::Cpu)?, bias)
    } else {
        #[cfg(not(feature = "cuda"))]
        return Err(candle_core::Error::Msg(format!("{op}: expected tensors on the CPU or a GPU")).into());
        #[cfg(feature = "cuda")]
        {
            let (y, z) = device::forward(&x.detach(), &w0, &a.detach(), &b.detach(), &groups, dims)?;
            (Output::Device(y), z, bias)
        }
    };
    let y = node(&[&x, &a, &b], y, (dims.rows, dims.out), || LoraLinear { w0, groups, z, dims })?;
    match bias {
        Some(bias) => add_bias(&y, bias),
        None => Ok(y),
    }
}

/// The formula of [`lora_linear`] in plain candle operators: the oracle of the tests. Keep away from training: its
/// backward forms the gradient of `w0`.
///
/// # Errors
/// If a shape or type does not fit.
pub fn lora_linear_composed(
    x: &Tensor,
    w0: &Tensor,
    bias: Option<&Tensor>,
    lora: &LoraFactors<'_>,
) -> Result<Tensor> {
    let base = linear_composed(x, w0, bias)?;
    let masked = match lora.dropout_mask {
        Some(mask) => x.mul(mask)?,
        None => x.clone(),
    };
    let low = masked.matmul(&lora.a.t()?)?.matmul(&lora.b.t()?)?;
    Ok((base + (low * f64::from(lora.scaling))?)?)
}

/// The formula of [`lora_linear_groups`] in plain candle operators, as [`lora_linear_composed`].
///
/// # Errors
/// If a shape or type does not fit.
pub fn lora_linear_groups_composed(
    x: &Tensor,
    w0: &Tensor,
    bias: Option<&Tensor>,
    lora: &StackedFactors<'_>,
) -> Result<Tensor> {
    let out = w0.dim(0)?;
    let (mut row, mut first) = (0, 0);
    let mut parts = Vec::new();
    for &LoraGroup { rows, rank, scaling, dropout_mask } in lora.groups {
        let x = x.narrow(0, row, rows)?;
        parts.push(if rank == 0 {
            linear_composed(&x, w0, bias)?
        } else {
            let a = lora.a.narrow(0, first, rank)?;
            let b = lora.b.narrow(0, out * first, out * rank)?.reshape((out, rank))?;
            lora_linear_composed(&x, w0, bias, &LoraFactors { a: &a, b: &b, scaling, dropout_mask })?
        });
        (row, first) = (row + rows, first + rank);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// A group as the operator keeps it.
struct Group {
    rows: usize,
    rank: usize,
    scaling: f32,
    /// [rows, in].
    mask: Option<Tensor>,
}

/// Backward of a low-rank layer; inputs are `x`, `lora_a` and `lora_b`, both stacked.
struct LoraLinear {
    w0: Tensor,
    groups: Vec<Group>,
    /// `scaling * (x * mask) lora_a^T` of each group, row-major [rows, rank], one behind the other.
    z: Tensor,
    dims: Dims,
}

impl Backward for LoraLinear {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        host::backward(self, args, sinks);
    }

    #[cfg(feature = "cuda")]
    fn device(
        &self,
        inputs: &[Tensor],
        grad: &Tensor,
        wanted: &[bool],
    ) -> candle_core::Result<Vec<Option<Tensor>>> {
        device::backward(self, inputs, grad, wanted)
    }
}

/// A group and where it lies.
struct Part<'a> {
    group: &'a Group,
    /// Its first row.
    row: usize,
    /// Sum of the ranks before it.
    first: usize,
}

/// The groups and where they lie.
fn parts(groups: &[Group]) -> impl Iterator<Item = Part<'_>> {
    groups.iter().scan((0, 0), |(row, first), group| {
        let part = Part { group, row: *row, first: *first };
        (*row, *first) = (*row + group.rows, *first + group.rank);
        Some(part)
    })
}
