//! The words of the journal. A mark is one byte with four ones and four zeros, repeated to fill a word: bits that a cut
//! write has not reached, or that a cut erase has, change the number of ones, so no torn mark is another mark.

use super::MAX_SLOTS;
use super::state::Activation;

/// Bytes with four ones: 8! / (4! 4!).
const N_CODES: usize = 70;

#[expect(clippy::indexing_slicing, reason = "computed by the compiler")]
const CODES: [u8; N_CODES] = {
    let mut codes = [0; N_CODES];
    let (mut n, mut byte) = (0, 0u8);
    while n < N_CODES {
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

const INSTALLED: usize = 5;
const ERASED: usize = INSTALLED + MAX_SLOTS;
const TRIAL: usize = ERASED + MAX_SLOTS;
const _: () = assert!(TRIAL + 2 * MAX_SLOTS <= N_CODES);

impl Mark {
    /// The byte that fills the mark's word.
    pub(super) fn code(self) -> u8 {
        let index = match self {
            Self::Seal => 0,
            Self::Sequence => 1,
            Self::Confirmed => 2,
            Self::RolledBack => 3,
            Self::Base => 4,
            Self::Installed(slot) => INSTALLED + slot,
            Self::Erased(slot) => ERASED + slot,
            Self::Trial(activation) => TRIAL + usize::from(activation.to_bits()),
        };
        // Slots are below MAX_SLOTS, so the index always exists.
        CODES.get(index).copied().unwrap_or(0)
    }

    /// The mark in a word, if there is one for a slot below `n_slots`.
    pub(super) fn decode(word: &[u8], n_slots: usize) -> Option<Self> {
        let (code, rest) = word.split_first()?;
        if rest.iter().any(|byte| byte != code) {
            return None;
        }
        let below = |slot| (slot < n_slots).then_some(slot);
        Some(match CODES.binary_search(code).ok()? {
            0 => Self::Seal,
            1 => Self::Sequence,
            2 => Self::Confirmed,
            3 => Self::RolledBack,
            4 => Self::Base,
            index @ INSTALLED..ERASED => Self::Installed(below(index - INSTALLED)?),
            index @ ERASED..TRIAL => Self::Erased(below(index - ERASED)?),
            index => Self::Trial(Activation::from_bits((index - TRIAL) as u8, n_slots)?),
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
    fn marks_come_back_and_no_torn_mark_is_another() {
        let mut valid = [false; 256];
        for mark in all() {
            assert_eq!(Mark::decode(&[mark.code(); 4], MAX_SLOTS), Some(mark));
            assert!(!core::mem::replace(&mut valid[usize::from(mark.code())], true), "{mark:?} is ambiguous");
        }
        for mark in all() {
            for torn in (0..=255u8).step_by(if cfg!(miri) { 51 } else { 1 }) {
                // Partly written from 0xFF, partly written from 0x00: nothing but the mark itself is valid.
                for word in [mark.code() | torn, mark.code() & torn] {
                    let read = Mark::decode(&[word; 8], MAX_SLOTS);
                    assert!(word == mark.code() || read.is_none(), "{mark:?} torn reads as {read:?}");
                }
            }
        }
        assert_eq!(Mark::decode(&[Mark::Seal.code(), Mark::Base.code()], 4), None);
        assert_eq!(Mark::decode(&[Mark::Installed(4).code(); 2], 4), None, "a slot that does not exist");
    }
}
