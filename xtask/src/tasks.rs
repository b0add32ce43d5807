//! Trains every task of `host-trainer/tasks/whole` from its file, measures what came of it with the device's code, and writes one
//! table and a picture of it.
//!
//! Everything is done by the `rankpatch` command; this file finds data, calls it and puts numbers beside each other.

mod picture;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use table::{Row, Run};
use xtask::{output_folder, workspace_root};

use crate::demo::{Tool, text};

const FILES: &str = "host-trainer/tasks/whole";
/// Data that the repository carries: a part of what the tasks want.
const CARRIED: &str = "tests/data";

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

/// A task's file, as far as this command reads it.
struct Task {
    name: String,
    file: PathBuf,
    /// The base as the file has it: tasks of one base and the same data train together.
    base: String,
    data: PathBuf,
    test_data: Option<PathBuf>,
    classifies: bool,
}

impl Task {
    fn read(file: &Path, data: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let table: toml::Table = text.parse().with_context(|| format!("in {}", file.display()))?;
        let key = |key: &str| table.get(key).and_then(toml::Value::as_str);
        let need =
            |name: &str| key(name).with_context(|| format!("expected a key {name} in {}", file.display()));
        Ok(Self {
            name: need("task")?.to_owned(),
            file: file.to_owned(),
            base: need("base")?.to_owned(),
            data: data.join(need("data")?),
            test_data: key("test_data").map(|path| data.join(path)),
            classifies: matches!(need("dataset")?, "recordings" | "intents" | "features"),
        })
    }

    /// The first of its data that is not there.
    fn missing(&self) -> Option<&Path> {
        [Some(&self.data), self.test_data.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .find(|path| !path.exists())
    }

    /// Options that say where its data lie.
    fn data_options(&self) -> Result<Vec<&str>> {
        let mut options = vec!["--data", text(&self.data)?];
        if let Some(path) = &self.test_data {
            options.extend(["--test-data", text(path)?]);
        }
        Ok(options)
    }
}

/// Trains, measures, writes `target/tasks/tasks.json` and `tasks.svg`, and prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let tasks = find(options)?;
    ensure!(!tasks.is_empty(), "nothing to train: no data in {}", options.data.display());
    let folder = output_folder("tasks")?;
    let tool = Tool::build()?;
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    for group in groups(&tasks) {
        for seed in 0..options.seeds {
            let out = folder.join(format!("seed{seed}"));
            train(&tool, &group, seed, &out, &[])?;
            for task in &group {
                let summary = summary(&out, task)?;
                let metric = &summary["metric"];
                let number = |value: &Value| value.as_f64();
                let row = rows.entry(&task.name).or_insert_with(|| Row::new(&task.name, &summary));
                row.runs.push(Run {
                    seed,
                    float: number(&metric["adapter_float"]),
                    streamed: number(&metric["adapter_device"]),
                    merged: merged(&tool, task, &out)?,
                    seconds: number(&summary["training_seconds"]),
                });
            }
        }
        if group[0].classifies {
            let out = folder.join("head-only");
            train(&tool, &group, 0, &out, &["--target-modules", "[]"])?;
            for task in &group {
                let value = summary(&out, task)?["metric"]["adapter_device"].as_f64();
                if let Some(row) = rows.get_mut(task.name.as_str()) {
                    row.head_only = value;
                }
            }
        }
    }
    let rows: Vec<Row> = tasks.iter().filter_map(|task| rows.remove(task.name.as_str())).collect();
    let json = serde_json::json!({ "seeds": options.seeds, "tasks": rows.iter().map(Row::json).collect::<Vec<_>>() });
    fs::write(folder.join("tasks.json"), serde_json::to_string_pretty(&json)? + "\n")?;
    picture::write(&folder.join("tasks.svg"), &rows)?;
    println!("{}", table::text(&rows));
    Ok(())
}

/// The tasks that are asked for and have their data, in the order of their names; the others are named.
fn find(options: &Options) -> Result<Vec<Task>> {
    let folder = workspace_root().join(FILES);
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        files.push(entry?.path());
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let mut tasks = Vec::new();
    for file in files {
        let task = Task::read(&file, &options.data)?;
        if !options.tasks.is_empty() && !options.tasks.contains(&task.name) {
            continue;
        }
        match task.missing() {
            Some(path) => eprintln!("{} is left out: there is no {}", task.name, path.display()),
            None => tasks.push(task),
        }
    }
    if let Some(name) = options.tasks.iter().find(|name| !folder.join(format!("{name}.toml")).exists()) {
        anyhow::bail!("expected the name of a task in {FILES}, found {name}");
    }
    Ok(tasks)
}

/// Tasks that may train in one pass: of one base, with the same data.
fn groups(tasks: &[Task]) -> Vec<Vec<&Task>> {
    let mut groups: Vec<Vec<&Task>> = Vec::new();
    for task in tasks {
        let fits = |group: &&mut Vec<&Task>| {
            let first = group[0];
            (&first.base, &first.data, &first.test_data) == (&task.base, &task.data, &task.test_data)
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(task),
            None => groups.push(vec![task]),
        }
    }
    groups
}

/// Trains a group; each task has a folder of its name in `out`.
fn train(tool: &Tool, group: &[&Task], seed: u64, out: &Path, more: &[&str]) -> Result<()> {
    let names: Vec<&str> = group.iter().map(|task| task.name.as_str()).collect();
    eprintln!("training {}, seed {seed} {}", names.join(", "), more.join(" "));
    let seed = seed.to_string();
    let mut arguments = vec!["train"];
    for task in group {
        arguments.push(text(&task.file)?);
    }
    let own = out.join(names[0]);
    arguments.extend(["--out", text(if group.len() == 1 { &own } else { out })?, "--seed", &seed]);
    arguments.extend(group[0].data_options()?);
    arguments.extend(more);
    tool.json(&arguments)?;
    Ok(())
}

fn summary(out: &Path, task: &Task) -> Result<Value> {
    let path = out.join(&task.name).join("summary.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
}

/// The metric with the adapter merged into the weights.
fn merged(tool: &Tool, task: &Task, out: &Path) -> Result<Option<f64>> {
    let adapter = out.join(&task.name).join(format!("{}.rpa", task.name));
    let mut arguments = vec!["eval", "--task", text(&task.file)?, "--adapter", text(&adapter)?, "--merged"];
    arguments.extend(task.data_options()?);
    Ok(tool.json(&arguments)?["metric"]["value"].as_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_read_and_those_of_one_recording_train_together() {
        let options = Options::parse(&["--data", "/no/such/folder", "--seeds", "3"]).unwrap();
        assert_eq!(options.seeds, 3);
        assert!(find(&options).unwrap().is_empty(), "without data nothing is trained");
        let tasks = find(&Options::parse(&[]).unwrap()).unwrap();
        let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
        assert!(names.contains(&"speaker") && names.contains(&"names") && !names.contains(&"commands"));
        let sound = groups(&tasks).into_iter().find(|group| group.iter().any(|task| task.name == "speaker"));
        assert_eq!(sound.unwrap().len(), 8);
        assert!(Options::parse(&["--seeds", "0"]).is_none() && Options::parse(&["--what"]).is_none());
        let unknown = Options::parse(&["nothing"]).unwrap();
        assert!(find(&unknown).err().unwrap().to_string().contains("found nothing"));
    }
}
