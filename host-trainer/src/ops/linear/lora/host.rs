//! The low-rank layer on the CPU: one pass over the rows forward, one backward.
//!
//! Rows are cut into pieces that never have rows of two groups, so the partial sums of a group, and with them its bits, are
//! those that it has alone.

use candle_core::Tensor;
use rayon::prelude::*;

use super::super::super::Result;
use super::super::super::gemm::{Mat, Packed, Target, multiply, outer};
use super::super::super::graph::{HostArgs, Sink, with_host};
use super::super::super::parallel::cut;
use super::{Dims, Group, LoraLinear, ROWS, parts, sum_in_order, with_bias};

/// Rows that one thread takes at a time.
struct Piece {
    group: usize,
    /// First row, of all.
    start: usize,
    /// First row, of the group's.
    within: usize,
    rows: usize,
}

fn pieces(groups: &[Group]) -> Vec<Piece> {
    let of = |(group, part): (usize, super::Part<'_>)| {
        let (first, count) = (part.row, part.group.rows);
        (0..count).step_by(ROWS).map(move |within| {
            let rows = ROWS.min(count - within);
            Piece { group, start: first + within, within, rows }
        })
    };
    parts(groups).enumerate().flat_map(of).collect()
}

/// Lends the masks of the groups beside other tensors.
fn with_masks<R>(
    tensors: &[Tensor],
    groups: &[Group],
    last: &Tensor,
    f: impl FnOnce(&[&[f32]], &[Option<&[f32]>], &[f32]) -> R,
) -> candle_core::Result<R> {
    let masks = groups.iter().filter_map(|group| group.mask.clone());
    let lent: Vec<Tensor> = tensors.iter().cloned().chain(masks).collect();
    with_host(&lent, last, |lent, last| {
        let (lent, masks) = lent.split_at(tensors.len());
        let mut masks = masks.iter().copied();
        let masks: Vec<Option<&[f32]>> =
            groups.iter().map(|group| group.mask.as_ref().and_then(|_| masks.next())).collect();
        f(lent, &masks, last)
    })
}

/// The factors of a group as a product reads them; `None` without any.
fn panels(
    groups: &[Group],
    (a, inner): (&[f32], usize),
    (b, out): (&[f32], usize),
    pack: impl Fn(&[f32], &[f32], usize) -> (Packed, Packed),
) -> Vec<Option<(Packed, Packed)>> {
    let of = |part: super::Part<'_>| {
        let (first, rank) = (part.first, part.group.rank);
        (rank > 0).then(|| pack(&a[first * inner..][..rank * inner], &b[first * out..][..rank * out], rank))
    };
    parts(groups).map(of).collect()
}

/// Gives `y` and `z`, see [`LoraLinear`].
pub(super) fn forward(
    x: &Tensor,
    w0: &Tensor,
    a: &Tensor,
    b: &Tensor,
    groups: &[Group],
    bias: Option<&[f32]>,
    dims: Dims,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let Dims { rows, inner, out } = dims;
    let pieces = pieces(groups);
    let mut y = vec![0.0; rows * out];
    let mut z = vec![0.0; groups.iter().map(|group| group.rows * group.rank).sum()];
    with_masks(&[x.detach(), w0.clone(), a.detach()], groups, &b.detach(), |lent, masks, b| {
        let &[x, w0, a] = lent else { unreachable!("three tensors were lent") };
        let w0 = Packed::transposed(w0, out, inner);
        let factors = panels(groups, (a, inner), (b, out), |a, b, rank| {
            (Packed::transposed(a, rank, inner), Packed::transposed(b, out, rank))
        });
        let ys = cut(&mut y, pieces.iter().map(|piece| piece.rows * out));
        let zs = cut(&mut z, pieces.iter().map(|piece| piece.rows * groups[piece.group].rank));
        ys.into_par_iter().zip(zs).zip(&pieces).for_each(|((y, z), piece)| {
            let &Piece { group, start, within, rows } = piece;
            let x = &x[start * inner..][..rows * inner];
            let Some((a, b)) = &factors[group] else {
                return multiply(with_bias(y, out, bias), &[(Mat::new(x, inner), &w0)]);
            };
            let Group { rank, scaling, .. } = groups[group];
            let masked = masks[group].map(|mask| product(x, &mask[within * inner..]));
            let input = Mat::new(masked.as_deref().unwrap_or(x), inner);
            multiply(Target::new(z, rows, rank), &[(input, a)]);
            for z in &mut *z {
                *z *= scaling;
            }
            multiply(with_bias(y, out, bias), &[(Mat::new(x, inner), &w0), (Mat::new(z, rank), b)]);
        });
    })?;
    Ok((y, z))
}

/// The first values of `b` times those of `a`.
fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

