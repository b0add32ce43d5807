//! Board descriptions: the `[package.metadata.board]` tables of the packages under `boards/`.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::qemu::ICOUNT_SHIFT;

/// A range of device addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub origin: u64,
    /// Bytes.
    pub length: u64,
}

impl Region {
    /// Whether `address` lies inside.
    pub fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.origin).is_some_and(|offset| offset < self.length)
    }
}

/// How QEMU is started for a board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The program, for example `qemu-system-arm`.
    pub system: String,
    /// The machine's name for `-M`.
    pub machine: String,
    /// The processor's name for `-cpu`.
    pub cpu: String,
    /// Whether the log comes through semihosting instead of the second serial port.
    pub log_by_semihosting: bool,
    /// The option that loads the firmware: `-kernel` unless the table says otherwise.
    pub load: String,
    /// Bytes of the machine's second parallel flash, which holds the slots and which a file backs; 0 for none.
    pub pflash_bytes: u64,
}

impl Machine {
    pub(crate) fn from_table(table: &Value) -> Result<Self> {
        Ok(Self {
            system: text(table, "system")?,
            machine: text(table, "machine")?,
            cpu: text(table, "cpu")?,
            log_by_semihosting: match table["log"].as_str() {
                None => false,
                Some("semihosting") => true,
                Some(other) => bail!("expected `log = \"semihosting\"` or none, found {other}"),
            },
            load: table["load"].as_str().unwrap_or("-kernel").to_owned(),
            pflash_bytes: table["pflash"].as_u64().unwrap_or(0),
        })
    }
}

/// What a board is shown with: names below `tests/data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The folder of the model in `bases`.
    pub model: String,
    /// Rows of a pass over it.
    pub pass_rows: u32,
    /// Two tasks in `adapters`.
    pub tasks: [String; 2],
}

impl Example {
    /// The table, or what boards without one are shown with.
    fn from_table(table: &Value) -> Result<Self> {
        if table.is_null() {
            let tasks = ["names", "intent"].map(str::to_owned);
            return Ok(Self { model: "stories260k".to_owned(), pass_rows: 16, tasks });
        }
        let [first, second] = ["first", "second"].map(|key| text(table, key));
        let pass_rows = number(table, "pass_rows")? as u32;
        Ok(Self { model: text(table, "model")?, pass_rows, tasks: [first?, second?] })
    }
}

/// One board package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Board {
    /// The package's name.
    pub name: String,
    /// The processor core as one writes it, for example `Cortex-M4`.
    pub core: String,
    /// The Rust target triple.
    pub target: String,
    /// The emulator.
    pub qemu: Machine,
    /// Ticks of the firmware's counter in a second of the device's time.
    pub clock_hz: u64,
    /// Memory of the firmware image.
    pub flash: Region,
    /// Partition of the base image.
    pub base: Region,
    /// Partition of the adapter slots.
    pub slots: Region,
    /// Bytes per adapter slot.
    pub slot_bytes: u64,
    /// Bytes per erase page of the adapter partition.
    pub page_bytes: u64,
    /// The stack.
    pub stack: Region,
    /// Memory of data.
    pub ram: Region,
    /// Memory of the arena.
    pub psram: Region,
    /// The network and the adapters that the board is shown with.
    pub example: Example,
    /// The firmware programs in the package.
    pub programs: Vec<String>,
}

impl Board {
    /// All boards of the workspace, in the order of their names.
    ///
    /// # Errors
    /// If `cargo metadata` fails or a table lacks a key.
    pub fn all() -> Result<Vec<Self>> {
        let metadata = metadata()?;
        let mut boards = Vec::new();
        for package in array(&metadata, "packages")? {
            let table = &package["metadata"]["board"];
            if table.is_null() {
                continue;
            }
            let manifest = text(package, "manifest_path").map(PathBuf::from)?;
            let board = Self::from_table(package, table);
            boards
                .push(board.with_context(|| format!("[package.metadata.board] of {}", manifest.display()))?);
        }
        boards.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(boards)
    }

    /// The board whose package is called `name`.
    ///
    /// # Errors
    /// As [`all`](Board::all), and if there is no such board.
    pub fn find(name: &str) -> Result<Self> {
        let boards = Self::all()?;
        let names: Vec<_> = boards.iter().map(|board| board.name.clone()).collect();
        boards
            .into_iter()
            .find(|board| board.name == name)
            .with_context(|| format!("expected one of the boards {}, found {name}", names.join(", ")))
    }

