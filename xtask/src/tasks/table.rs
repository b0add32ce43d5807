//! What is known of each task, as JSON and as a table to read.

use serde_json::{Value, json};

use super::device::{Answer, Counts};

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
    /// Every weight of the base trained, in float: the upper reference.
    pub(super) full: Option<f64>,
    pub(super) examples: u64,
    /// Bytes of the adapter's file; 0 for a task that has none.
    pub(super) file_bytes: u64,
    /// None if it was not counted.
    pub(super) counts: Option<Counts>,
    /// None for a task that is the base as it is.
    pub(super) runs: Vec<Run>,
}

const TEXT: &str = "bits_per_character";
const SPANS: &str = "span_f1";

impl Row {
    /// A task of which this is the summary of the first run.
    pub(super) fn new(task: &str, summary: &Value) -> Self {
        let mut row = Self::base_alone(task, &summary["metric"]);
        row.base = summary["metric"]["base"].as_f64();
        row.file_bytes = summary["adapter_file_bytes"].as_u64().unwrap_or(0);
        row
    }

    /// A task without an adapter, of which this is the metric.
    pub(super) fn base_alone(task: &str, metric: &Value) -> Self {
        Self {
            task: task.to_owned(),
            metric: metric["name"].as_str().unwrap_or_default().to_owned(),
            base: metric["value"].as_f64(),
            head_only: None,
            full: None,
            examples: metric["examples"].as_u64().unwrap_or(0),
            file_bytes: 0,
            counts: None,
            runs: Vec::new(),
        }
    }

    /// Whether it goes on with texts; the others tell something, in fractions.
    pub(super) fn is_text(&self) -> bool {
        self.metric == TEXT
    }

    /// What it does with its input.
    pub(super) fn answer(&self) -> Answer {
        match self.metric.as_str() {
            TEXT => Answer::Continues,
            SPANS => Answer::Marks,
            _ => Answer::Tells,
        }
    }

    /// Whether all runs are there, or none because there is nothing to train.
    pub(super) fn is_complete(&self, seeds: u64) -> bool {
        self.runs.is_empty() || self.runs.len() as u64 == seeds
    }

    /// Mean and standard deviation over the runs; none without a number for each.
    pub(super) fn over(&self, of: impl Fn(&Run) -> Option<f64>) -> Option<(f64, f64)> {
        let values: Vec<f64> = self.runs.iter().map(of).collect::<Option<_>>()?;
        if values.is_empty() {
            return None;
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some((mean, if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 }))
    }

    /// How far the device, streamed, is behind a reference: points of a percentage, or for bits a fraction of the reference. Negative
    /// if it is ahead.
    fn behind(&self, reference: Option<f64>) -> Option<f64> {
        let ((streamed, _), reference) = (self.over(|run| run.streamed)?, reference?);
        Some(if self.is_text() { streamed / reference - 1.0 } else { reference - streamed })
    }

    fn behind_float(&self) -> Option<f64> {
        self.behind(self.over(|run| run.float).map(|(mean, _)| mean))
    }

    fn json(&self) -> Value {
        let runs = self.runs.iter().map(|run| {
            let Run { seed, float, streamed, merged, seconds } = run;
            json!({ "seed": seed, "float": float, "streamed": streamed, "merged": merged, "training_seconds": seconds })
        });
        let over =
            |of: fn(&Run) -> Option<f64>| self.over(of).map(|(mean, sd)| json!({ "mean": mean, "sd": sd }));
        let counts = self.counts.as_ref().map(|counts| {
            let Counts { switch: (fewest, most), copied, answer, unit } = counts;
            json!({
                "core": "Cortex-M4", "switch": { "fewest": fewest, "most": most }, "weight_bytes_copied": copied,
                "answer": answer, "answer_to": unit,
            })
        });
        json!({
            "task": self.task,
            "metric": self.metric,
            "examples": self.examples,
            "base": self.base,
            "head_only": self.head_only,
            "float": over(|run| run.float),
            "streamed": over(|run| run.streamed),
            "merged": over(|run| run.merged),
            "full": self.full,
            "streamed_behind_float": self.behind_float(),
            "streamed_behind_full": self.behind(self.full),
            "training_seconds": over(|run| run.seconds),
            "adapter_file_bytes": self.file_bytes,
            "instructions": counts,
            "runs": runs.collect::<Vec<_>>(),
        })
    }

    fn line(&self) -> String {
        let plain = |value: Option<f64>| value.map_or("-".into(), |value| number(&self.metric, value));
        let spread = |of: fn(&Run) -> Option<f64>| {
            self.over(of).map_or("-".into(), |(mean, sd)| match self.runs.len() {
                1 => number(&self.metric, mean),
                _ => format!("{} \u{b1} {}", number(&self.metric, mean), number(&self.metric, sd)),
            })
        };
        // A fraction of a likelihood, or points of a percentage.
        let unit = if self.is_text() { " %" } else { "" };
        let behind =
            |value: Option<f64>| value.map_or("-".into(), |value| format!("{:+.2}{unit}", 100.0 * value));
        let counts = self.counts.as_ref();
        let cells = [
            self.task.clone(),
            self.metric.replace('_', " "),
            self.examples.to_string(),
            plain(self.base),
            plain(self.head_only),
            spread(|run| run.float),
            spread(|run| run.streamed),
            spread(|run| run.merged),
            plain(self.full),
            behind(self.behind_float()),
            behind(self.behind(self.full)),
            if self.file_bytes > 0 { self.file_bytes.to_string() } else { "-".into() },
            self.over(|run| run.seconds).map_or("-".into(), |(mean, _)| format!("{mean:.0}")),
            counts.map_or("-".into(), |counts| match counts.switch {
                (fewest, most) if fewest == most => fewest.to_string(),
                (fewest, most) => format!("{fewest} to {most}"),
            }),
            counts
                .map_or("-".into(), |counts| format!("{:.2} M, {}", counts.answer as f64 / 1e6, counts.unit)),
        ];
        format!("| {} |", cells.join(" | "))
    }
}

