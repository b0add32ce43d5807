//! Merging into a region of flash, which is then read in place: a merged adapter that costs no RAM and outlives a reset.

use rankpatch_format::adapter::Adapter;
use rankpatch_format::base::{ALIGN, Base, Matrix};
use rankpatch_format::crc32;

use super::{MergedType, Row, matrices_bytes, merge_row, patched, row_bytes, row_words};
use crate::slots::{MAX_WRITE_SIZE, MappedFlash};
use crate::{Error, Result};

/// Magic, type and layout, length of the matrices; CRC-32 of payload and entries of the adapter, of the BaseId, of the
/// matrices, and of all this; zeros.
const HEADER_BYTES: usize = 64;
const MAGIC: [u8; 4] = *b"RPM\x01";

/// Why merging into flash failed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FlashMergeError<E> {
    /// The region or the scratch is too small, or misplaced.
    Merge(Error),
    /// The driver's error. The region holds no merged adapter.
    Flash(E),
}

impl<E> From<Error> for FlashMergeError<E> {
    fn from(error: Error) -> Self {
        Self::Merge(error)
    }
}

/// Matrices that [`merge_into_flash`] wrote, read in place and checked.
#[derive(Clone, Copy)]
pub struct MergedImage<'a> {
    pub(crate) kind: MergedType,
    pub(crate) matrices: &'a [u8],
}

impl<'a> MergedImage<'a> {
    /// The image in `region`, if it is one of `adapter` on `base` and undamaged. `region` lies on a boundary of 16.
    ///
    /// # Errors
    /// [`Error::NotMerged`] for anything else; [`Error::Misaligned`].
    pub fn new(base: &Base<'_>, adapter: &Adapter<'_>, region: &'a [u8]) -> Result<Self> {
        let found = region.as_ptr().addr() % ALIGN;
        if found != 0 {
            return Err(Error::Misaligned { expected: ALIGN, found });
        }
        let header = region.first_chunk::<HEADER_BYTES>().ok_or(Error::NotMerged)?;
        let kind = MergedType::from_number(header[4]).ok_or(Error::NotMerged)?;
        let len = matrices_bytes(base, adapter, kind);
        let matrices = region.get(HEADER_BYTES..).and_then(|rest| rest.get(..len)).ok_or(Error::NotMerged)?;
        if *header != self::header(base, adapter, kind, matrices) {
            return Err(Error::NotMerged);
        }
        Ok(Self { kind, matrices })
    }
}

fn header(base: &Base<'_>, adapter: &Adapter<'_>, kind: MergedType, matrices: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let words = [
        MAGIC,
        [kind.number(), layout(base, adapter), 0, 0],
        (matrices.len() as u32).to_le_bytes(),
        crc32(adapter.payload()).to_le_bytes(),
        crc32(adapter.body().sites).to_le_bytes(),
        crc32(&base.id().0).to_le_bytes(),
        crc32(matrices).to_le_bytes(),
    ];
    header.as_chunks_mut::<4>().0.iter_mut().zip(words).for_each(|(to, word)| *to = word);
    let check = crc32(header.get(..28).unwrap_or(&[]));
    if let Some(to) = header.get_mut(28..32) {
        to.copy_from_slice(&check.to_le_bytes());
    }
    header
}

/// Bytes of flash that merging `adapter` takes, before rounding up to an erase unit.
pub fn merged_image_bytes(base: &Base<'_>, adapter: &Adapter<'_>, kind: MergedType) -> usize {
    HEADER_BYTES.saturating_add(matrices_bytes(base, adapter, kind))
}

/// The layout of the first patched matrix: the others have the same.
fn layout(base: &Base<'_>, adapter: &Adapter<'_>) -> u8 {
    patched(base, adapter).next().map_or(0, |(w, _)| w.layout as u8)
}

/// Bytes of scratch for [`merge_into_flash`]: four rows of codes, and one row of sums.
pub fn flash_scratch_bytes(base: &Base<'_>, adapter: &Adapter<'_>) -> usize {
    patched(base, adapter).map(|(w, _)| group_bytes(w.cols) + row_bytes(w.cols)).max().unwrap_or(0)
}

/// Room for four rows in any layout and type.
fn group_bytes(cols: usize) -> usize {
    row_words(cols).saturating_mul(16)
}

