//! Frames and messages between a host and a device. Pure data: no clock, no port, no state but a frame buffer.
//!
//! A frame is COBS(version, request number, postcard message, CRC-32 little-endian), then one zero byte. The host
//! numbers its requests; a device answers each with the same number, so that a lost or repeated answer is noticed.
//! Uploads are cut into chunks at byte offsets; the device answers each with the offset that it needs next, so several
//! may be in flight and a broken upload goes on where it stopped.

use serde::{Deserialize, Serialize};

use crate::{BaseId, Error, Result, VERSION};

/// Most bytes of data in one message.
pub const MAX_DATA_BYTES: usize = 1024;
/// Most bytes between the COBS bounds: a message with its data, frame overhead included.
pub const MAX_MESSAGE_BYTES: usize = MAX_DATA_BYTES + 128;
/// Most bytes of a frame on the wire: COBS adds one byte per 254 at most, then the delimiter.
pub const MAX_FRAME_BYTES: usize = MAX_MESSAGE_BYTES + MAX_MESSAGE_BYTES / 254 + 2;

const OVERHEAD_BYTES: usize = 2 + 4;

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
    /// Starts or resumes an upload. Answer: [`Response::Progress`] with the offset to go on from.
    Begin {
        /// The slot to write; it must not be active.
        slot: u8,
        /// Bytes of the adapter file.
        len: u32,
        /// CRC-32 of the whole file: a second `Begin` with the same `slot`, `len` and `crc` resumes.
        crc: u32,
    },
    /// Bytes of the file. Answer: [`Response::Progress`]; a chunk at another offset than the needed one is not stored.
    Chunk {
        /// Offset in the file.
        offset: u32,
        /// At most [`MAX_DATA_BYTES`].
        data: &'a [u8],
    },
    /// Checks what was written and commits it. Answer: [`Response::Done`].
    Finish,
    /// Erases a slot that is not active. Answer: [`Response::Done`].
    Remove {
        /// Index of the slot.
        slot: u8,
    },
    /// Applies the adapter in a slot and runs its self-test; if that fails, the adapter before is applied again.
    /// Answer: [`Response::Activated`].
    Activate {
        /// Index of the slot.
        slot: u8,
        /// How.
        mode: Mode,
    },
    /// Goes back to the plain base. Answer: [`Response::Done`].
    Detach,
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
        /// Bytes of the arena, and how many of them the base needs.
        arena_bytes: (u32, u32),
        /// What is applied; `None` is the plain base.
        active: Option<Active>,
    },
    /// About a slot.
    Slot {
        /// Index of the slot.
        slot: u8,
        /// The adapter in it, if there is one that fits the base.
        adapter: Option<SlotInfo<'a>>,
    },
    /// The offset that an upload needs next.
    Progress {
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
        /// Deepest use of the stack so far, in bytes.
        peak_stack_bytes: u32,
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
}

/// The adapter in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotInfo<'a> {
    /// Name of the task.
    pub task: &'a str,
    /// Sequence number.
    pub sequence: u32,
    /// Bytes of the file.
    pub file_bytes: u32,
    /// Sites patched.
    pub n_patches: u16,
    /// Outputs of its own head; 0 for none.
    pub head_outputs: u16,
}

