//! The words of the journal. A mark is two bytes, its kind and its slot, repeated to fill a word. Each has four ones and four
//! zeros: bits that a cut write has not reached, or that a cut erase has, change the number of ones, so no torn mark is
//! another mark.

use super::MAX_SLOTS;
use super::state::Activation;

/// Bytes of a mark. A flash with smaller words gets it by one write of two.
pub(super) const MARK_BYTES: usize = 2;

/// The first of the 70 bytes with four ones: one for each slot, more than there are kinds.
#[expect(clippy::indexing_slicing, reason = "computed by the compiler")]
pub(super) const CODES: [u8; MAX_SLOTS] = {
    let mut codes = [0; MAX_SLOTS];
    let (mut n, mut byte) = (0, 0u8);
    while n < MAX_SLOTS {
        if byte.count_ones() == 4 {
            codes[n] = byte;
            n += 1;
        }
        byte += 1;
    }
    codes
};

/// One item of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// Nothing but the proof that what lies before was written completely.
    Seal,
    /// The number that the next [`Mark::Installed`] makes the floor follows: the number, then its complement, 8 bytes
    /// little-endian in whole words.
    Sequence,
    /// What is on trial is confirmed.
    Confirmed,
    /// What is active is rolled back.
    RolledBack,
    /// The plain base is active.
    Base,
    /// A slot holds an installed file.
    Installed(usize),
    /// A slot holds none from here on, and may be erased.
    Erased(usize),
    /// An installed file is on trial.
    Trial(Activation),
}

impl Mark {
    /// The bytes that fill the mark's word. A mark without a slot has the code of slot 0.
    pub(super) fn code(self) -> [u8; MARK_BYTES] {
        let (kind, slot) = match self {
            Self::Seal => (0, 0),
            Self::Sequence => (1, 0),
            Self::Confirmed => (2, 0),
            Self::RolledBack => (3, 0),
            Self::Base => (4, 0),
            Self::Installed(slot) => (5, slot),
            Self::Erased(slot) => (6, slot),
            Self::Trial(Activation { slot, flag }) => (7 + usize::from(flag), slot),
        };
        // Slots are below MAX_SLOTS, so the codes always exist.
        [kind, slot].map(|index| CODES.get(index).copied().unwrap_or(0))
    }

    /// The mark in a word, if there is one for a slot below `n_slots`.
    pub(super) fn decode(word: &[u8], n_slots: usize) -> Option<Self> {
        let (marks, odd) = word.as_chunks::<MARK_BYTES>();
        let (first, others) = marks.split_first()?;
        if !odd.is_empty() || others.iter().any(|other| other != first) {
            return None;
        }
        let [kind, slot] = first.map(|code| CODES.binary_search(&code).ok());
        let slot = slot.filter(|slot| *slot < n_slots)?;
        Some(match (kind?, slot) {
            (0, 0) => Self::Seal,
            (1, 0) => Self::Sequence,
            (2, 0) => Self::Confirmed,
            (3, 0) => Self::RolledBack,
            (4, 0) => Self::Base,
            (5, slot) => Self::Installed(slot),
            (6, slot) => Self::Erased(slot),
            (7, slot) => Self::Trial(Activation { slot, flag: false }),
            (8, slot) => Self::Trial(Activation { slot, flag: true }),
            _ => return None,
        })
    }

    /// Whether the state after a reset is the same with and without this mark, if it is the last one.
    pub(super) fn is_neutral(self) -> bool {
        matches!(self, Self::Seal | Self::Sequence | Self::Trial(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Mark> {
        let slots = || 0..MAX_SLOTS;
        [Mark::Seal, Mark::Sequence, Mark::Confirmed, Mark::RolledBack, Mark::Base]
            .into_iter()
            .chain(slots().map(Mark::Installed))
            .chain(slots().map(Mark::Erased))
            .chain(slots().flat_map(|slot| [false, true].map(|flag| Mark::Trial(Activation { slot, flag }))))
    }

    #[test]
    fn marks_come_back() {
        for mark in all() {
            let code = mark.code();
            assert_eq!(code.map(u8::count_ones), [4, 4]);
            for word in [&code[..], &[code; 2].concat(), &[code; 16].concat()] {
                assert_eq!(Mark::decode(word, MAX_SLOTS), Some(mark));
            }
            let same = all().filter(|other| other.code() == code).count();
            assert_eq!(same, 1, "{mark:?} is ambiguous");
        }
        assert_eq!(all().count(), 5 + 4 * MAX_SLOTS);
    }

    /// Of each byte any bits may have changed, from 0xFF when a write was cut off or towards it when an erase was; or from and
    /// towards 0x00. What a byte can have become are the bytes that contain its ones, or that its ones contain.
    #[test]
    fn no_torn_mark_is_another() {
        let torn = |byte: u8, erased: u8| {
            (0..=u8::MAX).filter(move |torn| if erased == 0xFF { torn | byte } else { torn & byte } == *torn)
        };
        // Slots have all codes between them.
        let step = if cfg!(miri) { 29 } else { 1 };
        for (mark, erased) in all().step_by(step).flat_map(|mark| [0xFF, 0x00].map(|erased| (mark, erased))) {
            let [kind, slot] = mark.code();
            let words = torn(kind, erased).flat_map(|kind| torn(slot, erased).map(move |slot| [kind, slot]));
            for word in words {
                let read = Mark::decode(&[word; 4].concat(), MAX_SLOTS);
                assert!(read == (word == mark.code()).then_some(mark), "{mark:?} torn reads as {read:?}");
            }
        }
    }

    #[test]
    fn words_that_are_no_mark_are_refused() {
        let seal = Mark::Seal.code();
        for word in [&[][..], &seal[..1], &[seal[0], seal[1], seal[0]], &[seal, Mark::Base.code()].concat()] {
            assert_eq!(Mark::decode(word, 4), None, "{word:02x?}");
        }
        for (kind, code) in CODES.iter().enumerate().take(5) {
            assert_eq!(Mark::decode(&[*code, CODES[1]], 4), None, "kind {kind} has no slot");
        }
        assert_eq!(Mark::decode(&[CODES[9], CODES[0]], 4), None, "there is no such kind");
        assert_eq!(Mark::decode(&Mark::Installed(4).code(), 4), None, "a slot that does not exist");
    }
}
