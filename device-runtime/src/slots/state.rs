//! What the journal says, as a value: which slots hold files, which one is active, the floor, the wear. Marks change it, a
//! snapshot restates it. Knows no flash.

use super::MAX_SLOTS;
use super::geometry::Geometry;
use super::mark::Mark;

const MAGIC: [u8; 4] = *b"RPJ2";
/// Bytes of a snapshot before the wear of the slots.
const HEAD_BYTES: usize = 28;
const _: () = assert!(MAX_SLOTS == u32::BITS as usize, "one bit for each slot");
/// Bytes of the largest snapshot.
pub(super) const MAX_SNAPSHOT_BYTES: usize = snapshot_bytes(MAX_SLOTS);

/// Bytes of a snapshot: head, wear, CRC-32.
pub(super) const fn snapshot_bytes(n_slots: usize) -> usize {
    HEAD_BYTES + 4 * n_slots + 4
}

/// A slot that is applied, with one bit that the caller keeps with it: the firmware's is how it is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Activation {
    /// The slot.
    pub slot: usize,
    /// The caller's bit.
    pub flag: bool,
}

impl Activation {
    pub(super) fn to_bits(self) -> u8 {
        self.slot as u8 * 2 + u8::from(self.flag)
    }

    pub(super) fn from_bits(bits: u8, n_slots: usize) -> Option<Self> {
        let slot = usize::from(bits / 2);
        (slot < n_slots).then_some(Self { slot, flag: bits % 2 == 1 })
    }
}

/// What the partition holds and what is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    /// Highest sequence number that was ever installed, whatever became of it. Never falls.
    pub floor: u32,
    /// Bit i: slot i holds an installed file.
    pub installed: u32,
    /// What is on trial. It is active; a reset ends it.
    pub trial: Option<Activation>,
    /// What is confirmed: active, unless something is on trial. `None` for the plain base.
    pub confirmed: Option<Activation>,
    /// What was confirmed before, to roll back to.
    pub previous: Option<Activation>,
    /// The slot that was rolled back last, until it is activated again or erased.
    pub rolled_back: Option<usize>,
    /// How often each slot was erased.
    pub wear: [u32; MAX_SLOTS],
}

impl State {
    /// What is active, also right after a reset; `None` for the plain base.
    pub fn active(&self) -> Option<Activation> {
        self.trial.or(self.confirmed)
    }

    /// What a roll-back leads to; `None` for the plain base.
    pub fn fallback(&self) -> Option<Activation> {
        if self.trial.is_some() { self.confirmed } else { self.previous }
    }

    /// Whether `slot` holds an installed file.
    pub fn is_installed(&self, slot: usize) -> bool {
        slot < MAX_SLOTS && self.installed >> slot & 1 == 1
    }

    /// Whether `slot` is active or what a trial falls back to, and so must not be written.
    pub fn is_in_use(&self, slot: usize) -> bool {
        [self.trial, self.confirmed].iter().flatten().any(|activation| activation.slot == slot)
    }

    /// A reset ends a trial.
    pub(super) fn after_reset(&mut self) {
        if self.trial.is_some() {
            self.apply(Mark::RolledBack, None);
        }
    }

    /// What a mark changes. `sequence` is the number that was announced before it.
    pub(super) fn apply(&mut self, mark: Mark, sequence: Option<u32>) {
        let not =
            |activation: Option<Activation>, slot| activation.filter(|activation| activation.slot != slot);
        match mark {
            Mark::Seal | Mark::Sequence => {}
            Mark::Installed(slot) => {
                self.installed |= 1 << slot;
                self.floor = self.floor.max(sequence.unwrap_or(0));
            }
            Mark::Erased(slot) => {
                self.installed &= !(1 << slot);
                if let Some(wear) = self.wear.get_mut(slot) {
                    *wear = wear.saturating_add(1);
                }
                self.trial = not(self.trial, slot);
                self.confirmed = not(self.confirmed, slot);
                self.previous = not(self.previous, slot);
                self.rolled_back = self.rolled_back.filter(|other| *other != slot);
            }
            Mark::Trial(activation) => {
                if self.is_installed(activation.slot) {
                    self.trial = Some(activation);
                    self.rolled_back = self.rolled_back.filter(|other| *other != activation.slot);
                }
            }
            Mark::Confirmed => {
                if let Some(trial) = self.trial.take() {
                    if let Some(before) = not(self.confirmed, trial.slot) {
                        self.previous = Some(before);
                    }
                    self.previous = not(self.previous, trial.slot);
                    self.confirmed = Some(trial);
                }
            }
            Mark::RolledBack => {
                if let Some(trial) = self.trial.take() {
                    self.rolled_back = Some(trial.slot);
                } else if let Some(confirmed) = self.confirmed.take() {
                    self.rolled_back = Some(confirmed.slot);
                    self.confirmed = self.previous.take();
                }
            }
            Mark::Base => {
                self.trial = None;
                if let Some(confirmed) = self.confirmed.take() {
                    self.previous = Some(confirmed);
                }
            }
        }
    }

