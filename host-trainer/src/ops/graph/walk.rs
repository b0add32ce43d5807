//! Our own way from the loss back to the variables, over the operators that were recorded.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, TensorId};

use super::super::parallel;
use super::sink::{Pool, Sink};
use super::{Backward, Gradient, HostArgs, with_host};

/// Runs `forward`, which returns a loss of one element, and differentiates it.
///
/// Returns the loss (detached) and the gradients of every [`candle_core::Var`] that it depends on. Frozen tensors get
/// no entry. The result is the same as that of `loss.backward()` up to the rounding of the sums where a value is used more
/// than once, and has the same bits in every run and for any number of threads.
///
/// # Errors
/// Whatever `forward` returns; a tensor library error if the loss has not exactly one element.
pub fn value_and_grad<E: From<candle_core::Error>>(
    forward: impl FnOnce() -> Result<Tensor, E>,
) -> Result<(Tensor, GradStore), E> {
    differentiate(forward).map(|done| (done.loss, done.grads))
}

/// A loss and its gradients, and whether candle's walk could be avoided.
pub(in crate::ops) struct Differentiated {
    pub(in crate::ops) loss: Tensor,
    pub(in crate::ops) grads: GradStore,
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests ask which way was taken"))]
    pub(in crate::ops) own_walk: bool,
}

/// [`value_and_grad`].
pub(in crate::ops) fn differentiate<E: From<candle_core::Error>>(
    forward: impl FnOnce() -> Result<Tensor, E>,
) -> Result<Differentiated, E> {
    let (tracked, records) = record(forward);
    let tracked = tracked?;
    if tracked.elem_count() != 1 {
        let found = tracked.shape().clone();
        return Err(
            candle_core::Error::Msg(format!("the loss has shape {found:?}, expected one element")).into()
        );
    }
    let loss = tracked.detach();
    let recorded: HashSet<TensorId> = records.iter().map(|record| record.output.id()).collect();
    let own_walk =
        tracked.sorted_nodes().iter().all(|node| node.is_variable() || recorded.contains(&node.id()));
    let grads = if own_walk {
        let root = tracked.id();
        let on_host = tracked.device().is_cpu();
        // The records are the last owners now, so that the walk can free what it has passed.
        drop(tracked);
        if on_host {
            Pool::with_kept(|pool| walk(root, records, pool))?
        } else {
            walk_on_device(root, loss.ones_like()?, records)?
        }
    } else {
        drop(records);
        tracked.backward()?
    };
    Ok(Differentiated { loss, grads, own_walk })
}

/// One operator that ran while a recording was on.
struct Record {
    inputs: Vec<Tensor>,
    output: Tensor,
    op: Arc<dyn Backward>,
}

thread_local! {
    static RECORDS: RefCell<Option<Vec<Record>>> = const { RefCell::new(None) };
}

/// Records an operator that has just run, if a recording is on.
pub(super) fn remember(inputs: &[&Tensor], output: &Tensor, op: Arc<dyn Backward>) {
    RECORDS.with_borrow_mut(|records| {
        if let Some(records) = records.as_mut() {
            let inputs = inputs.iter().map(|&input| input.clone()).collect();
            records.push(Record { inputs, output: output.clone(), op });
        }
    });
}

/// Runs `forward` and returns the operators that ran on this thread meanwhile, in order.
fn record<R>(forward: impl FnOnce() -> R) -> (R, Vec<Record>) {
    /// Gives an outer recording back, after a panic too.
    struct Restore(Option<Vec<Record>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            RECORDS.set(self.0.take());
        }
    }

    let _restore = Restore(RECORDS.replace(Some(Vec::new())));
    let result = forward();
    (result, RECORDS.take().unwrap_or_default())
}

/// Walks the records from the last to the first. Their order is the order in which the operators ran, so every use of a
/// value comes after it, and each sum of gradients has one fixed order.
fn walk(root: TensorId, mut records: Vec<Record>, pool: &Pool) -> candle_core::Result<GradStore> {
    let mut pending: HashMap<TensorId, Vec<f32>> = HashMap::from([(root, vec![1.0])]);
    let mut leaves: Vec<Tensor> = Vec::new();
    while let Some(Record { inputs, output, op }) = records.pop() {
        // An output that the loss does not depend on has no gradient.
        let Some(grad) = pending.remove(&output.id()) else { continue };
        let mut sinks: Vec<Sink> = inputs
            .iter()
            // The second use of the same input in one operator finds no buffer here; both are added below.
            .map(|input| Sink::new(input.track_op(), pending.remove(&input.id()), pool))
            .collect();
        with_host(&inputs, &output, |inputs, output| {
            let mut args = HostArgs { inputs, output, grad: Gradient(Cow::Owned(grad)) };
            op.host(&mut args, &mut sinks);
            pool.put(args.grad.take());
        })?;
        for (input, sink) in inputs.iter().zip(sinks) {
            let Some(buffer) = sink.into_buffer() else { continue };
            match pending.get_mut(&input.id()) {
                Some(sum) => {
                    parallel::add_assign(sum, &buffer);
                    pool.put(Cow::Owned(buffer));
                }
                None => {
                    pending.insert(input.id(), buffer);
                }
            }
            if input.is_variable() && !leaves.iter().any(|leaf| leaf.id() == input.id()) {
                leaves.push(input.clone());
            }
        }
    }
    let mut grads = GradStore::default();
    for leaf in leaves {
        if let Some(grad) = pending.remove(&leaf.id()) {
            grads.insert(&leaf, Tensor::from_vec(grad, leaf.shape(), &Device::Cpu)?);
        }
    }
    Ok(grads)
}

/// The gradients that the operators of `forward` give on a GPU, from that of its result, whatever device it is on: where they are made of
/// candle's operators, a CPU has these too.
#[cfg(test)]
pub(in crate::ops) fn device_gradients(
    forward: impl FnOnce() -> candle_core::Result<Tensor>,
    grad: Tensor,
) -> candle_core::Result<GradStore> {
    let (result, records) = record(forward);
    walk_on_device(result?.id(), grad, records)
}

/// [`walk`] for a loss on a GPU: gradients are tensors there, and an operator gives new ones.
fn walk_on_device(root: TensorId, grad: Tensor, mut records: Vec<Record>) -> candle_core::Result<GradStore> {
    let mut pending: HashMap<TensorId, Tensor> = HashMap::from([(root, grad)]);
    let mut leaves: Vec<Tensor> = Vec::new();
    while let Some(Record { inputs, output, op }) = records.pop() {
        let Some(grad) = pending.remove(&output.id()) else { continue };
        let wanted: Vec<bool> = inputs.iter().map(Tensor::track_op).collect();
        let detached: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
        let grads = op.device(&detached, &grad.contiguous()?, &wanted)?;
        for (input, grad) in inputs.iter().zip(grads) {
            let Some(grad) = grad else { continue };
            let sum = match pending.remove(&input.id()) {
                Some(sum) => sum.add(&grad)?,
                None => grad,
            };
            pending.insert(input.id(), sum);
            if input.is_variable() && !leaves.iter().any(|leaf| leaf.id() == input.id()) {
                leaves.push(input.clone());
            }
        }
    }
    let mut grads = GradStore::default();
    for leaf in leaves {
        if let Some(grad) = pending.remove(&leaf.id()) {
            grads.insert(&leaf, grad);
        }
    }
    Ok(grads)
}
