//! What a run's log tells: the course of its loss, learning rate and metric.

use std::path::Path;

use serde::Deserialize;

use crate::train::Metric;
use crate::{Error, Result};

/// The course of a run, all of its parts together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Every step that was taken.
    pub steps: Vec<Step>,
    /// Every evaluation.
    pub evaluations: Vec<Evaluation>,
    /// First step of the quantization-aware part, if the run got there.
    pub quantized_from: Option<u64>,
    /// Seconds of training, without the time between two parts and what was lost with a part that was killed.
    pub seconds: f64,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Steps taken, this one included.
    pub step: u64,
    /// Loss of the batch, in nats.
    pub loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Rows of input per second since the start of its part.
    pub tokens_per_second: f64,
    /// Seconds since the start of its part.
    pub seconds: f64,
}

/// One evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Steps taken.
    pub step: u64,
    /// What was measured.
    pub metric: Metric,
}

/// The fields of any event. A struct and no enum: numbers do not survive serde's tagged enums in every build of its JSON.
#[derive(Debug, Deserialize)]
struct Line {
    event: String,
    step: Option<u64>,
    loss: Option<f64>,
    learning_rate: Option<f64>,
    tokens_per_second: Option<f64>,
    seconds: Option<f64>,
    metric: Option<Metric>,
}

impl Line {
    fn step(&self) -> Option<Step> {
        Some(Step {
            step: self.step?,
            loss: self.loss?,
            learning_rate: self.learning_rate?,
            tokens_per_second: self.tokens_per_second?,
            seconds: self.seconds?,
        })
    }

    fn evaluation(&self) -> Option<Evaluation> {
        Some(Evaluation { step: self.step?, metric: self.metric? })
    }
}

impl History {
    /// Reads a log that [`RunLog`](crate::train::RunLog) wrote.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Field`] for a line that is no event.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut history = Self::default();
        let mut part = 0.0;
        for (number, line) in (1..).zip(text.lines()) {
            let wrong = |found: &dyn std::fmt::Display| {
                Error::field(path, format!("line {number}"), "an event of a run", found)
            };
            let line: Line = serde_json::from_str(line).map_err(|error| wrong(&error))?;
            match line.event.as_str() {
                "started" => history.seconds += std::mem::take(&mut part),
                "step" => {
                    let step = line.step().ok_or_else(|| wrong(&"a step without its numbers"))?;
                    part = step.seconds;
                    history.steps.push(step);
                }
                "evaluated" => {
                    let evaluation =
                        line.evaluation().ok_or_else(|| wrong(&"an evaluation without a metric"))?;
                    history.evaluations.push(evaluation);
                }
                "phase_changed" => history.quantized_from = line.step,
                "finished" => part = line.seconds.unwrap_or(part),
                _ => {}
            }
        }
        history.seconds += part;
        Ok(history)
    }
}
