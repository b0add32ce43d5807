//! Attention over one key head, in integers: queries, keys and values are 16-bit codes with power-of-two scales that a head
//! shares, softmax is a polynomial in fixed point. It knows neither graphs nor caches of several operators.
//!
//! The format fixes every bit (`format/SPEC.md`, section 4). Sums are exact, so their order is free.

use rankpatch_format::graph::HeadShape;

use crate::kernels;
use crate::kernels::attention::{scores, softmax, weigh};

/// Bits of a value code, without its sign.
const VALUE_BITS: u32 = 11;

/// 1.5 * 2^23: adding it leaves a float below 2^22, rounded to the nearest even integer, in the low bits of the sum.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// The binary exponent of codes that are all zero.
const NO_EXPONENT: i32 = i32::MIN;

/// The memory of one key head.
pub(crate) struct KeyHead<'a> {
    shape: HeadShape,
    /// Exponents of keys and values: a code's unit is 2^(exponent - bits + 1).
    exponents: &'a mut [i32; 2],
    /// `[keys, words]`, two codes a word.
    keys: &'a mut [u32],
    /// `[pairs of keys, 2 * words]`: a word holds one column of two values.
    values: &'a mut [u32],
}

/// Room for one query row: its codes, sums of its values, and scores and weights of its keys.
pub(crate) struct Scratch<'a> {
    pub(crate) query: &'a mut [u32],
    pub(crate) totals: &'a mut [i32],
    pub(crate) scores: &'a mut [i32],
    pub(crate) weights: &'a mut [u32],
}

impl<'a> KeyHead<'a> {
    /// The head that `memory` holds, [`HeadShape::bytes`] for as many keys as it has room for.
    pub(crate) fn new(shape: HeadShape, memory: &'a mut [u32], room: usize) -> Option<Self> {
        let (exponents, codes) = memory.split_first_chunk_mut::<2>()?;
        let (keys, values) = codes.split_at_mut_checked(room * shape.words())?;
        Some(Self { shape, exponents: bytemuck::cast_mut(exponents), keys, values })
    }

    /// Stores keys and values after the first `seen` of them: rows that lie `width` apart, of which each slice starts
    /// with this head's columns.
    pub(crate) fn extend(&mut self, seen: usize, width: usize, k: &[f32], v: &[f32]) {
        let (words, head_size) = (self.shape.words(), self.shape.head_size);
        if seen == 0 {
            *self.exponents = [NO_EXPONENT; 2];
        }
        let [key_exponent, value_exponent] = &mut *self.exponents;
        let bits = code_bits(words);
        let new = exponent(rows_max(k, width, head_size), bits);
        raise(key_exponent, new, self.keys.get_mut(..seen * words).unwrap_or(&mut []));
        let factor = factor(*key_exponent, bits);
        let targets = self.keys.chunks_exact_mut(words.max(1)).skip(seen);
        for (row, target) in k.chunks(width.max(1)).zip(targets) {
            code_words(row.get(..head_size).unwrap_or(&[]), factor, target);
        }
        let new = exponent(rows_max(v, width, head_size), VALUE_BITS);
        let stored = seen.div_ceil(2) * 2 * words;
        raise(value_exponent, new, self.values.get_mut(..stored).unwrap_or(&mut []));
        let factor = self::factor(*value_exponent, VALUE_BITS);
        for (row, at) in v.chunks(width.max(1)).zip(seen..) {
            let pair = at / 2 * 2 * words;
            let target = self.values.get_mut(pair..pair + 2 * words).unwrap_or(&mut []);
            value_words(row.get(..head_size).unwrap_or(&[]), factor, at % 2 == 1, target);
        }
    }

