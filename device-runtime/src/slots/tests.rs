//! The documented behaviour of slots on flash that is never cut off, and any bytes whatever as a partition. Cuts are simulated
//! in the repository's integration tests.

extern crate std;

use std::vec;
use std::vec::Vec;

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};

use super::*;

const PAGE: usize = 256;
const SLOT: usize = 2 * PAGE;
/// Bytes that a file may have.
const ROOM: usize = SLOT - FILE_OFFSET;
const LAYOUT: Layout = Layout::new(2, SLOT);

/// NOR flash: a word is written once per erase.
#[derive(Debug)]
struct Flash<const WORD: usize> {
    bytes: Vec<u8>,
    written: Vec<bool>,
    operations: usize,
}

impl<const WORD: usize> Flash<WORD> {
    fn with(bytes: Vec<u8>) -> Self {
        Self { written: vec![true; bytes.len() / WORD], bytes, operations: 0 }
    }
}

impl<const WORD: usize> ErrorType for Flash<WORD> {
    type Error = NorFlashErrorKind;
}

impl<const WORD: usize> ReadNorFlash for Flash<WORD> {
    const READ_SIZE: usize = 1;
    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        bytes.copy_from_slice(&self.bytes[offset as usize..][..bytes.len()]);
        Ok(())
    }
    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl<const WORD: usize> NorFlash for Flash<WORD> {
    const WRITE_SIZE: usize = WORD;
    const ERASE_SIZE: usize = PAGE;
    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        let (from, to) = (from as usize, to as usize);
        assert!(from.is_multiple_of(PAGE) && to.is_multiple_of(PAGE));
        self.bytes[from..to].fill(0xff);
        self.written[from / WORD..to / WORD].fill(false);
        self.operations += 1;
        Ok(())
    }
    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        let at = offset as usize;
        assert!(at.is_multiple_of(WORD) && bytes.len().is_multiple_of(WORD));
        for word in at / WORD..(at + bytes.len()) / WORD {
            assert!(!std::mem::replace(&mut self.written[word], true), "word {word} is written twice");
        }
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.operations += 1;
        Ok(())
    }
}

impl<const WORD: usize> MappedFlash for Flash<WORD> {
    fn mapped(&self) -> &[u8] {
        &self.bytes
    }
}

/// xorshift64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n
    }
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 24) as u8).collect()
    }
}

fn mounted<const WORD: usize>(bytes: Vec<u8>) -> Slots<Flash<WORD>> {
    Slots::mount(Flash::with(bytes), LAYOUT).unwrap()
}

fn blank<const WORD: usize>() -> Slots<Flash<WORD>> {
    mounted(vec![0; LAYOUT.partition_bytes(PAGE)])
}

/// Uploads without finishing.
fn upload<const WORD: usize>(slots: &mut Slots<Flash<WORD>>, slot: usize, file: &[u8], chunk: usize) {
    let announcement = Announcement::of(file);
    let mut progress = slots.begin(slot, announcement).unwrap();
    while progress != (Progress::Receiving { next: announcement.len }) {
        progress = match progress {
            Progress::Erasing { .. } => slots.poll().unwrap(),
            Progress::Receiving { next } => {
                let rest = &file[next as usize..];
                slots.chunk(next, &rest[..rest.len().min(chunk)]).unwrap()
            }
        };
    }
}

fn install<const WORD: usize>(slots: &mut Slots<Flash<WORD>>, slot: usize, file: &[u8], sequence: u32) {
    upload(slots, slot, file, 100);
    assert_eq!(slots.finish(|_, _| Ok::<_, ()>(sequence)), Ok(slot));
}

