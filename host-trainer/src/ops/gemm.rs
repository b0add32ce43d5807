//! Matrix products on one thread, made for the shapes of low-rank training: many rows, small matrices.
//!
//! Operators cut their rows into fixed pieces and call this once a piece, so sums do not depend on the number of threads.
//! Every element of a product is one chain of multiply-adds in the order of the inner index.

use std::ops::Range;

use pulp::{Scalar, Simd, WithSimd};

use super::simd::{LANES, WIDE_LANES, dispatch, dispatch_wide, has_wide_registers};

/// Columns of a panel and of a register tile.
const WIDE: usize = WIDE_LANES;
/// Columns of a narrow panel, for the last columns or a small rank.
const NARROW: usize = LANES;
/// Rows of a register tile: the sums of 6 x 16 fill AVX2's registers but for the operands.
const TILE: usize = 6;
/// The same for AVX-512: enough sums that each multiply-add finds its own ready.
const TALL_TILE: usize = 12;
/// Rows of a register tile of [`outer`].
const OUTER_TILE: usize = 4;
/// The same for AVX-512.
const TALL_OUTER_TILE: usize = 8;
/// Rows that go over one panel before the next panel: they and it stay in the first-level cache.
const BLOCK: usize = 4 * TALL_TILE;

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
        assert!(
            inner > 0 && cols > 0 && b.len() == inner * cols,
            "a matrix of {inner} x {cols} in {}",
            b.len()
        );
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
    if c.cols == 0 {
        return;
    }
    for (a, b) in terms {
        assert!(
            a.cols <= b.inner && c.cols <= b.cols && b.cols == terms[0].1.cols,
            "the product does not fit"
        );
    }
    // The number of terms becomes a constant: the kernel's loop over them is then unrolled.
    match *terms {
        [one] => multiply_terms(c, [one]),
        [one, two] => multiply_terms(c, [one, two]),
        _ => unreachable!("a product has one or two terms"),
    }
}

fn multiply_terms<const N: usize>(mut c: Target<'_>, terms: [(Mat<'_>, &Packed); N]) {
    let cols = c.cols;
    // The last panel may be narrow.
    let last = (cols - 1) / WIDE * WIDE;
    let wide = if terms[0].1.panel(last).1 == WIDE { cols } else { last };
    let tall = has_wide_registers();
    for block in (0..c.rows).step_by(BLOCK) {
        let end = c.rows.min(block + BLOCK);
        let whole = end - (end - block) % TILE;
        macro_rules! tiles {
            ($rows:literal, $range:expr) => {{
                tiles::<$rows, WIDE, N>(&mut c, $range, 0..wide, &terms);
                tiles::<$rows, NARROW, N>(&mut c, $range, wide..cols, &terms);
            }};
        }
        if tall {
            let tall = whole - (whole - block) % TALL_TILE;
            tiles!(12, block..tall);
            tiles!(6, tall..whole);
        } else {
            tiles!(6, block..whole);
        }
        match end - whole {
            0 => {}
            1 => tiles!(1, whole..end),
            2 => tiles!(2, whole..end),
            3 => tiles!(3, whole..end),
            4 => tiles!(4, whole..end),
            _ => tiles!(5, whole..end),
        }
    }
}

