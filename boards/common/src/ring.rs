//! A byte queue between one interrupt handler and one reader, without locks and without `unsafe`.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// A queue of up to `N` bytes. One context may push and one may pop, at the same time.
///
/// Every byte is an atomic: plain loads and stores on the cores we have, and no unsafe code.
#[derive(Debug)]
pub struct ByteRing<const N: usize> {
    bytes: [AtomicU8; N],
    /// Bytes pushed so far, modulo 2^(word size). Written by the pushing side only.
    pushed: AtomicUsize,
    /// Bytes popped so far. Written by the popping side only.
    popped: AtomicUsize,
}

impl<const N: usize> ByteRing<N> {
    /// An empty queue. `N` must be a power of two, which is checked at compile time.
    pub const fn new() -> Self {
        const { assert!(N.is_power_of_two(), "expected a capacity that is a power of two") };
        Self {
            bytes: [const { AtomicU8::new(0) }; N],
            pushed: AtomicUsize::new(0),
            popped: AtomicUsize::new(0),
        }
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.pushed.load(Ordering::Acquire).wrapping_sub(self.popped.load(Ordering::Acquire))
    }

    /// Whether no byte waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no room for another byte.
    pub fn is_full(&self) -> bool {
        self.len() >= N
    }

    /// Appends a byte and returns true, or returns false if the queue is full. For the pushing side only.
    pub fn push(&self, byte: u8) -> bool {
        let pushed = self.pushed.load(Ordering::Relaxed);
        if pushed.wrapping_sub(self.popped.load(Ordering::Acquire)) >= N {
            return false;
        }
        self.bytes[pushed % N].store(byte, Ordering::Relaxed);
        self.pushed.store(pushed.wrapping_add(1), Ordering::Release);
        true
    }

    /// Moves waiting bytes, oldest first, to the front of `into` and returns how many. For the popping side only.
    pub fn pop_into(&self, into: &mut [u8]) -> usize {
        let popped = self.popped.load(Ordering::Relaxed);
        let waiting = self.pushed.load(Ordering::Acquire).wrapping_sub(popped);
        let count = waiting.min(into.len());
        for (i, out) in into.iter_mut().take(count).enumerate() {
            *out = self.bytes[popped.wrapping_add(i) % N].load(Ordering::Relaxed);
        }
        self.popped.store(popped.wrapping_add(count), Ordering::Release);
        count
    }
}

impl<const N: usize> Default for ByteRing<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::ByteRing;
    use std::thread;
    use std::vec::Vec;

    #[test]
    fn refuses_the_byte_beyond_its_capacity_and_keeps_the_order() {
        let ring = ByteRing::<8>::new();
        let mut out = [0; 5];
        // Start off zero so that the positions wrap in the middle of the run.
        for byte in 0..5 {
            assert!(ring.push(byte));
        }
        assert_eq!(ring.pop_into(&mut out), 5);
        for byte in 10..18 {
            assert!(ring.push(byte));
        }
        assert!(ring.is_full());
        assert!(!ring.push(99));
        assert_eq!(ring.pop_into(&mut out), 5);
        assert_eq!(out, [10, 11, 12, 13, 14]);
        assert_eq!(ring.pop_into(&mut out), 3);
        assert_eq!(out[..3], [15, 16, 17]);
        assert!(ring.is_empty());
        assert_eq!(ring.pop_into(&mut out), 0);
    }

    #[test]
    fn two_threads_see_every_byte_once_and_in_order() {
        const COUNT: u32 = 200_000;
        let ring = ByteRing::<64>::new();
        let mut seen = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..COUNT {
                    while !ring.push((i % 251) as u8) {
                        thread::yield_now();
                    }
                }
            });
            let mut buffer = [0; 17];
            while seen.len() < COUNT as usize {
                let count = ring.pop_into(&mut buffer);
                seen.extend_from_slice(&buffer[..count]);
                if count == 0 {
                    thread::yield_now();
                }
            }
        });
        assert!(seen.iter().enumerate().all(|(i, &byte)| usize::from(byte) == i % 251));
    }
}
