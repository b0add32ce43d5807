//! The tokenizer section of a base image and byte-pair encoding over it, in the manner of SentencePiece as llama2.c
//! uses it: one piece per character, then the adjacent pair with the best score is merged until none is left.
//!
//! It lives with the format because host and device must split a text alike. It needs no memory but the caller's token
//! buffer.

use serde::{Deserialize, Serialize};

use crate::{Error, Result, What};

/// Longest piece, in bytes: one fits into a message.
pub const MAX_PIECE_BYTES: u32 = 256;

/// Where the tokenizer lies and which ids are special.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerInfo {
    /// Offset of the section in the image.
    pub offset: u32,
    /// Bytes of the section.
    pub len: u32,
    /// Ids.
    pub vocab_size: u32,
    /// The id that starts a sequence (in the llama2.c models it also ends a text).
    pub bos: u16,
    /// The id that ends a sequence.
    pub eos: u16,
    /// Id of the byte 0; byte b has the id `byte_base + b`.
    pub byte_base: u16,
    /// A text that is not empty is encoded with a space before it.
    pub prefix_space: bool,
}

/// A tokenizer read in place.
///
/// Section, little-endian: scores `f32[n]`; ends `u32[n]` (end of each piece in the bytes); order `u16[m]`, the ids that
/// may be looked up, sorted by piece; the bytes of all pieces. m is stated before them as `u32`.
#[derive(Debug, Clone, Copy)]
pub struct Tokenizer<'a> {
    info: TokenizerInfo,
    scores: &'a [f32],
    ends: &'a [u32],
    order: &'a [u16],
    bytes: &'a [u8],
}

impl<'a> Tokenizer<'a> {
    fn parts(section: &'a [u8], info: TokenizerInfo) -> Option<Self> {
        let n = info.vocab_size as usize;
        let (count, rest) = section.split_first_chunk::<4>()?;
        let (scores, rest) = rest.split_at_checked(n.checked_mul(4)?)?;
        let (ends, rest) = rest.split_at_checked(n.checked_mul(4)?)?;
        let (order, bytes) = rest.split_at_checked((u32::from_le_bytes(*count) as usize).checked_mul(2)?)?;
        Some(Self {
            info,
            scores: bytemuck::try_cast_slice(scores).ok()?,
            ends: bytemuck::try_cast_slice(ends).ok()?,
            order: bytemuck::try_cast_slice(order).ok()?,
            bytes,
        })
    }

    pub(crate) fn new(section: &'a [u8], info: TokenizerInfo) -> Self {
        Self::parts(section, info).unwrap_or(Self { info, scores: &[], ends: &[], order: &[], bytes: &[] })
    }

    /// Checks the section: lengths agree, ends ascend, ids and scores are valid, the order is sorted.
    pub(crate) fn check(section: &'a [u8], info: TokenizerInfo) -> Result<()> {
        let malformed = Err(Error::Malformed { what: What::TokenizerSection });
        let Some(this) = Self::parts(section, info) else { return malformed };
        let max = info.vocab_size.saturating_sub(1);
        let last_byte = u32::from(info.byte_base) + 255;
        for (what, found) in
            [(What::BosId, info.bos.into()), (What::EosId, info.eos.into()), (What::LastByteId, last_byte)]
        {
            if found > max {
                return Err(Error::OutOfRange { what, found, max });
            }
        }
        if info.vocab_size > u32::from(u16::MAX) {
            return Err(Error::OutOfRange {
                what: What::VocabularySize,
                found: info.vocab_size,
                max: u16::MAX.into(),
            });
        }
        if let Some(at) = this.scores.iter().position(|score| !score.is_finite()) {
            return Err(Error::NotFinite { what: What::TokenScore, index: at as u32 });
        }
        let (mut start, mut longest, mut ascending) = (0, 0, true);
        for end in this.ends {
            ascending &= start <= *end;
            if *end as usize <= this.bytes.len() {
                longest = longest.max(end.saturating_sub(start));
            }
            start = *end;
        }
        if longest > MAX_PIECE_BYTES {
            return Err(Error::OutOfRange { what: What::PieceLength, found: longest, max: MAX_PIECE_BYTES });
        }
        ascending &= start as usize == this.bytes.len();
        let known = this.order.iter().all(|id| u32::from(*id) <= max);
        if !ascending || !known || !this.order.is_sorted_by(|a, b| this.piece(*a) < this.piece(*b)) {
            return malformed;
        }
        Ok(())
    }

