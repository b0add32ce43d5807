//! Matrix products on one thread: a checked, safe face of the `gemm` crate that candle uses too.
//!
//! Operators cut their rows into fixed pieces and call this once a piece, so that the sums do not depend on the number
//! of threads.
#![allow(unsafe_code, reason = "the gemm crate takes raw pointers; the checks are in `multiply`")]

/// A matrix view with strides.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix.
    pub(super) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a matrix of {rows} x {cols} needs that many values");
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub(super) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// `out = a b`, or `out += a b` with `accumulate`; `out` is row-major [a.rows, b.cols].
pub(super) fn multiply(out: &mut [f32], accumulate: bool, scale: f32, a: Mat<'_>, b: Mat<'_>) {
    assert_eq!(a.cols, b.rows, "inner dimensions differ");
    assert_eq!(out.len(), a.rows * b.cols, "the product has another size");
    // SAFETY: `Mat::new` proves that `rows * cols` values are behind each input, and its strides (row-major or the
    // transpose of it) stay inside for every index below `rows` and `cols`. `out` is exclusive, row-major and has
    // `a.rows * b.cols` values. No pointer outlives the call.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            b.cols as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
