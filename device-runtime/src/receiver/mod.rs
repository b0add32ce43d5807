//! The device's end of an upload, as a state machine: bytes in, bytes out, no clock, no port, no allocation.
//!
//! ```text
//! loop {
//!     receiver.push(bytes that have arrived);         // takes what it can, tells how much
//!     match receiver.poll(&mut slots, &policy) {      // one bounded piece of work
//!         Step::Request { id, request } => ...        // not about slots: the application's
//!         ...
//!     }
//!     send(receiver.pull());                          // answers
//! }
//! ```
//!
//! It works over any link: blocking, interrupt-driven or async, since it never waits; [`serve`] and [`serve_async`] are this loop
//! over the traits of `embedded-io`. While it has a frame in hand it takes no
//! more bytes, which then wait in the driver. One [`poll`](Receiver::poll) erases one page, writes at most [`STEP_BYTES`], or
//! handles one message, so that a network can run between polls. Two things take longer: `Finish`, which reads, hashes and
//! verifies a whole file, and giving one up (`Abort`, `Remove`, a refused `Finish`), which erases its pages one after the other.
//!
//! Every request may come twice. All that outlives a reset is in the slots; nothing here has to.

#[cfg(all(test, feature = "ed25519"))]
mod bad_inputs;
mod handle;
mod serve;

use rankpatch_format::base::Base;
use rankpatch_format::link::{self, CHUNK_ALIGN, Deframer, ErrorCode, Refusal, Request, Response};

pub use handle::slot_refusal;
pub use serve::{serve, serve_async};

use crate::slots::{MappedFlash, Slots};
use crate::trust::{Identity, Verifier};

/// Most bytes that one [`Receiver::poll`] writes to flash.
pub const STEP_BYTES: usize = 256;

/// Bytes of an answer that the receiver gives by itself, at most: [`Response::Slot`] with the longest task name.
const ANSWER_BYTES: usize = 160;

/// Which files the device accepts.
#[derive(Debug, Clone, Copy)]
pub struct Policy<'a, V> {
    /// What the device is.
    pub identity: Identity,
    /// The base that adapters must fit.
    pub base: &'a Base<'a>,
    /// The keys.
    pub verifier: V,
}

/// What a [`Receiver::poll`] has done.
#[derive(Debug, PartialEq)]
pub enum Step<'a> {
    /// Nothing: it waits for bytes.
    Idle,
    /// A piece of work; there may be more.
    Worked,
    /// An adapter was installed.
    Installed {
        /// Its slot.
        slot: usize,
    },
    /// A message that is the application's to answer, under the same number, after what [`Receiver::pull`] still holds.
    Request {
        /// Its number.
        id: u8,
        /// The message.
        request: Request<'a>,
    },
}

/// What the receiver is doing besides waiting for frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    None,
    /// Erasing for an upload; then `Begin` with this number is answered.
    Erase {
        id: u8,
    },
    /// Writing the chunk that lies in the frame buffer.
    Store {
        id: u8,
        answer: bool,
        offset: u32,
        len: usize,
        done: usize,
    },
}

/// Frames that came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that were understood.
    pub frames: u32,
    /// Frames that were not: stuffing, checksum, version, message.
    pub bad_frames: u32,
}

/// The receiver. Its RAM is one frame of `FRAME` bytes and less than 300 bytes more.
#[derive(Debug)]
pub struct Receiver<const FRAME: usize> {
    deframer: Deframer<FRAME>,
    /// A frame lies in the deframer and has not been handled.
    waiting: bool,
    work: Work,
    /// Whether the next poll prefers a waiting frame to erasing.
    frame_next: bool,
    /// The slot that `Finish` installed last, or that `Begin` found installed: to answer a repeated `Finish`.
    finished: Option<usize>,
    window: u8,
    out: heapless::Vec<u8, ANSWER_BYTES>,
    /// Bytes of `out` that are sent.
    sent: usize,
    counts: Counts,
}

