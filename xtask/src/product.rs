//! A product in one flash of 1 MB: the firmware, a carried base, and as many adapters as fit, signed and installed, booted in QEMU.
//!
//! Everything is done by the programs that users have; this file only calls them and puts the flash together. What the product is asked it does
//! not know.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::board::Board;
use xtask::firmware::Reads;
use xtask::flash::Division;
use xtask::qemu::{Options as Emulation, Qemu};
use xtask::{firmware, workspace_root};

use crate::demo::{Tool, text};

pub(crate) const FLASH_BYTES: u64 = 1 << 20;

/// An adapter file.
#[derive(Clone, Debug)]
pub(crate) struct Adapter {
    pub(crate) file: PathBuf,
    pub(crate) task: String,
    pub(crate) base_id: String,
    pub(crate) bytes: u64,
}

impl Adapter {
    /// What a file says of itself.
    pub(crate) fn read(tool: &Tool, file: PathBuf) -> Result<Self> {
        let found = tool.json(&["inspect", text(&file)?])?;
        let string = |key: &str| {
            found[key]
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("expected {key} in the description"))
        };
        let (task, base_id) = (string("task")?, string("base_id")?);
        Ok(Self { bytes: number(&found, "file_bytes")?, file, task, base_id })
    }
}

/// A booted product.
pub(crate) struct Product {
    pub(crate) qemu: Qemu,
    /// Its flash as it was when it booted.
    pub(crate) image: PathBuf,
    /// The image of the base.
    pub(crate) base: PathBuf,
    pub(crate) firmware_bytes: u64,
    pub(crate) base_bytes: u64,
    pub(crate) journal_bytes: u64,
    pub(crate) slots: u64,
    pub(crate) slot_bytes: u64,
    pub(crate) free_bytes: u64,
    /// What is installed, slot by slot, and its signed files.
    pub(crate) installed: Vec<Adapter>,
    pub(crate) files: Vec<PathBuf>,
    /// What there is no room for.
    pub(crate) left_out: Vec<Adapter>,
}

impl Product {
    /// Puts those of `adapters` that are for the base `model` into one flash, leaves files of it in `folder`, and boots.
    pub(crate) fn boot(
        tool: &Tool,
        board: &Board,
        model: &str,
        adapters: &[Adapter],
        folder: &Path,
        count_instructions: bool,
    ) -> Result<Self> {
        let base = folder.join(format!("{model}.rpb"));
        let from = workspace_root().join(format!("tests/data/bases/{model}"));
        let built = tool.json(&[
            "base",
            "build",
            "--from",
            text(&from)?,
            "--target",
            &board.base_target(),
            "-o",
            text(&base)?,
        ])?;
        let own = adapters.iter().filter(|adapter| built["base_id"] == *adapter.base_id).cloned().collect();
        let reads = Reads::of_vocabulary(number(&tool.json(&["inspect", text(&base)?])?, "vocab_size")?);
        let firmware_bytes = firmware::flash_bytes(board, reads)?;
        let base_bytes = number(&built, "image_bytes")?;
        let (installed, left_out, plan) = fitting(tool, [board.page_bytes, firmware_bytes], &base, own)?;
        let [slots, slot_bytes, journal_bytes, free_bytes] =
            ["slots", "slot_bytes", "journal_bytes", "free_bytes"].map(|key| number(&plan, key));
        let (slots, slot_bytes, journal_bytes) = (slots?, slot_bytes?, journal_bytes?);

        let files = sign(tool, &installed, folder)?;
        let bundle = folder.join(format!("{model}.rpk"));
        let numbers = [slots, slot_bytes, board.page_bytes, journal_bytes / board.page_bytes]
            .map(|number| number.to_string());
        let mut arguments = vec!["bundle", "-o", text(&bundle)?];
        for (name, number) in
            ["--slots", "--slot-bytes", "--page-bytes", "--journal-pages"].iter().zip(&numbers)
        {
            arguments.extend([*name, number.as_str()]);
        }
        for file in &files {
            arguments.push(text(file)?);
        }
        tool.json(&arguments)?;

        let parts = [firmware_bytes, base_bytes, slots * slot_bytes + journal_bytes];
        let division = Division::new(board, FLASH_BYTES, parts, slot_bytes)?;
        let elf = firmware::build_divided(board, reads, &division, model)?;
        let image = folder.join(format!("{model}.bin"));
        fs::write(&image, division.image(&elf, &fs::read(&base)?, &fs::read(&bundle)?)?)?;
        let emulation = Emulation { count_instructions, flash: Some(image.clone()), ..Emulation::default() };
        let qemu = Qemu::boot(board, &elf, &emulation)?;
        Ok(Self {
            qemu,
            image,
            base,
            firmware_bytes,
            base_bytes,
            journal_bytes,
            slots,
            slot_bytes,
            free_bytes: free_bytes?,
            installed,
            files,
            left_out,
        })
    }

    /// Asks the firmware through its link.
    pub(crate) fn ask(&self, tool: &Tool, arguments: &[&str]) -> Result<Value> {
        crate::bench::ask(tool, &self.qemu, arguments)
    }
}

/// Signs adapters with the test key, one number after the other, since a device takes rising ones only, whatever the task.
fn sign(tool: &Tool, adapters: &[Adapter], folder: &Path) -> Result<Vec<PathBuf>> {
    let key = workspace_root().join(firmware::SECRET_KEY);
    let mut files = Vec::new();
    for adapter in adapters {
        let file = folder.join(format!("{}.rpa", adapter.task));
        let sequence = (files.len() + 1).to_string();
        let signing = ["--key", text(&key)?, "--product", firmware::PRODUCT];
        let output = ["--sequence", &sequence, "-o", text(&file)?];
        tool.json(&[&["sign", text(&adapter.file)?][..], &signing, &output].concat())?;
        files.push(file);
    }
    Ok(files)
}

fn number(value: &Value, key: &str) -> Result<u64> {
    value[key].as_u64().with_context(|| format!("expected a number {key} in {value}"))
}

/// How `rankpatch bundle` divides the flash for adapters like these.
fn plan(tool: &Tool, [page, firmware]: [u64; 2], base: &Path, adapters: &[Adapter]) -> Result<Value> {
    let [flash, page, firmware] = [FLASH_BYTES, page, firmware].map(|number| number.to_string());
    let mut arguments = vec![
        "bundle",
        "--plan",
        &flash,
        "--firmware-bytes",
        &firmware,
        "--base",
        text(base)?,
        "--page-bytes",
        &page,
    ];
    for adapter in adapters {
        arguments.push(text(&adapter.file)?);
    }
    tool.json(&arguments)
}

/// The most adapters that fit: slots are of one size, so the largest are left out first. With the plan for them. `sizes`: of a page, of the firmware.
fn fitting(
    tool: &Tool,
    sizes: [u64; 2],
    base: &Path,
    mut adapters: Vec<Adapter>,
) -> Result<(Vec<Adapter>, Vec<Adapter>, Value)> {
    adapters.sort_by(|a, b| a.bytes.cmp(&b.bytes).then_with(|| a.task.cmp(&b.task)));
    let mut left_out = Vec::new();
    loop {
        ensure!(!adapters.is_empty(), "expected an adapter that fits, found none");
        let plan = plan(tool, sizes, base, &adapters)?;
        if number(&plan, "slots")? >= adapters.len() as u64 {
            return Ok((adapters, left_out, plan));
        }
        left_out.extend(adapters.pop());
    }
}
