//! Trains every task of `host-trainer/tasks/whole` from its file, measures what came of it with the device's code and on an emulated
//! Cortex-M4, and writes one table and a picture of it.
//!
//! Everything is done by the `rankpatch` command and the firmware; this file calls them and puts numbers beside each other.
//! A task that cannot be trained is named and left out. What an earlier call has trained is not trained again.

mod device;
mod picture;
mod table;
mod task;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use device::Installed;
use serde_json::Value;
use table::{Row, Run};
use task::{Task, find, groups};
use xtask::{output_folder, workspace_root};

use crate::demo::{Tool, text};

/// Data that the repository carries: a part of what the tasks want.
const CARRIED: &str = "tests/data";
/// What the learning rate of lora_b is divided by when every weight learns.
const FULL_RATE_DIVISOR: f64 = 10.0;
/// What it is multiplied with when a head learns alone: at the adapter's rate it would not be done in as many steps.
const HEAD_RATE_FACTOR: &str = "10";

/// What to train.
#[derive(Debug)]
pub(crate) struct Options {
    /// The folder that the paths of data in the tasks' files are relative to.
    data: PathBuf,
    /// Runs of each task, with the seeds 0, 1, ...
    seeds: u64,
    /// Names of tasks; all if there are none.
    tasks: Vec<String>,
}

impl Options {
    /// Understands the arguments after `tasks`.
    pub(crate) fn parse(arguments: &[&str]) -> Option<Self> {
        let mut options = Self { data: workspace_root().join(CARRIED), seeds: 1, tasks: Vec::new() };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match *argument {
                // The trainer is started in the repository's root, wherever this was typed.
                "--data" => options.data = std::path::absolute(rest.next()?).ok()?,
                "--seeds" => options.seeds = rest.next()?.parse().ok().filter(|seeds| *seeds > 0)?,
                name if name.starts_with('-') => return None,
                name => options.tasks.push(name.to_owned()),
            }
        }
        Some(options)
    }
}

/// Trains, measures, writes `target/tasks/tasks.json` and `tasks.svg`, and prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let tasks = find(options)?;
    ensure!(!tasks.is_empty(), "nothing to train: no data in {}", options.data.display());
    let folder = output_folder("tasks")?;
    let tool = Tool::build()?;
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    for task in tasks.iter().filter(|task| !task.trains) {
        if let Some(row) = kept(&task.name, base_alone(&tool, task)) {
            rows.insert(&task.name, row);
        }
    }
    for group in groups(&tasks) {
        for seed in 0..options.seeds {
            runs(&tool, &group, seed, &folder.join(format!("seed{seed}")), &mut rows)?;
        }
        // What is a reference only is run once.
        let trained = || group.iter().copied().filter(|task| rows.contains_key(task.name.as_str()));
        let with_head: Vec<&Task> = trained().filter(|task| !rows[task.name.as_str()].is_text()).collect();
        let options = ["--target-modules", "[]", "--head-lr-ratio", HEAD_RATE_FACTOR];
        let head_only = train(&tool, &with_head, 0, &folder.join("head-only"), &options)?;
        let mut full = BTreeMap::new();
        for task in trained() {
            let rate = (task.learning_rate / FULL_RATE_DIVISOR).to_string();
            let options = ["--method", "full", "--learning-rate", &rate];
            full.extend(train(&tool, &[task], 0, &folder.join("full"), &options)?);
        }
        for (name, row) in &mut rows {
            if let Some(summary) = head_only.get(*name) {
                row.head_only = summary["metric"]["adapter_device"].as_f64();
            }
            if let Some(summary) = full.get(*name) {
                row.full = summary["metric"]["adapter_float"].as_f64();
            }
        }
    }
    rows.retain(|_, row| row.is_complete(options.seeds));
    ensure!(!rows.is_empty(), "no task could be trained");
    if let Err(error) = count(&tool, &tasks, &folder, &mut rows) {
        eprintln!("instructions are left out: {error:#}");
    }
    let rows: Vec<Row> = tasks.iter().filter_map(|task| rows.remove(task.name.as_str())).collect();
    fs::write(
        folder.join("tasks.json"),
        serde_json::to_string_pretty(&table::json(options.seeds, &rows))? + "\n",
    )?;
    picture::write(&folder.join("tasks.svg"), &rows)?;
    println!("{}\n\nwritten to {}", table::text(&rows), folder.join("tasks.json").display());
    Ok(())
}

/// What has been found; what has not is said, and left out.
fn kept<T>(task: &str, found: Result<T>) -> Option<T> {
    found.inspect_err(|error| eprintln!("{task} is left out: {error:#}")).ok()
}

