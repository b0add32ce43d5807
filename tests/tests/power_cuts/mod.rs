//! Power cuts at every operation of slots and journal, on simulated flash.

mod flash;
mod partition;
mod wear;
mod world;

use rankpatch_runtime::slots::{Announcement, Layout, Resume, Slots};

use flash::{Bug, Cut, Flash, Mode, Nor, Op, Rng};
use world::{Cost, Device, Files, Goal, LIFE, SHORT_LIFE, file_bytes, random_life};

/// Runs one life on flash with the content `blank`, cut as planned.
fn live<const WORD: usize, const PAGE: usize>(
    setup: &Setup,
    life: &[Goal],
    cuts: &[Cut],
    seed: u64,
    bug: Bug,
) -> Result<Cost, String> {
    let mut nor = setup.nor(WORD, PAGE, seed);
    nor.plan(cuts);
    if bug != Bug::None {
        nor.seed(bug, setup.layout.n_slots * setup.layout.slot_bytes);
    }
    Device::new::<WORD, PAGE>(nor, setup.layout, &setup.files, setup.chunk, seed % 4 == 3).live(life)
}

/// Runs the usual life. A run without its cuts proves nothing: only the last ones of several may come too late.
fn run<const WORD: usize, const PAGE: usize>(
    setup: &Setup,
    cuts: &[Cut],
    seed: u64,
    bug: Bug,
) -> Result<Cost, String> {
    let cost = live::<WORD, PAGE>(setup, setup.life, cuts, seed, bug)?;
    if cost.fired == 0 && !cuts.is_empty() {
        return Err(format!("none of {cuts:?} was reached"));
    }
    Ok(cost)
}

/// What all runs of one kind have in common.
struct Setup {
    layout: Layout,
    blank: Vec<u8>,
    files: Files,
    chunk: usize,
    life: &'static [Goal],
}

impl Setup {
    /// Flash with any content; if it has many slots, all but the last four were erased once, so that a life begins there and
    /// goes on with the first ones.
    fn new<const WORD: usize, const PAGE: usize>(
        layout: Layout,
        life: &'static [Goal],
        file_bytes: usize,
        chunk: usize,
    ) -> Self {
        let rng = Rng::new(PAGE as u64);
        let len = layout.partition_bytes(PAGE);
        let any = || rng.next() as u8;
        let blank = std::iter::repeat_with(any).take(len).collect();
        let mut setup = Self { layout, blank, files: Files::new(file_bytes), chunk, life };
        let flash = Flash::<WORD, PAGE>(setup.nor(WORD, PAGE, 1));
        let mut slots = Slots::mount(flash, layout).expect("a layout that fits");
        for slot in 0..layout.n_slots.saturating_sub(4) {
            slots.begin(slot, Announcement { len: 1, sha256: [0; 32] }).expect("a start");
            slots.abort().expect("an end");
        }
        setup.blank = slots.flash().0.content().to_vec();
        // What looks erased would hide that an erase did nothing.
        let pages = setup.blank.chunks_mut(PAGE);
        pages
            .filter(|page| page.iter().all(|byte| *byte == layout.erased))
            .for_each(|page| page.fill_with(any));
        setup
    }

    /// The operations of a life without cuts.
    fn operations<const WORD: usize, const PAGE: usize>(&self) -> Vec<Op> {
        let mut nor = self.nor(WORD, PAGE, 1);
        nor.log = Some(Vec::new());
        let mut device = Device::new::<WORD, PAGE>(nor, self.layout, &self.files, self.chunk, false);
        device.live(self.life).expect("a life without cuts");
        device.nor().log.take().expect("a log")
    }

    fn nor(&self, word: usize, page: usize, seed: u64) -> Nor {
        Nor::new(word, page, self.blank.clone(), self.layout.erased, Rng::new(seed))
    }
}

/// Runs, cuts that happened, and the runs per mode: before, after, torn, torn and unstable, no cut but a fault.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    runs: usize,
    fired: usize,
    modes: [usize; 5],
    /// Most operations of one life.
    most_operations: usize,
}

