//! Frames and messages between a host and a device, version 2. Pure data: no clock, no port, no state but a frame buffer.
//!
//! A frame is COBS(version, request number, postcard message, CRC-32 little-endian), then one zero byte. The host
//! numbers its requests from 1 to 255 and around; a device answers each with the same number, so that a lost or repeated
//! answer is noticed. Number 0 is the log's, which is sent unasked. Uploads are cut into chunks at byte offsets; the device
//! says which offset it needs next, so several may be in flight and a broken upload goes on where it stopped.

mod error;
mod frame;
#[cfg(all(test, feature = "_fixtures"))]
pub(crate) mod tests;

use serde::{Deserialize, Serialize};

use crate::{BaseId, KeyId, ProductId};

pub use error::{ErrorCode, Refusal};
pub use frame::{Deframer, Framed, decode, encode, write_frame};

/// The version of the link. Devices and hosts refuse any other.
pub const VERSION: u8 = 2;
/// Most bytes of data in one message other than a chunk.
pub const MAX_DATA_BYTES: usize = 1024;
/// Most bytes of a chunk that any device asks for; [`Response::Info`] says how many it does.
pub const MAX_CHUNK_BYTES: usize = 4096;
/// Offsets of chunks are multiples of this, so that no word of any flash is written in two pieces.
pub const CHUNK_ALIGN: u32 = 32;
/// Most bytes of a message around its data, frame overhead included.
pub const MESSAGE_OVERHEAD_BYTES: usize = 128;
/// Most bytes between the COBS bounds: a message with its data, frame overhead included.
pub const MAX_MESSAGE_BYTES: usize = MAX_DATA_BYTES + MESSAGE_OVERHEAD_BYTES;
/// Most bytes of a frame on the wire: COBS adds one byte per 254 at most, then the delimiter.
pub const MAX_FRAME_BYTES: usize = frame_bytes(MAX_DATA_BYTES);

/// Bytes of the largest frame whose message carries `data` bytes.
pub const fn frame_bytes(data: usize) -> usize {
    let message = data + MESSAGE_OVERHEAD_BYTES;
    message + message / 254 + 2
}

/// Number of frames that belong to no request.
pub const UNASKED: u8 = 0;

/// How an adapter is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// y = W0 x + s B (A x), factors read in place.
    Streamed,
    /// W' = W0 + s B A, written into memory of its own.
    Merged,
}

