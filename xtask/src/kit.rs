//! Kits: boards that no emulator stands for, the `[package.metadata.kit]` tables of packages under `boards/`. They are built and
//! linted like the others, and run by whoever has one.

use anyhow::Result;
use serde_json::Value;

use crate::board::{self, Region};

/// A kit's package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kit {
    /// The package's name.
    pub name: String,
    /// The Rust target triple.
    pub target: String,
    /// Flash of the program.
    pub flash: Region,
    /// The base's partition.
    pub base: Region,
    /// The adapters' partition.
    pub slots: Region,
    /// Bytes per slot.
    pub slot_bytes: u64,
    /// Bytes per erase page.
    pub page_bytes: u64,
    /// Bytes of the arena.
    pub arena_bytes: u64,
}

impl Kit {
    /// Every kit, in the order of their names.
    ///
    /// # Errors
    /// If cargo cannot be started or a table lacks something.
    pub fn all() -> Result<Vec<Self>> {
        let metadata = board::metadata()?;
        let mut kits = board::array(&metadata, "packages")?
            .iter()
            .filter(|package| !package["metadata"]["kit"].is_null())
            .map(|package| Self::from_table(package, &package["metadata"]["kit"]))
            .collect::<Result<Vec<_>>>()?;
        kits.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(kits)
    }

    fn from_table(package: &Value, table: &Value) -> Result<Self> {
        Ok(Self {
            name: board::text(package, "name")?,
            target: board::text(table, "target")?,
            flash: board::region(table, "flash")?,
            base: board::region(table, "base")?,
            slots: board::region(table, "slots")?,
            slot_bytes: board::number(&table["slots"], "slot")?,
            page_bytes: board::number(&table["slots"], "page")?,
            arena_bytes: board::number(&table["arena"], "length")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_of_every_kit_are_aligned_and_apart() {
        let kits = Kit::all().unwrap();
        let names: Vec<_> = kits.iter().map(|kit| kit.name.as_str()).collect();
        assert_eq!(names, ["nrf52840-dk", "rp-pico2"]);
        for kit in kits {
            assert!(kit.base.origin.is_multiple_of(16), "{}", kit.name);
            for number in [kit.slots.origin, kit.slots.length, kit.slot_bytes] {
                assert!(number.is_multiple_of(kit.page_bytes), "{}", kit.name);
            }
            // Three pages of journal behind at least one slot.
            assert!(kit.slots.length >= kit.slot_bytes + 3 * kit.page_bytes, "{}", kit.name);
            assert_eq!(kit.flash.origin + kit.flash.length, kit.base.origin, "{}", kit.name);
            assert_eq!(kit.base.origin + kit.base.length, kit.slots.origin, "{}", kit.name);
        }
    }
}
