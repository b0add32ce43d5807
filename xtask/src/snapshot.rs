//! Numbers that a committed file remembers: what has grown by more than a hundredth is an error until it is explained by
//! writing the file anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use xtask::workspace_root;

/// What a task does with what it has measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Print a table.
    Table,
    /// Print JSON.
    Json,
    /// Write the snapshot.
    Bless,
    /// Compare with the snapshot.
    Check,
}

impl Mode {
    /// The mode that a task's arguments choose.
    pub(crate) fn parse(arguments: &[&str]) -> Option<Self> {
        match arguments {
            [] => Some(Self::Table),
            ["--json"] => Some(Self::Json),
            ["--bless"] => Some(Self::Bless),
            ["--check"] => Some(Self::Check),
            _ => None,
        }
    }
}

/// A number of this tree.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    name: String,
    value: u64,
    /// How much it may differ from one measurement to the next.
    slack: u64,
}

impl Measured {
    /// A number that is the same at every measurement.
    pub(crate) fn new(name: String, value: u64) -> Self {
        Self { name, value, slack: 0 }
    }

    /// A number that is not.
    pub(crate) fn within(name: String, value: u64, slack: u64) -> Self {
        Self { name, value, slack }
    }
}

/// The committed file.
pub(crate) struct Snapshot {
    /// In the repository.
    pub(crate) file: &'static str,
    /// What writes it.
    pub(crate) command: &'static str,
}

impl Snapshot {
    /// Writes the file and returns where it is.
    pub(crate) fn bless(&self, measured: &[Measured]) -> Result<PathBuf> {
        let numbers: BTreeMap<_, _> = measured.iter().map(|now| (&now.name, now.value)).collect();
        let path = workspace_root().join(self.file);
        fs::write(&path, serde_json::to_string_pretty(&numbers)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Compares with the file. Names what has shrunk, too, and fails only for what has grown, appeared or gone.
    pub(crate) fn check(&self, measured: &[Measured]) -> Result<()> {
        let path = workspace_root().join(self.file);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}: write it with `{}`", path.display(), self.command))?;
        let before: BTreeMap<String, u64> =
            serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
        let Differences { worse, better } = compare(&before, measured);
        for line in &better {
            eprintln!("{line}: remember it with `{}`", self.command);
        }
        if !worse.is_empty() {
            let lines = worse.join("\n");
            bail!(
                "expected the numbers of {}, found\n{lines}\nif that is meant, `{}`",
                self.file,
                self.command
            );
        }
        Ok(())
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Differences {
    worse: Vec<String>,
    better: Vec<String>,
}

/// What differs by more than 1 % and what measurements may differ by.
fn compare(before: &BTreeMap<String, u64>, measured: &[Measured]) -> Differences {
    let mut found = Differences::default();
    for Measured { name, value, slack } in measured {
        let Some(&expected) = before.get(name) else {
            found.worse.push(format!("{name}: {value}, which is new"));
            continue;
        };
        let allowed = (expected / 100).max(*slack);
        let percent = 100.0 * (*value as f64 / expected.max(1) as f64 - 1.0);
        let line = format!("{name}: {value} instead of {expected} ({percent:+.1} %)");
        if *value > expected + allowed {
            found.worse.push(line);
        } else if value + allowed < expected {
            found.better.push(line);
        }
    }
    let is_measured = |name: &String| measured.iter().any(|now| now.name == *name);
    let gone = before.keys().filter(|name| !is_measured(name));
    found.worse.extend(gone.map(|name| format!("{name}: not measured any more")));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_beyond_a_hundredth_and_changed_names_are_told() {
        let before = BTreeMap::from([("a", 1000), ("b", 50), ("c", 7)].map(|(name, n)| (name.to_owned(), n)));
        let compare = |numbers: &[(&str, u64, u64)]| {
            let measured: Vec<_> = numbers
                .iter()
                .map(|&(name, value, slack)| Measured::within(name.to_owned(), value, slack))
                .collect();
            compare(&before, &measured)
        };
        assert_eq!(compare(&[("a", 1010, 0), ("b", 50, 0), ("c", 7, 0)]), Differences::default());
        let found = compare(&[("a", 1011, 0), ("b", 49, 0), ("d", 1, 0)]);
        assert_eq!(
            found.worse,
            ["a: 1011 instead of 1000 (+1.1 %)", "d: 1, which is new", "c: not measured any more"]
        );
        assert_eq!(found.better, ["b: 49 instead of 50 (-2.0 %)"]);
        assert_eq!(compare(&[("a", 1020, 20), ("b", 40, 10), ("c", 0, 7)]), Differences::default());
    }
}
