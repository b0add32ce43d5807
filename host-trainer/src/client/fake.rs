//! A device in memory that follows the link's rules, on a wire that a test can damage.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use rankpatch_format::adapter::{Preview, SelfTest};
use rankpatch_format::digest::Digest;
use rankpatch_format::link::{
    self, Deframer, ErrorCode, Framed, MAX_DATA_BYTES, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, Mode, Request,
    Response, SlotInfo,
};
use rankpatch_format::write::{AdapterData, PatchData};
use rankpatch_format::{BaseId, crc32};

use super::Transport;

/// What happens to a frame on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Arrives,
    IsLost,
    ArrivesTwice,
    /// One bit is flipped.
    IsDamaged,
    /// The device restarts instead of reading it; uploads go on afterwards, as the slot keeps what was written.
    Reboots,
    /// The wire is cut.
    Cuts,
}

/// Decides the fate of the frames in order: `true` for those towards the device.
pub(crate) type Fates = Box<dyn FnMut(bool, u32) -> Fate + Send>;

/// The identity of the fake device's base.
pub(crate) const BASE: BaseId = BaseId([7; 16]);
/// Bytes of its slots.
pub(crate) const SLOT_BYTES: u32 = 64 * 1024;
const N_SLOTS: u8 = 3;

struct Partial {
    slot: u8,
    crc: u32,
    file: Vec<u8>,
    len: usize,
}

