//! Operators that move rows: embedding, position table, prepended token, appended table, selection, mean over a sequence.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::graph::{Backward, HostArgs, Output, Sink, node, with_host, with_values};
use super::{Result, check, parallel};

/// `y[r] = table[ids[r]]`.
///
/// `table` [vocab, width], `ids` u32 [rows]; gives [rows, width].
///
/// # Errors
/// If a shape or type does not fit, or an id is not below `vocab`.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (vocab, width) = check::matrix("embedding", "the table", table)?;
    check::dtype("embedding", "the ids", ids, DType::U32)?;
    let largest = ids.flatten_all()?.to_vec1::<u32>()?.into_iter().max().unwrap_or(0);
    check::value("embedding", "an id", (largest as usize) < vocab, || format!("below {vocab}"), largest)?;
    let y = table.detach().index_select(ids, 0)?;
    if !table.track_op() {
        return Ok(y);
    }
    let y =
        if table.device().is_cpu() { Output::Host(y.flatten_all()?.to_vec1()?) } else { Output::Device(y) };
    let rows: Vec<u32> = ids.flatten_all()?.to_vec1()?;
    let shape = (rows.len(), width);
    Ok(node(&[table], y, shape, || SelectRows { rows, width })?)
}

/// `y[b * seq + t] = x[b * seq + t] + table[t]`: learned positions.
///
/// A table that is trained gets the sum over the batch.
///
/// `x` [batch * seq, width], `table` [at least seq, width].
///
/// # Errors
/// If a shape or type does not fit.
pub fn add_positions(x: &Tensor, table: &Tensor, seq: usize) -> Result<Tensor> {
    let op = "add_positions";
    let (rows, width) = check::matrix(op, "x", x)?;
    let (positions, _) = check::matrix(op, "the table", table)?;
    check::shape(op, "the table", table, &[positions, width])?;
    check_sequences(op, rows, seq)?;
    check::value(op, "the sequence length", seq <= positions, || format!("at most {positions}"), seq)?;
    let (x, whole) = (x.contiguous()?, table.contiguous()?);
    let table = whole.detach().narrow(0, 0, seq)?;
    let trained = whole.track_op();
    let inputs: &[&Tensor] = if trained { &[&x, &whole] } else { &[&x] };
    let op = || AddPositions { seq, width };
    if !x.device().is_cpu() {
        let y = x.detach().reshape((rows / seq, seq, width))?.broadcast_add(&table.to_dtype(x.dtype())?)?;
        let y = Output::Device(y.reshape((rows, width))?);
        return Ok(node(inputs, y, (rows, width), op)?);
    }
    let mut y = vec![0.0; rows * width];
    with_host(&[table.contiguous()?], &x.detach(), |table, x| {
        let piece = (seq * width).max(1);
        y.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(y, x)| {
            for ((y, x), position) in y.iter_mut().zip(x).zip(table[0]) {
                *y = x + position;
            }
        });
    })?;
    Ok(node(inputs, Output::Host(y), (rows, width), op)?)
}

/// Puts one row before each sequence: [batch * seq, width] and `token` [width] give [batch * (seq + 1), width].
///
/// Both may have gradients; the token's is the sum over the batch.
///
/// # Errors
/// If a shape or type does not fit.
pub fn prepend_token(x: &Tensor, token: &Tensor, seq: usize) -> Result<Tensor> {
    let op = "prepend_token";
    let (rows, width) = check::matrix(op, "x", x)?;
    check::shape(op, "the token", token, &[width])?;
    check_sequences(op, rows, seq)?;
    let batch = rows / seq;
    let shape = (batch * (seq + 1), width);
    let (x, token) = (x.contiguous()?, token.contiguous()?);
    if !x.device().is_cpu() {
        let first =
            token.detach().to_dtype(x.dtype())?.reshape((1, 1, width))?.broadcast_as((batch, 1, width))?;
        let y = Tensor::cat(&[first, x.detach().reshape((batch, seq, width))?], 1)?.reshape(shape)?;
        return Ok(node(&[&x, &token], Output::Device(y), shape, || PrependToken { seq, width })?);
    }
    let mut y = Vec::with_capacity(shape.0 * width);
    with_host(&[token.detach()], &x.detach(), |token, x| {
        for sequence in 0..batch {
            y.extend_from_slice(token[0]);
            y.extend_from_slice(&x[sequence * seq * width..][..seq * width]);
        }
    })?;
    Ok(node(&[&x, &token], Output::Host(y), shape, || PrependToken { seq, width })?)
}

