//! Checks the kernels of this build against plain loops, over every alignment and tail length: one function that the
//! host's tests, QEMU and a real board all call.

mod vectors;

use super::{
    Layout, Packed, PackedPair, component_codes, down, down_packed, down2_packed, encode, gemm2, gemv,
    layout_len, pack_len, quantize, up_add,
};

/// Every length up to here is tried: a little more than four times the widest step of any kernel.
const LENGTHS: core::ops::RangeInclusive<usize> = 1..=67;
const ROWS: usize = 9;
const LONG: usize = *LENGTHS.end();
const RANKS: [usize; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 33, 67, 256];
/// Highest rank of [`RANKS`].
const MAX_RANK: usize = 256;

/// Bytes of scratch for a sweep of everything but the longest vectors.
pub const SWEEP_BYTES: usize = 2 * ROWS * MAX_RANK + 16;
/// Words of scratch for a sweep of everything but the longest vectors.
pub const SWEEP_WORDS: usize = 3 * LONG + 64;
/// Bytes of scratch for a complete sweep.
pub const SWEEP_LONG_BYTES: usize = 6 * LONGEST;
/// Words of scratch for a complete sweep.
pub const SWEEP_LONG_WORDS: usize = LONGEST + 64;

const LONGEST: usize = 4099;

/// What a sweep found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Calls whose result was compared.
    pub cases: u32,
    /// Calls whose result was wrong.
    pub mismatches: u32,
}

impl Sweep {
    fn count(&mut self, equal: bool) {
        self.cases += 1;
        self.mismatches += u32::from(!equal);
    }
}

/// Runs every kernel on random and extreme codes and compares each sum with a plain loop.
///
/// `bytes` and `words` are scratch: [`SWEEP_BYTES`] and [`SWEEP_WORDS`], or [`SWEEP_LONG_BYTES`] and [`SWEEP_LONG_WORDS`] to include
/// vectors long enough to overflow a kernel's narrow accumulators. With less, fewer cases run; never panics.
pub fn sweep(seed: u32, bytes: &mut [i8], words: &mut [i32]) -> Sweep {
    let mut random = Random(seed | 1);
    let mut found = Sweep::default();
    for alignment in 0..16 {
        for k in LENGTHS {
            for layout in Layout::ALL {
                let out = 1 + random.below(ROWS as u32) as usize;
                matrix(&mut found, &mut random, layout, out, k, alignment, bytes, words);
            }
            let rank = 1 + random.below(ROWS as u32) as usize;
            down_case(&mut found, &mut random, rank, k, alignment, bytes, words);
            quantize_case(&mut found, &mut random, k, alignment, bytes);
        }
        for rank in RANKS {
            component_case(&mut found, &mut random, rank, words);
            for shift in 0..=14 {
                up_case(&mut found, &mut random, rank, shift, alignment, bytes, words);
            }
        }
    }
    vectors::vectors(&mut found, &mut random, words);
    for k in [511, 512, 513, 520, 1024, 1025, 4096, LONGEST] {
        for (w, x) in [(127, 127), (-127, 127), (127, -127), (-127, -127)] {
            long_case(&mut found, k, w, x, bytes, words);
        }
    }
    found
}

/// `gemv` and `gemm2` of one shape; also that rows can be read back from the image.
#[allow(clippy::too_many_arguments, reason = "one case of a sweep")]
fn matrix(
    found: &mut Sweep,
    random: &mut Random,
    layout: Layout,
    out: usize,
    k: usize,
    alignment: usize,
    bytes: &mut [i8],
    words: &mut [i32],
) {
    let Some((codes, bytes)) = bytes.split_at_mut_checked(out * k) else { return };
    random.fill(codes);
    let Some((image, bytes)) = aligned(bytes, alignment, layout_len(layout, out, k)) else { return };
    encode(layout, codes, out, k, image);
    let x_alignment = random.below(16) as usize;
    let Some((x0, bytes)) = aligned(bytes, x_alignment, k) else { return };
    let Some(x1) = bytes.get_mut(..k) else { return };
    random.fill(x0);
    random.fill(x1);
    let Some((pack, words)) = words.split_at_mut_checked(pack_len(layout, k)) else { return };
    let Some((acc0, words)) = words.split_at_mut_checked(out) else { return };
    let Some(acc1) = words.get_mut(..out) else { return };

    // Results that were there before must not matter.
    pack.fill(-1);
    acc0.fill(i32::MIN);
    gemv(layout, image, out, k, x0, acc0, pack);
    found.count(rows_equal(codes, k, x0, acc0));
    pack.fill(-1);
    acc0.fill(i32::MIN);
    acc1.fill(i32::MAX);
    gemm2(layout, image, out, k, x0, x1, acc0, acc1, pack);
    found.count(rows_equal(codes, k, x0, acc0) && rows_equal(codes, k, x1, acc1));

    let row = random.below(out as u32) as usize;
    layout.read_row(image, k, row, x0);
    found.count(codes.chunks_exact(k).nth(row).is_some_and(|codes| codes == x0));
    random.fill(x1);
    layout.write_row(image, k, row, x1);
    layout.read_row(image, k, row, x0);
    found.count(x0 == x1);
}

