//! Where the sites of a network and the modules of `transformers` differ: rows in another order.

/// For each row in the order of the `Rope` operator, whose pairs are (2i, 2i + 1), the row in that of `transformers`, whose pairs are
/// (i, i + `head_size` / 2).
pub(crate) fn rotary_order(rows: usize, head_size: usize) -> Vec<usize> {
    let half = head_size / 2;
    (0..rows).map(|row| row / head_size * head_size + row % 2 * half + row % head_size / 2).collect()
}

/// The rows `order[0]`, `order[1]`, .. of `[rows, cols]`.
pub(crate) fn gather_rows(values: &[f32], cols: usize, order: &[usize]) -> Vec<f32> {
    order.iter().flat_map(|row| &values[row * cols..(row + 1) * cols]).copied().collect()
}
