//! Cross-entropy over rows of logits.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::graph::{Backward, HostArgs, Output, Sink, node, with_host};
use super::simd::{largest, sum_map, vectorized};
use super::{OpError, Result, check, math, parallel};

/// `loss = sum over r of weights[r] * (log(sum over c of exp(logits[r, c])) - logits[r, targets[r]]) / sum of weights`.
///
/// `logits` [rows, classes], `targets` u32 [rows], `weights` f32 [rows] (0 leaves a row out); gives an f32 scalar, in nats.
/// Targets and weights are best on the CPU, whatever device the logits are on: they are checked there.
/// Gradient to the logits only: `weights[r] / sum * (softmax - one_hot)`.
///
/// # Errors
/// If a shape or type does not fit, a target of a row with a weight is not below `classes`, a weight is negative or not
/// finite, or the weights sum to 0.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let rows = check::matrix("cross_entropy", "the logits", logits)?.0;
    Ok(cross_entropy_groups(logits, targets, weights, &[rows])?.total)
}

/// Losses of groups of rows.
#[derive(Clone, Debug)]
pub struct GroupLosses {
    /// Their sum, a scalar.
    pub total: Tensor,
    /// Each of them, a scalar without a gradient.
    pub each: Vec<Tensor>,
}

/// [`cross_entropy`] of each group of rows, and their sum: a group's gradient is that of its own mean, bit for bit the one
/// that it gets alone.
///
/// `logits` [rows, classes], `targets` u32 [rows], `weights` f32 [rows]; `groups` are numbers of rows, one group behind the
/// other.
///
/// # Errors
/// As [`cross_entropy`], and if the groups do not have all rows.
pub fn cross_entropy_groups(
    logits: &Tensor,
    targets: &Tensor,
    weights: &Tensor,
    groups: &[usize],
) -> Result<GroupLosses> {
    let op = "cross_entropy";
    let (rows, classes) = check::matrix(op, "the logits", logits)?;
    let found: usize = groups.iter().sum();
    check::value(op, "the rows of the groups", found == rows, || rows.to_string(), found)?;
    #[cfg(feature = "cuda")]
    if logits.device().is_cuda() {
        let (targets, weights) = host_rows(rows, targets, weights)?;
        let mut shares = Vec::with_capacity(rows);
        for &count in groups {
            let group = shares.len()..shares.len() + count;
            let weights = &weights[group.clone()];
            let total = check_rows(classes, &targets[group], weights)?;
            shares.extend(weights.iter().map(|&weight| (f64::from(weight) / total) as f32));
        }
        return Ok(super::cuda::cross_entropy(logits, targets, shares, groups)?);
    }
    if !logits.device().is_cpu() {
        return composed_groups(logits, targets, weights, groups);
    }
    let (targets, weights) = host_rows(rows, targets, weights)?;
    let logits = logits.contiguous()?;
    let mut log_sums = vec![0.0f32; rows];
    let mut shares = Vec::with_capacity(rows);
    let mut each = Vec::with_capacity(groups.len());
    with_host(&[], &logits.detach(), |_, logits| {
        let mut first = 0;
        for &count in groups {
            let group = first..first + count;
            let (targets, weights) = (&targets[group.clone()], &weights[group.clone()]);
            let total = check_rows(classes, targets, weights)?;
            let logits = &logits[first * classes..][..count * classes];
            each.push(forward(logits, targets, weights, &mut log_sums[group], classes) / total);
            shares.extend(weights.iter().map(|&weight| (f64::from(weight) / total) as f32));
            first += count;
        }
        Ok::<_, OpError>(())
    })??;
    let each: Vec<f32> = each.into_iter().map(|loss| loss as f32).collect();
    let node = node(&[&logits], Output::Host(vec![each.iter().sum()]), (), || CrossEntropy {
        targets,
        weights: shares,
        log_sums,
        classes,
    });
    let each = each.iter().map(|loss| Tensor::new(*loss, &Device::Cpu));
    Ok(GroupLosses { total: node?, each: each.collect::<candle_core::Result<_>>()? })
}

/// The weighted sum of the losses of one group; `log_sums` [rows] gets the logarithm of each row's sum of exponentials.
fn forward(logits: &[f32], targets: &[u32], weights: &[f32], log_sums: &mut [f32], classes: usize) -> f64 {
    let piece = parallel::rows_per_piece(classes);
    let rows = logits.par_chunks(piece * classes).zip(log_sums.par_chunks_mut(piece));
    let picks = targets.par_chunks(piece).zip(weights.par_chunks(piece));
    let partial: Vec<f64> = rows
        .zip(picks)
        .map(|((logits, log_sums), (targets, weights))| {
            let mut sum = 0.0f64;
            let rows = logits.chunks_exact(classes).zip(log_sums);
            for ((logits, log_sum), (&target, &weight)) in rows.zip(targets.iter().zip(weights)) {
                if weight == 0.0 {
                    continue;
                }
                *log_sum = vectorized(
                    #[inline(always)]
                    || {
                        let largest = largest(logits, f32::NEG_INFINITY);
                        let sum = sum_map(logits, |x| math::exp(x - largest));
                        largest + math::ln(sum)
                    },
                );
                sum += f64::from(weight) * f64::from(*log_sum - logits[target as usize]);
            }
            sum
        })
        .collect();
    partial.iter().sum()
}