    /// Writes a snapshot to the front of `into`, which is longer than any.
    pub(super) fn encode(&self, epoch: u32, geometry: &Geometry, into: &mut [u8]) {
        let option = |activation: Option<Activation>| activation.map_or(0, |a| a.to_bits() + 1);
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            if let Some(to) = into.get_mut(at..at + bytes.len()) {
                to.copy_from_slice(bytes);
            }
            at += bytes.len();
        };
        put(&MAGIC);
        put(&epoch.to_le_bytes());
        put(&[geometry.n_slots as u8, geometry.journal_pages as u8, geometry.erased, geometry.word as u8]);
        put(&(geometry.slot_bytes as u32).to_le_bytes());
        put(&self.floor.to_le_bytes());
        put(&self.installed.to_le_bytes());
        put(&[option(self.confirmed), option(self.previous), option(self.trial)]);
        put(&[self.rolled_back.map_or(0, |slot| slot as u8 + 1)]);
        self.wear.iter().take(geometry.n_slots).for_each(|wear| put(&wear.to_le_bytes()));
        let body = snapshot_bytes(geometry.n_slots) - 4;
        let crc = rankpatch_format::crc32(into.get(..body).unwrap_or(&[]));
        if let Some(to) = into.get_mut(body..body + 4) {
            to.copy_from_slice(&crc.to_le_bytes());
        }
    }
}

/// What lies where a snapshot might.
pub(super) enum Snapshot {
    /// A state and the number of its page.
    Valid(State, u32),
    /// A snapshot for another layout: slots, bytes per slot.
    Other(usize, usize),
    /// None.
    Invalid,
}

impl Snapshot {
    /// Reads the front of `bytes`.
    pub(super) fn decode(bytes: &[u8], geometry: &Geometry) -> Self {
        Self::parse(bytes, geometry).unwrap_or(Self::Invalid)
    }

    fn parse(bytes: &[u8], geometry: &Geometry) -> Option<Self> {
        let (head, _) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let n_slots = usize::from(*head.get(8)?);
        let (body, crc) = bytes.get(..snapshot_bytes(n_slots))?.split_last_chunk::<4>()?;
        if !head.starts_with(&MAGIC) || u32::from_le_bytes(*crc) != rankpatch_format::crc32(body) {
            return None;
        }
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let slot_bytes = word(12)? as usize;
        let expected =
            [geometry.n_slots as u8, geometry.journal_pages as u8, geometry.erased, geometry.word as u8];
        if *head.get(8..12)? != expected || slot_bytes != geometry.slot_bytes {
            return Some(Self::Other(n_slots, slot_bytes));
        }
        // The last number has no successor.
        let epoch = word(4).filter(|epoch| *epoch != 0 && *epoch != u32::MAX)?;
        // From here on there are as many slots as the geometry has, 1 to 32.
        let installed = word(20)? & (u32::MAX >> (MAX_SLOTS - n_slots));
        let mut state = State { floor: word(16)?, installed, ..State::default() };
        let [confirmed, previous, trial, rolled_back] = *head.get(24..)?.first_chunk()?;
        let option = |bits: u8| {
            Activation::from_bits(bits.checked_sub(1)?, n_slots).filter(|a| state.is_installed(a.slot))
        };
        let (confirmed, previous, trial) = (option(confirmed), option(previous), option(trial));
        (state.confirmed, state.previous, state.trial) = (confirmed, previous, trial);
        state.rolled_back =
            rolled_back.checked_sub(1).map(usize::from).filter(|slot| state.is_installed(*slot));
        for (slot, wear) in state.wear.iter_mut().take(n_slots).enumerate() {
            *wear = word(HEAD_BYTES + 4 * slot)?;
        }
        Some(Self::Valid(state, epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Resume;

    fn geometry(n_slots: usize) -> Geometry {
        let (page, word) = (256, 1);
        Geometry { n_slots, slot_bytes: 512, journal_pages: 3, erased: 0, resume: Resume::Page, page, word }
    }

    #[test]
    fn a_snapshot_of_any_number_of_slots_comes_back() {
        for n_slots in 1..=MAX_SLOTS {
            let last = n_slots - 1;
            let mut state = State {
                floor: 0x0102_0304,
                installed: (0x9999_9999_u32 >> 1 | 1 << last) & (u32::MAX >> (MAX_SLOTS - n_slots)),
                trial: Some(Activation { slot: last, flag: false }),
                confirmed: Some(Activation { slot: last, flag: true }),
                previous: Some(Activation { slot: last, flag: true }),
                rolled_back: Some(last),
                ..State::default()
            };
            for (slot, wear) in state.wear.iter_mut().take(n_slots).enumerate() {
                *wear = 0x0100_0000 + slot as u32;
            }
            let mut bytes = [0xA5; MAX_SNAPSHOT_BYTES];
            state.encode(77, &geometry(n_slots), &mut bytes);
            match Snapshot::decode(&bytes, &geometry(n_slots)) {
                Snapshot::Valid(found, epoch) => assert_eq!((found, epoch), (state, 77)),
                _ => panic!("a snapshot of {n_slots} slots does not come back"),
            }
            assert!(bytes[snapshot_bytes(n_slots)..].iter().all(|byte| *byte == 0xA5), "no byte more");
            match Snapshot::decode(&bytes, &geometry(n_slots % MAX_SLOTS + 1)) {
                Snapshot::Other(found, 512) => assert_eq!(found, n_slots),
                _ => panic!("a snapshot of {n_slots} slots passes for another"),
            }
        }
    }

    #[test]
    fn slots_that_do_not_exist_hold_nothing() {
        let state = State { installed: u32::MAX, ..State::default() };
        let mut bytes = [0; MAX_SNAPSHOT_BYTES];
        state.encode(1, &geometry(31), &mut bytes);
        match Snapshot::decode(&bytes, &geometry(31)) {
            Snapshot::Valid(found, 1) => assert_eq!(found.installed, u32::MAX >> 1),
            _ => panic!("the snapshot is valid"),
        }
    }
}
