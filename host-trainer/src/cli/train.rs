//! `rankpatch train`: from a task's file to an adapter on disk, measured with the device's own code.

mod finish;
mod many;
mod measure;
mod plan;
pub(super) mod weights;

use std::path::{Path, PathBuf};

use super::console::{Console, Format};
use super::exit::{FAILURE, Failure, Outcome};
use super::interrupt;
use super::progress::{Progress, Shown};
use super::task::{Overrides, Trainable, load_trainable};
use crate::report::History;
use crate::train::{RunLog, Shard, TrainConfig, TrainError, Trainer, is_manifest};
use finish::{finish, text};
use measure::check_room;
use plan::Plan;

/// File of a run that can go on, in the output folder.
const CHECKPOINT: &str = "checkpoint.safetensors";
/// Folder of the network of a run that trains it in full, in the output folder.
const MODEL: &str = "model";
/// Names the run whose outputs are in the output folder, see [`Learner::identity`]. It is there when all of them are.
const RUN: &str = "run.sha256";
/// Lines of the run's events, in the output folder.
const LOG: &str = "log.jsonl";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The task, a TOML file; or several, or manifests that list many (`tasks = ["a.toml", "b.toml"]`): those of one base
    /// train in one pass over it
    #[arg(value_name = "TASK.toml", required = true)]
    files: Vec<PathBuf>,
    /// Train the part I (from 1) of N of the tasks
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// With several tasks: most rows of input that run over the base at once; fewer need less memory
    #[arg(long, value_name = "ROWS")]
    max_rows: Option<usize>,
    /// Folder for the adapter, the PEFT folder and the summary, the task's name by default; with several tasks, folder for
    /// the folders of the tasks
    #[arg(short, long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Go on from the checkpoint in the output folder
    #[arg(long)]
    resume: bool,
    /// Show what would be trained, and train nothing
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
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
    let file = match &args.files[..] {
        [file] if args.shard.is_none() && !is_manifest(file)? => file,
        _ => return many::run(args, console),
    };
    let config = TrainConfig::load(file, &args.overrides.0)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(&config.task));
    let base = load_trainable(&config.base)?;
    let data = base.data(&config)?;
    let mut trainer = Trainer::new(config, base.network(), data)?;
    check_room(trainer.learner(), &base)?;
    if args.dry_run {
        let plan = Plan::new(trainer.learner(), &base)?;
        return console.print(args.format, &plan, Plan::text);
    }
    let (history, mut log) = train(&mut trainer, &out, args.resume, args.progress, console)?;
    console.note(match &base {
        Trainable::Device(_) => "measuring with the device's code",
        Trainable::Host(..) => "measuring in float: devices do not run this base",
    });
    let summary = finish(trainer.learner(), trainer.model(), &base, &history, &out)?;
    log.keep();
    console.print(args.format, &summary, |summary| text(summary, &out))
}

/// Trains to the end, with a log and checkpoints in the output folder. The log is to be kept once the outputs are written.
pub(super) fn train(
    trainer: &mut Trainer,
    out: &Path,
    resume: bool,
    progress: Progress,
    console: &mut Console<'_>,
) -> Outcome<(History, RunLog)> {
    let checkpoint = out.join(CHECKPOINT);
    if resume {
        trainer.resume(&checkpoint)?;
    }
    trainer.stop_on(interrupt::flag());
    let path = out.join(LOG);
    let mut log =
        if resume { RunLog::resume(&path, trainer.step()) } else { RunLog::create(&path) }.map_err(failed)?;
    let ran = trainer.run(&mut (Shown::new(console, progress), &mut log), Some(&checkpoint));
    ran.map_err(|error| {
        let interrupted = matches!(error, crate::Error::Train(TrainError::Interrupted { .. }));
        let failure = Failure::from(error);
        // The inputs have been read: what fails now is the work.
        if interrupted {
            failure.hint("the same command with --resume goes on")
        } else {
            Failure { code: FAILURE, ..failure }
        }
    })?;
    log.finish().map_err(failed)?;
    Ok((History::read(&path)?, log))
}

/// A result that cannot be written.
fn failed(error: crate::Error) -> Failure {
    Failure::new(FAILURE, error)
}