fn every_length_and_chunk<const WORD: usize>() {
    let content: Vec<u8> = (0..ROOM).map(|i| (i * 7 + 3) as u8).collect();
    for len in [193, 1, 2, 31, 33, 191, 192, ROOM - 1, ROOM] {
        for chunk in [100, 1, 3, 32, 1024] {
            let mut slots = blank::<WORD>();
            upload(&mut slots, 1, &content[..len], chunk);
            assert_eq!(slots.stored_digest(len as u32), Some(Announcement::of(&content[..len]).sha256));
            assert_eq!(slots.file(1), Err(SlotError::Empty { slot: 1 }), "before it is committed");
            let admit = |file: &[u8], floor| {
                assert_eq!((file, floor), (&content[..len], 0));
                Ok::<_, ()>(7)
            };
            assert_eq!(slots.finish(admit), Ok(1));
            let slots = mounted::<WORD>(slots.into_flash().bytes);
            assert_eq!(slots.verified(1), Ok(&content[..len]), "{len} bytes by {chunk}");
            assert_eq!(
                (slots.state().floor, slots.life(0), slots.life(1)),
                (7, Ok(Life::Empty), Ok(Life::Installed))
            );
            if cfg!(miri) {
                return;
            }
        }
    }
}

#[test]
fn files_come_back_for_every_word_size() {
    every_length_and_chunk::<4>();
    if !cfg!(miri) {
        every_length_and_chunk::<1>();
        every_length_and_chunk::<16>();
        every_length_and_chunk::<32>();
    }
}

#[test]
fn gaps_and_repeats_store_nothing() {
    let mut slots = blank::<4>();
    let content = [9; 100];
    let announcement = Announcement::of(&content);
    assert_eq!(slots.chunk(0, &content), Err(SlotError::NoUpload));
    assert_eq!(slots.begin(0, announcement), Ok(Progress::Erasing { pages: 1, next: 0 }));
    assert_eq!(slots.chunk(0, &content), Ok(Progress::Erasing { pages: 1, next: 0 }), "not yet");
    let at = |next| Ok(Progress::Receiving { next });
    assert_eq!(slots.poll(), at(0));
    assert_eq!(slots.poll(), at(0), "nothing left to do");
    assert_eq!(slots.chunk(0, &content[..50]), at(50));
    assert_eq!(slots.chunk(60, &content[60..]), at(50), "a gap");
    assert_eq!(slots.chunk(0, &content[..50]), at(50), "a repeat");
    assert_eq!(slots.chunk(50, &[9; 60]), at(50), "beyond the end");
    assert_eq!(slots.chunk(u32::MAX, &[1]), at(50), "overflow");
    assert_eq!(slots.begin(0, announcement), at(50), "the same announcement again");
    assert_eq!(slots.begin(1, announcement), Err(SlotError::Busy { slot: 0 }));
    assert_eq!(slots.remove(0), Err(SlotError::Busy { slot: 0 }));
    assert_eq!(slots.stored_digest(50), None, "two bytes wait for their word");
    assert_eq!(slots.stored_digest(48), Some(Announcement::of(&content[..48]).sha256));
    let incomplete = SlotError::Incomplete { expected: 100, found: 50 };
    assert_eq!(slots.finish(|_, _| Ok::<_, ()>(1)), Err(FinishError::Slot(incomplete)));
    assert_eq!(slots.chunk(40, &content[40..]), at(100), "an overlap goes on where it must");
    assert_eq!(slots.finish(|_, _| Ok::<_, ()>(1)), Ok(0));
    assert_eq!(slots.finish(|_, _| Ok::<_, ()>(1)), Err(FinishError::Slot(SlotError::NoUpload)));
    assert_eq!(slots.verified(0), Ok(&content[..]));
    assert_eq!(slots.find(&announcement), Some(0));
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut slots = blank::<4>();
    let of = |len| Announcement { len, sha256: [1; 32] };
    assert_eq!(slots.begin(2, of(10)), Err(SlotError::NoSuchSlot { expected: 2, found: 2 }));
    assert_eq!(slots.begin(0, of(0)), Err(SlotError::WrongLength { expected: ROOM, found: 0 }));
    let found = ROOM + 1;
    assert_eq!(slots.begin(0, of(found as u32)), Err(SlotError::WrongLength { expected: ROOM, found }));
    let activation = Activation { slot: 1, flag: false };
    assert_eq!(slots.start_trial(activation), Err(SlotError::Empty { slot: 1 }));
    assert_eq!(slots.confirm(), Err(SlotError::NothingActive));
    assert_eq!(
        (slots.roll_back(1), slots.deactivate(), slots.abort(), slots.remove(1)),
        (Ok(None), Ok(()), Ok(()), Ok(()))
    );
    assert_eq!(slots.flash().operations, 0, "nothing was written");

    install(&mut slots, 1, &[1; 40], 5);
    slots.start_trial(activation).unwrap();
    assert_eq!(slots.begin(1, of(10)), Err(SlotError::InUse { slot: 1 }));
    assert_eq!(slots.remove(1), Err(SlotError::InUse { slot: 1 }));
    // What is announced must be what arrives, and new.
    upload(&mut slots, 0, &[2; 40], 40);
    let stale = SlotError::Stale { expected: 6, found: 5 };
    assert_eq!(slots.finish(|_, _| Ok::<_, ()>(5)), Err(FinishError::Slot(stale)));
    upload(&mut slots, 0, &[2; 40], 40);
    assert_eq!(slots.finish(|_, _| Err("unsigned")), Err(FinishError::Refused("unsigned")));
    assert_eq!((slots.upload().is_none(), slots.life(0)), (true, Ok(Life::Empty)), "it cannot go on");
    slots.begin(0, of(4)).unwrap();
    slots.poll().unwrap();
    slots.chunk(0, &[1, 2, 3, 4]).unwrap();
    let found = u32::from_be_bytes(*Announcement::of(&[1, 2, 3, 4]).sha256.first_chunk().unwrap());
    let corrupt = SlotError::Corrupt { expected: 0x0101_0101, found };
    assert_eq!(slots.finish(|_, _| Ok::<_, ()>(6)), Err(FinishError::Slot(corrupt)));
    assert_eq!((slots.state().floor, slots.state().active()), (5, Some(activation)));
}

