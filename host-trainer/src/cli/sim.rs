//! `rankpatch sim`: the device's own code on the host, with the same bits as on the chip.

use std::path::{Path, PathBuf};

use rankpatch_format::adapter::{Adapter, Head};
use rankpatch_format::digest::Digest;
use rankpatch_format::link::Mode;
use serde::Serialize;

use super::console::{Console, Format, Table, fields, grouped};
use super::exit::{At as _, BAD_INPUT, Failure, Outcome};
use super::features::{Features, Source};
use super::spans::SpanAnswer;
use crate::Error;
use crate::base::Image;
use crate::client::mode_name;
use crate::data::audio;
use crate::data::encoder::TextEncoder;
use crate::sim::{Generated, Input, Sampling, Simulator, run as run_input};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["prompt", "text", "features", "audio"]))]
pub(super) struct Args {
    /// The base image
    #[arg(long, value_name = "BASE.rpb")]
    base: PathBuf,
    /// The adapter to apply
    #[arg(long, value_name = "ADAPTER.rpa")]
    adapter: Option<PathBuf>,
    /// Apply the adapter merged into the weights instead of streamed
    #[arg(long, requires = "adapter")]
    merged: bool,
    /// A text to continue; may be empty
    #[arg(long)]
    prompt: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// A text to run the network over; an adapter that answers after each row tells its spans
    #[arg(long)]
    text: Option<String>,
    /// What splits the text for a base without a tokenizer: tokenizer.json of its model, or the folder of it
    #[arg(long, value_name = "PATH", requires = "text")]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
    /// A recording: a .wav file of one channel with 16 bits a sample, or bare i16 little-endian
    /// samples; the base makes its features
    #[arg(long, value_name = "FILE")]
    audio: Option<PathBuf>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// How a text is continued.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct SamplingArgs {
    /// Most tokens to add
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(super) max_tokens: u32,
    /// 0 takes the likeliest token; otherwise logits are divided by it
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature, allow_negative_numbers = true)]
    pub(super) temperature: f32,
    /// Seed of the sampler
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(super) seed: u32,
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a number, 0 or more".into()),
    }
}

/// What every run has in common.
#[derive(Debug, Serialize)]
struct Setup {
    base: String,
    task: Option<String>,
    mode: Option<&'static str>,
    weight_bytes_copied: usize,
    arena_bytes: usize,
}

#[derive(Debug, Serialize)]
struct Continued<'a> {
    #[serde(flatten)]
    setup: &'a Setup,
    prompt: &'a str,
    text: String,
    ids: &'a [u16],
    digest: String,
}

/// The output of a run, also of one on a device.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    /// Index of the greatest output.
    pub(super) argmax: usize,
    /// Its name, if outputs have names.
    pub(super) label: Option<String>,
    pub(super) digest: String,
    pub(super) values: Vec<f32>,
    #[serde(skip)]
    pub(super) labels: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Answered {
    #[serde(flatten)]
    setup: Setup,
    #[serde(flatten)]
    answer: Answer,
}

#[derive(Debug, Serialize)]
struct Told {
    #[serde(flatten)]
    setup: Setup,
    #[serde(flatten)]
    answer: SpanAnswer,
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    let mode = if args.merged { Mode::Merged } else { Mode::Streamed };
    let simulator = simulator(&args.base, args.adapter.as_deref(), mode)?;
    let setup = setup(&simulator, mode)?;
    if let Some(prompt) = &args.prompt {
        return generate(&simulator, &setup, prompt, args, console);
    }
    if let Some((text, adapter)) = args.text.as_ref().zip(simulator.adapter()?)
        && adapter.head().is_some_and(|head| head.info.pooling.is_every_row())
    {
        let (spans, digest) = simulator.spans(text)?;
        let told = Told { setup, answer: SpanAnswer::new(text, &spans, digest) };
        return console.print(args.format, &told, |told| told.answer.text());
    }
    let tokens =
        args.text.as_deref().map(|text| encode(&simulator, text, args.tokenizer.as_deref())).transpose()?;
    let features = args.source.read()?;
    if let Some((features, path)) = features.as_ref().zip(args.source.features.as_ref()) {
        check_shape(features, &simulator).map_err(|failure| failure.at(path))?;
    }
    let samples = args.audio.as_deref().map(|path| recording(&simulator, path)).transpose()?;
    let input = match (&tokens, &features, &samples) {
        (Some(tokens), ..) => Input::Tokens(tokens),
        (None, Some(features), _) => Input::Features(&features.values),
        (None, None, Some(samples)) => Input::Samples(samples),
        (None, None, None) => {
            return Err(Failure::usage("expected --prompt, --text, --features or --audio, found none"));
        }
    };
    let values = simulator.session(|engine| Ok(run_input(engine, input)?.to_vec()))?;
    let answered = Answered { setup, answer: Answer::new(values, labels(&simulator)?) };
    console.print(args.format, &answered, |answered| answered.answer.text())
}

