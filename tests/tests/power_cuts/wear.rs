//! Ten thousand installs in rotation: every slot and every page of the journal takes its share, and nothing is used up.

use rankpatch_runtime::slots::{Activation, Announcement, Layout, Progress, Slots};

use super::flash::{Flash, Nor, Rng};

const INSTALLS: u32 = 10_000;
const PAGE: usize = 1024;
const SLOT_PAGES: usize = 2;
const N_SLOTS: usize = 4;

type Partition = Slots<Flash<4, PAGE>>;

/// Installs a file of 1,500 bytes that names its number, and confirms it.
fn install(slots: &mut Partition, number: u32) {
    let mut file = vec![0x5A; 1500];
    file[..4].copy_from_slice(&number.to_le_bytes());
    let announcement = Announcement::of(&file);
    let slot = slots.pick(&announcement).expect("a slot");
    let mut progress = slots.begin(slot, announcement).expect("a start");
    while progress != (Progress::Receiving { next: announcement.len }) {
        progress = match progress {
            Progress::Erasing { .. } => slots.poll(),
            Progress::Receiving { next } => {
                let at = next as usize;
                slots.chunk(next, &file[at..file.len().min(at + 512)])
            }
        }
        .expect("progress");
    }
    slots.finish(|_, _| Ok::<_, ()>(number)).expect("an install");
    slots.start_trial(Activation { slot, flag: false }).expect("a trial");
    slots.confirm().expect("a confirmation");
}

/// Fewest and most erases of some pages.
fn span(erases: &[u32]) -> (u32, u32) {
    (*erases.iter().min().expect("pages"), *erases.iter().max().expect("pages"))
}

#[test]
fn ten_thousand_installs_wear_all_slots_alike() {
    let layout = Layout::new(N_SLOTS, SLOT_PAGES * PAGE);
    let blank = vec![0; layout.partition_bytes(PAGE)];
    let flash = Flash(Nor::new(4, PAGE, blank, 0xFF, Rng::new(1)));
    let mut slots = Partition::mount(flash, layout).expect("a partition");
    for number in 1..=INSTALLS {
        install(&mut slots, number);
        // A device that is switched off now and then.
        if number % 7 == 0 {
            slots = Partition::mount(slots.into_flash(), layout).expect("a partition");
        }
    }
    let state = *slots.state();
    assert_eq!((state.floor, state.installed.count_ones() as usize), (INSTALLS, N_SLOTS));
    let erases = &slots.flash().0.erases;
    let (of_slots, of_journal) = erases.split_at(N_SLOTS * SLOT_PAGES);
    let ((least, most), (journal_least, journal_most)) = (span(of_slots), span(of_journal));
    println!(
        "{INSTALLS} installs: {least} to {most} erases per page of a slot, {journal_least} to {journal_most} per page of the journal"
    );
    assert!(most <= 2 * least && journal_most <= 2 * journal_least, "wear is not even");
    assert_eq!(slots.flash().0.violation, None);
    // The counters that the journal keeps are those of the flash.
    for (slot, pages) in of_slots.chunks(SLOT_PAGES).enumerate() {
        assert!(pages.iter().all(|erases| *erases == state.wear[slot]), "slot {slot}: {pages:?}");
    }
    assert_eq!(slots.journal_erases(), of_journal.iter().sum::<u32>() - journal_blank(of_journal));
}

/// Pages of a journal in an unknown state are all erased when its first page is opened.
fn journal_blank(pages: &[u32]) -> u32 {
    // The first two openings find two pages and one page without a snapshot beside their own.
    (1..pages.len() as u32).sum()
}
