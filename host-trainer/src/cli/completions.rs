//! `rankpatch completions`: scripts that complete commands, options and values in a shell.

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use super::Cli;
use super::console::Console;
use super::exit::Outcome;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    // Into memory first: the generator does not report a stream that cannot be written to.
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "rankpatch", &mut script);
    console.out.write_all(&script)?;
    Ok(console.out.flush()?)
}
