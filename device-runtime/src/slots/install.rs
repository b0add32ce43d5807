//! Uploads and installs: a file comes in pieces, is written where it stays, read back, and committed by one word.

use core::ops::Range;

use sha2::{Digest as _, Sha256};

use super::files::check_digest;
use super::geometry::{erase_page, program};
use super::mark::Mark;
use super::record::Announcement;
use super::{FILE_OFFSET, MAX_WRITE_SIZE, MappedFlash, Resume, SlotError, Slots};

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Progress {
    /// Pages are still to be erased, one by each [`Slots::poll`]; then the upload goes on at `next`.
    Erasing {
        /// Pages left.
        pages: usize,
        /// Offset in the file that will be needed first.
        next: u32,
    },
    /// Waits for bytes.
    Receiving {
        /// Offset in the file that is needed next; the file's length when all have arrived.
        next: u32,
    },
}

impl Progress {
    /// Offset in the file that is needed next.
    pub fn next(self) -> u32 {
        match self {
            Self::Erasing { next, .. } | Self::Receiving { next } => next,
        }
    }
}

/// An upload that was cut off, as its content shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// What it was announced to be.
    pub announcement: Announcement,
    /// Bytes of the file that are there for certain: where it would go on.
    pub next: u32,
}

/// Why an upload was not installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishError<E> {
    /// Slots and flash.
    Slot(SlotError),
    /// The caller's decision about the file.
    Refused(E),
}

impl<E> From<SlotError> for FinishError<E> {
    fn from(error: SlotError) -> Self {
        Self::Slot(error)
    }
}

impl<E: core::fmt::Display> core::fmt::Display for FinishError<E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Slot(error) => error.fmt(f),
            Self::Refused(error) => error.fmt(f),
        }
    }
}

impl<E: core::error::Error> core::error::Error for FinishError<E> {}

/// An upload under way.
#[derive(Debug)]
pub(super) struct Upload {
    slot: usize,
    announcement: Announcement,
    /// Pages of the slot still to be erased.
    erase: Range<usize>,
    /// Whether the record is still to be written.
    fresh: bool,
    /// Bytes that arrived.
    next: u32,
    /// The last bytes that arrived, until they fill a word.
    staged: heapless::Vec<u8, MAX_WRITE_SIZE>,
}

impl Upload {
    fn progress(&self) -> Progress {
        match self.erase.len() {
            0 => Progress::Receiving { next: self.next },
            pages => Progress::Erasing { pages, next: self.next },
        }
    }
}

impl<F: MappedFlash> Slots<F> {
    /// The slot for an upload: where it is under way; else where it was cut off before; else, of those that hold no installed
    /// file, the one erased least often; if all do, the one erased least often of those not in use. `None` if all are in use.
    pub fn pick(&self, announcement: &Announcement) -> Option<usize> {
        if let Some(upload) = self.upload.as_ref().filter(|upload| upload.announcement == *announcement) {
            return Some(upload.slot);
        }
        let free = || (0..self.geometry.n_slots).filter(|slot| !self.state.is_in_use(*slot));
        let cut = |slot: &usize| {
            self.partial(*slot).ok().flatten().is_some_and(|partial| partial.announcement == *announcement)
        };
        free().find(cut).or_else(|| {
            free().min_by_key(|slot| (self.state.is_installed(*slot), self.state.wear.get(*slot).copied()))
        })
    }

    /// An upload into `slot` that was cut off, by a reset or by [`begin`](Self::begin) elsewhere.
    ///
    /// # Errors
    /// [`SlotError::NoSuchSlot`].
    pub fn partial(&self, slot: usize) -> Result<Option<Partial>, SlotError> {
        let range = self.geometry.slot(slot)?;
        if let Some(upload) = self.upload.as_ref().filter(|upload| upload.slot == slot) {
            return Ok(Some(Partial { announcement: upload.announcement, next: upload.next }));
        }
        let bytes = self.flash.mapped().get(range).unwrap_or(&[]);
        let announcement = Announcement::decode(bytes).filter(|_| !self.state.is_installed(slot));
        Ok(announcement
            .map(|announcement| Partial { announcement, next: self.resume_at(bytes, &announcement) }))
    }

