//! Checks on request that need a nightly compiler: Miri, and libFuzzer on the targets of `fuzz/`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use xtask::{NeedsSetup, workspace_root};

/// What Miri interprets: the readers of the format, and the slots.
const MIRI: [&[&str]; 2] = [
    // The layouts' tests go over many matrices, for minutes here; golden files are outside of its walls.
    &[
        "miri",
        "test",
        "--package",
        "rankpatch-format",
        "--features",
        "_fixtures",
        "--",
        "--skip",
        "layout",
        "--skip",
        "golden",
    ],
    &["miri", "test", "--package", "rankpatch-runtime", "slots"],
];
/// Executions of each target unless the command says otherwise.
const RUNS: u64 = 1_000_000;

/// Runs Miri.
pub(crate) fn miri() -> Result<()> {
    for arguments in MIRI {
        cargo(arguments, "")?;
    }
    Ok(())
}

/// Runs every fuzz target, or the one that is named, for so many executions each.
pub(crate) fn fuzz(target: Option<&str>, runs: Option<u64>) -> Result<()> {
    let folder = workspace_root().join("fuzz/fuzz_targets");
    let mut targets: Vec<String> = std::fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    targets.sort();
    if let Some(target) = target {
        if !targets.iter().any(|known| known == target) {
            bail!("expected one of the targets {}, found {target}", targets.join(", "));
        }
        targets = vec![target.to_owned()];
    }
    for target in targets {
        let runs = format!("-runs={}", runs.unwrap_or(RUNS));
        // No unsafe code runs on the host, and without the address sanitizer there are several times as many executions.
        let mut arguments = vec!["fuzz", "run", "--sanitizer", "none"];
        arguments.extend(options_of(&target));
        arguments.extend([&target, "--", &runs]);
        cargo(&arguments, "and `cargo install cargo-fuzz`")?;
    }
    Ok(())
}

/// What cargo-fuzz is told about a target.
fn options_of(target: &str) -> &'static [&'static str] {
    match target {
        "bundle" => &["--features", "bundle"],
        // Its input is steps and their arguments, in which comparisons have nothing to find; without traces of them it runs twice as fast.
        "receiver" => &["--no-trace-compares"],
        _ => &[],
    }
}

/// A command of the nightly cargo.
fn cargo(arguments: &[&str], also: &str) -> Result<()> {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo"]).args(arguments).current_dir(workspace_root());
    // The proxy's choice for this program is not that one's.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").stdin(Stdio::null());
    let failed = || NeedsSetup {
        message: format!(
            "expected a nightly compiler with Miri: type `rustup toolchain install nightly -c miri,rust-src` {also}"
        ),
    };
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        // What cargo or the program said is above.
        Ok(status) => bail!("cargo {} failed: {status}", arguments.join(" ")),
        Err(_) => bail!(failed()),
    }
}
