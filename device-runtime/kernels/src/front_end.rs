//! One frame of the audio front end: from i16 samples to cepstral coefficients, with one result on every core. IEEE single precision, no fused
//! multiply-add, sums in order. It knows nothing of streams: [`frame`] reads a whole frame.
//!
//! The Fourier transform is microfft's, which is plain arithmetic over a table of sines; `SPEC.md` states its order, since its roundings
//! are part of the file format. The version is pinned for the same reason. Cores with an FPU compute the same terms two stages at a time.

pub(crate) mod factors;
#[cfg(not(all(target_arch = "arm", target_abi = "eabihf", any(feature = "dsp", feature = "helium"))))]
mod portable;

use rankpatch_format::digest::{Digest, XorShift32};
use rankpatch_format::front_end::{FFT_BINS, FFT_SAMPLES, FrontEnd};

#[cfg(all(target_arch = "arm", target_abi = "eabihf", any(feature = "dsp", feature = "helium")))]
use super::smlad::front_end as core_front_end;
#[cfg(not(all(target_arch = "arm", target_abi = "eabihf", any(feature = "dsp", feature = "helium"))))]
use portable as core_front_end;

/// Complex numbers, real part first.
pub(crate) type Points = [[f32; 2]; FFT_BINS];

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
    let Some((points, energies)) = scratch.split_first_chunk_mut::<FFT_SAMPLES>() else { return };
    let Some(energies) = energies.get_mut(..n_bands) else { return };
    let Some(points) = points.as_chunks_mut().0.first_chunk_mut() else { return };
    let len = front_end.window.len().min(samples.len());
    let (Some(window), Some(samples)) = (front_end.window.get(..len), samples.get(..len)) else { return };
    core_front_end::spectrum(window, samples, points);
    core_front_end::sum_bands(front_end.bands, front_end.mel, points, energies);
    core_front_end::logarithms(energies, front_end.floor);
    let Some((sums, differences)) = energies.split_at_mut_checked(n_bands / 2) else { return };
    differences.reverse();
    for (left, right) in sums.iter_mut().zip(&mut *differences) {
        (*left, *right) = (*left + *right, *left - *right);
    }
    core_front_end::cosines(front_end.dct, sums, differences, y);
}

/// Copies samples of two bytes each, the low one first, as far as both reach; they may lie anywhere.
pub fn copy_samples(to: &mut [i16], from: &[[u8; 2]]) {
    core_front_end::copy_samples(to, from);
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

/// The bits of sqrt(1/2): what lies above them counts whole powers of two.
pub(crate) const SQRT_HALF: u32 = 0x3f35_04f3;
/// P of [`ln`] from its highest power down: that of Cephes `logf`.
pub(crate) const LN_POLYNOMIAL: [f32; 9] = [
    7.037_683_6e-2,
    -1.151_461e-1,
    1.167_699_84e-1,
    -1.242_014_1e-1,
    1.424_932_3e-1,
    -1.666_805_7e-1,
    2.000_071_5e-1,
    -2.499_999_4e-1,
    3.333_333e-1,
];

/// ln(x) for positive, normal x, error below 1.2e-7 (absolute up to e, relative beyond).
///
/// x = 2^e (1 + f) with 1 + f in sqrt(1/2)..sqrt(2); (f + (f^3 P(f) - f^2 / 2)) + e ln 2.
pub fn ln(x: f32) -> f32 {
    let above = x.to_bits().wrapping_sub(SQRT_HALF);
    let exponent = ((above as i32) >> 23) as f32;
    let f = f32::from_bits((above & 0x007f_ffff).wrapping_add(SQRT_HALF)) - 1.0;
    let z = f * f;
    let [first, rest @ ..] = LN_POLYNOMIAL;
    let p = rest.into_iter().fold(first, |p, c| p * f + c);
    f + (f * z * p - 0.5 * z) + exponent * core::f32::consts::LN_2
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
        assert!(worst < 1.2e-7, "{worst}");
        assert_eq!(ln(1.0), 0.0);
    }
}