/// Fractions in percent, bits as they are.
pub(super) fn number(metric: &str, value: f64) -> String {
    if metric == TEXT { format!("{value:.3}") } else { format!("{:.2} %", 100.0 * value) }
}

/// All rows.
pub(super) fn json(seeds: u64, rows: &[Row]) -> Value {
    json!({ "seeds": seeds, "tasks": rows.iter().map(Row::json).collect::<Vec<_>>() })
}

const COLUMNS: [&str; 15] = [
    "task",
    "metric",
    "test examples",
    "base alone",
    "new head only",
    "LoRA, float",
    "device, streamed",
    "device, merged",
    "full fine-tuning, float",
    "streamed behind float",
    "streamed behind full",
    "file, bytes",
    "trained in, s",
    "instructions to switch",
    "instructions of an answer",
];

/// The table in Markdown, which a README takes as it is.
pub(super) fn text(rows: &[Row]) -> String {
    let mut lines =
        vec![format!("| {} |", COLUMNS.join(" | ")), format!("|{}", " --- |".repeat(COLUMNS.len()))];
    lines.extend(rows.iter().map(Row::line));
    let counted: Vec<&Counts> = rows.iter().filter_map(|row| row.counts.as_ref()).collect();
    if !counted.is_empty() {
        let fewest = counted.iter().map(|counts| counts.switch.0).min().unwrap_or(0);
        let most = counted.iter().map(|counts| counts.switch.1).max().unwrap_or(0);
        let copied: u64 = counted.iter().map(|counts| counts.copied).sum();
        let instructions = if fewest == most { most.to_string() } else { format!("{fewest} to {most}") };
        lines.push(format!(
            "\nSwitching between any two installed tasks takes {instructions} instructions on Cortex-M4 and copies {copied} weight bytes."
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
            float: Some(value + 0.01),
            streamed: Some(*value),
            merged: None,
            seconds: Some(7.0),
        });
        let summary = json!({ "metric": { "name": metric, "examples": 9 }, "adapter_file_bytes": 1234 });
        let counts = Counts { switch: (600, 640), copied: 0, answer: 89_400_000, unit: "a second of sound" };
        Row {
            runs: runs.collect(),
            head_only: Some(0.5),
            full: Some(0.91),
            counts: Some(counts),
            ..Row::new(task, &summary)
        }
    }

    #[test]
    fn runs_become_mean_and_spread() {
        let row = row("t", "accuracy", &[0.9, 0.96, 0.93]);
        let (mean, sd) = row.over(|run| run.streamed).unwrap();
        assert!((mean - 0.93).abs() < 1e-12 && (sd - 0.03).abs() < 1e-12);
        assert_eq!(row.over(|run| run.merged), None);
        let text = text(&[row]);
        let line = "| t | accuracy | 9 | - | 50.00 % | 94.00 % \u{b1} 3.00 % | 93.00 % \u{b1} 3.00 % | - | 91.00 % | +1.00 | -2.00 | \
                    1234 | 7 | 600 to 640 | 89.40 M, a second of sound |";
        assert!(text.contains(line), "{text}");
        assert!(
            text.ends_with("takes 600 to 640 instructions on Cortex-M4 and copies 0 weight bytes."),
            "{text}"
        );
    }

    #[test]
    fn likelihoods_are_compared_as_fractions() {
        let row = row("t", "bits_per_character", &[2.0]);
        assert!((row.behind(Some(1.6)).unwrap() - 0.25).abs() < 1e-12);
        assert!(row.line().contains(" | 2.000 | "), "{}", row.line());
        let found = json(1, &[row]);
        assert_eq!(found["tasks"][0]["instructions"]["answer"], 89_400_000);
        assert!((found["tasks"][0]["streamed_behind_float"].as_f64().unwrap() + 0.004_975).abs() < 1e-6);
    }

    #[test]
    fn the_base_as_a_task_has_its_own_metric_only() {
        let metric = json!({ "name": "bits_per_character", "value": 1.25, "examples": 20 });
        let row = Row::base_alone("story", &metric);
        assert!(row.is_complete(3) && row.is_text());
        assert_eq!(row.line(), format!("| story | bits per character | 20 | 1.250{} |", " | -".repeat(11)));
        assert!(!text(&[row]).contains("Switching"));
        let answers = ["accuracy", "span_f1", "bits_per_character"]
            .map(|metric| self::row("t", metric, &[0.5]).answer());
        assert_eq!(answers, [Answer::Tells, Answer::Marks, Answer::Continues]);
    }
}
