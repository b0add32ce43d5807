//! Data sets of sound: the Free Spoken Digit Dataset, from the original recordings or the part that the repository carries.

use std::path::Path;

use super::{Classes, read_tsv};
use crate::features::mfcc;
use crate::rng::Rng;
use crate::{Error, Result};

/// Recordings as signed 16-bit samples.
const PCM_FILE: &str = "fsdd_8khz_i16le.pcm";
/// Recordings as 8-bit mu-law.
const MULAW_FILE: &str = "fsdd_8khz_mulaw.bin";
const INDEX_FILE: &str = "index.tsv";
const COLUMNS: [&str; 7] = ["offset_samples", "len_samples", "digit", "speaker", "take", "split", "git_blob"];
/// Standard deviation of the noise around a recording: digital silence is a class of its own to a keyword spotter.
const NOISE: f32 = 1e-4;

/// What a recording is labelled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Who speaks.
    Speaker,
    /// The digit that is spoken.
    Digit,
}

/// One recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// Samples at 8 kHz in -1..=1.
    pub samples: Vec<f32>,
    /// The digit spoken.
    pub digit: u8,
    /// Who speaks.
    pub speaker: String,
    /// Number of the recording among those of this speaker and digit.
    pub take: u8,
}

/// Loads recordings from a folder with `index.tsv` and either `fsdd_8khz_i16le.pcm` or `fsdd_8khz_mulaw.bin`, divided as
/// the index says (takes 0 to 4 are the test part).
///
/// # Errors
/// [`Error::Io`], [`Error::Field`] for a line that does not fit, [`Error::Length`] if a recording lies outside of the
/// samples, and as [`Classes::new`].
pub fn spoken_digits(folder: &Path, target: Target) -> Result<Classes<Recording>> {
    let samples = read_samples(folder)?;
    let path = folder.join(INDEX_FILE);
    let (mut train, mut test) = (Vec::new(), Vec::new());
    for (index, row) in read_tsv(&path, &COLUMNS)?.iter().enumerate() {
        let wrong = |column: usize, expected: &str| {
            let what = format!("{} of line {}", COLUMNS[column], index + 2);
            Error::field(&path, what, expected, &row[column])
        };
        let number = |column: usize| row[column].parse::<usize>().map_err(|_| wrong(column, "a number"));
        let small =
            |column: usize| row[column].parse::<u8>().map_err(|_| wrong(column, "a number below 256"));
        let (start, len) = (number(0)?, number(1)?);
        let end = start.saturating_add(len);
        let samples = samples.get(start..end).ok_or_else(|| Error::Length {
            path: folder.to_path_buf(),
            what: format!("recording of line {} of {INDEX_FILE}, in samples", index + 2),
            expected: end,
            found: samples.len(),
        })?;
        if samples.is_empty() {
            return Err(wrong(1, "at least 1"));
        }
        let recording = Recording {
            samples: samples.to_vec(),
            digit: small(2)?,
            speaker: row[3].clone(),
            take: small(4)?,
        };
        let label = match target {
            Target::Speaker => recording.speaker.clone(),
            Target::Digit => recording.digit.to_string(),
        };
        match row[5].as_str() {
            "train" => train.push((recording, label)),
            "test" => test.push((recording, label)),
            _ => return Err(wrong(5, "train or test")),
        }
    }
    Classes::new(folder, train, test)
}

fn read_samples(folder: &Path) -> Result<Vec<f32>> {
    let pcm = folder.join(PCM_FILE);
    if pcm.exists() {
        let bytes = std::fs::read(&pcm).map_err(Error::io(&pcm))?;
        let (samples, rest) = bytes.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(Error::field(&pcm, "bytes", "an even number", bytes.len()));
        }
        return Ok(samples.iter().map(|s| f32::from(i16::from_le_bytes(*s)) / 32_768.0).collect());
    }
    let mulaw = folder.join(MULAW_FILE);
    let bytes = std::fs::read(&mulaw).map_err(Error::io(&mulaw))?;
    Ok(bytes.iter().map(|code| f32::from(mulaw_decode(*code)) / 32_768.0).collect())
}

/// The sample that a mu-law code (ITU-T G.711) stands for.
pub fn mulaw_decode(code: u8) -> i16 {
    let code = !code;
    let (exponent, mantissa) = ((code >> 4) & 7, i16::from(code & 15));
    let magnitude = (((mantissa << 3) + MULAW_BIAS) << exponent) - MULAW_BIAS;
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The mu-law code (ITU-T G.711) of a sample.
pub fn mulaw_encode(sample: i16) -> u8 {
    const CLIP: i16 = i16::MAX - MULAW_BIAS;
    let magnitude = sample.saturating_abs().min(CLIP) + MULAW_BIAS;
    // The position of the highest set bit, 7 to 14, is the exponent.
    let exponent = 8 - magnitude.leading_zeros() as u8;
    let mantissa = ((magnitude >> (exponent + 3)) & 15) as u8;
    !((u8::from(sample < 0) << 7) | (exponent << 4) | mantissa)
}

/// Added to a magnitude so that every exponent has the same number of steps.
const MULAW_BIAS: i16 = 0x84;

/// A recording of 16 kHz as a clip of one second for a keyword spotter: centred (a longer one loses both ends), with a little
/// noise all over, which `seed` decides.
pub fn to_clip(samples: &[f32], seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, "clip noise");
    let mut clip: Vec<f32> = (0..mfcc::CLIP_SAMPLES).map(|_| NOISE * rng.normal()).collect();
    let excess = samples.len().saturating_sub(clip.len());
    let sound = &samples[excess / 2..samples.len() - (excess - excess / 2)];
    let before = (clip.len() - sound.len()) / 2;
    clip[before..].iter_mut().zip(sound).for_each(|(clip, sound)| *clip += sound);
    clip
}

/// Doubles the sample rate: the samples, and between them values of a windowed sinc over 16 neighbours on each side.
pub fn upsample(samples: &[f32]) -> Vec<f32> {
    const REACH: usize = 16;
    let tap = |index: usize| {
        // Distance from the middle between two samples, in samples of the input.
        let x = index as f64 + 0.5;
        let window = 0.5 + 0.5 * (std::f64::consts::PI * x / (REACH as f64 + 0.5)).cos();
        ((std::f64::consts::PI * x).sin() / (std::f64::consts::PI * x) * window) as f32
    };
    let taps: Vec<f32> = (0..REACH).map(tap).collect();
    let at = |index: Option<usize>| index.and_then(|index| samples.get(index)).copied().unwrap_or(0.0);
    let between = |index: usize| -> f32 {
        let pairs = taps.iter().enumerate();
        pairs.map(|(n, tap)| tap * (at(index.checked_sub(n)) + at(Some(index + 1 + n)))).sum()
    };
    (0..samples.len()).flat_map(|index| [samples[index], between(index)]).collect()
}
