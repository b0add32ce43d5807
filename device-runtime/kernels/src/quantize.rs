//! Activation codes: one scale a vector.

/// 1.5 * 2^23: adding it leaves a small float, rounded to the nearest even integer, in the low bits of the sum.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// 2^-100 as bits, the smallest maximum that is not taken for zero.
const SMALLEST_BITS: u32 = (127 - 100) << 23;

/// The bits of infinity.
const INFINITY_BITS: u32 = 0x7f80_0000;

/// Quantizes a vector to codes in -127..=127 and returns the scale: `x[i] ~ scale * codes[i]`.
///
/// `scale = max|x| / 127`, `codes[i] = round_ties_even(x[i] * (127 / max|x|))`. A vector whose maximum is below 2^-100, or which
/// holds an infinity or a NaN, has all codes 0 and scale 0. `codes` has the length of `x`.
pub fn quantize(x: &[f32], codes: &mut [i8]) -> f32 {
    let Some(codes) = codes.get_mut(..x.len()) else {
        debug_assert!(false, "quantize: {} codes for {} values", codes.len(), x.len());
        return 0.0;
    };
    let max_bits = max_abs_bits(x);
    if !is_quantizable(max_bits) {
        codes.fill(0);
        return 0.0;
    }
    let max = f32::from_bits(max_bits);
    let inverse = 127.0 / max;
    let (groups, rest) = x.as_chunks();
    let (code_groups, code_rest) = codes.as_chunks_mut();
    groups::codes(groups, code_groups, inverse, ROUND_MAGIC);
    for (code, value) in code_rest.iter_mut().zip(rest) {
        *code = (value * inverse + ROUND_MAGIC).to_bits() as i8;
    }
    max / 127.0
}

/// Whether a vector whose largest magnitude has these bits has codes; otherwise they are all 0.
pub fn is_quantizable(max_bits: u32) -> bool {
    (SMALLEST_BITS..INFINITY_BITS).contains(&max_bits)
}

/// The bits of the largest magnitude; NaN counts as larger than infinity.
pub fn max_abs_bits(x: &[f32]) -> u32 {
    // Floats without sign compare like integers; doubling drops the sign and is free in an Arm comparison.
    let (groups, rest) = x.as_chunks();
    let max = rest.iter().fold(0, |max, value| max.max(value.to_bits() << 1));
    groups::max_doubled_bits(groups, max) >> 1
}

/// The bulk of the work, eight values at a time.
#[cfg(not(all(target_arch = "arm", any(feature = "helium", all(feature = "dsp", target_abi = "eabihf")))))]
mod groups {
    pub(super) fn max_doubled_bits(x: &[[f32; 8]], max: u32) -> u32 {
        x.as_flattened().iter().fold(max, |max, value| max.max(value.to_bits() << 1))
    }

    pub(super) fn codes(x: &[[f32; 8]], codes: &mut [[i8; 8]], inverse: f32, magic: f32) {
        for (code, value) in codes.as_flattened_mut().iter_mut().zip(x.as_flattened()) {
            *code = (value * inverse + magic).to_bits() as i8;
        }
    }
}

#[cfg(all(target_arch = "arm", feature = "dsp", target_abi = "eabihf"))]
use super::dsp::quantize as groups;
#[cfg(all(target_arch = "arm", feature = "helium"))]
use super::helium::quantize as groups;
