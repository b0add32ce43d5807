//! What Rankpatch writes to disk and sends over a wire: the network graph, the base image, the adapter file and the
//! messages of the link.
//!
//! This crate knows bytes and their meaning. It does not know how a network is computed, where bytes come from or
//! which model they hold. `SPEC.md` beside it is the normative text; a reader in another language needs nothing else.
//!
//! * [`graph`]: operators over named weights in SSA form, and the shapes they imply.
//! * [`base`]: the base image (`.rpb`): manifest and weight sections, read in place.
//! * [`adapter`]: the adapter file (`.rpa`): low-rank factors for the sites of one base.
//! * [`header`]: the signed header of an adapter file, and where its signature lies.
//! * [`link`]: frames and messages between a host and a device.
//! * [`layout`], [`tokenizer`], [`digest`]: the parts these share.
//!
//! Readers check everything once, in `new`; accessors of the values they return cannot fail and cannot panic, for any
//! bytes whatever. Writers live behind the `alloc` feature.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(feature = "alloc")]
extern crate alloc;

pub mod adapter;
pub mod base;
pub mod digest;
mod error;
#[cfg(feature = "_fixtures")]
pub mod fixture;
pub mod front_end;
pub mod graph;
pub mod header;
pub mod layout;
pub mod link;
pub mod numbers;
#[cfg(feature = "alloc")]
pub mod plan;
mod read;
pub mod tokenizer;
mod what;
#[cfg(feature = "alloc")]
pub mod write;

pub use error::{Error, Result};
pub use header::{KeyId, ProductId};
pub use what::What;

/// The version of every file and message of this crate. Readers refuse any other.
pub const VERSION: u8 = 1;

/// Highest rank of one site, and of all adapters attached to one site together. With
/// [`MAX_WIDTH`] it keeps every integer accumulator inside `i32`.
pub const MAX_RANK: u32 = 256;

/// Most columns of a matrix, which are the elements that a row of sums has; also the longest sequence.
pub const MAX_WIDTH: u32 = 65_536;

/// Most rows of a matrix, which are token ids or outputs, and so the widest value of a graph. A device takes ids of 16 bits over its
/// link; vocabularies beyond them train and run on a host.
pub const MAX_OUTPUTS: u32 = 1 << 20;

const _: () = assert!(cfg!(target_endian = "little"), "sections are read in place and are little-endian");

/// CRC-32 (ISO-HDLC, as in zlib) of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes)
}

pub(crate) const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// The identity of a base: the first 16 bytes of a SHA-256 over its canonical content, independent of the weight
/// layout (see `SPEC.md`).
#[derive(Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct BaseId(pub [u8; 16]);

impl core::fmt::Display for BaseId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl core::fmt::Debug for BaseId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

#[cfg(all(test, feature = "_fixtures"))]
mod tests;
