//! `rankpatch device`: what a device is asked, and its answers for people and programs.

mod log;
mod push;
mod text;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use rankpatch_format::link::Mode;
use serde::Serialize;

use super::console::{Console, Format, fields, grouped};
use super::exit::{BAD_INPUT, FAILURE, Failure, Outcome, REFUSED};
use super::features::Source;
use super::labels;
use super::sim::{Answer, SamplingArgs};
use super::spans::SpanAnswer;
use crate::client::lossy::{Faults, Lossy};
use crate::client::{
    Activated, Address, ClientError, Device, Generated, Options, Output, Sampling, Transport, mode_name,
};
use crate::data::audio;
use text::{info_text, slots_text, statistics_text, status_text};

/// The device behind an open port.
type Port = Device<Box<dyn Transport>>;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// The device: tcp:HOST:PORT, or a serial port as PATH[@BAUD]; `push` takes several, each with its own --port
    #[arg(long = "port", global = true, value_name = "PORT")]
    ports: Vec<Address>,
    /// Seconds to wait for work that a request asks for: a run, an erased flash sector
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    timeout: f32,
    /// How often to ask again where no answer comes
    #[arg(long, global = true, value_name = "N", default_value_t = Options::default().retries)]
    retries: u32,
    /// Damage the link on purpose, for tests: shares of frames, as in drop=0.1,duplicate=0,reorder=0,corrupt=0.02,stall=0,seed=7
    #[arg(long, global = true, value_name = "FAULTS", hide = true)]
    lossy: Option<Faults>,
    /// How to print the result
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Format,
}

fn seconds(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.01..=86_400.0).contains(&value) => Ok(value),
        _ => Err("expected a number of seconds, 0.01 to 86400".into()),
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Board, firmware, base, memory and what is applied
    Info,
    /// The adapters in the slots
    List,
    /// Uploads an adapter; goes on where an interrupted upload of the same file stopped
    Push(push::Args),
    /// Applies the adapter in a slot, runs its self-test and puts it on trial
    Activate {
        /// Index of the slot, or the name of the task
        slot: SlotName,
        #[command(flatten)]
        trial: Trial,
        /// Stream the factors, or merge them into weights in RAM
        #[arg(long, value_enum, default_value_t)]
        mode: ModeArg,
    },
    /// Makes the trial under way permanent: the adapter runs after a reset, too
    Confirm,
    /// Goes back from what runs to what was confirmed before
    Rollback,
    /// Goes back to the plain base, also after resets
    Detach,
    /// What runs, what would run after a reset, and how far an upload is
    Status,
    /// Gives up an upload that is under way
    Abort,
    /// Shows the device's log as it comes
    Log(log::Args),
    /// Runs the self-test of the adapter that is applied
    Selftest,
    /// Runs the network over a text, features or a recording
    #[command(group = clap::ArgGroup::new("input").required(true).args(["text", "features", "audio"]))]
    Run {
        /// A text
        #[arg(long)]
        text: Option<String>,
        #[command(flatten)]
        source: Source,
        /// A recording, of which the device makes its features: a .wav file of one channel with 16 bits a
        /// sample, or bare i16 little-endian samples
        #[arg(long, value_name = "FILE")]
        audio: Option<PathBuf>,
        /// Samples a second that the recording must have
        #[arg(long, value_name = "HZ", requires = "audio", default_value_t = 16_000)]
        rate: u32,
        /// Name the outputs as this adapter or base does
        #[arg(long, value_name = "FILE")]
        labels: Option<PathBuf>,
        /// Tell the spans of the text; the adapter must answer after each row
        #[arg(long, requires = "text", conflicts_with = "labels")]
        spans: bool,
    },
    /// Continues a text
    Generate {
        /// The text to continue; may be empty
        #[arg(long, default_value = "")]
        prompt: String,
        #[command(flatten)]
        sampling: SamplingArgs,
    },
    /// Counters since the device started
    Stats,
    /// Erases a slot that is not in use
    Remove {
        /// Index of the slot, or the name of the task
        slot: SlotName,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum ModeArg {
    #[default]
    Streamed,
    Merged,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Streamed => Self::Streamed,
            ModeArg::Merged => Self::Merged,
        }
    }
}

/// A slot as a person names it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SlotName {
    Index(u8),
    Task(String),
}

