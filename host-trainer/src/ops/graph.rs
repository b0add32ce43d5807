//! Nodes of the differentiation graph: how a finished forward result and a hand-written backward become a tensor.
//!
//! An operator computes its output first and then calls [`node`], which hangs the output into candle's graph as a custom
//! operator whose `bwd` calls the operator's [`Backward`]. So `loss.backward()` works as with any candle tensor.
//! [`value_and_grad`] is the faster way: it walks the recorded nodes itself, lets each operator add into the gradient
//! that is already there, and frees activations on the way, where candle fills zeros and adds two tensors for each edge.
//! It falls back on candle's own walk as soon as one tensor of the loss was made by something else than these operators.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::{CpuStorage, Device, Layout, Shape, Storage, Tensor};

use adopt::Adopt;
pub(super) use sink::Sink;
pub use walk::value_and_grad;
#[cfg(test)]
pub(super) use walk::{device_gradients, differentiate};

mod adopt;
mod sink;
mod walk;

/// The backward half of an operator with up to three differentiable inputs.
pub(super) trait Backward: Send + Sync + 'static {
    /// Name for error messages.
    fn name(&self) -> &'static str;

    /// Adds the gradients of the wanted inputs to their sinks. All slices are contiguous. An operator whose outputs are
    /// on the CPU has this one.
    fn host(&self, _args: &mut HostArgs<'_>, _sinks: &mut [Sink<'_>]) {
        unreachable!("{}: its outputs are on a GPU", self.name())
    }

    /// The gradients on another device than the CPU, from detached tensors and a contiguous gradient; `None` where none
    /// is wanted. Each has the type of its input.
    fn device(
        &self,
        _inputs: &[Tensor],
        _grad: &Tensor,
        _wanted: &[bool],
    ) -> candle_core::Result<Vec<Option<Tensor>>> {
        Err(candle_core::Error::BackwardNotSupported { op: self.name() })
    }
}

/// What a backward on the CPU reads.
pub(super) struct HostArgs<'a> {
    /// The inputs of the forward, in order.
    pub(super) inputs: &'a [&'a [f32]],
    /// The result of the forward.
    pub(super) output: &'a [f32],
    /// The gradient of the loss for `output`.
    pub(super) grad: Gradient<'a>,
}

/// The gradient that a backward starts from.
pub(super) struct Gradient<'a>(Cow<'a, [f32]>);

impl<'a> Gradient<'a> {
    /// Gives it away; what is left is empty.
    pub(super) fn take(&mut self) -> Cow<'a, [f32]> {
        std::mem::take(&mut self.0)
    }
}

impl std::ops::Deref for Gradient<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

/// A forward result.
pub(super) enum Output {
    /// On the CPU.
    Host(Vec<f32>),
    /// On another device; detached.
    Device(Tensor),
}

/// Makes a tensor from a forward result; if an input takes part in differentiation, so does the result.
///
/// At most three inputs. `op` is built only when it is needed.
pub(super) fn node<B: Backward>(
    inputs: &[&Tensor],
    output: Output,
    shape: impl Into<Shape>,
    op: impl FnOnce() -> B,
) -> candle_core::Result<Tensor> {
    let shape = shape.into();
    if !inputs.iter().any(|input| input.track_op()) {
        return match output {
            Output::Host(values) => Tensor::from_vec(values, shape, &Device::Cpu),
            Output::Device(tensor) => Ok(tensor),
        };
    }
    let op: Arc<dyn Backward> = Arc::new(op());
    let adopt = Adopt::new(output, shape, op.clone());
    let result = match *inputs {
        [a] => a.apply_op1(adopt),
        [a, b] => a.apply_op2(b, adopt),
        [a, b, c] => a.apply_op3(b, c, adopt),
        _ => unreachable!("an operator has one to three differentiable inputs"),
    }?;
    walk::remember(inputs, &result, op);
    Ok(result)
}

/// Lends the values of contiguous f32 tensors on the CPU.
pub(super) fn with_host<R>(
    inputs: &[Tensor],
    output: &Tensor,
    f: impl FnOnce(&[&[f32]], &[f32]) -> R,
) -> candle_core::Result<R> {
    let guards: Vec<_> = inputs.iter().map(Tensor::storage_and_layout).collect();
    let slices = guards
        .iter()
        .map(|(storage, layout)| host_slice(storage, layout))
        .collect::<candle_core::Result<Vec<_>>>()?;
    let (storage, layout) = output.storage_and_layout();
    let output = host_slice(&storage, layout)?;
    Ok(f(&slices, output))
}

/// Lends the values of one contiguous f32 tensor on the CPU.
pub(super) fn with_values<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> candle_core::Result<R> {
    let (storage, layout) = x.storage_and_layout();
    Ok(f(host_slice(&storage, layout)?))
}

fn host_slice<'a>(storage: &'a Storage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(&values[start..end]),
        (Storage::Cpu(CpuStorage::F32(_)), None) => Err(candle_core::Error::Msg(format!(
            "a tensor of shape {:?} has strides {:?}, expected a contiguous one",
            layout.shape(),
            layout.stride()
        ))),
        (other, _) => Err(candle_core::Error::Msg(format!(
            "a tensor is {:?} on {:?}, expected F32 on the CPU",
            other.dtype(),
            other.device().location()
        ))),
    }
}
