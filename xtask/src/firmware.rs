//! Builds firmware programs and says where their ELF files are.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::board::Board;
use crate::flash::Division;
use crate::kit::Kit;
use crate::machine::{self, Machine};
use crate::sections;

/// Log level that is compiled in unless `DEFMT_LOG` says otherwise; defmt's own default drops all but errors.
const LOG_LEVEL: &str = "info";

/// The product that firmware is built for, unless `RANKPATCH_PRODUCT` names another.
pub const PRODUCT: &str = "rankpatch-demo";
/// The key that firmware trusts, unless `RANKPATCH_KEYS` names others, and the one that signs for it.
pub const PUBLIC_KEY: &str = "tests/data/keys/test.pub";
/// The secret part of [`PUBLIC_KEY`].
pub const SECRET_KEY: &str = "tests/data/keys/test.key";

/// What the base of a product reads. Its firmware is built with the features for that and no others; every other firmware has all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Tokens.
    Text,
    /// Samples, or features.
    Sound,
}

impl Reads {
    /// What a base reads that has a vocabulary of so many tokens.
    pub fn of_vocabulary(vocab_size: u64) -> Self {
        if vocab_size > 0 { Self::Text } else { Self::Sound }
    }

    /// The feature of board packages.
    pub fn feature(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Sound => "sound",
        }
    }
}

/// Builds `program` of `board` with the firmware profile and returns its ELF file. Quick when nothing has changed.
///
/// # Errors
/// If cargo cannot be started or the build fails; its messages go to stderr.
pub fn build(board: &Board, program: &str) -> Result<PathBuf> {
    build_with(board, program, None)
}

/// The same with another public key, in hexadecimal digits.
///
/// # Errors
/// As [`build`].
pub fn build_with(board: &Board, program: &str, key: Option<&str>) -> Result<PathBuf> {
    let key = key.map(|key| ("RANKPATCH_KEYS", key));
    compile(&board.target, &board.name, program, &[], key.as_slice())
}

/// Builds the firmware of `board` for bases of one kind and a flash that is divided otherwise, as `name`, and returns its ELF file, which the
/// next build does not overwrite.
///
/// # Errors
/// As [`build`], and if it is larger than its part of the flash or the file cannot be copied.
pub fn build_divided(board: &Board, reads: Reads, division: &Division, name: &str) -> Result<PathBuf> {
    build_product(board, reads, &[("RANKPATCH_DIVISION", &division.manifest())], name)
}

/// Builds the firmware of `board` for bases of one kind and returns its ELF file, which the next build of another kind does not overwrite.
///
/// # Errors
/// As [`build_divided`].
pub fn build_for(board: &Board, reads: Reads) -> Result<PathBuf> {
    build_product(board, reads, &[], &format!("{}-{}", board.name, reads.feature()))
}

/// Bytes of flash that the firmware of `board` for bases of one kind needs.
///
/// # Errors
/// As [`build_for`], and if the file cannot be read.
pub fn flash_bytes(board: &Board, reads: Reads) -> Result<u64> {
    let sections = sections::read(board, &build_for(board, reads)?)?;
    Ok(sections.iter().map(|section| section.flash_bytes).sum())
}

fn build_product(board: &Board, reads: Reads, environment: &[(&str, &str)], name: &str) -> Result<PathBuf> {
    // One after the other, and in a folder of their own: all of them, and the firmware of the board, are files of one name.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = crate::output_folder("flash")?;
    let target = folder.join("target");
    let target = target.to_str().context("expected a path of Unicode characters to the target folder")?;
    let arguments = ["--target-dir", target, "--no-default-features", "--features", reads.feature()];
    let elf = compile(&board.target, &board.name, "firmware", &arguments, environment)?;
    let copy = folder.join(format!("{name}.elf"));
    std::fs::copy(&elf, &copy).with_context(|| format!("cannot copy {}", elf.display()))?;
    Ok(copy)
}

/// Builds the firmware that also accepts unsigned adapters.
///
/// # Errors
/// As [`build`].
pub fn build_insecure(board: &Board) -> Result<PathBuf> {
    compile(&board.target, &board.name, "insecure", &["--features", "insecure"], &[])
}

/// Builds the firmware of a kit.
///
/// # Errors
/// As [`build`].
pub fn build_kit(kit: &Kit) -> Result<PathBuf> {
    compile(&kit.target, &kit.name, "firmware", &[], &[])
}

/// Builds the bench program for `machine` and returns its ELF file, which the next build does not overwrite.
///
/// # Errors
/// As [`build`], and if the file cannot be copied.
pub fn build_bench(machine: &Machine) -> Result<PathBuf> {
    let feature = ["--features", machine.feature.as_str()];
    let elf = compile(&machine.target, machine::PACKAGE, machine::PROGRAM, &feature, &[])?;
    let copy = crate::output_folder("bench")?.join(format!("{}.elf", machine.feature));
    std::fs::copy(&elf, &copy).with_context(|| format!("cannot copy {}", elf.display()))?;
    Ok(copy)
}

fn compile(
    target: &str,
    package: &str,
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<PathBuf> {
    let mut command = crate::cargo();
    command
        .args([
            "build",
            "--quiet",
            "--locked",
            "--profile",
            "firmware",
            "--message-format",
            "json-render-diagnostics",
        ])
        .args(["--target", target, "--package", package, "--bin", program])
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if std::env::var_os("DEFMT_LOG").is_none() {
        command.env("DEFMT_LOG", LOG_LEVEL);
    }
    if std::env::var_os("RANKPATCH_PRODUCT").is_none() {
        command.env("RANKPATCH_PRODUCT", PRODUCT);
    }
    if std::env::var_os("RANKPATCH_KEYS").is_none() {
        let file = crate::workspace_root().join(PUBLIC_KEY);
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let key = text.lines().nth(1).with_context(|| format!("expected a key in {}", file.display()))?;
        command.env("RANKPATCH_KEYS", key);
    }
    command.envs(environment.iter().copied());
    let output = command.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("building {program} of {package} for {target} failed: {}", output.status);
    }
    executable(&String::from_utf8_lossy(&output.stdout), program)
        .with_context(|| format!("cargo built {program} of {package} but named no ELF file"))
}

/// The file that cargo's messages, one JSON object per line, name for the binary target `program`.
fn executable(messages: &str, program: &str) -> Option<PathBuf> {
    messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
        let is_it = message["reason"] == "compiler-artifact" && message["target"]["name"] == program;
        is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_told_from_libraries_and_other_programs() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"smoke"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"other"},"executable":"/x/other"}
{"reason":"compiler-artifact","target":{"name":"smoke"},"executable":"/x/smoke"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "smoke"), Some(PathBuf::from("/x/smoke")));
        assert_eq!(executable(messages, "bench"), None);
    }
}
