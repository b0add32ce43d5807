//! Tests of the text loaders, and of what every loader refuses.

use std::collections::HashMap;
use std::fs;

use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

use super::records::{self, Record};
use super::signal::{self, Target};
use super::test_data::carried;
use super::text::TextSpan;
use super::{Classes, Split, arrays, text};
use crate::Error;

/// A folder with these files that goes away with the test.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

#[test]
fn names_are_divided_by_the_seed() {
    let path = carried("names/names.txt");
    let split = text::names(&path, 7).unwrap();
    assert_eq!((split.train.len(), split.test.len()), (31_033, 1000));
    assert_eq!(split, text::names(&path, 7).unwrap());
    assert_ne!(split.test, text::names(&path, 8).unwrap().test);
    let mut all: Vec<String> = split.train.into_iter().chain(split.test).collect();
    all.sort();
    let mut original: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(String::from).collect();
    original.sort();
    assert_eq!(all, original);
}

#[test]
fn intents_have_seven_classes() {
    let intents = text::intents(&carried("snips-intents")).unwrap();
    let labels = [
        "AddToPlaylist",
        "BookRestaurant",
        "GetWeather",
        "PlayMusic",
        "RateBook",
        "SearchCreativeWork",
        "SearchScreeningEvent",
    ];
    assert_eq!(intents.labels, labels);
    assert_eq!((intents.split.train.len(), intents.split.test.len()), (13_784, 700));
    let first = &intents.split.test[0];
    assert_eq!(first.input, "I'd like to have this track onto my Classical Relaxations playlist.");
    assert_eq!(first.label, 0);
    for label in 0..7 {
        assert_eq!(intents.split.test.iter().filter(|example| example.label == label).count(), 100);
    }
}

#[test]
fn stories_are_twenty() {
    let stories = text::stories(&carried("tinystories-sample/stories.txt")).unwrap();
    assert_eq!(stories.len(), 20);
    assert!(stories.iter().all(|story| !story.contains("endoftext")));
}

#[test]
fn a_missing_file_is_named() {
    let error = text::names(&carried("names/absent.txt"), 0).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("names/absent.txt")), "{error}");
    assert!(error.to_string().contains("absent.txt"), "{error}");
    let error = signal::spoken_digits(&carried("names"), Target::Digit).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("fsdd_8khz_mulaw.bin")), "{error}");
}

#[test]
fn an_empty_data_set_is_refused() {
    let folder = folder(&[
        ("names.txt", b"\n\n"),
        ("train.tsv", b"intent\ttext\tslots\n"),
        ("valid.tsv", b"intent\ttext\tslots\nA\tb\t\n"),
        ("stories.txt", b"<|endoftext|>\n"),
    ]);
    let names = text::names(&folder.path().join("names.txt"), 0).unwrap_err();
    assert!(matches!(names, Error::EmptyDataSet { part: "training", .. }), "{names}");
    let intents = text::intents(folder.path()).unwrap_err();
    assert!(matches!(intents, Error::EmptyDataSet { part: "training", .. }), "{intents}");
    let stories = text::stories(&folder.path().join("stories.txt")).unwrap_err();
    assert!(matches!(stories, Error::EmptyDataSet { .. }), "{stories}");
}

#[test]
fn one_class_is_refused() {
    let folder = folder(&[
        ("train.tsv", b"intent\ttext\tslots\nA\ta\t\nA\tb\t\n"),
        ("valid.tsv", b"intent\ttext\tslots\nA\tc\t\n"),
        ("index.tsv", b"offset_samples\tlen_samples\tdigit\tspeaker\ttake\tsplit\tgit_blob\n0\t2\t3\tann\t0\ttest\t-\n0\t2\t4\tann\t5\ttrain\t-\n"),
        ("fsdd_8khz_mulaw.bin", &[1, 2]),
    ]);
    for error in [
        text::intents(folder.path()).unwrap_err(),
        signal::spoken_digits(folder.path(), Target::Speaker).unwrap_err(),
    ] {
        assert!(matches!(error, Error::OneClass { .. }), "{error}");
    }
    let error = Classes::new(folder.path(), vec![(1, "A".into()), (2, "B".into())], vec![(3, "C".into())])
        .unwrap_err();
    assert!(error.to_string().contains("expected one of the training part: A, B, found C"), "{error}");
}

