//! Loops over single-precision vectors, term by term or in four lanes: no order to choose, so every core has the same bits.
//! IEEE single precision, no fused multiply-add. Functions that may work in place take cells.

use core::cell::Cell;

#[cfg(all(target_arch = "arm", target_abi = "eabihf", any(feature = "dsp", feature = "helium")))]
use super::smlad::float as groups;
#[cfg(not(all(target_arch = "arm", target_abi = "eabihf", any(feature = "dsp", feature = "helium"))))]
use portable as groups;

/// `y[i] = acc[i] * (scale * row_scales[i]) + bias[i]`; without the sum if `bias` is empty. The shortest slice counts.
pub fn dequantize(acc: &[i32], scale: f32, row_scales: &[f32], bias: &[f32], y: &mut [f32]) {
    let len = y.len().min(acc.len()).min(row_scales.len());
    let len = if bias.is_empty() { len } else { len.min(bias.len()) };
    let (Some(acc), Some(row_scales), Some(y)) = (acc.get(..len), row_scales.get(..len), y.get_mut(..len))
    else {
        return;
    };
    let bias = bias.get(..len).unwrap_or(&[]);
    let ((acc8, acc1), (scales8, scales1)) = (acc.as_chunks(), row_scales.as_chunks());
    let ((bias8, bias1), (y8, y1)) = (bias.as_chunks(), y.as_chunks_mut());
    if bias.is_empty() {
        groups::dequantize(acc8, scale, scales8, y8);
    } else {
        groups::dequantize_bias(acc8, scale, scales8, bias8, y8);
    }
    for (i, ((y, acc), row_scale)) in y1.iter_mut().zip(acc1).zip(scales1).enumerate() {
        let value = *acc as f32 * (scale * row_scale);
        *y = bias1.get(i).map_or(value, |bias| value + bias);
    }
}

/// 1 / sqrt(x) for positive x, relative error below 3e-7; finite for 0.
///
/// The estimate of micromath (Lomont's constant) is off by up to 3.4 %, too coarse by itself; three Newton steps y (1.5 - 0.5 x y^2) remain.
#[inline]
pub fn inv_sqrt(x: f32) -> f32 {
    let half = 0.5 * x;
    // Without its sign a NaN gives a NaN; with it, the subtraction would overflow.
    let mut y = f32::from_bits(0x5f37_5a86 - (x.abs().to_bits() >> 1));
    for _ in 0..3 {
        y *= 1.5 - half * y * y;
    }
    y
}

/// `y[i] += x[i]`.
pub fn add(y: &mut [f32], x: &[f32]) {
    binary(y, x, groups::add, |y, x| y + x);
}

/// `y[i] *= x[i]`.
pub fn mul(y: &mut [f32], x: &[f32]) {
    binary(y, x, groups::mul, |y, x| y * x);
}

#[inline(always)]
#[allow(clippy::inline_always, reason = "so that the functions are known")]
fn binary(y: &mut [f32], x: &[f32], bulk: fn(&mut [[f32; 8]], &[[f32; 8]]), one: fn(f32, f32) -> f32) {
    let len = y.len().min(x.len());
    let (Some(y), Some(x)) = (y.get_mut(..len), x.get(..len)) else { return };
    let ((y8, y1), (x8, x1)) = (y.as_chunks_mut(), x.as_chunks());
    bulk(y8, x8);
    y1.iter_mut().zip(x1).for_each(|(y, x)| *y = one(*y, *x));
}

/// `y[i] = y[i] / (1 + e)` with `e = exp(-y[i])`, see [`sigmoid_product`].
pub fn silu(y: &mut [f32]) {
    groups::silu(y);
}

/// `y[i] = y[i] / (1 + e)` with `e = exp(-sqrt(8/pi) (y[i] + 0.044715 y[i]^3))`, see [`sigmoid_product`].
pub fn gelu(y: &mut [f32]) {
    groups::gelu(y);
}

/// `y[i] = y[i] / (1 + e)` with `e = exp(-u(y[i]))`, see [`sigmoid_product`].
///
/// u(x) = x P(x^2) is a fit of ln(Phi(x) / (1 - Phi(x))), so that 1 / (1 + e) is the normal distribution Phi(x); P has degree 4
/// and a positive last coefficient, so that u goes on rising. It adds less than 4e-6 to the error.
pub fn gelu_erf(y: &mut [f32]) {
    for x in y {
        let square = *x * *x;
        let [c0, c1, c2, c3, c4] = NORMAL_LOGIT;
        let p = [c3, c2, c1, c0].into_iter().fold(c4, |p, c| p * square + c);
        *x = sigmoid_product(*x, *x * p * TO_POWER);
    }
}

