//! Uploads of adapter files: several chunks in flight, go-back-N after a loss, resumption where an earlier upload of
//! the same file stopped.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rankpatch_format::header::HEADER_BYTES;
use rankpatch_format::link::{CHUNK_ALIGN, ErrorCode, Request};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::answer::Answer;
use super::{ClientError, Device, Installed, Result, Transport, Wire, no_answer, wrong};

/// Rounds in a row that bring no progress before an upload is given up: far more than a link needs on which one frame
/// in three is lost.
const MAX_STALLS: u32 = 24;
/// Chunks in order after which the window grows by one again.
const GROW_AFTER: u32 = 8;
/// The window after a loss: enough to keep a line busy, little to send again.
const LOSSY_WINDOW: usize = 2;
/// Shortest wait for the answer to a chunk.
const LEAST_PATIENCE: Duration = Duration::from_millis(100);

/// An upload that is complete and committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Upload {
    /// The slot.
    pub slot: u8,
    /// What the slot holds now.
    pub installed: Installed,
    /// Offset from which the upload went on; 0 if it began anew, the file's length if it was installed already.
    pub resumed_at: u32,
    /// Chunks sent.
    pub chunks: u32,
    /// How many of them were sent again.
    pub repeated_chunks: u32,
    /// Bytes on the wire for all of it.
    pub wire: Wire,
}

/// A chunk whose answer may be awaited.
struct InFlight {
    id: u8,
    end: u32,
    sent: Instant,
    /// Whether the chunk asks for an answer, and was not sent before: then its answer tells how long one takes.
    timed: bool,
}

impl<T: Transport> Device<T> {
    /// Writes `file` into `slot`, or the slot that the device chooses, and has it committed; `progress` hears the bytes that
    /// the device has. The slot is described afterwards: it holds the file or this is an error.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the device's reason, [`ClientError::NoAnswer`] or [`ClientError::Io`] if the link
    /// is lost (a second call goes on where this one stopped), [`ClientError::NotInstalled`].
    pub fn upload(&mut self, slot: Option<u8>, file: &[u8], mut progress: impl FnMut(u32)) -> Result<Upload> {
        if self.limits.is_none() {
            self.info()?;
        }
        let start = self.wire;
        let len = file.len() as u32;
        let sha256: [u8; 32] = Sha256::digest(file).into();
        let header = file.get(..HEADER_BYTES).unwrap_or(file);
        let begin = Request::Begin { slot, header, sha256: &sha256 };
        let resumed_at = self.begin(&begin, len)?;
        progress(resumed_at);
        let mut upload = Transfer { acknowledged: resumed_at, highest: resumed_at, ..Transfer::default() };
        let slot = loop {
            self.send_chunks(&begin, file, &mut upload, &mut progress)?;
            match self.ask_soon("finish", &Request::Finish, self.options.work_timeout) {
                Ok(Answer::Slot(slot)) => break slot,
                Err(ClientError::Refused { refusal, .. })
                    if matches!(refusal.code, ErrorCode::Incomplete | ErrorCode::NoUpload)
                        && upload.failures < self.options.retries =>
                {
                    upload.failures += 1;
                    upload.acknowledged = self.begin(&begin, len)?;
                }
                Err(error) => return Err(error),
                Ok(other) => return wrong("finish", "Slot", &other),
            }
        };
        let found = slot.adapter.as_ref().map_or(0, |installed| installed.file_bytes);
        match slot.adapter {
            Some(installed) if found == len => Ok(Upload {
                slot: slot.slot,
                installed,
                resumed_at,
                chunks: upload.chunks,
                repeated_chunks: upload.repeated,
                wire: self.wire.since(start),
            }),
            _ => Err(ClientError::NotInstalled { slot: slot.slot, expected: len, found }),
        }
    }

    fn begin(&mut self, begin: &Request<'_>, len: u32) -> Result<u32> {
        match self.ask_soon("begin", begin, self.options.work_timeout)? {
            Answer::Progress { next, .. } => Ok(next.min(len)),
            other => wrong("begin", "Progress", &other),
        }
    }

