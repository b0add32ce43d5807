//! Frames: COBS, version, number, checksum. Writing needs no buffer for the whole frame, only for a COBS block.

use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};

use super::{MAX_FRAME_BYTES, VERSION};
use crate::{Error, Result, What};

const OVERHEAD_BYTES: usize = 2 + 4;
/// Longest run of bytes without a zero that one COBS code byte can announce.
const BLOCK: usize = 254;

/// Stuffs bytes as they come and hands them on in blocks.
///
/// The sink is a trait object: a message's encoder is compiled once, whoever sends it.
struct Stuffer<'w> {
    /// The code byte's place, then bytes that are not zero.
    block: [u8; BLOCK + 1],
    /// Bytes in the block, the code byte included.
    len: usize,
    sink: &'w mut dyn FnMut(&[u8]),
    written: usize,
}

impl<'w> Stuffer<'w> {
    fn new(sink: &'w mut dyn FnMut(&[u8])) -> Self {
        Self { block: [0; BLOCK + 1], len: 1, sink, written: 0 }
    }

    fn flush(&mut self) {
        if let Some((code, _)) = self.block.split_first_mut() {
            *code = self.len as u8;
        }
        (self.sink)(self.block.get(..self.len).unwrap_or(&[]));
        self.written += self.len;
        self.len = 1;
    }

    fn push(&mut self, byte: u8) {
        // A full block stands for no zero after it. It is flushed before the next byte, so that none is empty at the end.
        if self.len > BLOCK {
            self.flush();
        }
        if byte == 0 {
            return self.flush();
        }
        if let Some(to) = self.block.get_mut(self.len) {
            *to = byte;
        }
        self.len += 1;
    }

    fn end(mut self) -> usize {
        self.flush();
        (self.sink)(&[0]);
        self.written + 1
    }
}

/// Where postcard writes a message: into the checksum and the stuffer.
struct Sink<'s, 'w> {
    stuffer: &'s mut Stuffer<'w>,
    crc: crc::Digest<'static, u32>,
}

impl Flavor for Sink<'_, '_> {
    type Output = u32;

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.crc.update(data);
        data.iter().for_each(|byte| self.stuffer.push(*byte));
        Ok(())
    }

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn finalize(self) -> postcard::Result<u32> {
        Ok(self.crc.finalize())
    }
}

/// Writes a frame with `message` and the number `id`, delimiter included, to `sink`, in pieces of at most 255 bytes, and
/// returns how many bytes it has. Needs 300 bytes of stack, whatever the message's length.
///
/// # Errors
/// [`Error::Malformed`] if the message cannot be encoded; none of this crate's is such. Part of a frame may have been written then.
pub fn write_frame(id: u8, message: &impl Serialize, mut sink: impl FnMut(&[u8])) -> Result<usize> {
    write(id, message, &mut sink)
}

fn write(id: u8, message: &impl Serialize, sink: &mut dyn FnMut(&[u8])) -> Result<usize> {
    let mut stuffer = Stuffer::new(sink);
    let mut flavor = Sink { stuffer: &mut stuffer, crc: crate::CRC.digest() };
    let written = flavor.try_extend(&[VERSION, id]);
    let crc = written.and_then(|()| postcard::serialize_with_flavor(message, flavor));
    let crc = crc.map_err(|_| Error::Malformed { what: What::Message })?;
    crc.to_le_bytes().into_iter().for_each(|byte| stuffer.push(byte));
    Ok(stuffer.end())
}

/// Writes a frame with `message` and the number `id` into `frame` and returns its bytes, delimiter included.
///
/// # Errors
/// [`Error::BufferTooSmall`] if `frame` cannot hold it; as [`write_frame`].
pub fn encode<'f>(id: u8, message: &impl Serialize, frame: &'f mut [u8]) -> Result<&'f [u8]> {
    let found = frame.len();
    let mut len = 0;
    let expected = write_frame(id, message, |bytes| {
        if let Some(to) = frame.get_mut(len..len + bytes.len()) {
            to.copy_from_slice(bytes);
        }
        len += bytes.len();
    })?;
    let too_small =
        Error::BufferTooSmall { what: What::FrameBuffer, expected: expected as u32, found: found as u32 };
    frame.get(..expected).ok_or(too_small)
}

