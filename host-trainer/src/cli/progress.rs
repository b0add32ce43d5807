//! How long work is shown on the standard error: a bar for a person, plain lines in a log, JSON lines for a program.

use std::time::Duration;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

use super::console::{Console, grouped};
use crate::train::{Event, Phase, Reporter};

/// How a run is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Progress {
    /// A bar on a terminal, plain lines otherwise
    #[default]
    Auto,
    /// A bar
    Bar,
    /// A line now and then
    Plain,
    /// A JSON object per event and line
    Json,
}

/// Plain lines of a whole run.
const LINES: u64 = 20;

/// The bytes of an upload, for a person.
pub(super) struct Bar(Option<ProgressBar>);

impl Bar {
    /// A bar for `total` bytes, silent if nobody is there to see it.
    pub(super) fn new(interactive: bool, total: u64) -> Self {
        let style = || style("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
        Self(interactive.then(|| ProgressBar::new(total).with_style(style())))
    }

    pub(super) fn set(&self, done: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(done);
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Seconds as `12 s`, `3 min 20 s` or `2 h 05 min`.
fn duration(seconds: f64) -> String {
    match seconds.round() as u64 {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Shows the events of a training run.
pub(super) struct Shown<'c, 'o> {
    console: &'c mut Console<'o>,
    json: bool,
    bar: Option<ProgressBar>,
    /// The last line's share of the run.
    line: u64,
    /// Steps that earlier parts of the run took.
    first_step: u64,
}

impl<'c, 'o> Shown<'c, 'o> {
    pub(super) fn new(console: &'c mut Console<'o>, progress: Progress) -> Self {
        let with_bar = progress == Progress::Bar || progress == Progress::Auto && console.interactive;
        let bar = with_bar.then(|| {
            let template = "{bar:30} {pos}/{len} steps, {msg}, {eta} left";
            ProgressBar::new(0).with_style(style(template))
        });
        if let Some(bar) = &bar {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        Self { console, json: progress == Progress::Json, bar, line: 0, first_step: 0 }
    }

    fn line(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => self.console.log(text),
        }
    }
}

impl Reporter for Shown<'_, '_> {
    fn event(&mut self, event: &Event<'_>) {
        if self.json {
            // A log that cannot be written to is no reason to stop a run.
            let _ = serde_json::to_writer(&mut *self.console.err, event);
            let _ = writeln!(self.console.err);
            return;
        }
        match event {
            Event::Started { task, base, sites, trained, examples, test_examples, first_step, steps } => {
                let from =
                    if *first_step > 0 { format!(", going on at step {first_step}") } else { String::new() };
                self.line(&format!(
                    "training {task} on {base}: {sites} sites, {} numbers, {} examples, {} to measure{from}",
                    grouped(*trained as u64),
                    grouped(*examples as u64),
                    grouped(*test_examples as u64)
                ));
                self.first_step = *first_step;
                if let Some(bar) = &self.bar {
                    bar.set_length(*steps);
                    bar.set_position(*first_step);
                    // What an earlier part took says nothing about the time left.
                    bar.reset_eta();
                }
            }
            Event::PhaseChanged { step, phase } => {
                let phase = match phase {
                    Phase::Float => "factors in float",
                    Phase::QuantizationAware => "factors as they will be written",
                };
                self.line(&format!("step {step}: {phase} from here"));
            }
            Event::Trimmed { step, explained_variance, ranks_before, ranks, trained } => {
                self.line(&format!(
                    "step {step}: ranks trimmed from {ranks_before} to {ranks} in all, which explains {explained_variance} of \
                     each update; {} numbers",
                    grouped(*trained as u64)
                ));
            }
            Event::Step { step, steps, loss, learning_rate, tokens_per_second, seconds, .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!(
                        "loss {loss:.4}, rate {learning_rate:.2e}, {tokens_per_second:.0} tokens/s"
                    ));
                    bar.set_position(*step);
                    return;
                }
                let line = step * LINES / (*steps).max(1);
                if line > self.line {
                    self.line = line;
                    let taken = step.saturating_sub(self.first_step).max(1);
                    let left = seconds / taken as f64 * steps.saturating_sub(*step) as f64;
                    self.console.log(&format!(
                        "step {step}/{steps}  loss {loss:.4}  learning rate {learning_rate:.2e}  \
                         {tokens_per_second:.0} tokens/s  {} left",
                        duration(left)
                    ));
                }
            }
            Event::Evaluated { step, metric } => {
                self.line(&format!(
                    "step {step}: {} {:.4} on {} examples",
                    metric.name, metric.value, metric.examples
                ));
            }
            Event::EarlyStopped { step, best_step, value } => {
                self.line(&format!("step {step}: no better result since step {best_step} ({value:.4}), whose factors are kept"));
            }
            Event::Saved { step } => self.line(&format!("step {step}: checkpoint written")),
            Event::Finished { steps, loss, seconds } => {
                if let Some(bar) = &self.bar {
                    bar.finish_and_clear();
                }
                self.line(&format!("{steps} steps in {seconds:.1} s, loss {loss:.4} at the end"));
            }
        }
    }
}

impl Drop for Shown<'_, '_> {
    /// A run that fails leaves no bar behind.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_in_the_units_that_matter() {
        assert_eq!(
            [0.4, 59.4, 59.6, 200.0, 3599.9, 7530.0].map(duration),
            ["0 s", "59 s", "1 min 00 s", "3 min 20 s", "1 h 00 min", "2 h 05 min"]
        );
    }
}
