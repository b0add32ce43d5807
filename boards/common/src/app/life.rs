//! Which adapter runs: applied, on trial, confirmed, rolled back. The slots say what should run, the engine what does; after every
//! request, and after a reset, the two agree, or the device has gone back further.
#![expect(unsafe_code, reason = "slots are unpinned where the engine has let go of them")]

use rankpatch_format::adapter::Adapter;
use rankpatch_format::header::Header;
use rankpatch_format::link::{Active, ErrorCode, Mode, Refusal, Response};
use rankpatch_runtime::receiver::slot_refusal;
use rankpatch_runtime::slots::{Activation, FILE_OFFSET};
use rankpatch_runtime::{Attachment, MergedType, merged_bytes, trust};

use super::{App, info, mode_of, refuse};
use crate::{Board, Counter, Slots};

/// What the engine runs besides the base.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    pub(super) active: Active,
    n_patches: u16,
    weight_bytes_copied: u32,
    /// Ticks that attaching took.
    ticks: u64,
}

impl<B: Board> App<B> {
    /// Makes the engine run what the slots say, and goes back until something passes its self-test, to the plain base at last.
    pub(super) fn settle(&mut self) {
        // Each round gives up one adapter; there are two at most behind the active one.
        for _ in 0..4 {
            let wanted = self.slots.state().active();
            let Some(Activation { slot, flag }) = wanted else { break };
            let active = Active { slot: slot as u8, mode: mode_of(flag) };
            if self.active() == Some(active) {
                return;
            }
            if self.trusted(active.slot).is_ok() && self.apply(active).is_ok() {
                info!("slot {=usize} is applied", slot);
                return;
            }
            info!("slot {=usize} cannot be applied: rolled back", slot);
            self.rollbacks += 1;
            if self.slots.roll_back(slot).is_err() {
                break;
            }
        }
        self.let_go();
    }

    /// Whether the file in a slot is for this device and its signature is right, over the bytes in flash. A function of its
    /// own, called before anything else is on the stack: nothing else needs as much of it.
    #[inline(never)]
    fn trusted(&self, slot: u8) -> Result<(), Refusal> {
        let file = self.slots.file(slot.into()).map_err(slot_refusal)?;
        self.identity.belongs(&Header::new(file)?)?;
        Ok(trust::verify_file(&self.verifier, file)?)
    }