#[test]
fn a_line_that_does_not_fit_is_named() {
    let folder = folder(&[
        ("train.tsv", b"intent\ttext\tslots\nA\ta\t\nA\tb\n"),
        ("valid.tsv", b"intent\ttext\n"),
        ("names.txt", b"ann\nbob\n"),
        (
            "index.tsv",
            b"offset_samples\tlen_samples\tdigit\tspeaker\ttake\tsplit\tgit_blob\n1\t2\t3\tann\t0\ttest\t-\n",
        ),
        ("fsdd_8khz_mulaw.bin", &[1, 2]),
    ]);
    let intents = text::intents(folder.path()).unwrap_err().to_string();
    assert!(intents.ends_with("train.tsv: fields of line 3: expected 3, found 2"), "{intents}");
    fs::write(folder.path().join("train.tsv"), "intent\ttext\tslots\nA\ta\t\nB\tb\t\n").unwrap();
    let intents = text::intents(folder.path()).unwrap_err().to_string();
    assert!(
        intents.ends_with(r"valid.tsv: header: expected intent\ttext\tslots, found intent\ttext"),
        "{intents}"
    );
    let names = text::names(&folder.path().join("names.txt"), 0).unwrap_err().to_string();
    assert!(names.ends_with("names: expected more than the 1000 that are held out, found 2"), "{names}");
    let sounds = signal::spoken_digits(folder.path(), Target::Digit).unwrap_err();
    assert!(matches!(sounds, Error::Length { expected: 3, found: 2, .. }), "{sounds}");
}

#[test]
fn slots_are_bytes_of_their_texts() {
    let folder = folder(&[
        ("train.tsv", "intent\ttext\tslots\nA\tto \u{c9}toile: 5\t11:12:n 3:9:a:b\n".as_bytes()),
        ("valid.tsv", b"intent\ttext\tslots\nA\tno slot\t\n"),
    ]);
    let Split { train, test } = text::slots(folder.path()).unwrap();
    let span = |start, end, kind: &str| TextSpan { start, end, kind: kind.to_owned() };
    assert_eq!(train[0].spans, [span(3, 10, "a:b"), span(12, 13, "n")]);
    assert_eq!(&train[0].text[3..10], "\u{c9}toile");
    assert!(test[0].spans.is_empty());
    for (slots, text) in [
        ("3:20:a", "to you"),
        ("3:3:a", "to you"),
        ("0:2:a 1:3:b", "to you"),
        ("0:2", "to you"),
        ("0:2:", "to you"),
        ("", " "),
    ] {
        let line = format!("intent\ttext\tslots\nA\t{text}\t{slots}\n");
        fs::write(folder.path().join("valid.tsv"), line).unwrap();
        let error = text::slots(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("valid.tsv: slots of line 2: expected start:end:entity within a text"),
            "{error}"
        );
    }
}

#[test]
fn clips_are_centred_at_twice_the_rate() {
    // A tone of 1 kHz keeps its frequency and amplitude.
    let tone = |rate: f64, t: f64| (std::f64::consts::TAU * 1000.0 * t / rate).sin() * 0.5;
    let recording: Vec<f32> = (0..4000).map(|t| tone(8000.0, t as f64) as f32).collect();
    let to_clip = |recording: &[f32]| signal::to_clip(&signal::upsample(recording), 3);
    let clip = to_clip(&recording);
    assert_eq!(clip.len(), 16_000);
    assert_eq!(clip, to_clip(&recording));
    for (t, sample) in clip[4100..11_900].iter().enumerate() {
        let expected = tone(16_000.0, (t + 100) as f64);
        assert!((f64::from(*sample) - expected).abs() < 2e-3, "{t}: expected {expected}, found {sample}");
    }
    let silence = clip[..3900].iter().map(|x| x * x).sum::<f32>() / 3900.0;
    assert!((0.8e-4..1.2e-4).contains(&silence.sqrt()), "{}", silence.sqrt());
    // Too long a recording loses both ends alike.
    let long: Vec<f32> = (0..10_000).map(|t| if t == 5000 { 1.0 } else { 0.0 }).collect();
    assert!(to_clip(&long)[8000] > 0.99);
}

