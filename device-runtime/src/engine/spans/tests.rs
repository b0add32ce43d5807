//! A head that answers after each row gives what a head over the last row gives there, and its answers become spans.

extern crate std;
use std::borrow::ToOwned;
use std::vec;
use std::vec::Vec;

use rankpatch_format::adapter::{Adapter, Pooling};
use rankpatch_format::base::Base;
use rankpatch_format::fixture;
use rankpatch_format::layout::Layout;
use rankpatch_format::write::{AdapterData, Network};

use super::{Span, Spans, Word, Words};
use crate::tests::{all_sites, image, memory};
use crate::{Engine, Error, MergedType, arena_bytes, merged_bytes};

const CONTEXT: usize = 64;
const LABELS: [&str; 5] = ["O", "B-a", "I-a", "B-b", "I-b"];
const TEXT: &str = " ab, cd  e5f (g)";

/// The small decoder, with room for a text and its second reading.
fn decoder() -> Network {
    Network { max_rows: CONTEXT as u32, ..fixture::decoder() }
}

fn adapter(network: &Network, pooling: Pooling) -> AdapterData {
    let mut data =
        fixture::adapter(network, &all_sites(network, |site| 1 + usize::from(site % 3)), Some(5), 1.0, 9);
    let head = data.head.as_mut().unwrap();
    head.pooling = pooling;
    head.labels = LABELS.map(str::to_owned).to_vec();
    data
}

