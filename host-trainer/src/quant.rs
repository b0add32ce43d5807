//! Quantization of base weights and of low-rank factors: the only place where codes and scales are made.
//!
//! A base weight is `W0[o, i] = scale[o] * W[o, i]` with codes in -127..=127. The product of low-rank factors follows its row
//! scales: `scaling * (lora_b lora_a)[o, i] = scale[o] * sum over j of B[o, j] * c[j] * A[j, i]`, so that both add up in one
//! accumulator on the device. There is one f16 scale `c[j]` per rank component.

use half::f16;

/// Largest code.
const MAX_CODE: f32 = 127.0;

/// The codes of one pair of low-rank factors.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraCodes {
    /// Codes of `lora_a`, [rank, in] row-major, in -127..=127.
    pub a: Vec<i8>,
    /// Codes of `lora_b` relative to the row scales, [out, rank] row-major, in -127..=127.
    pub b: Vec<i8>,
    /// Scale of each rank component, positive and finite, [rank].
    pub c: Vec<f16>,
    /// Scale of each row of `lora_a` alone, [rank]. Not stored in files: it only splits `c` between the factors.
    a_scale: Vec<f32>,
}

/// What cannot be quantized.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// A slice has another length than its shape says.
    #[error("{what} has {found} values, expected {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Product of the dimensions.
        expected: usize,
        /// Length of the slice.
        found: usize,
    },
    /// A value is NaN or infinite.
    #[error("{what}[{index}] is {found}, expected a finite number: has the training diverged?")]
    NotFinite {
        /// Which slice.
        what: &'static str,
        /// Where in it.
        index: usize,
        /// The value.
        found: f32,
    },
    /// A scale is not positive and finite.
    #[error("{what} is {found}, expected a positive finite number")]
    Scale {
        /// Which scale.
        what: String,
        /// The value.
        found: f32,
    },
    /// A component's scale does not fit f16.
    #[error(
        "the scale of rank component {component} is {found:e}, expected at most 65504: lora_b[{row}, {component}] is \
         {value:e} where the base weight's row scale is only {row_scale:e}"
    )]
    Range {
        /// The rank component.
        component: usize,
        /// The row of `lora_b` that makes it so large.
        row: usize,
        /// Its value.
        value: f32,
        /// The base's scale of that row.
        row_scale: f32,
        /// The scale that would be needed.
        found: f64,
    },
    /// Singular values that do not settle.
    #[error("the singular values do not settle in {sweeps} sweeps, expected them to in a few a row")]
    NotDecomposed {
        /// Sweeps that were made.
        sweeps: usize,
    },
}

/// Quantizes a matrix with one scale per row: `scale = max |row| / 127` (1/127 for a row of zeros), codes rounded half to even.
///
/// `w` [rows, cols] row-major. Returns the codes [rows, cols] in -127..=127 and the scales [rows].
///
/// # Errors
/// If the length does not fit, a value is not finite, or a row is so small that its scale is not a normal number.
pub fn quantize_rows(w: &[f32], rows: usize, cols: usize) -> Result<(Vec<i8>, Vec<f32>), QuantError> {
    check_values("the weight", w, rows * cols)?;
    let mut codes = Vec::with_capacity(w.len());
    let mut scales = Vec::with_capacity(rows);
    for row in 0..rows {
        let row = &w[row * cols..][..cols];
        let scale = row_scale(row);
        codes.extend(row.iter().map(|w| code(f64::from(*w) / f64::from(scale))));
        scales.push(scale);
    }
    Ok((codes, scales))
}

/// Quantizes the weight of a task head: as [`quantize_rows`], with scales rounded up to f16 and the codes rounded (half to
/// even) against these.
///
/// `w` [rows, cols] row-major.
///
/// # Errors
/// If the length does not fit, a value is not finite, or a scale exceeds f16.
pub fn quantize_head(w: &[f32], rows: usize, cols: usize) -> Result<HeadCodes, QuantError> {
    check_values("the head's weight", w, rows * cols)?;
    let mut head = HeadCodes { codes: Vec::with_capacity(w.len()), scales: Vec::with_capacity(rows) };
    for index in 0..rows {
        let row = &w[index * cols..][..cols];
        let scale = ceil_f16(f64::from(row_scale(row)));
        check_scale(|| format!("the scale of row {index} of the head"), scale.to_f32())?;
        head.codes.extend(row.iter().map(|w| code(f64::from(*w) / f64::from(scale))));
        head.scales.push(scale);
    }
    Ok(head)
}