impl Counts {
    fn add(&mut self, cost: Cost, mode: Mode) {
        self.runs += 1;
        self.fired += cost.fired;
        self.most_operations = self.most_operations.max(cost.operations);
        self.modes[match mode {
            Mode::Before => 0,
            Mode::After => 1,
            Mode::Torn(_) | Mode::Whole(_) | Mode::Mixed => 2,
            Mode::TornUnstable(_) | Mode::MixedUnstable => 3,
            Mode::Refused | Mode::Ignored => 4,
        }] += 1;
    }

    fn sum(self, other: Self) -> Self {
        Self {
            runs: self.runs + other.runs,
            fired: self.fired + other.fired,
            modes: std::array::from_fn(|i| self.modes[i] + other.modes[i]),
            most_operations: self.most_operations.max(other.most_operations),
        }
    }
}

/// Every way in which an operation can fail: a write at each byte.
fn modes(op: Op) -> Vec<Mode> {
    let mut modes = vec![Mode::Before, Mode::After, Mode::Mixed, Mode::Mixed, Mode::Refused, Mode::Ignored];
    modes.extend([Mode::MixedUnstable; 4]);
    let some = [0, 5, 40, 100, 200];
    match op {
        Op::Write(len) => modes.extend((0..len).flat_map(|at| [Mode::Torn(at), Mode::TornUnstable(at)])),
        Op::Erase => modes.extend(some.into_iter().flat_map(|at| [Mode::Torn(at), Mode::TornUnstable(at)])),
    }
    modes
}

/// One cut, in every way, at every operation.
fn single_cuts<const WORD: usize, const PAGE: usize>(setup: &Setup, bug: Bug) -> Result<Counts, String> {
    let mut counts = Counts::default();
    for (after, op) in setup.operations::<WORD, PAGE>().into_iter().enumerate() {
        for (way, mode) in modes(op).into_iter().enumerate() {
            // Faults are another thing: a driver with a bug would not report them.
            if bug != Bug::None && matches!(mode, Mode::Refused | Mode::Ignored) {
                continue;
            }
            let cut = Cut { after, mode };
            let cost = run::<WORD, PAGE>(setup, &[cut], (after * 1000 + way) as u64, bug)
                .map_err(|violation| format!("words of {WORD}, pages of {PAGE}, {cut:?}: {violation}"))?;
            counts.add(cost, mode);
        }
    }
    Ok(counts)
}

/// The geometries of the exhaustive test: bytes per page, slots, pages per slot, journal pages, value of an erased byte.
macro_rules! every_geometry {
    ($function:ident) => {
        [
            $function::<256>(3, 3, 3, 0xFF),
            $function::<512>(32, 1, 3, 0xFF),
            $function::<512>(20, 1, 4, 0x00),
            $function::<1024>(2, 2, 3, 0xFF),
            $function::<2048>(2, 1, 3, 0xFF),
            $function::<4096>(2, 1, 5, 0xFF),
        ]
    };
}

fn every_word<const PAGE: usize>(
    n_slots: usize,
    slot_pages: usize,
    journal_pages: usize,
    erased: u8,
) -> Counts {
    let layout =
        Layout { n_slots, slot_bytes: slot_pages * PAGE, journal_pages, erased, resume: Resume::Page };
    let words = [
        every_cut::<1, PAGE>,
        every_cut::<2, PAGE>,
        every_cut::<4, PAGE>,
        every_cut::<8, PAGE>,
        every_cut::<16, PAGE>,
        every_cut::<32, PAGE>,
    ];
    words.iter().map(|cuts| cuts(layout)).fold(Counts::default(), Counts::sum)
}

fn every_cut<const WORD: usize, const PAGE: usize>(layout: Layout) -> Counts {
    let setup = Setup::new::<WORD, PAGE>(layout, &LIFE, file_bytes(&layout).min(700), 200);
    single_cuts::<WORD, PAGE>(&setup, Bug::None).expect("no violation")
}