/// What a host asks. The order of the variants is part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Request<'a> {
    /// Answer: [`Response::Info`].
    Info,
    /// Answer: [`Response::Slot`].
    Slot {
        /// Index of the slot.
        slot: u8,
    },
    /// Starts or resumes an upload: the same announcement again goes on where the slot's content says. Refused by what
    /// the header says before anything is erased. Answer: [`Response::Progress`] with the offset to go on from; the length
    /// of the file if it is installed already.
    Begin {
        /// The slot to write, or whichever the device chooses.
        slot: Option<u8>,
        /// The file's first 64 bytes.
        header: &'a [u8],
        /// SHA-256 of the whole file.
        sha256: &'a [u8],
    },
    /// Bytes of the file. Answer: [`Response::Progress`] if `answer` asks for it, and always for a chunk that is not the next one.
    /// Only the next one is stored; of one that lies before it the bytes are compared.
    Chunk {
        /// Whether an answer is wanted when it is stored.
        answer: bool,
        /// Offset in the file, a multiple of [`CHUNK_ALIGN`].
        offset: u32,
        /// At most as many bytes as the device announces, a multiple of [`CHUNK_ALIGN`] unless they end the file.
        data: &'a [u8],
    },
    /// Reads what was written back from flash, verifies and commits it. Answer: [`Response::Slot`]. Finishing what is
    /// finished gives the same answer.
    Finish,
    /// Ends an upload and erases what is there of it. Answer: [`Response::Done`], also if there is none.
    Abort,
    /// Erases a slot that is not in use. Answer: [`Response::Done`], also if it is empty.
    Remove {
        /// Index of the slot.
        slot: u8,
    },
    /// Applies the adapter in a slot, runs its self-test and puts it on trial; if the self-test fails, the adapter before is
    /// applied again. A trial ends with [`Request::Confirm`], or falls back at a reset or at its deadline.
    /// Answer: [`Response::Activated`].
    Activate {
        /// Index of the slot.
        slot: u8,
        /// How.
        mode: Mode,
        /// Seconds of the trial; 0 for no deadline.
        trial_seconds: u32,
    },
    /// Makes the trial of a slot permanent. Answer: [`Response::Status`], also if it is confirmed already.
    Confirm {
        /// The slot that is on trial.
        slot: u8,
    },
    /// Goes back from a slot, if it runs: from a trial to what was confirmed, otherwise to what was confirmed before that.
    /// Answer: [`Response::Status`].
    Rollback {
        /// The slot to leave.
        slot: u8,
    },
    /// Goes back to the plain base, also after resets. Answer: [`Response::Done`].
    Detach,
    /// What runs, what would run after a reset, and how far an upload is. Answer: [`Response::Status`].
    Status,
    /// Runs the self-test of the active adapter. Answer: [`Response::Tested`].
    SelfTest,
    /// Stores input features, f32 little-endian. Answer: [`Response::Done`].
    Features {
        /// Index of the first number, counted over all rows.
        offset: u32,
        /// At most [`MAX_DATA_BYTES`], a multiple of 4.
        data: &'a [u8],
    },
    /// Runs the network over the first `rows` stored feature rows. Answer: [`Response::Output`].
    Run {
        /// Rows.
        rows: u32,
    },
    /// Runs the network over a text. Answer: [`Response::Output`].
    RunText {
        /// UTF-8.
        text: &'a str,
    },
    /// More of the last output. Answer: [`Response::Output`].
    Output {
        /// Index of the first number wanted.
        offset: u32,
    },
    /// Continues a text. Answers: [`Response::Token`] each, then [`Response::Generated`].
    Generate {
        /// UTF-8; may be empty.
        prompt: &'a str,
        /// Most tokens to add.
        max_tokens: u32,
        /// 0 is greedy; otherwise logits are divided by it.
        temperature: f32,
        /// Seed of the sampler.
        seed: u32,
    },
    /// Answer: [`Response::Statistics`].
    Statistics,
    /// Turns the log on or off. Answer: [`Response::Done`]; then [`Response::Log`], unasked, for as long as it is on.
    Log {
        /// Whether log frames are wanted.
        on: bool,
    },
    /// Makes feature rows of samples, i16 little-endian, and stores them. Offset 0 begins a clip; samples that are there already are
    /// skipped. Answer: [`Response::Done`].
    Samples {
        /// Index of the first sample, counted from the beginning of the clip.
        offset: u32,
        /// At most [`MAX_DATA_BYTES`], a multiple of 2.
        data: &'a [u8],
    },
    /// Runs the network over the rows that were made of samples. Answer: [`Response::Output`].
    RunSamples,
    /// Tells the spans of a text, with an adapter whose head answers after each row. Answers: [`Response::Span`] each, then
    /// [`Response::Spans`].
    Spans {
        /// UTF-8.
        text: &'a str,
    },
}

/// What is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Active {
    /// Index of the slot.
    pub slot: u8,
    /// How.
    pub mode: Mode,
}

