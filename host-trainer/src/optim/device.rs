//! AdamW on a GPU: gradients, moments and parameters stay there, and all parameters are one launch.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor};

use super::{Moments, Param, Update};
use crate::ops::cuda::kernels::{Arg, Work, int, launch, pointer, unwritten};

/// Values of one chunk, as the kernels have it.
const CHUNK: usize = 2048;

/// The moments of all parameters, one behind the other in the order of the names.
#[derive(Debug)]
pub(super) struct OnDevice {
    device: Device,
    /// [values of all parameters].
    m: Tensor,
    /// [values of all parameters].
    v: Tensor,
    /// Parameter and number of each chunk, [n_chunks, 2].
    chunks: Tensor,
    n_chunks: usize,
}

impl OnDevice {
    /// Zero moments, or saved ones.
    pub(super) fn new(
        params: &BTreeMap<String, Param>,
        moments: &BTreeMap<String, Moments>,
        device: &Device,
    ) -> Result<Self> {
        let joined = |part: fn(&Moments) -> &Vec<f32>| {
            let all: Vec<f32> = moments.values().flat_map(|moments| part(moments).iter().copied()).collect();
            let count = all.len();
            Tensor::from_vec(all, count, device)
        };
        let chunks = (0u32..).zip(params.values()).flat_map(|(parameter, param)| {
            let count = param.var.elem_count().div_ceil(CHUNK) as u32;
            (0..count).flat_map(move |chunk| [parameter, chunk])
        });
        let chunks: Vec<u32> = chunks.collect();
        let n_chunks = chunks.len() / 2;
        Ok(Self {
            device: device.clone(),
            m: joined(|moments| &moments.m)?,
            v: joined(|moments| &moments.v)?,
            chunks: Tensor::from_vec(chunks, (n_chunks, 2), device)?,
            n_chunks,
        })
    }

    /// The moments by name, copied to the host.
    pub(super) fn moments(&self, params: &BTreeMap<String, Param>) -> Result<BTreeMap<String, Moments>> {
        let (m, v): (Vec<f32>, Vec<f32>) = (self.m.to_vec1()?, self.v.to_vec1()?);
        let mut start = 0;
        let split = params.iter().map(|(name, param)| {
            let range = start..start + param.var.elem_count();
            start = range.end;
            (name.clone(), Moments { m: m[range.clone()].to_vec(), v: v[range].to_vec() })
        });
        Ok(split.collect())
    }

    /// The kernels' table of parameters; `rates` are the rate and the rest after decay of each.
    fn table(
        &self,
        params: &BTreeMap<String, Param>,
        grads: &[Tensor],
        rates: impl Iterator<Item = (f32, f32)>,
    ) -> Result<Tensor> {
        let mut words: Vec<i64> = Vec::with_capacity(5 * grads.len());
        let mut start = 0;
        for ((param, grad), (rate, keep)) in params.values().zip(grads).zip(rates) {
            let count = param.var.elem_count() as i64;
            for tensor in [param.var.as_tensor(), grad] {
                let Arg::Pointer(at) = pointer(tensor)? else { unreachable!("`pointer` gives pointers") };
                words.push(at.cast_signed());
            }
            let rates = u64::from(rate.to_bits()) | u64::from(keep.to_bits()) << 32;
            words.extend([start, count, rates.cast_signed()]);
            start += count;
        }
        Tensor::from_vec(words, (grads.len(), 5), &self.device)
    }

    /// Sum of the squares of all gradients, which are contiguous.
    pub(super) fn square(&self, params: &BTreeMap<String, Param>, grads: &[Tensor]) -> Result<f64> {
        let table = self.table(params, grads, std::iter::repeat((0.0, 1.0)))?;
        let squares = unwritten(self.n_chunks, DType::F32, &self.device)?;
        let args = [pointer(&table)?, pointer(&self.chunks)?, pointer(&squares)?, int(self.n_chunks)?];
        launch(&self.device, "adamw_squares", Work::Rows(self.n_chunks), &args)?;
        Ok(squares.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
    }

    /// One step of every parameter; `updates` has the numbers of each, of which all but the rates are the same.
    pub(super) fn update(
        &self,
        params: &BTreeMap<String, Param>,
        grads: &[Tensor],
        updates: &[Update],
    ) -> Result<()> {
        let Some(&Update { clip, beta1, beta2, root, eps, .. }) = updates.first() else { return Ok(()) };
        let rates = updates.iter().map(|update| (update.rate, update.keep));
        let table = self.table(params, grads, rates)?;
        let args = [
            pointer(&table)?,
            pointer(&self.chunks)?,
            pointer(&self.m)?,
            pointer(&self.v)?,
            int(self.n_chunks)?,
            Arg::Float(clip),
            Arg::Float(beta1),
            Arg::Float(beta2),
            Arg::Float(root),
            Arg::Float(eps),
        ];
        launch(&self.device, "adamw_update", Work::Rows(self.n_chunks), &args)
    }
}