/// Trains a group with one seed and adds a run to each task's row; those with a run missing are left out at the end.
fn runs<'t>(
    tool: &Tool,
    group: &[&'t Task],
    seed: u64,
    out: &Path,
    rows: &mut BTreeMap<&'t str, Row>,
) -> Result<()> {
    for (name, summary) in train(tool, group, seed, out, &[])? {
        let Some(task) = group.iter().find(|task| task.name == name) else { continue };
        let Some(merged) = kept(&name, merged(tool, task, out)) else { continue };
        let metric = &summary["metric"];
        let row = rows.entry(&task.name).or_insert_with(|| Row::new(&name, &summary));
        row.runs.push(Run {
            seed,
            float: metric["adapter_float"].as_f64(),
            streamed: metric["adapter_device"].as_f64(),
            merged,
            seconds: summary["training_seconds"].as_f64(),
        });
    }
    Ok(())
}

/// Trains a group; each task has a folder of its name in `out`. The summaries of those that could be trained, by their names.
fn train(
    tool: &Tool,
    group: &[&Task],
    seed: u64,
    out: &Path,
    more: &[&str],
) -> Result<BTreeMap<String, Value>> {
    let Some(first) = group.first() else { return Ok(BTreeMap::new()) };
    let names: Vec<&str> = group.iter().map(|task| task.name.as_str()).collect();
    eprintln!("training {}, seed {seed} {}", names.join(", "), more.join(" "));
    let seed = seed.to_string();
    // With a shard one task, too, is trained as many are: its folder has its name, and what is done is skipped.
    let mut arguments = vec!["train", "--shard", "1/1", "--out", text(out)?, "--seed", &seed];
    for task in group {
        arguments.push(text(&task.file)?);
    }
    arguments.extend(first.data_options()?);
    arguments.extend(more);
    let answered = kept(&names.join(", "), tool.try_json(&arguments));
    Ok(answered.map(|(results, _)| summaries(&results)).unwrap_or_default())
}

/// The summaries in the trainer's answer, by the names of their tasks. What failed is said.
fn summaries(results: &Value) -> BTreeMap<String, Value> {
    let mut summaries = BTreeMap::new();
    for result in results["tasks"].as_array().into_iter().flatten() {
        let task = result["task"].as_str().unwrap_or_default();
        if result["summary"].is_object() {
            summaries.insert(task.to_owned(), result["summary"].clone());
        } else {
            let error = result["error"].as_str().or(result["status"].as_str()).unwrap_or("no result");
            eprintln!("{task} is left out: {error}");
        }
    }
    summaries
}

/// The metric with the adapter merged into the weights.
fn merged(tool: &Tool, task: &Task, out: &Path) -> Result<Option<f64>> {
    let adapter = adapter(out, task);
    let mut arguments = vec!["eval", "--task", text(&task.file)?, "--adapter", text(&adapter)?, "--merged"];
    arguments.extend(task.data_options()?);
    Ok(tool.json(&arguments)?["metric"]["value"].as_f64())
}

/// The row of a task that is the base as it is.
fn base_alone(tool: &Tool, task: &Task) -> Result<Row> {
    let mut arguments = vec!["eval", "--task", text(&task.file)?];
    arguments.extend(task.data_options()?);
    let evaluated = tool.json(&arguments)?;
    let metric = &evaluated["metric"];
    ensure!(metric["value"].is_number(), "expected a value of the metric, found {metric}");
    Ok(Row::base_alone(&task.name, metric))
}

fn adapter(out: &Path, task: &Task) -> PathBuf {
    out.join(&task.name).join(format!("{}.rpa", task.name))
}

/// Adds what the first run's adapters cost on the device, base by base.
fn count(tool: &Tool, tasks: &[Task], folder: &Path, rows: &mut BTreeMap<&str, Row>) -> Result<()> {
    let mut bases: BTreeMap<&str, Vec<Installed<'_>>> = BTreeMap::new();
    for task in tasks.iter().filter(|task| task.trains) {
        if let Some(row) = rows.get(task.name.as_str()) {
            let adapter = adapter(&folder.join("seed0"), task);
            let installed = Installed { task, adapter, answer: row.answer() };
            bases.entry(&task.base).or_default().push(installed);
        }
    }
    for (base, tasks) in bases {
        eprintln!("counting instructions of {} tasks on {base}", tasks.len());
        let counts = device::count(tool, &tasks, folder).with_context(|| format!("with {base}"))?;
        for (Installed { task, .. }, counts) in tasks.iter().zip(counts) {
            if let Some(row) = rows.get_mut(task.name.as_str()) {
                row.counts = counts;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_task_that_failed_takes_no_other_with_it() {
        let results = json!({ "tasks": [
            { "status": "trained", "task": "a", "summary": { "training_seconds": 3.5 } },
            { "status": "failed", "task": "b", "error": "no such file", "exit_code": 4 },
            { "status": "skipped", "task": "c", "summary": { "training_seconds": 7.5 } },
        ] });
        let found = summaries(&results);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(found["c"]["training_seconds"], 7.5);
    }
}
