//! Frames and messages: any bytes on the wire, whole frames with any content, and messages that survive being written again.

use rankpatch_format::link::{
    self, Deframer, Framed, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, Request, Response, VERSION,
};
use serde::{Deserialize, Serialize};

use super::Target;

pub(super) const TARGET: Target = Target { name: "frames", run, seeds };

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut frame = [0; MAX_FRAME_BYTES];
    let mut seed =
        |request: Request<'_>| link::encode(9, &request, &mut frame).expect("a request that fits").to_vec();
    vec![
        ("info", seed(Request::Info)),
        ("text", seed(Request::RunText { text: "play a song" })),
        ("generate", seed(Request::Generate { prompt: "a", max_tokens: 3, temperature: 0.5, seed: 1 })),
    ]
}

fn run(data: &[u8]) {
    let mut deframer: Deframer = Deframer::new();
    for byte in data {
        if let Framed::Message(message) = deframer.push(*byte) {
            decode(message);
        }
    }
    // Garbage never hides the frame behind the next delimiter.
    deframer.push(0);
    let body = &data[..data.len().min(MAX_MESSAGE_BYTES - 6)];
    let mut message = [&[VERSION, 5][..], body].concat();
    message.extend(rankpatch_format::crc32(&message).to_le_bytes());
    let mut wire = vec![0; MAX_FRAME_BYTES];
    let len = cobs::try_encode(&message, &mut wire).expect("the longest message fits into the longest frame");
    for byte in &wire[..len] {
        assert!(matches!(deframer.push(*byte), Framed::Incomplete), "a frame ended before its delimiter");
    }
    match deframer.push(0) {
        Framed::Message(found) => {
            assert_eq!(found, message);
            decode(found);
        }
        other => panic!("expected the message, found {other:?}"),
    }
}

fn decode(message: &[u8]) {
    again::<Request<'_>>(message);
    again::<Response<'_>>(message);
}

/// What was read can be written, and its frame holds a message of the same number that is no longer.
fn again<'a, M: Deserialize<'a> + Serialize>(message: &'a [u8]) {
    let Ok((id, read)) = link::decode::<M>(message) else { return };
    let mut frame = [0; MAX_FRAME_BYTES];
    let Ok(frame) = link::encode(id, &read, &mut frame) else {
        // Only a message that no sender may build is too long to be written.
        assert!(message.len() > MAX_MESSAGE_BYTES, "a message that was read cannot be written");
        return;
    };
    let mut deframer: Deframer = Deframer::new();
    let mut whole = None;
    for byte in frame {
        if let Framed::Message(message) = deframer.push(*byte) {
            whole = Some(message.to_vec());
        }
    }
    // Varints may be written longer than need be, so a first reading can shorten the message, a second cannot.
    let whole = whole.expect("a frame that was written is read");
    assert!(whole.len() <= message.len(), "a message grew");
    assert_eq!(whole[..2], [VERSION, id]);
}
