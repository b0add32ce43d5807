//! An upload over links that have nothing but the traits of `embedded-io`, give a few bytes at a time, and end.

extern crate std;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::task::{Context, Waker};
use std::vec::Vec;

use rankpatch_format::link::{self, Request, Response};

use super::super::bad_inputs::{Bench, CHUNK, Said, base, frame, good, product, read, signing_key};
use super::*;
use crate::slots::Announcement;
use crate::trust::{Identity, Keys};

/// The device's end of a wire on which all that a host will say is under way.
struct Wire {
    towards: VecDeque<u8>,
    back: Vec<u8>,
    /// Whether the next async read finds nothing yet.
    pending: bool,
}

impl Wire {
    /// An upload of `file`, with a request for the application before its end.
    fn with_upload(file: &[u8]) -> Self {
        let Announcement { sha256, .. } = Announcement::of(file);
        let mut towards = VecDeque::new();
        let mut say = |request: &Request<'_>| towards.extend(frame(1, request));
        say(&Request::Begin { slot: None, header: &file[..64], sha256: &sha256 });
        for (i, data) in file.chunks(CHUNK).enumerate() {
            say(&Request::Chunk { answer: true, offset: (i * CHUNK) as u32, data });
        }
        say(&Request::Info);
        say(&Request::Finish);
        Self { towards, back: Vec::new(), pending: false }
    }

    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let len = self.towards.len().min(buffer.len()).min(7);
        buffer.iter_mut().zip(self.towards.drain(..len)).for_each(|(to, from)| *to = from);
        len
    }
}

impl embedded_io::ErrorType for Wire {
    type Error = Infallible;
}

impl embedded_io::Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Infallible> {
        Ok(self.take(buffer))
    }
}

impl embedded_io::Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        // Never all at once.
        let taken = bytes.len().min(5);
        self.back.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl embedded_io_async::Read for Wire {
    async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Infallible> {
        self.pending = !self.pending;
        if self.pending {
            give_way().await;
        }
        Ok(self.take(buffer))
    }
}

impl embedded_io_async::Write for Wire {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        give_way().await;
        embedded_io::Write::write(self, bytes)
    }

    async fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The application's answer to a request, and what else it hears.
fn answer(heard: &mut Vec<&'static str>, wire: &mut Wire, step: &Step<'_>) {
    match step {
        Step::Request { id, request: Request::Info } => {
            heard.push("info");
            link::write_frame(*id, &Response::Done, |bytes| wire.back.extend_from_slice(bytes)).unwrap();
        }
        Step::Installed { .. } => heard.push("installed"),
        other => panic!("unexpected {other:?}"),
    }
}

/// What a host must have heard, in this order.
fn check(file: &[u8], bench: &mut Bench, wire: &Wire, heard: &[&str]) {
    let said = read(&wire.back);
    let chunks = file.len().div_ceil(CHUNK);
    assert!(chunks > 1 && said.len() == chunks + 3, "{said:?}");
    let [Said::Progress { next: 0, .. }, .., Said::Done, Said::Installed { slot, sequence: 1 }] = said[..]
    else {
        panic!("{said:?}")
    };
    assert_eq!(heard, ["info", "installed"]);
    assert_eq!(bench.slots().verified(slot.into()), Ok(file));
}

#[test]
fn a_blocking_link_is_served_until_it_ends() {
    let (mut bench, file, base, mut heard) = (Bench::new(), good(1), base(), Vec::new());
    let identity = Identity { product: product(), base_id: base.id() };
    let verifier = Keys::one(signing_key().verifying_key().to_bytes());
    let policy = Policy { identity, base: &base, verifier };
    let mut wire = Wire::with_upload(&file);
    let Bench { slots, receiver, .. } = &mut bench;
    let served = serve(&mut wire, receiver, slots.as_mut().unwrap(), &policy, |wire, _, step| {
        answer(&mut heard, wire, &step);
        Ok(())
    });
    assert_eq!(served, Ok(()));
    check(&file, &mut bench, &wire, &heard);
}

/// An executor with nothing to wake: it polls, and counts the turns that other tasks would have had.
#[test]
fn an_async_link_is_served_and_other_tasks_have_their_turns() {
    let (mut bench, file, base, mut heard) = (Bench::new(), good(1), base(), Vec::new());
    let identity = Identity { product: product(), base_id: base.id() };
    let verifier = Keys::one(signing_key().verifying_key().to_bytes());
    let policy = Policy { identity, base: &base, verifier };
    let mut wire = Wire::with_upload(&file);
    let Bench { slots, receiver, .. } = &mut bench;
    let mut turns = 0;
    {
        let slots = slots.as_mut().unwrap();
        let application = async |wire: &mut Wire, _: &mut Slots<_>, step: Step<'_>| {
            answer(&mut heard, wire, &step);
            Ok(())
        };
        let mut served = pin!(serve_async(&mut wire, receiver, slots, &policy, application));
        let mut context = Context::from_waker(Waker::noop());
        while served.as_mut().poll(&mut context).is_pending() {
            turns += 1;
            assert!(turns < 100_000, "it never ends");
        }
    }
    check(&file, &mut bench, &wire, &heard);
    let pieces = file.len() / crate::receiver::STEP_BYTES;
    assert!(turns > pieces, "{turns} turns during {pieces} pieces of work");
}
