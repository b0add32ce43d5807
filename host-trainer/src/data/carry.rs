//! The carried data are what their READMEs say: made from the originals by the code below, and checked against them
//! where these are at hand. `RANKPATCH_UPDATE=1 cargo test -p rankpatch data::carry` writes them anew.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::signal::{self, Target, mulaw_decode, mulaw_encode};
use super::test_data::{carried, shared};
use crate::features::Mfcc;
use crate::features::mfcc::{CLIP_SAMPLES, COEFFICIENTS, FRAMES};

/// Takes of each speaker and digit that are carried for training: ten, spread evenly over 5 to 49.
fn is_carried(take: u32) -> bool {
    take < 5 || (0..10).any(|k| take == 5 + 9 * k / 2)
}

/// Golden clips that are carried of each label: the first ones.
const CLIPS_PER_LABEL: usize = 10;
/// The one of them whose samples are carried as well: somebody says yes.
const SPOKEN: usize = 23;

fn check(name: &str, expected: &[u8]) {
    let path = carried(name);
    if std::env::var_os("RANKPATCH_UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, expected).unwrap();
    }
    let found = fs::read(&path).unwrap();
    assert!(found == expected, "{}: not what the original data give", path.display());
}

#[test]
fn spoken_digits_are_a_part_of_the_original_in_mu_law() {
    let Some(original) = shared("fsdd") else { return };
    let index = fs::read_to_string(original.join("index.tsv")).unwrap();
    let pcm = fs::read(original.join("fsdd_8khz_i16le.pcm")).unwrap();
    let pcm: Vec<i16> = pcm.as_chunks::<2>().0.iter().map(|sample| i16::from_le_bytes(*sample)).collect();
    let mut lines = index.lines();
    let mut carried_index = format!("{}\n", lines.next().unwrap());
    let mut codes = Vec::new();
    for line in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        if is_carried(fields[4].parse().unwrap()) {
            let (start, len): (usize, usize) = (fields[0].parse().unwrap(), fields[1].parse().unwrap());
            writeln!(carried_index, "{}\t{}", codes.len(), fields[1..].join("\t")).unwrap();
            codes.extend(pcm[start..start + len].iter().map(|sample| mulaw_encode(*sample)));
        }
    }
    check("fsdd/index.tsv", carried_index.as_bytes());
    check("fsdd/fsdd_8khz_mulaw.bin", &codes);
}

#[test]
fn mu_law_keeps_samples_within_a_32nd_of_their_size() {
    for sample in i16::MIN..=i16::MAX {
        let error = (i32::from(sample) - i32::from(mulaw_decode(mulaw_encode(sample)))).abs();
        // Half a step is a 32nd of the biased size at the lower end of an exponent; the loudest few are clipped.
        let bound =
            if sample.unsigned_abs() > 32_124 { 644 } else { (i32::from(sample.unsigned_abs()) + 132) / 32 };
        assert!(error <= bound, "{sample}: error {error}, expected at most {bound}");
    }
    for code in 0..=u8::MAX {
        let sample = mulaw_decode(code);
        // Code 0x7f is a negative zero.
        assert_eq!(mulaw_decode(mulaw_encode(sample)), sample, "code {code:#04x}");
    }
}

#[test]
fn carried_spoken_digits_load_like_the_original() {
    let part = signal::spoken_digits(&carried("fsdd"), Target::Speaker).unwrap();
    assert_eq!(part.labels, ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]);
    assert_eq!((part.split.train.len(), part.split.test.len()), (600, 300));
    let Some(original) = shared("fsdd") else { return };
    let whole = signal::spoken_digits(&original, Target::Speaker).unwrap();
    assert_eq!((whole.split.train.len(), whole.split.test.len()), (2700, 300));
    let key = |r: &signal::Recording| (r.speaker.clone(), r.digit, r.take);
    let whole: HashMap<_, _> = whole
        .split
        .train
        .iter()
        .chain(&whole.split.test)
        .map(|e| (key(&e.input), &e.input.samples))
        .collect();
    for example in part.split.train.iter().chain(&part.split.test) {
        let original = whole[&key(&example.input)];
        assert_eq!(original.len(), example.input.samples.len());
        let power = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
        let signal = power(&mut original.iter().copied());
        let noise = power(&mut original.iter().zip(&example.input.samples).map(|(a, b)| a - b));
        let db = 10.0 * (signal / noise).log10();
        assert!(db > 25.0, "{:?}: signal to noise ratio {db:.1} dB", key(&example.input));
    }
}

