//! Singular values of updates and of base weights: what a rank is worth, factors of a lower rank, and factors that start at the
//! base's principal directions.
//!
//! All of it is computed in f64 on one thread, so the bits do not depend on their number. The large matrices are never
//! decomposed where the small ones will do: delta_weight = scaling * lora_b lora_a has the singular values of a core of
//! `[rank, rank]`. This module knows factors and weights; it does not know when a run looks at them.

use nalgebra::{DMatrix, DVector, SVD, SymmetricEigen};

use crate::lora::{LoraConfig, SiteFactors};
use crate::quant::{QuantError, check_values};
use crate::{Error, Result};

/// Most sweeps of a decomposition; those of finite matrices take a few a row.
const MAX_SWEEPS: usize = 100_000;

/// delta_weight of a site as `left diag(singular_values) right`.
struct Decomposed {
    /// `[out_features, n]`, orthonormal columns.
    left: DMatrix<f64>,
    /// `[n]`, descending, of lora_b lora_a without its scaling.
    singular_values: DVector<f64>,
    /// `[n, in_features]`, orthonormal rows.
    right: DMatrix<f64>,
}

/// The singular values of a site's delta_weight, scaling included, in descending order. There are as many as the rank, or
/// as the smaller side of the weight if that is less.
///
/// # Errors
/// [`Error::Quant`] if a factor is not finite.
pub fn singular_values(factors: &SiteFactors) -> Result<Vec<f64>> {
    let decomposed = decompose(factors)?;
    Ok(decomposed.singular_values.iter().map(|value| value * factors.site.scaling).collect())
}

