//! Training of adapters: configuration, data in batches, the loop, evaluation and checkpoints.
//!
//! A task is a TOML file ([`TrainConfig`]). [`TaskData`] holds its examples, [`Trainer`] runs it and reports to a
//! [`Reporter`]; what comes out is a [`crate::lora::FloatAdapter`]. Same seed, same bits, for any number of threads and
//! across checkpoints. This module does not print, and it does not know how adapters are written.

mod batches;
mod checkpoint;
pub(crate) mod config;
pub(crate) mod data;
mod error;
mod evaluate;
mod full;
mod learner;
mod log;
mod manifest;
mod many;
mod metric;
mod pass;
mod report;
mod run;
mod stopping;
#[cfg(test)]
mod tests;
mod watch;

pub use batches::{Example, Sequence, Tagged, TaggedWord, Target};
pub use config::{DatasetKind, DeviceKind, Length, Method, TrainConfig};
pub use data::TaskData;
pub use error::TrainError;
pub(crate) use evaluate::metric_of;
pub use evaluate::{evaluate_float, factors, task_head, with_biases};
pub use full::FullyTrained;
pub use learner::{FrozenBase, Learner, StepOutcome};
pub use log::RunLog;
pub use manifest::{Listed, Shard, is_manifest, load as load_tasks};
pub use many::ManyTrainer;
pub use metric::{Metric, MetricName};
pub(crate) use metric::{Tally, negative_log_likelihood, number_or_nan};
pub use report::{Event, ManyReporter, Phase, Reporter};
pub use run::{Trainer, open_device};
