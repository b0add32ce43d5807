//! `rankpatch eval`: a task's metric on its test set, in float or with the device's own code.

use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use rankpatch_format::link::Mode;
use serde::Serialize;

use super::console::{Console, Format, fields};
use super::exit::{BAD_INPUT, Failure, Outcome};
use super::task::{Trainable, load_adapter, load_float_adapter, load_trainable};
use crate::client::mode_name;
use crate::data::augment::Augment;
use crate::executor::Model;
use crate::lora::FloatAdapter;
use crate::sim::Simulator;
use crate::train::{Example, Metric, Target, TaskData, TrainConfig, evaluate_float, open_device};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The task, a TOML file
    #[arg(long, value_name = "TASK.toml")]
    task: PathBuf,
    /// The base, if not that of the task: an image or a model
    #[arg(long, value_name = "BASE")]
    base: Option<PathBuf>,
    /// The adapter: an .rpa file, a PEFT folder, or the output folder of a run. Without it the base alone is measured
    #[arg(long, value_name = "ADAPTER")]
    adapter: Option<PathBuf>,
    /// The data, if not those of the task
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// The part that is set apart, if not that of the task
    #[arg(long, value_name = "PATH")]
    test_data: Option<PathBuf>,
    /// Measure each class on its own too
    #[arg(long)]
    by_class: bool,
    /// What computes: the device's code, by default, or float where devices do not run the base
    #[arg(long, value_enum)]
    on: Option<On>,
    /// On the device's code: merge the adapter into the weights
    #[arg(long, requires = "adapter")]
    merged: bool,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum On {
    /// The device's code, compiled for the host: what a device will do, bit for bit
    #[value(alias = "device")]
    DeviceCode,
    /// Float factors on the dequantized base, as in training
    Float,
}

#[derive(Debug, Serialize)]
struct Evaluated {
    task: String,
    base: String,
    base_id: String,
    adapter: Option<PathBuf>,
    on: On,
    mode: Option<&'static str>,
    metric: Metric,
    /// The classes, each with what is told right of its examples.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    classes: Vec<(String, Metric)>,
    seconds: f64,
}

/// Measures examples with what was asked for.
type Measure<'a> = &'a dyn Fn(&[Example]) -> crate::Result<Metric>;

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    if args.merged && args.on == Some(On::Float) {
        return Err(Failure::usage(
            "--merged is about the device's code: expected --on device-code, found --on float",
        ));
    }
    let path = |path: &Option<PathBuf>, key: &str| {
        path.as_ref().map(|path| (key.to_owned(), path.display().to_string()))
    };
    let paths = [path(&args.base, "base"), path(&args.data, "data"), path(&args.test_data, "test_data")];
    let overrides: Vec<_> = paths.into_iter().flatten().collect();
    let mut config = TrainConfig::load(&args.task, &overrides)?;
    // More clips to train on are made for nobody here.
    config.recordings.augment = Augment::default();
    let base = load_trainable(&config.base)?;
    let on = match base {
        Trainable::Host(..) if !args.merged => args.on.unwrap_or(On::Float),
        _ => args.on.unwrap_or(On::DeviceCode),
    };
    let mode = if args.merged { Mode::Merged } else { Mode::Streamed };
    let path = args.adapter.as_deref();
    let start;
    let (metric, classes) = match on {
        On::Float => {
            let adapter = path.map(|path| load_float_adapter(path, &base)).transpose()?;
            let data = data(&config, &base, adapter.as_ref(), console)?;
            start = Instant::now();
            let model = Model::new(base.network(), &open_device(config.device)?)?;
            measure(&data, args.by_class, &|examples| evaluate_float(&model, adapter.as_ref(), examples))?
        }
        On::DeviceCode => {
            let device = base.on_device(&config.base).map_err(|failure| failure.hint(IN_FLOAT))?;
            let adapter = path.map(|path| load_adapter(path, device)).transpose()?;
            let data = data(&config, &base, adapter.as_ref().map(|adapter| &adapter.float), console)?;
            start = Instant::now();
            let simulator = Simulator::new(device.image.clone())?;
            let simulator = match adapter {
                Some(adapter) => simulator.with_adapter(adapter.file, mode)?,
                None => simulator,
            };
            measure(&data, args.by_class, &|examples| simulator.evaluate(examples))?
        }
    };
    let network = base.network();
    let evaluated = Evaluated {
        task: config.task,
        base: network.name.clone(),
        base_id: network.id().to_string(),
        adapter: args.adapter.clone(),
        on,
        mode: (on == On::DeviceCode && path.is_some()).then(|| mode_name(mode)),
        metric,
        classes,
        seconds: start.elapsed().as_secs_f64(),
    };
    console.print(args.format, &evaluated, text)
}

/// Measures the examples that are set apart, all together and, if asked to, those of each class.
fn measure(data: &TaskData, by_class: bool, with: Measure<'_>) -> Outcome<(Metric, Vec<(String, Metric)>)> {
    let metric = with(&data.test)?;
    let mut classes = Vec::new();
    for (class, name) in data.labels.iter().enumerate().filter(|_| by_class) {
        let is_of_class = |example: &&Example| example.target == Target::Class(class);
        let examples: Vec<Example> = data.test.iter().filter(is_of_class).cloned().collect();
        if !examples.is_empty() {
            classes.push((name.clone(), with(&examples)?));
        }
    }
    Ok((metric, classes))
}

/// What can be done about a base without the device's code.
const IN_FLOAT: &str = "--on float measures it in the trainer";

/// The task's examples, for which the adapter must have the right head.
fn data(
    config: &TrainConfig,
    base: &Trainable,
    adapter: Option<&FloatAdapter>,
    console: &mut Console<'_>,
) -> Outcome<TaskData> {
    let data = base.data(config)?;
    check_head(adapter, &data)?;
    console.note(&format!("measuring {} on {} examples", config.task, data.test.len()));
    Ok(data)
}

/// A task with classes needs an adapter whose head tells just these.
fn check_head(adapter: Option<&FloatAdapter>, data: &TaskData) -> Outcome {
    let head = adapter.and_then(|adapter| adapter.head.as_ref());
    let found = head.map_or(0, |head| head.labels.len());
    let expected = data.labels.len();
    if expected == found {
        return Ok(());
    }
    let error = anyhow::anyhow!(
        "the adapter's head does not fit the task: expected {expected} classes, found {found}"
    );
    let hint = if adapter.is_none() {
        "name an adapter with --adapter"
    } else {
        "is it the adapter of another task?"
    };
    Err(Failure::new(BAD_INPUT, error).hint(hint))
}

fn text(evaluated: &Evaluated) -> String {
    let Evaluated { task, base, adapter, on, mode, metric, classes, seconds, .. } = evaluated;
    let on = match on {
        On::DeviceCode => "the device's code",
        On::Float => "float",
    };
    let adapter = adapter.as_ref().map_or("none, the base alone".into(), |path| path.display().to_string());
    let mode = mode.map_or(String::new(), |mode| format!(", {mode}"));
    let mut lines = vec![
        ("task", task.clone()),
        ("base", base.clone()),
        ("adapter", format!("{adapter}{mode}")),
        (metric.name.as_str(), format!("{:.4}", metric.value)),
        ("examples", metric.examples.to_string()),
        ("measured with", format!("{on}, {seconds:.1} s")),
    ];
    lines.extend(classes.iter().map(|(name, metric)| {
        ("class", format!("{name}: {:.4} ({} examples)", metric.value, metric.examples))
    }));
    fields(&lines)
}
