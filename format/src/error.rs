//! The one error type of this crate. It carries numbers and static names only, so that a device can build it without
//! an allocator and send it on.

use crate::{BaseId, What};

/// What a reader or writer refuses, with what it expected and what it found.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The file or section ends too early.
    Truncated {
        /// What was being read.
        what: What,
        /// Bytes needed.
        expected: u32,
        /// Bytes present.
        found: u32,
    },
    /// Bytes follow the end that the file states.
    TrailingBytes {
        /// What was being read.
        what: What,
        /// Bytes stated.
        expected: u32,
        /// Bytes present.
        found: u32,
    },
    /// The first bytes are not this file's magic.
    BadMagic {
        /// The magic of the expected file.
        expected: [u8; 3],
        /// The bytes found there.
        found: [u8; 3],
    },
    /// The version is not one that this reader knows.
    UnknownVersion {
        /// The version this reader knows.
        expected: u8,
        /// The version found.
        found: u8,
    },
    /// The checksum does not match: a bit was flipped.
    Corrupt {
        /// CRC-32 stated in the file.
        expected: u32,
        /// CRC-32 of the bytes.
        found: u32,
    },
    /// A field cannot be decoded.
    Malformed {
        /// The field.
        what: What,
    },
    /// The adapter was made for another base.
    WrongBase {
        /// The base at hand.
        expected: BaseId,
        /// The base that the adapter names.
        found: BaseId,
    },
    /// A rank is zero or above the limit.
    RankOutOfRange {
        /// Index of the site.
        site: u16,
        /// Rank found.
        rank: u32,
        /// Highest rank allowed.
        max: u32,
    },
    /// A scale is not a positive, finite, normal number.
    BadScale {
        /// Which scales.
        what: What,
        /// Index of the site or tensor.
        owner: u16,
        /// Index within it.
        index: u32,
        /// The value.
        value: f32,
    },
    /// A number that must be finite is not.
    NotFinite {
        /// Which numbers.
        what: What,
        /// Index within them.
        index: u32,
    },
    /// An adapter patches a site that the base does not have.
    UnknownSite {
        /// The site named.
        site: u16,
        /// Sites of the base.
        n_sites: u16,
    },
    /// Sites are not in ascending order.
    SitesOutOfOrder {
        /// The site before.
        previous: u16,
        /// The site found.
        found: u16,
    },
    /// A site is patched twice by one adapter.
    DuplicateSite {
        /// The site.
        site: u16,
    },
    /// An adapter replaces a tensor that no operator of the base adds as a bias.
    UnknownBias {
        /// The tensor named.
        tensor: u16,
    },
    /// Biases are not in ascending order, or one occurs twice.
    BiasesOutOfOrder {
        /// The tensor before.
        previous: u16,
        /// The tensor found.
        found: u16,
    },
    /// An adapter patches no site, replaces no bias and has no head: it would silently do nothing.
    NothingToApply,
    /// An index or a size is outside its range.
    OutOfRange {
        /// What.
        what: What,
        /// The value found.
        found: u32,
        /// The highest value allowed.
        max: u32,
    },
    /// Two shapes that must agree do not.
    ShapeMismatch {
        /// Which sizes.
        what: What,
        /// Index of the operator or site.
        op: u16,
        /// Size expected.
        expected: u32,
        /// Size found.
        found: u32,
    },
    /// A section or buffer does not lie on the boundary it needs.
    Misaligned {
        /// What.
        what: What,
        /// Alignment needed, in bytes.
        expected: u32,
        /// Address or offset modulo that alignment.
        found: u32,
    },
    /// The arena plan gives two live values the same memory.
    PlanOverlap {
        /// One value.
        first: u16,
        /// The other.
        second: u16,
    },
    /// A network has an operator that no base image holds, because no device runs it.
    #[cfg(feature = "alloc")]
    HostOperator {
        /// Index of the operator.
        op: u16,
        /// The operator in words.
        name: &'static str,
    },
    /// A buffer of the caller is too small.
    BufferTooSmall {
        /// Which buffer.
        what: What,
        /// Bytes needed.
        expected: u32,
        /// Bytes given.
        found: u32,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T> = core::result::Result<T, Error>;

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Truncated { what, expected, found } => {
                write!(f, "{what} is truncated: expected {expected} bytes, found {found}")
            }
            Self::TrailingBytes { what, expected, found } => {
                write!(f, "{what} has trailing bytes: expected {expected} bytes, found {found}")
            }
            Self::BadMagic { expected, found } => write!(
                f,
                "wrong magic: expected \"{}\", found \"{}\" (is this the right kind of file?)",
                expected.escape_ascii(),
                found.escape_ascii()
            ),
            Self::UnknownVersion { expected, found } => {
                write!(f, "unknown version: expected {expected}, found {found} (written by another release?)")
            }
            Self::Corrupt { expected, found } => write!(
                f,
                "checksum mismatch: expected {expected:#010x}, found {found:#010x} (damaged in transfer or storage?)"
            ),
            Self::Malformed { what } => write!(f, "malformed {what}"),
            Self::WrongBase { expected, found } => {
                write!(f, "adapter is for another base: expected {expected}, found {found}")
            }
            Self::RankOutOfRange { site, rank, max } => {
                write!(f, "rank of site {site} is out of range: expected 1..={max}, found {rank}")
            }
            Self::BadScale { what, owner, index, value } => write!(
                f,
                "{what} scale {index} of {owner} is unusable: expected a positive, finite number, found {value}"
            ),
            Self::NotFinite { what, index } => {
                write!(f, "{what} {index} is not finite: expected a finite number")
            }
            Self::UnknownSite { site, n_sites } => {
                write!(f, "unknown site: expected an index below {n_sites}, found {site}")
            }
            Self::SitesOutOfOrder { previous, found } => {
                write!(f, "sites are out of order: expected a site above {previous}, found {found}")
            }
            Self::DuplicateSite { site } => write!(f, "site {site} occurs twice: expected it once"),
            Self::UnknownBias { tensor } => {
                write!(f, "unknown bias: expected a tensor that an operator of the base adds, found {tensor}")
            }
            Self::BiasesOutOfOrder { previous, found } => {
                write!(f, "biases are out of order: expected a tensor above {previous}, found {found}")
            }
            Self::NothingToApply => {
                write!(
                    f,
                    "adapter patches no site, replaces no bias and has no head: expected at least one of them"
                )
            }
            Self::OutOfRange { what, found, max } => {
                write!(f, "{what} is out of range: expected at most {max}, found {found}")
            }
            Self::ShapeMismatch { what, op, expected, found } => {
                write!(f, "{what} of {op} does not fit: expected {expected}, found {found}")
            }
            Self::Misaligned { what, expected, found } => {
                write!(f, "{what} is misaligned: expected a multiple of {expected}, found remainder {found}")
            }
            Self::PlanOverlap { first, second } => {
                write!(f, "arena plan is invalid: values {first} and {second} are alive in the same memory")
            }
            #[cfg(feature = "alloc")]
            Self::HostOperator { op, name } => write!(
                f,
                "operator {op} is {name}, expected one that devices run: this network has no base image (train it, and use the PEFT folder)"
            ),
            Self::BufferTooSmall { what, expected, found } => {
                write!(f, "{what} is too small: expected {expected} bytes, found {found}")
            }
        }
    }
}

impl core::error::Error for Error {}