/// The rows of each batch, each batch followed by those of `table`.
///
/// `x` [sum of `batches`, width] has the rows of so many batches, `table` [n, width]; gives [sum + batches.len() * n, width].
///
/// # Errors
/// If a shape or type does not fit, or the batches do not have all rows.
pub fn append_table(x: &Tensor, table: &Tensor, batches: &[usize]) -> Result<Tensor> {
    let op = "append_table";
    let (rows, width) = check::matrix(op, "x", x)?;
    let (n, _) = check::matrix(op, "the table", table)?;
    check::shape(op, "the table", table, &[n, width])?;
    let sum: usize = batches.iter().sum();
    check::value(op, "the rows of the batches", sum == rows, || rows.to_string(), sum)?;
    if !x.device().is_cpu() {
        let mut parts = Vec::with_capacity(2 * batches.len());
        let mut first = 0;
        for &rows in batches {
            parts.extend([x.narrow(0, first, rows)?, table.clone()]);
            first += rows;
        }
        return Ok(Tensor::cat(&parts, 0)?);
    }
    let (x, table) = (x.contiguous()?, table.contiguous()?);
    let shape = (rows + batches.len() * n, width);
    let mut y = Vec::with_capacity(shape.0 * width);
    with_host(&[table.detach()], &x.detach(), |table, x| {
        let mut rest = x;
        for rows in batches {
            let (own, after) = rest.split_at(rows * width);
            y.extend_from_slice(own);
            y.extend_from_slice(table[0]);
            rest = after;
        }
    })?;
    let lengths = batches.iter().map(|rows| rows * width).collect();
    Ok(node(&[&x, &table], Output::Host(y), shape, || AppendTable { lengths })?)
}

/// The rows of all parts, one part behind the other; [`slice_rows`] is the way back.
///
/// A part is [rows, width], at least one; gives [sum of their rows, width].
///
/// # Errors
/// If a shape or type does not fit.
pub fn concat_rows(parts: &[Tensor]) -> Result<Tensor> {
    let op = "concat_rows";
    check::value(op, "the number of parts", !parts.is_empty(), || "at least 1".into(), parts.len())?;
    let (_, width) = check::matrix(op, "a part", &parts[0])?;
    let mut rows = 0;
    for part in parts {
        let (own, _) = check::matrix(op, "a part", part)?;
        check::shape(op, "a part", part, &[own, width])?;
        rows += own;
    }
    if !parts[0].device().is_cpu() {
        return Ok(Tensor::cat(parts, 0)?);
    }
    if parts.len() > 2 {
        // A node has few inputs: halves, and halves of those.
        let (first, second) = parts.split_at(parts.len() / 2);
        return concat_rows(&[concat_rows(first)?, concat_rows(second)?]);
    }
    let parts: Vec<Tensor> = parts.iter().map(Tensor::contiguous).collect::<candle_core::Result<_>>()?;
    let mut y = Vec::with_capacity(rows * width);
    for part in &parts {
        with_values(part, |part| y.extend_from_slice(part))?;
    }
    Ok(node(&parts.iter().collect::<Vec<_>>(), Output::Host(y), (rows, width), || ConcatRows)?)
}

