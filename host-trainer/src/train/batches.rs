//! Examples and the order in which a run sees them.
//!
//! The order is a pure function of seed and step, so a run that goes on from a checkpoint needs no other state than its
//! step number.

use std::sync::Arc;

use rankpatch_runtime::Word;

use crate::data::text::TextSpan;
use crate::executor::{Batch, Input};
use crate::rng::Rng;

/// What a network reads.
#[derive(Debug, Clone, PartialEq)]
pub enum Sequence {
    /// Token ids.
    Tokens(Vec<u32>),
    /// Feature rows `[rows, width]`, row-major.
    Features(Vec<f32>),
}

/// What is to be learned from a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Each token from those before it.
    Next {
        /// Tokens at the start that are given and not learned, the first one not counted: those of a prompt.
        given: usize,
        /// Characters of the text, its end included: what bits per character counts.
        characters: usize,
    },
    /// The class of the whole sequence.
    Class(usize),
    /// The class of each word of a text.
    Words(Arc<Tagged>),
}

/// A text with the classes of its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// Row where the text begins that is answered: behind its first reading if it is read twice.
    pub first_row: usize,
    /// The words.
    pub words: Vec<TaggedWord>,
    /// The spans that are right.
    pub spans: Vec<TextSpan>,
}

/// A word with its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaggedWord {
    /// Where it is in the text.
    pub word: Word,
    /// Row of its last token, after which it is answered.
    pub row: usize,
    /// Its class.
    pub class: usize,
}

/// One example.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The input.
    pub sequence: Sequence,
    /// The target.
    pub target: Target,
}

impl Example {
    /// Rows of input that the network runs over; `width` is that of its feature rows.
    ///
    /// The last token of a text is only ever a target.
    pub(crate) fn rows(&self, width: usize) -> usize {
        match (&self.sequence, &self.target) {
            (Sequence::Tokens(ids), Target::Next { .. }) => ids.len().saturating_sub(1),
            (Sequence::Tokens(ids), Target::Class(_) | Target::Words(_)) => ids.len(),
            (Sequence::Features(values), _) => values.len() / width.max(1),
        }
    }
}

/// A batch with its targets, one per row of the output.
#[derive(Debug, Clone)]
pub(crate) struct Targets {
    pub(crate) batch: Batch,
    /// Token or class; 0 where the weight is.
    pub(crate) targets: Vec<u32>,
    /// 1, or 0 for padding and whatever else is not learned.
    pub(crate) weights: Vec<f32>,
}

impl Targets {
    /// Pads examples to one batch; `width` is that of the network's feature rows.
    pub(crate) fn new<'a>(examples: impl IntoIterator<Item = &'a Example>, width: usize) -> Self {
        let examples: Vec<&Example> = examples.into_iter().collect();
        let lengths: Vec<usize> = examples.iter().map(|example| example.rows(width)).collect();
        let rows = lengths.iter().copied().max().unwrap_or(0);
        let (mut ids, mut values) = (Vec::new(), Vec::new());
        let (mut targets, mut weights) = (Vec::new(), Vec::new());
        for ((index, example), length) in (1..).zip(&examples).zip(&lengths) {
            match &example.sequence {
                Sequence::Tokens(tokens) => {
                    ids.extend(&tokens[..*length]);
                    ids.resize(index * rows, 0);
                    if let Target::Next { given, .. } = &example.target {
                        let start = targets.len();
                        targets.extend(&tokens[1..]);
                        weights.resize((start + given).min(targets.len()), 0.0);
                        weights.resize(targets.len(), 1.0);
                        targets.resize(index * rows, 0);
                        weights.resize(index * rows, 0.0);
                    }
                }
                Sequence::Features(features) => {
                    values.extend_from_slice(features);
                    values.resize(index * rows * width, 0.0);
                }
            }
            match &example.target {
                Target::Class(class) => {
                    targets.push(*class as u32);
                    weights.push(1.0);
                }
                Target::Words(tagged) => {
                    let start = targets.len();
                    targets.resize(start + rows, 0);
                    weights.resize(start + rows, 0.0);
                    for word in &tagged.words {
                        targets[start + word.row] = word.class as u32;
                        weights[start + word.row] = 1.0;
                    }
                }
                // With their tokens.
                Target::Next { .. } => {}
            }
        }
        let input = if values.is_empty() { Input::Tokens(ids) } else { Input::Features(values) };
        Self { batch: Batch { input, sequences: examples.len(), rows, lengths }, targets, weights }
    }
}

/// Batches of a run: every epoch in a new random order, whole batches only.
///
/// Examples are not sorted by length across batches: batches of equal lengths train worse (0.04 bits per character on
/// names), and padding is cut by splitting a batch instead, see [`split_by_length`].
#[derive(Debug, Clone)]
pub(crate) struct Order {
    seed: u64,
    examples: usize,
    batch_size: usize,
    epoch: u64,
    shuffled: Vec<usize>,
}

impl Order {
    pub(crate) fn new(seed: u64, examples: usize, batch_size: usize) -> Self {
        Self {
            seed,
            examples,
            batch_size: batch_size.min(examples).max(1),
            epoch: u64::MAX,
            shuffled: Vec::new(),
        }
    }

    /// The examples of a step.
    pub(crate) fn step(&mut self, step: u64) -> &[usize] {
        let per_epoch = (self.examples / self.batch_size).max(1) as u64;
        let epoch = step / per_epoch;
        if epoch != self.epoch {
            self.shuffled = (0..self.examples).collect();
            Rng::new(self.seed, &format!("order/{epoch}")).shuffle(&mut self.shuffled);
            self.epoch = epoch;
        }
        let start = (step % per_epoch) as usize * self.batch_size;
        &self.shuffled[start..start + self.batch_size]
    }
}

