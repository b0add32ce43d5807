//! `rankpatch inspect`: what is in a file, byte by byte, with every stated identity and checksum computed again.

mod adapter;
mod base;
mod memory;

pub use adapter::payload_bytes;

use std::path::{Path, PathBuf};

use rankpatch_format::VERSION;
use serde::Serialize;

use super::console::{Console, Format, Table, grouped};
use super::exit::{At as _, BAD_INPUT, Failure, Outcome};
use crate::Error;
use crate::base::Image;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A base image (.rpb) or an adapter file (.rpa)
    file: PathBuf,
    /// The adapter's base: shows names and shapes, checks that they fit, runs the self-test
    #[arg(long, value_name = "BASE.rpb")]
    base: Option<PathBuf>,
    /// Prints where every byte of RAM goes; for an adapter with its base also what applying it costs, and what merging
    /// loses
    #[arg(long)]
    memory: bool,
    /// Rows of the sequence for --memory [default: the longest]
    #[arg(long, value_name = "ROWS", requires = "memory")]
    context: Option<usize>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    let bytes = std::fs::read(&args.file).map_err(Error::io(&args.file))?;
    let magic = bytes.first_chunk::<3>();
    if magic == Some(&rankpatch_format::base::MAGIC) {
        if args.base.is_some() {
            return Err(Failure::usage(
                "--base goes with an adapter: expected an .rpa file, found a base image",
            ));
        }
        let image = Image::new(&bytes);
        if args.memory {
            let report = memory::report(&args.file, &image.base().at(&args.file)?, None, args.context)?;
            return console.print(args.format, &report, memory::text);
        }
        let report = base::report(&args.file, &image, &image.base().at(&args.file)?);
        console.print(args.format, &report, base::text)?;
        return report.identity.check(&args.file);
    }
    if magic == Some(&rankpatch_format::adapter::MAGIC) {
        let base = args.base.as_ref().map(|path| Image::read(path)).transpose()?;
        if args.memory {
            let image =
                base.ok_or_else(|| Failure::usage("--memory of an adapter needs its base: give --base"))?;
            let base = image.base()?;
            let adapter = rankpatch_format::adapter::Adapter::new(&bytes, &base).at(&args.file)?;
            let report = memory::report(&args.file, &base, Some(&adapter), args.context)?;
            return console.print(args.format, &report, memory::text);
        }
        let report = adapter::report(&args.file, bytes, base)?;
        console.print(args.format, &report, adapter::text)?;
        return report.check(&args.file);
    }
    let found = bytes.get(..3).unwrap_or(&bytes).escape_ascii().to_string();
    let error =
        anyhow::anyhow!("unknown kind of file: expected one that starts with RPB or RPA, found \"{found}\"");
    Err(Failure::new(BAD_INPUT, error).at(&args.file))
}

/// A value that a file states, and the same computed from its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Compared {
    stated: String,
    computed: String,
    equal: bool,
    #[serde(skip)]
    what: &'static str,
}

impl Compared {
    fn new(what: &'static str, stated: impl std::fmt::Display, computed: impl std::fmt::Display) -> Self {
        let (stated, computed) = (stated.to_string(), computed.to_string());
        Self { equal: stated == computed, stated, computed, what }
    }

    fn text(&self) -> String {
        if self.equal {
            format!("{} (computed again: equal)", self.stated)
        } else {
            format!("{} (computed again: {}, DIFFERENT)", self.stated, self.computed)
        }
    }

    /// A failure if the two differ.
    fn check(&self, path: &Path) -> Outcome {
        if self.equal {
            return Ok(());
        }
        let Self { what, stated, computed, .. } = self;
        let error = anyhow::anyhow!("{what} does not fit the content: expected {stated}, found {computed}");
        Err(Failure::new(BAD_INPUT, error)
            .at(path)
            .hint("the file was written by another release or by hand"))
    }
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Section {
    name: &'static str,
    bytes: usize,
    percent: f64,
}

/// The parts of a file of `total` bytes; what they leave is padding.
fn sections(total: usize, parts: &[(&'static str, usize)]) -> Vec<Section> {
    let used: usize = parts.iter().map(|(_, bytes)| bytes).sum();
    let padding = ("padding", total.saturating_sub(used));
    let section =
        |&(name, bytes): &(&'static str, usize)| Section { name, bytes, percent: percent(bytes, total) };
    parts.iter().chain([&padding]).filter(|(_, bytes)| *bytes > 0).map(section).collect()
}

fn sections_text(total: usize, sections: &[Section]) -> String {
    let mut table = Table::new(1, &["part", "bytes", "%"]);
    for section in sections {
        table.row(&[&section.name, &grouped(section.bytes), &format!("{:.2}", section.percent)]);
    }
    table.row(&[&"file", &grouped(total), &"100.00"]);
    table.to_string()
}

fn percent(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// The least and the greatest of some scales.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Range {
    min: f32,
    max: f32,
}

impl Range {
    /// `None` if there are no scales.
    fn of(scales: impl Iterator<Item = f32>) -> Option<Self> {
        scales.fold(None, |range, scale| {
            let Self { min, max } = range.unwrap_or(Self { min: scale, max: scale });
            Some(Self { min: min.min(scale), max: max.max(scale) })
        })
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3e} to {:.3e}", self.min, self.max)
    }
}

fn version_text() -> String {
    format!("version {VERSION}")
}
