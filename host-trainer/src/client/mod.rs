//! The host's side of the link: a [`Device`] asks over a [`Transport`] and checks what comes back.
//!
//! Requests carry numbers and answers repeat them, so an answer that comes late or twice is told from the one that is
//! awaited. A request without an answer is sent again under the same number; every request but `Generate` may be
//! repeated, and where a repetition finds the work already done, that counts as done. Nothing here knows what a port is
//! or prints.

mod answer;
mod error;
#[cfg(test)]
pub(crate) mod fake;
pub mod lossy;
#[cfg(test)]
mod tests;
mod transport;
mod upload;

use std::ops::Range;
use std::time::{Duration, Instant};

use rankpatch_format::Error as FormatError;
use rankpatch_format::digest::Digest;
use rankpatch_format::link::{
    Deframer, Framed, MAX_CHUNK_BYTES, MAX_DATA_BYTES, Mode, Request, Response, decode, encode, frame_bytes,
};

use answer::Answer;
pub use answer::{
    Activated, Active, Generated, Info, Installed, Output, Slot, Spans, Statistics, Status, Tested, mode_name,
};
pub use error::{ClientError, Refusal, Result};
pub use transport::{Address, DEFAULT_BAUD, Serial, Tcp, Transport};
pub use upload::Upload;

/// How patient a client is, and how hasty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Wait for an answer that needs no work.
    pub answer_timeout: Duration,
    /// Wait for an answer that needs a run of the network, or an erased or verified slot.
    pub work_timeout: Duration,
    /// Times that a request is sent again.
    pub retries: u32,
    /// Chunks in flight during an upload, at least 1; no more than the device allows.
    pub window: usize,
    /// Bytes of a chunk; no more than the device allows.
    pub chunk_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            answer_timeout: Duration::from_secs(2),
            work_timeout: Duration::from_mins(1),
            retries: 4,
            window: usize::MAX,
            chunk_bytes: MAX_CHUNK_BYTES,
        }
    }
}

/// Bytes on the wire, frame overhead included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Wire {
    /// Bytes from the host to the device.
    pub sent_bytes: u64,
    /// Bytes from the device to the host.
    pub received_bytes: u64,
}

impl Wire {
    /// Both directions.
    pub fn total_bytes(self) -> u64 {
        self.sent_bytes + self.received_bytes
    }

    fn since(self, start: Self) -> Self {
        Self {
            sent_bytes: self.sent_bytes - start.sent_bytes,
            received_bytes: self.received_bytes - start.received_bytes,
        }
    }
}

/// How a text is continued.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Most tokens to add.
    pub max_tokens: u32,
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Seed of the sampler.
    pub seed: u32,
}

/// A device on the other side of a [`Transport`].
pub struct Device<T> {
    transport: T,
    options: Options,
    deframer: Deframer,
    buffer: Box<[u8; 2048]>,
    unread: Range<usize>,
    id: u8,
    wire: Wire,
    /// Bytes of a chunk and chunks in flight that the device allows, once it was asked.
    limits: Option<(usize, usize)>,
    /// Bytes of the device's log that came and were not taken yet.
    log: Vec<u8>,
    /// Bytes of the log that the device had to drop.
    log_lost: u32,
}

impl<T: Transport> Device<T> {
    /// A client that has asked nothing yet.
    ///
    /// # Errors
    /// [`ClientError::Io`] if the port fails.
    pub fn new(transport: T, options: Options) -> Result<Self> {
        let mut device = Self {
            transport,
            options,
            deframer: Deframer::new(),
            buffer: Box::new([0; 2048]),
            unread: 0..0,
            id: 0,
            wire: Wire::default(),
            limits: None,
            log: Vec::new(),
            log_lost: 0,
        };
        // Ends whatever an earlier, interrupted session left in the device's frame buffer.
        device.send_bytes("hello", &[0])?;
        Ok(device)
    }

    /// Bytes on the wire so far.
    pub fn wire(&self) -> Wire {
        self.wire
    }

