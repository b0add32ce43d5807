//! A tiny decoder and a tiny encoder from scratch: their loss falls, a run repeats itself and resumes to the byte, and what comes
//! out is imported and runs on the device's code.

use std::path::Path;

use rankpatch_format::layout::Layout;
use rankpatch_format::write::Network;
use safetensors::tensor::{Dtype, TensorView};

use super::{PretrainConfig, prepare};
use crate::base::Image;
use crate::executor::Model;
use crate::rng::Rng;
use crate::sim::Simulator;
use crate::train::{Event, Example, FullyTrained, Reporter, Sequence, Trainer, evaluate_float};
use crate::{Result, files, import};

/// Bits per character of the base that is carried, on the requests that are held out, cut to its context.
const CARRIED: f64 = 1.687;

const DECODER: &str = "name = \"tiny\"\ndataset = \"text\"\ndata = \"texts.txt\"\nbatch_size = 16\nsteps = 60\nlearning_rate = 1e-2\n\
    warmup_steps = 5\nseed = 3\ndevice = \"cpu\"\n[model]\nkind = \"decoder\"\nvocab_size = 270\ndim = 24\nhidden_dim = 40\nn_layers = 2\n\
    n_heads = 3\nn_kv_heads = 1\ncontext = 20\n";

const ENCODER: &str = "name = \"ears\"\ndataset = \"features\"\ndata = \"clips.safetensors\"\nbatch_size = 16\nsteps = 60\n\
    learning_rate = 1e-2\nwarmup_steps = 5\nseed = 3\ndevice = \"cpu\"\n[model]\nkind = \"encoder\"\ndim = 24\nhidden_dim = 40\nn_layers = 2\n\
    n_heads = 3\ninit_std = 0.05\n";

/// Sentences of a small grammar.
fn texts() -> String {
    let mut rng = Rng::new(2, "sentences");
    let mut pick = |words: &[&'static str]| words[rng.below(words.len() as u64) as usize];
    let sentence = |_| {
        format!(
            "{} the {} {}\n",
            pick(&["switch", "turn", "put"]),
            pick(&["light", "heater", "radio"]),
            pick(&["on", "off"])
        )
    };
    (0..120).map(sentence).collect()
}

/// Clips of seven rows of five numbers, of which the first is large: the class is the half in which the third column is high.
fn clips(path: &Path) {
    let mut rng = Rng::new(4, "clips");
    let (mut features, mut labels) = (Vec::new(), Vec::new());
    for clip in 0..96 {
        let class = clip % 2;
        for row in 0..7 {
            for column in 0..5 {
                let high = column == 2 && (row < 3) == (class == 0);
                let value = rng.normal() * 0.4 + if high { 1.5 } else { 0.0 };
                features.push(if column == 0 { 200.0 + value } else { value });
            }
        }
        labels.extend((class as i64).to_le_bytes());
    }
    let features = files::f32_bytes(&features);
    let tensors = [
        ("features", TensorView::new(Dtype::F32, vec![96, 7, 5], &features).unwrap()),
        ("labels", TensorView::new(Dtype::I64, vec![96], &labels).unwrap()),
    ];
    let names =
        std::collections::HashMap::from([("label_names".to_owned(), "[\"early\", \"late\"]".to_owned())]);
    std::fs::write(path, safetensors::serialize(tensors, Some(names)).unwrap()).unwrap();
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("texts.txt"), texts()).unwrap();
    clips(&folder.path().join("clips.safetensors"));
    folder
}

#[derive(Default)]
struct Losses(Vec<f64>);

impl Reporter for Losses {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Step { loss, .. } = event {
            self.0.push(*loss);
        }
    }
}

fn config(text: &str, folder: &Path, overrides: &[(&str, &str)]) -> Result<PretrainConfig> {
    let overrides: Vec<(String, String)> =
        overrides.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    PretrainConfig::parse(text, "base.toml", folder, &overrides)
}

