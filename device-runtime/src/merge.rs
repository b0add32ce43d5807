//! Merging an adapter into memory of its own: W' = W0 + s B A with new row scales, so that inference costs what the base
//! costs. The base is only read; going back is to forget the merged matrices.
//!
//! Matrices lie one after the other, for each patched site its row scales (f32) and then its codes, both filled up to
//! [`ALIGN`]. Int8 codes have the base's layout. Int16 codes are row-major, rows filled up to 16 codes.
//!
//! Merging rounds the sum once more, so merged and streamed outputs differ, and streamed is the reference. [`site_loss`]
//! says by how much.

mod flash;
#[cfg(test)]
mod tests;

use rankpatch_format::adapter::{Adapter, Cursor, Patch};
use rankpatch_format::base::{ALIGN, Base, Matrix};
use rankpatch_format::numbers::Floats;

use crate::{Error, Result, kernels};

pub use flash::{FlashMergeError, MergedImage, flash_scratch_bytes, merge_into_flash, merged_image_bytes};

/// How merged weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum MergedType {
    /// int8, each weight rounded to the nearest code: the smallest error of a single weight.
    #[default]
    Int8,
    /// int8 with error feedback: what rounding a weight takes away is added to the next one in its row, so that the sum of
    /// a row, and its product with an input that changes slowly along the row, keep what single roundings would lose.
    Int8Feedback,
    /// int16: practically the exact sum, in twice the memory.
    Int16,
}

impl MergedType {
    /// The number by which a [`MergedImage`] names it.
    fn number(self) -> u8 {
        match self {
            Self::Int8 => 0,
            Self::Int8Feedback => 1,
            Self::Int16 => 2,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Int8, Self::Int8Feedback, Self::Int16].into_iter().find(|kind| kind.number() == number)
    }

    /// Bytes of the codes of one matrix.
    fn codes_bytes(self, w: &Matrix<'_>) -> usize {
        match self {
            Self::Int8 | Self::Int8Feedback => w.layout.bytes(w.rows as u32, w.cols as u32) as usize,
            Self::Int16 => w.rows.saturating_mul(row_words(w.cols)).saturating_mul(4),
        }
    }

    /// Bytes of one merged matrix.
    fn matrix_bytes(self, w: &Matrix<'_>) -> usize {
        scales_bytes(w.rows).saturating_add(self.codes_bytes(w).next_multiple_of(ALIGN))
    }
}

fn scales_bytes(rows: usize) -> usize {
    rows.saturating_mul(4).next_multiple_of(ALIGN)
}

/// Words of one row of 16-bit codes, two a word.
pub(crate) fn row_words(cols: usize) -> usize {
    cols.div_ceil(16).saturating_mul(8)
}

/// The largest 16-bit code for rows of `cols` weights, such that a row times int8 activations fits an i32.
fn largest_code(cols: usize) -> f32 {
    (i32::MAX as usize / (127 * cols.max(1))).min(32767) as f32
}

/// Bytes of scratch for one row of f32 sums and one of codes.
fn row_bytes(cols: usize) -> usize {
    cols.saturating_mul(5).next_multiple_of(ALIGN)
}

/// What an adapter costs in one mode of application, for one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Multiplications on top of the base's.
    pub macs: u64,
    /// Memory for weights, bytes.
    pub memory: usize,
}

/// What it would cost to apply an adapter, before choosing how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Sites patched.
    pub n_patches: u16,
    /// Multiplications of the base for one token, in its linear operators.
    pub base_macs: u64,
    /// Streamed: r (d + k) multiplications a site, no memory.
    pub streamed: Cost,
    /// Merged into int8.
    pub int8: Cost,
    /// Merged into int16.
    pub int16: Cost,
    /// Multiplications of the merge itself, once: r d k a site.
    pub merge_macs: u64,
}

