//! Magnitude spectra of real frames.

use std::f64::consts::TAU;

/// A radix-2 Fourier transform of one length.
#[derive(Debug, Clone)]
pub(super) struct Spectrum {
    /// e^(-i TAU k / n) for k < n / 2, as (re, im).
    twiddles: Vec<(f64, f64)>,
    n: usize,
}

impl Spectrum {
    /// A transform of `n` samples, a power of two of at least 2.
    pub(super) fn new(n: usize) -> Self {
        assert!(
            n.is_power_of_two() && n >= 2,
            "a radix-2 transform has a power of two of samples, found {n}"
        );
        let angle = |k: usize| -TAU * k as f64 / n as f64;
        Self { twiddles: (0..n / 2).map(|k| (angle(k).cos(), angle(k).sin())).collect(), n }
    }

    /// |X\[k\]| of the first `bins.len()` bins of `frame`, which is padded with zeros to n.
    pub(super) fn magnitudes(&self, frame: &[f64], bins: &mut [f64]) {
        let n = self.n;
        let shift = usize::BITS - n.trailing_zeros();
        let mut x = vec![(0.0, 0.0); n];
        for (index, sample) in frame.iter().take(n).enumerate() {
            x[index.reverse_bits() >> shift].0 = *sample;
        }
        let mut half = 1;
        while half < n {
            let stride = n / (2 * half);
            for block in x.chunks_exact_mut(2 * half) {
                let (low, high) = block.split_at_mut(half);
                for ((low, high), (re, im)) in
                    low.iter_mut().zip(high).zip(self.twiddles.iter().step_by(stride))
                {
                    let turned = (high.0 * re - high.1 * im, high.0 * im + high.1 * re);
                    *high = (low.0 - turned.0, low.1 - turned.1);
                    *low = (low.0 + turned.0, low.1 + turned.1);
                }
            }
            half *= 2;
        }
        for (bin, (re, im)) in bins.iter_mut().zip(x) {
            *bin = re.hypot(im);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the sum that defines the transform, for a frame that is padded.
    #[test]
    fn is_the_discrete_fourier_transform() {
        let n = 32;
        let frame: Vec<f64> = (0..21).map(|t| (0.7 * t as f64).sin() + 0.1 * t as f64 - 0.4).collect();
        let mut bins = [0.0; 17];
        Spectrum::new(n).magnitudes(&frame, &mut bins);
        for (k, bin) in bins.iter().enumerate() {
            let angle = |t: usize| -TAU * (k * t) as f64 / n as f64;
            let re: f64 = frame.iter().enumerate().map(|(t, x)| x * angle(t).cos()).sum();
            let im: f64 = frame.iter().enumerate().map(|(t, x)| x * angle(t).sin()).sum();
            assert!((bin - re.hypot(im)).abs() < 1e-12, "bin {k}: expected {}, found {bin}", re.hypot(im));
        }
    }
}