impl std::str::FromStr for SlotName {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::Task(text.to_owned()), Self::Index))
    }
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    let format = args.format;
    // Files are read before the port is opened: a bad one costs the device nothing.
    match &args.verb {
        Verb::Info => console.print(format, &connect(args)?.info()?, info_text),
        Verb::List => console.print(format, &connect(args)?.slots()?, |slots| slots_text(slots)),
        Verb::Push(push) => push::run(args, push, console),
        Verb::Log(log) => log::run(args, log, console),
        Verb::Confirm => {
            let mut device = connect(args)?;
            let slot = running(&mut device)?;
            console.print(format, &device.confirm(slot)?, status_text)
        }
        Verb::Rollback => {
            let mut device = connect(args)?;
            let slot = running(&mut device)?;
            console.print(format, &device.roll_back(slot)?, status_text)
        }
        Verb::Status => console.print(format, &connect(args)?.status()?, status_text),
        Verb::Abort => {
            connect(args)?.abort()?;
            console.print(format, &Done { done: true }, |_| "no upload is under way\n".into())
        }
        Verb::Activate { slot, trial, mode } => {
            let mut device = connect(args)?;
            let slot = find_slot(&mut device, slot)?;
            let activation = activate(&mut device, slot, (*mode).into(), *trial)?;
            console.print(format, &activation, Activation::text)
        }
        Verb::Detach => {
            connect(args)?.detach()?;
            console.print(format, &Done { done: true }, |_| "the plain base is back\n".into())
        }
        Verb::Selftest => {
            let tested = connect(args)?.self_test()?;
            console.print(format, &tested, |tested| {
                format!("self-test passed: digest {:#018x}, {} ticks\n", tested.digest, grouped(tested.ticks))
            })
        }
        Verb::Run { text: Some(text), spans: true, .. } => {
            let found = connect(args)?.spans(text)?;
            let told = Told { answer: SpanAnswer::new(text, &found.spans, found.digest), ticks: found.ticks };
            console
                .print(format, &told, |told| told.answer.text() + &fields(&[("ticks ", grouped(told.ticks))]))
        }
        Verb::Run { text, source, audio, rate, labels, .. } => {
            let labels = labels.as_ref().map_or(Ok(Vec::new()), |path| labels::read(path))?;
            let samples = audio.as_ref().map(|path| audio::samples(path, *rate)).transpose()?;
            self::run_once(args, (text.as_deref(), source, samples), labels, console)
        }
        Verb::Generate { prompt, sampling } => generate(args, prompt, *sampling, console),
        Verb::Stats => console.print(format, &connect(args)?.statistics()?, statistics_text),
        Verb::Remove { slot } => {
            let mut device = connect(args)?;
            let slot = find_slot(&mut device, slot)?;
            device.remove(slot)?;
            console.print(format, &Done { done: true }, |_| format!("slot {slot} is empty\n"))
        }
    }
}

#[derive(Debug, Serialize)]
struct Done {
    done: bool,
}

fn connect(args: &Args) -> Outcome<Port> {
    match args.ports.as_slice() {
        [address] => open(args, address, usize::MAX),
        [] => Err(Failure::usage("--port is missing: expected tcp:HOST:PORT or PATH[@BAUD]")),
        ports => Err(Failure::usage(format!(
            "expected one --port, found {}: only push takes several",
            ports.len()
        ))),
    }
}

fn open(args: &Args, address: &Address, window: usize) -> Outcome<Port> {
    let options = Options {
        work_timeout: Duration::from_secs_f32(args.timeout),
        answer_timeout: Duration::from_secs_f32(args.timeout).min(Options::default().answer_timeout),
        retries: args.retries,
        window,
        ..Options::default()
    };
    let port = address.open()?;
    let port = match args.lossy {
        Some(faults) => Box::new(Lossy::new(port, faults)),
        None => port,
    };
    Ok(Device::new(port, options)?)
}

/// The slot that runs.
fn running(device: &mut Port) -> Outcome<u8> {
    let running = device.status()?.running.map(|active| active.slot);
    running.ok_or_else(|| {
        Failure::new(REFUSED, anyhow::anyhow!("no adapter runs: expected one, found the plain base"))
    })
}

