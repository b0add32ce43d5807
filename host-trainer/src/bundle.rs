//! Bundles (`.rpk`): the image of a device's adapter partition, for shipping tasks with the firmware. They are written and read by the
//! device's own slots, on flash in memory, so a device mounts what is made here.

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};
use rankpatch_format::adapter::Preview;
use rankpatch_format::header;
use rankpatch_runtime::slots::{
    Activation, Announcement, FILE_OFFSET, FinishError, Layout, Life, MAX_SLOTS, MIN_JOURNAL_PAGES,
    MappedFlash, Slots,
};

use crate::{Error, Result};

/// Bytes that are written at once.
const CHUNK_BYTES: usize = 4096;

/// The flash of a device and how its partition is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Geometry {
    /// Adapter slots.
    pub slots: usize,
    /// Bytes per slot, whole pages.
    pub slot_bytes: usize,
    /// Pages of the journal.
    pub journal_pages: usize,
    /// Bytes per page.
    pub page_bytes: usize,
    /// Bytes per word.
    pub word_bytes: usize,
    /// The value of an erased byte.
    pub erased: u8,
}

impl Geometry {
    fn layout(&self) -> Layout {
        Layout {
            journal_pages: self.journal_pages,
            erased: self.erased,
            ..Layout::new(self.slots, self.slot_bytes)
        }
    }

    /// Bytes of the partition.
    pub fn partition_bytes(&self) -> usize {
        self.layout().partition_bytes(self.page_bytes)
    }
}

/// A slot of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Slot {
    /// Index.
    pub slot: usize,
    /// Empty, uploading, installed, on trial, confirmed or rolled back.
    pub life: String,
    /// The task, if a file is installed.
    pub task: Option<String>,
    /// Its sequence number.
    pub sequence: Option<u32>,
    /// The file.
    #[serde(skip)]
    pub file: Vec<u8>,
    /// Bytes of the file.
    pub file_bytes: usize,
    /// How often the slot was erased.
    pub wear: u32,
}

/// What a partition holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Contents {
    /// All slots.
    pub slots: Vec<Slot>,
    /// The slot that runs after a reset.
    pub active: Option<usize>,
    /// The highest sequence number so far.
    pub floor: u32,
}

/// Flash in memory.
struct Flash<const WORD: usize, const PAGE: usize> {
    bytes: Vec<u8>,
    erased: u8,
}

impl<const WORD: usize, const PAGE: usize> ErrorType for Flash<WORD, PAGE> {
    type Error = NorFlashErrorKind;
}

