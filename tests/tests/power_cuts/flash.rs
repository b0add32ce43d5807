//! NOR flash that loses its supply at planned operations. The rules are those of `rankpatch_runtime::slots`: a word is written once
//! per erase, a cut call leaves its own bytes undefined and perhaps unstable, all else keeps its value. Every broken rule is noted.

use std::cell::Cell;
use std::ops::Range;

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};
use rankpatch_runtime::slots::MappedFlash;

/// A small generator of random numbers (xorshift64*).
#[derive(Debug, Clone)]
pub(crate) struct Rng(Cell<u64>);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = Self(Cell::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1));
        (0..4).for_each(|_| _ = rng.next());
        rng
    }

    pub(crate) fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&self, n: usize) -> usize {
        ((self.next() >> 32) as usize * n) >> 32
    }
}

/// What a cut does to the operation that it hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing of it happens.
    Before,
    /// All of it happens, but the caller never learns.
    After,
    /// The bytes before this one are done, some of this one's bits, none behind. An erase: a random mix.
    Torn(usize),
    /// The bytes before this one are done, none from it on.
    Whole(usize),
    /// A random mix of old and new bits in all bytes of the call.
    Mixed,
    /// As `Torn`, and what was to change is unstable.
    TornUnstable(usize),
    /// As `Mixed`, and what was to change is unstable.
    MixedUnstable,
    /// No cut: the flash reports an error and does nothing.
    Refused,
    /// No cut: the flash reports success and does nothing.
    Ignored,
}

/// A planned cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Operations that still succeed after the cut before.
    pub(crate) after: usize,
    pub(crate) mode: Mode,
}

/// What an operation was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Bytes written.
    Write(usize),
    Erase,
}

/// A driver with a fault that a power cut makes visible, to show that this harness sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    /// What is read until the next reset is what was written, whatever the flash holds; and one write of a file's bytes fails
    /// silently. As if the hash were skipped, or computed of the buffer that was sent.
    HashOfRam,
    /// A file's bytes reach the flash after the word of the journal that commits them.
    CommitFirst,
    /// A page that looks erased is not erased.
    DirtyPage,
    /// The last write is done only when the next operation comes.
    EarlyAck,
}

/// Bytes that a cut left unstable.
#[derive(Debug)]
struct Unstable {
    start: usize,
    old: Vec<u8>,
    new: Vec<u8>,
}

/// The flash. Its content survives; [`Nor::restore_power`] starts the next session.
#[derive(Debug)]
pub(crate) struct Nor {
    word: usize,
    page: usize,
    /// Two readings, different in unstable bytes only.
    images: [Vec<u8>; 2],
    /// Per word: touched since the last complete erase.
    touched: Vec<bool>,
    unstable: Vec<Unstable>,
    erased: u8,
    pub(crate) rng: Rng,
    /// Cuts to come, the next one last.
    cuts: Vec<Cut>,
    until_cut: usize,
    off: bool,
    /// Cuts that happened.
    pub(crate) fired: usize,
    /// Every operation, if wanted.
    pub(crate) log: Option<Vec<Op>>,
    /// The first broken rule.
    pub(crate) violation: Option<String>,
    /// Ranges that must not be touched now.
    pub(crate) protected: Vec<Range<usize>>,
    /// Erases per page.
    pub(crate) erases: Vec<u32>,
    pub(crate) words_written: usize,
    pub(crate) operations: usize,
    bug: Bug,
    /// Where the journal starts, for [`Bug`]s.
    journal: usize,
    /// Writes that a buggy driver holds back.
    held: Vec<(usize, Vec<u8>)>,
    /// What a buggy driver shows instead of the flash.
    shown: Vec<u8>,
    file_writes: usize,
    journal_writes: usize,
}

impl Nor {
    /// Flash with this content.
    pub(crate) fn new(word: usize, page: usize, content: Vec<u8>, erased: u8, rng: Rng) -> Self {
        let len = content.len();
        Self {
            word,
            page,
            images: [content.clone(), content],
            touched: vec![true; len / word],
            unstable: Vec::new(),
            erased,
            rng,
            cuts: Vec::new(),
            until_cut: usize::MAX,
            off: false,
            fired: 0,
            log: None,
            violation: None,
            protected: Vec::new(),
            erases: vec![0; len / page],
            words_written: 0,
            operations: 0,
            bug: Bug::None,
            journal: 0,
            held: Vec::new(),
            shown: Vec::new(),
            file_writes: 0,
            journal_writes: 0,
        }
    }

