//! Reading and writing files the way all of this crate does: whole, and never half written.

use std::io::Write as _;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use crate::{Error, Result};

/// Writes a file so that it is there with all of `bytes` or not at all: into a new file beside it, which then takes its
/// place. Folders are made as needed.
///
/// # Errors
/// [`Error::Io`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let written = std::fs::File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    });
    written.map_err(|error| {
        // The error that is reported is the first one; the remains may be gone already.
        let _ = std::fs::remove_file(&temporary);
        Error::io(path)(error)
    })
}

/// Makes a folder with all that `fill` writes into it or not at all, in place of an earlier one: it is filled under another name
/// and then takes its place.
///
/// # Errors
/// [`Error::Io`], and those of `fill`.
pub fn replace_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.part"));
    let remove = |folder: &Path| match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder)(error)),
        _ => Ok(()),
    };
    // What a process left that was killed here.
    remove(&new)?;
    fill(&new)?;
    remove(path)?;
    std::fs::rename(&new, path).map_err(Error::io(path))
}

/// The little-endian bytes of f32 values.
pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The values of an f32 tensor in a safetensors file.
pub(crate) fn f32_values(path: &Path, tensor: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    if view.dtype() != Dtype::F32 {
        return Err(Error::TensorType {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            expected: "F32",
            found: format!("{:?}", view.dtype()),
        });
    }
    Ok(view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}
