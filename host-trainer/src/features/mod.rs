//! Feature rows from samples: by the device's own operator, so that training sees what the device will compute. [`Mfcc`] is the same in f64 and
//! from formulas, which tests compare it with.

pub mod mfcc;
mod spectrum;

use rankpatch_format::front_end::FrontEnd;
use rankpatch_runtime::kernels::front_end::{frame, scratch_len};

pub use mfcc::Mfcc;

/// The rows `[frames, width]` of all whole frames of `samples`, with the bits of the device.
pub fn rows(front_end: &FrontEnd<'_>, samples: &[i16]) -> Vec<f32> {
    let mut rows = vec![0.0; front_end.frames(samples.len()) * front_end.width()];
    let mut scratch = vec![0.0; scratch_len(front_end.bands.len())];
    let frames = samples.windows(front_end.frame).step_by(front_end.hop);
    for (samples, row) in frames.zip(rows.chunks_exact_mut(front_end.width())) {
        frame(front_end, samples, &mut scratch, row);
    }
    rows
}

/// Samples in -1..1 as a converter gives them: 16 bits, rounded to the nearest, clipped at full scale.
pub fn to_i16(samples: &[f32]) -> Vec<i16> {
    // The conversion saturates.
    samples.iter().map(|sample| (sample * 32_768.0).round_ties_even() as i16).collect()
}
