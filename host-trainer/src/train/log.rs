//! The log of a run: a file with a JSON line for each event, for programs and for the report.
//!
//! A run that goes on from a checkpoint goes on in its log: lines after that checkpoint are dropped first, since the
//! run makes them again. So a log tells of each step once, however often the run was stopped.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Event, Reporter};
use crate::{Error, Result, files};

/// A log that is being written.
#[derive(Debug)]
pub struct RunLog {
    path: PathBuf,
    file: File,
    /// The first failure; events after it are dropped.
    failure: Option<io::Error>,
}

/// What says where in a run an event was.
#[derive(Debug, Deserialize)]
struct Line {
    event: String,
    #[serde(default)]
    step: u64,
    #[serde(default)]
    first_step: u64,
}

impl RunLog {
    /// An empty log, in place of an earlier one. Folders are made as needed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self> {
        Self::start(path, b"")
    }

    /// The log of a run that goes on from a checkpoint of `step`. There need not be one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io(path)(error)),
        };
        Self::start(path, &text[..known_at(&text, step)])
    }

    fn start(path: &Path, kept: &[u8]) -> Result<Self> {
        files::write_atomically(path, kept)?;
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_owned(), file, failure: None })
    }

    /// Ends the log.
    ///
    /// # Errors
    /// [`Error::Io`] if an event could not be written.
    pub fn finish(self) -> Result<()> {
        self.failure.map_or(Ok(()), |failure| Err(Error::io(&self.path)(failure)))
    }
}

impl Reporter for RunLog {
    /// Each event is written before the run goes on, so that the log of a killed run reaches to its last checkpoint.
    fn event(&mut self, event: &Event<'_>) {
        if self.failure.is_none() {
            let written = serde_json::to_vec(event).map_err(io::Error::from).and_then(|mut line| {
                line.push(b'\n');
                self.file.write_all(&line)
            });
            self.failure = written.err();
        }
    }
}

/// Bytes of the lines that a run had written when it saved its checkpoint of `step`: up to the line that says so. A run
/// that was killed before that line has none of a later step.
fn known_at(text: &[u8], step: u64) -> usize {
    let mut kept = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let Ok(Line { event, step: at, first_step }) = serde_json::from_slice(line) else { break };
        let ends = matches!(event.as_str(), "trimmed" | "phase_changed" | "early_stopped" | "finished")
            && at >= step;
        if !line.ends_with(b"\n") || at > step || ends || (event == "started" && first_step >= step) {
            break;
        }
        kept += line.len();
        if event == "saved" && at == step {
            break;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"event":"started","task":"t","first_step":0,"steps":3}
{"event":"step","step":1}
{"event":"step","step":2}
{"event":"evaluated","step":2}
{"event":"saved","step":2}
{"event":"phase_changed","step":2}
{"event":"step","step":3}
{"event":"evaluated","step":3}
{"event":"finished","steps":3}
"#;

    fn kept(text: &str, step: u64) -> Vec<&str> {
        text[..known_at(text.as_bytes(), step)].lines().collect()
    }

    #[test]
    fn what_a_resumed_run_says_again_is_dropped() {
        let whole: Vec<&str> = WHOLE.lines().collect();
        assert_eq!(kept(WHOLE, 2), whole[..5], "all up to the checkpoint");
        assert_eq!(kept(WHOLE, 1), whole[..2]);
        // Killed after the checkpoint and before the line that says so, and in the middle of a line.
        assert_eq!(kept(&whole[..4].join("\n"), 2), whole[..3]);
        assert_eq!(kept(&(whole[..4].join("\n") + "\n{\"event\":\"sav"), 2), whole[..4]);
        // A second part that got no further than the first one.
        let second = [&whole[..4], &[r#"{"event":"started","first_step":2}"#], &whole[6..]].concat();
        assert_eq!(kept(&second.join("\n"), 2), whole[..4]);
        assert_eq!(kept("no log\n", 2), [""; 0]);
    }
}
