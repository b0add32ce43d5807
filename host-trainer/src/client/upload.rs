//! Uploads of adapter files: several chunks in flight, go-back-N after a loss, resumption where an earlier upload of
//! the same file stopped.

use std::collections::VecDeque;
use std::time::Instant;

use rankpatch_format::link::{ErrorCode, MAX_DATA_BYTES, Request};
use serde::Serialize;

use super::answer::Answer;
use super::{ClientError, Device, Installed, Result, Transport, Wire, no_answer, wrong};

/// Rounds in a row that bring no progress before an upload is given up: far more than a link needs on which one frame
/// in three is lost.
const MAX_STALLS: u32 = 24;

/// An upload that is complete and committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Upload {
    /// The slot.
    pub slot: u8,
    /// What the slot holds now.
    pub installed: Installed,
    /// Offset from which the upload went on; 0 if it began anew.
    pub resumed_at: u32,
    /// Chunks sent.
    pub chunks: u32,
    /// How many of them were sent again.
    pub repeated_chunks: u32,
    /// Bytes on the wire for all of it.
    pub wire: Wire,
}

/// A chunk whose answer is awaited.
struct InFlight {
    id: u8,
    end: u32,
}

impl<T: Transport> Device<T> {
    /// Writes `file` into `slot` and commits it; `progress` hears the bytes that the device has. The slot is checked
    /// afterwards: it holds the file or this is an error.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the device's reason, [`ClientError::NoAnswer`] or [`ClientError::Io`] if the link
    /// is lost (a second call goes on where this one stopped), [`ClientError::NotInstalled`].
    pub fn upload(&mut self, slot: u8, file: &[u8], mut progress: impl FnMut(u32)) -> Result<Upload> {
        let start = self.wire;
        let len = file.len() as u32;
        let begin = Request::Begin { slot, len, crc: rankpatch_format::crc32(file) };
        let resumed_at = self.begin(&begin, len)?;
        progress(resumed_at);
        let mut upload = Transfer { acknowledged: resumed_at, highest: resumed_at, ..Transfer::default() };
        loop {
            self.send_chunks(&begin, file, &mut upload, &mut progress)?;
            match self.ask_any("finish", &Request::Finish, self.options.work_timeout)? {
                (Answer::Done, _) => break,
                // The first answer was lost and the upload is over, which the slot will confirm.
                (Answer::Refused(refusal), 1..) if refusal.code == ErrorCode::NoUpload => break,
                (Answer::Refused(refusal), _)
                    if matches!(refusal.code, ErrorCode::Incomplete | ErrorCode::NoUpload)
                        && upload.failures < self.options.retries =>
                {
                    upload.failures += 1;
                    upload.acknowledged = self.begin(&begin, len)?;
                }
                (Answer::Refused(refusal), _) => {
                    return Err(ClientError::Refused { request: "finish", refusal });
                }
                (other, _) => return wrong("finish", "Done", &other),
            }
        }
        let installed = self.slot(slot)?.adapter;
        let found = installed.as_ref().map_or(0, |installed| installed.file_bytes);
        match installed {
            Some(installed) if found == len => Ok(Upload {
                slot,
                installed,
                resumed_at,
                chunks: upload.chunks,
                repeated_chunks: upload.repeated,
                wire: self.wire.since(start),
            }),
            _ => Err(ClientError::NotInstalled { slot, expected: len, found }),
        }
    }

    fn begin(&mut self, begin: &Request<'_>, len: u32) -> Result<u32> {
        match self.ask("begin", begin, self.options.work_timeout)?.0 {
            Answer::Progress { next } => Ok(next.min(len)),
            other => wrong("begin", "Progress", &other),
        }
    }

    /// Sends chunks until the device has all of the file.
    ///
    /// A device stores only the chunk that it needs next. So an answer that needs less than its chunk's end says that
    /// a chunk before it was lost: everything from there is sent again, and the other answers to the old round are
    /// ignored by their numbers. If answers stop, `Begin` finds out where the device is.
    fn send_chunks(
        &mut self,
        begin: &Request<'_>,
        file: &[u8],
        upload: &mut Transfer,
        progress: &mut impl FnMut(u32),
    ) -> Result<()> {
        const NAME: &str = "chunk";
        let len = file.len() as u32;
        let chunk_bytes = self.options.chunk_bytes.clamp(1, MAX_DATA_BYTES);
        let mut in_flight = VecDeque::new();
        let mut cursor = upload.acknowledged;
        while upload.acknowledged < len {
            while in_flight.len() < self.options.window.max(1) && cursor < len {
                let data = &file[cursor as usize..];
                let data = &data[..data.len().min(chunk_bytes)];
                let id = self.next_id();
                self.send(NAME, id, &Request::Chunk { offset: cursor, data })?;
                upload.chunks += 1;
                upload.repeated += u32::from(cursor < upload.highest);
                cursor += data.len() as u32;
                upload.highest = upload.highest.max(cursor);
                in_flight.push_back(InFlight { id, end: cursor });
            }
            let next = match self.chunk_answer(&mut in_flight)? {
                Some((Answer::Progress { next }, end)) => {
                    if next != end {
                        cursor = next.min(len);
                        in_flight.clear();
                        upload.stalls += 1;
                    }
                    next.min(len)
                }
                Some((Answer::Refused(refusal), _)) if refusal.code != ErrorCode::NoUpload => {
                    return Err(ClientError::Refused { request: NAME, refusal });
                }
                Some((Answer::Refused(_), _)) | None => {
                    if upload.failures >= self.options.retries {
                        return Err(no_answer(NAME, self.options.answer_timeout, upload.failures + 1));
                    }
                    upload.failures += 1;
                    in_flight.clear();
                    cursor = self.begin(begin, len)?;
                    cursor
                }
                Some((other, _)) => return wrong(NAME, "Progress", &other),
            };
            if next > upload.acknowledged {
                (upload.failures, upload.stalls) = (0, 0);
            } else if upload.stalls >= MAX_STALLS {
                return Err(ClientError::Stalled { rounds: upload.stalls, next, len });
            }
            if next != upload.acknowledged {
                upload.acknowledged = next;
                progress(next);
            }
        }
        Ok(())
    }

    /// The next answer to a chunk in flight with the chunk's end; `None` if none comes in time. Chunks before the
    /// answered one leave the flight with it: they are stored or lost.
    fn chunk_answer(&mut self, in_flight: &mut VecDeque<InFlight>) -> Result<Option<(Answer, u32)>> {
        let deadline = Instant::now() + self.options.answer_timeout;
        while let Some((id, answer)) = self.poll("chunk", deadline)? {
            if let Some(at) = in_flight.iter().position(|chunk| chunk.id == id) {
                let end = in_flight[at].end;
                in_flight.drain(..=at);
                return Ok(Some((answer, end)));
            }
        }
        Ok(None)
    }
}

/// Where an upload stands.
#[derive(Default)]
struct Transfer {
    /// Bytes that the device has.
    acknowledged: u32,
    /// Bytes that were sent at least once.
    highest: u32,
    chunks: u32,
    repeated: u32,
    /// Silences since the last progress.
    failures: u32,
    /// Rounds since the last progress.
    stalls: u32,
}
