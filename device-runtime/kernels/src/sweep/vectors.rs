//! Attention, matrices of 16-bit codes, and loops over floats, against plain loops.

use core::cell::Cell;

use super::{Random, Sweep};
use crate::attention::{self, BLOCK_KEYS, portable};
use crate::{float, wide};

/// Every head size in words, with those that have a kernel of their own.
const HEAD_WORDS: [usize; 8] = [2, 4, 6, 8, 12, 16, 32, 40];
const KEYS: [usize; 9] = [1, 2, 3, 4, 5, 8, 9, 63, 2 * BLOCK_KEYS + 3];

/// `words` is scratch; cases that do not fit are left out.
pub(super) fn vectors(found: &mut Sweep, random: &mut Random, words: &mut [i32]) {
    for head in HEAD_WORDS {
        for keys in KEYS {
            attention_case(found, random, head, keys, words);
        }
    }
    for groups in 1..=4 {
        for rows in 1..=5 {
            wide_case(found, random, groups * wide::GROUP_WORDS, rows, words);
        }
    }
    for len in 1..=33 {
        float_case(found, random, len, words);
    }
    if !words.is_empty() {
        bits_case(found);
    }
}

/// The exact GELU and tanh have no second form to be compared with: their bits over -12..12, folded as FNV-1a folds words, are
/// those that a host computes.
fn bits_case(found: &mut Sweep) {
    for (kernel, expected) in
        [(float::gelu_erf as fn(&mut [f32]), 0x971B_AB9Au32), (float::tanh, 0x9E4C_695D)]
    {
        let hash = (-1024i16..1024).fold(0x811C_9DC5u32, |hash, i| {
            let mut y = [f32::from(i) * 0.0117];
            kernel(&mut y);
            let [y] = y;
            (hash ^ y.to_bits()).wrapping_mul(0x0100_0193)
        });
        found.count(hash == expected);
    }
}

/// Codes of up to so many bits and a sign, two a word.
fn fill(random: &mut Random, bits: u32, words: &mut [i32]) {
    for word in words {
        let mut code = || (random.below((2 << bits) - 1).cast_signed() - ((1 << bits) - 1)) & 0xffff;
        *word = code() | code() << 16;
    }
}

fn attention_case(found: &mut Sweep, random: &mut Random, head: usize, keys: usize, words: &mut [i32]) {
    let pairs = keys.div_ceil(2);
    let Some((query, words)) = words.split_at_mut_checked(head) else { return };
    let Some((past, words)) = words.split_at_mut_checked(2 * pairs * head) else { return };
    let Some((scores, words)) = words.split_at_mut_checked(keys) else { return };
    let Some((weights, words)) = words.split_at_mut_checked(pairs) else { return };
    let Some((totals, words)) = words.split_at_mut_checked(2 * head) else { return };
    let Some(expected) = words.get_mut(..(2 * head).max(keys)) else { return };
    // Sums of up to 80 products stay below 2^30.
    fill(random, 11, query);
    fill(random, 11, past);
    scores.fill(7);
    let (query, past): (&[u32], &[u32]) = (bytemuck::cast_slice(query), bytemuck::cast_slice(past));
    let max = attention::scores(query, past, scores);
    let sums = expected.get_mut(..keys).unwrap_or(&mut []);
    let expected_max = portable::scores(query, past, sums);
    found.count(max == expected_max && scores == sums);
    let weights: &mut [u32] = bytemuck::cast_slice_mut(weights);
    for slope in [0, 1 << 20, random.below(1 << 26).cast_signed(), i32::MAX] {
        let total = attention::softmax(scores, max, slope, weights);
        let weight = |j: usize| scores.get(j).map_or(0, |s| portable::weight(max.wrapping_sub(*s), slope));
        let equal = |(i, word): (usize, &u32)| *word == weight(2 * i) | weight(2 * i + 1) << 16;
        let sum: u32 = (0..keys).map(weight).sum();
        found.count(total == sum && weights.iter().enumerate().all(equal));
        attention::weigh(past, weights, totals);
        let expected = expected.get_mut(..2 * head).unwrap_or(&mut []);
        portable::weigh(past, weights, expected);
        found.count(totals == expected);
    }
}

