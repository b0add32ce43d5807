//! Mel-frequency cepstral coefficients as the Keyword Transformers read them.
//!
//! A frame of 30 ms every 10 ms, periodic Hann window, zeros up to 512 samples, magnitude spectrum, 80 triangular bands
//! on the HTK mel scale from 20 to 7600 Hz, ln, DCT-II, first 40 coefficients. No mean or variance normalization.

use std::f64::consts::{PI, TAU};

use super::spectrum::Spectrum;

/// Samples a second.
pub const SAMPLE_RATE: usize = 16_000;
/// Samples of a clip of one second, which gives [`FRAMES`] frames.
pub const CLIP_SAMPLES: usize = SAMPLE_RATE;
/// Samples of a frame.
pub const FRAME_SAMPLES: usize = 480;
/// Samples from one frame to the next.
pub const HOP_SAMPLES: usize = 160;
/// Frames of a clip.
pub const FRAMES: usize = 1 + (CLIP_SAMPLES - FRAME_SAMPLES) / HOP_SAMPLES;
/// Coefficients of a frame.
pub const COEFFICIENTS: usize = 40;

const FFT_SAMPLES: usize = 512;
const MEL_BANDS: usize = 80;
const LOWEST_HZ: f64 = 20.0;
const HIGHEST_HZ: f64 = 7600.0;
/// The logarithm's argument is at least this.
const FLOOR: f64 = 1e-12;

/// The front end with its tables.
#[derive(Debug, Clone)]
pub struct Mfcc {
    spectrum: Spectrum,
    /// `[FRAME_SAMPLES]`.
    window: Vec<f64>,
    /// `[MEL_BANDS, bins]`.
    mel: Vec<f64>,
    /// Bins that a band reads.
    bins: usize,
    /// `[COEFFICIENTS, MEL_BANDS]`.
    dct: Vec<f64>,
}

impl Default for Mfcc {
    fn default() -> Self {
        Self::new()
    }
}

impl Mfcc {
    /// Computes the tables.
    pub fn new() -> Self {
        let hann = |n: usize| 0.5 - 0.5 * (TAU * n as f64 / FRAME_SAMPLES as f64).cos();
        let hz_per_bin = SAMPLE_RATE as f64 / FFT_SAMPLES as f64;
        let bins = (HIGHEST_HZ / hz_per_bin) as usize + 1;
        let dct = |k: usize, n: usize| {
            (2.0 / MEL_BANDS as f64).sqrt() * (PI * (n as f64 + 0.5) * k as f64 / MEL_BANDS as f64).cos()
        };
        Self {
            spectrum: Spectrum::new(FFT_SAMPLES),
            window: (0..FRAME_SAMPLES).map(hann).collect(),
            mel: mel_bands(bins, hz_per_bin),
            bins,
            dct: (0..COEFFICIENTS).flat_map(|k| (0..MEL_BANDS).map(move |n| dct(k, n))).collect(),
        }
    }

    /// The coefficients `[frames, 40]` of samples in -1..=1: one frame per [`HOP_SAMPLES`] for which all
    /// [`FRAME_SAMPLES`] samples are there; none if there are fewer.
    pub fn compute(&self, samples: &[f32]) -> Vec<f32> {
        let mut coefficients = Vec::with_capacity(samples.len() / HOP_SAMPLES * COEFFICIENTS);
        let mut magnitudes = vec![0.0; self.bins];
        for frame in samples.windows(FRAME_SAMPLES).step_by(HOP_SAMPLES) {
            let frame: Vec<f64> = frame.iter().zip(&self.window).map(|(x, w)| f64::from(*x) * w).collect();
            self.spectrum.magnitudes(&frame, &mut magnitudes);
            let energies: Vec<f64> =
                self.mel.chunks_exact(self.bins).map(|band| dot(band, &magnitudes).max(FLOOR).ln()).collect();
            coefficients.extend(self.dct.chunks_exact(MEL_BANDS).map(|row| dot(row, &energies) as f32));
        }
        coefficients
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Triangles `[MEL_BANDS, bins]` that meet on the mel scale; bin 0 (the mean) belongs to none.
fn mel_bands(bins: usize, hz_per_bin: f64) -> Vec<f64> {
    let mel = |hz: f64| 1127.0 * (1.0 + hz / 700.0).ln();
    let (lowest, highest) = (mel(LOWEST_HZ), mel(HIGHEST_HZ));
    let edge = |i: usize| lowest + (highest - lowest) * i as f64 / (MEL_BANDS + 1) as f64;
    let weight = |band: usize, bin: usize| {
        let (left, centre, right) = (edge(band), edge(band + 1), edge(band + 2));
        let at = mel(bin as f64 * hz_per_bin);
        let height = ((at - left) / (centre - left)).min((right - at) / (right - centre));
        if bin == 0 { 0.0 } else { height.max(0.0) }
    };
    (0..MEL_BANDS).flat_map(|band| (0..bins).map(move |bin| weight(band, bin))).collect()
}
