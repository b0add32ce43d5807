//! The kernels for Arm cores with the DSP extension (Cortex-M4, M7, M33): SMLAD, two products an instruction.
//!
//! SMLAD multiplies 16-bit halves, so the usual way takes two sign extensions and two SMLAD for the four codes of a
//! word. Here the odd codes are multiplied where they stand. With a word's half `h = 256 c1 + c0`,
//!
//! ```text
//! 256 (c0 x0 + c1 x1) = h x1 + c0 (256 x0 - x1)
//! ```
//!
//! so three instructions do: `SMLAD(word, odd)`, `SXTB16`, `SMLAD(c0 and c2, even)`, where a vector is packed once into
//! words `odd = (x1, x3)` and `even = (256 x0 - x1, 256 x2 - x3)`. The accumulator holds 256 times the sum, modulo 2^32.
//! That is exact up to [`CHUNK_BLOCKS`] blocks of four columns; then it is flushed.
//!
//! In a row-major matrix the half is `256 c1 + (c0 mod 256)`. Flipping the top bit of the even codes makes it
//! `256 c1 + (c0 + 128)`, exactly, for one instruction more; 128 times the sum of the even activations is subtracted at
//! the end.
//!
//! The target `thumbv7em` has these instructions. `thumbv8m.main` need not have them, so there the assembler is told the
//! core in each function.
#![allow(
    unsafe_code,
    reason = "SMLAD has no stable intrinsic, and loops of naked assembly use every register"
)]

/// A naked function's body, for a core with the DSP extension.
#[cfg(not(armv8m_main))]
macro_rules! dsp_asm {
    ($($line:expr),+ $(,)?) => { core::arch::naked_asm!($($line),+) };
}
#[cfg(armv8m_main)]
macro_rules! dsp_asm {
    ($($line:expr),+ $(,)?) => { core::arch::naked_asm!(".cpu cortex-m33", $($line),+) };
}

/// A loop's body, so many times over.
macro_rules! repeat {
    (2, $($unit:expr),+) => { concat!($($unit, "\n",)+ $($unit, "\n",)+) };
    (4, $($unit:expr),+) => { concat!(repeat!(2, $($unit),+), repeat!(2, $($unit),+)) };
    (6, $($unit:expr),+) => { concat!(repeat!(4, $($unit),+), repeat!(2, $($unit),+)) };
    (8, $($unit:expr),+) => { concat!(repeat!(4, $($unit),+), repeat!(4, $($unit),+)) };
}

#[cfg(target_abi = "eabihf")]
pub(super) mod components;
mod matrix;
mod pack;
#[cfg(target_abi = "eabihf")]
pub(super) mod quantize;
mod row_major;
mod up;

use core::mem::MaybeUninit;

use super::layout::Layout;
use super::reference;
use row_major::Columns;

/// Blocks of four columns whose sum, times 256, is known modulo 2^32: 512 * 127 * 127 < 2^23.
const CHUNK_BLOCKS: usize = 128;

/// The same for a row-major matrix, whose even codes count as up to 255: 168 * (127 + 255) * 127 < 2^23.
const ROW_MAJOR_BLOCKS: usize = 84;

/// Blocks of four columns that are packed at a time on the stack, where the caller gave no scratch.
const STACK_BLOCKS: usize = 64;

/// A packed vector. Empty if there was no scratch.
#[derive(Default)]
pub(super) struct Words<'a> {
    /// `odd, even` for each block of four codes, the last one filled up with zeros.
    blocks: &'a [i32],
    /// For a row-major matrix: `odd, even` of the last four codes, those that complete blocks have as zeros.
    tail: [i32; 2],
    /// The sum of the codes of even index in complete blocks, and in the tail.
    even_sum: i32,
}

/// Two packed vectors. Empty if there was no scratch.
#[derive(Default)]
pub(super) struct PairWords<'a> {
    /// `odd0, even0, odd1, even1` for each block of four codes.
    blocks: &'a [i32],
    tail: [i32; 4],
    even_sums: [i32; 2],
}

pub(super) fn pack<'a>(x: &[i8], scratch: &'a mut [i32]) -> Words<'a> {
    let Some(words) = scratch.get_mut(..2 * x.len().div_ceil(4)) else { return Words::default() };
    let even_sum = pack::blocks(x.as_chunks().0, words);
    let mut packed = Words { blocks: &[], tail: [0; 2], even_sum };
    if let (true, [.., odd, even]) = (!x.len().is_multiple_of(4), &mut *words) {
        let tail_sum;
        ([*odd, *even], packed.tail, tail_sum) = pack::tails(x);
        packed.even_sum += tail_sum;
    }
    packed.blocks = words;
    packed
}

