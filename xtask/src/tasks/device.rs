//! What tasks cost on a device: the firmware in QEMU with their base and their adapters, its instructions counted.
//!
//! QEMU counts instructions; they are not cycles.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::board::Board;
use xtask::workspace_root;

use super::task::Task;
use crate::demo::{Tool, text};
use crate::product::{Adapter, Product};

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
    fn switched(&mut self, (instructions, copied): (u64, u64)) {
        self.switch = (self.switch.0.min(instructions), self.switch.1.max(instructions));
        self.copied += copied;
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

/// Counts all tasks of one base, in their order: all are installed, and each is switched to from every other one. A task that there
/// is no room for has no counts.
pub(super) fn count(tool: &Tool, tasks: &[Installed<'_>], folder: &Path) -> Result<Vec<Option<Counts>>> {
    let Some(first) = tasks.first() else { return Ok(Vec::new()) };
    let board = Board::find(BOARD)?;
    let model = Path::new(&first.task.base).file_name().and_then(|name| name.to_str());
    let adapters =
        tasks.iter().map(|task| Adapter::read(tool, task.adapter.clone())).collect::<Result<Vec<_>>>()?;
    let folder = folder.join("device");
    fs::create_dir_all(&folder)?;
    let model = model.context("expected the name of a base")?;
    let product = Product::boot(tool, &board, model, &adapters, &folder, true)?;
    let slots: Vec<_> = tasks
        .iter()
        .map(|task| product.installed.iter().position(|adapter| adapter.task == task.task.name))
        .collect();
    let device = Device { tool, board: &board, product: &product };
    let mut counts = Vec::new();
    for (task, slot) in tasks.iter().zip(&slots) {
        let Some(slot) = *slot else {
            eprintln!(
                "instructions of {} are left out: there is no room for it beside the others",
                task.task.name
            );
            counts.push(None);
            continue;
        };
        let (instructions, copied) = device.switch(slot)?;
        let (answer, unit) = device.answer(task)?;
        counts.push(Some(Counts { switch: (instructions, instructions), copied, answer, unit }));
    }
    // From each to every other one and back.
    for from in 0..slots.len() {
        let Some(first) = slots[from] else { continue };
        device.switch(first)?;
        for to in from + 1..slots.len() {
            for task in [to, from] {
                if let (Some(slot), Some(counts)) = (slots[task], &mut counts[task]) {
                    counts.switched(device.switch(slot)?);
                }
            }
        }
    }
    product.qemu.stop();
    Ok(counts)
}

/// The emulated device.
struct Device<'d> {
    tool: &'d Tool,
    board: &'d Board,
    product: &'d Product,
}

impl Device<'_> {
    fn ask(&self, arguments: &[&str]) -> Result<Value> {
        self.product.ask(self.tool, arguments)
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
        for (instructions, copied) in [(7, 0), (3, 16), (4, 2)] {
            counts.switched((instructions, copied));
        }
        assert_eq!((counts.switch, counts.copied), ((3, 7), 18));
    }
}
