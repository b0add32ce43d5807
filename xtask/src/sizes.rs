//! What the firmware occupies: flash and RAM by section, and the stack at its deepest.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::board::Board;
use xtask::firmware::{self, Reads};
use xtask::qemu::{Options, Qemu};
use xtask::sections::{self, Section};
use xtask::workspace_root;

use crate::demo::{Tool, text};
use crate::snapshot::{Measured, Mode, Snapshot};

/// How long a program may take to log its peak stack.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An interrupt may come at the deepest point or not.
const STACK_SLACK: u64 = 160;

/// Prints one table, or one JSON array, over all programs of all boards, or remembers their sizes.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let reports = measure()?;
    let products = products()?;
    match mode {
        Mode::Json => {
            let products = products.iter().map(|(name, bytes)| json!({ "name": name, "flash_bytes": bytes }));
            let reports: Vec<_> = reports.iter().map(Report::json).chain(products).collect();
            println!("{}", serde_json::to_string_pretty(&reports)?);
        }
        Mode::Table => {
            reports.iter().for_each(Report::print);
            parts(&reports)
                .iter()
                .chain(&products)
                .for_each(|(name, bytes)| println!("{name}: {bytes} bytes"));
        }
        Mode::Bless => println!("{}", snapshot().bless(&measured(&reports, products))?.display()),
        Mode::Check => snapshot().check(&measured(&reports, products))?,
    }
    Ok(())
}

fn snapshot() -> Snapshot {
    Snapshot { file: "tests/golden/sizes.json", command: "cargo xtask sizes --bless" }
}

fn measure() -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    for board in Board::all()? {
        for program in &board.programs {
            reports.push(Report::measure(&board, program)?);
        }
    }
    Ok(reports)
}

/// What one program has in flash more than another: the code of a part.
const PARTS: [(&str, &str, &str); 2] = [
    ("receiver: frames, slots, SHA-256, Ed25519", "receive", "nothing"),
    ("runtime: checks, engine, every operator, kernels", "infer", "idle"),
];

/// The parts that a board's programs show, with their bytes of flash and of static RAM.
fn parts(reports: &[Report]) -> Vec<(String, u64)> {
    let find = |board: &str, program: &str| {
        reports.iter().find(|report| report.board == board && report.program == program)
    };
    let mut parts = Vec::new();
    for report in reports {
        for (name, with, without) in PARTS {
            if report.program == with
                && let Some(other) = find(&report.board, without)
            {
                let part = |memory: &str| format!("{}: {memory} of {name}", report.board);
                parts.push((part("flash"), report.flash_bytes() - other.flash_bytes()));
                parts.push((part("RAM"), report.bytes_in("ram") - other.bytes_in("ram")));
            }
        }
    }
    parts
}

/// The board whose firmware is built for products as well.
const PRODUCTS: &str = "qemu-mps2-an386";

/// Bytes of flash of the firmware of products, which has what one base needs.
fn products() -> Result<Vec<(String, u64)>> {
    let board = Board::find(PRODUCTS)?;
    [Reads::Text, Reads::Sound]
        .into_iter()
        .map(|reads| {
            let name = format!("{PRODUCTS}: flash bytes with {} alone", reads.feature());
            Ok((name, firmware::flash_bytes(&board, reads)?))
        })
        .collect()
}

/// Only the firmware's and those of parts and products: the other programs are tests.
fn measured(reports: &[Report], products: Vec<(String, u64)>) -> Vec<Measured> {
    let firmware = reports.iter().filter(|report| report.program == "firmware");
    let numbers = firmware.flat_map(|report| {
        let name = |what: &str| format!("{}: {what}", report.board);
        let stack = report.peak_stack_bytes;
        [
            Some(Measured::new(name("flash bytes"), report.flash_bytes())),
            Some(Measured::new(name("RAM bytes without stack and arena"), report.bytes_in("ram"))),
            stack.map(|bytes| Measured::within(name("peak stack bytes"), bytes, STACK_SLACK)),
        ]
    });
    let parts =
        parts(reports).into_iter().chain(products).map(|(name, bytes)| Some(Measured::new(name, bytes)));
    numbers.chain(parts).flatten().collect()
}

