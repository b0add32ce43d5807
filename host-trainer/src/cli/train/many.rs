//! `rankpatch train` of several tasks: those of one base train in one pass, and each is written as soon as it ends.
//!
//! A task that cannot be trained takes no other with it. A task whose folder holds the outputs of the same run is skipped; what
//! another run left there is replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::Serialize;

use super::super::console::{Console, Table};
use super::super::exit::{FAILURE, Failure, INTERRUPTED, Outcome};
use super::super::interrupt;
use super::super::progress::Progress;
use super::super::task::{PEFT, Trainable, load_trainable};
use super::finish::finish;
use super::measure::check_room;
use super::plan::Plan;
use super::{Args, CHECKPOINT, LOG, MODEL, RUN, failed};
use crate::Error;
use crate::executor::Model;
use crate::report::{History, Summary};
use crate::train::{
    Event, FrozenBase, Learner, ManyReporter, ManyTrainer, Method, Reporter, RunLog, Shard, TrainConfig,
    load_tasks,
};

/// What came of a task.
#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
enum Result {
    /// It was trained and written.
    Trained { task: String, summary: Box<Summary> },
    /// Its outputs were there.
    Skipped { task: String, summary: Box<Summary> },
    /// It was stopped and has a checkpoint.
    Interrupted { task: String, step: u64, steps: u64 },
    /// It would be trained, or with `done` be skipped.
    Planned { task: String, done: bool, plan: Box<Plan> },
    /// It was not trained.
    Failed { task: String, error: String, exit_code: u8 },
}

#[derive(Debug, Serialize)]
struct Results {
    tasks: Vec<Result>,
}

/// A task of the command.
struct Task {
    name: String,
    out: PathBuf,
    config: Option<TrainConfig>,
    result: Option<Result>,
}

impl Task {
    fn fail(&mut self, failure: &Failure) {
        let (error, exit_code) = (failure.message(), failure.code);
        self.result = Some(Result::Failed { task: self.name.clone(), error, exit_code });
    }
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    let listed = load_tasks(&args.files, &args.overrides.0)?;
    let shard = args.shard.unwrap_or(Shard { index: 1, count: 1 });
    let names: Vec<&String> =
        listed.iter().filter_map(|listed| Some(&listed.config.as_ref().ok()?.task)).collect();
    let mut seen = BTreeSet::new();
    if let Some(twice) = names.into_iter().find(|name| !seen.insert(*name)) {
        return Err(Failure::usage(format!(
            "two tasks are named {twice:?}: expected other names, which are folders"
        )));
    }
    let folder = args.out.clone().unwrap_or_default();
    let mut tasks = Vec::new();
    for listed in shard.of(&listed) {
        let (name, config) = match &listed.config {
            Ok(config) => (config.task.clone(), Some(config.clone())),
            Err(_) => (listed.file.display().to_string(), None),
        };
        let mut task = Task { out: folder.join(&name), name, config, result: None };
        if let Err(error) = &listed.config {
            let error = error.to_string();
            let exit_code = super::super::exit::USAGE;
            task.result = Some(Result::Failed { task: task.name.clone(), error, exit_code });
        }
        tasks.push(task);
    }
    let mut by_base: BTreeMap<(PathBuf, String, Option<String>), Vec<usize>> = BTreeMap::new();
    for (index, task) in tasks.iter().enumerate() {
        if let Some(config) = &task.config {
            let device = format!("{:?}", config.device);
            // A task that trains its base in full has it for itself.
            let own = (config.method == Method::Full).then(|| config.task.clone());
            by_base.entry((config.base.clone(), device, own)).or_default().push(index);
        }
    }
    for ((base, ..), members) in by_base {
        if interrupt::flag().load(std::sync::atomic::Ordering::Relaxed) {
            break;
        }
        if let Err(failure) = train(&base, &members, &mut tasks, args, console) {
            for index in members {
                if tasks[index].result.is_none() {
                    tasks[index].fail(&failure);
                }
            }
        }
    }
    let stopped = |task: Task| {
        let never = || Result::Interrupted { task: task.name.clone(), step: 0, steps: 0 };
        task.result.unwrap_or_else(never)
    };
    let results = Results { tasks: tasks.into_iter().map(stopped).collect() };
    if results.tasks.is_empty() && args.progress != Progress::Json {
        console.log("nothing to train: no task is listed, or none falls to this part of them");
    }
    console.print(args.format, &results, text)?;
    let count = |of: fn(&Result) -> bool| results.tasks.iter().filter(|result| of(result)).count();
    let total = results.tasks.len();
    match (
        count(|result| matches!(result, Result::Interrupted { .. })),
        count(|result| matches!(result, Result::Failed { .. })),
    ) {
        (0, 0) => Ok(()),
        (0, bad) => {
            let others = if args.dry_run { "the others can be trained" } else { "the others are done" };
            Err(Failure::new(FAILURE, anyhow::anyhow!("{bad} of {total} tasks failed, {others}")))
        }
        (open, _) => {
            let error = anyhow::anyhow!("stopped with {open} of {total} tasks open");
            Err(Failure::new(INTERRUPTED, error).hint("the same command with --resume goes on"))
        }
    }
}