/// `y[i] = x[rows[i]]`; a row may be picked more than once.
///
/// `x` [n, width]; gives [rows.len(), width].
///
/// # Errors
/// If the type does not fit or a row does not exist.
pub fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let op = "select_rows";
    let (count, width) = check::matrix(op, "x", x)?;
    let largest = rows.iter().max().copied().unwrap_or(0);
    check::value(op, "a row", (largest as usize) < count, || format!("below {count}"), largest)?;
    let x = x.contiguous()?;
    if !x.device().is_cpu() {
        let y = x.detach().index_select(&Tensor::new(rows, x.device())?, 0)?;
        let op = || SelectRows { rows: rows.to_vec(), width };
        return Ok(node(&[&x], Output::Device(y), (rows.len(), width), op)?);
    }
    let mut y = Vec::with_capacity(rows.len() * width);
    with_values(&x, |x| {
        for &row in rows {
            y.extend_from_slice(&x[row as usize * width..][..width]);
        }
    })?;
    let shape = (rows.len(), width);
    Ok(node(&[&x], Output::Host(y), shape, || SelectRows { rows: rows.to_vec(), width })?)
}

/// The rows `start..start + count` of `x` [n, width].
///
/// # Errors
/// If the type does not fit or a row does not exist.
pub fn slice_rows(x: &Tensor, start: usize, count: usize) -> Result<Tensor> {
    let op = "slice_rows";
    let (rows, width) = check::matrix(op, "x", x)?;
    let end = start + count;
    check::value(op, "the end of the slice", end <= rows, || format!("at most {rows}"), end)?;
    if !x.device().is_cpu() {
        return Ok(x.narrow(0, start, count)?);
    }
    let x = x.contiguous()?;
    let y = with_values(&x, |x| x[start * width..][..count * width].to_vec())?;
    Ok(node(&[&x], Output::Host(y), (count, width), || SliceRows { start: start * width })?)
}

/// `y[b] = mean over t < lengths[b] of x[b * seq + t]`.
///
/// `x` [lengths.len() * seq, width]; gives [lengths.len(), width].
///
/// # Errors
/// If a shape or type does not fit or a length is not in 1..=seq.
pub fn mean_pool(x: &Tensor, seq: usize, lengths: &[usize]) -> Result<Tensor> {
    let op = "mean_pool";
    let (rows, width) = check::matrix(op, "x", x)?;
    check::shape(op, "x", x, &[lengths.len() * seq, width])?;
    check_sequences(op, rows, seq)?;
    for &length in lengths {
        check::value(op, "a length", (1..=seq).contains(&length), || format!("1 to {seq}"), length)?;
    }
    let batch = lengths.len();
    let x = x.contiguous()?;
    if !x.device().is_cpu() {
        let y = mean_pool_composed(&x.detach(), seq, lengths)?;
        let op = || MeanPool { seq, width, lengths: lengths.to_vec() };
        return Ok(node(&[&x], Output::Device(y), (batch, width), op)?);
    }
    let mut y = vec![0.0f32; batch * width];
    with_values(&x, |x| {
        let sequences = y.par_chunks_mut(width).zip(x.par_chunks(seq * width)).zip(lengths);
        sequences.for_each(|((y, x), &length)| {
            for row in x.chunks_exact(width).take(length) {
                for (y, x) in y.iter_mut().zip(row) {
                    *y += x;
                }
            }
            for y in y {
                *y /= length as f32;
            }
        });
    })?;
    Ok(node(&[&x], Output::Host(y), (batch, width), || MeanPool { seq, width, lengths: lengths.to_vec() })?)
}

/// [`mean_pool`] in plain candle operators.
///
/// # Errors
/// Those of the tensor library.
pub fn mean_pool_composed(x: &Tensor, seq: usize, lengths: &[usize]) -> Result<Tensor> {
    let width = x.dim(1)?;
    let batch = lengths.len();
    let weights = mean_weights(seq, lengths, x)?;
    Ok(weights.matmul(&x.reshape((batch, seq, width))?)?.reshape((batch, width))?)
}

