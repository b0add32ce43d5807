//! The tasks of one command: files of single tasks, and manifests that list many; and which of them a shard has.
//!
//! A manifest is a TOML file with a list `tasks` of task files and perhaps a table `defaults` of keys that tasks leave out:
//!
//! ```toml
//! tasks = ["names.toml", "intent.toml"]
//! [defaults]
//! base = "bases/stories260k"
//! rank = 8
//! ```

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{TrainConfig, TrainError};
use crate::{Error, Result};

/// The key of a manifest's list.
const TASKS: &str = "tasks";
/// The key of what its tasks leave out.
const DEFAULTS: &str = "defaults";
/// Keys whose values are paths.
const PATHS: [&str; 3] = ["base", "data", "test_data"];

/// A task file as it is listed.
#[derive(Debug)]
pub struct Listed {
    /// The file.
    pub file: PathBuf,
    /// What it configures, or why it does not.
    pub config: Result<TrainConfig>,
}

/// Reads task files and manifests in their order. A task file that cannot be read is listed with its error.
///
/// # Errors
/// [`Error::Io`], [`TrainError::Toml`], [`TrainError::BadValue`] if a manifest is wrong itself.
pub fn load(files: &[PathBuf], overrides: &[(String, String)]) -> Result<Vec<Listed>> {
    let mut listed = Vec::new();
    for file in files {
        let Some((tasks, defaults)) = read_manifest(file)? else {
            listed.push(Listed { file: file.clone(), config: TrainConfig::load(file, overrides) });
            continue;
        };
        let folder = file.parent().unwrap_or(Path::new(""));
        for task in tasks {
            let task = folder.join(task);
            let config = with_defaults(&task, &defaults, folder, overrides);
            listed.push(Listed { file: task, config });
        }
    }
    Ok(listed)
}

/// Whether a file is a manifest.
///
/// # Errors
/// As [`load`].
pub fn is_manifest(file: &Path) -> Result<bool> {
    Ok(read_manifest(file)?.is_some())
}

fn read_manifest(file: &Path) -> Result<Option<(Vec<PathBuf>, Table)>> {
    let text = std::fs::read_to_string(file).map_err(Error::io(file))?;
    // What is no TOML is refused as a task.
    let Ok(mut table) = text.parse::<Table>() else { return Ok(None) };
    let Some(tasks) = table.remove(TASKS) else { return Ok(None) };
    let wrong = |key, expected: &str, found: &Value| TrainError::BadValue {
        key,
        expected: expected.into(),
        found: format!("{} {found}", found.type_str()),
    };
    let list = tasks.as_array().and_then(|list| {
        list.iter().map(|item| item.as_str().map(PathBuf::from)).collect::<Option<Vec<_>>>()
    });
    let list = list.ok_or_else(|| wrong(TASKS, "a list of task files", &tasks))?;
    let defaults = match table.remove(DEFAULTS) {
        None => Table::new(),
        Some(Value::Table(defaults)) => defaults,
        Some(other) => return Err(wrong(DEFAULTS, "a table of keys of tasks", &other).into()),
    };
    match table.iter().next() {
        None => Ok(Some((list, defaults))),
        Some((found, _)) => Err(TrainError::UnknownKey {
            origin: file.display().to_string(),
            found: found.clone(),
            nearest: None,
            known: format!("{TASKS}, {DEFAULTS}"),
        }
        .into()),
    }
}

fn with_defaults(
    file: &Path,
    defaults: &Table,
    folder: &Path,
    overrides: &[(String, String)],
) -> Result<TrainConfig> {
    let text = std::fs::read_to_string(file).map_err(Error::io(file))?;
    let origin = file.display().to_string();
    let own = file.parent().unwrap_or(Path::new(""));
    let Ok(mut table) = text.parse::<Table>() else {
        return TrainConfig::parse(&text, &origin, own, overrides);
    };
    let names: Vec<(&str, &str)> = TrainConfig::aliases().chain([("steps", "epochs")]).collect();
    let is_set = |table: &Table, key: &str| {
        let same =
            |name: &str| name == key || names.iter().any(|pair| [(name, key), (key, name)].contains(pair));
        table.keys().any(|name| same(name))
    };
    for (key, value) in defaults {
        if is_set(&table, key) {
            continue;
        }
        let value = match value.as_str().filter(|_| PATHS.contains(&key.as_str())) {
            Some(path) => {
                let path = std::path::absolute(folder.join(path)).map_err(Error::io(folder))?;
                Value::String(path.to_string_lossy().into_owned())
            }
            None => value.clone(),
        };
        table.insert(key.clone(), value);
    }
    TrainConfig::parse(&table.to_string(), &origin, own, overrides)
}

