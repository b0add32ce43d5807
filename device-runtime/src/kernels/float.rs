//! Loops over single-precision vectors, term by term: no order to choose, so every core has the same bits.

#[cfg(all(target_arch = "arm", feature = "dsp", target_abi = "eabihf"))]
use super::dsp::float as groups;
#[cfg(not(all(target_arch = "arm", feature = "dsp", target_abi = "eabihf")))]
use portable as groups;

/// `y[i] = acc[i] * (scale * row_scales[i]) + bias[i]`; without the sum if `bias` is empty. The shortest slice counts.
pub fn dequantize(acc: &[i32], scale: f32, row_scales: &[f32], bias: &[f32], y: &mut [f32]) {
    let len = y.len().min(acc.len()).min(row_scales.len());
    let len = if bias.is_empty() { len } else { len.min(bias.len()) };
    let (Some(acc), Some(row_scales), Some(y)) = (acc.get(..len), row_scales.get(..len), y.get_mut(..len)) else {
        return;
    };
    let bias = bias.get(..len).unwrap_or(&[]);
    let ((acc8, acc1), (scales8, scales1)) = (acc.as_chunks(), row_scales.as_chunks());
    let ((bias8, bias1), (y8, y1)) = (bias.as_chunks(), y.as_chunks_mut());
    if bias.is_empty() {
        groups::dequantize(acc8, scale, scales8, y8);
    } else {
        groups::dequantize_bias(acc8, scale, scales8, bias8, y8);
    }
    for (i, ((y, acc), row_scale)) in y1.iter_mut().zip(acc1).zip(scales1).enumerate() {
        let value = *acc as f32 * (scale * row_scale);
        *y = bias1.get(i).map_or(value, |bias| value + bias);
    }
}

/// `y[i] += x[i]`.
pub fn add(y: &mut [f32], x: &[f32]) {
    binary(y, x, groups::add, |y, x| y + x);
}

/// `y[i] *= x[i]`.
pub fn mul(y: &mut [f32], x: &[f32]) {
    binary(y, x, groups::mul, |y, x| y * x);
}

#[inline(always)]
#[allow(clippy::inline_always, reason = "so that the functions are known")]
fn binary(y: &mut [f32], x: &[f32], bulk: fn(&mut [[f32; 8]], &[[f32; 8]]), one: fn(f32, f32) -> f32) {
    let len = y.len().min(x.len());
    let (Some(y), Some(x)) = (y.get_mut(..len), x.get(..len)) else { return };
    let ((y8, y1), (x8, x1)) = (y.as_chunks_mut(), x.as_chunks());
    bulk(y8, x8);
    y1.iter_mut().zip(x1).for_each(|(y, x)| *y = one(*y, *x));
}

/// Eight at a time.
#[cfg(not(all(target_arch = "arm", feature = "dsp", target_abi = "eabihf")))]
mod portable {
    pub(super) fn dequantize(acc: &[[i32; 8]], scale: f32, row_scales: &[[f32; 8]], y: &mut [[f32; 8]]) {
        let rows = acc.as_flattened().iter().zip(row_scales.as_flattened());
        for (y, (acc, row_scale)) in y.as_flattened_mut().iter_mut().zip(rows) {
            *y = *acc as f32 * (scale * row_scale);
        }
    }

    pub(super) fn dequantize_bias(
        acc: &[[i32; 8]],
        scale: f32,
        row_scales: &[[f32; 8]],
        bias: &[[f32; 8]],
        y: &mut [[f32; 8]],
    ) {
        dequantize(acc, scale, row_scales, y);
        add(y, bias);
    }

    pub(super) fn add(y: &mut [[f32; 8]], x: &[[f32; 8]]) {
        y.as_flattened_mut().iter_mut().zip(x.as_flattened()).for_each(|(y, x)| *y += x);
    }

    pub(super) fn mul(y: &mut [[f32; 8]], x: &[[f32; 8]]) {
        y.as_flattened_mut().iter_mut().zip(x.as_flattened()).for_each(|(y, x)| *y *= x);
    }
}
