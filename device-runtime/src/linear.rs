//! The linear operator, with and without an adapter: the LoRA site. Integer products, one scale per token and per row;
//! `format/SPEC.md` fixes every rounding. It knows matrices and patches, not graphs.

use rankpatch_format::adapter::Patch;
use rankpatch_format::base::Matrix;
use rankpatch_format::numbers::Floats;

use crate::kernels::float::dequantize;
use crate::kernels::wide::{gemv16, widen};
use crate::kernels::{self, Packed, PackedPair};
use crate::merge::{Merged, MergedCursor, row_words};

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
/// `y`: `[rows, out_features]`; `scales`: the row scales of `w`; `bias`: `[out_features]` or empty.
pub(crate) fn linear<'x>(
    w: &Matrix<'_>,
    scales: &[f32],
    bias: &[f32],
    patch: Option<&Patch<'_>>,
    x: Codes<'x>,
    y: &mut [f32],
    scratch: &mut Scratch<'_>,
) {
    let Scratch { acc, pack, z, v } = scratch;
    let out = w.rows;
    let Some((acc0, acc1)) = acc.split_at_mut_checked(out) else { return };
    let rank = patch.map_or(0, |patch| patch.rank);
    let Some((z0, z1)) = z.get_mut(..2 * rank).and_then(|z| z.split_at_mut_checked(rank)) else { return };
    let row = |codes: &'x [i8]| codes.get(..w.cols).unwrap_or(&[]);
    let (mut codes, mut y) = (x.codes, y);
    // Two tokens share every weight that is loaded, and A and W read the same prepared activations.
    for x_scales in x.scales.chunks(2) {
        let Some((y0, rest)) = core::mem::take(&mut y).split_at_mut_checked(out) else { return };
        if let [scale0, scale1] = x_scales {
            let Some((y1, rest)) = rest.split_at_mut_checked(out) else { return };
            let x1 = codes.get(x.stride..).unwrap_or(&[]);
            let pair = PackedPair::new(w.layout, row(codes), row(x1), pack);
            kernels::gemm2_packed(w.layout, w.codes, out, &pair, acc0, acc1);
            if let Some(patch) = patch {
                kernels::down2_packed(patch.lora_a, rank, &pair, z0, z1);
                add_components(patch, z0, v, acc0);
                add_components(patch, z1, v, acc1);
            }
            dequantize(acc0, *scale0, scales, bias, y0);
            dequantize(acc1, *scale1, scales, bias, y1);
            (codes, y) = (x1.get(x.stride..).unwrap_or(&[]), rest);
        } else if let [scale0] = x_scales {
            let x = Packed::new(w.layout, row(codes), pack);
            kernels::gemv_packed(w.layout, w.codes, out, &x, acc0);
            if let Some(patch) = patch {
                kernels::down_packed(patch.lora_a, rank, &x, z0);
                add_components(patch, z0, v, acc0);
            }
            dequantize(acc0, *scale0, scales, bias, y0);
            y = rest;
        }
    }
}

/// [`linear_merged`], where it is called by way of a pointer.
pub(crate) type LinearMerged = for<'m> fn(
    &mut MergedCursor<'m>,
    u16,
    &Matrix<'m>,
    &[f32],
    Codes<'_>,
    &mut [f32],
    &mut Scratch<'_>,
) -> bool;

/// y = W' x + b with the merged matrix of `site`, whose base weight is `w`. False, and nothing done, if the site is not patched.
pub(crate) fn linear_merged<'m>(
    cursor: &mut MergedCursor<'m>,
    site: u16,
    w: &Matrix<'m>,
    bias: &[f32],
    x: Codes<'_>,
    y: &mut [f32],
    scratch: &mut Scratch<'_>,
) -> bool {
    match cursor.take(site, w) {
        None => return false,
        Some(Merged::Int16 { words, scales }) => {
            linear_wide((words, scales), w.cols, bias, x, y, scratch);
        }
        Some(Merged::Int8(w)) => {
            let Floats::F32(scales) = w.scales else { return false };
            linear(&w, scales, bias, None, x, y, scratch);
        }
    }
    true
}

/// y = W x + b for all tokens of `x`, with 16-bit codes `[rows, words]` and their row scales; `cols` codes of a token count.
pub(crate) fn linear_wide(
    (words, scales): (&[u32], &[f32]),
    cols: usize,
    bias: &[f32],
    x: Codes<'_>,
    y: &mut [f32],
    scratch: &mut Scratch<'_>,
) {
    let out = scales.len();
    let (Some(acc), Some(packed)) = (scratch.acc.get_mut(..out), scratch.pack.get_mut(..row_words(cols)))
    else {
        return;
    };
    let packed: &mut [u32] = bytemuck::cast_slice_mut(packed);
    let tokens = x.codes.chunks_exact(x.stride.max(1)).zip(x.scales).zip(y.chunks_exact_mut(out.max(1)));
    for ((codes, scale), y) in tokens {
        widen(codes.get(..cols).unwrap_or(&[]), packed);
        gemv16(words, packed, acc);
        dequantize(acc, *scale, scales, bias, y);
    }
}

/// acc += B (c * z) with z = A x, in units of the accumulator: B's row scales are those of the base's weight.
fn add_components(patch: &Patch<'_>, z: &mut [i32], v: &mut [i16], acc: &mut [i32]) {
    let Some(v) = v.get_mut(..patch.rank) else { return };
    let shift = kernels::component_codes(z, patch.scales.as_chunks().0, v);
    kernels::up_add(patch.lora_b, patch.rank, v, shift, acc);
}
