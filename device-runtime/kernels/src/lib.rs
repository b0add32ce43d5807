//! Integer kernels: int8 matrix times int8 vector into `i32`, the two halves of a low-rank update, and the quantization
//! of a vector; float loops, and the audio front end. Plain functions over slices, without state; they know nothing of graphs, adapters or files.
//!
//! Every function here has one result, bit for bit, on every core. `reference.rs` computes it in safe Rust and is what
//! the host runs, and cores without vector or SMLAD instructions, but for one loop of `thumb.rs` or `riscv.rs`; with the feature
//! `dsp` the same functions use SMLAD, with `helium` vectors. [`sweep`] checks whichever is compiled. Codes lie in -127..=127: that is checked where a
//! base or an adapter is read. With a code of -128 the result is unspecified, but nothing panics and no memory outside
//! the slices is touched.
//!
//! The caller guarantees the lengths. A slice that is too short trips a debug assertion; in a release build the call
//! then does nothing.

#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

pub mod attention;
mod components;
pub mod float;
pub mod front_end;
mod layout;
mod quantize;
#[cfg_attr(
    target_os = "none",
    allow(dead_code, reason = "a core may have a kernel of its own for some of these")
)]
mod reference;
pub mod sweep;
#[cfg(test)]
mod tests;
pub mod wide;

// Armv6-M is the one Arm profile without compare-and-swap.
#[cfg(all(target_arch = "arm", feature = "dsp", not(target_has_atomic = "32")))]
compile_error!(
    "expected a core with the DSP extension (Cortex-M4, M7, M33) for the feature `dsp`, found Armv6-M"
);

#[cfg(all(target_arch = "arm", feature = "helium", not(armv8m_main)))]
compile_error!("expected a core with Helium (Cortex-M55, M85; thumbv8m.main) for the feature `helium`");
#[cfg(all(target_arch = "arm", feature = "helium", feature = "dsp"))]
compile_error!("expected one of the features `dsp` and `helium`, found both");

#[cfg(all(target_arch = "arm", feature = "dsp"))]
mod dsp;
#[cfg(all(target_arch = "arm", feature = "dsp"))]
use dsp as core_kernels;
#[cfg(all(target_arch = "arm", feature = "helium"))]
mod helium;
#[cfg(all(target_arch = "arm", feature = "helium"))]
use helium as core_kernels;
#[cfg(any(
    all(target_arch = "arm", not(any(feature = "dsp", feature = "helium"))),
    all(target_arch = "riscv32", target_feature = "m")
))]
mod four_rows;
#[cfg(not(all(target_arch = "arm", any(feature = "dsp", feature = "helium"))))]
mod portable;
#[cfg(all(target_arch = "riscv32", target_feature = "m"))]
mod riscv;
#[cfg(all(target_arch = "arm", not(any(feature = "dsp", feature = "helium"))))]
mod thumb;
#[cfg(not(all(target_arch = "arm", any(feature = "dsp", feature = "helium"))))]
use portable as core_kernels;
#[cfg(all(target_arch = "arm", any(feature = "dsp", feature = "helium")))]
mod smlad;
#[cfg(not(all(target_arch = "arm", feature = "dsp")))]
mod unpacked;

pub use components::component_codes;
pub use layout::{Layout, encode, layout_len};
pub use quantize::{is_quantizable, max_abs_bits, quantize};

/// Words of scratch that [`Packed`], [`PackedPair`], [`gemv`] and [`gemm2`] need for vectors of `k` codes.
pub const fn pack_len(layout: Layout, k: usize) -> usize {
    match layout {
        Layout::RowMajor | Layout::Mve4x16 => 0,
        // Two words for four codes of two vectors.
        Layout::Dsp4x4 => k.div_ceil(4).saturating_mul(4),
    }
}

/// A vector of codes, prepared once for all the matrices that multiply it: what the kernels of this core read faster
/// than codes. Borrows the scratch that it is prepared in.
pub struct Packed<'a> {
    codes: &'a [i8],
    words: core_kernels::Words<'a>,
}

impl<'a> Packed<'a> {
    /// Prepares `codes` for matrices in `layout`; `scratch` is [`pack_len`] words.
    pub fn new(layout: Layout, codes: &'a [i8], scratch: &'a mut [i32]) -> Self {
        let len = pack_len(layout, codes.len());
        debug_assert!(scratch.len() >= len, "expected {len} words of scratch, found {}", scratch.len());
        let scratch = scratch.get_mut(..len).unwrap_or_default();
        Self { codes, words: core_kernels::pack(codes, scratch) }
    }
}

/// Two vectors of codes of one length, prepared like [`Packed`].
pub struct PackedPair<'a> {
    codes: [&'a [i8]; 2],
    words: core_kernels::PairWords<'a>,
}

impl<'a> PackedPair<'a> {
    /// Prepares two vectors for matrices in `layout`; `scratch` is [`pack_len`] words. If one is longer, its end is left
    /// out.
    pub fn new(layout: Layout, x0: &'a [i8], x1: &'a [i8], scratch: &'a mut [i32]) -> Self {
        debug_assert_eq!(x0.len(), x1.len(), "a pair of vectors");
        let codes = [x0.get(..x1.len()).unwrap_or(x0), x1.get(..x0.len()).unwrap_or(x1)];
        let len = pack_len(layout, codes[0].len());
        debug_assert!(scratch.len() >= len, "expected {len} words of scratch, found {}", scratch.len());
        let scratch = scratch.get_mut(..len).unwrap_or_default();
        Self { codes, words: core_kernels::pack_pair(codes, scratch) }
    }
}