fn find_slot(device: &mut Port, name: &SlotName) -> Outcome<u8> {
    let task = match name {
        SlotName::Index(slot) => return Ok(*slot),
        SlotName::Task(task) => task,
    };
    let slots = device.slots()?;
    let adapters =
        || slots.iter().filter_map(|slot| slot.adapter.as_ref().map(|adapter| (slot.slot, adapter)));
    // Of several versions of a task the newest is meant.
    let newest =
        adapters().filter(|(_, adapter)| adapter.task == *task).max_by_key(|(_, adapter)| adapter.sequence);
    newest.map(|(slot, _)| slot).ok_or_else(|| {
        let tasks: Vec<&str> = adapters().map(|(_, adapter)| adapter.task.as_str()).collect();
        let found = if tasks.is_empty() { "no adapters".into() } else { tasks.join(", ") };
        ClientError::NoSuchTask { task: task.clone(), found }.into()
    })
}

#[derive(Debug, Serialize)]
struct Activation {
    slot: u8,
    mode: &'static str,
    confirmed: bool,
    #[serde(flatten)]
    activated: Activated,
}

impl Activation {
    fn text(&self) -> String {
        let Activated { n_patches, weight_bytes_copied, ticks, digest } = self.activated;
        format!(
            "slot {} is applied, {}, {}: {n_patches} sites, {} weight bytes copied, {} ticks, self-test digest {digest:#018x}\n",
            self.slot,
            self.mode,
            if self.confirmed { "confirmed" } else { "on trial" },
            grouped(weight_bytes_copied),
            grouped(ticks)
        )
    }
}

/// How long an activation is on trial.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Trial {
    /// Seconds after which the device goes back unless the trial is confirmed; otherwise it does at a reset
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    trial: u32,
    /// Confirm at once: nothing is left to try out
    #[arg(long, conflicts_with = "trial")]
    confirm: bool,
}

fn activate(device: &mut Port, slot: u8, mode: Mode, trial: Trial) -> Outcome<Activation> {
    let activated = device.activate(slot, mode, trial.trial)?;
    if trial.confirm {
        device.confirm(slot)?;
    }
    Ok(Activation { slot, mode: mode_name(mode), confirmed: trial.confirm, activated })
}

/// The output of a run on the device.
#[derive(Debug, Serialize)]
struct RunAnswer {
    #[serde(flatten)]
    answer: Answer,
    ticks: u64,
}

/// The spans that a device told.
#[derive(Debug, Serialize)]
struct Told {
    #[serde(flatten)]
    answer: SpanAnswer,
    ticks: u64,
}

fn run_once(
    args: &Args,
    (text, source, samples): (Option<&str>, &Source, Option<Vec<i16>>),
    labels: Vec<String>,
    console: &mut Console<'_>,
) -> Outcome {
    let features = source.read()?;
    let mut device = connect(args)?;
    let Output { values, ticks, .. } = match (text, features, samples) {
        (Some(text), ..) => device.run_text(text)?,
        (None, None, Some(samples)) => device.run_samples(&samples)?,
        (None, Some(features), _) => {
            let rows = features.rows.ok_or_else(|| {
                Failure::usage("the file does not state its shape: expected --rows, found none")
            })?;
            device.run_features(&features.values, rows)?
        }
        (None, None, None) => {
            return Err(Failure::usage("expected --text, --features or --audio, found none"));
        }
    };
    if !labels.is_empty() && labels.len() != values.len() {
        let (expected, found) = (values.len(), labels.len());
        let error = anyhow::anyhow!("the names do not fit the output: expected {expected}, found {found}");
        return Err(Failure::new(BAD_INPUT, error).hint("name the adapter that is applied"));
    }
    let answer = RunAnswer { answer: Answer::new(values, labels), ticks };
    console.print(args.format, &answer, |answer| {
        answer.answer.text() + &fields(&[("ticks ", grouped(answer.ticks))])
    })
}

fn generate(args: &Args, prompt: &str, sampling: SamplingArgs, console: &mut Console<'_>) -> Outcome {
    let SamplingArgs { max_tokens, temperature, seed } = sampling;
    let stream = args.format == Format::Text;
    let mut device = connect(args)?;
    if stream {
        write!(console.out, "{prompt}")?;
    }
    let mut failed = None;
    let generated = device.generate(prompt, Sampling { max_tokens, temperature, seed }, |_, bytes| {
        if stream && failed.is_none() {
            failed = console.out.write_all(bytes).and_then(|()| console.out.flush()).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let Generated { ids, digest, ticks, .. } = &generated;
    console.note(&format!("\n{} tokens, digest {digest:#018x}, {} ticks", ids.len(), grouped(*ticks)));
    console.print(args.format, &generated, |_| "\n".into())
}
