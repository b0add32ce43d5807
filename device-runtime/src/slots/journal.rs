//! The journal: a few pages, each a snapshot of the state, two seals, then marks. Pages are used in turn and numbered; the
//! highest number counts. What a mount finds is never appended to: the first write after it opens a fresh page.
//!
//! Which pages are erased for that: those without a snapshot; else the oldest, if the newest is sealed, so complete; else the
//! newest, which was cut off and only restates the one before. So the page that the state hangs on is not touched.

use super::geometry::{Geometry, erase_page, program};
use super::mark::{MARK_BYTES, Mark};
use super::state::{MAX_SNAPSHOT_BYTES, Snapshot, State, snapshot_bytes};
use super::{MAX_JOURNAL_PAGES, MAX_WRITE_SIZE, MappedFlash, SlotError};

/// Seals behind a snapshot. The second proves that the first was written completely.
const HEAD_SEALS: usize = 2;
/// Bytes of a sequence number and its complement.
const SEQUENCE_BYTES: usize = 8;
/// Words that [`Journal::prepare`] leaves free for activations.
const PREPARED_WORDS: usize = 8;

/// Bytes of the most that is written at once: an install's number, commit word and seal.
pub(super) const fn min_item_bytes(word: usize) -> usize {
    3 * word + SEQUENCE_BYTES.next_multiple_of(word)
}

/// Bytes of a snapshot in whole words.
fn snapshot_words_bytes(geometry: &Geometry) -> usize {
    snapshot_bytes(geometry.n_slots).next_multiple_of(geometry.journal_word())
}

/// Bytes of a page before its marks: snapshot and seals.
pub(super) fn head_bytes(geometry: &Geometry) -> usize {
    snapshot_words_bytes(geometry) + HEAD_SEALS * geometry.journal_word()
}

/// One entry to be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// A mark of one word.
    Mark(Mark),
    /// [`Mark::Sequence`] with its number.
    Sequence(u32),
}

/// What is known about the journal's pages.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Journal {
    /// The number of each page; 0 for one without a snapshot.
    epochs: [u32; MAX_JOURNAL_PAGES],
    /// The highest number that was ever seen or tried.
    last_epoch: u32,
    /// Whether a seal was seen behind the newest snapshot.
    sealed: bool,
    /// The newest page and where its next word goes, if this session has opened it.
    open: Option<(usize, usize)>,
}

impl Journal {
    /// Reads all pages. The flag says whether the state would be read again whatever becomes of unstable words.
    pub(super) fn scan(mapped: &[u8], geometry: &Geometry) -> Result<(Self, State, bool), SlotError> {
        let mut journal = Self::default();
        let mut best: Option<(usize, State)> = None;
        let mut other = None;
        for (page, epoch) in journal.epochs.iter_mut().enumerate().take(geometry.journal_pages) {
            let mut head = [0; MAX_SNAPSHOT_BYTES];
            let from = mapped.get(geometry.journal_page(page)..).unwrap_or(&[]);
            head.iter_mut().zip(from).for_each(|(to, byte)| *to = *byte);
            match Snapshot::decode(&head, geometry) {
                Snapshot::Valid(state, found) => {
                    *epoch = found;
                    if found > journal.last_epoch {
                        journal.last_epoch = found;
                        best = Some((page, state));
                    }
                }
                Snapshot::Other(n_slots, slot_bytes) => other = Some((n_slots, slot_bytes)),
                Snapshot::Invalid => {}
            }
        }
        let Some((page, mut state)) = best else {
            return match other {
                Some(found) => {
                    Err(SlotError::OtherLayout { expected: (geometry.n_slots, geometry.slot_bytes), found })
                }
                // Nothing depends on what an empty journal says.
                None => Ok((journal, State::default(), true)),
            };
        };
        let start = geometry.journal_page(page);
        let bytes = mapped.get(start..start + geometry.page).unwrap_or(&[]);
        let (sealed, proven) = replay(bytes, geometry, &mut state);
        journal.sealed = sealed;
        Ok((journal, state, proven))
    }