/// Matrix times vector: `acc[o] = sum_i W[o,i] * x[i]`, exact.
///
/// `w`: `[out, k]` in `layout`, [`layout_len`] bytes; `x`: `[k]`; `acc`: `[out]`; `pack`: scratch of [`pack_len`]
/// words. Fast when a `Dsp4x4` matrix is aligned to 4 bytes. `k` is at most 65536.
pub fn gemv(layout: Layout, w: &[i8], out: usize, k: usize, x: &[i8], acc: &mut [i32], pack: &mut [i32]) {
    let (Some(x), Some(pack)) = (x.get(..k), pack.get_mut(..pack_len(layout, k))) else {
        debug_assert!(false, "gemv: a slice is too short for {out} x {k}");
        return;
    };
    gemv_packed(layout, w, out, &Packed::new(layout, x, pack), acc);
}

/// [`gemv`] of a prepared vector, which gives `k`.
pub fn gemv_packed(layout: Layout, w: &[i8], out: usize, x: &Packed<'_>, acc: &mut [i32]) {
    let k = x.codes.len();
    let (Some(w), Some(acc)) = (w.get(..layout_len(layout, out, k)), acc.get_mut(..out)) else {
        debug_assert!(false, "gemv: a slice is too short for {out} x {k}");
        return;
    };
    core_kernels::gemv(layout, w, x.codes, &x.words, acc);
}

/// [`gemv`] for two vectors: `acc0 = W x0`, `acc1 = W x1`. Each weight is loaded and sign-extended once for both.
#[allow(clippy::too_many_arguments, reason = "a matrix in four arguments, and two vectors each way")]
pub fn gemm2(
    layout: Layout,
    w: &[i8],
    out: usize,
    k: usize,
    x0: &[i8],
    x1: &[i8],
    acc0: &mut [i32],
    acc1: &mut [i32],
    pack: &mut [i32],
) {
    let (Some(x0), Some(x1), Some(pack)) = (x0.get(..k), x1.get(..k), pack.get_mut(..pack_len(layout, k)))
    else {
        debug_assert!(false, "gemm2: a slice is too short for {out} x {k}");
        return;
    };
    gemm2_packed(layout, w, out, &PackedPair::new(layout, x0, x1, pack), acc0, acc1);
}

/// [`gemm2`] of two prepared vectors, which give `k`.
pub fn gemm2_packed(
    layout: Layout,
    w: &[i8],
    out: usize,
    x: &PackedPair<'_>,
    acc0: &mut [i32],
    acc1: &mut [i32],
) {
    let k = x.codes[0].len();
    let (Some(w), Some(acc0), Some(acc1)) =
        (w.get(..layout_len(layout, out, k)), acc0.get_mut(..out), acc1.get_mut(..out))
    else {
        debug_assert!(false, "gemm2: a slice is too short for {out} x {k}");
        return;
    };
    core_kernels::gemm2(layout, w, x.codes, &x.words, [acc0, acc1]);
}

/// Down-projection of a low-rank update: `z[j] = sum_i A[j,i] * x[i]`, exact.
///
/// `a`: `[r, k]` row-major, any alignment, fastest when it and `k` are multiples of 4; `x`: `[k]`; `z`: `[r]`. `k` is at
/// most 65536.
pub fn down(a: &[i8], r: usize, k: usize, x: &[i8], z: &mut [i32]) {
    let Some(x) = x.get(..k) else {
        debug_assert!(false, "down: a slice is too short for {r} x {k}");
        return;
    };
    down_packed(a, r, &Packed { codes: x, words: core_kernels::Words::default() }, z);
}

/// [`down`] of a prepared vector, which gives `k`. It is what [`gemv_packed`] of the base's weight reads as well.
pub fn down_packed(a: &[i8], r: usize, x: &Packed<'_>, z: &mut [i32]) {
    let k = x.codes.len();
    let (Some(a), Some(z)) = (a.get(..r.saturating_mul(k)), z.get_mut(..r)) else {
        debug_assert!(false, "down: a slice is too short for {r} x {k}");
        return;
    };
    core_kernels::down(a, x.codes, &x.words, z);
}

/// [`down`] of two prepared vectors, which give `k`: `z0 = A x0`, `z1 = A x1`.
pub fn down2_packed(a: &[i8], r: usize, x: &PackedPair<'_>, z0: &mut [i32], z1: &mut [i32]) {
    let k = x.codes[0].len();
    let (Some(a), Some(z0), Some(z1)) = (a.get(..r.saturating_mul(k)), z0.get_mut(..r), z1.get_mut(..r))
    else {
        debug_assert!(false, "down: a slice is too short for {r} x {k}");
        return;
    };
    core_kernels::down2(a, x.codes, &x.words, [z0, z1]);
}

/// Up-projection of a low-rank update, added to `acc` at its scale:
/// `acc[o] += (sum_j B[o,j] * v[j] + round) >> shift` with `round = 2^(shift-1)`, or 0 if `shift` is 0.
///
/// `b`: `[d, r]` row-major, any alignment, fastest at a multiple of 4; `v`: `[r]`; `acc`: `[d]`, which gives `d`. `r` is at
/// most 256 and `shift` at most 14. Ranks 1, 2, 4, 8 and 16 are the fastest.
pub fn up_add(b: &[i8], r: usize, v: &[i16], shift: u32, acc: &mut [i32]) {
    let (Some(b), Some(v), 0..=14) = (b.get(..r.saturating_mul(acc.len())), v.get(..r), shift) else {
        debug_assert!(false, "up_add: a slice is too short for {} x {r}, or {shift} is above 14", acc.len());
        return;
    };
    core_kernels::up_add(b, v, shift, acc);
}
