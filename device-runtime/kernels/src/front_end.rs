//! One frame of the audio front end: from i16 samples to cepstral coefficients, with one result on every core. IEEE single precision, no fused
//! multiply-add, sums in order. It knows nothing of streams: [`frame`] reads a whole frame.
//!
//! The Fourier transform is microfft's, which is plain arithmetic over a table of sines; `SPEC.md` states its order, since its roundings
//! are part of the file format. The version is pinned for the same reason.

use core::cell::Cell;

use rankpatch_format::digest::{Digest, XorShift32};
use rankpatch_format::front_end::{FFT_BINS, FFT_SAMPLES, FrontEnd};

use crate::float::inv_sqrt;

/// Numbers of scratch that [`frame`] needs.
pub const fn scratch_len(bands: usize) -> usize {
    FFT_SAMPLES.saturating_add(bands)
}

/// The coefficients of one frame, see [`rankpatch_format::front_end`].
///
/// `samples`: `[frame]`; `scratch`: [`scratch_len`] numbers, whose content does not matter; `y`: `[width]`. Does nothing if the scratch is too
/// short; missing samples are zero.
pub fn frame(front_end: &FrontEnd<'_>, samples: &[i16], scratch: &mut [f32], y: &mut [f32]) {
    let n_bands = front_end.bands.len();
    let Some((spectrum, energies)) = scratch.split_first_chunk_mut::<FFT_SAMPLES>() else { return };
    let Some(energies) = energies.get_mut(..n_bands) else { return };
    window(front_end.window, samples, spectrum);
    // In place: bin k as re and im at 2 k and 2 k + 1; im of bin 0 holds the last bin, which no band reads.
    _ = microfft::real::rfft_512(spectrum);
    let [_, last, ..] = spectrum;
    *last = 0.0;
    magnitudes(spectrum);
    let bins: &[f32] = spectrum.first_chunk::<FFT_BINS>().unwrap_or(&[0.0; FFT_BINS]);
    let mut weights = front_end.mel;
    for (energy, [first, count]) in energies.iter_mut().zip(front_end.bands) {
        // Whole numbers within the spectrum: checked when the base was read.
        let (own, rest) = weights.split_at_checked(*count as usize).unwrap_or((&[], &[]));
        weights = rest;
        let bins = bins.get(*first as usize..).unwrap_or(&[]);
        let sum = own.iter().zip(bins).fold(0.0, |sum, (weight, bin)| sum + weight * bin);
        *energy = ln(if sum > front_end.floor { sum } else { front_end.floor });
    }
    cosines(front_end.dct, energies, y);
}

/// The digest of the coefficients of four signals: noise, silence, a square wave of full scale, and one impulse. What it is, any other core
/// says as well.
///
/// `samples`: `[frame]`, `y`: `[width]`; `scratch` as for [`frame`].
pub fn signals_digest(
    front_end: &FrontEnd<'_>,
    samples: &mut [i16],
    scratch: &mut [f32],
    y: &mut [f32],
) -> u64 {
    let mut random = XorShift32::new(21);
    let mut digest = Digest::default();
    for signal in 0..4 {
        for (index, sample) in samples.iter_mut().enumerate() {
            *sample = match signal {
                0 => (random.next_u32() >> 16) as u16 as i16,
                1 => 0,
                2 if index / 20 % 2 == 0 => i16::MAX,
                2 => i16::MIN,
                _ if index == 200 => 12_345,
                _ => 0,
            };
        }
        frame(front_end, samples, scratch, y);
        digest.update(y);
    }
    digest.value()
}

