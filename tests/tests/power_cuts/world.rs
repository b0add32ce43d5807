//! What a device with slots is put through, and what must be true of it whatever is cut off: the invariants I1 to I7.
//!
//! I1: a slot holds what was installed there, bit for bit, and what is active is the old or the new. I2: what was answered with Ok is there
//! after a reset. I3: no panic, no endless loop. I4: no word is written without an erase, nothing is misaligned. I5: slots in use are not touched.
//! I6: the floor never falls. I7: after all cuts the same goals are reached.

use rankpatch_runtime::slots::{
    Activation, Announcement, FILE_OFFSET, FinishError, Layout, MAX_SLOTS, Progress, SlotError, Slots,
};

use super::flash::{Flash, Nor, Rng};
use super::partition::Partition;

/// Operations that no run needs.
const BUDGET: usize = 5_000;

/// One thing that somebody wants from the device, asked again until it is done.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// The file with this number is installed. Its sequence number is the same.
    Install(u32),
    /// It is active and confirmed.
    Confirm(u32),
    /// It goes on trial, and a reset ends that.
    TrialThenReset(u32),
    /// It goes on trial and is rolled back.
    TrialThenRollBack(u32),
    /// What is confirmed is rolled back, once.
    RollBack(u32),
    Remove(u32),
    /// It is refused, being old.
    Stale(u32),
    /// Nothing is active.
    Base,
    /// Its upload is begun and given up half way.
    Abort(u32),
}

/// A device's life.
pub(crate) const LIFE: [Goal; 13] = [
    Goal::Install(1),
    Goal::Confirm(1),
    Goal::Install(2),
    Goal::TrialThenReset(2),
    Goal::Confirm(2),
    Goal::RollBack(2),
    Goal::Remove(2),
    Goal::Stale(2),
    Goal::Install(5),
    Goal::TrialThenRollBack(5),
    Goal::Base,
    Goal::Install(9),
    Goal::Confirm(9),
];

/// A short one, for two cuts at every place.
pub(crate) const SHORT_LIFE: [Goal; 5] =
    [Goal::Install(1), Goal::Confirm(1), Goal::Install(2), Goal::TrialThenReset(2), Goal::Confirm(2)];

/// A life that nobody thought of: up to nine installs, each with some of what can happen to a file.
pub(crate) fn random_life(rng: &Rng) -> Vec<Goal> {
    let mut goals = Vec::new();
    for number in 1..=5 + rng.below(5) as u32 {
        if rng.below(6) == 0 {
            goals.push(Goal::Abort(number));
        }
        goals.push(Goal::Install(number));
        match rng.below(8) {
            0..4 => {
                goals.push(Goal::Confirm(number));
                match rng.below(4) {
                    0 => goals.push(Goal::RollBack(number)),
                    1 => goals.push(Goal::Base),
                    _ => {}
                }
            }
            4 => goals.push(Goal::TrialThenReset(number)),
            5 => goals.push(Goal::TrialThenRollBack(number)),
            6 => goals.push(Goal::Remove(number)),
            _ => goals.push(Goal::Stale(number)),
        }
    }
    goals
}

/// The files that goals speak of, `[number]`, each announced.
#[derive(Debug)]
pub(crate) struct Files(Vec<(Vec<u8>, Announcement)>);

impl Files {
    /// Ten files of about `len` bytes, with runs that look erased.
    pub(crate) fn new(len: usize) -> Self {
        let file = |number: usize| {
            let mut file: Vec<u8> = (0..len - number % 3)
                .map(|i| (i * (2 * number + 3) + number * 17 + (i >> 3)) as u8)
                .collect();
            let hole = len / 3;
            file[hole..hole + len / 8].fill(if number.is_multiple_of(2) { 0xFF } else { 0x00 });
            let announcement = Announcement::of(&file);
            (file, announcement)
        };
        Self((0..10).map(file).collect())
    }

    fn get(&self, number: u32) -> (&[u8], Announcement) {
        let (file, announcement) = &self.0[number as usize];
        (file, *announcement)
    }
}

/// What must be true after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct World {
    /// The number of the file installed in each slot; 0 for none.
    installed: [u8; MAX_SLOTS],
    confirmed: Option<Activation>,
    previous: Option<Activation>,
    floor: u32,
}

impl World {
    fn without(mut self, slot: usize) -> Self {
        self.installed[slot] = 0;
        self.previous = self.previous.filter(|previous| previous.slot != slot);
        self
    }

    fn with(mut self, slot: usize, number: u32) -> Self {
        self.installed[slot] = number as u8;
        self.floor = number;
        self
    }

    fn confirm(mut self, activation: Activation) -> Self {
        let other = |a: Option<Activation>| a.filter(|a| a.slot != activation.slot);
        self.previous = other(self.confirmed).or(other(self.previous));
        self.confirmed = Some(activation);
        self
    }

