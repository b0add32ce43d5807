//! Counts instructions on the emulated cores: kernels alone on all of them, whole networks over the link of the boards.
//! QEMU counts instructions; they are not cycles.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::board::Board;
use xtask::machine::Machine;
use xtask::qemu::{Options, Qemu};
use xtask::{firmware, output_folder, workspace_root};

use crate::demo::{Tool, text};
use crate::snapshot::{Measured, Mode, Snapshot};

/// How long the bench program may take; it takes seconds.
const TIMEOUT: Duration = Duration::from_mins(5);
/// Tokens of the story that is counted.
const STORY_TOKENS: u64 = 200;
/// A text to run over, two tokens a pass.
const PREFILL: &str =
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.";
/// Parameters of stories260K, its tied classifier counted once.
const STORY_PARAMETERS: u64 = 260_032;
/// Multiplications of KWT-1 over 98 frames: the linear operators over 99 rows (the embedding over 98, the head over 1), and
/// q k^T and p v.
const KWT_MACS: u64 = 12 * (99 * (4 * 64 * 64 + 2 * 64 * 256) + 2 * 99 * 99 * 64) + 98 * 40 * 64 + 64 * 12;

/// One count.
struct Record {
    core: String,
    bench: String,
    /// Rows and columns of the matrix; for a network, of its input.
    shape: [u64; 2],
    rank: u64,
    tokens: u64,
    instructions: u64,
    macs: u64,
}

impl Record {
    /// What is counted, without where.
    fn title(&self) -> String {
        let Self { bench, shape: [rows, cols], rank, tokens, .. } = self;
        let rank = match rank {
            // The shape says it already.
            0 => String::new(),
            rank if rank == rows || rank == cols => String::new(),
            rank => format!(" rank {rank}"),
        };
        let tokens = if *tokens == 1 { String::new() } else { format!(", {tokens} rows") };
        format!("{bench} {rows}x{cols}{rank}{tokens}")
    }

    fn per_mac(&self) -> f64 {
        self.instructions as f64 / self.macs.max(1) as f64
    }

    fn json(&self) -> Value {
        json!({
            "core": self.core, "bench": self.bench, "shape": self.shape, "rank": self.rank,
            "tokens": self.tokens, "instructions": self.instructions, "macs": self.macs,
        })
    }
}

/// Counts everything and writes `target/bench/device.json`.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let (kernels, networks) = (kernels()?, networks()?);
    let all = || kernels.iter().chain(&networks);
    let json: Vec<Value> = all().map(Record::json).collect();
    let json = serde_json::to_string_pretty(&json)?;
    fs::write(output_folder("bench")?.join("device.json"), format!("{json}\n"))?;
    match mode {
        Mode::Json => println!("{json}"),
        Mode::Table => {
            print_kernels(&kernels);
            print_networks(&networks);
        }
        Mode::Bless => println!("{}", snapshot().bless(&measured(all()))?.display()),
        Mode::Check => snapshot().check(&measured(all()))?,
    }
    Ok(())
}

fn snapshot() -> Snapshot {
    Snapshot { file: "tests/golden/bench.json", command: "cargo xtask bench --bless" }
}

fn measured<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<Measured> {
    records
        .map(|record| Measured::new(format!("{}: {}", record.core, record.title()), record.instructions))
        .collect()
}

/// The lines of the bench program on every core. It ends with an error if a kernel differs from plain loops there.
fn kernels() -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for machine in Machine::all()? {
        let elf = firmware::build_bench(&machine)?;
        let written = machine.run(&elf, TIMEOUT)?;
        let found = written.lines().filter_map(|line| record(&machine.core, line));
        let before = records.len();
        records.extend(found);
        ensure!(records.len() > before, "expected counts of {}, found none in\n{written}", machine.core);
    }
    Ok(records)
}

/// A line `bench NAME ROWS COLS RANK TOKENS INSTRUCTIONS MACS`.
fn record(core: &str, line: &str) -> Option<Record> {
    let mut words = line.strip_prefix("bench ")?.split(' ');
    let bench = words.next()?.to_owned();
    let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
    let [rows, cols, rank, tokens, instructions, macs] = numbers[..] else { return None };
    Some(Record { core: core.to_owned(), bench, shape: [rows, cols], rank, tokens, instructions, macs })
}

