//! Reading and writing files the way all of this crate does: whole, and never half written.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};

use crate::{Error, Result};

/// Writes a file so that it is there with all of `bytes` or not at all, see [`write_together`].
///
/// # Errors
/// [`Error::Write`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    write_together(&[(path.to_path_buf(), bytes.to_vec())])
}

/// Writes files that belong together: each into a new file beside its place, and once all of them are on the disk, each takes
/// its place. A full disk thus leaves all as they were. Folders are made as needed. What is there and is no file, a device or a
/// pipe, is written to as it is.
///
/// # Errors
/// [`Error::Write`] with the file that failed. None is left half written.
pub fn write_together(files: &[(PathBuf, Vec<u8>)]) -> Result<()> {
    let temporary = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.with_file_name(format!(".{name}.{}.part", std::process::id()))
    };
    // Renaming over a device would put a file in its place.
    let is_file =
        |path: &Path| std::fs::metadata(path).map_or(true, |there| there.is_file() || there.is_dir());
    let prepare = |path: &Path, bytes: &[u8]| {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)?;
        }
        if !is_file(path) {
            return std::fs::OpenOptions::new().write(true).open(path)?.write_all(bytes);
        }
        let mut file = std::fs::File::create(temporary(path))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let place = |path: &Path| if is_file(path) { std::fs::rename(temporary(path), path) } else { Ok(()) };
    let prepared =
        files.iter().try_for_each(|(path, bytes)| prepare(path, bytes).map_err(Error::write(path)));
    let placed = prepared
        .and_then(|()| files.iter().try_for_each(|(path, _)| place(path).map_err(Error::write(path))));
    if placed.is_err() {
        for (path, _) in files {
            // The error that is reported is the first one; the remains may be gone already.
            let _ = std::fs::remove_file(temporary(path));
        }
    }
    placed
}

/// The little-endian bytes of f32 values.
pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The values of a tensor in a safetensors file, of f32, or of f16 or bf16, which f32 holds exactly.
pub(crate) fn f32_values(path: &Path, tensor: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let halves =
        |value: fn([u8; 2]) -> f32| view.data().as_chunks().0.iter().map(|bytes| value(*bytes)).collect();
    match view.dtype() {
        Dtype::F32 => Ok(view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
        Dtype::F16 => Ok(halves(|bytes| half::f16::from_le_bytes(bytes).to_f32())),
        Dtype::BF16 => Ok(halves(|bytes| half::bf16::from_le_bytes(bytes).to_f32())),
        other => Err(Error::TensorType {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            expected: "F32, F16 or BF16",
            found: format!("{other:?}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_of_three_widths_are_read_exactly() {
        let values = [0.0, -1.5, 0.007_812_5, 240.0];
        let read = |dtype, bytes: Vec<u8>| {
            let view = TensorView::new(dtype, vec![values.len()], &bytes).unwrap();
            f32_values(Path::new("x"), "t", &view).map_err(|error| error.to_string())
        };
        let bf16 = values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect();
        let f16 = values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect();
        for (dtype, bytes) in [(Dtype::F32, f32_bytes(&values)), (Dtype::F16, f16), (Dtype::BF16, bf16)] {
            assert_eq!(read(dtype, bytes), Ok(values.to_vec()), "{dtype:?}");
        }
        let error = read(Dtype::I8, vec![0; values.len()]).unwrap_err();
        assert_eq!(error, "x: tensor \"t\": expected elements of type F32, F16 or BF16, found I8");
    }

    /// What fails leaves the file as it was, and nothing beside it.
    #[test]
    fn a_file_that_cannot_be_written_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let names = || -> Vec<_> {
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        let path = folder.path().join("a");
        write_atomically(&path, b"first").unwrap();
        write_atomically(&path, b"second").unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), names().len()), (b"second".to_vec(), 1));
        let error = write_atomically(&path.join("b"), b"third").unwrap_err();
        assert!(matches!(&error, Error::Write { .. }), "{error}");
        // A folder is in the way of the last step.
        std::fs::create_dir(folder.path().join("c")).unwrap();
        let error = write_atomically(&folder.path().join("c"), b"third").unwrap_err();
        assert!(matches!(&error, Error::Write { path, .. } if path.ends_with("c")), "{error}");
        assert_eq!((std::fs::read(&path).unwrap(), names().len()), (b"second".to_vec(), 2));
        // Of files that belong together, the first is not written if the second cannot be.
        let files = [(path.clone(), b"fourth".to_vec()), (path.join("b"), b"fourth".to_vec())];
        assert!(matches!(write_together(&files), Err(Error::Write { .. })));
        assert_eq!((std::fs::read(&path).unwrap(), names().len()), (b"second".to_vec(), 2));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_device_stays_one() {
        let full = Path::new("/dev/full");
        let error = write_atomically(full, b"x").unwrap_err();
        assert_eq!(error.to_string(), "/dev/full: cannot be written: No space left on device (os error 28)");
        write_atomically(Path::new("/dev/null"), b"x").unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
    }
}
