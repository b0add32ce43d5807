//! Requests with the slots in them as examples: the class of each word, told after its last token.

use std::collections::BTreeSet;
use std::sync::Arc;

use rankpatch_format::adapter::Pooling;
use rankpatch_format::tokenizer::Tokenizer;
use rankpatch_runtime::{Word, Words};
use rayon::prelude::*;

use super::super::TrainConfig;
use super::super::batches::{Example, Sequence, Tagged, TaggedWord, Target};
use super::TaskData;
use crate::data::encoder::TextEncoder;
use crate::data::text::{self, SpannedText, TextSpan};
use crate::{Error, Result};

/// Reads requests and cuts them into words as a device does. The classes are `O`, for words outside, and for each kind of slot
/// `B-kind` and `I-kind`, for words that begin one and go on with one.
pub(super) fn load(config: &TrainConfig, tokenizer: Tokenizer<'_>) -> Result<TaskData> {
    let split = text::slots(&config.data)?;
    let kinds: BTreeSet<&str> =
        split.train.iter().flat_map(|text| &text.spans).map(|span| span.kind.as_str()).collect();
    let kinds: Vec<&str> = kinds.into_iter().collect();
    if let Some(unknown) =
        split.test.iter().flat_map(|text| &text.spans).find(|span| !kinds.contains(&span.kind.as_str()))
    {
        let expected = format!("one of the training part: {}", kinds.join(", "));
        return Err(Error::field(&config.data, "kind of a test slot", expected, &unknown.kind));
    }
    let texts = TextEncoder::Device(tokenizer);
    let example = |text: &SpannedText| -> Result<Example> {
        let ids = texts.sequence(&text.text, config.max_length)?;
        Ok(tag(&text.spans, ids, &kinds, tokenizer, config.pooling == Pooling::Reread))
    };
    let examples = |texts: &[SpannedText]| texts.par_iter().map(example).collect::<Result<Vec<_>>>();
    let (train, test) = (examples(&split.train)?, examples(&split.test)?);
    let labels = kinds.iter().flat_map(|kind| [format!("B-{kind}"), format!("I-{kind}")]);
    Ok(TaskData { train, test, labels: ["O".to_owned()].into_iter().chain(labels).collect(), width: 0 })
}

/// A text of these tokens with the classes of its words, given to the network twice if `twice`.
fn tag(spans: &[TextSpan], ids: Vec<u32>, kinds: &[&str], tokenizer: Tokenizer<'_>, twice: bool) -> Example {
    let first_row = if twice { ids.len() } else { 0 };
    let mut cut = Words::new(tokenizer);
    let mut words = Vec::new();
    let id = |at: usize| ids.get(at).map(|id| *id as u16);
    for at in 0..ids.len() {
        let Some(word) = id(at).and_then(|this| cut.push(this, id(at + 1))) else { continue };
        words.push(TaggedWord { word, row: first_row + at, class: class(word, spans, kinds) });
    }
    let sequence = Sequence::Tokens(if twice { [&ids[..], &ids[..]].concat() } else { ids });
    Example { sequence, target: Target::Words(Arc::new(Tagged { first_row, words, spans: spans.to_vec() })) }
}

/// The class of a word: that of the first span which it is a part of.
fn class(word: Word, spans: &[TextSpan], kinds: &[&str]) -> usize {
    let Some(span) = spans.iter().find(|span| span.start < word.end && word.start < span.end) else {
        return 0;
    };
    let kind = kinds.iter().position(|kind| *kind == span.kind).unwrap_or(0);
    1 + 2 * kind + usize::from(word.start > span.start)
}

#[cfg(test)]
mod tests {
    use rankpatch_format::layout::Layout;
    use rankpatch_runtime::Spans;

    use super::*;
    use crate::base::Image;
    use crate::data::test_data::carried;

    #[test]
    fn words_and_their_classes_give_the_slots_back() {
        let network = crate::import::load(&carried("bases/stories260k")).unwrap();
        let image = Image::build(&network, Layout::RowMajor, 4).unwrap();
        let tokenizer = image.base().unwrap().tokenizer().unwrap();
        let text = " Play  \u{c9}toile's  \"Don't go\" by R2-D2, 9.5 ";
        let span = |part: &str, kind: &str| {
            let start = text.find(part).unwrap();
            TextSpan { start, end: start + part.len(), kind: kind.to_owned() }
        };
        let spans = [
            span("\u{c9}toile", "artist"),
            span("Don't go", "track"),
            span("R2-D2", "artist"),
            span("9.5", "rating"),
        ];
        let kinds = ["artist", "rating", "track"];
        let ids = TextEncoder::Device(tokenizer).sequence(text, None).unwrap();
        let (once, twice) = (
            tag(&spans, ids.clone(), &kinds, tokenizer, false),
            tag(&spans, ids.clone(), &kinds, tokenizer, true),
        );
        let words = |example: &Example| match &example.target {
            Target::Words(tagged) => tagged.words.clone(),
            other => panic!("{other:?}"),
        };
        let parts: Vec<&str> =
            words(&once).iter().map(|word| &text[word.word.start..word.word.end]).collect();
        let expected = [
            "Play",
            "\u{c9}toile",
            "'",
            "s",
            "\"",
            "Don",
            "'",
            "t",
            "go",
            "\"",
            "by",
            "R2",
            "-",
            "D2",
            ",",
            "9",
            ".",
            "5",
        ];
        assert_eq!(parts, expected);
        let classes: Vec<usize> = words(&once).iter().map(|word| word.class).collect();
        assert_eq!(classes, [0, 1, 0, 0, 0, 5, 6, 6, 6, 0, 0, 1, 2, 2, 0, 3, 4, 4]);
        // The second reading is answered.
        assert_eq!(twice.sequence, Sequence::Tokens([&ids[..], &ids[..]].concat()));
        for (once, twice) in words(&once).iter().zip(words(&twice)) {
            assert_eq!((once.row + ids.len(), once.word, once.class), (twice.row, twice.word, twice.class));
        }
        let labels = ["O", "B-artist", "I-artist", "B-rating", "I-rating", "B-track", "I-track"];
        let outputs = |right: usize| [0, 1, 2, 3, 4, 5, 6].map(|class| f32::from(u8::from(class == right)));
        let mut joined = Spans::default();
        let found: Vec<_> = words(&once)
            .iter()
            .filter_map(|word| joined.push(word.word, &outputs(word.class), labels))
            .collect();
        let found: Vec<TextSpan> = found.into_iter().chain(joined.finish()).map(TextSpan::from).collect();
        assert_eq!(found, spans);
    }
}