/// Register tiles of `R` rows over some rows and columns; all panels there are `W` wide.
///
/// One kind of tile is one kernel: in a function with all of them the compiler stops unrolling.
fn tiles<const R: usize, const W: usize, const N: usize>(
    c: &mut Target<'_>,
    rows: Range<usize>,
    columns: Range<usize>,
    terms: &[(Mat<'_>, &Packed); N],
) {
    struct Kernel<'k, 'c, 't, const R: usize, const W: usize, const N: usize> {
        c: &'k mut Target<'c>,
        rows: Range<usize>,
        columns: Range<usize>,
        terms: &'k [(Mat<'t>, &'t Packed); N],
    }

    impl<const R: usize, const W: usize, const N: usize> WithSimd for Kernel<'_, '_, '_, R, W, N> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            match W / S::F32_LANES {
                1 => self.run::<S, 1>(simd),
                2 => self.run::<S, 2>(simd),
                4 => self.run::<S, 4>(simd),
                8 => self.run::<S, 8>(simd),
                _ => self.run::<S, 16>(simd),
            }
        }
    }

    impl<const R: usize, const W: usize, const N: usize> Kernel<'_, '_, '_, R, W, N> {
        /// With `V` registers a row of the tile.
        #[inline(always)]
        fn run<S: Simd, const V: usize>(self, simd: S) {
            let Self { c, rows, columns, terms } = self;
            for column in columns.step_by(W) {
                for row in rows.clone().step_by(R) {
                    let mut sums = [[simd.splat_f32s(0.0); V]; R];
                    for (a, b) in terms {
                        let panel = S::as_simd_f32s(b.panel(column).0).0.as_chunks::<V>().0;
                        let panel = &panel[..a.cols];
                        let mut rows = [&[] as &[f32]; R];
                        for (r, slice) in rows.iter_mut().enumerate() {
                            *slice = &a.row(row + r)[..panel.len()];
                        }
                        for (p, b) in panel.iter().enumerate() {
                            for r in 0..R {
                                add_scaled(simd, &mut sums[r], rows[r][p], b);
                            }
                        }
                    }
                    store::<S, R, V>(simd, c, row, column, &sums);
                }
            }
        }
    }

    if !rows.is_empty() && !columns.is_empty() {
        let kernel = Kernel::<R, W, N> { c, rows, columns, terms };
        if W < WIDE_LANES { dispatch(kernel) } else { dispatch_wide(kernel) }
    }
}

/// `c[i, j] = sum over p of a[p, i] b[p, j]` (or `c +=`): `a` [inner, rows], `b` [inner, cols].
pub(super) fn outer(mut c: Target<'_>, a: Mat<'_>, b: Mat<'_>, inner: usize) {
    assert!(c.rows <= a.cols && c.cols <= b.cols, "the product does not fit");
    let (rows, cols) = (c.rows, c.cols);
    #[cfg(test)]
    counted::add((rows, cols));
    let whole = rows - rows % OUTER_TILE;
    let tall = if has_wide_registers() { rows - rows % TALL_OUTER_TILE } else { 0 };
    macro_rules! tiles {
        ($width:expr, $from:expr) => {{
            let end = $from + (cols - $from) / $width * $width;
            outer_tiles::<TALL_OUTER_TILE, { $width }>(&mut c, 0..tall, $from..end, a, b, inner);
            outer_tiles::<OUTER_TILE, { $width }>(&mut c, tall..whole, $from..end, a, b, inner);
            outer_tiles::<1, { $width }>(&mut c, whole..rows, $from..end, a, b, inner);
            end
        }};
    }
    let done = tiles!(WIDE, 0);
    let done = tiles!(NARROW, done);
    let done = tiles!(4, done);
    tiles!(1, done);
}