fn with_engine<R>(
    network: &Network,
    pass_rows: u32,
    data: &AdapterData,
    run: impl FnOnce(&mut Engine<'_>) -> R,
) -> R {
    let (image, file) = (image(network, Layout::RowMajor, pass_rows), data.write().unwrap());
    let base = Base::new(image.bytes()).unwrap();
    let mut arena = memory(arena_bytes(&base, CONTEXT));
    let mut engine = Engine::new(base, arena.bytes_mut(), CONTEXT).unwrap();
    engine.attach(Adapter::new(&file, &base).unwrap()).unwrap();
    run(&mut engine)
}

fn encoded(engine: &Engine<'_>) -> Vec<u16> {
    let mut tokens = vec![0; TEXT.len() + 2];
    let len = engine.base().tokenizer().unwrap().encode(TEXT.as_bytes(), &mut tokens).unwrap();
    tokens.truncate(len);
    tokens
}

/// The outputs after each token.
fn each(engine: &mut Engine<'_>, tokens: &[u16]) -> Vec<Vec<f32>> {
    let mut outputs = Vec::new();
    engine
        .run_tokens_each(tokens, |at, output| {
            assert_eq!(at, outputs.len());
            outputs.push(output.to_vec());
        })
        .unwrap();
    outputs
}

#[test]
fn every_row_has_the_answer_that_the_last_row_has_alone() {
    let network = decoder();
    let last = adapter(&network, Pooling::Last);
    let expected = with_engine(&network, 3, &last, |engine| {
        let tokens = encoded(engine);
        let prefixes = (1..=tokens.len()).map(|len| {
            engine.reset();
            engine.run_tokens(&tokens[..len]).unwrap().to_vec()
        });
        prefixes.collect::<Vec<_>>()
    });
    assert!(expected.windows(2).any(|pair| pair[0] != pair[1]));
    let every = adapter(&network, Pooling::Every);
    for pass_rows in [1, 4, 16] {
        let found = with_engine(&network, pass_rows, &every, |engine| {
            let tokens = encoded(engine);
            each(engine, &tokens)
        });
        assert_eq!(found, expected, "{pass_rows} rows a pass");
    }
    // The self-test sees every row.
    let digests = [&last, &every]
        .map(|data| with_engine(&network, 4, data, |engine| engine.self_test_digest().unwrap()));
    assert_ne!(digests[0], digests[1]);
}

#[test]
fn spans_are_told_at_the_end_of_each_word() {
    let network = decoder();
    for (pooling, times) in [(Pooling::Every, 1), (Pooling::Reread, 2)] {
        with_engine(&network, 4, &adapter(&network, pooling), |engine| {
            let tokens = encoded(engine);
            let outputs = each(engine, &tokens.repeat(times));
            let outputs = &outputs[outputs.len() - tokens.len()..];
            let mut words = Words::new(engine.base().tokenizer().unwrap());
            let mut spans = Spans::default();
            let (mut parts, mut expected) = (Vec::new(), Vec::new());
            for (at, output) in outputs.iter().enumerate() {
                let Some(word) = words.push(tokens[at], tokens.get(at + 1).copied()) else { continue };
                parts.push(&TEXT[word.start..word.end]);
                expected.extend(spans.push(word, output, LABELS));
            }
            expected.extend(spans.finish());
            assert_eq!(parts, ["ab", ",", "cd", "e5f", "(", "g", ")"]);
            assert!(!expected.is_empty());
            let mut found = Vec::new();
            let digest = engine
                .run_spans(&tokens, |span| found.push((span.start, span.end, span.kind.to_owned())))
                .unwrap();
            let expected: Vec<_> =
                expected.iter().map(|span| (span.start, span.end, span.kind.to_owned())).collect();
            assert_eq!(found, expected, "{pooling:?}");
            // Whatever was run before.
            assert_eq!(engine.run_spans(&tokens, |_| {}).unwrap(), digest);
            assert_eq!(engine.position(), times * tokens.len());
            let long = vec![tokens[1]; CONTEXT / times + 1];
            let error = Error::SequenceTooLong { expected: CONTEXT / times, found: long.len() };
            assert_eq!(engine.run_spans(&long, |_| {}), Err(error));
        });
    }
}

#[test]
fn merged_adapters_tell_spans_too() {
    let network = decoder();
    let (image, file) =
        (image(&network, Layout::RowMajor, 4), adapter(&network, Pooling::Reread).write().unwrap());
    let base = Base::new(image.bytes()).unwrap();
    let adapter = Adapter::new(&file, &base).unwrap();
    let mut arena = memory(arena_bytes(&base, CONTEXT));
    let mut merged = memory(merged_bytes(&base, &adapter, MergedType::Int8));
    let mut engine = Engine::new(base, arena.bytes_mut(), CONTEXT).unwrap();
    engine.attach(adapter).unwrap();
    let tokens = encoded(&engine);
    let streamed = engine.run_spans(&tokens, |_| {}).unwrap();
    engine.attach_merged(adapter, MergedType::Int8, merged.bytes_mut()).unwrap();
    assert_ne!(engine.run_spans(&tokens, |_| {}).unwrap(), streamed, "merging rounds");
}

#[test]
fn nothing_but_such_a_head_tells_spans() {
    let network = decoder();
    let mut unnamed = adapter(&network, Pooling::Every);
    unnamed.head.as_mut().unwrap().labels.clear();
    for data in [adapter(&network, Pooling::Mean), unnamed] {
        with_engine(&network, 4, &data, |engine| {
            let tokens = encoded(engine);
            assert_eq!(engine.run_spans(&tokens, |_| {}), Err(Error::NoSpans));
            engine.detach();
            assert_eq!(engine.run_spans(&tokens, |_| {}), Err(Error::NoSpans));
        });
    }
}

#[test]
fn a_head_at_every_row_needs_rows() {
    // The features of the encoder are one row.
    let network = fixture::encoder();
    let image = image(&network, Layout::RowMajor, 3);
    let base = Base::new(image.bytes()).unwrap();
    for pooling in [Pooling::Every, Pooling::Reread] {
        let mut data = fixture::adapter(&network, &[], Some(3), 1.0, 2);
        data.head.as_mut().unwrap().pooling = pooling;
        let error = Adapter::new(&data.write().unwrap(), &base).unwrap_err();
        assert!(
            matches!(error, rankpatch_format::Error::Malformed { what: rankpatch_format::What::Pooling }),
            "{error}"
        );
    }
}

/// The spans of words with these outputs, of two bytes each and three bytes from one another.
fn joined(outputs: &[[f32; 5]]) -> Vec<(usize, usize, &'static str)> {
    let mut spans = Spans::default();
    let word = |at: usize| Word { start: 3 * at, end: 3 * at + 2 };
    let mut found: Vec<Span<'_>> = outputs
        .iter()
        .enumerate()
        .filter_map(|(at, outputs)| spans.push(word(at), outputs, LABELS))
        .collect();
    found.extend(spans.finish());
    found.iter().map(|span| (span.start, span.end, span.kind)).collect()
}

#[test]
fn words_are_joined_by_their_labels() {
    let joined = |labels: &[usize]| {
        let outputs: Vec<[f32; 5]> = labels
            .iter()
            .map(|label| core::array::from_fn(|at| if at == *label { 3.0 } else { -1.0 - at as f32 }))
            .collect();
        joined(&outputs)
    };
    let [o, begin_a, in_a, begin_b, in_b] = [0, 1, 2, 3, 4];
    assert_eq!(joined(&[o, begin_a, in_a, o, begin_b]), [(3, 8, "a"), (12, 14, "b")]);
    assert_eq!(joined(&[begin_a, begin_a, in_a]), [(0, 2, "a"), (3, 8, "a")]);
    assert_eq!(joined(&[begin_b, in_b, in_b]), [(0, 8, "b")]);
    // Nothing to go on with: the next greatest is outside.
    assert_eq!(joined(&[in_a, in_b, o]), []);
}

#[test]
fn an_output_that_cannot_follow_does_not_count() {
    // Of O, B-a, I-a, B-b, I-b.
    let begin_a = [0.0, 2.0, 1.0, -1.0, 3.0];
    assert_eq!(joined(&[begin_a, [0.5, 1.0, 2.0, -3.0, 4.0]]), [(0, 5, "a")]);
    assert_eq!(
        joined(&[begin_a, [0.5, 1.0, 0.0, 3.0, 4.0], [0.0, -1.0, 9.0, 1.0, 2.0]]),
        [(0, 2, "a"), (3, 8, "b")]
    );
    assert_eq!(joined(&[[1.0, 0.0, 7.0, 0.0, 7.0], [f32::NAN; 5]]), []);
    assert_eq!(joined(&[[1.0, 1.0, 7.0, 0.0, 7.0]]), [], "the first of equal ones");
}
