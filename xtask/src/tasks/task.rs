//! The tasks' files: which there are, what data they want, and which of them train together.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xtask::workspace_root;

use super::{Options, kept};
use crate::demo::text;

const FILES: &str = "host-trainer/tasks/whole";
/// The trainer's own rate, where a file has none.
const LEARNING_RATE: f64 = 5e-3;

/// A task's file, as far as this command reads it.
pub(super) struct Task {
    pub(super) name: String,
    pub(super) file: PathBuf,
    /// The base as the file has it: tasks of one base and the same data train together.
    pub(super) base: String,
    data: PathBuf,
    test_data: Option<PathBuf>,
    /// Whether it reads sounds; the others read texts.
    pub(super) hears: bool,
    /// Whether there is anything to train; otherwise the base is the task.
    pub(super) trains: bool,
    /// Of every lora_b, the larger one with LoRA+.
    pub(super) learning_rate: f64,
}

impl Task {
    fn read(file: &Path, data: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let table: toml::Table = text.parse().with_context(|| format!("in {}", file.display()))?;
        let key = |key: &str| table.get(key).and_then(toml::Value::as_str);
        let need =
            |name: &str| key(name).with_context(|| format!("expected a key {name} in {}", file.display()));
        let dataset = need("dataset")?;
        let no_sites = table.get("target_modules").and_then(toml::Value::as_array).is_some_and(Vec::is_empty);
        Ok(Self {
            name: need("task")?.to_owned(),
            file: file.to_owned(),
            base: need("base")?.to_owned(),
            data: data.join(need("data")?),
            test_data: key("test_data").map(|path| data.join(path)),
            hears: dataset == "recordings",
            // Without sites there is the head of a task with classes, and nothing in a task of texts.
            trains: !no_sites || !matches!(dataset, "document" | "text" | "names" | "stories"),
            learning_rate: number(&table, "learning_rate").unwrap_or(LEARNING_RATE)
                * number(&table, "loraplus_lr_ratio").unwrap_or(1.0),
        })
    }

    /// The first of its data that is not there.
    fn missing(&self) -> Option<&Path> {
        let data = [Some(&self.data), self.test_data.as_ref()];
        data.into_iter().flatten().map(PathBuf::as_path).find(|path| !path.exists())
    }

    /// Options that say where its data lie.
    pub(super) fn data_options(&self) -> Result<Vec<&str>> {
        let mut options = vec!["--data", text(&self.data)?];
        if let Some(path) = &self.test_data {
            options.extend(["--test-data", text(path)?]);
        }
        Ok(options)
    }
}

fn number(table: &toml::Table, key: &str) -> Option<f64> {
    let value = table.get(key)?;
    value.as_float().or_else(|| Some(value.as_integer()? as f64))
}

/// The tasks that are asked for and have their data, in the order of their files' names; the others are named.
pub(super) fn find(options: &Options) -> Result<Vec<Task>> {
    let folder = workspace_root().join(FILES);
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        files.push(entry?.path());
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    if let Some(name) = options.tasks.iter().find(|name| !folder.join(format!("{name}.toml")).exists()) {
        anyhow::bail!("expected the name of a task in {FILES}, found {name}");
    }
    let mut tasks = Vec::new();
    for file in files {
        let Some(task) = kept(&file.display().to_string(), Task::read(&file, &options.data)) else {
            continue;
        };
        if !options.tasks.is_empty() && !options.tasks.contains(&task.name) {
            continue;
        }
        match task.missing() {
            Some(path) => eprintln!("{} is left out: there is no {}", task.name, path.display()),
            None => tasks.push(task),
        }
    }
    Ok(tasks)
}

/// Tasks that may train in one pass: of one base, with the same data.
pub(super) fn groups(tasks: &[Task]) -> Vec<Vec<&Task>> {
    let mut groups: Vec<Vec<&Task>> = Vec::new();
    for task in tasks.iter().filter(|task| task.trains) {
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
        assert!(tasks.iter().all(|task| task.hears == task.base.ends_with("kwt1")));
        assert!(Options::parse(&["--seeds", "0"]).is_none() && Options::parse(&["--what"]).is_none());
        let unknown = Options::parse(&["nothing"]).unwrap();
        assert!(find(&unknown).err().unwrap().to_string().contains("found nothing"));
    }

    #[test]
    fn a_task_without_sites_trains_only_if_it_has_a_head() {
        let folder = std::env::temp_dir().join(format!("rankpatch-task-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let read = |dataset: &str, more: &str| {
            let file = folder.join("t.toml");
            let text = format!("task = \"t\"\nbase = \"b\"\ndataset = \"{dataset}\"\ndata = \"d\"\n{more}");
            fs::write(&file, text).unwrap();
            Task::read(&file, Path::new("elsewhere")).unwrap()
        };
        assert!(!read("stories", "target_modules = []").trains);
        assert!(read("recordings", "target_modules = []").trains);
        let plain = read("text", "learning_rate = 2e-4\ntest_data = \"e\"");
        assert!(plain.trains && (plain.learning_rate - 2e-4).abs() < 1e-12);
        assert_eq!(plain.data_options().unwrap(), ["--data", "elsewhere/d", "--test-data", "elsewhere/e"]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
