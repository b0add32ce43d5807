//! Why a device refuses: every reason is a number with a name.

use serde::{Deserialize, Serialize};

use super::Response;
use crate::{BaseId, Error};

/// Why a device refuses a request. Numbers never change their meaning; new ones are added at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorCode {
    /// A file or a section ends too early.
    Truncated,
    /// Bytes follow the end.
    TrailingBytes,
    /// Wrong magic.
    BadMagic,
    /// Unknown version.
    UnknownVersion,
    /// Wrong checksum.
    Corrupt,
    /// A field cannot be decoded.
    Malformed,
    /// The adapter is for another base; the numbers are the first four bytes of the identities.
    WrongBase,
    /// A rank is zero or too high.
    RankOutOfRange,
    /// A scale is not positive and finite; `found` is its bit pattern, `expected` the site.
    BadScale,
    /// A number is not finite.
    NotFinite,
    /// No such site.
    UnknownSite,
    /// Sites do not ascend.
    SitesOutOfOrder,
    /// A site occurs twice.
    DuplicateSite,
    /// The adapter would do nothing.
    NothingToApply,
    /// A value is too high.
    OutOfRange,
    /// Shapes do not fit.
    ShapeMismatch,
    /// A section is not on its boundary.
    Misaligned,
    /// The arena plan is invalid.
    PlanOverlap,
    /// A buffer is too small.
    BufferTooSmall,
    /// The arena is too small.
    ArenaTooSmall,
    /// The prompt or the sequence is longer than the context.
    SequenceTooLong,
    /// A token id is outside the vocabulary.
    UnknownToken,
    /// The network reads the other kind of input.
    WrongInput,
    /// The self-test's digest differs; the numbers are the low halves of the digests.
    SelfTestFailed,
    /// No adapter is active.
    NothingActive,
    /// No such slot.
    NoSuchSlot,
    /// The slot holds no adapter that fits.
    EmptySlot,
    /// The slot is active.
    SlotActive,
    /// No upload is under way.
    NoUpload,
    /// The upload is not complete.
    Incomplete,
    /// The flash reported an error.
    Flash,
    /// The memory for merging is too small.
    MergeBufferTooSmall,
    /// The message is not understood.
    UnknownMessage,
    /// The base cannot be read; the device can only say so.
    NoBase,
    /// The adapter is for another product; the numbers are the first four bytes of the ids.
    WrongProduct,
    /// The adapter is not signed.
    Unsigned,
    /// The adapter is signed with a key that the device does not have; `found` is the first four bytes of its id.
    UnknownKey,
    /// The signature does not fit the file.
    BadSignature,
    /// The sequence number is not above the floor.
    Stale,
    /// The sequence number is further above the floor than its step limit allows.
    TooFar,
    /// Another upload is under way.
    UploadUnderWay,
    /// Every slot is in use.
    NoFreeSlot,
    /// A chunk differs from what is stored at its offset already.
    OtherBytes,
    /// The device is generating a text, or the work of another request is not done.
    Busy,
    /// The slots' partition cannot be mounted; adapters can neither be installed nor applied.
    NoSlots,
    /// No operator adds this tensor as a bias.
    UnknownBias,
    /// Biases do not ascend.
    BiasesOutOfOrder,
    /// The firmware was built without an operator of the base; `found` is its index. The device can only say so.
    NotBuiltIn,
}

impl ErrorCode {
    /// All codes, in the order of their numbers.
    pub const ALL: [Self; 48] = [
        Self::Truncated,
        Self::TrailingBytes,
        Self::BadMagic,
        Self::UnknownVersion,
        Self::Corrupt,
        Self::Malformed,
        Self::WrongBase,
        Self::RankOutOfRange,
        Self::BadScale,
        Self::NotFinite,
        Self::UnknownSite,
        Self::SitesOutOfOrder,
        Self::DuplicateSite,
        Self::NothingToApply,
        Self::OutOfRange,
        Self::ShapeMismatch,
        Self::Misaligned,
        Self::PlanOverlap,
        Self::BufferTooSmall,
        Self::ArenaTooSmall,
        Self::SequenceTooLong,
        Self::UnknownToken,
        Self::WrongInput,
        Self::SelfTestFailed,
        Self::NothingActive,
        Self::NoSuchSlot,
        Self::EmptySlot,
        Self::SlotActive,
        Self::NoUpload,
        Self::Incomplete,
        Self::Flash,
        Self::MergeBufferTooSmall,
        Self::UnknownMessage,
        Self::NoBase,
        Self::WrongProduct,
        Self::Unsigned,
        Self::UnknownKey,
        Self::BadSignature,
        Self::Stale,
        Self::TooFar,
        Self::UploadUnderWay,
        Self::NoFreeSlot,
        Self::OtherBytes,
        Self::Busy,
        Self::NoSlots,
        Self::UnknownBias,
        Self::BiasesOutOfOrder,
        Self::NotBuiltIn,
    ];

