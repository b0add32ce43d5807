//! Tests of the text loaders, and of what every loader refuses.

use std::fs;

use tempfile::TempDir;

use super::signal::{self, Target};
use super::test_data::carried;
use super::{Classes, text};
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
fn clips_are_centred_at_twice_the_rate() {
    // A tone of 1 kHz keeps its frequency and amplitude.
    let tone = |rate: f64, t: f64| (std::f64::consts::TAU * 1000.0 * t / rate).sin() * 0.5;
    let recording: Vec<f32> = (0..4000).map(|t| tone(8000.0, t as f64) as f32).collect();
    let clip = signal::to_clip(&recording, 3);
    assert_eq!(clip.len(), 16_000);
    assert_eq!(clip, signal::to_clip(&recording, 3));
    for (t, sample) in clip[4100..11_900].iter().enumerate() {
        let expected = tone(16_000.0, (t + 100) as f64);
        assert!((f64::from(*sample) - expected).abs() < 2e-3, "{t}: expected {expected}, found {sample}");
    }
    let silence = clip[..3900].iter().map(|x| x * x).sum::<f32>() / 3900.0;
    assert!((0.8e-4..1.2e-4).contains(&silence.sqrt()), "{}", silence.sqrt());
    // Too long a recording loses both ends alike.
    let long: Vec<f32> = (0..10_000).map(|t| if t == 5000 { 1.0 } else { 0.0 }).collect();
    assert!(signal::to_clip(&long, 3)[8000] > 0.99);
}
