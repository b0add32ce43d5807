//! A device in memory: the receiver and the slots that firmware has, on simulated NOR flash, at the end of a simulated serial
//! line that a test can damage. Time is simulated too, so tests neither wait nor depend on the machine. What needs an engine
//! is imitated.

use std::collections::VecDeque;
use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};
use rankpatch_format::base::Base;
use rankpatch_format::digest::Digest;
use rankpatch_format::fixture::{self, Aligned};
use rankpatch_format::layout::Layout as Weights;
use rankpatch_format::link::{self, ErrorCode, MAX_DATA_BYTES, Mode, Request, Response, Status};
use rankpatch_format::{BaseId, ProductId};
use rankpatch_runtime::receiver::{Policy, Receiver, Step, slot_refusal};
use rankpatch_runtime::slots::{Activation, Layout, MappedFlash, Resume, Slots};
use rankpatch_runtime::trust::{Identity, Keys};

use super::Transport;
use super::lossy::Fate as Luck;
use crate::keys::SecretKey;

/// What happens to a frame on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Arrives,
    IsLost,
    ArrivesTwice,
    /// It arrives after the next one.
    IsLate,
    /// One bit is flipped.
    IsDamaged,
    /// The link pauses before it.
    Stalls,
    /// The device restarts instead of reading it; uploads go on afterwards, as the slot keeps what was written.
    Reboots,
    /// The wire is cut.
    Cuts,
}

impl From<Luck> for Fate {
    fn from(fate: Luck) -> Self {
        match fate {
            Luck::Arrives => Self::Arrives,
            Luck::Lost => Self::IsLost,
            Luck::Twice => Self::ArrivesTwice,
            Luck::Late => Self::IsLate,
            Luck::Damaged(_) => Self::IsDamaged,
            Luck::Stalled => Self::Stalls,
        }
    }
}

/// Decides the fate of the frames in order: `true` for those towards the device.
pub(crate) type Fates = Box<dyn FnMut(bool, u32) -> Fate + Send>;

pub(crate) const PRODUCT: &str = "fake";
/// Bytes of the fake device's slots.
const SLOT_BYTES: usize = 64 * 1024;
/// Bytes of a file that they take.
pub(crate) const FILE_BYTES: u32 = SLOT_BYTES as u32 - 64;
const N_SLOTS: usize = 3;
const PAGE_BYTES: usize = 4096;
/// The frame buffer of the receiver: chunks of 4,096 bytes, more than the firmware's 3,072.
const FRAME: usize = 4160;
pub(crate) const CHUNK_BYTES: u32 = 4096;
pub(crate) const WINDOW: u8 = 4;

/// The simulated line: 115,200 bit/s with 10 bits a byte, and 5 ms one way.
const BYTE_TIME: Duration = Duration::from_nanos(86_806);
const LATENCY: Duration = Duration::from_millis(5);
const STALL: Duration = super::lossy::STALL;
/// The simulated flash, as of an nRF52840.
const ERASE_TIME: Duration = Duration::from_millis(85);
const WORD_TIME: Duration = Duration::from_micros(41);

struct Networks {
    image: Aligned,
    id: BaseId,
}

static BASE_IMAGE: LazyLock<Networks> = LazyLock::new(|| {
    let network = fixture::decoder();
    Networks { image: Aligned::new(&network.write(Weights::RowMajor, 1).unwrap()), id: network.id() }
});

/// The identity of the fake device's base, the small decoder.
pub(crate) fn base_id() -> BaseId {
    BASE_IMAGE.id
}

/// The key that the fake device trusts.
pub(crate) fn key() -> SecretKey {
    SecretKey::from_seed(&[0x42; 32])
}

/// Flash in memory that knows what its operations cost.
#[derive(Debug)]
pub(crate) struct MemFlash {
    pub(crate) bytes: Vec<u8>,
    busy: Duration,
}

impl ErrorType for MemFlash {
    type Error = NorFlashErrorKind;
}

