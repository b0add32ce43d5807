//! The answers of a device as values of their own: what [`rankpatch_format::link::Response`] borrows from the frame
//! buffer.

use rankpatch_format::KeyId;
use rankpatch_format::link::{Mode, Response};
use serde::{Serialize, Serializer};

use super::error::Refusal;
use crate::data::text::TextSpan;

/// About a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Info {
    /// Name of the board.
    pub board: String,
    /// Version of the firmware.
    pub firmware: String,
    /// Name of the base.
    pub base: String,
    /// Identity of the base.
    #[serde(serialize_with = "display")]
    pub base_id: rankpatch_format::BaseId,
    /// Sites of the base.
    pub n_sites: u16,
    /// Adapter slots.
    pub n_slots: u8,
    /// Bytes of a slot that a file may take.
    pub slot_bytes: u32,
    /// Bytes of a chunk of an upload.
    pub chunk_bytes: u16,
    /// Chunks that may be in flight.
    pub window: u8,
    /// The product that adapters must be signed for.
    #[serde(serialize_with = "display")]
    pub product: rankpatch_format::ProductId,
    /// The ids of the keys that may sign them.
    pub keys: Vec<String>,
    /// Whether unsigned adapters are accepted.
    pub insecure: bool,
    /// Bytes of the arena.
    pub arena_bytes: u32,
    /// Bytes of the arena that the base needs.
    pub arena_bytes_needed: u32,
    /// What is applied; `None` is the plain base.
    pub active: Option<Active>,
}

/// What is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Active {
    /// Index of the slot.
    pub slot: u8,
    /// How.
    #[serde(serialize_with = "mode")]
    pub mode: Mode,
}

/// A slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// Index of the slot.
    pub slot: u8,
    /// How often it was erased.
    pub wear: u32,
    /// The adapter in it, if one is installed that fits the base.
    pub adapter: Option<Installed>,
}

/// The adapter in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// Name of the task.
    pub task: String,
    /// Sequence number.
    pub sequence: u32,
    /// The key that signed it; `None` for an unsigned one.
    pub key_id: Option<String>,
    /// Bytes of the file.
    pub file_bytes: u32,
    /// Sites patched.
    pub n_patches: u16,
    /// Outputs of its own head; 0 for none.
    pub head_outputs: u16,
}

/// What runs and what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Status {
    /// What the engine runs; `None` is the plain base.
    pub running: Option<Active>,
    /// The slot on trial: running, and left again unless it is confirmed.
    pub trial: Option<u8>,
    /// The slot that is confirmed: what runs after a reset.
    pub confirmed: Option<u8>,
    /// The slot that was confirmed before.
    pub previous: Option<u8>,
    /// The slot that was rolled back last.
    pub rolled_back: Option<u8>,
    /// Sequence number of what runs; 0 for the plain base.
    pub sequence: u32,
    /// Highest sequence number that was ever installed.
    pub floor: u32,
    /// An upload under way: slot, offset needed next, length.
    pub upload: Option<(u8, u32, u32)>,
}

/// An activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Activated {
    /// Sites patched.
    pub n_patches: u16,
    /// Weight bytes copied: 0 when streamed.
    pub weight_bytes_copied: u32,
    /// Ticks that attaching took.
    pub ticks: u64,
    /// Digest of the self-test.
    #[serde(serialize_with = "hex")]
    pub digest: u64,
}

/// A self-test that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tested {
    /// Digest, as stated and as found.
    #[serde(serialize_with = "hex")]
    pub digest: u64,
    /// Ticks it took.
    pub ticks: u64,
}

/// A part of an output.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub(super) n_out: u32,
    pub(super) argmax: u32,
    pub(super) digest: u64,
    pub(super) ticks: u64,
    pub(super) offset: u32,
    pub(super) values: Vec<f32>,
}

/// The output of a run, complete and checked against its digest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Output {
    /// The numbers.
    pub values: Vec<f32>,
    /// Index of the greatest.
    pub argmax: u32,
    /// Their digest.
    #[serde(serialize_with = "hex")]
    pub digest: u64,
    /// Ticks of the run.
    pub ticks: u64,
}

/// A generated text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Generated {
    /// The ids of its tokens.
    pub ids: Vec<u16>,
    /// Its bytes, without the prompt; shown with U+FFFD where they are no UTF-8.
    #[serde(serialize_with = "lossy")]
    pub text: Vec<u8>,
    /// Digest over the logits of every step.
    #[serde(serialize_with = "hex")]
    pub digest: u64,
    /// Ticks it took.
    pub ticks: u64,
}

/// The spans of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spans {
    /// The spans in their order.
    pub spans: Vec<TextSpan>,
    /// Digest over the outputs after each word.
    #[serde(serialize_with = "hex")]
    pub digest: u64,
    /// Ticks it took.
    pub ticks: u64,
}

