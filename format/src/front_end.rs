//! The tables of [`crate::graph::Op::Mfcc`], the operator from samples to features. How it is computed, in which order and with which roundings,
//! is in `SPEC.md`; this module only knows where the numbers are.
//!
//! Per frame: x = samples * window, zeros up to [`FFT_SAMPLES`]; m = |FFT(x)|; per band e = the sum of its bins' m times their weights,
//! l = ln(max(e, floor)); y\[k\] = sum over the left half n of the bands of dct\[k, n\] (l\[n\] + (-1)^k l\[bands - 1 - n\]).
//! The rows of a cosine transform are symmetric or antisymmetric in turn, so the left half of the matrix says it all.

/// Samples that go through the Fourier transform; a shorter frame is filled up with zeros.
pub const FFT_SAMPLES: usize = 512;
/// Bins that a band may read: the first half of the spectrum without the last bin, that of half the sample rate.
pub const FFT_BINS: usize = FFT_SAMPLES / 2;

/// The front end of a base, in place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrontEnd<'a> {
    /// Samples a second.
    pub sample_rate: u32,
    /// Samples of a frame.
    pub frame: usize,
    /// Samples from one frame to the next.
    pub hop: usize,
    /// The logarithm's argument is at least this.
    pub floor: f32,
    /// `[frame]`.
    pub window: &'a [f32],
    /// `[bands]`: first bin and number of bins, whole numbers.
    pub bands: &'a [[f32; 2]],
    /// Weights, one band after the other.
    pub mel: &'a [f32],
    /// `[width, bands / 2]`.
    pub dct: &'a [f32],
}

impl FrontEnd<'_> {
    /// Whole frames in `samples` samples.
    pub fn frames(&self, samples: usize) -> usize {
        match samples.checked_sub(self.frame) {
            Some(more) => more / self.hop.max(1) + 1,
            None => 0,
        }
    }

    /// Coefficients of a frame.
    pub fn width(&self) -> usize {
        self.dct.len() / (self.bands.len() / 2).max(1)
    }
}