    /// About the device.
    ///
    /// # Errors
    /// A [`ClientError`], as with every request below.
    pub fn info(&mut self) -> Result<Info> {
        match self.ask_soon("info", &Request::Info, Duration::ZERO)? {
            Answer::Info(info) => {
                self.limits = Some((info.chunk_bytes.into(), info.window.into()));
                Ok(info)
            }
            other => wrong("info", "Info", &other),
        }
    }

    /// About a slot.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there is no such slot, and as above.
    pub fn slot(&mut self, slot: u8) -> Result<Slot> {
        match self.ask_soon("slot", &Request::Slot { slot }, Duration::ZERO)? {
            Answer::Slot(slot) => Ok(slot),
            other => wrong("slot", "Slot", &other),
        }
    }

    /// About all slots.
    ///
    /// # Errors
    /// As above.
    pub fn slots(&mut self) -> Result<Vec<Slot>> {
        let n_slots = self.info()?.n_slots;
        (0..n_slots).map(|slot| self.slot(slot)).collect()
    }

    /// Erases a slot.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the slot is in use or does not exist, and as above.
    pub fn remove(&mut self, slot: u8) -> Result<()> {
        self.ask_done("remove", &Request::Remove { slot })
    }

    /// Ends an upload that is under way and erases what is there of it.
    ///
    /// # Errors
    /// As above.
    pub fn abort(&mut self) -> Result<()> {
        self.ask_done("abort", &Request::Abort)
    }

    /// Applies the adapter in a slot, runs its self-test and puts it on trial: for `trial_seconds`, or until a reset if that
    /// is 0.
    ///
    /// # Errors
    /// [`ClientError::Refused`], the adapter before being applied again, and as above.
    pub fn activate(&mut self, slot: u8, mode: Mode, trial_seconds: u32) -> Result<Activated> {
        let request = Request::Activate { slot, mode, trial_seconds };
        match self.ask("activate", &request, self.options.work_timeout)?.0 {
            Answer::Activated(activated) => Ok(activated),
            other => wrong("activate", "Activated", &other),
        }
    }

    /// Makes the trial of a slot permanent.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the slot does not run, and as above.
    pub fn confirm(&mut self, slot: u8) -> Result<Status> {
        self.status_after("confirm", &Request::Confirm { slot })
    }

    /// Goes back from a slot to what was confirmed before it.
    ///
    /// # Errors
    /// As above.
    pub fn roll_back(&mut self, slot: u8) -> Result<Status> {
        self.status_after("rollback", &Request::Rollback { slot })
    }

    /// What runs, and what would after a reset.
    ///
    /// # Errors
    /// As above.
    pub fn status(&mut self) -> Result<Status> {
        self.status_after("status", &Request::Status)
    }

    fn status_after(&mut self, name: &'static str, request: &Request<'_>) -> Result<Status> {
        match self.ask_soon(name, request, self.options.work_timeout)? {
            Answer::Status(status) => Ok(status),
            other => wrong(name, "Status", &other),
        }
    }

    /// Turns the log on or off.
    ///
    /// # Errors
    /// As above.
    pub fn set_log(&mut self, on: bool) -> Result<()> {
        self.ask_done("log", &Request::Log { on })
    }

    /// Bytes of the log that have come by `deadline`, and how many the device had to drop since its start. While answers are
    /// awaited the log is collected, too.
    ///
    /// # Errors
    /// As above.
    pub fn log(&mut self, deadline: Instant) -> Result<(Vec<u8>, u32)> {
        if self.log.is_empty() {
            // An answer that comes now is late, and belongs to nobody.
            let _ = self.poll("log", deadline)?;
        }
        Ok((std::mem::take(&mut self.log), self.log_lost))
    }

    /// Goes back to the plain base.
    ///
    /// # Errors
    /// As above.
    pub fn detach(&mut self) -> Result<()> {
        self.ask_done("detach", &Request::Detach)
    }

    /// Runs the self-test of the active adapter.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if it fails or nothing is active, and as above.
    pub fn self_test(&mut self) -> Result<Tested> {
        match self.ask("selftest", &Request::SelfTest, self.options.work_timeout)?.0 {
            Answer::Tested(tested) => Ok(tested),
            other => wrong("selftest", "Tested", &other),
        }
    }

