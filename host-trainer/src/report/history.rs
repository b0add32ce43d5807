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
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Evaluation {
    /// Steps taken.
    pub step: u64,
    /// What was measured.
    pub metric: Metric,
}

/// The lines that matter here; others are passed over.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Started {},
    Step(Step),
    Evaluated(Evaluation),
    PhaseChanged {
        step: u64,
    },
    Finished {
        seconds: f64,
    },
    #[serde(other)]
    Other,
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
            let line = serde_json::from_str(line)
                .map_err(|error| Error::field(path, format!("line {number}"), "an event of a run", error))?;
            match line {
                Line::Started {} => history.seconds += std::mem::take(&mut part),
                Line::Step(step) => {
                    part = step.seconds;
                    history.steps.push(step);
                }
                Line::Evaluated(evaluation) => history.evaluations.push(evaluation),
                Line::PhaseChanged { step } => history.quantized_from = Some(step),
                Line::Finished { seconds } => part = seconds,
                Line::Other => {}
            }
        }
        history.seconds += part;
        Ok(history)
    }
}
