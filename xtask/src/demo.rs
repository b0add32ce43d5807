//! The whole product in one command: trains an adapter, boots the firmware in QEMU with a frozen base, sends the adapter over
//! the emulated serial line, switches, switches back, and shows what the device said each time.
//!
//! Everything is done by the programs that users have, `rankpatch` and the firmware; this file only calls them and compares.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::board::Board;
use xtask::firmware;
use xtask::qemu::{Options, Qemu};
use xtask::{cargo, workspace_root};

use crate::setup;

const BOARD: &str = "qemu-mps2-an386";
const TASK: &str = "host-trainer/tasks/names.toml";
const MODEL: &str = "tests/data/bases/stories260k";
/// Tokens that the plain base is asked for.
const STORY_TOKENS: &str = "28";
/// Seeds of the names that the adapted device is asked for.
const SEEDS: [&str; 6] = ["1", "2", "3", "4", "5", "6"];

/// Runs the demo and writes `target/demo/summary.json`.
pub(crate) fn run() -> Result<()> {
    setup::run()?;
    let folder = workspace_root().join("target/demo");
    fs::create_dir_all(&folder)?;
    step("building the trainer and the firmware (the first time takes minutes)");
    let tool = Tool::build()?;
    let board = Board::find(BOARD)?;
    step("making a signing key; the firmware is built with its public part");
    let (secret, public) = (folder.join("demo.key"), folder.join("demo.pub"));
    for old in [&secret, &public] {
        // A key is never overwritten by the command that makes it.
        let _ = fs::remove_file(old);
    }
    let key = tool.json(&["key", "new", "-o", text(&secret)?])?;
    println!("key {}", string(&key["key_id"]));
    let elf = firmware::build_with(&board, "firmware", Some(&string(&key["public_key"])))?;
    let built = Instant::now();

    step("quantizing the story model (260,032 parameters) into a base image");
    let base = folder.join("stories260k.rpb");
    tool.json(&["base", "build", "--from", MODEL, "--target", "cortex-m4", "-o", text(&base)?])?;
    step("training an adapter on the CPU: the story model learns to write names");
    let out = folder.join("names");
    let trained = tool.json(&["train", TASK, "--base", text(&base)?, "--out", text(&out)?])?;
    let adapter = PathBuf::from(trained["adapter"].as_str().context("the trainer names no adapter file")?);
    let adapter = text(&adapter)?;
    step("signing the adapter with that key");
    let signing = ["--key", text(&secret)?, "--product", firmware::PRODUCT, "--sequence", "1"];
    tool.json(&[&["sign", adapter][..], &signing].concat())?;
    tool.json(&["verify", adapter, "--key", text(&public)?, "--base", text(&base)?])?;

    step("booting the firmware in QEMU (Cortex-M4, mps2-an386), the frozen base in its flash partition");
    let images = vec![(base.clone(), board.base.origin)];
    let qemu = Qemu::boot(&board, &elf, &Options { echo_log: true, images, ..Options::default() })?;
    let device = Device { tool: &tool, port: format!("tcp:{}", qemu.link_address()) };
    let info = device.ask(&["info"])?;
    println!(
        "device: {} with {}, id {}",
        string(&info["board"]),
        string(&info["base"]),
        string(&info["base_id"])
    );

    step("the plain base continues an empty text");
    let before = device.story()?;
    println!("device says: {}", string(&before["text"]));
    step("sending the adapter over the serial line and switching to it");
    let pushed = device.ask(&["push", adapter])?;
    let slot = pushed["slot"].to_string();
    let activated = device.ask(&["activate", &slot])?;
    device.ask(&["confirm"])?;
    let mut equal = before["digest"] == tool.story(&base)?["digest"];
    let mut names = Vec::new();
    for seed in SEEDS {
        let sampling = ["--prompt", "", "--max-tokens", "24", "--temperature", "0.8", "--seed", seed];
        let said = device.ask(&[&["generate"][..], &sampling].concat())?;
        let host =
            tool.json(&[&["sim", "--base", text(&base)?, "--adapter", adapter][..], &sampling].concat())?;
        equal &= said["digest"] == host["digest"] && said["ids"] == host["ids"];
        names.push(string(&said["text"]));
    }
    println!("device says: {}", names.join(", "));
    step("switching back");
    device.ask(&["detach"])?;
    let after = device.story()?;
    println!("device says: {}", string(&after["text"]));
    let restored = before["digest"] == after["digest"] && before["ids"] == after["ids"];
    let log = qemu.log().lines();
    qemu.stop();
    ensure!(!log.is_empty(), "the device logged nothing");

    let metric = &trained["metric"];
    let summary = json!({
        "base": trained["base"],
        "task": trained["task"],
        "rank": trained["rank"],
        "payload_bytes": trained["payload_bytes"],
        "adapter_file_bytes": trained["adapter_file_bytes"],
        "wire_bytes": pushed["wire_bytes"],
        "weight_bytes_copied": activated["weight_bytes_copied"],
        "metric": {
            "name": metric["name"],
            "base": metric["base"],
            "adapter_float": metric["adapter_float"],
            "adapter_device": metric["adapter_device"],
            "bit_exact_host_device": equal,
            "restored_bit_exact": restored,
        },
        "training_seconds": trained["training_seconds"],
        "seconds_after_compilation": built.elapsed().as_secs_f64(),
    });
    let file = folder.join("summary.json");
    fs::write(&file, serde_json::to_string_pretty(&summary)? + "\n")?;
    print_table(&summary);
    println!("\nwritten to {}", file.strip_prefix(workspace_root()).unwrap_or(&file).display());
    ensure!(equal, "expected the same bits on the host and on the device");
    ensure!(restored, "expected the plain base to come back bit for bit");
    Ok(())
}