    /// Special ids.
    pub fn info(&self) -> TokenizerInfo {
        self.info
    }

    /// The bytes of a piece; none for an id outside the vocabulary.
    pub fn piece(&self, id: u16) -> &'a [u8] {
        let id = usize::from(id);
        let start = id.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied());
        match (start, self.ends.get(id)) {
            (Some(start), Some(end)) => self.bytes.get(start as usize..*end as usize).unwrap_or(&[]),
            _ => &[],
        }
    }

    /// The score of a piece; the lowest for an id outside the vocabulary.
    pub fn score(&self, id: u16) -> f32 {
        self.scores.get(usize::from(id)).copied().unwrap_or(f32::MIN)
    }

    /// The ids that encoding may produce, sorted by piece.
    pub fn searchable(&self) -> &'a [u16] {
        self.order
    }

    /// The bytes that `id` adds to a text after the id `previous`: a leading space right after the start is dropped.
    pub fn decode(&self, previous: u16, id: u16) -> &'a [u8] {
        let piece = self.piece(id);
        match piece {
            [b' ', rest @ ..] if self.info.prefix_space && previous == self.info.bos => rest,
            _ => piece,
        }
    }

    /// The id whose piece is the concatenation of `left` and `right`.
    fn find(&self, left: &[u8], right: &[u8]) -> Option<u16> {
        let wanted = left.iter().chain(right);
        let at = self.order.binary_search_by(|id| self.piece(*id).iter().cmp(wanted.clone())).ok()?;
        self.order.get(at).copied()
    }

    /// Encodes `text` (UTF-8 as a rule; other bytes become byte tokens) with a leading `bos` into `tokens` and returns
    /// how many it wrote.
    ///
    /// # Errors
    /// [`Error::BufferTooSmall`] if `tokens` cannot hold one id per character, which merging needs, and `bos`.
    pub fn encode(&self, text: &[u8], tokens: &mut [u16]) -> Result<usize> {
        let found = tokens.len() as u32;
        let mut len = 0;
        let mut push = |id: u16| {
            let slot = tokens.get_mut(len).ok_or(Error::BufferTooSmall {
                what: What::TokenBuffer,
                expected: (text.len() + 2) as u32,
                found,
            })?;
            *slot = id;
            len += 1;
            Ok(())
        };
        push(self.info.bos)?;
        if self.info.prefix_space && !text.is_empty() {
            push(self.find(b" ", b"").unwrap_or(self.byte(b' ')))?;
        }
        let mut rest = text;
        while !rest.is_empty() {
            let (character, after) = rest.split_at(character_len(rest));
            match self.find(character, b"") {
                Some(id) => push(id)?,
                None => character.iter().try_for_each(|byte| push(self.byte(*byte)))?,
            }
            rest = after;
        }
        while let Some((at, id)) = self.best_pair(tokens.get(..len).unwrap_or(&[])) {
            // All behind the pair go one place to the left. Slices do so with code for any distance, which a device has for nothing else.
            let mut behind = id;
            let rest = tokens.get_mut(at + 1..len).unwrap_or(&mut []);
            rest.iter_mut().rev().for_each(|token| behind = core::mem::replace(token, behind));
            if let Some(slot) = tokens.get_mut(at) {
                *slot = id;
            }
            len -= 1;
        }
        Ok(len)
    }

    fn byte(&self, byte: u8) -> u16 {
        self.info.byte_base.saturating_add(byte.into())
    }

    /// The first of the adjacent pairs whose concatenation has the highest score.
    fn best_pair(&self, tokens: &[u16]) -> Option<(usize, u16)> {
        let mut best: Option<(usize, u16, f32)> = None;
        for (at, pair) in tokens.array_windows::<2>().enumerate() {
            let [left, right] = *pair;
            if let Some(id) = self.find(self.piece(left), self.piece(right)) {
                let score = self.score(id);
                if best.is_none_or(|(_, _, high)| score > high) {
                    best = Some((at, id, score));
                }
            }
        }
        best.map(|(at, id, _)| (at, id))
    }
}

/// Bytes of the first UTF-8 character of `text`, at most four, as llama2.c splits: a byte and the continuation bytes
/// after it.
fn character_len(text: &[u8]) -> usize {
    1 + text.iter().skip(1).take(3).take_while(|byte| **byte & 0xc0 == 0x80).count()
}
