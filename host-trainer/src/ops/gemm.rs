//! Matrix products on one thread, made for the shapes of low-rank training: many rows, small matrices.
//!
//! Operators cut their rows into fixed pieces and call this once a piece, so sums do not depend on the number of threads.
//! Every element of a product is one chain of multiply-adds in the order of the inner index.

use super::simd::vectorized;

/// Columns of a panel and of a register tile.
const WIDE: usize = 16;
/// Columns of a narrow panel, for the last columns or a small rank.
const NARROW: usize = 8;
/// Rows of a register tile: the sums of 6 x 16 fill AVX2's registers but for the operands.
const TILE: usize = 6;
/// Rows of a register tile of [`outer`].
const OUTER_TILE: usize = 4;
/// Rows that go over one panel before the next panel: they and it stay in the first-level cache.
const BLOCK: usize = 8 * TILE;

/// A row-major matrix of which rows may be longer than what is used of them.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    values: &'a [f32],
    stride: usize,
    cols: usize,
}

impl<'a> Mat<'a> {
    /// Rows of `cols` values.
    pub(super) fn new(values: &'a [f32], cols: usize) -> Self {
        Self::strided(values, cols, cols)
    }

    /// The first `cols` of each `stride` values.
    pub(super) fn strided(values: &'a [f32], stride: usize, cols: usize) -> Self {
        assert!(cols <= stride, "{cols} used values in rows of {stride}");
        Self { values, stride, cols }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.stride..][..self.cols]
    }
}

/// Where a product goes: a row-major matrix of which rows may be longer than what is written of them.
pub(super) struct Target<'a> {
    values: &'a mut [f32],
    stride: usize,
    rows: usize,
    cols: usize,
    accumulate: bool,
}

impl<'a> Target<'a> {
    /// All of a [rows, cols] matrix.
    pub(super) fn new(values: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(values, cols, rows, cols)
    }

    /// The first `cols` of each `stride` values.
    pub(super) fn strided(values: &'a mut [f32], stride: usize, rows: usize, cols: usize) -> Self {
        assert!(cols <= stride && values.len() >= (rows * stride).saturating_sub(stride - cols));
        Self { values, stride, rows, cols, accumulate: false }
    }

    /// Adds to what is there instead of overwriting it.
    pub(super) fn accumulate(self, accumulate: bool) -> Self {
        Self { accumulate, ..self }
    }
}

/// The right side of a product, [inner, cols], in panels that a kernel reads front to back.
pub(super) struct Packed {
    /// Panels [inner, 16], the last one [inner, 8] if at most 8 columns are left; padded with zeros.
    panels: Vec<f32>,
    inner: usize,
    cols: usize,
}

impl Packed {
    /// From a row-major [inner, cols].
    pub(super) fn new(b: &[f32], inner: usize, cols: usize) -> Self {
        Self::build(b, inner, cols, |panel, start, width, used| {
            for (to, from) in panel.chunks_exact_mut(width).zip(b.chunks_exact(cols)) {
                to[..used].copy_from_slice(&from[start..start + used]);
            }
        })
    }

    /// From the transpose, a row-major [cols, inner].
    pub(super) fn transposed(b: &[f32], cols: usize, inner: usize) -> Self {
        Self::build(b, inner, cols, |panel, start, width, used| {
            for (column, from) in b[start * inner..].chunks_exact(inner).take(used).enumerate() {
                for (to, from) in panel.chunks_exact_mut(width).zip(from) {
                    to[column] = *from;
                }
            }
        })
    }

    /// `fill` gets each panel with its first column, its width and how many of its columns exist.
    fn build(b: &[f32], inner: usize, cols: usize, fill: impl Fn(&mut [f32], usize, usize, usize)) -> Self {
        assert!(inner > 0 && cols > 0 && b.len() == inner * cols, "a matrix of {inner} x {cols} in {}", b.len());
        // A last panel of up to 8 columns is narrow, one of 9 to 15 is wide: both end at a multiple of 8.
        let mut panels = vec![0.0; inner * cols.next_multiple_of(NARROW)];
        let mut rest = panels.as_mut_slice();
        let mut start = 0;
        while start < cols {
            let width = if cols - start > NARROW { WIDE } else { NARROW };
            let (panel, after) = rest.split_at_mut(inner * width);
            fill(panel, start, width, width.min(cols - start));
            rest = after;
            start += width;
        }
        Self { panels, inner, cols }
    }

    /// The panel that begins at a column, and its width.
    #[inline(always)]
    fn panel(&self, column: usize) -> (&[f32], usize) {
        let width = if self.cols - column > NARROW { WIDE } else { NARROW };
        (&self.panels[column * self.inner..][..width * self.inner], width)
    }
}

/// `c = a b` (or `c +=`), the sum over one or two terms `(a, b)`.
///
/// `a` has `c`'s rows and at most `b`'s inner dimension (the rest of `b` is left out), `b` at least `c`'s columns.
pub(super) fn multiply(c: Target<'_>, terms: &[(Mat<'_>, &Packed)]) {
    for (a, b) in terms {
        assert!(a.cols <= b.inner && c.cols <= b.cols && b.cols == terms[0].1.cols, "the product does not fit");
    }
    // Separate copies for one and two terms: the inner loop then knows its number of terms.
    match *terms {
        [one] => vectorized(
            #[inline(always)]
            || multiply_terms(c, [one]),
        ),
        [one, two] => vectorized(
            #[inline(always)]
            || multiply_terms(c, [one, two]),
        ),
        _ => unreachable!("a product has one or two terms"),
    }
}