#[test]
fn a_trial_ends_by_confirmation_roll_back_or_reset() {
    let mut slots = blank::<8>();
    install(&mut slots, 0, &[1; 200], 1);
    install(&mut slots, 1, &[2; 300], 2);
    let [first, second] = [0, 1].map(|slot| Activation { slot, flag: slot == 1 });
    let remount = |slots: Slots<Flash<8>>| mounted::<8>(slots.into_flash().bytes);
    let lives = |slots: &Slots<Flash<8>>| [0, 1].map(|slot| slots.life(slot).unwrap());

    slots.start_trial(first).unwrap();
    assert_eq!(lives(&slots), [Life::OnTrial, Life::Installed]);
    slots = remount(slots);
    assert_eq!((lives(&slots), slots.state().active()), ([Life::RolledBack, Life::Installed], None));
    slots.start_trial(first).unwrap();
    slots.confirm().unwrap();
    slots.confirm().unwrap();
    slots = remount(slots);
    assert_eq!((lives(&slots), slots.state().active()), ([Life::Confirmed, Life::Installed], Some(first)));
    slots.start_trial(second).unwrap();
    assert_eq!((slots.state().active(), slots.state().fallback()), (Some(second), Some(first)));
    assert_eq!(lives(&slots), [Life::Confirmed, Life::OnTrial]);
    assert_eq!(slots.roll_back(0), Ok(Some(second)), "not what is active");
    assert_eq!(slots.roll_back(1), Ok(Some(first)));
    assert_eq!(lives(&slots), [Life::Confirmed, Life::RolledBack]);
    slots.start_trial(second).unwrap();
    slots.confirm().unwrap();
    assert_eq!((slots.state().active(), slots.state().fallback()), (Some(second), Some(first)));
    assert_eq!(slots.roll_back(1), Ok(Some(first)), "to what was confirmed before");
    assert_eq!(slots.roll_back(0), Ok(None), "to the plain base");
    slots.start_trial(second).unwrap();
    slots.confirm().unwrap();
    slots.deactivate().unwrap();
    slots = remount(slots);
    assert_eq!((slots.state().active(), slots.state().fallback()), (None, Some(second)));
    // An upload takes what is not active.
    slots.remove(1).unwrap();
    assert_eq!((lives(&slots), slots.state().fallback()), ([Life::RolledBack, Life::Empty], None));
    assert_eq!(slots.state().floor, 2, "also of what is gone");
}

