//! Features from a file: what `--features` reads.

use std::path::PathBuf;

use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use super::exit::{BAD_INPUT, Failure, Outcome};
use crate::Error;

/// Where features come from.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Source {
    /// Feature rows: the tensor of a .safetensors file (the one named
    /// features if there are several), [rows, width] or [clips, rows, width], f32 or f16; any other
    /// file holds f32 little-endian
    #[arg(long, value_name = "FILE")]
    pub(super) features: Option<PathBuf>,
    /// The clip to take from a tensor of several
    #[arg(long, value_name = "N", requires = "features", default_value_t = 0)]
    pub(super) index: usize,
    /// Rows of a file that does not state its shape
    #[arg(long, value_name = "N", requires = "features", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) rows: Option<u32>,
}

/// Feature rows, row-major.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Features {
    pub(super) values: Vec<f32>,
    /// Rows, if the file or the command line states them.
    pub(super) rows: Option<u32>,
}

impl Source {
    /// Reads the file, if there is one.
    pub(super) fn read(&self) -> Outcome<Option<Features>> {
        let Some(path) = &self.features else { return Ok(None) };
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let bad = |error: String| Failure::new(BAD_INPUT, anyhow::Error::msg(error)).at(path);
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return self.clip(&bytes).map(Some).map_err(bad);
        }
        let (values, rest) = bytes.as_chunks::<4>();
        if values.is_empty() || !rest.is_empty() {
            return Err(bad(format!("expected f32 numbers of 4 bytes each, found {} bytes", bytes.len())));
        }
        let values: Vec<f32> = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        self.shaped(values, self.rows).map(Some).map_err(bad)
    }

    /// One clip of the tensor in a safetensors file.
    fn clip(&self, bytes: &[u8]) -> Result<Features, String> {
        let file = SafeTensors::deserialize(bytes)
            .map_err(|error| format!("expected safetensors, found {error}"))?;
        let names = file.names();
        let name = match names.as_slice() {
            [only] => only,
            _ => "features",
        };
        let tensor = file.tensor(name).map_err(|_| {
            format!(
                "expected one tensor or one with the name features, found {}: {}",
                names.len(),
                names.join(", ")
            )
        })?;
        let (clips, rows, width) = match *tensor.shape() {
            [rows, width] => (1, rows, width),
            [clips, rows, width] => (clips, rows, width),
            _ => {
                return Err(format!(
                    "{name}: expected [rows, width] or [clips, rows, width], found {:?}",
                    tensor.shape()
                ));
            }
        };
        if self.index >= clips {
            return Err(format!("{name}: expected --index below {clips}, found {}", self.index));
        }
        let range = self.index * rows * width..(self.index + 1) * rows * width;
        let values = match tensor.dtype() {
            Dtype::F32 => {
                tensor.data().as_chunks().0[range].iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
            Dtype::F16 => tensor.data().as_chunks().0[range]
                .iter()
                .map(|bytes| f16::from_le_bytes(*bytes).to_f32())
                .collect(),
            other => return Err(format!("{name}: expected f32 or f16, found {other:?}")),
        };
        self.shaped(values, u32::try_from(rows).ok())
    }

    fn shaped(&self, values: Vec<f32>, rows: Option<u32>) -> Result<Features, String> {
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(format!("number {at}: expected a finite one, found {}", values[at]));
        }
        match (self.rows, rows) {
            (Some(expected), Some(found)) if expected != found => {
                Err(format!("expected {expected} rows (--rows), found {found}"))
            }
            _ => Ok(Features { values, rows }),
        }
    }
}
