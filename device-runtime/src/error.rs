//! Why the engine refuses a call. Every refusal leaves the engine as it was.

use rankpatch_format::link::{ErrorCode, Refusal};

/// What the engine refuses, with what it expected and what it found.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Error {
    /// A base or an adapter is not acceptable.
    Format(#[cfg_attr(feature = "defmt", defmt(Debug2Format))] rankpatch_format::Error),
    /// This build has no code for an operator of the base: it lacks the feature for what the base reads.
    NotBuiltIn {
        /// Index of the operator.
        op: u16,
        /// The feature.
        feature: &'static str,
    },
    /// The arena is too small for the base and the context.
    ArenaTooSmall {
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The memory for merging is too small.
    MergeBufferTooSmall {
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A buffer of the caller does not lie on the boundary it needs.
    Misaligned {
        /// Alignment needed, in bytes.
        expected: usize,
        /// Address modulo that alignment.
        found: usize,
    },
    /// The sequence is empty or longer than the context.
    SequenceTooLong {
        /// Rows that there is room for.
        expected: usize,
        /// Rows asked for.
        found: usize,
    },
    /// A token id is outside the vocabulary.
    UnknownToken {
        /// Ids of the vocabulary.
        expected: u32,
        /// The id.
        found: u32,
    },
    /// Tokens were given to a network that reads features, or features to one that reads tokens, or features that are
    /// no whole number of rows.
    WrongInput {
        /// Numbers per row that the network reads; 0 if it reads tokens.
        expected: usize,
        /// Numbers given.
        found: usize,
    },
    /// The task head has more outputs than the arena has room for.
    HeadTooLarge {
        /// Outputs that there is room for.
        expected: usize,
        /// Outputs of the head.
        found: usize,
    },
    /// The output of the self-test is not what the trainer saw.
    SelfTestFailed {
        /// Digest stated by the adapter.
        expected: u64,
        /// Digest of this device's output.
        found: u64,
    },
    /// Spans of a text were asked for where nothing tells them: the attached adapter's head does not answer after each row, its
    /// outputs have no names, or the base has no tokenizer.
    NoSpans,
    /// No adapter is attached.
    NothingActive,
    /// A region of flash holds no merged image of this adapter on this base, or a damaged one.
    NotMerged,
}

/// Result with this crate's [`Error`].
pub type Result<T> = core::result::Result<T, Error>;

impl From<rankpatch_format::Error> for Error {
    fn from(error: rankpatch_format::Error) -> Self {
        Self::Format(error)
    }
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Format(error) => error.fmt(f),
            Self::NotBuiltIn { op, feature } => {
                write!(
                    f,
                    "operator {op} of the base is not built in: expected the feature `{feature}`, found none"
                )
            }
            Self::ArenaTooSmall { expected, found } => {
                write!(f, "arena is too small: expected {expected} bytes, found {found}")
            }
            Self::MergeBufferTooSmall { expected, found } => {
                write!(f, "memory for merging is too small: expected {expected} bytes, found {found}")
            }
            Self::Misaligned { expected, found } => write!(
                f,
                "buffer is misaligned: expected a multiple of {expected} bytes, found remainder {found}"
            ),
            Self::SequenceTooLong { expected, found } => {
                write!(f, "sequence does not fit: expected 1..={expected} rows, found {found}")
            }
            Self::UnknownToken { expected, found } => {
                write!(f, "unknown token: expected an id below {expected}, found {found}")
            }
            Self::WrongInput { expected: 0, found } => {
                write!(f, "wrong input: expected tokens, found {found} features")
            }
            Self::WrongInput { expected, found } => {
                write!(f, "wrong input: expected rows of {expected} features, found {found} numbers")
            }
            Self::HeadTooLarge { expected, found } => {
                write!(f, "task head is too large: expected at most {expected} outputs, found {found}")
            }
            Self::SelfTestFailed { expected, found } => write!(
                f,
                "self-test failed: expected digest {expected:016x}, found {found:016x} (other numerics, or damaged weights?)"
            ),
            Self::NoSpans => f.write_str(
                "nothing tells spans: expected an adapter with a head that answers after each row",
            ),
            Self::NotMerged => f.write_str("no merged image of this adapter on this base: merge it again"),
            Self::NothingActive => write!(f, "no adapter is attached"),
        }
    }
}

impl core::error::Error for Error {}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Format(error) => error.into(),
            Error::NotBuiltIn { op, .. } => Self::new(ErrorCode::NotBuiltIn, 0, op.into()),
            Error::ArenaTooSmall { expected, found } | Error::HeadTooLarge { expected, found } => {
                Self::new(ErrorCode::ArenaTooSmall, expected, found)
            }
            Error::MergeBufferTooSmall { expected, found } => {
                Self::new(ErrorCode::MergeBufferTooSmall, expected, found)
            }
            Error::Misaligned { expected, found } => Self::new(ErrorCode::Misaligned, expected, found),
            Error::SequenceTooLong { expected, found } => {
                Self::new(ErrorCode::SequenceTooLong, expected, found)
            }
            Error::UnknownToken { expected, found } => {
                Self { code: ErrorCode::UnknownToken, expected, found }
            }
            Error::WrongInput { expected, found } => Self::new(ErrorCode::WrongInput, expected, found),
            Error::SelfTestFailed { expected, found } => {
                Self { code: ErrorCode::SelfTestFailed, expected: expected as u32, found: found as u32 }
            }
            Error::NoSpans => Self::new(ErrorCode::WrongInput, 1, 0),
            Error::NothingActive | Error::NotMerged => Self::new(ErrorCode::NothingActive, 1, 0),
        }
    }
}
