//! RMSNorm and LayerNorm over rows. Weights are frozen in most runs; those that are not get their gradients here too.

use candle_core::{D, Tensor};
use rayon::prelude::*;

use super::elementwise::add_bias;
use super::graph::{Backward, HostArgs, Output, Sink, node, with_values};
use super::simd::{sum_by, vectorized};
use super::{Result, check, parallel};

/// `y[r, c] = x[r, c] / sqrt(mean over c of x[r, c]^2 + eps) * weight[c]`.
///
/// `x` [rows, width], `weight` [width].
///
/// # Errors
/// If a shape or type does not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    norm("rms_norm", x, weight, None, eps)
}

/// `y[r, c] = (x[r, c] - mean) / sqrt(variance + eps) * weight[c] + bias[c]` with the row's (biased) mean and variance.
///
/// `x` [rows, width], `weight` and `bias` [width]; the bias is trained alone, both are, or neither. Values are the same either way.
///
/// # Errors
/// If a shape or type does not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    if !bias.track_op() || weight.track_op() {
        return norm("layer_norm", x, weight, Some(bias), eps);
    }
    check::shape("layer_norm", "the bias", bias, weight.dims())?;
    add_bias(&norm("layer_norm", x, weight, Some(&bias.zeros_like()?.detach()), eps)?, bias)
}

/// [`rms_norm`] in plain candle operators.
///
/// # Errors
/// Those of the tensor library.
pub fn rms_norm_composed(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    Ok(x.broadcast_div(&scale)?.broadcast_mul(weight)?)
}

/// [`layer_norm`] in plain candle operators.
///
/// # Errors
/// Those of the tensor library.
pub fn layer_norm_composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let scale = (centered.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    Ok(centered.broadcast_div(&scale)?.broadcast_mul(weight)?.broadcast_add(bias)?)
}

fn norm(op: &'static str, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let (rows, width) = check::matrix(op, "x", x)?;
    check::shape(op, "the weight", weight, &[width])?;
    if let Some(bias) = bias {
        check::shape(op, "the bias", bias, &[width])?;
    }
    check::value(op, "the width", width > 0, || "at least 1".into(), width)?;
    let trained = weight.track_op();
    if let Some(bias) = bias {
        let kind = |trained| if trained { "trained" } else { "frozen" };
        let alike = bias.track_op() == trained;
        let expected = || format!("{}, as the weight is", kind(trained));
        check::value(op, "the bias", alike, expected, kind(!trained))?;
    }
    // The kernels are for frozen weights.
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() && !trained {
        return Ok(super::cuda::norm(op, x, weight, bias, eps)?);
    }
    if !x.device().is_cpu() && !trained {
        return match bias {
            Some(bias) => layer_norm_composed(x, weight, bias, eps),
            None => rms_norm_composed(x, weight, eps),
        };
    }
    let x = x.contiguous()?;
    let inputs: Vec<&Tensor> = match bias {
        Some(bias) if trained => vec![&x, weight, bias],
        None if trained => vec![&x, weight],
        _ => vec![&x],
    };
    if !x.device().is_cpu() {
        let y = match bias {
            Some(bias) => layer_norm_composed(&x.detach(), &weight.detach(), &bias.detach(), eps)?,
            None => rms_norm_composed(&x.detach(), &weight.detach(), eps)?,
        };
        let op = || Norm { op, centered: bias.is_some(), weight: Vec::new(), eps };
        return Ok(node(&inputs, Output::Device(y), (rows, width), op)?);
    }
    let weight: Vec<f32> = weight.to_vec1()?;
    let bias: Option<Vec<f32>> = bias.map(Tensor::to_vec1).transpose()?;
    let mut y = vec![0.0; rows * width];
    with_values(&x, |x| {
        let piece = parallel::rows_per_piece(width) * width;
        y.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(y, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        normalize(y, x, &weight, bias.as_deref(), eps);
                    }
                },
            );
        });
    })?;
    Ok(node(&inputs, Output::Host(y), (rows, width), || Norm { op, centered: bias.is_some(), weight, eps })?)
}

#[inline(always)]
fn normalize(y: &mut [f32], x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32) {
    let (mean, scale) = statistics(x, bias.is_some(), eps);
    for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
        *y = (x - mean) * scale * weight;
    }
    if let Some(bias) = bias {
        for (y, bias) in y.iter_mut().zip(bias) {
            *y += bias;
        }
    }
}

