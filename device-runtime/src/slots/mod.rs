//! Adapter slots in NOR flash: contiguous places that are read where they lie and never moved, and a journal that says
//! what each of them holds. Whatever is cut off, the device runs the old adapter, the new one or the plain base.
//!
//! This module knows bytes, slots and sequence numbers. It knows neither what an adapter is, nor keys, nor links: what
//! may be installed is decided by a function that the caller gives to [`Slots::finish`].
//!
//! # Layout
//!
//! ```text
//! | slot 0 | slot 1 | ... | slot n-1 | journal page 0 | ... | journal page p-1 |
//! slot: record (44 bytes), filled up to 64 | the file
//! ```
//!
//! # What the flash must do
//!
//! 1. Erase sets every byte of the erased pages to [`Layout::erased`]. A word ([`WRITE_SIZE`]) is written at most once
//!    per erase; this module never asks for more, and never writes a word that it has not seen erased *since the
//!    last reset*.
//! 2. A write or an erase that is cut off leaves the bytes of *that call* undefined, each bit old or new, and possibly
//!    unstable: read twice, they may differ, until they are erased. All other bytes keep their values.
//! 3. A call that returned `Ok` is complete and stable.
//! 4. Erased words can be read.
//!
//! # Why it holds
//!
//! * The order of an install: erase, the record's page last; record, file; read back and hash from flash; the caller's decision about the bytes in
//!   flash; one word in the journal, which commits. Every item of the journal is one word, or is void without a later word.
//! * A word of the journal repeats two bytes, each with four ones and four zeros. A write only moves bits away from the erased
//!   value, an erase only back, so a torn word is never another valid one. Where the flash has words of one byte, one of the
//!   journal is two of them, written by one call: rule 2 covers both.
//! * A word that was cut off may *look* erased, so nothing found after a reset is ever appended to: the first write after a
//!   reset erases a journal page and restates the state there. No method without an erase can do better. With
//!   [`Slots::prepare`] that erase is not part of an activation.
//! * What the last item of the journal says may be read differently next time. So an item that matters is followed by a
//!   seal, and an item without one is restated on a fresh page before [`Slots::mount`] returns.
//! * An upload goes on at the page of the last byte that does not look erased, which is erased and written again: all
//!   pages before it were complete before it was begun.
//!
//! # Limits
//!
//! With unstable words no finite journal withstands any number of cuts and any readings. The shortest sequence known to break
//! this one has five cuts in a row, each at one certain word or erase of the journal, each followed by the most unlucky reading of
//! the unstable words: it leaves three pages without a snapshot. Then the plain base runs, and the floor is 0. The repository's
//! simulator tries all pairs of cuts, and up to five at random, most of them soon after the one before; it has not met this. More
//! pages make it less likely still.
//!
//! [`WRITE_SIZE`]: embedded_storage::nor_flash::NorFlash::WRITE_SIZE

mod files;
mod geometry;
mod install;
mod journal;
mod life;
mod mark;
mod record;
mod state;
#[cfg(test)]
mod tests;

pub use geometry::{Layout, Resume};
pub use install::{FinishError, Partial, Progress};
pub use life::Life;
pub use record::Announcement;
pub use state::{Activation, State};

use embedded_storage::nor_flash::NorFlash;
use geometry::Geometry;
use journal::Journal;

/// The file starts here in its slot; its record lies before it.
pub const FILE_OFFSET: usize = 64;
/// Most slots of a partition.
pub const MAX_SLOTS: usize = 32;
/// Largest word of a flash, in bytes.
pub const MAX_WRITE_SIZE: usize = 32;
/// Fewest pages of the journal.
pub const MIN_JOURNAL_PAGES: usize = 3;
/// Most pages of the journal.
pub const MAX_JOURNAL_PAGES: usize = 8;

/// How often a mount tries to restate what it read.
const RESTATE_TRIES: usize = 3;

/// NOR flash of which every byte can also be read in place.
pub trait MappedFlash: NorFlash {
    /// All bytes as they are now, `[capacity]`.
    fn mapped(&self) -> &[u8];
}

