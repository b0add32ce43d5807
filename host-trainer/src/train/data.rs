//! The examples of a task: what the loaders read, as the network takes it.

mod document;
mod slots;
pub(crate) mod texts;

use std::collections::BTreeSet;
use std::path::Path;

use rankpatch_format::adapter::Pooling;
use rankpatch_format::base::Base;
use rankpatch_format::front_end::FrontEnd;
use rankpatch_format::graph::Op;
use rankpatch_format::tokenizer::Tokenizer;
use rankpatch_format::write::Network;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::batches::{Example, Sequence, TaggedWord, Target};
use super::{DatasetKind, TrainConfig, TrainError};
use crate::data::arrays::{self, Arrays};
use crate::data::encoder::TextEncoder;
use crate::data::{Classes, Labelled, Split, augment, recordings, signal, text};
use crate::executor::Model;
use crate::features;
use crate::{Error, Result};

/// Seed of the split of data sets that have none of their own, whatever the seed of a run: what is set apart stays apart.
const SPLIT_SEED: u64 = 0;

/// The examples of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskData {
    /// What is learned from.
    pub train: Vec<Example>,
    /// What is set apart for measuring.
    pub test: Vec<Example>,
    /// Names of the classes; empty if the task has none.
    pub labels: Vec<String>,
    /// Width of feature rows; 0 for tokens.
    pub width: usize,
}

impl TaskData {
    /// Reads a task's data set as `base` takes it: texts as the device's tokenizer splits them (names letter by letter), or that of
    /// the Hugging Face model that the base was imported from,
    /// recordings as its front end does, feature arrays as they are.
    ///
    /// # Errors
    /// What the loaders refuse: a missing file, a line that does not fit, one class only, nothing to train on.
    /// [`TrainError::Base`] if the base does not read this kind of data.
    pub fn load(config: &TrainConfig, base: &Base<'_>) -> Result<Self> {
        Self::read(config, base.manifest().name, base.vocab_size(), Some(base))
    }

    /// Reads a data set of signals.
    ///
    /// # Errors
    /// What the loaders refuse; [`TrainError::Base`] for a data set of texts.
    pub(crate) fn signals(config: &TrainConfig) -> Result<Self> {
        Self::read(config, &config.task, 0, None)
    }

    /// The same for a network that has no image, because only hosts run it: texts are split by `tokenizer.json`.
    ///
    /// # Errors
    /// As [`TaskData::load`].
    pub fn load_on_host(config: &TrainConfig, network: &Network) -> Result<Self> {
        let vocab_size = match network.ops.first() {
            Some(Op::Embedding { table }) => network.tensors[usize::from(*table)].shape().rows,
            _ => 0,
        };
        Self::read(config, &network.name, vocab_size, None)
    }

    fn read(config: &TrainConfig, name: &str, vocab_size: u32, base: Option<&Base<'_>>) -> Result<Self> {
        let wrong = |expected: &str| {
            let found = format!("{name}, which does not");
            TrainError::Base { expected: expected.into(), found }
        };
        let own = base.and_then(Base::tokenizer);
        let reads_text = vocab_size > 0;
        match config.dataset {
            DatasetKind::Features | DatasetKind::Speakers | DatasetKind::Recordings if reads_text => {
                Err(wrong("a base that reads features").into())
            }
            DatasetKind::Features => feature_arrays(config),
            DatasetKind::Speakers | DatasetKind::Recordings => {
                let front_end = base.and_then(Base::front_end);
                let front_end = front_end.ok_or_else(|| wrong("a base that reads samples"))?;
                match config.dataset {
                    DatasetKind::Recordings => recorded(config, &front_end),
                    _ => speakers(&config.data, &front_end),
                }
            }
            _ if !reads_text => Err(wrong("a base that reads text").into()),
            DatasetKind::Names => {
                names(&config.data, &own.ok_or_else(|| wrong("a base with a tokenizer of its own"))?)
            }
            DatasetKind::Slots => {
                let tokenizer = own.ok_or_else(|| wrong("a base with a tokenizer of its own"))?;
                if config.pooling == Pooling::Reread && !base.is_some_and(Base::streaming) {
                    let expected = "a base that goes on with a sequence, with pooling = \"reread\" (\"every\" reads once)";
                    return Err(wrong(expected).into());
                }
                slots::load(config, tokenizer)
            }
            DatasetKind::Jsonl
            | DatasetKind::Csv
            | DatasetKind::Text
            | DatasetKind::Document
            | DatasetKind::Stories
            | DatasetKind::Intents => {
                let tokenizer = config.tokenizer.as_deref();
                let (origin, length) = (&config.base, config.max_length);
                let texts = match base {
                    Some(base) => TextEncoder::of(base, origin, tokenizer, length),
                    None => TextEncoder::hub(vocab_size, origin, tokenizer, length),
                };
                let texts = texts?.ok_or_else(|| {
                    wrong("a base with a tokenizer, its own or `tokenizer` in the task's file (tokenizer.json of its model)")
                })?;
                match config.dataset {
                    DatasetKind::Document => document::load(config, &texts),
                    DatasetKind::Intents => intents(&config.data, &texts, config.max_length),
                    _ => texts::load(config, &texts),
                }
            }
        }
    }

