//! Firmware projects from templates: what `rankpatch new` writes, and what the generated program will print.
//!
//! The templates are `boards/template`; an emulated machine is a [`Machine`]. The expected output comes from the device's code on
//! the host, so that a project states what its program prints before anything has been compiled. Nothing here writes files.

mod machine;
mod name;

use std::path::{Path, PathBuf};

use rankpatch_format::adapter::{Adapter, Head};
use rankpatch_format::base::Base;
use rankpatch_format::digest::{Digest, XorShift32};
use rankpatch_format::link::Mode;

use crate::base::Image;
use crate::bundle::{self, Geometry};
use crate::sim::{Input, Sampling, Simulator};
use crate::{Error, files};

pub use machine::{MACHINES, Machine, Region};
pub use name::check_name;

/// The base of a project that names none, below the checkout.
pub const USUAL_BASE: &str = "tests/data/bases/requests33k";
/// The adapter that comes with [`USUAL_BASE`].
pub const USUAL_ADAPTER: &str = "tests/data/adapters/small-intent.rpa";
/// The question that [`USUAL_BASE`] is asked.
pub const USUAL_PROMPT: &str = "play some jazz";

/// Most tokens that a text is continued with.
const MAX_TOKENS: usize = 16;
/// The partition of adapters on every machine.
const GEOMETRY: Geometry = Geometry {
    slots: 7,
    slot_bytes: 65_536,
    journal_pages: 8,
    page_bytes: 2048,
    word_bytes: 4,
    erased: 0xFF,
};
/// Bytes of flash that are left to the program when base and adapters are embedded.
const PROGRAM_BYTES: u64 = 192 * 1024;
/// Bytes of the arena beside the engine's: inputs and outputs over the line.
const MORE_ARENA_BYTES: usize = 96 * 1024;

/// Why a project cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScaffoldError {
    /// The name is none that a package and its program can have.
    #[error("project name {found:?}: expected {expected}")]
    Name {
        /// The name.
        found: String,
        /// Names that would do.
        expected: &'static str,
    },
    /// The folder is in use.
    #[error("{}: expected a new or an empty folder, found {found}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The crates that the project depends on are not where they should be.
    #[error("{}: expected a checkout of Rankpatch, found no {missing}", path.display())]
    Checkout {
        /// The folder that should be the checkout.
        path: PathBuf,
        /// A file that it lacks.
        missing: String,
    },
    /// Something is too large for the machine.
    #[error("{what}: expected at most {expected} bytes, found {found}")]
    Room {
        /// What is too large.
        what: &'static str,
        /// Bytes that there are.
        expected: u64,
        /// Bytes needed.
        found: u64,
    },
    /// Two adapters would be the same file of the project.
    #[error("adapter {found:?} is given twice: expected files of different names")]
    Twice {
        /// The name.
        found: String,
    },
    /// The example would not know what to ask.
    #[error("base {base:?}: expected one with a tokenizer, or one that reads features")]
    Question {
        /// Name of the base.
        base: String,
    },
    /// What the library refuses.
    #[error(transparent)]
    Library(#[from] Error),
}

impl From<rankpatch_format::Error> for ScaffoldError {
    fn from(error: rankpatch_format::Error) -> Self {
        Self::Library(error.into())
    }
}

/// What the example asks.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// A text.
    Text(String),
    /// Feature rows, row-major, and where they come from, in words.
    Features(Vec<f32>, String),
}

impl Question {
    /// A question for a base that is given none: a text, or rows of pseudo-random numbers as self-tests use them, also for a base that
    /// makes its rows of samples.
    ///
    /// # Errors
    /// [`ScaffoldError::Question`] if the base reads token ids and has no tokenizer.
    pub fn usual(base: &Base<'_>, text: &str) -> Result<Self, ScaffoldError> {
        match base.feature_width() {
            0 if base.tokenizer().is_some() => Ok(Self::Text(text.into())),
            0 => Err(ScaffoldError::Question { base: base.manifest().name.into() }),
            width => {
                let (mut random, rows) = (XorShift32::new(1), base.manifest().max_rows as usize);
                let values = (0..width * rows).map(|_| random.feature()).collect();
                Ok(Self::Features(values, "Pseudo-random numbers that stand for a recording".into()))
            }
        }
    }
}

