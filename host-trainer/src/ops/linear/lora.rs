//! The low-rank layer as one operator.
//!
//! Its backward is five products and never forms the gradient of the frozen weight, which is as large as the weight itself
//! and which candle's own matmul would compute and keep.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::super::elementwise::add_bias;
use super::super::gemm::{Mat, Packed, Target, multiply, outer};
use super::super::graph::{Backward, HostArgs, Output, Sink, node, with_host};
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
    let (rank, inner) = check::matrix(op, "lora_a", lora.a)?;
    check::shape(op, "lora_a", lora.a, &[rank, dims.inner])?;
    check::shape(op, "lora_b", lora.b, &[dims.out, rank])?;
    check::value(op, "the rank", rank > 0, || "at least 1".into(), rank)?;
    if let Some(mask) = lora.dropout_mask {
        check::shape(op, "dropout_mask", mask, &[dims.rows, inner])?;
    }
    let x = x.contiguous()?;
    let w0 = w0.detach().contiguous()?;
    let (a, b) = (lora.a.contiguous()?, lora.b.contiguous()?);
    let mask = lora.dropout_mask.map(|mask| mask.detach().contiguous()).transpose()?;
    let scaling = lora.scaling;
    let (y, z, bias) = if x.device().is_cpu() {
        let (frozen_bias, bias) = split_bias(bias)?;
        let (y, z) =
            forward_host(&x, &w0, &a, &b, mask.as_ref(), frozen_bias.as_deref(), scaling, dims, rank)?;
        (y, z, bias)
    } else {
        let (y, z) = forward_device(&x.detach(), &w0, &a.detach(), &b.detach(), mask.as_ref(), scaling)?;
        (y, z, bias)
    };
    let y =
        node(&[&x, &a, &b], y, (dims.rows, dims.out), || LoraLinear { w0, mask, z, scaling, dims, rank })?;
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

/// Backward of a low-rank layer; inputs are `x`, `lora_a` and `lora_b`.
struct LoraLinear {
    w0: Tensor,
    mask: Option<Tensor>,
    /// `scaling * (x * mask) lora_a^T`, [rows, rank].
    z: Tensor,
    scaling: f32,
    dims: Dims,
    rank: usize,
}

impl Backward for LoraLinear {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let kept: Vec<Tensor> = self.mask.iter().chain([&self.w0]).cloned().collect();
        with_host(&kept, &self.z, |kept, z| match *kept {
            [mask, w0] => self.backward_host(args, sinks, w0, z, Some(mask)),
            [w0] => self.backward_host(args, sinks, w0, z, None),
            _ => unreachable!("a mask and a weight at most"),
        })
        .expect("the forward read the same tensors");
    }

    fn device(
        &self,
        inputs: &[Tensor],
        grad: &Tensor,
        wanted: &[bool],
    ) -> candle_core::Result<Vec<Option<Tensor>>> {
        let [x, a, b] = inputs else { unreachable!("lora_linear has three inputs") };
        let dz = (grad.matmul(b)? * f64::from(self.scaling))?;
        let masked = |x: &Tensor| match &self.mask {
            Some(mask) => x.mul(mask),
            None => Ok(x.clone()),
        };
        let dx = if wanted[0] { Some((grad.matmul(&self.w0)? + masked(&dz.matmul(a)?)?)?) } else { None };
        let da = if wanted[1] { Some(dz.t()?.matmul(&masked(x)?)?) } else { None };
        let db = if wanted[2] { Some(grad.t()?.matmul(&self.z)?) } else { None };
        Ok(vec![dx, da, db])
    }
}

