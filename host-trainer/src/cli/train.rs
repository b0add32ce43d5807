//! `rankpatch train`: from a task's file to an adapter on disk, measured with the device's own code.

mod host;
mod many;
mod measure;
mod plan;

use std::path::{Path, PathBuf};

use rankpatch_format::adapter::Adapter;

use super::console::{Console, Format, fields, grouped};
use super::exit::{FAILURE, Failure, Outcome};
use super::interrupt;
use super::progress::{Progress, Shown};
use super::task::{LoadedBase, Overrides, Trainable, digest, load_trainable};
use crate::executor::Model;
use crate::export::export;
use crate::lora::FloatAdapter;
use crate::report::{AfterTraining, History, Metrics, REPORT, Summary, sites, write_report};
use crate::train::{Learner, RunLog, Shard, TaskData, TrainConfig, TrainError, Trainer, is_manifest};
use crate::{files, peft};
use measure::{check_room, measure};
use plan::Plan;

/// File of a run that can go on, in the output folder.
const CHECKPOINT: &str = "checkpoint.safetensors";
/// Folder of the PEFT adapter, in the output folder.
const PEFT: &str = "peft";
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
    let data = match &base {
        Trainable::Device(base) => TaskData::load(&config, &base.image.base()?)?,
        Trainable::Host(network) => TaskData::load_on_host(&config, network)?,
    };
    let sequence = config.sequence;
    let mut trainer = Trainer::new(config, base.network(), data)?;
    // Trimmed ranks are never above what a matrix can have, for which there always is room.
    if let (Trainable::Device(base), None) = (&base, trainer.config().explained_variance) {
        check_room(&trainer.adapter()?, base)?;
    }
    if args.dry_run {
        let plan = Plan::new(&trainer, &base, sequence)?;
        return console.print(args.format, &plan, Plan::text);
    }
    let checkpoint = out.join(CHECKPOINT);
    if args.resume {
        trainer.resume(&checkpoint)?;
    }
    trainer.stop_on(interrupt::flag());
    let path = out.join(LOG);
    let mut log = if args.resume { RunLog::resume(&path, trainer.step()) } else { RunLog::create(&path) }
        .map_err(failed)?;
    let ran = trainer.run(&mut (Shown::new(console, args.progress), &mut log), Some(&checkpoint));
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
    let history = History::read(&path)?;
    let adapter = trainer.adapter()?;
    match base {
        Trainable::Device(base) => {
            console.note("measuring with the device's code");
            let summary = finish(trainer.learner(), trainer.model(), &adapter, &base, &history, &out)?;
            console.print(args.format, &summary, text)
        }
        Trainable::Host(network) => {
            console.note("measuring in float: devices do not run this base");
            let summary = host::finish(&trainer, &adapter, &network, &history, &out)?;
            console.print(args.format, &summary, host::Summary::text)
        }
    }
}

/// A result that cannot be written.
fn failed(error: crate::Error) -> Failure {
    Failure::new(FAILURE, error)
}

/// Exports the adapter in both forms, measures it and writes the summary.
fn finish(
    trainer: &Learner,
    model: &Model,
    adapter: &FloatAdapter,
    base: &LoadedBase,
    history: &History,
    out: &Path,
) -> Outcome<Summary> {
    let LoadedBase { network, image } = base;
    let exported = export(adapter, network, trainer.config().sequence, |file| digest(image, file))?;
    let (file_path, peft_path) = (out.join(format!("{}.rpa", adapter.task)), out.join(PEFT));
    let run = out.join(RUN);
    let unquantized = trainer.unquantized()?.map(|before| (trainer.first_quantized_step(), before));
    let test = &trainer.data().test;
    let metric = measure(model, adapter, unquantized, &exported.file, base, test)?;
    let base_image = image.base()?;
    let payload_bytes = Adapter::new(&exported.file, &base_image)?.payload_bytes();
    let summary = Summary {
        task: adapter.task.clone(),
        base: network.name.clone(),
        base_id: network.id().to_string(),
        sites: adapter.sites.len(),
        rank: adapter.config.rank,
        alpha: adapter.config.alpha,
        trained: trainer.trained(),
        steps: trainer.step(),
        payload_bytes,
        adapter_file_bytes: exported.file.len(),
        self_test_digest: format!("{:#018x}", exported.data.self_test.digest),
        metric,
        training_seconds: history.seconds,
        adapter: file_path,
        peft: peft_path,
        per_site: sites(adapter, network)?,
    };
    // First, since what is being replaced is no longer what an earlier run finished.
    let mut written = vec![(run.clone(), b"unfinished\n".to_vec())];
    written.extend(peft::contents(adapter, network, &summary.peft)?);
    written.push((summary.adapter.clone(), exported.file));
    files::write_together(&written)?;
    write_report(out, &summary, history, trainer.config()).map_err(failed)?;
    // After them, since a folder with a summary is that of a finished run.
    summary.write(out).map_err(failed)?;
    files::write_atomically(&run, format!("{}\n", trainer.identity()).as_bytes()).map_err(failed)?;
    Ok(summary)
}

fn text(summary: &Summary) -> String {
    let Metrics { name, examples, base, after_training, adapter_float, adapter_device, .. } = &summary.metric;
    let base = base.map_or("-".into(), |value| format!("{value:.4}"));
    let rank = match summary.ranks() {
        (low, high) if low < high => format!("ranks {low} to {high}"),
        (rank, _) => format!("rank {rank}"),
    };
    let mut lines = vec![
        ("task", summary.task.clone()),
        ("base", format!("{} ({})", summary.base, summary.base_id)),
        ("sites", format!("{}, {rank}, alpha {}", summary.sites, summary.alpha)),
        (
            "file",
            format!(
                "{} bytes, payload {}",
                grouped(summary.adapter_file_bytes),
                grouped(summary.payload_bytes)
            ),
        ),
        (
            name.as_str(),
            format!(
                "base {base}, adapter in float {adapter_float:.4}, on the device {adapter_device:.4} ({examples} examples)"
            ),
        ),
    ];
    if let Some(AfterTraining { step, float, device, .. }) = after_training {
        lines.push((
            "after training",
            format!("step {step}: in float {float:.4}, rounded for the device {device:.4}"),
        ));
    }
    lines.extend([
        ("trained in", format!("{:.1} s", summary.training_seconds)),
        ("adapter", summary.adapter.display().to_string()),
        ("PEFT", summary.peft.display().to_string()),
        ("report", summary.adapter.with_file_name(REPORT).display().to_string()),
    ]);
    fields(&lines)
}
