//! Attention over relative positions: what the distance from a key to a query adds to their score.
//!
//! Positions are rows of a table, projected as the tokens' rows are. Products with it are made per head and a few queries at
//! a time and then picked by distance: nothing of the size heads * rows * rows is ever in memory.

use std::sync::Arc;

use super::super::gemm::{Mat, Packed, Target, multiply, outer};
use super::head::Block;

/// Which row of a table each distance has.
#[derive(Clone, Debug, PartialEq)]
pub struct RelativePositions {
    table_rows: usize,
    /// The longest distance.
    reach: usize,
    /// Row of the distance from a key j to a query i, for j - i from -reach to reach.
    places: Arc<[u32]>,
}

impl RelativePositions {
    /// For a table of `table_rows` (even) and sequences of at most `max_rows` rows. A distance d = i - j has the row
    /// bucket(d) + table_rows / 2, at least 0 and at most the last; see [`bucket`].
    pub fn new(table_rows: usize, buckets: usize, max_distance: usize, max_rows: usize) -> Self {
        let reach = max_rows.saturating_sub(1) as i64;
        let span = (table_rows / 2) as i64;
        let place = |offset: i64| {
            let row = bucket(-offset, buckets as i64, max_distance as i64) + span;
            row.clamp(0, (table_rows as i64 - 1).max(0)) as u32
        };
        Self { table_rows, reach: reach as usize, places: (-reach..=reach).map(place).collect() }
    }

    /// Rows of the table.
    pub fn table_rows(&self) -> usize {
        self.table_rows
    }

    /// Rows that a sequence may have.
    pub fn max_rows(&self) -> usize {
        self.reach + 1
    }

    /// Rows of the table for query `i` and the keys from 0 on.
    pub(super) fn of_query(&self, i: usize) -> &[u32] {
        &self.places[self.reach - i..]
    }
}

/// DeBERTa's buckets. With m = buckets / 2 a distance of at most m is its own bucket, a longer one
/// sign(d) (m + ceil(ln(|d| / m) / ln((max_distance - 1) / m) (m - 1))); without buckets every distance is.
pub fn bucket(distance: i64, buckets: i64, max_distance: i64) -> i64 {
    let (middle, far) = (buckets / 2, distance.abs());
    if middle < 1 || far <= middle || max_distance - 1 <= middle {
        return distance;
    }
    let share = (far as f64 / middle as f64).ln() / ((max_distance - 1) as f64 / middle as f64).ln();
    distance.signum() * (middle + (share * (middle - 1) as f64).ceil() as i64)
}

/// The table as it was projected, all heads.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    pub(super) positions: &'a RelativePositions,
    /// Behind the keys' rows: [table_rows, n_heads * head_size].
    pub(super) keys: Option<&'a [f32]>,
    /// Behind the queries' rows, likewise.
    pub(super) queries: Option<&'a [f32]>,
}

/// One head's part of the table, and its products with the keys.
pub(super) struct HeadTables<'a> {
    positions: &'a RelativePositions,
    /// For q K^T.
    keys: Option<KeyTable>,
    /// For k Q^T.
    queries: Option<QueryTable>,
}

struct KeyTable {
    /// [head_size, table_rows].
    packed: Packed,
    /// [table_rows, head_size], for the backward.
    rows: Packed,
    /// Products of a block's queries, or their gradients, [queries of a block, table_rows].
    products: Vec<f32>,
    /// Gradient, transposed: [head_size, table_rows].
    grad: Vec<f32>,
}

struct QueryTable {
    /// Times the scale: [table_rows, head_size].
    rows: Packed,
    /// scale k Q^T, [length, table_rows].
    products: Vec<f32>,
    /// Their gradient.
    grad: Vec<f32>,
}

/// Gradients of one head's part of the table, [table_rows, head_size]; empty where there is no term.
#[derive(Default)]
pub(super) struct TableGrads {
    pub(super) keys: Vec<f32>,
    pub(super) queries: Vec<f32>,
}

/// What one head's tables are made from.
pub(super) struct HeadParts<'a> {
    /// This head's part of the table behind the keys, [table_rows, head_size].
    pub(super) keys: Option<Vec<f32>>,
    /// The one behind the queries, times the scale.
    pub(super) queries: Option<Vec<f32>>,
    /// The valid keys, [length, head_size].
    pub(super) k: &'a [f32],
    pub(super) head_size: usize,
    /// Queries of a block.
    pub(super) block: usize,
}

