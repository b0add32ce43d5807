//! Golden values of the published models, and what the importers refuse.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use rankpatch_format::graph::Op;
use rankpatch_format::layout::Layout;
use safetensors::SafeTensors;

use super::{load, load_without_front_end};
use crate::Error;
use crate::base::{Image, quantize};
use crate::data::audio;
use crate::data::test_data::{carried, shared};
use crate::data::text;
use crate::executor::{Batch, Model};
use crate::features::mfcc::{CLIP_SAMPLES, COEFFICIENTS};
use crate::features::{Mfcc, rows};
use crate::sim::{Input, Simulator};

/// Bound on the difference to a golden logit, as the issue asks.
const LOGIT_BOUND: f32 = 1e-3;

fn golden() -> serde_json::Value {
    serde_json::from_slice(&fs::read(carried("bases/stories260k/golden.json")).unwrap()).unwrap()
}

fn ids(value: &serde_json::Value) -> Vec<u16> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u16).collect()
}

fn floats(value: &serde_json::Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn run(model: &Model, batch: &Batch) -> Vec<Vec<f32>> {
    model.forward(batch, &BTreeMap::new(), None).unwrap().to_vec2().unwrap()
}

fn argmax(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

/// Mean nats per token over all tokens of the sample, and the mean of each story.
fn nats_per_token(model: &Model, base: &rankpatch_format::base::Base<'_>) -> (f64, Vec<f64>) {
    let stories = text::stories(&carried("tinystories-sample/stories.txt")).unwrap();
    let (mut total, mut count, mut means) = (0.0, 0, Vec::new());
    for story in stories {
        let mut tokens = text::encode(base, &story).unwrap();
        tokens.truncate(512);
        let logits = run(model, &Batch::tokens(&[&tokens]));
        let nats: f64 = logits.iter().zip(&tokens[1..]).map(|(row, next)| cross_entropy(row, *next)).sum();
        total += nats;
        count += tokens.len() - 1;
        means.push(nats / (tokens.len() - 1) as f64);
    }
    (total / f64::from(u32::try_from(count).unwrap()), means)
}

fn cross_entropy(logits: &[f32], target: u16) -> f64 {
    let largest = f64::from(logits[argmax(logits)]);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    sum.ln() + largest - f64::from(logits[usize::from(target)])
}

#[test]
fn stories260k_reproduces_its_golden_values() {
    let network = load(&carried("bases/stories260k")).unwrap();
    assert_eq!((network.name.as_str(), network.max_rows), ("stories260K", 512));
    assert_eq!(network.site_names.len(), 36);
    assert_eq!(network.site_names[..3], ["layers.0.attn.q", "layers.0.attn.k", "layers.0.attn.v"]);
    assert_eq!(network.site_names[35], "lm_head");
    let model = Model::new(&network, &Device::Cpu).unwrap();
    let golden = golden();

    let after_bos = run(&model, &Batch::tokens(&[[1u16]]));
    for (id, (found, expected)) in after_bos[0].iter().zip(floats(&golden["logits_after_bos"])).enumerate() {
        assert!((found - expected).abs() < LOGIT_BOUND, "logit {id}: expected {expected}, found {found}");
    }

    let expected = ids(&golden["greedy"]["token_ids"]);
    let mut found = vec![1u16];
    while found.len() < expected.len() {
        let logits = run(&model, &Batch::tokens(&[&found]));
        found.push(argmax(logits.last().unwrap()) as u16);
    }
    assert_eq!(found, expected);
}

#[test]
fn stories260k_reads_the_sample_as_published() {
    let network = load(&carried("bases/stories260k")).unwrap();
    let image = Image::build(&network, Layout::RowMajor, 16).unwrap();
    let base = image.base().unwrap();
    let (mean, stories) = nats_per_token(&Model::new(&network, &Device::Cpu).unwrap(), &base);
    assert!((mean - 1.2236).abs() < 5e-4, "expected 1.2236 nats/token, found {mean}");
    let golden = golden()["tinystories_sample_nll"]["stories"].clone();
    let golden = golden.as_array().unwrap();
    assert_eq!(stories.len(), golden.len());
    for (story, (found, expected)) in stories.iter().zip(golden).enumerate() {
        let expected = expected["nll_per_token"].as_f64().unwrap();
        assert!((found - expected).abs() < 5e-4, "story {story}: expected {expected}, found {found}");
    }
    let quantized = quantize(&network).unwrap();
    let (rounded, _) = nats_per_token(&Model::new(&quantized, &Device::Cpu).unwrap(), &base);
    assert!(
        rounded - mean < 0.005,
        "int8 weights cost {} nats/token, expected at most 0.005",
        rounded - mean
    );
}

#[test]
fn stories260k_tokenizes_as_published() {
    let network = load(&carried("bases/stories260k")).unwrap();
    let vocabulary = network.vocabulary.as_ref().unwrap();
    assert_eq!(vocabulary.pieces[3 + 0x41].0, b"A");
    assert_eq!(vocabulary.searchable, (259..512).collect::<Vec<u16>>());
    let image = Image::build(&network, Layout::RowMajor, 16).unwrap();
    let base = image.base().unwrap();
    for example in golden()["tokenizer_examples"].as_array().unwrap() {
        let text = example["text"].as_str().unwrap();
        assert_eq!(text::encode(&base, text).unwrap(), ids(&example["ids"]), "{text:?}");
    }
    let greedy = golden()["greedy"].clone();
    let tokenizer = base.tokenizer().unwrap();
    let tokens = ids(&greedy["token_ids"]);
    let text: Vec<u8> =
        tokens.array_windows::<2>().flat_map(|[a, b]| tokenizer.decode(*a, *b).to_vec()).collect();
    assert!(greedy["text"].as_str().unwrap().starts_with(std::str::from_utf8(&text).unwrap()));
}

/// Features `[98, 40]` and golden logits of clips.
struct Clips {
    features: Vec<Vec<f32>>,
    logits: Vec<Vec<f32>>,
}

fn carried_clips() -> Clips {
    let bytes = fs::read(carried("kwt1-golden/clips.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let rows = |name: &str, width: usize| -> Vec<Vec<f32>> {
        let data = file.tensor(name).unwrap().data().as_chunks::<4>().0;
        let data: Vec<f32> = data.iter().map(|number| f32::from_le_bytes(*number)).collect();
        data.chunks_exact(width).map(<[f32]>::to_vec).collect()
    };
    Clips { features: rows("features", 98 * COEFFICIENTS), logits: rows("logits", 12) }
}

/// All 600 clips, features computed from the samples.
fn all_clips() -> Option<Clips> {
    let pcm = fs::read(shared("speech-commands-test/gsc_test600_16khz_i16le.pcm")?).unwrap();
    let golden = fs::read_to_string(carried("bases/kwt1/golden_logits_gsc600.tsv")).unwrap();
    let logits =
        golden.lines().skip(1).map(|line| line.split('\t').skip(2).map(|x| x.parse().unwrap()).collect());
    let samples: Vec<f32> =
        pcm.as_chunks::<2>().0.iter().map(|s| f32::from(i16::from_le_bytes(*s)) / 32_768.0).collect();
    let mfcc = Mfcc::new();
    let features = samples.chunks_exact(CLIP_SAMPLES).map(|clip| mfcc.compute(clip)).collect();
    Some(Clips { features, logits: logits.collect() })
}

/// The largest difference to a golden logit, and how many clips have another argmax.
fn compare(model: &Model, clips: &Clips) -> (f32, usize) {
    assert_eq!(clips.features.len(), clips.logits.len());
    let (mut largest, mut flips) = (0.0f32, 0);
    for (features, golden) in clips.features.chunks(60).zip(clips.logits.chunks(60)) {
        for (found, expected) in run(model, &Batch::features(features, COEFFICIENTS)).iter().zip(golden) {
            largest = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
            flips += usize::from(argmax(found) != argmax(expected));
        }
    }
    (largest, flips)
}

#[test]
fn kwt1_reproduces_its_golden_values() {
    let network = load(&carried("bases/kwt1")).unwrap();
    assert_eq!((network.name.as_str(), network.max_rows), ("kwt1", 98));
    assert_eq!(network.labels.len(), 12);
    assert_eq!(network.site_names.len(), 74);
    assert_eq!((network.site_names[0].as_str(), network.site_names[73].as_str()), ("embed.patch", "head"));
    assert_eq!(network.site_names[70], "layers.11.attn.o");
    let model = Model::new(&network, &Device::Cpu).unwrap();
    let rounded = Model::new(&quantize(&network).unwrap(), &Device::Cpu).unwrap();
    for (clips, count) in [(Some(carried_clips()), 120), (all_clips(), 600)] {
        let Some(clips) = clips else { continue };
        assert_eq!(clips.features.len(), count);
        let (largest, flips) = compare(&model, &clips);
        assert!(largest < LOGIT_BOUND, "{count} clips: a logit is off by {largest}");
        assert_eq!(flips, 0, "{count} clips: expected every argmax to be golden");
        let (_, flips) = compare(&rounded, &clips);
        assert!(
            100 * flips <= count,
            "{count} clips, int8 weights: {flips} other argmaxes, expected at most 1 %"
        );
    }
}

/// int8 weights and activations, computed by the device's code: at least 99 % of the argmaxes stay golden.
/// Measured on all 600 clips: 597, and logits 0.0141 apart (rms).
#[test]
fn kwt1_in_int8_agrees_with_its_golden_values() {
    let network = load(&carried("bases/kwt1")).unwrap();
    let simulator = Simulator::new(Image::build(&network, Layout::Dsp4x4, 98).unwrap()).unwrap();
    let clips = all_clips().unwrap_or_else(carried_clips);
    let inputs: Vec<Input<'_>> = clips.features.iter().map(|clip| Input::Features(clip)).collect();
    let found = simulator.outputs(&inputs).unwrap();
    let count = found.len();
    let flips = found.iter().zip(&clips.logits).filter(|(a, b)| argmax(a) != argmax(b)).count();
    let square =
        |(a, b): (&Vec<f32>, &Vec<f32>)| -> f32 { a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum() };
    let rms = (found.iter().zip(&clips.logits).map(square).sum::<f32>() / (12 * count) as f32).sqrt();
    assert!(100 * flips <= count, "{flips} of {count} argmaxes differ, expected at most 1 %");
    assert!(
        rms < 0.018,
        "expected a difference of at most 0.018 (without `input_scale` it is 0.02), found {rms}"
    );
}

/// What the operator makes of samples is what the formulas in f64 give within 1e-3, on the 600 clips, or without them on the carried one, and
/// the float network answers all of them as it should. In int8 the answers to both are the same, too, but where two outputs are as good as
/// equal: there the last bit of a feature turns codes of 8 bits over, which moves outputs by more than their distance.
#[test]
#[allow(clippy::print_stdout, reason = "the figures, shown with --nocapture")]
fn the_front_end_of_kwt1_makes_the_golden_features() {
    let network = load(&carried("bases/kwt1")).unwrap();
    let image = Image::build(&network, Layout::RowMajor, 98).unwrap();
    let simulator = Simulator::new(image).unwrap();
    let base = simulator.base().unwrap();
    let front_end = base.front_end().unwrap();
    assert_eq!((front_end.sample_rate, front_end.frame, front_end.hop), (16_000, 480, 160));
    assert_eq!((front_end.bands.len(), front_end.width()), (80, COEFFICIENTS));
    let all = shared("speech-commands-test/gsc_test600_16khz_i16le.pcm");
    let path = all.clone().unwrap_or_else(|| carried("kwt1-golden/yes.wav"));
    let samples = audio::samples(&path, 16_000).unwrap();
    let Clips { features, logits } = if all.is_some() {
        all_clips().unwrap()
    } else {
        let Clips { mut features, mut logits } = carried_clips();
        Clips { features: vec![features.swap_remove(23)], logits: vec![logits.swap_remove(23)] }
    };
    let clips: Vec<&[i16]> = samples.chunks_exact(CLIP_SAMPLES).collect();
    assert_eq!(clips.len(), features.len());
    let mut largest = 0.0_f32;
    let mut made = Clips { features: Vec::new(), logits };
    for (clip, expected) in clips.iter().zip(&features) {
        let found = rows(&front_end, clip);
        assert_eq!(found.len(), expected.len());
        largest = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
        made.features.push(found);
    }
    let (logit, flips) = compare(&Model::new(&network, &Device::Cpu).unwrap(), &made);
    println!(
        "{} clips in float: {flips} answers are not the golden ones, a logit is off by {logit:.1e}",
        clips.len()
    );
    assert_eq!(flips, 0, "expected the golden answer to every clip");
    println!("{} clips: a feature is off by {largest:.1e}", clips.len());
    assert!(largest < 1e-3, "expected features at most 1e-3 apart, found {largest}");
    let heard: Vec<Input<'_>> = clips.iter().map(|clip| Input::Samples(clip)).collect();
    let given: Vec<Input<'_>> = features.iter().map(|clip| Input::Features(clip)).collect();
    let [heard, given] = [heard, given].map(|inputs| simulator.outputs(&inputs).unwrap());
    let mut differ = 0;
    for (clip, (heard, given)) in heard.iter().zip(&given).enumerate() {
        if argmax(heard) != argmax(given) {
            differ += 1;
            let margin = given[argmax(given)] - given[argmax(heard)];
            println!("clip {clip}: another answer, which was {margin:.4} behind");
            assert!(margin < 0.02, "clip {clip}: the reference was sure by {margin}");
        }
    }
    println!("{} clips: {differ} other answers", clips.len());
    assert!(200 * differ <= clips.len(), "{differ} other answers, expected at most one of 200");
}

/// Without its front end a KWT is the network that it was, but for the first operator, and has another identity.
#[test]
fn a_front_end_can_be_left_out() {
    let (with, without) =
        (load(&carried("bases/kwt1")).unwrap(), load_without_front_end(&carried("bases/kwt1")).unwrap());
    assert_eq!(without.ops[0], Op::Features { width: 40 });
    assert!(matches!(with.ops[0], Op::Mfcc { sample_rate: 16_000, frame: 480, hop: 160, .. }));
    assert_eq!(with.ops[1..], without.ops[1..]);
    assert_eq!(with.tensors[..without.tensors.len()], without.tensors);
    assert_eq!(with.tensors.len(), without.tensors.len() + 4);
    assert_ne!(quantize(&with).unwrap().id(), quantize(&without).unwrap().id());
}

/// Padding and company change nothing: a short clip gives the same alone and in a batch with longer ones.
#[test]
fn kwt1_takes_clips_of_any_length() {
    let model = Model::new(&load(&carried("bases/kwt1")).unwrap(), &Device::Cpu).unwrap();
    let clips = carried_clips().features;
    let cut = [&clips[0][..], &clips[40][..50 * COEFFICIENTS], &clips[80][..COEFFICIENTS]];
    let together = run(&model, &Batch::features(&cut, COEFFICIENTS));
    for (clip, together) in cut.iter().zip(together) {
        let alone = run(&model, &Batch::features(&[clip], COEFFICIENTS));
        for (a, b) in alone[0].iter().zip(&together) {
            assert!((a - b).abs() < 1e-4, "alone {a}, in a batch {b}");
        }
    }
}

#[test]
fn a_short_checkpoint_names_the_tensor() {
    let folder = Folder::new();
    let bytes = fs::read(carried("bases/stories260k/stories260K.bin")).unwrap();
    folder.copy("bases/stories260k/tok512.bin");
    // 28 bytes of header, 512 * 64 numbers of the embedding, and five bytes of rms_att.
    folder.write("model.bin", &bytes[..28 + 4 * 512 * 64 + 5]);
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with(r#"model.bin: tensor "rms_att.0": expected 256 bytes, found 5"#), "{error}");
    folder.write("model.bin", &[&bytes[..], &[0; 3]].concat());
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("expected 1056540 bytes, found 1056543"), "{error}");
    let mut header = bytes.clone();
    header[12..16].copy_from_slice(&7i32.to_le_bytes());
    folder.write("model.bin", &header);
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("n_heads: expected a divisor of dim 64"), "{error}");
    header[..4].copy_from_slice(&[0xff; 4]);
    folder.write("model.bin", &header);
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("dim: expected 1 to 65535, found -1"), "{error}");
}

#[test]
fn a_bad_tokenizer_is_refused() {
    let folder = Folder::new();
    folder.copy("bases/stories260k/stories260K.bin");
    let bytes = fs::read(carried("bases/stories260k/tok512.bin")).unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("expected one tokenizer file (tok*.bin) beside the checkpoint, found 0"),
        "{error}"
    );
    folder.write("tok.bin", &bytes[..bytes.len() - 1]);
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("piece 511: expected 3 bytes, found 2"), "{error}");
    let at = bytes.windows(6).position(|w| w == b"<0x41>").unwrap();
    let mut other = bytes.clone();
    other[at + 4] = b'2';
    folder.write("tok.bin", &other);
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("piece 68 (a byte): expected <0x41>, found <0x42>"), "{error}");
}