/// x\[i\] = samples\[i\] window\[i\], zeros behind them.
fn window(window: &[f32], samples: &[i16], x: &mut [f32; FFT_SAMPLES]) {
    let len = window.len().min(samples.len()).min(x.len());
    let (Some(window), Some(samples)) = (window.get(..len), samples.get(..len)) else { return };
    let (x, zeros) = x.split_at_mut(len);
    let ((x8, x1), (window8, window1), (samples8, samples1)) =
        (x.as_chunks_mut::<8>(), window.as_chunks::<8>(), samples.as_chunks::<8>());
    for ((x, window), samples) in x8.iter_mut().zip(window8).zip(samples8) {
        for ((x, window), sample) in x.iter_mut().zip(window).zip(samples) {
            *x = f32::from(*sample) * window;
        }
    }
    for ((x, window), sample) in x1.iter_mut().zip(window1).zip(samples1) {
        *x = f32::from(*sample) * window;
    }
    zeros.fill(0.0);
}

/// x\[k\] = |bin k|, in place.
fn magnitudes(x: &mut [f32; FFT_SAMPLES]) {
    let x = Cell::from_mut(&mut x[..]).as_slice_of_cells();
    for (magnitude, [re, im]) in x.iter().zip(x.as_chunks::<2>().0) {
        let square = re.get() * re.get() + im.get() * im.get();
        // At 0 the second factor is finite.
        magnitude.set(square * inv_sqrt(square));
    }
}

/// y\[k\] = sum over the left half of dct\[k, n\] (l\[n\] + (-1)^k l\[bands - 1 - n\]).
fn cosines(dct: &[f32], l: &mut [f32], y: &mut [f32]) {
    let half = l.len() / 2;
    let Some((left, right)) = l.split_at_mut_checked(half) else { return };
    // Sums stay on the left, differences on the right, which is turned around by reading it from its end.
    for (left, right) in left.iter_mut().zip(right.iter_mut().rev()) {
        (*left, *right) = (*left + *right, *left - *right);
    }
    right.reverse();
    for (pair, rows) in y.chunks_mut(2).zip(dct.chunks(2 * half.max(1))) {
        let (even, odd) = rows.split_at_checked(half).unwrap_or((rows, &[]));
        let [sum, difference] = [dot(even, left), dot(odd, right)];
        for (y, value) in pair.iter_mut().zip([sum, difference]) {
            *y = value;
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let len = a.len().min(b.len());
    let (Some(a), Some(b)) = (a.get(..len), b.get(..len)) else { return 0.0 };
    let ((a8, a1), (b8, b1)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let sum = a8.iter().zip(b8).fold(0.0, |sum, (a, b)| {
        let [a0, a1, a2, a3, a4, a5, a6, a7] = *a;
        let [b0, b1, b2, b3, b4, b5, b6, b7] = *b;
        sum + a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3 + a4 * b4 + a5 * b5 + a6 * b6 + a7 * b7
    });
    a1.iter().zip(b1).fold(sum, |sum, (a, b)| sum + a * b)
}

/// ln(x) for positive, normal x, error below 1e-7 (absolute up to e, relative beyond).
///
/// x = 2^e m with m in sqrt(1/2)..sqrt(2), then the polynomial of Cephes `logf` in m - 1.
pub fn ln(x: f32) -> f32 {
    // Bits of sqrt(1/2): what lies above them counts whole powers of two.
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let above = x.to_bits().wrapping_sub(SQRT_HALF);
    let exponent = ((above as i32) >> 23) as f32;
    let f = f32::from_bits((above & 0x007f_ffff).wrapping_add(SQRT_HALF)) - 1.0;
    let z = f * f;
    let p = [
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ]
    .into_iter()
    .fold(7.037_683_6e-2, |p, c| p * f + c);
    let y = f * z * p + exponent * -2.121_944_4e-4 - 0.5 * z;
    f + y + exponent * 0.693_359_4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_is_as_accurate_as_stated() {
        let mut worst = 0.0_f64;
        for i in 0..2_000_000_u32 {
            // All exponents of normal numbers, with mantissas of all sizes.
            let x = f32::from_bits(0x0080_0000 + i.wrapping_mul(1061) % 0x7f00_0000);
            let exact = f64::from(x).ln();
            worst = worst.max((f64::from(ln(x)) - exact).abs() / exact.abs().max(1.0));
        }
        assert!(worst < 1e-7, "{worst}");
        assert_eq!(ln(1.0), 0.0);
    }
}
