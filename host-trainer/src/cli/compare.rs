//! `rankpatch compare`: finished runs side by side. What a base that devices do not run has no number for is a dash.

use std::path::PathBuf;

use serde::Serialize;

use super::console::{Console, Format, Table, grouped};
use super::exit::Outcome;
use crate::report::Summary;
use crate::train::Method;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Output folders of finished runs
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// One row: a run's folder and its summary.
#[derive(Debug, Serialize)]
struct Run {
    run: PathBuf,
    #[serde(flatten)]
    summary: Summary,
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    let read = |run: &PathBuf| Ok(Run { run: run.clone(), summary: Summary::read(run)? });
    let runs = args.runs.iter().map(read).collect::<Outcome<Vec<_>>>()?;
    console.print(args.format, &runs, |runs| text(runs))
}

fn text(runs: &[Run]) -> String {
    let mut table = Table::new(
        4,
        &[
            "run", "task", "base", "metric", "rank", "trained", "bytes", "base", "float", "device", "steps",
            "seconds",
        ],
    );
    for Run { run, summary } in runs {
        let metric = &summary.metric;
        let shown = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.4}"));
        let bytes = summary.file.as_ref().map_or_else(|| "-".into(), |file| grouped(file.adapter_file_bytes));
        let rank = match summary.ranks() {
            _ if summary.method == Method::Full => "full".into(),
            (low, high) if low < high => format!("{low}-{high}"),
            (rank, _) => rank.to_string(),
        };
        table.row(&[
            &run.display(),
            &summary.task,
            &summary.base,
            &metric.name,
            &rank,
            &grouped(summary.trained),
            &bytes,
            &shown(metric.base),
            &shown(Some(metric.adapter_float)),
            &shown(metric.adapter_device),
            &grouped(summary.steps),
            &format!("{:.1}", summary.training_seconds),
        ]);
    }
    table.to_string()
}