    /// Pages opened so far.
    pub(super) fn epoch(&self) -> u32 {
        self.last_epoch
    }

    /// The page to be erased next.
    fn spare(&self, geometry: &Geometry) -> usize {
        let pages = || self.epochs.iter().take(geometry.journal_pages).enumerate();
        if let Some((page, _)) = pages().find(|(_, epoch)| **epoch == 0) {
            return page;
        }
        let by_epoch = |(_, epoch): &(usize, &u32)| **epoch;
        let chosen = if self.sealed { pages().min_by_key(by_epoch) } else { pages().max_by_key(by_epoch) };
        chosen.map_or(0, |(page, _)| page)
    }

    /// Opens a fresh page with a snapshot of `state`.
    pub(super) fn open<F: MappedFlash>(
        &mut self,
        flash: &mut F,
        geometry: &Geometry,
        state: &State,
    ) -> Result<(), SlotError> {
        self.open = None;
        let page = self.spare(geometry);
        let epoch =
            self.last_epoch.checked_add(1).filter(|epoch| *epoch != u32::MAX).ok_or(SlotError::Flash)?;
        if let Some(old) = self.epochs.get_mut(page) {
            *old = 0;
        }
        // Without the newest page the one before it is the newest: complete, since this one was opened after it.
        self.sealed = true;
        let start = geometry.journal_page(page);
        // A page that holds no snapshot now may hold one at the next reading, with the number that is given away here.
        for (other, epoch) in self.epochs.iter().enumerate().take(geometry.journal_pages) {
            if *epoch == 0 {
                erase_page(flash, geometry, geometry.journal_page(other))?;
            }
        }
        let mut snapshot = [geometry.erased; MAX_SNAPSHOT_BYTES.next_multiple_of(MAX_WRITE_SIZE)];
        state.encode(epoch, geometry, &mut snapshot);
        let len = snapshot_words_bytes(geometry);
        self.last_epoch = epoch;
        program(flash, start, snapshot.get(..len).unwrap_or(&[]))?;
        for seal in 0..HEAD_SEALS {
            write_mark(flash, geometry, start + len + seal * geometry.journal_word(), Mark::Seal)?;
        }
        if let Some(new) = self.epochs.get_mut(page) {
            *new = epoch;
        }
        self.open = Some((page, head_bytes(geometry)));
        Ok(())
    }

    /// Opens a page unless one is open with room for some activations.
    pub(super) fn prepare<F: MappedFlash>(
        &mut self,
        flash: &mut F,
        geometry: &Geometry,
        state: &State,
    ) -> Result<(), SlotError> {
        // A page with little more than an install's words is opened anew no more often than it can be helped.
        let free = geometry.page - head_bytes(geometry);
        let wanted = (PREPARED_WORDS * geometry.journal_word()).min(free / 2);
        if self.room(geometry) < wanted { self.open(flash, geometry, state) } else { Ok(()) }
    }

    fn room(&self, geometry: &Geometry) -> usize {
        self.open.map_or(0, |(_, at)| geometry.page - at)
    }

