//! Power cuts at every operation of slots and journal, on simulated flash.

mod flash;
mod world;

use rankpatch_runtime::slots::{Layout, Resume};

use flash::{Bug, Cut, Mode, Nor, Op, Rng};
use world::{Cost, Device, Files, Goal, LIFE, SHORT_LIFE, file_bytes};

/// Runs one life on flash with the content `blank`, cut as planned.
fn run<const WORD: usize, const PAGE: usize>(
    setup: &Setup,
    cuts: &[Cut],
    seed: u64,
    bug: Bug,
) -> Result<Cost, String> {
    let mut nor = setup.nor(WORD, PAGE, seed);
    nor.plan(cuts);
    if bug != Bug::None {
        nor.seed(bug, setup.layout.n_slots * setup.layout.slot_bytes);
    }
    let cost = Device::new::<WORD, PAGE>(nor, setup.layout, &setup.files, setup.chunk).live(setup.life)?;
    // A run without its cuts proves nothing. Only the last ones may come too late, where a run was to have several.
    if cost.fired == 0 && !cuts.is_empty() {
        return Err(format!("no cut of {cuts:?} was reached"));
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
    fn new(layout: Layout, page: usize, life: &'static [Goal], file_bytes: usize, chunk: usize) -> Self {
        let rng = Rng::new(page as u64);
        let len = layout.partition_bytes(page);
        let blank = std::iter::repeat_with(|| rng.next() as u8).take(len).collect();
        Self { layout, blank, files: Files::new(file_bytes), chunk, life }
    }

    /// The operations of a life without cuts.
    fn operations<const WORD: usize, const PAGE: usize>(&self) -> Vec<Op> {
        let mut nor = self.nor(WORD, PAGE, 1);
        nor.log = Some(Vec::new());
        let mut device = Device::new::<WORD, PAGE>(nor, self.layout, &self.files, self.chunk);
        device.live(self.life).expect("a life without cuts");
        device.nor().log.take().expect("a log")
    }

    fn nor(&self, word: usize, page: usize, seed: u64) -> Nor {
        Nor::new(word, page, self.blank.clone(), self.layout.erased, Rng::new(seed))
    }
}

/// Runs, cuts that happened, and the runs per mode: before, after, torn, torn and unstable.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    runs: usize,
    fired: usize,
    modes: [usize; 4],
}

impl Counts {
    fn add(&mut self, cost: Cost, mode: Mode) {
        self.runs += 1;
        self.fired += cost.fired;
        self.modes[match mode {
            Mode::Before => 0,
            Mode::After => 1,
            Mode::Torn(_) | Mode::Mixed => 2,
            Mode::TornUnstable(_) | Mode::MixedUnstable => 3,
        }] += 1;
    }

    fn sum(self, other: Self) -> Self {
        Self {
            runs: self.runs + other.runs,
            fired: self.fired + other.fired,
            modes: std::array::from_fn(|i| self.modes[i] + other.modes[i]),
        }
    }
}

/// Every way in which an operation can be cut: a write at each byte.
fn modes(op: Op) -> Vec<Mode> {
    let mut modes = vec![Mode::Before, Mode::After, Mode::Mixed, Mode::Mixed];
    modes.extend([Mode::MixedUnstable; 4]);
    if let Op::Write(len) = op {
        modes.extend((0..len).flat_map(|at| [Mode::Torn(at), Mode::TornUnstable(at)]));
    }
    modes
}

/// One cut, in every way, at every operation.
fn single_cuts<const WORD: usize, const PAGE: usize>(setup: &Setup, bug: Bug) -> Result<Counts, String> {
    let mut counts = Counts::default();
    for (after, op) in setup.operations::<WORD, PAGE>().into_iter().enumerate() {
        for (way, mode) in modes(op).into_iter().enumerate() {
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
            $function::<512>(3, 2, 3, 0xFF),
            $function::<512>(4, 1, 4, 0x00),
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
    let setup = Setup::new(layout, PAGE, &LIFE, file_bytes(&layout).min(700), 200);
    let words = [
        single_cuts::<1, PAGE>,
        single_cuts::<2, PAGE>,
        single_cuts::<4, PAGE>,
        single_cuts::<8, PAGE>,
        single_cuts::<16, PAGE>,
        single_cuts::<32, PAGE>,
    ];
    words.iter().map(|cuts| cuts(&setup, Bug::None).expect("no violation")).fold(Counts::default(), Counts::sum)
}

#[test]
fn one_cut_at_every_operation_of_every_geometry() {
    let counts = every_geometry!(every_word).into_iter().fold(Counts::default(), Counts::sum);
    let Counts { runs, fired, modes: [before, after, torn, unstable] } = counts;
    println!("one cut: {runs} runs, {fired} cuts ({before} before, {after} after, {torn} torn, {unstable} unstable)");
    assert_eq!(runs, fired, "a cut was not reached");
}
