//! `rankpatch new`: a firmware project that boots in QEMU as generated.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::builder::PossibleValuesParser;
use serde::Serialize;

use super::console::{Console, Format, fields};
use super::exit::{At as _, BAD_INPUT, FAILURE, Failure, Outcome};
use super::features::Source;
use crate::base::Image;
use crate::scaffold::{self, MACHINES, Machine, Question, Request, ScaffoldError};
use crate::{Error, files, import};

/// Rows of a pass of a base that is built here.
const PASS_ROWS: u32 = 16;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder to make, new or empty; its last part names the project
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// The machine
    #[arg(long, default_value = MACHINES[0].name, value_parser = PossibleValuesParser::new(MACHINES.map(|machine| machine.name)))]
    board: String,
    /// The base image; without it and --from, a small one that continues requests to a voice assistant, with an adapter that tells
    /// their intents
    #[arg(long, value_name = "BASE.rpb")]
    base: Option<PathBuf>,
    /// A model to build the base image of, as `base build` takes it
    #[arg(long, value_name = "MODEL", conflicts_with = "base")]
    from: Option<PathBuf>,
    /// Adapters that the example switches to, one after the other
    #[arg(long = "adapter", value_name = "FILE.rpa", num_args = 1..)]
    adapters: Vec<PathBuf>,
    /// Base and adapters in flash partitions of their own instead of in the program
    #[arg(long)]
    partitions: bool,
    /// What the example asks a base that reads text
    #[arg(long, value_name = "TEXT", default_value = scaffold::USUAL_PROMPT)]
    prompt: String,
    #[command(flatten)]
    source: Source,
    /// The checkout whose crates the project depends on; the one that this command was built from if left out
    #[arg(long, value_name = "FOLDER", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/.."), hide_default_value = true)]
    rankpatch: PathBuf,
    /// Builds and boots it at once
    #[arg(long, conflicts_with = "format")]
    run: bool,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Made<'a> {
    project: &'a Path,
    name: &'a str,
    board: &'a str,
    base: String,
    files: Vec<&'a Path>,
    /// What the program will print.
    expected: &'a str,
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    let name = args.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    scaffold::check_name(name)?;
    scaffold::check_folder(&args.path)?;
    let checkout = scaffold::checkout(&args.rankpatch)?;
    let machine = MACHINES.iter().find(|machine| machine.name == args.board).unwrap_or(&MACHINES[0]);
    let usual = args.base.is_none() && args.from.is_none();
    let image = match &args.base {
        Some(path) => Image::read(path)?,
        None => build(args.from.as_deref().unwrap_or(&checkout.join(scaffold::USUAL_BASE)), machine)?,
    };
    let base = image.base().at(args.base.as_deref().unwrap_or(Path::new("base")))?;
    let question = match args.source.read()? {
        Some(features) => {
            Question::Features(features.values, "The features that `rankpatch new` was given".into())
        }
        None => Question::usual(&base, &args.prompt)?,
    };
    let mut adapters = args.adapters.clone();
    if usual && adapters.is_empty() {
        adapters.push(checkout.join(scaffold::USUAL_ADAPTER));
    }
    let adapters = adapters.iter().map(|path| read_adapter(path, &image)).collect::<Outcome<Vec<_>>>()?;
    let base = base.manifest().name.to_owned();
    let partitions = args.partitions;
    let request = Request { name, checkout: &checkout, machine, base: image, adapters, question, partitions };
    let project = scaffold::project(&request)?;
    let files: Vec<_> =
        project.files.iter().map(|(file, bytes)| (args.path.join(file), bytes.clone())).collect();
    files::write_together(&files)?;
    if args.run {
        console.log(&format!("{} is made; building and booting it", args.path.display()));
        return boot(&args.path);
    }
    let made = Made {
        project: &args.path,
        name,
        board: machine.name,
        base,
        files: project.files.iter().map(|(file, _)| file.as_path()).collect(),
        expected: &project.expected,
    };
    console.print(args.format, &made, text)
}

fn build(model: &Path, machine: &Machine) -> Outcome<Image> {
    Image::build(&import::load(model)?, machine.layout, PASS_ROWS).at(model)
}

/// An adapter file that fits the base, and the name of its copy.
fn read_adapter(path: &Path, base: &Image) -> Outcome<(String, Vec<u8>)> {
    let file = std::fs::read(path).map_err(Error::io(path))?;
    // The copy in the project lies as aligned as the checks want it.
    let aligned = Image::new(&file);
    rankpatch_format::adapter::Adapter::new(aligned.bytes(), &base.base()?).at(path)?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if stem.is_empty() || !stem.chars().all(fits) {
        let expected = "expected a file name of letters, digits, -, _ and .";
        return Err(Failure::new(BAD_INPUT, anyhow::anyhow!("{expected}, found {stem:?}")).at(path));
    }
    Ok((stem.to_owned(), file))
}

/// `cargo run --release` in the project, on the streams of this process.
fn boot(folder: &Path) -> Outcome {
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--release"]).current_dir(folder).stdin(Stdio::null());
    let status = cargo.status().map_err(|error| {
        Failure::new(FAILURE, anyhow::Error::new(error).context("cannot start cargo"))
            .hint("install it from https://rustup.rs; the project is complete")
    })?;
    if status.success() {
        return Ok(());
    }
    let error = anyhow::anyhow!("cargo run --release: expected exit code 0, found {status}");
    Err(Failure::new(FAILURE, error).hint("the project is complete; it needs QEMU (qemu-system-arm) to run"))
}

fn text(made: &Made<'_>) -> String {
    let summary = fields(&[
        ("project", made.project.display().to_string()),
        ("board", made.board.into()),
        ("base", made.base.clone()),
        ("files", made.files.len().to_string()),
    ]);
    let mut text =
        format!("{summary}next      cd {} && cargo run --release\nprints\n", made.project.display());
    for line in made.expected.lines() {
        text.extend(["  ", line, "\n"]);
    }
    text
}

impl From<ScaffoldError> for Failure {
    fn from(error: ScaffoldError) -> Self {
        use ScaffoldError as E;
        match error {
            E::Library(error) => error.into(),
            E::Name { .. } | E::Twice { .. } => Self::usage(error),
            E::Folder { .. } => Self::usage(error).hint("name a folder that is not there yet"),
            E::Checkout { .. } => Self::usage(error).hint(
                "name a checkout with --rankpatch FOLDER: git clone https://github.com/rankpatch/rankpatch",
            ),
            E::Room { what: "base image and adapters in the program's flash", .. } => {
                Self::new(BAD_INPUT, error).hint("--partitions puts them beside the program")
            }
            _ => Self::new(BAD_INPUT, error),
        }
    }
}
