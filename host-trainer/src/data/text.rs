//! Data sets of text: person names, requests with an intent, stories.

use std::path::Path;

use rankpatch_format::base::Base;
use rankpatch_runtime::Span;
use serde::Serialize;

use super::{Classes, Split, read_tsv};
use crate::rng::Rng;
use crate::{Error, Result};

/// Names that are held out for reporting.
pub const HELD_OUT_NAMES: usize = 1000;
/// Columns of the intent files.
const INTENT_COLUMNS: [&str; 3] = ["intent", "text", "slots"];
/// The line that ends a story.
const STORY_END: &str = "<|endoftext|>";

/// Loads `names.txt`, a name a line: shuffled by `seed`, the first [`HELD_OUT_NAMES`] are held out.
///
/// # Errors
/// [`Error::Io`], [`Error::Field`] if there are no more names than are held out.
pub fn names(path: &Path, seed: u64) -> Result<Split<String>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let mut test: Vec<String> =
        text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    if test.is_empty() {
        return Err(Error::EmptyDataSet { path: path.to_path_buf(), part: "training" });
    }
    if test.len() <= HELD_OUT_NAMES {
        let expected = format!("more than the {HELD_OUT_NAMES} that are held out");
        return Err(Error::field(path, "names", expected, test.len()));
    }
    Rng::new(seed, "names").shuffle(&mut test);
    let train = test.split_off(HELD_OUT_NAMES);
    Ok(Split { train, test })
}

/// A part of a text, in bytes, the end not included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TextSpan {
    /// Where it begins.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// What it is.
    pub kind: String,
}

impl From<Span<'_>> for TextSpan {
    fn from(Span { start, end, kind }: Span<'_>) -> Self {
        Self { start, end, kind: kind.to_owned() }
    }
}

/// A text and the spans in it, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpannedText {
    /// The text.
    pub text: String,
    /// Its spans, which do not overlap.
    pub spans: Vec<TextSpan>,
}

/// Loads the texts of the same files as [`intents`] with their slots, each `start:end:entity` in characters.
///
/// # Errors
/// [`Error::Io`]; [`Error::Field`] for a line that does not fit, or a slot that is not in its text or overlaps another.
pub fn slots(folder: &Path) -> Result<Split<SpannedText>> {
    let read = |file: &str| -> Result<Vec<SpannedText>> {
        let path = folder.join(file);
        let rows = read_tsv(&path, &INTENT_COLUMNS)?;
        let rows = rows.into_iter().enumerate().map(|(index, row)| {
            let [_, text, slots] = <[String; 3]>::try_from(row).unwrap_or_default();
            let spans = spans(&text, &slots).filter(|_| !text.trim().is_empty()).ok_or_else(|| {
                let expected = "start:end:entity within a text, in characters, without overlaps";
                Error::field(
                    &path,
                    format!("slots of line {}", index + 2),
                    expected,
                    format!("{slots:?} of {text:?}"),
                )
            })?;
            Ok(SpannedText { text, spans })
        });
        rows.collect()
    };
    Split { train: read("train.tsv")?, test: read("valid.tsv")? }.check(folder)
}

/// The slots of a text in their order; `None` if they are not such.
fn spans(text: &str, slots: &str) -> Option<Vec<TextSpan>> {
    let byte = |character: usize| text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(character);
    let span = |slot: &str| {
        let mut parts = slot.splitn(3, ':');
        let mut bound = || byte(parts.next()?.parse().ok()?);
        let (start, end) = (bound()?, bound()?);
        let kind = parts.next().filter(|kind| !kind.is_empty())?.to_owned();
        (start < end).then_some(TextSpan { start, end, kind })
    };
    let mut spans = slots.split_whitespace().map(span).collect::<Option<Vec<_>>>()?;
    spans.sort_by_key(|span| span.start);
    spans.is_sorted_by(|before, after| before.end <= after.start).then_some(spans)
}

/// Loads a folder with `train.tsv` and `valid.tsv` (columns intent, text, slots); the latter is the test part.
///
/// # Errors
/// [`Error::Io`], [`Error::Field`] for a line that does not fit, and as [`Classes::new`].
pub fn intents(folder: &Path) -> Result<Classes<String>> {
    let read = |file: &str| -> Result<Vec<(String, String)>> {
        let path = folder.join(file);
        let rows = read_tsv(&path, &INTENT_COLUMNS)?;
        let rows = rows.into_iter().enumerate().map(|(index, row)| {
            let [intent, text, _] = <[String; 3]>::try_from(row).unwrap_or_default();
            if intent.is_empty() || text.is_empty() {
                let what = format!("intent and text of line {}", index + 2);
                return Err(Error::field(&path, what, "both", format!("{intent:?} and {text:?}")));
            }
            Ok((text, intent))
        });
        rows.collect()
    };
    Classes::new(folder, read("train.tsv")?, read("valid.tsv")?)
}

/// Loads stories, each ended by a line `<|endoftext|>`.
///
/// # Errors
/// [`Error::Io`], [`Error::EmptyDataSet`].
pub fn stories(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let stories: Vec<String> =
        text.split(STORY_END).map(str::trim).filter(|story| !story.is_empty()).map(String::from).collect();
    if stories.is_empty() {
        return Err(Error::EmptyDataSet { path: path.to_path_buf(), part: "reporting" });
    }
    Ok(stories)
}

/// Encodes a text with the tokenizer of a base, as the device does: with the id that starts a sequence.
///
/// # Errors
/// [`Error::Batch`] if the base has no tokenizer.
pub fn encode(base: &Base<'_>, text: &str) -> Result<Vec<u16>> {
    let tokenizer = base.tokenizer().ok_or_else(|| Error::Batch {
        what: "base",
        expected: "one with a tokenizer".into(),
        found: format!("{} without", base.manifest().name),
    })?;
    let mut tokens = vec![0; text.len() + 2];
    let len = tokenizer.encode(text.as_bytes(), &mut tokens)?;
    tokens.truncate(len);
    Ok(tokens)
}