    /// `row` = softmax(scale `row` k^T) v over the first `seen` keys: `[head_size]`, the query before, the output after.
    pub(crate) fn attend(&self, row: &mut [f32], seen: usize, scale: f32, scratch: &mut Scratch<'_>) {
        let words = self.shape.words();
        let (Some(query), Some(totals), Some(scores_row), Some(weights), Some(keys), Some(values)) = (
            scratch.query.get_mut(..words),
            scratch.totals.get_mut(..2 * words),
            scratch.scores.get_mut(..seen),
            scratch.weights.get_mut(..seen.div_ceil(2)),
            self.keys.get(..seen * words),
            self.values.get(..seen.div_ceil(2) * 2 * words),
        ) else {
            return;
        };
        let [key_exponent, value_exponent] = *self.exponents;
        let bits = code_bits(words);
        let query_exponent = exponent(kernels::max_abs_bits(row), bits);
        code_words(row, factor(query_exponent, bits), query);
        let max = scores(query, keys, scores_row);
        let slope = slope(scale, [query_exponent, key_exponent], bits);
        let total = softmax(scores_row, max, slope, weights);
        weigh(values, weights, totals);
        let unit = if value_exponent == NO_EXPONENT { 0.0 } else { power_of_two(value_exponent) / total as f32 };
        row.iter_mut().zip(totals).for_each(|(y, total)| *y = *total as f32 * unit);
    }
}

/// Bits of key and query codes without their sign: as many as keep the sum of a whole head's products below 2^30.
fn code_bits(words: usize) -> u32 {
    ((30 - (2 * words).max(1).next_power_of_two().ilog2()) / 2).min(14)
}

/// The bits of the largest magnitude among the first `columns` of each row.
fn rows_max(x: &[f32], width: usize, columns: usize) -> u32 {
    x.chunks(width.max(1))
        .map(|row| kernels::max_abs_bits(row.get(..columns).unwrap_or(&[])))
        .max()
        .unwrap_or(0)
}

/// The exponent with which the number whose bits are `max` gets a code of exactly `bits` bits, rounded; none for what
/// [`kernels::quantize`] takes for zero as well.
fn exponent(max: u32, bits: u32) -> i32 {
    if !kernels::is_quantizable(max) {
        return NO_EXPONENT;
    }
    let exponent = (max >> 23).cast_signed() - 127;
    // Rounding may carry into one bit more.
    let code = f32::from_bits(max) * factor(exponent, bits) + ROUND_MAGIC;
    exponent + i32::from(code >= ROUND_MAGIC + power_of_two(bits.cast_signed()))
}

/// What a number is multiplied by to get its code.
fn factor(exponent: i32, bits: u32) -> f32 {
    if exponent == NO_EXPONENT { 0.0 } else { power_of_two(bits.cast_signed() - 1 - exponent) }
}

/// 2^n, for an exponent that is limited to that of a normal number.
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((127 + n.clamp(-126, 127)).cast_unsigned() << 23)
}

/// Raises `exponent` to at least `new`, and shortens `codes`, two a word, accordingly.
fn raise(exponent: &mut i32, new: i32, codes: &mut [u32]) {
    if new <= *exponent {
        return;
    }
    if *exponent != NO_EXPONENT {
        // A code has at most 14 bits: shifted by more than 15 it is as good as gone.
        let shift = (new - *exponent).min(16);
        let round = 1 << (shift - 1);
        let shorten = |code: u32| ((i32::from(code as i16) + round) >> shift) as u16;
        for word in codes {
            *word = pair(shorten(*word), shorten(*word >> 16));
        }
    }
    *exponent = new;
}

