//! Plain loops. Lengths were checked by the functions of the parent module.

use super::{BLOCK_KEYS, BLOCK_SHIFT, EXP2_NEG, WEIGHT_BITS};

#[cfg_attr(
    all(target_arch = "arm", target_abi = "eabihf", any(feature = "dsp", feature = "helium")),
    allow(dead_code, reason = "twin")
)]
pub(crate) fn code_groups(x: &[[f32; 8]], factor: f32, magic: f32, words: &mut [[u32; 4]]) {
    let pairs = x.as_flattened().as_chunks::<2>().0;
    for (word, [a, b]) in words.as_flattened_mut().iter_mut().zip(pairs) {
        let [a, b] = [a, b].map(|x| (x * factor + magic).to_bits());
        *word = a & 0xffff | b << 16;
    }
}

pub(crate) fn scores(query: &[u32], keys: &[u32], scores: &mut [i32]) -> i32 {
    let mut max = i32::MIN;
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(query.len().max(1))) {
        *score = query.iter().zip(key).fold(0, |sum, (q, k)| dual_mul_add(*q, *k, sum));
        max = max.max(*score);
    }
    max
}

#[cfg_attr(
    all(target_arch = "arm", any(feature = "dsp", feature = "helium")),
    allow(dead_code, reason = "twin")
)]
pub(crate) fn softmax(scores: &[i32], max: i32, slope: i32, weights: &mut [u32]) -> u32 {
    let mut total = 0;
    for (scores, word) in scores.chunks(2).zip(weights) {
        *word = 0;
        for (score, shift) in scores.iter().zip([0, 16]) {
            let weight = weight(max.wrapping_sub(*score), slope);
            *word |= weight << shift;
            total += weight;
        }
    }
    total
}

/// The weight of a score that is `distance` below the largest.
pub(crate) fn weight(distance: i32, slope: i32) -> u32 {
    let power = ((i64::from(distance) * i64::from(slope)) >> 32) as i32;
    // From here on the weight is 0.
    let power = power.clamp(0, (16 << 16) - 1);
    let fraction = i32::from(power as i16);
    let [c0, c1, c2, c3] = EXP2_NEG;
    let mantissa = [c2, c1, c0].into_iter().fold(c3, |p, c| (p.wrapping_mul(fraction) >> 16) + c);
    let shift = (16 - WEIGHT_BITS) + ((power.cast_unsigned() + 0x8000) >> 16);
    ((mantissa.cast_unsigned() >> (shift - 1)) + 1) >> 1
}

pub(crate) fn weigh(values: &[u32], weights: &[u32], totals: &mut [i32]) {
    totals.fill(0);
    let columns = totals.len().max(1);
    for (values, weights) in values.chunks(BLOCK_KEYS / 2 * columns).zip(weights.chunks(BLOCK_KEYS / 2)) {
        // Eight columns at a time stay in registers over a block.
        for (totals, from) in totals.chunks_mut(8).zip((0..columns).step_by(8)) {
            let mut sums = [1 << (BLOCK_SHIFT - 1); 8];
            for (row, weight) in values.chunks_exact(columns).zip(weights) {
                let row = row.get(from..).unwrap_or(&[]);
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum = dual_mul_add(*value, *weight, *sum);
                }
            }
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum >> BLOCK_SHIFT);
        }
    }
}

/// `sum` plus the products of the halves of two words as signed 16-bit numbers; wraps.
#[inline]
pub(crate) fn dual_mul_add(x: u32, y: u32, sum: i32) -> i32 {
    let low = i32::from(x as i16).wrapping_mul(i32::from(y as i16));
    let high = (x.cast_signed() >> 16).wrapping_mul(y.cast_signed() >> 16);
    sum.wrapping_add(low).wrapping_add(high)
}
