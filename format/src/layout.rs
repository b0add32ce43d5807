//! How the rows of an int8 matrix lie in a weight section. Only the base image has a layout; adapters and the base's
//! identity use row-major order, so one adapter serves all cores.

use serde::{Deserialize, Serialize};

/// Order of the codes of a matrix `[rows, cols]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Layout {
    /// Row after row, one byte a code.
    RowMajor = 0,
    /// For cores with SMLAD (Cortex-M4, M7, M33): blocks of 4 rows x 4 columns, one 32-bit word a row, zero-padded in
    /// both directions. A word holds two halves, `256 c1 + c0` and `256 c3 + c2`, as `i16`: so a half multiplied as
    /// it stands needs no sign extension, and what its low byte adds is made up for in the activations.
    Dsp4x4 = 1,
    /// For cores with Helium (Cortex-M55, M85): blocks of 4 rows x 16 columns, one vector register a row, zero-padded in both
    /// directions. So a group of rows is read with one pointer, each register from an address that is a multiple of 16.
    Mve4x16 = 2,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Self; 3] = [Self::RowMajor, Self::Dsp4x4, Self::Mve4x16];

    /// The layout with this number in a tensor record.
    pub fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::RowMajor),
            1 => Some(Self::Dsp4x4),
            2 => Some(Self::Mve4x16),
            _ => None,
        }
    }

    /// Bytes of a matrix in this layout, padding included. Saturates instead of overflowing.
    pub fn bytes(self, rows: u32, cols: u32) -> u32 {
        // Filled up to whole blocks of so many rows and columns, powers of two.
        let [r, c]: [u32; 2] = match self {
            Self::RowMajor => [1, 1],
            Self::Dsp4x4 => [4, 4],
            Self::Mve4x16 => [4, 16],
        };
        (rows.saturating_add(r - 1) & !(r - 1)).saturating_mul(cols.saturating_add(c - 1) & !(c - 1))
    }

    /// Writes the codes of one row into `image`, a matrix of `cols` columns. Codes are in -127..=127; rows that
    /// `image` has no room for are left out.
    pub fn write_row(self, image: &mut [i8], cols: usize, row: usize, codes: &[i8]) {
        match self {
            Self::RowMajor => {
                let Some(target) = image.get_mut(row * cols..row * cols + cols) else { return };
                target.iter_mut().zip(codes).for_each(|(to, from)| *to = *from);
            }
            Self::Dsp4x4 => {
                let blocks = cols.div_ceil(4);
                let words = image.chunks_exact_mut(4).skip((row / 4) * blocks * 4 + row % 4).step_by(4);
                for (word, group) in words.zip(codes.chunks(4)).take(blocks) {
                    let code = |i: usize| i16::from(group.get(i).copied().unwrap_or(0));
                    let half = |low: i16, high: i16| high.wrapping_mul(256).wrapping_add(low).to_le_bytes();
                    let low = half(code(0), code(1));
                    let high = half(code(2), code(3));
                    let bytes = [low[0], low[1], high[0], high[1]];
                    word.iter_mut().zip(bytes).for_each(|(to, from)| *to = from.cast_signed());
                }
            }
            Self::Mve4x16 => {
                let blocks = cols.div_ceil(16);
                let vectors = image.chunks_exact_mut(16).skip((row / 4) * blocks * 4 + row % 4).step_by(4);
                for (vector, group) in vectors.zip(codes.chunks(16)).take(blocks) {
                    let padded = group.iter().chain(core::iter::repeat(&0));
                    vector.iter_mut().zip(padded).for_each(|(to, from)| *to = *from);
                }
            }
        }
    }

    /// Reads the codes of one row: the inverse of [`Layout::write_row`]. `codes` is `[cols]`.
    pub fn read_row(self, image: &[i8], cols: usize, row: usize, codes: &mut [i8]) {
        let (first, width, step) = self.groups(cols, row);
        let sources = image.get(first..).unwrap_or(&[]).chunks(step.max(1));
        for (group, source) in codes.chunks_mut(width.max(1)).zip(sources) {
            group.iter_mut().zip(source).for_each(|(to, from)| *to = *from);
        }
        if self == Self::Dsp4x4 {
            for pair in codes.as_chunks_mut().0 {
                *pair = decode_dsp_half(*pair);
            }
        }
    }

    /// The code at `row`, `col` of a matrix of `cols` columns; 0 outside of it.
    pub fn code(self, image: &[i8], cols: usize, row: usize, col: usize) -> i8 {
        let (first, width, step) = self.groups(cols, row);
        let width = width.max(1);
        let at = first + col / width * step + col % width;
        let byte = |at: usize| image.get(at).copied().unwrap_or(0);
        match self {
            Self::Dsp4x4 if !col.is_multiple_of(2) => decode_dsp_half([byte(at - 1), byte(at)])[1],
            _ => byte(at),
        }
    }

    /// Where the codes of `row` lie: the first of them, how many lie in a row, and how far it is to the next ones.
    fn groups(self, cols: usize, row: usize) -> (usize, usize, usize) {
        let width = match self {
            Self::RowMajor => return (row * cols, cols, cols),
            Self::Dsp4x4 => 4,
            Self::Mve4x16 => 16,
        };
        ((row / 4 * cols.div_ceil(width) * 4 + row % 4) * width, width, 4 * width)
    }
}