/// Why a device refuses a request. Numbers never change their meaning; new ones are added at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorCode {
    /// A file or a section ends too early.
    Truncated,
    /// Bytes follow the end.
    TrailingBytes,
    /// Wrong magic.
    BadMagic,
    /// Unknown version.
    UnknownVersion,
    /// Wrong checksum.
    Corrupt,
    /// A field cannot be decoded.
    Malformed,
    /// The adapter is for another base; the numbers are the first four bytes of the identities.
    WrongBase,
    /// A rank is zero or too high.
    RankOutOfRange,
    /// A scale is not positive and finite; `found` is its bit pattern, `expected` the site.
    BadScale,
    /// A number is not finite.
    NotFinite,
    /// No such site.
    UnknownSite,
    /// Sites do not ascend.
    SitesOutOfOrder,
    /// A site occurs twice.
    DuplicateSite,
    /// The adapter would do nothing.
    NothingToApply,
    /// A value is too high.
    OutOfRange,
    /// Shapes do not fit.
    ShapeMismatch,
    /// A section is not on its boundary.
    Misaligned,
    /// The arena plan is invalid.
    PlanOverlap,
    /// A buffer is too small.
    BufferTooSmall,
    /// The arena is too small.
    ArenaTooSmall,
    /// The prompt or the sequence is longer than the context.
    SequenceTooLong,
    /// A token id is outside the vocabulary.
    UnknownToken,
    /// The network reads the other kind of input.
    WrongInput,
    /// The self-test's digest differs; the numbers are the low halves of the digests.
    SelfTestFailed,
    /// No adapter is active.
    NothingActive,
    /// No such slot.
    NoSuchSlot,
    /// The slot holds no adapter that fits.
    EmptySlot,
    /// The slot is active.
    SlotActive,
    /// No upload is under way.
    NoUpload,
    /// The upload is not complete.
    Incomplete,
    /// The flash reported an error.
    Flash,
    /// The memory for merging is too small.
    MergeBufferTooSmall,
    /// The message is not understood.
    UnknownMessage,
    /// The base cannot be read; the device can only say so.
    NoBase,
}

impl From<Error> for Response<'_> {
    fn from(error: Error) -> Self {
        use ErrorCode as C;
        let head = |id: BaseId| u32::from_be_bytes(*id.0.first_chunk().unwrap_or(&[0; 4]));
        let version3 = |m: [u8; 3]| u32::from_be_bytes([0, m[0], m[1], m[2]]);
        let (code, expected, found) = match error {
            Error::Truncated { expected, found, .. } => (C::Truncated, expected, found),
            Error::TrailingBytes { expected, found, .. } => (C::TrailingBytes, expected, found),
            Error::BadMagic { expected, found } => (C::BadMagic, version3(expected), version3(found)),
            Error::UnknownVersion { expected, found } => (C::UnknownVersion, expected.into(), found.into()),
            Error::Corrupt { expected, found } => (C::Corrupt, expected, found),
            Error::Malformed { .. } => (C::Malformed, 0, 0),
            Error::WrongBase { expected, found } => (C::WrongBase, head(expected), head(found)),
            Error::RankOutOfRange { rank, max, .. } => (C::RankOutOfRange, max, rank),
            Error::BadScale { owner, value, .. } => (C::BadScale, owner.into(), value.to_bits()),
            Error::NotFinite { index, .. } => (C::NotFinite, 0, index),
            Error::UnknownSite { site, n_sites } => (C::UnknownSite, n_sites.into(), site.into()),
            Error::SitesOutOfOrder { previous, found } => (C::SitesOutOfOrder, previous.into(), found.into()),
            Error::DuplicateSite { site } => (C::DuplicateSite, 1, site.into()),
            Error::NothingToApply => (C::NothingToApply, 1, 0),
            Error::OutOfRange { found, max, .. } => (C::OutOfRange, max, found),
            Error::ShapeMismatch { expected, found, .. } => (C::ShapeMismatch, expected, found),
            Error::Misaligned { expected, found, .. } => (C::Misaligned, expected, found),
            Error::PlanOverlap { first, second } => (C::PlanOverlap, first.into(), second.into()),
            Error::BufferTooSmall { expected, found, .. } => (C::BufferTooSmall, expected, found),
        };
        Self::Error { code, expected, found }
    }
}