/// A project to be made.
#[derive(Debug)]
pub struct Request<'a> {
    /// Name of package and product, checked by [`check_name`].
    pub name: &'a str,
    /// The checkout with the crates that the project depends on, an absolute path.
    pub checkout: &'a Path,
    /// The machine.
    pub machine: &'a Machine,
    /// The base.
    pub base: Image,
    /// Adapter files, each with the name that its file in the project gets, without extension.
    pub adapters: Vec<(String, Vec<u8>)>,
    /// What the example asks.
    pub question: Question,
    /// Whether base and adapters lie in partitions instead of in the program.
    pub partitions: bool,
}

/// A project: its files, and what its program prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Paths below the project's folder, and contents.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// What `cargo run --release` prints.
    pub expected: String,
}

/// Whether a folder can take a project: it is not there, or it is empty.
///
/// # Errors
/// [`ScaffoldError::Folder`], or [`Error::Io`] if it cannot be looked at.
pub fn check_folder(path: &Path) -> Result<(), ScaffoldError> {
    let in_use = |found| Err(ScaffoldError::Folder { path: path.to_path_buf(), found });
    match std::fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            Some(_) => in_use("one with files in it"),
            None => Ok(()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => in_use("a file"),
        Err(error) => Err(Error::io(path)(error).into()),
    }
}

/// The checkout at `path` as an absolute path.
///
/// # Errors
/// [`ScaffoldError::Checkout`] if it lacks a crate that projects depend on.
pub fn checkout(path: &Path) -> Result<PathBuf, ScaffoldError> {
    let needed = [
        "rust-toolchain.toml",
        "rustfmt.toml",
        "Cargo.lock",
        "boards/common/Cargo.toml",
        "device-runtime/Cargo.toml",
        "format/Cargo.toml",
    ];
    let missing = |missing: &str| ScaffoldError::Checkout { path: path.into(), missing: missing.into() };
    if let Some(file) = needed.iter().find(|file| !path.join(file).is_file()) {
        return Err(missing(file));
    }
    path.canonicalize().map_err(|error| Error::io(path)(error).into())
}

/// Makes a project in memory.
///
/// # Errors
/// [`ScaffoldError`], as each variant says; the device's own refusals as [`ScaffoldError::Library`].
pub fn project(request: &Request<'_>) -> Result<Project, ScaffoldError> {
    let Request { machine, adapters, partitions, .. } = request;
    let mut names: Vec<_> = adapters.iter().map(|(name, _)| name).collect();
    names.sort();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ScaffoldError::Twice { found: pair[0].clone() });
    }
    let expected = expected(request)?;
    let values = values(request, &expected)?;
    let fill = |template: &str| fill(template, &values).into_bytes();
    let mut files: Vec<(&str, Vec<u8>)> = vec![
        ("Cargo.toml", fill(include_str!("../../../boards/template/manifest.toml"))),
        ("Cargo.lock", read(request.checkout, "Cargo.lock")?.into_bytes()),
        ("rust-toolchain.toml", fill(include_str!("../../../boards/template/toolchain.toml"))),
        (".cargo/config.toml", fill(include_str!("../../../boards/template/config.toml"))),
        ("rustfmt.toml", read(request.checkout, "rustfmt.toml")?.into_bytes()),
        (".gitignore", b"/target\n*.key\n".to_vec()),
        ("README.md", fill(include_str!("../../../boards/template/README.md"))),
        ("build.rs", fill(include_str!("../../../boards/template/build.rs"))),
        ("memory.x", fill(include_str!("../../../boards/template/memory.x"))),
        ("src/lib.rs", fill(include_str!("../../../boards/template/lib.rs"))),
        ("src/board.rs", fill(include_str!("../../../boards/template/board.rs"))),
        ("src/bin/over_the_air.rs", fill(include_str!("../../../boards/template/over_the_air.rs"))),
        ("assets/base.rpb", request.base.bytes().to_vec()),
    ];
    let embedded = adapters.iter().map(|(_, file)| file.len() as u64).sum::<u64>();
    let base_bytes = request.base.bytes().len() as u64;
    if *partitions {
        room("base image", machine.base.length, base_bytes)?;
        let adapters: Vec<_> = adapters.iter().map(|(_, file)| file.clone()).collect();
        files.push(("assets/slots.rpk", bundle::build(&GEOMETRY, &adapters, None)?));
        files.push(("src/assets.rs", fill(include_str!("../../../boards/template/partitions.rs"))));
    } else {
        let room_left = machine.flash.length - PROGRAM_BYTES;
        room("base image and adapters in the program's flash", room_left, base_bytes + embedded)?;
        files.push(("src/assets.rs", fill(include_str!("../../../boards/template/embedded.rs"))));
    }
    match &request.question {
        Question::Text(_) => {
            files.push(("src/main.rs", fill(include_str!("../../../boards/template/text.rs"))));
        }
        Question::Features(values, _) => {
            files.push(("src/main.rs", fill(include_str!("../../../boards/template/features.rs"))));
            files.push(("assets/input.f32", files::f32_bytes(values)));
        }
    }
    let mut files: Vec<(PathBuf, Vec<u8>)> =
        files.into_iter().map(|(path, bytes)| (path.into(), bytes)).collect();
    if !partitions {
        let asset = |(name, file): &(String, Vec<u8>)| (format!("assets/{name}.rpa").into(), file.clone());
        files.extend(adapters.iter().map(asset));
    }
    Ok(Project { files, expected })
}