#[test]
fn records_of_three_forms_are_read_from_json_lines_csv_and_plain_text() {
    let labelled = |text: &str, label: &str| Record::Labelled { text: text.into(), label: label.into() };
    let folder = folder(&[
        ("a.jsonl", b"{\"text\": \"on\", \"label\": \"light\", \"id\": 7}\n\n{\"label\": 3, \"text\": \"\\u00e9t\\u00e9\"}\n"),
        ("a.csv", b"id,label,text\n7,light,on\n8,3,\"comma, \"\"quoted\"\"\nand a new line\"\n"),
        ("b.jsonl", b"{\"prompt\": \"\", \"completion\": \"x\"}\n"),
        ("b.csv", b"completion,prompt\nx,\n"),
        ("c.txt", "one\r\n\r\n  zwölf\n".as_bytes()),
        ("d.jsonl", "\u{feff}{\"text\": \"on\", \"label\": true}\r\n".as_bytes()),
        ("d.csv", "\u{feff}text,label\r\non,true\r\n\r\n".as_bytes()),
        ("d.txt", "\u{feff}on\r\n".as_bytes()),
    ]);
    let path = |name: &str| folder.path().join(name);
    let found = records::json_lines(&path("a.jsonl")).unwrap();
    assert_eq!(found, [labelled("on", "light"), labelled("été", "3")]);
    let found = records::csv(&path("a.csv")).unwrap();
    assert_eq!(found, [labelled("on", "light"), labelled("comma, \"quoted\"\nand a new line", "3")]);
    let completion = [Record::Completion { prompt: String::new(), completion: "x".into() }];
    assert_eq!(records::json_lines(&path("b.jsonl")).unwrap(), completion);
    assert_eq!(records::csv(&path("b.csv")).unwrap(), completion);
    let lines = records::lines(&path("c.txt")).unwrap();
    assert_eq!(lines, [Record::Text("one".into()), Record::Text("  zwölf".into())]);
    // As a spreadsheet on Windows writes them.
    assert_eq!(records::json_lines(&path("d.jsonl")).unwrap(), [labelled("on", "true")]);
    assert_eq!(records::csv(&path("d.csv")).unwrap(), [labelled("on", "true")]);
    assert_eq!(records::lines(&path("d.txt")).unwrap(), [Record::Text("on".into())]);
}

#[test]
fn a_record_that_does_not_fit_is_named_by_its_line() {
    let cases: [(&str, &[u8], &str); 15] = [
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": \"a\",}\n",
            "line 2: expected a JSON object with `text` and `label`",
        ),
        ("a.jsonl", b"[1]\n", "line 1: expected a JSON object"),
        (
            "a.jsonl",
            b"{\"txt\": \"a\"}\n",
            "line 1: expected strings `text` and `label`, `prompt` and `completion`, or `text`, found txt",
        ),
        ("a.jsonl", b"{\"text\": 5}\n", "found text = 5"),
        (
            "a.jsonl",
            b"{\"text\": \"a\", \"label\": \"b\"}\n\n{\"text\": \"a\"}\n",
            "line 3: expected `text` and `label` as in the first record, found `text`",
        ),
        ("a.jsonl", b"{\"text\": \"\"}\n", "line 1: expected a text that is not empty, found nothing"),
        (
            "a.jsonl",
            b"{\"text\": \"a\", \"label\": \"\"}\n",
            "line 1: expected a text or label that is not empty",
        ),
        ("a.jsonl", b"{\"text\": \"\xff\"}\n", "stream did not contain valid UTF-8"),
        ("a.jsonl", b"\n", "expected at least one example for training, found none"),
        (
            "a.csv",
            b"a,b\n1,2\n",
            "columns: expected `text` and `label`, `prompt` and `completion`, or `text`, found a, b",
        ),
        (
            "a.csv",
            b"text,label\na,b\nc\n",
            "line 3: expected CSV in UTF-8 with as many fields as the first row",
        ),
        (
            "a.csv",
            b"text,label,text\na,b,c\n",
            "columns: expected one that is called text, found text, label, text",
        ),
        ("a.csv", b"text,label\na,\n", "line 2: expected a text or label that is not empty"),
        ("a.csv", b"text,label\n", "expected at least one example for training, found none"),
        ("a.txt", b"\n \n", "expected at least one example for training, found none"),
    ];
    for (name, bytes, expected) in cases {
        let folder = folder(&[(name, bytes)]);
        let path = folder.path().join(name);
        let read = match name {
            "a.jsonl" => records::json_lines(&path),
            "a.csv" => records::csv(&path),
            _ => records::lines(&path),
        };
        let found = read.unwrap_err().to_string();
        assert!(found.contains(expected) && found.contains(name), "expected {expected:?}, found {found:?}");
    }
}