impl<const FRAME: usize> Receiver<FRAME> {
    /// Bytes of a chunk that fit a frame: a multiple of 32.
    pub const CHUNK_BYTES: usize = {
        // A chunk's frame: version, number, variant, flag, offset, length, CRC-32, and a COBS byte per 254.
        let overhead = FRAME / 254 + 1 + 16;
        let chunk = FRAME.saturating_sub(overhead) / CHUNK_ALIGN as usize * CHUNK_ALIGN as usize;
        assert!(chunk > 0, "the frame is too small for a chunk");
        if chunk > link::MAX_CHUNK_BYTES { link::MAX_CHUNK_BYTES } else { chunk }
    };

    /// A receiver that lets the host have `window` chunks in flight: as many as the driver can hold while one is written,
    /// and that one.
    pub fn new(window: u8) -> Self {
        Self {
            deframer: Deframer::new(),
            waiting: false,
            work: Work::None,
            frame_next: false,
            finished: None,
            window: window.max(1),
            out: heapless::Vec::new(),
            sent: 0,
            counts: Counts::default(),
        }
    }

    /// Chunks that may be in flight.
    pub fn window(&self) -> u8 {
        self.window
    }

    /// Frames that came.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes bytes that have arrived, and returns how many it took: all, unless a frame is complete, which has to be handled by
    /// [`poll`](Self::poll) first.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        // A chunk is written from where it lies in the frame buffer.
        while !self.waiting && !matches!(self.work, Work::Store { .. }) {
            let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) else { break };
            let (len, ended) = self.deframer.extend(rest);
            taken += len;
            if ended {
                self.waiting = self.deframer.message().is_some();
                self.counts.bad_frames = self.counts.bad_frames.wrapping_add(u32::from(!self.waiting));
            }
        }
        taken
    }

    /// The bytes to be sent; the caller reports with [`pulled`](Self::pulled) how many it has sent.
    pub fn pull(&self) -> &[u8] {
        self.out.get(self.sent..).unwrap_or(&[])
    }

    /// The first `len` bytes of [`pull`](Self::pull) are sent.
    pub fn pulled(&mut self, len: usize) {
        self.sent = self.sent.saturating_add(len);
        if self.sent >= self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
    }

    /// Does one piece of work, or none while answers wait to be pulled.
    pub fn poll<F: MappedFlash>(
        &mut self,
        slots: &mut Slots<F>,
        policy: &Policy<'_, impl Verifier>,
    ) -> Step<'_> {
        if !self.out.is_empty() {
            return Step::Idle;
        }
        match self.work {
            Work::Store { .. } => self.store(slots),
            Work::Erase { id } if !self.waiting || !self.frame_next => {
                self.frame_next = true;
                self.erase(slots, id);
                Step::Worked
            }
            _ if self.waiting => {
                self.frame_next = false;
                self.waiting = false;
                self.handle(slots, policy)
            }
            _ => Step::Idle,
        }
    }

    fn answer(&mut self, id: u8, response: &Response<'_>) {
        // `ANSWER_BYTES` holds every answer that is given here; if one did not fit, it would be lost and asked for again.
        let out = &mut self.out;
        if link::write_frame(id, response, |bytes| _ = out.extend_from_slice(bytes)).is_err() {
            out.clear();
        }
    }

    fn refuse(&mut self, id: u8, code: ErrorCode, expected: usize, found: usize) {
        self.answer(id, &Refusal::new(code, expected, found).into());
    }
}

#[cfg(test)]
#[allow(clippy::print_stdout, reason = "the figures, shown with --nocapture")]
mod tests {
    extern crate std;
    use std::println;

    use super::*;

    /// Frames and pages of the boards, and the frame that every request fits. Pointers are larger here than on a device.
    #[test]
    fn ram_is_as_stated() {
        fn check<const FRAME: usize>(page: usize) {
            let (receiver, slots) = (size_of::<Receiver<FRAME>>(), size_of::<Slots<()>>());
            println!("frames of {FRAME} bytes: receiver {receiver} and slots {slots} bytes of RAM");
            assert!(receiver < FRAME + 300 && receiver + slots <= 2048 + page, "{receiver}, {slots}");
        }
        check::<280>(1024);
        check::<600>(1024);
        check::<{ link::MAX_FRAME_BYTES }>(1024);
        check::<3104>(2048);
        check::<4160>(4096);
    }
}
