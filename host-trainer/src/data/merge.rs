//! The base's own tokenizer for long texts: the ids that [`Tokenizer::encode`] gives, in a time that grows with the length of a text
//! and not with its square, for which a device has no memory.
//!
//! It does not know of prompts, of lengths that a base takes or of other tokenizers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rankpatch_format::tokenizer::Tokenizer;

use crate::Result;

/// Texts of up to so many bytes are left to the device's code, which is as fast there.
const SHORT: usize = 256;

/// The ids of a text, the one that starts a sequence first.
///
/// # Errors
/// None that a text can bring about: there is an id for each of its bytes.
pub(super) fn encode(tokenizer: &Tokenizer<'_>, text: &str) -> Result<Vec<u16>> {
    if text.len() > SHORT {
        return Ok(encode_long(tokenizer, text));
    }
    // One id per byte at most, one for the start and one for a leading space.
    let mut ids = vec![0; text.len() + 2];
    let len = tokenizer.encode(text.as_bytes(), &mut ids)?;
    ids.truncate(len);
    Ok(ids)
}

/// Ids in a list whose items know their neighbours, so that a pair becomes one without a move of those behind.
struct Merging<'t, 'b> {
    tokenizer: &'t Tokenizer<'b>,
    /// `None` for what has become a part of the id before it.
    ids: Vec<Option<u16>>,
    next: Vec<usize>,
    before: Vec<usize>,
    /// Pairs that can become one: highest score first, of equal ones the first in the text. Scores as numbers of the same order.
    pairs: BinaryHeap<(i64, Reverse<usize>, [u16; 3])>,
}

fn encode_long(tokenizer: &Tokenizer<'_>, text: &str) -> Vec<u16> {
    let info = tokenizer.info();
    let byte = |byte: u8| info.byte_base.saturating_add(byte.into());
    let mut ids = vec![Some(info.bos)];
    let space = info.prefix_space.then_some(' ');
    for character in space.into_iter().chain(text.chars()) {
        let mut buffer = [0; 4];
        let bytes = character.encode_utf8(&mut buffer).as_bytes();
        match find(tokenizer, bytes) {
            Some(id) => ids.push(Some(id)),
            None => ids.extend(bytes.iter().map(|of| Some(byte(*of)))),
        }
    }
    let len = ids.len();
    let (next, before) = ((1..=len).collect(), (0..len).map(|at| at.wrapping_sub(1)).collect());
    let mut merging = Merging { tokenizer, ids, next, before, pairs: BinaryHeap::new() };
    (0..len).for_each(|at| merging.consider(at));
    merging.run();
    merging.ids.into_iter().flatten().collect()
}

/// The id of a piece, by the device's search.
fn find(tokenizer: &Tokenizer<'_>, piece: &[u8]) -> Option<u16> {
    let ids = tokenizer.searchable();
    ids.binary_search_by(|id| tokenizer.piece(*id).cmp(piece)).ok().map(|at| ids[at])
}

impl Merging<'_, '_> {
    fn id(&self, at: usize) -> Option<u16> {
        *self.ids.get(at)?
    }

    /// Notes the pair that starts at an id, if it can become one.
    fn consider(&mut self, at: usize) {
        let pair = self.id(at).and_then(|left| Some((left, self.id(self.next[at])?)));
        let Some((left, right)) = pair else { return };
        let piece = [self.tokenizer.piece(left), self.tokenizer.piece(right)].concat();
        if let Some(id) = find(self.tokenizer, &piece) {
            let score = order(self.tokenizer.score(id));
            self.pairs.push((score, Reverse(at), [left, right, id]));
        }
    }

    fn run(&mut self) {
        while let Some((_, Reverse(at), [left, right, id])) = self.pairs.pop() {
            // One of the two may have become a part of another since.
            let second = self.next[at];
            if self.id(at) != Some(left) || self.id(second) != Some(right) {
                continue;
            }
            self.ids[at] = Some(id);
            self.ids[second] = None;
            let third = self.next[second];
            self.next[at] = third;
            if let Some(before) = self.before.get_mut(third) {
                *before = at;
            }
            self.consider(at);
            let first = self.before[at];
            if first < at {
                self.consider(first);
            }
        }
    }
}

/// A whole number that is greater exactly if a finite score is.
fn order(score: f32) -> i64 {
    let bits = i64::from(score.to_bits() & i32::MAX as u32);
    if score.is_sign_negative() { -bits } else { bits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Image, quantize};
    use crate::data::test_data::carried;
    use crate::import;
    use crate::rng::Rng;
    use rankpatch_format::layout::Layout;

    #[test]
    fn long_texts_have_the_ids_of_the_device() {
        for base in ["bases/requests33k", "bases/stories260k"] {
            let network = quantize(&import::load(&carried(base)).unwrap()).unwrap();
            let image = Image::build(&network, Layout::RowMajor, 16).unwrap();
            let image = image.base().unwrap();
            let tokenizer = image.tokenizer().unwrap();
            let mut rng = Rng::new(11, "texts");
            let signs: Vec<char> = "aaaaeeehhinnoorsstttt   play the.,'TO\né日😀\0".chars().collect();
            for len in [0, 1, 2, 7, 40, 300, 900] {
                let text: String = (0..len).map(|_| signs[rng.below(signs.len() as u64) as usize]).collect();
                let mut ids = vec![0; text.len() + 2];
                let found = tokenizer.encode(text.as_bytes(), &mut ids).unwrap();
                if !text.is_empty() {
                    assert_eq!(encode_long(&tokenizer, &text), ids[..found], "{base}: {text:?}");
                }
                assert_eq!(encode(&tokenizer, &text).unwrap(), ids[..found], "{base}: {text:?}");
            }
            // The device's code would take its hours over this one.
            let text = "the cat sat on the mat. ".repeat(20_000);
            let ids = encode(&tokenizer, &text).unwrap();
            assert!(ids.len() < text.len() / 2, "{}", ids.len());
        }
    }

    #[test]
    fn scores_keep_their_order() {
        let scores = [-2.5e3, -1.0, -1e-9, -0.0, 0.0, 1e-9, 3.0];
        let found: Vec<i64> = scores.iter().map(|score| order(*score)).collect();
        assert!(
            found.is_sorted() && found[3] == found[4] && found[2] < found[3] && found[5] < found[6],
            "{found:?}"
        );
    }
}