/// One of several parts that a list of tasks is cut into, `I/N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    pub index: usize,
    /// Number of parts.
    pub count: usize,
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parts =
            text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match parts {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => Err("expected I/N with I from 1 to N".into()),
        }
    }
}

impl Shard {
    /// The tasks of this part, in their order: a pure function of the list. Parts differ by one task at most, and tasks of one
    /// base are in as few parts as that allows.
    pub fn of<'a>(self, tasks: &'a [Listed]) -> Vec<&'a Listed> {
        let key = |index: &usize| {
            let task: &'a Listed = &tasks[*index];
            let config = task.config.as_ref().ok();
            (config.map(|config| (&config.base, &config.task)), &task.file, *index)
        };
        let mut order: Vec<usize> = (0..tasks.len()).collect();
        order.sort_by_key(key);
        let bound = |part: usize| tasks.len() * part / self.count;
        let mut own = order[bound(self.index - 1)..bound(self.index)].to_vec();
        own.sort_unstable();
        own.into_iter().map(|index| &tasks[index]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_partition_the_catalogue_and_keep_bases_together() {
        let catalogue = Path::new(env!("CARGO_MANIFEST_DIR")).join("catalogue/catalogue.toml");
        assert!(is_manifest(&catalogue).unwrap());
        let tasks = load(&[catalogue], &[]).unwrap();
        let names = |tasks: &[&Listed]| -> Vec<String> {
            tasks.iter().map(|task| task.config.as_ref().unwrap().task.clone()).collect()
        };
        let mut all = names(&tasks.iter().collect::<Vec<_>>());
        assert!(all.len() >= 3, "{all:?}");
        for count in 1..=all.len() + 1 {
            let parts: Vec<Vec<String>> =
                (1..=count).map(|index| names(&Shard { index, count }.of(&tasks))).collect();
            let (least, most) = (parts.iter().map(Vec::len).min(), parts.iter().map(Vec::len).max());
            assert!(most.unwrap() - least.unwrap() <= 1, "{parts:?}");
            let mut found = parts.concat();
            found.sort_unstable();
            all.sort_unstable();
            assert_eq!(found, all);
        }
        assert!(["0/3", "4/3", "1", "a/b", "1/0"].iter().all(|text| text.parse::<Shard>().is_err()));
    }

    #[test]
    fn tasks_inherit_what_they_leave_out() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("a.toml", "task = \"a\"\ndataset = \"names\"\ndata = \"a.txt\"\nr = 3\nepochs = 2\n");
        write("b.toml", "task = \"b\"\n");
        write(
            "all.toml",
            "tasks = [\"a.toml\", \"b.toml\", \"c.toml\"]\n[defaults]\nbase = \"x.rpb\"\nrank = 5\nsteps = 7\n",
        );
        let tasks = load(&[folder.path().join("all.toml")], &[]).unwrap();
        let config = tasks[0].config.as_ref().unwrap();
        assert_eq!((config.lora.rank, config.length), (3, super::super::Length::Epochs(2.0)));
        assert_eq!(config.base, std::path::absolute(folder.path().join("x.rpb")).unwrap());
        assert_eq!(config.data, folder.path().join("a.txt"));
        let message = |task: &Listed| task.config.as_ref().unwrap_err().to_string();
        assert!(message(&tasks[1]).contains("does not set dataset"), "{}", message(&tasks[1]));
        assert!(message(&tasks[2]).contains("c.toml"), "{}", message(&tasks[2]));
        write("bad.toml", "tasks = [\"a.toml\"]\nrank = 3\n");
        let error = load(&[folder.path().join("bad.toml")], &[]).unwrap_err().to_string();
        assert!(error.contains("unknown key \"rank\"") && error.contains("tasks, defaults"), "{error}");
    }
}