    /// A number that tells these examples from others: SHA-256 over them, its first 16 hexadecimal digits.
    pub(crate) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.train, &self.test] {
            hash.update(part.len().to_le_bytes());
            for example in part {
                match &example.sequence {
                    Sequence::Tokens(ids) => {
                        hash.update(ids.len().to_le_bytes());
                        ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
                    }
                    Sequence::Features(values) => {
                        hash.update(values.len().to_le_bytes());
                        values.iter().for_each(|value| hash.update(value.to_le_bytes()));
                    }
                }
                let (kind, number) = match &example.target {
                    Target::Next { given, .. } => (0_u8, *given),
                    Target::Class(class) => (1, *class),
                    Target::Words(tagged) => {
                        tagged.words.iter().for_each(|word| hash.update(word.class.to_le_bytes()));
                        (2, tagged.words.len())
                    }
                };
                hash.update([kind]);
                hash.update(number.to_le_bytes());
            }
        }
        self.labels.iter().for_each(|label| hash.update(format!("{label}\n")));
        hash.finalize().iter().take(8).fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    /// Checks that the examples fit a network and the kind of task.
    pub(crate) fn check(&self, model: &Model, classifies: bool) -> Result<()> {
        let fail = |expected: String, found: String| Err(TrainError::Data { expected, found }.into());
        if classifies == self.labels.is_empty() {
            let expected = if classifies { "names of classes" } else { "texts without classes" };
            return fail(expected.into(), format!("{} classes", self.labels.len()));
        }
        if self.width != model.input_width() {
            let kind = |width| {
                if width == 0 { "token ids".into() } else { format!("feature rows of width {width}") }
            };
            return fail(kind(model.input_width()), kind(self.width));
        }
        for (part, examples) in [("training", &self.train), ("test", &self.test)] {
            if examples.is_empty() {
                return fail(format!("at least one {part} example"), "none".into());
            }
            for (index, example) in examples.iter().enumerate() {
                let rows = example.rows(self.width);
                if rows == 0 || rows > model.max_rows() {
                    return fail(
                        format!("1 to {} rows of input (max_length cuts texts)", model.max_rows()),
                        format!("{rows} in {part} example {index}"),
                    );
                }
                let fits = match (&example.sequence, &example.target) {
                    (Sequence::Tokens(_), Target::Next { .. }) => !classifies,
                    (Sequence::Features(_), Target::Next { .. } | Target::Words(_)) => false,
                    (_, Target::Class(class)) => *class < self.labels.len(),
                    (Sequence::Tokens(_), Target::Words(tagged)) => {
                        let fits = |word: &TaggedWord| word.row < rows && word.class < self.labels.len();
                        !tagged.words.is_empty() && tagged.words.iter().all(fits)
                    }
                };
                if !fits {
                    return fail(
                        if classifies {
                            format!("a class below {}", self.labels.len())
                        } else {
                            "a text".into()
                        },
                        format!("{:?} in {part} example {index}", example.target),
                    );
                }
                if matches!(example.sequence, Sequence::Tokens(_)) != (self.width == 0) {
                    return fail("examples of one kind".into(), format!("another in {part} example {index}"));
                }
            }
        }
        if classifies {
            let classes = |example: &Example| match &example.target {
                Target::Class(class) => vec![*class],
                Target::Words(tagged) => tagged.words.iter().map(|word| word.class).collect(),
                Target::Next { .. } => Vec::new(),
            };
            let classes: BTreeSet<usize> = self.train.iter().flat_map(classes).collect();
            if classes.len() < 2 {
                let only = classes.first().map_or("none", |class| &self.labels[*class]);
                return fail("training examples of at least two classes".into(), format!("only {only}"));
            }
        }
        Ok(())
    }
}

fn names(path: &Path, tokenizer: &Tokenizer<'_>) -> Result<TaskData> {
    let Split { train, test } = text::names(path, SPLIT_SEED)?;
    let letters = Letters::new(tokenizer);
    let examples = |names: Vec<String>| names.iter().map(|name| letters.example(name)).collect();
    Ok(TaskData { train: examples(train), test: examples(test), labels: Vec::new(), width: 0 })
}

