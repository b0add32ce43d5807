//! Pieces of text: byte-pair merges learned from the training texts, as a device splits them.

use std::collections::{BTreeSet, HashMap};

use rankpatch_format::write::Vocabulary;
use tokenizers::Trainer as _;
use tokenizers::models::bpe::{BPE, BpeTrainer};

use crate::Result;
use crate::import::llama2c::{FIRST_PIECE, learned_vocabulary};
use crate::rng::Rng;
use crate::train::TrainError;

/// Each byte is a character of its own for the library, which merges characters: those from here on.
const FIRST_CHARACTER: u32 = 0x100;

/// Learns a vocabulary of `vocab_size` ids. Pieces do not cross the start of a word, which begins with its space; earlier merges
/// have higher scores, so that the device's search for the best pair merges in the order in which they were learned.
///
/// # Errors
/// [`TrainError::Data`] if the texts have no so many pairs.
pub(super) fn learn<'t>(texts: impl Iterator<Item = &'t str>, vocab_size: usize) -> Result<Vocabulary> {
    let wanted = vocab_size - usize::from(FIRST_PIECE);
    let words: Vec<String> = texts.flat_map(|text| text.split(' ')).map(spell).collect();
    let alphabet = words.iter().flat_map(|word| word.chars()).collect::<BTreeSet<char>>().len();
    if wanted == 0 {
        return Ok(learned_vocabulary(Vec::new()));
    }
    let mut trainer =
        BpeTrainer::builder().show_progress(false).min_frequency(2).vocab_size(alphabet + wanted).build();
    let refused = |error: tokenizers::Error| TrainError::Data {
        expected: "texts to learn a vocabulary from".into(),
        found: error.to_string(),
    };
    trainer.feed(words.iter(), |word| Ok(vec![word.to_owned()])).map_err(refused)?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(refused)?;
    let mut learned: Vec<(u32, String)> =
        model.get_vocab().into_iter().map(|(piece, id)| (id, piece)).collect();
    learned.sort_unstable();
    let pieces: Vec<Vec<u8>> = learned
        .iter()
        .filter(|(_, piece)| piece.chars().count() > 1)
        .map(|(_, piece)| {
            piece.chars().filter_map(|c| u8::try_from(u32::from(c) - FIRST_CHARACTER).ok()).collect()
        })
        .collect();
    if pieces.len() < wanted {
        let expected = format!("texts with {wanted} pairs that occur twice, for vocab_size = {vocab_size}");
        let found =
            format!("{} (vocab_size = {} would fit)", pieces.len(), usize::from(FIRST_PIECE) + pieces.len());
        return Err(TrainError::Data { expected, found }.into());
    }
    let scored = pieces.into_iter().enumerate().map(|(rank, piece)| (piece, -(rank as f32)));
    Ok(learned_vocabulary(scored.collect()))
}

/// A word behind its space, a character for each byte.
fn spell(word: &str) -> String {
    let character = |byte: u8| char::from_u32(FIRST_CHARACTER + u32::from(byte)).unwrap_or_default();
    std::iter::once(b' ').chain(word.bytes()).map(character).collect()
}

/// Splits texts as the device does, but passes over some merges.
pub(super) struct Speller<'v> {
    vocabulary: &'v Vocabulary,
    /// Ids and scores of the pieces that merges make.
    pieces: HashMap<&'v [u8], (u16, f32)>,
}

impl<'v> Speller<'v> {
    pub(super) fn new(vocabulary: &'v Vocabulary) -> Self {
        let piece = |id: &u16| {
            let (piece, score) = &vocabulary.pieces[usize::from(*id)];
            (piece.as_slice(), (*id, *score))
        };
        // Of equal pieces the device finds the one with the lowest id.
        Self { vocabulary, pieces: vocabulary.searchable.iter().rev().map(piece).collect() }
    }

    /// The ids of a text between two ids that start one; each time that a merge could be made it is passed over with the
    /// probability `dropout`.
    pub(super) fn spell(&self, text: &str, dropout: f32, rng: &mut Rng) -> Vec<u32> {
        let info = &self.vocabulary.info;
        let mut parts: Vec<(Vec<u8>, u16)> = Vec::new();
        let space = if info.prefix_space && !text.is_empty() { " " } else { "" };
        for character in space.chars().chain(text.chars()) {
            let bytes = character.encode_utf8(&mut [0; 4]).as_bytes().to_vec();
            match self.pieces.get(bytes.as_slice()) {
                Some((id, _)) => parts.push((bytes, *id)),
                None => {
                    parts
                        .extend(bytes.into_iter().map(|byte| (vec![byte], info.byte_base + u16::from(byte))));
                }
            }
        }
        loop {
            let mut best: Option<(usize, u16, f32)> = None;
            for (at, pair) in parts.array_windows::<2>().enumerate() {
                let merged = [pair[0].0.as_slice(), &pair[1].0].concat();
                let Some((id, score)) = self.pieces.get(merged.as_slice()) else { continue };
                if (dropout == 0.0 || rng.uniform() >= dropout)
                    && best.is_none_or(|(_, _, high)| *score > high)
                {
                    best = Some((at, *id, *score));
                }
            }
            let Some((at, id, _)) = best else { break };
            let (second, _) = parts.remove(at + 1);
            parts[at].0.extend(second);
            parts[at].1 = id;
        }
        let bos = u32::from(info.bos);
        [bos].into_iter().chain(parts.into_iter().map(|(_, id)| id.into())).chain([bos]).collect()
    }
}
