//! The three products of attention over one key head, on 16-bit codes: scores, softmax weights, weighted values. Like all
//! kernels they have one result, bit for bit, on every core; [`portable`] computes it.

pub(super) mod portable;
pub(super) use portable::dual_mul_add;
#[cfg(test)]
mod tests;

#[cfg(all(target_arch = "arm", any(feature = "dsp", feature = "helium")))]
use super::smlad::attention as core_kernels;
#[cfg(not(all(target_arch = "arm", any(feature = "dsp", feature = "helium"))))]
use portable as core_kernels;

/// 1.5 * 2^23: adding it leaves a float below 2^22, rounded to the nearest even integer, in the low bits of the sum.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// Fraction bits of softmax weights: the largest is about 2^14.
pub const WEIGHT_BITS: u32 = 14;
/// Keys whose weighted values are summed before the sum is shortened: 64 * 2^14 * (2^11 - 1) < 2^31, with the rounding term.
pub const BLOCK_KEYS: usize = 64;
/// Bits that a block's sum of weighted values loses.
pub const BLOCK_SHIFT: u32 = 10;

/// 2^-g for g in -0.5..0.5, relative error below 1.3e-4 in fixed point: coefficients of g^i times 2^16.
pub(super) const EXP2_NEG: [i32; 4] = [65531, -45425, 15902, -3659];

/// Codes of `x`, two a word, filled up with zeros: `x[i] * factor` rounded to the nearest even integer, of magnitude below
/// 2^15. With a factor of 0 all are 0, also those of what is not finite.
pub fn code_words(x: &[f32], factor: f32, words: &mut [u32]) {
    if factor == 0.0 {
        return words.fill(0);
    }
    let (groups, rest) = x.as_chunks::<8>();
    let Some((whole, free)) = words.split_at_mut_checked(4 * groups.len()) else {
        debug_assert!(false, "code_words: {} words for {} values", words.len(), x.len());
        return;
    };
    core_kernels::code_groups(groups, factor, ROUND_MAGIC, whole.as_chunks_mut().0);
    let mut codes = rest.iter().map(|x| u32::from((x * factor + ROUND_MAGIC).to_bits() as u16));
    for word in free {
        let low = codes.next().unwrap_or(0);
        *word = low | codes.next().unwrap_or(0) << 16;
    }
}

/// `scores[j] = sum_i q[i] k[j, i]` over 16-bit codes, two a word; returns the largest.
///
/// `query`: `[words]`, an even number; `keys`: `[keys, words]`; `scores`: `[keys]`, at least one. Sums of magnitude below 2^30 are exact.
pub fn scores(query: &[u32], keys: &[u32], scores: &mut [i32]) -> i32 {
    let Some(keys) = keys.get(..query.len().saturating_mul(scores.len())) else {
        debug_assert!(false, "scores: expected {} keys of {} words", scores.len(), query.len());
        return 0;
    };
    core_kernels::scores(query, keys, scores)
}

/// `weights[j] = 2^-p` with p = `(max - scores[j]) * slope / 2^48`, in [`WEIGHT_BITS`] bits, two a word; returns their sum.
///
/// `scores`: magnitudes below 2^30, none above `max`; `slope`: not negative; `weights`: half as many, rounded up.
pub fn softmax(scores: &[i32], max: i32, slope: i32, weights: &mut [u32]) -> u32 {
    let Some(weights) = weights.get_mut(..scores.len().div_ceil(2)) else {
        debug_assert!(false, "softmax: {} words for {} weights", weights.len(), scores.len());
        return 0;
    };
    core_kernels::softmax(scores, max, slope, weights)
}

/// `totals[i] = sum over blocks of (512 + sum_j weights[j] v[j, i]) >> 10`, in blocks of [`BLOCK_KEYS`] keys.
///
/// `values`: `[words of weights, columns]`, a word holding one column of two keys; `totals`: `[columns]`, a multiple of four. Codes of values have
/// at most 11 bits and a sign.
pub fn weigh(values: &[u32], weights: &[u32], totals: &mut [i32]) {
    let Some(values) = values.get(..weights.len().saturating_mul(totals.len())) else {
        debug_assert!(false, "weigh: expected {} rows of {} columns", weights.len(), totals.len());
        return;
    };
    core_kernels::weigh(values, weights, totals);
}