    fn roll_back(mut self) -> Self {
        self.confirmed = self.previous.take();
        self
    }

    fn base(mut self) -> Self {
        self.previous = self.confirmed.take().or(self.previous);
        self
    }
}

/// Why a step did not succeed.
enum Stop {
    /// The supply failed; the world may be this one instead.
    Cut(World),
    /// The flash failed and the device said so; the world may be this one instead.
    Fault(World),
    /// An invariant is broken.
    Violation(String),
}

/// A device and what it must be.
pub(crate) struct Device<'f> {
    slots: Option<Box<dyn Partition>>,
    layout: Layout,
    files: &'f Files,
    /// Bytes given to the device at once.
    chunk: usize,
    world: World,
    /// What the world may still become: a step that was cut off and has not been seen to count may count after any reset,
    /// until the journal has a page with a higher number than this one.
    late: Vec<(World, u32)>,
    /// Whether the firmware prepares the journal at every start, so that nothing counts late.
    prepares: bool,
}

/// What a run took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) fired: usize,
    pub(crate) operations: usize,
}

impl<'f> Device<'f> {
    pub(crate) fn new<const WORD: usize, const PAGE: usize>(
        nor: Nor,
        layout: Layout,
        files: &'f Files,
        chunk: usize,
        prepares: bool,
    ) -> Self {
        let slots = Slots::mount(Flash::<WORD, PAGE>(nor), layout).expect("a layout that fits");
        Self {
            slots: Some(Box::new(slots)),
            layout,
            files,
            chunk,
            world: World::default(),
            late: Vec::new(),
            prepares,
        }
    }

    /// Reaches every goal, whatever is cut off.
    pub(crate) fn live(&mut self, goals: &[Goal]) -> Result<Cost, String> {
        self.reset(None)?;
        for goal in goals {
            let mut tries = 0;
            while let Err(stop) = self.reach(*goal, tries) {
                tries += 1;
                match stop {
                    Stop::Violation(violation) => return Err(format!("{goal:?}: {violation}")),
                    Stop::Cut(after) => {
                        self.reset(Some(after)).map_err(|v| format!("cut in {goal:?}: {v}"))?;
                    }
                    Stop::Fault(after) => {
                        let opened = self.slots().pages_opened();
                        self.late.push((after, opened));
                        let allowed = self.allowed();
                        self.world = self.observe(&allowed).map_err(|v| format!("fault in {goal:?}: {v}"))?;
                    }
                }
                if tries > 50 {
                    return Err(format!("{goal:?}: never reached"));
                }
            }
            self.check_flash().map_err(|violation| format!("{goal:?}: {violation}"))?;
        }
        // The outcome lasts, however often it is read.
        (0..2).try_for_each(|_| self.reset(None))?;
        let nor = self.nor();
        Ok(Cost { fired: nor.fired, operations: nor.operations })
    }

    fn slots(&mut self) -> &mut dyn Partition {
        &mut **self.slots.as_mut().expect("mounted")
    }

    pub(crate) fn nor(&mut self) -> &mut Nor {
        self.slots().nor()
    }

    fn check_flash(&mut self) -> Result<(), String> {
        if self.nor().operations > BUDGET {
            return Err("I3: more operations than anything needs".into());
        }
        self.nor().violation.take().map_or(Ok(()), |violation| Err(format!("I4/I5: {violation}")))
    }

    fn allowed(&self) -> Vec<World> {
        std::iter::once(self.world).chain(self.late.iter().map(|late| late.0)).collect()
    }

    /// Drops all RAM, mounts again until no cut hits that, and compares with the world or `after`, what a cut step would have made of it.
    fn reset(&mut self, after: Option<World>) -> Result<(), String> {
        self.late.extend(after.map(|after| (after, 0)));
        let allowed = self.allowed();
        for _ in 0..50 {
            let slots = self.slots.take().expect("mounted").reset(self.layout);
            self.slots = Some(slots.map_err(|error| format!("cannot be mounted: {error}"))?);
            if self.prepares {
                // An error is one of the flash: a cut is seen below, and after a fault the next write tries again.
                let prepared = self.slots().prepare();
                if prepared.is_ok() && !self.nor().is_off() {
                    self.late.iter_mut().for_each(|late| late.1 = u32::MAX);
                }
            }
            let cut = self.nor().is_off();
            self.check_flash()?;
            if !cut {
                if self.slots().state().trial.is_some() {
                    return Err("I1: a trial outlived a reset".into());
                }
                let found = self.observe(&allowed)?;
                let opened = self.slots().pages_opened();
                if found != self.world {
                    self.late.clear();
                }
                self.late.retain(|late| late.1 != u32::MAX);
                self.late.iter_mut().for_each(|late| late.1 = opened);
                self.world = found;
                self.protect();
                return Ok(());
            }
        }
        Err("I3: mounted 50 times".into())
    }

