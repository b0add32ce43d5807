//! The first 64 bytes of an adapter file, at fixed places, and its last 64, the signature. What a device needs to decide
//! whether it wants a file stands here and is signed; nothing in a file is outside the signature but the signature.
//!
//! This module knows places and ranges. It does not know keys, curves or what a device has accepted before.

use sha2::{Digest as _, Sha256};

use crate::{BaseId, Error, Result, VERSION, What};

/// First bytes of an adapter file.
pub const MAGIC: [u8; 3] = *b"RPA";
/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the CRC-32 that ends the signed part.
pub const CRC_BYTES: usize = 4;
/// Bytes of the Ed25519 signature that ends the file.
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes after the payload: CRC-32 and signature.
pub const TRAILER_BYTES: usize = CRC_BYTES + SIGNATURE_BYTES;
/// Largest step limit: a device that follows a sequence number never jumps further.
pub const MAX_STEP_LIMIT: u32 = 65_536;

/// An Ed25519 signature, R then S.
pub type Signature = [u8; SIGNATURE_BYTES];

macro_rules! identifier {
    ($name:ident, $bytes:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub [u8; $bytes]);

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(self, f)
            }
        }
    };
}

identifier!(
    KeyId,
    8,
    "Names a public key: the first 8 bytes of its SHA-256. All zero: the file is not signed."
);
identifier!(ProductId, 16, "Names a product: the first 16 bytes of the SHA-256 of its name. All zero: none.");

impl KeyId {
    /// The id of an unsigned file.
    pub const UNSIGNED: Self = Self([0; 8]);

    /// The id of a public key.
    pub fn of(public_key: &[u8; 32]) -> Self {
        Self(prefix(public_key))
    }
}

impl ProductId {
    /// No product: what an unsigned file names.
    pub const NONE: Self = Self([0; 16]);

    /// The id of the product with this name.
    pub fn of(name: &str) -> Self {
        Self(prefix(name.as_bytes()))
    }
}

fn prefix<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    core::array::from_fn(|i| digest.get(i).copied().unwrap_or(0))
}

/// The header, checked: magic, version, lengths, reserved fields, step limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the file, header and signature included.
    pub file_bytes: u32,
    /// Number of this release among all adapters of a product. A device accepts rising numbers only.
    pub sequence: u32,
    /// How far above a device's highest sequence number this one may lie, 1..=[`MAX_STEP_LIMIT`].
    pub step_limit: u32,
    /// The key that signed it.
    pub key_id: KeyId,
    /// The base that the adapter is for.
    pub base_id: BaseId,
    /// The product that the adapter is for.
    pub product: ProductId,
}

impl Header {
    /// Reads the header at the front of `file`, which may end anywhere after it.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::BadMagic`], [`Error::UnknownVersion`], [`Error::ShapeMismatch`] for another header
    /// length, [`Error::Malformed`] for a reserved field, [`Error::OutOfRange`] for a step limit outside its range and
    /// [`Error::Truncated`] for a stated length that leaves no room for a body.
    pub fn new(file: &[u8]) -> Result<Self> {
        const WHAT: What = What::AdapterFile;
        let truncated = |expected: usize, found: usize| Error::Truncated {
            what: WHAT,
            expected: expected as u32,
            found: found as u32,
        };
        let header = file.first_chunk::<HEADER_BYTES>().ok_or(truncated(HEADER_BYTES, file.len()))?;
        let [m0, m1, m2, version, l0, l1, f0, f1, ..] = *header;
        if [m0, m1, m2] != MAGIC {
            return Err(Error::BadMagic { expected: MAGIC, found: [m0, m1, m2] });
        }
        if version != VERSION {
            return Err(Error::UnknownVersion { expected: VERSION, found: version });
        }
        let length = u16::from_le_bytes([l0, l1]);
        if usize::from(length) != HEADER_BYTES {
            return Err(Error::ShapeMismatch {
                what: What::HeaderLength,
                op: 0,
                expected: HEADER_BYTES as u32,
                found: length.into(),
            });
        }
        let word = |at: usize| u32::from_le_bytes(field(header, at));
        if [f0, f1] != [0; 2] || word(28) != 0 {
            return Err(Error::Malformed { what: What::Reserved });
        }
        let header = Self {
            file_bytes: word(8),
            sequence: word(12),
            step_limit: word(16),
            key_id: KeyId(field(header, 20)),
            base_id: BaseId(field(header, 32)),
            product: ProductId(field(header, 48)),
        };
        if header.step_limit == 0 || header.step_limit > MAX_STEP_LIMIT {
            return Err(Error::OutOfRange {
                what: What::StepLimit,
                found: header.step_limit,
                max: MAX_STEP_LIMIT,
            });
        }
        if (header.file_bytes as usize) < HEADER_BYTES + TRAILER_BYTES {
            return Err(truncated(HEADER_BYTES + TRAILER_BYTES, header.file_bytes as usize));
        }
        Ok(header)
    }