/// The codes of a task head's weight.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadCodes {
    /// Codes [rows, cols] row-major, in -127..=127.
    pub codes: Vec<i8>,
    /// Scale of each row, positive and finite, [rows].
    pub scales: Vec<f16>,
}

impl HeadCodes {
    /// The weight that the codes stand for, [rows, cols].
    pub fn dequantize(&self) -> Vec<f32> {
        let cols = self.codes.len() / self.scales.len().max(1);
        self.codes
            .iter()
            .enumerate()
            .map(|(i, &code)| f32::from(code) * self.scales[i / cols].to_f32())
            .collect()
    }
}

/// `max |row| / 127`, or 1/127 for a row of zeros (and for one so small that its scale would not be a normal number).
fn row_scale(row: &[f32]) -> f32 {
    let scale = largest(row) / MAX_CODE;
    if scale >= f32::MIN_POSITIVE { scale } else { 1.0 / MAX_CODE }
}

/// Quantizes low-rank factors for a base weight with these row scales.
///
/// `a` [rank, inner], `b` [out, rank], both row-major; `row_scale` [out]; `scaling` as in `W0 + scaling * b a`.
/// With `a_j = max |a[j, ..]| / 127` and `b_j = max over o of |b[o, j] / row_scale[o]| / 127`, `c_j` is the smallest f16 that is
/// not below `scaling * a_j * b_j`, and the codes of `b` are rounded (half to even) against the step that `c_j` then stands for. A
/// component of which one factor is zero everywhere gets the smallest positive `c_j`, so that it cannot take precision
/// from the others on the device.
///
/// # Errors
/// If a length does not fit, a value is not finite, a scale is not positive, or a component's scale exceeds f16.
pub fn quantize_lora(
    a: &[f32],
    b: &[f32],
    rank: usize,
    inner: usize,
    out: usize,
    row_scale: &[f32],
    scaling: f32,
) -> Result<LoraCodes, QuantError> {
    check_values("lora_a", a, rank * inner)?;
    check_values("lora_b", b, out * rank)?;
    check_values("row_scale", row_scale, out)?;
    check_scale(|| "scaling".into(), scaling)?;
    for (row, &scale) in row_scale.iter().enumerate() {
        check_scale(|| format!("row_scale[{row}]"), scale)?;
    }
    let mut codes = LoraCodes {
        a: Vec::with_capacity(a.len()),
        b: vec![0; b.len()],
        c: Vec::with_capacity(rank),
        a_scale: Vec::with_capacity(rank),
    };
    for component in 0..rank {
        let row = &a[component * inner..][..inner];
        let a_scale = self::row_scale(row);
        codes.a.extend(row.iter().map(|a| code(f64::from(*a) / f64::from(a_scale))));
        codes.a_scale.push(a_scale);

        let relative = |o: usize| f64::from(b[o * rank + component]) / f64::from(row_scale[o]);
        let widest = (0..out).max_by(|&x, &y| relative(x).abs().total_cmp(&relative(y).abs())).unwrap_or(0);
        let b_scale = if out == 0 { 0.0 } else { relative(widest).abs() / f64::from(MAX_CODE) };
        let unit = f64::from(scaling) * f64::from(a_scale);
        let dead = row.iter().all(|&a| a == 0.0);
        let c = if dead { f16::from_bits(1) } else { ceil_f16(unit * b_scale) };
        if !c.is_finite() {
            return Err(QuantError::Range {
                component,
                row: widest,
                value: b[widest * rank + component],
                row_scale: row_scale[widest],
                found: unit * b_scale,
            });
        }
        codes.c.push(c);
        let step = f64::from(c) / unit;
        for o in 0..out {
            codes.b[o * rank + component] = if dead { 0 } else { code(relative(o) / step) };
        }
    }
    Ok(codes)
}