/// The device.
pub(crate) struct Fake {
    pub(crate) slots: Vec<Option<Vec<u8>>>,
    pub(crate) active: Option<(u8, Mode)>,
    pub(crate) fates: Fates,
    /// Flips a bit of the stored file before it is checked.
    pub(crate) bad_flash: bool,
    /// Requests that were understood.
    pub(crate) requests: u32,
    partial: Option<Partial>,
    uploading: bool,
    features: Vec<f32>,
    output: Vec<f32>,
    deframer: Deframer,
    towards: u32,
    back: u32,
    cut: bool,
    outbox: VecDeque<u8>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self::with(Box::new(|_, _| Fate::Arrives))
    }

    pub(crate) fn with(fates: Fates) -> Self {
        Self {
            slots: vec![None; usize::from(N_SLOTS)],
            active: None,
            fates,
            bad_flash: false,
            requests: 0,
            partial: None,
            uploading: false,
            features: Vec::new(),
            output: Vec::new(),
            deframer: Deframer::new(),
            towards: 0,
            back: 0,
            cut: false,
            outbox: VecDeque::new(),
        }
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// Repairs a cut wire; what was on it is gone.
    pub(crate) fn mend(&mut self) {
        self.fates = Box::new(|_, _| Fate::Arrives);
        self.cut = false;
        self.outbox.clear();
        self.deframer = Deframer::new();
    }

    fn answer(&mut self, id: u8, response: &Response<'_>) {
        let (mut scratch, mut frame) = ([0; MAX_MESSAGE_BYTES], [0; MAX_FRAME_BYTES]);
        let frame = link::encode(id, response, &mut scratch, &mut frame).unwrap();
        let fate = (self.fates)(false, self.back);
        self.back += 1;
        match fate {
            Fate::IsLost => {}
            Fate::IsDamaged => self.outbox.extend(damaged(frame)),
            Fate::ArrivesTwice => self.outbox.extend(frame.iter().chain(frame)),
            Fate::Cuts => self.cut = true,
            _ => self.outbox.extend(frame),
        }
    }

    fn refuse(&mut self, id: u8, code: ErrorCode, expected: u32, found: u32) {
        self.answer(id, &Response::Error { code, expected, found });
    }

    fn handle(&mut self, id: u8, request: Request<'_>) {
        self.requests += 1;
        let slot_of = |slot: u8| (slot < N_SLOTS).then_some(usize::from(slot));
        match request {
            Request::Info => self.answer(
                id,
                &Response::Info {
                    board: "fake",
                    firmware: "0.0.0",
                    base: "nothing",
                    base_id: BASE,
                    n_sites: 2,
                    n_slots: N_SLOTS,
                    slot_bytes: SLOT_BYTES,
                    arena_bytes: (4096, 1024),
                    active: self.active.map(|(slot, mode)| link::Active { slot, mode }),
                },
            ),
            Request::Slot { slot } => {
                let Some(at) = slot_of(slot) else {
                    return self.refuse(id, ErrorCode::NoSuchSlot, 3, slot.into());
                };
                let file = self.slots[at].clone();
                let preview = file.as_deref().map(|file| Preview::new(file).unwrap());
                let adapter = preview.as_ref().map(|preview| SlotInfo {
                    task: preview.body.task,
                    sequence: preview.header.sequence,
                    file_bytes: preview.file.len() as u32,
                    n_patches: 1,
                    head_outputs: 0,
                });
                self.answer(id, &Response::Slot { slot, adapter });
            }
            Request::Begin { slot, len, crc } => {
                let Some(at) = slot_of(slot) else {
                    return self.refuse(id, ErrorCode::NoSuchSlot, 3, slot.into());
                };
                if self.active.is_some_and(|(active, _)| active == slot) {
                    return self.refuse(id, ErrorCode::SlotActive, 0, slot.into());
                }
                if len > SLOT_BYTES {
                    return self.refuse(id, ErrorCode::BufferTooSmall, len, SLOT_BYTES);
                }
                let same =
                    |partial: &Partial| (partial.slot, partial.len, partial.crc) == (slot, len as usize, crc);
                if !self.partial.as_ref().is_some_and(same) {
                    self.partial = Some(Partial { slot, crc, file: Vec::new(), len: len as usize });
                    self.slots[at] = None;
                }
                self.uploading = true;
                self.progress(id);
            }
            Request::Chunk { offset, data } => {
                let Some(partial) = self.partial.as_mut().filter(|_| self.uploading) else {
                    return self.refuse(id, ErrorCode::NoUpload, 0, 0);
                };
                if partial.file.len() == offset as usize && partial.file.len() + data.len() <= partial.len {
                    partial.file.extend_from_slice(data);
                }
                self.progress(id);
            }
            Request::Finish => {
                let Some(partial) = self.partial.take_if(|_| self.uploading) else {
                    return self.refuse(id, ErrorCode::NoUpload, 0, 0);
                };
                if partial.file.len() != partial.len {
                    let found = partial.file.len() as u32;
                    return self.refuse(id, ErrorCode::Incomplete, partial.len as u32, found);
                }
                self.uploading = false;
                let mut file = partial.file;
                file[0] ^= u8::from(self.bad_flash);
                if crc32(&file) != partial.crc {
                    return self.refuse(id, ErrorCode::Corrupt, partial.crc, crc32(&file));
                }
                match Preview::new(&file) {
                    Err(error) => return self.answer(id, &error.into()),
                    Ok(preview) if preview.header.base_id != BASE => {
                        let error = rankpatch_format::Error::WrongBase {
                            expected: BASE,
                            found: preview.header.base_id,
                        };
                        return self.answer(id, &error.into());
                    }
                    Ok(_) => self.slots[usize::from(partial.slot)] = Some(file),
                }
                self.answer(id, &Response::Done);
            }
            Request::Remove { slot } => match slot_of(slot).map(|at| self.slots[at].take()) {
                Some(Some(_)) => self.answer(id, &Response::Done),
                Some(None) => self.refuse(id, ErrorCode::EmptySlot, 0, slot.into()),
                None => self.refuse(id, ErrorCode::NoSuchSlot, 3, slot.into()),
            },
            Request::Activate { slot, mode } => {
                if slot_of(slot).is_none_or(|at| self.slots[at].is_none()) {
                    return self.refuse(id, ErrorCode::EmptySlot, 0, slot.into());
                }
                self.active = Some((slot, mode));
                let weight_bytes_copied = if mode == Mode::Merged { 80 } else { 0 };
                let response =
                    Response::Activated { n_patches: 1, weight_bytes_copied, ticks: 5, digest: u64::MAX };
                self.answer(id, &response);
            }
            Request::Detach if self.active.take().is_none() => {
                self.refuse(id, ErrorCode::NothingActive, 1, 0);
            }
            Request::SelfTest if self.active.is_none() => self.refuse(id, ErrorCode::NothingActive, 1, 0),
            Request::Detach => self.answer(id, &Response::Done),
            Request::SelfTest => self.answer(id, &Response::Tested { digest: u64::MAX, ticks: 9 }),
            Request::Features { offset, data } => {
                let values = data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                self.features.truncate(offset as usize);
                self.features.extend(values);
                self.answer(id, &Response::Done);
            }
            Request::Run { rows } => {
                if !self.features.len().is_multiple_of(rows as usize) {
                    return self.refuse(id, ErrorCode::ShapeMismatch, rows, self.features.len() as u32);
                }
                self.output = self.features.iter().map(|value| value * 2.0).collect();
                self.part(id, 0);
            }
            Request::RunText { text } => {
                self.output = text.bytes().map(f32::from).collect();
                self.part(id, 0);
            }
            Request::Output { offset } => self.part(id, offset as usize),
            Request::Generate { prompt, max_tokens, .. } => {
                for byte in prompt.bytes().cycle().take(max_tokens as usize) {
                    self.answer(id, &Response::Token { id: byte.into(), text: &[byte] });
                }
                self.answer(id, &Response::Generated { n_tokens: max_tokens, digest: 3, ticks: 11 });
            }
            Request::Statistics => self.answer(
                id,
                &Response::Statistics {
                    frames: self.requests,
                    bad_frames: 0,
                    rows: 0,
                    run_ticks: 0,
                    installs: 0,
                    activations: 0,
                    detaches: 0,
                    failed_self_tests: 0,
                    peak_stack_bytes: 512,
                },
            ),
        }
    }

    fn progress(&mut self, id: u8) {
        let next = self.partial.as_ref().map_or(0, |partial| partial.file.len() as u32);
        self.answer(id, &Response::Progress { next });
    }

    fn part(&mut self, id: u8, offset: usize) {
        let output = self.output.clone();
        let argmax = output
            .iter()
            .enumerate()
            .fold(0, |best, (at, value)| if *value > output[best] { at } else { best });
        let part = output[offset.min(output.len())..].iter().take(MAX_DATA_BYTES / 4);
        let values: Vec<u8> = part.flat_map(|value| value.to_le_bytes()).collect();
        let response = Response::Output {
            n_out: output.len() as u32,
            argmax: argmax as u32,
            digest: Digest::of(&output),
            ticks: 17,
            offset: offset as u32,
            values: &values,
        };
        self.answer(id, &response);
    }
}