    /// Writes `entries`, each by a write of its own, and applies them to `state`. If they do not fit, the state before them is
    /// restated on a fresh page first.
    ///
    /// After an error `state` is as it was, and the next write opens a fresh page with it.
    pub(super) fn append<F: MappedFlash>(
        &mut self,
        flash: &mut F,
        geometry: &Geometry,
        state: &mut State,
        entries: &[Entry],
    ) -> Result<(), SlotError> {
        let word = geometry.journal_word();
        let bytes = |entry: &Entry| match entry {
            Entry::Mark(_) => word,
            Entry::Sequence(_) => word + SEQUENCE_BYTES.next_multiple_of(word),
        };
        if self.room(geometry) < entries.iter().map(bytes).sum() {
            self.open(flash, geometry, state)?;
        }
        for entry in entries {
            // Closed until the write is known to be complete: a word that may have been touched is not written again.
            let (page, at) = self.open.take().ok_or(SlotError::Flash)?;
            let start = geometry.journal_page(page) + at;
            match *entry {
                Entry::Mark(mark) => write_mark(flash, geometry, start, mark)?,
                Entry::Sequence(number) => write_sequence(flash, geometry, start, number)?,
            }
            self.open = Some((page, at + bytes(entry)));
        }
        let mut sequence = None;
        for entry in entries {
            match *entry {
                Entry::Mark(mark) => state.apply(mark, sequence.take()),
                Entry::Sequence(number) => sequence = Some(number),
            }
        }
        Ok(())
    }
}

fn write_mark<F: MappedFlash>(
    flash: &mut F,
    geometry: &Geometry,
    at: usize,
    mark: Mark,
) -> Result<(), SlotError> {
    let word = [mark.code(); MAX_WRITE_SIZE / MARK_BYTES];
    program(flash, at, word.as_flattened().get(..geometry.journal_word()).unwrap_or(&[]))
}

fn write_sequence<F: MappedFlash>(
    flash: &mut F,
    geometry: &Geometry,
    at: usize,
    number: u32,
) -> Result<(), SlotError> {
    let mut bytes = [geometry.erased; 2 * MAX_WRITE_SIZE];
    let word = geometry.journal_word();
    let (mark, rest) = bytes.split_at_mut(word);
    mark.as_chunks_mut().0.fill(Mark::Sequence.code());
    let number = number.to_le_bytes();
    let with_complement = number.into_iter().chain(number.map(|byte| !byte));
    rest.iter_mut().zip(with_complement).for_each(|(to, byte)| *to = byte);
    let len = word + SEQUENCE_BYTES.next_multiple_of(word);
    program(flash, at, bytes.get(..len).unwrap_or(&[]))
}

/// Applies the marks behind the snapshot of `page`. Returns whether the snapshot is sealed, and whether the outcome is proven:
/// nothing in it hangs on a word that was the last one to be written.
fn replay(page: &[u8], geometry: &Geometry, state: &mut State) -> (bool, bool) {
    let head = snapshot_words_bytes(geometry);
    let mut words = page.get(head..).unwrap_or(&[]).chunks_exact(geometry.journal_word());
    let mut seals = [false; HEAD_SEALS];
    for seal in &mut seals {
        *seal = words.next().is_some_and(|word| !geometry.is_erased(word));
    }
    let (sealed, mut proven) = (seals.contains(&true), seals == [true; HEAD_SEALS]);
    let mut sequence = None;
    while let Some(word) = words.next().filter(|word| !geometry.is_erased(word)) {
        // What lies before a word that was begun is complete.
        proven = true;
        match Mark::decode(word, geometry.n_slots) {
            Some(Mark::Sequence) => match read_sequence(&mut words, geometry) {
                Some(number) => sequence = Some(number),
                None => break,
            },
            Some(mark) => {
                state.apply(mark, sequence.take());
                proven = mark.is_neutral();
            }
            None => break,
        }
    }
    (sealed, proven)
}

fn read_sequence(words: &mut core::slice::ChunksExact<'_, u8>, geometry: &Geometry) -> Option<u32> {
    let mut bytes = [0; 2 * MAX_WRITE_SIZE];
    let word = geometry.journal_word();
    for to in bytes.get_mut(..SEQUENCE_BYTES.next_multiple_of(word))?.chunks_exact_mut(word) {
        to.copy_from_slice(words.next()?);
    }
    let (number, complement) = (*bytes.first_chunk::<4>()?, *bytes.get(4..)?.first_chunk::<4>()?);
    (number == complement.map(|byte| !byte)).then_some(u32::from_le_bytes(number))
}