fn intents(folder: &Path, texts: &TextEncoder<'_>, max_length: Option<usize>) -> Result<TaskData> {
    let Classes { labels, split } = text::intents(folder)?;
    let example = |Labelled { input, label }: &Labelled<String>| {
        let ids = texts.sequence(input, max_length)?;
        Ok(Example { sequence: Sequence::Tokens(ids), target: Target::Class(*label) })
    };
    let examples = |requests: &[Labelled<String>]| requests.par_iter().map(example).collect::<Result<_>>();
    Ok(TaskData { train: examples(&split.train)?, test: examples(&split.test)?, labels, width: 0 })
}

/// Feature arrays with their classes.
fn feature_arrays(config: &TrainConfig) -> Result<TaskData> {
    let Arrays { examples, width } = arrays::load(&config.data)?;
    let split = match &config.test_data {
        None => Split::seeded(examples, config.test_fraction, config.split_seed, |(_, label)| Some(label)),
        Some(path) => {
            let test = arrays::load(path)?;
            if test.width != width {
                let what = "width of features";
                return Err(Error::field(path, what, format!("{width} as in the training part"), test.width));
            }
            Split { train: examples, test: test.examples }
        }
    };
    let Classes { labels, split } = Classes::new(&config.data, split.train, split.test)?;
    let example = |Labelled { input, label }| Example {
        sequence: Sequence::Features(input),
        target: Target::Class(label),
    };
    let examples = |part: Vec<Labelled<Vec<f32>>>| part.into_iter().map(example).collect();
    Ok(TaskData { train: examples(split.train), test: examples(split.test), labels, width })
}

/// Recordings with their classes.
fn recorded(config: &TrainConfig, front_end: &FrontEnd<'_>) -> Result<TaskData> {
    let (test, apart) = (config.test_data.as_deref(), (config.test_fraction, config.split_seed));
    let Classes { labels, mut split } = recordings::load(&config.data, test, &config.recordings, apart)?;
    let augment = &config.recordings.augment;
    if let Some(noise) = augment.noise.as_ref().filter(|noise| !labels.contains(noise)) {
        let expected = format!("the noise of augment, {noise}, among the classes");
        return Err(TrainError::Data { expected, found: labels.join(", ") }.into());
    }
    augment::extend(&mut split.train, &labels, augment, config.seed);
    let example = |Labelled { input, label }: &Labelled<Vec<f32>>| Example {
        sequence: Sequence::Features(features::rows(front_end, &features::to_i16(input))),
        target: Target::Class(*label),
    };
    let examples = |clips: &[Labelled<Vec<f32>>]| clips.par_iter().map(example).collect();
    let width = front_end.width();
    Ok(TaskData { train: examples(&split.train), test: examples(&split.test), labels, width })
}

fn speakers(folder: &Path, front_end: &FrontEnd<'_>) -> Result<TaskData> {
    let Classes { labels, split } = signal::spoken_digits(folder, signal::Target::Speaker)?;
    let example = |(index, Labelled { input, label }): (usize, &Labelled<signal::Recording>)| {
        let clip = features::to_i16(&signal::to_clip(&signal::upsample(&input.samples), index as u64));
        Example {
            sequence: Sequence::Features(features::rows(front_end, &clip)),
            target: Target::Class(*label),
        }
    };
    let examples =
        |recordings: &[Labelled<signal::Recording>]| recordings.par_iter().enumerate().map(example).collect();
    Ok(TaskData {
        train: examples(&split.train),
        test: examples(&split.test),
        labels,
        width: front_end.width(),
    })
}

/// Splits a text into its letters: one id each, between the id that starts a sequence and the same id again, which ends a
/// text. Merged pieces would have the network learn many spellings of each name.
struct Letters {
    of_byte: Vec<u32>,
    bos: u32,
}

impl Letters {
    fn new(tokenizer: &Tokenizer<'_>) -> Self {
        let info = tokenizer.info();
        let mut of_byte: Vec<u32> = (0..256).map(|byte| u32::from(info.byte_base) + byte).collect();
        for id in tokenizer.searchable() {
            if let [byte] = tokenizer.piece(*id) {
                of_byte[usize::from(*byte)] = (*id).into();
            }
        }
        Self { of_byte, bos: info.bos.into() }
    }

    fn example(&self, text: &str) -> Example {
        let letters = text.bytes().map(|byte| self.of_byte[usize::from(byte)]);
        let ids = [self.bos].into_iter().chain(letters).chain([self.bos]).collect();
        Example {
            sequence: Sequence::Tokens(ids),
            target: Target::Next { given: 0, characters: text.chars().count() + 1 },
        }
    }
}
