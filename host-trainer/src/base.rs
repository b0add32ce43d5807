//! From a float network to a base image: quantization, and memory in which an image may be read.
//!
//! Every matrix becomes int8 codes with one scale per row ([`crate::quant::quantize_rows`]). In an encoder that devices run, row
//! scales and the numbers beside the matrices become halves, which its image then holds in half the bytes: it reads each of them once
//! for all rows of a pass. A decoder would turn them into f32 again with every token, so its numbers stay as they are. This module does not
//! know which model it quantizes.

use std::path::Path;

use half::f16;
use rankpatch_format::base::Base;
use rankpatch_format::graph::TensorShape;
use rankpatch_format::layout::Layout;
use rankpatch_format::write::{Network, Tensor};

use crate::quant::{QuantError, quantize_head, quantize_rows};
use crate::{Error, Result};

/// The network with every float matrix quantized; what is quantized already stays. Where all of an encoder's matrices are, its numbers stay too.
///
/// # Errors
/// [`Error::Quant`] with the tensor's name if a value is not finite.
pub fn quantize(network: &Network) -> Result<Network> {
    let in_float = network.tensors.iter().any(|tensor| matches!(tensor, Tensor::Matrix { .. }));
    let halves = in_float && !network.streaming() && network.check_operators().is_ok();
    let names = network.tensor_names.iter().map(Some).chain(std::iter::repeat(None));
    let tensors = network.tensors.iter().zip(network.halvable()).zip(names).enumerate();
    let tensors = tensors.map(|(id, ((tensor, halvable), name))| match tensor {
        Tensor::Matrix { rows, cols, data } => {
            let (codes, scales) =
                quantize_matrix(data, [*rows, *cols], halves && halvable).map_err(|source| {
                    let tensor = name.map_or_else(|| format!("tensor.{id}"), Clone::clone);
                    Error::Quant { tensor, source }
                })?;
            Ok(Tensor::Codes { rows: *rows, cols: *cols, codes, scales })
        }
        Tensor::Floats { rows, cols, data } if halves && halvable => {
            Ok(Tensor::Floats { rows: *rows, cols: *cols, data: to_halves(data) })
        }
        tensor => Ok(tensor.clone()),
    });
    Ok(Network {
        tensors: tensors.collect::<Result<_>>()?,
        // All but the tensors, which may be large.
        name: network.name.clone(),
        ops: network.ops.clone(),
        tensor_names: network.tensor_names.clone(),
        site_names: network.site_names.clone(),
        labels: network.labels.clone(),
        vocabulary: network.vocabulary.clone(),
        output: network.output,
        features: network.features,
        max_rows: network.max_rows,
    })
}

/// Halves below this are no longer within 1 % of each other.
const COARSE: f32 = 1.0 / 131_072.0;

/// Codes and row scales. The scales are halves, rounded up, if they are to be and none of them is so small that this would coarsen its row.
fn quantize_matrix(
    w: &[f32],
    [rows, cols]: [u32; 2],
    halves: bool,
) -> std::result::Result<(Vec<i8>, Vec<f32>), QuantError> {
    let (rows, cols) = (rows as usize, cols as usize);
    let (codes, scales) = quantize_rows(w, rows, cols)?;
    if halves
        && scales.iter().all(|scale| *scale >= COARSE)
        && let Ok(rounded) = quantize_head(w, rows, cols)
    {
        return Ok((rounded.codes, rounded.scales.iter().map(|scale| scale.to_f32()).collect()));
    }
    Ok((codes, scales))
}

/// The nearest halves; as they are if one of them is too large for a half.
fn to_halves(numbers: &[f32]) -> Vec<f32> {
    let halves: Vec<f32> = numbers.iter().map(|number| f16::from_f32(*number).to_f32()).collect();
    if halves.iter().all(|half| half.is_finite()) { halves } else { numbers.to_vec() }
}

/// Bytes of a tensor in an image.
fn image_bytes(shape: TensorShape) -> u64 {
    let (rows, elements) = (u64::from(shape.rows), u64::from(shape.rows) * u64::from(shape.cols));
    if shape.quantized { elements + 4 * rows } else { 4 * elements }
}

/// A base image in memory that is aligned as reading it in place needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    words: Vec<u128>,
    len: usize,
}

const _: () =
    assert!(align_of::<u128>() >= rankpatch_format::base::ALIGN, "a word is as aligned as an image");

impl Image {
    /// A copy of `bytes`, unchecked.
    pub fn new(bytes: &[u8]) -> Self {
        let mut words = vec![0; bytes.len().div_ceil(size_of::<u128>())];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { words, len: bytes.len() }
    }

    /// Quantizes a network if need be and writes its image. See [`Network::write`].
    ///
    /// # Errors
    /// As [`quantize`] and [`Network::write`]; [`Error::Batch`] for weights that offsets of 32 bits cannot reach.
    pub fn build(network: &Network, layout: Layout, pass_rows: u32) -> Result<Self> {
        let bytes: u64 = network.tensors.iter().map(|tensor| image_bytes(tensor.shape())).sum();
        // A sixteenth is left for layouts that fill rows up, and for the manifest.
        if bytes > u64::from(u32::MAX) / 16 * 15 {
            let expected = "less than 4 GiB of int8 weights".into();
            return Err(Error::Batch { what: "base image", expected, found: format!("{bytes} bytes") });
        }
        Ok(Self::new(&quantize(network)?.write(layout, pass_rows)?))
    }

    /// The file at `path`, unchecked.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self::new(&std::fs::read(path).map_err(Error::io(path))?))
    }

    /// The bytes, at an address that is a multiple of [`rankpatch_format::base::ALIGN`].
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    /// The base in the image, checked.
    ///
    /// # Errors
    /// As [`Base::new`].
    pub fn base(&self) -> Result<Base<'_>> {
        Ok(Base::new(self.bytes())?)
    }
}