/// Mean (0 unless centered) and 1 / standard deviation of a row.
#[inline(always)]
fn statistics(x: &[f32], centered: bool, eps: f32) -> (f32, f32) {
    let width = x.len() as f32;
    let mean = if centered { sum_by(x.len(), |c| x[c]) / width } else { 0.0 };
    let square = sum_by(x.len(), |c| (x[c] - mean) * (x[c] - mean)) / width;
    (mean, 1.0 / (square + eps).sqrt())
}

struct Norm {
    op: &'static str,
    centered: bool,
    /// Empty on other devices than the CPU.
    weight: Vec<f32>,
    eps: f32,
}

impl Backward for Norm {
    fn name(&self) -> &'static str {
        self.op
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let x = args.inputs[0];
        let width = self.weight.len();
        let piece = parallel::rows_per_piece(width) * width;
        sinks[0].write(x.len(), |dx, accumulate| {
            let inputs = x.par_chunks(piece).zip(args.grad.par_chunks(piece));
            dx.par_chunks_mut(piece).zip(inputs).for_each(|(dx, (x, dy))| {
                vectorized(
                    #[inline(always)]
                    || {
                        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
                        for (dx, (x, dy)) in dx.chunks_exact_mut(width).zip(rows) {
                            self.row(dx, accumulate, x, dy);
                        }
                    },
                );
            });
        });
        if sinks.len() > 1 {
            let partial: Vec<Vec<f32>> = x
                .par_chunks(piece)
                .zip(args.grad.par_chunks(piece))
                .map(|(x, dy)| self.weight_gradients(x, dy))
                .collect();
            for (index, sink) in sinks[1..].iter_mut().enumerate() {
                let own = partial.iter().map(|sums| &sums[index * width..][..width]);
                sink.write(width, |sum, accumulate| parallel::sum_in_order(sum, accumulate, own));
            }
        }
    }

    /// With a trained weight, in candle's operators.
    fn device(
        &self,
        inputs: &[Tensor],
        grad: &Tensor,
        wanted: &[bool],
    ) -> candle_core::Result<Vec<Option<Tensor>>> {
        // With a frozen weight it has a kernel there.
        let [x, weight, ..] = inputs else {
            return Err(candle_core::Error::BackwardNotSupported { op: self.op });
        };
        let x = if self.centered { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x.clone() };
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(self.eps))?.sqrt()?.recip()?;
        let n = x.broadcast_mul(&scale)?;
        let mut grads = vec![None, Some((grad * &n)?.sum(0)?)];
        if self.centered {
            grads.push(Some(grad.sum(0)?));
        }
        if wanted[0] {
            let g = grad.broadcast_mul(weight)?;
            let along = n.broadcast_mul(&(&g * &n)?.mean_keepdim(D::Minus1)?)?;
            let g = if self.centered { g.broadcast_sub(&g.mean_keepdim(D::Minus1)?)? } else { g };
            grads[0] = Some((g - along)?.broadcast_mul(&scale)?);
        }
        Ok(grads)
    }
}

impl Norm {
    /// With `n` as below, the sums over some rows of `dy * n` (for the weight), then of `dy` (for the bias).
    fn weight_gradients(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let width = self.weight.len();
        let mut sums = vec![0.0; 2 * width];
        let (weight, bias) = sums.split_at_mut(width);
        for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(width)) {
            let (mean, scale) = statistics(x, self.centered, self.eps);
            for c in 0..width {
                weight[c] += dy[c] * ((x[c] - mean) * scale);
                bias[c] += dy[c];
            }
        }
        sums
    }

    /// With `g = dy * weight` and `n = (x - mean) * scale`:
    /// `dx = scale (g - [mean of g, if centered] - n * mean of g n)`.
    #[inline(always)]
    fn row(&self, dx: &mut [f32], accumulate: bool, x: &[f32], dy: &[f32]) {
        let width = dx.len();
        let (x, dy, weight) = (&x[..width], &dy[..width], &self.weight[..width]);
        let (mean, scale) = statistics(x, self.centered, self.eps);
        let mean_g = if self.centered { sum_by(width, |c| dy[c] * weight[c]) / width as f32 } else { 0.0 };
        let mean_gn = sum_by(width, |c| dy[c] * weight[c] * (x[c] - mean)) * scale / width as f32;
        for c in 0..width {
            let d = scale * (dy[c] * weight[c] - mean_g - (x[c] - mean) * scale * mean_gn);
            dx[c] = if accumulate { dx[c] + d } else { d };
        }
    }
}
