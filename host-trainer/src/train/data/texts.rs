//! Users' own texts as examples: classes, texts to learn, prompts with what is to follow, and windows of a stream.

use std::path::Path;

use rayon::prelude::*;

use super::super::batches::{Example, Sequence, Target};
use super::super::{DatasetKind, TrainConfig, TrainError};
use super::TaskData;
use crate::Result;
use crate::data::encoder::{Learned, TextEncoder};
use crate::data::records::{self, Record};
use crate::data::{Classes, Labelled, Split, text};

/// Reads the records and sets a part apart.
pub(crate) fn read(config: &TrainConfig) -> Result<Split<Record>> {
    let read = |path: &Path| match config.dataset {
        DatasetKind::Jsonl => records::json_lines(path),
        DatasetKind::Csv => records::csv(path),
        DatasetKind::Stories => Ok(text::stories(path)?.into_iter().map(Record::Text).collect()),
        _ => records::lines(path),
    };
    let records = read(&config.data)?;
    Ok(match &config.test_data {
        Some(path) => Split { train: records, test: read(path)? },
        None => Split::seeded(records, config.test_fraction, config.split_seed, Record::label),
    })
}

/// Reads the records, sets a part apart, and encodes them.
pub(super) fn load(config: &TrainConfig, texts: &TextEncoder<'_>) -> Result<TaskData> {
    let split = read(config)?;
    if split.train.iter().chain(&split.test).any(|record| record.label().is_some()) {
        if config.packing {
            let (expected, found) =
                ("texts without classes, for packing".into(), "texts with classes".into());
            return Err(TrainError::Data { expected, found }.into());
        }
        return classes(config, &split, &Encoder { texts, max_length: config.max_length });
    }
    learned(config, &split, texts)
}

/// Encodes texts to learn.
pub(crate) fn learned(
    config: &TrainConfig,
    split: &Split<Record>,
    texts: &TextEncoder<'_>,
) -> Result<TaskData> {
    let encoder = Encoder { texts, max_length: config.max_length };
    let encode = |records: &[Record], encoder: &Encoder<'_, '_>| {
        records.par_iter().map(|record| encoder.example(record)).collect::<Result<Vec<_>>>()
    };
    let train = match config.max_length.filter(|_| config.packing) {
        None => encode(&split.train, &encoder)?,
        // What is cut is the stream, not its texts.
        Some(length) => {
            let whole = encode(&split.train, &Encoder { max_length: None, ..encoder })?;
            windows(whole, length)?
        }
    };
    Ok(TaskData { train, test: encode(&split.test, &encoder)?, labels: Vec::new(), width: 0 })
}

fn classes(config: &TrainConfig, split: &Split<Record>, encoder: &Encoder<'_, '_>) -> Result<TaskData> {
    let named = |records: &[Record]| -> Vec<(String, String)> {
        let pair = |record: &Record| match record {
            Record::Labelled { text, label } => Some((text.clone(), label.clone())),
            _ => None,
        };
        records.iter().filter_map(pair).collect()
    };
    let Classes { labels, split } = Classes::new(&config.data, named(&split.train), named(&split.test))?;
    let example = |Labelled { input, label }: &Labelled<String>| {
        let ids = encoder.texts.sequence(input, encoder.max_length)?;
        Ok(Example { sequence: Sequence::Tokens(ids), target: Target::Class(*label) })
    };
    let examples = |part: &[Labelled<String>]| part.par_iter().map(example).collect::<Result<_>>();
    Ok(TaskData { train: examples(&split.train)?, test: examples(&split.test)?, labels, width: 0 })
}

#[derive(Clone, Copy)]
struct Encoder<'b, 'i> {
    texts: &'b TextEncoder<'i>,
    max_length: Option<usize>,
}

impl Encoder<'_, '_> {
    /// A text between the id that starts a sequence and the one that ends it; a completion behind its prompt.
    fn example(&self, record: &Record) -> Result<Example> {
        let (prompt, learned) = match record {
            Record::Completion { prompt, completion } => (prompt.as_str(), completion),
            Record::Text(text) | Record::Labelled { text, .. } => ("", text),
        };
        let Some(Learned { ids, given, characters }) =
            self.texts.learned(prompt, learned, self.max_length)?
        else {
            let length = self.max_length.unwrap_or(usize::MAX);
            let expected = format!("something to learn within max_length = {length}");
            let found = format!("the prompt {prompt:?} before {learned:?}");
            return Err(TrainError::Data { expected, found }.into());
        };
        Ok(Example { sequence: Sequence::Tokens(ids), target: Target::Next { given, characters } })
    }
}

/// Puts the texts one behind the other and cuts them into windows of `length` tokens, each of which starts with the last token
/// of the one before it, so that every token but the first is learned once. What is left over at the end is a shorter window.
fn windows(examples: Vec<Example>, length: usize) -> Result<Vec<Example>> {
    if length < 2 {
        let (expected, found) = ("max_length of at least 2, for packing".into(), length.to_string());
        return Err(TrainError::Data { expected, found }.into());
    }
    let mut stream: Vec<u32> = Vec::new();
    for example in examples {
        if matches!(example.target, Target::Next { given: 1.., .. }) {
            let (expected, found) = ("texts without prompts, for packing".into(), "a prompt".into());
            return Err(TrainError::Data { expected, found }.into());
        }
        if let Sequence::Tokens(ids) = example.sequence {
            // The token that ends a text starts the next one.
            stream.extend_from_slice(if stream.is_empty() { &ids } else { &ids[1..] });
        }
    }
    let mut windows = Vec::new();
    let mut start = 0;
    while start + 1 < stream.len() {
        let ids = stream[start..stream.len().min(start + length)].to_vec();
        start += ids.len() - 1;
        // Windows are learned from and never measured: their characters do not count.
        let target = Target::Next { given: 0, characters: ids.len() - 1 };
        windows.push(Example { sequence: Sequence::Tokens(ids), target });
    }
    Ok(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_stream_and_share_one_token() {
        let text = |ids: &[u32]| Example {
            sequence: Sequence::Tokens(ids.to_vec()),
            target: Target::Next { given: 0, characters: ids.len() - 1 },
        };
        let found = windows(vec![text(&[1, 5, 6, 1]), text(&[1, 7, 1]), text(&[1, 8, 9, 1])], 4).unwrap();
        let ids: Vec<_> = found.into_iter().map(|window| window.sequence).collect();
        let expected = [vec![1, 5, 6, 1], vec![1, 7, 1, 8], vec![8, 9, 1]].map(Sequence::Tokens);
        assert_eq!(ids, expected);
    }
}
