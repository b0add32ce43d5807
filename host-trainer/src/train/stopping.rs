//! Early stopping: the best result of a run's evaluations, and the factors that had it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Metric;

/// The best result so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    /// Steps taken when it was measured.
    pub(crate) step: u64,
    pub(crate) value: f64,
    /// Evaluations since that were no better.
    pub(crate) waited: u64,
}

/// Watches the evaluations of a run.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// Evaluations without a better result after which a run ends; 0 never ends it.
    pub(crate) limit: u64,
    pub(crate) best: Option<Best>,
    /// The trained tensors at the best result, by name.
    pub(crate) values: BTreeMap<String, Vec<f32>>,
}

impl Patience {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Hears a result; whether it is the best so far. No number at all is never better.
    pub(crate) fn hear(&mut self, step: u64, metric: &Metric) -> bool {
        let value = metric.value;
        let better = self.best.as_ref().is_none_or(|best| {
            if metric.name.higher_is_better() { value > best.value } else { value < best.value }
        });
        match &mut self.best {
            Some(best) if !better => best.waited += 1,
            _ => self.best = Some(Best { step, value, waited: 0 }),
        }
        better
    }

    /// Whether the run has gone on for long enough without a better result.
    pub(crate) fn is_over(&self) -> bool {
        self.limit > 0 && self.best.as_ref().is_some_and(|best| best.waited >= self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::MetricName;

    #[test]
    fn patience_ends_after_so_many_evaluations_without_a_better_one() {
        for (name, values) in [
            (MetricName::Accuracy, [0.5, 0.7, 0.6, 0.7, 0.69]),
            (MetricName::BitsPerCharacter, [5.0, 3.0, 3.1, 3.0, 4.0]),
        ] {
            let mut patience = Patience::new(3);
            let heard: Vec<(bool, bool)> = (1..)
                .zip(values)
                .map(|(step, value)| {
                    (patience.hear(step, &Metric { name, value, examples: 1 }), patience.is_over())
                })
                .collect();
            let expected = [(true, false), (true, false), (false, false), (false, false), (false, true)];
            assert_eq!(heard, expected, "{name}");
            assert_eq!(patience.best, Some(Best { step: 2, value: values[1], waited: 3 }));
        }
    }
}
