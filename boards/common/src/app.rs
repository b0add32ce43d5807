//! The firmware application: answers the requests of `rankpatch_format::link` with one base, adapter slots and an
//! engine. It knows neither chip nor network; a board gives it [`Parts`] and never gets control back.
//!
//! A request either does what it says or is refused and leaves everything as it was: in particular the adapter that was
//! active stays active.
#![expect(unsafe_code, reason = "slots are unpinned where the engine has let go of them")]

use rankpatch_format::adapter::{Adapter, Preview};
use rankpatch_format::base::{ALIGN, Base};
use rankpatch_format::digest::Digest;
use rankpatch_format::graph::Op;
use rankpatch_format::link::{
    self, Active, Deframer, ErrorCode, Framed, MAX_DATA_BYTES, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, Mode,
    Request, Response, SlotInfo,
};
use rankpatch_runtime::slots::{self, SlotError, Upload};
use rankpatch_runtime::{Engine, MIN_HEAD_OUTPUTS, Sampler, arena_bytes, merged_bytes};

use crate::{Board, Counter, Link, Parts, Slots, Stack};

/// Bytes that are taken from the link at once.
const READ_BYTES: usize = 64;
/// Outputs of a task head that the application has room for at most.
const HEAD_OUTPUTS: usize = 256;
/// Ids that a text can become.
const MAX_TOKENS: usize = MAX_DATA_BYTES + 2;

macro_rules! info {
    ($($argument:tt)*) => {
        #[cfg(feature = "defmt")]
        defmt::info!($($argument)*);
    };
}

/// Runs the application for ever.
///
/// With a base partition that holds no valid base it still answers, with [`ErrorCode::NoBase`], so that a host can say
/// what is wrong.
pub fn run<B: Board>(parts: Parts<B>) -> ! {
    let Parts { mut link, slots, counter, stack, base, arena } = parts;
    let mut deframer = Deframer::new();
    let base = match Base::new(base) {
        Ok(base) => base,
        Err(_error) => {
            info!("no valid base in its partition");
            refuse_for_ever(&mut link, &mut deframer, ErrorCode::NoBase, (0, 0))
        }
    };
    let arena_len = arena.len();
    let Some(mut app) = App::<B>::new(base, arena, slots, counter, stack) else {
        let needed = Needs::new(&base)
            .map_or(usize::MAX, |needs| needs.engine_bytes.saturating_add(needs.input_bytes));
        info!("arena too small: {=usize} of {=usize} bytes", arena_len, needed);
        let sizes = (needed as u32, arena_len as u32);
        refuse_for_ever(&mut link, &mut deframer, ErrorCode::ArenaTooSmall, sizes)
    };
    info!(
        "base {=str}, {=u16} sites, arena {=usize} bytes",
        base.manifest().name,
        base.n_sites(),
        app.engine_bytes
    );
    loop {
        let mut bytes = [0; READ_BYTES];
        let len = link.read(&mut bytes);
        if len == 0 {
            link.wait();
        }
        for byte in bytes.get(..len).unwrap_or(&[]) {
            match deframer.push(*byte) {
                Framed::Incomplete => {}
                Framed::Bad => app.bad_frames = app.bad_frames.wrapping_add(1),
                Framed::Message(message) => app.message(&mut link, message),
            }
        }
    }
}

fn refuse_for_ever(
    link: &mut impl Link,
    deframer: &mut Deframer,
    code: ErrorCode,
    (expected, found): (u32, u32),
) -> ! {
    loop {
        let mut byte = [0];
        if link.read(&mut byte) == 0 {
            link.wait();
            continue;
        }
        let [byte] = byte;
        if let Framed::Message(message) = deframer.push(byte)
            && let Ok((id, _)) = link::decode::<Request<'_>>(message)
        {
            send(link, id, &Response::Error { code, expected, found });
        }
    }
}

fn send(link: &mut impl Link, id: u8, response: &Response<'_>) {
    let (mut scratch, mut frame) = ([0; MAX_MESSAGE_BYTES], [0; MAX_FRAME_BYTES]);
    // Responses are built here, with data of at most MAX_DATA_BYTES, so they always fit.
    if let Ok(frame) = link::encode(id, response, &mut scratch, &mut frame) {
        link.write(frame);
    }
}