    /// The offset in the file where a cut upload goes on.
    fn resume_at(&self, slot: &[u8], announcement: &Announcement) -> u32 {
        let len = announcement.len as usize;
        let used = slot.get(..self.pages(len) * self.geometry.page).unwrap_or(slot);
        let written = used.iter().rposition(|byte| *byte != self.geometry.erased).map_or(0, |last| last + 1);
        let at = match self.geometry.resume {
            Resume::Page => written.saturating_sub(1) / self.geometry.page * self.geometry.page,
            Resume::Word => written.next_multiple_of(self.geometry.word),
        };
        at.saturating_sub(FILE_OFFSET).min(len) as u32
    }

    /// Pages that a file of `len` bytes takes in its slot.
    fn pages(&self, len: usize) -> usize {
        (FILE_OFFSET + len).div_ceil(self.geometry.page)
    }

    /// The upload under way: slot, announcement, progress.
    pub fn upload(&self) -> Option<(usize, Announcement, Progress)> {
        self.upload.as_ref().map(|upload| (upload.slot, upload.announcement, upload.progress()))
    }

    /// Starts an upload into `slot`, or goes on with one that was cut off there and had the same announcement. An installed file
    /// that is not in use is given up. The same call again changes nothing.
    ///
    /// Writes words of the journal; the pages are erased by [`poll`](Self::poll).
    ///
    /// # Errors
    /// [`SlotError::NoSuchSlot`], [`SlotError::InUse`], [`SlotError::WrongLength`], [`SlotError::Busy`], [`SlotError::Flash`].
    pub fn begin(&mut self, slot: usize, announcement: Announcement) -> Result<Progress, SlotError> {
        self.geometry.slot(slot)?;
        if let Some(upload) = &self.upload {
            if (upload.slot, upload.announcement) == (slot, announcement) {
                return Ok(upload.progress());
            }
            return Err(SlotError::Busy { slot: upload.slot });
        }
        if self.state.is_in_use(slot) {
            return Err(SlotError::InUse { slot });
        }
        let (expected, found) = (self.max_file_bytes(), announcement.len as usize);
        if found == 0 || found > expected {
            return Err(SlotError::WrongLength { expected, found });
        }
        let stored = self.partial(slot)?.filter(|partial| partial.announcement == announcement);
        let next = stored.map_or(0, |partial| partial.next);
        let pages = self.pages(found);
        let erase = match (self.geometry.resume, next) {
            (_, 0) => 0..self.used_pages(slot)?.max(pages),
            (Resume::Page, next) => (FILE_OFFSET + next as usize) / self.geometry.page..pages,
            (Resume::Word, _) => pages..pages,
        };
        if !erase.is_empty() {
            self.append_sealed(Mark::Erased(slot))?;
        }
        let fresh = next == 0;
        let upload = Upload { slot, announcement, erase, fresh, next, staged: heapless::Vec::new() };
        let progress = upload.progress();
        self.upload = Some(upload);
        Ok(progress)
    }

    /// Erases the next page of the upload, or does nothing if all are.
    ///
    /// # Errors
    /// [`SlotError::NoUpload`], [`SlotError::Flash`].
    pub fn poll(&mut self) -> Result<Progress, SlotError> {
        let mut upload = self.upload.take().ok_or(SlotError::NoUpload)?;
        let start = self.geometry.slot(upload.slot)?.start;
        // The last page first: as long as the record can be read, all before the last byte that is not erased is what was
        // written there.
        if let Some(page) = upload.erase.next_back() {
            erase_page(&mut self.flash, &self.geometry, start + page * self.geometry.page)?;
        }
        if upload.erase.is_empty() && upload.fresh {
            let record = upload.announcement.encode(self.geometry.erased);
            let len = super::record::RECORD_BYTES.next_multiple_of(self.geometry.word);
            program(&mut self.flash, start, record.get(..len).unwrap_or(&[]))?;
            upload.fresh = false;
        }
        let progress = upload.progress();
        self.upload = Some(upload);
        Ok(progress)
    }