    /// What `rankpatch base build --target` calls the core.
    pub fn base_target(&self) -> String {
        if self.target.starts_with("riscv32") { "riscv32".to_owned() } else { self.core.to_lowercase() }
    }

    /// Instructions in so many ticks of the counter under `-icount`: exact for the difference of two readings.
    pub fn instructions(&self, ticks: u64) -> u64 {
        let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(self.clock_hz);
        ((nanoseconds + (1 << (ICOUNT_SHIFT - 1))) >> ICOUNT_SHIFT) as u64
    }

    fn from_table(package: &Value, table: &Value) -> Result<Self> {
        let programs = array(package, "targets")?
            .iter()
            .filter(|target| {
                // What needs a feature is asked for by name.
                let usual = target["required-features"].as_array().is_none_or(Vec::is_empty);
                usual && target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bin"))
            })
            .map(|target| text(target, "name"))
            .collect::<Result<_>>()?;
        Ok(Self {
            name: text(package, "name")?,
            core: text(table, "core")?,
            target: text(table, "target")?,
            qemu: Machine::from_table(&table["qemu"])?,
            clock_hz: number(table, "clock")?,
            flash: region(table, "flash")?,
            base: region(table, "base")?,
            slots: region(table, "slots")?,
            slot_bytes: number(&table["slots"], "slot")?,
            page_bytes: number(&table["slots"], "page")?,
            stack: region(table, "stack")?,
            ram: region(table, "ram")?,
            psram: region(table, "psram")?,
            example: Example::from_table(&table["example"])?,
            programs,
        })
    }
}

/// What cargo says about the packages of the workspace.
pub(crate) fn metadata() -> Result<Value> {
    let output = crate::cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")
}

pub(crate) fn region(table: &Value, key: &str) -> Result<Region> {
    let get = |part| number(&table[key], part).with_context(|| format!("in `{key}`"));
    Ok(Region { origin: get("origin")?, length: get("length")? })
}

pub(crate) fn array<'v>(value: &'v Value, key: &str) -> Result<&'v Vec<Value>> {
    value[key].as_array().with_context(|| format!("expected an array `{key}`, found {}", value[key]))
}

pub(crate) fn text(value: &Value, key: &str) -> Result<String> {
    let found =
        value[key].as_str().with_context(|| format!("expected a string `{key}`, found {}", value[key]))?;
    Ok(found.to_owned())
}

pub(crate) fn number(value: &Value, key: &str) -> Result<u64> {
    value[key].as_u64().with_context(|| format!("expected a number `{key}`, found {}", value[key]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_of_every_board_are_aligned_and_apart() {
        let boards = Board::all().unwrap();
        assert!(!boards.is_empty());
        for board in boards {
            assert!(!board.programs.is_empty(), "{}", board.name);
            assert!(board.base.origin.is_multiple_of(16));
            assert!(board.slots.origin.is_multiple_of(board.page_bytes));
            // Three pages of journal behind at least one slot.
            assert!(board.slots.length.is_multiple_of(board.page_bytes));
            assert!(board.slots.length >= board.slot_bytes + 3 * board.page_bytes);
            assert!(board.slot_bytes.is_multiple_of(board.page_bytes));
            let mut regions = [board.flash, board.base, board.slots, board.stack, board.ram, board.psram];
            regions.sort_by_key(|region| region.origin);
            for pair in regions.windows(2) {
                assert!(pair[0].origin + pair[0].length <= pair[1].origin, "{}: {pair:#x?}", board.name);
            }
        }
    }

    #[test]
    fn ticks_are_turned_into_whole_instructions() {
        let board = Board::find("qemu-mps2-an386").unwrap();
        assert_eq!((board.clock_hz, board.base_target().as_str()), (25_000_000, "cortex-m4"));
        for instructions in [1, 2, 3, 1000, 123_456_789] {
            // 3.2 ticks each, of which a reading shows the whole ones.
            let ticks = instructions * 16 / 5;
            assert_eq!([ticks, ticks + 1].map(|ticks| board.instructions(ticks)), [instructions; 2]);
        }
    }

    #[test]
    fn an_unknown_board_is_answered_with_the_known_ones() {
        let message = Board::find("nonesuch").unwrap_err().to_string();
        assert!(message.contains("qemu-mps2-an386") && message.ends_with("found nonesuch"), "{message}");
    }
}
