//! The firmware application: answers the requests of `rankpatch_format::link` with one base, adapter slots and an
//! engine. It knows neither chip nor network; a board gives it [`Parts`] and never gets control back.
//!
//! A request either does what it says or is refused and leaves everything as it was: in particular the adapter that was
//! active stays active. Bytes are taken, flash is written and tokens are generated in turns, so that none of them waits for the
//! end of another.

mod compute;
mod firmware;
mod life;

use rankpatch_format::base::{ALIGN, Base};
use rankpatch_format::link::{
    self, Active, Deframer, ErrorCode, Framed, MAX_DATA_BYTES, Mode, Refusal, Request, Response, Status,
    UNASKED, frame_bytes,
};
use rankpatch_runtime::receiver::{Policy, Receiver, Step};
use rankpatch_runtime::slots::{FILE_OFFSET, Slots as Partition};
use rankpatch_runtime::trust::Identity;
use rankpatch_runtime::{Engine, Error, MIN_HEAD_OUTPUTS, arena_bytes, check_built_in};

use crate::flash::Mapped;
use crate::{Board, Counter, Link, Parts, Slots, Stack, tap};
use compute::Generation;
use firmware::Verify;
use life::Running;

pub use firmware::{INSECURE, KEYS, PRODUCT, product};

/// Bytes of a frame that boards with memory to spare take: chunks of 3,072 bytes. With pages of 2 KB hardly more fits beside the slots in the RAM that a
/// receiver may take.
pub const LARGE_FRAME: usize = 3104;
/// Bytes of a frame that every request fits: chunks of 1,120 bytes.
pub const USUAL_FRAME: usize = frame_bytes(MAX_DATA_BYTES);

/// Bytes that are taken from the link at once.
const READ_BYTES: usize = 64;
/// Bytes of the log that are sent at once.
const LOG_BYTES: usize = 64;
/// Ids that a text can become at most.
const MAX_TOKENS: usize = MAX_DATA_BYTES + 2;

/// Whether bases that read text are run.
const TEXT: bool = cfg!(feature = "text");

macro_rules! info {
    ($($argument:tt)*) => {
        #[cfg(feature = "defmt")]
        defmt::info!($($argument)*);
    };
}
use info;

/// Runs the application for ever, with chunks of 3,072 bytes, four in flight.
///
/// With a base partition that holds no valid base it still answers, with [`ErrorCode::NoBase`], so that a host can say
/// what is wrong.
pub fn run<B: Board>(parts: Parts<B>) -> ! {
    run_with::<B, LARGE_FRAME>(parts, 4)
}

/// The same with frames of at most `FRAME` bytes, which the receiver has a buffer for, and `window` chunks in flight, which the
/// driver of the link must hold.
pub fn run_with<B: Board, const FRAME: usize>(parts: Parts<B>, window: u8) -> ! {
    const { crate::receive::check_ram::<B, FRAME>() };
    let Parts { mut link, slots, counter, stack, base, arena } = parts;
    firmware::announce();
    let base = match Base::new(base) {
        Ok(base) => base,
        Err(_error) => {
            info!("no valid base in its partition");
            refuse_for_ever(&mut link, ErrorCode::NoBase, (0, 0))
        }
    };
    let mut receiver = Receiver::<FRAME>::new(window);
    let chunks = (Receiver::<FRAME>::CHUNK_BYTES as u16, receiver.window());
    // Each step is a function of its own, and the application stays where it was made: what a step needs of the stack is free
    // for the next one.
    match &mut start::<B>(&base, arena, slots, counter, stack, chunks) {
        Ok(app) => serve(app, &mut receiver, &mut link),
        Err((code, numbers)) => refuse_for_ever(&mut link, *code, *numbers),
    }
}

/// Mounts the slots, makes the application and applies what should run.
#[inline(never)]
fn start<B: Board>(
    base: &Base<'static>,
    arena: &'static mut [u8],
    slots: B::Slots,
    counter: B::Counter,
    stack: B::Stack,
    chunks: (u16, u8),
) -> Result<App<B>, (ErrorCode, (u32, u32))> {
    if let Err(Error::NotBuiltIn { op, .. }) = check_built_in(base) {
        info!("operator {=u16} of the base is not built in", op);
        return Err((ErrorCode::NotBuiltIn, (0, op.into())));
    }
    let arena_len = arena.len();
    let layout = slots.layout();
    let Ok(slots) = Partition::mount(Mapped(slots), layout) else {
        info!("the slots cannot be mounted: is the partition that of another layout?");
        return Err((ErrorCode::NoSlots, (0, 0)));
    };
    App::<B>::new(*base, arena, slots, counter, stack, chunks).ok_or_else(|| {
        let needed = Needs::new::<B>(base)
            .map_or(usize::MAX, |needs| needs.engine_bytes.saturating_add(needs.input_bytes));
        info!("arena too small: {=usize} of {=usize} bytes", arena_len, needed);
        (ErrorCode::ArenaTooSmall, (needed as u32, arena_len as u32))
    })
}

