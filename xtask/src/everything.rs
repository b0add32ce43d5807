//! A device with everything: one flash of 1 MB for each carried base, with the firmware, the base and as many adapters as there are, booted in QEMU.
//! A session switches through all tasks in random order; every answer must be the host's, bit for bit, and the base's the same at the end.
//!
//! Everything is done by the programs that users have; this file only calls them, compares.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::board::Board;
use xtask::{output_folder, workspace_root};

use crate::demo::{Tool, text};
use crate::product::{Adapter, FLASH_BYTES, Product};

const BOARD: &str = "qemu-mps2-an386";
/// Adapters that `cargo xtask tasks` trained, and those that the repository carries.
const TRAINED: &str = "target/tasks/seed0";
const CARRIED: &str = "tests/data/adapters";

/// A base and what it is asked.
const BASES: [(&str, [&str; 2]); 2] = [
    ("kwt1", ["--audio", "tests/data/kwt1-golden/yes.wav"]),
    ("stories260k", ["--text", "play the newest song of the week"]),
];

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Switches between tasks, on each base.
    switches: u32,
    /// Adapter files; without any, those that were trained, and those carried ones whose tasks were not.
    files: Vec<PathBuf>,
}

impl Options {
    /// The arguments behind the task's name; `None` if they make no sense.
    pub(crate) fn parse(arguments: &[&str]) -> Option<Self> {
        let mut options = Self { switches: 100, files: Vec::new() };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match *argument {
                "--switches" => options.switches = rest.next()?.parse().ok().filter(|count| *count > 0)?,
                option if option.starts_with("--") => return None,
                file => options.files.push(file.into()),
            }
        }
        Some(options)
    }
}

/// Builds, boots and asks, prints a table and writes `target/everything/everything.json`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let tool = Tool::build()?;
    let board = Board::find(BOARD)?;
    let files = if options.files.is_empty() { found()? } else { options.files.clone() };
    // Of several files of a task, the first.
    let mut tasks = BTreeMap::new();
    for file in files {
        let adapter = Adapter::read(&tool, file)?;
        tasks.entry((adapter.base_id.clone(), adapter.task.clone())).or_insert(adapter);
    }
    let adapters: Vec<Adapter> = tasks.into_values().collect();
    let mut reports = Vec::new();
    for (model, question) in BASES {
        let report = device(&tool, &board, model, &question, &adapters, options.switches)?;
        print!("{}", table(&report));
        reports.push(report);
    }
    let file = output_folder("everything")?.join("everything.json");
    fs::write(&file, serde_json::to_string_pretty(&reports)? + "\n")?;
    println!("\nwritten to {}", file.strip_prefix(workspace_root()).unwrap_or(&file).display());
    Ok(())
}

/// Adapter files in the folders of trained ones, then in that of carried ones.
fn found() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![workspace_root().join(TRAINED), workspace_root().join(CARRIED)];
    while !folders.is_empty() {
        let folder = folders.remove(0);
        if !folder.is_dir() {
            continue;
        }
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        let (inner, own): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| path.is_dir());
        files.extend(own.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "rpa")));
        folders.splice(0..0, inner);
    }
    Ok(files)
}

fn device(
    tool: &Tool,
    board: &Board,
    model: &str,
    question: &[&str],
    adapters: &[Adapter],
    switches: u32,
) -> Result<Value> {
    let folder = output_folder("everything")?;
    let product = Product::boot(tool, board, model, adapters, &folder, false)?;
    let answers = Session { tool, product: &product, question }.run(switches)?;
    let tasks = |adapters: &[Adapter]| -> Vec<Value> {
        adapters.iter().map(|adapter| json!({ "task": adapter.task, "bytes": adapter.bytes })).collect()
    };
    let report = json!({
        "base": model,
        "image": product.image,
        "flash_bytes": FLASH_BYTES,
        "firmware_bytes": product.firmware_bytes,
        "base_bytes": product.base_bytes,
        "journal_bytes": product.journal_bytes,
        "slot_bytes": product.slot_bytes,
        "slots": product.slots,
        "tasks": tasks(&product.installed),
        "adapter_bytes": product.installed.iter().map(|adapter| adapter.bytes).sum::<u64>(),
        "left_out": tasks(&product.left_out),
        "more_tasks": product.slots - product.installed.len() as u64,
        "free_bytes": product.free_bytes,
        "switches": switches,
        "answers_equal": answers,
    });
    product.qemu.stop();
    Ok(report)
}

/// What a booted product is asked.
struct Session<'a> {
    tool: &'a Tool,
    product: &'a Product,
    question: &'a [&'a str],
}

