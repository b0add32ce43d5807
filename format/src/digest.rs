//! The self-test's input generator and output digest. Both are part of the file format: an adapter states the digest
//! that its trainer saw, and every device must reproduce it.

/// Marsaglia's xorshift32 (shifts 13, 17, 5), the input generator of self-tests.
///
/// A seed of 0, which the generator cannot leave, is replaced by `0x9e37_79b9`.
#[derive(Debug, Clone, Copy)]
pub struct XorShift32(u32);

impl XorShift32 {
    /// A generator that starts from `seed`.
    pub fn new(seed: u32) -> Self {
        Self(if seed == 0 { 0x9e37_79b9 } else { seed })
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    /// A token id below `vocab_size` (0 if that is 0): the next 32 bits modulo `vocab_size`.
    pub fn token(&mut self, vocab_size: u32) -> u32 {
        self.next_u32().checked_rem(vocab_size).unwrap_or(0)
    }

    /// A feature in -32.0..32.0: the upper half of the next 32 bits as `i16`, over 1024.
    pub fn feature(&mut self) -> f32 {
        f32::from((self.next_u32() >> 16) as u16 as i16) / 1024.0
    }
}

/// Digest of a sequence of `f32` bit patterns: h = (h xor bits) * 0x100000001b3 (mod 2^64), starting from
/// 0xcbf29ce484222325 (FNV-1a over 32-bit words). Every NaN counts as 0x7fc00000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Adds `values` in order.
    pub fn update(&mut self, values: &[f32]) {
        self.0 = values.iter().fold(self.0, |hash, value| {
            let bits = value.to_bits();
            // Without its sign, a NaN is above infinity.
            let bits = if bits << 1 > 0xff00_0000 { 0x7fc0_0000 } else { bits };
            (hash ^ u64::from(bits)).wrapping_mul(0x0100_0000_01b3)
        });
    }

    /// The digest so far.
    pub fn value(self) -> u64 {
        self.0
    }

    /// The digest of one slice.
    pub fn of(values: &[f32]) -> u64 {
        let mut digest = Self::default();
        digest.update(values);
        digest.value()
    }
}
