//! What can go wrong between a host and a device, and what to do about it. Every message names what was expected and
//! what was found.

use std::io;

use rankpatch_format::link::ErrorCode;

/// A failure of the device client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The text is no address of a device.
    #[error("bad port: expected tcp:HOST:PORT or PATH[@BAUD], found \"{found}\"")]
    Address {
        /// The text.
        found: String,
    },
    /// The port cannot be opened.
    #[error("cannot open {address}: {source}")]
    Open {
        /// The port.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The port failed or was closed while a request was under way.
    #[error("link lost during {request}: {source}")]
    Io {
        /// The request.
        request: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The device did not answer.
    #[error("no answer to {request}: expected one within {seconds} s, found none in {attempts} attempts")]
    NoAnswer {
        /// The request.
        request: &'static str,
        /// Seconds waited each time.
        seconds: f32,
        /// Times the request was sent.
        attempts: u32,
    },
    /// The device answered that it will not do this; nothing has changed there.
    #[error("device refused {request}: {refusal}")]
    Refused {
        /// The request.
        request: &'static str,
        /// Why.
        refusal: Refusal,
    },
    /// The device answered with a message that does not belong to the request.
    #[error("wrong answer to {request}: expected {expected}, found {found}")]
    WrongAnswer {
        /// The request.
        request: &'static str,
        /// Kind of answer that belongs to it.
        expected: &'static str,
        /// Kind of answer found.
        found: &'static str,
    },
    /// The numbers received are not those that the device computed.
    #[error("output was damaged on the way: expected digest {expected:#018x}, found {found:#018x}")]
    Digest {
        /// Digest that the device states.
        expected: u64,
        /// Digest of the numbers received.
        found: u64,
    },
    /// Tokens of a generated text were lost.
    #[error("generated text is incomplete: expected {expected} tokens, found {found}")]
    LostTokens {
        /// Tokens that the device generated.
        expected: u32,
        /// Tokens received.
        found: u32,
    },
    /// Spans of a text were lost.
    #[error("spans of the text are incomplete: expected {expected}, found {found}")]
    LostSpans {
        /// Spans that the device told.
        expected: u32,
        /// Spans received.
        found: u32,
    },
    /// The device answers, but takes no more bytes.
    #[error("upload makes no progress: expected an offset above {next} of {len}, found it {rounds} times")]
    Stalled {
        /// Times in a row.
        rounds: u32,
        /// The offset that the device asks for.
        next: u32,
        /// Bytes of the file.
        len: u32,
    },
    /// The upload is over, but the slot does not hold the file.
    #[error("slot {slot} does not hold the file after the upload: expected {expected} bytes, found {found}")]
    NotInstalled {
        /// The slot.
        slot: u8,
        /// Bytes of the file.
        expected: u32,
        /// Bytes of the file in the slot; 0 if it is empty.
        found: u32,
    },
    /// No slot can take an upload.
    #[error(
        "no slot is free: expected an empty slot or one with task \"{task}\" that is not active, found {n_slots} others"
    )]
    NoFreeSlot {
        /// The task of the adapter to be uploaded.
        task: String,
        /// Slots of the device.
        n_slots: u8,
    },
    /// No slot holds an adapter for this task.
    #[error("no slot holds task \"{task}\": found {found}")]
    NoSuchTask {
        /// The task asked for.
        task: String,
        /// The tasks that there are.
        found: String,
    },
    /// A text does not fit into one message.
    #[error("text is too long: expected at most {max} bytes, found {found}")]
    TextTooLong {
        /// Most bytes of a text.
        max: usize,
        /// Bytes of the text.
        found: usize,
    },
    /// Features are not whole rows.
    #[error("features do not fit: expected a multiple of {rows} rows, found {found} numbers")]
    Features {
        /// Rows.
        rows: u32,
        /// Numbers.
        found: usize,
    },
    /// A message cannot be encoded.
    #[error(transparent)]
    Format(#[from] rankpatch_format::Error),
}

/// Result of the device client.
pub type Result<T> = std::result::Result<T, ClientError>;

impl ClientError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Open { .. } => {
                Some("is the device connected (or the emulator running), and is the port not in use?")
            }
            Self::NoAnswer { .. } => {
                Some("does the device run Rankpatch firmware at this baud rate? try a longer --timeout")
            }
            Self::Io { .. } => Some("an interrupted push goes on where it stopped when you repeat it"),
            Self::Refused { refusal, .. } => refusal.hint(),
            Self::NoFreeSlot { .. } => Some("remove an adapter, or name the slot to overwrite with --slot"),
            Self::NoSuchTask { .. } => Some("`rankpatch device list` shows what is in the slots"),
            Self::WrongAnswer { .. } => Some("are firmware and host of the same release?"),
            _ => None,
        }
    }
}

/// Why a device refused a request, as it said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub code: ErrorCode,
    /// What the device expected, if that is a number.
    pub expected: u32,
    /// What it found, if that is a number.
    pub found: u32,
}

