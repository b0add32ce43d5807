//! Tests of the configuration: what it reads, and what it says about what it does not.

use std::path::{Path, PathBuf};

use rankpatch_format::adapter::Pooling;

use crate::Error;
use crate::train::{DatasetKind, DeviceKind, Length, TrainConfig, TrainError};

const MINIMAL: &str = "task = \"t\"\nbase = \"bases/b\"\ndataset = \"names\"\ndata = \"/data/names.txt\"\n";

fn parse(more: &str, overrides: &[(&str, &str)]) -> Result<TrainConfig, Error> {
    let overrides: Vec<_> =
        overrides.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    TrainConfig::parse(&format!("{MINIMAL}{more}"), "t.toml", Path::new("tasks"), &overrides)
}

fn message(more: &str, overrides: &[(&str, &str)]) -> String {
    parse(more, overrides).unwrap_err().to_string()
}

#[test]
fn a_file_sets_what_it_says_and_leaves_the_rest() {
    let config = parse(
        "rank = 4\nlora_alpha = 16\ntarget_modules = [\"q\", \"v\"]\nuse_rslora = true\nsteps = 7\nlr = 1e-3\n\
         [rank_pattern]\n\"layers.0.*\" = 2\n",
        &[],
    )
    .unwrap();
    assert_eq!(
        (config.base, config.data),
        (PathBuf::from("tasks/bases/b"), PathBuf::from("/data/names.txt"))
    );
    assert_eq!((config.lora.rank, config.lora.alpha, config.lora.use_rslora), (4, 16.0, true));
    assert_eq!(config.lora.target_modules, ["q", "v"]);
    assert_eq!(config.lora.rank_pattern["layers.0.*"], 2);
    assert_eq!((config.length, config.learning_rate), (Length::Steps(7), 1e-3));
    assert_eq!(config.batch_size, TrainConfig::default().batch_size);
    assert!(config.lora.modules_to_save.is_empty());
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    let refused = |more: &str, overrides: &[(&str, &str)], expected: &str| {
        let found = message(more, overrides);
        assert!(found.contains(expected), "expected {expected:?}, found {found:?}");
    };
    refused(
        "init = \"pissa\"\ndropout = 0.1\n",
        &[],
        "dropout: expected 0 with init_lora_weights = \"pissa\" (it would drop parts of the base), found 0.1",
    );
    refused("explained_variance = 0\n", &[], "explained_variance: expected a number above 0, at most 1");
    refused("packing = true\n", &[], "packing: expected max_length, the size of a window, with it");
    refused(
        "packing = true\nmax_length = 9\n",
        &[("dataset", "intents")],
        "packing: expected false (classes",
    );
    refused(
        "early_stopping_patience = 2\n",
        &[],
        "early_stopping_patience: expected eval_steps above 0 with it",
    );
    refused(
        "test_fraction = 1.0\n",
        &[],
        "test_fraction: expected a number above 0 and below 1, found float 1.0",
    );
    refused(
        "bias = \"some\"\n",
        &[],
        "bias: expected \"none\", \"lora_only\" or \"all\", found string \"some\"",
    );
    refused("init_lora_weights = \"olora\"\n", &[], "init_lora_weights: expected true (PEFT's kaiming)");
    refused("optim = \"sgd\"\n", &[], "optim: expected \"adamw\"");
    refused("device = \"cuda:x\"\n", &[], "device: expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\"");
    refused("modules_to_save = [\"head\"]\n", &[], "modules_to_save: expected [] (the task has no head)");
    let config = parse("device = \"cuda:2\"\n", &[("dataset", "jsonl"), ("test-data", "t.jsonl")]).unwrap();
    assert_eq!((config.device, config.test_data), (DeviceKind::Cuda(2), Some(PathBuf::from("t.jsonl"))));
    let config = parse("test_data = \"t.txt\"\ngradient_accumulation_steps = 3\n", &[]).unwrap();
    assert_eq!((config.effective_batch(), config.test_data), (96, Some(PathBuf::from("tasks/t.txt"))));
}

#[test]
fn overrides_win_and_may_be_written_with_hyphens() {
    let config = parse(
        "steps = 7\nrank = 4\n",
        &[
            ("target-modules", "attn.q, attn.v"),
            ("r", "2"),
            ("epochs", "2.5"),
            ("task", "7"),
            ("base", "here"),
            ("device", "cpu"),
            ("use-rslora", "true"),
            ("max_grad_norm", "0"),
            ("rank_pattern", "{ q = 3 }"),
        ],
    )
    .unwrap();
    assert_eq!(config.lora.target_modules, ["attn.q", "attn.v"]);
    assert_eq!((config.lora.rank, config.length), (2, Length::Epochs(2.5)));
    assert_eq!((config.task.as_str(), config.base), ("7", PathBuf::from("here")));
    assert_eq!((config.device, config.lora.use_rslora), (DeviceKind::Cpu, true));
    assert_eq!(config.optimizer.max_grad_norm, None);
    assert_eq!(config.lora.rank_pattern["q"], 3);
}

#[test]
fn a_task_with_classes_saves_its_head() {
    let config = parse("", &[("dataset", "intents"), ("pooling", "last")]).unwrap();
    assert_eq!((config.dataset, config.pooling), (DatasetKind::Intents, Pooling::Last));
    assert_eq!(config.lora.modules_to_save, ["head"]);
    let error = message("", &[("modules_to_save", "head")]);
    assert!(
        error.contains("modules_to_save: expected [] (the task has no head), found [\"head\"]"),
        "{error}"
    );
    let error = message("modules_to_save = [\"lm_head\"]", &[]);
    assert!(
        error.contains("modules_to_save: expected [\"head\"] or [], found array [\"lm_head\"]"),
        "{error}"
    );
}

