//! Elementary functions from IEEE operations alone: the same bits on every processor and with every C library.
//!
//! Those in f32 have no branches, so that loops of them vectorize. Call them inside [`super::simd::vectorized`] only:
//! elsewhere a multiply-add is a slow call.

/// `e^x` in f32, relative error below 2.5e-7 + 2.8e-9 |x|; stays at `e^-87.3` below -87.3 and at `e^88` above 88. NaN stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // One multiply-add loses only what ln 2 loses in f32: at most 126 * 2e-9.
    let r = n.mul_add(-std::f32::consts::LN_2, x);
    // e^r = 1 + r + r^2 p(r); p is a minimax fit on |r| <= ln 2 / 2 (relative error 1e-7), evaluated as a tree: the
    // latency of a chain is what would bound a loop of these.
    let square = r * r;
    let low = 0.166_671_14f32.mul_add(r, 0.499_992_3);
    let high = 0.008_312_521f32.mul_add(r, 0.041_890_156);
    let p = square.mul_add(high, low);
    let p = square.mul_add(p, 1.0 + r);
    // 2^n: n, in -126..=127, is in the low bits of `shifted`.
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh x`, from `e^{-2|x|}`; absolute error below 2e-7.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    ((1.0 - e) / (1.0 + e)).copysign(x)
}

/// The normal distribution `0.5 (1 + erf(x / sqrt(2)))`, absolute error below 3e-7, and its density.
///
/// Abramowitz and Stegun 7.1.26 for erf, with the exponential that the density has too.
#[inline(always)]
pub(super) fn normal(x: f32) -> (f32, f32) {
    const DENSITY_AT_ZERO: f32 = 0.398_942_3;
    let size = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let exp = exp(-0.5 * x * x);
    let t = 1.0 / 0.327_591_1f32.mul_add(size, 1.0);
    let p = 1.061_405_4f32.mul_add(t, -1.453_152_1);
    let p = p.mul_add(t, 1.421_413_8);
    let p = p.mul_add(t, -0.284_496_72);
    let p = p.mul_add(t, 0.254_829_6);
    let tail = 0.5 * (p * t) * exp;
    (if x < 0.0 { tail } else { 1.0 - tail }, DENSITY_AT_ZERO * exp)
}

/// Natural logarithm of a positive normal number; error below 2e-7 of the larger of 1 and the result.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    // x = m * 2^e with m in sqrt(1/2)..sqrt(2): subtracting the bits of sqrt(1/2) leaves e in the exponent field.
    let shifted = x.to_bits().wrapping_sub(std::f32::consts::FRAC_1_SQRT_2.to_bits());
    let exponent = shifted as i32 >> 23;
    let m = f32::from_bits(x.to_bits().wrapping_sub((exponent << 23) as u32));
    // ln m = 2 atanh(t) = 2 (t + t^3/3 + t^5/5 + ...), |t| <= 0.1716.
    let t = (m - 1.0) / (m + 1.0);
    let square = t * t;
    let series = (1.0f32 / 9.0).mul_add(square, 1.0 / 7.0);
    let series = series.mul_add(square, 1.0 / 5.0);
    let series = series.mul_add(square, 1.0 / 3.0);
    let twice = 2.0 * t;
    (exponent as f32).mul_add(std::f32::consts::LN_2, (twice * square).mul_add(series, twice))
}