/// A refusal: becomes [`Response::Error`].
type Refusal = Response<'static>;

fn refuse(code: ErrorCode, expected: usize, found: usize) -> Refusal {
    Response::Error { code, expected: expected as u32, found: found as u32 }
}

fn slot_refusal(error: SlotError) -> Refusal {
    match error {
        SlotError::NoSuchSlot { expected, found } => refuse(ErrorCode::NoSuchSlot, expected, found),
        SlotError::WrongLength { expected, found } => refuse(ErrorCode::OutOfRange, expected, found),
        SlotError::Incomplete { expected, found } => {
            Response::Error { code: ErrorCode::Incomplete, expected, found }
        }
        SlotError::Corrupt { expected, found } => {
            Response::Error { code: ErrorCode::Corrupt, expected, found }
        }
        _ => refuse(ErrorCode::Flash, 0, 0),
    }
}

/// Bytes of the arena that a base needs.
struct Needs {
    engine_bytes: usize,
    input_bytes: usize,
}

impl Needs {
    /// `None` if they are more than an address can count.
    fn new(base: &Base<'_>) -> Option<Self> {
        let context = base.manifest().max_rows as usize;
        let width = match base.input() {
            Op::Features { width } => width as usize,
            _ => 0,
        };
        let engine_bytes = arena_bytes(base, context).checked_add(4 * (HEAD_OUTPUTS - MIN_HEAD_OUTPUTS))?;
        let input_bytes = context.checked_mul(width)?.checked_mul(4)?.checked_next_multiple_of(ALIGN)?;
        Some(Self { engine_bytes, input_bytes })
    }
}

struct App<B: Board> {
    base: Base<'static>,
    engine: Engine<'static>,
    slots: B::Slots,
    counter: B::Counter,
    stack: B::Stack,
    /// Feature rows as the host sends them, `[max_rows, width]`.
    features: &'static mut [f32],
    /// Memory for merged weights, while no adapter is merged.
    merge: Option<&'static mut [u8]>,
    merge_bytes: usize,
    engine_bytes: usize,
    arena_bytes: usize,
    upload: Option<Upload>,
    active: Option<Active>,
    tokens: [u16; MAX_TOKENS],
    frames: u32,
    bad_frames: u32,
    rows: u64,
    run_ticks: u64,
    installs: u32,
    activations: u32,
    detaches: u32,
    failed_self_tests: u32,
}

impl<B: Board> App<B> {
    /// `None` if the arena is too small for the base.
    fn new(
        base: Base<'static>,
        arena: &'static mut [u8],
        slots: B::Slots,
        counter: B::Counter,
        stack: B::Stack,
    ) -> Option<Self> {
        let arena_len = arena.len();
        let Needs { engine_bytes, input_bytes } = Needs::new(&base)?;
        let context = base.manifest().max_rows as usize;
        let (engine, rest) = arena.split_at_mut_checked(engine_bytes)?;
        let (features, merge) = rest.split_at_mut_checked(input_bytes)?;
        let engine = Engine::new(base, engine, context).ok()?;
        let features = bytemuck::try_cast_slice_mut(features).ok()?;
        Some(Self {
            base,
            engine,
            slots,
            counter,
            stack,
            features,
            merge_bytes: merge.len(),
            merge: Some(merge),
            engine_bytes,
            arena_bytes: arena_len,
            upload: None,
            active: None,
            tokens: [0; MAX_TOKENS],
            frames: 0,
            bad_frames: 0,
            rows: 0,
            run_ticks: 0,
            installs: 0,
            activations: 0,
            detaches: 0,
            failed_self_tests: 0,
        })
    }

    fn n_slots(&self) -> usize {
        self.slots.bytes().len().checked_div(self.slots.slot_bytes()).unwrap_or(0)
    }