/// What each row counts in the mean of its sequence: [batch, 1, seq], of the type and on the device of `x`.
fn mean_weights(seq: usize, lengths: &[usize], x: &Tensor) -> candle_core::Result<Tensor> {
    let weights: Vec<f32> = lengths
        .iter()
        .flat_map(|&length| (0..seq).map(move |t| if t < length { 1.0 / length as f32 } else { 0.0 }))
        .collect();
    Tensor::from_vec(weights, (lengths.len(), 1, seq), x.device())?.to_dtype(x.dtype())
}

fn check_sequences(op: &'static str, rows: usize, seq: usize) -> Result<()> {
    let fits = seq > 0 && rows.is_multiple_of(seq);
    check::value(op, "the sequence length", fits, || format!("a divisor of the {rows} rows"), seq)
}

struct AddPositions {
    seq: usize,
    width: usize,
}

impl Backward for AddPositions {
    fn name(&self) -> &'static str {
        "add_positions"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let own = self.seq * self.width;
        if let Some(sink) = sinks.get_mut(1) {
            sink.write(args.inputs[1].len(), |table, accumulate| {
                if !accumulate {
                    table.fill(0.0);
                }
                parallel::sum_in_order(&mut table[..own], true, args.grad.chunks_exact(own));
            });
        }
        sinks[0].pass(args.grad.take());
    }

    fn device(
        &self,
        inputs: &[Tensor],
        grad: &Tensor,
        wanted: &[bool],
    ) -> candle_core::Result<Vec<Option<Tensor>>> {
        let mut grads = vec![wanted[0].then(|| grad.clone())];
        if let Some(table) = inputs.get(1) {
            let &Self { seq, width } = self;
            let own = grad.reshape((grad.elem_count() / (seq * width), seq, width))?.sum(0)?;
            let own = own.to_dtype(table.dtype())?;
            let rest = Tensor::zeros((table.dim(0)? - seq, width), table.dtype(), table.device())?;
            grads.push(Some(Tensor::cat(&[own, rest], 0)?));
        }
        Ok(grads)
    }
}

struct PrependToken {
    seq: usize,
    width: usize,
}

impl Backward for PrependToken {
    fn name(&self) -> &'static str {
        "prepend_token"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let &Self { seq, width } = self;
        let sequences = || args.grad.chunks_exact((seq + 1) * width);
        sinks[0].write(args.inputs[0].len(), |dx, accumulate| {
            for (dx, dy) in dx.chunks_exact_mut(seq * width).zip(sequences()) {
                for (dx, dy) in dx.iter_mut().zip(&dy[width..]) {
                    *dx = if accumulate { *dx + dy } else { *dy };
                }
            }
        });
        sinks[1].write(width, |dt, accumulate| {
            if !accumulate {
                dt.fill(0.0);
            }
            for dy in sequences() {
                for (dt, dy) in dt.iter_mut().zip(dy) {
                    *dt += dy;
                }
            }
        });
    }

    fn device(
        &self,
        inputs: &[Tensor],
        grad: &Tensor,
        wanted: &[bool],
    ) -> candle_core::Result<Vec<Option<Tensor>>> {
        let &Self { seq, width } = self;
        let batch = grad.elem_count() / ((seq + 1) * width);
        let sequences = grad.reshape((batch, seq + 1, width))?;
        let dx = sequences.narrow(1, 1, seq)?.contiguous()?.reshape((batch * seq, width))?;
        let token = if wanted[1] {
            Some(sequences.narrow(1, 0, 1)?.to_dtype(inputs[1].dtype())?.sum(0)?.flatten_all()?)
        } else {
            None
        };
        Ok(vec![wanted[0].then_some(dx), token])
    }
}

struct AppendTable {
    /// Values of each batch.
    lengths: Vec<usize>,
}

