//! Buffers of gradients: an operator adds to what is there, and buffers are used again.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;

use super::super::parallel::add_assign;

/// Where the gradient of one input goes.
pub(in crate::ops) struct Sink<'p> {
    wanted: bool,
    buffer: Option<Vec<f32>>,
    pool: &'p Pool,
}

impl<'p> Sink<'p> {
    /// A sink that holds a gradient already, or none.
    pub(super) fn new(wanted: bool, buffer: Option<Vec<f32>>, pool: &'p Pool) -> Self {
        Self { wanted, buffer, pool }
    }

    /// The gradient that it has now.
    pub(super) fn into_buffer(self) -> Option<Vec<f32>> {
        self.buffer
    }

    /// Whether anything needs this gradient.
    pub(in crate::ops) fn wanted(&self) -> bool {
        self.wanted
    }

    /// Lets `write` produce the gradient, if it is wanted. The flag says whether the buffer already holds a gradient
    /// that must be added to; if not, its content is unspecified and must be overwritten everywhere.
    pub(in crate::ops) fn write(&mut self, len: usize, write: impl FnOnce(&mut [f32], bool)) {
        if let Some((buffer, accumulate)) = self.buffer(len) {
            write(buffer, accumulate);
        }
    }

    /// What [`Sink::write`] gives, for operators that fill two sinks in one pass.
    pub(in crate::ops) fn buffer(&mut self, len: usize) -> Option<(&mut [f32], bool)> {
        if !self.wanted {
            return None;
        }
        let accumulate = self.buffer.is_some();
        Some((self.buffer.get_or_insert_with(|| self.pool.take(len)), accumulate))
    }

    /// The output's gradient is this input's gradient. The last input gets `args.grad.take()`: that copies nothing.
    pub(in crate::ops) fn pass(&mut self, grad: Cow<'_, [f32]>) {
        match (&mut self.buffer, self.wanted) {
            (_, false) => self.pool.put(grad),
            (Some(buffer), true) => {
                add_assign(buffer, &grad);
                self.pool.put(grad);
            }
            (None, true) => self.buffer = Some(grad.into_owned()),
        }
    }
}

/// Gradients that were used up, for the next ones of the same length: a step needs the same few lengths all the time.
///
/// A pool outlives the step. Besides the buffers themselves this saves the activations of the next step their pages: a C
/// library returns the top of its heap to the system, and the pool's buffers, made last, are what is at the top.
#[derive(Default)]
pub(super) struct Pool {
    free: RefCell<BTreeMap<usize, Shelf>>,
}

/// The free buffers of one length.
#[derive(Default)]
struct Shelf {
    buffers: Vec<Vec<f32>>,
    /// Whether the current step has used this length.
    used: bool,
}

thread_local! {
    static KEPT: RefCell<Pool> = RefCell::default();
}

impl Pool {
    /// Runs one step with the pool that this thread keeps. Lengths that the step did not use are dropped after it.
    pub(super) fn with_kept<R>(step: impl FnOnce(&Pool) -> R) -> R {
        let pool = KEPT.take();
        let result = step(&pool);
        let mut shelves = pool.free.into_inner();
        shelves.retain(|_, shelf| std::mem::take(&mut shelf.used));
        KEPT.set(Pool { free: RefCell::new(shelves) });
        result
    }

    /// A buffer with unspecified content.
    fn take(&self, len: usize) -> Vec<f32> {
        let mut free = self.free.borrow_mut();
        let shelf = free.entry(len).or_default();
        shelf.used = true;
        shelf.buffers.pop().unwrap_or_else(|| vec![0.0; len])
    }

    /// Gives a buffer back, unless it is borrowed.
    pub(super) fn put(&self, buffer: Cow<'_, [f32]>) {
        if let Cow::Owned(buffer) = buffer
            && !buffer.is_empty()
        {
            self.free.borrow_mut().entry(buffer.len()).or_default().buffers.push(buffer);
        }
    }
}
