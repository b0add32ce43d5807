//! Everything that must hold, in one command. Goes on after a failure and ends with the counts.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result};
use xtask::board::Board;
use xtask::kit::Kit;
use xtask::machine::{self, Machine};
use xtask::{ExitCode, cargo, firmware, workspace_root};

use crate::snapshot::Mode;
use crate::{bench, setup, sizes, tidy};

/// Runs every check and every test. The last line on stdout is `N passed, N failed`.
pub(crate) fn run() -> Result<ExitCode> {
    let (boards, kits, machines) = (Board::all()?, Kit::all()?, Machine::all()?);
    let mut report = Report::default();
    report.step("setup", setup::run);
    report.step("tidy", || {
        let offences = tidy::check(workspace_root())?;
        anyhow::ensure!(offences.is_empty(), "\n{}", offences.join("\n"));
        Ok(())
    });
    report.cargo("formatting", &["fmt", "--all", "--check"]);
    report.cargo("lints", &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]);
    let packages = boards.iter().map(|board| (&board.name, &board.target));
    for (name, target) in packages.chain(kits.iter().map(|kit| (&kit.name, &kit.target))) {
        let lints = ["clippy", "--locked", "--target", target, "--package", name, "--", "-D", "warnings"];
        report.cargo(&format!("lints of {name}"), &lints);
    }
    for board in &boards {
        // Without the features that only some bases need.
        let lints = ["clippy", "--locked", "--target", &board.target, "--package", &board.name];
        let lints = [&lints[..], &["--no-default-features", "--", "-D", "warnings"]].concat();
        report.cargo(&format!("lints of {} without features", board.name), &lints);
    }
    // Alone, because a build of the workspace unifies features and hides what is missing.
    for target in setup::targets()? {
        let check = [
            "check",
            "--locked",
            "--package",
            "rankpatch-runtime",
            "--no-default-features",
            "--target",
            &target,
        ];
        report.cargo(&format!("runtime alone for {target}"), &check);
    }
    for board in &boards {
        for program in &board.programs {
            report.step(&format!("{program} for {}", board.name), || {
                firmware::build(board, program).map(|_| ())
            });
        }
    }
    for kit in &kits {
        report.step(&format!("firmware for {}", kit.name), || firmware::build_kit(kit).map(|_| ()));
    }
    for machine in &machines {
        let (name, target) = (format!("lints of the bench program for {}", machine.core), &machine.target);
        let lints = [
            "clippy",
            "--locked",
            "--target",
            target,
            "--package",
            machine::PACKAGE,
            "--features",
            &machine.feature,
            "--",
            "-D",
            "warnings",
        ];
        report.cargo(&name, &lints);
    }
    report.step("kernels on every emulated core, and instruction counts", || bench::run(Mode::Check));
    report.step("sizes of the firmware", || sizes::run(Mode::Check));
    report.tests(&["test", "--workspace", "--locked", "--no-fail-fast"])?;
    Ok(report.finish())
}

/// What has happened so far.
#[derive(Debug, Default)]
struct Report {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
}

impl Report {
    /// One step that counts as one test.
    fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        eprintln!("== {name}");
        let start = Instant::now();
        match work() {
            Ok(()) => self.passed += 1,
            Err(error) => {
                eprintln!("error: {error:#}");
                self.failed += 1;
                self.failures.push(name.to_owned());
            }
        }
        eprintln!("== {name}: {:.1} s", start.elapsed().as_secs_f64());
    }

    /// One step that is a cargo command.
    fn cargo(&mut self, name: &str, arguments: &[&str]) {
        self.step(name, || {
            let status =
                cargo().args(arguments).stdin(Stdio::null()).status().context("cannot start cargo")?;
            anyhow::ensure!(status.success(), "cargo {} failed: {status}", arguments.join(" "));
            Ok(())
        });
    }

    /// A `cargo test`, of which every test counts.
    fn tests(&mut self, arguments: &[&str]) -> Result<()> {
        eprintln!("== tests");
        let start = Instant::now();
        let mut command = cargo();
        let mut child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut failed = 0;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some(counts) = Counts::parse(&line) {
                self.passed += counts.passed;
                failed += counts.failed;
            } else if let Some(name) =
                line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
            {
                self.failures.push(name.to_owned());
            }
        }
        let status = child.wait()?;
        if !status.success() && failed == 0 {
            // A test that does not compile or a test program that crashed prints no counts.
            failed = 1;
            self.failures.push(format!("cargo {}: {status}", arguments.join(" ")));
        }
        self.failed += failed;
        eprintln!("== tests: {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }

    fn finish(self) -> ExitCode {
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 { ExitCode::Success } else { ExitCode::Failure }
    }
}

/// The counts that one test program prints at its end.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

impl Counts {
    /// Reads `test result: ok. 6 passed; 0 failed; ..`.
    fn parse(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut numbers = counts.split("; ").map(|part| {
            let (number, what) = part.split_once(' ')?;
            Some((what, number.parse().ok()?))
        });
        let mut next =
            |wanted| numbers.next().flatten().filter(|&(what, _)| what == wanted).map(|(_, number)| number);
        Some(Self { passed: next("passed")?, failed: next("failed")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_the_last_line_of_a_test_program() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.2s";
        assert_eq!(Counts::parse(line), Some(Counts { passed: 12, failed: 3 }));
        assert_eq!(
            Counts::parse("test result: ok. 0 passed; 0 failed; 0 ignored"),
            Some(Counts { passed: 0, failed: 0 })
        );
        assert_eq!(Counts::parse("test nor::tests::a ... ok"), None);
    }

    #[test]
    fn a_failed_step_is_counted_and_the_next_one_runs() {
        let mut report = Report::default();
        report.step("one", || anyhow::bail!("broken"));
        report.step("two", || Ok(()));
        assert_eq!(
            (report.passed, report.failed, report.failures.as_slice()),
            (1, 1, &["one".to_owned()][..])
        );
        assert_eq!(report.finish(), ExitCode::Failure);
    }
}
