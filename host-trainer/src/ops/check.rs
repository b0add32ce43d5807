//! Argument checks that all operators share, so that their messages read the same.

use candle_core::{DType, Tensor};

use super::{OpError, Result};

/// Checks that `x` is of floats and has two dimensions; returns them.
pub(super) fn matrix(op: &'static str, what: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    float(op, what, x)?;
    match x.dims() {
        &[rows, cols] => Ok((rows, cols)),
        _ => Err(shape_error(op, what, "[rows, cols]".into(), x)),
    }
}

/// Checks that `x` is of floats with exactly this shape.
pub(super) fn shape(op: &'static str, what: &'static str, x: &Tensor, expected: &[usize]) -> Result<()> {
    float(op, what, x)?;
    if x.dims() == expected { Ok(()) } else { Err(shape_error(op, what, format!("{expected:?}"), x)) }
}

/// Checks that `x` has the type of activations: f32, or bf16 on a GPU.
pub(super) fn float(op: &'static str, what: &'static str, x: &Tensor) -> Result<()> {
    if x.dtype() == DType::BF16 && x.device().is_cuda() { Ok(()) } else { dtype(op, what, x, DType::F32) }
}

/// Checks the element type.
pub(super) fn dtype(op: &'static str, what: &'static str, x: &Tensor, expected: DType) -> Result<()> {
    if x.dtype() == expected { Ok(()) } else { Err(OpError::Type { op, what, expected, found: x.dtype() }) }
}

/// Checks that `condition` holds for a value.
pub(super) fn value(
    op: &'static str,
    what: &'static str,
    condition: bool,
    expected: impl FnOnce() -> String,
    found: impl std::fmt::Display,
) -> Result<()> {
    if condition {
        Ok(())
    } else {
        Err(OpError::Value { op, what, expected: expected(), found: found.to_string() })
    }
}

fn shape_error(op: &'static str, what: &'static str, expected: String, x: &Tensor) -> OpError {
    OpError::Shape { op, what, expected, found: x.shape().clone() }
}
