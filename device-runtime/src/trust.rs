//! Which adapter files a device wants: those for its product and its base, newer than what it has, and signed by a key
//! that it knows. Deciding needs the file's header, the file's bytes where they lie, and nothing else; this module knows
//! no flash and no link.
//!
//! [`Identity::admit`] judges the header, a [`Verifier`] the signature. Neither replaces the other: a header is worth
//! nothing before its signature has been verified, over the bytes in flash.

#[cfg(feature = "ed25519")]
use ed25519_compact::VerifyingState;
use rankpatch_format::header::{self, Header, Signature};
use rankpatch_format::link::{ErrorCode, Refusal};
use rankpatch_format::{BaseId, KeyId, ProductId};

/// Why a file is not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrustError {
    /// It is for another product.
    WrongProduct {
        /// The device's.
        expected: ProductId,
        /// The file's.
        found: ProductId,
    },
    /// It is for another base.
    WrongBase {
        /// The device's.
        expected: BaseId,
        /// The file's.
        found: BaseId,
    },
    /// Its sequence number is not above the floor: it is old, or was accepted before.
    Stale {
        /// The lowest number that would be accepted.
        expected: u32,
        /// The file's.
        found: u32,
    },
    /// Its sequence number is further above the floor than its step limit allows.
    TooFar {
        /// The highest number that would be accepted.
        expected: u32,
        /// The file's.
        found: u32,
    },
    /// It is not signed.
    Unsigned,
    /// It is signed with a key that the device does not have.
    UnknownKey {
        /// The key.
        found: KeyId,
    },
    /// The signature is not that of its key for these bytes.
    BadSignature,
}

impl core::fmt::Display for TrustError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::WrongProduct { expected, found } => {
                write!(f, "adapter is for another product: expected {expected}, found {found}")
            }
            Self::WrongBase { expected, found } => {
                write!(f, "adapter is for another base: expected {expected}, found {found}")
            }
            Self::Stale { expected, found } => {
                write!(f, "sequence number is not new: expected at least {expected}, found {found}")
            }
            Self::TooFar { expected, found } => {
                write!(f, "sequence number jumps too far: expected at most {expected}, found {found}")
            }
            Self::Unsigned => write!(f, "adapter is not signed: expected a signature"),
            Self::UnknownKey { found } => {
                write!(
                    f,
                    "adapter is signed with an unknown key: expected one of the device's, found {found}"
                )
            }
            Self::BadSignature => {
                write!(f, "signature does not fit the file (damaged, or made with another key?)")
            }
        }
    }
}

impl core::error::Error for TrustError {}

impl From<TrustError> for Refusal {
    fn from(error: TrustError) -> Self {
        use ErrorCode as C;
        let head = |id: &[u8]| u32::from_be_bytes(*id.first_chunk().unwrap_or(&[0; 4]));
        let (code, expected, found) = match error {
            TrustError::WrongProduct { expected, found } => {
                (C::WrongProduct, head(&expected.0), head(&found.0))
            }
            TrustError::WrongBase { expected, found } => (C::WrongBase, head(&expected.0), head(&found.0)),
            TrustError::Stale { expected, found } => (C::Stale, expected, found),
            TrustError::TooFar { expected, found } => (C::TooFar, expected, found),
            TrustError::Unsigned => (C::Unsigned, 0, 0),
            TrustError::UnknownKey { found } => (C::UnknownKey, 0, head(&found.0)),
            TrustError::BadSignature => (C::BadSignature, 0, 0),
        };
        Self { code, expected, found }
    }
}

/// What a device is: the two identities that a file must name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its product, a constant of the firmware.
    pub product: ProductId,
    /// Its base.
    pub base_id: BaseId,
}

impl Identity {
    /// Whether a file with this header is wanted by a device whose highest accepted sequence number is `floor`:
    /// product and base are its own and floor < sequence <= floor + step limit. An unsigned file may name no product;
    /// whether unsigned files pass at all is the verifier's to say.
    ///
    /// # Errors
    /// [`TrustError::WrongProduct`], [`TrustError::WrongBase`], [`TrustError::Stale`], [`TrustError::TooFar`].
    pub fn admit(&self, header: &Header, floor: u32) -> Result<(), TrustError> {
        self.belongs(header)?;
        let found = header.sequence;
        if found <= floor {
            return Err(TrustError::Stale { expected: floor.saturating_add(1), found });
        }
        let expected = floor.saturating_add(header.step_limit);
        if found > expected {
            return Err(TrustError::TooFar { expected, found });
        }
        Ok(())
    }

    /// The part of [`admit`](Self::admit) that holds for ever: product and base.
    ///
    /// # Errors
    /// [`TrustError::WrongProduct`], [`TrustError::WrongBase`].
    pub fn belongs(&self, header: &Header) -> Result<(), TrustError> {
        let nobodys = !header.is_signed() && header.product == ProductId::NONE;
        if header.product != self.product && !nobodys {
            return Err(TrustError::WrongProduct { expected: self.product, found: header.product });
        }
        if header.base_id != self.base_id {
            return Err(TrustError::WrongBase { expected: self.base_id, found: header.base_id });
        }
        Ok(())
    }
}

