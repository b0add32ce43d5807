//! The log of a run: a file with a JSON line for each event, for programs and for the report.
//!
//! A run that goes on from a checkpoint goes on in its log: lines after that checkpoint are dropped first, since the
//! run makes them again. So a log tells of each step once, however often the run was stopped.
//!
//! The log of an earlier run is set aside until the new one has outputs or a checkpoint, and comes back if there will be none.

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
    earlier: Earlier,
}

/// The log that was there before, set aside; dropped, it comes back.
#[derive(Debug)]
struct Earlier {
    path: PathBuf,
    aside: Option<PathBuf>,
}

impl Earlier {
    fn set_aside(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!(".{name}.earlier"));
        // One that lies there already was set aside by a run that was killed before its first checkpoint.
        if path.is_file() && !aside.is_file() {
            std::fs::rename(path, &aside).map_err(Error::write(path))?;
        }
        Ok(Self { path: path.to_owned(), aside: Some(aside).filter(|aside| aside.is_file()) })
    }

    fn give_up(&mut self) {
        if let Some(aside) = self.aside.take() {
            // Nothing reads it: that it stays would be no failure of the run.
            let _ = std::fs::remove_file(aside);
        }
    }
}

impl Drop for Earlier {
    fn drop(&mut self) {
        if let Some(aside) = self.aside.take() {
            // What made the run fail is what is reported.
            let _ = std::fs::rename(aside, &self.path);
        }
    }
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
    /// An empty log, in place of an earlier one, which comes back if this one is dropped before [`keep`](Self::keep) and without a
    /// checkpoint. Folders are made as needed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self> {
        Self::start(Earlier::set_aside(path)?, b"")
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
        let earlier = Earlier { path: path.to_owned(), aside: None };
        Self::start(earlier, &text[..known_at(&text, step)])
    }

    fn start(earlier: Earlier, kept: &[u8]) -> Result<Self> {
        let path = earlier.path.clone();
        files::write_atomically(&path, kept)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path))?;
        Ok(Self { path, file, failure: None, earlier })
    }

    /// Ends the log.
    ///
    /// # Errors
    /// [`Error::Write`] if an event could not be written.
    pub fn finish(&mut self) -> Result<()> {
        self.failure.take().map_or(Ok(()), |failure| Err(Error::write(&self.path)(failure)))
    }

    /// Keeps this log instead of the earlier one: the run's outputs have taken their places.
    pub fn keep(&mut self) {
        self.earlier.give_up();
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
        if matches!(event, Event::Saved { .. }) {
            // From here on this log is the one that `--resume` goes on in.
            self.keep();
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
    use crate::train::Phase;

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
    fn an_earlier_log_comes_back_unless_there_is_something_to_go_on_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let text = || std::fs::read_to_string(&path).unwrap();
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        let saved = Event::Saved { step: 2 };
        let mut first = RunLog::create(&path).unwrap();
        first.event(&Event::PhaseChanged { step: 1, phase: Phase::QuantizationAware });
        drop(first);
        let before = text();
        assert!(before.contains("phase_changed"), "there was none before: {before}");
        let mut failed = RunLog::create(&path).unwrap();
        assert_eq!(text(), "");
        failed.event(&Event::PhaseChanged { step: 9, phase: Phase::QuantizationAware });
        drop(failed);
        assert_eq!((text(), files()), (before.clone(), 1));
        // Killed, and then failed.
        std::mem::forget(RunLog::create(&path).unwrap());
        assert_eq!((text().as_str(), files()), ("", 2));
        drop(RunLog::create(&path).unwrap());
        assert_eq!((text(), files()), (before, 1));
        let mut stopped = RunLog::create(&path).unwrap();
        stopped.event(&saved);
        drop(stopped);
        assert_eq!((text().as_str(), files()), ("{\"event\":\"saved\",\"step\":2}\n", 1));
        let mut finished = RunLog::create(&path).unwrap();
        finished.finish().unwrap();
        finished.keep();
        drop(finished);
        assert_eq!((text().as_str(), files()), ("", 1));
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
