//! One door to the processor's vector unit.
//!
//! Kernels are plain loops over arrays of fixed width with [`f32::mul_add`]. Inside [`vectorized`] the compiler may use
//! whatever the processor has (found out at run time), so a multiply-add is one instruction. As the loops fix every
//! order and every rounding, all processors give the same bits.

use pulp::{Scalar, Simd, WithSimd};

/// Lanes of the sums in kernels; a register of AVX2.
pub(super) const LANES: usize = 8;
/// Most lanes that any register has; one of AVX-512.
pub(super) const WIDE_LANES: usize = 2 * LANES;

/// Runs a kernel with the best instructions there are. The kernel must be a closure over `#[inline(always)]` functions.
#[inline(always)]
pub(super) fn vectorized<R>(kernel: impl FnOnce() -> R) -> R {
    struct Plain<F>(F);
    impl<R, F: FnOnce() -> R> WithSimd for Plain<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    dispatch_wide(Plain(kernel))
}

/// Whether [`dispatch_wide`] has registers of [`WIDE_LANES`] lanes, and 32 of them.
#[inline(always)]
pub(super) fn has_wide_registers() -> bool {
    #[cfg(target_arch = "x86_64")]
    return wide::registers().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Runs a kernel that names its vector registers. They have at most [`WIDE_LANES`] lanes.
#[inline(always)]
pub(super) fn dispatch_wide<K: WithSimd>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = wide::registers() {
        return Simd::vectorize(simd, kernel);
    }
    dispatch(kernel)
}

/// Runs a kernel that names its vector registers. They have at most [`LANES`] lanes.
#[inline(always)]
pub(super) fn dispatch<K: WithSimd>(kernel: K) -> K::Output {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return Simd::vectorize(simd, kernel);
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(simd) = pulp::aarch64::Neon::try_new() {
        return Simd::vectorize(simd, kernel);
    }
    Simd::vectorize(Scalar, kernel)
}

/// Sum of `f(i)` for `i` in `0..len` in a fixed order: eight interleaved sums, then a tree.
#[inline(always)]
pub(super) fn sum_by(len: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = len / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(i + lane);
        }
        i += LANES;
    }
    for (lane, i) in (whole..len).enumerate() {
        lanes[lane] += f(i);
    }
    tree(lanes)
}

#[inline(always)]
fn tree(l: [f32; LANES]) -> f32 {
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

/// Sum of the values in a fixed order: sixteen interleaved sums, then a tree.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 2 * LANES];
    let (chunks, rest) = values.as_chunks::<{ 2 * LANES }>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    tree(std::array::from_fn(|i| lanes[i] + lanes[i + LANES]))
}

/// Sum of `f(value)`, for an `f` that is worth a vector loop of its own; in a fixed order.
#[inline(always)]
pub(super) fn sum_map(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for chunk in values.chunks(8 * LANES) {
        let mut mapped = [0.0f32; 8 * LANES];
        for (mapped, &value) in mapped.iter_mut().zip(chunk) {
            *mapped = f(value);
        }
        // What is behind the end is zero.
        for mapped in mapped.as_chunks::<LANES>().0 {
            for (lane, mapped) in lanes.iter_mut().zip(mapped) {
                *lane += mapped;
            }
        }
    }
    tree(lanes)
}

/// Largest of the values, at least `start`.
#[inline(always)]
pub(super) fn largest(values: &[f32], start: f32) -> f32 {
    let mut lanes = [start; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    rest.iter().chain(&lanes).fold(start, |m, &value| if value > m { value } else { m })
}

#[cfg(target_arch = "x86_64")]
mod wide {
    /// AVX-512, if the processor has it.
    #[inline(always)]
    pub(super) fn registers() -> Option<pulp::x86::V4> {
        #[cfg(test)]
        if super::without_wide_registers::asked() {
            return None;
        }
        pulp::x86::V4::try_new()
    }
}

/// Lets a test go the way of processors with narrower registers.
#[cfg(test)]
pub(super) mod without_wide_registers {
    use std::cell::Cell;

    thread_local!(static ASKED: Cell<bool> = const { Cell::new(false) });

    pub(super) fn asked() -> bool {
        ASKED.get()
    }

    /// What `f` gives on this thread without them.
    pub(in crate::ops) fn run<R>(f: impl FnOnce() -> R) -> R {
        ASKED.set(true);
        let result = f();
        ASKED.set(false);
        result
    }
}
