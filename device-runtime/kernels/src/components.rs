//! Codes of what lies between the two products of a low-rank update.

/// 1.5 * 2^23: adding it leaves a float below 2^22, rounded to the nearest even integer, in the low bits of the sum.
const ROUND_MAGIC: f32 = 12_582_912.0;

/// The largest code.
const MAX_CODE: f32 = 32767.0;

/// Codes of the rank components: `v[j] = scales[j] * z[j] * 2^shift`, rounded to the nearest even integer and saturated to
/// +-32767, with the greatest shift in 0..=14 that keeps the largest within 32767. Returns the shift.
///
/// `z`: `[rank]`, overwritten; `scales`: `[rank]`, positive little-endian f16; `v`: `[rank]`.
pub fn component_codes(z: &mut [i32], scales: &[[u8; 2]], v: &mut [i16]) -> u32 {
    let max = f32::from_bits(loops::products(z, scales) >> 1);
    let mut shift = (127 + 14i32.saturating_sub((max.to_bits() >> 23).cast_signed())).clamp(0, 14);
    if shift > 0 && max * power_of_two(shift) > MAX_CODE {
        shift -= 1;
    }
    let factor = power_of_two(shift);
    if max * factor > MAX_CODE {
        saturated_codes(z, factor, v);
    } else {
        loops::codes(z, factor, v);
    }
    shift.cast_unsigned()
}

/// The codes where some are too large, which happens only at shift 0.
#[cold]
fn saturated_codes(z: &[i32], factor: f32, v: &mut [i16]) {
    for (v, z) in v.iter_mut().zip(z) {
        let scaled = f32::from_bits(z.cast_unsigned()) * factor;
        *v = (scaled.clamp(-MAX_CODE, MAX_CODE) + ROUND_MAGIC).to_bits() as i16;
    }
}

#[cfg(not(all(target_arch = "arm", any(feature = "helium", all(feature = "dsp", target_abi = "eabihf")))))]
mod loops {
    use half::f16;

    use super::ROUND_MAGIC;

    /// `z[j] = bits of scales[j] * z[j]`; returns the largest of their magnitudes as bits shifted left by one.
    pub(super) fn products(z: &mut [i32], scales: &[[u8; 2]]) -> u32 {
        let mut max = 0;
        for (z, scale) in z.iter_mut().zip(scales) {
            let bits = (f16::from_le_bytes(*scale).to_f32() * *z as f32).to_bits();
            max = max.max(bits << 1);
            *z = bits.cast_signed();
        }
        max
    }

    /// `v[j] = z[j] * factor`, rounded, with `z` as bits.
    pub(super) fn codes(z: &[i32], factor: f32, v: &mut [i16]) {
        for (v, z) in v.iter_mut().zip(z) {
            *v = (f32::from_bits(z.cast_unsigned()) * factor + ROUND_MAGIC).to_bits() as i16;
        }
    }
}

#[cfg(all(target_arch = "arm", feature = "dsp", target_abi = "eabihf"))]
use super::dsp::components as loops;
#[cfg(all(target_arch = "arm", feature = "helium"))]
use super::helium::components as loops;

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

    /// The codes of `z` at scales of one.
    fn codes_of(z: &[i32], scale: f32) -> (u32, Vec<i16>) {
        let scales = vec![half::f16::from_f32(scale).to_le_bytes(); z.len()];
        let mut v = vec![0; z.len()];
        let shift = component_codes(&mut z.to_vec(), &scales, &mut v);
        (shift, v)
    }

    #[test]
    fn component_codes_use_the_greatest_shift_that_fits() {
        assert_eq!(codes_of(&[4, -2, 1], 0.25), (14, vec![16384, -8192, 4096]));
        assert_eq!(codes_of(&[8], 0.25), (13, vec![16384]));
        // 65534 / 32768 * 2^14 = 32767 fits; 65535 / 32768 gives 32767.5, which is above it, so one bit less.
        assert_eq!(codes_of(&[65534], 1.0 / 32768.0), (14, vec![32767]));
        assert_eq!(codes_of(&[65535], 1.0 / 32768.0), (13, vec![16384]));
        assert_eq!(codes_of(&[0], 1.0), (14, vec![0]));
        // Half-way cases go to the even code, a scale may be subnormal, and shift 14 is the last.
        assert_eq!(codes_of(&[3, 1, -3], 2f32.powi(-15)), (14, vec![2, 0, -2]));
        assert_eq!(codes_of(&[1 << 11, -(3 << 9)], 2f32.powi(-24)), (14, vec![2, -2]));
        assert_eq!(codes_of(&[32767, -32767], 1.0), (0, vec![32767, -32767]));
        assert_eq!(codes_of(&[1_000_000_000, -1_000_000_000, 4], 1.0), (0, vec![32767, -32767, 4]));
    }
}