impl ReadNorFlash for MemFlash {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        bytes.copy_from_slice(&self.bytes[offset as usize..][..bytes.len()]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl NorFlash for MemFlash {
    const WRITE_SIZE: usize = 4;
    const ERASE_SIZE: usize = PAGE_BYTES;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        self.busy += ERASE_TIME * ((to - from) / PAGE_BYTES as u32);
        self.bytes[from as usize..to as usize].fill(0xff);
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        self.busy += WORD_TIME * (bytes.len() / 4) as u32;
        let to = &mut self.bytes[offset as usize..][..bytes.len()];
        assert!(to.iter().all(|byte| *byte == 0xff), "a word is written twice");
        to.copy_from_slice(bytes);
        Ok(())
    }
}

impl MappedFlash for MemFlash {
    fn mapped(&self) -> &[u8] {
        &self.bytes
    }
}

fn layout() -> Layout {
    Layout { resume: Resume::Word, ..Layout::new(N_SLOTS, SLOT_BYTES) }
}

/// The device.
pub(crate) struct Fake {
    /// `None` only while it restarts.
    pub(crate) slots: Option<Slots<MemFlash>>,
    receiver: Receiver<FRAME>,
    pub(crate) fates: Fates,
    /// Flips a bit of what is stored before it is checked.
    pub(crate) bad_flash: bool,
    /// Requests that were understood.
    pub(crate) requests: u32,
    features: Vec<f32>,
    output: Vec<f32>,
    start: Instant,
    now: Duration,
    /// When each side will have sent all it has so far.
    host_sends_until: Duration,
    device_sends_until: Duration,
    device_busy_until: Duration,
    /// Frames on the way to the device, with the time at which they are there.
    towards: VecDeque<(Duration, Vec<u8>)>,
    back: VecDeque<(Duration, Vec<u8>)>,
    late: [Option<Vec<u8>>; 2],
    frames: [u32; 2],
    cut: bool,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self::with(Box::new(|_, _| Fate::Arrives))
    }

    pub(crate) fn with(fates: Fates) -> Self {
        let bytes = vec![0xff; layout().partition_bytes(PAGE_BYTES)];
        let slots = Slots::mount(MemFlash { bytes, busy: Duration::ZERO }, layout()).unwrap();
        Self {
            slots: Some(slots),
            receiver: Receiver::new(WINDOW),
            fates,
            bad_flash: false,
            requests: 0,
            features: Vec::new(),
            output: Vec::new(),
            start: Instant::now(),
            now: Duration::ZERO,
            host_sends_until: Duration::ZERO,
            device_sends_until: Duration::ZERO,
            device_busy_until: Duration::ZERO,
            towards: VecDeque::new(),
            back: VecDeque::new(),
            late: [None, None],
            frames: [0, 0],
            cut: false,
        }
    }