#[allow(clippy::too_many_arguments, reason = "one case of a sweep")]
fn down_case(
    found: &mut Sweep,
    random: &mut Random,
    rank: usize,
    k: usize,
    alignment: usize,
    bytes: &mut [i8],
    words: &mut [i32],
) {
    let Some((a, bytes)) = aligned(bytes, alignment, rank * k) else { return };
    let Some((x0, bytes)) = aligned(bytes, random.below(16) as usize, k) else { return };
    let Some((x1, _)) = aligned(bytes, random.below(16) as usize, k) else { return };
    let Some((pack, words)) = words.split_at_mut_checked(pack_len(Layout::Dsp4x4, k)) else { return };
    let Some((z0, words)) = words.split_at_mut_checked(rank) else { return };
    let Some(z1) = words.get_mut(..rank) else { return };
    random.fill(a);
    random.fill(x0);
    random.fill(x1);
    z0.fill(i32::MIN);
    down(a, rank, k, x0, z0);
    found.count(rows_equal(a, k, x0, z0));
    pack.fill(-1);
    z0.fill(i32::MIN);
    down_packed(a, rank, &Packed::new(Layout::Dsp4x4, x0, pack), z0);
    found.count(rows_equal(a, k, x0, z0));
    pack.fill(-1);
    z0.fill(i32::MIN);
    z1.fill(i32::MAX);
    down2_packed(a, rank, &PackedPair::new(Layout::Dsp4x4, x0, x1, pack), z0, z1);
    found.count(rows_equal(a, k, x0, z0) && rows_equal(a, k, x1, z1));
}

#[allow(clippy::too_many_arguments, reason = "one case of a sweep")]
fn up_case(
    found: &mut Sweep,
    random: &mut Random,
    rank: usize,
    shift: u32,
    alignment: usize,
    bytes: &mut [i8],
    words: &mut [i32],
) {
    let out = 1 + random.below(2 * ROWS as u32) as usize;
    let Some((b, _)) = aligned(bytes, alignment, out.min(bytes.len() / rank) * rank) else { return };
    let (false, Some((acc, words))) = (b.is_empty(), words.split_at_mut_checked(b.len() / rank)) else {
        return;
    };
    let Some(before) = words.get_mut(..acc.len()) else { return };
    let mut v = [0i16; MAX_RANK];
    let Some(v) = v.get_mut(..rank) else { return };
    random.fill(b);
    for v in v.iter_mut() {
        *v = if random.below(4) == 0 { 32_767 } else { (random.next() >> 16) as i16 }.max(-32_767);
    }
    for (acc, before) in acc.iter_mut().zip(before.iter_mut()) {
        *acc = random.next().cast_signed() >> 4;
        *before = *acc;
    }
    up_add(b, rank, v, shift, acc);
    let round = if shift == 0 { 0 } else { 1i64 << (shift - 1) };
    let equal = acc.iter().zip(before).zip(b.chunks_exact(rank)).all(|((&acc, &mut before), row)| {
        let sum: i64 = row.iter().zip(&*v).map(|(&b, &v)| i64::from(b) * i64::from(v)).sum();
        i64::from(acc) == i64::from(before) + ((sum + round) >> shift)
    });
    found.count(equal);
}

/// `component_codes` with products from far too large to far too small.
fn component_case(found: &mut Sweep, random: &mut Random, rank: usize, words: &mut [i32]) {
    let Some((z, words)) = words.split_at_mut_checked(rank) else { return };
    let Some(before) = words.get_mut(..rank) else { return };
    let (mut scales, mut v) = ([[0; 2]; MAX_RANK], [99; MAX_RANK]);
    let (Some(scales), Some(v)) = (scales.get_mut(..rank), v.get_mut(..rank)) else { return };
    let (size, exponent) = (random.below(31), random.below(31));
    for ((z, before), scale) in z.iter_mut().zip(before.iter_mut()).zip(scales.iter_mut()) {
        *z = random.next().cast_signed() >> size;
        *before = *z;
        // Positive and finite; with exponent 0 subnormal.
        *scale = ((exponent << 10 | random.below(1 << 10)).max(1) as u16).to_le_bytes();
    }
    let shift = component_codes(z, scales, v);
    let products = || before.iter().zip(&*scales).map(|(&z, &scale)| single(scale) * z as f32);
    let unit = |shift: u32| (1u32 << shift) as f32;
    let max = products().fold(0.0, |max: f32, product| max.max(product.abs()));
    let greatest = (0..=14).rev().find(|&shift| max * unit(shift) <= 32767.0).unwrap_or(0);
    let equal = products().zip(&*v).all(|(product, &code)| {
        let scaled = (product * unit(shift)).clamp(-32767.0, 32767.0);
        let distance = (scaled - f32::from(code)).abs();
        distance < 0.5 || distance == 0.5 && code % 2 == 0
    });
    found.count(equal && shift == greatest);
}