/// The ids of a text, split by the base's tokenizer or by one that is named.
fn encode(simulator: &Simulator, text: &str, tokenizer: Option<&Path>) -> Outcome<Vec<u16>> {
    let Some(path) = tokenizer else { return Ok(simulator.encode(text)?) };
    let base = simulator.base()?;
    let texts = TextEncoder::of(&base, Path::new(""), Some(path), None)?;
    let ids = texts.map_or(Ok(Vec::new()), |texts| texts.sequence(text, None))?;
    let id = |id: u32| {
        u16::try_from(id).map_err(|_| {
            let error =
                anyhow::anyhow!("ids of {text:?}: expected ids below 65536, as devices take, found {id}");
            Failure::new(BAD_INPUT, error)
        })
    };
    ids.into_iter().map(id).collect()
}

/// The samples of a file, at the rate of the base's front end.
fn recording(simulator: &Simulator, path: &Path) -> Outcome<Vec<i16>> {
    let base = simulator.base()?;
    let front_end = base.front_end().ok_or_else(|| {
        let error = anyhow::anyhow!("expected a base that reads samples, found {}", base.manifest().name);
        Failure::new(BAD_INPUT, error).hint("build the base without --no-front-end")
    })?;
    Ok(audio::samples(path, front_end.sample_rate)?)
}

/// Refuses features whose stated rows are not as wide as the base reads them.
fn check_shape(features: &Features, simulator: &Simulator) -> Outcome {
    let (width @ 1.., Some(rows)) = (simulator.base()?.feature_width(), features.rows) else {
        return Ok(());
    };
    let (expected, found) = (width as u64 * u64::from(rows), features.values.len() as u64);
    if expected == found {
        return Ok(());
    }
    let error = anyhow::anyhow!("expected {rows} rows of {width} numbers, {expected} in all, found {found}");
    Err(Failure::new(BAD_INPUT, error))
}

/// A device in memory with the base and the adapter of these files.
pub(super) fn simulator(base: &Path, adapter: Option<&Path>, mode: Mode) -> Outcome<Simulator> {
    let simulator = Simulator::new(Image::read(base)?).at(base)?;
    let Some(adapter) = adapter else { return Ok(simulator) };
    let file = std::fs::read(adapter).map_err(Error::io(adapter))?;
    simulator.with_adapter(file, mode).at(adapter)
}

fn setup(simulator: &Simulator, mode: Mode) -> Outcome<Setup> {
    let attachment = simulator.attached_session(|_, attachment| Ok(attachment))?;
    Ok(Setup {
        base: simulator.base()?.manifest().name.to_owned(),
        task: simulator.adapter()?.map(|adapter| adapter.body().task.to_owned()),
        mode: attachment.map(|_| mode_name(mode)),
        weight_bytes_copied: attachment.map_or(0, |attachment| attachment.weight_bytes_copied),
        arena_bytes: simulator.arena_bytes()?,
    })
}

/// Names of the outputs: those of the adapter's head, or those of the base.
fn labels(simulator: &Simulator) -> Outcome<Vec<String>> {
    let base = simulator.base()?;
    let adapter = simulator.adapter()?;
    let names = adapter.as_ref().and_then(Adapter::head).map_or(base.labels(), Head::labels);
    Ok(names.map(str::to_owned).collect())
}

fn generate(
    simulator: &Simulator,
    setup: &Setup,
    prompt: &str,
    args: &Args,
    console: &mut Console<'_>,
) -> Outcome {
    let SamplingArgs { max_tokens, temperature, seed } = args.sampling;
    let sampling = Sampling { max_tokens: max_tokens as usize, temperature, seed };
    let stream = args.format == Format::Text;
    if stream {
        write!(console.out, "{prompt}")?;
    }
    let mut failed = None;
    let Generated { ids, text, digest } = simulator.generate(prompt, sampling, |bytes| {
        if stream && failed.is_none() {
            failed = console.out.write_all(bytes).and_then(|()| console.out.flush()).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    console.note(&format!(
        "\n{} tokens, digest {digest:#018x}, arena {} bytes",
        ids.len(),
        grouped(setup.arena_bytes)
    ));
    let text = String::from_utf8_lossy(&text).into_owned();
    let digest = format!("{digest:#018x}");
    let continued = Continued { setup, prompt, text, ids: &ids, digest };
    console.print(args.format, &continued, |_| "\n".into())
}

impl Answer {
    pub(super) fn new(values: Vec<f32>, labels: Vec<String>) -> Self {
        let argmax = rankpatch_runtime::math::argmax(&values);
        let digest = format!("{:#018x}", Digest::of(&values));
        Self { argmax, label: labels.get(argmax).cloned(), digest, values, labels }
    }

    /// The greatest outputs with their names.
    pub(super) fn text(&self) -> String {
        const SHOWN: usize = 12;
        let mut order: Vec<usize> = (0..self.values.len()).collect();
        order.sort_by(|a, b| self.values[*b].total_cmp(&self.values[*a]).then(a.cmp(b)));
        let mut table = if self.labels.is_empty() {
            Table::new(0, &["output", "value"])
        } else {
            Table::new(1, &["label", "output", "value"])
        };
        for index in order.iter().take(SHOWN) {
            let value = format!("{:.4}", self.values[*index]);
            match self.labels.get(*index) {
                Some(label) => table.row(&[label, index, &value]),
                None => table.row(&[index, &value]),
            }
        }
        let rest = self.values.len().saturating_sub(SHOWN);
        let more = if rest > 0 { format!("and {rest} more\n") } else { String::new() };
        let digest = fields(&[("digest", self.digest.clone())]);
        format!("{table}{more}{digest}")
    }
}
