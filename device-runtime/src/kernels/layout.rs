//! How the rows of an int8 matrix lie in flash.

/// Order of the codes of a matrix `[out, k]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Row after row, one byte a code.
    RowMajor,
    /// For cores with SMLAD: blocks of 4 rows x 4 columns, one 32-bit word a row, zero-padded in both directions. A word
    /// holds two halves, `256 c1 + c0` and `256 c3 + c2`, as `i16`. So a half multiplied as it stands needs no sign
    /// extension, and what its low byte adds is made up for in the activations.
    Dsp4x4,
}

/// Bytes of a matrix `[out, k]` in `layout`, padding included. Saturates instead of overflowing.
pub const fn layout_len(layout: Layout, out: usize, k: usize) -> usize {
    match layout {
        Layout::RowMajor => out.saturating_mul(k),
        Layout::Dsp4x4 => out.div_ceil(4).saturating_mul(k.div_ceil(4)).saturating_mul(16),
    }
}

/// Lays out a whole matrix: `codes` is `[out, k]` row-major, `image` gets [`layout_len`] bytes, padding included.
pub fn encode(layout: Layout, codes: &[i8], out: usize, k: usize, image: &mut [i8]) {
    let (Some(codes), Some(image)) =
        (codes.get(..out.saturating_mul(k)), image.get_mut(..layout_len(layout, out, k)))
    else {
        debug_assert!(false, "encode: a slice is too short for {out} x {k}");
        return;
    };
    image.fill(0);
    for (row, codes) in codes.chunks_exact(k.max(1)).enumerate() {
        write_row(layout, image, out, k, row, codes);
    }
}

/// Writes the codes of one row, `[k]` in -127..=127, into the image of a matrix `[out, k]`. The padding columns of a
/// `Dsp4x4` row are set to zero; its padding rows are the caller's.
pub fn write_row(layout: Layout, image: &mut [i8], out: usize, k: usize, row: usize, codes: &[i8]) {
    let (Some(image), Some(codes), true) =
        (image.get_mut(..layout_len(layout, out, k)), codes.get(..k), row < out)
    else {
        debug_assert!(false, "write_row: row {row} of {out} x {k} does not fit");
        return;
    };
    match layout {
        Layout::RowMajor => {
            if let Some(target) = image.chunks_exact_mut(k.max(1)).nth(row) {
                target.copy_from_slice(codes);
            }
        }
        Layout::Dsp4x4 => {
            let (words, _) = image.as_chunks_mut::<4>();
            let words = words.iter_mut().skip(row / 4 * k.div_ceil(4) * 4 + row % 4).step_by(4);
            for (word, group) in words.zip(codes.chunks(4)) {
                let code = |i: usize| i16::from(group.get(i).copied().unwrap_or(0));
                let half = |i: usize| code(i + 1).wrapping_mul(256).wrapping_add(code(i)).to_le_bytes();
                let ([b0, b1], [b2, b3]) = (half(0), half(2));
                *word = [b0, b1, b2, b3].map(u8::cast_signed);
            }
        }
    }
}

/// Reads the codes of one row: the inverse of [`write_row`].
pub fn read_row(layout: Layout, image: &[i8], out: usize, k: usize, row: usize, codes: &mut [i8]) {
    let (Some(image), Some(codes), true) =
        (image.get(..layout_len(layout, out, k)), codes.get_mut(..k), row < out)
    else {
        debug_assert!(false, "read_row: row {row} of {out} x {k} does not fit");
        return;
    };
    match layout {
        Layout::RowMajor => {
            if let Some(source) = image.chunks_exact(k.max(1)).nth(row) {
                codes.copy_from_slice(source);
            }
        }
        Layout::Dsp4x4 => {
            let (words, _) = image.as_chunks::<4>();
            let words = words.iter().skip(row / 4 * k.div_ceil(4) * 4 + row % 4).step_by(4);
            for (&word, group) in words.zip(codes.chunks_mut(4)) {
                for (to, from) in group.iter_mut().zip(decode_word(word)) {
                    *to = from;
                }
            }
        }
    }
}

/// The four codes of a `Dsp4x4` word.
#[inline]
pub(super) fn decode_word([b0, b1, b2, b3]: [i8; 4]) -> [i8; 4] {
    // A negative low byte borrowed one from the high byte.
    [b0, b1.wrapping_sub(b0 >> 7), b2, b3.wrapping_sub(b2 >> 7)]
}
