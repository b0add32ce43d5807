//! Pieces of text: byte-pair merges learned from the training texts, as a device splits them.

use rankpatch_format::write::Vocabulary;
use tokenizers::Trainer as _;
use tokenizers::models::bpe::{BPE, BpeTrainer};

use crate::Result;
use crate::import::llama2c::{FIRST_PIECE, learned_vocabulary};
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
    let alphabet =
        words.iter().flat_map(|word| word.chars()).collect::<std::collections::BTreeSet<char>>().len();
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
