//! Parts of a text and what they are: the answers of a task head at every row, joined to spans.
//!
//! A word begins with a token that starts with a space, with one that does not start with a letter or digit, and with one that does
//! behind something else; bytes from 0x80 on count as letters. The head answers for a word after its last token, by the name of its
//! greatest output: `B-x` begins a span of `x`, `I-x` goes on with one, everything else is outside. What cannot follow does not count:
//! `I-x` only goes on with a span of `x`.

#[cfg(test)]
mod tests;

use rankpatch_format::adapter::Pooling;
use rankpatch_format::digest::Digest;
use rankpatch_format::tokenizer::Tokenizer;

use super::Engine;
use crate::{Error, Result};

/// A word, in bytes of the text, the end not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    /// Where it begins, behind spaces.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// Cuts a text into words while its tokens are read.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    tokenizer: Tokenizer<'a>,
    previous: u16,
    /// The last byte of the text so far.
    last: u8,
    /// Where the word begins that is being read.
    start: usize,
    /// Bytes of the text so far.
    end: usize,
}

impl<'a> Words<'a> {
    /// Before the first token of a text, the one that starts a sequence.
    pub fn new(tokenizer: Tokenizer<'a>) -> Self {
        Self { tokenizer, previous: tokenizer.info().bos, last: b' ', start: 0, end: 0 }
    }

    /// Takes the next token of the text; returns the word that ends with it, which depends on the one behind it.
    pub fn push(&mut self, id: u16, behind: Option<u16>) -> Option<Word> {
        // The token that starts a sequence has no part in the text.
        if self.end == 0 && id == self.tokenizer.info().bos {
            return None;
        }
        let bytes = self.tokenizer.decode(self.previous, id);
        if self.begins_word(bytes) {
            self.start = self.end + bytes.iter().take_while(|byte| **byte == b' ').count();
        }
        self.end += bytes.len();
        self.previous = id;
        self.last = bytes.last().copied().unwrap_or(self.last);
        let ends = behind.is_none_or(|id| self.begins_word(self.tokenizer.piece(id)));
        (ends && self.start < self.end).then_some(Word { start: self.start, end: self.end })
    }

    fn begins_word(&self, bytes: &[u8]) -> bool {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte >= 0x80;
        let joins = |first: &u8| is_letter(*first) && is_letter(self.last);
        self.start == self.end || !bytes.first().is_none_or(joins)
    }
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span<'l> {
    /// Its first byte in the text.
    pub start: usize,
    /// The byte behind it.
    pub end: usize,
    /// What it is.
    pub kind: &'l str,
}

/// What a word is.
#[derive(Debug, Clone, Copy)]
enum Tag<'l> {
    Begins(&'l str),
    Continues,
    Outside,
}

/// Joins the words of a text to spans.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spans<'l> {
    open: Option<Span<'l>>,
}

impl<'l> Spans<'l> {
    /// Takes the next word with the outputs for it and their names; returns the span that ends before it.
    ///
    /// The greatest output counts, the first of equal ones, among those that can follow the words before.
    pub fn push(
        &mut self,
        Word { start, end }: Word,
        outputs: &[f32],
        labels: impl IntoIterator<Item = &'l str>,
    ) -> Option<Span<'l>> {
        let mut best = (f32::NEG_INFINITY, Tag::Outside);
        for (value, label) in outputs.iter().zip(labels) {
            let tag = match label.split_at_checked(2) {
                Some(("B-", kind)) => Tag::Begins(kind),
                Some(("I-", kind)) if self.open.is_some_and(|open| open.kind == kind) => Tag::Continues,
                Some(("I-", _)) => continue,
                _ => Tag::Outside,
            };
            if *value > best.0 {
                best = (*value, tag);
            }
        }
        match best.1 {
            Tag::Begins(kind) => self.open.replace(Span { start, end, kind }),
            Tag::Continues => {
                if let Some(open) = &mut self.open {
                    open.end = end;
                }
                None
            }
            Tag::Outside => self.open.take(),
        }
    }

    /// The span that ends with the text.
    pub fn finish(self) -> Option<Span<'l>> {
        self.open
    }
}

impl<'a> Engine<'a> {
    /// Reads a text, `tokens` as the base's tokenizer encodes it, and hands its spans to `each`, in their order. Starts a new
    /// sequence. Returns the [`Digest`] of the head's outputs at the ends of the words.
    ///
    /// # Errors
    /// [`Error::NoSpans`] unless the attached adapter's head answers after each row and names its outputs, and the base has a
    /// tokenizer; [`Error::UnknownToken`]; [`Error::SequenceTooLong`], with a head that reads twice for more than half of the context.
    pub fn run_spans(&mut self, tokens: &[u16], mut each: impl FnMut(Span<'a>)) -> Result<u64> {
        let head =
            self.head().filter(|head| head.info.pooling.is_every_row() && !head.info.labels.is_empty());
        let (head, tokenizer) = head.zip(self.base.tokenizer()).ok_or(Error::NoSpans)?;
        self.reset();
        if head.info.pooling == Pooling::Reread {
            let expected = self.context / 2;
            if tokens.len() > expected {
                return Err(Error::SequenceTooLong { expected, found: tokens.len() });
            }
            self.run_tokens(tokens)?;
        }
        let (mut words, mut spans, mut digest) = (Words::new(tokenizer), Spans::default(), Digest::default());
        self.run_tokens_each(tokens, |at, outputs| {
            let id = tokens.get(at).copied().unwrap_or(tokenizer.info().bos);
            let Some(word) = words.push(id, tokens.get(at + 1).copied()) else { return };
            digest.update(outputs);
            spans.push(word, outputs, head.labels()).into_iter().for_each(&mut each);
        })?;
        spans.finish().into_iter().for_each(each);
        Ok(digest.value())
    }
}
