//! Exit codes and the failure that carries one. Errors are typed below the commands; here they become one line that
//! names what was expected and what was found, a hint, and a code.

use std::path::Path;

use crate::client::ClientError;
use crate::train::TrainError;

/// The command did what it was asked to do.
pub const SUCCESS: u8 = 0;
/// The command started, but could not do it: a run diverged, a result cannot be written.
pub const FAILURE: u8 = 1;
/// The command line or the task's configuration is wrong.
pub const USAGE: u8 = 2;
/// A file that was to be read is missing, damaged, or does not fit the others.
pub const BAD_INPUT: u8 = 3;
/// The device refused the request; nothing has changed there.
pub const REFUSED: u8 = 4;
/// The device cannot be reached, does not answer, or its answers are damaged.
pub const LINK_LOST: u8 = 5;

/// The command was interrupted: 128 and the number of SIGINT, as shells count.
pub const INTERRUPTED: u8 = 130;

/// The codes with their meaning, for the help text.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  failed while working: a run diverged, a result cannot be written; of several tasks some failed, the others are done
  2  wrong command line or task configuration
  3  an input file is missing, damaged, or does not fit the others
  4  the device refused the request; nothing has changed there
  5  the device cannot be reached or does not answer
130  interrupted; a training run has written its checkpoint";

/// Why a command ends without success.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What was expected and what was found.
    pub error: anyhow::Error,
    /// What the user can do about it.
    pub hint: Option<String>,
}

/// Result of a command.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with a code.
    pub fn new(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { code, error: error.into(), hint: None }
    }

    /// A wrong command line.
    pub fn usage(message: impl std::fmt::Display) -> Self {
        Self::new(USAGE, anyhow::anyhow!("{message}"))
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The same with the file that it is about before the message.
    #[must_use]
    pub fn at(self, path: &Path) -> Self {
        Self { error: self.error.context(path.display().to_string()), ..self }
    }

    /// The lines to print: the chain of causes in one line, and the hint.
    pub fn render(&self) -> String {
        let hint = self.hint.as_ref().map_or(String::new(), |hint| format!("hint: {hint}\n"));
        format!("error: {}\n{hint}", self.message())
    }

    /// The chain of causes in one line.
    pub fn message(&self) -> String {
        let mut text = String::new();
        for cause in self.error.chain().map(ToString::to_string) {
            // Some errors end with their cause already.
            if !text.ends_with(&cause) {
                text += if text.is_empty() { "" } else { ": " };
                text += &cause;
            }
        }
        text
    }
}

/// Adds the file that an error is about.
pub trait At<T> {
    /// The value, or a failure that names `path`.
    ///
    /// # Errors
    /// The error, as a failure.
    fn at(self, path: &Path) -> Outcome<T>;
}

impl<T, E: Into<Failure>> At<T> for Result<T, E> {
    fn at(self, path: &Path) -> Outcome<T> {
        self.map_err(|error| error.into().at(path))
    }
}

impl From<rankpatch_format::Error> for Failure {
    fn from(error: rankpatch_format::Error) -> Self {
        use rankpatch_format::Error as E;
        let hint = match error {
            E::WrongBase { .. } => Some(
                "an adapter runs only on the base that it was trained for; `rankpatch inspect` shows both",
            ),
            E::Corrupt { .. } | E::Truncated { .. } => Some("copy or build the file again"),
            E::BadMagic { .. } => Some("bases end in .rpb, adapters in .rpa"),
            _ => None,
        };
        Self { code: BAD_INPUT, error: error.into(), hint: hint.map(Into::into) }
    }
}

impl From<rankpatch_runtime::trust::TrustError> for Failure {
    fn from(error: rankpatch_runtime::trust::TrustError) -> Self {
        use rankpatch_runtime::trust::TrustError as E;
        let failure = Self::new(BAD_INPUT, error);
        match error {
            E::Unsigned => failure.hint("sign it with `rankpatch sign`"),
            E::Stale { .. } | E::TooFar { .. } => failure.hint("sign it again with another --sequence"),
            E::UnknownKey { .. } => failure.hint("`rankpatch key show` prints the id of a key"),
            _ => failure,
        }
    }
}

impl From<rankpatch_runtime::Error> for Failure {
    fn from(error: rankpatch_runtime::Error) -> Self {
        use rankpatch_runtime::Error as E;
        match error {
            E::Format(error) => error.into(),
            E::SelfTestFailed { .. } => Self::new(FAILURE, error),
            E::WrongInput { .. } => Self::new(BAD_INPUT, error).hint(
                "use --text or --prompt for a base that reads text, --features for one that reads signals",
            ),
            _ => Self::new(BAD_INPUT, error),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        use ClientError as E;
        let code = match &error {
            E::Refused { .. } => REFUSED,
            E::Address { .. } | E::TextTooLong { .. } | E::NoSuchTask { .. } => USAGE,
            E::Features { .. } => BAD_INPUT,
            E::NoFreeSlot { .. } => FAILURE,
            _ => LINK_LOST,
        };
        let hint = error.hint().map(Into::into);
        Self { code, error: error.into(), hint }
    }
}

impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Self {
        use crate::Error as E;
        match error {
            E::Format(error) => error.into(),
            E::Runtime(error) => error.into(),
            E::Train(error) => error.into(),
            E::Trust(error) => error.into(),
            E::NoTokenizer { .. } => Self::new(BAD_INPUT, error).hint(
                "a base of a Hugging Face model takes ids: `sim --text` splits texts for it with --tokenizer",
            ),
            E::Write { ref source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Self::new(FAILURE, error)
                    .hint("make room and run the command again; earlier files are as they were")
            }
            E::Op(_) | E::Optim(_) | E::Tensor(_) if is_out_of_memory(&error) => {
                Self::new(FAILURE, error).hint(OUT_OF_MEMORY)
            }
            E::Write { .. } | E::Op(_) | E::Random(_) | E::Optim(_) | E::Tensor(_) => {
                Self::new(FAILURE, error)
            }
            _ => Self::new(BAD_INPUT, error),
        }
    }
}

/// What a run that needs too much memory can do with less of.
const OUT_OF_MEMORY: &str = "lower --batch-size (with --gradient-accumulation-steps as much higher a step is the same), --max-length or \
     --rank, or train on --device cpu; `rankpatch train --dry-run` shows what a run needs";

/// Whether a device had no memory left. The tensor library passes on what the driver says.
fn is_out_of_memory(error: &crate::Error) -> bool {
    let text = error.to_string().to_lowercase();
    ["out of memory", "out_of_memory", "cublas_status_alloc_failed"].iter().any(|name| text.contains(name))
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(FAILURE, error)
    }
}

impl From<TrainError> for Failure {
    fn from(error: TrainError) -> Self {
        use TrainError as E;
        let hint = match &error {
            E::Device { .. } => {
                Some("--device cpu trains on the processor; CUDA needs a build with `--features cuda`")
            }
            E::Diverged { .. } => Some(
                "start again with a lower --learning-rate or more --warmup-steps; checkpoints are of before it",
            ),
            _ => None,
        };
        let code = match &error {
            E::Toml { .. }
            | E::UnknownKey { .. }
            | E::DuplicateKey { .. }
            | E::MissingKey { .. }
            | E::BadValue { .. }
            | E::NoSite { .. }
            | E::SiteNotRead { .. }
            | E::Rank { .. } => USAGE,
            E::Interrupted { .. } => INTERRUPTED,
            E::Base { .. } | E::Data { .. } => BAD_INPUT,
            _ => FAILURE,
        };
        Self { hint: hint.map(Into::into), ..Self::new(code, error) }
    }
}
