//! Users' own signals: feature arrays with a class each, in a safetensors file.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{Error, Result, files};

/// Metadata entry with the names of the classes, a JSON list.
const LABEL_NAMES: &str = "label_names";

/// Examples of signals.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrays {
    /// Each example's features, `[rows, width]`, and the name of its class.
    pub examples: Vec<(Vec<f32>, String)>,
    /// Width of a row.
    pub width: usize,
}

/// Reads a safetensors file with `features`, f32 `[examples, rows, width]`, and `labels`, whole numbers `[examples]`. The
/// file's metadata may hold `label_names`, a JSON list of the names of the classes 0, 1, ...; otherwise their numbers are their names.
///
/// # Errors
/// [`Error::Io`], [`Error::Field`], [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::EmptyDataSet`].
pub fn load(path: &Path) -> Result<Arrays> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|error| Error::field(path, "file", "safetensors", error))?;
    let names = label_names(path, &bytes)?;
    let missing = |tensor: &str, expected: &[usize]| Error::MissingTensor {
        path: path.to_path_buf(),
        tensor: tensor.into(),
        expected: expected.to_vec(),
        found: file.names().join(", "),
    };
    let features = file.tensor("features").map_err(|_| missing("features", &[0, 0, 0]))?;
    let &[examples, rows, width] = features.shape() else {
        return Err(Error::field(
            path,
            "shape of features",
            "[examples, rows, width]",
            format!("{:?}", features.shape()),
        ));
    };
    if examples * rows * width == 0 {
        return Err(Error::EmptyDataSet { path: path.to_path_buf(), part: "training" });
    }
    let labels = file.tensor("labels").map_err(|_| missing("labels", &[examples]))?;
    if labels.shape() != [examples] {
        return Err(Error::TensorShape {
            path: path.to_path_buf(),
            tensor: "labels".into(),
            expected: vec![examples],
            found: labels.shape().to_vec(),
        });
    }
    let values = files::f32_values(path, "features", &features)?;
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        let what = format!("features of example {}", index / (rows * width));
        return Err(Error::field(path, what, "finite numbers", values[index]));
    }
    let name = |label: u64| match &names {
        None => Ok(label.to_string()),
        Some(names) => names.get(label as usize).cloned().ok_or_else(|| {
            Error::field(
                path,
                "labels",
                format!("numbers below {}, one for each of {LABEL_NAMES}", names.len()),
                label,
            )
        }),
    };
    let labels = whole_numbers(path, &labels)?.into_iter().map(name).collect::<Result<Vec<_>>>()?;
    let examples = values.chunks_exact(rows * width).map(<[f32]>::to_vec).zip(labels).collect();
    Ok(Arrays { examples, width })
}

fn label_names(path: &Path, bytes: &[u8]) -> Result<Option<Vec<String>>> {
    let (_, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|error| Error::field(path, "file", "safetensors", error))?;
    let Some(names) = metadata.metadata().as_ref().and_then(|entries| entries.get(LABEL_NAMES)) else {
        return Ok(None);
    };
    let wrong =
        |error| Error::field(path, format!("metadata {LABEL_NAMES}"), "a JSON list of strings", error);
    let names: Vec<String> = serde_json::from_str(names).map_err(wrong)?;
    if let Some((at, twice)) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        let found = format!("{twice:?} again at {at}");
        return Err(Error::field(path, format!("metadata {LABEL_NAMES}"), "names that differ", found));
    }
    Ok(Some(names))
}

fn whole_numbers(path: &Path, view: &TensorView<'_>) -> Result<Vec<u64>> {
    let bytes = view.data();
    let signed: Vec<i64> = match view.dtype() {
        Dtype::U8 => bytes.iter().map(|byte| i64::from(*byte)).collect(),
        Dtype::I32 => bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
        Dtype::U32 => bytes.as_chunks().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))).collect(),
        Dtype::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        other => {
            return Err(Error::field(path, "type of labels", "I64, I32, U32 or U8", format!("{other:?}")));
        }
    };
    let number = |label: i64| {
        u64::try_from(label).map_err(|_| Error::field(path, "labels", "numbers, 0 or more", label))
    };
    signed.into_iter().map(number).collect()
}
