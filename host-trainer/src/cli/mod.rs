//! The `rankpatch` command: one file per verb. Results go to the standard output, progress and logs to the standard
//! error, which is quiet when it is no terminal. What a verb does is in the library; this module reads arguments and
//! prints.

mod base;
mod bundle;
mod compare;
mod completions;
pub mod console;
mod device;
mod eval;
pub mod exit;
mod export;
mod features;
mod inspect;
mod interrupt;
mod key;
mod labels;
mod new;
mod pretrain;
mod progress;
mod sign;
mod sim;
mod spans;
mod task;
#[cfg(test)]
mod tests;
mod train;
mod verify;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use console::Console;
use exit::{Failure, Outcome};
pub use inspect::payload_bytes;

/// Trains LoRA adapters for microcontrollers and switches devices to them.
#[derive(Debug, Parser)]
#[command(name = "rankpatch", version, after_help = exit::HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes base images from published models
    #[command(subcommand)]
    Base(base::Command),
    /// Trains a small base from scratch
    Pretrain(pretrain::Args),
    /// Trains an adapter for a task and exports it
    Train(train::Args),
    /// Measures a base or an adapter on a task's test set
    Eval(eval::Args),
    /// Shows finished runs side by side
    Compare(compare::Args),
    /// Turns a PEFT folder into an adapter file for devices, and back
    Export(export::Args),
    /// Shows what is in a base image or an adapter file, and checks it
    Inspect(inspect::Args),
    /// Makes and shows signing keys
    #[command(subcommand)]
    Key(key::Command),
    /// Signs an adapter file for a product
    Sign(sign::Args),
    /// Checks the signature of an adapter file, and whether a device would accept it
    Verify(verify::Args),
    /// Builds the image of a device's adapter partition, reads one back, or plans how many tasks fit
    Bundle(bundle::Args),
    /// Runs the device's own code on the host
    Sim(sim::Args),
    /// Talks to a device over a serial port or TCP
    Device(device::Args),
    /// Makes a firmware project that runs a base with adapters in QEMU
    New(new::Args),
    /// Prints a script that completes commands and options in a shell
    Completions(completions::Args),
}

/// Runs a command line, the program's name first, and returns the exit code.
pub fn run<I: IntoIterator<Item: Into<OsString> + Clone>>(arguments: I, console: &mut Console<'_>) -> u8 {
    match execute(arguments, console) {
        Ok(()) => exit::SUCCESS,
        // Whoever read the results has seen enough.
        Err(failure) if is_broken_pipe(&failure) => exit::SUCCESS,
        Err(failure) => {
            let _ = write!(console.err, "{}", failure.render());
            failure.code
        }
    }
}

fn execute<I: IntoIterator<Item: Into<OsString> + Clone>>(
    arguments: I,
    console: &mut Console<'_>,
) -> Outcome {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => return Ok(write!(console.out, "{}", error.render())?),
        Err(error) => {
            // Clap's text names what was expected and found, and the nearest argument; its prefix is ours.
            let text = error.render().to_string();
            return Err(Failure::usage(text.strip_prefix("error: ").unwrap_or(&text).trim_end()));
        }
    };
    match cli.command {
        Command::Base(command) => base::run(&command, console),
        Command::Pretrain(args) => pretrain::run(&args, console),
        Command::Train(args) => train::run(&args, console),
        Command::Eval(args) => eval::run(&args, console),
        Command::Compare(args) => compare::run(&args, console),
        Command::Completions(args) => completions::run(&args, console),
        Command::Export(args) => export::run(&args, console),
        Command::Inspect(args) => inspect::run(&args, console),
        Command::New(args) => new::run(&args, console),
        Command::Bundle(args) => bundle::run(&args, console),
        Command::Key(command) => key::run(&command, console),
        Command::Sign(args) => sign::run(&args, console),
        Command::Verify(args) => verify::run(&args, console),
        Command::Sim(args) => sim::run(&args, console),
        Command::Device(args) => device::run(&args, console),
    }
}

fn is_broken_pipe(failure: &Failure) -> bool {
    let io = failure.error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
