//! Users' own recordings: the samples of all of them in one file, beside it an index that says where each lies and what it is.
//!
//! It knows sample rates and the length of a clip. What a network reads of a clip it does not know.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::augment::Augment;
use super::signal::{mulaw_decode, to_clip, upsample};
use super::{Classes, Split};
use crate::features::mfcc::{CLIP_SAMPLES, SAMPLE_RATE};
use crate::{Error, Result};

const INDEX_FILE: &str = "index.tsv";
/// Recordings as signed 16-bit samples, little-endian.
const PCM: &str = ".pcm";
/// Recordings as 8-bit mu-law.
const MULAW: &str = "mulaw.bin";
/// Columns that say where a recording lies: its first sample and its samples, or its number among clips of one second.
const PLACE: [&str; 3] = ["offset_samples", "len_samples", "clip"];

/// Which rows of an index are read, and what their columns mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Samples a second: 16000, or 8000, which is doubled.
    pub sample_rate: usize,
    /// The column with the name of the class.
    pub label: String,
    /// The column that sets rows with `test` in it apart; every other row trains.
    pub split: String,
    /// Reads only rows that have one of these values in these columns.
    #[serde(rename = "where")]
    pub rows: BTreeMap<String, Vec<String>>,
    /// How more clips are made of those to train on. [`load`] makes none.
    pub augment: Augment,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sample_rate: SAMPLE_RATE,
            label: "label".into(),
            split: "split".into(),
            rows: BTreeMap::new(),
            augment: Augment::default(),
        }
    }
}

/// A clip of one second at 16 kHz in -1..=1, and the name of its class.
pub type Clip = (Vec<f32>, String);

/// Loads the recordings of a folder: `index.tsv`, whose first row names its columns, and one file of samples, `*.pcm` (16-bit) or
/// `*mulaw.bin`. A second folder may hold more of them, as a rule those that are set apart.
///
/// A recording of another length than one second is centred in a clip and loses both ends or gets a little noise around it. Rows
/// that say `test` in the column [`Options::split`] are set apart; if none does, `fraction` of each class is, chosen by `seed`.
///
/// # Errors
/// [`Error::Io`], [`Error::Field`] for a column that is missing and a line that does not fit, [`Error::Length`] if a recording
/// lies outside of the samples, and as [`Classes::new`].
pub fn load(
    folder: &Path,
    more: Option<&Path>,
    options: &Options,
    (fraction, seed): (f64, u64),
) -> Result<Classes<Vec<f32>>> {
    let mut split = read(folder, options)?;
    if let Some(more) = more {
        let more = read(more, options)?;
        split.train.extend(more.train);
        split.test.extend(more.test);
    }
    if split.test.is_empty() {
        split = Split::seeded(split.train, fraction, seed, |(_, label)| Some(label));
    }
    Classes::new(folder, split.train, split.test)
}

fn read(folder: &Path, options: &Options) -> Result<Split<Clip>> {
    let samples = read_samples(folder)?;
    let path = folder.join(INDEX_FILE);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let mut lines = text.lines();
    let columns: Vec<&str> = lines.next().unwrap_or("").split('\t').collect();
    let find = |name: &str| columns.iter().position(|column| *column == name);
    let need = |name: &str| {
        find(name)
            .ok_or_else(|| Error::field(&path, "columns", format!("one named {name}"), columns.join(", ")))
    };
    let label = need(&options.label)?;
    let wanted: Vec<(usize, &[String])> = options
        .rows
        .iter()
        .map(|(name, values)| Ok((need(name)?, values.as_slice())))
        .collect::<Result<_>>()?;
    let place = match find(PLACE[0]) {
        Some(offset) => Place::Samples(offset, need(PLACE[1])?),
        None => Place::Clip(need(PLACE[2])?),
    };
    let set_apart = find(&options.split);
    let mut split = Split { train: Vec::new(), test: Vec::new() };
    for (row, line) in lines.enumerate() {
        let number = row + 2;
        let fields: Vec<&str> = line.split('\t').collect();
        if fields.len() != columns.len() {
            let what = format!("fields of line {number}");
            return Err(Error::field(&path, what, columns.len(), fields.len()));
        }
        if wanted.iter().any(|(column, values)| !values.iter().any(|value| value == fields[*column])) {
            continue;
        }
        let whole = |column: usize| {
            let what = || format!("{} of line {number}", columns[column]);
            fields[column]
                .parse::<usize>()
                .map_err(|_| Error::field(&path, what(), "a number", fields[column]))
        };
        let (start, len) = match place {
            Place::Samples(offset, len) => (whole(offset)?, whole(len)?),
            Place::Clip(clip) => (whole(clip)?.saturating_mul(options.sample_rate), options.sample_rate),
        };
        if len == 0 {
            return Err(Error::field(&path, format!("samples of line {number}"), "at least 1", 0));
        }
        let end = start.saturating_add(len);
        let samples = samples.get(start..end).ok_or_else(|| Error::Length {
            path: folder.to_path_buf(),
            what: format!("recording of line {number} of {INDEX_FILE}, in samples"),
            expected: end,
            found: samples.len(),
        })?;
        let part = match set_apart.map(|column| fields[column]) {
            Some("test") => &mut split.test,
            _ => &mut split.train,
        };
        part.push((clip(samples, options.sample_rate, row as u64), fields[label].to_owned()));
    }
    Ok(split)
}

