//! QEMU's machine protocol (QMP): one JSON object a line, commands answered in order, events in between.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a running emulator.
#[derive(Debug)]
pub struct Monitor {
    answers: BufReader<TcpStream>,
    commands: TcpStream,
}

impl Monitor {
    /// Takes over a stream on which QEMU has just begun to speak.
    pub(crate) fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut monitor = Self { commands: stream.try_clone()?, answers: BufReader::new(stream) };
        let greeting = monitor.next()?;
        if greeting["QMP"].is_null() {
            bail!("expected QMP's greeting, found {greeting}");
        }
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        let length = self.answers.read_line(&mut line).context("no answer on QEMU's monitor")?;
        if length == 0 {
            bail!("expected an answer on QEMU's monitor, found its end");
        }
        serde_json::from_str(&line).with_context(|| format!("expected JSON on QEMU's monitor, found {line}"))
    }

    /// Executes a command and returns what it answers.
    ///
    /// # Errors
    /// If QEMU refuses the command, with its own words, or has ended.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.commands.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let mut answer = self.next()?;
            if !answer["error"].is_null() {
                bail!("QEMU refuses {command}: {}", answer["error"]["desc"]);
            }
            if !answer["return"].is_null() {
                return Ok(answer["return"].take());
            }
            // Anything else is an event.
        }
    }

    /// Resets the machine: the processor starts again, RAM and flash stay as they are.
    ///
    /// # Errors
    /// As [`execute`](Monitor::execute).
    pub fn system_reset(&mut self) -> Result<()> {
        self.execute("system_reset", &json!({})).map(drop)
    }

    /// Writes `length` bytes of the processor's memory from `address` on to a file. The machine stands still meanwhile.
    ///
    /// # Errors
    /// As [`execute`](Monitor::execute).
    pub fn save_memory(&mut self, address: u64, length: u64, file: &Path) -> Result<()> {
        self.execute("stop", &json!({}))?;
        let arguments = json!({ "val": address, "size": length, "filename": file });
        self.execute("memsave", &arguments)?;
        self.execute("cont", &json!({})).map(drop)
    }
}