fn damaged(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let at = frame.len() / 2;
    frame[at] ^= 0x10;
    frame
}

impl Transport for Fake {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.cut {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "cut"));
        }
        if bytes == [0] {
            return Ok(());
        }
        let fate = (self.fates)(true, self.towards);
        self.towards += 1;
        let bytes = match fate {
            Fate::Arrives => bytes.to_vec(),
            Fate::ArrivesTwice => [bytes, bytes].concat(),
            Fate::IsDamaged => damaged(bytes),
            Fate::IsLost => return Ok(()),
            Fate::Reboots => {
                (self.uploading, self.active) = (false, None);
                return Ok(());
            }
            Fate::Cuts => {
                self.cut = true;
                return Ok(());
            }
        };
        for byte in bytes {
            let Framed::Message(message) = self.deframer.push(byte) else { continue };
            let message = message.to_vec();
            if let Ok((id, request)) = link::decode(&message) {
                self.handle(id, request);
            }
        }
        Ok(())
    }

    /// Never waits: an empty wire is a deadline that has passed.
    fn receive(&mut self, buffer: &mut [u8], _: Instant) -> io::Result<usize> {
        if self.cut {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "cut"));
        }
        // Odd pieces, so that frames begin and end anywhere.
        let len = self.outbox.len().min(buffer.len()).min(37);
        buffer.iter_mut().zip(self.outbox.drain(..len)).for_each(|(to, from)| *to = from);
        Ok(len)
    }
}

/// An adapter file of some size for `base`; nothing but its frame is right.
pub(crate) fn file(task: &str, base: BaseId, payload_bytes: usize) -> Vec<u8> {
    let codes: Vec<i8> = (0..payload_bytes).map(|at| (at * 7 % 251) as u8 as i8).collect();
    AdapterData {
        task: task.into(),
        base_id: base,
        sequence: 4,
        alpha: 8.0,
        patches: vec![PatchData {
            site: 1,
            scales: vec![half::f16::from_f32(0.5), half::f16::from_f32(0.25)],
            lora_a: codes,
            lora_b: Vec::new(),
        }],
        head: None,
        self_test: SelfTest { seed: 1, rows: 1, digest: 2 },
    }
    .write()
    .unwrap()
}
