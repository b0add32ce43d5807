//! From a float network to a base image: quantization, and memory in which an image may be read.
//!
//! Every matrix becomes int8 codes with one scale per row ([`crate::quant::quantize_rows`]); everything else stays as it
//! is. This module does not know which model it quantizes.

use std::path::Path;

use rankpatch_format::base::Base;
use rankpatch_format::graph::TensorShape;
use rankpatch_format::layout::Layout;
use rankpatch_format::write::{Network, Tensor};

use crate::quant::quantize_rows;
use crate::{Error, Result};

/// The network with every float matrix quantized; what is quantized already stays.
///
/// # Errors
/// [`Error::Quant`] with the tensor's name if a value is not finite.
pub fn quantize(network: &Network) -> Result<Network> {
    let names = network.tensor_names.iter().map(Some).chain(std::iter::repeat(None));
    let tensors = network.tensors.iter().zip(names).enumerate().map(|(id, (tensor, name))| {
        let Tensor::Matrix { rows, cols, data } = tensor else { return Ok(tensor.clone()) };
        let (codes, scales) = quantize_rows(data, *rows as usize, *cols as usize).map_err(|source| {
            let tensor = name.map_or_else(|| format!("tensor.{id}"), Clone::clone);
            Error::Quant { tensor, source }
        })?;
        Ok(Tensor::Codes { rows: *rows, cols: *cols, codes, scales })
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
