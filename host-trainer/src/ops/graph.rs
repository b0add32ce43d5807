//! Nodes of the differentiation graph: how a finished forward result and a hand-written backward become a tensor.
//!
//! An operator computes its output first and then calls [`node`], which hangs the output into candle's graph as a custom
//! operator whose `bwd` calls the operator's [`Backward`]. So `loss.backward()` works as with any candle tensor.
//! [`value_and_grad`] is the faster way: it walks the recorded nodes itself, lets each operator add into the gradient
//! that is already there, and frees activations on the way, where candle fills zeros and adds two tensors for each edge.
//! It falls back on candle's own walk as soon as one tensor of the loss was made by something else than these operators.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Shape, Storage, Tensor, TensorId};

/// The backward half of an operator with up to three differentiable inputs.
pub(super) trait Backward: Send + Sync + 'static {
    /// Name for error messages.
    fn name(&self) -> &'static str;

    /// Adds the gradients of the wanted inputs to their sinks. All slices are contiguous.
    fn host(&self, args: &mut HostArgs<'_>, sinks: &mut [Sink<'_>]);

    /// The gradients on another device than the CPU, from detached tensors; `None` where none is wanted.
    fn device(&self, _inputs: &[Tensor], _grad: &Tensor, _wanted: &[bool]) -> candle_core::Result<Vec<Option<Tensor>>> {
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

/// Where the gradient of one input goes.
pub(super) struct Sink<'p> {
    wanted: bool,
    buffer: Option<Vec<f32>>,
    pool: &'p Pool,
}

impl Sink<'_> {
    /// Whether anything needs this gradient.
    pub(super) fn wanted(&self) -> bool {
        self.wanted
    }

    /// Lets `write` produce the gradient, if it is wanted. The flag says whether the buffer already holds a gradient
    /// that must be added to; if not, its content is unspecified and must be overwritten everywhere.
    pub(super) fn write(&mut self, len: usize, write: impl FnOnce(&mut [f32], bool)) {
        if let Some((buffer, accumulate)) = self.buffer(len) {
            write(buffer, accumulate);
        }
    }

    /// What [`Sink::write`] gives, for operators that fill two sinks in one pass.
    pub(super) fn buffer(&mut self, len: usize) -> Option<(&mut [f32], bool)> {
        if !self.wanted {
            return None;
        }
        let accumulate = self.buffer.is_some();
        Some((self.buffer.get_or_insert_with(|| self.pool.take(len)), accumulate))
    }

    /// The output's gradient is this input's gradient. Pass it to the last input with `args.grad.take()`: that copies nothing.
    pub(super) fn pass(&mut self, grad: Cow<'_, [f32]>) {
        match (&mut self.buffer, self.wanted) {
            (_, false) => self.pool.put(grad),
            (Some(buffer), true) => {
                super::parallel::add_assign(buffer, &grad);
                self.pool.put(grad);
            }
            (None, true) => self.buffer = Some(grad.into_owned()),
        }
    }
}

/// Gradients that were used up, for the next ones of the same length: a step needs the same few lengths all the time.
#[derive(Default)]
pub(super) struct Pool {
    free: RefCell<BTreeMap<usize, Vec<Vec<f32>>>>,
}

impl Pool {
    /// A buffer with unspecified content.
    fn take(&self, len: usize) -> Vec<f32> {
        let recycled = self.free.borrow_mut().get_mut(&len).and_then(Vec::pop);
        recycled.unwrap_or_else(|| vec![0.0; len])
    }