#[test]
fn a_kwt_with_other_tensors_is_refused() {
    let bytes = fs::read(carried("bases/kwt1/kwt1.safetensors")).unwrap();
    let original = SafeTensors::deserialize(&bytes).unwrap();
    let folder = Folder::new();
    folder.copy("bases/kwt1/labels.txt");
    let write = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors = BTreeMap::new();
        for (name, view) in original.tensors() {
            let data: Vec<f32> =
                view.data().as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect();
            tensors.insert(name, Tensor::from_vec(data, view.shape(), &Device::Cpu).unwrap());
        }
        change(&mut tensors);
        let file = folder.path().join("kwt.safetensors");
        let bytes = safetensors::serialize(&tensors, None).unwrap();
        fs::write(&file, bytes).unwrap();
        load(folder.path()).unwrap_err()
    };
    let error = write(&|tensors| drop(tensors.remove("layers.3.norm1.bias")));
    assert!(
        matches!(&error, Error::MissingTensor { tensor, expected, .. } if tensor == "layers.3.norm1.bias" && expected == &[64]),
        "{error}"
    );
    let error = write(&|tensors| {
        let short = tensors["layers.2.ffn.down.weight"].narrow(1, 0, 255).unwrap().contiguous().unwrap();
        tensors.insert("layers.2.ffn.down.weight".into(), short);
    });
    let text = error.to_string();
    assert!(
        text.ends_with(r#"tensor "layers.2.ffn.down.weight": expected shape [64, 256], found [64, 255]"#),
        "{text}"
    );
    let error = write(&|tensors| {
        let wide = tensors["head.bias"].to_dtype(candle_core::DType::F64).unwrap();
        tensors.insert("head.bias".into(), wide);
    });
    assert!(
        matches!(&error, Error::TensorType { tensor, found, .. } if tensor == "head.bias" && found == "F64"),
        "{error}"
    );
    let error = write(&|tensors| {
        let extra = tensors["head.bias"].clone();
        tensors.insert("layers.0.attn.q.bias".into(), extra);
    });
    assert!(
        error.to_string().ends_with("expected only those of a KWT, found also layers.0.attn.q.bias"),
        "{error}"
    );
    folder.write("kwt.safetensors", b"not a tensor in sight");
    let error = load(folder.path()).unwrap_err();
    assert!(matches!(error, Error::UnknownFile { .. }), "{error}");
    folder.write("kwt.safetensors", &bytes);
    folder.write("labels.txt", b"yes\nno\n");
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("labels.txt: labels: expected 12, found 2"), "{error}");
    folder.write("another.bin", b"");
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("or one model file (.bin of llama2.c") && error.ends_with("found 2 of them"),
        "{error}"
    );
    let error = load(&folder.path().join("labels.txt")).unwrap_err();
    assert!(matches!(error, Error::UnknownFile { .. }), "{error}");
    let error = load(&folder.path().join("absent")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

/// A folder that goes away with the test.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path().join(name), bytes).unwrap();
    }

    fn copy(&self, name: &str) {
        self.write(Path::new(name).file_name().unwrap().to_str().unwrap(), &fs::read(carried(name)).unwrap());
    }
}