pub(super) fn pack_pair<'a>([x0, x1]: [&[i8]; 2], scratch: &'a mut [i32]) -> PairWords<'a> {
    let Some(words) = scratch.get_mut(..4 * x0.len().div_ceil(4)) else { return PairWords::default() };
    let even_sums = pack::pair_blocks(x0.as_chunks().0, x1.as_chunks().0, words);
    let mut packed = PairWords { blocks: &[], tail: [0; 4], even_sums };
    if let (true, [.., odd0, even0, odd1, even1]) = (!x0.len().is_multiple_of(4), &mut *words) {
        let (tail0, tail1, sum0, sum1);
        ([*odd0, *even0], tail0, sum0) = pack::tails(x0);
        ([*odd1, *even1], tail1, sum1) = pack::tails(x1);
        packed.tail = [tail0[0], tail0[1], tail1[0], tail1[1]];
        packed.even_sums = [even_sums[0] + sum0, even_sums[1] + sum1];
    }
    packed.blocks = words;
    packed
}

pub(super) fn gemv(layout: Layout, w: &[i8], x: &[i8], words: &Words<'_>, acc: &mut [i32]) {
    match layout {
        Layout::RowMajor => down(w, x, words, acc),
        Layout::Dsp4x4 if !words.blocks.is_empty() && is_aligned(w) => matrix::gemv(w, words.blocks, acc),
        _ => reference::foreign(layout, w, x, acc),
    }
}

pub(super) fn gemm2(
    layout: Layout,
    w: &[i8],
    x: [&[i8]; 2],
    words: &PairWords<'_>,
    [acc0, acc1]: [&mut [i32]; 2],
) {
    match layout {
        Layout::RowMajor => down2(w, x, words, [acc0, acc1]),
        Layout::Dsp4x4 if !words.blocks.is_empty() && is_aligned(w) => {
            matrix::gemm2(w, words.blocks, [acc0, acc1]);
        }
        _ => {
            reference::foreign(layout, w, x[0], acc0);
            reference::foreign(layout, w, x[1], acc1);
        }
    }
}

#[inline]
pub(super) fn down(a: &[i8], x: &[i8], words: &Words<'_>, z: &mut [i32]) {
    let k = x.len();
    if words.blocks.is_empty() || k < 4 {
        return down_unprepared(a, x, z);
    }
    if !row_major::down_at_once(a, k, words.blocks, words.even_sum, z) {
        z.fill(-128 * words.even_sum);
        row_major::down(a, k, columns(k, words.blocks, &words.tail), z);
    }
}

/// [`down`] of codes that are packed here, some at a time.
#[inline(never)]
fn down_unprepared(a: &[i8], x: &[i8], z: &mut [i32]) {
    let k = x.len();
    if k < 4 {
        return reference::foreign(Layout::RowMajor, a, x, z);
    }
    z.fill(0);
    let mut words = [MaybeUninit::uninit(); 2 * STACK_BLOCKS];
    let mut start = 0;
    for codes in x.chunks(4 * STACK_BLOCKS) {
        let (blocks, rest) = codes.as_chunks();
        let (words, mut even_sum) = pack::blocks_uninit(blocks, &mut words);
        let mut columns = Columns { start, blocks: blocks.len(), words, tail: None };
        let tail;
        if !rest.is_empty() {
            let tail_sum;
            (_, tail, tail_sum) = pack::tails(x);
            columns.tail = Some(&tail);
            even_sum += tail_sum;
        }
        z.iter_mut().for_each(|z| *z = z.wrapping_sub(128 * even_sum));
        row_major::down(a, k, columns, z);
        start += codes.len();
    }
}

/// All columns of packed vectors of length `k`.
fn columns<'a>(k: usize, words: &'a [i32], tail: &'a [i32]) -> Columns<'a> {
    Columns { start: 0, blocks: k / 4, words, tail: (!k.is_multiple_of(4)).then_some(tail) }
}

pub(super) fn down2(a: &[i8], x: [&[i8]; 2], words: &PairWords<'_>, [z0, z1]: [&mut [i32]; 2]) {
    let k = x[0].len();
    if words.blocks.is_empty() || k < 4 {
        down(a, x[0], &Words::default(), z0);
        down(a, x[1], &Words::default(), z1);
        return;
    }
    if !row_major::down2_at_once(a, k, words.blocks, words.even_sums, [&mut *z0, &mut *z1]) {
        z0.fill(-128 * words.even_sums[0]);
        z1.fill(-128 * words.even_sums[1]);
        row_major::down2(a, k, columns(k, words.blocks, &words.tail), [z0, z1]);
    }
}

pub(super) fn up_add(b: &[i8], v: &[i16], shift: u32, acc: &mut [i32]) {
    let done = up::up_add(b, v, shift, acc);
    if done < acc.len() {
        last_rows(b, v, shift, acc, done);
    }
}

/// The rows that the fast loops left: a few last ones, or all of them where the multiplier would not fit.
#[cold]
fn last_rows(b: &[i8], v: &[i16], shift: u32, acc: &mut [i32], done: usize) {
    let (Some(b), Some(acc)) = (b.get(done * v.len()..), acc.get_mut(done..)) else { return };
    if !v.is_empty() {
        reference::up_add_any(b, v, shift, acc);
    }
}

fn is_aligned(bytes: &[i8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(4)
}
