//! Where slots and journal lie in a partition, checked once. Knows sizes, not contents.

use super::{
    FILE_OFFSET, MAX_JOURNAL_PAGES, MAX_SLOTS, MAX_WRITE_SIZE, MIN_JOURNAL_PAGES, MappedFlash, SlotError,
    journal, mark,
};

/// Where an upload goes on after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// At the page that was being written, which is erased again. Right for every flash.
    Page,
    /// Behind the last word that does not look erased; nothing is erased. Only for flash in which a word ([`WRITE_SIZE`], be it
    /// one byte) is written whole or not at all, words of one call in rising order: because its supply outlives a write, or
    /// because it is emulated. The journal asks for no such thing: its words may be torn, between two bytes too.
    ///
    /// [`WRITE_SIZE`]: embedded_storage::nor_flash::NorFlash::WRITE_SIZE
    Word,
}

/// How a partition is divided: slots from its start, the journal right behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Slots, 1..=[`MAX_SLOTS`]. A page of the journal must have room for a snapshot, 32 bytes and 4 for each slot, two seals and
    /// an install: 256 bytes are enough for any number with words of up to 16 bytes, 128 bytes with words of 4 for 17.
    pub n_slots: usize,
    /// Bytes per slot, a multiple of the flash's pages.
    pub slot_bytes: usize,
    /// Pages of the journal, [`MIN_JOURNAL_PAGES`]..=[`MAX_JOURNAL_PAGES`].
    pub journal_pages: usize,
    /// The value of an erased byte, 0xFF or 0x00.
    pub erased: u8,
    /// Where an upload goes on after a reset.
    pub resume: Resume,
}

impl Layout {
    /// The usual layout: the smallest journal, 0xFF for erased bytes, [`Resume::Page`].
    pub const fn new(n_slots: usize, slot_bytes: usize) -> Self {
        Self { n_slots, slot_bytes, journal_pages: MIN_JOURNAL_PAGES, erased: 0xFF, resume: Resume::Page }
    }

    /// Bytes of the partition for pages of `page_bytes`.
    pub const fn partition_bytes(&self, page_bytes: usize) -> usize {
        self.n_slots * self.slot_bytes + self.journal_pages * page_bytes
    }
}

/// A layout that fits a flash.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) n_slots: usize,
    pub(super) slot_bytes: usize,
    pub(super) journal_pages: usize,
    pub(super) erased: u8,
    pub(super) resume: Resume,
    /// Bytes per page.
    pub(super) page: usize,
    /// Bytes per word of the flash. Files are written in these.
    pub(super) word: usize,
}

impl Geometry {
    pub(super) fn new<F: MappedFlash>(layout: &Layout, capacity: usize) -> Result<Self, SlotError> {
        let Layout { n_slots, slot_bytes, journal_pages, erased, resume } = *layout;
        let (page, word) = (F::ERASE_SIZE, F::WRITE_SIZE);
        let bad = |what, expected, found| Err(SlotError::BadLayout { what, expected, found });
        if n_slots == 0 || n_slots > MAX_SLOTS {
            return bad("number of slots", MAX_SLOTS, n_slots);
        }
        if !(MIN_JOURNAL_PAGES..=MAX_JOURNAL_PAGES).contains(&journal_pages) {
            return bad("pages of the journal", MIN_JOURNAL_PAGES, journal_pages);
        }
        if erased != 0xFF && erased != 0x00 {
            return bad("value of an erased byte", 0xFF, erased.into());
        }
        if !word.is_power_of_two() || word > MAX_WRITE_SIZE {
            return bad("bytes per word", MAX_WRITE_SIZE, word);
        }
        let journal_word = word.max(mark::MARK_BYTES);
        if page == 0 || !page.is_multiple_of(journal_word) {
            return bad("bytes per page (of whole words)", journal_word, page);
        }
        if slot_bytes <= FILE_OFFSET || !slot_bytes.is_multiple_of(page) {
            return bad("bytes per slot (of whole pages)", page, slot_bytes);
        }
        let geometry = Self { n_slots, slot_bytes, journal_pages, erased, resume, page, word };
        let needed = journal::head_bytes(&geometry) + journal::min_item_bytes(journal_word);
        if page < needed {
            return bad("bytes per page (the journal's head and one install)", needed, page);
        }
        let bytes = n_slots.checked_mul(slot_bytes).and_then(|slots| slots.checked_add(journal_pages * page));
        match bytes {
            Some(bytes) if bytes <= capacity && u32::try_from(bytes).is_ok() => Ok(geometry),
            _ => bad("bytes of the partition", bytes.unwrap_or(usize::MAX), capacity),
        }
    }

    /// Bytes per word of the journal: one of the flash, or as many as a mark has.
    pub(super) fn journal_word(&self) -> usize {
        self.word.max(mark::MARK_BYTES)
    }

    pub(super) fn max_file_bytes(&self) -> usize {
        self.slot_bytes - FILE_OFFSET
    }

    pub(super) fn slot(&self, slot: usize) -> Result<core::ops::Range<usize>, SlotError> {
        if slot >= self.n_slots {
            return Err(SlotError::NoSuchSlot { expected: self.n_slots, found: slot });
        }
        let start = slot * self.slot_bytes;
        Ok(start..start + self.slot_bytes)
    }

    /// Where page `page` of the journal starts.
    pub(super) fn journal_page(&self, page: usize) -> usize {
        self.n_slots * self.slot_bytes + page * self.page
    }

    pub(super) fn is_erased(&self, bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| *byte == self.erased)
    }
}

/// Writes whole words and makes sure that they are there.
pub(super) fn program<F: MappedFlash>(flash: &mut F, at: usize, bytes: &[u8]) -> Result<(), SlotError> {
    flash.write(at as u32, bytes).map_err(|_| SlotError::Flash)?;
    if flash.mapped().get(at..at + bytes.len()) == Some(bytes) { Ok(()) } else { Err(SlotError::Flash) }
}

/// Erases one page and makes sure of it.
pub(super) fn erase_page<F: MappedFlash>(
    flash: &mut F,
    geometry: &Geometry,
    at: usize,
) -> Result<(), SlotError> {
    let end = at + geometry.page;
    flash.erase(at as u32, end as u32).map_err(|_| SlotError::Flash)?;
    let erased = flash.mapped().get(at..end).is_some_and(|page| geometry.is_erased(page));
    if erased { Ok(()) } else { Err(SlotError::Flash) }
}