#[test]
fn one_cut_at_every_operation_of_every_geometry() {
    let counts = every_geometry!(every_word).into_iter().fold(Counts::default(), Counts::sum);
    let Counts { runs, fired, modes: [before, after, torn, unstable, fault], most_operations } = counts;
    println!(
        "one cut: {runs} runs ({before} before, {after} after, {torn} torn, {unstable} torn and unstable, {fault} faults)"
    );
    println!("one cut: a life took at most {most_operations} operations");
    assert_eq!(runs, fired, "a cut was not reached");
}

/// Two cuts, at every pair of operations: the second one in the recovery from the first or at any time after it.
fn two_cuts<const WORD: usize, const PAGE: usize>(setup: &Setup) -> usize {
    let (rng, mut runs) = (Rng::new(2), 0);
    let some = |kind| match kind {
        0 => Mode::Before,
        1 => Mode::After,
        2 => Mode::Torn(rng.below(48)),
        3 => Mode::Mixed,
        4 => Mode::TornUnstable(rng.below(48)),
        _ => Mode::MixedUnstable,
    };
    for first in 0..setup.operations::<WORD, PAGE>().len() {
        for kinds in 0..36 {
            for second in 0.. {
                let cuts = [(first, kinds % 6), (second, kinds / 6)]
                    .map(|(after, kind)| Cut { after, mode: some(kind) });
                let fired = run::<WORD, PAGE>(setup, &cuts, rng.next(), Bug::None)
                    .unwrap_or_else(|violation| {
                        panic!("words of {WORD}, pages of {PAGE}, {cuts:?}: {violation}")
                    })
                    .fired;
                if fired < 2 {
                    break;
                }
                runs += 1;
            }
        }
    }
    runs
}

#[test]
fn two_cuts_at_every_pair_of_operations() {
    let layout = Layout { n_slots: 2, slot_bytes: 512, journal_pages: 3, erased: 0xFF, resume: Resume::Page };
    let runs = two_cuts::<4, 256>(&Setup::new::<4, 256>(layout, &SHORT_LIFE, 300, 300));
    println!("two cuts: {runs} runs on pages of 256 bytes, words of 4");
    let layout = Layout { n_slots: 3, slot_bytes: 512, journal_pages: 4, erased: 0x00, resume: Resume::Page };
    let other = two_cuts::<16, 512>(&Setup::new::<16, 512>(layout, &SHORT_LIFE, 400, 200));
    println!("two cuts: {other} runs on pages of 512 bytes, words of 16");
    assert!(runs > 10_000 && other > 10_000, "the second cut was not reached");
}

/// One run with 1 to 5 cuts: anywhere, or soon after the one before, where it hits the recovery. Every other life is random, too.
fn random_cuts<const WORD: usize, const PAGE: usize>(setup: &Setup, operations: usize, seed: u64) -> usize {
    let rng = Rng::new(seed);
    let mut cuts: Vec<Cut> = (0..=rng.below(5))
        .map(|i| Cut {
            after: rng.below(if i > 0 && rng.below(3) > 0 { 8 } else { operations }),
            mode: match rng.below(8) {
                0 => Mode::Before,
                1 => Mode::After,
                2 => Mode::Torn(rng.below(96)),
                3 => Mode::Mixed,
                4 => Mode::Refused,
                5 => Mode::TornUnstable(rng.below(96)),
                _ => Mode::MixedUnstable,
            },
        })
        .collect();
    let random = if seed % 2 == 1 { Some(random_life(&rng)) } else { None };
    let life = random.as_deref().unwrap_or(setup.life);
    loop {
        let cost = live::<WORD, PAGE>(setup, life, &cuts, seed, Bug::None).unwrap_or_else(|violation| {
            panic!("words of {WORD}, pages of {PAGE}, seed {seed}, {life:?}, {cuts:?}: {violation}")
        });
        if cost.fired > 0 {
            return cost.fired;
        }
        // The life was shorter than the usual one. It had this many operations.
        cuts[0].after %= cost.operations;
    }
}

/// Random cuts on flash like that of a chip.
struct Chip {
    name: &'static str,
    setup: Setup,
    operations: usize,
    run: fn(&Setup, usize, u64) -> usize,
    /// How often among a thousand runs.
    weight: usize,
}

