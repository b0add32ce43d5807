//! What a run starts from: the examples, and the network that fits them.

use std::path::Path;

use rankpatch_format::layout::Layout;
use rankpatch_format::write::Network;

use super::config::{Decoder, PretrainConfig, Shape};
use super::vocabulary::Speller;
use super::{network, vocabulary};
use crate::base::Image;
use crate::data::encoder::TextEncoder;
use crate::data::records::Record;
use crate::data::{Split, text};
use crate::import::llama2c;
use crate::rng::Rng;
use crate::train::data::texts;
use crate::train::{DatasetKind, Example, Sequence, Target, TaskData, TrainConfig, TrainError};
use crate::{Error, Result};

/// The network with its first weights, and the examples as it takes them.
///
/// A decoder learns every text of the data set, labels aside; its vocabulary is learned from the training part. An encoder learns
/// the classes.
///
/// # Errors
/// What the loaders refuse; [`TrainError::Data`] if the texts are too few for the vocabulary or examples longer than `max_rows`;
/// [`TrainError::Base`] for a data set of the other kind.
pub fn prepare(config: &PretrainConfig) -> Result<(Network, TaskData)> {
    let (name, seed) = (&config.train.task, config.train.seed);
    match &config.shape {
        Shape::Decoder(shape) => {
            let texts = read_texts(&config.train)?;
            let vocabulary = match &shape.tokenizer {
                Some(path) => llama2c::read_vocabulary(path, shape.vocab_size)?,
                None => vocabulary::learn(texts.train.iter().flat_map(parts), shape.vocab_size)?,
            };
            let network = network::decoder(name, shape, vocabulary, seed)?;
            let data = encode(&config.train, shape, &network, &texts)?;
            Ok((network, data))
        }
        Shape::Encoder(shape) => {
            let data = TaskData::signals(&config.train)?;
            let rows = || data.train.iter().chain(&data.test).map(|example| example.rows(data.width));
            let longest = rows().max().unwrap_or(0);
            let max_rows = shape.max_rows.unwrap_or(longest);
            if longest > max_rows {
                let expected = format!("at most max_rows = {max_rows} rows in an example");
                return Err(TrainError::Data { expected, found: longest.to_string() }.into());
            }
            let network = network::encoder(name, shape, columns(&data), max_rows, seed)?;
            Ok((network, data))
        }
    }
}

fn read_texts(config: &TrainConfig) -> Result<Split<Record>> {
    let whole = |texts: Vec<String>| texts.into_iter().map(Record::Text).collect();
    let mut split = match config.dataset {
        DatasetKind::Names => {
            let Split { train, test } = text::names(&config.data, config.split_seed)?;
            Split { train: whole(train), test: whole(test) }
        }
        DatasetKind::Intents => {
            let Split { train, test } = text::intents(&config.data)?.split;
            let texts =
                |part: Vec<crate::data::Labelled<String>>| part.into_iter().map(|one| one.input).collect();
            Split { train: whole(texts(train)), test: whole(texts(test)) }
        }
        DatasetKind::Jsonl | DatasetKind::Csv | DatasetKind::Text => texts::read(config)?,
        other => {
            let (expected, found) =
                ("a data set of texts for a decoder".into(), format!("{other:?}").to_lowercase());
            return Err(TrainError::Data { expected, found }.into());
        }
    };
    for record in split.train.iter_mut().chain(&mut split.test) {
        if let Record::Labelled { text, .. } = record {
            *record = Record::Text(std::mem::take(text));
        }
    }
    Ok(split)
}

/// The texts of a record.
fn parts(record: &Record) -> impl Iterator<Item = &str> {
    let (first, second) = match record {
        Record::Text(text) | Record::Labelled { text, .. } => (text, None),
        Record::Completion { prompt, completion } => (prompt, Some(completion)),
    };
    [Some(first), second].into_iter().flatten().map(String::as_str)
}

/// Encodes texts as the device does, on the image of the network.
fn encode(
    config: &TrainConfig,
    shape: &Decoder,
    network: &Network,
    split: &Split<Record>,
) -> Result<TaskData> {
    let longest = shape.context + 1;
    if let Some(found) = config.max_length.filter(|length| *length > longest) {
        let expected = format!("at most {longest}: context = {} and the token behind it", shape.context);
        return Err(TrainError::BadValue { key: "max_length", expected, found: found.to_string() }.into());
    }
    let image = Image::build(network, Layout::RowMajor, 1)?;
    let base = image.base()?;
    let encoder = TextEncoder::of(&base, Path::new(""), None, config.max_length)?;
    let encoder = encoder.ok_or_else(|| Error::Batch {
        what: "base",
        expected: "one with a tokenizer".into(),
        found: "one without".into(),
    })?;
    let mut data = texts::learned(config, split, &encoder)?;
    if let (Some(vocabulary), [_, ..]) = (&network.vocabulary, &shape.merge_dropout[..]) {
        if config.packing {
            let (expected, found) = ("false with merge_dropout".into(), "true".into());
            return Err(TrainError::BadValue { key: "packing", expected, found }.into());
        }
        let speller = Speller::new(vocabulary);
        for (number, dropout) in shape.merge_dropout.iter().enumerate() {
            let mut rng = Rng::new(config.seed, &format!("pretrain/spelling/{number}"));
            for record in &split.train {
                let Record::Text(text) = record else { continue };
                let mut ids = speller.spell(text, *dropout, &mut rng);
                ids.truncate(config.max_length.unwrap_or(longest));
                // Learned from and never measured: its characters do not count.
                let target = Target::Next { given: 0, characters: ids.len() - 1 };
                data.train.push(Example { sequence: Sequence::Tokens(ids), target });
            }
        }
    }
    Ok(data)
}

/// The power of two by which each column of features is multiplied, `2^-round(log2(largest) / 2)`: all columns of a row share one
/// int8 step on the device, so the difficulty is divided between input and weight, as in SmoothQuant.
fn columns(data: &TaskData) -> Vec<f32> {
    let mut largest = vec![0.0f32; data.width];
    for example in &data.train {
        if let Sequence::Features(values) = &example.sequence {
            for row in values.chunks_exact(data.width) {
                for (largest, value) in largest.iter_mut().zip(row) {
                    *largest = largest.max(value.abs());
                }
            }
        }
    }
    let factor = |largest: f32| if largest > 0.0 { (-(largest.log2() / 2.0).round()).exp2() } else { 1.0 };
    largest.into_iter().map(factor).collect()
}