/// Which columns say where a recording lies.
#[derive(Clone, Copy)]
enum Place {
    Samples(usize, usize),
    Clip(usize),
}

/// A recording as a clip; `seed` decides the noise around it.
fn clip(samples: &[f32], sample_rate: usize, seed: u64) -> Vec<f32> {
    let doubled;
    let samples = if sample_rate == SAMPLE_RATE {
        samples
    } else {
        doubled = upsample(samples);
        &doubled
    };
    // A clip of the right length is heard as it is, bit for bit.
    if samples.len() == CLIP_SAMPLES { samples.to_vec() } else { to_clip(samples, seed) }
}

fn read_samples(folder: &Path) -> Result<Vec<f32>> {
    let (path, is_pcm) = samples_file(folder)?;
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    if !is_pcm {
        return Ok(bytes.iter().map(|code| f32::from(mulaw_decode(*code)) / 32_768.0).collect());
    }
    let (samples, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Error::field(&path, "bytes", "an even number", bytes.len()));
    }
    Ok(samples.iter().map(|sample| f32::from(i16::from_le_bytes(*sample)) / 32_768.0).collect())
}

/// The one file of samples in a folder, and whether it is PCM.
fn samples_file(folder: &Path) -> Result<(PathBuf, bool)> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        names.push(entry.map_err(Error::io(folder))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    names.retain(|name| name.ends_with(PCM) || name.ends_with(MULAW));
    match names.as_slice() {
        [name] => Ok((folder.join(name), name.ends_with(PCM))),
        names => {
            let expected = format!("one, *{PCM} or *{MULAW}");
            Err(Error::field(folder, "files of samples", expected, names.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_data::carried;
    use super::*;

    fn digits(rows: &[(&str, &[&str])]) -> Options {
        let strings = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        Options {
            sample_rate: 8000,
            label: "digit".into(),
            rows: rows.iter().map(|(name, values)| ((*name).to_owned(), strings(values))).collect(),
            ..Options::default()
        }
    }

    #[test]
    fn columns_are_found_by_name_and_rows_by_their_values() {
        let all = load(&carried("fsdd"), None, &digits(&[]), (0.5, 0)).unwrap();
        assert_eq!((all.split.train.len(), all.split.test.len()), (600, 300));
        assert_eq!(all.labels[7], "7");
        let takes = ["0", "1", "2", "3", "4", "5", "9"];
        let own =
            load(&carried("fsdd"), None, &digits(&[("speaker", &["theo"]), ("take", &takes)]), (0.5, 0));
        let own = own.unwrap();
        assert_eq!((own.split.train.len(), own.split.test.len()), (20, 50));
        assert!(own.split.train.iter().all(|example| example.input.len() == CLIP_SAMPLES));
    }

    #[test]
    fn clips_are_numbered_and_a_second_folder_adds_to_both_parts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, index: &str, values: &[i16]| -> PathBuf {
            let folder = folder.path().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("index.tsv"), index).unwrap();
            let samples = values.iter().flat_map(|value| std::iter::repeat_n(*value, CLIP_SAMPLES));
            let bytes: Vec<u8> = samples.flat_map(i16::to_le_bytes).collect();
            std::fs::write(folder.join("a.pcm"), bytes).unwrap();
            folder
        };
        let first = write("first", "clip\tlabel\n1\tyes\n0\tno\n", &[3, 5]);
        let second = write("second", "clip\tlabel\tsplit\n0\tyes\ttest\n1\tno\tadapt\n", &[7, 9]);
        let Classes { labels, split } = load(&first, Some(&second), &Options::default(), (0.5, 0)).unwrap();
        assert_eq!(labels, ["no", "yes"]);
        let levels = |part: &[super::super::Labelled<Vec<f32>>]| -> Vec<(f32, usize)> {
            part.iter().map(|example| (example.input[77] * 32_768.0, example.label)).collect()
        };
        assert_eq!(levels(&split.train), [(5.0, 1), (3.0, 0), (9.0, 0)]);
        assert_eq!(levels(&split.test), [(7.0, 1)]);
        let error = load(&first, None, &digits(&[]), (0.5, 0)).unwrap_err().to_string();
        assert!(error.contains("one named digit") && error.contains("clip, label"), "{error}");
        let outside = write("outside", "clip\tlabel\n2\tyes\n", &[3, 5]);
        let error = load(&outside, None, &Options::default(), (0.5, 0)).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("32000"), "{error}");
    }
}