    /// Plans cuts, in this order.
    pub(crate) fn plan(&mut self, cuts: &[Cut]) {
        self.cuts = cuts.iter().rev().copied().collect();
        self.until_cut = self.cuts.pop().map_or(usize::MAX, |cut| {
            self.cuts.push(cut);
            cut.after
        });
    }

    pub(crate) fn seed(&mut self, bug: Bug, journal: usize) {
        (self.bug, self.journal) = (bug, journal);
        self.shown = self.images[0].clone();
    }

    /// Bytes per word.
    pub(crate) fn word(&self) -> usize {
        self.word
    }

    /// What it holds now.
    pub(crate) fn content(&self) -> &[u8] {
        &self.images[0]
    }

    pub(crate) fn is_off(&self) -> bool {
        self.off
    }

    /// The next session: a driver without memory, and unstable bytes that settle on something else.
    pub(crate) fn restore_power(&mut self) {
        self.off = false;
        self.held.clear();
        self.protected.clear();
        self.file_writes = 0;
        for unstable in &self.unstable {
            for image in &mut self.images {
                let kind = self.rng.below(3);
                for (i, (old, new)) in unstable.old.iter().zip(&unstable.new).enumerate() {
                    image[unstable.start + i] = match kind {
                        0 => *old,
                        1 => *new,
                        _ => old ^ ((old ^ new) & self.rng.next() as u8),
                    };
                }
            }
        }
        if self.bug != Bug::None {
            self.shown = self.images[0].clone();
        }
    }

    fn note(&mut self, violation: String) {
        self.violation.get_or_insert(violation);
    }

    /// Counts an operation; the mode if the supply fails in it.
    fn operation(&mut self, op: Op) -> Result<Option<Mode>, NorFlashErrorKind> {
        if self.off {
            return Err(NorFlashErrorKind::Other);
        }
        self.operations += 1;
        if let Some(log) = &mut self.log {
            log.push(op);
        }
        if self.until_cut > 0 {
            self.until_cut -= 1;
            return Ok(None);
        }
        let mode = self.cuts.pop().map(|cut| cut.mode);
        self.until_cut = self.cuts.last().map_or(usize::MAX, |next| next.after);
        self.off = !matches!(mode, Some(Mode::Refused | Mode::Ignored));
        self.fired += 1;
        Ok(mode)
    }

    fn check(&mut self, what: &str, range: &Range<usize>, unit: usize) {
        if !range.start.is_multiple_of(unit) || !range.end.is_multiple_of(unit) || range.is_empty() {
            self.note(format!("{what} of {range:?} is not aligned to {unit}"));
        }
        if let Some(protected) = self.protected.iter().find(|p| p.start < range.end && range.start < p.end) {
            self.note(format!("{what} of {range:?} touches {protected:?}, which is in use"));
        }
    }

    /// Makes `range` what a cut in `mode` leaves of the change to `new`.
    fn tear(&mut self, range: &Range<usize>, new: &[u8], mode: Mode) {
        let old = self.images[self.rng.below(2)][range.clone()].to_vec();
        let torn_at = match mode {
            Mode::Torn(at) | Mode::TornUnstable(at) => Some(at),
            _ => None,
        };
        for (i, (old, new)) in old.iter().zip(new).enumerate() {
            let mix = old ^ ((old ^ new) & self.rng.next() as u8);
            let value = match (torn_at, mode) {
                (_, Mode::Whole(at)) if i >= at => *old,
                (_, Mode::Whole(_)) => *new,
                (Some(at), _) if i < at => *new,
                (Some(at), _) if i > at => *old,
                _ => mix,
            };
            self.images.iter_mut().for_each(|image| image[range.start + i] = value);
        }
        if matches!(mode, Mode::TornUnstable(_) | Mode::MixedUnstable) {
            self.unstable.push(Unstable { start: range.start, old, new: new.to_vec() });
        }
    }

    fn settle(&mut self, range: &Range<usize>) {
        self.unstable.retain(|u| u.start + u.old.len() <= range.start || range.end <= u.start);
    }

    fn write_now(&mut self, at: usize, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        let range = at..at + bytes.len();
        let mode = self.operation(Op::Write(bytes.len()))?;
        match mode {
            Some(Mode::Before | Mode::Refused) => return Err(NorFlashErrorKind::Other),
            Some(Mode::Ignored) => return Ok(()),
            _ => {}
        }
        let begun = if let Some(Mode::Whole(at)) = mode { range.start + at } else { range.end };
        let words = range.start / self.word..begun / self.word;
        if let Some(word) = words.clone().find(|word| self.touched[*word]) {
            self.note(format!("word {:#x} is written without an erase", word * self.word));
        }
        self.touched[words.clone()].fill(true);
        self.words_written += words.len();
        match mode {
            None | Some(Mode::After) => {
                self.images.iter_mut().for_each(|image| image[range.clone()].copy_from_slice(bytes));
                if mode.is_some() { Err(NorFlashErrorKind::Other) } else { Ok(()) }
            }
            Some(mode) => {
                self.tear(&range, bytes, mode);
                Err(NorFlashErrorKind::Other)
            }
        }
    }