impl<const WORD: usize, const PAGE: usize> ReadNorFlash for Flash<WORD, PAGE> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> std::result::Result<(), NorFlashErrorKind> {
        let from = self.bytes.get(offset as usize..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(NorFlashErrorKind::OutOfBounds)?);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl<const WORD: usize, const PAGE: usize> NorFlash for Flash<WORD, PAGE> {
    const WRITE_SIZE: usize = WORD;
    const ERASE_SIZE: usize = PAGE;

    fn erase(&mut self, from: u32, to: u32) -> std::result::Result<(), NorFlashErrorKind> {
        let page = self.bytes.get_mut(from as usize..to as usize);
        page.ok_or(NorFlashErrorKind::OutOfBounds)?.fill(self.erased);
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> std::result::Result<(), NorFlashErrorKind> {
        let to = self.bytes.get_mut(offset as usize..).and_then(|rest| rest.get_mut(..bytes.len()));
        to.ok_or(NorFlashErrorKind::OutOfBounds)?.copy_from_slice(bytes);
        Ok(())
    }
}

impl<const WORD: usize, const PAGE: usize> MappedFlash for Flash<WORD, PAGE> {
    fn mapped(&self) -> &[u8] {
        &self.bytes
    }
}

/// Calls `$function::<WORD, PAGE>` with the sizes of a geometry.
macro_rules! with_sizes {
    ($geometry:expr, $function:ident $arguments:tt, [$($word:literal),*], $pages:tt) => {
        match $geometry.word_bytes {
            $($word => with_sizes!(@page $geometry, $function $arguments, $word, $pages),)*
            found => Err(Error::Bundle {
                what: "bytes per word",
                expected: [$($word),*].map(|word: usize| word.to_string()).join(", "),
                found: found.to_string(),
            }),
        }
    };
    (@page $geometry:expr, $function:ident $arguments:tt, $word:literal, [$($page:literal),*]) => {
        match $geometry.page_bytes {
            $($page => $function::<$word, $page> $arguments,)*
            found => Err(Error::Bundle {
                what: "bytes per page",
                expected: [$($page),*].map(|page: usize| page.to_string()).join(", "),
                found: found.to_string(),
            }),
        }
    };
}

/// The image of a partition that holds `files`, of which the one for the task `active` is confirmed: it runs from the first start
/// on. Files are installed in the order of their sequence numbers, which must differ.
///
/// # Errors
/// [`Error::Bundle`], [`Error::Format`], [`Error::Slots`].
pub fn build(geometry: &Geometry, files: &[Vec<u8>], active: Option<&str>) -> Result<Vec<u8>> {
    with_sizes!(
        geometry,
        build_on(geometry, files, active),
        [1, 2, 4, 8, 16, 32],
        [512, 1024, 2048, 4096, 8192, 131_072, 262_144]
    )
}

/// What a partition's image, built here or dumped from a device, holds.
///
/// # Errors
/// [`Error::Bundle`], [`Error::Slots`] if it is not one of this geometry.
pub fn read(geometry: &Geometry, image: &[u8]) -> Result<Contents> {
    with_sizes!(
        geometry,
        read_on(geometry, image),
        [1, 2, 4, 8, 16, 32],
        [512, 1024, 2048, 4096, 8192, 131_072, 262_144]
    )
}

fn build_on<const WORD: usize, const PAGE: usize>(
    geometry: &Geometry,
    files: &[Vec<u8>],
    active: Option<&str>,
) -> Result<Vec<u8>> {
    if files.len() > geometry.slots {
        let (expected, found) = (format!("at most {}, one a slot", geometry.slots), files.len().to_string());
        return Err(Error::Bundle { what: "adapters", expected, found });
    }
    let flash = Flash::<WORD, PAGE> {
        bytes: vec![geometry.erased; geometry.partition_bytes()],
        erased: geometry.erased,
    };
    let mut slots = Slots::mount(flash, geometry.layout()).map_err(|unmounted| unmounted.error)?;
    let mut sorted = files.iter().map(|file| Ok((Preview::new(file)?, file))).collect::<Result<Vec<_>>>()?;
    sorted.sort_by_key(|(preview, _)| preview.header.sequence);
    let mut confirmed = false;
    for (slot, (preview, file)) in sorted.iter().enumerate() {
        slots.begin(slot, Announcement::of(file))?;
        while slots.upload().is_some_and(|(.., progress)| {
            matches!(progress, rankpatch_runtime::slots::Progress::Erasing { .. })
        }) {
            slots.poll()?;
        }
        for (at, chunk) in file.chunks(CHUNK_BYTES).enumerate() {
            slots.chunk((at * CHUNK_BYTES) as u32, chunk)?;
        }
        let installed = slots.finish(|file, _| -> Result<u32> { Ok(header::check(file)?.sequence) });
        installed.map_err(|error| match error {
            FinishError::Slot(error) => error.into(),
            FinishError::Refused(error) => error,
        })?;
        if active == Some(preview.body.task) {
            slots.start_trial(Activation { slot, flag: false })?;
            slots.confirm()?;
            confirmed = true;
        }
    }
    if let Some(task) = active.filter(|_| !confirmed) {
        let tasks: Vec<&str> = sorted.iter().map(|(preview, _)| preview.body.task).collect();
        let (expected, found) = (format!("one of {}", tasks.join(", ")), task.to_owned());
        return Err(Error::Bundle { what: "active task", expected, found });
    }
    Ok(slots.into_flash().bytes)
}

fn read_on<const WORD: usize, const PAGE: usize>(geometry: &Geometry, image: &[u8]) -> Result<Contents> {
    let expected = geometry.partition_bytes();
    if image.len() < expected {
        let (expected, found) = (format!("at least {expected} bytes"), format!("{} bytes", image.len()));
        return Err(Error::Bundle { what: "image", expected, found });
    }
    let flash = Flash::<WORD, PAGE> { bytes: image.to_vec(), erased: geometry.erased };
    let slots = Slots::mount(flash, geometry.layout()).map_err(|unmounted| unmounted.error)?;
    let state = *slots.state();
    let one = |slot: usize| -> Result<Slot> {
        let file = slots.verified(slot).map(<[u8]>::to_vec).unwrap_or_default();
        let preview = Preview::new(&file).ok();
        let life = match slots.life(slot)? {
            Life::Empty => "empty",
            Life::Uploading => "uploading",
            Life::Installed => "installed",
            Life::OnTrial => "on trial",
            Life::Confirmed => "confirmed",
            Life::RolledBack => "rolled back",
        };
        Ok(Slot {
            slot,
            life: life.to_owned(),
            task: preview.as_ref().map(|preview| preview.body.task.to_owned()),
            sequence: preview.as_ref().map(|preview| preview.header.sequence),
            file_bytes: file.len(),
            wear: state.wear.get(slot).copied().unwrap_or(0),
            file,
        })
    };
    Ok(Contents {
        slots: (0..geometry.slots).map(one).collect::<Result<_>>()?,
        active: state.active().map(|activation| activation.slot),
        floor: state.floor,
    })
}

/// How flash is shared by firmware, base, journal and slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// All of the flash.
    pub flash_bytes: usize,
    /// Firmware, in whole pages.
    pub firmware_bytes: usize,
    /// Base image, in whole pages.
    pub base_bytes: usize,
    /// Journal.
    pub journal_bytes: usize,
    /// One slot: the file and its record, in whole pages.
    pub slot_bytes: usize,
    /// Slots that fit, at most what the device's code counts.
    pub slots: usize,
    /// Bytes that are left.
    pub free_bytes: usize,
}

/// How many adapters of `file_bytes` fit beside firmware and base.
///
/// # Errors
/// [`Error::Bundle`] if not even those two and the journal fit.
pub fn plan(flash: usize, firmware: usize, base: usize, file: usize, page: usize) -> Result<Plan> {
    let page = page.max(1);
    let (firmware_bytes, base_bytes) = (firmware.next_multiple_of(page), base.next_multiple_of(page));
    let journal_bytes = MIN_JOURNAL_PAGES * page;
    let fixed = firmware_bytes + base_bytes + journal_bytes;
    let left = flash.checked_sub(fixed).ok_or_else(|| Error::Bundle {
        what: "flash",
        expected: format!("at least {fixed} bytes for firmware, base and journal"),
        found: format!("{flash} bytes"),
    })?;
    let slot_bytes = (file + FILE_OFFSET).next_multiple_of(page);
    let slots = (left / slot_bytes).min(MAX_SLOTS);
    let free_bytes = left - slots * slot_bytes;
    Ok(Plan { flash_bytes: flash, firmware_bytes, base_bytes, journal_bytes, slot_bytes, slots, free_bytes })
}
