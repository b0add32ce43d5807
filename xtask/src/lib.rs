//! What the tasks and the integration tests share: board descriptions, firmware builds, QEMU with its link and its log.
//!
//! Nothing here knows the messages on the link or any model: a test speaks through [`qemu::Qemu::connect`] with whatever
//! client it has. Works on Unix hosts.

pub mod board;
pub mod firmware;
pub mod flash;
pub mod kit;
pub mod log;
pub mod machine;
pub mod monitor;
pub mod qemu;
pub mod sections;
#[cfg(test)]
mod smoke;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How `cargo xtask` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything worked.
    Success = 0,
    /// A check, a test or a step failed.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A program is missing and may not be installed from here; the command to type was printed.
    NeedsSetup = 3,
}

/// A program is missing. Ends the command with [`ExitCode::NeedsSetup`].
#[derive(Debug)]
pub struct NeedsSetup {
    /// What is missing and what to type.
    pub message: String,
}

impl fmt::Display for NeedsSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for NeedsSetup {}

/// The repository's root folder, that of the checkout which this program was compiled in.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// The cargo that runs this program, or the one in the search path, started in the repository's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(workspace_root());
    command
}

/// The folder for files that tasks write, for example `target/demo`. Created if need be.
///
/// # Errors
/// If it cannot be created.
pub fn output_folder(name: &str) -> std::io::Result<PathBuf> {
    let folder = workspace_root().join("target").join(name);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