impl<'a> HeadTables<'a> {
    pub(super) fn new(positions: &'a RelativePositions, parts: HeadParts<'_>) -> Self {
        let HeadParts { keys, queries, k, head_size, block } = parts;
        let n = positions.table_rows;
        let keys = keys.map(|rows| KeyTable {
            packed: Packed::transposed(&rows, n, head_size),
            rows: Packed::new(&rows, n, head_size),
            products: vec![0.0; block * n],
            grad: Vec::new(),
        });
        let queries = queries.map(|rows| {
            let length = k.len() / head_size;
            let mut products = vec![0.0; length * n];
            let packed = Packed::transposed(&rows, n, head_size);
            multiply(Target::new(&mut products, length, n), &[(Mat::new(k, head_size), &packed)]);
            QueryTable { rows: Packed::new(&rows, n, head_size), products, grad: Vec::new() }
        });
        Self { positions, keys, queries }
    }

    /// Adds to the scores of a block, [queries of the block, stride]. `queries` are times the scale.
    pub(super) fn add(&mut self, block: &Block, queries: Mat<'_>, scores: &mut [f32], stride: usize) {
        let &Block { start, count, visible } = block;
        let n = self.positions.table_rows;
        if let Some(KeyTable { packed, products, .. }) = &mut self.keys {
            multiply(Target::new(&mut products[..count * n], count, n), &[(queries, packed)]);
            let rows = scores.chunks_exact_mut(stride).zip(products.chunks_exact(n));
            for (i, (scores, products)) in rows.enumerate().take(count) {
                let places = &self.positions.of_query(start + i)[..visible];
                for (score, place) in scores.iter_mut().zip(places) {
                    *score += products[*place as usize];
                }
            }
        }
        if let Some(QueryTable { products, .. }) = &self.queries {
            // Key by key: the block's queries are neighbours, and so are their distances to one key.
            for (j, products) in products.chunks_exact(n).enumerate().take(visible) {
                for i in 0..count {
                    scores[i * stride + j] += products[self.positions.of_query(start + i)[j] as usize];
                }
            }
        }
    }

    /// Makes place for gradients.
    pub(super) fn start_backward(&mut self, head_size: usize) {
        if let Some(keys) = &mut self.keys {
            keys.grad = vec![0.0; head_size * self.positions.table_rows];
        }
        if let Some(queries) = &mut self.queries {
            queries.grad = vec![0.0; queries.products.len()];
        }
    }

    /// Takes the gradients of a block's scores, [queries of the block, stride], and the queries times the scale. Returns the
    /// gradients of the products with the table behind the keys, and that table: what the queries' gradient needs.
    pub(super) fn backward(
        &mut self,
        block: &Block,
        queries: Mat<'_>,
        ds: &[f32],
        stride: usize,
    ) -> Option<(Mat<'_>, &Packed)> {
        let &Block { start, count, visible } = block;
        let n = self.positions.table_rows;
        if let Some(QueryTable { grad, .. }) = &mut self.queries {
            for (j, grads) in grad.chunks_exact_mut(n).enumerate().take(visible) {
                for i in 0..count {
                    grads[self.positions.of_query(start + i)[j] as usize] += ds[i * stride + j];
                }
            }
        }
        let KeyTable { rows, products, grad, .. } = self.keys.as_mut()?;
        let products = &mut products[..count * n];
        products.fill(0.0);
        for (i, (products, ds)) in products.chunks_exact_mut(n).zip(ds.chunks_exact(stride)).enumerate() {
            let places = &self.positions.of_query(start + i)[..visible];
            for (ds, place) in ds.iter().zip(places) {
                products[*place as usize] += ds;
            }
        }
        let head_size = grad.len() / n;
        let target = Target::new(grad, head_size, n).accumulate(true);
        outer(target, queries, Mat::new(products, n), count);
        Some((Mat::new(products, n), rows))
    }

    /// Adds the table's part to the gradient of the keys, `dk` [length, head_size], and returns the table's gradients.
    pub(super) fn finish(self, k: &[f32], dk: &mut [f32], scale: f32) -> TableGrads {
        let n = self.positions.table_rows;
        let keys = self.keys.map_or_else(Vec::new, |KeyTable { grad, .. }| transposed(&grad, n));
        let queries = self.queries.map_or_else(Vec::new, |QueryTable { rows, grad, .. }| {
            let length = grad.len() / n;
            let head_size = k.len() / length;
            let target = Target::new(dk, length, head_size).accumulate(true);
            multiply(target, &[(Mat::new(&grad, n), &rows)]);
            let mut queries = vec![0.0; n * head_size];
            let target = Target::new(&mut queries, n, head_size);
            outer(target, Mat::new(&grad, n), Mat::new(k, head_size), length);
            for value in &mut queries {
                *value *= scale;
            }
            queries
        });
        TableGrads { keys, queries }
    }
}

/// [rows, n] to [n, rows].
fn transposed(values: &[f32], n: usize) -> Vec<f32> {
    let rows = values.len() / n;
    let mut columns = vec![0.0; values.len()];
    for (r, row) in values.chunks_exact(n).enumerate() {
        for (column, value) in columns.chunks_exact_mut(rows).zip(row) {
            column[r] = *value;
        }
    }
    columns
}
