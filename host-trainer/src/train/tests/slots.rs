//! Tests of tasks that tell slots: their data, and a run.

use std::path::Path;

use rankpatch_format::adapter::Pooling;
use rankpatch_format::fixture;
use rankpatch_format::layout::Layout;
use rankpatch_format::link::Mode;
use rankpatch_format::write::Network;

use super::tiny;
use crate::base::Image;
use crate::data::test_data::carried;
use crate::data::text::TextSpan;
use crate::export::export;
use crate::import;
use crate::lora::LoraConfig;
use crate::rng::Rng;
use crate::sim::Simulator;
use crate::train::{
    DatasetKind, Length, MetricName, Sequence, Tally, Target, TaskData, TrainConfig, Trainer, evaluate_float,
};

fn config(data: &Path, pooling: Pooling) -> TrainConfig {
    TrainConfig { dataset: DatasetKind::Slots, data: data.to_owned(), pooling, ..tiny::class_config() }
}

#[test]
fn requests_have_the_classes_of_their_words() {
    let image =
        Image::build(&import::load(&carried("bases/stories260k")).unwrap(), Layout::RowMajor, 16).unwrap();
    let base = image.base().unwrap();
    let data = TaskData::load(&config(&carried("snips-intents"), Pooling::Reread), &base).unwrap();
    assert_eq!((data.train.len(), data.test.len(), data.labels.len()), (13_784, 700, 79));
    assert_eq!(data.labels[..3], ["O", "B-album", "I-album"]);
    let once = TaskData::load(&config(&carried("snips-intents"), Pooling::Every), &base).unwrap();
    let mut tally = Tally::new(MetricName::SpanF1);
    for (twice, once) in data.test.iter().zip(&once.test) {
        let (Sequence::Tokens(ids), Sequence::Tokens(own)) = (&twice.sequence, &once.sequence) else {
            panic!("requests are tokens")
        };
        assert_eq!(ids[..], [&own[..], &own[..]].concat());
        let Target::Words(tagged) = &twice.target else { panic!("requests have words") };
        assert!(tagged.words.iter().all(|word| (tagged.first_row..ids.len()).contains(&word.row)));
        // What the right classes give, joined as a device does it.
        let mut spans = rankpatch_runtime::Spans::default();
        let labels = || data.labels.iter().map(String::as_str);
        let outputs =
            |right: usize| (0..79).map(|class| f32::from(u8::from(class == right))).collect::<Vec<_>>();
        let words = tagged.words.iter();
        let found: Vec<_> =
            words.filter_map(|word| spans.push(word.word, &outputs(word.class), labels())).collect();
        let found: Vec<TextSpan> = found.into_iter().chain(spans.finish()).map(TextSpan::from).collect();
        tally.spans(&found, &tagged.spans);
    }
    let metric = tally.metric();
    assert!(metric.value > 0.995, "words have bounds where slots have: {metric:?}");
    assert_ne!(data.digest(), once.digest());
}

/// Texts of four words. `go` is always a slot; `e5` is one together with an `ab` behind it, alone it is none.
fn file(name: &str, lines: usize) -> String {
    let mut rng = Rng::new(3, name);
    let line = |_| {
        let words: Vec<&str> = (0..4).map(|_| ["ab", "cd", "e5", "go"][rng.below(4) as usize]).collect();
        let slots = words.iter().enumerate().filter_map(|(at, word)| {
            let start = 3 * at;
            match (*word, words.get(at + 1)) {
                ("go", _) => Some(format!("{start}:{}:x", start + 2)),
                ("e5", Some(&"ab")) => Some(format!("{start}:{}:y", start + 5)),
                _ => None,
            }
        });
        let slots: Vec<String> = slots.collect();
        format!("i\t{}\t{}\n", words.join(" "), slots.join(" "))
    };
    "intent\ttext\tslots\n".to_owned() + &(0..lines).map(line).collect::<String>()
}

#[test]
fn slots_are_learned_and_told_on_the_device_as_in_float() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("train.tsv"), file("train", 300)).unwrap();
    std::fs::write(folder.path().join("valid.tsv"), file("valid", 60)).unwrap();
    let network = Network { max_rows: 48, ..fixture::decoder() };
    let image = Image::build(&network, Layout::RowMajor, 4).unwrap();
    let f1 = |pooling| {
        let config = TrainConfig {
            lora: LoraConfig { rank: 4, alpha: 8.0, ..tiny::class_config().lora },
            length: Length::Steps(220),
            batch_size: 16,
            learning_rate: 2e-2,
            ..config(folder.path(), pooling)
        };
        let data = TaskData::load(&config, &image.base().unwrap()).unwrap();
        let mut trainer = Trainer::new(config, &network, data).unwrap();
        trainer.run(&mut (), None).unwrap();
        let adapter = trainer.adapter().unwrap();
        let digest = |file: &[u8]| {
            Simulator::new(image.clone())?.with_adapter(file.to_vec(), Mode::Streamed)?.self_test_digest()
        };
        let file = export(&adapter, &network, 1, digest).unwrap().file;
        let device = Simulator::new(image.clone()).unwrap().with_adapter(file, Mode::Streamed).unwrap();
        let found = device.evaluate(&trainer.data().test).unwrap();
        let float = evaluate_float(trainer.model(), Some(&adapter), &trainer.data().test).unwrap();
        assert_eq!((found.name, found.examples), (MetricName::SpanF1, 60));
        assert!((found.value - float.value).abs() < 0.03, "{found:?} {float:?}");
        device.session(|engine| Ok(engine.self_test()?)).unwrap();
        found.value
    };
    for pooling in [Pooling::Every, Pooling::Reread] {
        let f1 = f1(pooling);
        assert!(f1 > 0.85, "{pooling:?}: {f1}");
    }
}