    /// What the device says that it holds, each file compared bit for bit: one of the `allowed`.
    fn observe(&mut self, allowed: &[World]) -> Result<World, String> {
        let state = *self.slots().state();
        let mut found = World {
            installed: [0; MAX_SLOTS],
            confirmed: state.confirmed,
            previous: state.previous,
            floor: state.floor,
        };
        for slot in 0..self.layout.n_slots {
            if !state.is_installed(slot) {
                continue;
            }
            let files = self.files;
            let file = self.slots().verified(slot).map_err(|error| format!("I1: slot {slot}: {error}"))?;
            let number = allowed
                .iter()
                .map(|world| world.installed[slot])
                .find(|number| *number != 0 && files.get((*number).into()).0 == file);
            found.installed[slot] = number.ok_or(format!("I1: slot {slot} holds another file"))?;
        }
        if found.floor < self.world.floor {
            return Err(format!("I6: the floor fell from {} to {}", self.world.floor, found.floor));
        }
        if !allowed.contains(&found) {
            return Err(format!("I1/I2/I6: expected one of {allowed:?}, found {found:?}"));
        }
        Ok(found)
    }

    /// Slots in use must not be touched from here on.
    fn protect(&mut self) {
        let state = *self.slots().state();
        let bytes = self.layout.slot_bytes;
        let in_use = (0..self.layout.n_slots).filter(|slot| state.is_in_use(*slot));
        self.nor().protected = in_use.map(|slot| slot * bytes..(slot + 1) * bytes).collect();
    }

    /// One call of the device: if it answers Ok the world is `after`; a cut may leave either.
    fn step<T>(
        &mut self,
        after: World,
        call: impl FnOnce(&mut dyn Partition) -> Result<T, SlotError>,
    ) -> Result<T, Stop> {
        let fired = self.nor().fired;
        let done = call(self.slots());
        let fault = self.nor().fired > fired;
        let off = self.nor().is_off();
        self.check_flash().map_err(Stop::Violation)?;
        match done {
            _ if off => {
                // What was answered before the supply failed counts.
                if done.is_ok() {
                    self.world = after;
                }
                Err(Stop::Cut(after))
            }
            Ok(value) => {
                self.world = after;
                let opened = self.slots().pages_opened();
                self.late.retain(|late| late.1 == opened);
                self.protect();
                Ok(value)
            }
            Err(SlotError::Flash) if fault => Err(Stop::Fault(after)),
            Err(error) => Err(Stop::Violation(format!("I7: refused without a reason: {error}"))),
        }
    }

    fn slot_of(&mut self, number: u32) -> Result<usize, Stop> {
        let (_, announcement) = self.files.get(number);
        let slot = self.slots().find(&announcement);
        slot.ok_or(Stop::Violation(format!("I2: file {number} is gone")))
    }

    fn reach(&mut self, goal: Goal, tries: usize) -> Result<(), Stop> {
        let world = self.world;
        match goal {
            Goal::Install(number) => self.install(number),
            Goal::Confirm(number) => {
                let activation = Activation { slot: self.slot_of(number)?, flag: number % 2 == 1 };
                self.try_out(activation)?;
                self.step(world.confirm(activation), |slots| slots.confirm())
            }
            Goal::TrialThenReset(number) => {
                let activation = Activation { slot: self.slot_of(number)?, flag: false };
                self.try_out(activation)?;
                self.reset(None).map_err(Stop::Violation)?;
                if self.slots().state().rolled_back != Some(activation.slot) {
                    return Err(Stop::Violation("I2: a trial that a reset ended is not reported".into()));
                }
                Ok(())
            }
            Goal::TrialThenRollBack(number) => {
                let activation = Activation { slot: self.slot_of(number)?, flag: true };
                self.try_out(activation)?;
                let active = self.step(world, |slots| slots.roll_back(activation.slot))?;
                if active == world.confirmed {
                    return Ok(());
                }
                Err(Stop::Violation(format!("rolled back to {active:?}, not to {:?}", world.confirmed)))
            }
            Goal::RollBack(number) => {
                let slot = self.slot_of(number)?;
                match world.confirmed {
                    Some(confirmed) if confirmed.slot == slot => {
                        self.step(world.roll_back(), |slots| slots.roll_back(slot)).map(drop)
                    }
                    // The cut came after it was done.
                    _ if tries > 0 => Ok(()),
                    _ => Err(Stop::Violation("nothing to roll back".into())),
                }
            }
            Goal::Remove(number) => match self.slot_of(number).ok() {
                Some(slot) => self.step(world.without(slot), |slots| slots.remove(slot)),
                None if tries > 0 => Ok(()),
                None => Err(Stop::Violation(format!("I2: file {number} is gone"))),
            },
            Goal::Stale(number) => self.refuse_stale(number),
            Goal::Base => self.step(world.base(), |slots| slots.deactivate()),
            Goal::Abort(number) => {
                let slot = self.upload(number, true)?;
                let world = self.world;
                self.step(world, |slots| slots.abort())?;
                let partial = self.slots().is_partial(slot);
                if partial { Err(Stop::Violation("a given up upload goes on".into())) } else { Ok(()) }
            }
        }
    }