    /// Stores `data`, which starts at `offset` in the file. Bytes that are already there are passed over; a gap, bytes after the
    /// end of the file, or any bytes while pages are being erased, store nothing.
    ///
    /// # Errors
    /// [`SlotError::NoUpload`], [`SlotError::Flash`].
    pub fn chunk(&mut self, offset: u32, data: &[u8]) -> Result<Progress, SlotError> {
        let mut upload = self.upload.take().ok_or(SlotError::NoUpload)?;
        let end = offset.saturating_add(data.len() as u32);
        let here = offset <= upload.next && end <= upload.announcement.len;
        if here && upload.erase.is_empty() && !upload.fresh {
            let new = data.get((upload.next - offset) as usize..).unwrap_or(&[]);
            self.store(&mut upload, new)?;
        }
        let progress = upload.progress();
        self.upload = Some(upload);
        Ok(progress)
    }

    /// Writes whole words as they come, what is left over when it fills a word or ends the file. No write crosses a page.
    fn store(&mut self, upload: &mut Upload, mut data: &[u8]) -> Result<(), SlotError> {
        let (word, page) = (self.geometry.word, self.geometry.page);
        let start = self.geometry.slot(upload.slot)?.start + FILE_OFFSET;
        while !data.is_empty() {
            let at = start + upload.next as usize - upload.staged.len();
            let to_page_end = page - at % page;
            let whole = data.len().min(to_page_end) / word * word;
            let taken = if upload.staged.is_empty() && whole > 0 {
                self.program_words(at, data.get(..whole).unwrap_or(&[]))?;
                whole
            } else {
                let taken = data.len().min(word - upload.staged.len());
                let bytes = data.get(..taken).unwrap_or(&[]);
                upload.staged.extend_from_slice(bytes).map_err(|_| SlotError::Flash)?;
                let ends = upload.next as usize + taken == upload.announcement.len as usize;
                if upload.staged.len() == word || ends {
                    upload.staged.resize(word, self.geometry.erased).map_err(|_| SlotError::Flash)?;
                    let staged = core::mem::take(&mut upload.staged);
                    self.program_words(at, &staged)?;
                }
                taken
            };
            upload.next += taken as u32;
            data = data.get(taken..).unwrap_or(&[]);
        }
        Ok(())
    }

