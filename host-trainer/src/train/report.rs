//! What a run tells while it goes on. The loop never prints: it hands events to a [`Reporter`].

use serde::Serialize;

use super::Metric;

/// Receives the events of a run.
pub trait Reporter {
    /// One event. Called on the thread that trains, between two steps.
    fn event(&mut self, event: &Event<'_>);
}

/// Two reporters that hear the same.
impl<A: Reporter, B: Reporter> Reporter for (A, B) {
    fn event(&mut self, event: &Event<'_>) {
        self.0.event(event);
        self.1.event(event);
    }
}

impl<R: Reporter + ?Sized> Reporter for &mut R {
    fn event(&mut self, event: &Event<'_>) {
        (**self).event(event);
    }
}

/// A reporter that says nothing.
impl Reporter for () {
    fn event(&mut self, _: &Event<'_>) {}
}

/// Receives the events of runs that train together.
pub trait ManyReporter {
    /// One event of a task, by its index. Called as [`Reporter::event`] is.
    fn event(&mut self, task: usize, event: &Event<'_>);
}

/// A reporter that says nothing.
impl ManyReporter for () {
    fn event(&mut self, _: usize, _: &Event<'_>) {}
}

/// The part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Factors in float.
    Float,
    /// Factors fake-quantized in the forward pass.
    QuantizationAware,
}

/// What happens in a run. As JSON each is an object with its name under `event`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run starts, or goes on from a checkpoint.
    Started {
        /// Name of the task.
        task: &'a str,
        /// Name of the base.
        base: &'a str,
        /// Sites that are adapted.
        sites: usize,
        /// Numbers that are trained.
        trained: usize,
        /// Training examples.
        examples: usize,
        /// Examples set apart.
        test_examples: usize,
        /// The first step of this part of the run; above 0 after a checkpoint.
        first_step: u64,
        /// Steps of the whole run.
        steps: u64,
    },
    /// Another part of the run begins.
    PhaseChanged {
        /// Its first step.
        step: u64,
        /// The part.
        phase: Phase,
    },
    /// The ranks were trimmed.
    Trimmed {
        /// Steps taken so far.
        step: u64,
        /// The fraction of each update's squared singular values that was to be kept.
        explained_variance: f64,
        /// Ranks of all sites before, summed up.
        ranks_before: usize,
        /// Ranks of all sites, summed up.
        ranks: usize,
        /// Numbers that are trained from here.
        trained: usize,
    },
    /// A step was taken.
    Step {
        /// Steps taken so far.
        step: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Loss of the batch, in nats.
        loss: f64,
        /// Learning rate.
        learning_rate: f64,
        /// Norm of the gradients before clipping.
        grad_norm: f64,
        /// Rows of input per second since the start, padding not counted.
        tokens_per_second: f64,
        /// Seconds since the start of this part of the run.
        seconds: f64,
    },
    /// The task was measured with the float factors.
    Evaluated {
        /// Steps taken so far.
        step: u64,
        /// The result.
        metric: Metric,
    },
    /// A checkpoint was written.
    Saved {
        /// Steps taken so far.
        step: u64,
    },
    /// The run ends early, with the factors of its best result.
    EarlyStopped {
        /// Steps taken.
        step: u64,
        /// Steps taken at the best result.
        best_step: u64,
        /// The best result.
        value: f64,
    },
    /// The run is over.
    Finished {
        /// Steps taken.
        steps: u64,
        /// Mean loss of the last steps, in nats.
        loss: f64,
        /// Seconds that training took, evaluations included.
        seconds: f64,
    },
}
