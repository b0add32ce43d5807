//! What tasks cost on a device: the firmware in QEMU with their base and their adapters, its instructions counted.
//!
//! QEMU counts instructions; they are not cycles.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::board::Board;
use xtask::qemu::Qemu;
use xtask::{firmware, workspace_root};

use super::task::Task;
use crate::bench::{ask, boot};
use crate::demo::{Tool, text};

const BOARD: &str = "qemu-mps2-an386";
/// A second of sound.
const SOUND: &str = "tests/data/kwt1-golden/yes.wav";
const REQUEST: &str = "play the newest song of the week";
/// Tokens of a text that is counted.
const TOKENS: &str = "64";

/// Instructions of one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// Binding the adapter in place of the one before: fewest and most over the tasks that were applied before.
    pub(super) switch: (u64, u64),
    /// Weight bytes that were copied in all of its switches.
    pub(super) copied: u64,
    /// One answer.
    pub(super) answer: u64,
    /// What one answer is.
    pub(super) unit: &'static str,
}

impl Counts {
    fn switched(&mut self, instructions: u64) {
        self.switch = (self.switch.0.min(instructions), self.switch.1.max(instructions));
    }
}

/// A task with its adapter.
pub(super) struct Installed<'t> {
    pub(super) task: &'t Task,
    pub(super) adapter: PathBuf,
    pub(super) answer: Answer,
}

/// What a task does with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It goes on with a text.
    Continues,
    /// It names a class.
    Tells,
    /// It marks spans of a text.
    Marks,
}

/// Counts all tasks of one base, in their order: each is installed, and every one that is installed with it is switched to and
/// back from. Of more tasks than the board has slots one lot after the other is installed.
pub(super) fn count(tool: &Tool, tasks: &[Installed<'_>], folder: &Path) -> Result<Vec<Counts>> {
    let Some(first) = tasks.first() else { return Ok(Vec::new()) };
    let board = Board::find(BOARD)?;
    let model = Path::new(&first.task.base).file_name().and_then(|name| name.to_str());
    let qemu = boot(tool, &board, model.context("expected the name of a base")?)?;
    let device = Device { tool, board: &board, qemu: &qemu };
    let slots = device.ask(&["info"])?["n_slots"].as_u64().context("expected the number of slots")?;
    let mut counts = Vec::new();
    for lot in tasks.chunks(slots as usize) {
        // The device takes rising sequence numbers only, whatever the task.
        counts.extend(device.lot(lot, counts.len() + 1, folder)?);
        // What is applied cannot be overwritten.
        device.ask(&["detach"])?;
    }
    qemu.stop();
    Ok(counts)
}

/// The emulated device.
struct Device<'d> {
    tool: &'d Tool,
    board: &'d Board,
    qemu: &'d Qemu,
}

impl Device<'_> {
    fn ask(&self, arguments: &[&str]) -> Result<Value> {
        ask(self.tool, self.qemu, arguments)
    }

    /// Tasks that are installed at the same time, one in each slot, with sequence numbers from this one on.
    fn lot(&self, lot: &[Installed<'_>], sequence: usize, folder: &Path) -> Result<Vec<Counts>> {
        let mut counts: Vec<Counts> = Vec::new();
        for (slot, task) in lot.iter().enumerate() {
            let signed = folder.join("signed.rpa");
            let key = workspace_root().join(firmware::SECRET_KEY);
            let signing = ["--key", text(&key)?, "--product", firmware::PRODUCT, "-o", text(&signed)?];
            let sequence = (sequence + slot).to_string();
            let numbered = ["--sequence", &sequence];
            self.tool.json(&[&["sign", text(&task.adapter)?][..], &signing, &numbered].concat())?;
            self.ask(&["push", text(&signed)?, "--slot", &slot.to_string()])?;
            let (instructions, copied) = self.switch(slot)?;
            let (answer, unit) = self.answer(task)?;
            counts.push(Counts { switch: (instructions, instructions), copied, answer, unit });
        }
        // From each to every other one and back.
        for from in 0..lot.len() {
            self.switch(from)?;
            for to in from + 1..lot.len() {
                for slot in [to, from] {
                    let (instructions, copied) = self.switch(slot)?;
                    counts[slot].switched(instructions);
                    counts[slot].copied += copied;
                }
            }
        }
        Ok(counts)
    }

    /// Applies the adapter in a slot: instructions, and weight bytes that were copied. Its self-test is not counted.
    fn switch(&self, slot: usize) -> Result<(u64, u64)> {
        let activated = self.ask(&["activate", &slot.to_string()])?;
        let number = |key: &str| activated[key].as_u64().with_context(|| format!("expected {key}"));
        Ok((self.board.instructions(number("ticks")?), number("weight_bytes_copied")?))
    }

    /// Instructions of an answer with what is applied, and what it is an answer to.
    fn answer(&self, installed: &Installed<'_>) -> Result<(u64, &'static str)> {
        let Installed { task, answer, .. } = installed;
        let ticks = |value: &Value| value.as_u64().context("expected ticks in the device's answer");
        if task.hears {
            // The answer to a run does not count the front end, statistics do.
            let before = ticks(&self.ask(&["stats"])?["run_ticks"])?;
            self.ask(&["run", "--audio", text(&workspace_root().join(SOUND))?])?;
            let work = ticks(&self.ask(&["stats"])?["run_ticks"])? - before;
            return Ok((self.board.instructions(work), "a second of sound"));
        }
        if *answer != Answer::Continues {
            let mut arguments = vec!["run", "--text", REQUEST];
            if *answer == Answer::Marks {
                arguments.push("--spans");
            }
            let ran = self.ask(&arguments)?;
            return Ok((self.board.instructions(ticks(&ran["ticks"])?), "a request of 32 characters"));
        }
        let said = self.ask(&["generate", "--prompt", "", "--max-tokens", TOKENS])?;
        let tokens = said["ids"].as_array().map_or(0, Vec::len) as u64;
        ensure!(tokens > 0, "expected tokens of {}, found none", task.name);
        Ok((self.board.instructions(ticks(&said["ticks"])?) / tokens, "a token"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_long_as_it_is_called() {
        assert_eq!(REQUEST.len(), 32);
    }

    #[test]
    fn switches_keep_the_fewest_and_the_most() {
        let mut counts = Counts { switch: (5, 5), copied: 0, answer: 1, unit: "a token" };
        for instructions in [7, 3, 4] {
            counts.switched(instructions);
        }
        assert_eq!(counts.switch, (3, 7));
    }
}