    /// Runs the network over `features` `[rows, width]`, row-major.
    ///
    /// # Errors
    /// [`ClientError::Features`], [`ClientError::Refused`], [`ClientError::Digest`], and as above.
    pub fn run_features(&mut self, features: &[f32], rows: u32) -> Result<Output> {
        if rows == 0 || features.is_empty() || !features.len().is_multiple_of(rows as usize) {
            return Err(ClientError::Features { rows, found: features.len() });
        }
        let mut offset = 0;
        for group in features.chunks(MAX_DATA_BYTES / 4) {
            let data: Vec<u8> = group.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.ask_done("features", &Request::Features { offset, data: &data })?;
            offset += group.len() as u32;
        }
        self.output(&Request::Run { rows })
    }

    /// Runs the network over the samples of a clip, of which the device makes its features.
    ///
    /// # Errors
    /// [`ClientError::Refused`], [`ClientError::Digest`], and as above.
    pub fn run_samples(&mut self, samples: &[i16]) -> Result<Output> {
        let mut offset = 0;
        for group in samples.chunks(MAX_DATA_BYTES / 2) {
            let data: Vec<u8> = group.iter().flat_map(|sample| sample.to_le_bytes()).collect();
            self.ask_done("samples", &Request::Samples { offset, data: &data })?;
            offset += group.len() as u32;
        }
        self.output(&Request::RunSamples)
    }

    /// Runs the network over a text.
    ///
    /// # Errors
    /// [`ClientError::TextTooLong`], [`ClientError::Refused`], [`ClientError::Digest`], and as above.
    pub fn run_text(&mut self, text: &str) -> Result<Output> {
        fits(text)?;
        self.output(&Request::RunText { text })
    }

    /// Runs, then asks for the rest of the output until it is complete.
    fn output(&mut self, request: &Request<'_>) -> Result<Output> {
        let mut first = self.output_part("run", request, self.options.work_timeout)?;
        let mut values = std::mem::take(&mut first.values);
        while values.len() < first.n_out as usize {
            let offset = values.len() as u32;
            let part =
                self.output_part("output", &Request::Output { offset }, self.options.answer_timeout)?;
            // A device that was reset meanwhile has another output, or sends nothing for ever.
            if part.offset != offset || part.values.is_empty() || part.digest != first.digest {
                return Err(ClientError::Digest { expected: first.digest, found: part.digest });
            }
            values.extend(part.values);
        }
        let found = Digest::of(&values);
        if found != first.digest {
            return Err(ClientError::Digest { expected: first.digest, found });
        }
        Ok(Output { values, argmax: first.argmax, digest: first.digest, ticks: first.ticks })
    }

    fn output_part(
        &mut self,
        name: &'static str,
        request: &Request<'_>,
        wait: Duration,
    ) -> Result<answer::Part> {
        match self.ask(name, request, wait)?.0 {
            Answer::Output(part) => Ok(part),
            other => wrong(name, "Output", &other),
        }
    }

    /// Tells the spans of a text. Asks again where some are lost.
    ///
    /// # Errors
    /// [`ClientError::TextTooLong`], [`ClientError::LostSpans`], [`ClientError::Refused`], and as above.
    pub fn spans(&mut self, text: &str) -> Result<Spans> {
        fits(text)?;
        let mut found = self.spans_once(text);
        for _ in 0..self.options.retries {
            if !matches!(found, Err(ClientError::LostSpans { .. } | ClientError::NoAnswer { .. })) {
                break;
            }
            found = self.spans_once(text);
        }
        found
    }