/// The deepest stack of the firmware after it has run, taken an adapter, switched to it and back.
fn peak_stack(board: &Board, elf: &Path) -> Result<u64> {
    let tool = Tool::build()?;
    let folder = workspace_root().join("target/sizes");
    std::fs::create_dir_all(&folder)?;
    let example = &board.example;
    let base = folder.join(format!("{}-{}.rpb", example.model, board.name));
    let model = format!("tests/data/bases/{}", example.model);
    let (target, rows) = (board.base_target(), example.pass_rows.to_string());
    let build = ["base", "build", "--from", &model, "--target", &target, "--pass-rows", &rows];
    tool.json(&[&build[..], &["-o", text(&base)?]].concat())?;
    let qemu =
        Qemu::boot(board, elf, &Options { images: vec![(base, board.base.origin)], ..Options::default() })?;
    let port = format!("tcp:{}", qemu.link_address());
    let ask = |arguments: &[&str]| tool.json(&[&["device", "--port", &port], arguments].concat());
    let [task, _] = &example.tasks;
    let adapter = format!("tests/data/adapters/{task}.rpa");
    // Boards without memory for a second set of weights cannot merge.
    let mode = if board.psram.length < 1 << 20 { "streamed" } else { "merged" };
    ask(&["generate", "--max-tokens", "12"])?;
    ask(&["push", &adapter, "--activate", "--mode", mode])?;
    ask(&["activate", task])?;
    ask(&["selftest"])?;
    ask(&["generate", "--max-tokens", "12", "--temperature", "0.8"])?;
    ask(&["detach"])?;
    let statistics = ask(&["stats"])?;
    statistics["peak_stack_bytes"].as_u64().context("expected the peak stack in the device's statistics")
}

/// The sizes of one program.
struct Report {
    board: String,
    program: String,
    sections: Vec<Section>,
    stack_bytes: u64,
    /// Unknown for a program that does not log it.
    peak_stack_bytes: Option<u64>,
}

impl Report {
    fn measure(board: &Board, program: &str) -> Result<Self> {
        let elf = firmware::build(board, program)?;
        let peak = if program == "firmware" {
            Some(peak_stack(board, &elf)?)
        } else if program != "smoke" {
            None
        } else {
            let qemu = Qemu::boot(board, &elf, &Options::default())?;
            let line = qemu.log().wait_for("peak stack ", TIMEOUT).ok();
            line.and_then(|line| line.text.split(' ').nth(2)?.parse().ok())
        };
        Ok(Self {
            board: board.name.clone(),
            program: program.to_owned(),
            sections: sections::read(board, &elf)?,
            stack_bytes: board.stack.length,
            peak_stack_bytes: peak,
        })
    }

    fn flash_bytes(&self) -> u64 {
        self.sections.iter().map(|section| section.flash_bytes).sum()
    }

    /// Bytes of the sections in `memory`.
    fn bytes_in(&self, memory: &str) -> u64 {
        self.sections.iter().filter(|section| section.memory == memory).map(|section| section.bytes).sum()
    }

    fn json(&self) -> Value {
        let sections: Vec<_> = self
            .sections
            .iter()
            .map(|section| json!({ "name": section.name, "memory": section.memory, "bytes": section.bytes, "flash_bytes": section.flash_bytes }))
            .collect();
        json!({
            "board": self.board,
            "program": self.program,
            "sections": sections,
            "flash_bytes": self.flash_bytes(),
            "ram_bytes": self.bytes_in("ram"),
            "arena_bytes": self.bytes_in("psram"),
            "stack_bytes": self.stack_bytes,
            "peak_stack_bytes": self.peak_stack_bytes,
        })
    }

    fn print(&self) {
        println!("{} for {}", self.program, self.board);
        println!("  {:<16} {:>7} {:>10} {:>10}", "section", "memory", "bytes", "in flash");
        for section in &self.sections {
            println!(
                "  {:<16} {:>7} {:>10} {:>10}",
                section.name, section.memory, section.bytes, section.flash_bytes
            );
        }
        println!(
            "  flash {}, RAM {} + arena {}",
            self.flash_bytes(),
            self.bytes_in("ram"),
            self.bytes_in("psram")
        );
        let peak = self.peak_stack_bytes.map_or_else(|| "unknown".to_owned(), |bytes| bytes.to_string());
        println!("  peak stack {peak} of {} bytes", self.stack_bytes);
    }
}
