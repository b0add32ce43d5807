//! The emulated cores that the bench program is built for: the `[[package.metadata.machine]]` tables of its package.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::NeedsSetup;
use crate::board::{self, array, number, text};

/// The package of the bench program.
pub const PACKAGE: &str = "qemu-bench";
/// The program.
pub const PROGRAM: &str = "bench";

/// One core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The package's feature that chooses it.
    pub feature: String,
    /// The core as one writes it, for example `Cortex-M0`.
    pub core: String,
    /// The Rust target triple.
    pub target: String,
    /// The emulator.
    pub qemu: board::Machine,
    /// An instruction takes 2^shift ns of the machine's time.
    pub shift: u64,
}

impl Machine {
    /// All of them, in the order of the package's manifest.
    ///
    /// # Errors
    /// If `cargo metadata` fails or a table lacks a key.
    pub fn all() -> Result<Vec<Self>> {
        let metadata = board::metadata()?;
        let package = array(&metadata, "packages")?.iter().find(|package| package["name"] == PACKAGE);
        let package = package.with_context(|| format!("expected a package {PACKAGE}, found none"))?;
        let machines = array(&package["metadata"], "machine")?.iter().map(|table| {
            Ok(Self {
                feature: text(table, "feature")?,
                core: text(table, "core")?,
                target: text(table, "target")?,
                qemu: board::Machine::from_table(&table["qemu"])?,
                shift: number(&table["qemu"], "shift")?,
            })
        });
        machines.collect::<Result<_>>().with_context(|| format!("[[package.metadata.machine]] of {PACKAGE}"))
    }

    /// Runs `elf` to its end and returns what it wrote.
    ///
    /// # Errors
    /// [`NeedsSetup`] if QEMU is not installed; otherwise if the program has not ended after `timeout`, or not with success.
    pub fn run(&self, elf: &Path, timeout: Duration) -> Result<String> {
        let mut command = Command::new(&self.qemu.system);
        command
            .args([
                "-M",
                &self.qemu.machine,
                "-cpu",
                &self.qemu.cpu,
                "-icount",
                &format!("shift={}", self.shift),
            ])
            .args(["-display", "none", "-monitor", "none", "-serial", "null", "-bios", "none"])
            .args(["-chardev", "stdio,id=console"])
            .args(["-semihosting-config", "enable=on,target=native,chardev=console"])
            .arg("-kernel")
            .arg(elf)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| {
            anyhow!(NeedsSetup {
                message: format!("expected {}: {error}; run `cargo xtask setup`", self.qemu.system)
            })
        })?;
        let deadline = Instant::now() + timeout;
        // The program writes less than a pipe holds.
        while child.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                child.kill()?;
                child.wait()?;
                bail!("expected the program to end within {timeout:?} on {}, found it running", self.core);
            }
            thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output()?;
        let written = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{} on {}: {}\n{written}{errors}", elf.display(), self.core, output.status);
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_a_feature_of_its_own_and_a_core() {
        let machines = Machine::all().unwrap();
        let cores: Vec<_> = machines.iter().map(|machine| machine.core.as_str()).collect();
        for core in
            ["Cortex-M0", "Cortex-M3", "Cortex-M4", "Cortex-M7", "Cortex-M33", "Cortex-M55", "RV32IMAC"]
        {
            assert!(cores.contains(&core), "{core} in {cores:?}");
        }
        let mut features: Vec<_> = machines.iter().map(|machine| &machine.feature).collect();
        features.sort();
        features.dedup();
        assert_eq!(features.len(), machines.len());
    }
}
