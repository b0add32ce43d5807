//! Chooses the next token from logits: the greatest, or one drawn at a temperature.

use micromath::F32;
use rankpatch_format::digest::XorShift32;

use crate::math;

/// Draws tokens from a stream of random bits that its seed fixes.
#[derive(Debug, Clone, Copy)]
pub struct Sampler {
    temperature: f32,
    random: XorShift32,
}

impl Sampler {
    /// A sampler. A temperature that is not a positive number is greedy.
    pub fn new(temperature: f32, seed: u32) -> Self {
        // The generator's first numbers are small for small seeds, which people use: spread them (MurmurHash3's finalizer).
        let mut mixed = seed.wrapping_add(0x9e37_79b9);
        mixed = (mixed ^ mixed >> 16).wrapping_mul(0x85eb_ca6b);
        mixed = (mixed ^ mixed >> 13).wrapping_mul(0xc2b2_ae35);
        Self { temperature, random: XorShift32::new(mixed ^ mixed >> 16) }
    }

    /// The index of the next token, 0 for no logits.
    ///
    /// Greedy: the first greatest logit. Otherwise index i with probability proportional to
    /// exp((logit\[i\] - max) / temperature). The exponential is micromath's: its relative error, 3e-3 at most here, changes
    /// no probability by more than that, which is far below what sampling can show, and it is small.
    pub fn next(&mut self, logits: &[f32]) -> usize {
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return math::argmax(logits);
        }
        let max = math::max(logits);
        let weight = |logit: &f32| {
            let x = (*logit - max) / self.temperature;
            // What is this small is never drawn, nor is a NaN.
            if x > -60.0 { F32(x).exp().0 } else { 0.0 }
        };
        let total: f32 = logits.iter().map(weight).sum();
        // 24 bits, so that the product is below the total.
        let mut left = (self.random.next_u32() >> 8) as f32 / 16_777_216.0 * total;
        for (index, logit) in logits.iter().enumerate() {
            left -= weight(logit);
            if left < 0.0 {
                return index;
            }
        }
        math::argmax(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_senseless_temperatures_are_greedy() {
        for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(Sampler::new(temperature, 1).next(&[0.5, 3.0, 3.0, -1.0]), 1);
        }
        assert_eq!(Sampler::new(0.0, 1).next(&[]), 0);
    }

    #[test]
    fn strange_logits_are_survived() {
        let strange = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX, 0.0, 1e-40];
        for a in strange {
            for b in strange {
                for temperature in [1e-40, 1.0, 1e30] {
                    assert!(Sampler::new(temperature, 3).next(&[a, b, a]) < 3);
                }
            }
        }
    }

    /// First draws of small seeds are spread over the whole range.
    #[test]
    fn small_seeds_draw_differently() {
        let logits = [0.0; 64];
        let mut first = [false; 64];
        (0..200).for_each(|seed| first[Sampler::new(1.0, seed).next(&logits)] = true);
        assert!(first.iter().filter(|seen| **seen).count() > 50);
    }

    #[test]
    fn drawn_frequencies_follow_the_softmax() {
        let logits: [f32; 4] = [1.0, 0.0, -1.0, 2.0];
        let mut sampler = Sampler::new(0.8, 7);
        let mut counts = [0u32; 4];
        for _ in 0..40_000 {
            counts[sampler.next(&logits)] += 1;
        }
        let total: f64 = logits.iter().map(|l| f64::from(*l / 0.8).exp()).sum();
        for (count, logit) in counts.iter().zip(logits) {
            let expected = f64::from(logit / 0.8).exp() / total;
            let found = f64::from(*count) / 40_000.0;
            assert!((found - expected).abs() < 0.01, "{found} for {expected}");
        }
    }
}
