//! One flash for a whole product: firmware, frozen base and adapter partition side by side in an image that boots. Where each lies follows from
//! their sizes, and firmware is built for that; this module knows neither what a base is nor how adapters lie in their partition.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use object::read::elf::{ElfFile32, FileHeader, ProgramHeader};
use object::{Endianness, elf};

use crate::board::{Board, Region};

/// How one flash is divided; the rest of it is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// All of the flash.
    pub flash: Region,
    /// The firmware, at the start.
    pub firmware: Region,
    /// The base image.
    pub base: Region,
    /// Adapter slots and journal.
    pub slots: Region,
    /// Bytes of a slot, whole pages.
    pub slot_bytes: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
}

impl Division {
    /// Divides the first `flash_bytes` of the flash of `board`: each part begins at a page behind the one before.
    ///
    /// # Errors
    /// If they do not fit.
    pub fn new(
        board: &Board,
        flash_bytes: u64,
        [firmware, base, slots]: [u64; 3],
        slot_bytes: u64,
    ) -> Result<Self> {
        let mut end = board.flash.origin;
        let [firmware, base, slots] = [firmware, base, slots].map(|bytes| {
            let region = Region { origin: end, length: bytes.next_multiple_of(board.page_bytes) };
            end += region.length;
            region
        });
        let flash = Region { origin: board.flash.origin, length: flash_bytes };
        let needed = end - flash.origin;
        ensure!(needed <= flash_bytes, "expected at most {flash_bytes} bytes of flash, found {needed}");
        Ok(Self { flash, firmware, base, slots, slot_bytes, page_bytes: board.page_bytes })
    }

    /// The lines of a board's manifest that say this, for the board's build script.
    pub(crate) fn manifest(&self) -> String {
        let mut text = String::new();
        let Self { firmware, base, slots, slot_bytes, page_bytes, .. } = self;
        for (name, Region { origin, length }) in [("flash", firmware), ("base", base)] {
            let _ = writeln!(text, "{name} = {{ origin = {origin:#x}, length = {length:#x} }}");
        }
        let Region { origin, length } = slots;
        let _ = writeln!(
            text,
            "slots = {{ origin = {origin:#x}, length = {length:#x}, slot = {slot_bytes:#x}, page = {page_bytes:#x} }}"
        );
        text
    }

    /// The whole flash: what the ELF file at `firmware` loads, `base` and `slots` at their places, all else erased.
    ///
    /// # Errors
    /// If the file cannot be read or is no 32-bit ELF file, or a part is larger than its region.
    pub fn image(&self, firmware: &Path, base: &[u8], slots: &[u8]) -> Result<Vec<u8>> {
        let mut image = vec![0xFF; usize::try_from(self.flash.length)?];
        let mut place = |region: Region, address: u64, bytes: &[u8]| -> Result<()> {
            let end = address + bytes.len() as u64;
            ensure!(
                region.contains(address) && end <= region.origin + region.length,
                "expected bytes inside {:#x}..{:#x}, found {address:#x}..{end:#x}",
                region.origin,
                region.origin + region.length
            );
            let start = usize::try_from(address - self.flash.origin)?;
            let target =
                image.get_mut(start..start + bytes.len()).context("expected a place in the flash")?;
            target.copy_from_slice(bytes);
            Ok(())
        };
        let file = std::fs::read(firmware).with_context(|| format!("cannot read {}", firmware.display()))?;
        let parsed =
            ElfFile32::<Endianness>::parse(&*file).with_context(|| firmware.display().to_string())?;
        let endian = parsed.elf_header().endian()?;
        for segment in parsed.elf_program_headers() {
            let bytes = segment.data(endian, &*file).ok().context("expected a segment inside the file")?;
            if segment.p_type(endian) == elf::PT_LOAD && !bytes.is_empty() {
                place(self.firmware, segment.p_paddr(endian).into(), bytes)?;
            }
        }
        place(self.base, self.base.origin, base)?;
        place(self.slots, self.slots.origin, slots)?;
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_at_pages_one_behind_the_other() {
        let board = Board::find("qemu-mps2-an386").unwrap();
        let division = Division::new(&board, 1 << 20, [116_348, 695_440, 192_512], 16_384).unwrap();
        assert_eq!(division.base, Region { origin: 116_736, length: 696_320 });
        assert_eq!(division.slots, Region { origin: 813_056, length: 192_512 });
        assert_eq!(
            division.manifest(),
            "flash = { origin = 0x0, length = 0x1c800 }\n\
             base = { origin = 0x1c800, length = 0xaa000 }\n\
             slots = { origin = 0xc6800, length = 0x2f000, slot = 0x4000, page = 0x800 }\n"
        );
        let error = Division::new(&board, 1 << 20, [116_348, 695_440, 235_521], 16_384).unwrap_err();
        assert_eq!(error.to_string(), "expected at most 1048576 bytes of flash, found 1050624");
    }
}
