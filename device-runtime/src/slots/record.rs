//! The record at the start of a slot: what the upload was announced to be. It is written before the file and names the bytes,
//! so that an upload can go on and an installed file can be checked. Whether the file is installed is the journal's to say.

use super::FILE_OFFSET;

const MAGIC: [u8; 4] = *b"RPS2";
/// Bytes of a record: magic, length, SHA-256, CRC-32 of what is before.
pub(super) const RECORD_BYTES: usize = 44;

/// What an upload will be: the length and the SHA-256 of the whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// Bytes of the file.
    pub len: u32,
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
}

impl Announcement {
    /// The announcement of a file.
    pub fn of(file: &[u8]) -> Self {
        use sha2::Digest as _;
        Self { len: file.len() as u32, sha256: sha2::Sha256::digest(file).into() }
    }

    /// The record, filled up with `erased`.
    pub(super) fn encode(&self, erased: u8) -> [u8; FILE_OFFSET] {
        let mut bytes = [erased; FILE_OFFSET];
        let (head, rest) = bytes.split_at_mut(RECORD_BYTES - 4);
        let len = self.len.to_le_bytes();
        let fields = MAGIC.iter().chain(&len).chain(&self.sha256);
        head.iter_mut().zip(fields).for_each(|(to, byte)| *to = *byte);
        if let Some(to) = rest.first_chunk_mut::<4>() {
            *to = rankpatch_format::crc32(head).to_le_bytes();
        }
        bytes
    }

    /// The record at the start of a slot, if there is a whole one for a file that fits.
    pub(super) fn decode(slot: &[u8]) -> Option<Self> {
        let (body, crc) = slot.first_chunk::<RECORD_BYTES>()?.split_last_chunk::<4>()?;
        // Most slots of many hold none: the magic is compared first.
        let (magic, rest) = body.split_first_chunk::<4>()?;
        if *magic != MAGIC || u32::from_le_bytes(*crc) != rankpatch_format::crc32(body) {
            return None;
        }
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let len = u32::from_le_bytes(*len);
        let fits = len > 0 && len as usize <= slot.len() - FILE_OFFSET.min(slot.len());
        fits.then_some(Self { len, sha256: *rest.first_chunk()? })
    }
}