impl LoraCodes {
    /// The factors that the codes stand for: `(a' [rank, in], b' [out, rank])` with
    /// `scaling * b' a' = row_scale * B diag(c) A`.
    ///
    /// `row_scale` and `scaling` are those that the codes were made with.
    pub fn dequantize(&self, row_scale: &[f32], scaling: f32) -> (Vec<f32>, Vec<f32>) {
        let rank = self.c.len();
        let inner = self.a.len() / rank.max(1);
        let a =
            self.a.iter().enumerate().map(|(i, &code)| f32::from(code) * self.a_scale[i / inner]).collect();
        let step = |j: usize| f64::from(self.c[j]) / (f64::from(scaling) * f64::from(self.a_scale[j]));
        let steps: Vec<f64> = (0..rank).map(step).collect();
        let b = self.b.iter().enumerate().map(|(i, &code)| {
            let (o, j) = (i / rank, i % rank);
            (f64::from(code) * f64::from(row_scale[o]) * steps[j]) as f32
        });
        (a, b.collect())
    }
}

/// Nearest code, half to even. The quotient is taken in f64 so that a value on the grid gets its own code back.
fn code(quotient: f64) -> i8 {
    quotient.round_ties_even().clamp(-127.0, 127.0) as i8
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// The smallest positive f16 that is not below `value`; infinite above 65504.
fn ceil_f16(value: f64) -> f16 {
    let nearest = f16::from_f64(value);
    if nearest.to_bits() == 0 {
        f16::from_bits(1)
    } else if f64::from(nearest) < value {
        f16::from_bits(nearest.to_bits() + 1)
    } else {
        nearest
    }
}

pub(crate) fn check_values(what: &'static str, values: &[f32], expected: usize) -> Result<(), QuantError> {
    if values.len() != expected {
        return Err(QuantError::Length { what, expected, found: values.len() });
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(QuantError::NotFinite { what, index, found: values[index] }),
        None => Ok(()),
    }
}

fn check_scale(what: impl FnOnce() -> String, found: f32) -> Result<(), QuantError> {
    if found > 0.0 && found.is_finite() { Ok(()) } else { Err(QuantError::Scale { what: what(), found }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn random(name: &str, count: usize, size: f32) -> Vec<f32> {
        let mut rng = Rng::new(5, name);
        (0..count).map(|_| size * rng.normal()).collect()
    }

    #[test]
    fn rows_are_symmetric_and_within_half_a_step() {
        let mut w = random("w", 4 * 9, 0.3);
        w[9..18].fill(0.0);
        let (codes, scales) = quantize_rows(&w, 4, 9).unwrap();
        assert_eq!(scales[1], 1.0 / 127.0);
        for (i, (&w, &code)) in w.iter().zip(&codes).enumerate() {
            let scale = scales[i / 9];
            assert!((w - f32::from(code) * scale).abs() <= scale * 0.500_01);
            assert!(code > -128);
        }
        for row in [0, 2, 3] {
            let largest = codes[row * 9..][..9].iter().map(|code| code.unsigned_abs()).max();
            assert_eq!(largest, Some(127));
        }
    }

    #[test]
    fn rounds_half_to_even() {
        // The scale is exactly 2, so that 1, 3 and 5 are half way.
        let (codes, scales) = quantize_rows(&[254.0, 1.0, 3.0, 5.0, -1.0, -3.0], 1, 6).unwrap();
        assert_eq!((codes, scales), (vec![127, 0, 2, 2, 0, -2], vec![2.0]));
    }

    #[test]
    fn factors_lose_less_than_a_percent() {
        let (rank, inner, out, scaling) = (4, 31, 17, 2.5);
        let (a, b) = (random("a", rank * inner, 0.1), random("b", out * rank, 0.02));
        let row_scale: Vec<f32> = random("scale", out, 0.002).iter().map(|s| s.abs() + 5e-4).collect();
        let codes = quantize_lora(&a, &b, rank, inner, out, &row_scale, scaling).unwrap();
        let (mut error, mut size) = (0.0f64, 0.0f64);
        for o in 0..out {
            for i in 0..inner {
                let exact: f64 = (0..rank)
                    .map(|j| f64::from(scaling) * f64::from(b[o * rank + j]) * f64::from(a[j * inner + i]))
                    .sum();
                let device: f64 = (0..rank)
                    .map(|j| {
                        let code = i32::from(codes.b[o * rank + j]) * i32::from(codes.a[j * inner + i]);
                        f64::from(row_scale[o]) * f64::from(codes.c[j]) * f64::from(code)
                    })
                    .sum();
                error += (exact - device).powi(2);
                size += exact * exact;
            }
        }
        let relative = (error / size).sqrt();
        assert!(relative < 0.02, "relative error {relative}");
        for j in 0..rank {
            let largest = (0..out).map(|o| codes.b[o * rank + j].unsigned_abs()).max().unwrap();
            assert!(
                (120..=127).contains(&largest),
                "c_j is only rounded up, so the range of b is used: {largest}"
            );
        }
    }

    #[test]
    fn quantizing_twice_changes_nothing() {
        let (rank, inner, out, scaling) = (3, 11, 7, 4.0);
        let (a, b) = (random("a", rank * inner, 0.1), random("b", out * rank, 0.02));
        let row_scale = vec![0.003; out];
        let codes = quantize_lora(&a, &b, rank, inner, out, &row_scale, scaling).unwrap();
        let (new_a, new_b) = codes.dequantize(&row_scale, scaling);
        let again = quantize_lora(&new_a, &new_b, rank, inner, out, &row_scale, scaling).unwrap();
        assert_eq!(codes.a, again.a);
        // The codes of b may use their range better the second time, when c_j was rounded up before.
        let (a2, b2) = again.dequantize(&row_scale, scaling);
        assert_eq!(new_a, a2);
        for (i, (x, y)) in new_b.iter().zip(&b2).enumerate() {
            assert!((x - y).abs() <= 0.01 * new_b.iter().fold(0.0f32, |m, v| m.max(v.abs())), "{i}: {x} {y}");
        }
    }

    #[test]
    fn zero_components_have_a_valid_scale_that_cannot_hide_the_others() {
        let (rank, inner, out) = (3, 5, 4);
        let mut a = random("a", rank * inner, 0.1);
        let mut b = random("b", out * rank, 0.1);
        for row in b.chunks_mut(rank) {
            row[0] = 0.0;
        }
        a[inner..2 * inner].fill(0.0);
        let codes = quantize_lora(&a, &b, rank, inner, out, &[0.01; 4], 2.0).unwrap();
        assert_eq!(codes.c[0], f16::from_bits(1));
        assert_eq!(codes.c[1], f16::from_bits(1));
        assert!(codes.c.iter().all(|c| c.is_finite() && *c > f16::ZERO));
        assert!(codes.b.iter().step_by(rank).all(|&code| code == 0));
        assert!(codes.a[..inner].iter().any(|&code| code != 0), "a keeps its codes, so that b can learn");
        assert!(codes.a[inner..2 * inner].iter().all(|&code| code == 0));
        assert!(codes.b.chunks(rank).all(|row| row[1] == 0));
        let all_zero = quantize_lora(&[0.0; 15], &[0.0; 12], rank, inner, out, &[0.01; 4], 2.0).unwrap();
        assert_eq!(all_zero.c, vec![f16::from_bits(1); 3]);
    }

    #[test]
    fn the_scale_is_rounded_up() {
        for value in [1e-9, 5.96e-8, 6.0e-8, 3.3e-5, 0.1, 1.0, 1.0001, 65504.0] {
            let c = ceil_f16(value);
            let below = f64::from(f16::from_bits(c.to_bits() - 1));
            assert!(f64::from(c) >= value && below < value, "{value}");
        }
        assert_eq!(ceil_f16(0.0), f16::from_bits(1));
        assert!(!ceil_f16(65505.0).is_finite());
    }

    #[test]
    fn refuses_what_it_cannot_represent() {
        let message = |a: &[f32], b: &[f32], scale: &[f32], scaling| {
            quantize_lora(a, b, 1, 2, 2, scale, scaling).unwrap_err().to_string()
        };
        let good = ([1.0, 2.0], [1.0, 2.0], [0.1, 0.2]);
        assert_eq!(message(&good.0[..1], &good.1, &good.2, 1.0), "lora_a has 1 values, expected 2");
        let found = message(&[1.0, f32::NAN], &good.1, &good.2, 1.0);
        assert_eq!(found, "lora_a[1] is NaN, expected a finite number: has the training diverged?");
        let found = message(&good.0, &good.1, &[0.1, 0.0], 1.0);
        assert_eq!(found, "row_scale[1] is 0, expected a positive finite number");
        assert_eq!(
            message(&good.0, &good.1, &good.2, -1.0),
            "scaling is -1, expected a positive finite number"
        );
        let found = message(&good.0, &good.1, &[0.1, 1e-12], 1.0);
        assert!(found.starts_with("the scale of rank component 0 is 2.4"), "{found}");
        assert!(quantize_rows(&[f32::INFINITY], 1, 1).is_err());
        assert!(quantize_rows(&[1.0], 1, 2).is_err());
    }
}
