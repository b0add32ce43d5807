//! One walk over the graph: values at the places that the plan gives them, and every operator but the linear ones, which
//! need adapter and merged weights and stay with the engine.

use core::cell::Cell;
use core::ops::Range;

use rankpatch_format::adapter::Biases;
use rankpatch_format::base::Base;
use rankpatch_format::graph::{Op, TensorId, ValueId};
use rankpatch_format::numbers::Room;

use crate::arena::stride;
use crate::attention::{Exponents, Heads, KeyHead, Scratch, attend_row};
use crate::built_in::TEXT;
use crate::kernels::{self, float};
use crate::ops;

/// One walk over the graph.
pub(crate) struct Pass<'p, 'a> {
    pub(crate) base: &'p Base<'a>,
    /// What the adapter has in the place of biases of the base.
    pub(crate) biases: Biases<'a>,
    pub(crate) values: &'p mut [f32],
    pub(crate) rows: usize,
    pub(crate) position: usize,
    /// The value whose codes are at hand, and its rows.
    pub(crate) quantized: Option<(ValueId, usize)>,
}

impl<'a> Pass<'_, 'a> {
    /// A bias, the adapter's or the base's, in place or at the front of `room`.
    pub(crate) fn bias<'r>(&mut self, id: TensorId, room: &mut Room<'r>) -> &'r [f32]
    where
        'a: 'r,
    {
        self.biases.of(id).unwrap_or_else(|| room.read(self.base.floats(id)))
    }

    // One copy of this and of `range`: every operator asks for some.
    #[inline(never)]
    pub(crate) fn width(&self, id: ValueId) -> usize {
        self.base.value_inlined(id).width as usize
    }

    fn count(&self, id: ValueId) -> usize {
        self.base.value(id).rows.count(self.rows)
    }

    #[inline(never)]
    fn range(&self, id: ValueId) -> Range<usize> {
        let value = self.base.value_inlined(id);
        let start = value.offset as usize / 4;
        start..start + value.rows.count(self.rows) * value.width as usize
    }

    pub(crate) fn value_mut(&mut self, id: ValueId) -> &mut [f32] {
        let range = self.range(id);
        self.values.get_mut(range).unwrap_or(&mut [])
    }

    /// Makes the codes of `id`, unless the operator before needed the same. Returns its rows.
    pub(crate) fn quantize(&mut self, id: ValueId, codes: &mut [i8], scales: &mut [f32]) -> usize {
        if let Some((_, count)) = self.quantized.filter(|(quantized, _)| *quantized == id) {
            return count;
        }
        let (width, place) = (self.width(id), self.range(id));
        let rows = self.values.get(place).unwrap_or(&[]).chunks_exact(width.max(1));
        let count = rows.len();
        for ((row, codes), scale) in rows.zip(codes.chunks_mut(stride(width).max(1))).zip(scales) {
            *scale = kernels::quantize(row, codes);
        }
        self.quantized = Some((id, count));
        count
    }

    /// Two values that may lie on each other.
    fn cells(&mut self, x: ValueId, y: ValueId) -> [&[Cell<f32>]; 2] {
        let (x, y) = (self.range(x), self.range(y));
        let values = Cell::from_mut(&mut *self.values).as_slice_of_cells();
        [values.get(x).unwrap_or(&[]), values.get(y).unwrap_or(&[])]
    }

    /// The output of operator `index` with a copy of its input `id` in it, unless the plan lets it work in place.
    fn copied(&mut self, index: u16, id: ValueId) -> &mut [f32] {
        let (from, to) = (self.range(id), self.range(index));
        if from.start != to.start {
            self.copy(from, to.clone());
        }
        self.values.get_mut(to).unwrap_or(&mut [])
    }

    /// Copies between two places that the plan keeps apart.
    fn copy(&mut self, from: Range<usize>, to: Range<usize>) {
        if let Some((from, to)) = self.beside(&from, &to) {
            copy(from, to);
        }
    }

    /// What lies in one place, and another place, which the plan keeps apart.
    // One copy of the checks.
    #[inline(never)]
    fn beside(&mut self, from: &Range<usize>, to: &Range<usize>) -> Option<(&[f32], &mut [f32])> {
        let (before, rest) = self.values.split_at_mut_checked(to.start)?;
        let (y, after) = rest.split_at_mut_checked(to.len())?;
        Some((outside(before, after, to, from), y))
    }

    /// Attention over the keys so far, which `cache` keeps: `room` of them for each key head.
    pub(crate) fn causal_attention(
        &mut self,
        index: u16,
        inputs: [ValueId; 3],
        heads: Heads,
        room: usize,
        cache: &mut [u32],
        scratch: &mut Scratch<'_>,
    ) {
        let [q_width, k_width, _] = inputs.map(|id| self.width(id).max(1));
        let (shape, position) = (heads.shape, self.position);
        // Attention works in place on the queries.
        self.copied(index, inputs[0]);
        let Some(([k, v], y)) = self.around([inputs[1], inputs[2]], index) else { return };
        let Some((stored, codes)) = cache.split_first_chunk_mut::<2>() else { return };
        let words = shape.code_words(room).max(1);
        let (mut keys, mut values) = (k, v);
        for (seen, row) in (position..).zip(y.chunks_exact_mut(q_width)) {
            let (Some((mut k, later)), Some((mut v, left))) =
                (keys.split_at_checked(k_width), values.split_at_checked(k_width))
            else {
                return;
            };
            (keys, values) = (later, left);
            let before = if seen == 0 { Exponents::NONE } else { Exponents::load(*stored) };
            let exponents = before.including(shape, k, v);
            for memory in codes.chunks_exact_mut(words) {
                let (Some((own_k, later)), Some((own_v, left))) =
                    (k.split_at_checked(shape.head_size), v.split_at_checked(shape.head_size))
                else {
                    return;
                };
                (k, v) = (later, left);
                let Some(mut past) = KeyHead::new(shape, memory, room) else { return };
                if exponents != before {
                    past.shorten(seen, before, exponents);
                }
                past.push(seen, exponents, own_k, own_v, scratch.query);
            }
            *stored = exponents.store();
            attend_row(row, heads, [seen + 1, room], exponents, codes, scratch);
        }
    }

    /// Attention over all rows of the pass. One key head's codes lie at the place of the output; rows are written over the
    /// queries, which nothing reads later, and moved at the end.
    pub(crate) fn attention(
        &mut self,
        index: u16,
        inputs: [ValueId; 3],
        heads: Heads,
        scratch: &mut Scratch<'_>,
    ) {
        let [q_width, k_width, _] = inputs.map(|id| self.width(id).max(1));
        let shape = heads.shape;
        let [q_place, k_place, v_place] = inputs.map(|id| self.range(id));
        let to = self.range(index);
        let keys = self.count(inputs[1]);
        let [k, v] = [&k_place, &v_place].map(|place| self.values.get(place.clone()).unwrap_or(&[]));
        let exponents = Exponents::NONE.including(shape, k, v);
        let group = q_width / heads.n_kv_heads.max(1);
        let one_key_head = Heads { n_heads: heads.n_heads / heads.n_kv_heads.max(1), n_kv_heads: 1, ..heads };
        let place = to.start..to.start + shape.code_words(keys);
        let Some((before, rest)) = self.values.split_at_mut_checked(place.start) else { return };
        let Some((memory, after)) = rest.split_at_mut_checked(place.len()) else { return };
        let memory: &mut [u32] = bytemuck::cast_slice_mut(memory);
        for key_head in 0..heads.n_kv_heads {
            let Some(mut past) = KeyHead::new(shape, &mut *memory, keys) else { return };
            for seen in 0..keys {
                let at = seen * k_width + key_head * shape.head_size;
                let [k, v] = [&k_place, &v_place].map(|all| {
                    let start = all.start + at;
                    outside(before, after, &place, &(start..start + shape.head_size))
                });
                past.push(seen, exponents, k, v, scratch.query);
            }
            let (side, first) = if q_place.end <= place.start {
                (&mut *before, q_place.start)
            } else {
                (&mut *after, q_place.start.saturating_sub(place.end))
            };
            let queries = side.get_mut(first..first + q_place.len()).unwrap_or(&mut []);
            for row in queries.chunks_exact_mut(q_width) {
                let own = row.get_mut(key_head * group..(key_head + 1) * group).unwrap_or(&mut []);
                attend_row(own, one_key_head, [keys, keys], exponents, memory, scratch);
            }
        }
        self.copy(q_place, to);
    }

    /// Values and the output of operator `index`, whose places the plan keeps apart. The values may be one.
    fn around(&mut self, inputs: [ValueId; 2], index: u16) -> Option<([&[f32]; 2], &mut [f32])> {
        let (places, to) = (inputs.map(|id| self.range(id)), self.range(index));
        let (before, rest) = self.values.split_at_mut_checked(to.start)?;
        let (y, after) = rest.split_at_mut_checked(to.len())?;
        let (before, after) = (&*before, &*after);
        Some((places.map(|place| outside(before, after, &to, &place)), y))
    }

    /// Operators that are neither linear nor attention. `room` is for numbers that the image has as halves.
    pub(crate) fn elementwise<'r>(&mut self, index: u16, op: &Op, mut room: Room<'r>)
    where
        'a: 'r,
    {
        let base = self.base;
        let width = self.width(index);
        match *op {
            Op::RmsNorm { input, weight, eps } if TEXT => {
                let weight = room.read(base.floats(weight));
                let [x, y] = self.cells(input, index);
                ops::norm(x, weight, None, eps, y);
            }
            Op::LayerNorm { input, weight, bias, eps } => {
                let bias = self.bias(bias, &mut room);
                let weight = room.read(base.floats(weight));
                let [x, y] = self.cells(input, index);
                ops::norm(x, weight, Some(bias), eps, y);
            }
            Op::Rope { input, inv_freq } if TEXT => {
                let position = self.position;
                ops::rope(self.copied(index, input), width, base.f32s(inv_freq), position);
            }
            Op::AddPosition { input, table } => {
                let (table, position) = (base.floats(table), self.position);
                for (row, t) in self.copied(index, input).chunks_exact_mut(width.max(1)).zip(position..) {
                    float::add(row, Room(&mut *room.0).read(table.part(t * width, width)));
                }
            }
            Op::Scale { input, weight } => {
                let weight = room.read(base.floats(weight));
                for row in self.copied(index, input).chunks_exact_mut(width.max(1)) {
                    float::mul(row, weight);
                }
            }
            Op::Silu { input } if TEXT => float::silu(self.copied(index, input)),
            Op::Gelu { input } => float::gelu(self.copied(index, input)),
            Op::GeluErf { input } => float::gelu_erf(self.copied(index, input)),
            Op::Tanh { input } => float::tanh(self.copied(index, input)),
            Op::Add { a, b } => self.binary(index, a, b, float::add),
            Op::Mul { a, b } if TEXT => self.binary(index, a, b, float::mul),
            Op::PrependToken { input, token } => {
                let (from, to) = (self.range(input), self.range(index));
                self.copy(from, to.start + width..to.end);
                let token = room.read(base.floats(token));
                self.value_mut(index).iter_mut().zip(token).for_each(|(to, from)| *to = *from);
            }
            Op::SelectRow { input, row } => {
                let from = self.range(input).start + row as usize * width;
                let to = self.range(index);
                self.copy(from..from + width, to);
            }
            Op::MeanPool { input } => {
                let count = self.count(input) as f32;
                let (from, to) = (self.range(input), self.range(index));
                let Some((x, y)) = self.beside(&from, &to) else { return };
                y.fill(0.0);
                ops::accumulate(x, y);
                y.iter_mut().for_each(|y| *y /= count);
            }
            // Inputs, what is neither elementwise nor in any image, and what is not built in.
            _ => {}
        }
    }

    fn binary(&mut self, index: u16, a: ValueId, b: ValueId, f: fn(&mut [f32], &[f32])) {
        self.copied(index, a);
        let (other, to) = (self.range(b), self.range(index));
        // The plan gives an operator that reads one value twice a place of its own.
        let Some((b, y)) = self.beside(&other, &to) else { return };
        f(y, b);
    }
}

/// Copies as many numbers as both have.
fn copy(from: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

/// The range `from` of what lies `before` and `after` the range `place`.
fn outside<'v>(before: &'v [f32], after: &'v [f32], place: &Range<usize>, from: &Range<usize>) -> &'v [f32] {
    let shifted = || Some(from.start.checked_sub(place.end)?..from.end.checked_sub(place.end)?);
    before.get(from.clone()).or_else(|| after.get(shifted()?)).unwrap_or(&[])
}