#[test]
fn a_seeded_split_takes_the_same_part_of_every_class() {
    let examples: Vec<(usize, &str)> = (0..100)
        .map(|at| {
            (
                at,
                if at < 60 {
                    "a"
                } else if at < 99 {
                    "b"
                } else {
                    "c"
                },
            )
        })
        .collect();
    let split = |seed| Split::seeded(examples.clone(), 0.2, seed, |(_, class)| Some(class));
    let found = split(1);
    let count =
        |part: &[(usize, &str)], class: &str| part.iter().filter(|example| example.1 == class).count();
    // The only one of its class is trained on: a class of the test part must be one that was learned.
    assert_eq!(["a", "b", "c"].map(|class| count(&found.test, class)), [12, 8, 0]);
    assert_eq!(found.train.len(), 80);
    assert!(found.test.is_sorted() && found.train.is_sorted(), "the order is kept");
    assert_eq!(found, split(1));
    assert_ne!(found, split(2));
    let two = Split::seeded(vec!["x", "y"], 0.01, 0, |_| None);
    assert_eq!((two.train.len(), two.test.len()), (1, 1), "something is always set apart");
}

/// A safetensors file.
fn tensors(views: &[(&str, Dtype, Vec<usize>, Vec<u8>)], metadata: Option<&str>) -> Vec<u8> {
    let views = views
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let metadata = metadata.map(|names| HashMap::from([("label_names".to_owned(), names.to_owned())]));
    safetensors::serialize(views, metadata).unwrap()
}

#[test]
fn feature_arrays_are_read_with_their_classes() {
    let values: Vec<f32> = (0..12).map(|at| at as f32).collect();
    let bytes = crate::files::f32_bytes(&values);
    let features = |bytes: &[u8]| ("features", Dtype::F32, vec![2, 3, 2], bytes.to_vec());
    let labels = |labels: [i64; 2]| ("labels", Dtype::I64, vec![2], labels.map(i64::to_le_bytes).concat());
    let good = tensors(&[features(&bytes), labels([1, 0])], Some(r#"["no", "yes"]"#));
    let small = tensors(&[features(&bytes), ("labels", Dtype::U8, vec![2], vec![7, 9])], None);
    let folder = folder(&[("good", &good), ("small", &small)]);
    let found = arrays::load(&folder.path().join("good")).unwrap();
    assert_eq!(found.width, 2);
    assert_eq!(found.examples[0], (values[..6].to_vec(), "yes".into()));
    assert_eq!(found.examples[1].1, "no");
    assert_eq!(arrays::load(&folder.path().join("small")).unwrap().examples[1].1, "9");

    let nan = crate::files::f32_bytes(&[[0.0; 7].as_slice(), &[f32::NAN; 5]].concat());
    let cases = [
        (tensors(&[labels([0, 1])], None), "there is no tensor \"features\""),
        (tensors(&[features(&bytes)], None), "there is no tensor \"labels\""),
        (
            tensors(&[("features", Dtype::F32, vec![4, 3], bytes.clone()), labels([0, 1])], None),
            "shape of features: expected [examples, rows, width], found [4, 3]",
        ),
        (
            tensors(&[features(&bytes), ("labels", Dtype::U8, vec![3], vec![0; 3])], None),
            "tensor \"labels\": expected shape [2], found [3]",
        ),
        (
            tensors(&[features(&bytes), ("labels", Dtype::F32, vec![2], vec![0; 8])], None),
            "type of labels: expected I64, I32, U32 or U8, found F32",
        ),
        (
            tensors(&[features(&bytes), labels([0, 2])], Some(r#"["no", "yes"]"#)),
            "labels: expected numbers below 2",
        ),
        (
            tensors(&[features(&bytes), labels([0, -1])], None),
            "labels: expected numbers, 0 or more, found -1",
        ),
        (
            tensors(&[features(&bytes), labels([0, 1])], Some("no, yes")),
            "metadata label_names: expected a JSON list",
        ),
        (
            tensors(&[features(&bytes), labels([0, 1])], Some(r#"["no", "no"]"#)),
            "metadata label_names: expected names that differ, found \"no\" again at 1",
        ),
        (
            tensors(&[features(&nan), labels([0, 1])], None),
            "features of example 1: expected finite numbers, found NaN",
        ),
        (
            tensors(&[("features", Dtype::F32, vec![0, 3, 2], vec![]), labels([0, 1])], None),
            "expected at least one example for training, found none",
        ),
        (good[..good.len() - 1].to_vec(), "file: expected safetensors"),
        (b"no".to_vec(), "file: expected safetensors"),
    ];
    for (bytes, expected) in cases {
        let path = folder.path().join("bad.safetensors");
        fs::write(&path, bytes).unwrap();
        let found = arrays::load(&path).unwrap_err().to_string();
        assert!(found.contains(expected), "expected {expected:?}, found {found:?}");
    }
}