fn the_last_of_many<const WORD: usize>() {
    const LAST: usize = MAX_SLOTS - 1;
    let layout = Layout::new(MAX_SLOTS, SLOT);
    let mount = |bytes| Slots::mount(Flash::<WORD>::with(bytes), layout).unwrap();
    let remount = |slots: Slots<Flash<WORD>>| mount(slots.into_flash().bytes);
    let mut slots = mount(vec![0; layout.partition_bytes(PAGE)]);
    for slot in [0, 15, 16, LAST - 1, LAST] {
        install(&mut slots, slot, &[slot as u8; 90], slot as u32 + 1);
    }
    slots = remount(slots);
    let state = slots.state();
    assert_eq!((state.installed, state.floor), (0b1100_0000_0000_0001_1000_0000_0000_0001, LAST as u32 + 1));
    let [last, before] = [LAST, LAST - 1].map(|slot| Activation { slot, flag: slot == LAST });
    let lives = |slots: &Slots<Flash<WORD>>| [LAST - 1, LAST].map(|slot| slots.life(slot).unwrap());

    slots.start_trial(last).unwrap();
    assert_eq!((lives(&slots), slots.state().active()), ([Life::Installed, Life::OnTrial], Some(last)));
    slots = remount(slots);
    assert_eq!((lives(&slots), slots.state().active()), ([Life::Installed, Life::RolledBack], None));
    for activation in [before, last] {
        slots.start_trial(activation).unwrap();
        slots.confirm().unwrap();
    }
    slots = remount(slots);
    assert_eq!((lives(&slots), slots.state().active()), ([Life::Installed, Life::Confirmed], Some(last)));
    assert_eq!(slots.roll_back(LAST), Ok(Some(before)));
    // The state is a snapshot from here on.
    slots.prepare().unwrap();
    slots = remount(slots);
    slots.prepare().unwrap();
    slots = remount(slots);
    assert_eq!((lives(&slots), slots.state().active()), ([Life::Confirmed, Life::RolledBack], Some(before)));
    assert_eq!(slots.verified(LAST), Ok(&[LAST as u8; 90][..]));
    slots.remove(LAST).unwrap();
    slots = remount(slots);
    assert_eq!(lives(&slots), [Life::Confirmed, Life::Empty]);
    assert_eq!((slots.state().wear[LAST], slots.state().wear[LAST - 1], slots.state().wear[1]), (2, 1, 0));
    assert_eq!(
        slots.begin(MAX_SLOTS, Announcement::of(&[1])).unwrap_err(),
        slots.life(MAX_SLOTS).unwrap_err()
    );
}

#[test]
fn the_last_of_32_slots_lives_like_any() {
    the_last_of_many::<1>();
    if !cfg!(miri) {
        the_last_of_many::<2>();
        the_last_of_many::<8>();
        the_last_of_many::<16>();
    }
}