/// Both bases whole, and attaching, through the firmware and its link.
fn networks() -> Result<Vec<Record>> {
    let tool = Tool::build()?;
    let mut records = Vec::new();
    // Both bases fit the others' partitions only: KWT-1 takes 653,088 bytes, and its arena 186,032.
    let large = |board: &Board| board.base.length >= 1 << 20 && board.qemu.pflash_bytes == 0;
    for board in Board::all()?.into_iter().filter(large) {
        stories(&tool, &board, &mut records)?;
        clip(&tool, &board, &mut records)?;
    }
    Ok(records)
}

/// A network's record.
fn network(board: &Board, bench: &str, shape: [u64; 2], ticks: &Value, macs: u64) -> Result<Record> {
    let ticks = ticks.as_u64().context("expected ticks in the device's answer")?;
    Ok(Record {
        core: board.core.clone(),
        bench: bench.to_owned(),
        shape,
        rank: 0,
        tokens: 1,
        instructions: board.instructions(ticks),
        macs,
    })
}

/// The firmware with a carried model in its base partition.
fn boot(tool: &Tool, board: &Board, model: &str) -> Result<Qemu> {
    let elf = firmware::build(board, "firmware")?;
    let target = board.base_target();
    let base: PathBuf = output_folder("bench")?.join(format!("{model}-{target}.rpb"));
    let from = format!("tests/data/bases/{model}");
    tool.json(&["base", "build", "--from", &from, "--target", &target, "-o", text(&base)?])?;
    let images = vec![(base, board.base.origin)];
    Qemu::boot(board, &elf, &Options { count_instructions: true, images, ..Options::default() })
}

/// Asks the firmware through its link.
pub(crate) fn ask(tool: &Tool, qemu: &Qemu, arguments: &[&str]) -> Result<Value> {
    let port = format!("tcp:{}", qemu.link_address());
    tool.json(&[&["device", "--port", &port, "--timeout", "300"], arguments].concat())
}

fn stories(tool: &Tool, board: &Board, records: &mut Vec<Record>) -> Result<()> {
    let qemu = boot(tool, board, "stories260k")?;
    let tokens = STORY_TOKENS.to_string();
    let said = ask(tool, &qemu, &["generate", "--prompt", "", "--max-tokens", &tokens])?;
    let found = said["ids"].as_array().map_or(0, Vec::len) as u64;
    ensure!(found == STORY_TOKENS, "expected {STORY_TOKENS} tokens, found {found}");
    let work = STORY_TOKENS * STORY_PARAMETERS;
    records.push(network(board, "stories260K greedy", [STORY_TOKENS, 1], &said["ticks"], work)?);
    // Attaching copies nothing: its cost does not even depend on the number of sites, here 35.
    let pushed = ask(tool, &qemu, &["push", "tests/data/adapters/names.rpa"])?;
    let activated = ask(tool, &qemu, &["activate", &pushed["slot"].to_string()])?;
    let sites = activated["n_patches"].as_u64().context("expected the number of sites")?;
    records.push(network(board, "attach", [sites, 1], &activated["ticks"], 0)?);
    // The same tokens over the base, with the adapter streamed, and with the adapter merged.
    let slot = pushed["slot"].to_string();
    let mut prefill = |title: &str| -> Result<()> {
        let rows =
            || ask(tool, &qemu, &["stats"])?["rows"].as_u64().context("expected the rows that were run");
        let before = rows()?;
        let ran = ask(tool, &qemu, &["run", "--text", PREFILL])?;
        let tokens = rows()? - before;
        records.push(network(board, title, [tokens, 1], &ran["ticks"], tokens * STORY_PARAMETERS)?);
        Ok(())
    };
    prefill("prefill, rank 8 streamed")?;
    ask(tool, &qemu, &["activate", &slot, "--mode", "merged"])?;
    prefill("prefill, merged int8")?;
    ask(tool, &qemu, &["detach"])?;
    prefill("prefill, base")?;
    qemu.stop();
    Ok(())
}