/// Writes a frame with `message` and the number `id` into `frame` and returns its bytes, delimiter included.
///
/// `scratch` holds the message before stuffing; both buffers are large enough with [`MAX_MESSAGE_BYTES`] and
/// [`MAX_FRAME_BYTES`].
///
/// # Errors
/// [`Error::BufferTooSmall`] if a buffer cannot hold the message.
pub fn encode<'f>(
    id: u8,
    message: &impl Serialize,
    scratch: &mut [u8],
    frame: &'f mut [u8],
) -> Result<&'f [u8]> {
    let too_small = |what, found: usize| Error::BufferTooSmall {
        what,
        expected: MAX_FRAME_BYTES as u32,
        found: found as u32,
    };
    let (scratch_len, frame_len) = (scratch.len(), frame.len());
    let (head, body) =
        scratch.split_first_chunk_mut::<2>().ok_or(too_small("message buffer", scratch_len))?;
    *head = [VERSION, id];
    let len =
        2 + postcard::to_slice(message, body).map_err(|_| too_small("message buffer", scratch_len))?.len();
    let crc = crate::crc32(scratch.get(..len).unwrap_or(&[]));
    scratch
        .get_mut(len..len + 4)
        .ok_or(too_small("message buffer", scratch_len))?
        .copy_from_slice(&crc.to_le_bytes());
    let message = scratch.get(..len + 4).unwrap_or(&[]);
    // COBS needs at most one byte more per 254 and one to begin with; checked here because its encoder trusts us.
    if frame_len < message.len() + message.len() / 254 + 2 {
        return Err(too_small("frame buffer", frame_len));
    }
    let stuffed = cobs::try_encode(message, frame).map_err(|_| too_small("frame buffer", frame_len))?;
    if let Some(delimiter) = frame.get_mut(stuffed) {
        *delimiter = 0;
    }
    Ok(frame.get(..=stuffed).unwrap_or(&[]))
}

/// The number and the message of an unstuffed frame.
///
/// # Errors
/// [`Error::Truncated`], [`Error::Corrupt`], [`Error::UnknownVersion`], [`Error::Malformed`],
/// [`Error::TrailingBytes`].
pub fn decode<'a, M: Deserialize<'a>>(message: &'a [u8]) -> Result<(u8, M)> {
    let (content, crc) = message.split_last_chunk::<4>().ok_or(Error::Truncated {
        what: "frame",
        expected: OVERHEAD_BYTES as u32,
        found: message.len() as u32,
    })?;
    let (expected, found) = (u32::from_le_bytes(*crc), crate::crc32(content));
    if expected != found {
        return Err(Error::Corrupt { expected, found });
    }
    let ([version, id], body) = content.split_first_chunk::<2>().ok_or(Error::Truncated {
        what: "frame",
        expected: OVERHEAD_BYTES as u32,
        found: message.len() as u32,
    })?;
    if *version != VERSION {
        return Err(Error::UnknownVersion { expected: VERSION, found: *version });
    }
    let (message, rest) =
        postcard::take_from_bytes(body).map_err(|_| Error::Malformed { what: "message" })?;
    if !rest.is_empty() {
        return Err(Error::TrailingBytes {
            what: "message",
            expected: (body.len() - rest.len()) as u32,
            found: body.len() as u32,
        });
    }
    Ok((*id, message))
}

/// Collects bytes into frames: bytes in, unstuffed messages out. Garbage between frames is skipped at the next
/// delimiter.
#[derive(Debug, Default)]
pub struct Deframer {
    buffer: heapless::Vec<u8, MAX_FRAME_BYTES>,
    overrun: bool,
    complete: bool,
}

/// What a byte completed.
#[derive(Debug, PartialEq, Eq)]
pub enum Framed<'a> {
    /// Nothing yet.
    Incomplete,
    /// The content of a frame, to be given to [`decode`]; readable until the next byte is pushed.
    Message(&'a [u8]),
    /// A frame that is too long or not stuffed correctly.
    Bad,
}

impl Deframer {
    /// A deframer that waits for a frame.
    pub const fn new() -> Self {
        Self { buffer: heapless::Vec::new(), overrun: false, complete: false }
    }

    /// Takes one byte from the wire.
    pub fn push(&mut self, byte: u8) -> Framed<'_> {
        if core::mem::take(&mut self.complete) {
            self.buffer.clear();
        }
        if byte != 0 {
            self.overrun |= self.buffer.push(byte).is_err();
            return Framed::Incomplete;
        }
        if self.buffer.is_empty() {
            return Framed::Incomplete;
        }
        self.complete = true;
        if core::mem::take(&mut self.overrun) {
            return Framed::Bad;
        }
        match cobs::decode_in_place(&mut self.buffer) {
            Ok(len) => Framed::Message(self.buffer.get(..len).unwrap_or(&[])),
            Err(_) => Framed::Bad,
        }
    }
}
