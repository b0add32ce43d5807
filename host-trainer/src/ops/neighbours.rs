//! A row and those around it side by side: with a linear layer behind it, a convolution over the rows of a sequence.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::graph::{Backward, HostArgs, Output, Sink, node, with_values};
use super::{Result, check};

/// `y[b, t] = x[b, t - reach], ..., x[b, t + reach]` side by side; rows outside of the sequence, and its padding, are zero.
///
/// `x` [lengths.len() * seq, width]; gives [lengths.len() * seq, (2 * reach + 1) * width].
///
/// # Errors
/// If a shape or type does not fit or a length is not in 1..=seq.
pub fn neighbours(x: &Tensor, seq: usize, lengths: &[usize], reach: usize) -> Result<Tensor> {
    let width = check_rows(x, seq, lengths)?;
    if !x.device().is_cpu() {
        return neighbours_composed(x, seq, lengths, reach);
    }
    let x = x.contiguous()?;
    let wide = (2 * reach + 1) * width;
    let op = Neighbours { seq, width, reach, lengths: lengths.to_vec() };
    let mut y = vec![0.0; lengths.len() * seq * wide];
    with_values(&x, |x| {
        let sequences = y.par_chunks_mut(seq * wide).zip(x.par_chunks(seq * width)).zip(lengths);
        sequences.for_each(|((y, x), length)| {
            for (t, y) in y.chunks_exact_mut(wide).enumerate() {
                for (part, from) in op.parts(t, *length) {
                    y[part * width..][..width].copy_from_slice(&x[from * width..][..width]);
                }
            }
        });
    })?;
    Ok(node(&[&x], Output::Host(y), (lengths.len() * seq, wide), || op)?)
}

/// [`neighbours`] in plain candle operators.
///
/// # Errors
/// As [`neighbours`].
pub fn neighbours_composed(x: &Tensor, seq: usize, lengths: &[usize], reach: usize) -> Result<Tensor> {
    let width = check_rows(x, seq, lengths)?;
    let batch = lengths.len();
    let valid = |length: &usize| (0..seq).map(|t| f32::from(u8::from(t < *length))).collect::<Vec<_>>();
    let mask: Vec<f32> = lengths.iter().flat_map(valid).collect();
    let mask = Tensor::from_vec(mask, (batch, seq, 1), &Device::Cpu)?.to_device(x.device())?;
    let padded = x.reshape((batch, seq, width))?.broadcast_mul(&mask)?.pad_with_zeros(1, reach, reach)?;
    let parts: Vec<Tensor> =
        (0..=2 * reach).map(|from| padded.narrow(1, from, seq)).collect::<candle_core::Result<_>>()?;
    Ok(Tensor::cat(&parts, 2)?.reshape((batch * seq, (2 * reach + 1) * width))?)
}

/// Returns the width.
fn check_rows(x: &Tensor, seq: usize, lengths: &[usize]) -> Result<usize> {
    let op = "neighbours";
    let (_, width) = check::matrix(op, "x", x)?;
    check::shape(op, "x", x, &[lengths.len() * seq, width])?;
    for &length in lengths {
        check::value(op, "a length", (1..=seq).contains(&length), || format!("1 to {seq}"), length)?;
    }
    Ok(width)
}

struct Neighbours {
    seq: usize,
    width: usize,
    reach: usize,
    lengths: Vec<usize>,
}

impl Neighbours {
    /// The parts of row `t` that a row of the sequence fills, each with that row.
    fn parts(&self, t: usize, length: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let reach = self.reach;
        (0..=2 * reach)
            .filter_map(move |part| Some((part, (t + part).checked_sub(reach).filter(|row| *row < length)?)))
    }
}

impl Backward for Neighbours {
    fn name(&self) -> &'static str {
        "neighbours"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let &Self { seq, width, reach, ref lengths } = self;
        let wide = (2 * reach + 1) * width;
        sinks[0].write(args.inputs[0].len(), |dx, accumulate| {
            let sequences = dx.par_chunks_mut(seq * width).zip(args.grad.par_chunks(seq * wide)).zip(lengths);
            sequences.for_each(|((dx, dy), length)| {
                if !accumulate {
                    dx.fill(0.0);
                }
                for (t, dy) in dy.chunks_exact(wide).enumerate() {
                    for (part, to) in self.parts(t, *length) {
                        let dx = &mut dx[to * width..][..width];
                        for (dx, dy) in dx.iter_mut().zip(&dy[part * width..]) {
                            *dx += dy;
                        }
                    }
                }
            });
        });
    }
}
