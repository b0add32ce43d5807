//! The loops of the front end in safe Rust, around microfft: what the host runs, and cores without an FPU.

use microfft::Complex32;

use super::factors::HALVES;
use super::{Points, ln};

pub(super) fn copy_samples(to: &mut [i16], from: &[[u8; 2]]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = i16::from_le_bytes(*from));
}

/// `x[k] = [2 |bin k|, _]` of the samples times the window, zeros behind them.
pub(super) fn spectrum(window: &[f32], samples: &[i16], x: &mut Points) {
    let flat = x.as_flattened_mut();
    let (terms, zeros) = flat.split_at_mut(flat.len().min(window.len()).min(samples.len()));
    for ((x, window), sample) in terms.iter_mut().zip(window).zip(samples) {
        *x = f32::from(*sample) * window;
    }
    zeros.fill(0.0);
    let points: &mut [Complex32; 256] = bytemuck::cast_mut(x);
    _ = microfft::complex::cfft_256(points);
    magnitudes(x);
}

/// From the transform of the pairs (even samples, odd samples) to twice the magnitudes of the samples' bins, in place.
fn magnitudes(x: &mut Points) {
    let (low, high) = x.split_at_mut(HALVES.len());
    let ([first, low @ ..], [middle, high @ ..]) = (low, high) else { return };
    first[0] = 2.0 * (first[0] + first[1]).abs();
    middle[0] = magnitude(middle[0] + middle[0], middle[1] + middle[1]);
    for ((xk, xn), [cos, sin]) in low.iter_mut().zip(high.iter_mut().rev()).zip(&HALVES) {
        let (sum, diff) = ([xk[0] + xn[0], xk[1] + xn[1]], [xk[0] - xn[0], xk[1] - xn[1]]);
        let p = cos * sum[1] + sin * diff[0];
        let q = sin * sum[1] - cos * diff[0];
        xk[0] = magnitude(sum[0] + p, diff[1] + q);
        xn[0] = magnitude(sum[0] - p, q - diff[1]);
    }
}

fn magnitude(re: f32, im: f32) -> f32 {
    libm::sqrtf(re * re + im * im)
}

/// Per band the sum of its bins, the first number of each point, times their weights.
pub(super) fn sum_bands(bands: &[[f32; 2]], mut weights: &[f32], points: &Points, energies: &mut [f32]) {
    for (energy, [first, count]) in energies.iter_mut().zip(bands) {
        // Whole numbers within the spectrum: checked when the base was read.
        let (own, rest) = weights.split_at_checked(*count as usize).unwrap_or((&[], &[]));
        weights = rest;
        let bins = points.get(*first as usize..).unwrap_or(&[]);
        *energy = own.iter().zip(bins).fold(0.0, |sum, (weight, [bin, _])| sum + weight * bin);
    }
}

/// `l[i] = ln(max(l[i] / 2, floor))`: of a spectrum that is twice as large as it is.
pub(super) fn logarithms(l: &mut [f32], floor: f32) {
    for l in l {
        let half = 0.5 * *l;
        *l = ln(if half > floor { half } else { floor });
    }
}

/// `y[k] = sum_n dct[k, n] t[n]`, t the sums for even k, the differences for odd ones.
pub(super) fn cosines(dct: &[f32], sums: &[f32], differences: &[f32], y: &mut [f32]) {
    let half = sums.len();
    for (pair, rows) in y.chunks_mut(2).zip(dct.chunks(2 * half.max(1))) {
        let (even, odd) = rows.split_at_checked(half).unwrap_or((rows, &[]));
        for (y, value) in pair.iter_mut().zip([dot(even, sums), dot(odd, differences)]) {
            *y = value;
        }
    }
}

/// In order, from 0.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b)
}
