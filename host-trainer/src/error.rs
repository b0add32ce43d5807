//! The one error type of this crate. Each variant says what was expected and what was found.

use std::path::{Path, PathBuf};

use crate::ops::OpError;
use crate::optim::OptimError;
use crate::quant::QuantError;
use crate::train::TrainError;

/// What the trainer's library refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file or folder cannot be written. What was there before is there still.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is of no kind that is known.
    #[error("{}: expected {expected}, found {found}", path.display())]
    UnknownFile {
        /// The file or folder.
        path: PathBuf,
        /// The kinds that would have fitted.
        expected: String,
        /// What it looks like.
        found: String,
    },
    /// A field of a file has a value outside its domain.
    #[error("{}: {what}: expected {expected}, found {found}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        what: String,
        /// The values that would have fitted.
        expected: String,
        /// The value.
        found: String,
    },
    /// A file has another length than its header says.
    #[error("{}: {what}: expected {expected} bytes, found {found}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// The tensor or part being read.
        what: String,
        /// Bytes needed.
        expected: usize,
        /// Bytes left.
        found: usize,
    },
    /// A model file lacks a tensor.
    #[error("{}: there is no tensor {tensor:?}, expected one of shape {expected:?} (found: {found})", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape it should have.
        expected: Vec<usize>,
        /// Names that the file has.
        found: String,
    },
    /// A tensor has the wrong shape.
    #[error("{}: tensor {tensor:?}: expected shape {expected:?}, found {found:?}", path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// A tensor has the wrong element type.
    #[error("{}: tensor {tensor:?}: expected elements of type {expected}, found {found}", path.display())]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The type it should have.
        expected: &'static str,
        /// The type it has.
        found: String,
    },
    /// A data set has no example in one of its parts.
    #[error("{}: expected at least one example for {part}, found none", path.display())]
    EmptyDataSet {
        /// The file or folder.
        path: PathBuf,
        /// The part: training or test.
        part: &'static str,
    },
    /// A data set for classification has fewer than two classes.
    #[error("{}: expected at least two classes, found only {class:?}: there is nothing to tell apart", path.display())]
    OneClass {
        /// The file or folder.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// A batch does not fit the network.
    #[error("{what}: expected {expected}, found {found}")]
    Batch {
        /// What does not fit.
        what: &'static str,
        /// What would have fitted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Factors name a site that the network does not have.
    #[error("unknown site {found}: expected an index below {n_sites}")]
    UnknownSite {
        /// The index.
        found: u16,
        /// Sites of the network.
        n_sites: usize,
    },
    /// A format error.
    #[error(transparent)]
    Format(#[from] rankpatch_format::Error),
    /// The device's code refuses a call.
    #[error(transparent)]
    Runtime(#[from] rankpatch_runtime::Error),
    /// A device would not want a file.
    #[error(transparent)]
    Trust(#[from] rankpatch_runtime::trust::TrustError),
    /// A partition of adapters cannot be made or read.
    #[error(transparent)]
    Slots(#[from] rankpatch_runtime::slots::SlotError),
    /// A bundle cannot be made as asked for.
    #[error("{what}: expected {expected}, found {found}")]
    Bundle {
        /// What does not fit.
        what: &'static str,
        /// What would.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The operating system gives no random numbers.
    #[error("no random numbers from the operating system: {0}")]
    Random(String),
    /// A text was given to a base that reads none.
    #[error("base {base:?} has no tokenizer: expected a base that reads text (does it read features?)")]
    NoTokenizer {
        /// Name of the base.
        base: String,
    },
    /// A weight cannot be quantized.
    #[error("tensor {tensor:?}: {source}")]
    Quant {
        /// The tensor's name.
        tensor: String,
        /// Why not.
        source: QuantError,
    },
    /// A training operator refuses its arguments.
    #[error(transparent)]
    Op(#[from] OpError),
    /// A run is configured wrongly, or stops.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The optimizer failed.
    #[error(transparent)]
    Optim(#[from] OptimError),
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An I/O error with the path it is about.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// A failure to write, with the path it is about.
    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Write { path, source }
    }

    /// A field of `path` that has another value than it should.
    pub(crate) fn field(
        path: &Path,
        what: impl Into<String>,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::Field {
            path: path.to_path_buf(),
            what: what.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}
