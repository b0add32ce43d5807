//! `rankpatch pretrain`: from a shape and data to a base, which `base build` makes an image of.

use std::path::PathBuf;

use super::console::{Console, Format};
use super::exit::Outcome;
use super::progress::Progress;
use super::task::Overrides;
use super::train;
use crate::pretrain::{PretrainConfig, prepare};
use crate::train::Trainer;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The base, a TOML file: keys of training as in a task's, and a table [model] with its shape
    #[arg(value_name = "BASE.toml")]
    file: PathBuf,
    /// Folder for the network, the summary and the report, the base's name by default
    #[arg(short, long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Go on from the checkpoint in the output folder
    #[arg(long)]
    resume: bool,
    /// How to show the run
    #[arg(long, value_enum, default_value_t)]
    progress: Progress,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    let config = PretrainConfig::load(&args.file, &args.overrides.0)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(&config.train.task));
    let (network, data) = prepare(&config)?;
    let mut trainer = Trainer::new(config.train, &network, data)?;
    let (history, mut log) = train::train(&mut trainer, &out, args.resume, args.progress, console)?;
    console.note("measuring with the device's code");
    let folders = (out.as_path(), out.as_path());
    let summary =
        train::weights::finish(trainer.learner(), trainer.model(), &network, None, &history, folders)?;
    log.keep();
    console.print(args.format, &summary, |summary| train::weights::text(summary, &out))
}
