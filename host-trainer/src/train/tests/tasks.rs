//! Tests of the tasks that the repository carries: their files load, and their data are what the networks read.

use std::path::Path;

use rankpatch_format::layout::Layout;

use crate::Error;
use crate::base::Image;
use crate::executor::Model;
use crate::import;
use crate::train::{DatasetKind, Sequence, Target, TaskData, TrainConfig, TrainError, evaluate_float};

fn config(task: &str, overrides: &[(&str, &str)]) -> TrainConfig {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tasks/{task}.toml"));
    let overrides: Vec<_> =
        overrides.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    TrainConfig::load(&path, &overrides).unwrap()
}

fn image(config: &TrainConfig) -> Image {
    Image::build(&import::load(&config.base).unwrap(), Layout::RowMajor, 16).unwrap()
}

#[test]
fn every_task_has_a_file_and_adapts_every_linear_layer_but_the_last() {
    for (task, kind, sites) in [
        ("names", DatasetKind::Names, 35),
        ("intent", DatasetKind::Intents, 35),
        ("speaker", DatasetKind::Speakers, 73),
    ] {
        let config = config(task, &[]);
        assert_eq!((config.task.as_str(), config.dataset), (task, kind));
        let network = import::load(&config.base).unwrap();
        let read = if kind.classifies() == Some(true) { network.features } else { network.output };
        assert_eq!(config.lora.bind(&network, read).unwrap().len(), sites, "{task}");
    }
}

#[test]
fn names_are_spelt_and_end() {
    let config = config("names", &[]);
    let image = image(&config);
    let base = image.base().unwrap();
    let data = TaskData::load(&config, &base).unwrap();
    assert_eq!((data.train.len(), data.test.len(), data.width), (31_033, 1000, 0));
    let tokenizer = base.tokenizer().unwrap();
    for example in data.test.iter().take(50) {
        let Sequence::Tokens(ids) = &example.sequence else { panic!("names are tokens") };
        let bos = u32::from(tokenizer.info().bos);
        assert_eq!((ids[0], ids[ids.len() - 1]), (bos, bos));
        let letters: Vec<&[u8]> =
            ids[1..ids.len() - 1].iter().map(|id| tokenizer.piece(*id as u16)).collect();
        assert!(
            letters.iter().all(|letter| letter.len() == 1 && letter[0].is_ascii_lowercase()),
            "{letters:?}"
        );
        assert_eq!(example.target, Target::Next { given: 0, characters: letters.len() + 1 });
    }
    // Whatever a run's seed is, what is set apart stays apart.
    let other = TaskData::load(&TrainConfig { seed: 77, ..config }, &base).unwrap();
    assert_eq!(other.test, data.test);
    // The base has never seen names: it needs more bits than guessing among 27 characters, 4.75, would.
    let network = rankpatch_format::write::Network::read(&base);
    let model = Model::new(&network, &candle_core::Device::Cpu).unwrap();
    let metric = evaluate_float(&model, None, &data.test[..200]).unwrap();
    assert!((10.0..15.0).contains(&metric.value), "{metric:?}");
}

#[test]
fn requests_and_recordings_have_their_classes() {
    let intents = config("intent", &[]);
    let data = TaskData::load(&intents, &image(&intents).base().unwrap()).unwrap();
    assert_eq!((data.train.len(), data.test.len(), data.labels.len()), (13_784, 700, 7));
    let mut count = [0; 7];
    data.test.iter().for_each(|example| match example.target {
        Target::Class(class) => count[class] += 1,
        _ => panic!("requests have classes"),
    });
    assert_eq!(count, [100; 7]);

    let speakers = config("speaker", &[]);
    let data = TaskData::load(&speakers, &image(&speakers).base().unwrap()).unwrap();
    assert_eq!((data.train.len(), data.test.len(), data.width), (600, 300, 40));
    assert_eq!(data.labels, ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]);
    assert!(data.train.iter().all(|example| example.rows(40) == 98));
}

#[test]
fn copies_are_made_of_what_trains_only() {
    let recordings = |augment: &str| {
        let rows = "where = { speaker = ['theo'], take = ['0', '9'] }";
        format!("{{ sample_rate = 8000, label = 'digit', {rows}, augment = {augment} }}")
    };
    let carried = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/fsdd").display().to_string();
    let load = |augment: &str| {
        let config =
            config("whole/my-digits-theo", &[("data", &carried), ("recordings", &recordings(augment))]);
        TaskData::load(&config, &image(&config).base().unwrap())
    };
    let (plain, more) = (load("{}").unwrap(), load("{ copies = 2, shift_ms = 50 }").unwrap());
    assert_eq!((plain.train.len(), plain.test.len()), (10, 10));
    assert_eq!((more.train.len(), &more.train[..10], &more.test), (30, &plain.train[..], &plain.test));
    assert!(more.train[10..20] != plain.train[..] && more.train[10..20] != more.train[20..]);
    let noise = load("{ copies = 1, noise = 'hum' }").unwrap_err().to_string();
    assert!(noise.contains("hum, among the classes") && noise.contains("0, 1, 2"), "{noise}");
}

#[test]
fn a_task_on_the_wrong_base_or_without_its_data_is_refused() {
    let names = config("names", &[("data", "no/such/names.txt")]);
    let stories = image(&names);
    let error = TaskData::load(&names, &stories.base().unwrap()).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("no/such/names.txt")), "{error}");
    let speaker = config("speaker", &[]);
    let error = TaskData::load(&speaker, &stories.base().unwrap()).unwrap_err();
    assert!(matches!(&error, Error::Train(TrainError::Base { .. })), "{error}");
    assert!(error.to_string().contains("a base that reads features, found stories260K"), "{error}");
}

#[test]
fn a_data_set_with_one_class_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["train.tsv", "valid.tsv"] {
        let lines = "intent\ttext\tslots\nPlayMusic\tplay it\t\nPlayMusic\tplay it again\t\n";
        std::fs::write(folder.path().join(file), lines).unwrap();
    }
    let config = config("intent", &[("data", folder.path().to_str().unwrap())]);
    let error = TaskData::load(&config, &image(&config).base().unwrap()).unwrap_err();
    assert!(matches!(&error, Error::OneClass { class, .. } if class == "PlayMusic"), "{error}");
}
