//! What a task is measured by. Each formula is here once, for the float executor and for the device's code.

use serde::{Deserialize, Deserializer, Serialize};

use crate::data::text::TextSpan;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricName {
    /// Bits per character of the texts set apart; the end of a text counts as a character. Lower is better.
    BitsPerCharacter,
    /// Fraction of examples whose greatest output is the right one. Higher is better.
    Accuracy,
    /// F1 of the spans of all texts together, as CoNLL counts: 2 hits / (spans found + spans that are right), where a hit has both
    /// its bounds and its kind right. Higher is better.
    #[serde(rename = "span_f1")]
    SpanF1,
}

impl MetricName {
    /// The name in files and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BitsPerCharacter => "bits_per_character",
            Self::Accuracy => "accuracy",
            Self::SpanF1 => "span_f1",
        }
    }

    /// Whether a higher value is the better one.
    pub fn higher_is_better(self) -> bool {
        self != Self::BitsPerCharacter
    }
}

impl std::fmt::Display for MetricName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A result.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// What was measured.
    pub name: MetricName,
    /// The result; no number if the outputs were none.
    #[serde(deserialize_with = "number_or_nan")]
    pub value: f64,
    /// Examples that were measured.
    pub examples: usize,
}

/// JSON has no NaN and writes null for it.
pub(crate) fn number_or_nan<'d, D: Deserializer<'d>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Collects a result, example by example.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tally {
    name: MetricName,
    /// Nats, right answers, or twice the hits among spans.
    sum: f64,
    /// Characters, answers, or spans found and right ones.
    count: f64,
    examples: usize,
}

impl Tally {
    pub(crate) fn new(name: MetricName) -> Self {
        Self { name, sum: 0.0, count: 0.0, examples: 0 }
    }

    /// A text of so many characters (its end included) and its negative log-likelihood.
    pub(crate) fn text(&mut self, nats: f64, characters: usize) {
        self.sum += nats;
        self.count += characters as f64;
        self.examples += 1;
    }

    /// The outputs for an example and its class.
    pub(crate) fn answer(&mut self, outputs: &[f32], class: usize) {
        self.sum += f64::from(u8::from(argmax(outputs) == Some(class)));
        self.count += 1.0;
        self.examples += 1;
    }

    /// The spans found in a text and those that are right.
    pub(crate) fn spans(&mut self, found: &[TextSpan], right: &[TextSpan]) {
        let hits = found.iter().filter(|span| right.contains(span)).count();
        self.sum += 2.0 * hits as f64;
        self.count += (found.len() + right.len()) as f64;
        self.examples += 1;
    }

    pub(crate) fn metric(&self) -> Metric {
        let mean = self.sum / self.count;
        let value =
            if self.name == MetricName::BitsPerCharacter { mean / std::f64::consts::LN_2 } else { mean };
        Metric { name: self.name, value, examples: self.examples }
    }
}

/// Index of the greatest value; the first of equal ones.
pub(crate) fn argmax(values: &[f32]) -> Option<usize> {
    let best = values.iter().enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map(|(index, _)| index)
}

/// -ln softmax(logits)\[target\], in f64 over the given f32 logits.
pub(crate) fn negative_log_likelihood(logits: &[f32], target: usize) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, logit| largest.max(*logit));
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    sum.ln() + f64::from(largest) - f64::from(logits[target])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_per_character_of_a_uniform_guess() {
        let mut tally = Tally::new(MetricName::BitsPerCharacter);
        let nats = negative_log_likelihood(&[3.0; 8], 5);
        tally.text(4.0 * nats, 4);
        tally.text(2.0 * nats, 2);
        let metric = tally.metric();
        assert!((metric.value - 3.0).abs() < 1e-12, "eight equal outputs are three bits: {metric:?}");
        assert_eq!(metric.examples, 2);
    }

    #[test]
    fn a_span_is_right_with_both_bounds_and_its_kind() {
        let span = |start, end, kind: &str| TextSpan { start, end, kind: kind.to_owned() };
        let mut tally = Tally::new(MetricName::SpanF1);
        tally.spans(
            &[span(0, 4, "a"), span(5, 9, "b"), span(10, 12, "b")],
            &[span(0, 4, "a"), span(5, 8, "b")],
        );
        tally.spans(&[span(3, 4, "a")], &[span(3, 4, "b"), span(7, 9, "c"), span(11, 12, "a")]);
        tally.spans(&[span(2, 4, "c")], &[span(2, 4, "c")]);
        let metric = tally.metric();
        // Two hits; five found, six right ones.
        assert!((metric.value - 4.0 / 11.0).abs() < 1e-12, "{metric:?}");
        assert_eq!(metric.examples, 3);
        assert_eq!(serde_json::to_value(metric.name).unwrap(), metric.name.as_str());
    }

    #[test]
    fn accuracy_counts_the_greatest_output() {
        let mut tally = Tally::new(MetricName::Accuracy);
        tally.answer(&[0.5, 2.0, -1.0], 1);
        tally.answer(&[0.5, 2.0, -1.0], 0);
        tally.answer(&[1.0, 1.0], 0);
        tally.answer(&[f32::NAN, 1.0], 1);
        assert_eq!(tally.metric().value, 0.5);
        assert_eq!(argmax(&[]), None);
    }
}
