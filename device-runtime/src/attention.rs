//! Attention over one key head, in integers: queries, keys and values are 16-bit codes with power-of-two scales that a head
//! shares, softmax is a polynomial in fixed point. It knows neither graphs nor caches of several operators.
//!
//! The format fixes every bit (`format/SPEC.md`, section 4). Sums are exact, so their order is free.

use rankpatch_format::graph::HeadShape;

use crate::kernels::attention::{self as kernels, code_words};
use crate::kernels::{is_quantizable, max_abs_bits};

/// Bits of a value code, without its sign.
const VALUE_BITS: u32 = 11;

/// 1.5 * 2^23: adding it leaves a float below 2^22, rounded to the nearest even integer, in the low bits of the sum.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// The binary exponent of codes that are all zero.
const NO_EXPONENT: i32 = i32::MIN;

/// The heads of an attention operator.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) shape: HeadShape,
    /// What scores are multiplied by.
    pub(crate) scale: f32,
}

/// Binary exponents of codes that an operator's heads share: a unit is 2^(exponent - bits + 1).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exponents {
    key: i32,
    value: i32,
}

impl Exponents {
    /// Of no keys.
    pub(crate) const NONE: Self = Self { key: NO_EXPONENT, value: NO_EXPONENT };

    /// Those that `words` keep.
    pub(crate) fn load([key, value]: [u32; 2]) -> Self {
        Self { key: key.cast_signed(), value: value.cast_signed() }
    }

    pub(crate) fn store(self) -> [u32; 2] {
        [self.key, self.value].map(i32::cast_unsigned)
    }

    /// At least those of further keys and values.
    pub(crate) fn including(self, shape: HeadShape, k: &[f32], v: &[f32]) -> Self {
        Self {
            key: self.key.max(exponent(max_abs_bits(k), code_bits(shape.words()))),
            value: self.value.max(exponent(max_abs_bits(v), VALUE_BITS)),
        }
    }
}

/// The memory of one key head, [`HeadShape::code_words`] for as many keys as there is room for.
pub(crate) struct KeyHead<'a> {
    words: usize,
    /// `[keys, words]`, two codes a word.
    keys: &'a mut [u32],
    /// `[pairs of keys, 2 * words]`: a word holds one column of two values.
    values: &'a mut [u32],
}

/// Room for one query row: the codes of all its heads, and sums, scores and weights of one.
pub(crate) struct Scratch<'a> {
    pub(crate) query: &'a mut [u32],
    pub(crate) totals: &'a mut [i32],
    pub(crate) scores: &'a mut [i32],
    pub(crate) weights: &'a mut [u32],
}

impl<'a> KeyHead<'a> {
    pub(crate) fn new(shape: HeadShape, memory: &'a mut [u32], room: usize) -> Option<Self> {
        let words = shape.words();
        let (keys, values) = memory.split_at_mut_checked(room * words)?;
        Some(Self { words, keys, values })
    }

    /// Shortens the codes of the first `seen` keys and values from one pair of exponents to another that is not below it.
    #[cold]
    pub(crate) fn shorten(&mut self, seen: usize, from: Exponents, to: Exponents) {
        shorten(self.keys.get_mut(..seen * self.words), from.key, to.key);
        shorten(self.values.get_mut(..seen.div_ceil(2) * 2 * self.words), from.value, to.value);
    }

    /// Stores this head's columns of a key and a value after the first `seen`. `codes` is scratch of one head.
    pub(crate) fn push(
        &mut self,
        seen: usize,
        exponents: Exponents,
        k: &[f32],
        v: &[f32],
        codes: &mut [u32],
    ) {
        let words = self.words;
        let Some(codes) = codes.get_mut(..words) else { return };
        if let Some(key) = self.keys.get_mut(seen * words..(seen + 1) * words) {
            code_words(k, factor(exponents.key, code_bits(words)), key);
        }
        code_words(v, factor(exponents.value, VALUE_BITS), codes);
        let pair = seen / 2 * 2 * words;
        let pair = self.values.get_mut(pair..pair + 2 * words).unwrap_or(&mut []);
        let columns = pair.as_chunks_mut::<2>().0.iter_mut().zip(codes);
        if seen.is_multiple_of(2) {
            columns.for_each(|([a, b], codes)| (*a, *b) = (*codes & 0xffff, *codes >> 16));
        } else {
            columns.for_each(|([a, b], codes)| {
                (*a, *b) = (*a & 0xffff | *codes << 16, *b & 0xffff | *codes & 0xffff_0000);
            });
        }
    }
}

