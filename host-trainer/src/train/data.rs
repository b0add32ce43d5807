//! The examples of a task: what the loaders read, as the network takes it.

use std::collections::BTreeSet;

use super::TrainError;
use super::batches::{Example, Sequence, Target};
use crate::Result;
use crate::executor::Model;

/// The examples of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskData {
    /// What is learned from.
    pub train: Vec<Example>,
    /// What is set apart for measuring.
    pub test: Vec<Example>,
    /// Names of the classes; empty if the task has none.
    pub labels: Vec<String>,
    /// Width of feature rows; 0 for tokens.
    pub width: usize,
}

impl TaskData {
    /// Checks that the examples fit a network and the kind of task.
    pub(crate) fn check(&self, model: &Model, classifies: bool) -> Result<()> {
        let fail = |expected: String, found: String| Err(TrainError::Data { expected, found }.into());
        if classifies == self.labels.is_empty() {
            let expected = if classifies { "names of classes" } else { "texts without classes" };
            return fail(expected.into(), format!("{} classes", self.labels.len()));
        }
        if self.width != model.input_width() {
            let kind = |width| if width == 0 { "token ids".into() } else { format!("feature rows of width {width}") };
            return fail(kind(model.input_width()), kind(self.width));
        }
        for (part, examples) in [("training", &self.train), ("test", &self.test)] {
            if examples.is_empty() {
                return fail(format!("at least one {part} example"), "none".into());
            }
            for (index, example) in examples.iter().enumerate() {
                let rows = example.rows(self.width);
                if rows == 0 || rows > model.max_rows() {
                    return fail(format!("1 to {} rows of input", model.max_rows()), format!("{rows} in {part} example {index}"));
                }
                let fits = match (&example.sequence, example.target) {
                    (Sequence::Tokens(_), Target::Next { .. }) => !classifies,
                    (Sequence::Features(_), Target::Next { .. }) => false,
                    (_, Target::Class(class)) => class < self.labels.len(),
                };
                if !fits {
                    return fail(
                        if classifies { format!("a class below {}", self.labels.len()) } else { "a text".into() },
                        format!("{:?} in {part} example {index}", example.target),
                    );
                }
                if matches!(example.sequence, Sequence::Tokens(_)) != (self.width == 0) {
                    return fail("examples of one kind".into(), format!("another in {part} example {index}"));
                }
            }
        }
        if classifies {
            let class = |example: &Example| match example.target {
                Target::Class(class) => Some(class),
                Target::Next { .. } => None,
            };
            let classes: BTreeSet<usize> = self.train.iter().filter_map(class).collect();
            if classes.len() < 2 {
                let only = classes.first().map_or("none", |class| &self.labels[*class]);
                return fail("training examples of at least two classes".into(), format!("only {only}"));
            }
        }
        Ok(())
    }
}
