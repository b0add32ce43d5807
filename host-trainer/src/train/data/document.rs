//! One long text as examples: its first part trains, its end is measured, both in pieces of whole lines.

use std::path::Path;

use rayon::prelude::*;

use super::super::TrainConfig;
use super::super::batches::{Example, Sequence, Target};
use super::TaskData;
use crate::data::Split;
use crate::data::encoder::TextEncoder;
use crate::{Error, Result};

/// Reads a text and cuts it. A piece is encoded as a device encodes a prompt, and nothing ends it: the text goes on.
pub(super) fn load(config: &TrainConfig, texts: &TextEncoder<'_>) -> Result<TaskData> {
    let size = config.max_length.unwrap_or(usize::MAX);
    let read = |path: &Path| std::fs::read_to_string(path).map_err(Error::io(path));
    let text = read(&config.data)?;
    let other = config.test_data.as_deref().map(read).transpose()?;
    let (train, test) = match &other {
        None => divide(&text, config.test_fraction),
        Some(other) => (text.as_str(), other.as_str()),
    };
    let encode = |piece: &&str| -> Result<Option<Example>> {
        let Some(mut learned) = texts.learned("", piece, None)? else { return Ok(None) };
        learned.ids.pop();
        let target = Target::Next { given: 0, characters: learned.characters - 1 };
        Ok(Some(Example { sequence: Sequence::Tokens(learned.ids), target }))
    };
    let examples = |text: &str| -> Result<Vec<Example>> {
        let examples = pieces(text, size);
        let examples = examples.par_iter().map(encode).collect::<Result<Vec<_>>>()?;
        Ok(examples.into_iter().flatten().collect())
    };
    let Split { train, test } =
        Split { train: examples(train)?, test: examples(test)? }.check(&config.data)?;
    Ok(TaskData { train, test, labels: Vec::new(), width: 0 })
}

/// The beginning of a text and the `fraction` at its end, cut between two characters.
fn divide(text: &str, fraction: f64) -> (&str, &str) {
    let characters = text.chars().count();
    let kept = characters - (characters as f64 * fraction).round() as usize;
    let at = text.char_indices().nth(kept).map_or(text.len(), |(at, _)| at);
    text.split_at(at)
}

/// Cuts a text into pieces of at most `size` bytes behind the ends of lines; a longer line is cut between characters.
///
/// A token is at least a byte, so a piece has no more than `size` tokens behind the one that starts it.
fn pieces(text: &str, size: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut end = rest.len().min(size.max(4));
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        if end < rest.len() {
            end = rest[..end].rfind('\n').map_or(end, |newline| newline + 1);
        }
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_lines_and_miss_nothing() {
        let text = "one\ntwo and three\nfour\n\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\nend";
        let found = pieces(text, 9);
        assert_eq!(
            found,
            ["one\n", "two and t", "hree\n", "four\n", "\u{e9}\u{e9}\u{e9}\u{e9}", "\u{e9}\u{e9}\nend"]
        );
        assert_eq!(found.concat(), text);
    }

    #[test]
    fn the_end_is_set_apart() {
        let text = format!("{}\u{e9}{}", "a".repeat(89), "b".repeat(10));
        let (train, test) = divide(&text, 0.1);
        assert_eq!((train.chars().count(), test), (90, "bbbbbbbbbb"));
    }
}
