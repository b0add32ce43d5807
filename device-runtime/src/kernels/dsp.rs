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
#![allow(unsafe_code, reason = "SMLAD has no stable intrinsic, and loops of naked assembly use every register")]

mod matrix;
mod up;

use core::arch::asm;

use super::layout::Layout;
use super::reference;

/// Blocks of four columns whose sum, times 256, is known modulo 2^32: 512 * 127 * 127 < 2^23.
const CHUNK_BLOCKS: usize = 128;

/// Blocks of four columns that [`down`] packs at a time, on the stack.
const STACK_BLOCKS: usize = 64;

pub(super) fn gemv(layout: Layout, w: &[i8], k: usize, x: &[i8], acc: &mut [i32], pack: &mut [i32]) {
    match layout {
        Layout::RowMajor => down(w, k, x, acc),
        Layout::Dsp4x4 if k > 0 && w.as_ptr().addr().is_multiple_of(4) => {
            pack_vector(x, pack);
            matrix::gemv(w, k.div_ceil(4), pack, acc);
        }
        Layout::Dsp4x4 => reference::gemv(layout, w, k, x, acc, pack),
    }
}

pub(super) fn gemm2(
    layout: Layout,
    w: &[i8],
    k: usize,
    x: [&[i8]; 2],
    acc: [&mut [i32]; 2],
    pack: &mut [i32],
) {
    if layout == Layout::Dsp4x4 && k > 0 && w.as_ptr().addr().is_multiple_of(4) {
        pack_two_vectors(x, pack);
        matrix::gemm2(w, k.div_ceil(4), pack, acc);
    } else {
        let ([x0, x1], [acc0, acc1]) = (x, acc);
        gemv(layout, w, k, x0, acc0, pack);
        gemv(layout, w, k, x1, acc1, pack);
    }
}

pub(super) fn down(a: &[i8], k: usize, x: &[i8], z: &mut [i32]) {
    z.fill(0);
    let mut pack = [0; 2 * STACK_BLOCKS];
    let (blocks, tail) = x.as_chunks::<4>();
    for (i, blocks) in blocks.chunks(STACK_BLOCKS).enumerate() {
        let even = pack_blocks(blocks, &mut pack);
        matrix::down(a, k, i * STACK_BLOCKS * 4, &pack, blocks.len(), even, z);
    }
    down_tail(a, k, tail, z);
}

/// Adds the columns of the last, incomplete block.
fn down_tail(a: &[i8], k: usize, tail: &[i8], z: &mut [i32]) {
    if tail.is_empty() {
        return;
    }
    for (z, row) in z.iter_mut().zip(a.chunks_exact(k)) {
        let row = row.get(k - tail.len()..).unwrap_or(&[]);
        *z = row.iter().zip(tail).fold(*z, |sum, (&a, &x)| sum.wrapping_add(i32::from(a) * i32::from(x)));
    }
}

pub(super) fn up_add(b: &[i8], v: &[i16], shift: u32, acc: &mut [i32]) {
    let done = up::up_add(b, v, shift, acc);
    // What is left: a few last rows, or all of them where the multiplier 2^(32-shift) would not fit.
    let (Some(b), Some(acc)) = (b.get(done * v.len()..), acc.get_mut(done..)) else { return };
    reference::up_add(b, v, shift, acc);
}

/// Packs a vector for [`matrix::gemv`]: words `odd, even` for each block of four, the last one filled up with zeros;
/// then the sum of the even activations of complete blocks.
fn pack_vector(x: &[i8], pack: &mut [i32]) {
    let (blocks, tail) = x.as_chunks::<4>();
    let even = pack_blocks(blocks, pack);
    if let Some(rest) = pack.get_mut(2 * blocks.len()..) {
        match rest {
            [sum, ..] if tail.is_empty() => *sum = even,
            [a, b, sum, ..] => {
                [*a, *b] = pack_block(filled(tail)).0;
                *sum = even;
            }
            _ => {}
        }
    }
}

fn pack_blocks(blocks: &[[i8; 4]], pack: &mut [i32]) -> i32 {
    let (words, _) = pack.as_chunks_mut::<2>();
    let mut sum = 0;
    for (words, &block) in words.iter_mut().zip(blocks) {
        let even;
        (*words, even) = pack_block(block);
        sum = add_halves(even, sum);
    }
    sum >> 8
}

/// Packs two vectors for [`matrix::gemm2`]: four words for each block, `odd, even` of the one and of the other.
fn pack_two_vectors([x0, x1]: [&[i8]; 2], pack: &mut [i32]) {
    let (words, _) = pack.as_chunks_mut::<4>();
    let ((blocks0, tail0), (blocks1, tail1)) = (x0.as_chunks::<4>(), x1.as_chunks::<4>());
    let mut words = words.iter_mut();
    for ((&block0, &block1), words) in blocks0.iter().zip(blocks1).zip(&mut words) {
        let ([odd0, even0], [odd1, even1]) = (pack_block(block0).0, pack_block(block1).0);
        *words = [odd0, even0, odd1, even1];
    }
    if let (false, Some(words)) = (tail0.is_empty(), words.next()) {
        let ([odd0, even0], [odd1, even1]) = (pack_block(filled(tail0)).0, pack_block(filled(tail1)).0);
        *words = [odd0, even0, odd1, even1];
    }
}

/// The last block of a vector, filled up with zeros.
fn filled(tail: &[i8]) -> [i8; 4] {
    let mut block = [0; 4];
    block.iter_mut().zip(tail).for_each(|(to, from)| *to = *from);
    block
}

/// `[(x1, x3), (256 x0 - x1, 256 x2 - x3)]` and `(256 x0, 256 x2)`.
#[inline]
fn pack_block(block: [i8; 4]) -> ([i32; 2], i32) {
    let word = i32::from_le_bytes(block.map(i8::cast_unsigned));
    let (odd, even): (i32, i32);
    let shifted = (word & 0x00ff_00ff) << 8;
    // SAFETY: arithmetic on registers.
    unsafe {
        asm!(
            "sxtb16 {odd}, {word}, ror #8",
            "ssub16 {even}, {shifted}, {odd}",
            word = in(reg) word,
            odd = out(reg) odd,
            shifted = in(reg) shifted,
            even = lateout(reg) even,
            options(pure, nomem, nostack),
        );
    }
    ([odd, even], shifted)
}

/// `sum` plus both halves of `word`.
#[inline]
fn add_halves(word: i32, sum: i32) -> i32 {
    let result;
    // SAFETY: arithmetic on registers; SMLAD sets the sticky Q flag on overflow, which nothing here reads.
    unsafe {
        asm!(
            "smlad {result}, {word}, {ones}, {sum}",
            word = in(reg) word,
            ones = in(reg) 0x0001_0001,
            sum = in(reg) sum,
            result = lateout(reg) result,
            options(pure, nomem, nostack),
        );
    }
    result
}