/// Register tiles of [`outer`], `R` rows and `W` columns, over some rows and columns.
fn outer_tiles<const R: usize, const W: usize>(
    c: &mut Target<'_>,
    rows: Range<usize>,
    columns: Range<usize>,
    a: Mat<'_>,
    b: Mat<'_>,
    inner: usize,
) {
    struct Kernel<'k, 'c, 't, const R: usize, const W: usize> {
        c: &'k mut Target<'c>,
        rows: Range<usize>,
        columns: Range<usize>,
        a: Mat<'t>,
        b: Mat<'t>,
        inner: usize,
    }

    impl<const R: usize, const W: usize> WithSimd for Kernel<'_, '_, '_, R, W> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            match W / S::F32_LANES {
                // Fewer columns than a register has: one after the other.
                0 => self.run::<Scalar, W>(Scalar),
                1 => self.run::<S, 1>(simd),
                2 => self.run::<S, 2>(simd),
                4 => self.run::<S, 4>(simd),
                8 => self.run::<S, 8>(simd),
                _ => self.run::<S, 16>(simd),
            }
        }
    }

    impl<const R: usize, const W: usize> Kernel<'_, '_, '_, R, W> {
        #[inline(always)]
        fn run<S: Simd, const V: usize>(self, simd: S) {
            let Self { c, rows, columns, a, b, inner } = self;
            for column in columns.step_by(W) {
                for row in rows.clone().step_by(R) {
                    let mut sums = [[simd.splat_f32s(0.0); V]; R];
                    for p in 0..inner {
                        let a = a.values[p * a.stride + row..]
                            .first_chunk::<R>()
                            .expect("`a` has the rows of `c`");
                        let b = &b.values[p * b.stride + column..][..W];
                        let b =
                            S::as_simd_f32s(b).0.first_chunk::<V>().expect("`V` registers hold `W` values");
                        for r in 0..R {
                            add_scaled(simd, &mut sums[r], a[r], b);
                        }
                    }
                    store::<S, R, V>(simd, c, row, column, &sums);
                }
            }
        }
    }

    if !rows.is_empty() && !columns.is_empty() {
        let kernel = Kernel::<R, W> { c, rows, columns, a, b, inner };
        if W < WIDE_LANES { dispatch(kernel) } else { dispatch_wide(kernel) }
    }
}

/// `sums += a * b`.
#[inline(always)]
fn add_scaled<S: Simd, const V: usize>(simd: S, sums: &mut [S::f32s; V], a: f32, b: &[S::f32s; V]) {
    let a = simd.splat_f32s(a);
    for (sum, b) in sums.iter_mut().zip(b) {
        *sum = simd.mul_add_f32s(a, *b, *sum);
    }
}

/// Writes a tile, or as many of its columns as there are.
#[inline(always)]
fn store<S: Simd, const R: usize, const V: usize>(
    simd: S,
    c: &mut Target<'_>,
    row: usize,
    column: usize,
    sums: &[[S::f32s; V]; R],
) {
    let width = V * S::F32_LANES;
    let used = width.min(c.cols - column);
    if used < width {
        return store_part::<S, R, V>(c, row, column, *sums);
    }
    for (r, sums) in sums.iter().enumerate() {
        let c_row = &mut c.values[(row + r) * c.stride + column..][..width];
        for (c_row, sum) in S::as_mut_simd_f32s(c_row).0.iter_mut().zip(sums) {
            *c_row = if c.accumulate { simd.add_f32s(*c_row, *sum) } else { *sum };
        }
    }
}

/// The last columns. Gets a copy: an index that is not constant would keep the sums out of registers.
#[inline(never)]
fn store_part<S: Simd, const R: usize, const V: usize>(
    c: &mut Target<'_>,
    row: usize,
    column: usize,
    sums: [[S::f32s; V]; R],
) {
    let used = c.cols - column;
    for (r, sums) in sums.iter().enumerate() {
        let c_row = &mut c.values[(row + r) * c.stride + column..][..used];
        for (c_row, sum) in c_row.iter_mut().zip(pulp::bytemuck::cast_slice::<_, f32>(sums)) {
            *c_row = if c.accumulate { *c_row + sum } else { *sum };
        }
    }
}

/// The shapes that [`outer`] has formed in this process. Every gradient of a weight or a factor comes from there.
#[cfg(test)]
pub(super) mod counted {
    use std::collections::BTreeSet;
    use std::sync::{Mutex, PoisonError};

    static SHAPES: Mutex<BTreeSet<(usize, usize)>> = Mutex::new(BTreeSet::new());

    pub(super) fn add(shape: (usize, usize)) {
        SHAPES.lock().unwrap_or_else(PoisonError::into_inner).insert(shape);
    }

    /// Whether one of this shape was formed.
    pub(in crate::ops) fn contains(shape: (usize, usize)) -> bool {
        SHAPES.lock().unwrap_or_else(PoisonError::into_inner).contains(&shape)
    }
}
