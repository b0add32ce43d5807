//! Any content of a partition: mounting gives a state or an error, never a panic, and the next clean install works.

use rankpatch_runtime::slots::{
    Activation, Announcement, FinishError, Layout, MappedFlash as _, Progress, SlotError, Slots,
};

use super::Target;
use super::nor::{Nor, PAGE};

pub(super) const TARGET: Target = Target { name: "slots", run, seeds };

/// What is installed at the end.
const FILE: [u8; 300] = [0x5A; 300];

/// Bit 0: what an erased byte is. Bits 1 and 2: bytes per word. Bit 3: many slots.
fn layout(kind: u8) -> Layout {
    let erased = if kind & 1 == 0 { 0xFF } else { 0x00 };
    // The snapshot of many does not fit a page of the largest words.
    let many = kind & 8 != 0 && kind & 6 != 6;
    let (n_slots, pages) = if many { (20, 2) } else { (3, 4) };
    Layout { erased, ..Layout::new(n_slots, pages * PAGE) }
}

/// The first byte says which flash it is, the rest is its content.
fn run(data: &[u8]) {
    let Some((kind, content)) = data.split_first() else { return };
    match kind >> 1 & 3 {
        0 => check_both::<1>(content, layout(*kind)),
        1 => check_both::<4>(content, layout(*kind)),
        2 => check_both::<8>(content, layout(*kind)),
        _ => check_both::<32>(content, layout(*kind)),
    }
}

/// The content as it is, and once more with journal pages that are for this layout and have the right checksum, whatever else they
/// say.
fn check_both<const WORD: usize>(content: &[u8], layout: Layout) {
    check::<WORD>(content, layout);
    let Layout { n_slots, slot_bytes, journal_pages, erased, .. } = layout;
    // Head, a counter for each slot, CRC-32.
    let snapshot = 28 + 4 * n_slots + 4;
    let mut content = content.to_vec();
    content.resize(layout.partition_bytes(PAGE), erased);
    for page in content[n_slots * slot_bytes..].chunks_mut(PAGE) {
        page[..4].copy_from_slice(b"RPJ2");
        // No flash lives to see the last numbers.
        page[7] &= 0x7F;
        page[8..12].copy_from_slice(&[n_slots as u8, journal_pages as u8, erased, WORD as u8]);
        page[12..16].copy_from_slice(&(slot_bytes as u32).to_le_bytes());
        let (body, crc) = page[..snapshot].split_at_mut(snapshot - 4);
        crc.copy_from_slice(&rankpatch_format::crc32(body).to_le_bytes());
    }
    check::<WORD>(&content, layout);
}

fn install<const WORD: usize>(slots: &mut Slots<Nor<WORD>>, slot: usize, file: &[u8], sequence: u32) {
    for again in [false, true] {
        let mut progress = slots.begin(slot, Announcement::of(file)).expect("a slot that is not in use");
        while let Progress::Erasing { .. } = progress {
            progress = slots.poll().expect("a flash that works");
        }
        let next = progress.next() as usize;
        assert!(next == 0 || !again, "what is corrupt is kept");
        slots.chunk(next as u32, &file[next..]).expect("a flash that works");
        let finished = slots.finish(|stored, _| if stored == file { Ok(sequence) } else { Err(()) });
        match finished {
            Ok(found) => return assert_eq!(found, slot),
            // The beginning that it went on from may hold anything here; the next attempt starts anew.
            Err(FinishError::Slot(SlotError::Corrupt { .. })) if next > 0 => {}
            Err(error) => panic!("a clean install failed: {error:?}"),
        }
    }
}

fn check<const WORD: usize>(content: &[u8], layout: Layout) {
    let capacity = layout.partition_bytes(PAGE);
    let flash = Nor::<WORD>::new(&content[..content.len().min(capacity)], capacity, layout.erased);
    let slots = match Slots::mount(flash, layout) {
        Ok(slots) => slots,
        Err(unmounted) => {
            // A journal of other sizes. Formatting starts anew.
            Slots::format(unmounted.flash, layout, 7).expect("the layout fits")
        }
    };
    let before = *slots.state();
    for slot in 0..layout.n_slots {
        let _ = (slots.life(slot), slots.announcement(slot), slots.file(slot), slots.verified(slot));
        let _ = slots.partial(slot);
    }
    assert!(
        before.active().is_none_or(|active| active.slot < layout.n_slots),
        "a slot that does not exist is active"
    );
    // A second start finds the same.
    let floor = before.floor;
    let mut slots = match Slots::mount(slots.into_flash().after_reset(), layout) {
        Ok(slots) => slots,
        Err(unmounted) => Slots::format(unmounted.flash, layout, 7).expect("the layout fits"),
    };
    assert_eq!(slots.state().floor, floor, "the floor has changed at a start");
    assert_eq!(slots.state().active(), before.active(), "another start, another adapter");
    let Some(sequence) = floor.checked_add(1) else { return };
    let slot = slots.pick(&Announcement::of(&FILE)).expect("three slots or more, of which two can be in use");
    install(&mut slots, slot, &FILE, sequence);
    slots.start_trial(Activation { slot, flag: true }).expect("an installed file");
    slots.confirm().expect("a trial");
    let slots = Slots::mount(slots.into_flash().after_reset(), layout).expect("a journal of its own");
    assert_eq!(slots.verified(slot), Ok(&FILE[..]), "what was acknowledged is gone");
    assert_eq!(slots.state().active(), Some(Activation { slot, flag: true }));
    assert_eq!(slots.state().floor, sequence);
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", vec![2]),
        ("words-of-4", seed::<4>(2)),
        ("words-of-1", seed::<1>(1)),
        ("many-slots", seed::<8>(4 | 8)),
    ]
}

/// A partition with one confirmed file, one on trial and one half written, in its last slots.
fn seed<const WORD: usize>(kind: u8) -> Vec<u8> {
    let layout = layout(kind);
    let flash = Nor::<WORD>::new(&[], layout.partition_bytes(PAGE), layout.erased);
    let mut slots = Slots::mount(flash, layout).expect("the layout fits");
    let [first, second, third] = [3, 2, 1].map(|from_end| layout.n_slots - from_end);
    for (slot, sequence) in [(first, 3), (second, 4)] {
        install(&mut slots, slot, &[sequence as u8; 200], sequence);
        slots.start_trial(Activation { slot, flag: false }).expect("an installed file");
        if slot == first {
            slots.confirm().expect("a trial");
        }
    }
    let mut progress = slots.begin(third, Announcement::of(&FILE)).expect("a free slot");
    while let Progress::Erasing { .. } = progress {
        progress = slots.poll().expect("a flash that works");
    }
    slots.chunk(0, &FILE[..96]).expect("a flash that works");
    [&[kind], slots.flash().mapped()].concat()
}
