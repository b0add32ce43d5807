//! Matrices of 16-bit codes: what merging writes where an update is too fine for 8 bits.

/// Words of a row and of a vector come in groups of so many: sixteen codes.
pub const GROUP_WORDS: usize = 8;

/// Codes of a vector as 16-bit halves of words, filled up with zeros.
pub fn widen(x: &[i8], words: &mut [u32]) {
    let mut codes = x.iter().map(|code| u32::from(i16::from(*code).cast_unsigned()));
    for word in words {
        let low = codes.next().unwrap_or(0);
        *word = low | codes.next().unwrap_or(0) << 16;
    }
}

/// Matrix times vector over 16-bit codes, two a word: `acc[o] = sum_i W[o, i] x[i]`, exact if it fits an `i32`.
///
/// `w`: `[acc, words]`; `x`: `[words]`, a multiple of [`GROUP_WORDS`].
pub fn gemv16(w: &[u32], x: &[u32], acc: &mut [i32]) {
    let words = x.len();
    let Some(w) = w.get(..words.saturating_mul(acc.len())) else {
        debug_assert!(false, "gemv16: expected {} rows of {words} words", acc.len());
        return;
    };
    #[cfg(all(target_arch = "arm", any(feature = "dsp", feature = "helium")))]
    if words.is_multiple_of(GROUP_WORDS) && words > 0 {
        return super::smlad::wide::gemv16(w, x, acc);
    }
    for (acc, row) in acc.iter_mut().zip(w.chunks_exact(words.max(1))) {
        *acc = row.iter().zip(x).fold(0, |sum, (w, x)| super::attention::dual_mul_add(*w, *x, sum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_the_largest_codes_fits() {
        let x = [-127i8; 33];
        let mut words = [0; 24];
        widen(&x, &mut words);
        assert_eq!((words[0], words[16], words[17]), (0xff81_ff81, 0x0000_ff81, 0));
        let w = [0x8001_8001u32; 48];
        let mut acc = [1; 2];
        gemv16(&w, &words, &mut acc);
        assert_eq!(acc, [33 * 127 * 32767; 2]);
    }
}