#[inline(never)]
fn serve<B: Board, const FRAME: usize>(
    app: &mut App<B>,
    receiver: &mut Receiver<FRAME>,
    link: &mut B::Link,
) -> ! {
    info!(
        "base {=str}, {=u16} sites, arena {=usize} bytes",
        app.base.manifest().name,
        app.base.n_sites(),
        app.engine_bytes
    );
    app.settle();
    let mut bytes = [0; READ_BYTES];
    let (mut start, mut end) = (0, 0);
    loop {
        if start == end {
            (start, end) = (0, link.read(&mut bytes));
        }
        start += receiver.push(bytes.get(start..end).unwrap_or(&[]));
        let idle = step(app, receiver, link);
        app.generate_one(link);
        app.end_trial_in_time();
        send_log(link);
        if idle && start == end && app.may_sleep() {
            link.wait();
        }
    }
}

/// Lets the receiver work once and sends what it answers. Returns whether there was nothing to do.
#[inline(never)]
fn step<B: Board, const FRAME: usize>(
    app: &mut App<B>,
    receiver: &mut Receiver<FRAME>,
    link: &mut B::Link,
) -> bool {
    let policy = Policy { identity: app.identity, base: &app.base, verifier: app.verifier };
    let step = receiver.poll(&mut app.slots, &policy);
    let idle = step == Step::Idle;
    match step {
        Step::Request { id, request } => {
            app.request(link, id, request);
            (app.frames, app.bad_frames) = (receiver.counts().frames, receiver.counts().bad_frames);
        }
        Step::Installed { slot } => {
            app.installs += 1;
            info!("installed slot {=usize}", slot);
            // Without a log nobody asks which.
            let _ = slot;
            // There is time now for what would make an activation wait.
            let _ = app.slots.prepare();
        }
        Step::Idle | Step::Worked => {}
    }
    let answers = receiver.pull().len();
    if answers > 0 {
        link.write(receiver.pull());
        receiver.pulled(answers);
    }
    idle && answers == 0
}

fn refuse_for_ever(link: &mut impl Link, code: ErrorCode, (expected, found): (u32, u32)) -> ! {
    let mut deframer = Deframer::<USUAL_FRAME>::new();
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
    // Responses can always be encoded.
    let _ = link::write_frame(id, response, |bytes| link.write(bytes));
}

fn refuse(code: ErrorCode, expected: usize, found: usize) -> Refusal {
    Refusal::new(code, expected, found)
}

/// Longest sequence.
fn context<B: Board>(base: &Base<'_>) -> usize {
    B::CONTEXT.min(base.manifest().max_rows as usize)
}

/// Bytes of the arena that a base needs.
struct Needs {
    engine_bytes: usize,
    input_bytes: usize,
    tokens: usize,
}

impl Needs {
    /// `None` if they are more than an address can count.
    fn new<B: Board>(base: &Base<'_>) -> Option<Self> {
        let context = context::<B>(base);
        let (width, tokens) = match base.feature_width() {
            // A text has more characters than tokens before its pairs are merged.
            0 => (0, context.saturating_mul(4).saturating_add(2).min(MAX_TOKENS)),
            width => (width, 0),
        };
        let more_outputs = B::HEAD_OUTPUTS.saturating_sub(MIN_HEAD_OUTPUTS);
        let engine_bytes = arena_bytes(base, context).checked_add(4 * more_outputs)?;
        let features = context.checked_mul(width)?.checked_mul(4)?;
        let input_bytes = features.checked_add(2 * tokens)?.checked_next_multiple_of(ALIGN)?;
        Some(Self { engine_bytes, input_bytes, tokens })
    }
}