impl Session<'_> {
    /// The digest of the device's answer, which tells spans or gives one output.
    fn answer(&self, spans: bool) -> Result<String> {
        let spans: &[&str] = if spans { &["--spans"] } else { &[] };
        digest(&self.product.ask(self.tool, &[&["run"], self.question, spans].concat())?)
    }

    /// The digest of the host's, and whether it tells spans.
    fn expected(&self, adapter: Option<&Path>) -> Result<(String, bool)> {
        let mut arguments = vec!["sim", "--base", text(&self.product.base)?];
        if let Some(adapter) = adapter {
            arguments.extend(["--adapter", text(adapter)?]);
        }
        arguments.extend(self.question);
        let answer = self.tool.json(&arguments)?;
        Ok((digest(&answer)?, answer["spans"].is_array()))
    }

    /// Switches between tasks and compares; the number of answers that were equal, which is all of them.
    fn run(&self, switches: u32) -> Result<u32> {
        let files = &self.product.files;
        let (plain, _) = self.expected(None)?;
        let expected = files.iter().map(|file| self.expected(Some(file))).collect::<Result<Vec<_>>>()?;
        ensure!(self.answer(false)? == plain, "expected the host's bits from the plain base");
        for (turn, slot) in order(files.len(), switches).into_iter().enumerate() {
            let activated = self.product.ask(self.tool, &["activate", &slot.to_string()])?;
            ensure!(activated["weight_bytes_copied"] == 0, "expected no weight to be copied: {activated}");
            let (file, (expected, spans)) = (&files[slot], &expected[slot]);
            let found = self.answer(*spans)?;
            ensure!(
                found == *expected,
                "expected {expected} from {} after switch {turn}, found {found}",
                file.display()
            );
            ensure!(found != plain, "expected another answer than the base's from {}", file.display());
        }
        self.product.ask(self.tool, &["detach"])?;
        ensure!(self.answer(false)? == plain, "expected the bits of the plain base at the end");
        Ok(switches + 2)
    }
}

fn digest(answer: &Value) -> Result<String> {
    answer["digest"].as_str().map(str::to_owned).with_context(|| format!("expected a digest in {answer}"))
}

/// Slots to switch to: all of them in random order, again and again, and never the one that runs.
fn order(slots: usize, switches: u32) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    let mut state = 0x9E37_79B9_u32;
    while order.len() < switches as usize {
        let mut round: Vec<usize> = (0..slots).collect();
        for last in (1..slots).rev() {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            round.swap(last, state as usize % (last + 1));
        }
        if slots > 1 && order.last() == round.first() {
            round.rotate_left(1);
        }
        order.extend(round);
    }
    order.truncate(switches as usize);
    order
}

fn table(report: &Value) -> String {
    let mut text = format!("\n{} in {} bytes of flash\n", report["base"].as_str().unwrap_or(""), FLASH_BYTES);
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<28}{value:>9}");
    };
    for (name, key) in [
        ("firmware", "firmware_bytes"),
        ("base", "base_bytes"),
        ("journal", "journal_bytes"),
        ("slot", "slot_bytes"),
    ] {
        row(name, report[key].to_string());
    }
    for task in report["tasks"].as_array().into_iter().flatten() {
        row(&format!("  {}", task["task"].as_str().unwrap_or("")), task["bytes"].to_string());
    }
    for task in report["left_out"].as_array().into_iter().flatten() {
        row(&format!("  left out: {}", task["task"].as_str().unwrap_or("")), task["bytes"].to_string());
    }
    row("free behind the slots", report["free_bytes"].to_string());
    row("more such tasks would fit", report["more_tasks"].to_string());
    row("switches", report["switches"].to_string());
    row("answers equal to the host's", report["answers_equal"].to_string());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_go_through_all_slots_and_never_stay() {
        let order = order(5, 23);
        assert_eq!(order.len(), 23);
        assert!(order.windows(2).all(|pair| pair[0] != pair[1]));
        for round in order.chunks_exact(5) {
            let mut round = round.to_vec();
            round.sort_unstable();
            assert_eq!(round, [0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn arguments_are_files_and_a_number_of_switches() {
        let options = Options::parse(&["a.rpa", "--switches", "7", "b.rpa"]).unwrap();
        assert_eq!(options, Options { switches: 7, files: vec!["a.rpa".into(), "b.rpa".into()] });
        assert_eq!(Options::parse(&[]).unwrap().switches, 100);
        assert!(Options::parse(&["--switches", "0"]).is_none() && Options::parse(&["--what"]).is_none());
    }
}