fn pair(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// The code of `x`.
fn code(x: f32, factor: f32) -> u16 {
    (x * factor + ROUND_MAGIC).to_bits() as u16
}

/// Codes of `x`, two a word, filled up with zeros.
fn code_words(x: &[f32], factor: f32, words: &mut [u32]) {
    if factor == 0.0 {
        // What is not finite has no code.
        return words.fill(0);
    }
    let (pairs, rest) = x.as_chunks::<2>();
    let (whole, last) = words.split_at_mut_checked(pairs.len()).unwrap_or_default();
    for (word, [a, b]) in whole.iter_mut().zip(pairs) {
        *word = pair(code(*a, factor), code(*b, factor));
    }
    last.fill(0);
    if let ([a], Some(word)) = (rest, last.first_mut()) {
        *word = pair(code(*a, factor), 0);
    }
}

/// Codes of `x` in the lower or the upper halves of `words`; a lower half clears the upper one.
fn value_words(x: &[f32], factor: f32, upper: bool, words: &mut [u32]) {
    let finite = factor != 0.0;
    let codes = x.iter().map(|x| if finite { code(*x, factor) } else { 0 }).chain(core::iter::repeat(0));
    if upper {
        words.iter_mut().zip(codes).for_each(|(word, code)| *word = *word & 0xffff | u32::from(code) << 16);
    } else {
        words.iter_mut().zip(codes).for_each(|(word, code)| *word = u32::from(code));
    }
}

/// What a difference of scores is multiplied by to become a power of two, times 2^48: scale log2(e) times the units of query
/// and key. It saturates where a difference of one would be more than 2^-17.
fn slope(scale: f32, exponents: [i32; 2], bits: u32) -> i32 {
    let [query, key] = exponents;
    if query == NO_EXPONENT || key == NO_EXPONENT {
        return 0;
    }
    let units = query + key - 2 * (bits.cast_signed() - 1);
    (scale * core::f32::consts::LOG2_E * power_of_two(units + 48)) as i32
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use rankpatch_format::digest::XorShift32;

    use super::*;

    fn random(count: usize, seed: u32, amplitude: f32) -> Vec<f32> {
        let mut random = XorShift32::new(seed);
        (0..count).map(|_| random.feature() * amplitude).collect()
    }

    /// Keys and values appended row by row, or all at once.
    fn attended(q: &[f32], k: &[f32], v: &[f32], scale: f32, at_once: bool) -> Vec<f32> {
        let (n, shape) = (q.len(), HeadShape { head_size: q.len() });
        let keys = k.len() / n;
        let room = keys + 3;
        // What an earlier use left behind must not matter.
        let mut memory = vec![0xdead_beef; shape.total_words(room)];
        let mut past = KeyHead::new(shape, &mut memory, room).unwrap();
        if at_once {
            past.extend(0, n, k, v);
        } else {
            for (seen, (k, v)) in k.chunks(n).zip(v.chunks(n)).enumerate() {
                past.extend(seen, n, k, v);
            }
        }
        let mut scratch = Scratch {
            query: &mut vec![7; shape.words()],
            totals: &mut vec![7; 2 * shape.words()],
            scores: &mut vec![7; keys],
            weights: &mut vec![7; keys.div_ceil(2)],
        };
        let mut row = q.to_vec();
        past.attend(&mut row, keys, scale, &mut scratch);
        row
    }

    fn exact(q: &[f32], k: &[f32], v: &[f32], scale: f32) -> Vec<f64> {
        let n = q.len();
        let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
        let scores: Vec<f64> = k.chunks(n).map(|k| dot(k) * f64::from(scale)).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        let column = |i: usize| weights.iter().zip(v.chunks(n)).map(|(w, v)| w * f64::from(v[i])).sum::<f64>();
        (0..n).map(|i| column(i) / total).collect()
    }

    #[test]
    fn every_head_size_is_close_to_exact_attention() {
        for n in [1, 3, 4, 8, 12, 16, 20, 32, 64, 96, 128] {
            for keys in [1, 2, 3, 63, 64, 65, 130, 400] {
                let (q, k, v) = (random(n, 3, 0.1), random(n * keys, 4, 0.1), random(n * keys, 5, 3.0));
                let scale = 1.0 / (n as f32).sqrt();
                let expected = exact(&q, &k, &v, scale);
                for at_once in [true, false] {
                    let found = attended(&q, &k, &v, scale, at_once);
                    let largest = v.iter().fold(0.0f32, |max, v| max.max(v.abs()));
                    for (found, expected) in found.iter().zip(&expected) {
                        let error = (f64::from(*found) - expected).abs() / f64::from(largest);
                        assert!(error < 1.5e-3, "{error} with {n} columns, {keys} keys");
                    }
                }
            }
        }
    }

    /// The definition in `format/SPEC.md`, without packing.
    fn by_definition(q: &[f32], k: &[f32], v: &[f32], scale: f32) -> Vec<f32> {
        let n = q.len();
        let padded = n.next_multiple_of(4);
        let bits = ((30 - padded.next_power_of_two().ilog2()) / 2).min(14);
        let code = |x: f32, factor: f32| i64::from((x * factor).round_ties_even() as i32);
        let exponent_of = |x: &[f32], bits: u32| {
            let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            let e = max.log2().floor() as i32;
            if code(max, 2f32.powi(bits as i32 - 1 - e)) == 1 << bits { e + 1 } else { e }
        };
        let (eq, ek, ev) = (exponent_of(q, bits), exponent_of(k, bits), exponent_of(v, 11));
        let codes = |x: &[f32], e: i32, bits: u32| -> Vec<i64> {
            x.iter().map(|x| code(*x, 2f32.powi(bits as i32 - 1 - e))).collect()
        };
        let (q, k, v) = (codes(q, eq, bits), codes(k, ek, bits), codes(v, ev, 11));
        let dot = |k: &[i64]| q.iter().zip(k).map(|(q, k)| q * k).sum::<i64>();
        let scores: Vec<i64> = k.chunks(n).map(dot).collect();
        let max = *scores.iter().max().unwrap();
        let slope = scale * core::f32::consts::LOG2_E * 2f32.powi(eq + ek - 2 * (bits as i32 - 1) + 48);
        let weights: Vec<i64> = scores
            .iter()
            .map(|score| {
                let power = (((max - score) * i64::from(slope as i32)) >> 32).min(0xf_ffff);
                let fraction = i64::from(power as i16);
                let p = [15902, -45425, 65531].iter().fold(-3659, |p, c| ((p * fraction) >> 16) + c);
                ((p >> (1 + ((power + 0x8000) >> 16))) + 1) >> 1
            })
            .collect();
        let total: i64 = weights.iter().sum();
        let column = |i: usize| {
            let blocks = weights.chunks(64).zip(v.chunks(64 * n));
            let sum = |(weights, v): (&[i64], &[i64])| {
                (weights.iter().zip(v.chunks(n)).map(|(w, v)| w * v[i]).sum::<i64>() + 512) >> 10
            };
            blocks.map(sum).sum::<i64>() as f32 * (2f32.powi(ev) / total as f32)
        };
        (0..n).map(column).collect()
    }

    #[test]
    fn every_head_size_follows_the_definition_bit_for_bit() {
        for n in [1, 2, 4, 7, 8, 16, 24, 32, 64, 72] {
            for keys in [1, 2, 5, 64, 65, 131] {
                let (q, k, v) = (random(n, 8, 0.7), random(n * keys, 9, 0.7), random(n * keys, 10, 1.3));
                let found = attended(&q, &k, &v, 0.3, true);
                assert_eq!(found, by_definition(&q, &k, &v, 0.3), "{n} columns, {keys} keys");
            }
        }
    }

    #[test]
    fn a_row_that_outgrows_the_codes_so_far_shortens_them() {
        let (n, keys) = (8, 20);
        let (q, mut k, mut v) = (random(n, 1, 0.3), random(n * keys, 2, 0.01), random(n * keys, 3, 0.01));
        for (row, grow) in [(7, 40.0), (13, 3.0)] {
            k[row * n..(row + 1) * n].iter_mut().for_each(|x| *x *= grow);
            v[row * n..(row + 1) * n].iter_mut().for_each(|x| *x *= grow);
        }
        let found = attended(&q, &k, &v, 0.35, false);
        let largest = v.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        for (found, expected) in found.iter().zip(exact(&q, &k, &v, 0.35)) {
            let error = (f64::from(*found) - expected).abs() / f64::from(largest);
            assert!(error < 1e-3, "{found} {expected} {largest}");
        }
    }

    #[test]
    fn values_that_are_no_numbers_or_huge_neither_panic_nor_spread() {
        let (n, keys) = (8, 5);
        let (q, k, v) = (random(n, 1, 1.0), random(n * keys, 2, 1.0), random(n * keys, 3, 1.0));
        for bad in [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, -0.0] {
            for at in 0..3 {
                let mut x = [q.clone(), k.clone(), v.clone()];
                x[at].fill(bad);
                for at_once in [true, false] {
                    let y = attended(&x[0], &x[1], &x[2], 1e30, at_once);
                    assert!(y.iter().all(|y| y.is_finite() || bad == f32::MAX), "{bad} {at}: {y:?}");
                }
            }
        }
        // All keys alike: the mean of the values.
        let y = attended(&q, &vec![0.0; n * keys], &v, 1.0, true);
        let mean: f32 = v.iter().step_by(n).sum::<f32>() / keys as f32;
        assert!((y[0] - mean).abs() < 2e-3, "{} {mean}", y[0]);
    }
}
