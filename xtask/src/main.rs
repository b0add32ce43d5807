//! `cargo xtask`: everything a person or the CI does with this repository, one file per task.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod bench;
mod demo;
mod golden;
mod nightly;
mod setup;
mod sizes;
mod test;
mod tidy;

use std::process;

use anyhow::Result;
use xtask::{ExitCode, NeedsSetup};

const USAGE: &str = "\
Usage: cargo xtask TASK

Tasks:
  setup           installs what is missing: Rust targets (rustup) and QEMU (the system's package manager)
  test            formatting, lints, every test on the host and in QEMU; ends with the counts
  demo            trains an adapter and switches an emulated Cortex-M4 to it and back
  bench [--json]  instruction counts of kernels and networks on the emulated cores
  golden          writes the golden files of the format anew; review them as a change of the format
  miri            readers and slots under Miri; needs a nightly compiler
  fuzz [TARGET [RUNS]]  libFuzzer on every target of fuzz/, 1,000,000 executions each; needs nightly and cargo-fuzz
  tidy            the rules for source files that no compiler checks
  sizes [--json]  flash and RAM of the firmware by section, and its peak stack

Exit codes: 0 success, 1 a check or a step failed, 2 wrong usage, 3 something must be installed by hand first.";

/// A task, its arguments understood.
enum Task {
    Setup,
    Test,
    Demo,
    Bench { json: bool },
    Golden,
    Miri,
    Fuzz { target: Option<String>, runs: Option<u64> },
    Tidy,
    Sizes { json: bool },
    Help,
}

impl Task {
    fn parse(arguments: &[&str]) -> Option<Self> {
        Some(match arguments {
            ["setup"] => Self::Setup,
            ["test"] => Self::Test,
            ["demo"] => Self::Demo,
            ["bench"] => Self::Bench { json: false },
            ["bench", "--json"] => Self::Bench { json: true },
            ["golden"] => Self::Golden,
            ["miri"] => Self::Miri,
            ["fuzz"] => Self::Fuzz { target: None, runs: None },
            ["fuzz", target] => Self::Fuzz { target: Some((*target).to_owned()), runs: None },
            ["fuzz", target, runs] => {
                Self::Fuzz { target: Some((*target).to_owned()), runs: Some(runs.parse().ok()?) }
            }
            ["tidy"] => Self::Tidy,
            ["sizes"] => Self::Sizes { json: false },
            ["sizes", "--json"] => Self::Sizes { json: true },
            ["help" | "--help" | "-h"] => Self::Help,
            _ => return None,
        })
    }

    fn run(&self) -> Result<ExitCode> {
        match *self {
            Self::Setup => setup::run().map(|()| ExitCode::Success),
            Self::Test => test::run(),
            Self::Demo => demo::run().map(|()| ExitCode::Success),
            Self::Bench { json } => bench::run(json).map(|()| ExitCode::Success),
            Self::Golden => golden::run().map(|()| ExitCode::Success),
            Self::Miri => nightly::miri().map(|()| ExitCode::Success),
            Self::Fuzz { ref target, runs } => {
                nightly::fuzz(target.as_deref(), runs).map(|()| ExitCode::Success)
            }
            Self::Tidy => tidy::run(),
            Self::Sizes { json } => sizes::run(json).map(|()| ExitCode::Success),
            Self::Help => {
                println!("{USAGE}");
                Ok(ExitCode::Success)
            }
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let code = if let Some(task) = Task::parse(&arguments) {
        task.run().unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            if error.is::<NeedsSetup>() { ExitCode::NeedsSetup } else { ExitCode::Failure }
        })
    } else {
        eprintln!("error: expected a task, found `{}`\n\n{USAGE}", arguments.join(" "));
        ExitCode::Usage
    };
    process::exit(code as i32);
}
