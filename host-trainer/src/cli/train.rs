//! `rankpatch train`: from a task's file to an adapter on disk, measured with the device's own code.

mod plan;

use std::path::{Path, PathBuf};

use rankpatch_format::adapter::Adapter;
use rankpatch_format::link::Mode;
use serde::Serialize;

use super::console::{Console, Format, fields, grouped};
use super::exit::{FAILURE, Failure, Outcome};
use super::interrupt;
use super::progress::{Progress, Shown};
use super::task::{LoadedBase, Overrides, digest, load_base};
use crate::export::export;
use crate::lora::FloatAdapter;
use crate::sim::Simulator;
use crate::train::{Metric, TaskData, TrainConfig, TrainError, Trainer, evaluate_float};
use crate::{files, peft};
use plan::Plan;

/// File of a run that can go on, in the output folder.
const CHECKPOINT: &str = "checkpoint.safetensors";
/// Folder of the PEFT adapter, in the output folder.
const PEFT: &str = "peft";
/// File of the results, in the output folder.
const SUMMARY: &str = "summary.json";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The task, a TOML file
    #[arg(value_name = "TASK.toml")]
    file: PathBuf,
    /// Folder for the adapter, the PEFT folder and the summary; the task's name by default
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

/// What a run made.
#[derive(Debug, Serialize)]
struct Summary {
    task: String,
    base: String,
    base_id: String,
    sites: usize,
    rank: usize,
    alpha: f64,
    payload_bytes: usize,
    adapter_file_bytes: usize,
    self_test_digest: String,
    metric: Metrics,
    training_seconds: f64,
    adapter: PathBuf,
    peft: PathBuf,
}

/// The task's metric, each measured on the test set.
#[derive(Debug, Serialize)]
struct Metrics {
    name: &'static str,
    examples: usize,
    /// The base alone, with the device's code; `None` if the task needs a head that the base lacks.
    base: Option<f64>,
    /// Float factors, in the trainer.
    adapter_float: f64,
    /// The file, streamed, with the device's code.
    adapter_device: f64,
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    let config = TrainConfig::load(&args.file, &args.overrides.0)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(&config.task));
    let base = load_base(&config.base)?;
    let data = TaskData::load(&config, &base.image.base()?)?;
    let sequence = config.sequence;
    let mut trainer = Trainer::new(config, &base.network, data)?;
    if args.dry_run {
        let plan = Plan::new(&trainer, &base, sequence)?;
        return console.print(args.format, &plan, Plan::text);
    }
    let checkpoint = out.join(CHECKPOINT);
    if args.resume {
        trainer.resume(&checkpoint)?;
    }
    trainer.stop_on(interrupt::flag());
    let start = std::time::Instant::now();
    let ran = trainer.run(&mut Shown::new(console, args.progress), Some(&checkpoint));
    ran.map_err(|error| {
        let interrupted = matches!(error, crate::Error::Train(TrainError::Interrupted { .. }));
        let failure = Failure::from(error);
        if interrupted { failure.hint("the same command with --resume goes on") } else { failure }
    })?;
    let training_seconds = start.elapsed().as_secs_f64();
    let adapter = trainer.adapter()?;
    console.note("measuring with the device's code");
    let summary = finish(&trainer, &adapter, &base, sequence, training_seconds, &out)?;
    console.print(args.format, &summary, text)
}

/// Exports the adapter in both forms, measures it and writes the summary.
fn finish(
    trainer: &Trainer,
    adapter: &FloatAdapter,
    base: &LoadedBase,
    sequence: u32,
    training_seconds: f64,
    out: &Path,
) -> Outcome<Summary> {
    let LoadedBase { network, image } = base;
    let exported = export(adapter, network, sequence, |file| digest(image, file))?;
    let (file_path, peft_path) = (out.join(format!("{}.rpa", adapter.task)), out.join(PEFT));
    let failed = |error| Failure::new(FAILURE, error);
    exported.write(&file_path).map_err(failed)?;
    peft::write(adapter, &network.name, &peft_path).map_err(failed)?;

    let test = &trainer.data().test;
    let Metric { name, value: adapter_float, examples } =
        evaluate_float(trainer.model(), Some(adapter), test)?;
    let plain = Simulator::new(image.clone())?;
    let alone = if adapter.head.is_none() { Some(plain.evaluate(test)?.value) } else { None };
    let patched = plain.with_adapter(exported.file.clone(), Mode::Streamed)?;
    let adapter_device = patched.evaluate(test)?.value;
    let payload_bytes = patched.adapter()?.as_ref().map_or(0, Adapter::payload_bytes);
    let summary = Summary {
        task: adapter.task.clone(),
        base: network.name.clone(),
        base_id: network.id().to_string(),
        sites: adapter.sites.len(),
        rank: adapter.config.rank,
        alpha: adapter.config.alpha,
        payload_bytes,
        adapter_file_bytes: exported.file.len(),
        self_test_digest: format!("{:#018x}", exported.data.self_test.digest),
        metric: Metrics { name: name.as_str(), examples, base: alone, adapter_float, adapter_device },
        training_seconds,
        adapter: file_path,
        peft: peft_path,
    };
    let json = serde_json::to_string_pretty(&summary).map_err(std::io::Error::from)? + "\n";
    files::write_atomically(&out.join(SUMMARY), json.as_bytes()).map_err(failed)?;
    Ok(summary)
}

fn text(summary: &Summary) -> String {
    let Metrics { name, examples, base, adapter_float, adapter_device } = &summary.metric;
    let base = base.map_or("-".into(), |value| format!("{value:.4}"));
    fields(&[
        ("task", summary.task.clone()),
        ("base", format!("{} ({})", summary.base, summary.base_id)),
        ("sites", format!("{}, rank {}, alpha {}", summary.sites, summary.rank, summary.alpha)),
        (
            "file",
            format!(
                "{} bytes, payload {}",
                grouped(summary.adapter_file_bytes),
                grouped(summary.payload_bytes)
            ),
        ),
        (
            name,
            format!(
                "base {base}, adapter in float {adapter_float:.4}, on the device {adapter_device:.4} ({examples} examples)"
            ),
        ),
        ("trained in", format!("{:.1} s", summary.training_seconds)),
        ("adapter", summary.adapter.display().to_string()),
        ("PEFT", summary.peft.display().to_string()),
    ])
}
