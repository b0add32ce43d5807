//! Names of outputs from a file, for outputs that come from a device: it sends numbers only.

use std::path::Path;

use rankpatch_format::adapter::{MAGIC, Preview};

use super::exit::{At as _, Outcome};
use crate::Error;
use crate::base::Image;

/// The names of the outputs of an adapter's head, or of a base; none if they have no names.
pub(super) fn read(path: &Path) -> Outcome<Vec<String>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    if bytes.first_chunk() == Some(&MAGIC) {
        let preview = Preview::new(&bytes).at(path)?;
        return Ok(preview.body.head.map_or(Vec::new(), |head| names(head.labels)));
    }
    let image = Image::new(&bytes);
    Ok(image.base().at(path)?.labels().map(str::to_owned).collect())
}

/// Postcard strings, one after the other, up to the first that is none.
pub(super) fn names(mut bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let Ok((name, rest)) = postcard::take_from_bytes::<&str>(bytes) {
        names.push(name.to_owned());
        bytes = rest;
    }
    names
}