/// `y[i] = (1 - e) / (1 + e)` with `e = exp(-2 |y[i]|)` and the sign of `y[i]`, absolute error below 2e-5. A NaN becomes 0.
pub fn tanh(y: &mut [f32]) {
    for x in y {
        let power = (*x * (2.0 * TO_POWER)) as i32;
        let e = exp2_neg(power);
        let positive = (1.0 - e) / (1.0 + e);
        *x = if power < 0 { -positive } else { positive };
    }
}

/// `y[i] = (x[i] * factor) * weight[i]`; `y` is `x`, or apart from it.
pub fn scale(x: &[Cell<f32>], factor: f32, weight: &[f32], y: &[Cell<f32>]) {
    let len = y.len().min(x.len()).min(weight.len());
    let (Some(x), Some(weight), Some(y)) = (x.get(..len), weight.get(..len), y.get(..len)) else { return };
    let ((x8, x1), (weight8, weight1), (y8, y1)) = (x.as_chunks(), weight.as_chunks(), y.as_chunks());
    groups::scale(x8, factor, weight8, y8);
    for ((y, x), weight) in y1.iter().zip(x1).zip(weight1) {
        y.set(x.get() * factor * weight);
    }
}

/// `y[i] = ((x[i] - mean) * factor) * weight[i] + bias[i]`; `y` is `x`, or apart from it.
pub fn normalize(x: &[Cell<f32>], [mean, factor]: [f32; 2], weight: &[f32], bias: &[f32], y: &[Cell<f32>]) {
    let len = y.len().min(x.len()).min(weight.len()).min(bias.len());
    let (Some(x), Some(weight), Some(bias), Some(y)) =
        (x.get(..len), weight.get(..len), bias.get(..len), y.get(..len))
    else {
        return;
    };
    let ((x8, x1), (weight8, weight1)) = (x.as_chunks(), weight.as_chunks());
    let ((bias8, bias1), (y8, y1)) = (bias.as_chunks(), y.as_chunks());
    groups::normalize(x8, [mean, factor], weight8, bias8, y8);
    for (((y, x), weight), bias) in y1.iter().zip(x1).zip(weight1).zip(bias1) {
        y.set((x.get() - mean) * factor * weight + bias);
    }
}

/// `sum_i x[i]` in four lanes: term i goes to lane i mod 4, then (lane 0 + lane 1) + (lane 2 + lane 3).
pub fn sum(x: &[Cell<f32>]) -> f32 {
    let (x8, x1) = x.as_chunks();
    finish(groups::lanes_of_sum(x8), x1, 0.0, |x, _| x)
}

/// `sum_i x[i]^2` in four lanes, as [`sum`].
pub fn sum_of_squares(x: &[Cell<f32>]) -> f32 {
    let (x8, x1) = x.as_chunks();
    finish(groups::lanes_of_squares(x8), x1, 0.0, |x, _| x * x)
}

/// `sum_i (x[i] - mean)^2` in four lanes, as [`sum`].
pub fn sum_of_deviations(x: &[Cell<f32>], mean: f32) -> f32 {
    let (x8, x1) = x.as_chunks();
    finish(groups::lanes_of_deviations(x8, mean), x1, mean, |x, mean| (x - mean) * (x - mean))
}

/// Less than eight last terms, and the sum of the lanes.
#[inline(never)]
fn finish(mut lanes: [f32; 4], last: &[Cell<f32>], mean: f32, term: fn(f32, f32) -> f32) -> f32 {
    for group in last.chunks(4) {
        lanes.iter_mut().zip(group).for_each(|(lane, x)| *lane += term(x.get(), mean));
    }
    let [l0, l1, l2, l3] = lanes;
    (l0 + l1) + (l2 + l3)
}

/// 2^16 / ln 2: natural exponents to powers of two with 16 fraction bits.
pub(super) const TO_POWER: f32 = 94_548.46;
/// sqrt(8/pi) 2^16 / ln 2.
pub(super) const GELU_TO_POWER: f32 = 150_877.52;
pub(super) const GELU_CUBIC: f32 = 0.044_715;
/// ln(Phi(x) / (1 - Phi(x))) / x in powers of x^2, Phi the normal distribution: weighted minimax over |x| <= 9.
const NORMAL_LOGIT: [f32; 5] = [1.595_656_3, 0.072_937_58, -2.497_216_3e-4, -6.116_234e-5, 2.238_183_5e-6];