    fn put(&self, buffer: Cow<'_, [f32]>) {
        if let Cow::Owned(buffer) = buffer
            && !buffer.is_empty()
        {
            self.free.borrow_mut().entry(buffer.len()).or_default().push(buffer);
        }
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
    let on_host = matches!(output, Output::Host(_));
    let op: Arc<dyn Backward> = Arc::new(op());
    let adopt = Adopt { output: Mutex::new(Some(output)), shape, op: op.clone() };
    let result = match *inputs {
        [a] => a.apply_op1(adopt),
        [a, b] => a.apply_op2(b, adopt),
        [a, b, c] => a.apply_op3(b, c, adopt),
        _ => unreachable!("an operator has one to three differentiable inputs"),
    }?;
    if on_host {
        RECORDS.with_borrow_mut(|records| {
            if let Some(records) = records.as_mut() {
                let inputs = inputs.iter().map(|&input| input.clone()).collect();
                records.push(Record { inputs, output: result.clone(), op });
            }
        });
    }
    Ok(result)
}

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
pub(super) struct Differentiated {
    pub(super) loss: Tensor,
    pub(super) grads: GradStore,
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests ask which way was taken"))]
    pub(super) own_walk: bool,
}

/// [`value_and_grad`].
pub(super) fn differentiate<E: From<candle_core::Error>>(
    forward: impl FnOnce() -> Result<Tensor, E>,
) -> Result<Differentiated, E> {
    super::memory::keep_freed_pages();
    let recording = Recording::start();
    let tracked = forward()?;
    let records = recording.finish();
    if tracked.elem_count() != 1 {
        let found = tracked.shape().clone();
        return Err(candle_core::Error::Msg(format!("the loss has shape {found:?}, expected one element")).into());
    }
    let loss = tracked.detach();
    let recorded: HashSet<TensorId> = records.iter().map(|record| record.output.id()).collect();
    let own_walk = tracked.sorted_nodes().iter().all(|node| node.is_variable() || recorded.contains(&node.id()));
    let grads = if own_walk {
        let root = tracked.id();
        // The records are the last owners now, so that the walk can free what it has passed.
        drop(tracked);
        walk(root, records)?
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

/// Switches the recording of this thread on; the end of its life restores what was there before.
struct Recording {
    outer: Option<Vec<Record>>,
}

impl Recording {
    fn start() -> Self {
        Self { outer: RECORDS.replace(Some(Vec::new())) }
    }

    fn finish(self) -> Vec<Record> {
        RECORDS.with_borrow_mut(Option::take).unwrap_or_default()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDS.set(self.outer.take());
    }
}

/// Walks the records from the last to the first. Their order is the order in which the operators ran, so every use of a
/// value comes after it, and each sum of gradients has one fixed order.
fn walk(root: TensorId, mut records: Vec<Record>) -> candle_core::Result<GradStore> {
    let mut pending: HashMap<TensorId, Vec<f32>> = HashMap::from([(root, vec![1.0])]);
    let mut leaves: Vec<Tensor> = Vec::new();
    let pool = Pool::default();
    while let Some(Record { inputs, output, op }) = records.pop() {
        // An output that the loss does not depend on has no gradient.
        let Some(grad) = pending.remove(&output.id()) else { continue };
        let mut sinks: Vec<Sink> = inputs
            .iter()
            .map(|input| Sink {
                wanted: input.track_op(),
                // The second use of the same input in one operator finds nothing here; both are added below.
                buffer: pending.remove(&input.id()),
                pool: &pool,
            })
            .collect();
        with_host(&inputs, &output, |inputs, output| {
            let mut args = HostArgs { inputs, output, grad: Gradient(Cow::Owned(grad)) };
            op.host(&mut args, &mut sinks);
            pool.put(args.grad.take());
        })?;
        for (input, sink) in inputs.iter().zip(sinks) {
            let Some(buffer) = sink.buffer else { continue };
            match pending.get_mut(&input.id()) {
                Some(sum) => {
                    super::parallel::add_assign(sum, &buffer);
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

/// Lends the values of contiguous f32 tensors on the CPU.
pub(super) fn with_host<R>(
    inputs: &[Tensor],
    output: &Tensor,
    f: impl FnOnce(&[&[f32]], &[f32]) -> R,
) -> candle_core::Result<R> {
    let guards: Vec<_> = inputs.iter().map(Tensor::storage_and_layout).collect();
    let slices =
        guards.iter().map(|(storage, layout)| host_slice(storage, layout)).collect::<candle_core::Result<Vec<_>>>()?;
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

/// The custom operator that hands out a result that is already there.
struct Adopt {
    output: Mutex<Option<Output>>,
    shape: Shape,
    op: Arc<dyn Backward>,
}

impl Adopt {
    fn take(&self) -> candle_core::Result<Output> {
        let taken = self.output.lock().map_or(None, |mut output| output.take());
        taken.ok_or_else(|| candle_core::Error::Msg(format!("{}: the forward result was already taken", self.op.name())))
    }

    fn cpu(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        match self.take()? {
            Output::Host(values) => Ok((CpuStorage::F32(values), self.shape.clone())),
            Output::Device(_) => Err(self.wrong_device()),
        }
    }

    fn cuda(&self) -> candle_core::Result<(CudaStorage, Shape)> {
        let Output::Device(tensor) = self.take()? else { return Err(self.wrong_device()) };
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, self.shape.clone())),
            _ => Err(self.wrong_device()),
        }
    }

    fn wrong_device(&self) -> candle_core::Error {
        candle_core::Error::Msg(format!("{}: inputs are on different devices, expected one", self.op.name()))
    }

    fn backward(&self, inputs: &[&Tensor], res: &Tensor, grad: &Tensor) -> candle_core::Result<Vec<Option<Tensor>>> {
        let wanted: Vec<bool> = inputs.iter().map(|input| input.track_op()).collect();
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.detach()).collect();
        let grad = grad.contiguous()?;
        if !res.device().is_cpu() {
            return self.op.device(&inputs, &grad, &wanted);
        }
        let pool = Pool::default();
        let mut sinks: Vec<Sink> = wanted.iter().map(|&wanted| Sink { wanted, buffer: None, pool: &pool }).collect();
        with_values(&grad, |grad| {
            with_host(&inputs, res, |inputs, output| {
                self.op.host(&mut HostArgs { inputs, output, grad: Gradient(Cow::Borrowed(grad)) }, &mut sinks);
            })
        })??;
        let tensors = sinks.into_iter().zip(&inputs).map(|(sink, input)| {
            sink.buffer.map(|values| Tensor::from_vec(values, input.shape(), &Device::Cpu)).transpose()
        });
        tensors.collect()
    }
}

impl CustomOp1 for Adopt {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, a: &Tensor, res: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let mut grads = self.backward(&[a], res, grad)?.into_iter();
        Ok(grads.next().flatten())
    }
}

impl CustomOp2 for Adopt {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.backward(&[a, b], res, grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten()))
    }
}

impl CustomOp3 for Adopt {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut grads = self.backward(&[a, b, c], res, grad)?.into_iter();
        Ok((grads.next().flatten(), grads.next().flatten(), grads.next().flatten()))
    }
}
