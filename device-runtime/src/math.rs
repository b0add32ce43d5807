//! Elementary functions and sums with the same bits on every core: IEEE single precision, no fused multiply-add, a
//! fixed order. They are part of the file format (`format/SPEC.md`); the platform's own functions are never used.

use micromath::F32;

/// 1.5 * 2^23: adding and subtracting it rounds a float below 2^22 to the nearest even integer.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// exp(x), relative error below 2e-7; 0 below -87, infinity above 88.
///
/// x = n ln 2 + r with |r| <= ln(2)/2, then a polynomial of degree 6 in r (Cephes `expf`, S. Moshier).
pub fn exp(x: f32) -> f32 {
    if x > 88.0 { f32::INFINITY } else { exp_at_most_88(x) }
}

/// [`exp`] of what is at most 88, or a NaN.
pub(crate) fn exp_at_most_88(x: f32) -> f32 {
    if x < -87.0 {
        return 0.0;
    }
    let shifted = x * core::f32::consts::LOG2_E + ROUND_MAGIC;
    let n = shifted - ROUND_MAGIC;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_2e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let p = p * (r * r) + r + 1.0;
    // The low bits of `shifted` are n; adding n to the exponent of p (between 0.7 and 1.5) multiplies by 2^n.
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// x / (1 + exp(-x)).
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), computed as the equal x / (1 + exp(-2 u)).
pub fn gelu(x: f32) -> f32 {
    let twice_u = 1.595_769_2 * (x + 0.044_715 * (x * x * x));
    x / (1.0 + exp(-twice_u))
}

/// 1 / sqrt(x) for positive x, relative error below 3e-7.
///
/// micromath's estimate is off by up to 3.5 %, too coarse by itself; three Newton steps y (1.5 - 0.5 x y^2) remain.
pub fn inv_sqrt(x: f32) -> f32 {
    let half = 0.5 * x;
    // Without its sign a NaN gives a NaN; with it, micromath's integer subtraction would overflow.
    let mut y = F32(x.abs()).invsqrt().0;
    for _ in 0..3 {
        y *= 1.5 - half * y * y;
    }
    y
}

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

/// The sum of terms in four lanes: term i goes to lane i mod 4, then (lane 0 + lane 1) + (lane 2 + lane 3).
///
/// `tail` holds the last, incomplete group, padded with 0.0, which changes no bit of a lane: lanes start from 0.0 and
/// so are never -0.0.
fn lanes(groups: impl Iterator<Item = [f32; 4]>, tail: [f32; 4]) -> f32 {
    let mut sum = [0.0; 4];
    for group in groups.chain([tail]) {
        sum.iter_mut().zip(group).for_each(|(sum, term)| *sum += term);
    }
    (sum[0] + sum[1]) + (sum[2] + sum[3])
}

fn padded(terms: impl Iterator<Item = f32>) -> [f32; 4] {
    let mut group = [0.0; 4];
    group.iter_mut().zip(terms).for_each(|(to, term)| *to = term);
    group
}

/// sum_i x\[i\], in four lanes.
pub fn sum(x: &[f32]) -> f32 {
    let (groups, tail) = x.as_chunks::<4>();
    lanes(groups.iter().copied(), padded(tail.iter().copied()))
}

/// sum_i x\[i\] y\[i\], in four lanes.
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let (x, x_tail) = x.as_chunks::<4>();
    let (y, y_tail) = y.as_chunks::<4>();
    let products = x.iter().zip(y).map(|(x, y)| [x[0] * y[0], x[1] * y[1], x[2] * y[2], x[3] * y[3]]);
    lanes(products, padded(x_tail.iter().zip(y_tail).map(|(x, y)| x * y)))
}

/// sum_i (x\[i\] - mean)^2, in four lanes.
pub fn sum_of_squares(x: &[f32], mean: f32) -> f32 {
    let square = |x: f32| (x - mean) * (x - mean);
    let (groups, tail) = x.as_chunks::<4>();
    lanes(groups.iter().map(|group| group.map(square)), padded(tail.iter().map(|x| square(*x))))
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
    fn exp_is_as_accurate_as_stated() {
        let error = relative(-87.0..=88.0, exp, f64::exp);
        assert!(error < 2e-7, "{error}");
        assert_eq!([exp(-88.0), exp(0.0), exp(89.0)], [0.0, 1.0, f32::INFINITY]);
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

    #[test]
    fn activations_follow_their_formulas() {
        let error = worst(-12.0..=12.0, |x| {
            let x = x as f32;
            let exact = f64::from(x);
            let silu_error = f64::from(silu(x)) - exact / (1.0 + (-exact).exp());
            let u = (2.0 / core::f64::consts::PI).sqrt() * (exact + 0.044_715 * exact.powi(3));
            let gelu_error = f64::from(gelu(x)) - 0.5 * exact * (1.0 + u.tanh());
            silu_error.abs().max(gelu_error.abs())
        });
        assert!(error < 2e-6, "{error}");
    }

    #[test]
    fn sums_run_in_four_lanes() {
        let x: [f32; 11] = core::array::from_fn(|i| (i as f32 * 0.37).sin() * 1e3);
        let mut lanes = [0.0f32; 4];
        x.iter().enumerate().for_each(|(i, x)| lanes[i % 4] += x);
        assert_eq!(sum(&x), (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
        let mut lanes = [0.0f32; 4];
        x.iter().enumerate().for_each(|(i, v)| lanes[i % 4] += v * x[10 - i]);
        let y: [f32; 11] = core::array::from_fn(|i| x[10 - i]);
        assert_eq!(dot(&x, &y), (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
    }
}