    /// The adapter in a slot whose file is [`trusted`](Self::trusted), borrowed for as long as the slot stays pinned.
    fn pinned(&mut self, slot: u8) -> Result<Adapter<'static>, Refusal> {
        let index = usize::from(slot);
        let len = self.slots.announcement(index).map_err(slot_refusal)?.len as usize;
        let no_slot = refuse(ErrorCode::NoSuchSlot, self.slots.n_slots(), index);
        let bytes = self.slots.flash_mut().0.pin(index).ok_or(no_slot)?;
        let file = bytes.get(FILE_OFFSET..).and_then(|rest| rest.get(..len));
        let file = file.ok_or(refuse(ErrorCode::EmptySlot, 1, index))?;
        Ok(Adapter::new(file, &self.base)?)
    }

    /// Lifts the pin of a slot, unless it is the one that runs.
    fn release(&mut self, slot: u8) {
        if self.active().is_none_or(|active| active.slot != slot) {
            // SAFETY: only `pinned` borrows from a slot, and what it returns lives in the engine alone, which holds the adapter
            // of `running` and no other when this is called.
            unsafe { self.slots.flash_mut().0.unpin(slot.into()) };
        }
    }

    /// Detaches and keeps the memory for merging, which only detaching gives back.
    fn detach(&mut self) {
        if let Some(memory) = self.engine.detach() {
            self.merge = Some(memory);
        }
    }

    /// Detaches and releases the slot.
    fn let_go(&mut self) {
        self.detach();
        self.trial_ends = None;
        if let Some(running) = self.running.take() {
            self.release(running.active.slot);
        }
    }

    /// Whether `adapter` can be applied in this mode. Nothing can fail after that but the self-test.
    fn check(&self, adapter: &Adapter<'_>, mode: Mode) -> Result<(), Refusal> {
        self.engine.check(adapter)?;
        let (expected, found) = (merged_bytes(&self.base, adapter, MergedType::Int8), self.merge_bytes);
        if mode == Mode::Merged && found < expected {
            return Err(refuse(ErrorCode::MergeBufferTooSmall, expected, found));
        }
        Ok(())
    }

    fn attach(&mut self, adapter: &Adapter<'static>, mode: Mode) -> rankpatch_runtime::Result<Attachment> {
        self.detach();
        match mode {
            Mode::Streamed => self.engine.attach(*adapter),
            // `check` has made sure that the memory suffices, so it is not lost in a refusal.
            Mode::Merged => {
                self.engine.attach_merged(*adapter, MergedType::Int8, self.merge.take().unwrap_or_default())
            }
        }
    }

    /// Runs the self-test of what is attached.
    pub(super) fn self_test(&mut self) -> Result<u64, Refusal> {
        self.engine.self_test().map_err(|error| {
            self.failed_self_tests +=
                u32::from(matches!(error, rankpatch_runtime::Error::SelfTestFailed { .. }));
            error.into()
        })
    }

    /// Attaches the adapter in a slot and runs its self-test; returns the digest. If any of it fails, what ran before runs again.
    /// Nothing is written.
    fn apply(&mut self, next: Active) -> Result<u64, Refusal> {
        let checked = self.pinned(next.slot).and_then(|adapter| {
            self.check(&adapter, next.mode)?;
            Ok(adapter)
        });
        let adapter = match checked {
            Ok(adapter) => adapter,
            Err(refusal) => {
                self.release(next.slot);
                return Err(refusal);
            }
        };
        let start = self.counter.ticks();
        let attached = self.attach(&adapter, next.mode);
        let ticks = self.counter.ticks() - start;
        let tested = match attached {
            Ok(attachment) => self.self_test().map(|digest| (attachment, digest)),
            Err(error) => Err(error.into()),
        };
        let before = self.running;
        match tested {
            Ok((attachment, digest)) => {
                self.running = Some(Running {
                    active: next,
                    n_patches: attachment.n_patches,
                    weight_bytes_copied: attachment.weight_bytes_copied as u32,
                    ticks,
                });
                if let Some(before) = before {
                    self.release(before.active.slot);
                }
                Ok(digest)
            }
            Err(refusal) => {
                info!("self-test failed: back to what was applied");
                self.restore(before);
                self.release(next.slot);
                Err(refusal)
            }
        }
    }

    /// Attaches again what ran before; its slot is still pinned.
    fn restore(&mut self, before: Option<Running>) {
        self.detach();
        self.running = None;
        if let Some(before) = before
            && let Ok(adapter) = self.pinned(before.active.slot)
            && self.attach(&adapter, before.active.mode).is_ok()
        {
            self.running = Some(before);
        }
    }

    pub(super) fn activate(
        &mut self,
        next: Active,
        trial_seconds: u32,
    ) -> Result<Response<'static>, Refusal> {
        let activation = Activation { slot: next.slot.into(), flag: next.mode == Mode::Merged };
        let again = self.active() == Some(next);
        let before = self.running;
        let digest = if again {
            self.self_test()?
        } else {
            self.trusted(next.slot)?;
            self.apply(next)?
        };
        if let Err(error) = self.slots.start_trial(activation) {
            // What a reset would not know must not run.
            if !again {
                self.restore(before);
                self.release(next.slot);
            }
            return Err(slot_refusal(error));
        }
        self.trial_ends = self.slots.state().trial.filter(|_| trial_seconds > 0).map(|_| {
            let ticks = u64::from(trial_seconds) * u64::from(self.counter.ticks_per_second());
            self.counter.ticks().saturating_add(ticks)
        });
        self.activations += u32::from(!again);
        let Some(Running { n_patches, weight_bytes_copied, ticks, .. }) = self.running else {
            return Err(refuse(ErrorCode::NothingActive, 1, 0));
        };
        info!("activated slot {=u8}, {=u16} sites", next.slot, n_patches);
        Ok(Response::Activated { n_patches, weight_bytes_copied, ticks, digest })
    }

    pub(super) fn confirm(&mut self, slot: u8) -> Result<Response<'static>, Refusal> {
        match self.active() {
            Some(active) if active.slot == slot => {
                self.slots.confirm().map_err(slot_refusal)?;
                self.trial_ends = None;
                info!("confirmed slot {=u8}", slot);
                Ok(self.status())
            }
            _ => Err(refuse(ErrorCode::NothingActive, slot.into(), 0)),
        }
    }

    pub(super) fn roll_back(&mut self, slot: u8) -> Result<Response<'static>, Refusal> {
        if self.active().is_some_and(|active| active.slot == slot) {
            self.slots.roll_back(slot.into()).map_err(slot_refusal)?;
            self.trial_ends = None;
            self.rollbacks += 1;
            info!("rolled back slot {=u8}", slot);
            self.settle();
        }
        Ok(self.status())
    }

    pub(super) fn deactivate(&mut self) -> Result<Response<'static>, Refusal> {
        self.slots.deactivate().map_err(slot_refusal)?;
        if self.running.is_some() {
            self.let_go();
            self.detaches += 1;
            info!("detached");
        }
        Ok(Response::Done)
    }

    /// Rolls back a trial whose time is over.
    #[inline(never)]
    pub(super) fn end_trial_in_time(&mut self) {
        let over = self.trial_ends.is_some_and(|end| self.counter.ticks() >= end);
        if over && self.generation.is_none() {
            self.trial_ends = None;
            if let Some(active) = self.active() {
                info!("nobody confirmed slot {=u8} in time", active.slot);
                // If the flash refuses, the trial still ends with the next reset.
                let _ = self.roll_back(active.slot);
            }
        }
    }
}