/// What the program prints: the base, each adapter, the base again.
fn expected(request: &Request<'_>) -> Result<String, ScaffoldError> {
    let plain = Simulator::new(request.base.clone())?;
    let base = answer(&plain, "the base", &request.question)?;
    let mut text = base.clone();
    for (_, file) in &request.adapters {
        let adapted = plain.clone().with_adapter(file.clone(), Mode::Streamed)?;
        let task = adapted.adapter()?.map_or_else(String::new, |adapter| adapter.body().task.to_owned());
        text += &answer(&adapted, &task, &request.question)?;
    }
    Ok(text + &base)
}

/// One line of the program's output, as `answer` in the templates prints it.
fn answer(simulator: &Simulator, who: &str, question: &Question) -> Result<String, ScaffoldError> {
    let (base, adapter) = (simulator.base()?, simulator.adapter()?);
    let head = adapter.as_ref().and_then(Adapter::head);
    let label = |index: usize| {
        let mut names = head.map_or(base.labels(), Head::labels);
        names.nth(index).unwrap_or("no label").to_owned()
    };
    let run = |input: Input<'_>| {
        let values = simulator.session(|engine| Ok(crate::sim::run(engine, input)?.to_vec()))?;
        Ok::<_, Error>((rankpatch_runtime::math::argmax(&values), Digest::of(&values)))
    };
    Ok(match question {
        Question::Features(values, _) => {
            let (best, digest) = run(Input::Features(values))?;
            format!("{who}: output {best} -> {} ({digest:016x})\n", label(best))
        }
        Question::Text(prompt) if head.is_some() => {
            let (best, digest) = run(Input::Tokens(&simulator.encode(prompt)?))?;
            format!("{who}: {prompt} -> {} ({digest:016x})\n", label(best))
        }
        Question::Text(prompt) => {
            let sampling = Sampling { max_tokens: MAX_TOKENS, temperature: 0.0, seed: 1 };
            let generated = simulator.generate(prompt, sampling, |_| {})?;
            let text = String::from_utf8_lossy(&generated.text).into_owned();
            format!("{who}: {prompt}{text} ({:016x})\n", generated.digest)
        }
    })
}

fn room(what: &'static str, expected: u64, found: u64) -> Result<(), ScaffoldError> {
    if found <= expected { Ok(()) } else { Err(ScaffoldError::Room { what, expected, found }) }
}

fn read(checkout: &Path, file: &str) -> Result<String, ScaffoldError> {
    let path = checkout.join(file);
    Ok(std::fs::read_to_string(&path).map_err(Error::io(&path))?)
}

/// The compiler that the checkout is built with.
fn channel(checkout: &Path) -> Result<String, ScaffoldError> {
    let text = read(checkout, "rust-toolchain.toml")?;
    let table: toml::Table = text.parse().unwrap_or_default();
    let channel = table.get("toolchain").and_then(|toolchain| toolchain.get("channel")?.as_str());
    channel.map(str::to_owned).ok_or_else(|| {
        let expected = "a channel of the compiler";
        Error::field(&checkout.join("rust-toolchain.toml"), "toolchain.channel", expected, "none").into()
    })
}

