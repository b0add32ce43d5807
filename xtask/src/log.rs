//! The device's log: defmt frames from a byte stream, decoded with the tables in the firmware's ELF file.

use std::fmt;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use defmt_decoder::{DecodeError, Table};

/// One decoded log frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `error`, `warn`, `info`, `debug` or `trace`; empty for a print without a level.
    pub level: String,
    /// Device time in front of the message, in microseconds as the board prints it.
    pub timestamp: String,
    /// The message.
    pub text: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9} {:<5} {}", self.timestamp, self.level, self.text)
    }
}

/// Reads a log in the background.
#[derive(Debug)]
pub struct LogReader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    /// The stream has ended: normally, or because of an error, which is then the last line.
    ended: bool,
}

impl Shared {
    /// A panic of the other thread leaves complete lines behind, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: Line) {
        self.lock().lines.push(line);
        self.changed.notify_all();
    }
}

impl LogReader {
    /// Starts to decode `stream` with the tables of the ELF image `elf`. With `echo` each line also goes to stderr.
    ///
    /// # Errors
    /// If the ELF image carries no defmt tables, or those of an incompatible version.
    pub fn start(mut stream: impl Read + Send + 'static, elf: &[u8], echo: bool) -> Result<Self> {
        let table = Table::parse(elf)?
            .context("expected defmt tables in the firmware, found none: is -Tdefmt.x linked?")?;
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            decode(&table, &mut stream, &mut |line| {
                if echo {
                    #[expect(clippy::print_stderr, reason = "the caller asked for it")]
                    {
                        eprintln!("device {line}");
                    }
                }
                for_thread.push(line);
            });
            for_thread.lock().ended = true;
            for_thread.changed.notify_all();
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<Line> {
        self.shared.lock().lines.clone()
    }

    /// The first line, old or new, whose text contains `needle`.
    ///
    /// # Errors
    /// If the log ends first, or `timeout` passes.
    pub fn wait_for(&self, needle: &str, timeout: Duration) -> Result<Line> {
        self.wait_for_nth(needle, 1, timeout)
    }

    /// How many lines contain `needle` so far.
    pub fn count(&self, needle: &str) -> usize {
        self.shared.lock().lines.iter().filter(|line| line.text.contains(needle)).count()
    }

    /// The `nth` line, counted from 1, whose text contains `needle`.
    ///
    /// # Errors
    /// As [`wait_for`](LogReader::wait_for).
    pub fn wait_for_nth(&self, needle: &str, nth: usize, timeout: Duration) -> Result<Line> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        loop {
            let mut found = state.lines.iter().filter(|line| line.text.contains(needle));
            if let Some(line) = found.nth(nth.saturating_sub(1)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let why = if state.ended { "it ended" } else { "the time was up" };
                let lines: Vec<_> = state.lines.iter().map(|line| format!("\n  {line}")).collect();
                bail!(
                    "expected `{needle}` in the device's log, but {why} after {} lines:{}",
                    lines.len(),
                    lines.concat()
                );
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the stream to end and returns all lines.
    pub fn finish(mut self) -> Vec<Line> {
        self.join();
        self.lines()
    }

    pub(crate) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic in the decoder shows as a log that ends early.
            let _ = thread.join();
        }
    }
}

/// Decodes until the stream ends. A frame that cannot be decoded becomes a line of level `error`.
fn decode(table: &Table, stream: &mut impl Read, emit: &mut impl FnMut(Line)) {
    let mut decoder = table.new_stream_decoder();
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => decoder.received(&buffer[..count]),
        }
        loop {
            match decoder.decode() {
                Ok(frame) => emit(Line {
                    level: frame.level().map_or("", |level| level.as_str()).to_owned(),
                    timestamp: frame.display_timestamp().map(|time| time.to_string()).unwrap_or_default(),
                    text: frame.display_message().to_string(),
                }),
                Err(DecodeError::UnexpectedEof) => break,
                Err(DecodeError::Malformed) => {
                    let text = "malformed log frame: does the ELF file belong to this firmware?".to_owned();
                    emit(Line { level: "error".to_owned(), timestamp: String::new(), text });
                    if !table.encoding().can_recover() {
                        return;
                    }
                }
            }
        }
    }
}
