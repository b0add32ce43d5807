//! Random numbers that are the same everywhere: a counter-based generator, keyed by a seed and the name of a stream.
//!
//! candle's generator cannot be seeded on the CPU and differs on a GPU. Here the number at index `n` of a stream is a
//! pure function of (seed, name, n), so the order in which streams are used does not matter, and the state to save is one
//! integer. Floats are made with IEEE operations only, never with the platform's mathematical library.

use crate::ops::math;

/// SplitMix64's increment: the golden ratio in 64 bits.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of random numbers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rng {
    key: u64,
    counter: u64,
}

impl Rng {
    /// The stream of this name under this seed, at its beginning.
    pub fn new(seed: u64, stream: &str) -> Self {
        // FNV-1a over the name, then mixed with the seed: streams with similar names have nothing in common.
        let name = stream.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self { key: mix(mix(seed.wrapping_add(GAMMA)) ^ name), counter: 0 }
    }

    /// How many 64-bit numbers were drawn.
    pub fn position(&self) -> u64 {
        self.counter
    }

    /// Goes to the state after `position` 64-bit numbers.
    pub fn seek(&mut self, position: u64) {
        self.counter = position;
    }

    /// 64 random bits (SplitMix64 at `key + counter * GAMMA`).
    pub fn next_u64(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        mix(self.key.wrapping_add(self.counter.wrapping_mul(GAMMA)))
    }

    /// Uniform in [0, 1), a multiple of 2^-24.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in [low, high).
    pub fn uniform_in(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in 0..bound, without bias.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below 0");
        // Lemire's multiplication; the low part tells the few draws that would favour small numbers.
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// Normal with mean 0 and variance 1 (Marsaglia's polar method; the second number of a pair is thrown away, so that
    /// the state stays one integer).
    pub fn normal(&mut self) -> f32 {
        // 24 bits and a half, so that no draw is 0 and the signs are even.
        let symmetric = |bits: u64| ((bits >> 40) as f32 + 0.5) * (1.0 / 8_388_608.0) - 1.0;
        loop {
            let (u, v) = (symmetric(self.next_u64()), symmetric(self.next_u64()));
            let s = u * u + v * v;
            if s < 1.0 {
                return u * (-2.0 * math::ln(s) / s).sqrt();
            }
        }
    }

    /// Puts a slice into random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// `count` values uniform in `-1/sqrt(fan_in)..1/sqrt(fan_in)`: PEFT's start of `lora_a`, which is Kaiming's uniform bound
    /// `sqrt(6 / ((1 + a^2) fan_in))` with `a = sqrt(5)`.
    pub fn kaiming_uniform(&mut self, fan_in: usize, count: usize) -> Vec<f32> {
        let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
        (0..count).map(|_| self.uniform_in(-bound, bound)).collect()
    }
}

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_splitmix64_at_key_and_counter() {
        // The published first outputs of SplitMix64 for the state 0.
        let mut rng = Rng { key: 0, counter: 0 };
        assert_eq!(rng.next_u64(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(rng.next_u64(), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(rng.next_u64(), 0x06c4_5d18_8009_454f);
    }

    #[test]
    fn streams_are_repeatable_and_independent() {
        let draw = |seed, name: &str| {
            let mut rng = Rng::new(seed, name);
            (0..8).map(|_| rng.next_u64()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, "init/a"), draw(1, "init/a"));
        assert_ne!(draw(1, "init/a"), draw(2, "init/a"));
        assert_ne!(draw(1, "init/a"), draw(1, "init/b"));
        let mut rng = Rng::new(7, "shuffle");
        let all: Vec<u64> = (0..10).map(|_| rng.next_u64()).collect();
        rng.seek(4);
        assert_eq!(rng.next_u64(), all[4]);
        assert_eq!(rng.position(), 5);
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut rng = Rng::new(3, "moments");
        let n = 200_000;
        let moments = |draw: &mut dyn FnMut() -> f32| {
            let (mut sum, mut square, mut fourth) = (0.0f64, 0.0f64, 0.0f64);
            for _ in 0..n {
                let x = f64::from(draw());
                sum += x;
                square += x * x;
                fourth += x.powi(4);
            }
            (sum / f64::from(n), square / f64::from(n), fourth / f64::from(n))
        };
        let (mean, square, _) = moments(&mut || rng.uniform());
        assert!((mean - 0.5).abs() < 0.003 && (square - 1.0 / 3.0).abs() < 0.003, "{mean} {square}");
        let (mean, square, fourth) = moments(&mut || rng.normal());
        assert!(mean.abs() < 0.01 && (square - 1.0).abs() < 0.02, "{mean} {square}");
        assert!((fourth - 3.0).abs() < 0.1, "{fourth}");
    }

    #[test]
    fn below_is_even_and_in_range() {
        let mut rng = Rng::new(5, "below");
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[rng.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (9_600..10_400).contains(&count)), "{counts:?}");
        assert_eq!(rng.below(1), 0);
    }

    #[test]
    fn shuffle_is_a_permutation() {
        let mut items: Vec<u32> = (0..100).collect();
        Rng::new(1, "order").shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn kaiming_bound_is_one_over_the_root_of_fan_in() {
        let values = Rng::new(1, "a").kaiming_uniform(64, 8 * 64);
        let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(largest <= 0.125 && largest > 0.12, "{largest}");
    }
}
