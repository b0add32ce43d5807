//! Rotary positions: adjacent pairs of each head are rotated, as in llama2.c.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::graph::{Backward, HostArgs, Output, Sink, node, with_values};
use super::{Result, check, parallel};

/// Cosine and sine of `position * inv_freq[i]` for each row. Build it once for a batch: all layers share it.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// [rows, head_size / 2].
    cos: Tensor,
    /// [rows, head_size / 2].
    sin: Tensor,
    rows: usize,
    half: usize,
}

impl RopeTable {
    /// One entry per row of the activations (rows = batch * sequence length), `inv_freq` [head_size / 2].
    ///
    /// # Errors
    /// If there is no row or no frequency, or the tensor library fails.
    pub fn new(positions: &[u32], inv_freq: &[f32], device: &Device) -> Result<Self> {
        let (rows, half) = (positions.len(), inv_freq.len());
        check::value("rope", "the number of positions", rows > 0, || "at least 1".into(), rows)?;
        check::value("rope", "the number of frequencies", half > 0, || "at least 1".into(), half)?;
        let angles = || positions.iter().flat_map(|&p| inv_freq.iter().map(move |f| p as f32 * f));
        let cos: Vec<f32> = angles().map(f32::cos).collect();
        let sin: Vec<f32> = angles().map(f32::sin).collect();
        Ok(Self {
            cos: Tensor::from_vec(cos, (rows, half), device)?,
            sin: Tensor::from_vec(sin, (rows, half), device)?,
            rows,
            half,
        })
    }

    /// Number of values of one head.
    pub fn head_size(&self) -> usize {
        2 * self.half
    }
}

/// Rotates each pair `(2i, 2i + 1)` of each head by the row's angle `i`.
///
/// `x` [rows, heads * head_size]; `rows` and `head_size` are the table's.
///
/// # Errors
/// If the shape or type does not fit the table.
pub fn rope(x: &Tensor, table: &RopeTable) -> Result<Tensor> {
    let (rows, width) = check::matrix("rope", "x", x)?;
    let head = table.head_size();
    check::value(
        "rope",
        "the width of x",
        width > 0 && width % head == 0,
        || format!("a multiple of {head}"),
        width,
    )?;
    check::value("rope", "the number of rows of x", rows == table.rows, || table.rows.to_string(), rows)?;
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return Ok(super::cuda::rope(x, &table.cos, &table.sin)?);
    }
    if !x.device().is_cpu() {
        return rope_composed(x, table);
    }
    let x = x.contiguous()?;
    let mut y = vec![0.0; rows * width];
    with_values(&x, |x| rotate(&mut y, false, x, table, 1.0))??;
    Ok(node(&[&x], Output::Host(y), (rows, width), || Rope { table: table.clone() })?)
}

/// [`rope`] in plain candle operators.
///
/// # Errors
/// Those of the tensor library.
pub fn rope_composed(x: &Tensor, table: &RopeTable) -> Result<Tensor> {
    let (rows, width) = check::matrix("rope", "x", x)?;
    let heads = width / table.head_size();
    let pairs = x.reshape((rows, heads, table.half, 2))?;
    let even = pairs.narrow(3, 0, 1)?;
    let odd = pairs.narrow(3, 1, 1)?;
    let cos = table.cos.reshape((rows, 1, table.half, 1))?;
    let sin = table.sin.reshape((rows, 1, table.half, 1))?;
    let new_even = (even.broadcast_mul(&cos)? - odd.broadcast_mul(&sin)?)?;
    let new_odd = (even.broadcast_mul(&sin)? + odd.broadcast_mul(&cos)?)?;
    Ok(Tensor::cat(&[new_even, new_odd], 3)?.reshape((rows, width))?)
}

/// Rotates by `direction` times the angle: forward 1, backward -1.
fn rotate(
    y: &mut [f32],
    accumulate: bool,
    x: &[f32],
    table: &RopeTable,
    direction: f32,
) -> candle_core::Result<()> {
    let width = x.len() / table.rows;
    let half = table.half;
    let piece = parallel::rows_per_piece(width);
    with_values(&table.cos, |cos| {
        with_values(&table.sin, |sin| {
            let angles = cos.par_chunks(piece * half).zip(sin.par_chunks(piece * half));
            let values = y.par_chunks_mut(piece * width).zip(x.par_chunks(piece * width));
            values.zip(angles).for_each(|((y, x), (cos, sin))| {
                let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
                for ((y, x), (cos, sin)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(angles) {
                    for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                        let pairs = y.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0);
                        for ((y, x), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                            let sin = direction * sin;
                            let rotated = [x[0] * cos - x[1] * sin, x[0] * sin + x[1] * cos];
                            *y = if accumulate { [y[0] + rotated[0], y[1] + rotated[1]] } else { rotated };
                        }
                    }
                }
            });
        })
    })?
}

struct Rope {
    table: RopeTable,
}

impl Backward for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        sinks[0].write(args.grad.len(), |dx, accumulate| {
            rotate(dx, accumulate, &args.grad, &self.table, -1.0).expect("the forward read the same table");
        });
    }
}
