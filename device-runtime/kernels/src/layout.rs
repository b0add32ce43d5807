//! How the rows of an int8 matrix lie in flash: the format's layouts, with the arguments that kernels have.

pub use rankpatch_format::layout::Layout;

/// Bytes of a matrix `[out, k]` in `layout`, padding included. Saturates instead of overflowing.
pub const fn layout_len(layout: Layout, out: usize, k: usize) -> usize {
    // Filled up to whole blocks, whose rows and columns are powers of two: these less one.
    let (rows, cols) = match layout {
        Layout::RowMajor => (0, 0),
        Layout::Dsp4x4 => (3, 3),
        Layout::Mve4x16 => (3, 15),
    };
    (out.saturating_add(rows) & !rows).saturating_mul(k.saturating_add(cols) & !cols)
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
        layout.write_row(image, k, row, codes);
    }
}