/// The files of a run, and its losses.
fn run(text: &str, folder: &Path, checkpoint: Option<&Path>, resume: bool) -> (Vec<Vec<u8>>, Vec<f64>) {
    let config = config(text, folder, &[("save_steps", "40")]).unwrap();
    let (network, data) = prepare(&config).unwrap();
    let mut trainer = Trainer::new(config.train, &network, data).unwrap();
    if resume {
        trainer.resume(checkpoint.unwrap()).unwrap();
        assert_eq!(trainer.step(), 40);
    }
    let mut losses = Losses::default();
    trainer.run(&mut losses, checkpoint).unwrap();
    let trained = FullyTrained::of(trainer.learner(), trainer.model(), &network).unwrap();
    assert!(trained.head.is_none());
    let contents = import::network::contents(&trained.network, None, &folder.join("out")).unwrap();
    for (path, bytes) in &contents {
        files::write_atomically(path, bytes).unwrap();
    }
    // Read again it is the same, measures the same in float, and runs on the device's code.
    let read = import::load(&folder.join("out")).unwrap();
    assert_eq!(read, trained.network);
    let test = &trainer.data().test;
    let float = evaluate_float(trainer.model(), Some(&trainer.adapter().unwrap()), test).unwrap();
    let device = Simulator::new(Image::build(&read, Layout::Dsp4x4, 4).unwrap()).unwrap();
    let found = device.evaluate(test).unwrap();
    assert_eq!(found.name, float.name);
    assert!((found.value / float.value - 1.0).abs() < 0.1, "{found:?} {float:?}");
    (contents.into_iter().map(|(_, bytes)| bytes).collect(), losses.0)
}

fn learns_repeats_and_resumes(text: &str, falls_to: f64) {
    let folder = folder();
    let checkpoint = folder.path().join("checkpoint.safetensors");
    let (first, losses) = run(text, folder.path(), Some(&checkpoint), false);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (before, after) = (mean(&losses[..3]), mean(&losses[50..]));
    assert!(after < falls_to * before, "the loss went from {before} to {after}");
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert!(first == one.install(|| run(text, folder.path(), None, false)).0, "a run repeats itself");
    assert!(
        first == run(text, folder.path(), Some(&checkpoint), true).0,
        "a resumed run gives the same bytes"
    );
}

/// From ln 270 = 5.6 nats to less than a third: what is left are the choices of words.
#[test]
fn a_decoder_learns_to_write() {
    learns_repeats_and_resumes(DECODER, 0.33);
}

/// From ln 2 to less than half of it.
#[test]
fn an_encoder_learns_to_tell_classes() {
    learns_repeats_and_resumes(ENCODER, 0.5);
}

#[test]
fn the_vocabulary_is_learned_from_the_training_texts() {
    let folder = folder();
    let (network, data) = prepare(&config(DECODER, folder.path(), &[]).unwrap()).unwrap();
    let vocabulary = network.vocabulary.as_ref().unwrap();
    let pieces: Vec<String> = vocabulary.pieces[259..]
        .iter()
        .map(|(piece, _)| String::from_utf8_lossy(piece).into_owned())
        .collect();
    assert_eq!(pieces.len(), 11);
    assert!(pieces.contains(&" the".to_owned()), "{pieces:?}");
    assert!(
        pieces.iter().all(|piece| !piece.trim_start().contains(' ')),
        "no piece crosses words: {pieces:?}"
    );
    // The same texts on a base that takes this tokenizer from a file.
    let mut file = 0i32.to_le_bytes().to_vec();
    for (id, (piece, score)) in vocabulary.pieces.iter().enumerate() {
        let spelled =
            if (3..259).contains(&id) { format!("<0x{:02X}>", id - 3).into_bytes() } else { piece.clone() };
        file.extend(score.to_le_bytes());
        file.extend((spelled.len() as i32).to_le_bytes());
        file.extend(spelled);
    }
    std::fs::write(folder.path().join("tok.bin"), file).unwrap();
    let given = config(&format!("{DECODER}tokenizer = \"tok.bin\"\n"), folder.path(), &[]).unwrap();
    let (again, same) = prepare(&given).unwrap();
    assert_eq!(again.vocabulary.as_ref().unwrap(), vocabulary);
    assert_eq!(same, data);
}