/// Splits `indices` into parts of similar length where that saves enough padding: part boundaries are chosen so that
/// padded rows plus `overhead` rows for each part are fewest. Parts and their members are in ascending order of length.
pub(crate) fn split_by_length(
    indices: &[usize],
    rows: impl Fn(usize) -> usize,
    overhead: usize,
) -> Vec<Vec<usize>> {
    let mut sorted = indices.to_vec();
    sorted.sort_by_key(|index| (rows(*index), *index));
    let lengths: Vec<usize> = sorted.iter().map(|index| rows(*index)).collect();
    // cost[n]: least cost of the n shortest; cut[n]: where its last part starts.
    let mut cost = vec![0; sorted.len() + 1];
    let mut cut = vec![0; sorted.len() + 1];
    for end in 1..=sorted.len() {
        let of = |start: usize| cost[start] + (end - start) * lengths[end - 1] + overhead;
        let best = (0..end).min_by_key(|start| of(*start)).unwrap_or(0);
        (cost[end], cut[end]) = (of(best), best);
    }
    let mut parts = Vec::new();
    let mut end = sorted.len();
    while end > 0 {
        parts.push(sorted[cut[end]..end].to_vec());
        end = cut[end];
    }
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ids: &[u32]) -> Example {
        Example {
            sequence: Sequence::Tokens(ids.to_vec()),
            target: Target::Next { given: 0, characters: ids.len().saturating_sub(1) },
        }
    }

    #[test]
    fn texts_are_padded_and_shifted_by_one() {
        let Targets { batch, targets, weights } = Targets::new(&[text(&[1, 7, 8, 2]), text(&[1, 9])], 0);
        assert_eq!(batch.input, Input::Tokens(vec![1, 7, 8, 1, 0, 0]));
        assert_eq!((batch.sequences, batch.rows, batch.lengths), (2, 3, vec![3, 1]));
        assert_eq!(targets, [7, 8, 2, 9, 0, 0]);
        assert_eq!(weights, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_prompt_is_read_and_not_learned() {
        let example = Example { target: Target::Next { given: 2, characters: 1 }, ..text(&[1, 7, 8, 9, 2]) };
        let Targets { targets, weights, .. } = Targets::new(&[example, text(&[1, 5])], 0);
        assert_eq!(targets, [7, 8, 9, 2, 5, 0, 0, 0]);
        assert_eq!(weights, [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn classes_have_one_target_a_sequence() {
        let example = |values: &[f32], class| Example {
            sequence: Sequence::Features(values.to_vec()),
            target: Target::Class(class),
        };
        let Targets { batch, targets, weights } =
            Targets::new(&[example(&[1.0, 2.0], 3), example(&[3.0, 4.0, 5.0, 6.0], 1)], 2);
        assert_eq!(batch.input, Input::Features(vec![1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 5.0, 6.0]));
        assert_eq!((batch.rows, batch.lengths), (2, vec![1, 2]));
        assert_eq!((targets, weights), (vec![3, 1], vec![1.0, 1.0]));
    }

    #[test]
    fn words_have_their_targets_at_their_last_rows() {
        let word = |row, class| TaggedWord { word: Word { start: 0, end: 1 }, row, class };
        let example = |ids: &[u32], words: Vec<TaggedWord>| Example {
            sequence: Sequence::Tokens(ids.to_vec()),
            target: Target::Words(Arc::new(Tagged { first_row: 0, words, spans: Vec::new() })),
        };
        let examples =
            [example(&[1, 7], vec![word(1, 3)]), example(&[1, 5, 6, 8], vec![word(2, 4), word(3, 0)])];
        let Targets { batch, targets, weights } = Targets::new(&examples, 0);
        assert_eq!(batch.input, Input::Tokens(vec![1, 7, 0, 0, 1, 5, 6, 8]));
        assert_eq!((batch.rows, batch.lengths), (4, vec![2, 4]));
        assert_eq!(targets, [0, 3, 0, 0, 0, 0, 4, 0]);
        assert_eq!(weights, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn an_epoch_sees_no_example_twice_and_steps_can_be_asked_in_any_order() {
        let mut order = Order::new(7, 10, 3);
        let mut seen: Vec<usize> = (0..3).flat_map(|step| order.step(step).to_vec()).collect();
        let third = order.step(2).to_vec();
        let next_epoch = order.step(3).to_vec();
        assert_eq!(Order::new(7, 10, 3).step(2), third);
        assert_eq!(Order::new(7, 10, 3).step(3), next_epoch);
        assert_ne!(Order::new(8, 10, 3).step(2), third);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 9);
        assert_eq!(Order::new(1, 2, 5).step(9).len(), 2, "a batch is never larger than the data");
    }

    #[test]
    fn a_split_saves_padding_only_where_it_pays() {
        let lengths = [9, 2, 2, 10, 2, 3];
        let parts = |overhead| split_by_length(&[0, 1, 2, 3, 4, 5], |index| lengths[index], overhead);
        assert_eq!(parts(4), [vec![1, 2, 4, 5], vec![0, 3]]);
        assert_eq!(parts(1000), [vec![1, 2, 4, 5, 0, 3]]);
        assert_eq!(parts(0).len(), 4, "without a price every length is a part");
        assert!(split_by_length(&[], |_| 1, 1).is_empty());
    }
}