/// Trains the tasks of one base.
fn train(
    path: &Path,
    members: &[usize],
    tasks: &mut [Task],
    args: &Args,
    console: &mut Console<'_>,
) -> Outcome {
    let base = load_trainable(path)?;
    let network = base.network();
    let first = members.first().and_then(|index| tasks[*index].config.as_ref());
    let frozen = match first {
        Some(config) => FrozenBase::for_task(network, config)?,
        None => FrozenBase::new(network, &Device::Cpu)?,
    };
    let (mut learners, mut indices, mut logs) = (Vec::new(), Vec::new(), Vec::new());
    for index in members {
        let task = &mut tasks[*index];
        let bound = match task.config.clone() {
            Some(config) => bind(config, &frozen, &base),
            None => continue,
        };
        let begun = bound.and_then(|learner| {
            let done = finished(task, &learner);
            if args.dry_run {
                let plan = Box::new(Plan::new(&learner, &base)?);
                let name = task.name.clone();
                task.result = Some(Result::Planned { task: name, done: done.is_some(), plan });
            } else if let Some(summary) = done {
                task.result = Some(Result::Skipped { task: task.name.clone(), summary });
            } else {
                let (learner, log) = begin(task, learner, args.resume)?;
                learners.push(learner);
                indices.push(*index);
                logs.push(log);
            }
            Ok(())
        });
        if let Err(failure) = begun {
            task.fail(&failure);
        }
    }
    let mut trainer = ManyTrainer::new(frozen, learners);
    if let Some(rows) = args.max_rows {
        trainer.limit_rows(rows);
    }
    trainer.stop_on(interrupt::flag());
    for (at, index) in indices.iter().enumerate() {
        trainer.checkpoint_at(at, tasks[*index].out.join(CHECKPOINT));
    }
    let names: Vec<String> = indices.iter().map(|index| tasks[*index].name.clone()).collect();
    loop {
        let json = args.progress == Progress::Json;
        let ended =
            trainer.advance(&mut Shown { console: &mut *console, json, names: &names, logs: &mut logs });
        if ended.is_empty() {
            return Ok(());
        }
        for (at, result) in ended {
            let task = &mut tasks[indices[at]];
            let learner = trainer.learner(at);
            let logged = result.map_err(Failure::from).and_then(|()| logs[at].finish().map_err(failed));
            let written = logged.and_then(|()| write(learner, &trainer.base().model, &base, &task.out));
            match written {
                Ok(summary) => {
                    logs[at].keep();
                    task.result =
                        Some(Result::Trained { task: task.name.clone(), summary: Box::new(summary) });
                }
                Err(failure) if failure.code == INTERRUPTED => {
                    let (task_name, step, steps) = (task.name.clone(), learner.step(), learner.steps());
                    task.result = Some(Result::Interrupted { task: task_name, step, steps });
                }
                Err(failure) => task.fail(&failure),
            }
        }
    }
}

/// A task before its first step.
fn bind(config: TrainConfig, frozen: &FrozenBase, base: &Trainable) -> Outcome<Learner> {
    let data = base.data(&config)?;
    let learner = Learner::new(frozen, base.network(), config, data)?;
    check_room(&learner, base)?;
    Ok(learner)
}

/// The summary of a task whose folder has all outputs of this very run.
fn finished(task: &Task, learner: &Learner) -> Option<Box<Summary>> {
    let Task { out, name, .. } = task;
    let folder = if learner.config().method == Method::Full { MODEL } else { PEFT };
    if run_in(out).as_deref() != Some(&learner.identity()) || !out.join(folder).is_dir() {
        return None;
    }
    let summary = Summary::read(out).ok()?;
    let whole = summary.file.is_none() || out.join(format!("{name}.rpa")).is_file();
    whole.then(|| Box::new(summary))
}