/// 2^-g for g in -0.5..0.5, relative error below 4e-6 in fixed point: coefficients of g^i times 2^30.
pub(super) const EXP2_NEG: [i32; 5] = [1_073_741_824, -744_233_055, 257_938_009, -60_045_764, 10_379_184];

/// x / (1 + 2^-power), `power` with 16 fraction bits.
///
/// With e = 2^-|power| it is x / (1 + e), or x e / (1 + e) for a negative power. e has 30 fraction bits and a relative
/// error below 4e-6 or an absolute one below 1e-9; powers beyond 31.5 give an e of 0.
#[inline]
pub fn sigmoid_product(x: f32, power: f32) -> f32 {
    // A NaN becomes 0; x stays one.
    let power = power as i32;
    let e = exp2_neg(power);
    let numerator = if power < 0 { x * e } else { x };
    numerator / (1.0 + e)
}

/// 2^-|power|, `power` with 16 fraction bits.
#[inline]
fn exp2_neg(power: i32) -> f32 {
    let magnitude = power.clamp(-(1 << 21), (1 << 21) - 1).abs();
    let fraction = i64::from(magnitude as i16);
    let [c0, c1, c2, c3, c4] = EXP2_NEG;
    let mantissa = [c3, c2, c1, c0].into_iter().fold(c4, |p, c| ((i64::from(p) * fraction) >> 16) as i32 + c);
    let e = mantissa.checked_shr((magnitude + 0x8000).cast_unsigned() >> 16).unwrap_or(0);
    e as f32 * (1.0 / (1 << 30) as f32)
}

/// Eight at a time.
#[cfg(not(all(target_arch = "arm", target_abi = "eabihf", any(feature = "dsp", feature = "helium"))))]
mod portable {
    use core::cell::Cell;

    pub(super) fn dequantize(acc: &[[i32; 8]], scale: f32, row_scales: &[[f32; 8]], y: &mut [[f32; 8]]) {
        let rows = acc.as_flattened().iter().zip(row_scales.as_flattened());
        for (y, (acc, row_scale)) in y.as_flattened_mut().iter_mut().zip(rows) {
            *y = *acc as f32 * (scale * row_scale);
        }
    }

    pub(super) fn dequantize_bias(
        acc: &[[i32; 8]],
        scale: f32,
        row_scales: &[[f32; 8]],
        bias: &[[f32; 8]],
        y: &mut [[f32; 8]],
    ) {
        dequantize(acc, scale, row_scales, y);
        add(y, bias);
    }

    pub(super) fn add(y: &mut [[f32; 8]], x: &[[f32; 8]]) {
        y.as_flattened_mut().iter_mut().zip(x.as_flattened()).for_each(|(y, x)| *y += x);
    }

    pub(super) fn mul(y: &mut [[f32; 8]], x: &[[f32; 8]]) {
        y.as_flattened_mut().iter_mut().zip(x.as_flattened()).for_each(|(y, x)| *y *= x);
    }

    pub(super) fn silu(y: &mut [f32]) {
        y.iter_mut().for_each(|x| *x = super::sigmoid_product(*x, *x * super::TO_POWER));
    }

    pub(super) fn gelu(y: &mut [f32]) {
        for x in y {
            let u = *x + super::GELU_CUBIC * (*x * *x * *x);
            *x = super::sigmoid_product(*x, u * super::GELU_TO_POWER);
        }
    }

    pub(super) fn scale(x: &[[Cell<f32>; 8]], factor: f32, weight: &[[f32; 8]], y: &[[Cell<f32>; 8]]) {
        let terms = x.as_flattened().iter().zip(weight.as_flattened());
        y.as_flattened().iter().zip(terms).for_each(|(y, (x, weight))| y.set(x.get() * factor * weight));
    }

    pub(super) fn normalize(
        x: &[[Cell<f32>; 8]],
        [mean, factor]: [f32; 2],
        weight: &[[f32; 8]],
        bias: &[[f32; 8]],
        y: &[[Cell<f32>; 8]],
    ) {
        let affine = weight.as_flattened().iter().zip(bias.as_flattened());
        for ((y, x), (weight, bias)) in y.as_flattened().iter().zip(x.as_flattened()).zip(affine) {
            y.set((x.get() - mean) * factor * weight + bias);
        }
    }

    pub(super) fn lanes_of_sum(x: &[[Cell<f32>; 8]]) -> [f32; 4] {
        lanes(x, |x| x)
    }

