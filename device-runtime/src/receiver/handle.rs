//! What the receiver does with each message that is about slots.

use rankpatch_format::adapter::{Adapter, Preview};
use rankpatch_format::base::Base;
use rankpatch_format::header::{self, HEADER_BYTES, Header};
use rankpatch_format::link::{CHUNK_ALIGN, ErrorCode, Refusal, Request, Response, SlotInfo, UNASKED, decode};
use rankpatch_format::{Error as FormatError, KeyId};

use super::{Policy, Receiver, STEP_BYTES, Step, Work};
use crate::slots::{Announcement, FILE_OFFSET, FinishError, MappedFlash, Progress, SlotError, Slots};
use crate::trust::{self, Verifier};

impl<const FRAME: usize> Receiver<FRAME> {
    #[inline(never)]
    pub(super) fn handle<F: MappedFlash>(
        &mut self,
        slots: &mut Slots<F>,
        policy: &Policy<'_, impl Verifier>,
    ) -> Step<'_> {
        let message = self.deframer.message().unwrap_or(&[]);
        let (id, request) = match decode::<Request<'_>>(message) {
            Ok((id, request)) if id != UNASKED => (id, request),
            // A frame that is whole but means nothing here can be answered; any other cannot.
            Err(error @ (FormatError::Malformed { .. } | FormatError::TrailingBytes { .. })) => {
                let id = message.get(1).copied().unwrap_or(UNASKED);
                self.counts.bad_frames = self.counts.bad_frames.wrapping_add(1);
                let code = match error {
                    FormatError::Malformed { .. } => ErrorCode::UnknownMessage,
                    _ => ErrorCode::TrailingBytes,
                };
                self.refuse(id, code, 0, 0);
                return Step::Worked;
            }
            _ => {
                self.counts.bad_frames = self.counts.bad_frames.wrapping_add(1);
                return Step::Worked;
            }
        };
        self.counts.frames = self.counts.frames.wrapping_add(1);
        let mut installed = None;
        let answer = match request {
            Request::Begin { slot, header, sha256 } => {
                begin(slots, policy, slot, header, sha256).map(|begun| {
                    self.finished = begun.finished;
                    match begun.progress {
                        Progress::Erasing { .. } => {
                            self.work = Work::Erase { id };
                            None
                        }
                        Progress::Receiving { next } if begun.finished.is_some() => {
                            Some(progress(begun.slot, next))
                        }
                        Progress::Receiving { next } => Some(progress(begun.slot, chunk_start(next))),
                    }
                })
            }
            Request::Chunk { answer, offset, data } => {
                let len = data.len();
                chunk(slots, offset, data, Self::CHUNK_BYTES).map(|stored| match stored {
                    Chunk::Store => {
                        self.work = Work::Store { id, answer, offset, len, done: 0 };
                        None
                    }
                    Chunk::Answer(answer) => Some(answer),
                })
            }
            Request::Finish => {
                let finished = self.finished.filter(|_| slots.upload().is_none());
                let slot = finished.map_or_else(|| finish(slots, policy), Ok);
                slot.and_then(|slot| {
                    installed = Some(slot).filter(|_| finished.is_none());
                    self.finished = Some(slot);
                    self.describe(slots, policy, id, slot)
                })
            }
            Request::Abort => {
                self.work = Work::None;
                self.finished = None;
                slots.abort().map(|()| Some(Response::Done)).map_err(slot_refusal)
            }
            Request::Remove { slot } => {
                let slot = usize::from(slot);
                self.finished = self.finished.filter(|finished| *finished != slot);
                slots.remove(slot).map(|()| Some(Response::Done)).map_err(slot_refusal)
            }
            Request::Slot { slot } => self.describe(slots, policy, id, slot.into()),
            // The message has just been decoded, so it can be again; this time for as long as the caller needs it.
            _ => {
                return match decode(self.deframer.message().unwrap_or(&[])) {
                    Ok((id, request)) => Step::Request { id, request },
                    Err(_) => Step::Worked,
                };
            }
        };
        match answer {
            Ok(None) => {}
            Ok(Some(response)) => self.answer(id, &response),
            Err(refusal) => self.answer(id, &refusal.into()),
        }
        installed.map_or(Step::Worked, |slot| Step::Installed { slot })
    }

    /// Answers with what a slot holds, which borrows from the slots and so is written here.
    fn describe<F: MappedFlash>(
        &mut self,
        slots: &Slots<F>,
        policy: &Policy<'_, impl Verifier>,
        id: u8,
        slot: usize,
    ) -> Result<Option<Response<'static>>, Refusal> {
        let description = describe(slots, policy, slot)?;
        self.answer(id, &description);
        Ok(None)
    }

    /// Erases one page; the last one answers `Begin`.
    pub(super) fn erase<F: MappedFlash>(&mut self, slots: &mut Slots<F>, id: u8) {
        let slot = slots.upload().map_or(0, |(slot, ..)| slot);
        match slots.poll() {
            Ok(Progress::Erasing { .. }) => {}
            Ok(Progress::Receiving { next }) => {
                self.work = Work::None;
                self.answer(id, &progress(slot, chunk_start(next)));
            }
            Err(error) => {
                self.work = Work::None;
                self.answer(id, &slot_refusal(error).into());
            }
        }
    }

    /// Writes a piece of the chunk in the frame buffer; the last one answers it.
    pub(super) fn store<F: MappedFlash>(&mut self, slots: &mut Slots<F>) -> Step<'_> {
        let Work::Store { id, answer, offset, len, done } = self.work else { return Step::Idle };
        // The data are the last field of a message, before its checksum.
        let message = self.deframer.message().unwrap_or(&[]);
        let data = message.len().checked_sub(4 + len).and_then(|start| message.get(start..start + len));
        let piece = data.and_then(|data| data.get(done..len.min(done + STEP_BYTES))).unwrap_or(&[]);
        let stored = slots.chunk(offset.saturating_add(done as u32), piece);
        let done = done + piece.len();
        match stored {
            Ok(_) if done < len => self.work = Work::Store { id, answer, offset, len, done },
            Ok(progressed) => {
                self.work = Work::None;
                if answer {
                    let slot = slots.upload().map_or(0, |(slot, ..)| slot);
                    self.answer(id, &progress(slot, progressed.next()));
                }
            }
            Err(error) => {
                self.work = Work::None;
                self.answer(id, &slot_refusal(error).into());
            }
        }
        Step::Worked
    }
}

