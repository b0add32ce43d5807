//! Every key of the configuration is documented, and does something: a run, its data or what it reports is another with it.

use std::collections::BTreeMap;
use std::path::Path;

use super::tiny::{biased, classes, texts};
use crate::base::Image;
use crate::data::recordings;
use crate::data::test_data::carried;
use crate::export::export;
use crate::train::{Event, Reporter, TaskData, TrainConfig, Trainer};

/// What a value changes.
enum Changes {
    /// What a run on texts exports.
    Texts,
    /// What a run on classes exports.
    Classes,
    /// What a run with a rate at which it soon gets worse exports.
    Worse,
    /// The examples that are read.
    Data,
    /// The recordings that are read.
    Recordings,
    /// What a run reports.
    Events,
    /// Whether checkpoints are written.
    Checkpoints,
    /// It is refused for classes, with these words.
    RefusedOnClasses(&'static str),
    /// It is refused, with these words.
    Refused(&'static str),
}

/// Each key with a value that is not the one of the run it is compared with.
const CASES: &[(&str, &str, Changes)] = &[
    ("task", "another", Changes::Texts),
    ("base", "nowhere", Changes::Refused("nowhere")),
    ("dataset", "text", Changes::Data),
    ("data", "other.jsonl", Changes::Data),
    ("test_data", "other.jsonl", Changes::Data),
    ("test_fraction", "0.5", Changes::Data),
    ("split_seed", "5", Changes::Data),
    ("packing", "true", Changes::Data),
    ("max_length", "4", Changes::Data),
    ("tokenizer", "nowhere.json", Changes::Refused("expected a base without tokenizer")),
    (
        "recordings",
        "{ label = 'digit', sample_rate = 8000, where = { speaker = ['theo'] } }",
        Changes::Recordings,
    ),
    ("output_labels", "['a']", Changes::RefusedOnClasses("output_labels: expected")),
    ("pooling", "last", Changes::Classes),
    ("method", "full", Changes::Texts),
    ("rank", "2", Changes::Texts),
    ("alpha", "5", Changes::Texts),
    ("dropout", "0.3", Changes::Texts),
    ("target_modules", "attn.q, *.ffn.*", Changes::Texts),
    ("exclude_modules", "attn.k", Changes::Texts),
    ("use_rslora", "true", Changes::Texts),
    ("rank_pattern", "{ \"attn.q\" = 2 }", Changes::Texts),
    ("alpha_pattern", "{ up = 2.5 }", Changes::Texts),
    ("bias", "lora_only", Changes::Texts),
    ("init_lora_weights", "gaussian", Changes::Texts),
    ("modules_to_save", "[\"head\"]", Changes::Refused("modules_to_save: expected []")),
    ("batch_size", "7", Changes::Texts),
    ("gradient_accumulation_steps", "2", Changes::Texts),
    ("steps", "9", Changes::Texts),
    ("epochs", "1.5", Changes::Texts),
    ("learning_rate", "0.01", Changes::Texts),
    ("loraplus_lr_ratio", "4", Changes::Texts),
    ("head_lr_ratio", "4", Changes::Classes),
    ("warmup_steps", "1", Changes::Texts),
    ("lr_scheduler_type", "cosine", Changes::Texts),
    ("min_lr_ratio", "0.5", Changes::Texts),
    ("optim", "sgd", Changes::Refused("optim: expected \"adamw\"")),
    ("beta1", "0.5", Changes::Texts),
    ("beta2", "0.9", Changes::Texts),
    ("eps", "0.01", Changes::Texts),
    ("weight_decay", "0.5", Changes::Texts),
    ("max_grad_norm", "0.1", Changes::Texts),
    ("seed", "10", Changes::Texts),
    ("eval_steps", "4", Changes::Events),
    ("early_stopping_patience", "2", Changes::Worse),
    ("save_steps", "5", Changes::Checkpoints),
    ("quantization_aware", "0.5", Changes::Texts),
    ("explained_variance", "0.5", Changes::Texts),
    ("bf16", "true", Changes::Refused("bf16: expected false on the CPU")),
    ("device", "cuda:63", Changes::Refused("cuda:63")),
    ("sequence", "7", Changes::Texts),
];

/// The run that all are compared with.
const TASK: &str = "task = \"t\"\nbase = \"b\"\ndata = \"own.jsonl\"\nrank = 3\nalpha = 6\ndropout = 0.1\nbatch_size = 16\nsteps = 12\n\
                    lr = 0.02\nwarmup_steps = 3\nseed = 9\ndevice = \"cpu\"\nquantization_aware = 0.2\n";

fn parse(folder: &Path, dataset: &str, rest: &[(&str, &str)]) -> crate::Result<TrainConfig> {
    let overrides: Vec<_> =
        rest.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    TrainConfig::parse(&format!("{TASK}dataset = \"{dataset}\"\n"), "t.toml", folder, &overrides)
}

#[derive(Default)]
struct Evaluations(usize);

impl Reporter for Evaluations {
    fn event(&mut self, event: &Event<'_>) {
        self.0 += usize::from(matches!(event, Event::Evaluated { .. }));
    }
}

/// What a run gives: its file and factors, how often it measured, and whether it wrote a checkpoint.
fn ran(config: TrainConfig, data: TaskData, folder: &Path) -> crate::Result<(Vec<u8>, String, usize, bool)> {
    let path = folder.join("checkpoint");
    let _ = std::fs::remove_file(&path);
    let sequence = config.sequence;
    let mut trainer = Trainer::new(config, &biased(), data)?;
    let mut evaluations = Evaluations::default();
    trainer.run(&mut evaluations, Some(&path))?;
    let adapter = trainer.adapter()?;
    let file = export(&adapter, &biased(), sequence, |_| Ok(7))?.file;
    // Codes may hide a small change of the factors that they stand for.
    let factors = format!("{:?} {:?}", adapter.sites, adapter.head);
    Ok((file, factors, evaluations.0, path.exists()))
}

#[test]
fn every_key_changes_what_it_says() {
    let known: Vec<&str> = TrainConfig::keys().map(|(name, _)| name).collect();
    let listed: Vec<&str> = CASES.iter().map(|(name, ..)| *name).collect();
    assert_eq!(listed, known, "a new key needs a case here");

    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let lines = |texts: [&str; 3]| -> String {
        let lines = (0..20).map(|at| format!("{{\"text\": \"{}{}\"}}", texts[at % 3], at % 7));
        lines.collect::<Vec<_>>().join("\n")
    };
    std::fs::write(folder.join("own.jsonl"), lines(["abcabc", "cab", "b"])).unwrap();
    std::fs::write(folder.join("other.jsonl"), lines(["a", "b", "cc"])).unwrap();
    let image =
        Image::build(&rankpatch_format::fixture::decoder(), rankpatch_format::layout::Layout::RowMajor, 1)
            .unwrap();
    let data = |rest: &[(&str, &str)]| TaskData::load(&parse(folder, "jsonl", rest)?, &image.base()?);
    let on_texts = |rest: &[(&str, &str)]| ran(parse(folder, "names", rest)?, texts(), folder);
    let on_classes = |rest: &[(&str, &str)]| ran(parse(folder, "intents", rest)?, classes(), folder);
    let worse = |rest: &[(&str, &str)]| {
        let bad = [("learning_rate", "0.5"), ("eval_steps", "2"), ("steps", "60")];
        on_texts(&[&bad[..], rest].concat())
    };

    let plain = (on_texts(&[]).unwrap(), on_classes(&[]).unwrap(), worse(&[]).unwrap(), data(&[]).unwrap());
    assert_eq!(on_texts(&[]).unwrap(), plain.0, "a run repeats itself");
    for (key, value, changes) in CASES {
        let set = &[(*key, *value)][..];
        match changes {
            Changes::Texts => {
                let (file, factors, ..) = on_texts(set).unwrap();
                assert!(file != plain.0.0 || factors != plain.0.1, "{key} changes nothing");
            }
            Changes::Classes => {
                let (file, factors, ..) = on_classes(set).unwrap();
                assert!(file != plain.1.0 || factors != plain.1.1, "{key} changes nothing");
            }
            Changes::Worse => {
                let found = worse(set).unwrap();
                assert!(found.1 != plain.2.1 && found.2 < plain.2.2, "{key} changes nothing");
            }
            Changes::Data => {
                // Paths of the command line are relative to the current folder.
                let path = folder.join(value).display().to_string();
                let mut set = vec![(*key, if *value == "other.jsonl" { path.as_str() } else { value })];
                if *key == "packing" {
                    set.push(("max_length", "9"));
                }
                let found = data(&set).unwrap();
                assert!(found != plain.3, "{key} changes nothing");
            }
            Changes::Recordings => {
                let options = parse(folder, "recordings", set).unwrap().recordings;
                let found = recordings::load(&carried("fsdd"), None, &options, (0.5, 0)).unwrap();
                assert_eq!((found.labels.len(), found.split.test.len()), (10, 50), "{key}");
            }
            Changes::RefusedOnClasses(expected) => {
                let found = on_classes(set).unwrap_err().to_string();
                assert!(found.contains(expected), "{key}: {found}");
            }
            Changes::Events => assert_eq!((plain.0.2, on_texts(set).unwrap().2), (1, 3), "{key}"),
            Changes::Checkpoints => assert_eq!((plain.0.3, on_texts(set).unwrap().3), (false, true), "{key}"),
            Changes::Refused(expected) => {
                let found = match *key {
                    "tokenizer" => data(set).map(|_| ()),
                    "base" => crate::import::load(&parse(folder, "names", set).unwrap().base).map(|_| ()),
                    _ => on_texts(set).map(|_| ()),
                };
                let found = found.unwrap_err().to_string();
                assert!(found.contains(expected), "{key}: {found}");
            }
        }
    }
}

/// `CONFIG.md` has a row for every key, with its other name, its values and its default.
#[test]
fn every_key_is_documented() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("CONFIG.md")).unwrap();
    let mut rows: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (key, rest) in text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')) {
        rows.entry(key).or_insert_with(|| rest.split('|').skip(1).map(str::trim).collect());
    }
    for (key, expected) in TrainConfig::keys() {
        let row = rows.get(key).unwrap_or_else(|| panic!("CONFIG.md has no row for {key}"));
        let alias = TrainConfig::aliases().find(|(name, _)| *name == key).map_or("", |(_, alias)| alias);
        assert_eq!(row[0].trim_matches('`'), alias, "other name of {key}");
        assert_eq!(row[1], expected, "values of {key}");
        // A default that is given is the one that is taken.
        let Some(default) = row[2].strip_prefix('`') else { continue };
        let text = format!(
            "task = \"t\"\nbase = \"b\"\ndataset = \"names\"\ndata = \"d\"\n{key} = {}\n",
            default.trim_end_matches('`')
        );
        let parse = |text: &str| TrainConfig::parse(text, "t.toml", Path::new(""), &[]).unwrap();
        let without = text.lines().take(4).collect::<Vec<_>>().join("\n");
        assert_eq!(parse(&text), parse(&without), "default of {key}");
    }
}
