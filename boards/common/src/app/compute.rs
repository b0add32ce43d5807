//! Running the network: over features, over texts, and token by token.

use rankpatch_format::digest::Digest;
use rankpatch_format::link::{ErrorCode, MAX_DATA_BYTES, Refusal, Response};
use rankpatch_runtime::{Sampler, Span};

use super::{App, TEXT, refuse, send};
use crate::{Board, Counter};

/// A text that is being continued, one token per turn of the application.
pub(super) struct Generation {
    /// Number of the request.
    id: u8,
    sampler: Sampler,
    max_tokens: u32,
    n_tokens: u32,
    previous: u16,
    digest: Digest,
    ticks: u64,
}

impl<B: Board> App<B> {
    pub(super) fn store_features(
        &mut self,
        offset: usize,
        data: &[u8],
    ) -> Result<Response<'static>, Refusal> {
        let (values, rest) = data.as_chunks::<4>();
        let (expected, found) = (self.features.len(), offset.saturating_add(values.len()));
        let target = self.features.get_mut(offset..found).filter(|_| rest.is_empty());
        let Some(target) = target else {
            let code = if expected == 0 { ErrorCode::WrongInput } else { ErrorCode::SequenceTooLong };
            return Err(refuse(code, expected, found));
        };
        target.iter_mut().zip(values).for_each(|(to, value)| *to = f32::from_le_bytes(*value));
        Ok(Response::Done)
    }

    /// Makes feature rows of samples and stores them with those that the host sends.
    pub(super) fn store_samples(&mut self, offset: usize, data: &[u8]) -> Result<Response<'static>, Refusal> {
        let (samples, rest) = data.as_chunks::<2>();
        let start = self.counter.ticks();
        // A network that streams would run at once: its features are not asked for.
        if self.base.streaming() || !rest.is_empty() || offset == 0 && self.base.front_end().is_none() {
            return Err(refuse(ErrorCode::WrongInput, self.base.feature_width(), data.len()));
        }
        if offset == 0 {
            self.engine.reset();
            self.clip_rows = 0;
        }
        // A request that comes twice adds nothing the second time.
        let expected = self.engine.heard();
        let new = expected.checked_sub(offset).ok_or(refuse(ErrorCode::Incomplete, expected, offset))?;
        self.engine.push_sample_bytes(samples.get(new..).unwrap_or(&[]))?;
        let rows = self.engine.pushed_features();
        let stored = self.clip_rows * self.base.feature_width();
        if let Some((target, rows)) = self.features.get_mut(stored..rows.len()).zip(rows.get(stored..)) {
            target.copy_from_slice(rows);
        }
        self.clip_rows = rows.len().checked_div(self.base.feature_width()).unwrap_or(0);
        self.timed(0, start);
        Ok(Response::Done)
    }

    pub(super) fn timed(&mut self, rows: usize, start: u64) -> u64 {
        let ticks = self.counter.ticks() - start;
        self.rows += rows as u64;
        self.run_ticks += ticks;
        ticks
    }

    pub(super) fn run_features(&mut self, rows: usize) -> Result<u64, Refusal> {
        let width = self.base.feature_width();
        let room = self.features.len();
        let features = self.features.get(..rows.saturating_mul(width)).ok_or(refuse(
            ErrorCode::SequenceTooLong,
            room.checked_div(width).unwrap_or(0),
            rows,
        ))?;
        if rows == 0 {
            return Err(refuse(ErrorCode::SequenceTooLong, self.engine.context(), 0));
        }
        let start = self.counter.ticks();
        self.engine.reset();
        self.engine.run_features(features)?;
        Ok(self.timed(rows, start))
    }

    /// Encodes a text into `tokens` and returns how many there are.
    pub(super) fn encode(&mut self, text: &str) -> Result<usize, Refusal> {
        let tokenizer = self.base.tokenizer().ok_or(refuse(ErrorCode::WrongInput, 1, 0))?;
        let len = tokenizer.encode(text.as_bytes(), self.tokens)?;
        let expected = self.engine.context();
        if len > expected {
            return Err(refuse(ErrorCode::SequenceTooLong, expected, len));
        }
        Ok(len)
    }

    pub(super) fn run_text(&mut self, text: &str) -> Result<u64, Refusal> {
        let len = self.encode(text)?;
        let start = self.counter.ticks();
        self.engine.reset();
        self.engine.run_tokens(self.tokens.get(..len).unwrap_or(&[]))?;
        Ok(self.timed(len, start))
    }

    /// Tells the spans of a text, one by one while it is read. Its own frame, so that other requests need no stack for it.
    #[inline(never)]
    pub(super) fn run_spans(&mut self, link: &mut B::Link, id: u8, text: &str) -> Result<(), Refusal> {
        let len = self.encode(text)?;
        let tokens = self.tokens.get(..len).unwrap_or(&[]);
        let counter = &self.counter;
        let start = counter.ticks();
        let (mut n_spans, mut sending) = (0, 0);
        let digest = self.engine.run_spans(tokens, |Span { start, end, kind }| {
            let before = counter.ticks();
            send(link, id, &Response::Span { start: start as u32, end: end as u32, kind });
            sending += counter.ticks() - before;
            n_spans += 1;
        })?;
        let rows = self.engine.position();
        let ticks = self.timed(rows, start + sending);
        send(link, id, &Response::Spans { n_spans, digest, ticks });
        Ok(())
    }

    /// Runs the prompt; the tokens follow one by one. The same request again, while it is worked on, changes nothing.
    pub(super) fn start_generating(
        &mut self,
        id: u8,
        prompt: &str,
        max_tokens: u32,
        temperature: f32,
        seed: u32,
    ) -> Result<(), Refusal> {
        if let Some(generation) = &self.generation {
            return if generation.id == id { Ok(()) } else { Err(refuse(ErrorCode::Busy, 0, 0)) };
        }
        // Only a network that goes on where it stopped can continue a text, and a task head gives no next token.
        if !self.base.streaming() || self.engine.adapter().is_some_and(|adapter| adapter.head().is_some()) {
            return Err(refuse(ErrorCode::WrongInput, 0, 1));
        }
        let len = self.encode(prompt)?;
        let start = self.counter.ticks();
        self.engine.reset();
        self.engine.run_tokens(self.tokens.get(..len).unwrap_or(&[]))?;
        let ticks = self.timed(len, start);
        let previous = self.tokens.get(len - 1).copied().unwrap_or(0);
        let sampler = Sampler::new(temperature, seed);
        let digest = Digest::default();
        self.generation = Some(Generation { id, sampler, max_tokens, n_tokens: 0, previous, digest, ticks });
        Ok(())
    }

    /// Generates the next token of the text under way and sends it.
    #[inline(never)]
    pub(super) fn generate_one(&mut self, link: &mut B::Link) {
        let Some(mut generation) = self.generation.take().filter(|_| TEXT) else { return };
        let Some(tokenizer) = self.base.tokenizer() else { return };
        let mut over = generation.n_tokens >= generation.max_tokens;
        if !over {
            // Neither the digest, which shows a test what was computed, nor the link takes the network's time.
            generation.digest.update(self.engine.output());
            let start = self.counter.ticks();
            let logits = self.engine.output();
            let next = generation.sampler.next(logits) as u16;
            generation.n_tokens += 1;
            let special = tokenizer.info();
            if next == special.bos || next == special.eos {
                generation.ticks += self.timed(0, start);
                over = true;
            } else {
                let text = tokenizer.decode(generation.previous, next);
                generation.previous = next;
                over = generation.n_tokens == generation.max_tokens
                    || self.engine.position() == self.engine.context()
                    || self.engine.run_tokens(&[next]).is_err();
                generation.ticks += self.timed(usize::from(!over), start);
                send(link, generation.id, &Response::Token { id: next, text });
            }
        }
        if over {
            let Generation { id, n_tokens, digest, ticks, .. } = generation;
            send(link, id, &Response::Generated { n_tokens, digest: digest.value(), ticks });
        } else {
            self.generation = Some(generation);
        }
    }

    pub(super) fn send_output(
        &self,
        link: &mut B::Link,
        id: u8,
        offset: usize,
        ticks: u64,
    ) -> Result<(), Refusal> {
        let output = self.engine.output();
        let (n_out, max) = (output.len(), output.len().saturating_sub(1));
        let values = output.get(offset..).filter(|values| !values.is_empty());
        let values = values.ok_or(refuse(ErrorCode::OutOfRange, max, offset))?;
        let values = values.get(..MAX_DATA_BYTES / 4).unwrap_or(values);
        let response = Response::Output {
            n_out: n_out as u32,
            argmax: rankpatch_runtime::math::argmax(output) as u32,
            digest: Digest::of(output),
            ticks,
            offset: offset as u32,
            values: bytemuck::cast_slice(values),
        };
        send(link, id, &response);
        Ok(())
    }
}