    fn spans_once(&mut self, text: &str) -> Result<Spans> {
        let (name, wait) = ("spans", self.options.work_timeout);
        let id = self.next_id();
        self.send(name, id, &Request::Spans { text })?;
        let mut spans = Vec::new();
        let mut deadline = self.transport.now() + wait;
        while let Some((number, answer)) = self.poll(name, deadline)? {
            match answer {
                // An answer to another request, which was late.
                _ if number != id => continue,
                Answer::Span(span) => spans.push(span),
                Answer::Spans { n_spans, digest, ticks } => {
                    let found = spans.len() as u32;
                    if found != n_spans {
                        return Err(ClientError::LostSpans { expected: n_spans, found });
                    }
                    return Ok(Spans { spans, digest, ticks });
                }
                Answer::Refused(refusal) => return Err(ClientError::Refused { request: name, refusal }),
                other => return wrong(name, "Span or Spans", &other),
            }
            deadline = self.transport.now() + wait;
        }
        Err(no_answer(name, wait, 1))
    }

    /// Continues `prompt` and gives each token's bytes to `token` as they come.
    ///
    /// The request is not repeated once a token has come.
    ///
    /// # Errors
    /// [`ClientError::TextTooLong`], [`ClientError::LostTokens`], [`ClientError::Refused`], and as above.
    pub fn generate(
        &mut self,
        prompt: &str,
        sampling: Sampling,
        mut token: impl FnMut(u16, &[u8]),
    ) -> Result<Generated> {
        fits(prompt)?;
        let Sampling { max_tokens, temperature, seed } = sampling;
        let request = Request::Generate { prompt, max_tokens, temperature, seed };
        let mut answer = self.ask("generate", &request, self.options.work_timeout)?.0;
        let id = self.id;
        let (mut ids, mut text) = (Vec::new(), Vec::new());
        loop {
            match answer {
                Answer::Token { id, text: bytes } => {
                    token(id, &bytes);
                    ids.push(id);
                    text.extend(bytes);
                }
                Answer::Generated { n_tokens, digest, ticks } => {
                    let found = ids.len() as u32;
                    // The token that ends a text is counted, but adds nothing and is not sent.
                    if found != n_tokens && found + 1 != n_tokens {
                        return Err(ClientError::LostTokens { expected: n_tokens, found });
                    }
                    return Ok(Generated { ids, text, digest, ticks });
                }
                Answer::Refused(refusal) => {
                    return Err(ClientError::Refused { request: "generate", refusal });
                }
                other => return wrong("generate", "Token or Generated", &other),
            }
            let deadline = self.transport.now() + self.options.work_timeout;
            answer = loop {
                match self.poll("generate", deadline)? {
                    Some((number, answer)) if number == id => break answer,
                    Some(_) => {}
                    None => return Err(no_answer("generate", self.options.work_timeout, 1)),
                }
            };
        }
    }

    /// The counters of the device.
    ///
    /// # Errors
    /// As above.
    pub fn statistics(&mut self) -> Result<Statistics> {
        match self.ask("stats", &Request::Statistics, self.options.answer_timeout)?.0 {
            Answer::Statistics(statistics) => Ok(statistics),
            other => wrong("stats", "Statistics", &other),
        }
    }

    /// Asks for something that is answered with `Done`.
    fn ask_done(&mut self, name: &'static str, request: &Request<'_>) -> Result<()> {
        match self.ask(name, request, self.options.work_timeout)?.0 {
            Answer::Done => Ok(()),
            other => wrong(name, "Done", &other),
        }
    }

    /// Like [`Device::ask`] for what may be asked twice at no cost: the first wait is a quarter of that for an answer, and each is
    /// twice the one before, up to it. Asks for as long as all attempts of [`Device::ask`] together, or for `least`.
    fn ask_soon(&mut self, name: &'static str, request: &Request<'_>, least: Duration) -> Result<Answer> {
        let id = self.next_id();
        let mut wait = self.options.answer_timeout / 4;
        let mut waited = Duration::ZERO;
        let mut attempts = 0;
        let patience = least.max(self.options.answer_timeout * (self.options.retries + 1));
        while waited < patience {
            match self.ask_once(name, id, request, wait)? {
                Some(Answer::Refused(refusal)) => {
                    return Err(ClientError::Refused { request: name, refusal });
                }
                Some(answer) => return Ok(answer),
                None => {}
            }
            attempts += 1;
            waited += wait;
            wait = (wait * 2).min(self.options.answer_timeout);
        }
        Err(no_answer(name, waited, attempts))
    }