/// Why something cannot be done with a slot. Unless stated, nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SlotError {
    /// The layout does not fit the flash: a size is no multiple of another, or too small or too large.
    BadLayout {
        /// What is wrong.
        what: &'static str,
        /// The bound that is broken.
        expected: usize,
        /// The value found.
        found: usize,
    },
    /// The journal is that of another layout. [`Slots::format`] starts anew.
    OtherLayout {
        /// Slots and bytes per slot asked for.
        expected: (usize, usize),
        /// Slots and bytes per slot that the journal is for.
        found: (usize, usize),
    },
    /// There is no such slot.
    NoSuchSlot {
        /// Slots of the partition.
        expected: usize,
        /// Index asked for.
        found: usize,
    },
    /// The file does not fit into a slot, or is empty.
    WrongLength {
        /// Bytes that a slot takes.
        expected: usize,
        /// Bytes of the file.
        found: usize,
    },
    /// The slot is active, or is what a trial falls back to.
    InUse {
        /// The slot.
        slot: usize,
    },
    /// The slot holds no installed file.
    Empty {
        /// The slot.
        slot: usize,
    },
    /// Another upload is under way; it can be aborted.
    Busy {
        /// The slot that is being written.
        slot: usize,
    },
    /// No upload is under way.
    NoUpload,
    /// Not all bytes have arrived.
    Incomplete {
        /// Bytes of the file.
        expected: u32,
        /// Bytes that arrived.
        found: u32,
    },
    /// What lies in flash is not what was announced; the values are the first four bytes of the SHA-256.
    Corrupt {
        /// Announced.
        expected: u32,
        /// Read back.
        found: u32,
    },
    /// The file's sequence number is not above the floor.
    Stale {
        /// The lowest number that is accepted.
        expected: u32,
        /// The file's number.
        found: u32,
    },
    /// No adapter is on trial or confirmed.
    NothingActive,
    /// The flash reported an error, or does not hold what was written. An upload under way has ended.
    Flash,
}

impl core::fmt::Display for SlotError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::BadLayout { what, expected, found } => {
                write!(f, "layout does not fit the flash: {what}: expected {expected}, found {found}")
            }
            Self::OtherLayout { expected: (n, bytes), found: (other_n, other_bytes) } => write!(
                f,
                "journal is that of another layout: expected {n} slots of {bytes} bytes, \
                 found {other_n} of {other_bytes} (a new partition table?)"
            ),
            Self::NoSuchSlot { expected, found } => {
                write!(f, "no such slot: expected an index below {expected}, found {found}")
            }
            Self::WrongLength { expected, found } => {
                write!(f, "file does not fit a slot: expected 1 to {expected} bytes, found {found}")
            }
            Self::InUse { slot } => {
                write!(f, "slot {slot} is in use: it is active, or what a trial falls back to")
            }
            Self::Empty { slot } => write!(f, "slot {slot} holds no installed adapter"),
            Self::Busy { slot } => write!(f, "an upload into slot {slot} is under way: finish or abort it"),
            Self::NoUpload => write!(f, "no upload is under way"),
            Self::Incomplete { expected, found } => {
                write!(f, "upload is not complete: expected {expected} bytes, found {found}")
            }
            Self::Corrupt { expected, found } => {
                write!(
                    f,
                    "flash does not hold the announced file: expected SHA-256 {expected:08x}.., found {found:08x}.."
                )
            }
            Self::Stale { expected, found } => {
                write!(f, "sequence number is not new: expected at least {expected}, found {found}")
            }
            Self::NothingActive => write!(f, "no adapter is active"),
            Self::Flash => write!(f, "flash reported an error or does not hold what was written"),
        }
    }
}

impl core::error::Error for SlotError {}

/// A partition that could not be mounted, with its flash.
#[derive(Clone, Copy)]
pub struct Unmounted<F> {
    /// Why.
    pub error: SlotError,
    /// The flash that was given.
    pub flash: F,
}

