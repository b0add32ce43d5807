//! The audio front end of a model as an operator of the graph: from the tables of the published model to those that devices read.

use rankpatch_format::graph::Op;

use super::build::Builder;
use super::kwt::Tensors;
use crate::{Error, Result};

/// The window of a frame, for samples in -1..1.
const WINDOW: &str = "frontend.window";
/// The mel bands `[bands, bins]`.
pub(super) const MEL: &str = "frontend.mel";
/// The cosine transform `[coefficients, bands]`.
const DCT: &str = "frontend.dct";
/// The logarithm's argument is at least this.
const FLOOR: f32 = 1e-12;
/// i16 samples of one in a float sample.
const FULL_SCALE: f32 = 32_768.0;
/// Most that the halves of a row of the cosine transform may differ, of which only one is kept.
const ASYMMETRY: f32 = 1e-6;

/// What the tables do not say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sampling {
    /// Samples a second.
    pub(super) rate: u16,
    /// Samples from one frame to the next.
    pub(super) hop: u16,
}

/// The operator that makes frames of `width` coefficients, its tables appended to the network.
///
/// # Errors
/// As [`Tensors::take`]; [`Error::Field`] for an odd number of bands, or a transform whose rows are not symmetric and antisymmetric in turn.
pub(super) fn mfcc(
    net: &mut Builder,
    file: &mut Tensors<'_>,
    sampling: Sampling,
    width: usize,
) -> Result<Op> {
    let [n_bands, bins] = file.matrix_shape(MEL, [80, 244])?;
    let frame = file.vector_len(WINDOW, 480)?;
    let mut window = file.take(WINDOW, &[frame])?;
    // A power of two: the product of sample and window is the same.
    window.iter_mut().for_each(|w| *w /= FULL_SCALE);
    let dct = file.take(DCT, &[width, n_bands])?;
    if !n_bands.is_multiple_of(2) {
        return Err(Error::field(file.path, "mel bands", "an even number", n_bands));
    }
    let mut half = Vec::with_capacity(dct.len() / 2);
    for (k, row) in dct.chunks_exact(n_bands).enumerate() {
        let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
        let (left, right) = row.split_at(n_bands / 2);
        if left.iter().zip(right.iter().rev()).any(|(a, b)| (a - sign * b).abs() > ASYMMETRY) {
            let expected = "a cosine transform, its rows symmetric and antisymmetric in turn";
            return Err(Error::field(file.path, DCT, expected, format!("another row {k}")));
        }
        half.extend_from_slice(left);
    }
    let (mut bands, mut weights) = (Vec::new(), Vec::new());
    for band in file.take(MEL, &[n_bands, bins])?.chunks_exact(bins) {
        let first = band.iter().position(|weight| *weight != 0.0).unwrap_or(0);
        let end = band.iter().rposition(|weight| *weight != 0.0).map_or(first, |last| last + 1);
        bands.extend([first as f32, (end - first) as f32]);
        weights.extend_from_slice(&band[first..end]);
    }
    Ok(Op::Mfcc {
        sample_rate: sampling.rate,
        // Longer windows than the transform are refused with the shapes.
        frame: u16::try_from(frame).unwrap_or(u16::MAX),
        hop: sampling.hop,
        floor: FLOOR,
        window: net.floats(WINDOW, 1, window),
        bands: net.floats("frontend.bands", n_bands, bands),
        mel: net.floats(MEL, 1, weights),
        dct: net.floats(DCT, width, half),
    })
}
