//! The biases that an adapter puts in the place of the base's: which vectors of the graph they replace, and their numbers in
//! place. How a sum is formed with them it does not know.

use super::{Method, PAYLOAD_ALIGN};
use crate::base::Base;
use crate::graph::{Ops, TensorId};
use crate::read::Reader;
use crate::{Error, Result, What};

/// A bias entry as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BiasEntry {
    /// The tensor of the base that is replaced.
    pub tensor: TensorId,
    /// Its length.
    pub len: u32,
}

/// Decodes bias entries one after the other.
#[derive(Debug, Clone, Copy)]
pub struct BiasEntries<'a>(pub &'a [u8]);

impl<'a> BiasEntries<'a> {
    /// The entries of a method; none if it has no biases.
    pub fn of(method: Method<'a>) -> Self {
        match method {
            Method::LoraInt8 => Self(&[]),
            Method::LoraInt8Biases(entries) => Self(entries),
        }
    }

    /// The next entry, or `None` at the end.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the bytes are no entry.
    pub fn try_next(&mut self) -> Result<Option<BiasEntry>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let mut reader = Reader(self.0);
        let (Some(tensor), Some(len)) = (reader.u16(), reader.u32()) else {
            return Err(Error::Malformed { what: What::BiasEntry });
        };
        self.0 = reader.0;
        Ok(Some(BiasEntry { tensor, len }))
    }

    /// Bytes that the numbers take in the payload, filled up to a multiple of 16.
    pub fn payload_bytes(mut self) -> usize {
        let mut len = 0usize;
        while let Ok(Some(entry)) = self.try_next() {
            len = len.saturating_add(entry.len as usize);
        }
        len.saturating_mul(4).checked_next_multiple_of(PAYLOAD_ALIGN).unwrap_or(usize::MAX)
    }
}

/// The biases of a checked adapter, and a walk over them that needs no memory.
#[derive(Debug, Clone, Copy)]
pub struct Biases<'a> {
    entries: BiasEntries<'a>,
    values: &'a [f32],
    /// What is behind the last tensor that was asked for.
    left: (BiasEntries<'a>, &'a [f32]),
    last: TensorId,
}

impl<'a> Biases<'a> {
    /// No biases.
    pub const EMPTY: Self = Self::new(BiasEntries(&[]), &[]);

    const fn new(entries: BiasEntries<'a>, values: &'a [f32]) -> Self {
        Self { entries, values, left: (entries, values), last: 0 }
    }

    /// The biases that begin a checked payload.
    pub(super) fn of_payload(entries: BiasEntries<'a>, payload: &'a [u8]) -> Self {
        let bytes = payload.get(..entries.payload_bytes()).unwrap_or(&[]);
        // Zeros may follow the last one.
        Self::new(entries, bytemuck::try_cast_slice(bytes).unwrap_or(&[]))
    }

    /// Checks the entries of `method` and splits their numbers off the payload, which they begin.
    pub(crate) fn check(method: Method<'a>, payload: &'a [u8], base: &Base<'_>) -> Result<(Self, &'a [u8])> {
        let Method::LoraInt8Biases(entries) = method else { return Ok((Self::EMPTY, payload)) };
        let entries = BiasEntries(entries);
        let (mut left, mut previous, mut len) = (entries, None, 0usize);
        let mut ops = base.ops();
        while let Some(BiasEntry { tensor, len: found }) = left.try_next()? {
            if let Some(previous) = previous.filter(|previous| *previous >= tensor) {
                return Err(Error::BiasesOutOfOrder { previous, found: tensor });
            }
            previous = Some(tensor);
            // Tensors are numbered along the graph as a rule; where they are not, it is walked again.
            let adds = |ops: &mut Ops<'_>| ops.any(|(_, op)| op.bias() == Some(tensor));
            if !adds(&mut ops) {
                ops = base.ops();
                if !adds(&mut ops) {
                    return Err(Error::UnknownBias { tensor });
                }
            }
            let expected = base.floats(tensor).len() as u32;
            if found != expected {
                return Err(Error::ShapeMismatch { what: What::BiasLength, op: tensor, expected, found });
            }
            len = len.saturating_add(found as usize);
        }
        if previous.is_none() {
            return Err(Error::Malformed { what: What::BiasEntry });
        }
        let bytes = len.saturating_mul(4);
        let expected = bytes.checked_next_multiple_of(PAYLOAD_ALIGN).unwrap_or(usize::MAX);
        let (own, payload) = payload.split_at_checked(expected).ok_or(Error::Truncated {
            what: What::AdapterBiases,
            expected: expected as u32,
            found: payload.len() as u32,
        })?;
        let (own, zeros) = own.split_at_checked(bytes).unwrap_or_default();
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(Error::Malformed { what: What::Padding });
        }
        let values: &[f32] = bytemuck::try_cast_slice(own).map_err(|_| Error::Misaligned {
            what: What::AdapterFile,
            expected: 4,
            found: (own.as_ptr().addr() % 4) as u32,
        })?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::NotFinite { what: What::Bias, index: at as u32 });
        }
        Ok((Self::new(entries, values), payload))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The tensors that are replaced, with their numbers, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (TensorId, &'a [f32])> {
        let (mut entries, mut values) = (self.entries, self.values);
        core::iter::from_fn(move || {
            let entry = entries.try_next().ok()??;
            let (own, rest) = values.split_at_checked(entry.len as usize)?;
            values = rest;
            Some((entry.tensor, own))
        })
    }

    /// What replaces a tensor, if anything does. Tensors may be asked for in any order; in ascending order a walk over the
    /// graph passes each entry once.
    pub fn of(&mut self, tensor: TensorId) -> Option<&'a [f32]> {
        if tensor <= self.last {
            self.left = (self.entries, self.values);
        }
        self.last = tensor;
        loop {
            let (mut entries, values) = self.left;
            let entry = entries.try_next().ok()??;
            if entry.tensor > tensor {
                return None;
            }
            let (own, rest) = values.split_at_checked(entry.len as usize)?;
            self.left = (entries, rest);
            if entry.tensor == tensor {
                return Some(own);
            }
        }
    }
}