/// What the templates' placeholders stand for.
fn values(request: &Request<'_>, expected: &str) -> Result<Vec<(&'static str, String)>, ScaffoldError> {
    let Request { name, machine, adapters, question, partitions, .. } = request;
    let base = request.base.base()?;
    let arena_needed = rankpatch_runtime::arena_bytes(&base, base.manifest().max_rows as usize);
    let arena_bytes = (arena_needed + MORE_ARENA_BYTES).next_multiple_of(16 * 1024);
    room("arena in RAM", machine.ram.length / 4 * 3, arena_bytes as u64)?;
    let path = |folder: &str| toml_string(&request.checkout.join(folder).to_string_lossy());
    let is_text = matches!(question, Question::Text(_));
    let prompt = match question {
        Question::Text(prompt) => prompt.clone(),
        Question::Features(..) => String::new(),
    };
    let input = match question {
        Question::Text(_) => String::new(),
        Question::Features(_, source) => source.clone(),
    };
    let loader = |file: &str, region: Region| {
        let device = format!("loader,file=assets/{file},addr={:#x},force-raw=on", region.origin);
        format!("    \"-device\", \"{device}\",\n")
    };
    let loaders = if *partitions {
        loader("base.rpb", machine.base) + &loader("slots.rpk", machine.slots)
    } else {
        String::new()
    };
    let embedded = |(name, _): &(String, Vec<u8>)| {
        format!("        &Aligned(*include_bytes!(\"../assets/{name}.rpa\")),\n")
    };
    let pick = |yes: &str, no: &str| if *partitions { yes.to_owned() } else { no.to_owned() };
    let mut values = vec![
        ("name", (*name).to_owned()),
        ("crate", name.replace('-', "_")),
        ("channel", channel(request.checkout)?),
        ("board_path", path("boards/common")),
        ("format_path", path("format")),
        ("runtime_path", path("device-runtime")),
        ("dependencies", if is_text { "" } else { "bytemuck = \"1\"\n" }.to_owned()),
        ("loaders", loaders),
        ("base", base.manifest().name.to_owned()),
        ("base_id", base.id().to_string()),
        ("arena_needed", arena_needed.to_string()),
        ("arena_bytes", arena_bytes.to_string()),
        ("n_adapters", adapters.len().to_string()),
        ("adapters", adapters.iter().map(embedded).collect()),
        ("prompt", format!("{prompt:?}")),
        ("max_tokens", MAX_TOKENS.to_string()),
        ("input", input),
        ("expected", expected.to_owned()),
        ("change", if is_text { "`PROMPT`" } else { "`assets/input.f32`" }.to_owned()),
        (
            "device_run",
            if is_text { format!("run --text {prompt:?}") } else { "run --features assets/input.f32".into() },
        ),
        ("in_flash", pick("the program", "the program with base and adapters")),
        ("in_base", pick("`assets/base.rpb`", "nothing; the base is in the program")),
        ("in_slots", pick("`assets/slots.rpk`", "what `over_the_air` is sent")),
        ("assets_row", pick("base and adapters in their partitions", "base and adapters, built in")),
        (
            "assets_list",
            pick(
                "`base.rpb`, and `slots.rpk`, the partition that `rankpatch bundle` built",
                "`base.rpb` and the adapters",
            ),
        ),
        (
            "another",
            pick(
                "Put it into the partition with `rankpatch bundle FILE.rpa .. -o assets/slots.rpk`.",
                "Put the file into `assets/` and name it in `src/assets.rs`.",
            ),
        ),
    ];
    values.extend(machine.values());
    Ok(values)
}

/// A string as TOML writes it.
fn toml_string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Puts values in the place of `{{key}}`.
fn fill(template: &str, values: &[(&'static str, String)]) -> String {
    let mut parts = template.split("{{");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // A value is not looked through: a prompt may hold braces.
        let (key, rest) = part.split_once("}}").unwrap_or((part, ""));
        let value = values.iter().find(|(known, _)| *known == key);
        text += value.map_or("", |(_, value)| value);
        text += rest;
    }
    text
}

#[cfg(test)]
mod tests;