#[test]
fn spellings_leave_merges_out() {
    let folder = folder();
    let (network, data) = prepare(&config(DECODER, folder.path(), &[]).unwrap()).unwrap();
    let with = |dropout: &str| {
        let text = format!("{DECODER}merge_dropout = {dropout}\n");
        prepare(&config(&text, folder.path(), &[]).unwrap()).unwrap().1
    };
    // Without dropout it is the device's own spelling, once more; with all of it every byte is a token.
    let plain = with("[0.0]");
    let count = data.train.len();
    assert_eq!(plain.train.len(), 2 * count);
    let sequences = |examples: &[Example]| -> Vec<Sequence> {
        examples.iter().map(|example| example.sequence.clone()).collect()
    };
    assert_eq!(sequences(&plain.train[..count]), sequences(&plain.train[count..]));
    let some = with("[0.3, 1.0]");
    let length = |part: &[Example]| part.iter().map(|example| example.rows(0)).sum::<usize>();
    let lengths: Vec<usize> = some.train.chunks(count).map(length).collect();
    assert!(lengths[0] < lengths[1] && lengths[1] < lengths[2], "{lengths:?}");
    for example in &some.train[2 * count..] {
        let Sequence::Tokens(ids) = &example.sequence else { panic!("tokens") };
        assert!(ids[1..ids.len() - 1].iter().all(|id| *id < 259), "{ids:?}");
    }
    assert_eq!(some.test, data.test);
    assert!(network.vocabulary.is_some());
}

/// The configuration beside requests33k is of that base's shape and data: it starts where that base did, and the base that is
/// carried has this loss on what is held out.
#[test]
fn the_configuration_of_requests33k_is_that_of_the_carried_base() {
    let folder = crate::data::test_data::carried("bases/requests33k");
    let config = PretrainConfig::load(&folder.join("pretrain.toml"), &[]).unwrap();
    let (network, data) = prepare(&config).unwrap();
    let carried = import::load(&folder.join("requests33k.bin")).unwrap();
    assert_eq!((&network.ops, network.max_rows), (&carried.ops, carried.max_rows));
    assert_eq!(network.vocabulary, carried.vocabulary);
    assert_eq!((data.train.len(), data.test.len()), (4 * 13_784, 700));
    let measured = |network: &Network| {
        let model = Model::new(network, &candle_core::Device::Cpu).unwrap();
        evaluate_float(&model, None, &data.test).unwrap().value
    };
    let (carried, start) = (measured(&carried), measured(&network));
    assert!((carried - CARRIED).abs() < 3e-3, "bits per character of the carried base: {carried}");
    assert!(start > 3.0 * carried, "before training: {start}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = folder();
    let refused = |text: &str, expected: &str| {
        let config = config(text, folder.path(), &[]);
        let error = config.and_then(|config| prepare(&config)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "expected {expected:?}, found {error:?}");
    };
    refused(&format!("rank = 4\n{DECODER}"), "unknown key \"rank\"");
    refused(&format!("method = \"lora\"\n{DECODER}"), "unknown key \"method\"");
    refused(&format!("task = \"x\"\n{DECODER}"), "sets task twice");
    refused(DECODER.split("[model]").next().unwrap(), "does not set model");
    refused(&DECODER.replace("kind = \"decoder\"", "kind = \"diffusion\""), "[model] of base.toml");
    refused(&format!("{DECODER}width = 3\n"), "width");
    refused(&DECODER.replace("n_heads = 3", "n_heads = 5"), "n_heads: expected a divisor of dim 24");
    refused(
        &DECODER.replace("n_kv_heads = 1", "n_kv_heads = 2"),
        "n_kv_heads: expected a divisor of n_heads 3",
    );
    refused(&DECODER.replace("vocab_size = 270", "vocab_size = 9"), "vocab_size: expected at least 259");
    refused(&DECODER.replace("vocab_size = 270", "vocab_size = 900"), "pairs that occur twice");
    refused(&format!("{DECODER}merge_dropout = [1.5]\n"), "merge_dropout: expected numbers from 0 to 1");
    refused(&DECODER.replace("dim = 24", "dim = 0"), "dim: expected 1 to 65535");
    refused(&format!("max_length = 30\n{DECODER}"), "max_length: expected at most 21");
    refused(&format!("{ENCODER}max_rows = 5\n"), "at most max_rows = 5 rows in an example, found 7");
    refused(
        &DECODER.replace("\"text\"", "\"features\""),
        "a data set of texts for a decoder, found features",
    );
    refused(&ENCODER.replace("\"features\"", "\"text\""), "a base that reads text");
}
