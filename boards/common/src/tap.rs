//! A copy of the log for the link: a board's logger pushes its bytes, the application sends them to a host that listens.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::ByteRing;

/// Bytes of the log that can wait for the link.
const WAITING_BYTES: usize = 128;

/// The log's way to the link. One context pushes, with interrupts masked as loggers do; one takes.
#[derive(Debug)]
pub struct Tap {
    ring: ByteRing<WAITING_BYTES>,
    listening: AtomicBool,
    lost: AtomicU32,
}

/// The tap that boards push into and the application takes from.
pub static TAP: Tap = Tap::new();

impl Tap {
    /// A tap that nobody listens to.
    pub const fn new() -> Self {
        Self { ring: ByteRing::new(), listening: AtomicBool::new(false), lost: AtomicU32::new(0) }
    }

    /// Starts or stops listening.
    pub fn listen(&self, on: bool) {
        self.listening.store(on, Ordering::Relaxed);
    }

    /// Takes bytes of the log; without a listener they are gone. For the logger only.
    pub fn push(&self, bytes: &[u8]) {
        if self.listening.load(Ordering::Relaxed) {
            let lost = bytes.iter().filter(|byte| !self.ring.push(**byte)).count() as u32;
            // Only the pushing side writes this number, and a plain load and store are what every core has.
            self.lost.store(self.lost.load(Ordering::Relaxed).wrapping_add(lost), Ordering::Relaxed);
        }
    }

    /// Moves bytes to the front of `into` and returns how many were lost so far, and how many there are.
    pub fn take(&self, into: &mut [u8]) -> (u32, usize) {
        if self.ring.is_empty() {
            (0, 0)
        } else {
            (self.lost.load(Ordering::Relaxed), self.ring.pop_into(into))
        }
    }
}

impl Default for Tap {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_for_a_listener_and_losses_are_counted() {
        let tap = Tap::new();
        let mut bytes = [0; 300];
        tap.push(b"nobody listens");
        assert_eq!(tap.take(&mut bytes), (0, 0));
        tap.listen(true);
        tap.push(b"abc");
        tap.push(b"de");
        assert_eq!((tap.take(&mut bytes), &bytes[..5]), ((0, 5), &b"abcde"[..]));
        tap.push(&[7; 132]);
        assert_eq!(tap.take(&mut bytes), (4, 128));
    }
}