/// |delta_weight|_F, the root of the sum of the squared singular values.
pub fn norm(singular_values: &[f64]) -> f64 {
    singular_values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// The lowest rank whose squared singular values are at least `fraction` of all squared ones; at least 1.
///
/// `singular_values` descend; `fraction` is from 0 to 1.
pub fn sufficient_rank(singular_values: &[f64], fraction: f64) -> usize {
    let squares = || singular_values.iter().map(|value| value * value);
    let wanted = fraction * squares().sum::<f64>();
    let sums = squares().scan(0.0, |sum, square| {
        *sum += square;
        Some(*sum)
    });
    1 + sums.take_while(|sum| *sum < wanted).count().min(singular_values.len().saturating_sub(1))
}

/// The factors of the lowest rank that explains `fraction` of an update, see [`sufficient_rank`]: the best ones of that rank.
///
/// With delta_weight = scaling * U diag(s) V, lora_b is U sqrt(s) and lora_a is sqrt(s) V, each cut after the rank. What is cut
/// off is all that is lost. The scaling stays, so alpha falls with the rank. An update of zero keeps one component of
/// lora_a, from which it can still learn.
///
/// # Errors
/// [`Error::Quant`] if a factor is not finite.
pub fn trim(factors: &SiteFactors, config: &LoraConfig, fraction: f64) -> Result<SiteFactors> {
    let Decomposed { left, singular_values, right } = decompose(factors)?;
    let mut site = factors.site.clone();
    site.rank = sufficient_rank(singular_values.as_slice(), fraction);
    site.alpha = config.alpha_for(site.scaling, site.rank);
    let (inner, out) = (site.in_features, site.out_features);
    if singular_values.iter().all(|value| *value == 0.0) {
        let lora_a = factors.lora_a[..site.rank * inner].to_vec();
        return Ok(SiteFactors { lora_a, lora_b: vec![0.0; out * site.rank], site });
    }
    let root = |component: usize| singular_values[component].sqrt();
    let lora_a = (0..site.rank).flat_map(|j| {
        let row = right.row(j);
        (0..inner).map(move |i| (root(j) * row[i]) as f32)
    });
    let lora_b = (0..out).flat_map(|o| {
        let row = left.row(o);
        (0..site.rank).map(move |j| (root(j) * row[j]) as f32)
    });
    let (lora_a, lora_b) = (lora_a.collect(), lora_b.collect());
    Ok(SiteFactors { site, lora_a, lora_b })
}

/// Factors of a weight's `rank` greatest singular values: `(lora_a [rank, cols], lora_b [rows, rank])` with
/// scaling * lora_b lora_a = U diag(s) V, the best approximation of that rank.
///
/// `weight` `[rows, cols]`, row-major. Components that the weight does not have are zero in both factors. The vectors come from
/// the smaller Gram matrix, whose eigenvalues are the squares of the singular values: good to half the digits of an f64,
/// which is more than the factors have.
///
/// # Errors
/// [`Error::Quant`] if the weight is not finite.
pub fn principal(
    name: &str,
    weight: &[f32],
    rows: usize,
    cols: usize,
    rank: usize,
    scaling: f64,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let w = matrix(name, "the weight", weight, rows, cols)?;
    let wide = rows <= cols;
    let gram = if wide { &w * w.transpose() } else { w.tr_mul(&w) };
    let size = gram.nrows();
    let eigen =
        SymmetricEigen::try_new(gram, f64::EPSILON, MAX_SWEEPS).ok_or_else(|| not_decomposed(name))?;
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let (mut lora_a, mut lora_b) = (vec![0.0; rank * cols], vec![0.0; rows * rank]);
    let negligible = eigen.eigenvalues.max() * f64::EPSILON * size as f64;
    for (component, index) in order.into_iter().enumerate().take(rank) {
        let square = eigen.eigenvalues[index];
        if square <= negligible {
            break;
        }
        let vector = eigen.eigenvectors.column(index);
        let other = if wide { w.tr_mul(&vector) } else { &w * vector };
        // Of a singular value's share each factor has the root; `other` has length s already.
        let (unit, long) = ((square.sqrt() / scaling).sqrt(), 1.0 / (square.sqrt() * scaling).sqrt());
        let (a, b): (Vec<f64>, Vec<f64>) = if wide {
            (other.iter().map(|x| x * long).collect(), vector.iter().map(|x| x * unit).collect())
        } else {
            (vector.iter().map(|x| x * unit).collect(), other.iter().map(|x| x * long).collect())
        };
        for (into, from) in lora_a[component * cols..].iter_mut().zip(a) {
            *into = from as f32;
        }
        for (row, from) in b.into_iter().enumerate() {
            lora_b[row * rank + component] = from as f32;
        }
    }
    Ok((lora_a, lora_b))
}

fn decompose(factors: &SiteFactors) -> Result<Decomposed> {
    let site = &factors.site;
    let a = matrix(&site.name, "lora_a", &factors.lora_a, site.rank, site.in_features)?;
    let b = matrix(&site.name, "lora_b", &factors.lora_b, site.out_features, site.rank)?;
    // lora_b lora_a = Q_b (R_b R_a^T) Q_a^T.
    let (q_b, r_b) = b.qr().unpack();
    let (q_a, r_a) = a.transpose().qr().unpack();
    let core = SVD::try_new(r_b * r_a.transpose(), true, true, f64::EPSILON, MAX_SWEEPS)
        .ok_or_else(|| not_decomposed(&site.name))?;
    let (Some(u), Some(v)) = (core.u, core.v_t) else { return Err(not_decomposed(&site.name)) };
    Ok(Decomposed { left: q_b * u, singular_values: core.singular_values, right: v * q_a.transpose() })
}

fn matrix(site: &str, what: &'static str, values: &[f32], rows: usize, cols: usize) -> Result<DMatrix<f64>> {
    check_values(what, values, rows * cols)
        .map_err(|source| Error::Quant { tensor: site.to_owned(), source })?;
    Ok(DMatrix::from_row_iterator(rows, cols, values.iter().map(|value| f64::from(*value))))
}

/// No finite matrix is known that gets here.
fn not_decomposed(site: &str) -> Error {
    let source = QuantError::NotDecomposed { sweeps: MAX_SWEEPS };
    Error::Quant { tensor: site.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::BoundSite;
    use crate::rng::Rng;

    fn random(name: &str, count: usize, size: f32) -> Vec<f32> {
        let mut rng = Rng::new(11, name);
        (0..count).map(|_| size * rng.normal()).collect()
    }

    /// Factors of rank 5 for a weight of [out, inner], with alpha = 12.
    fn factors(out: usize, inner: usize) -> SiteFactors {
        let (rank, alpha) = (5, 12.0);
        let site = BoundSite {
            index: 3,
            name: "layers.0.attn.q".into(),
            in_features: inner,
            out_features: out,
            rank,
            alpha,
            scaling: alpha / rank as f64,
        };
        let (lora_a, mut lora_b) = (random("a", rank * inner, 0.4), random("b", out * rank, 0.2));
        // Components of very different size.
        for (at, value) in lora_b.iter_mut().enumerate() {
            *value *= 0.3f32.powi((at % rank) as i32);
        }
        SiteFactors { site, lora_a, lora_b }
    }

    fn delta_weight(factors: &SiteFactors) -> DMatrix<f64> {
        let site = &factors.site;
        let a = matrix("", "a", &factors.lora_a, site.rank, site.in_features).unwrap();
        let b = matrix("", "b", &factors.lora_b, site.out_features, site.rank).unwrap();
        b * a * site.scaling
    }

    #[test]
    fn singular_values_are_those_of_the_whole_update() {
        for (out, inner) in [(9, 13), (13, 7), (4, 11), (11, 3)] {
            let factors = factors(out, inner);
            let found = singular_values(&factors).unwrap();
            let expected = delta_weight(&factors).singular_values();
            assert_eq!(found.len(), 5.min(out).min(inner));
            for (found, expected) in found.iter().zip(expected.iter()) {
                assert!((found - expected).abs() < 1e-10 * expected, "{found} {expected}");
            }
            assert!((norm(&found) - delta_weight(&factors).norm()).abs() < 1e-10);
        }
    }

    #[test]
    fn a_rank_is_sufficient_when_it_explains_enough() {
        let values = [4.0, 2.0, 2.0, 1.0];
        for (fraction, rank) in [(0.0, 1), (0.64, 1), (0.65, 2), (0.8, 2), (0.96, 3), (0.97, 4), (1.0, 4)] {
            assert_eq!(sufficient_rank(&values, fraction), rank, "{fraction}");
        }
        assert_eq!(sufficient_rank(&[0.0, 0.0], 0.9), 1);
        assert_eq!(sufficient_rank(&[3.0, 0.0, 0.0], 1.0), 1, "what is not there need not be kept");
    }

    #[test]
    fn trimming_loses_what_it_cuts_off_and_nothing_else() {
        let config = LoraConfig { use_rslora: true, ..LoraConfig::default() };
        for (out, inner) in [(9, 13), (13, 7), (4, 11)] {
            let factors = factors(out, inner);
            let values = singular_values(&factors).unwrap();
            for fraction in [0.5, 0.99, 1.0] {
                let trimmed = trim(&factors, &config, fraction).unwrap();
                let rank = trimmed.site.rank;
                assert_eq!(rank, sufficient_rank(&values, fraction));
                assert_eq!((trimmed.lora_a.len(), trimmed.lora_b.len()), (rank * inner, out * rank));
                assert_eq!(trimmed.site.scaling, factors.site.scaling);
                assert!((config.scaling(rank, trimmed.site.alpha) - trimmed.site.scaling).abs() < 1e-12);
                let lost = (delta_weight(&factors) - delta_weight(&trimmed)).norm();
                let cut = norm(&values[rank..]);
                assert!((lost - cut).abs() < 1e-6 * norm(&values), "lost {lost}, cut off {cut}");
                // Balanced: rows of lora_a and columns of lora_b have the same length.
                for j in 0..rank {
                    let a: f32 = trimmed.lora_a[j * inner..][..inner].iter().map(|x| x * x).sum();
                    let b: f32 = (0..out).map(|o| trimmed.lora_b[o * rank + j].powi(2)).sum();
                    assert!((a / b - 1.0).abs() < 1e-4, "{a} {b}");
                }
            }
        }
    }

    #[test]
    fn an_update_of_zero_can_still_learn_after_trimming() {
        let mut factors = factors(9, 13);
        factors.lora_b.fill(0.0);
        let trimmed = trim(&factors, &LoraConfig::default(), 0.9).unwrap();
        assert_eq!((trimmed.site.rank, trimmed.lora_b.as_slice()), (1, &[0.0; 9][..]));
        assert_eq!(trimmed.lora_a, factors.lora_a[..13]);
        factors.lora_a[7] = f32::NAN;
        let error = trim(&factors, &LoraConfig::default(), 0.9).unwrap_err().to_string();
        assert!(error.contains("layers.0.attn.q") && error.contains("lora_a[7] is NaN"), "{error}");
    }

    #[test]
    fn principal_factors_are_the_best_of_their_rank() {
        for (rows, cols) in [(7, 12), (12, 7)] {
            let weight = random("w", rows * cols, 0.5);
            let w = matrix("", "w", &weight, rows, cols).unwrap();
            let values = w.singular_values();
            for rank in [1, 3, 7, 9] {
                let (a, b) = principal("", &weight, rows, cols, rank, 2.5).unwrap();
                let a = matrix("", "a", &a, rank, cols).unwrap();
                let b = matrix("", "b", &b, rows, rank).unwrap();
                let left = (&w - &b * &a * 2.5).norm();
                let expected = values.rows(rank.min(7), 7 - rank.min(7)).norm();
                assert!((left - expected).abs() < 1e-5, "{rows}x{cols}, rank {rank}: {left} {expected}");
                assert!((a.row(0).norm() - b.column(0).norm()).abs() < 1e-5);
            }
        }
    }
}
