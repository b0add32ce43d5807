//! Learning rate over the steps of a run: linear warm-up, then a decay to a floor.

/// How the rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Stays at the peak.
    Constant,
    /// A straight line.
    Linear,
    /// Half a cosine.
    Cosine,
}

/// A learning rate schedule.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Schedule {
    /// Highest rate, reached at the end of the warm-up.
    pub peak: f64,
    /// Steps of the warm-up; 0 starts at the peak.
    pub warmup: u64,
    /// Steps of the whole run, warm-up included. From here on the rate is the floor.
    pub steps: u64,
    /// Form of the decay.
    pub decay: Decay,
    /// Last rate, as a fraction of the peak, 0 to 1.
    pub floor: f64,
}

impl Schedule {
    /// Rate of a step; steps count from 0.
    ///
    /// In the warm-up `peak * (step + 1) / warmup`, so that no step is lost to a rate of 0; then, with
    /// `t = (step - warmup) / (steps - warmup)` up to 1, `peak * (floor + (1 - floor) * f(t))` with `f = 1 - t` or
    /// `f = (1 + cos(pi t)) / 2`.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let span = self.steps.saturating_sub(self.warmup);
        let t = if span == 0 { 1.0 } else { ((step - self.warmup) as f64 / span as f64).min(1.0) };
        let remaining = match self.decay {
            Decay::Constant => return self.peak,
            Decay::Linear => 1.0 - t,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * t).cos()),
        };
        self.peak * (self.floor + (1.0 - self.floor) * remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> Schedule {
        Schedule { peak: 2.0, warmup: 4, steps: 14, decay, floor: 0.1 }
    }

    #[test]
    fn warms_up_to_the_peak_and_ends_at_the_floor() {
        for decay in [Decay::Linear, Decay::Cosine] {
            let schedule = schedule(decay);
            assert_eq!(schedule.rate(0), 0.5);
            assert_eq!(schedule.rate(3), 2.0);
            assert_eq!(schedule.rate(4), 2.0);
            assert!((schedule.rate(9) - 1.1).abs() < 1e-12, "half way is half way between peak and floor");
            assert!((schedule.rate(14) - 0.2).abs() < 1e-12);
            assert!((schedule.rate(1000) - 0.2).abs() < 1e-12);
            for step in 4..20 {
                assert!(schedule.rate(step + 1) <= schedule.rate(step));
            }
        }
        assert_eq!(schedule(Decay::Constant).rate(1000), 2.0);
    }

    #[test]
    fn a_run_that_is_all_warm_up_never_divides_by_zero() {
        let schedule = Schedule { peak: 1.0, warmup: 5, steps: 5, decay: Decay::Linear, floor: 0.0 };
        assert_eq!(schedule.rate(4), 1.0);
        assert_eq!(schedule.rate(5), 0.0);
        let none = Schedule { warmup: 0, steps: 0, ..schedule };
        assert_eq!(none.rate(0), 0.0);
    }
}
