//! Importers: from a published model's files to a float [`Network`]. Supporting an architecture means one file here.
//!
//! Importers name the sites, and only they know a model's own file format. They do not quantize.

pub(crate) mod build;
mod front_end;
pub mod hf;
pub mod kwt;
pub mod llama2c;
pub mod network;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use rankpatch_format::write::Network;

use crate::{Error, Result};

/// Loads a model from a file, or from a folder that holds exactly one model.
///
/// | file | model |
/// | --- | --- |
/// | `network.json` and `network.safetensors` | a network of this trainer's, see [`network`] |
/// | `config.json` and `model.safetensors` | a folder of Hugging Face's `transformers`, see [`hf::load`] |
/// | `*.bin` | llama2.c, version 0, with its tokenizer `tok*.bin` beside it |
/// | `*.safetensors` | KWT, with `labels.txt` beside it |
///
/// A model of sound that comes with the tables of its front end reads samples.
///
/// # Errors
/// [`Error::UnknownFile`] if the path is no such file or a folder with none or several; whatever the importer refuses.
pub fn load(path: &Path) -> Result<Network> {
    load_with(path, true)
}

/// [`load`], but a model of sound reads feature rows that are made elsewhere. The network has another identity: its adapters would not know
/// which features they get.
///
/// # Errors
/// As [`load`].
pub fn load_without_front_end(path: &Path) -> Result<Network> {
    load_with(path, false)
}

fn load_with(path: &Path, front_end: bool) -> Result<Network> {
    if network::is_folder(path) {
        return network::load(path);
    }
    if hf::is_folder(path) {
        return hf::load(path);
    }
    let file = if path.is_dir() { find_in(path)? } else { path.to_path_buf() };
    std::fs::metadata(&file).map_err(Error::io(&file))?;
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("bin") => llama2c::load(&file, &llama2c::tokenizer_beside(&file)?),
        Some("safetensors") => kwt::load(&file, front_end),
        other => Err(Error::UnknownFile {
            path: file.clone(),
            expected: "a model file (.bin of llama2.c, .safetensors of KWT) or a folder with one".into(),
            found: other.map_or("a file without an extension".into(), |other| format!("a .{other} file")),
        }),
    }
}

/// The one model file of a folder.
fn find_in(folder: &Path) -> Result<PathBuf> {
    let mut models: Vec<PathBuf> = files(folder)?
        .into_iter()
        .filter(|file| {
            let extension = file.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("bin" | "safetensors")) && !llama2c::is_tokenizer(file)
        })
        .collect();
    match (models.pop(), models.as_slice()) {
        (Some(model), []) => Ok(model),
        (last, others) => Err(Error::UnknownFile {
            path: folder.to_path_buf(),
            expected: "a folder with config.json (Hugging Face) or one model file (.bin of llama2.c, .safetensors of KWT)"
                .into(),
            found: format!("{} of them", others.len() + usize::from(last.is_some())),
        }),
    }
}

/// The files of a folder, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut files = entries
        .map(|entry| Ok(entry.map_err(Error::io(folder))?.path()))
        .filter(|path| path.as_ref().map_or(true, |path| path.is_file()))
        .collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}
