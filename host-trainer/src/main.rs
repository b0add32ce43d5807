//! The `rankpatch` command. Everything is in [`rankpatch::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(rankpatch::cli::console::with_standard_streams(|console| {
        rankpatch::cli::run(std::env::args_os(), console)
    }))
}
