//! Recordings from files: WAV, or bare samples.

use std::path::Path;

use crate::{Error, Result};

/// The samples of a recording at `rate` samples a second: a WAV file of one channel with 16 bits a sample, or, with any other ending, bare i16
/// little-endian samples.
///
/// # Errors
/// [`Error::Io`]; [`Error::UnknownFile`] for a damaged file; [`Error::Field`] for another rate, more channels, other samples, half a sample,
/// or none at all.
pub fn samples(path: &Path, rate: u32) -> Result<Vec<i16>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let samples = if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("wav")) {
        wav(path, &bytes, rate)?
    } else {
        let (samples, rest) = bytes.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(Error::field(path, "bytes of i16 samples", "an even number", bytes.len()));
        }
        samples.iter().map(|bytes| i16::from_le_bytes(*bytes)).collect()
    };
    if samples.is_empty() {
        return Err(Error::field(path, "samples", "at least 1", 0));
    }
    Ok(samples)
}

fn wav(path: &Path, bytes: &[u8], rate: u32) -> Result<Vec<i16>> {
    let damaged = |error: &hound::Error| Error::UnknownFile {
        path: path.to_path_buf(),
        expected: "a WAV file with i16 samples".into(),
        found: error.to_string(),
    };
    let reader = hound::WavReader::new(bytes).map_err(|error| damaged(&error))?;
    let spec = reader.spec();
    let wanted = [
        ("sample rate", rate, spec.sample_rate),
        ("channels", 1, spec.channels.into()),
        ("bits per sample", 16, spec.bits_per_sample.into()),
    ];
    for (what, expected, found) in wanted {
        if expected != found {
            return Err(Error::field(path, what, expected, found));
        }
    }
    reader.into_samples().collect::<hound::Result<_>>().map_err(|error| damaged(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_are_read_and_others_refused() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, channels, sample_rate| {
            let spec = hound::WavSpec {
                channels,
                sample_rate,
                bits_per_sample: 16,
                sample_format: hound::SampleFormat::Int,
            };
            let path = folder.path().join(name);
            let mut writer = hound::WavWriter::create(&path, spec).unwrap();
            [1_i16, -2, 300, i16::MIN].into_iter().for_each(|sample| writer.write_sample(sample).unwrap());
            writer.finalize().unwrap();
            path
        };
        let good = write("good.WAV", 1, 16_000);
        assert_eq!(samples(&good, 16_000).unwrap(), [1, -2, 300, i16::MIN]);
        let error = samples(&good, 8000).unwrap_err().to_string();
        assert!(error.ends_with("good.WAV: sample rate: expected 8000, found 16000"), "{error}");
        let error = samples(&write("stereo.wav", 2, 16_000), 16_000).unwrap_err().to_string();
        assert!(error.ends_with("channels: expected 1, found 2"), "{error}");
        let bare = folder.path().join("bare.pcm");
        std::fs::write(&bare, [1, 0, 0xfe, 0xff]).unwrap();
        assert_eq!(samples(&bare, 16_000).unwrap(), [1, -2]);
        std::fs::write(&bare, [1, 0, 7]).unwrap();
        assert!(matches!(samples(&bare, 16_000), Err(Error::Field { .. })));
        std::fs::write(&bare, []).unwrap();
        assert!(matches!(samples(&bare, 16_000), Err(Error::Field { .. })));
        let cut = folder.path().join("cut.wav");
        let bytes = std::fs::read(&good).unwrap();
        for len in [0, 20, bytes.len() - 3] {
            std::fs::write(&cut, &bytes[..len]).unwrap();
            assert!(matches!(samples(&cut, 16_000), Err(Error::UnknownFile { .. })), "{len} bytes");
        }
    }
}