    /// The number: what is sent.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The name, as in the specification.
    pub fn name(self) -> &'static str {
        match self {
            Self::Truncated => "Truncated",
            Self::TrailingBytes => "TrailingBytes",
            Self::BadMagic => "BadMagic",
            Self::UnknownVersion => "UnknownVersion",
            Self::Corrupt => "Corrupt",
            Self::Malformed => "Malformed",
            Self::WrongBase => "WrongBase",
            Self::RankOutOfRange => "RankOutOfRange",
            Self::BadScale => "BadScale",
            Self::NotFinite => "NotFinite",
            Self::UnknownSite => "UnknownSite",
            Self::SitesOutOfOrder => "SitesOutOfOrder",
            Self::DuplicateSite => "DuplicateSite",
            Self::NothingToApply => "NothingToApply",
            Self::OutOfRange => "OutOfRange",
            Self::ShapeMismatch => "ShapeMismatch",
            Self::Misaligned => "Misaligned",
            Self::PlanOverlap => "PlanOverlap",
            Self::BufferTooSmall => "BufferTooSmall",
            Self::ArenaTooSmall => "ArenaTooSmall",
            Self::SequenceTooLong => "SequenceTooLong",
            Self::UnknownToken => "UnknownToken",
            Self::WrongInput => "WrongInput",
            Self::SelfTestFailed => "SelfTestFailed",
            Self::NothingActive => "NothingActive",
            Self::NoSuchSlot => "NoSuchSlot",
            Self::EmptySlot => "EmptySlot",
            Self::SlotActive => "SlotActive",
            Self::NoUpload => "NoUpload",
            Self::Incomplete => "Incomplete",
            Self::Flash => "Flash",
            Self::MergeBufferTooSmall => "MergeBufferTooSmall",
            Self::UnknownMessage => "UnknownMessage",
            Self::NoBase => "NoBase",
            Self::WrongProduct => "WrongProduct",
            Self::Unsigned => "Unsigned",
            Self::UnknownKey => "UnknownKey",
            Self::BadSignature => "BadSignature",
            Self::Stale => "Stale",
            Self::TooFar => "TooFar",
            Self::UploadUnderWay => "UploadUnderWay",
            Self::NoFreeSlot => "NoFreeSlot",
            Self::OtherBytes => "OtherBytes",
            Self::Busy => "Busy",
            Self::NoSlots => "NoSlots",
            Self::UnknownBias => "UnknownBias",
            Self::BiasesOutOfOrder => "BiasesOutOfOrder",
            Self::NotBuiltIn => "NotBuiltIn",
        }
    }
}

/// A refusal: what [`Response::Error`] says. A response is twenty times as large, so it is made of this where it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: ErrorCode,
    /// What was expected, if that is a number.
    pub expected: u32,
    /// What was found, if that is a number.
    pub found: u32,
}

impl Refusal {
    /// A refusal with two numbers.
    pub fn new(code: ErrorCode, expected: usize, found: usize) -> Self {
        Self { code, expected: expected as u32, found: found as u32 }
    }
}

impl From<Refusal> for Response<'_> {
    fn from(Refusal { code, expected, found }: Refusal) -> Self {
        Self::Error { code, expected, found }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        use ErrorCode as C;
        let head = |id: BaseId| u32::from_be_bytes(*id.0.first_chunk().unwrap_or(&[0; 4]));
        let version3 = |m: [u8; 3]| u32::from_be_bytes([0, m[0], m[1], m[2]]);
        let (code, expected, found) = match error {
            Error::Truncated { expected, found, .. } => (C::Truncated, expected, found),
            Error::TrailingBytes { expected, found, .. } => (C::TrailingBytes, expected, found),
            Error::BadMagic { expected, found } => (C::BadMagic, version3(expected), version3(found)),
            Error::UnknownVersion { expected, found } => (C::UnknownVersion, expected.into(), found.into()),
            Error::Corrupt { expected, found } => (C::Corrupt, expected, found),
            Error::Malformed { .. } => (C::Malformed, 0, 0),
            Error::WrongBase { expected, found } => (C::WrongBase, head(expected), head(found)),
            Error::RankOutOfRange { rank, max, .. } => (C::RankOutOfRange, max, rank),
            Error::BadScale { owner, value, .. } => (C::BadScale, owner.into(), value.to_bits()),
            Error::NotFinite { index, .. } => (C::NotFinite, 0, index),
            Error::UnknownSite { site, n_sites } => (C::UnknownSite, n_sites.into(), site.into()),
            Error::SitesOutOfOrder { previous, found } => (C::SitesOutOfOrder, previous.into(), found.into()),
            Error::DuplicateSite { site } => (C::DuplicateSite, 1, site.into()),
            Error::UnknownBias { tensor } => (C::UnknownBias, 0, tensor.into()),
            Error::BiasesOutOfOrder { previous, found } => {
                (C::BiasesOutOfOrder, previous.into(), found.into())
            }
            Error::NothingToApply => (C::NothingToApply, 1, 0),
            Error::OutOfRange { found, max, .. } => (C::OutOfRange, max, found),
            Error::ShapeMismatch { expected, found, .. } => (C::ShapeMismatch, expected, found),
            Error::Misaligned { expected, found, .. } => (C::Misaligned, expected, found),
            Error::PlanOverlap { first, second } => (C::PlanOverlap, first.into(), second.into()),
            #[cfg(feature = "alloc")]
            Error::HostOperator { op, .. } => (C::Malformed, 0, op.into()),
            Error::BufferTooSmall { expected, found, .. } => (C::BufferTooSmall, expected, found),
        };
        Self { code, expected, found }
    }
}