#[test]
fn slots_have_an_answer_for_each_word_and_nothing_else_has() {
    let config = parse("", &[("dataset", "slots")]).unwrap();
    assert_eq!((config.dataset, config.pooling), (DatasetKind::Slots, Pooling::Reread));
    assert_eq!(config.lora.modules_to_save, ["head"]);
    assert_eq!(parse("", &[("dataset", "slots"), ("pooling", "every")]).unwrap().pooling, Pooling::Every);
    let error = message("", &[("dataset", "slots"), ("pooling", "mean")]);
    assert!(error.contains("pooling: expected \"every\" or \"reread\" with dataset = \"slots\""), "{error}");
    let error = message("", &[("dataset", "intents"), ("pooling", "reread")]);
    assert!(
        error.ends_with("pooling: expected \"mean\" or \"last\" (a sequence has one answer), found reread"),
        "{error}"
    );
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest() {
    for (key, nearest) in
        [("lora_alhpa", "lora_alpha"), ("target_module", "target_modules"), ("batchsize", "batch_size")]
    {
        let error = message(&format!("{key} = 1\n"), &[]);
        assert!(error.contains(&format!("unknown key {key:?} in t.toml: expected {nearest}")), "{error}");
    }
    let error = message("", &[("learning-rat", "1")]);
    assert!(error.contains("\"learning_rat\" in the command line: expected learning_rate"), "{error}");
    let error = message("zzzzzzzzzzzz = 1", &[]);
    assert!(error.contains("expected one of task, base, dataset"), "{error}");
}

#[test]
fn wrong_types_and_ranges_name_key_expected_and_found() {
    for (line, expected) in [
        ("rank = 0", "rank: expected a whole number, 1 or more, found integer 0"),
        ("rank = \"8\"", "rank: expected a whole number, 1 or more, found string \"8\""),
        ("alpha = -1.0", "alpha: expected a number above 0, found float -1.0"),
        ("alpha = nan", "alpha: expected a number above 0, found float nan"),
        ("dropout = 1", "dropout: expected a number from 0 to below 1, found integer 1"),
        ("use_rslora = 1", "use_rslora: expected true or false, found integer 1"),
        (
            "target_modules = [1]",
            "target_modules: expected a list of names, globs or regular expressions of sites, or \"all-linear\", found array [1]",
        ),
        ("target_modules = \"attn.(q\"", "target_modules: expected a list of names, globs"),
        ("exclude_modules = [\"+\"]", "exclude_modules: expected a list of names, globs"),
        (
            "lr_scheduler_type = \"sawtooth\"",
            "expected \"constant\", \"linear\" or \"cosine\", found string \"sawtooth\"",
        ),
        ("quantization_aware = 1.5", "quantization_aware: expected a number from 0 to 1, found float 1.5"),
        ("sequence = 4294967296", "sequence: expected a whole number from 0 to 4294967295"),
        (
            "rank_pattern = { q = 0 }",
            "rank_pattern: expected a table from patterns of sites to ranks of 1 or more",
        ),
    ] {
        let error = message(line, &[]);
        assert!(error.contains(expected), "{line}: {error}");
    }
    let error = message("", &[("batch_size", "many")]);
    assert_eq!(error, "batch_size: expected a whole number, 1 or more, found \"many\"");
}

#[test]
fn what_is_missing_or_twice_there_is_named() {
    let error = TrainConfig::parse("task = \"t\"", "t.toml", Path::new(""), &[]).unwrap_err().to_string();
    assert_eq!(error, "t.toml does not set base: expected a path");
    assert!(message("r = 1\nrank = 1", &[]).contains("sets rank twice: expected either rank or r"));
    assert!(
        message("steps = 1\nepochs = 1", &[]).contains("sets steps twice: expected either steps or epochs")
    );
    let both = message("", &[("steps", "1"), ("epochs", "1")]);
    assert!(both.contains("the command line sets steps twice: expected either steps or epochs"), "{both}");
    assert_eq!(parse("steps = 9", &[("epochs", "2")]).unwrap().length, Length::Epochs(2.0));
    for name in ["../t", "a/b", "a\\b", "..", ".t", "a\nb"] {
        let found = message("", &[("task", name)]);
        assert!(found.contains("task: expected a name of 1 to 32 bytes that a file can have"), "{found}");
    }
    let error = parse("rank == 1", &[]).unwrap_err();
    assert!(matches!(error, Error::Train(TrainError::Toml { .. })), "{error}");
    let error = TrainConfig::load(Path::new("no/such/task.toml"), &[]).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn steps_come_from_epochs_and_the_last_part_is_quantized() {
    let config = parse("epochs = 1.5\nbatch_size = 32\nquantization_aware = 0.25\n", &[]).unwrap();
    assert_eq!(config.steps(640), 30);
    assert_eq!(config.first_quantized_step(30), 22);
    assert_eq!(config.steps(1), 1);
    assert_eq!(parse("quantization_aware = 0", &[]).unwrap().first_quantized_step(10), 10);
    assert_eq!(parse("quantization_aware = 1", &[]).unwrap().first_quantized_step(10), 0);
}
