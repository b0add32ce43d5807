//! Data sets: from files to typed examples, divided into what trains and what is only reported on.
//!
//! Loaders know a file's format and the data set's own division. They do not tokenize, batch or compute features.

pub mod arrays;
pub mod audio;
pub mod augment;
#[cfg(test)]
mod carry;
pub mod encoder;
mod merge;
pub mod recordings;
pub mod records;
pub mod signal;
#[cfg(test)]
pub(crate) mod test_data;
#[cfg(test)]
mod tests;
pub mod text;

use std::collections::BTreeMap;
use std::path::Path;

use crate::rng::Rng;
use crate::{Error, Result};

/// Examples, divided.
#[derive(Debug, Clone, PartialEq)]
pub struct Split<E> {
    /// For training.
    pub train: Vec<E>,
    /// For reporting only.
    pub test: Vec<E>,
}

/// An input and its class.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled<I> {
    /// The input.
    pub input: I,
    /// Index of the class in [`Classes::labels`].
    pub label: usize,
}

/// A data set for classification.
#[derive(Debug, Clone, PartialEq)]
pub struct Classes<I> {
    /// Names of the classes, sorted.
    pub labels: Vec<String>,
    /// The examples.
    pub split: Split<Labelled<I>>,
}

impl<E> Split<E> {
    /// Refuses a data set with an empty part.
    pub(crate) fn check(self, path: &Path) -> Result<Self> {
        for (part, examples) in [("training", &self.train), ("test", &self.test)] {
            if examples.is_empty() {
                return Err(Error::EmptyDataSet { path: path.to_path_buf(), part });
            }
        }
        Ok(self)
    }
}

impl<E> Split<E> {
    /// Sets `fraction` of the examples apart, chosen by `seed`, of every class the same fraction but never all: at least one
    /// example overall if there are two. Both parts keep their order.
    pub fn seeded(examples: Vec<E>, fraction: f64, seed: u64, class: impl Fn(&E) -> Option<&str>) -> Self {
        let mut members: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
        for (index, example) in examples.iter().enumerate() {
            members.entry(class(example)).or_default().push(index);
        }
        let mut rng = Rng::new(seed, "split");
        let mut is_test = vec![false; examples.len()];
        for (_, mut members) in members {
            rng.shuffle(&mut members);
            let wanted = (members.len() as f64 * fraction).round() as usize;
            let least = usize::from(fraction > 0.0 && members.len() > 1);
            let count = wanted.max(least).min(members.len() - 1);
            members[..count].iter().for_each(|index| is_test[*index] = true);
        }
        let mut split = Self { train: Vec::new(), test: Vec::new() };
        for (example, is_test) in examples.into_iter().zip(is_test) {
            if is_test { split.test.push(example) } else { split.train.push(example) }
        }
        split
    }
}

impl<I> Classes<I> {
    /// Numbers the classes, in alphabetical order, of examples that carry their class's name.
    ///
    /// # Errors
    /// [`Error::EmptyDataSet`] if a part is empty, [`Error::OneClass`] if the training part has one class only,
    /// [`Error::Field`] if a test example has a class that no training example has.
    pub fn new(path: &Path, train: Vec<(I, String)>, test: Vec<(I, String)>) -> Result<Self> {
        let Split { train, test } = Split { train, test }.check(path)?;
        let mut labels: Vec<String> = train.iter().map(|(_, label)| label.clone()).collect();
        labels.sort();
        labels.dedup();
        if let [class] = labels.as_slice() {
            return Err(Error::OneClass { path: path.to_path_buf(), class: class.clone() });
        }
        let number = |(input, name): (I, String)| {
            if let Ok(label) = labels.binary_search(&name) {
                return Ok(Labelled { input, label });
            }
            let expected = format!("one of the training part: {}", labels.join(", "));
            Err(Error::field(path, "class of a test example", expected, name))
        };
        let train = train.into_iter().map(number).collect::<Result<_>>()?;
        let test = test.into_iter().map(number).collect::<Result<_>>()?;
        Ok(Self { labels, split: Split { train, test } })
    }
}

/// The rows of a tab-separated file after its header, which must be `header`. Each has as many fields as the header.
fn read_tsv(path: &Path, header: &[&str]) -> Result<Vec<Vec<String>>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let mut lines = text.lines();
    let found = lines.next().unwrap_or("");
    if !found.split('\t').eq(header.iter().copied()) {
        return Err(Error::field(path, "header", header.join("\\t"), found.replace('\t', "\\t")));
    }
    let row = |(index, line): (usize, &str)| {
        let fields: Vec<String> = line.split('\t').map(String::from).collect();
        if fields.len() == header.len() {
            return Ok(fields);
        }
        Err(Error::field(path, format!("fields of line {}", index + 2), header.len(), fields.len()))
    };
    lines.enumerate().map(row).collect()
}
