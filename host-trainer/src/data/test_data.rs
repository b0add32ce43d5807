//! Where the tests of this crate find real data: the part that the repository carries, and the whole if it is there.

use std::path::{Path, PathBuf};

/// The file or folder `name` of the data in the repository.
pub(crate) fn carried(name: &str) -> PathBuf {
    workspace().join("tests/data").join(name)
}

/// The file or folder `name` of the whole data: in the folder that `RANKPATCH_SHARED` names, or in `shared` beside the
/// workspace. Most tests do with what is carried; a few check more if this is there.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let folder =
        std::env::var_os("RANKPATCH_SHARED").map_or_else(|| workspace().join("../shared"), PathBuf::from);
    Some(folder.join("data").join(name)).filter(|path| path.exists())
}

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
