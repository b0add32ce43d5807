//! `rankpatch base build`: from a published model to a base image.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use rankpatch_format::layout::Layout;
use serde::Serialize;

use super::console::{Console, Format, fields, grouped};
use super::exit::{At as _, Outcome};
use crate::base::Image;
use crate::{files, import};

/// Rows of a pass over a network that streams: enough to reuse each weight of a prompt, small enough for the arena of
/// a microcontroller.
const DEFAULT_PASS_ROWS: u32 = 16;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Imports a model, quantizes it to int8 and writes a base image
    Build(Build),
}

#[derive(Debug, clap::Args)]
pub(super) struct Build {
    /// The model: a Hugging Face folder (config.json), or a file or a folder with exactly one (llama2.c .bin with its tokenizer, KWT
    /// .safetensors)
    #[arg(long)]
    from: PathBuf,
    /// The core whose weight layout to use; adapters fit every layout
    #[arg(long, value_enum, default_value_t = Target::CortexM4)]
    target: Target,
    /// Most rows (tokens) of one pass; more make prompts faster and the arena larger
    #[arg(long, default_value_t = DEFAULT_PASS_ROWS, value_parser = clap::value_parser!(u32).range(1..))]
    pass_rows: u32,
    /// Leave out the audio front end that the model comes with: the device gets feature rows that are made
    /// elsewhere. The base has another identity then
    #[arg(long)]
    no_front_end: bool,
    /// The image to write
    #[arg(short, long, value_name = "BASE.rpb")]
    output: PathBuf,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    CortexM0,
    CortexM3,
    CortexM4,
    CortexM7,
    CortexM33,
    CortexM55,
    Riscv32,
    Host,
}

impl Target {
    /// Cores with SMLAD and cores with Helium have a layout of their own; all others read rows.
    fn layout(self) -> Layout {
        match self {
            Self::CortexM4 | Self::CortexM7 | Self::CortexM33 => Layout::Dsp4x4,
            Self::CortexM55 => Layout::Mve4x16,
            Self::CortexM0 | Self::CortexM3 | Self::Riscv32 | Self::Host => Layout::RowMajor,
        }
    }
}

#[derive(Debug, Serialize)]
struct Built<'a> {
    output: &'a Path,
    name: &'a str,
    base_id: String,
    layout: String,
    image_bytes: usize,
    sites: u16,
    max_rows: u32,
    pass_rows: u32,
    arena_bytes: usize,
}

pub(super) fn run(command: &Command, console: &mut Console<'_>) -> Outcome {
    let Command::Build(args) = command;
    let network = if args.no_front_end {
        import::load_without_front_end(&args.from)?
    } else {
        import::load(&args.from)?
    };
    console.note(&format!("quantizing {} ({} sites)", network.name, network.site_names.len()));
    let image = Image::build(&network, args.target.layout(), args.pass_rows).at(&args.from)?;
    let base = image.base().at(&args.from)?;
    files::write_atomically(&args.output, image.bytes())?;
    let manifest = base.manifest();
    let built = Built {
        output: &args.output,
        name: manifest.name,
        base_id: base.id().to_string(),
        layout: format!("{:?}", args.target.layout()),
        image_bytes: image.bytes().len(),
        sites: base.n_sites(),
        max_rows: manifest.max_rows,
        pass_rows: manifest.pass_rows,
        arena_bytes: rankpatch_runtime::arena_bytes(&base, manifest.max_rows as usize),
    };
    console.print(args.format, &built, |built| {
        fields(&[
            ("base", built.name.into()),
            ("id", built.base_id.clone()),
            ("layout", built.layout.clone()),
            ("sites", built.sites.to_string()),
            ("rows", format!("at most {}, {} in a pass", built.max_rows, built.pass_rows)),
            ("image", format!("{} bytes in {}", grouped(built.image_bytes), built.output.display())),
            ("arena", format!("{} bytes", grouped(built.arena_bytes))),
        ])
    })
}
