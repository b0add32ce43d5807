//! More clips out of few: moved in time and set into noise, so that a network learns neither where a sound begins nor how quiet a
//! room is.
//!
//! It knows clips and their classes. It is for what is learned from; what is measured is left as it was recorded.

use serde::{Deserialize, Serialize};

use super::Labelled;
use crate::features::mfcc::SAMPLE_RATE;
use crate::rng::Rng;

/// Level of the noise where a clip that has been moved says nothing: that around short recordings.
const NOTHING: f32 = 1e-4;

/// How clips are made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Clips that are made of each.
    pub copies: usize,
    /// Furthest move to either side, in milliseconds.
    pub shift_ms: u32,
    /// The class whose clips are noise. None adds no noise.
    pub noise: Option<String>,
    /// The greatest factor that noise is added with.
    pub noise_gain: f32,
}

/// Adds [`Augment::copies`] of each clip to them, in their order behind all. A copy is
///
/// copy\[t\] = clip\[t - shift\] + gain noise\[t\]
///
/// with a shift, a gain from 0 to the greatest, and a clip of the class of noise that are drawn for each copy: pure functions of
/// `seed`, the clip's place and the copy's number. Without clips of that class nothing is added.
pub fn extend(clips: &mut Vec<Labelled<Vec<f32>>>, labels: &[String], options: &Augment, seed: u64) {
    let is_noise = |clip: &&Labelled<Vec<f32>>| Some(&labels[clip.label]) == options.noise.as_ref();
    let noises: Vec<&Vec<f32>> = clips.iter().filter(is_noise).map(|clip| &clip.input).collect();
    let reach = i64::from(options.shift_ms) * SAMPLE_RATE as i64 / 1000;
    let mut made = Vec::new();
    for copy in 0..options.copies {
        for (index, Labelled { input, label }) in clips.iter().enumerate() {
            let mut rng = Rng::new(seed, &format!("augment/{index}/{copy}"));
            let mut moved = shifted(input, rng.below(2 * reach as u64 + 1) as i64 - reach, &mut rng);
            if !noises.is_empty() {
                let noise = noises[rng.below(noises.len() as u64) as usize];
                let gain = options.noise_gain * rng.uniform();
                moved.iter_mut().zip(noise).for_each(|(sample, noise)| *sample += gain * noise);
            }
            made.push(Labelled { input: moved, label: *label });
        }
    }
    clips.extend(made);
}

/// A clip that begins so many samples later, or earlier.
fn shifted(clip: &[f32], by: i64, rng: &mut Rng) -> Vec<f32> {
    let sample = |at: usize| usize::try_from(at as i64 - by).ok().and_then(|from| clip.get(from)).copied();
    (0..clip.len()).map(|at| sample(at).unwrap_or_else(|| NOTHING * rng.normal())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clips() -> (Vec<Labelled<Vec<f32>>>, Vec<String>) {
        let word = (0..400).map(|at| if at == 200 { 0.5 } else { 0.0 }).collect();
        let clips = vec![Labelled { input: word, label: 1 }, Labelled { input: vec![0.25; 400], label: 0 }];
        (clips, vec!["noise".into(), "word".into()])
    }

    #[test]
    fn copies_are_moved_and_set_into_noise() {
        let (mut found, labels) = clips();
        let options = Augment { copies: 6, shift_ms: 2, noise: Some("noise".into()), noise_gain: 0.4 };
        extend(&mut found, &labels, &options, 3);
        assert_eq!((found.len(), &found[..2]), (14, &clips().0[..]), "what was recorded stays, in front");
        let mut places = Vec::new();
        for copy in found[2..].iter().step_by(2) {
            assert_eq!(copy.label, 1);
            let place = copy.input.iter().position(|sample| *sample >= 0.5).unwrap();
            assert!(place.abs_diff(200) <= 32, "{place}");
            let noise = copy.input[100];
            assert!((0.0..=0.1).contains(&noise) && (copy.input[place] - noise - 0.5).abs() < 1e-6);
            places.push(place);
        }
        places.dedup();
        assert!(places.len() > 3, "{places:?}");
        // Noise in noise is no less than it was, but where it has been moved away.
        assert!(found[3].input[100] >= 0.25);
    }

    #[test]
    fn they_repeat_themselves_with_a_seed_only() {
        let made = |seed, noise: Option<&str>| {
            let (mut found, labels) = clips();
            let noise = noise.map(str::to_owned);
            extend(&mut found, &labels, &Augment { copies: 1, shift_ms: 5, noise, noise_gain: 1.0 }, seed);
            found
        };
        assert_eq!(made(4, Some("noise")), made(4, Some("noise")));
        assert_ne!(made(4, Some("noise")), made(5, Some("noise")));
        let quiet = made(4, None);
        assert!(
            quiet[2].input.iter().filter(|sample| sample.abs() > 0.001).count() == 1,
            "no noise was asked for"
        );
        let (mut none, labels) = clips();
        extend(&mut none, &labels, &Augment::default(), 4);
        assert_eq!(none, clips().0);
    }
}
