//! Elementary functions with the same bits on every core: IEEE single precision, no fused multiply-add, a fixed order. They are part of the file format (`format/SPEC.md`); the platform's own functions are never used.

#[cfg(test)]
use micromath::F32;

pub use crate::kernels::float::inv_sqrt;

/// 1.5 * 2^23: adding and subtracting it rounds a float below 2^22 to the nearest even integer.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// sin(x) and cos(x) for 0 <= x <= 65536, absolute error below 1e-6 up to 1024 rad.
///
/// x = n pi/2 + r in three parts of pi/2 (Cody and Waite), then the polynomials of Cephes `sinf` and `cosf`.
/// micromath's own pair is off by up to 2e-3, too coarse for rotary positions.
pub fn sin_cos(x: f32) -> (f32, f32) {
    let shifted = x * core::f32::consts::FRAC_2_PI + ROUND_MAGIC;
    let n = shifted - ROUND_MAGIC;
    let r = x - n * 1.570_312_5 - n * 4.837_513e-4 - n * 7.549_79e-8;
    let z = r * r;
    let sin = ((-1.951_529_6e-4 * z + 8.332_161e-3) * z - 1.666_665_5e-1) * (z * r) + r;
    let cos = ((2.443_315_7e-5 * z - 1.388_731_6e-3) * z + 4.166_664_6e-2) * (z * z) - 0.5 * z + 1.0;
    match shifted.to_bits() & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// The largest of `values`; -infinity for none. A NaN is passed over.
pub fn max(values: &[f32]) -> f32 {
    values.iter().fold(f32::NEG_INFINITY, |max, value| if *value > max { *value } else { max })
}

/// The first index of the largest of `values`; 0 for none.
pub fn argmax(values: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, value) in values.iter().enumerate() {
        if *value > best.1 {
            best = (index, *value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    fn worst(range: core::ops::RangeInclusive<f64>, error: impl Fn(f64) -> f64) -> f64 {
        let (low, high) = (*range.start(), *range.end());
        (0..=200_000).map(|i| error(low + (high - low) * i as f64 / 200_000.0)).fold(0.0, f64::max)
    }

    /// Relative error of a function of one variable.
    fn relative(range: core::ops::RangeInclusive<f64>, ours: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        worst(range, |x| {
            let x = x as f32;
            (f64::from(ours(x)) / exact(f64::from(x)) - 1.0).abs()
        })
    }

    #[test]
    fn inv_sqrt_is_as_accurate_as_stated() {
        for scale in [1e-30, 1e-5, 1.0, 1e10, 1e30] {
            let error = worst(1.0..=4.0, |x| {
                let x = (x * scale) as f32;
                (f64::from(inv_sqrt(x)) * f64::from(x).sqrt() - 1.0).abs()
            });
            assert!(error < 3e-7, "{error} at {scale}");
        }
    }

    #[test]
    fn sin_cos_is_as_accurate_as_stated() {
        let error = worst(0.0..=1024.0, |x| {
            let x = x as f32;
            let (sin, cos) = sin_cos(x);
            let x = f64::from(x);
            (f64::from(sin) - x.sin()).abs().max((f64::from(cos) - x.cos()).abs())
        });
        assert!(error < 1e-6, "{error}");
    }

    /// The figures that the documentation of micromath's use here quotes.
    #[test]
    #[allow(clippy::print_stdout, reason = "the figures, shown with --nocapture")]
    fn micromath_is_as_inaccurate_as_stated() {
        let inv_sqrt = relative(1.0..=4.0, |x| F32(x).invsqrt().0, |x| 1.0 / x.sqrt());
        let exp = relative(-20.0..=0.0, |x| F32(x).exp().0, f64::exp);
        let sin =
            worst(0.0..=512.0, |x| (f64::from(F32(x as f32).sin().0) - f64::from(x as f32).sin()).abs());
        std::println!(
            "micromath: invsqrt {inv_sqrt:.2e} (relative), exp {exp:.2e} (relative), sin {sin:.2e} (absolute)"
        );
        assert!((0.03..0.035).contains(&inv_sqrt), "{inv_sqrt}");
        assert!((1e-4..1e-2).contains(&exp), "{exp}");
        assert!((1e-3..1e-2).contains(&sin), "{sin}");
    }
}