struct Begun {
    slot: usize,
    progress: Progress,
    /// Set if the file is installed already.
    finished: Option<usize>,
}

#[inline(never)]
fn begin<F: MappedFlash>(
    slots: &mut Slots<F>,
    policy: &Policy<'_, impl Verifier>,
    slot: Option<u8>,
    header: &[u8],
    sha256: &[u8],
) -> Result<Begun, Refusal> {
    let whole = header.len() == HEADER_BYTES;
    let sha256: [u8; 32] =
        sha256.try_into().map_err(|_| Refusal::new(ErrorCode::ShapeMismatch, 32, sha256.len()))?;
    if !whole {
        return Err(Refusal::new(ErrorCode::ShapeMismatch, HEADER_BYTES, header.len()));
    }
    let header = Header::new(header)?;
    let announcement = Announcement { len: header.file_bytes, sha256 };
    if let Some(slot) = slots.find(&announcement) {
        let progress = Progress::Receiving { next: header.file_bytes };
        return Ok(Begun { slot, progress, finished: Some(slot) });
    }
    policy.identity.admit(&header, slots.state().floor)?;
    policy.verifier.knows(header.key_id)?;
    let under_way = slots.upload().filter(|(_, other, _)| *other == announcement).map(|(slot, ..)| slot);
    let chosen = slot.map(usize::from).or(under_way).or_else(|| slots.pick(&announcement));
    let slot = chosen.ok_or(Refusal::new(ErrorCode::NoFreeSlot, slots.n_slots(), 0))?;
    let progress = slots.begin(slot, announcement).map_err(slot_refusal)?;
    Ok(Begun { slot, progress, finished: None })
}