    fn message(&mut self, link: &mut B::Link, message: &[u8]) {
        let (id, request) = match link::decode::<Request<'_>>(message) {
            Ok(decoded) => decoded,
            // A frame that is whole but means nothing here can be answered; any other cannot.
            Err(
                error @ (rankpatch_format::Error::Malformed { .. }
                | rankpatch_format::Error::TrailingBytes { .. }),
            ) => {
                self.bad_frames = self.bad_frames.wrapping_add(1);
                let id = message.get(1).copied().unwrap_or(0);
                let code = match error {
                    rankpatch_format::Error::Malformed { .. } => ErrorCode::UnknownMessage,
                    _ => ErrorCode::TrailingBytes,
                };
                return send(link, id, &refuse(code, 0, 0));
            }
            Err(_) => {
                self.bad_frames = self.bad_frames.wrapping_add(1);
                return;
            }
        };
        self.frames = self.frames.wrapping_add(1);
        let done = match request {
            Request::Generate { prompt, max_tokens, temperature, seed } => {
                self.generate(link, id, prompt, max_tokens, Sampler::new(temperature, seed))
            }
            Request::Output { offset } => self.send_output(link, id, offset as usize, 0),
            Request::Run { rows } => {
                self.run_features(rows as usize).and_then(|ticks| self.send_output(link, id, 0, ticks))
            }
            Request::RunText { text } => {
                self.run_text(text).and_then(|ticks| self.send_output(link, id, 0, ticks))
            }
            Request::Slot { slot } => self.send_slot(link, id, slot),
            Request::Info => {
                send(link, id, &self.info());
                Ok(())
            }
            request => self.act(request).map(|response| send(link, id, &response)),
        };
        if let Err(refusal) = done {
            info!("refused");
            send(link, id, &refusal);
        }
    }

    fn info(&self) -> Response<'static> {
        Response::Info {
            board: B::NAME,
            firmware: env!("CARGO_PKG_VERSION"),
            base: self.base.manifest().name,
            base_id: self.base.id(),
            n_sites: self.base.n_sites(),
            n_slots: self.n_slots() as u8,
            slot_bytes: (self.slots.slot_bytes() - slots::FILE_OFFSET) as u32,
            arena_bytes: (self.arena_bytes as u32, self.engine_bytes as u32),
            active: self.active,
        }
    }

    /// Requests with one answer that borrows nothing.
    fn act(&mut self, request: Request<'_>) -> Result<Response<'static>, Refusal> {
        match request {
            Request::Begin { slot, len, crc } => self.begin(slot, len, crc),
            Request::Chunk { offset, data } => {
                let upload = self.upload.as_mut().ok_or(refuse(ErrorCode::NoUpload, 1, 0))?;
                match upload.chunk(&mut self.slots, offset, data) {
                    Ok(next) => Ok(Response::Progress { next }),
                    Err(error) => {
                        self.upload = None;
                        Err(slot_refusal(error))
                    }
                }
            }
            Request::Finish => self.finish(),
            Request::Remove { slot } => {
                self.refuse_active(slot)?;
                let slot_bytes = self.slots.slot_bytes();
                slots::erase(&mut self.slots, slot_bytes, slot.into()).map_err(slot_refusal)?;
                self.upload = self.upload.take().filter(|upload| upload.slot() != usize::from(slot));
                Ok(Response::Done)
            }
            Request::Activate { slot, mode } => self.activate(Active { slot, mode }),
            Request::Detach => {
                if self.active.is_some() {
                    self.let_go();
                    self.detaches += 1;
                    info!("detached");
                }
                Ok(Response::Done)
            }
            Request::SelfTest => {
                let start = self.counter.ticks();
                match self.engine.self_test() {
                    Ok(digest) => Ok(Response::Tested { digest, ticks: self.counter.ticks() - start }),
                    Err(error) => {
                        self.failed_self_tests +=
                            u32::from(matches!(error, rankpatch_runtime::Error::SelfTestFailed { .. }));
                        Err(error.into())
                    }
                }
            }
            Request::Features { offset, data } => self.store_features(offset as usize, data),
            Request::Statistics => Ok(Response::Statistics {
                frames: self.frames,
                bad_frames: self.bad_frames,
                rows: self.rows,
                run_ticks: self.run_ticks,
                installs: self.installs,
                activations: self.activations,
                detaches: self.detaches,
                failed_self_tests: self.failed_self_tests,
                peak_stack_bytes: self.stack.peak() as u32,
            }),
            Request::Info
            | Request::Slot { .. }
            | Request::Run { .. }
            | Request::RunText { .. }
            | Request::Output { .. }
            | Request::Generate { .. } => Err(refuse(ErrorCode::UnknownMessage, 0, 0)),
        }
    }

    fn refuse_active(&self, slot: u8) -> Result<(), Refusal> {
        match self.active {
            Some(active) if active.slot == slot => Err(refuse(ErrorCode::SlotActive, 0, slot.into())),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, slot: u8, len: u32, crc: u32) -> Result<Response<'static>, Refusal> {
        self.refuse_active(slot)?;
        let index = usize::from(slot);
        if !self.upload.as_ref().is_some_and(|upload| upload.is_for(index, len, crc)) {
            let slot_bytes = self.slots.slot_bytes();
            match Upload::begin(&mut self.slots, slot_bytes, index, len, crc) {
                Ok(upload) => self.upload = Some(upload),
                Err(error) => {
                    // Only a failing flash has touched anything.
                    if error == SlotError::Flash {
                        self.upload = None;
                    }
                    return Err(slot_refusal(error));
                }
            }
            info!("upload of {=u32} bytes into slot {=u8}", len, slot);
        }
        Ok(Response::Progress { next: self.upload.as_ref().map_or(0, Upload::next) })
    }

    fn finish(&mut self) -> Result<Response<'static>, Refusal> {
        let upload = self.upload.as_ref().ok_or(refuse(ErrorCode::NoUpload, 1, 0))?;
        let (slot, slot_bytes) = (upload.slot(), self.slots.slot_bytes());
        // What is not an adapter for this base is refused before it becomes valid. The file is read where it will stay.
        let checked = match upload.file(self.slots.bytes()) {
            Some(file) => Adapter::new(file, &self.base).map(|_| ()),
            None => Ok(()),
        };
        let finished = match checked {
            Ok(()) => upload.finish(&mut self.slots, |slots| slots.bytes()).map_err(slot_refusal),
            Err(error) => {
                slots::erase(&mut self.slots, slot_bytes, slot).map_err(slot_refusal)?;
                Err(error.into())
            }
        };
        if !matches!(finished, Err(Response::Error { code: ErrorCode::Incomplete, .. })) {
            self.upload = None;
        }
        finished?;
        self.installs += 1;
        info!("installed slot {=usize}", slot);
        Ok(Response::Done)
    }

    /// The adapter in a slot, borrowed for as long as the slot stays pinned.
    fn pinned(&mut self, slot: u8) -> Result<Adapter<'static>, Refusal> {
        let index = usize::from(slot);
        let n_slots = self.n_slots();
        let bytes = self.slots.pin(index).ok_or(refuse(ErrorCode::NoSuchSlot, n_slots, index))?;
        let file = slots::file(bytes).ok_or(refuse(ErrorCode::EmptySlot, 1, 0))?;
        Ok(Adapter::new(file, &self.base)?)
    }

    /// Lifts the pin of a slot, unless it is the active one.
    fn release(&mut self, slot: u8) {
        if self.active.is_none_or(|active| active.slot != slot) {
            // SAFETY: only `pinned` borrows from a slot, and what it returns lives in the engine alone, which holds the adapter
            // of `active` and no other when this is called.
            unsafe { self.slots.unpin(slot.into()) };
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
        if let Some(active) = self.active.take() {
            self.release(active.slot);
        }
    }

    /// Whether `adapter` can be applied in this mode. Nothing can fail after that but the self-test.
    fn check(&self, adapter: &Adapter<'_>, mode: Mode) -> Result<(), Refusal> {
        self.engine.check(adapter)?;
        let (expected, found) = (merged_bytes(&self.base, adapter), self.merge_bytes);
        if mode == Mode::Merged && found < expected {
            return Err(refuse(ErrorCode::MergeBufferTooSmall, expected, found));
        }
        Ok(())
    }

    fn activate(&mut self, next: Active) -> Result<Response<'static>, Refusal> {
        // A slot that is being written is not one to run from.
        if self.upload.as_ref().is_some_and(|upload| upload.slot() == usize::from(next.slot)) {
            return Err(refuse(ErrorCode::Incomplete, 0, 0));
        }
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
        let before = self.active;
        let start = self.counter.ticks();
        let attached = self.attach(adapter, next.mode);
        let ticks = self.counter.ticks() - start;
        let tested = attached.and_then(|attachment| Ok((attachment, self.engine.self_test()?)));
        match tested {
            Ok((attachment, digest)) => {
                self.active = Some(next);
                if let Some(before) = before {
                    self.release(before.slot);
                }
                self.activations += 1;
                info!("activated slot {=u8}, {=u16} sites", next.slot, attachment.n_patches);
                Ok(Response::Activated {
                    n_patches: attachment.n_patches,
                    weight_bytes_copied: attachment.weight_bytes_copied as u32,
                    ticks,
                    digest,
                })
            }
            Err(error) => {
                info!("self-test failed: back to what was active");
                self.failed_self_tests +=
                    u32::from(matches!(error, rankpatch_runtime::Error::SelfTestFailed { .. }));
                let restored = before.map(|before| self.pinned(before.slot).map(|adapter| (before, adapter)));
                self.active = None;
                self.detach();
                if let Some(Ok((before, adapter))) = restored
                    && self.attach(adapter, before.mode).is_ok()
                {
                    self.active = Some(before);
                }
                for slot in [Some(next.slot), before.map(|before| before.slot)].into_iter().flatten() {
                    self.release(slot);
                }
                Err(error.into())
            }
        }
    }

    fn attach(
        &mut self,
        adapter: Adapter<'static>,
        mode: Mode,
    ) -> rankpatch_runtime::Result<rankpatch_runtime::Attachment> {
        self.detach();
        match mode {
            Mode::Streamed => self.engine.attach(adapter),
            // `check` has made sure that the memory suffices, so it is not lost in a refusal.
            Mode::Merged => self.engine.attach_merged(adapter, self.merge.take().unwrap_or_default()),
        }
    }

    fn store_features(&mut self, offset: usize, data: &[u8]) -> Result<Response<'static>, Refusal> {
        let (values, rest) = data.as_chunks::<4>();
        let (expected, found) = (self.features.len(), offset.saturating_add(values.len()));
        let target = self.features.get_mut(offset..found).filter(|_| rest.is_empty());
        let Some(target) = target else {
            let code = if expected == 0 { ErrorCode::WrongInput } else { ErrorCode::SequenceTooLong };
            return Err(refuse(code, expected, found));
        };
        target.iter_mut().zip(values).for_each(|(to, value)| *to = f32::from_le_bytes(*value));
        Ok(Response::Done)
    }

    fn timed(&mut self, rows: usize, start: u64) -> u64 {
        let ticks = self.counter.ticks() - start;
        self.rows += rows as u64;
        self.run_ticks += ticks;
        ticks
    }

    fn run_features(&mut self, rows: usize) -> Result<u64, Refusal> {
        let width = match self.base.input() {
            Op::Features { width } => width as usize,
            _ => 0,
        };
        let room = self.features.len();
        let features = self.features.get(..rows.saturating_mul(width)).ok_or(refuse(
            ErrorCode::SequenceTooLong,
            room.checked_div(width).unwrap_or(0),
            rows,
        ))?;
        if rows == 0 {
            return Err(refuse(ErrorCode::SequenceTooLong, self.engine.context(), 0));
        }
        let start = self.counter.ticks();
        self.engine.reset();
        self.engine.run_features(features)?;
        Ok(self.timed(rows, start))
    }

    /// Encodes a text into `tokens` and returns how many there are.
    fn encode(&mut self, text: &str) -> Result<usize, Refusal> {
        let tokenizer = self.base.tokenizer().ok_or(refuse(ErrorCode::WrongInput, 1, 0))?;
        let len = tokenizer.encode(text.as_bytes(), &mut self.tokens)?;
        let expected = self.engine.context();
        if len > expected {
            return Err(refuse(ErrorCode::SequenceTooLong, expected, len));
        }
        Ok(len)
    }

    fn run_text(&mut self, text: &str) -> Result<u64, Refusal> {
        let len = self.encode(text)?;
        let start = self.counter.ticks();
        self.engine.reset();
        self.engine.run_tokens(self.tokens.get(..len).unwrap_or(&[]))?;
        Ok(self.timed(len, start))
    }

    /// Continues a text until its end, the limit or the end of the context, and sends each token as it comes.
    fn generate(
        &mut self,
        link: &mut B::Link,
        id: u8,
        prompt: &str,
        max_tokens: u32,
        mut sampler: Sampler,
    ) -> Result<(), Refusal> {
        // Only a network that goes on where it stopped can continue a text, and a task head gives no next token.
        if !self.base.streaming() || self.engine.adapter().is_some_and(|adapter| adapter.head().is_some()) {
            return Err(refuse(ErrorCode::WrongInput, 0, 1));
        }
        let len = self.encode(prompt)?;
        let tokenizer = self.base.tokenizer().ok_or(refuse(ErrorCode::WrongInput, 1, 0))?;
        let mut start = self.counter.ticks();
        let mut ticks = 0;
        self.engine.reset();
        let mut digest = Digest::default();
        let mut previous = self.tokens.get(len - 1).copied().unwrap_or(0);
        self.engine.run_tokens(self.tokens.get(..len).unwrap_or(&[]))?;
        let mut n_tokens = 0;
        let mut rows = len;
        while n_tokens < max_tokens {
            let logits = self.engine.output();
            digest.update(logits);
            let next = sampler.next(logits) as u16;
            n_tokens += 1;
            let special = tokenizer.info();
            if next == special.bos || next == special.eos {
                break;
            }
            // The time that the link takes is not the network's.
            ticks += self.timed(core::mem::take(&mut rows), start);
            send(link, id, &Response::Token { id: next, text: tokenizer.decode(previous, next) });
            start = self.counter.ticks();
            previous = next;
            if self.engine.position() == self.engine.context() || n_tokens == max_tokens {
                break;
            }
            self.engine.run_tokens(&[next])?;
            rows += 1;
        }
        ticks += self.timed(rows, start);
        send(link, id, &Response::Generated { n_tokens, digest: digest.value(), ticks });
        Ok(())
    }

    fn send_output(&self, link: &mut B::Link, id: u8, offset: usize, ticks: u64) -> Result<(), Refusal> {
        let output = self.engine.output();
        let (n_out, max) = (output.len(), output.len().saturating_sub(1));
        let values = output.get(offset..).filter(|values| !values.is_empty());
        let values = values.ok_or(refuse(ErrorCode::OutOfRange, max, offset))?;
        let values = values.get(..MAX_DATA_BYTES / 4).unwrap_or(values);
        let response = Response::Output {
            n_out: n_out as u32,
            argmax: rankpatch_runtime::math::argmax(output) as u32,
            digest: Digest::of(output),
            ticks,
            offset: offset as u32,
            values: bytemuck::cast_slice(values),
        };
        send(link, id, &response);
        Ok(())
    }

    fn send_slot(&self, link: &mut B::Link, id: u8, slot: u8) -> Result<(), Refusal> {
        let (index, expected) = (usize::from(slot), self.n_slots());
        let bytes = slots::slot(self.slots.bytes(), self.slots.slot_bytes(), index).ok_or(refuse(
            ErrorCode::NoSuchSlot,
            expected,
            index,
        ))?;
        let adapter = slots::file(bytes).and_then(|file| {
            let adapter = Adapter::new(file, &self.base).ok()?;
            let Preview { header, body, .. } = Preview::new(file).ok()?;
            Some(SlotInfo {
                task: body.task,
                sequence: header.sequence,
                file_bytes: file.len() as u32,
                n_patches: adapter.n_patches(),
                head_outputs: adapter.head().map_or(0, |head| head.n_out as u16),
            })
        });
        send(link, id, &Response::Slot { slot, adapter });
        Ok(())
    }
}
