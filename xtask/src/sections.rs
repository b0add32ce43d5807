//! Sizes of a firmware ELF file by section and by memory.

use std::path::Path;

use anyhow::{Context, Result};
use object::read::elf::ElfFile32;
use object::{Object, ObjectSection, SectionFlags, elf};

use crate::board::Board;

/// One section that occupies memory on the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// For example `.text`.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// Bytes that the flash must hold: code, constants and initial values.
    pub flash_bytes: u64,
    /// The memory that it occupies while the program runs: `flash`, `ram`, `psram` or `stack`.
    pub memory: &'static str,
}

/// The non-empty sections of the ELF file at `path` in the order of their addresses.
///
/// # Errors
/// If the file cannot be read, is no 32-bit ELF file, or has a section outside `board`'s memories.
pub fn read(board: &Board, path: &Path) -> Result<Vec<Section>> {
    let image = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file =
        ElfFile32::<object::Endianness>::parse(&*image).with_context(|| format!("{}", path.display()))?;
    let mut sections = Vec::new();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        if sh_flags & u64::from(elf::SHF_ALLOC) == 0 || section.size() == 0 {
            continue;
        }
        let name = section.name()?.to_owned();
        let memories =
            [("flash", board.flash), ("ram", board.ram), ("psram", board.psram), ("stack", board.stack)];
        let memory = memories.iter().find(|(_, region)| region.contains(section.address()));
        let memory =
            memory.with_context(|| format!("section {name} lies outside flash, stack, RAM and PSRAM"))?.0;
        let stored = section.elf_section_header().sh_type.get(file.endian()) != elf::SHT_NOBITS;
        let bytes = section.size();
        sections.push((
            section.address(),
            Section { name, bytes, flash_bytes: if stored { bytes } else { 0 }, memory },
        ));
    }
    sections.sort_by_key(|section| section.0);
    Ok(sections.into_iter().map(|section| section.1).collect())
}
