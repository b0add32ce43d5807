//! Counts instructions on the emulated device: kernels alone, and whole networks over the link. QEMU counts instructions;
//! they are not cycles.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::board::Board;
use xtask::firmware;
use xtask::qemu::{Options, Qemu};
use xtask::workspace_root;

use crate::demo::{Tool, text};

const BOARD: &str = "qemu-mps2-an386";
/// Ticks of the board's clock and instructions for them, exact with `-icount shift=7`: 3.2 ticks each.
const TICKS: u64 = 16;
const INSTRUCTIONS: u64 = 5;
/// Tokens of the story that is counted.
const STORY_TOKENS: u64 = 200;
/// Parameters of stories260K, its tied classifier counted once.
const STORY_PARAMETERS: u64 = 260_032;
/// Multiplications of KWT-1 over 98 frames: the linear operators over 99 rows (the embedding over 98, the head over 1), and
/// q k^T and p v.
const KWT_MACS: u64 = 12 * (99 * (4 * 64 * 64 + 2 * 64 * 256) + 2 * 99 * 99 * 64) + 98 * 40 * 64 + 64 * 12;

/// Prints a table or a JSON array and writes `target/bench/device.json`.
pub(crate) fn run(json: bool) -> Result<()> {
    let board = Board::find(BOARD)?;
    let mut records = kernels(&board)?;
    records.extend(networks(&board)?);
    let folder = workspace_root().join("target/bench");
    fs::create_dir_all(&folder)?;
    let text = serde_json::to_string_pretty(&records)?;
    fs::write(folder.join("device.json"), format!("{text}\n"))?;
    if json {
        println!("{text}");
    } else {
        print_table(&records);
    }
    Ok(())
}

fn options(images: Vec<(std::path::PathBuf, u64)>) -> Options {
    Options { count_instructions: true, images, ..Options::default() }
}

/// The lines of the bench program.
fn kernels(board: &Board) -> Result<Vec<Value>> {
    let elf = firmware::build(board, "bench")?;
    let qemu = Qemu::boot(board, &elf, &options(Vec::new()))?;
    // Any byte starts it.
    std::io::Write::write_all(&mut qemu.connect(Duration::from_secs(10))?, b"s")?;
    qemu.log().wait_for("bench done", Duration::from_mins(5))?;
    let lines = qemu.log().lines();
    let records: Vec<Value> = lines.iter().filter_map(|line| record(board, &line.text)).collect();
    ensure!(!records.is_empty(), "expected counts in the log of the bench program, found none");
    Ok(records)
}

/// A line `bench NAME ROWS COLS RANK TOKENS INSTRUCTIONS MACS`.
fn record(board: &Board, line: &str) -> Option<Value> {
    let mut words = line.strip_prefix("bench ")?.split(' ');
    let name = words.next()?;
    let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
    let [rows, cols, rank, tokens, instructions, macs] = numbers[..] else { return None };
    Some(json!({
        "board": board.name, "core": board.core, "bench": name, "shape": [rows, cols], "rank": rank,
        "tokens": tokens, "instructions": instructions, "macs": macs,
    }))
}

/// Both bases whole, and attaching, through the firmware and its link.
fn networks(board: &Board) -> Result<Vec<Value>> {
    let tool = Tool::build()?;
    let elf = firmware::build(board, "firmware")?;
    let folder = workspace_root().join("target/bench");
    fs::create_dir_all(&folder)?;
    let mut records = Vec::new();
    let mut push = |bench: &str, shape: [u64; 2], ticks: &Value, macs: u64| -> Result<()> {
        let ticks = ticks.as_u64().context("expected ticks in the device's answer")?;
        records.push(json!({
            "board": board.name, "core": board.core, "bench": bench, "shape": shape, "rank": 0, "tokens": shape[0],
            "instructions": ticks * INSTRUCTIONS / TICKS, "macs": macs,
        }));
        Ok(())
    };
    for (model, name) in [("stories260k", "stories260K"), ("kwt1", "KWT-1")] {
        let base = folder.join(format!("{model}.rpb"));
        let from = format!("tests/data/bases/{model}");
        tool.json(&["base", "build", "--from", &from, "--target", "cortex-m4", "-o", text(&base)?])?;
        let qemu = Qemu::boot(board, &elf, &options(vec![(base, board.base.origin)]))?;
        let port = format!("tcp:{}", qemu.link_address());
        let ask = |arguments: &[&str]| {
            tool.json(&[&["device", "--port", &port, "--timeout", "300"], arguments].concat())
        };
        if model == "stories260k" {
            let tokens = STORY_TOKENS.to_string();
            let said = ask(&["generate", "--prompt", "", "--max-tokens", &tokens])?;
            let found = said["ids"].as_array().map_or(0, Vec::len) as u64;
            ensure!(found == STORY_TOKENS, "expected {STORY_TOKENS} tokens, found {found}");
            push(
                &format!("{name} greedy"),
                [STORY_TOKENS, 1],
                &said["ticks"],
                STORY_TOKENS * STORY_PARAMETERS,
            )?;
            // Attaching copies nothing: its cost does not even depend on the number of sites, here 35.
            let pushed = ask(&["push", "tests/data/adapters/names.rpa"])?;
            let activated = ask(&["activate", &pushed["slot"].to_string()])?;
            let sites = activated["n_patches"].as_u64().context("expected the number of sites")?;
            push("attach", [sites, 1], &activated["ticks"], 0)?;
        } else {
            let clip = workspace_root().join("tests/data/kwt1-golden/clips.safetensors");
            let ran = ask(&["run", "--features", text(&clip)?])?;
            push(&format!("{name} clip"), [98, 40], &ran["ticks"], KWT_MACS)?;
        }
        qemu.stop();
    }
    Ok(records)
}

fn print_table(records: &[Value]) {
    println!(
        "{:<16} {:<10} {:<18} {:>9} {:>4} {:>6} {:>12} {:>11}  instructions/MAC",
        "board", "core", "bench", "shape", "rank", "tokens", "instructions", "MACs"
    );
    for record in records {
        let word = |key: &str| record[key].as_str().unwrap_or("").to_owned();
        let number = |key: &str| record[key].as_u64().unwrap_or(0);
        let shape = format!("{}x{}", record["shape"][0], record["shape"][1]);
        println!(
            "{:<16} {:<10} {:<18} {:>9} {:>4} {:>6} {:>12} {:>11}  {:.3}",
            word("board"),
            word("core"),
            word("bench"),
            shape,
            number("rank"),
            number("tokens"),
            number("instructions"),
            number("macs"),
            number("instructions") as f64 / number("macs").max(1) as f64
        );
    }
}