fn wide_case(found: &mut Sweep, random: &mut Random, columns: usize, rows: usize, words: &mut [i32]) {
    let Some((w, words)) = words.split_at_mut_checked(rows * columns) else { return };
    let Some((x, words)) = words.split_at_mut_checked(columns) else { return };
    let Some(acc) = words.get_mut(..rows) else { return };
    fill(random, 15, w);
    fill(random, 7, x);
    acc.fill(-1);
    let (w, x): (&[u32], &[u32]) = (bytemuck::cast_slice(w), bytemuck::cast_slice(x));
    wide::gemv16(w, x, acc);
    let dot =
        |row: &[u32]| row.iter().zip(x).fold(0, |sum, (w, x)| attention::portable::dual_mul_add(*w, *x, sum));
    found.count(acc.iter().zip(w.chunks_exact(columns)).all(|(acc, row)| *acc == dot(row)));
}

fn float_case(found: &mut Sweep, random: &mut Random, len: usize, words: &mut [i32]) {
    let Some((a, words)) = words.split_at_mut_checked(len) else { return };
    let Some((b, words)) = words.split_at_mut_checked(len) else { return };
    let Some((c, words)) = words.split_at_mut_checked(len) else { return };
    let Some((codes, words)) = words.split_at_mut_checked(len.div_ceil(2)) else { return };
    let Some(y) = words.get_mut(..len) else { return };
    let [a, b, c, y] = [a, b, c, y].map(bytemuck::cast_slice_mut::<i32, f32>);
    let mut next = || (random.below(1 << 20).cast_signed() - (1 << 19)) as f32 / 32768.0;
    a.fill_with(&mut next);
    b.fill_with(&mut next);
    c.fill_with(&mut next);
    let acc: &[i32] = bytemuck::cast_slice(&*c);
    let same = |y: &[f32], expected: &dyn Fn(usize) -> f32| {
        y.iter().enumerate().all(|(i, y)| y.to_bits() == expected(i).to_bits())
    };
    let at = |x: &[f32], i: usize| x.get(i).copied().unwrap_or(0.0);
    let scaled = |i: usize| acc.get(i).copied().unwrap_or(0) as f32 * (0.37 * at(a, i));
    float::dequantize(acc, 0.37, a, &[], y);
    found.count(same(y, &scaled));
    float::dequantize(acc, 0.37, a, b, y);
    found.count(same(y, &|i| if b.is_empty() { scaled(i) } else { scaled(i) + at(b, i) }));
    for (kernel, plain) in [
        (float::add as fn(&mut [f32], &[f32]), (|y, x| y + x) as fn(f32, f32) -> f32),
        (float::mul, |y, x| y * x),
    ] {
        y.copy_from_slice(a);
        kernel(y, b);
        found.count(same(y, &|i| plain(at(a, i), at(b, i))));
    }
    y.copy_from_slice(a);
    float::silu(y);
    found.count(same(y, &|i| float::sigmoid_product(at(a, i), at(a, i) * float::TO_POWER)));
    y.copy_from_slice(a);
    float::gelu(y);
    found.count(same(y, &|i| {
        let x = at(a, i);
        float::sigmoid_product(x, (x + float::GELU_CUBIC * (x * x * x)) * float::GELU_TO_POWER)
    }));
    y.copy_from_slice(a);
    let cells = Cell::from_mut(&mut *y).as_slice_of_cells();
    let lanes = |term: &dyn Fn(f32) -> f32| {
        let mut lanes = [0.0f32; 4];
        for group in a.chunks(4) {
            lanes.iter_mut().zip(group).for_each(|(lane, x)| *lane += term(*x));
        }
        let [l0, l1, l2, l3] = lanes;
        (l0 + l1) + (l2 + l3)
    };
    found.count(float::sum(cells).to_bits() == lanes(&|x| x).to_bits());
    found.count(float::sum_of_squares(cells).to_bits() == lanes(&|x| x * x).to_bits());
    found
        .count(float::sum_of_deviations(cells, 1.5).to_bits() == lanes(&|x| (x - 1.5) * (x - 1.5)).to_bits());
    float::scale(cells, 0.7, b, cells);
    found.count(same(y, &|i| at(a, i) * 0.7 * at(b, i)));
    y.copy_from_slice(a);
    let cells = Cell::from_mut(&mut *y).as_slice_of_cells();
    float::normalize(cells, [1.5, 0.7], b, c, cells);
    found.count(same(y, &|i| (at(a, i) - 1.5) * 0.7 * at(b, i) + at(c, i)));
    let codes: &mut [u32] = bytemuck::cast_slice_mut(codes);
    attention::code_words(a, 64.0, codes);
    let code = |i: usize| u32::from(((at(a, i) * 64.0) + 12_582_912.0).to_bits() as u16);
    let equal = |(i, word): (usize, &u32)| {
        let high = if 2 * i + 1 < len { code(2 * i + 1) } else { 0 };
        *word == code(2 * i) | high << 16
    };
    found.count(codes.iter().enumerate().all(equal));
}
