//! The linear operator, with and without an adapter: the LoRA site. Integer products, one scale per token and per row;
//! `format/SPEC.md` fixes every rounding. It knows matrices and patches, not graphs.

use rankpatch_format::adapter::Patch;
use rankpatch_format::base::Matrix;

use crate::kernels::float::dequantize;
use crate::kernels::{self, Packed, PackedPair};

/// 1.5 * 2^23: adding it leaves a float below 2^22, rounded to the nearest even integer, in the low bits of the sum.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// Buffers of the linear operator; what they hold does not outlive a call.
pub(crate) struct Scratch<'a> {
    /// `2 * out_features`: integer outputs of two tokens.
    pub(crate) acc: &'a mut [i32],
    /// [`kernels::pack_len`] of the widest input.
    pub(crate) pack: &'a mut [i32],
    /// Rank components of two tokens, `2 * rank`.
    pub(crate) z: &'a mut [i32],
    /// Their codes, `[rank]`.
    pub(crate) v: &'a mut [i16],
}

/// Tokens as codes: `[rows, stride]`, of which `cols` count, and one scale per row.
#[derive(Clone, Copy)]
pub(crate) struct Codes<'a> {
    pub(crate) codes: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) stride: usize,
}

/// y = W x + b for all tokens of `x`, with `patch` added to the integer sums.
///
/// `y`: `[rows, out_features]`; `bias`: `[out_features]` or empty.
pub(crate) fn linear(
    w: &Matrix<'_>,
    bias: &[f32],
    patch: Option<&Patch<'_>>,
    x: Codes<'_>,
    y: &mut [f32],
    scratch: &mut Scratch<'_>,
) {
    let Scratch { acc, pack, z, v } = scratch;
    let out = w.rows;
    let Some((acc0, acc1)) = acc.split_at_mut_checked(out) else { return };
    let rank = patch.map_or(0, |patch| patch.rank);
    let Some((z0, z1)) = z.get_mut(..2 * rank).and_then(|z| z.split_at_mut_checked(rank)) else { return };
    let rows = x.codes.chunks_exact(x.stride.max(1)).map(|row| row.get(..w.cols).unwrap_or(&[]));
    let mut tokens = rows.zip(x.scales).zip(y.chunks_exact_mut(out.max(1)));
    // Two tokens share every weight that is loaded, and A and W read the same prepared activations.
    while let Some(((x0, scale0), y0)) = tokens.next() {
        if let Some(((x1, scale1), y1)) = tokens.next() {
            let x = PackedPair::new(w.layout, x0, x1, pack);
            kernels::gemm2_packed(w.layout, w.codes, out, &x, acc0, acc1);
            if let Some(patch) = patch {
                kernels::down2_packed(patch.lora_a, rank, &x, z0, z1);
                add_components(patch, z0, v, acc0);
                add_components(patch, z1, v, acc1);
            }
            dequantize(acc0, *scale0, w.scales, bias, y0);
            dequantize(acc1, *scale1, w.scales, bias, y1);
        } else {
            let x = Packed::new(w.layout, x0, pack);
            kernels::gemv_packed(w.layout, w.codes, out, &x, acc0);
            if let Some(patch) = patch {
                kernels::down_packed(patch.lora_a, rank, &x, z0);
                add_components(patch, z0, v, acc0);
            }
            dequantize(acc0, *scale0, w.scales, bias, y0);
        }
    }
}

/// acc += B (c * z) with z = A x, in units of the accumulator: B's row scales are those of the base's weight.
fn add_components(patch: &Patch<'_>, z: &mut [i32], v: &mut [i16], acc: &mut [i32]) {
    let Some(v) = v.get_mut(..patch.rank) else { return };
    let shift = component_codes(z, patch.component_scales(), v);
    kernels::up_add(patch.lora_b, patch.rank, v, shift, acc);
}

/// Codes of the rank components: v\[j\] = scale\[j\] * z\[j\] * 2^shift, rounded to the nearest even integer and saturated to
/// +-32767, with the greatest shift in 0..=14 that keeps the largest within 32767. `z` is overwritten.
fn component_codes(z: &mut [i32], scales: impl Iterator<Item = f32>, v: &mut [i16]) -> u32 {
    let mut max = 0;
    for (z, scale) in z.iter_mut().zip(scales) {
        let bits = (scale * *z as f32).to_bits();
        max = max.max(bits << 1);
        *z = bits.cast_signed();
    }
    let max = f32::from_bits(max >> 1);
    let mut shift = (127 + 14i32.saturating_sub((max.to_bits() >> 23).cast_signed())).clamp(0, 14);
    if shift > 0 && max * power_of_two(shift) > 32767.0 {
        shift -= 1;
    }
    let factor = power_of_two(shift);
    for (v, z) in v.iter_mut().zip(z) {
        let scaled = (f32::from_bits(z.cast_unsigned()) * factor).clamp(-32767.0, 32767.0);
        *v = (scaled + ROUND_MAGIC).to_bits() as i16;
    }
    shift.cast_unsigned()
}

/// 2^n for n in 0..=14.
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((127 + n).cast_unsigned()) << 23)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    fn codes_of(values: &[f32]) -> (u32, Vec<i16>) {
        let mut z: Vec<i32> = vec![1; values.len()];
        let mut v = vec![0; values.len()];
        let shift = component_codes(&mut z, values.iter().copied(), &mut v);
        (shift, v)
    }

    #[test]
    fn component_codes_use_the_greatest_shift_that_fits() {
        assert_eq!(codes_of(&[1.0, -0.5, 0.3]), (14, vec![16384, -8192, 4915]));
        assert_eq!(codes_of(&[2.0]), (13, vec![16384]));
        assert_eq!(codes_of(&[1.9999]), (14, vec![32766]));
        // 1.99997 * 2^14 = 32767.5 is above 32767, so one bit less.
        assert_eq!(codes_of(&[1.999_97]), (13, vec![16384]));
        assert_eq!(codes_of(&[0.0]), (14, vec![0]));
        assert_eq!(codes_of(&[1e-3, 1e-9]), (14, vec![16, 0]));
        assert_eq!(codes_of(&[32767.0, -32767.0]), (0, vec![32767, -32767]));
        assert_eq!(codes_of(&[1e9, -1e9, 3.5]), (0, vec![32767, -32767, 4]));
    }
}