/// Merges `adapter` into `flash`, into `len` bytes from `offset` on.
///
/// The region is erased first; matrices are written in order, each word once; the header, which makes the image valid, is
/// written last. A cut at any moment leaves a region that [`MergedImage::new`] refuses. `scratch` has
/// [`flash_scratch_bytes`] and lies on a boundary of 16; each row is computed twice, once for the scales. Returns the bytes
/// written.
///
/// # Errors
/// [`FlashMergeError`]. `offset` and `len` are multiples of the erase size, or it is the driver's error; `len` has room for
/// [`merged_image_bytes`]; a word of the flash has at most [`MAX_WRITE_SIZE`] bytes.
pub fn merge_into_flash<F: MappedFlash>(
    base: &Base<'_>,
    adapter: &Adapter<'_>,
    kind: MergedType,
    flash: &mut F,
    (offset, len): (u32, u32),
    scratch: &mut [u8],
) -> core::result::Result<usize, FlashMergeError<F::Error>> {
    let (expected, found) =
        (merged_image_bytes(base, adapter, kind).next_multiple_of(MAX_WRITE_SIZE), len as usize);
    if found < expected {
        return Err(Error::MergeBufferTooSmall { expected, found }.into());
    }
    let (expected, found) = (flash_scratch_bytes(base, adapter), scratch.len());
    if found < expected {
        return Err(Error::MergeBufferTooSmall { expected, found }.into());
    }
    let found = scratch.as_ptr().addr() % ALIGN;
    if found != 0 || F::WRITE_SIZE > MAX_WRITE_SIZE {
        return Err(Error::Misaligned { expected: ALIGN, found }.into());
    }
    flash.erase(offset, offset.saturating_add(len)).map_err(FlashMergeError::Flash)?;
    let start = offset.saturating_add(HEADER_BYTES as u32);
    let mut writer = Writer { flash, at: start, staged: [0; MAX_WRITE_SIZE], fill: 0 };
    for (w, patch) in patched(base, adapter) {
        let Some((group, row)) = scratch.split_at_mut_checked(group_bytes(w.cols)) else { continue };
        let Some(mut row) = Row::new(row, w.cols) else { continue };
        for o in 0..w.rows {
            let scale = merge_row(&w, &patch, kind, o, (0, &mut *group), &mut row);
            writer.push(&scale.to_le_bytes())?;
        }
        writer.pad()?;
        for first in (0..w.rows).step_by(4) {
            let rows = (w.rows - first).min(4);
            group.fill(0);
            for i in 0..rows {
                merge_row(&w, &patch, kind, first + i, (i, &mut *group), &mut row);
            }
            let bytes = kind.codes_bytes(&Matrix { rows, ..w });
            writer.push(group.get(..bytes).unwrap_or(&[]))?;
        }
        writer.pad()?;
    }
    writer.finish()?;
    let len = matrices_bytes(base, adapter, kind);
    let from = start as usize;
    let header = {
        let matrices = flash.mapped().get(from..from + len).unwrap_or(&[]);
        header(base, adapter, kind, matrices)
    };
    flash.write(offset, &header).map_err(FlashMergeError::Flash)?;
    Ok(HEADER_BYTES + len)
}

/// Writes whole words, one after the other.
struct Writer<'f, F> {
    flash: &'f mut F,
    at: u32,
    staged: [u8; MAX_WRITE_SIZE],
    fill: usize,
}

impl<F: MappedFlash> Writer<'_, F> {
    fn push(&mut self, mut bytes: &[u8]) -> core::result::Result<(), FlashMergeError<F::Error>> {
        while !bytes.is_empty() {
            let free = self.staged.get_mut(self.fill..).unwrap_or(&mut []);
            let count = free.len().min(bytes.len());
            let (now, later) = bytes.split_at_checked(count).unwrap_or((bytes, &[]));
            free.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            self.fill += count;
            bytes = later;
            if self.fill == MAX_WRITE_SIZE {
                self.flash.write(self.at, &self.staged).map_err(FlashMergeError::Flash)?;
                self.at = self.at.saturating_add(MAX_WRITE_SIZE as u32);
                self.fill = 0;
            }
        }
        Ok(())
    }

    /// Zeros up to the next multiple of [`ALIGN`].
    fn pad(&mut self) -> core::result::Result<(), FlashMergeError<F::Error>> {
        let zeros = self.fill.next_multiple_of(ALIGN) - self.fill;
        self.push([0; ALIGN].get(..zeros).unwrap_or(&[]))
    }

    fn finish(&mut self) -> core::result::Result<(), FlashMergeError<F::Error>> {
        let zeros = (MAX_WRITE_SIZE - self.fill) % MAX_WRITE_SIZE;
        self.push([0; MAX_WRITE_SIZE].get(..zeros).unwrap_or(&[]))
    }
}