/// The number and the message of an unstuffed frame.
///
/// # Errors
/// [`Error::Truncated`], [`Error::Corrupt`], [`Error::UnknownVersion`], [`Error::Malformed`],
/// [`Error::TrailingBytes`].
pub fn decode<'a, M: Deserialize<'a>>(message: &'a [u8]) -> Result<(u8, M)> {
    let (content, crc) = message.split_last_chunk::<4>().ok_or(Error::Truncated {
        what: What::Frame,
        expected: OVERHEAD_BYTES as u32,
        found: message.len() as u32,
    })?;
    let (expected, found) = (u32::from_le_bytes(*crc), crate::crc32(content));
    if expected != found {
        return Err(Error::Corrupt { expected, found });
    }
    let ([version, id], body) = content.split_first_chunk::<2>().ok_or(Error::Truncated {
        what: What::Frame,
        expected: OVERHEAD_BYTES as u32,
        found: message.len() as u32,
    })?;
    if *version != VERSION {
        return Err(Error::UnknownVersion { expected: VERSION, found: *version });
    }
    let (message, rest) =
        postcard::take_from_bytes(body).map_err(|_| Error::Malformed { what: What::Message })?;
    if !rest.is_empty() {
        return Err(Error::TrailingBytes {
            what: What::Message,
            expected: (body.len() - rest.len()) as u32,
            found: body.len() as u32,
        });
    }
    Ok((*id, message))
}

/// Collects bytes into frames: bytes in, unstuffed messages out. Garbage between frames is skipped at the next
/// delimiter.
///
/// `N` is the longest frame that it takes, without the delimiter.
#[derive(Debug, Default)]
pub struct Deframer<const N: usize = MAX_FRAME_BYTES> {
    buffer: heapless::Vec<u8, N>,
    overrun: bool,
    complete: bool,
    bad: bool,
}

/// What a byte completed.
#[derive(Debug, PartialEq, Eq)]
pub enum Framed<'a> {
    /// Nothing yet.
    Incomplete,
    /// The content of a frame, to be given to [`decode`]; readable until the next byte is pushed.
    Message(&'a [u8]),
    /// A frame that is too long or not stuffed correctly.
    Bad,
}

impl<const N: usize> Deframer<N> {
    /// A deframer that waits for a frame.
    pub const fn new() -> Self {
        Self { buffer: heapless::Vec::new(), overrun: false, complete: false, bad: false }
    }

    /// What the last byte completed, again: the content of the frame, if it was whole.
    pub fn message(&self) -> Option<&[u8]> {
        if self.complete && !self.bad { Some(&self.buffer) } else { None }
    }

    /// Takes bytes from the wire up to the end of a frame, and returns how many it took and whether a frame ended with the
    /// last of them. A bad frame ends as well; [`message`](Self::message) is then `None`.
    pub fn extend(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (taken, byte) in (1..).zip(bytes) {
            if self.push(*byte) != Framed::Incomplete {
                return (taken, true);
            }
        }
        (bytes.len(), false)
    }

    /// Takes one byte from the wire.
    pub fn push(&mut self, byte: u8) -> Framed<'_> {
        if core::mem::take(&mut self.complete) {
            self.buffer.clear();
        }
        if byte != 0 {
            self.overrun |= self.buffer.push(byte).is_err();
            return Framed::Incomplete;
        }
        if self.buffer.is_empty() {
            return Framed::Incomplete;
        }
        self.complete = true;
        let len = if core::mem::take(&mut self.overrun) {
            None
        } else {
            cobs::decode_in_place(&mut self.buffer).ok()
        };
        self.bad = len.is_none();
        self.buffer.truncate(len.unwrap_or(0));
        if self.bad { Framed::Bad } else { Framed::Message(&self.buffer) }
    }
}