/// All heads of a query row, in place, over the first `seen` keys: `row` = softmax(scale q k^T) v.
///
/// `codes` holds the key heads one after the other, each with `room`.
pub(crate) fn attend_row(
    row: &mut [f32],
    heads: Heads,
    [seen, room]: [usize; 2],
    exponents: Exponents,
    codes: &[u32],
    scratch: &mut Scratch<'_>,
) {
    let shape = heads.shape;
    let (head_size, words) = (shape.head_size.max(1), shape.words());
    let bits = code_bits(words);
    let query = exponent(max_abs_bits(row), bits);
    let factor = factor(query, bits);
    // Heads that are filled up with zeros get their codes one by one.
    let whole = head_size.is_multiple_of(4);
    if whole {
        code_words(row, factor, scratch.query.get_mut(..row.len() / 2).unwrap_or(&mut []));
    }
    let slope = slope(heads.scale, [query, exponents.key], bits);
    let unit = if exponents.value == NO_EXPONENT { 0.0 } else { power_of_two(exponents.value) };
    let Scratch { query, totals, scores, weights } = scratch;
    let (Some(totals), Some(scores), Some(weights)) =
        (totals.get_mut(..2 * words), scores.get_mut(..seen), weights.get_mut(..seen.div_ceil(2)))
    else {
        return;
    };
    let mut buffers = Buffers { totals, scores, weights };
    let group = heads.n_heads / heads.n_kv_heads.max(1);
    let (mut rest, mut queries) = (row, &mut **query);
    for past in codes.chunks_exact(shape.code_words(room).max(1)) {
        let Some((keys, values)) = past.split_at_checked(room * words) else { return };
        for _ in 0..group {
            let Some((y, later)) = rest.split_at_mut_checked(head_size) else { return };
            let Some((q, left)) = queries.split_at_mut_checked(words) else { return };
            (rest, queries) = (later, left);
            if !whole {
                code_words(y, factor, q);
            }
            attend(&mut buffers, q, [keys, values], slope, unit, y);
        }
    }
}

/// Room for one head of a row.
struct Buffers<'b> {
    totals: &'b mut [i32],
    scores: &'b mut [i32],
    weights: &'b mut [u32],
}

/// One head: `q` are its codes. `unit` is the value of one unit of a sum of weighted values, times the sum of the weights.
// Not inlined: what does not depend on the head would be computed before the heads, and kept on the stack.
#[inline(never)]
fn attend(
    buffers: &mut Buffers<'_>,
    q: &[u32],
    [keys, values]: [&[u32]; 2],
    slope: i32,
    unit: f32,
    y: &mut [f32],
) {
    let Buffers { totals, scores, weights } = buffers;
    let max = kernels::scores(q, keys, scores);
    let unit = unit / kernels::softmax(scores, max, slope, weights) as f32;
    kernels::weigh(values, weights, totals);
    y.iter_mut().zip(&**totals).for_each(|(y, total)| *y = *total as f32 * unit);
}

/// Bits of key and query codes without their sign: as many as keep the sum of a whole head's products below 2^30.
fn code_bits(words: usize) -> u32 {
    ((30 - (2 * words).next_power_of_two().trailing_zeros()) / 2).min(14)
}

/// The exponent with which the number whose bits are `max` gets a code of exactly `bits` bits, rounded; none for what
/// [`crate::kernels::quantize`] takes for zero as well.
fn exponent(max: u32, bits: u32) -> i32 {
    if !is_quantizable(max) {
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

/// Shortens `codes`, two a word, as their exponent rises.
fn shorten(codes: Option<&mut [u32]>, from: i32, to: i32) {
    if from == to || from == NO_EXPONENT {
        return;
    }
    // A code has at most 14 bits: shifted by 16 it is as good as gone.
    let shift = (to - from).min(16);
    let round = 1 << (shift - 1);
    let shorter = |code: u32| u32::from(((i32::from(code as i16) + round) >> shift) as u16);
    for word in codes.unwrap_or(&mut []) {
        *word = shorter(*word) | shorter(*word >> 16) << 16;
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

    /// One head over keys and values pushed row by row, each raising the exponents, or with those of all rows.
    fn attended(q: &[f32], k: &[f32], v: &[f32], scale: f32, at_once: bool) -> Vec<f32> {
        let (n, shape) = (q.len(), HeadShape { head_size: q.len() });
        let keys = k.len() / n;
        let room = keys + 3;
        // What an earlier use left behind must not matter.
        let mut memory = vec![0xdead_beef; shape.code_words(room)];
        let mut exponents = Exponents::NONE;
        if at_once {
            exponents = exponents.including(shape, k, v);
        }
        let mut codes = vec![7; shape.words()];
        for (seen, (k, v)) in k.chunks(n).zip(v.chunks(n)).enumerate() {
            let mut past = KeyHead::new(shape, &mut memory, room).unwrap();
            let new = exponents.including(shape, k, v);
            past.shorten(seen, exponents, new);
            exponents = new;
            past.push(seen, exponents, k, v, &mut codes);
        }
        let mut scratch = Scratch {
            query: &mut vec![7; shape.words()],
            totals: &mut vec![7; 2 * shape.words()],
            scores: &mut vec![7; keys],
            weights: &mut vec![7; keys.div_ceil(2)],
        };
        let mut row = q.to_vec();
        let heads = Heads { n_heads: 1, n_kv_heads: 1, shape, scale };
        attend_row(&mut row, heads, [keys, room], exponents, &memory, &mut scratch);
        row
    }

    fn exact(q: &[f32], k: &[f32], v: &[f32], scale: f32) -> Vec<f64> {
        let n = q.len();
        let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
        let scores: Vec<f64> = k.chunks(n).map(|k| dot(k) * f64::from(scale)).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        let column =
            |i: usize| weights.iter().zip(v.chunks(n)).map(|(w, v)| w * f64::from(v[i])).sum::<f64>();
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
