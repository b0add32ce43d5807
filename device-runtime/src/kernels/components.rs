//! Codes of what lies between the two products of a low-rank update.

/// 1.5 * 2^23: adding it leaves a float below 2^22, rounded to the nearest even integer, in the low bits of the sum.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// Codes of the rank components: `v[j] = scales[j] * z[j] * 2^shift`, rounded to the nearest even integer and saturated to
/// +-32767, with the greatest shift in 0..=14 that keeps the largest within 32767. Returns the shift.
///
/// `z`: `[rank]`, overwritten; `v`: `[rank]`.
pub fn component_codes(z: &mut [i32], scales: impl Iterator<Item = f32>, v: &mut [i16]) -> u32 {
    let mut max = 0;
    for (z, scale) in z.iter_mut().zip(scales) {
        let bits = (scale * *z as f32).to_bits();
        max = max.max(bits << 1);
        *z = bits.cast_signed();
    }
    let max = f32::from_bits(max >> 1);
    let mut shift = (127 + 14i32.saturating_sub((max.to_bits() >> 23).cast_signed())).clamp(0, 14);
    if shift > 0 && max * power_of_two(shift) > 32767.0 {
        shift -= 1;
    }
    let factor = power_of_two(shift);
    for (v, z) in v.iter_mut().zip(z) {
        let scaled = (f32::from_bits(z.cast_unsigned()) * factor).clamp(-32767.0, 32767.0);
        *v = (scaled + ROUND_MAGIC).to_bits() as i16;
    }
    shift.cast_unsigned()
}

/// 2^n for n in 0..=14.
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((127 + n).cast_unsigned()) << 23)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    fn codes_of(values: &[f32]) -> (u32, Vec<i16>) {
        let mut z: Vec<i32> = vec![1; values.len()];
        let mut v = vec![0; values.len()];
        let shift = component_codes(&mut z, values.iter().copied(), &mut v);
        (shift, v)
    }

    #[test]
    fn component_codes_use_the_greatest_shift_that_fits() {
        assert_eq!(codes_of(&[1.0, -0.5, 0.3]), (14, vec![16384, -8192, 4915]));
        assert_eq!(codes_of(&[2.0]), (13, vec![16384]));
        assert_eq!(codes_of(&[1.9999]), (14, vec![32766]));
        // 1.99997 * 2^14 = 32767.5 is above 32767, so one bit less.
        assert_eq!(codes_of(&[1.999_97]), (13, vec![16384]));
        assert_eq!(codes_of(&[0.0]), (14, vec![0]));
        assert_eq!(codes_of(&[1e-3, 1e-9]), (14, vec![16, 0]));
        assert_eq!(codes_of(&[32767.0, -32767.0]), (0, vec![32767, -32767]));
        assert_eq!(codes_of(&[1e9, -1e9, 3.5]), (0, vec![32767, -32767, 4]));
    }
}