/// The run whose outputs are in a folder.
fn run_in(out: &Path) -> Option<String> {
    Some(std::fs::read_to_string(out.join(RUN)).ok()?.trim().to_owned())
}

/// Takes a task to its checkpoint if it is to go on from it, and opens its log.
fn begin(task: &Task, mut learner: Learner, resume: bool) -> Outcome<(Learner, RunLog)> {
    let (checkpoint, log) = (task.out.join(CHECKPOINT), task.out.join(LOG));
    let resumed = resume && checkpoint.is_file() && {
        let resumed = learner.resume(&checkpoint);
        // Beside the outputs of another run it may be that run's checkpoint.
        if run_in(&task.out).is_none_or(|run| run == learner.identity()) {
            resumed?;
            true
        } else {
            resumed.is_ok()
        }
    };
    let log = if resumed {
        RunLog::resume(&log, learner.step())
    } else {
        match std::fs::remove_file(&checkpoint) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(Error::io(&checkpoint)(error)));
            }
            _ => RunLog::create(&log),
        }
    };
    Ok((learner, log.map_err(failed)?))
}

fn write(learner: &Learner, model: &Model, base: &Trainable, out: &Path) -> Outcome<Summary> {
    finish(learner, model, base, &History::read(&out.join(LOG))?, out)
}

/// Shows the events of all tasks, and writes each task's log.
struct Shown<'s, 'o> {
    console: &'s mut Console<'o>,
    json: bool,
    names: &'s [String],
    logs: &'s mut [RunLog],
}

/// An event with its task.
#[derive(Serialize)]
struct Line<'e> {
    name: &'e str,
    #[serde(flatten)]
    event: &'e Event<'e>,
}

impl ManyReporter for Shown<'_, '_> {
    fn event(&mut self, task: usize, event: &Event<'_>) {
        self.logs[task].event(event);
        let name = &self.names[task];
        if self.json {
            let line = serde_json::to_string(&Line { name, event }).unwrap_or_default();
            return self.console.log(&line);
        }
        let line = match event {
            Event::Started { base, sites, first_step, steps, .. } => {
                format!("training on {base}: {sites} sites, steps {first_step} to {steps}")
            }
            Event::Step { step, steps, loss, tokens_per_second, .. }
                if step.is_multiple_of((steps / 20).max(1)) =>
            {
                format!("step {step}/{steps}  loss {loss:.4}  {tokens_per_second:.0} tokens/s")
            }
            Event::Evaluated { step, metric } => format!("step {step}: {} {:.4}", metric.name, metric.value),
            Event::EarlyStopped { step, best_step, .. } => {
                format!("step {step}: no better result since step {best_step}, whose factors are kept")
            }
            Event::Saved { step } => format!("step {step}: checkpoint written"),
            Event::Finished { steps, loss, seconds } => {
                format!("{steps} steps in {seconds:.1} s, loss {loss:.4} at the end")
            }
            _ => return,
        };
        self.console.log(&format!("{name}: {line}"));
    }
}

fn text(results: &Results) -> String {
    let mut planned =
        Table::new(2, &["task", "base", "sites", "ranks", "trained", "bytes", "examples", "steps", ""]);
    let mut lines = String::new();
    for result in &results.tasks {
        let line = match result {
            Result::Trained { task, summary } | Result::Skipped { task, summary } => {
                let done = if matches!(result, Result::Skipped { .. }) { "was done" } else { "trained" };
                let (value, how) = summary.metric.result();
                let folder = summary.peft.as_ref().or(summary.model.as_ref());
                let path = summary.file.as_ref().map(|file| &file.adapter).or(folder);
                let path = path.map_or_else(String::new, |path| path.display().to_string());
                let name = summary.metric.name;
                format!("{task}: {done}, {name} {value:.4} {how}, {path}\n")
            }
            Result::Planned { plan, done, .. } => {
                plan.row(&mut planned, *done);
                continue;
            }
            Result::Interrupted { task, step, steps } => {
                format!("{task}: stopped after step {step} of {steps}\n")
            }
            Result::Failed { task, error, .. } => format!("{task}: failed: {error}\n"),
        };
        lines += &line;
    }
    if planned.is_empty() { lines } else { planned.to_string() + &lines }
}
