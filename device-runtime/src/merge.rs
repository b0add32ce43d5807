//! Merging an adapter into memory of its own: W' = W0 + s B A as int8 rows with new row scales, in the base's layout,
//! so that inference costs what the base costs. The base is only read.
//!
//! Merging into int8 rounds the sum once more, so merged and streamed outputs differ; streamed is the reference.

use rankpatch_format::adapter::{Adapter, Cursor, Patch};
use rankpatch_format::base::{ALIGN, Base, Matrix};

use crate::kernels;

/// Bytes of one merged matrix: row scales, then codes, each padded to [`ALIGN`].
fn matrix_bytes(w: &Matrix<'_>) -> usize {
    (w.rows * 4).next_multiple_of(ALIGN)
        + (w.layout.bytes(w.rows as u32, w.cols as u32) as usize).next_multiple_of(ALIGN)
}

/// Bytes that merging `adapter` needs, including one row of f32.
pub fn merged_bytes(base: &Base<'_>, adapter: &Adapter<'_>) -> usize {
    let mut cursor = adapter.cursor();
    let mut row = 0;
    let matrices: usize = base
        .sites()
        .filter(|site| cursor.take(site.index, site.weight.rows, site.weight.cols).is_some())
        .map(|site| {
            row = row.max((site.weight.cols * 5).next_multiple_of(ALIGN));
            matrix_bytes(&site.weight)
        })
        .fold(0, usize::saturating_add);
    matrices.saturating_add(row)
}

/// Merges every patch of `adapter` into `buffer`, which has [`merged_bytes`] bytes and the alignment [`ALIGN`]. Returns the
/// bytes written.
pub(crate) fn merge(base: &Base<'_>, adapter: &Adapter<'_>, buffer: &mut [u8]) -> usize {
    let mut cursor: Cursor<'_> = adapter.cursor();
    let mut rest = buffer;
    let mut written = 0;
    for site in base.sites() {
        let w = &site.weight;
        let Some(patch) = cursor.take(site.index, w.rows, w.cols) else { continue };
        let Some((matrix, after)) = rest.split_at_mut_checked(matrix_bytes(w)) else { return written };
        // The row buffer is what follows this matrix: the next one overwrites it.
        merge_site(w, &patch, matrix, after);
        written += matrix.len();
        rest = after;
    }
    written
}

/// W'\[o\] = w\[o\] (W\[o\] + sum_j (B\[o, j\] c\[j\]) A\[j\]), j in order; then scale' = max|W'\[o\]| / 127 and codes rounded to the
/// nearest even integer, as activations are quantized.
fn merge_site(w: &Matrix<'_>, patch: &Patch<'_>, matrix: &mut [u8], row: &mut [u8]) {
    let (scales, codes) = matrix.split_at_mut((w.rows * 4).next_multiple_of(ALIGN));
    let (Ok(scales), codes) =
        (bytemuck::try_cast_slice_mut::<u8, f32>(scales), bytemuck::cast_slice_mut::<u8, i8>(codes))
    else {
        return;
    };
    codes.fill(0);
    let Some((sums, row)) = row.split_at_mut_checked(w.cols * 4) else { return };
    let (Ok(sums), Some(row)) = (bytemuck::try_cast_slice_mut::<u8, f32>(sums), row.get_mut(..w.cols)) else {
        return;
    };
    let row = bytemuck::cast_slice_mut::<u8, i8>(row);
    let updates = patch.lora_b.chunks_exact(patch.rank.max(1));
    for (o, ((scale, base_scale), factors)) in scales.iter_mut().zip(w.scales).zip(updates).enumerate() {
        w.layout.read_row(w.codes, w.cols, o, row);
        sums.iter_mut().zip(&*row).for_each(|(sum, code)| *sum = f32::from(*code));
        let components = factors.iter().zip(patch.component_scales());
        for ((factor, component_scale), a) in components.zip(patch.lora_a.chunks_exact(w.cols.max(1))) {
            let factor = f32::from(*factor) * component_scale;
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * f32::from(*a));
        }
        *scale = kernels::quantize(sums, row) * base_scale;
        w.layout.write_row(codes, w.cols, o, row);
    }
}

/// Walks over merged matrices as [`Cursor`] walks over patches.
#[derive(Clone, Copy)]
pub(crate) struct MergedCursor<'a> {
    pub(crate) patches: Cursor<'a>,
    pub(crate) memory: &'a [u8],
}

impl<'a> MergedCursor<'a> {
    /// The merged matrix of `site`, whose base weight is `w`, if it is the next one.
    pub(crate) fn take<'b>(&mut self, site: u16, w: &Matrix<'b>) -> Option<Matrix<'a>>
    where
        'b: 'a,
    {
        self.patches.take(site, w.rows, w.cols)?;
        let (matrix, rest) = self.memory.split_at_checked(matrix_bytes(w))?;
        self.memory = rest;
        let (scales, codes) = matrix.split_at_checked((w.rows * 4).next_multiple_of(ALIGN))?;
        let scales = bytemuck::try_cast_slice(scales.get(..w.rows * 4)?).ok()?;
        let codes = codes.get(..w.layout.bytes(w.rows as u32, w.cols as u32) as usize)?;
        Some(Matrix { codes: bytemuck::cast_slice(codes), scales, ..*w })
    }
}