/// What is to be done with a chunk.
enum Chunk {
    Store,
    Answer(Response<'static>),
}

fn chunk<F: MappedFlash>(slots: &Slots<F>, offset: u32, data: &[u8], most: usize) -> Result<Chunk, Refusal> {
    let (slot, announcement, under_way) = slots.upload().ok_or(Refusal::new(ErrorCode::NoUpload, 1, 0))?;
    let next = under_way.next();
    if data.is_empty() || data.len() > most {
        return Err(Refusal::new(ErrorCode::OutOfRange, most, data.len()));
    }
    let end = u64::from(offset) + data.len() as u64;
    if end > u64::from(announcement.len) {
        return Err(Refusal::new(
            ErrorCode::TrailingBytes,
            announcement.len as usize,
            end.min(u32::MAX.into()) as usize,
        ));
    }
    let ends_file = end == u64::from(announcement.len);
    if !offset.is_multiple_of(CHUNK_ALIGN) || (!end.is_multiple_of(CHUNK_ALIGN.into()) && !ends_file) {
        let remainder = (offset % CHUNK_ALIGN).max(end as u32 % CHUNK_ALIGN);
        return Err(Refusal::new(ErrorCode::Misaligned, CHUNK_ALIGN as usize, remainder as usize));
    }
    if offset > next || matches!(under_way, Progress::Erasing { .. }) {
        return Ok(Chunk::Answer(progress(slot, next)));
    }
    // What is there already must be the same: another file under this announcement would be found out only at its end.
    let again = data.get(..(next - offset) as usize).unwrap_or(data);
    let start = slots.range(slot).map_err(slot_refusal)?.start + FILE_OFFSET + offset as usize;
    if slots.flash().mapped().get(start..start + again.len()) != Some(again) {
        return Err(Refusal::new(ErrorCode::OtherBytes, 0, offset as usize));
    }
    if again.len() == data.len() { Ok(Chunk::Answer(progress(slot, next))) } else { Ok(Chunk::Store) }
}

/// Reads back, verifies and commits. The signature is checked before anything else is made of the file's content.
fn finish<F: MappedFlash>(
    slots: &mut Slots<F>,
    policy: &Policy<'_, impl Verifier>,
) -> Result<usize, Refusal> {
    let finished = slots.finish(|file, floor| -> Result<u32, Refusal> {
        let header = header::check(file)?;
        policy.identity.admit(&header, floor)?;
        trust::verify_file(&policy.verifier, file)?;
        fits(file, policy.base)?;
        Ok(header.sequence)
    });
    finished.map_err(|error| match error {
        FinishError::Slot(error) => slot_refusal(error),
        FinishError::Refused(refusal) => refusal,
    })
}

/// Whether a file is an adapter for the base. On its own, because its stack is not to lie under that of the verifier.
#[inline(never)]
fn fits(file: &[u8], base: &Base<'_>) -> Result<(), Refusal> {
    Ok(Adapter::new(file, base).map(drop)?)
}

/// What a slot holds.
#[inline(never)]
fn describe<'s, F: MappedFlash>(
    slots: &'s Slots<F>,
    policy: &Policy<'_, impl Verifier>,
    slot: usize,
) -> Result<Response<'s>, Refusal> {
    slots.range(slot).map_err(slot_refusal)?;
    let adapter = slots.file(slot).ok().and_then(|file| {
        let adapter = Adapter::new(file, policy.base).ok()?;
        let Preview { header, body, .. } = Preview::new(file).ok()?;
        Some(SlotInfo {
            task: body.task,
            sequence: header.sequence,
            key_id: if header.is_signed() { header.key_id } else { KeyId::UNSIGNED },
            file_bytes: header.file_bytes,
            n_patches: adapter.n_patches(),
            head_outputs: adapter.head().map_or(0, |head| head.n_out as u16),
        })
    });
    let wear = slots.state().wear.get(slot).copied().unwrap_or(0);
    Ok(Response::Slot { slot: slot as u8, wear, adapter })
}

/// Where a chunk may begin that brings the byte at `next`. A flash whose uploads go on at a word may need a byte inside a chunk;
/// what lies before it is compared when it comes again.
fn chunk_start(next: u32) -> u32 {
    next - next % CHUNK_ALIGN
}

fn progress(slot: usize, next: u32) -> Response<'static> {
    Response::Progress { slot: slot as u8, next }
}

/// What the host is told about an error of the slots.
pub fn slot_refusal(error: SlotError) -> Refusal {
    match error {
        SlotError::NoSuchSlot { expected, found } => Refusal::new(ErrorCode::NoSuchSlot, expected, found),
        SlotError::WrongLength { expected, found } => Refusal::new(ErrorCode::OutOfRange, expected, found),
        SlotError::InUse { slot } => Refusal::new(ErrorCode::SlotActive, 0, slot),
        SlotError::Empty { slot } => Refusal::new(ErrorCode::EmptySlot, 1, slot),
        SlotError::Busy { slot } => Refusal::new(ErrorCode::UploadUnderWay, 0, slot),
        SlotError::NoUpload => Refusal::new(ErrorCode::NoUpload, 1, 0),
        SlotError::Incomplete { expected, found } => Refusal { code: ErrorCode::Incomplete, expected, found },
        SlotError::Corrupt { expected, found } => Refusal { code: ErrorCode::Corrupt, expected, found },
        SlotError::Stale { expected, found } => Refusal { code: ErrorCode::Stale, expected, found },
        SlotError::NothingActive => Refusal::new(ErrorCode::NothingActive, 1, 0),
        SlotError::BadLayout { .. } | SlotError::OtherLayout { .. } => Refusal::new(ErrorCode::NoSlots, 0, 0),
        SlotError::Flash => Refusal::new(ErrorCode::Flash, 0, 0),
    }
}