/// What applying `adapter` to `base` costs, streamed and merged.
pub fn estimate(base: &Base<'_>, adapter: &Adapter<'_>) -> Estimate {
    let mut cursor = adapter.cursor();
    let (mut base_macs, mut streamed, mut merge_macs) = (0, 0, 0);
    for site in base.sites() {
        let (rows, cols) = (site.weight.rows, site.weight.cols);
        base_macs += (rows * cols) as u64;
        if let Some(patch) = cursor.take(site.index, rows, cols) {
            streamed += (patch.rank * (rows + cols)) as u64;
            merge_macs += (patch.rank * rows * cols) as u64;
        }
    }
    let merged = |kind| Cost { macs: 0, memory: merged_bytes(base, adapter, kind) };
    Estimate {
        n_patches: adapter.n_patches(),
        base_macs,
        streamed: Cost { macs: streamed, memory: 0 },
        int8: merged(MergedType::Int8),
        int16: merged(MergedType::Int16),
        merge_macs,
    }
}

/// Bytes that merging `adapter` needs, including scratch for one row.
pub fn merged_bytes(base: &Base<'_>, adapter: &Adapter<'_>, kind: MergedType) -> usize {
    let row = patched(base, adapter).map(|(w, _)| row_bytes(w.cols)).max().unwrap_or(0);
    matrices_bytes(base, adapter, kind).saturating_add(row)
}

fn matrices_bytes(base: &Base<'_>, adapter: &Adapter<'_>, kind: MergedType) -> usize {
    patched(base, adapter).map(|(w, _)| kind.matrix_bytes(&w)).fold(0, usize::saturating_add)
}

/// The patched sites in order.
fn patched<'a>(base: &Base<'a>, adapter: &Adapter<'a>) -> impl Iterator<Item = (Matrix<'a>, Patch<'a>)> {
    let mut cursor: Cursor<'a> = adapter.cursor();
    base.sites().filter_map(move |site| {
        let w = site.weight;
        Some((w, cursor.take(site.index, w.rows, w.cols)?))
    })
}

/// Merges every patch of `adapter` into `buffer`, which has [`merged_bytes`] bytes and the alignment [`ALIGN`]. Returns the
/// bytes written.
pub(crate) fn merge(base: &Base<'_>, adapter: &Adapter<'_>, kind: MergedType, buffer: &mut [u8]) -> usize {
    let mut rest = buffer;
    let mut written = 0;
    for (w, patch) in patched(base, adapter) {
        let Some((matrix, after)) = rest.split_at_mut_checked(kind.matrix_bytes(&w)) else { return written };
        let Some((scales, codes)) = matrix.split_at_mut_checked(scales_bytes(w.rows)) else { return written };
        let Ok(scales) = bytemuck::try_cast_slice_mut(scales) else { return written };
        codes.fill(0);
        // The row buffer is what follows this matrix: the next one overwrites it.
        let Some(mut row) = Row::new(after, w.cols) else { return written };
        for (o, scale) in scales.iter_mut().take(w.rows).enumerate() {
            *scale = merge_row(&w, &patch, kind, o, (o, &mut *codes), &mut row);
        }
        written += matrix.len();
        rest = after;
    }
    written
}

/// Scratch for one row.
struct Row<'a> {
    sums: &'a mut [f32],
    codes: &'a mut [i8],
}

impl<'a> Row<'a> {
    /// `memory` has [`row_bytes`] bytes and the alignment of a word.
    fn new(memory: &'a mut [u8], cols: usize) -> Option<Self> {
        let (sums, codes) = memory.split_at_mut_checked(cols.checked_mul(4)?)?;
        let sums = bytemuck::try_cast_slice_mut(sums).ok()?;
        Some(Self { sums, codes: bytemuck::cast_slice_mut(codes.get_mut(..cols)?) })
    }

    /// t\[i\] = W\[o, i\] + sum_j (B\[o, j\] c\[j\]) A\[j, i\], j in order, in units of the base's row scale.
    fn sum(&mut self, w: &Matrix<'_>, patch: &Patch<'_>, o: usize) {
        w.layout.read_row(w.codes, w.cols, o, self.codes);
        self.sums.iter_mut().zip(&*self.codes).for_each(|(sum, code)| *sum = f32::from(*code));
        let factors = patch.lora_b.get(o * patch.rank..).unwrap_or(&[]);
        let components = factors.iter().zip(patch.component_scales());
        for ((factor, component_scale), a) in components.zip(patch.lora_a.chunks_exact(w.cols.max(1))) {
            let factor = f32::from(*factor) * component_scale;
            self.sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * f32::from(*a));
        }
    }
}