    /// Writes all words but those that look erased anyway: so that the last word that does not is the last that was written.
    fn program_words(&mut self, at: usize, bytes: &[u8]) -> Result<(), SlotError> {
        let geometry = self.geometry;
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let words = || rest.chunks_exact(geometry.word);
            let skipped = words().take_while(|word| geometry.is_erased(word)).count();
            let written = words().skip(skipped).take_while(|word| !geometry.is_erased(word)).count();
            let (from, to) = (done + skipped * geometry.word, done + (skipped + written) * geometry.word);
            if written > 0 {
                program(&mut self.flash, at + from, bytes.get(from..to).unwrap_or(&[]))?;
            }
            done = to;
        }
        Ok(())
    }

    /// SHA-256 of the first `len` bytes of the upload, from flash, for the sender to compare with its own before it goes on. Bytes that
    /// do not fill a word yet are not in flash. `None` without an upload, or for bytes that are not in flash.
    pub fn stored_digest(&self, len: u32) -> Option<[u8; 32]> {
        let upload = self.upload.as_ref()?;
        if len as usize > upload.next as usize - upload.staged.len() {
            return None;
        }
        let start = self.geometry.slot(upload.slot).ok()?.start + FILE_OFFSET;
        Some(Sha256::digest(self.flash.mapped().get(start..start + len as usize)?).into())
    }

    /// Checks the file in flash against its announcement, asks `admit`, and commits. Returns the slot, which is installed from
    /// then on, whatever is cut off.
    ///
    /// `admit` gets the file as it lies in flash and the floor; it answers with the file's sequence number, which must be above
    /// the floor and becomes the new one. Signature, product and base are its business.
    ///
    /// # Errors
    /// [`SlotError::NoUpload`]; [`SlotError::Incomplete`], [`SlotError::Flash`] in the journal: the upload stays, and this call can be
    /// repeated. [`SlotError::Corrupt`], [`SlotError::Stale`], [`FinishError::Refused`]: the upload is given up.
    pub fn finish<E>(
        &mut self,
        admit: impl FnOnce(&[u8], u32) -> Result<u32, E>,
    ) -> Result<usize, FinishError<E>> {
        let upload = self.upload.as_ref().ok_or(SlotError::NoUpload)?;
        let Announcement { len, .. } = upload.announcement;
        let (slot, found) = (upload.slot, upload.next);
        if found != len || !upload.erase.is_empty() || upload.fresh {
            return Err(SlotError::Incomplete { expected: len, found }.into());
        }
        let start = self.geometry.slot(slot)?.start + FILE_OFFSET;
        let file = self.flash.mapped().get(start..start + len as usize).unwrap_or(&[]);
        let floor = self.state.floor;
        let admitted = match check_digest(&upload.announcement, file) {
            Ok(()) => admit(file, floor).map_err(FinishError::Refused).and_then(|sequence| {
                let expected = floor.saturating_add(1);
                if sequence > floor {
                    Ok(sequence)
                } else {
                    Err(SlotError::Stale { expected, found: sequence }.into())
                }
            }),
            Err(error) => Err(error.into()),
        };
        match admitted {
            Ok(sequence) => {
                self.append_install(slot, sequence)?;
                self.upload = None;
                Ok(slot)
            }
            Err(error) => {
                self.abort()?;
                Err(error)
            }
        }
    }

    /// Gives up the upload under way, so that it cannot go on: erases its pages, one after the other.
    ///
    /// # Errors
    /// [`SlotError::Flash`].
    pub fn abort(&mut self) -> Result<(), SlotError> {
        match self.upload.take() {
            Some(upload) => self.erase_file(upload.slot),
            None => Ok(()),
        }
    }

    /// Gives up the file in `slot`, or the upload that was cut off there, and erases its pages, one after the other. An empty slot
    /// stays as it is.
    ///
    /// # Errors
    /// [`SlotError::NoSuchSlot`], [`SlotError::InUse`], [`SlotError::Busy`], [`SlotError::Flash`].
    pub fn remove(&mut self, slot: usize) -> Result<(), SlotError> {
        self.geometry.slot(slot)?;
        if self.state.is_in_use(slot) {
            return Err(SlotError::InUse { slot });
        }
        if self.upload.as_ref().is_some_and(|upload| upload.slot == slot) {
            return Err(SlotError::Busy { slot });
        }
        if !self.state.is_installed(slot) && self.partial(slot)?.is_none() {
            return Ok(());
        }
        self.append_sealed(Mark::Erased(slot))?;
        self.erase_file(slot)
    }

    /// Pages of the file that the record in `slot` speaks of, at least one.
    fn used_pages(&self, slot: usize) -> Result<usize, SlotError> {
        let record = self.flash.mapped().get(self.geometry.slot(slot)?).and_then(Announcement::decode);
        Ok(record.map_or(1, |record| self.pages(record.len as usize)))
    }

    /// Erases the pages of a file, the record's last.
    fn erase_file(&mut self, slot: usize) -> Result<(), SlotError> {
        let start = self.geometry.slot(slot)?.start;
        (0..self.used_pages(slot)?).rev().try_for_each(|page| {
            erase_page(&mut self.flash, &self.geometry, start + page * self.geometry.page)
        })
    }
}
