//! `rankpatch key new` and `show`.

use std::path::PathBuf;

use clap::Subcommand;
use rankpatch_format::KeyId;
use serde::Serialize;

use super::console::{Console, Format, fields};
use super::exit::{FAILURE, Failure, Outcome};
use crate::keys::{self, SecretKey};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Makes a key pair: a secret key file that only its owner can read, and a public key file for firmware
    New(New),
    /// Shows the public key and the id of a key file
    Show(Show),
}

#[derive(Debug, clap::Args)]
pub(super) struct New {
    /// The secret key file; the public key goes beside it, with the extension .pub. Neither may exist
    #[arg(short, long, value_name = "FILE.key")]
    output: PathBuf,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// A secret or a public key file
    #[arg(value_name = "KEY")]
    file: PathBuf,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Report {
    key_id: String,
    public_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_file: Option<PathBuf>,
}

pub(super) fn run(command: &Command, console: &mut Console<'_>) -> Outcome {
    let report = |key| Report {
        key_id: KeyId::of(&key).to_string(),
        public_key: keys::hex(&key),
        secret_file: None,
        public_file: None,
    };
    let (format, report) = match command {
        Command::New(args) => {
            let failure = |error| Failure::new(FAILURE, error);
            let key = SecretKey::generate().map_err(failure)?;
            let public = key.write(&args.output).map_err(|error| {
                failure(error)
                    .hint("keys are never overwritten: choose another name, or move the old file away")
            })?;
            let files = (Some(args.output.clone()), Some(public));
            let report = report(key.public());
            (args.format, Report { secret_file: files.0, public_file: files.1, ..report })
        }
        Command::Show(args) => (args.format, report(keys::read_public(&args.file)?)),
    };
    console.print(format, &report, |report| {
        let mut lines = vec![("key id", report.key_id.clone()), ("public key", report.public_key.clone())];
        let files = [("secret file", &report.secret_file), ("public file", &report.public_file)];
        for (name, path) in files {
            lines.extend(path.as_ref().map(|path| (name, path.display().to_string())));
        }
        fields(&lines)
    })
}