/// Merges row `o` of a site into row `to.0` of the codes `to.1` and returns its scale.
fn merge_row(
    w: &Matrix<'_>,
    patch: &Patch<'_>,
    kind: MergedType,
    o: usize,
    (row, target): (usize, &mut [u8]),
    scratch: &mut Row<'_>,
) -> f32 {
    scratch.sum(w, patch, o);
    let base_scale = w.scales.get(o).unwrap_or(0.0);
    let Row { sums, codes } = scratch;
    let scale = match kind {
        MergedType::Int8 => kernels::quantize(sums, codes),
        MergedType::Int8Feedback => feedback(sums, codes),
        MergedType::Int16 => {
            let largest = largest_code(w.cols);
            let start = row * row_words(w.cols) * 4;
            let target = target.get_mut(start..start + row_words(w.cols) * 4).unwrap_or(&mut []);
            return wide(sums, largest, target) * base_scale;
        }
    };
    w.layout.write_row(bytemuck::cast_slice_mut(target), w.cols, row, codes);
    scale * base_scale
}

/// The scale max|t| / 127, and codes that carry what they round away on to the next: with e = 0 at first,
/// `u = t[i] * (127 / max|t|) + e`, code = u rounded to the nearest even integer within +-127, `e = u - code`.
fn feedback(sums: &[f32], codes: &mut [i8]) -> f32 {
    let scale = kernels::quantize(sums, codes);
    if scale == 0.0 {
        return 0.0;
    }
    let inverse = 127.0 / f32::from_bits(kernels::max_abs_bits(sums));
    let mut carried = 0.0;
    for (sum, code) in sums.iter().zip(codes) {
        let wanted = sum * inverse + carried;
        let rounded = round(wanted.clamp(-127.0, 127.0));
        carried = wanted - rounded;
        *code = rounded as i8;
    }
    scale
}

/// The scale max|t| / largest, and the codes, little endian, filled up with zeros.
fn wide(sums: &[f32], largest: f32, target: &mut [u8]) -> f32 {
    target.fill(0);
    let max = kernels::max_abs_bits(sums);
    if !kernels::is_quantizable(max) {
        return 0.0;
    }
    let max = f32::from_bits(max);
    let inverse = largest / max;
    for (sum, code) in sums.iter().zip(target.as_chunks_mut::<2>().0) {
        *code = (round(sum * inverse) as i16).to_le_bytes();
    }
    max / largest
}

/// `x`, of magnitude below 2^22, rounded to the nearest even integer.
fn round(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

/// How much of its update a site loses by merging: squared norms over all weights, in units of the base's weights.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SiteLoss {
    /// |s B A|^2.
    pub update: f64,
    /// |W' - (W0 + s B A)|^2.
    pub error: f64,
    /// |W0|^2.
    pub base: f64,
}

