//! Writes the golden files of the format anew. They pin what this version writes, so a change of theirs is a change of the
//! format and reviewed as one.

use anyhow::{Result, ensure};
use xtask::cargo;

/// Runs the test that compares them, told to write.
pub(crate) fn run() -> Result<()> {
    let arguments =
        ["test", "--quiet", "--locked", "--package", "rankpatch-format", "--all-features", "--lib", "golden"];
    let status = cargo().args(arguments).env("RANKPATCH_WRITE_GOLDEN", "1").status()?;
    ensure!(status.success(), "writing the golden files failed: {status}");
    println!("tests/golden is written; look at `git diff --stat tests/golden`");
    Ok(())
}