    pub(super) fn lanes_of_squares(x: &[[Cell<f32>; 8]]) -> [f32; 4] {
        lanes(x, |x| x * x)
    }

    pub(super) fn lanes_of_deviations(x: &[[Cell<f32>; 8]], mean: f32) -> [f32; 4] {
        lanes(x, |x| (x - mean) * (x - mean))
    }

    fn lanes(x: &[[Cell<f32>; 8]], term: impl Fn(f32) -> f32) -> [f32; 4] {
        let mut lanes = [0.0; 4];
        for group in x.as_flattened().as_chunks::<4>().0 {
            lanes.iter_mut().zip(group).for_each(|(lane, x)| *lane += term(x.get()));
        }
        lanes
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    /// The largest error of an activation over -12..12, against f64.
    fn error_of(ours: fn(&mut [f32]), exact: fn(f64) -> f64) -> f64 {
        let error = |i: i32| {
            let x = i as f32 * 1e-4;
            let mut y = [x];
            ours(&mut y);
            (f64::from(y[0]) - exact(f64::from(x))).abs()
        };
        (-120_000..=120_000).map(error).fold(0.0, f64::max)
    }

    /// The largest error of the exact GELU over -12..12. The normal distribution is the integral of its density, which Simpson's
    /// rule adds up from point to point.
    fn error_of_gelu_erf() -> f64 {
        let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * core::f64::consts::PI).sqrt();
        let (mut below, mut worst) = (0.0, 0.0f64);
        for i in -120_000..=120_000 {
            let x = f64::from(i) * 1e-4;
            let mut y = [x as f32];
            gelu_erf(&mut y);
            worst = worst.max((f64::from(y[0]) - x * below).abs());
            below += 1e-4 / 6.0 * (density(x) + 4.0 * density(x + 0.5e-4) + density(x + 1e-4));
        }
        assert!((below - 1.0).abs() < 1e-12, "{below}");
        worst
    }

    #[test]
    fn activations_follow_their_formulas() {
        let error = [
            error_of(silu, |x| x / (1.0 + (-x).exp())),
            error_of(gelu, |x| {
                let u = (2.0 / core::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + u.tanh())
            }),
        ];
        // Of the power of two and its 16 fraction bits.
        assert!(error[0] < 2e-5 && error[1] < 2e-5, "{error:?}");
        let others = [error_of_gelu_erf(), error_of(tanh, f64::tanh)];
        assert!(others[0] < 2.4e-5 && others[1] < 2e-5, "{others:?}");
    }

    #[test]
    fn activations_of_huge_values_are_their_limits() {
        let mut y = [-1e30, -100.0, 100.0, 1e30, f32::INFINITY, f32::NAN, 0.0, -0.0];
        silu(&mut y);
        assert_eq!(y[..5], [0.0, 0.0, 100.0, 1e30, f32::INFINITY]);
        assert!(y[5].is_nan());
        assert_eq!(y[6..], [0.0, 0.0]);
        let mut y = [-50.0, 50.0];
        gelu(&mut y);
        assert_eq!(y, [0.0, 50.0]);
        let mut y = [-1e30, -50.0, 50.0, 1e30, f32::INFINITY, f32::NAN, 0.0];
        gelu_erf(&mut y);
        assert_eq!(y[..5], [0.0, 0.0, 50.0, 1e30, f32::INFINITY]);
        assert!(y[5].is_nan() && y[6] == 0.0);
        let mut y = [f32::NEG_INFINITY, -1e30, 1e30, f32::INFINITY, f32::NAN, 0.0, -0.0];
        tanh(&mut y);
        assert_eq!(y, [-1.0, -1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn sums_run_in_four_lanes() {
        for len in 0..40 {
            let x: [f32; 40] = core::array::from_fn(|i| (i as f32 * 0.37).sin() * 1e3);
            let mut cells = x;
            let (x, cells) = (&x[..len], Cell::from_mut(&mut cells[..len]).as_slice_of_cells());
            let expected = |term: &dyn Fn(f32) -> f32| {
                let mut lanes = [0.0f32; 4];
                x.iter().enumerate().for_each(|(i, x)| lanes[i % 4] += term(*x));
                (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
            };
            assert_eq!(sum(cells), expected(&|x| x));
            assert_eq!(sum_of_squares(cells), expected(&|x| x * x));
            assert_eq!(sum_of_deviations(cells, 17.0), expected(&|x| (x - 17.0) * (x - 17.0)));
        }
    }
}