    /// Puts a slot on trial. It must be active, and a write of one word of the journal, without an erase, after `prepare`.
    fn try_out(&mut self, activation: Activation) -> Result<(), Stop> {
        let world = self.world;
        self.step(world, |slots| slots.prepare())?;
        // A word of the journal has at least two bytes.
        let words = 2usize.div_ceil(self.nor().word());
        let counts = |nor: &Nor| (nor.words_written, nor.erases.iter().sum::<u32>());
        let before = counts(self.nor());
        self.step(world, |slots| slots.start_trial(activation))?;
        let after = counts(self.nor());
        if self.slots().state().active() != Some(activation)
            || after.0 > before.0 + words
            || after.1 > before.1
        {
            return Err(Stop::Violation(format!("activation: {before:?} words and erases became {after:?}")));
        }
        Ok(())
    }

    /// What a sender does: chooses a slot, goes on where the device says, compares what is there.
    fn upload(&mut self, number: u32, half: bool) -> Result<usize, Stop> {
        let files = self.files;
        let (file, announcement) = files.get(number);
        let none = || Stop::Violation("I7: no slot is free".into());
        let slot = self.slots().pick(&announcement).ok_or_else(none)?;
        let after = self.world.without(slot);
        let mut progress = self.step(after, |slots| slots.begin(slot, announcement))?;
        let stored = self.slots().stored_digest(progress.next());
        let expected = Announcement::of(&file[..progress.next() as usize]).sha256;
        if stored != Some(expected) {
            return Err(Stop::Violation(format!(
                "{} stored bytes are not those of the file",
                progress.next()
            )));
        }
        let world = self.world;
        let wanted = if half { announcement.len / 2 } else { announcement.len };
        loop {
            progress = match progress {
                Progress::Erasing { .. } => self.step(world, |slots| slots.poll())?,
                Progress::Receiving { next } if next < wanted => {
                    let at = next as usize;
                    let end = file.len().min(at + self.chunk);
                    self.step(world, |slots| slots.chunk(next, &file[at..end]))?
                }
                Progress::Receiving { .. } => return Ok(slot),
            };
        }
    }

    fn install(&mut self, number: u32) -> Result<(), Stop> {
        let files = self.files;
        let (file, announcement) = files.get(number);
        if self.slots().find(&announcement).is_some() {
            return Ok(());
        }
        let slot = self.upload(number, false)?;
        let floor = self.world.floor;
        let mut admit = |found: &[u8], found_floor: u32| {
            if found == file && found_floor == floor {
                Ok(number)
            } else {
                Err("another file or floor".into())
            }
        };
        let after = self.world.with(slot, number);
        let mut refused = None;
        let done = self.step(after, |slots| match slots.finish(&mut admit) {
            Ok(slot) => Ok(slot),
            Err(FinishError::Slot(error)) => Err(error),
            Err(FinishError::Refused(why)) => {
                refused = Some(why);
                Err(SlotError::NoUpload)
            }
        });
        match (done, refused) {
            (_, Some(why)) => Err(Stop::Violation(why)),
            (done, None) => done.map(drop),
        }
    }

    /// A file that was installed once, and is old now, is not installed again.
    fn refuse_stale(&mut self, number: u32) -> Result<(), Stop> {
        let slot = self.upload(number, false)?;
        let world = self.world;
        let refusal = self.step(world, |slots| match slots.finish(&mut |_, _| Ok(number)) {
            Err(FinishError::Slot(SlotError::Stale { .. })) => Ok(true),
            Err(FinishError::Slot(error)) => Err(error),
            Ok(_) | Err(FinishError::Refused(_)) => Ok(false),
        })?;
        let gone = !self.slots().is_partial(slot);
        if refusal && gone { Ok(()) } else { Err(Stop::Violation("I6: an old file was installed".into())) }
    }
}

/// Bytes that a file may have in a layout, and have to leave the last page partly free.
pub(crate) fn file_bytes(layout: &Layout) -> usize {
    layout.slot_bytes - FILE_OFFSET - 9
}
