//! The kernels for cores with Helium, the M-profile vector extension (Cortex-M55, M85): VMLADAVA multiplies sixteen codes by
//! sixteen and adds all products to a general register.
//!
//! Such a core executes a load and a multiplication side by side, so loads and multiplications take turns, and what is
//! left to save are loads of activations and loop ends: eight rows share a vector of activations, or four rows share
//! their weights between two vectors. A vector needs no preparation: the last columns are loaded with predication.
//!
//! Compiled code uses no vector registers here, and should not: vector floating-point instructions take subnormal numbers
//! for zero, which is not what `format/SPEC.md` says. Where a kernel uses them, it says why that makes no difference.
#![allow(
    unsafe_code,
    reason = "Helium has no stable intrinsics, and loops of naked assembly use every register"
)]

/// A naked function's body for a core with Helium, of which the target `thumbv8m.main` does not tell the assembler.
macro_rules! helium_asm {
    ($($line:expr),+ $(,)?) => { core::arch::naked_asm!(".cpu cortex-m55", $($line),+) };
}

/// A loop's body, so many times over.
macro_rules! repeat {
    (2, $($unit:expr),+) => { concat!($($unit, "\n",)+ $($unit, "\n",)+) };
    (4, $($unit:expr),+) => { concat!(repeat!(2, $($unit),+), repeat!(2, $($unit),+)) };
}

pub(super) mod components;
mod matrix;
pub(super) mod quantize;
mod row_major;
mod up;

use super::layout::Layout;
use super::reference;
pub(super) use super::unpacked::{PairWords, Words, pack, pack_pair};

pub(super) fn gemv(layout: Layout, w: &[i8], x: &[i8], _words: &Words<'_>, acc: &mut [i32]) {
    match layout {
        Layout::RowMajor => row_major::row_major(w, x, acc),
        Layout::Dsp4x4 => reference::foreign(layout, w, x, acc),
        Layout::Mve4x16 => matrix::gemv(w, x, acc),
    }
}

pub(super) fn gemm2(
    layout: Layout,
    w: &[i8],
    [x0, x1]: [&[i8]; 2],
    _words: &PairWords<'_>,
    [acc0, acc1]: [&mut [i32]; 2],
) {
    if layout == Layout::Mve4x16 {
        return matrix::gemm2(w, [x0, x1], [acc0, acc1]);
    }
    gemv(layout, w, x0, &Words::default(), acc0);
    gemv(layout, w, x1, &Words::default(), acc1);
}

pub(super) fn down(a: &[i8], x: &[i8], _words: &Words<'_>, z: &mut [i32]) {
    row_major::row_major(a, x, z);
}

pub(super) fn down2(a: &[i8], [x0, x1]: [&[i8]; 2], _words: &PairWords<'_>, [z0, z1]: [&mut [i32]; 2]) {
    row_major::row_major(a, x0, z0);
    row_major::row_major(a, x1, z1);
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