    /// Sends chunks until the device has all of the file.
    ///
    /// A device stores only the chunk that it needs next. So an answer that needs less than its chunk's end says that
    /// a chunk before it was lost: everything from there is sent again, and the other answers to the old round are
    /// ignored by their numbers. If answers stop, the first chunk that has none is sent again; if that does not help, `Begin`
    /// finds out where the device is.
    fn send_chunks(
        &mut self,
        begin: &Request<'_>,
        file: &[u8],
        upload: &mut Transfer,
        progress: &mut impl FnMut(u32),
    ) -> Result<()> {
        const NAME: &str = "chunk";
        let len = file.len() as u32;
        let (chunk_bytes, most) = self.limits.unwrap_or((CHUNK_ALIGN as usize, 1));
        let chunk_bytes =
            chunk_bytes.min(self.options.chunk_bytes) / CHUNK_ALIGN as usize * CHUNK_ALIGN as usize;
        let chunk_bytes = chunk_bytes.max(CHUNK_ALIGN as usize);
        let most = most.min(self.options.window).max(1);
        let mut window = most;
        let mut in_order = 0;
        let mut unanswered = 0;
        let mut in_flight = VecDeque::new();
        let mut cursor = upload.acknowledged;
        while upload.acknowledged < len {
            while in_flight.len() < window && cursor < len {
                let data = &file[cursor as usize..];
                let data = &data[..data.len().min(chunk_bytes)];
                let id = self.next_id();
                unanswered += 1;
                let end = cursor + data.len() as u32;
                // Half a window is answered while the other half is on its way.
                let answer = unanswered >= (window / 2).max(1) || end == len;
                self.send(NAME, id, &Request::Chunk { answer, offset: cursor, data })?;
                unanswered = if answer { 0 } else { unanswered };
                let again = cursor < upload.highest;
                upload.chunks += 1;
                upload.repeated += u32::from(again);
                cursor = end;
                upload.highest = upload.highest.max(cursor);
                in_flight.push_back(InFlight {
                    id,
                    end,
                    sent: self.transport.now(),
                    timed: answer && !again,
                });
            }
            let next = match self.chunk_answer(&mut in_flight, upload)? {
                Some((Answer::Progress { next, .. }, end)) => {
                    if next == end {
                        in_order += 1;
                        if in_order % GROW_AFTER == 0 {
                            window = (window + 1).min(most);
                        }
                    } else {
                        cursor = next.min(len);
                        in_flight.clear();
                        upload.stalls += 1;
                        (window, in_order, unanswered) = (LOSSY_WINDOW.min(most), 0, 0);
                    }
                    next.min(len)
                }
                Some((Answer::Refused(refusal), _)) if refusal.code != ErrorCode::NoUpload => {
                    return Err(ClientError::Refused { request: NAME, refusal });
                }
                lost @ (Some((Answer::Refused(_), _)) | None) => {
                    if upload.failures >= self.options.retries {
                        return Err(no_answer(NAME, self.options.answer_timeout, upload.failures + 1));
                    }
                    upload.failures += 1;
                    upload.patience = upload.patience.map(|patience| patience * 2);
                    in_flight.clear();
                    (window, in_order, unanswered) = (LOSSY_WINDOW.min(most), 0, 0);
                    let ask = lost.is_some() || upload.failures > 1;
                    cursor = if ask { self.begin(begin, len)? } else { upload.acknowledged };
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
    fn chunk_answer(
        &mut self,
        in_flight: &mut VecDeque<InFlight>,
        upload: &mut Transfer,
    ) -> Result<Option<(Answer, u32)>> {
        let most = self.options.answer_timeout;
        let wait = upload.patience.unwrap_or(most).clamp(LEAST_PATIENCE.min(most), most);
        let deadline = self.transport.now() + wait;
        while let Some((id, answer)) = self.poll("chunk", deadline)? {
            if let Some(at) = in_flight.iter().position(|chunk| chunk.id == id) {
                let chunk = &in_flight[at];
                if chunk.timed {
                    let took = self.transport.now().saturating_duration_since(chunk.sent);
                    // Half as much again as the last one, in which the whole window was on its way.
                    upload.patience = Some(took * 3 / 2 + LEAST_PATIENCE);
                }
                let end = chunk.end;
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
    /// How long the next answer is waited for.
    patience: Option<Duration>,
}