impl Chip {
    fn new<const WORD: usize, const PAGE: usize>(
        name: &'static str,
        n_slots: usize,
        slot_bytes: usize,
        erased: u8,
        weight: usize,
    ) -> Self {
        let layout = Layout { erased, ..Layout::new(n_slots, slot_bytes) };
        let setup = Setup::new::<WORD, PAGE>(layout, &LIFE, file_bytes(&layout).min(3000), 1024);
        let operations = setup.operations::<WORD, PAGE>().len();
        Self { name, setup, operations, run: random_cuts::<WORD, PAGE>, weight }
    }
}

/// Set to the number of runs wanted instead of 100,000.
const RUNS: &str = "RANKPATCH_POWER_CUT_RUNS";

#[test]
fn random_cuts_on_flash_like_that_of_chips() {
    let chips = [
        Chip::new::<4, 1024>("nRF51", 3, 2048, 0xFF, 200),
        Chip::new::<4, 4096>("nRF52", 2, 4096, 0xFF, 150),
        Chip::new::<8, 2048>("STM32L4", 32, 2048, 0xFF, 200),
        Chip::new::<4, 128>("STM32L0", 4, 640, 0x00, 300),
        Chip::new::<1, 4096>("RP2040", 20, 4096, 0xFF, 148),
        Chip::new::<32, 131_072>("STM32H7", 2, 131_072, 0xFF, 2),
    ];
    let wanted = std::env::var(RUNS).map_or(100_000, |runs| runs.parse().expect("a number of runs"));
    let mut counts = [(0, 0); 6];
    for seed in 0..wanted {
        let mut ticket = seed * 617 % 1000;
        let of_ticket = |chip: &Chip| {
            let mine = ticket < chip.weight;
            ticket = ticket.wrapping_sub(chip.weight);
            mine
        };
        let index = chips.iter().position(of_ticket).expect("the weights add up to 1000");
        let chip = &chips[index];
        counts[index].0 += 1;
        counts[index].1 += (chip.run)(&chip.setup, chip.operations, seed as u64);
    }
    for (chip, (runs, cuts)) in chips.iter().zip(counts) {
        println!("random cuts, flash of {}: {runs} runs, {cuts} cuts", chip.name);
    }
    let (runs, cuts) = counts.iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
    println!("random cuts: {runs} runs, {cuts} cuts");
    assert!(runs == wanted && cuts > 2 * runs, "cuts were not reached");
}

#[test]
fn an_upload_goes_on_at_the_exact_word_where_words_are_atomic() {
    let layout = Layout { resume: Resume::Word, ..Layout::new(2, 4096) };
    let setup = Setup::new::<8, 4096>(layout, &LIFE, 900, 96);
    let mut runs = 0;
    for (after, op) in setup.operations::<8, 4096>().into_iter().enumerate() {
        let words = if let Op::Write(len) = op { len / 8 } else { 0 };
        let atomic = (0..words).map(|word| Mode::Whole(word * 8)).chain([Mode::Before, Mode::After]);
        for mode in atomic {
            let cut = Cut { after, mode };
            run::<8, 4096>(&setup, &[cut], runs, Bug::None)
                .unwrap_or_else(|violation| panic!("{cut:?}: {violation}"));
            runs += 1;
        }
    }
    println!("atomic words: {runs} runs");
}

#[test]
fn seeded_bugs_are_caught_and_a_cut_that_never_comes_fails() {
    let layout = Layout::new(3, 1024);
    let setup = Setup::new::<4, 512>(layout, &LIFE, 700, 200);
    for (bug, invariant) in
        [(Bug::HashOfRam, "I1"), (Bug::CommitFirst, "I1"), (Bug::DirtyPage, "I4"), (Bug::EarlyAck, "I2")]
    {
        let caught = single_cuts::<4, 512>(&setup, bug).expect_err("a seeded bug must be caught");
        println!("{bug:?}: {caught}");
        assert!(caught.contains(invariant), "{bug:?} was caught for another reason");
    }
    let never = Cut { after: 1_000_000, mode: Mode::Before };
    let error = run::<4, 512>(&setup, &[never], 0, Bug::None).expect_err("a cut that never comes");
    assert!(error.contains("was reached"), "{error}");
}