impl<F> core::fmt::Debug for Unmounted<F> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Unmounted").field("error", &self.error).finish_non_exhaustive()
    }
}

/// A mounted partition. It owns the flash; its RAM is this struct, at most 424 bytes beside the flash driver.
#[derive(Debug)]
pub struct Slots<F> {
    flash: F,
    geometry: Geometry,
    journal: Journal,
    state: State,
    upload: Option<install::Upload>,
}

impl<F: MappedFlash> Slots<F> {
    /// Reads the state from any content whatever, in time proportional to the journal. A trial that a reset ended is rolled back.
    ///
    /// Writes only if the last item of the journal was cut off, or may have been: then the state that was read is restated on a
    /// fresh page (one erase). If the flash keeps refusing that, the partition can still be read, and what was cut off may be read
    /// differently after the next reset.
    ///
    /// A step that was cut off and does not show may still do so after a later reset, until the journal is written again, for
    /// which [`prepare`](Self::prepare) is enough. Once it has shown it lasts.
    /// An empty or unreadable journal is a partition without adapters and with the floor 0.
    ///
    /// # Errors
    /// [`SlotError::BadLayout`], [`SlotError::OtherLayout`].
    // On its own: what it needs of the stack is free for what comes after it.
    #[inline(never)]
    pub fn mount(flash: F, layout: Layout) -> Result<Self, Unmounted<F>> {
        let geometry = match Geometry::new::<F>(&layout, flash.capacity()) {
            Ok(geometry) => geometry,
            Err(error) => return Err(Unmounted { error, flash }),
        };
        match Journal::scan(flash.mapped(), &geometry) {
            Ok((journal, mut state, proven)) => {
                state.after_reset();
                let mut slots = Self { flash, geometry, journal, state, upload: None };
                if !proven {
                    let (journal, flash) = (&mut slots.journal, &mut slots.flash);
                    let mut tries = 0..RESTATE_TRIES;
                    while tries.next().is_some() && journal.open(flash, &geometry, &slots.state).is_err() {}
                }
                Ok(slots)
            }
            Err(error) => Err(Unmounted { error, flash }),
        }
    }

    /// Forgets what the journal says: a partition without adapters, with this floor. The first write makes it lasting, at once.
    ///
    /// # Errors
    /// [`SlotError::BadLayout`].
    pub fn format(flash: F, layout: Layout, floor: u32) -> Result<Self, Unmounted<F>> {
        match Geometry::new::<F>(&layout, flash.capacity()) {
            Ok(geometry) => {
                // The pages of this layout are counted on, so that the new state replaces the old one by one page.
                let journal =
                    Journal::scan(flash.mapped(), &geometry).map_or(Journal::default(), |found| found.0);
                let state = State { floor, ..State::default() };
                Ok(Self { flash, geometry, journal, state, upload: None })
            }
            Err(error) => Err(Unmounted { error, flash }),
        }
    }

    /// What is installed, active, on trial; the floor; the wear.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Slots of the partition.
    pub fn n_slots(&self) -> usize {
        self.geometry.n_slots
    }

    /// Bytes that a file may have.
    pub fn max_file_bytes(&self) -> usize {
        self.geometry.max_file_bytes()
    }

    /// Where the bytes of slot `slot` lie in the partition.
    ///
    /// # Errors
    /// [`SlotError::NoSuchSlot`].
    pub fn range(&self, slot: usize) -> Result<core::ops::Range<usize>, SlotError> {
        self.geometry.slot(slot)
    }

    /// Journal pages erased so far: with p pages, each was erased about 1/p of that.
    pub fn journal_erases(&self) -> u32 {
        self.journal.epoch()
    }

    /// The flash.
    pub fn flash(&self) -> &F {
        &self.flash
    }

    /// The flash, for what is not written through this module, such as pinning. Its content must stay as it is.
    pub fn flash_mut(&mut self) -> &mut F {
        &mut self.flash
    }

    /// Gives the flash back.
    pub fn into_flash(self) -> F {
        self.flash
    }
}