    /// Sends a request and waits for its answer.
    fn ask_once(
        &mut self,
        name: &'static str,
        id: u8,
        request: &Request<'_>,
        wait: Duration,
    ) -> Result<Option<Answer>> {
        self.send(name, id, request)?;
        let deadline = self.transport.now() + wait;
        while let Some((number, answer)) = self.poll(name, deadline)? {
            // Another number belongs to a request that is over: an answer that was late or came twice.
            if number == id {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    /// Like [`Device::ask_any`], with a refusal as an error.
    fn ask(&mut self, name: &'static str, request: &Request<'_>, wait: Duration) -> Result<(Answer, u32)> {
        match self.ask_any(name, request, wait)? {
            (Answer::Refused(refusal), _) => Err(ClientError::Refused { request: name, refusal }),
            answer => Ok(answer),
        }
    }

    /// Sends a request, again where no answer comes, and returns the answer with the number of repetitions.
    fn ask_any(
        &mut self,
        name: &'static str,
        request: &Request<'_>,
        wait: Duration,
    ) -> Result<(Answer, u32)> {
        let id = self.next_id();
        for attempt in 0..=self.options.retries {
            if let Some(answer) = self.ask_once(name, id, request, wait)? {
                return Ok((answer, attempt));
            }
        }
        Err(no_answer(name, wait, self.options.retries + 1))
    }

    fn next_id(&mut self) -> u8 {
        // The number 0 is the log's.
        self.id = self.id.wrapping_add(1).max(1);
        self.id
    }

    fn send(&mut self, name: &'static str, id: u8, request: &Request<'_>) -> Result<()> {
        let mut frame = [0; frame_bytes(MAX_CHUNK_BYTES)];
        let frame = encode(id, request, &mut frame)?;
        self.send_bytes(name, frame)
    }

    fn send_bytes(&mut self, request: &'static str, bytes: &[u8]) -> Result<()> {
        self.transport.send(bytes).map_err(|source| ClientError::Io { request, source })?;
        self.wire.sent_bytes += bytes.len() as u64;
        Ok(())
    }

    /// The next answer with its number, or `None` at `deadline`. Damaged frames are skipped: what was lost with them is
    /// asked for again.
    fn poll(&mut self, request: &'static str, deadline: Instant) -> Result<Option<(u8, Answer)>> {
        loop {
            for at in self.unread.clone() {
                self.unread.start = at + 1;
                let Framed::Message(message) = self.deframer.push(self.buffer[at]) else { continue };
                match decode::<Response<'_>>(message) {
                    Ok((_, Response::Log { lost, data })) => {
                        self.log.extend_from_slice(data);
                        self.log_lost = lost;
                        if request == "log" {
                            return Ok(None);
                        }
                    }
                    Ok((id, response)) => return Ok(Some((id, Answer::from(response)))),
                    // The checksum held: waiting for another answer would not help.
                    Err(error @ FormatError::UnknownVersion { .. }) => return Err(error.into()),
                    Err(_) => {}
                }
            }
            let received = self.transport.receive(&mut self.buffer[..], deadline);
            let len = received.map_err(|source| ClientError::Io { request, source })?;
            if len == 0 {
                return Ok(None);
            }
            self.wire.received_bytes += len as u64;
            self.unread = 0..len;
        }
    }
}

fn wrong<R>(request: &'static str, expected: &'static str, found: &Answer) -> Result<R> {
    Err(ClientError::WrongAnswer { request, expected, found: found.kind() })
}

fn no_answer(request: &'static str, wait: Duration, attempts: u32) -> ClientError {
    ClientError::NoAnswer { request, seconds: wait.as_secs_f32(), attempts }
}

fn fits(text: &str) -> Result<()> {
    if text.len() > MAX_DATA_BYTES {
        return Err(ClientError::TextTooLong { max: MAX_DATA_BYTES, found: text.len() });
    }
    Ok(())
}
