//! Attention over several batches of other lengths, whose rows lie one behind the other.

use candle_core::Tensor;
use rayon::prelude::*;

use super::super::graph::{Backward, HostArgs, Output, Sink, node, with_host};
use super::super::parallel::cut;
use super::super::{Result, check};
use super::head::{self, HeadGrads, Outputs};
use super::{AttentionShape, attention, forward, scatter};

/// [`attention`] over batches that lie one behind the other in the rows of `q`, `k` and `v`: no row sees one of another
/// batch, and each batch gets the bits that it gets alone.
///
/// # Errors
/// If a shape or type does not fit, or the shapes do not have all rows.
pub fn attention_batches(q: &Tensor, k: &Tensor, v: &Tensor, shapes: &[AttentionShape]) -> Result<Tensor> {
    let op = "attention_batches";
    let (q_rows, width) = check::matrix(op, "q", q)?;
    let rows: usize = shapes.iter().map(AttentionShape::rows).sum();
    check::value(op, "the rows of the batches", rows == q_rows, || q_rows.to_string(), rows)?;
    let mut first = 0;
    let mut parts = Vec::new();
    for shape in shapes {
        let rows = |x: &Tensor| x.narrow(0, first, shape.rows());
        let (q, k, v) = (rows(q)?, rows(k)?, rows(v)?);
        shape.check(&q, &k, &v)?;
        if !q.device().is_cpu() {
            parts.push(attention(&q.contiguous()?, &k.contiguous()?, &v.contiguous()?, shape)?);
        }
        first += shape.rows();
    }
    if !q.device().is_cpu() {
        return Ok(Tensor::cat(&parts, 0)?);
    }
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let (y, log_sums) = with_host(&[q.detach(), k.detach()], &v.detach(), |inputs, v| {
        let places = Place::all(shapes);
        let parts = places.par_iter().map(|place| {
            forward([place.queries(inputs[0]), place.keys(inputs[1]), place.keys(v)], place.shape, None)
        });
        let (ys, log_sums): (Vec<Vec<f32>>, Vec<Vec<f32>>) = parts.unzip();
        (ys.concat(), log_sums)
    })?;
    let op = || Batches { shapes: shapes.to_vec(), log_sums };
    Ok(node(&[&q, &k, &v], Output::Host(y), (q_rows, width), op)?)
}

impl AttentionShape {
    fn rows(&self) -> usize {
        self.batch * self.seq
    }

    /// Widths of the rows of queries, and of keys and values.
    fn widths(&self) -> (usize, usize) {
        (self.n_heads * self.head_size, self.n_kv_heads * self.head_size)
    }
}

/// A batch and where it lies.
struct Place<'a> {
    shape: &'a AttentionShape,
    /// First row.
    row: usize,
}

impl<'a> Place<'a> {
    fn all(shapes: &'a [AttentionShape]) -> Vec<Self> {
        let mut row = 0;
        let place = |shape: &'a AttentionShape| {
            row += shape.rows();
            Self { shape, row: row - shape.rows() }
        };
        shapes.iter().map(place).collect()
    }

    /// Its part of what has the shape of the queries.
    fn queries<'x>(&self, x: &'x [f32]) -> &'x [f32] {
        let width = self.shape.widths().0;
        &x[self.row * width..][..self.shape.rows() * width]
    }

    /// Its part of what has the shape of keys and values.
    fn keys<'x>(&self, x: &'x [f32]) -> &'x [f32] {
        let width = self.shape.widths().1;
        &x[self.row * width..][..self.shape.rows() * width]
    }
}

struct Batches {
    shapes: Vec<AttentionShape>,
    /// Of each batch.
    log_sums: Vec<Vec<f32>>,
}

impl Backward for Batches {
    fn name(&self) -> &'static str {
        "attention_batches"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let &[q, k, v] = args.inputs else { unreachable!("attention has three inputs") };
        // One for each sequence: its batch's place and log_sums, and its index in the batch.
        let places = Place::all(&self.shapes);
        let sequences: Vec<(&Place<'_>, &[f32], usize)> = places
            .iter()
            .zip(&self.log_sums)
            .flat_map(|(place, sums)| (0..place.shape.batch).map(move |b| (place, sums.as_slice(), b)))
            .collect();
        let parts: Vec<Vec<HeadGrads>> = sequences
            .par_iter()
            .map(|&(place, log_sums, b)| {
                let shape = place.shape;
                let sequence = shape.sequence(b, [place.queries(q), place.keys(k), place.keys(v)], None);
                let (rows, sums) = (shape.seq * shape.widths().0, shape.n_heads * shape.seq);
                let outputs = Outputs {
                    y: &place.queries(args.output)[b * rows..][..rows],
                    dy: &place.queries(&args.grad)[b * rows..][..rows],
                    log_sums: &log_sums[b * sums..][..sums],
                };
                let kv_heads = (0..shape.n_kv_heads).into_par_iter();
                kv_heads.map(|kv_head| head::backward(&sequence, &outputs, kv_head)).collect()
            })
            .collect();
        let [dq, dk, dv] = sinks else { unreachable!("attention has three inputs") };
        dq.write(q.len(), |dq, accumulate| {
            let dq = cut(dq, sequences.iter().map(|(place, ..)| place.shape.seq * place.shape.widths().0));
            dq.into_par_iter().zip(&parts).zip(&sequences).for_each(|((dq, parts), (place, ..))| {
                let heads = parts.iter().flat_map(|part| &part.dq).map(Vec::as_slice);
                scatter(dq, accumulate, heads, place.shape.head_size);
            });
        });
        let keys: fn(&HeadGrads) -> &[f32] = |part| &part.dk;
        let values: fn(&HeadGrads) -> &[f32] = |part| &part.dv;
        for (sink, of) in [(dk, keys), (dv, values)] {
            sink.write(k.len(), |d, accumulate| {
                let d = cut(d, sequences.iter().map(|(place, ..)| place.shape.seq * place.shape.widths().1));
                d.into_par_iter().zip(&parts).zip(&sequences).for_each(|((d, parts), (place, ..))| {
                    scatter(d, accumulate, parts.iter().map(of), place.shape.head_size);
                });
            });
        }
    }
}
