//! The tensors of a folder: one safetensors file, or shards with an index. One tensor at a time is read, so that a model needs
//! memory once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;

use super::super::kwt::summary;
use crate::{Error, Result};

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Longest header, as the safetensors library has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One file, its header read.
struct Shard {
    path: PathBuf,
    file: File,
    /// Where the tensors begin.
    start: u64,
}

/// The tensors of a folder. They remember who was read.
pub(super) struct Weights {
    /// What a message about no tensor in particular is about.
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
    read: RefCell<BTreeSet<String>>,
}

#[derive(Deserialize)]
struct Index {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens the files of a folder and reads their headers.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let whole = folder.join(WHOLE);
        let index = folder.join(INDEX);
        if whole.exists() || !index.exists() {
            let mut weights = Self::empty(whole.clone());
            weights.add(whole)?;
            return Ok(weights);
        }
        let text = std::fs::read(&index).map_err(Error::io(&index))?;
        let Index { weight_map } = serde_json::from_slice(&text)
            .map_err(|error| Error::field(&index, "content", "a weight_map", error))?;
        let files: BTreeSet<&String> = weight_map.values().collect();
        let mut weights = Self::empty(index.clone());
        for file in files {
            // A name, not a path: an index says nothing about other folders.
            if Path::new(file).file_name() != Some(file.as_ref()) {
                return Err(Error::field(
                    &index,
                    "weight_map",
                    "names of files beside it",
                    format!("{file:?}"),
                ));
            }
            weights.add(folder.join(file))?;
        }
        for (tensor, file) in &weight_map {
            let found = weights.tensors.get(tensor).map(|(shard, _)| &weights.shards[*shard].path);
            if found.is_none_or(|found| *found != folder.join(file)) {
                let found = found.map_or("nowhere".into(), |path| path.display().to_string());
                return Err(Error::field(&index, format!("weight_map of {tensor}"), file, found));
            }
        }
        Ok(weights)
    }

    fn empty(path: PathBuf) -> Self {
        Self { path, shards: Vec::new(), tensors: BTreeMap::new(), read: RefCell::default() }
    }

    /// Adds a file.
    fn add(&mut self, path: PathBuf) -> Result<()> {
        let mut file = File::open(&path).map_err(Error::io(&path))?;
        let length = file.metadata().map_err(Error::io(&path))?.len();
        let not = |found: String| Error::UnknownFile {
            path: path.clone(),
            expected: "a whole safetensors file".into(),
            found,
        };
        let mut size = [0; 8];
        let header_bytes = match file.read_exact(&mut size) {
            Ok(()) => u64::from_le_bytes(size),
            Err(_) => return Err(not(format!("{length} bytes"))),
        };
        if header_bytes > MAX_HEADER_BYTES || header_bytes + 8 > length {
            return Err(not(format!("a header of {header_bytes} bytes in {length}: another or a cut file?")));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(Error::io(&path))?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| not(format!("a header that is none ({error})")))?;
        let start = 8 + header_bytes;
        let expected = start + metadata.data_len() as u64;
        if expected != length {
            return Err(Error::Length {
                path,
                what: "safetensors file".into(),
                expected: expected as usize,
                found: length as usize,
            });
        }
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            if let Some((other, _)) = self.tensors.insert(name.clone(), (shard, info.clone())) {
                let found = format!("{name} in {} too", self.shards[other].path.display());
                return Err(Error::field(&path, "tensors", "each in one file", found));
            }
        }
        self.shards.push(Shard { path, file, start });
        Ok(())
    }

    /// Whether there is such a tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Rows of a tensor that may be missing.
    pub(super) fn rows(&self, name: &str) -> Option<usize> {
        self.tensors.get(name)?.1.shape.first().copied().filter(|rows| *rows > 0)
    }

    /// The numbers of a tensor of exactly this shape, row-major.
    pub(super) fn take(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let Some((shard, info)) = self.tensors.get(name) else {
            let names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
            return Err(Error::MissingTensor {
                path: self.path.clone(),
                tensor: name.into(),
                expected: expected.to_vec(),
                found: summary(&names),
            });
        };
        let Shard { path, file, start } = &self.shards[*shard];
        if info.shape != expected {
            return Err(Error::TensorShape {
                path: path.clone(),
                tensor: name.into(),
                expected: expected.to_vec(),
                found: info.shape.clone(),
            });
        }
        let (begin, end) = info.data_offsets;
        let mut bytes = vec![0; end - begin];
        let mut file = file;
        file.seek(SeekFrom::Start(start + begin as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(Error::io(path))?;
        let values = match info.dtype {
            Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => {
                bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
            }
            other => {
                let (path, tensor) = (path.clone(), name.into());
                return Err(Error::TensorType {
                    path,
                    tensor,
                    expected: "F32, F16 or BF16",
                    found: format!("{other:?}"),
                });
            }
        };
        self.pass_over(name);
        Ok(values)
    }

    /// Says that a tensor is known and of no use here.
    pub(super) fn pass_over(&self, name: &str) {
        self.read.borrow_mut().insert(name.to_owned());
    }

    /// Refuses tensors that nothing has read and that `unused` does not know: they would change what the model computes.
    pub(super) fn finish(&self, unused: impl Fn(&str) -> bool) -> Result<()> {
        let read = self.read.borrow();
        let left =
            self.tensors.keys().map(String::as_str).filter(|name| !read.contains(*name) && !unused(name));
        let left: Vec<&str> = left.collect();
        if left.is_empty() {
            return Ok(());
        }
        let expected = "only those that the architecture and its options imply";
        Err(Error::field(&self.path, "tensors", expected, format!("also {}", summary(&left))))
    }
}