/// What a device answers. The order of the variants is part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Response<'a> {
    /// About the device.
    Info {
        /// Name of the board.
        board: &'a str,
        /// Version of the firmware.
        firmware: &'a str,
        /// Name of the base.
        base: &'a str,
        /// Identity of the base.
        base_id: BaseId,
        /// Sites of the base.
        n_sites: u16,
        /// Adapter slots.
        n_slots: u8,
        /// Bytes of a slot that a file may take.
        slot_bytes: u32,
        /// Bytes of a chunk.
        chunk_bytes: u16,
        /// Chunks that may be in flight.
        window: u8,
        /// The product that adapters must be signed for.
        product: ProductId,
        /// The keys that may sign them.
        keys: [Option<KeyId>; 2],
        /// Whether unsigned adapters are accepted.
        insecure: bool,
        /// Bytes of the arena, and how many of them the base needs.
        arena_bytes: (u32, u32),
        /// What is applied; `None` is the plain base.
        active: Option<Active>,
    },
    /// About a slot.
    Slot {
        /// Index of the slot.
        slot: u8,
        /// How often it was erased.
        wear: u32,
        /// The adapter in it, if one is installed that fits the base.
        adapter: Option<SlotInfo<'a>>,
    },
    /// The offset that an upload needs next.
    Progress {
        /// The slot that is written.
        slot: u8,
        /// Offset in the file.
        next: u32,
    },
    /// Done.
    Done,
    /// An adapter is applied and has passed its self-test.
    Activated {
        /// Sites patched.
        n_patches: u16,
        /// Weight bytes copied: 0 when streamed.
        weight_bytes_copied: u32,
        /// Ticks that attaching took.
        ticks: u64,
        /// Digest of the self-test.
        digest: u64,
    },
    /// What runs and what is kept.
    Status(Status),
    /// The self-test passed.
    Tested {
        /// Digest, as stated and as found.
        digest: u64,
        /// Ticks it took.
        ticks: u64,
    },
    /// Output of a run.
    Output {
        /// Numbers in the output.
        n_out: u32,
        /// Index of the greatest.
        argmax: u32,
        /// Digest of the whole output.
        digest: u64,
        /// Ticks of the run.
        ticks: u64,
        /// Index of the first number in `values`.
        offset: u32,
        /// f32 little-endian.
        values: &'a [u8],
    },
    /// A generated token.
    Token {
        /// Its id.
        id: u16,
        /// The bytes it adds to the text.
        text: &'a [u8],
    },
    /// The end of a generated text.
    Generated {
        /// Tokens generated.
        n_tokens: u32,
        /// Digest over the logits of every step.
        digest: u64,
        /// Ticks it took, sending not included.
        ticks: u64,
    },
    /// Counters since start.
    Statistics {
        /// Frames received and accepted.
        frames: u32,
        /// Frames received and refused (COBS, checksum, version, unknown message).
        bad_frames: u32,
        /// Rows that the network was run over.
        rows: u64,
        /// Ticks spent in the network.
        run_ticks: u64,
        /// Adapters installed, activated, detached.
        installs: u32,
        /// Activations.
        activations: u32,
        /// Times the plain base came back.
        detaches: u32,
        /// Self-tests that failed.
        failed_self_tests: u32,
        /// Adapters that were left because a trial ended without being confirmed.
        rollbacks: u32,
        /// Deepest use of the stack so far, in bytes.
        peak_stack_bytes: u32,
    },
    /// Bytes of the device's log, defmt frames as its other log outputs carry them. Its frame has the number [`UNASKED`].
    Log {
        /// Bytes that were lost since the start, because the link was busy.
        lost: u32,
        /// The bytes.
        data: &'a [u8],
    },
    /// The request was refused; nothing has changed.
    Error {
        /// Why.
        code: ErrorCode,
        /// What was expected, if that is a number.
        expected: u32,
        /// What was found, if that is a number.
        found: u32,
    },
    /// A part of a text and what it is.
    Span {
        /// Its first byte in the text.
        start: u32,
        /// The byte behind it.
        end: u32,
        /// What it is.
        kind: &'a str,
    },
    /// The end of the spans of a text.
    Spans {
        /// Spans that were told.
        n_spans: u32,
        /// Digest over the outputs after each word.
        digest: u64,
        /// Ticks it took, sending not included.
        ticks: u64,
    },
}

/// What runs now, as the engine knows it, and what the flash says would run after a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// What the engine runs; `None` is the plain base.
    pub running: Option<Active>,
    /// What is on trial: running, and gone after a reset unless it is confirmed.
    pub trial: Option<u8>,
    /// What is confirmed: what runs after a reset.
    pub confirmed: Option<u8>,
    /// What was confirmed before.
    pub previous: Option<u8>,
    /// The slot that was rolled back last, until it is activated again or erased.
    pub rolled_back: Option<u8>,
    /// Sequence number of what runs; 0 for the plain base.
    pub sequence: u32,
    /// Highest sequence number that was ever installed.
    pub floor: u32,
    /// An upload under way: its slot, the offset that it needs next, its length.
    pub upload: Option<(u8, u32, u32)>,
}

/// The adapter in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotInfo<'a> {
    /// Name of the task.
    pub task: &'a str,
    /// Sequence number.
    pub sequence: u32,
    /// The key that signed it; [`KeyId::UNSIGNED`] for none.
    pub key_id: KeyId,
    /// Bytes of the file.
    pub file_bytes: u32,
    /// Sites patched.
    pub n_patches: u16,
    /// Outputs of its own head; 0 for none.
    pub head_outputs: u16,
}
