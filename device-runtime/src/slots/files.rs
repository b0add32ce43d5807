//! Installed files, read where they lie.

use sha2::{Digest as _, Sha256};

use super::record::Announcement;
use super::{FILE_OFFSET, MappedFlash, SlotError, Slots};

impl<F: MappedFlash> Slots<F> {
    /// The bytes of an installed file; not checked again.
    ///
    /// # Errors
    /// [`SlotError::NoSuchSlot`], [`SlotError::Empty`] also for an unreadable record.
    pub fn file(&self, slot: usize) -> Result<&[u8], SlotError> {
        let len = self.announcement(slot)?.len as usize;
        let start = self.geometry.slot(slot)?.start + FILE_OFFSET;
        self.flash.mapped().get(start..start + len).ok_or(SlotError::Empty { slot })
    }

    /// The bytes of an installed file, if they still are what was installed: the SHA-256 is computed anew.
    ///
    /// # Errors
    /// [`SlotError::NoSuchSlot`], [`SlotError::Empty`], [`SlotError::Corrupt`].
    pub fn verified(&self, slot: usize) -> Result<&[u8], SlotError> {
        let announcement = self.announcement(slot)?;
        let file = self.file(slot)?;
        check_digest(&announcement, file)?;
        Ok(file)
    }

    /// What an installed file was announced to be.
    ///
    /// # Errors
    /// [`SlotError::NoSuchSlot`], [`SlotError::Empty`].
    pub fn announcement(&self, slot: usize) -> Result<Announcement, SlotError> {
        let range = self.geometry.slot(slot)?;
        let record = self.flash.mapped().get(range).and_then(Announcement::decode);
        record.filter(|_| self.state.is_installed(slot)).ok_or(SlotError::Empty { slot })
    }

    /// The slot that holds an installed file with this announcement.
    pub fn find(&self, announcement: &Announcement) -> Option<usize> {
        (0..self.geometry.n_slots).find(|slot| self.announcement(*slot) == Ok(*announcement))
    }
}

/// Whether `file` is what was announced.
pub(super) fn check_digest(announcement: &Announcement, file: &[u8]) -> Result<(), SlotError> {
    let found: [u8; 32] = Sha256::digest(file).into();
    if found == announcement.sha256 {
        return Ok(());
    }
    let head = |digest: [u8; 32]| u32::from_be_bytes(*digest.first_chunk().unwrap_or(&[0; 4]));
    Err(SlotError::Corrupt { expected: head(announcement.sha256), found: head(found) })
}