/// The features are stored in f32: f16 would change the logits by 2e-3, more than the bound of the golden test.
#[test]
fn golden_clips_are_the_features_of_the_original_samples() {
    let (Some(sound), Some(golden)) =
        (shared("speech-commands-test"), shared("kwt1/golden_logits_gsc600.tsv"))
    else {
        return;
    };
    let pcm = fs::read(sound.join("gsc_test600_16khz_i16le.pcm")).unwrap();
    let mfcc = Mfcc::new();
    let mut taken: HashMap<u32, usize> = HashMap::new();
    let (mut clips, mut labels, mut features, mut logits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for line in fs::read_to_string(golden).unwrap().lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let (clip, label): (u32, u32) = (fields[0].parse().unwrap(), fields[1].parse().unwrap());
        let count = taken.entry(label).or_default();
        *count += 1;
        if *count <= CLIPS_PER_LABEL {
            clips.push(clip);
            labels.push(label);
            features.extend(mfcc.compute(&samples(&pcm, clip as usize)));
            logits.extend(fields[2..].iter().map(|logit| logit.parse::<f32>().unwrap()));
        }
    }
    let yes = pcm[clips[SPOKEN] as usize * 2 * CLIP_SAMPLES..][..2 * CLIP_SAMPLES].as_chunks::<2>().0;
    let mut wav = std::io::Cursor::new(Vec::new());
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 16_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::new(&mut wav, spec).unwrap();
    yes.iter().for_each(|sample| writer.write_sample(i16::from_le_bytes(*sample)).unwrap());
    writer.finalize().unwrap();
    check("kwt1-golden/yes.wav", &wav.into_inner());
    let n = clips.len();
    let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
    let tensors = [
        ("clip", view(Dtype::U32, &[n], bytemuck::cast_slice(&clips))),
        ("label", view(Dtype::U32, &[n], bytemuck::cast_slice(&labels))),
        ("features", view(Dtype::F32, &[n, FRAMES, COEFFICIENTS], bytemuck::cast_slice(&features))),
        ("logits", view(Dtype::F32, &[n, 12], bytemuck::cast_slice(&logits))),
    ];
    check("kwt1-golden/clips.safetensors", &safetensors::serialize(tensors, None).unwrap());
}

fn samples(pcm: &[u8], clip: usize) -> Vec<f32> {
    let bytes = pcm[clip * 2 * CLIP_SAMPLES..].as_chunks::<2>().0;
    bytes[..CLIP_SAMPLES].iter().map(|s| f32::from(i16::from_le_bytes(*s)) / 32_768.0).collect()
}

/// The tables of the published model's front end, from `frontend.*`, are those that [`Mfcc`] computes from formulas: both
/// give the same coefficients.
#[test]
fn front_end_equals_the_tables_in_the_model_file() {
    let bytes = fs::read(carried("bases/kwt1/kwt1.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let table = |name: &str| -> Vec<f64> {
        let data = file.tensor(name).unwrap().data().as_chunks::<4>().0;
        data.iter().map(|number| f64::from(f32::from_le_bytes(*number))).collect()
    };
    let (window, mel, dct) = (table("frontend.window"), table("frontend.mel"), table("frontend.dct"));
    // With noise, so that no band is nearly empty: there the file's rounding to f32 would be all that is left.
    let mut rng = crate::rng::Rng::new(4, "front end");
    let clip: Vec<f32> = (0..800).map(|t| (0.05 * t as f32).sin() * 0.3 + 0.02 * rng.normal()).collect();
    let found = Mfcc::new().compute(&clip);
    assert_eq!(found.len(), 3 * COEFFICIENTS);
    let bins = mel.len() / 80;
    for (frame, found) in found.chunks_exact(COEFFICIENTS).enumerate() {
        let x: Vec<f64> = clip[160 * frame..].iter().zip(&window).map(|(x, w)| f64::from(*x) * w).collect();
        let magnitude = |k: usize| {
            let angle = |t: usize| -std::f64::consts::TAU * (k * t % 512) as f64 / 512.0;
            let re: f64 = x.iter().enumerate().map(|(t, x)| x * angle(t).cos()).sum();
            let im: f64 = x.iter().enumerate().map(|(t, x)| x * angle(t).sin()).sum();
            re.hypot(im)
        };
        let spectrum: Vec<f64> = (0..bins).map(magnitude).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let bands: Vec<f64> =
            mel.chunks_exact(bins).map(|band| dot(band, &spectrum).max(1e-12).ln()).collect();
        for (k, (row, found)) in dct.chunks_exact(80).zip(found).enumerate() {
            let expected = dot(row, &bands);
            let error = (f64::from(*found) - expected).abs();
            assert!(error < 1e-4, "frame {frame}, coefficient {k}: expected {expected}, found {found}");
        }
    }
}

#[test]
fn carried_data_stay_below_twelve_megabytes() {
    fn bytes(path: &Path) -> u64 {
        let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
        entries.map(|e| if e.path().is_dir() { bytes(&e.path()) } else { e.metadata().unwrap().len() }).sum()
    }
    let found = bytes(&carried(""));
    assert!(found < 12_000_000, "expected less than 12,000,000 bytes of carried data, found {found}");
}
