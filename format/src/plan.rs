//! The arena plan: where each value of a graph lies, worked out on the host, checked on the device.
//!
//! Values whose lifetimes meet get disjoint places; an operator that may work in place writes over the input that it is
//! the last to read. Larger values are placed first, each at the lowest free offset (greedy by size, as TensorFlow Lite
//! Micro's planner).

#![allow(clippy::indexing_slicing, reason = "indices that this module made")]

use alloc::vec;
use alloc::vec::Vec;

use crate::base::{ALIGN, ValueInfo};
use crate::graph::{Op, Shape, ValueId};

/// Values that share memory, and when it is in use.
struct Buffer {
    first: u16,
    last: u16,
    bytes: u32,
    offset: u32,
}

/// Places the values of `ops`, whose shapes are `shapes`, for passes of `tokens` rows. `kept` values stay until the
/// caller has read them. Returns the value directory and the bytes of the value region.
pub fn plan(ops: &[Op], shapes: &[Shape], tokens: u32, kept: &[ValueId]) -> (Vec<ValueInfo>, u32) {
    let mut values: Vec<ValueInfo> = shapes
        .iter()
        .zip(0u16..)
        .map(|(shape, index)| ValueInfo { offset: 0, width: shape.width, last_use: index, rows: shape.rows })
        .collect();
    for (index, op) in (0u16..).zip(ops) {
        for input in op.inputs().into_iter().flatten() {
            if let Some(value) = values.get_mut(usize::from(input)) {
                value.last_use = index;
            }
        }
    }
    // An id that does not exist is left to the reader to refuse.
    for id in kept {
        if let Some(value) = values.get_mut(usize::from(*id)) {
            value.last_use = u16::MAX;
        }
    }
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut buffer_of = vec![0; values.len()];
    for (index, op) in (0u16..).zip(ops) {
        let value = values[usize::from(index)];
        let reused = op.inputs().into_iter().flatten().find(|input| {
            let before = values[usize::from(*input)];
            op.in_place(*input) && before.last_use == index && before.shape() == value.shape()
        });
        buffer_of[usize::from(index)] = if let Some(input) = reused {
            let buffer = buffer_of[usize::from(input)];
            buffers[buffer].last = value.last_use;
            buffer
        } else {
            let scratch =
                op.scratch(tokens, |id| shapes.get(usize::from(id)).copied().unwrap_or(value.shape()));
            let bytes = value.bytes(tokens).max(scratch.map_or(0, |(_, bytes)| bytes));
            let bytes = bytes.next_multiple_of(ALIGN as u32);
            buffers.push(Buffer { first: index, last: value.last_use, bytes, offset: 0 });
            buffers.len() - 1
        };
    }
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|at| (core::cmp::Reverse(buffers[*at].bytes), *at));
    let mut total = 0;
    for (done, at) in order.iter().enumerate() {
        let (first, last, bytes) = (buffers[*at].first, buffers[*at].last, buffers[*at].bytes);
        let mut taken: Vec<(u32, u32)> = order[..done]
            .iter()
            .map(|other| &buffers[*other])
            .filter(|other| other.first <= last && first <= other.last)
            .map(|other| (other.offset, other.offset + other.bytes))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (start, end) in taken {
            if offset + bytes <= start {
                break;
            }
            offset = offset.max(end);
        }
        buffers[*at].offset = offset;
        total = total.max(offset + bytes);
    }
    for (value, buffer) in values.iter_mut().zip(buffer_of) {
        value.offset = buffers[buffer].offset;
    }
    (values, total)
}