/// The loss of merging each patched site of `adapter`, in order: its index in canonical order, and the sums. `scratch` has
/// `8 * cols` bytes more than a row needs: [`loss_scratch_bytes`], on a boundary of 16.
///
/// # Errors
/// [`Error::MergeBufferTooSmall`].
pub fn site_losses(
    base: &Base<'_>,
    adapter: &Adapter<'_>,
    kind: MergedType,
    scratch: &mut [u8],
    mut each: impl FnMut(u16, SiteLoss),
) -> Result<()> {
    let (expected, found) = (loss_scratch_bytes(base), scratch.len());
    if found < expected {
        return Err(Error::MergeBufferTooSmall { expected, found });
    }
    let mut cursor = adapter.cursor();
    for site in base.sites() {
        let w = site.weight;
        let Some(patch) = cursor.take(site.index, w.rows, w.cols) else { continue };
        let Some((wide_row, row)) = scratch.split_at_mut_checked(row_words(w.cols) * 4) else { break };
        let Some(mut row) = Row::new(row, w.cols) else { break };
        let mut loss = SiteLoss::default();
        for o in 0..w.rows {
            // Row scales weigh the rows as the network does.
            let unit = f64::from(w.scales.get(o).unwrap_or(0.0));
            w.layout.read_row(w.codes, w.cols, o, row.codes);
            let base_norm: f64 = row.codes.iter().map(|code| f64::from(*code).powi_2()).sum();
            row.sum(&w, &patch, o);
            let update: f64 = row
                .sums
                .iter()
                .zip(&*row.codes)
                .map(|(t, code)| f64::from(t - f32::from(*code)).powi_2())
                .sum();
            let error: f64 = match kind {
                MergedType::Int16 => {
                    let scale = wide(row.sums, largest_code(w.cols), wide_row);
                    let codes = wide_row.as_chunks::<2>().0.iter().map(|code| i16::from_le_bytes(*code));
                    row.sums
                        .iter()
                        .zip(codes)
                        .map(|(t, code)| f64::from(t - scale * f32::from(code)).powi_2())
                        .sum()
                }
                MergedType::Int8 | MergedType::Int8Feedback => {
                    let Row { sums, codes } = &mut row;
                    let scale = if kind == MergedType::Int8 {
                        kernels::quantize(sums, codes)
                    } else {
                        feedback(sums, codes)
                    };
                    sums.iter()
                        .zip(&**codes)
                        .map(|(t, code)| f64::from(t - scale * f32::from(*code)).powi_2())
                        .sum()
                }
            };
            let square = unit.powi_2();
            loss.base += base_norm * square;
            loss.update += update * square;
            loss.error += error * square;
        }
        each(site.index, loss);
    }
    Ok(())
}

/// Bytes of scratch for [`site_losses`].
pub fn loss_scratch_bytes(base: &Base<'_>) -> usize {
    base.sites().map(|site| row_words(site.weight.cols) * 4 + row_bytes(site.weight.cols)).max().unwrap_or(0)
}

/// Squares without a platform's function.
trait Square {
    fn powi_2(self) -> Self;
}

impl Square for f64 {
    fn powi_2(self) -> Self {
        self * self
    }
}

/// A merged matrix in place.
#[derive(Clone, Copy)]
pub(crate) enum Merged<'a> {
    /// In the base's layout.
    Int8(Matrix<'a>),
    Int16 {
        /// `[rows, row_words]`.
        words: &'a [u32],
        scales: &'a [f32],
    },
}

/// Walks over merged matrices as [`Cursor`] walks over patches.
#[derive(Clone, Copy)]
pub(crate) struct MergedCursor<'a> {
    pub(crate) patches: Cursor<'a>,
    pub(crate) kind: MergedType,
    pub(crate) memory: &'a [u8],
}

impl<'a> MergedCursor<'a> {
    /// The merged matrix of `site`, whose base weight is `w`, if it is the next one.
    pub(crate) fn take<'b>(&mut self, site: u16, w: &Matrix<'b>) -> Option<Merged<'a>>
    where
        'b: 'a,
    {
        self.patches.take(site, w.rows, w.cols)?;
        let (matrix, rest) = self.memory.split_at_checked(self.kind.matrix_bytes(w))?;
        self.memory = rest;
        let (scales, codes) = matrix.split_at_checked(scales_bytes(w.rows))?;
        let scales = bytemuck::try_cast_slice(scales.get(..w.rows * 4)?).ok()?;
        let codes = codes.get(..self.kind.codes_bytes(w))?;
        Some(match self.kind {
            MergedType::Int16 => Merged::Int16 { words: bytemuck::try_cast_slice(codes).ok()?, scales },
            MergedType::Int8 | MergedType::Int8Feedback => {
                Merged::Int8(Matrix { codes: bytemuck::cast_slice(codes), scales: Floats::F32(scales), ..*w })
            }
        })
    }
}
