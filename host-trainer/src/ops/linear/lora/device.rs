//! The low-rank layer on a GPU: products by cuBLAS, each group of rows with its own factors.
//!
//! Groups in a row that are alike (rows, rank and scaling, no dropout) are one batched product, so that many tasks cost few
//! launches. Factors are cast to the activations' type; their gradients are f32, as cuBLAS summed them.

use candle_core::{DType, Result, Tensor};

use super::super::super::cuda::kernels::{Product, Side, Work, int, launch, multiply, pointer, unwritten};
use super::super::{input_gradient, product};
use super::{Dims, Group, LoraLinear};

/// Groups that are one batched product, and where they lie.
struct Run<'a> {
    group: &'a Group,
    count: usize,
    /// First row.
    row: usize,
    /// Sum of the ranks before.
    first: usize,
    /// Values of `z` before.
    kept: usize,
}

impl Run<'_> {
    fn product(&self, rows: usize, cols: usize, inner: usize) -> Product {
        Product { batch: self.count, rows, cols, inner, factor: 1.0, accumulate: false }
    }

    fn rows(&self, x: &Tensor) -> Result<Tensor> {
        x.narrow(0, self.row, self.count * self.group.rows)
    }

    /// The rows of `x`, masked.
    fn masked(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.rows(x)?;
        match &self.group.mask {
            Some(mask) => x.mul(&mask.to_dtype(x.dtype())?),
            None => Ok(x),
        }
    }

    fn a(&self, a: &Tensor) -> Result<Tensor> {
        a.narrow(0, self.first, self.count * self.group.rank)
    }

    /// Of `lora_b`, flat.
    fn b(&self, b: &Tensor, out: usize) -> Result<Tensor> {
        b.flatten_all()?.narrow(0, out * self.first, out * self.count * self.group.rank)
    }

    fn z(&self, z: &Tensor) -> Result<Tensor> {
        z.narrow(0, self.kept, self.count * self.group.rows * self.group.rank)
    }
}

/// The groups that have factors.
fn runs(groups: &[Group]) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    let (mut row, mut first, mut kept) = (0, 0, 0);
    for group in groups {
        let alike = |run: &&mut Run<'_>| {
            let other = run.group;
            let plain = group.mask.is_none() && other.mask.is_none();
            let same = group.rows == other.rows && group.rank == other.rank && group.scaling == other.scaling;
            plain && same && run.row + run.count * other.rows == row
        };
        if group.rank > 0 {
            match runs.last_mut().filter(alike) {
                Some(run) => run.count += 1,
                None => runs.push(Run { group, count: 1, row, first, kept }),
            }
        }
        row += group.rows;
        first += group.rank;
        kept += group.rows * group.rank;
    }
    runs
}

/// `y`, and `z` of all groups.
pub(super) fn forward(
    x: &Tensor,
    w0: &Tensor,
    a: &Tensor,
    b: &Tensor,
    groups: &[Group],
    dims: Dims,
) -> Result<(Tensor, Tensor)> {
    let (kind, device) = (x.dtype(), x.device());
    let Dims { inner, out, .. } = dims;
    let (a, b) = (a.to_dtype(kind)?, b.to_dtype(kind)?);
    let count: usize = groups.iter().map(|group| group.rows * group.rank).sum();
    let y = product(x, w0)?;
    let z = unwritten(count, kind, device)?;
    for run in runs(groups) {
        let &Group { rows, rank, scaling, .. } = run.group;
        let z = run.z(&z)?;
        let down = Product { factor: scaling, ..run.product(rows, rank, inner) };
        multiply(&z, Side::Plain(&run.masked(x)?), Side::Transposed(&run.a(&a)?), &down)?;
        let up = Product { accumulate: true, ..run.product(rows, out, rank) };
        multiply(&run.rows(&y)?, Side::Plain(&z), Side::Transposed(&run.b(&b, out)?), &up)?;
    }
    Ok((y, z))
}

/// The gradients of `x` and the stacked factors.
pub(super) fn backward(
    op: &LoraLinear,
    inputs: &[Tensor],
    grad: &Tensor,
    wanted: &[bool],
) -> Result<Vec<Option<Tensor>>> {
    let [x, a, b] = inputs else { unreachable!("lora_linear has three inputs") };
    let Dims { inner, out, .. } = op.dims;
    let (kind, device) = (grad.dtype(), grad.device());
    let (low_a, low_b) = (a.to_dtype(kind)?, b.to_dtype(kind)?);
    let dx = if wanted[0] { Some(input_gradient(grad, &op.w0)?) } else { None };
    let factor = |wanted: bool, x: &Tensor| {
        if wanted { unwritten(x.shape(), DType::F32, device).map(Some) } else { Ok(None) }
    };
    let (da, db) = (factor(wanted[1], a)?, factor(wanted[2], b)?);
    for run in runs(&op.groups) {
        let &Group { rows, rank, scaling, ref mask } = run.group;
        let dy = run.rows(grad)?;
        let dz = unwritten(run.count * rows * rank, kind, device)?;
        let down = Product { factor: scaling, ..run.product(rows, rank, out) };
        multiply(&dz, Side::Plain(&dy), Side::Plain(&run.b(&low_b, out)?), &down)?;
        if let Some(dx) = &dx {
            let (dx, a) = (run.rows(dx)?, run.a(&low_a)?);
            let up = run.product(rows, inner, rank);
            match mask {
                None => {
                    multiply(&dx, Side::Plain(&dz), Side::Plain(&a), &Product { accumulate: true, ..up })?;
                }
                Some(mask) => {
                    let low = unwritten((rows, inner), kind, device)?;
                    multiply(&low, Side::Plain(&dz), Side::Plain(&a), &up)?;
                    let name = if kind == DType::BF16 { "add_product_bf16" } else { "add_product_f32" };
                    let count = rows * inner;
                    let args = [pointer(&low)?, pointer(mask)?, pointer(&dx)?, int(count)?];
                    launch(device, name, Work::Values(count), &args)?;
                }
            }
        }
        if let Some(da) = &da {
            let x = run.masked(x)?;
            let sum = run.product(rank, inner, rows);
            multiply(&run.a(da)?, Side::Transposed(&dz), Side::Plain(&x), &sum)?;
        }
        if let Some(db) = &db {
            let sum = run.product(out, rank, rows);
            multiply(&run.b(db, out)?, Side::Transposed(&dy), Side::Plain(&run.z(&op.z)?), &sum)?;
        }
    }
    Ok(vec![dx, da, db])
}