    fn flush(&mut self) -> Result<(), NorFlashErrorKind> {
        for (at, bytes) in std::mem::take(&mut self.held) {
            self.write_now(at, &bytes)?;
        }
        Ok(())
    }
}

impl Nor {
    fn erase(&mut self, range: Range<usize>) -> Result<(), NorFlashErrorKind> {
        self.flush()?;
        self.check("erase", &range, self.page);
        if self.bug == Bug::DirtyPage && self.images[0][range.clone()].iter().all(|b| *b == self.erased) {
            return Ok(());
        }
        let mode = self.operation(Op::Erase)?;
        match mode {
            Some(Mode::Before | Mode::Refused) => return Err(NorFlashErrorKind::Other),
            Some(Mode::Ignored) => return Ok(()),
            _ => {}
        }
        let erased = vec![self.erased; range.len()];
        self.erases[range.start / self.page..range.end / self.page].iter_mut().for_each(|n| *n += 1);
        if let Some(mode @ (Mode::Torn(_) | Mode::TornUnstable(_) | Mode::Mixed | Mode::MixedUnstable)) = mode
        {
            self.tear(&range, &erased, mode);
            return Err(NorFlashErrorKind::Other);
        }
        self.settle(&range);
        self.images.iter_mut().for_each(|image| image[range.clone()].fill(self.erased));
        self.touched[range.start / self.word..range.end / self.word].fill(false);
        if self.bug != Bug::None {
            self.shown[range].fill(self.erased);
        }
        if mode.is_some() { Err(NorFlashErrorKind::Other) } else { Ok(()) }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        let range = at..at + bytes.len();
        self.check("write", &range, self.word);
        if self.bug == Bug::None || self.bug == Bug::DirtyPage {
            return self.write_now(at, bytes);
        }
        if self.off {
            return Err(NorFlashErrorKind::Other);
        }
        self.shown[range].copy_from_slice(bytes);
        let of_file = at < self.journal;
        self.file_writes += usize::from(of_file);
        match self.bug {
            Bug::HashOfRam if of_file && self.file_writes == 3 => Ok(()),
            Bug::CommitFirst if of_file => {
                self.journal_writes = 0;
                self.held.push((at, bytes.to_vec()));
                Ok(())
            }
            Bug::CommitFirst => {
                self.write_now(at, bytes)?;
                self.journal_writes += 1;
                // The first word is the sequence number, the second one commits.
                if self.journal_writes == 2 { self.flush() } else { Ok(()) }
            }
            Bug::EarlyAck => {
                self.flush()?;
                self.held.push((at, bytes.to_vec()));
                Ok(())
            }
            _ => self.write_now(at, bytes),
        }
    }

    fn mapped(&self) -> &[u8] {
        match self.bug {
            Bug::None | Bug::DirtyPage => {
                let reading = if self.unstable.is_empty() { 0 } else { self.rng.below(2) };
                &self.images[reading]
            }
            _ => &self.shown,
        }
    }
}

/// [`Nor`] with its sizes as constants, as drivers have them.
#[derive(Debug)]
pub(crate) struct Flash<const WORD: usize, const PAGE: usize>(pub(crate) Nor);

impl<const WORD: usize, const PAGE: usize> ErrorType for Flash<WORD, PAGE> {
    type Error = NorFlashErrorKind;
}

impl<const WORD: usize, const PAGE: usize> ReadNorFlash for Flash<WORD, PAGE> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        let from = self.0.mapped().get(offset as usize..).ok_or(NorFlashErrorKind::OutOfBounds)?;
        bytes.copy_from_slice(from.get(..bytes.len()).ok_or(NorFlashErrorKind::OutOfBounds)?);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.0.images[0].len()
    }
}

impl<const WORD: usize, const PAGE: usize> NorFlash for Flash<WORD, PAGE> {
    const WRITE_SIZE: usize = WORD;
    const ERASE_SIZE: usize = PAGE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        self.0.erase(from as usize..to as usize)
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        self.0.write(offset as usize, bytes)
    }
}

impl<const WORD: usize, const PAGE: usize> MappedFlash for Flash<WORD, PAGE> {
    fn mapped(&self) -> &[u8] {
        self.0.mapped()
    }
}
