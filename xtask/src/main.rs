//! `cargo xtask`: everything a person or the CI does with this repository, one file per task.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod bench;
mod bench_train;
mod demo;
mod everything;
mod golden;
mod nightly;
mod product;
mod setup;
mod sizes;
mod snapshot;
mod tasks;
mod test;
mod tidy;

use std::process;

use anyhow::Result;
use snapshot::Mode;
use xtask::{ExitCode, NeedsSetup};

const USAGE: &str = "\
Usage: cargo xtask TASK

Tasks:
  setup           installs what is missing: Rust targets (rustup) and QEMU (the system's package manager)
  test            formatting, lints, every test on the host and in QEMU; ends with the counts
  demo            trains an adapter and switches an emulated Cortex-M4 to it and back
  bench [--json]  instruction counts of kernels and networks on the emulated cores. --bless writes them to
                  tests/golden/bench.json instead; --check, as `test` does, fails if one has grown by more than 1 %
  bench-train [--json] [--device cuda:N] [--peft PYTHON]
                  step times and memory of the trainer, on the CPU or a GPU; with a Python that has torch, transformers and
                  peft, also of those, in turns
  tasks [--data FOLDER] [--seeds N] [TASK..]
                  trains the tasks of host-trainer/tasks/whole whose data are in the folder, counts their instructions in QEMU,
                  and writes one table of them; what was trained before is not trained again
  everything [--switches N] [FILE.rpa..]
                  one flash of 1 MB for each base, with firmware and every adapter of `tasks` or of the command line, switched
                  through in QEMU and compared with the host
  golden          writes the golden files of the format anew; review them as a change of the format
  miri            readers and slots under Miri; needs a nightly compiler
  fuzz [TARGET [RUNS]]  libFuzzer on every target of fuzz/, 1,000,000 executions each; needs nightly and cargo-fuzz
  tidy            the rules for source files that no compiler checks
  sizes [--json]  flash and RAM of the firmware by section, and its peak stack; --bless and --check as for bench

Exit codes: 0 success, 1 a check or a step failed, 2 wrong usage, 3 something must be installed by hand first.";

/// A task, its arguments understood.
enum Task {
    Setup,
    Test,
    Demo,
    Bench(Mode),
    BenchTrain(bench_train::Options),
    Tasks(tasks::Options),
    Everything(everything::Options),
    Golden,
    Miri,
    Fuzz { target: Option<String>, runs: Option<u64> },
    Tidy,
    Sizes(Mode),
    Help,
}

impl Task {
    fn parse(arguments: &[&str]) -> Option<Self> {
        Some(match arguments {
            ["setup"] => Self::Setup,
            ["test"] => Self::Test,
            ["demo"] => Self::Demo,
            ["bench", rest @ ..] => Self::Bench(Mode::parse(rest)?),
            ["bench-train", rest @ ..] => Self::BenchTrain(bench_train::Options::parse(rest)?),
            ["tasks", rest @ ..] => Self::Tasks(tasks::Options::parse(rest)?),
            ["everything", rest @ ..] => Self::Everything(everything::Options::parse(rest)?),
            ["golden"] => Self::Golden,
            ["miri"] => Self::Miri,
            ["fuzz"] => Self::Fuzz { target: None, runs: None },
            ["fuzz", target] => Self::Fuzz { target: Some((*target).to_owned()), runs: None },
            ["fuzz", target, runs] => {
                Self::Fuzz { target: Some((*target).to_owned()), runs: Some(runs.parse().ok()?) }
            }
            ["tidy"] => Self::Tidy,
            ["sizes", rest @ ..] => Self::Sizes(Mode::parse(rest)?),
            ["help" | "--help" | "-h"] => Self::Help,
            _ => return None,
        })
    }

    fn run(&self) -> Result<ExitCode> {
        match *self {
            Self::Setup => setup::run().map(|()| ExitCode::Success),
            Self::Test => test::run(),
            Self::Demo => demo::run().map(|()| ExitCode::Success),
            Self::Bench(mode) => bench::run(mode).map(|()| ExitCode::Success),
            Self::BenchTrain(ref options) => bench_train::run(options).map(|()| ExitCode::Success),
            Self::Tasks(ref options) => tasks::run(options).map(|()| ExitCode::Success),
            Self::Everything(ref options) => everything::run(options).map(|()| ExitCode::Success),
            Self::Golden => golden::run().map(|()| ExitCode::Success),
            Self::Miri => nightly::miri().map(|()| ExitCode::Success),
            Self::Fuzz { ref target, runs } => {
                nightly::fuzz(target.as_deref(), runs).map(|()| ExitCode::Success)
            }
            Self::Tidy => tidy::run(),
            Self::Sizes(mode) => sizes::run(mode).map(|()| ExitCode::Success),
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