/// Counters of a device since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// Frames received and accepted.
    pub frames: u32,
    /// Frames received and refused.
    pub bad_frames: u32,
    /// Rows that the network was run over.
    pub rows: u64,
    /// Ticks spent in the network.
    pub run_ticks: u64,
    /// Adapters installed.
    pub installs: u32,
    /// Activations.
    pub activations: u32,
    /// Times the plain base came back.
    pub detaches: u32,
    /// Self-tests that failed.
    pub failed_self_tests: u32,
    /// Adapters that were left because a trial ended without being confirmed, or on request.
    pub rollbacks: u32,
    /// Deepest use of the stack so far, in bytes.
    pub peak_stack_bytes: u32,
}

/// Any answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Info(Info),
    Slot(Slot),
    Progress { slot: u8, next: u32 },
    Status(Status),
    Log,
    Done,
    Activated(Activated),
    Tested(Tested),
    Output(Part),
    Token { id: u16, text: Vec<u8> },
    Generated { n_tokens: u32, digest: u64, ticks: u64 },
    Span(TextSpan),
    Spans { n_spans: u32, digest: u64, ticks: u64 },
    Statistics(Statistics),
    Refused(Refusal),
}

impl Answer {
    /// Its kind, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Info(_) => "Info",
            Self::Slot(_) => "Slot",
            Self::Progress { .. } => "Progress",
            Self::Status(_) => "Status",
            Self::Log => "Log",
            Self::Done => "Done",
            Self::Activated(_) => "Activated",
            Self::Tested(_) => "Tested",
            Self::Output(_) => "Output",
            Self::Token { .. } => "Token",
            Self::Generated { .. } => "Generated",
            Self::Span(_) => "Span",
            Self::Spans { .. } => "Spans",
            Self::Statistics(_) => "Statistics",
            Self::Refused(_) => "Error",
        }
    }
}

impl From<Response<'_>> for Answer {
    fn from(response: Response<'_>) -> Self {
        match response {
            Response::Info {
                board,
                firmware,
                base,
                base_id,
                n_sites,
                n_slots,
                slot_bytes,
                chunk_bytes,
                window,
                product,
                keys,
                insecure,
                arena_bytes: (arena_bytes, arena_bytes_needed),
                active,
            } => Self::Info(Info {
                board: board.to_owned(),
                firmware: firmware.to_owned(),
                base: base.to_owned(),
                base_id,
                n_sites,
                n_slots,
                slot_bytes,
                chunk_bytes,
                window,
                product,
                keys: keys.iter().flatten().map(ToString::to_string).collect(),
                insecure,
                arena_bytes,
                arena_bytes_needed,
                active: active.map(|active| Active { slot: active.slot, mode: active.mode }),
            }),
            Response::Slot { slot, wear, adapter } => Self::Slot(Slot {
                slot,
                wear,
                adapter: adapter.map(|info| Installed {
                    task: info.task.to_owned(),
                    sequence: info.sequence,
                    key_id: (info.key_id != KeyId::UNSIGNED).then(|| info.key_id.to_string()),
                    file_bytes: info.file_bytes,
                    n_patches: info.n_patches,
                    head_outputs: info.head_outputs,
                }),
            }),
            Response::Progress { slot, next } => Self::Progress { slot, next },
            Response::Log { .. } => Self::Log,
            Response::Status(status) => Self::Status(Status {
                running: status.running.map(|active| Active { slot: active.slot, mode: active.mode }),
                trial: status.trial,
                confirmed: status.confirmed,
                previous: status.previous,
                rolled_back: status.rolled_back,
                sequence: status.sequence,
                floor: status.floor,
                upload: status.upload,
            }),
            Response::Done => Self::Done,
            Response::Activated { n_patches, weight_bytes_copied, ticks, digest } => {
                Self::Activated(Activated { n_patches, weight_bytes_copied, ticks, digest })
            }
            Response::Tested { digest, ticks } => Self::Tested(Tested { digest, ticks }),
            Response::Output { n_out, argmax, digest, ticks, offset, values } => Self::Output(Part {
                n_out,
                argmax,
                digest,
                ticks,
                offset,
                values: values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            }),
            Response::Token { id, text } => Self::Token { id, text: text.to_vec() },
            Response::Generated { n_tokens, digest, ticks } => Self::Generated { n_tokens, digest, ticks },
            Response::Span { start, end, kind } => {
                Self::Span(TextSpan { start: start as usize, end: end as usize, kind: kind.to_owned() })
            }
            Response::Spans { n_spans, digest, ticks } => Self::Spans { n_spans, digest, ticks },
            Response::Statistics {
                frames,
                bad_frames,
                rows,
                run_ticks,
                installs,
                activations,
                detaches,
                failed_self_tests,
                rollbacks,
                peak_stack_bytes,
            } => Self::Statistics(Statistics {
                frames,
                bad_frames,
                rows,
                run_ticks,
                installs,
                activations,
                detaches,
                failed_self_tests,
                rollbacks,
                peak_stack_bytes,
            }),
            Response::Error { code, expected, found } => Self::Refused(Refusal { code, expected, found }),
        }
    }
}

fn display<S: Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// As a string: JSON numbers are exact only up to 2^53.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn hex<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#018x}"))
}

fn lossy<S: Serializer>(text: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(text))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn mode<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(mode_name(*mode))
}

/// The name of a mode, as commands take it.
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Streamed => "streamed",
        Mode::Merged => "merged",
    }
}