#[test]
fn an_upload_goes_on_after_a_reset_at_its_page() {
    let file: Vec<u8> = (0..ROOM).map(|i| (i * 3) as u8).collect();
    let announcement = Announcement::of(&file);
    for stored in [0, 100, 192, 193, 230, 400] {
        let mut slots = blank::<4>();
        slots.begin(0, announcement).unwrap();
        slots.poll().unwrap();
        slots.poll().unwrap();
        slots.chunk(0, &file[..stored]).unwrap();
        let mut slots = mounted::<4>(slots.into_flash().bytes);
        // One word behind a page's end makes the page certain; what fills no word is lost.
        let next = if stored < PAGE - FILE_OFFSET + 4 { 0 } else { PAGE - FILE_OFFSET };
        assert_eq!(
            slots.partial(0),
            Ok(Some(Partial { announcement, next: next as u32 })),
            "{stored} stored"
        );
        assert_eq!((slots.life(0), slots.pick(&announcement)), (Ok(Life::Uploading), Some(0)));
        install(&mut slots, 0, &file, 1);
        assert_eq!(slots.verified(0), Ok(&file[..]));
    }
}

#[test]
fn damage_is_noticed() {
    let mut slots = blank::<4>();
    install(&mut slots, 0, &[7; 40], 1);
    let bytes = slots.into_flash().bytes;
    let step = if cfg!(miri) { 97 } else { 1 };
    let record = 0..record::RECORD_BYTES * 8;
    for bit in record.chain(FILE_OFFSET * 8..(FILE_OFFSET + 40) * 8).step_by(step) {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(mounted::<4>(damaged).verified(0).is_err(), "bit {bit}");
    }
}

#[test]
fn any_bytes_can_be_mounted_and_used() {
    let rounds = if cfg!(miri) { 8 } else { 4_000 };
    let len = LAYOUT.partition_bytes(PAGE);
    let journal = LAYOUT.n_slots * SLOT;
    let mut valid = blank::<4>();
    install(&mut valid, 0, &[1; 300], 3);
    install(&mut valid, 1, &[2; 300], 4);
    valid.start_trial(Activation { slot: 1, flag: true }).unwrap();
    let valid = valid.into_flash().bytes;
    let mut rng = Rng(0x5EED);
    let mut with_files = 0;
    for round in 0..rounds {
        let mut bytes = match round % 4 {
            0 => rng.bytes(len),
            // Any state with a checksum that is right, then any marks.
            1 => {
                let mut bytes = rng.bytes(len);
                for page in 0..LAYOUT.journal_pages {
                    let at = journal + page * PAGE;
                    let snapshot = valid[journal..][..16].to_vec();
                    bytes[at..at + 4].copy_from_slice(&snapshot[..4]);
                    bytes[at + 8..at + 16].copy_from_slice(&snapshot[8..16]);
                    let body = state::snapshot_bytes(LAYOUT.n_slots) - 4;
                    let crc = rankpatch_format::crc32(&bytes[at..at + body]).to_le_bytes();
                    bytes[at + body..at + body + 4].copy_from_slice(&crc);
                    let marks = &mut bytes[at + body + 4..at + PAGE];
                    for word in marks.as_chunks_mut::<4>().0 {
                        // Mostly one of the nine kinds, for a slot that is there or not.
                        let mark = [word[0] % 10, word[1] % 3].map(|code| mark::CODES[usize::from(code)]);
                        *word = *[mark; 2].as_flattened().first_chunk().unwrap();
                    }
                }
                bytes
            }
            _ => valid.clone(),
        };
        if round % 4 == 2 {
            (0..=rng.below(20)).for_each(|_| bytes[rng.below(len)] ^= 1 << rng.below(8));
        }
        if round % 4 == 3 {
            let (from, to, n) = (rng.below(len), rng.below(len), rng.below(PAGE));
            let n = n.min(len - from).min(len - to);
            bytes.copy_within(from..from + n, to);
        }
        let mut slots = match Slots::mount(Flash::<4>::with(bytes), LAYOUT) {
            Ok(slots) => slots,
            Err(Unmounted { error: SlotError::OtherLayout { .. }, flash }) => {
                Slots::format(flash, LAYOUT, 0).unwrap()
            }
            Err(unmounted) => panic!("round {round}: {unmounted:?}"),
        };
        let state = *slots.state();
        assert_eq!((state.trial, state.installed >> LAYOUT.n_slots), (None, 0));
        with_files += usize::from(state.installed != 0);
        let active = state.active();
        assert!(active.is_none_or(|active| state.is_installed(active.slot)), "round {round}: {state:?}");
        for slot in 0..LAYOUT.n_slots {
            let uploading = slots.partial(slot).unwrap().map_or(0, |partial| partial.next as usize);
            assert!(
                slots.life(slot).is_ok() && slots.file(slot).map_or(0, <[u8]>::len).max(uploading) <= ROOM
            );
        }
        // Whatever it was, it works: as long as there is a number above the floor.
        let file = rng.bytes(1 + round % ROOM);
        let slot = slots.pick(&Announcement::of(&file)).expect("one slot of two is not in use");
        if let Some(sequence) = state.floor.checked_add(1) {
            install(&mut slots, slot, &file, sequence);
            slots.start_trial(Activation { slot, flag: false }).unwrap();
            slots.confirm().unwrap();
            let slots = mounted::<4>(slots.into_flash().bytes);
            assert_eq!((slots.state().floor, slots.verified(slot)), (sequence, Ok(&file[..])));
        }
    }
    assert!(with_files > rounds / 3, "only {with_files} of {rounds} partitions were not empty");
}