impl LoraLinear {
    fn backward_host(
        &self,
        args: &HostArgs<'_>,
        sinks: &mut [Sink<'_>],
        w0: &[f32],
        z: &[f32],
        mask: Option<&[f32]>,
    ) {
        let Dims { rows, inner, out } = self.dims;
        let (rank, scaling) = (self.rank, self.scaling);
        let &[x, a, b] = args.inputs else { unreachable!("lora_linear has three inputs") };
        let grad = &*args.grad;
        let [dx_sink, da_sink, db_sink] = sinks else { unreachable!("lora_linear has three inputs") };
        let (want_dx, want_da, want_db) = (dx_sink.wanted(), da_sink.wanted(), db_sink.wanted());
        let w0 = Packed::new(w0, out, inner);
        let a = Packed::new(a, rank, inner);
        let b = Packed::new(b, out, rank);

        // One pass over the rows for all gradients; without dx the pieces of it are empty.
        let piece = |index: usize, dx: &mut [f32], accumulate: bool| -> (Vec<f32>, Vec<f32>) {
            let start = index * ROWS;
            let count = ROWS.min(rows - start);
            let range = |width: usize| start * width..(start + count) * width;
            let dy = Mat::new(&grad[range(out)], out);
            let mut dz = vec![0.0; count * rank];
            if want_dx || want_da {
                multiply(Target::new(&mut dz, count, rank), &[(dy, &b)]);
                for dz in &mut dz {
                    *dz *= scaling;
                }
            }
            let dz = Mat::new(&dz, rank);
            if want_dx {
                let target = |dx| Target::new(dx, count, inner);
                match mask {
                    None => multiply(target(dx).accumulate(accumulate), &[(dy, &w0), (dz, &a)]),
                    Some(mask) => {
                        let mut low = vec![0.0; count * inner];
                        multiply(target(&mut low), &[(dz, &a)]);
                        multiply(target(&mut *dx).accumulate(accumulate), &[(dy, &w0)]);
                        for ((dx, low), mask) in dx.iter_mut().zip(&low).zip(&mask[range(inner)]) {
                            *dx += low * mask;
                        }
                    }
                }
            }
            let mut da = vec![0.0; if want_da { rank * inner } else { 0 }];
            if want_da {
                let x = &x[range(inner)];
                let target = Target::new(&mut da, rank, inner);
                match mask {
                    None => outer(target, dz, Mat::new(x, inner), count),
                    Some(mask) => {
                        let x: Vec<f32> =
                            x.iter().zip(&mask[range(inner)]).map(|(x, mask)| x * mask).collect();
                        outer(target, dz, Mat::new(&x, inner), count);
                    }
                }
            }
            // The transpose of d lora_b: its rows are long, as the kernel likes them.
            let mut db = vec![0.0; if want_db { rank * out } else { 0 }];
            if want_db {
                outer(Target::new(&mut db, rank, out), Mat::new(&z[range(rank)], rank), dy, count);
            }
            (da, db)
        };

        let mut partial: Vec<(Vec<f32>, Vec<f32>)> = Vec::new();
        if want_dx {
            dx_sink.write(rows * inner, |dx, accumulate| {
                dx.par_chunks_mut(ROWS * inner)
                    .enumerate()
                    .map(|(index, dx)| piece(index, dx, accumulate))
                    .collect_into_vec(&mut partial);
            });
        } else {
            (0..rows.div_ceil(ROWS))
                .into_par_iter()
                .map(|index| piece(index, &mut [], false))
                .collect_into_vec(&mut partial);
        }
        da_sink.write(rank * inner, |da, accumulate| {
            sum_in_order(da, accumulate, partial.iter().map(|(da, _)| da.as_slice()));
        });
        db_sink.write(out * rank, |db, accumulate| {
            let mut sum = vec![0.0; rank * out];
            sum_in_order(&mut sum, false, partial.iter().map(|(_, db)| db.as_slice()));
            for (o, db) in db.chunks_exact_mut(rank).enumerate() {
                for (j, db) in db.iter_mut().enumerate() {
                    let sum = sum[j * out + o];
                    *db = if accumulate { *db + sum } else { sum };
                }
            }
        });
    }
}

#[expect(clippy::too_many_arguments, reason = "the operands of one formula")]
fn forward_host(
    x: &Tensor,
    w0: &Tensor,
    a: &Tensor,
    b: &Tensor,
    mask: Option<&Tensor>,
    bias: Option<&[f32]>,
    scaling: f32,
    dims: Dims,
    rank: usize,
) -> Result<(Output, Tensor)> {
    let Dims { rows, inner, out } = dims;
    let mut y = vec![0.0; rows * out];
    let mut z = vec![0.0; rows * rank];
    let masked = match mask {
        Some(mask) => x.detach().mul(mask)?,
        None => x.detach(),
    };
    with_host(&[x.detach(), w0.clone(), a.detach(), b.detach()], &masked, |inputs, masked| {
        let &[x, w0, a, b] = inputs else { unreachable!("four tensors were lent") };
        let w0 = Packed::transposed(w0, out, inner);
        let a = Packed::transposed(a, rank, inner);
        let b = Packed::transposed(b, out, rank);
        let outputs = y.par_chunks_mut(ROWS * out).zip(z.par_chunks_mut(ROWS * rank));
        let inputs = x.par_chunks(ROWS * inner).zip(masked.par_chunks(ROWS * inner));
        outputs.zip(inputs).for_each(|((y, z), (x, masked))| {
            let count = x.len() / inner;
            multiply(Target::new(z, count, rank), &[(Mat::new(masked, inner), &a)]);
            for z in &mut *z {
                *z *= scaling;
            }
            multiply(with_bias(y, out, bias), &[(Mat::new(x, inner), &w0), (Mat::new(z, rank), &b)]);
        });
    })?;
    Ok((Output::Host(y), Tensor::from_vec(z, (rows, rank), &Device::Cpu)?))
}

fn forward_device(
    x: &Tensor,
    w0: &Tensor,
    a: &Tensor,
    b: &Tensor,
    mask: Option<&Tensor>,
    scaling: f32,
) -> Result<(Output, Tensor)> {
    let masked = match mask {
        Some(mask) => x.mul(mask)?,
        None => x.clone(),
    };
    let z = (masked.matmul(&a.t()?)? * f64::from(scaling))?;
    let y = (x.matmul(&w0.t()?)? + z.matmul(&b.t()?)?)?;
    Ok((Output::Device(y), z))
}
