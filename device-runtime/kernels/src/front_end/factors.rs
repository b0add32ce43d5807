//! The factors of the front end's Fourier transform, computed when compiled: points of the unit circle, each part the nearest f32.

use rankpatch_format::front_end::FFT_SAMPLES;

/// Of the pass over the real numbers' two halves: (cos, -sin)(2 pi k / 512) for k = 1..=128.
#[allow(clippy::indexing_slicing, reason = "computed when compiled")]
pub(crate) static HALVES: [[f32; 2]; FFT_SAMPLES / 4] = {
    let mut factors = [[0.0; 2]; FFT_SAMPLES / 4];
    let mut k = 0;
    while k < factors.len() {
        factors[k] = turn(k + 1);
        k += 1;
    }
    factors
};

/// Of two stages at a time: for q = 4, 16, 64 one after the other, and for each k < q, (cos, -sin)(2 pi k / 2q), then (cos, -sin)(2 pi k / 4q).
#[allow(clippy::indexing_slicing, reason = "computed when compiled")]
#[cfg(all(target_arch = "arm", target_abi = "eabihf", any(feature = "dsp", feature = "helium")))]
pub(crate) static TWIDDLES: [[f32; 4]; 4 + 16 + 64] = {
    let mut twiddles = [[0.0; 4]; 4 + 16 + 64];
    let (mut q, mut at) = (4, 0);
    while q <= 64 {
        let mut k = 0;
        while k < q {
            let ([a, b], [c, d]) = (turn(k * FFT_SAMPLES / (2 * q)), turn(k * FFT_SAMPLES / (4 * q)));
            twiddles[at] = [a, b, c, d];
            (k, at) = (k + 1, at + 1);
        }
        q *= 4;
    }
    twiddles
};

/// (cos, -sin)(2 pi k / 512) for k up to half a turn.
const fn turn(k: usize) -> [f32; 2] {
    const QUARTER: usize = FFT_SAMPLES / 4;
    if k <= QUARTER { [sine(QUARTER - k), -sine(k)] } else { [-sine(k - QUARTER), -sine(2 * QUARTER - k)] }
}

/// sin(2 pi k / 512) for a quarter of a turn, by its series in double precision.
const fn sine(k: usize) -> f32 {
    let x = core::f64::consts::TAU * k as f64 / FFT_SAMPLES as f64;
    let (mut sum, mut term, mut n) = (0.0, x, 1.0);
    while n < 30.0 {
        sum += term;
        term *= -x * x / ((n + 1.0) * (n + 2.0));
        n += 2.0;
    }
    sum as f32
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn factors_are_the_nearest_numbers() {
        for (k, [cos, sin]) in (1..).zip(&HALVES) {
            let angle = core::f64::consts::TAU * f64::from(k) / FFT_SAMPLES as f64;
            // cos(pi / 2) is not exactly 0 in f64.
            let expected = if k == 128 { 0.0 } else { angle.cos() as f32 };
            assert_eq!([*cos, *sin], [expected, -angle.sin() as f32], "k = {k}");
        }
    }
}
