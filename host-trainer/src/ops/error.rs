//! The one error type of the training operators.

use candle_core::{DType, Shape};

/// What an operator refuses. Every message names the operator, the argument, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// An argument has the wrong shape.
    #[error("{op}: {what} has shape {found:?}, expected {expected}")]
    Shape {
        /// The operator.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// The shape that would have fitted, in words and numbers.
        expected: String,
        /// The shape of the argument.
        found: Shape,
    },
    /// An argument has the wrong element type.
    #[error("{op}: {what} has type {found:?}, expected {expected:?}")]
    Type {
        /// The operator.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// The type that would have fitted.
        expected: DType,
        /// The type of the argument.
        found: DType,
    },
    /// An argument has a value outside the operator's domain.
    #[error("{op}: {what} is {found}, expected {expected}")]
    Value {
        /// The operator.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// The values that would have fitted.
        expected: String,
        /// The value of the argument.
        found: String,
    },
    /// Factors could not be quantized.
    #[error(transparent)]
    Quant(#[from] crate::quant::QuantError),
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<OpError> for candle_core::Error {
    fn from(error: OpError) -> Self {
        match error {
            OpError::Tensor(inner) => inner,
            other => candle_core::Error::wrap(other),
        }
    }
}

/// Result of an operator.
pub type Result<T> = std::result::Result<T, OpError>;