fn composed_groups(
    logits: &Tensor,
    targets: &Tensor,
    weights: &Tensor,
    groups: &[usize],
) -> Result<GroupLosses> {
    let mut first = 0;
    let mut losses = Vec::with_capacity(groups.len());
    for &count in groups {
        let rows = |x: &Tensor| x.narrow(0, first, count)?.contiguous();
        losses.push(cross_entropy_composed(&rows(logits)?, &rows(targets)?, &rows(weights)?)?);
        first += count;
    }
    let each = losses.iter().map(Tensor::detach).collect();
    let mut losses = losses.into_iter();
    let first = losses.next().ok_or_else(|| candle_core::Error::Msg("a loss of no groups".into()))?;
    let total = losses.try_fold(first, |sum, loss| sum.add(&loss))?;
    Ok(GroupLosses { total, each })
}

/// [`cross_entropy`] in plain candle operators.
///
/// # Errors
/// Those of [`cross_entropy`].
pub fn cross_entropy_composed(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let (rows, classes) = check::matrix("cross_entropy", "the logits", logits)?;
    let (targets_host, weights_host) = host_rows(rows, targets, weights)?;
    let total = check_rows(classes, &targets_host, &weights_host)?;
    // A row without a weight may have any target; candle's gather wants a valid one.
    let valid: Vec<u32> = targets_host.iter().map(|&target| target.min(classes as u32 - 1)).collect();
    let targets = Tensor::from_vec(valid, (rows, 1), logits.device())?;
    let largest = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&largest)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let losses = (log_sum - shifted.gather(&targets, 1)?)?.squeeze(1)?;
    Ok(((losses * weights.to_device(logits.device())?)?.sum_all()? / total)?)
}

/// Targets and weights on the host.
fn host_rows(rows: usize, targets: &Tensor, weights: &Tensor) -> Result<(Vec<u32>, Vec<f32>)> {
    let op = "cross_entropy";
    check::dtype(op, "the targets", targets, DType::U32)?;
    let targets: Vec<u32> = targets.flatten_all()?.to_vec1()?;
    check::value(op, "the number of targets", targets.len() == rows, || rows.to_string(), targets.len())?;
    check::shape(op, "the weights", weights, &[rows])?;
    Ok((targets, weights.to_vec1()?))
}

/// The sum of the weights of rows that have a loss.
fn check_rows(classes: usize, targets: &[u32], weights: &[f32]) -> Result<f64> {
    let op = "cross_entropy";
    check::value(op, "the number of classes", classes > 0, || "at least 1".into(), classes)?;
    let mut total = 0.0f64;
    for (&target, &weight) in targets.iter().zip(weights) {
        let fits = weight.is_finite() && weight >= 0.0;
        check::value(op, "a weight", fits, || "finite and not negative".into(), weight)?;
        let fits = weight == 0.0 || (target as usize) < classes;
        check::value(op, "a target", fits, || format!("below {classes}"), target)?;
        total += f64::from(weight);
    }
    check::value(op, "the sum of the weights", total > 0.0, || "above 0".into(), total)?;
    Ok(total)
}

struct CrossEntropy {
    targets: Vec<u32>,
    /// Divided by their sum.
    weights: Vec<f32>,
    log_sums: Vec<f32>,
    classes: usize,
}

impl Backward for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let classes = self.classes;
        let logits = args.inputs[0];
        let grad = args.grad[0];
        sinks[0].write(logits.len(), |dx, accumulate| {
            let piece = parallel::rows_per_piece(classes);
            let rows = dx.par_chunks_mut(piece * classes).zip(logits.par_chunks(piece * classes));
            let picks = self.targets.par_chunks(piece).zip(self.weights.par_chunks(piece));
            rows.zip(picks.zip(self.log_sums.par_chunks(piece))).for_each(
                |((dx, x), ((targets, weights), sums))| {
                    let rows = dx.chunks_exact_mut(classes).zip(x.chunks_exact(classes));
                    let picks = targets.iter().zip(weights).zip(sums);
                    for ((dx, x), ((&target, &weight), &log_sum)) in rows.zip(picks) {
                        let weight = weight * grad;
                        if weight == 0.0 {
                            if !accumulate {
                                dx.fill(0.0);
                            }
                            continue;
                        }
                        vectorized(
                            #[inline(always)]
                            || {
                                for (dx, &x) in dx.iter_mut().zip(x) {
                                    let d = weight * math::exp(x - log_sum);
                                    *dx = if accumulate { *dx + d } else { d };
                                }
                            },
                        );
                        dx[target as usize] -= weight;
                    }
                },
            );
        });
    }
}