struct App<B: Board> {
    base: Base<'static>,
    engine: Engine<'static>,
    slots: Partition<Mapped<B::Slots>>,
    identity: Identity,
    verifier: Verify,
    counter: B::Counter,
    stack: B::Stack,
    /// Feature rows as the host sends them, `[max_rows, width]`.
    features: &'static mut [f32],
    /// Rows of them that were made of samples.
    clip_rows: usize,
    /// Ids of a text.
    tokens: &'static mut [u16],
    /// Memory for merged weights, while no adapter is merged.
    merge: Option<&'static mut [u8]>,
    merge_bytes: usize,
    engine_bytes: usize,
    arena_bytes: usize,
    chunk_bytes: u16,
    window: u8,
    /// What the engine runs besides the base.
    running: Option<Running>,
    /// Ticks at which the trial under way ends.
    trial_ends: Option<u64>,
    generation: Option<Generation>,
    /// Whether a host has been heard since the start.
    heard: bool,
    frames: u32,
    bad_frames: u32,
    rows: u64,
    run_ticks: u64,
    installs: u32,
    activations: u32,
    detaches: u32,
    rollbacks: u32,
    failed_self_tests: u32,
}

impl<B: Board> App<B> {
    /// `None` if the arena is too small for the base.
    fn new(
        base: Base<'static>,
        arena: &'static mut [u8],
        slots: Partition<Mapped<B::Slots>>,
        counter: B::Counter,
        stack: B::Stack,
        (chunk_bytes, window): (u16, u8),
    ) -> Option<Self> {
        let arena_len = arena.len();
        let Needs { engine_bytes, input_bytes, tokens } = Needs::new::<B>(&base)?;
        let context = context::<B>(&base);
        let (engine, rest) = arena.split_at_mut_checked(engine_bytes)?;
        let (input, merge) = rest.split_at_mut_checked(input_bytes)?;
        let engine = Engine::new(base, engine, context).ok()?;
        let (token_bytes, features) = input.split_at_mut_checked(2 * tokens)?;
        // A base reads either tokens or features, so one of the two is empty and both are aligned.
        let features_bytes = features.len() / 4 * 4;
        let features = if tokens == 0 {
            bytemuck::try_cast_slice_mut(features.get_mut(..features_bytes)?).ok()?
        } else {
            &mut []
        };
        Some(Self {
            base,
            engine,
            slots,
            identity: Identity { product: firmware::product(), base_id: base.id() },
            verifier: firmware::VERIFIER,
            counter,
            stack,
            features,
            clip_rows: 0,
            tokens: bytemuck::try_cast_slice_mut(token_bytes).ok()?,
            merge_bytes: merge.len(),
            merge: Some(merge),
            engine_bytes,
            arena_bytes: arena_len,
            chunk_bytes,
            window,
            running: None,
            trial_ends: None,
            generation: None,
            heard: false,
            frames: 0,
            bad_frames: 0,
            rows: 0,
            run_ticks: 0,
            installs: 0,
            activations: 0,
            detaches: 0,
            rollbacks: 0,
            failed_self_tests: 0,
        })
    }

    /// Whether nothing happens until a byte comes.
    fn may_sleep(&self) -> bool {
        self.generation.is_none() && self.trial_ends.is_none()
    }

    fn request(&mut self, link: &mut B::Link, id: u8, request: Request<'_>) {
        if !core::mem::replace(&mut self.heard, true) {
            // The first activation after a reset then writes one word, like any other.
            let _ = self.slots.prepare();
        }
        let done = match request {
            // As of a base that reads no text.
            Request::Generate { .. } if !TEXT => Err(refuse(ErrorCode::WrongInput, 0, 1)),
            Request::RunText { .. } | Request::Spans { .. } if !TEXT => {
                Err(refuse(ErrorCode::WrongInput, 1, 0))
            }
            Request::Generate { prompt, max_tokens, temperature, seed } => {
                self.start_generating(id, prompt, max_tokens, temperature, seed)
            }
            // What is running reads the sequence and the adapter that it began with.
            _ if self.generation.is_some() && disturbs(&request) => Err(refuse(ErrorCode::Busy, 0, 0)),
            Request::Output { offset } => self.send_output(link, id, offset as usize, 0),
            Request::Run { rows } => {
                self.run_features(rows as usize).and_then(|ticks| self.send_output(link, id, 0, ticks))
            }
            Request::RunSamples => {
                self.run_features(self.clip_rows).and_then(|ticks| self.send_output(link, id, 0, ticks))
            }
            Request::RunText { text } => {
                self.run_text(text).and_then(|ticks| self.send_output(link, id, 0, ticks))
            }
            Request::Spans { text } => self.run_spans(link, id, text),
            request => self.act(request).map(|response| send(link, id, &response)),
        };
        if let Err(refusal) = done {
            info!("refused");
            send(link, id, &refusal.into());
        }
    }

