//! What the firmware occupies: flash and RAM by section, and the stack at its deepest.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use xtask::board::Board;
use xtask::firmware;
use xtask::qemu::{Options, Qemu};
use xtask::sections::{self, Section};

/// How long a program may take to log its peak stack.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Prints one table, or one JSON array, over all programs of all boards.
pub(crate) fn run(json: bool) -> Result<()> {
    let mut reports = Vec::new();
    for board in Board::all()? {
        for program in &board.programs {
            reports.push(Report::measure(&board, program)?);
        }
    }
    if json {
        let reports: Vec<_> = reports.iter().map(Report::json).collect();
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        reports.iter().for_each(Report::print);
    }
    Ok(())
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
        let qemu = Qemu::boot(board, &elf, &Options::default())?;
        let line = qemu.log().wait_for("peak stack ", TIMEOUT).ok();
        Ok(Self {
            board: board.name.clone(),
            program: program.to_owned(),
            sections: sections::read(board, &elf)?,
            stack_bytes: board.stack.length,
            peak_stack_bytes: line.and_then(|line| line.text.split(' ').nth(2)?.parse().ok()),
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