/// Knows the keys of a device.
pub trait Verifier {
    /// Whether `signature` is that of the key `key_id` for `message`. A file without a key id is not signed.
    ///
    /// # Errors
    /// [`TrustError::Unsigned`], [`TrustError::UnknownKey`], [`TrustError::BadSignature`].
    fn verify(&self, key_id: KeyId, message: &[u8], signature: &Signature) -> Result<(), TrustError>;

    /// Whether a file that names this key can pass at all: asked before anything is erased for it.
    ///
    /// # Errors
    /// [`TrustError::Unsigned`], [`TrustError::UnknownKey`].
    fn knows(&self, key_id: KeyId) -> Result<(), TrustError>;
}

impl<V: Verifier + ?Sized> Verifier for &V {
    fn verify(&self, key_id: KeyId, message: &[u8], signature: &Signature) -> Result<(), TrustError> {
        (**self).verify(key_id, message, signature)
    }

    fn knows(&self, key_id: KeyId) -> Result<(), TrustError> {
        (**self).knows(key_id)
    }
}

/// Verifies the signature of a whole file, read where it will stay.
///
/// # Errors
/// [`TrustError::BadSignature`] for a file without room for one; what `verifier` refuses.
// On its own: the tables of the curve are on the stack only while it runs.
#[inline(never)]
pub fn verify_file(verifier: &(impl Verifier + ?Sized), file: &[u8]) -> Result<(), TrustError> {
    let (message, signature) = header::split_signature(file).map_err(|_| TrustError::BadSignature)?;
    let header = Header::new(message).map_err(|_| TrustError::BadSignature)?;
    verifier.verify(header.key_id, message, signature)
}

/// An Ed25519 public key.
pub type PublicKey = [u8; 32];

/// Ed25519 with up to two keys, so that one can be replaced while the other still counts.
#[cfg(feature = "ed25519")]
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    slots: [Option<PublicKey>; 2],
}

#[cfg(feature = "ed25519")]
impl Keys {
    /// A device that knows one key.
    pub const fn one(key: PublicKey) -> Self {
        Self { slots: [Some(key), None] }
    }

    /// A device that knows two.
    pub const fn two(first: PublicKey, second: PublicKey) -> Self {
        Self { slots: [Some(first), Some(second)] }
    }

    /// A device that knows none and refuses every file.
    pub const fn none() -> Self {
        Self { slots: [None, None] }
    }

    fn key(&self, key_id: KeyId) -> Result<&PublicKey, TrustError> {
        if key_id == KeyId::UNSIGNED {
            return Err(TrustError::Unsigned);
        }
        let key = self.slots.iter().flatten().find(|key| KeyId::of(key) == key_id);
        key.ok_or(TrustError::UnknownKey { found: key_id })
    }

    /// The ids of the keys.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.slots.iter().flatten().map(KeyId::of)
    }
}

#[cfg(feature = "ed25519")]
impl Verifier for Keys {
    /// RFC 8032 with the cofactor; refuses S >= L and small-order keys and R. About 5 KB of stack.
    fn verify(&self, key_id: KeyId, message: &[u8], signature: &Signature) -> Result<(), TrustError> {
        // By reference: the state is large, and moving it out would need its room twice.
        match &mut decode(self.key(key_id)?, signature) {
            Ok(state) => {
                state.absorb(message);
                check(state)
            }
            Err(error) => Err(*error),
        }
    }

    fn knows(&self, key_id: KeyId) -> Result<(), TrustError> {
        self.key(key_id).map(|_| ())
    }
}

/// Decodes the points of key and signature. A function of its own, so that what this needs of the stack is not added to what
/// [`check`] needs.
#[cfg(feature = "ed25519")]
#[inline(never)]
fn decode(key: &PublicKey, signature: &Signature) -> Result<VerifyingState, TrustError> {
    let signature = ed25519_compact::Signature::new(*signature);
    ed25519_compact::PublicKey::new(*key).verify_incremental(&signature).map_err(|_| TrustError::BadSignature)
}

/// The equation 8 S B = 8 R + 8 k A.
#[cfg(feature = "ed25519")]
#[inline(never)]
fn check(state: &VerifyingState) -> Result<(), TrustError> {
    state.verify().map_err(|_| TrustError::BadSignature)
}

/// Lets unsigned files pass and asks `V` about the others.
#[cfg(feature = "insecure")]
#[derive(Debug, Clone, Copy)]
pub struct AllowUnsigned<V>(pub V);

#[cfg(feature = "insecure")]
impl<V: Verifier> Verifier for AllowUnsigned<V> {
    fn verify(&self, key_id: KeyId, message: &[u8], signature: &Signature) -> Result<(), TrustError> {
        if key_id == KeyId::UNSIGNED { Ok(()) } else { self.0.verify(key_id, message, signature) }
    }

    fn knows(&self, key_id: KeyId) -> Result<(), TrustError> {
        if key_id == KeyId::UNSIGNED { Ok(()) } else { self.0.knows(key_id) }
    }
}

#[cfg(all(test, feature = "ed25519"))]
mod tests;