#[test]
fn layouts_that_do_not_fit_are_refused() {
    let refused = |layout: Layout| {
        let flash = Flash::<4>::with(vec![0xFF; LAYOUT.partition_bytes(PAGE)]);
        let unmounted = Slots::mount(flash, layout).unwrap_err();
        assert_eq!(unmounted.flash.operations, 0);
        unmounted.error
    };
    for layout in [
        Layout { n_slots: 0, ..LAYOUT },
        Layout { n_slots: 33, slot_bytes: PAGE, ..LAYOUT },
        Layout { slot_bytes: SLOT + 1, ..LAYOUT },
        Layout { slot_bytes: 0, ..LAYOUT },
        Layout { slot_bytes: usize::MAX / PAGE * PAGE, ..LAYOUT },
        Layout { journal_pages: 2, ..LAYOUT },
        Layout { journal_pages: 4, ..LAYOUT },
        Layout { erased: 0x55, ..LAYOUT },
    ] {
        assert!(matches!(refused(layout), SlotError::BadLayout { .. }), "{layout:?}");
    }
    let mut slots = blank::<4>();
    install(&mut slots, 0, &[1; 10], 1);
    let flash = slots.into_flash();
    // A journal that lies elsewhere and overlaps is seen as what it is.
    // Forgetting counts on from what is there.
    let mut forgotten = Slots::format(Flash::<4>::with(flash.bytes.clone()), LAYOUT, 9).unwrap();
    forgotten.prepare().unwrap();
    let forgotten = mounted::<4>(forgotten.into_flash().bytes);
    assert_eq!(*forgotten.state(), State { floor: 9, ..State::default() });
    assert_eq!(forgotten.journal_erases(), 2);
    let other = Layout { n_slots: 1, ..LAYOUT };
    let error = Slots::mount(Flash::<4>::with(flash.bytes.clone()), other).unwrap_err().error;
    assert_eq!(error, SlotError::OtherLayout { expected: (1, SLOT), found: (2, SLOT) });
    let other = Layout { n_slots: 4, slot_bytes: PAGE, journal_pages: 3, ..LAYOUT };
    let error = Slots::mount(Flash::<4>::with(flash.bytes), other).unwrap_err().error;
    assert_eq!(error, SlotError::OtherLayout { expected: (4, PAGE), found: (2, SLOT) });
}

#[test]
fn ram_is_as_stated() {
    let bytes = size_of::<Slots<()>>();
    assert!(bytes <= 424, "{bytes} bytes");
}