impl Refusal {
    /// The reason in words.
    pub fn reason(&self) -> &'static str {
        use ErrorCode as C;
        match self.code {
            C::Truncated => "the file ends too early",
            C::TrailingBytes => "bytes follow the end of the file",
            C::BadMagic => "this is no adapter file",
            C::UnknownVersion => "unknown version",
            C::Corrupt => "wrong checksum",
            C::Malformed => "a field cannot be decoded",
            C::WrongBase => "the adapter is for another base",
            C::RankOutOfRange => "a rank is out of range",
            C::BadScale => "a scale is not positive and finite",
            C::NotFinite => "a number is not finite",
            C::UnknownSite => "no such site",
            C::SitesOutOfOrder => "the sites are out of order",
            C::UnknownBias => "no operator adds this bias",
            C::BiasesOutOfOrder => "the biases are out of order",
            C::DuplicateSite => "a site occurs twice",
            C::NothingToApply => "the adapter would do nothing",
            C::OutOfRange => "a value is out of range",
            C::ShapeMismatch => "shapes do not fit",
            C::Misaligned => "a section is not on its boundary",
            C::PlanOverlap => "the arena plan is invalid",
            C::BufferTooSmall => "a buffer is too small",
            C::ArenaTooSmall => "the arena is too small",
            C::SequenceTooLong => "the sequence is longer than the context",
            C::UnknownToken => "a token is outside the vocabulary",
            C::WrongInput => "the network reads another kind of input",
            C::SelfTestFailed => "the self-test's digest differs",
            C::NothingActive => "no adapter is active",
            C::NoSuchSlot => "no such slot",
            C::EmptySlot => "the slot holds no adapter that fits",
            C::SlotActive => "the slot is active",
            C::NoUpload => "no upload is under way",
            C::Incomplete => "the upload is not complete",
            C::Flash => "the flash reported an error",
            C::MergeBufferTooSmall => "the memory for merging is too small",
            C::UnknownMessage => "the message is not understood",
            C::NoBase => "the base cannot be read",
            C::WrongProduct => "the adapter is for another product",
            C::Unsigned => "the adapter is not signed",
            C::UnknownKey => "the adapter is signed with a key that the device does not have",
            C::BadSignature => "the signature does not fit the file",
            C::Stale => "the sequence number is not new",
            C::TooFar => "the sequence number jumps further than its step limit",
            C::UploadUnderWay => "another upload is under way",
            C::NoFreeSlot => "every slot is in use",
            C::OtherBytes => "what is stored differs from what was sent",
            C::Busy => "the device is generating a text",
            C::NoSlots => "the slots' partition cannot be mounted",
            C::NotBuiltIn => "the firmware was built without an operator of the base",
            _ => "unknown reason",
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        use ErrorCode as C;
        match self.code {
            C::WrongBase => Some("train an adapter for the base that `rankpatch device info` names"),
            C::SlotActive => Some("detach it first, or choose another slot"),
            C::MergeBufferTooSmall => Some("activate it with --mode streamed"),
            C::NothingActive | C::EmptySlot | C::NoSuchSlot => {
                Some("`rankpatch device list` shows what is in the slots")
            }
            C::WrongInput => {
                Some("use --text for a network that reads text, --features for one that reads signals")
            }
            C::SelfTestFailed => {
                Some("the adapter that was applied before is applied again; is the firmware current?")
            }
            C::Corrupt | C::Incomplete => Some("push the file again"),
            C::UnknownMessage | C::UnknownVersion => Some("are firmware and host of the same release?"),
            C::Unsigned => Some("sign it with `rankpatch sign`"),
            C::UnknownKey | C::BadSignature | C::WrongProduct => {
                Some("`rankpatch device info` shows the product and the keys that the device accepts")
            }
            C::Stale | C::TooFar => {
                Some("`rankpatch device status` shows the floor; sign the file with a --sequence above it")
            }
            C::UploadUnderWay | C::OtherBytes => {
                Some("push that file again to finish it, or give it up with `rankpatch device abort`")
            }
            C::NoFreeSlot => Some("confirm or roll back the trial under way"),
            C::NoBase => Some("write the base image to the device's base partition"),
            C::NotBuiltIn => {
                Some("build the firmware with the feature for what the base reads: `text` or `sound`")
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { code, expected, found } = *self;
        write!(f, "{} (error {} {})", self.reason(), code.number(), code.name())?;
        match code {
            ErrorCode::WrongBase
            | ErrorCode::WrongProduct
            | ErrorCode::UnknownKey
            | ErrorCode::Corrupt
            | ErrorCode::SelfTestFailed
            | ErrorCode::BadMagic => {
                write!(f, ": expected {expected:#010x}, found {found:#010x}")
            }
            ErrorCode::BadScale => {
                write!(f, ": expected a positive number for {expected}, found {}", f32::from_bits(found))
            }
            _ if expected == 0 && found == 0 => Ok(()),
            _ => write!(f, ": expected {expected}, found {found}"),
        }
    }
}
