//! What is known of each task, as JSON and as a table to read.

use serde_json::{Value, json};

/// One run.
pub(super) struct Run {
    pub(super) seed: u64,
    /// The metric of the float factors.
    pub(super) float: Option<f64>,
    /// The metric of the device's code, factors read from the file.
    pub(super) streamed: Option<f64>,
    /// The metric of the device's code, factors merged into the weights.
    pub(super) merged: Option<f64>,
    pub(super) seconds: Option<f64>,
}

/// One task.
pub(super) struct Row {
    pub(super) task: String,
    /// Name of the metric.
    pub(super) metric: String,
    /// The base alone, where it can do the task.
    pub(super) base: Option<f64>,
    /// A new head on the frozen base.
    pub(super) head_only: Option<f64>,
    pub(super) examples: u64,
    pub(super) file_bytes: u64,
    pub(super) runs: Vec<Run>,
}

impl Row {
    /// A task of which this is the summary of the first run.
    pub(super) fn new(task: &str, summary: &Value) -> Self {
        let metric = &summary["metric"];
        Self {
            task: task.to_owned(),
            metric: metric["name"].as_str().unwrap_or_default().to_owned(),
            base: metric["base"].as_f64(),
            head_only: None,
            examples: metric["examples"].as_u64().unwrap_or(0),
            file_bytes: summary["adapter_file_bytes"].as_u64().unwrap_or(0),
            runs: Vec::new(),
        }
    }

    /// Mean and standard deviation over the runs; none without a number for each.
    pub(super) fn over(&self, of: impl Fn(&Run) -> Option<f64>) -> Option<(f64, f64)> {
        let values: Vec<f64> = self.runs.iter().map(of).collect::<Option<_>>()?;
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some((mean, if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 }))
    }

    pub(super) fn json(&self) -> Value {
        let runs = self.runs.iter().map(|run| {
            let Run { seed, float, streamed, merged, seconds } = run;
            json!({ "seed": seed, "float": float, "streamed": streamed, "merged": merged, "training_seconds": seconds })
        });
        let over =
            |of: fn(&Run) -> Option<f64>| self.over(of).map(|(mean, sd)| json!({ "mean": mean, "sd": sd }));
        json!({
            "task": self.task,
            "metric": self.metric,
            "examples": self.examples,
            "base": self.base,
            "head_only": self.head_only,
            "float": over(|run| run.float),
            "streamed": over(|run| run.streamed),
            "merged": over(|run| run.merged),
            "training_seconds": over(|run| run.seconds),
            "adapter_file_bytes": self.file_bytes,
            "runs": runs.collect::<Vec<_>>(),
        })
    }
}

/// Accuracies in percent, everything else as it is.
pub(super) fn number(metric: &str, value: f64) -> String {
    if metric == "bits_per_character" { format!("{value:.3}") } else { format!("{:.2} %", 100.0 * value) }
}

/// The table in Markdown, which a README takes as it is.
pub(super) fn text(rows: &[Row]) -> String {
    let mut lines = vec![
        "| task | test examples | base alone | head alone | float | device, streamed | device, merged | file, bytes | trained in, s |".to_owned(),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |".to_owned(),
    ];
    for row in rows {
        let plain = |value: Option<f64>| value.map_or("-".into(), |value| number(&row.metric, value));
        let spread = |of: fn(&Run) -> Option<f64>| {
            row.over(of).map_or("-".into(), |(mean, sd)| {
                let more = if row.runs.len() > 1 {
                    format!(" \u{b1} {}", number(&row.metric, sd))
                } else {
                    String::new()
                };
                number(&row.metric, mean) + &more
            })
        };
        let unit = if row.metric == "bits_per_character" { ", bits per character" } else { "" };
        let seconds = row.over(|run| run.seconds).map_or("-".into(), |(mean, _)| format!("{mean:.0}"));
        lines.push(format!(
            "| {}{unit} | {} | {} | {} | {} | {} | {} | {} | {seconds} |",
            row.task,
            row.examples,
            plain(row.base),
            plain(row.head_only),
            spread(|run| run.float),
            spread(|run| run.streamed),
            spread(|run| run.merged),
            row.file_bytes,
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn row(task: &str, metric: &str, values: &[f64]) -> Row {
        let runs = values.iter().zip(0..).map(|(value, seed)| Run {
            seed,
            float: Some(*value),
            streamed: Some(*value),
            merged: None,
            seconds: Some(7.0),
        });
        let summary = json!({ "metric": { "name": metric, "examples": 9 }, "adapter_file_bytes": 1234 });
        Row { runs: runs.collect(), head_only: Some(0.5), ..Row::new(task, &summary) }
    }

    #[test]
    fn runs_become_mean_and_spread() {
        let row = row("t", "accuracy", &[0.9, 0.96, 0.93]);
        let (mean, sd) = row.over(|run| run.streamed).unwrap();
        assert!((mean - 0.93).abs() < 1e-12 && (sd - 0.03).abs() < 1e-12);
        assert_eq!(row.over(|run| run.merged), None);
        let text = text(&[row]);
        assert!(
            text.ends_with(
                "| t | 9 | - | 50.00 % | 93.00 % \u{b1} 3.00 % | 93.00 % \u{b1} 3.00 % | - | 1234 | 7 |"
            ),
            "{text}"
        );
    }
}