impl Backward for AppendTable {
    fn name(&self) -> &'static str {
        "append_table"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let &[x, table] = args.inputs else { unreachable!("it has two inputs") };
        let mut rest = &*args.grad;
        let mut take = |len: usize| {
            let (own, after) = rest.split_at(len);
            rest = after;
            own
        };
        let pieces: Vec<(&[f32], &[f32])> =
            self.lengths.iter().map(|len| (take(*len), take(table.len()))).collect();
        let [dx, dtable] = sinks else { unreachable!("it has two inputs") };
        dx.write(x.len(), |dx, accumulate| {
            let dx = parallel::cut(dx, self.lengths.iter().copied());
            for (dx, (dy, _)) in dx.into_iter().zip(&pieces) {
                write(dx, dy, accumulate);
            }
        });
        dtable.write(table.len(), |dtable, accumulate| {
            for (batch, (_, dy)) in pieces.iter().enumerate() {
                write(dtable, dy, accumulate || batch > 0);
            }
        });
    }
}

/// `dx = dy`, or `dx += dy`.
fn write(dx: &mut [f32], dy: &[f32], accumulate: bool) {
    if accumulate {
        parallel::add_assign(dx, dy);
    } else {
        dx.copy_from_slice(dy);
    }
}

struct ConcatRows;

impl Backward for ConcatRows {
    fn name(&self) -> &'static str {
        "concat_rows"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let mut first = 0;
        for (sink, x) in sinks.iter_mut().zip(args.inputs) {
            let dy = &args.grad[first..][..x.len()];
            sink.write(x.len(), |dx, accumulate| write(dx, dy, accumulate));
            first += x.len();
        }
    }
}

struct SelectRows {
    rows: Vec<u32>,
    width: usize,
}

impl Backward for SelectRows {
    fn name(&self) -> &'static str {
        "select_rows"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let width = self.width;
        sinks[0].write(args.inputs[0].len(), |dx, accumulate| {
            if !accumulate {
                dx.fill(0.0);
            }
            for (&row, dy) in self.rows.iter().zip(args.grad.chunks_exact(width)) {
                parallel::add_assign(&mut dx[row as usize * width..][..width], dy);
            }
        });
    }

    fn device(
        &self,
        inputs: &[Tensor],
        grad: &Tensor,
        _: &[bool],
    ) -> candle_core::Result<Vec<Option<Tensor>>> {
        let rows = Tensor::new(self.rows.as_slice(), grad.device())?;
        Ok(vec![Some(inputs[0].zeros_like()?.index_add(&rows, grad, 0)?)])
    }
}

struct SliceRows {
    /// First value of the slice.
    start: usize,
}

impl Backward for SliceRows {
    fn name(&self) -> &'static str {
        "slice_rows"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        sinks[0].write(args.inputs[0].len(), |dx, accumulate| {
            if !accumulate {
                dx.fill(0.0);
            }
            parallel::add_assign(&mut dx[self.start..][..args.grad.len()], &args.grad);
        });
    }
}

struct MeanPool {
    seq: usize,
    width: usize,
    lengths: Vec<usize>,
}

impl Backward for MeanPool {
    fn name(&self) -> &'static str {
        "mean_pool"
    }

    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]) {
        let &Self { seq, width, ref lengths } = self;
        sinks[0].write(args.inputs[0].len(), |dx, accumulate| {
            let sequences = dx.par_chunks_mut(seq * width).zip(args.grad.par_chunks(width)).zip(lengths);
            sequences.for_each(|((dx, dy), &length)| {
                for (t, dx) in dx.chunks_exact_mut(width).enumerate() {
                    for (dx, dy) in dx.iter_mut().zip(dy) {
                        let d = if t < length { dy / length as f32 } else { 0.0 };
                        *dx = if accumulate { *dx + d } else { d };
                    }
                }
            });
        });
    }

    fn device(&self, _: &[Tensor], grad: &Tensor, _: &[bool]) -> candle_core::Result<Vec<Option<Tensor>>> {
        let &Self { seq, width, ref lengths } = self;
        let batch = lengths.len();
        let weights = mean_weights(seq, lengths, grad)?.transpose(1, 2)?.contiguous()?;
        let dx = weights.matmul(&grad.reshape((batch, 1, width))?)?;
        Ok(vec![Some(dx.reshape((batch * seq, width))?)])
    }
}
