//! Writes the golden files of the format and the self-tests of the carried adapters anew. They pin what this version writes, so a change of theirs is a change of the
//! format and reviewed as one.

use anyhow::{Result, ensure};
use xtask::cargo;

/// Runs the tests that compare them, told to write.
pub(crate) fn run() -> Result<()> {
    let format = ["--package", "rankpatch-format", "--all-features", "--lib", "--", "golden"];
    let adapters = ["--package", "rankpatch-tests", "--test", "integration", "--", "carried::"];
    for arguments in [&format[..], &adapters[..]] {
        let status = cargo()
            .args(["test", "--quiet", "--locked"])
            .args(arguments)
            .env("RANKPATCH_WRITE_GOLDEN", "1")
            .status()?;
        ensure!(status.success(), "writing the golden files failed: {status}");
    }
    println!("tests/golden and tests/data/adapters are written; look at `git diff --stat tests`");
    Ok(())
}