fn step(what: &str) {
    println!("\n== {what}");
}

pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("expected a path in UTF-8, found {}", path.display()))
}

fn string(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn print_table(summary: &Value) {
    let metric = &summary["metric"];
    let number = |value: &Value| value.as_f64().map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
    let name = string(&metric["name"]).replace('_', " ");
    let yes = |value: &Value| if value == true { "equal" } else { "DIFFERENT" }.to_owned();
    let rows = [
        ("base".to_owned(), string(&summary["base"])),
        ("task, rank".to_owned(), format!("{}, {}", string(&summary["task"]), summary["rank"])),
        ("payload / file / wire bytes".to_owned(), {
            let bytes = [&summary["payload_bytes"], &summary["adapter_file_bytes"], &summary["wire_bytes"]];
            bytes.map(ToString::to_string).join(" / ")
        }),
        ("weight bytes copied to switch".to_owned(), summary["weight_bytes_copied"].to_string()),
        (format!("{name}: plain base"), number(&metric["base"])),
        (format!("{name}: float adapter"), number(&metric["adapter_float"])),
        (format!("{name}: int8 on device code"), number(&metric["adapter_device"])),
        ("bits, host and device".to_owned(), yes(&metric["bit_exact_host_device"])),
        ("bits, base before and after".to_owned(), yes(&metric["restored_bit_exact"])),
        (
            "seconds after compilation".to_owned(),
            format!("{:.0}", summary["seconds_after_compilation"].as_f64().unwrap_or(0.0)),
        ),
    ];
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    println!();
    for (label, value) in rows {
        println!("{label:width$}  {value}");
    }
}

/// The `rankpatch` command.
pub(crate) struct Tool(PathBuf);

impl Tool {
    /// Builds the command with the profile that the tests use.
    pub(crate) fn build() -> Result<Self> {
        let arguments = ["build", "--quiet", "--locked", "--package", "rankpatch", "--bin", "rankpatch"];
        let status = cargo().args(arguments).stdin(Stdio::null()).status().context("cannot start cargo")?;
        ensure!(status.success(), "building the rankpatch command failed: {status}");
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| workspace_root().join("target"), PathBuf::from);
        Ok(Self(target.join("debug/rankpatch")))
    }

    /// What a command prints with `--format json`; its progress goes to stderr.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let (value, succeeded) = self.try_json(arguments)?;
        ensure!(succeeded, "rankpatch {} failed", arguments.join(" "));
        Ok(value)
    }

    /// The same, and whether the command has succeeded: some print what they did nevertheless.
    pub(crate) fn try_json(&self, arguments: &[&str]) -> Result<(Value, bool)> {
        let output = Command::new(&self.0)
            .args(arguments)
            .args(["--format", "json"])
            .current_dir(workspace_root())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot start {}", self.0.display()))?;
        let succeeded = output.status.success();
        if !succeeded && output.stdout.is_empty() {
            bail!("rankpatch {} failed: {}", arguments.join(" "), output.status);
        }
        let value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("expected JSON from rankpatch {}", arguments.join(" ")))?;
        Ok((value, succeeded))
    }

    /// What the plain base says on the host.
    fn story(&self, base: &Path) -> Result<Value> {
        self.json(&["sim", "--base", text(base)?, "--prompt", "", "--max-tokens", STORY_TOKENS])
    }
}

/// The device behind a port.
struct Device<'t> {
    tool: &'t Tool,
    port: String,
}

impl Device<'_> {
    fn ask(&self, arguments: &[&str]) -> Result<Value> {
        self.tool.json(&[&["device", "--port", &self.port], arguments].concat())
    }

    fn story(&self) -> Result<Value> {
        self.ask(&["generate", "--prompt", "", "--max-tokens", STORY_TOKENS])
    }
}