/// Two codes of [`Layout::Dsp4x4`] from a half of a word: a negative low byte borrowed one from the high byte.
#[inline]
fn decode_dsp_half([low, high]: [i8; 2]) -> [i8; 2] {
    [low, high.wrapping_sub(low >> 7)]
}

/// The four codes of a word of [`Layout::Dsp4x4`].
#[inline]
pub fn decode_dsp_word([b0, b1, b2, b3]: [i8; 4]) -> [i8; 4] {
    let ([b0, b1], [b2, b3]) = (decode_dsp_half([b0, b1]), decode_dsp_half([b2, b3]));
    [b0, b1, b2, b3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_every_layout() {
        let mut random = crate::digest::XorShift32::new(3);
        for layout in Layout::ALL {
            for (rows, cols) in [(1usize, 1usize), (3, 5), (4, 4), (7, 13), (12, 64), (5, 67)] {
                let codes: [i8; 12 * 67] =
                    core::array::from_fn(|_| ((random.next_u32() >> 8) % 255) as i32 as i8)
                        .map(|c| c.max(-127));
                let mut image = [99i8; 12 * 80];
                let image = &mut image[..layout.bytes(rows as u32, cols as u32) as usize];
                for row in 0..rows {
                    layout.write_row(image, cols, row, &codes[row * cols..][..cols]);
                }
                for row in 0..rows {
                    let mut back = [0i8; 67];
                    layout.read_row(image, cols, row, &mut back[..cols]);
                    assert_eq!(
                        back[..cols],
                        codes[row * cols..][..cols],
                        "{layout:?} {rows}x{cols} row {row}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_vector_of_the_mve_layout_is_sixteen_columns_of_a_row() {
        let codes: [i8; 18] = core::array::from_fn(|i| i as i8 + 1);
        let mut image = [99i8; 128];
        Layout::Mve4x16.write_row(&mut image, 18, 2, &codes);
        assert_eq!(image[32..48], codes[..16]);
        assert_eq!(image[96..100], [17, 18, 0, 0]);
        assert_eq!([Layout::Mve4x16.bytes(5, 18), Layout::Mve4x16.bytes(4, 16)], [256, 64]);
        assert_eq!(Layout::from_u8(2), Some(Layout::Mve4x16));
        assert_eq!(Layout::from_u8(3), None);
    }

    #[test]
    fn a_word_is_two_halves_of_256_high_plus_low() {
        let mut image = [0i8; 16];
        Layout::Dsp4x4.write_row(&mut image, 4, 1, &[-3, 7, 127, -127]);
        let half = |i: usize| i16::from_le_bytes([image[i] as u8, image[i + 1] as u8]);
        assert_eq!([half(4), half(6)], [256 * 7 - 3, 256 * -127 + 127]);
        assert_eq!(image[..4], [0; 4]);
    }
}