/// A positive, finite f16, by its definition.
fn single(half: [u8; 2]) -> f32 {
    let half = u16::from_le_bytes(half);
    let (exponent, fraction) = (u32::from(half >> 10), f32::from(half & 0x3ff));
    let (significand, exponent) = if exponent == 0 { (fraction, 1) } else { (fraction + 1024.0, exponent) };
    significand * f32::from_bits((127 - 25 + exponent) << 23)
}

/// `quantize` of a vector whose values differ by up to `2^alignment` and hold many ties.
fn quantize_case(found: &mut Sweep, random: &mut Random, k: usize, alignment: usize, bytes: &mut [i8]) {
    let Some((codes, _)) = aligned(bytes, alignment, k) else { return };
    let mut x = [0f32; LONG];
    let Some(x) = x.get_mut(..k) else { return };
    let unit = f32::from_bits((27 + random.below(200)) << 23);
    for x in x.iter_mut() {
        *x = (random.next().cast_signed() >> (8 + alignment)) as f32 * unit;
    }
    if random.below(8) == 0 {
        x.fill(f32::NAN);
    }
    codes.fill(99);
    let scale = quantize(x, codes);
    let max = x.iter().fold(0.0, |max, x| if x.abs() > max || x.is_nan() { x.abs() } else { max });
    let has_scale = max >= f32::from_bits(27 << 23) && max < f32::INFINITY;
    let expected_scale = if has_scale { max / 127.0 } else { 0.0 };
    let equal = x.iter().zip(&*codes).all(|(x, &code)| {
        // To the nearest integer, of two the even one, by comparison with what lies half-way.
        let (scaled, low) = (if has_scale { x * (127.0 / max) } else { 0.0 }, f32::from(code));
        let distance = (scaled - low).abs();
        distance < 0.5 || distance == 0.5 && code % 2 == 0
    });
    found.count(equal && scale.to_bits() == expected_scale.to_bits());
}

/// A constant matrix times a constant vector, where a narrow accumulator overflows first.
fn long_case(found: &mut Sweep, k: usize, w: i8, x: i8, bytes: &mut [i8], words: &mut [i32]) {
    let expected = i32::from(w) * i32::from(x) * k as i32;
    for layout in Layout::ALL {
        let out = 4;
        let Some((image, bytes)) = aligned(bytes, 0, layout_len(layout, out, k)) else { return };
        let Some((vector, _)) = aligned(bytes, 1, k) else { return };
        let Some((pack, words)) = words.split_at_mut_checked(pack_len(layout, k)) else { return };
        let Some((acc0, words)) = words.split_at_mut_checked(out) else { return };
        let Some((acc1, words)) = words.split_at_mut_checked(out) else { return };
        vector.fill(w);
        image.fill(0);
        for row in 0..out {
            layout.write_row(image, k, row, vector);
        }
        vector.fill(x);
        gemv(layout, image, out, k, vector, acc0, pack);
        found.count(acc0.iter().all(|&sum| sum == expected));
        gemm2(layout, image, out, k, vector, vector, acc0, acc1, pack);
        found.count(acc0.iter().chain(acc1.iter()).all(|&sum| sum == expected));
        if layout == Layout::RowMajor {
            // A row-major matrix needs no scratch, but packed vectors may be read from it as well.
            let Some(pack) = words.get_mut(..pack_len(Layout::Dsp4x4, k)) else { return };
            down(image, out, k, vector, acc0);
            found.count(acc0.iter().all(|&sum| sum == expected));
            down_packed(image, out, &Packed::new(Layout::Dsp4x4, vector, pack), acc0);
            found.count(acc0.iter().all(|&sum| sum == expected));
            down2_packed(image, out, &PackedPair::new(Layout::Dsp4x4, vector, vector, pack), acc0, acc1);
            found.count(acc0.iter().chain(acc1.iter()).all(|&sum| sum == expected));
        }
    }
}

/// Whether `acc = codes x`, row-major, by the definition.
fn rows_equal(codes: &[i8], k: usize, x: &[i8], acc: &[i32]) -> bool {
    codes.chunks_exact(k).zip(acc).all(|(row, &acc)| {
        let sum: i32 = row.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
        sum == acc
    })
}

/// Splits off `len` bytes that start at an address of `alignment` modulo 16, and what is left behind them.
fn aligned(bytes: &mut [i8], alignment: usize, len: usize) -> Option<(&mut [i8], &mut [i8])> {
    let skip = alignment.wrapping_sub(bytes.as_ptr().addr()) % 16;
    bytes.get_mut(skip..)?.split_at_mut_checked(len)
}

/// Marsaglia's xorshift32: the same cases everywhere.
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    fn below(&mut self, bound: u32) -> u32 {
        (self.next() >> 8) % bound.max(1)
    }

    /// Codes in -127..=127; now and then all of them extreme.
    fn fill(&mut self, codes: &mut [i8]) {
        let extreme = self.below(4) == 0;
        for code in codes {
            let random = (self.next() >> 24) as i8;
            *code = match random {
                _ if extreme => 127 * (random | 1).signum(),
                i8::MIN => 0,
                _ => random,
            };
        }
    }
}
