//! Frames and messages, whole and damaged.
#![allow(clippy::indexing_slicing, reason = "test data of known sizes")]

extern crate std;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::Error;
use crate::digest::XorShift32;

pub(super) fn framed(bytes: &[u8]) -> Vec<Result<Vec<u8>, ()>> {
    let mut deframer: Deframer = Deframer::new();
    let mut frames = Vec::new();
    for byte in bytes {
        match deframer.push(*byte) {
            Framed::Incomplete => {}
            Framed::Message(message) => frames.push(Ok(message.to_vec())),
            Framed::Bad => frames.push(Err(())),
        }
    }
    frames
}

pub(crate) fn frame(id: u8, message: &impl serde::Serialize) -> Vec<u8> {
    let mut frame = [0; super::MAX_FRAME_BYTES];
    super::encode(id, message, &mut frame).unwrap().to_vec()
}

#[test]
fn messages_come_back_from_their_frames() {
    let data: Vec<u8> = (0..MAX_DATA_BYTES).map(|i| (i % 7 * (i % 3)) as u8).collect();
    let requests = [
        Request::Info,
        Request::Begin { slot: Some(3), header: &data[..64], sha256: &data[100..132] },
        Request::Chunk { answer: true, offset: 70_000, data: &data },
        Request::Activate { slot: 1, mode: Mode::Merged, trial_seconds: 300 },
        Request::Generate { prompt: "Once upon", max_tokens: 20, temperature: 0.5, seed: 1 },
    ];
    let mut wire = vec![0, 0, 9, 1, 2, 3, 0];
    for (id, request) in (0u8..).zip(&requests) {
        wire.extend(frame(id, request));
    }
    let frames = framed(&wire);
    assert_eq!(frames[0], Err(()), "garbage between frames");
    for ((id, request), message) in (0u8..).zip(&requests).zip(&frames[1..]) {
        assert_eq!(decode::<Request<'_>>(message.as_ref().unwrap()), Ok((id, *request)));
    }
    // A stuffed frame holds no zero but its last byte, and the chunk is the longest message.
    assert!(frame(2, &requests[2]).iter().rev().skip(1).all(|byte| *byte != 0));
    let refusal = Response::from(Refusal::from(Error::RankOutOfRange { site: 3, rank: 0, max: 256 }));
    assert_eq!(refusal, Response::Error { code: ErrorCode::RankOutOfRange, expected: 256, found: 0 });
}

#[test]
fn damaged_frames_are_refused() {
    let whole = frame(9, &Request::Chunk { answer: true, offset: 5, data: &[1, 2, 3, 0, 0, 9] });
    let decode = |bytes: &[u8]| match framed(bytes).as_slice() {
        [Ok(message)] => decode::<Request<'_>>(message).map(|_| ()).map_err(Some),
        _ => Err(None),
    };
    assert_eq!(decode(&whole), Ok(()));
    for len in 0..whole.len() - 1 {
        let mut cut = whole[..len].to_vec();
        cut.push(0);
        assert!(decode(&cut).is_err(), "{len} bytes");
    }
    for bit in 0..(whole.len() - 1) * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&flipped).is_err(), "bit {bit}");
    }
    let long = vec![1; MAX_FRAME_BYTES + 1].into_iter().chain([0]).collect::<Vec<u8>>();
    assert_eq!(framed(&long), [Err(())]);
    let mut after_long = long;
    after_long.extend(&whole);
    assert_eq!(framed(&after_long).len(), 2, "a long frame does not spoil the next");
    let mut message = framed(&whole).remove(0).unwrap();
    message[0] = 1;
    let end = message.len() - 4;
    let crc = crate::crc32(&message[..end]).to_le_bytes();
    message[end..].copy_from_slice(&crc);
    assert_eq!(super::decode::<Request<'_>>(&message), Err(Error::UnknownVersion { expected: 2, found: 1 }));
}

/// The stuffer against the one of the `cobs` crate, for runs around the block's length.
#[test]
fn stuffing_is_cobs() {
    // A zero at each place around the end of a block, and none at all.
    let step = if cfg!(miri) { 101 } else { 1 };
    for zero in (0..20).chain(240..270).chain(490..530).step_by(step) {
        let mut data = [7; 600];
        data[zero] = 0;
        let request = Request::Features { offset: 1, data: &data };
        let found = framed(&frame(7, &request));
        assert_eq!(super::decode::<Request<'_>>(found[0].as_ref().unwrap()), Ok((7, request)), "{zero}");
    }
    let mut random = XorShift32::new(3);
    for len in (0..20).chain(240..520).chain([1024, 1100]).step_by(step) {
        for zeros in [0, 1, 5, 200] {
            let data: Vec<u8> = (0..len)
                .map(|_| if random.next_u32() % 256 < zeros { 0 } else { random.next_u32() as u8 | 1 })
                .collect();
            let wire = frame(7, &Request::Features { offset: 0, data: &data[..len.min(MAX_DATA_BYTES)] });
            let mut plain = vec![0; wire.len()];
            let plain_len = cobs::decode(&wire[..wire.len() - 1], &mut plain).unwrap().frame_size();
            let expected = cobs::encode_vec(&plain[..plain_len]);
            // The other encoder ends a block of 254 at the very end with an empty one, which may be left out.
            let expected =
                expected.strip_suffix(&[1]).filter(|_| wire.len() == expected.len()).unwrap_or(&expected);
            assert_eq!(wire[..wire.len() - 1], *expected, "{len} bytes, {zeros}");
            let found = framed(&wire);
            assert_eq!(found, [Ok(plain[..plain_len].to_vec())]);
        }
    }
}

#[test]
fn error_codes_are_numbers_with_names() {
    for (number, code) in (0u8..).zip(ErrorCode::ALL) {
        assert_eq!(code.number(), number);
        assert_eq!(std::format!("{code:?}"), code.name());
        let sent = postcard::to_allocvec(&code).unwrap();
        assert_eq!(sent, [number], "what is sent is the number");
        let spec = include_str!("../../SPEC.md");
        // An interpreter reads the text for minutes.
        let named = cfg!(miri) || spec.contains(&std::format!("{number} {}", code.name()));
        assert!(named, "{code:?} is not in SPEC.md");
    }
}