#[inline(always)]
fn multiply_terms<const N: usize>(c: Target<'_>, terms: [(Mat<'_>, &Packed); N]) {
    let Target { values, stride, rows, cols, accumulate } = c;
    for block in (0..rows).step_by(BLOCK) {
        let end = rows.min(block + BLOCK);
        for column in (0..cols).step_by(WIDE) {
            let (_, width) = terms[0].1.panel(column);
            let used = width.min(cols - column);
            for row in (block..end).step_by(TILE) {
                let c = &mut values[row * stride + column..];
                macro_rules! tile {
                    ($rows:literal, $width:ident) => {
                        tile::<$rows, $width, N>(c, stride, used, accumulate, row, column, &terms)
                    };
                }
                match (TILE.min(end - row), width == WIDE) {
                    (6, true) => tile!(6, WIDE),
                    (5, true) => tile!(5, WIDE),
                    (4, true) => tile!(4, WIDE),
                    (3, true) => tile!(3, WIDE),
                    (2, true) => tile!(2, WIDE),
                    (_, true) => tile!(1, WIDE),
                    (6, false) => tile!(6, NARROW),
                    (5, false) => tile!(5, NARROW),
                    (4, false) => tile!(4, NARROW),
                    (3, false) => tile!(3, NARROW),
                    (2, false) => tile!(2, NARROW),
                    (_, false) => tile!(1, NARROW),
                }
            }
        }
    }
}

/// One register tile: `R` rows from `row`, `W` columns from `column`, of which `used` are stored. `c` begins there.
#[inline(always)]
fn tile<const R: usize, const W: usize, const N: usize>(
    c: &mut [f32],
    stride: usize,
    used: usize,
    accumulate: bool,
    row: usize,
    column: usize,
    terms: &[(Mat<'_>, &Packed); N],
) {
    let mut sums = [[0.0f32; W]; R];
    for (a, b) in terms {
        let panel = b.panel(column).0.as_chunks::<W>().0;
        let panel = &panel[..a.cols];
        let rows: [&[f32]; R] = std::array::from_fn(|r| &a.row(row + r)[..panel.len()]);
        for (p, b) in panel.iter().enumerate() {
            for (sums, a) in sums.iter_mut().zip(&rows) {
                add_scaled(sums, a[p], b);
            }
        }
    }
    store(c, stride, used, accumulate, &sums);
}

/// `c[i, j] = sum over p of a[p, i] b[p, j]` (or `c +=`): `a` [inner, rows], `b` [inner, cols].
pub(super) fn outer(c: Target<'_>, a: Mat<'_>, b: Mat<'_>, inner: usize) {
    assert!(c.rows <= a.cols && c.cols <= b.cols, "the product does not fit");
    vectorized(
        #[inline(always)]
        || {
            let Target { values, stride, rows, cols, accumulate } = c;
            for row in (0..rows).step_by(OUTER_TILE) {
                let mut column = 0;
                while column < cols {
                    let c = &mut values[row * stride + column..];
                    let left = cols - column;
                    macro_rules! tile {
                        ($rows:literal, $width:expr) => {
                            outer_tile::<$rows, { $width }>(c, stride, left, accumulate, row, column, a, b, inner)
                        };
                    }
                    macro_rules! rows {
                        ($width:expr) => {
                            match OUTER_TILE.min(rows - row) {
                                4 => tile!(4, $width),
                                3 => tile!(3, $width),
                                2 => tile!(2, $width),
                                _ => tile!(1, $width),
                            }
                        };
                    }
                    column += match left {
                        WIDE.. => rows!(WIDE),
                        NARROW.. => rows!(NARROW),
                        4.. => rows!(4),
                        _ => rows!(1),
                    };
                }
            }
        },
    );
}

/// One register tile of [`outer`]; returns its width.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands and place of one tile")]
fn outer_tile<const R: usize, const W: usize>(
    c: &mut [f32],
    stride: usize,
    left: usize,
    accumulate: bool,
    row: usize,
    column: usize,
    a: Mat<'_>,
    b: Mat<'_>,
    inner: usize,
) -> usize {
    let mut sums = [[0.0f32; W]; R];
    for p in 0..inner {
        let a = a.values[p * a.stride + row..].first_chunk::<R>().expect("`a` has the rows of `c`");
        let b = b.values[p * b.stride + column..].first_chunk::<W>().expect("`b` has the columns of `c`");
        for (sums, &a) in sums.iter_mut().zip(a) {
            add_scaled(sums, a, b);
        }
    }
    store(c, stride, W.min(left), accumulate, &sums);
    W
}

#[inline(always)]
fn add_scaled<const W: usize>(sums: &mut [f32; W], a: f32, b: &[f32; W]) {
    for (sum, b) in sums.iter_mut().zip(b) {
        *sum = a.mul_add(*b, *sum);
    }
}

#[inline(always)]
fn store<const R: usize, const W: usize>(
    c: &mut [f32],
    stride: usize,
    used: usize,
    accumulate: bool,
    sums: &[[f32; W]; R],
) {
    for (r, sums) in sums.iter().enumerate() {
        let c = &mut c[r * stride..];
        // The full width as an array, so that a row is one or two registers.
        match c.first_chunk_mut::<W>() {
            Some(c) if used == W => add_or_set(c, sums, accumulate),
            _ => add_or_set(&mut c[..used], sums, accumulate),
        }
    }
}

#[inline(always)]
fn add_or_set(c: &mut [f32], sums: &[f32], accumulate: bool) {
    for (c, sum) in c.iter_mut().zip(sums) {
        *c = if accumulate { *c + sum } else { *sum };
    }
}