    /// The bytes of this header.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let [m0, m1, m2] = MAGIC;
        let [l0, l1] = (HEADER_BYTES as u16).to_le_bytes();
        put(&mut bytes, 0, &[m0, m1, m2, VERSION, l0, l1]);
        put(&mut bytes, 8, &self.file_bytes.to_le_bytes());
        put(&mut bytes, 12, &self.sequence.to_le_bytes());
        put(&mut bytes, 16, &self.step_limit.to_le_bytes());
        put(&mut bytes, 20, &self.key_id.0);
        put(&mut bytes, 32, &self.base_id.0);
        put(&mut bytes, 48, &self.product.0);
        bytes
    }

    /// Whether a key is named.
    pub fn is_signed(&self) -> bool {
        self.key_id != KeyId::UNSIGNED
    }
}

fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    // Every call names a field inside the header.
    header.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = bytes.get_mut(at..at + value.len()) {
        to.copy_from_slice(value);
    }
}

/// The signed part of a file, which is all but its last 64 bytes, and its signature.
///
/// # Errors
/// [`Error::Truncated`].
pub fn split_signature(file: &[u8]) -> Result<(&[u8], &Signature)> {
    file.split_last_chunk().ok_or(Error::Truncated {
        what: What::AdapterFile,
        expected: (HEADER_BYTES + TRAILER_BYTES) as u32,
        found: file.len() as u32,
    })
}

/// Checks what can be checked without a key: the header, that the file has the length it states, its CRC-32, and that
/// an unsigned file carries no signature.
///
/// # Errors
/// As [`Header::new`]; [`Error::Truncated`], [`Error::TrailingBytes`], [`Error::Corrupt`], [`Error::Malformed`].
pub fn check(file: &[u8]) -> Result<Header> {
    const WHAT: What = What::AdapterFile;
    let header = Header::new(file)?;
    let (expected, found) = (header.file_bytes, file.len() as u32);
    if found < expected {
        return Err(Error::Truncated { what: WHAT, expected, found });
    }
    if found > expected {
        return Err(Error::TrailingBytes { what: WHAT, expected, found });
    }
    let (message, signature) = split_signature(file)?;
    let (content, crc) = message.split_last_chunk::<CRC_BYTES>().unwrap_or((&[], &[0; CRC_BYTES]));
    let (expected, found) = (u32::from_le_bytes(*crc), crate::crc32(content));
    if expected != found {
        return Err(Error::Corrupt { expected, found });
    }
    if !header.is_signed() && *signature != [0; SIGNATURE_BYTES] {
        return Err(Error::Malformed { what: What::Signature });
    }
    Ok(header)
}

/// Gives a file another header, the right CRC-32 and no signature yet. The length stays that of the file.
///
/// # Errors
/// [`Error::Truncated`] if there is no room for header and trailer.
pub fn set_header(file: &mut [u8], header: &Header) -> Result<()> {
    let (len, least) = (file.len(), HEADER_BYTES + TRAILER_BYTES);
    let truncated = Error::Truncated { what: What::AdapterFile, expected: least as u32, found: len as u32 };
    if len < least {
        return Err(truncated);
    }
    put(file, 0, &Header { file_bytes: len as u32, ..*header }.to_bytes());
    let crc = crate::crc32(file.get(..len - TRAILER_BYTES).unwrap_or(&[]));
    put(file, len - TRAILER_BYTES, &crc.to_le_bytes());
    set_signature(file, &[0; SIGNATURE_BYTES])
}

/// Writes the signature at the end of a file.
///
/// # Errors
/// [`Error::Truncated`].
pub fn set_signature(file: &mut [u8], signature: &Signature) -> Result<()> {
    let found = file.len() as u32;
    let (_, to) = file.split_last_chunk_mut::<SIGNATURE_BYTES>().ok_or(Error::Truncated {
        what: What::AdapterFile,
        expected: (HEADER_BYTES + TRAILER_BYTES) as u32,
        found,
    })?;
    *to = *signature;
    Ok(())
}
