//! The custom operator through which candle's graph holds one of ours.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Shape, Storage, Tensor,
};

use super::sink::{Pool, Sink};
use super::{Backward, Gradient, HostArgs, Output, with_host, with_values};

/// The custom operator that hands out a result that is already there.
pub(super) struct Adopt {
    output: Mutex<Option<Output>>,
    shape: Shape,
    op: Arc<dyn Backward>,
}

impl Adopt {
    pub(super) fn new(output: Output, shape: Shape, op: Arc<dyn Backward>) -> Self {
        Self { output: Mutex::new(Some(output)), shape, op }
    }

    fn take(&self) -> candle_core::Result<Output> {
        let taken = self.output.lock().map_or(None, |mut output| output.take());
        taken.ok_or_else(|| {
            candle_core::Error::Msg(format!("{}: the forward result was already taken", self.op.name()))
        })
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

    fn backward(
        &self,
        inputs: &[&Tensor],
        res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<Vec<Option<Tensor>>> {
        let wanted: Vec<bool> = inputs.iter().map(|input| input.track_op()).collect();
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.detach()).collect();
        let grad = grad.contiguous()?;
        if !res.device().is_cpu() {
            return self.op.device(&inputs, &grad, &wanted);
        }
        let pool = Pool::default();
        let mut sinks: Vec<Sink> = wanted.iter().map(|&wanted| Sink::new(wanted, None, &pool)).collect();
        with_values(&grad, |grad| {
            with_host(&inputs, res, |inputs, output| {
                self.op
                    .host(&mut HostArgs { inputs, output, grad: Gradient(Cow::Borrowed(grad)) }, &mut sinks);
            })
        })??;
        let tensors = sinks.into_iter().zip(&inputs).map(|(sink, input)| {
            sink.into_buffer().map(|values| Tensor::from_vec(values, input.shape(), &Device::Cpu)).transpose()
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
