//! Signing keys: their files, and signing and verifying adapter files with them.
//!
//! A key file is two lines of text: what it is, and 64 hexadecimal digits. `rankpatch secret key 1` is followed by the
//! seed of RFC 8032, `rankpatch public key 1` by the public key. A secret key is made readable for its owner only.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use rankpatch_format::header::{self, Header};
use rankpatch_format::{KeyId, ProductId};
use rankpatch_runtime::trust::{Keys, PublicKey, TrustError, Verifier as _};

use crate::{Error, Result};

const SECRET: &str = "rankpatch secret key 1";
const PUBLIC: &str = "rankpatch public key 1";

/// A key that signs.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl std::fmt::Debug for SecretKey {
    /// Shows the public part only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretKey of {}", KeyId::of(&self.public()))
    }
}

impl SecretKey {
    /// A new key, from the operating system's random numbers.
    ///
    /// # Errors
    /// [`Error::Random`].
    pub fn generate() -> Result<Self> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| Error::Random(error.to_string()))?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of a seed (RFC 8032).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Reads a secret key file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Field`].
    pub fn read(path: &Path) -> Result<Self> {
        read_key(path, &[SECRET]).map(|(_, seed)| Self::from_seed(&seed))
    }

    /// Writes the secret key to `path`, for its owner's eyes only, and the public key beside it with the extension
    /// `.pub`, whose path it returns. Never overwrites a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<PathBuf> {
        let public = path.with_extension("pub");
        write_new(path, 0o600, &key_text(SECRET, self.0.as_bytes()))?;
        write_new(&public, 0o644, &key_text(PUBLIC, &self.public()))?;
        Ok(public)
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.0.verifying_key().to_bytes()
    }

    /// Signs `file` in place for a product, with this sequence number and step limit. What was there of a signature is
    /// replaced.
    ///
    /// # Errors
    /// [`Error::Format`] if the file is no adapter file, is damaged, or the step limit is outside its range.
    pub fn sign(
        &self,
        file: &mut [u8],
        product: ProductId,
        sequence: u32,
        step_limit: u32,
    ) -> Result<Header> {
        let before = header::check(file)?;
        let header = Header { sequence, step_limit, product, key_id: KeyId::of(&self.public()), ..before };
        header::set_header(file, &header)?;
        let checked = header::check(file)?;
        let (message, _) = header::split_signature(file)?;
        let signature = self.0.sign(message).to_bytes();
        header::set_signature(file, &signature)?;
        Ok(checked)
    }
}

/// Reads a public key from a public or a secret key file.
///
/// # Errors
/// [`Error::Io`], [`Error::Field`].
pub fn read_public(path: &Path) -> Result<PublicKey> {
    let (kind, bytes) = read_key(path, &[PUBLIC, SECRET])?;
    if kind == SECRET { Ok(SecretKey::from_seed(&bytes).public()) } else { Ok(bytes) }
}

/// Verifies the signature of a file with the code of the device, and with `ed25519-dalek`'s strict verification, which
/// must agree. The file's CRC-32 and lengths are checked first.
///
/// # Errors
/// [`Error::Format`], [`Error::Trust`].
pub fn verify(file: &[u8], keys: &[PublicKey]) -> Result<Header> {
    let header = header::check(file)?;
    if !header.is_signed() {
        return Err(TrustError::Unsigned.into());
    }
    let key = keys.iter().find(|key| KeyId::of(key) == header.key_id);
    let key = key.ok_or(TrustError::UnknownKey { found: header.key_id })?;
    let (message, signature) = header::split_signature(file)?;
    Keys::one(*key).verify(header.key_id, message, signature)?;
    let signature = ed25519_dalek::Signature::from_bytes(signature);
    let strict = VerifyingKey::from_bytes(key).and_then(|key| key.verify_strict(message, &signature));
    strict.map_err(|_| TrustError::BadSignature)?;
    Ok(header)
}

fn key_text(kind: &str, bytes: &[u8; 32]) -> String {
    format!("{kind}\n{}\n", hex(bytes))
}

/// The bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn read_key(path: &Path, kinds: &[&'static str]) -> Result<(&'static str, [u8; 32])> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("");
    let kind = kinds.iter().find(|kind| **kind == first).ok_or_else(|| {
        // What stands in the place of a heading may be a secret: it is not repeated.
        let found = if first == PUBLIC { PUBLIC } else { "something else" };
        Error::field(path, "kind of key", kinds.join(" or "), found)
    })?;
    let digits = lines.next().unwrap_or("");
    let mut bytes = [0; 32];
    let whole = digits.len() == 64
        && lines.next().is_none()
        && digits.is_ascii()
        && bytes.iter_mut().enumerate().all(|(i, byte)| {
            u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).map(|value| *byte = value).is_ok()
        });
    if !whole {
        let found = format!("{} characters", digits.len());
        return Err(Error::field(path, "key", "64 hexadecimal digits on the second line", found));
    }
    Ok((kind, bytes))
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let written = options.open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(Error::io(path))
}