    fn info(&self) -> Response<'static> {
        let mut ids = firmware::key_ids();
        Response::Info {
            board: B::NAME,
            firmware: env!("CARGO_PKG_VERSION"),
            base: self.base.manifest().name,
            base_id: self.base.id(),
            n_sites: self.base.n_sites(),
            n_slots: self.slots.n_slots() as u8,
            slot_bytes: self.slots.max_file_bytes() as u32,
            chunk_bytes: self.chunk_bytes,
            window: self.window,
            product: self.identity.product,
            keys: [ids.next(), ids.next()],
            insecure: INSECURE,
            arena_bytes: (self.arena_bytes as u32, self.engine_bytes as u32),
            active: self.active(),
        }
    }

    fn active(&self) -> Option<Active> {
        self.running.as_ref().map(|running| running.active)
    }

    fn status(&self) -> Response<'static> {
        let state = self.slots.state();
        let slot =
            |activation: Option<rankpatch_runtime::slots::Activation>| activation.map(|a| a.slot as u8);
        Response::Status(Status {
            running: self.active(),
            trial: slot(state.trial),
            confirmed: slot(state.confirmed),
            previous: slot(state.previous),
            rolled_back: state.rolled_back.map(|slot| slot as u8),
            sequence: self.engine.adapter().map_or(0, |adapter| adapter.header().sequence),
            floor: state.floor,
            upload: self
                .slots
                .upload()
                .map(|(slot, announcement, progress)| (slot as u8, progress.next(), announcement.len)),
        })
    }

    /// Requests with one answer that borrows nothing.
    fn act(&mut self, request: Request<'_>) -> Result<Response<'static>, Refusal> {
        match request {
            Request::Info => Ok(self.info()),
            Request::Status => Ok(self.status()),
            Request::Activate { slot, mode, trial_seconds } => {
                self.activate(Active { slot, mode }, trial_seconds)
            }
            Request::Confirm { slot } => self.confirm(slot),
            Request::Rollback { slot } => self.roll_back(slot),
            Request::Detach => self.deactivate(),
            Request::SelfTest => {
                let start = self.counter.ticks();
                let digest = self.self_test()?;
                Ok(Response::Tested { digest, ticks: self.counter.ticks() - start })
            }
            Request::Features { offset, data } => self.store_features(offset as usize, data),
            Request::Samples { offset, data } => self.store_samples(offset as usize, data),
            Request::Statistics => Ok(Response::Statistics {
                frames: self.frames,
                bad_frames: self.bad_frames,
                rows: self.rows,
                run_ticks: self.run_ticks,
                installs: self.installs,
                activations: self.activations,
                detaches: self.detaches,
                failed_self_tests: self.failed_self_tests,
                rollbacks: self.rollbacks,
                peak_stack_bytes: self.stack.peak() as u32,
            }),
            Request::Log { on } => {
                tap::TAP.listen(on);
                Ok(Response::Done)
            }
            // Answered elsewhere.
            _ => Err(refuse(ErrorCode::UnknownMessage, 0, 0)),
        }
    }
}

/// Sends what was logged, if a host listens.
#[inline(never)]
fn send_log(link: &mut impl Link) {
    let mut bytes = [0; LOG_BYTES];
    let (lost, len) = tap::TAP.take(&mut bytes);
    if len > 0 {
        send(link, UNASKED, &Response::Log { lost, data: bytes.get(..len).unwrap_or(&[]) });
    }
}

/// Whether a request would change what a text is generated with, or needs the engine.
fn disturbs(request: &Request<'_>) -> bool {
    !matches!(
        request,
        Request::Info | Request::Status | Request::Confirm { .. } | Request::Statistics | Request::Log { .. }
    )
}

/// The caller's bit of an activation in flash: whether it is merged.
fn mode_of(flag: bool) -> Mode {
    if flag { Mode::Merged } else { Mode::Streamed }
}

const _: () = assert!(FILE_OFFSET.is_multiple_of(ALIGN), "adapters are read in place");