fn clip(tool: &Tool, board: &Board, records: &mut Vec<Record>) -> Result<()> {
    let qemu = boot(tool, board, "kwt1")?;
    let clip = workspace_root().join("tests/data/kwt1-golden/clips.safetensors");
    let ran = ask(tool, &qemu, &["run", "--features", text(&clip)?])?;
    records.push(network(board, "KWT-1 clip", [98, 40], &ran["ticks"], KWT_MACS)?);
    // Statistics count the front end's work with that of runs; the answer to a run does not.
    let work = || ask(tool, &qemu, &["stats"])?["run_ticks"].as_u64().context("expected the ticks of runs");
    let sound = workspace_root().join("tests/data/kwt1-golden/yes.wav");
    let before = work()?;
    let ran = ask(tool, &qemu, &["run", "--audio", text(&sound)?])?;
    let run = ran["ticks"].as_u64().context("expected ticks in the device's answer")?;
    records.push(network(board, "features of one second", [98, 40], &json!(work()? - before - run), 0)?);
    qemu.stop();
    Ok(())
}

/// One row a kernel, one column a core: instructions per MAC, or instructions where nothing is multiplied.
fn print_kernels(records: &[Record]) {
    let mut cores: Vec<&str> = Vec::new();
    let mut titles: Vec<String> = Vec::new();
    for record in records {
        if !cores.contains(&record.core.as_str()) {
            cores.push(&record.core);
        }
        if !titles.contains(&record.title()) {
            titles.push(record.title());
        }
    }
    let find = |core: &str, title: &str| {
        records.iter().find(|record| record.core == core && record.title() == title)
    };
    let row = |title: &str, cells: Vec<String>| {
        let cells: Vec<_> = cells.iter().map(|cell| format!("{cell:>11}")).collect();
        println!("{title:<28}{}", cells.concat());
    };
    println!("instructions per MAC; without MACs, instructions");
    row("", cores.iter().map(|core| (*core).to_owned()).collect());
    for title in &titles {
        let cell = |core: &&str| match find(core, title) {
            None => "-".to_owned(),
            Some(record) if record.macs == 0 => record.instructions.to_string(),
            Some(record) => format!("{:.3}", record.per_mac()),
        };
        row(title, cores.iter().map(cell).collect());
    }
    for what in ["products", "streamed"] {
        let share = |core: &&str| {
            let count = |title: &str| find(core, title).map(|record| record.instructions as f64);
            let share = count(&format!("{what} 256x256 rank 8"))
                .zip(count("gemv 256x256"))
                .map(|(part, gemv)| 100.0 * part / gemv);
            share.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1} %"))
        };
        row(&format!("{what} rank 8 / gemv"), cores.iter().map(share).collect());
    }
}

fn print_networks(records: &[Record]) {
    println!("\n{:<12} {:<28} {:>13} {:>12}  instructions/MAC", "core", "network", "instructions", "MACs");
    for record in records {
        let per_mac = if record.macs == 0 { "-".to_owned() } else { format!("{:.3}", record.per_mac()) };
        println!(
            "{:<12} {:<28} {:>13} {:>12}  {per_mac}",
            record.core,
            record.title(),
            record.instructions,
            record.macs
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_bench_program_become_records() {
        let found = record("Cortex-M4", "bench up 256 8 8 1 2722 2048").unwrap();
        assert_eq!((found.title().as_str(), found.instructions), ("up 256x8", 2722));
        assert!((found.per_mac() - 1.329).abs() < 1e-3);
        let found = record("Cortex-M4", "bench streamed 256 256 8 2 5596 4096").unwrap();
        assert_eq!(found.title(), "streamed 256x256 rank 8, 2 rows");
        assert!(record("Cortex-M4", "sweep 100 cases 0 mismatches").is_none());
        assert!(record("Cortex-M4", "bench up 256 8 8").is_none());
    }
}