    /// Simulated time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.now
    }

    /// The file in a slot.
    pub(crate) fn file(&self, slot: usize) -> Option<&[u8]> {
        self.slots.as_ref().unwrap().verified(slot).ok()
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// Repairs a cut wire; what was on it is gone.
    pub(crate) fn mend(&mut self) {
        self.fates = Box::new(|_, _| Fate::Arrives);
        self.cut = false;
        self.towards.clear();
        self.back.clear();
        // The next bytes end whatever frame was under way.
    }

    /// A reset: RAM is lost, flash stays.
    pub(crate) fn reboot(&mut self) {
        let flash = self.slots.take().unwrap().into_flash();
        self.slots = Some(Slots::mount(flash, layout()).unwrap());
        self.receiver = Receiver::new(WINDOW);
        self.towards.clear();
    }

    /// Puts a frame on the wire.
    fn transmit(&mut self, towards: bool, mut frame: Vec<u8>) {
        let fate = (self.fates)(towards, self.frames[usize::from(towards)]);
        self.frames[usize::from(towards)] += 1;
        let before = self.late[usize::from(towards)].take();
        let until = if towards { &mut self.host_sends_until } else { &mut self.device_sends_until };
        let ready = if towards { self.now } else { self.now.max(self.device_busy_until) };
        *until = ready.max(*until) + BYTE_TIME * frame.len() as u32;
        if fate == Fate::Stalls {
            *until += STALL;
        }
        let arrival = *until + LATENCY;
        let mut arriving = Vec::new();
        match fate {
            Fate::Arrives | Fate::Stalls => arriving.push(frame),
            Fate::ArrivesTwice => arriving.extend([frame.clone(), frame]),
            Fate::IsLost => {}
            Fate::IsLate => self.late[usize::from(towards)] = Some(frame),
            Fate::IsDamaged => {
                let at = frame.len() / 2;
                frame[at] ^= 0x10;
                arriving.push(frame);
            }
            Fate::Reboots => self.reboot(),
            Fate::Cuts => self.cut = true,
        }
        let queue = if towards { &mut self.towards } else { &mut self.back };
        queue.extend(arriving.into_iter().chain(before).map(|frame| (arrival, frame)));
    }

    fn answer(&mut self, id: u8, response: &Response<'_>) {
        let mut frame = Vec::new();
        link::write_frame(id, response, |bytes| frame.extend_from_slice(bytes)).unwrap();
        self.transmit(false, frame);
    }

    fn refuse(&mut self, id: u8, code: ErrorCode, expected: u32, found: u32) {
        self.answer(id, &Response::Error { code, expected, found });
    }

    /// The device reads what has arrived and works until there is nothing left to do.
    fn read(&mut self, bytes: &[u8]) {
        let base = Base::new(BASE_IMAGE.image.bytes()).unwrap();
        let identity = Identity { product: ProductId::of(PRODUCT), base_id: base.id() };
        let policy = Policy { identity, base: &base, verifier: Keys::one(key().public()) };
        let mut taken = 0;
        let mut slots = self.slots.take().unwrap();
        self.device_busy_until = self.device_busy_until.max(self.now);
        loop {
            taken += self.receiver.push(&bytes[taken..]);
            if let Some((slot, announcement, progress)) = slots.upload()
                && progress.next() == announcement.len
                && std::mem::take(&mut self.bad_flash)
            {
                let at = slots.range(slot).unwrap().start + 64 + 100;
                slots.flash_mut().bytes[at] ^= 1;
            }
            let mut asked = None;
            let step = self.receiver.poll(&mut slots, &policy);
            let idle = step == Step::Idle;
            if let Step::Request { id, request } = step {
                let mut frame = Vec::new();
                link::write_frame(id, &request, |bytes| frame.extend_from_slice(bytes)).unwrap();
                asked = Some(frame);
            }
            self.device_busy_until += std::mem::take(&mut slots.flash_mut().busy);
            let answers = self.receiver.pull().to_vec();
            self.receiver.pulled(answers.len());
            if !answers.is_empty() {
                self.transmit(false, answers.clone());
            }
            if let Some(frame) = asked {
                self.slots = Some(slots);
                self.handle(&frame);
                slots = self.slots.take().unwrap();
            }
            if idle && answers.is_empty() && taken == bytes.len() {
                break;
            }
        }
        self.requests = self.receiver.counts().frames;
        self.slots = Some(slots);
    }

    fn handle(&mut self, frame: &[u8]) {
        let mut message = cobs::decode_vec(&frame[..frame.len() - 1]).unwrap();
        let message = std::mem::take(&mut message);
        let (id, request) = link::decode::<Request<'_>>(&message).unwrap();
        let mut slots = self.slots.take().unwrap();
        let active = slots.state().active();
        let done = match request {
            Request::Info => Ok(Response::Info {
                board: "fake",
                firmware: "0.0.0",
                base: "nothing",
                base_id: base_id(),
                n_sites: 15,
                n_slots: N_SLOTS as u8,
                slot_bytes: FILE_BYTES,
                chunk_bytes: Receiver::<FRAME>::CHUNK_BYTES as u16,
                window: WINDOW,
                product: ProductId::of(PRODUCT),
                keys: [Some(rankpatch_format::KeyId::of(&key().public())), None],
                insecure: false,
                arena_bytes: (4096, 1024),
                active: active.map(applied),
            }),
            Request::Activate { slot, mode, .. } => {
                let activation = Activation { slot: slot.into(), flag: mode == Mode::Merged };
                let weight_bytes_copied = if activation.flag { 80 } else { 0 };
                slots.start_trial(activation).map_err(|error| slot_refusal(error).into()).map(|()| {
                    Response::Activated { n_patches: 1, weight_bytes_copied, ticks: 5, digest: u64::MAX }
                })
            }
            Request::Confirm { slot } if active.is_some_and(|active| active.slot == usize::from(slot)) => {
                slots.confirm().map_err(|error| slot_refusal(error).into()).map(|()| status(&slots))
            }
            Request::Confirm { slot } => {
                Err(Response::Error { code: ErrorCode::NothingActive, expected: slot.into(), found: 0 })
            }
            Request::Rollback { slot } => slots
                .roll_back(slot.into())
                .map_err(|error| slot_refusal(error).into())
                .map(|_| status(&slots)),
            Request::Detach => {
                slots.deactivate().map_err(|error| slot_refusal(error).into()).map(|()| Response::Done)
            }
            Request::Status => Ok(status(&slots)),
            Request::SelfTest if active.is_none() => {
                Err(Response::Error { code: ErrorCode::NothingActive, expected: 1, found: 0 })
            }
            Request::SelfTest => Ok(Response::Tested { digest: u64::MAX, ticks: 9 }),
            Request::Log { .. } => Ok(Response::Done),
            Request::Statistics => Ok(Response::Statistics {
                frames: self.requests,
                bad_frames: 0,
                rows: 0,
                run_ticks: 0,
                installs: 0,
                activations: 0,
                detaches: 0,
                failed_self_tests: 0,
                rollbacks: 0,
                peak_stack_bytes: 512,
            }),
            request => {
                self.slots = Some(slots);
                return self.run(id, request);
            }
        };
        self.slots = Some(slots);
        match done {
            Ok(response) | Err(response) => self.answer(id, &response),
        }
    }

    /// What stands in for a network.
    fn run(&mut self, id: u8, request: Request<'_>) {
        match request {
            Request::Features { offset, data } => {
                let values = data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                self.features.truncate(offset as usize);
                self.features.extend(values);
                self.answer(id, &Response::Done);
            }
            // Its features are the samples themselves.
            Request::Samples { offset, data } => {
                let samples = data.as_chunks().0.iter().map(|bytes| f32::from(i16::from_le_bytes(*bytes)));
                self.features.truncate(offset as usize);
                self.features.extend(samples);
                self.answer(id, &Response::Done);
            }
            Request::RunSamples => {
                self.output = self.features.iter().map(|value| value * 2.0).collect();
                self.part(id, 0);
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
            Request::Spans { text } => {
                // Every part that a comma ends is a span.
                let mut n_spans = 0;
                for (end, _) in text.match_indices(',') {
                    let start = text[..end].rfind(',').map_or(0, |at| at + 1);
                    self.answer(id, &Response::Span { start: start as u32, end: end as u32, kind: "part" });
                    n_spans += 1;
                }
                self.answer(id, &Response::Spans { n_spans, digest: 5, ticks: 12 });
            }
            Request::Generate { prompt, max_tokens, .. } => {
                for byte in prompt.bytes().cycle().take(max_tokens as usize) {
                    self.answer(id, &Response::Token { id: byte.into(), text: &[byte] });
                }
                self.answer(id, &Response::Generated { n_tokens: max_tokens, digest: 3, ticks: 11 });
            }
            _ => self.refuse(id, ErrorCode::UnknownMessage, 0, 0),
        }
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

fn applied(activation: Activation) -> link::Active {
    let mode = if activation.flag { Mode::Merged } else { Mode::Streamed };
    link::Active { slot: activation.slot as u8, mode }
}

fn status(slots: &Slots<MemFlash>) -> Response<'static> {
    let state = slots.state();
    let slot = |activation: Option<Activation>| activation.map(|activation| activation.slot as u8);
    Response::Status(Status {
        running: state.active().map(applied),
        trial: slot(state.trial),
        confirmed: slot(state.confirmed),
        previous: slot(state.previous),
        rolled_back: state.rolled_back.map(|slot| slot as u8),
        sequence: 0,
        floor: state.floor,
        upload: slots
            .upload()
            .map(|(slot, announcement, progress)| (slot as u8, progress.next(), announcement.len)),
    })
}

impl Transport for Fake {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.cut {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "cut"));
        }
        // A lone delimiter is no frame: it is not counted and cannot be lost.
        if bytes == [0] {
            self.towards.push_back((self.now, vec![0]));
        } else {
            self.transmit(true, bytes.to_vec());
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        let deadline = deadline.saturating_duration_since(self.start);
        loop {
            if self.cut {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "cut"));
            }
            let arrival = self.back.front().map(|(at, _)| *at);
            match self.towards.front().map(|(at, _)| *at) {
                Some(at) if at <= deadline && arrival.is_none_or(|arrival| at <= arrival) => {
                    self.now = self.now.max(at);
                    let bytes = self.towards.pop_front().map(|(_, bytes)| bytes).unwrap_or_default();
                    self.read(&bytes);
                }
                _ => break,
            }
        }
        match self.back.front_mut() {
            Some((at, bytes)) if *at <= deadline => {
                self.now = self.now.max(*at);
                // Odd pieces, so that frames begin and end anywhere.
                let len = bytes.len().min(buffer.len()).min(37);
                buffer.iter_mut().zip(bytes.drain(..len)).for_each(|(to, from)| *to = from);
                if bytes.is_empty() {
                    self.back.pop_front();
                }
                Ok(len)
            }
            _ => {
                self.now = self.now.max(deadline);
                Ok(0)
            }
        }
    }

    fn now(&self) -> Instant {
        self.start + self.now
    }
}

/// An adapter file for the fake device's base, with a payload of about `payload_bytes`, signed.
pub(crate) fn file(task: &str, sequence: u32, payload_bytes: usize) -> Vec<u8> {
    let mut file = unsigned(task, payload_bytes);
    key().sign(&mut file, ProductId::of(PRODUCT), sequence, 1000).unwrap();
    file
}

/// The same without a signature.
pub(crate) fn unsigned(task: &str, payload_bytes: usize) -> Vec<u8> {
    let network = fixture::decoder();
    let mut left = payload_bytes;
    let mut sites = Vec::new();
    for ((_, weight), index) in network.sites().zip(0u16..) {
        let per_rank = (weight.shape().rows + weight.shape().cols) as usize;
        let rank = (left / per_rank).min(256);
        if rank > 0 {
            sites.push((index, rank));
            left -= rank * per_rank;
        }
    }
    let mut data = fixture::adapter(&network, &sites, None, 0.1, 5);
    data.task = task.into();
    data.write().unwrap()
}