/// Adds the gradients of `x`, `lora_a` and `lora_b` to their sinks.
pub(super) fn backward(op: &LoraLinear, args: &HostArgs<'_>, sinks: &mut [Sink<'_>]) {
    with_masks(std::slice::from_ref(&op.w0), &op.groups, &op.z, |lent, masks, z| {
        let Pass { partial, groups, dims } = Pass::run(op, args, sinks, lent[0], masks, z);
        let Dims { inner, out, .. } = dims;
        let [_, da_sink, db_sink] = sinks else { unreachable!("lora_linear has three inputs") };
        let ranks: usize = groups.iter().map(|group| group.rank).sum();
        let of = |group: usize| partial.iter().filter(move |partial| partial.group == group);
        da_sink.write(ranks * inner, |da, accumulate| {
            for (group, part) in parts(groups).enumerate() {
                let da = &mut da[part.first * inner..][..part.group.rank * inner];
                sum_in_order(da, accumulate, of(group).map(|partial| partial.da.as_slice()));
            }
        });
        db_sink.write(ranks * out, |db, accumulate| {
            for (group, part) in parts(groups).enumerate().filter(|(_, part)| part.group.rank > 0) {
                let rank = part.group.rank;
                let mut sum = vec![0.0; rank * out];
                sum_in_order(&mut sum, false, of(group).map(|partial| partial.db.as_slice()));
                let db = &mut db[part.first * out..][..rank * out];
                for (o, db) in db.chunks_exact_mut(rank).enumerate() {
                    for (j, db) in db.iter_mut().enumerate() {
                        let sum = sum[j * out + o];
                        *db = if accumulate { *db + sum } else { sum };
                    }
                }
            }
        });
    })
    .expect("the forward read the same tensors");
}

/// What one piece adds to the gradients of its group's factors.
struct Partial {
    group: usize,
    /// [rank, in], or nothing.
    da: Vec<f32>,
    /// The transpose of d lora_b, [rank, out], or nothing: its rows are long, as the kernel likes them.
    db: Vec<f32>,
}

/// What the pass over the rows leaves: the gradient of `x` is written, those of the factors are in parts.
struct Pass<'a> {
    partial: Vec<Partial>,
    groups: &'a [Group],
    dims: Dims,
}

impl<'a> Pass<'a> {
    fn run(
        op: &'a LoraLinear,
        args: &HostArgs<'_>,
        sinks: &mut [Sink<'_>],
        w0: &[f32],
        masks: &[Option<&[f32]>],
        z: &[f32],
    ) -> Self {
        let LoraLinear { groups, dims, .. } = op;
        let Dims { rows, inner, out } = *dims;
        let &[x, a, b] = args.inputs else { unreachable!("lora_linear has three inputs") };
        let grad = &*args.grad;
        let [dx_sink, da_sink, db_sink] = sinks else { unreachable!("lora_linear has three inputs") };
        let (want_dx, want_da, want_db) = (dx_sink.wanted(), da_sink.wanted(), db_sink.wanted());
        let w0 = Packed::new(w0, out, inner);
        let factors = panels(groups, (a, inner), (b, out), |a, b, rank| {
            (Packed::new(a, rank, inner), Packed::new(b, out, rank))
        });
        let pieces = pieces(groups);
        let kept: Vec<usize> = pieces
            .iter()
            .scan(0, |next, piece| {
                let start = *next;
                *next += piece.rows * groups[piece.group].rank;
                Some(start)
            })
            .collect();

        // One pass over the rows for all gradients; without dx the pieces of it are empty.
        let piece = |piece: &Piece, kept: usize, dx: &mut [f32], accumulate: bool| -> Partial {
            let &Piece { group, start, within, rows } = piece;
            let mut partial = Partial { group, da: Vec::new(), db: Vec::new() };
            let dy = Mat::new(&grad[start * out..][..rows * out], out);
            let Some((a, b)) = &factors[group] else {
                if want_dx {
                    multiply(Target::new(dx, rows, inner).accumulate(accumulate), &[(dy, &w0)]);
                }
                return partial;
            };
            let Group { rank, scaling, .. } = groups[group];
            let mask = masks[group].map(|mask| &mask[within * inner..][..rows * inner]);
            let mut dz = vec![0.0; rows * rank];
            if want_dx || want_da {
                multiply(Target::new(&mut dz, rows, rank), &[(dy, b)]);
                for dz in &mut dz {
                    *dz *= scaling;
                }
            }
            let dz = Mat::new(&dz, rank);
            if want_dx {
                let target = |dx| Target::new(dx, rows, inner);
                match mask {
                    None => multiply(target(dx).accumulate(accumulate), &[(dy, &w0), (dz, a)]),
                    Some(mask) => {
                        let mut low = vec![0.0; rows * inner];
                        multiply(target(&mut low), &[(dz, a)]);
                        multiply(target(&mut *dx).accumulate(accumulate), &[(dy, &w0)]);
                        for ((dx, low), mask) in dx.iter_mut().zip(&low).zip(mask) {
                            *dx += low * mask;
                        }
                    }
                }
            }
            if want_da {
                let x = &x[start * inner..][..rows * inner];
                let masked = mask.map(|mask| product(x, mask));
                partial.da = vec![0.0; rank * inner];
                let x = Mat::new(masked.as_deref().unwrap_or(x), inner);
                outer(Target::new(&mut partial.da, rank, inner), dz, x, rows);
            }
            if want_db {
                partial.db = vec![0.0; rank * out];
                let z = Mat::new(&z[kept..][..rows * rank], rank);
                outer(Target::new(&mut partial.db, rank, out), z, dy, rows);
            }
            partial
        };

        let mut partial = Vec::new();
        if want_dx {
            dx_sink.write(rows * inner, |dx, accumulate| {
                cut(dx, pieces.iter().map(|piece| piece.rows * inner))
                    .into_par_iter()
                    .zip(pieces.par_iter().zip(&kept))
                    .map(|(dx, (rows, kept))| piece(rows, *kept, dx, accumulate))
                    .collect_into_vec(&mut partial);
            });
        } else {
            pieces
                .par_iter()
                .zip(&kept)
                .map(|(rows, kept)| piece(rows, *kept, &mut [], false))
                .collect_into_vec(&mut partial);
        }
        Self { partial, groups, dims: *dims }
    }
}
