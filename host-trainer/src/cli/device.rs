//! `rankpatch device`: what a device is asked, and its answers for people and programs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use rankpatch_format::adapter::Preview;
use rankpatch_format::link::Mode;
use serde::Serialize;

use super::console::{Console, Format, Table, fields, grouped};
use super::exit::{At as _, BAD_INPUT, Failure, Outcome};
use super::features::Source;
use super::labels;
use super::progress::Bar;
use super::sim::{Answer, SamplingArgs};
use crate::Error;
use crate::client::{
    Activated, Active, Address, ClientError, Device, Generated, Info, Options, Output, Sampling, Slot,
    Statistics, Transport, Upload, mode_name,
};

/// The device behind an open port.
type Port = Device<Box<dyn Transport>>;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// The device: tcp:HOST:PORT, or a serial port as PATH[@BAUD]
    #[arg(long, global = true, value_name = "PORT")]
    port: Option<Address>,
    /// Seconds to wait for work that a request asks for: a run, an erased flash sector
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    timeout: f32,
    /// How often to ask again where no answer comes
    #[arg(long, global = true, value_name = "N", default_value_t = Options::default().retries)]
    retries: u32,
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
    Push(Push),
    /// Applies the adapter in a slot and runs its self-test
    Activate {
        /// Index of the slot, or the name of the task
        slot: SlotName,
        /// Stream the factors, or merge them into weights in RAM
        #[arg(long, value_enum, default_value_t)]
        mode: ModeArg,
    },
    /// Goes back to the plain base
    Detach,
    /// Runs the self-test of the adapter that is applied
    Selftest,
    /// Runs the network over a text or features
    #[command(group = clap::ArgGroup::new("input").required(true).args(["text", "features"]))]
    Run {
        /// A text
        #[arg(long)]
        text: Option<String>,
        #[command(flatten)]
        source: Source,
        /// Name the outputs as this adapter or base does
        #[arg(long, value_name = "FILE")]
        labels: Option<PathBuf>,
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
    /// Erases a slot that is not applied
    Remove {
        /// Index of the slot, or the name of the task
        slot: SlotName,
    },
}

#[derive(Debug, clap::Args)]
struct Push {
    /// The adapter file
    file: PathBuf,
    /// The slot to write; without it, the one with the same task unless it is applied, or an empty one
    #[arg(long, value_name = "N")]
    slot: Option<u8>,
    /// Apply the adapter afterwards
    #[arg(long)]
    activate: bool,
    /// How to apply it
    #[arg(long, value_enum, default_value_t, requires = "activate")]
    mode: ModeArg,
    /// Chunks in flight
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    window: u8,
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
        Verb::Push(push) => self::push(args, push, console),
        Verb::Activate { slot, mode } => {
            let mut device = connect(args)?;
            let slot = find_slot(&mut device, slot)?;
            let activation = activate(&mut device, slot, (*mode).into())?;
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
        Verb::Run { text, source, labels } => {
            let labels = labels.as_ref().map_or(Ok(Vec::new()), |path| labels::read(path))?;
            self::run_once(args, text.as_deref(), source, labels, console)
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
    let Some(address) = &args.port else {
        return Err(Failure::usage("--port is missing: expected tcp:HOST:PORT or PATH[@BAUD]"));
    };
    let window = if let Verb::Push(push) = &args.verb { push.window.into() } else { 1 };
    let options = Options {
        work_timeout: Duration::from_secs_f32(args.timeout),
        answer_timeout: Duration::from_secs_f32(args.timeout).min(Options::default().answer_timeout),
        retries: args.retries,
        window,
        ..Options::default()
    };
    Ok(Device::new(address.open()?, options)?)
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

/// What a push did.
#[derive(Debug, Serialize)]
struct Pushed {
    payload_bytes: usize,
    file_bytes: usize,
    wire_bytes: u64,
    seconds: f64,
    #[serde(flatten)]
    upload: Upload,
    activation: Option<Activation>,
}

#[derive(Debug, Serialize)]
struct Activation {
    slot: u8,
    mode: &'static str,
    #[serde(flatten)]
    activated: Activated,
}

impl Activation {
    fn text(&self) -> String {
        let Activated { n_patches, weight_bytes_copied, ticks, digest } = self.activated;
        format!(
            "slot {} is applied, {}: {n_patches} sites, {} weight bytes copied, {} ticks, self-test digest {digest:#018x}\n",
            self.slot,
            self.mode,
            grouped(weight_bytes_copied),
            grouped(ticks)
        )
    }
}

fn activate(device: &mut Port, slot: u8, mode: Mode) -> Outcome<Activation> {
    Ok(Activation { slot, mode: mode_name(mode), activated: device.activate(slot, mode)? })
}

fn push(args: &Args, push: &Push, console: &mut Console<'_>) -> Outcome {
    let file = std::fs::read(&push.file).map_err(Error::io(&push.file))?;
    let preview = Preview::new(&file).at(&push.file)?;
    let mut device = connect(args)?;
    let info = device.info()?;
    check_fit(&push.file, &preview, &info)?;
    let slot = match push.slot {
        Some(slot) => slot,
        None => choose_slot(&mut device, preview.body.task, info.active)?,
    };
    let start = std::time::Instant::now();
    let bar = Bar::new(console.interactive, file.len() as u64);
    let upload = device.upload(slot, &file, |next| bar.set(next.into()))?;
    bar.finish();
    let seconds = start.elapsed().as_secs_f64();
    let activation = push.activate.then(|| activate(&mut device, slot, push.mode.into())).transpose()?;
    let pushed = Pushed {
        payload_bytes: super::inspect::payload_bytes(&preview),
        file_bytes: file.len(),
        wire_bytes: upload.wire.total_bytes(),
        seconds,
        upload,
        activation,
    };
    console.print(args.format, &pushed, pushed_text)
}

/// Refuses before anything is sent what the device would refuse afterwards.
fn check_fit(path: &Path, preview: &Preview<'_>, info: &Info) -> Outcome {
    let (expected, found) = (info.base_id, preview.header.base_id);
    if expected != found {
        return Err(Failure::from(rankpatch_format::Error::WrongBase { expected, found }).at(path));
    }
    let (most, found) = (info.slot_bytes, preview.file.len());
    if found > most as usize {
        let error = anyhow::anyhow!(
            "the file does not fit into a slot: expected at most {most} bytes, found {found}"
        );
        return Err(Failure::new(BAD_INPUT, error)
            .at(path)
            .hint("a lower rank or fewer target_modules make it smaller"));
    }
    Ok(())
}

/// The slot with the same task unless it is applied, or the first empty one.
fn choose_slot(device: &mut Port, task: &str, active: Option<Active>) -> Outcome<u8> {
    let slots = device.slots()?;
    let idle = || slots.iter().filter(|slot| active.is_none_or(|active| active.slot != slot.slot));
    let same = idle().find(|slot| slot.adapter.as_ref().is_some_and(|adapter| adapter.task == task));
    let slot = same.or_else(|| idle().find(|slot| slot.adapter.is_none()));
    let no_slot = || ClientError::NoFreeSlot { task: task.to_owned(), n_slots: slots.len() as u8 };
    Ok(slot.ok_or_else(no_slot)?.slot)
}

/// The output of a run on the device.
#[derive(Debug, Serialize)]
struct RunAnswer {
    #[serde(flatten)]
    answer: Answer,
    ticks: u64,
}

fn run_once(
    args: &Args,
    text: Option<&str>,
    source: &Source,
    labels: Vec<String>,
    console: &mut Console<'_>,
) -> Outcome {
    let features = source.read()?;
    let mut device = connect(args)?;
    let Output { values, ticks, .. } = match (text, features) {
        (Some(text), _) => device.run_text(text)?,
        (None, Some(features)) => {
            let rows = features.rows.ok_or_else(|| {
                Failure::usage("the file does not state its shape: expected --rows, found none")
            })?;
            device.run_features(&features.values, rows)?
        }
        (None, None) => return Err(Failure::usage("expected --text or --features, found none")),
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

fn info_text(info: &Info) -> String {
    let active = info.active.map_or("the plain base".into(), |active| {
        format!("slot {}, {}", active.slot, mode_name(active.mode))
    });
    fields(&[
        ("board", info.board.clone()),
        ("firmware", info.firmware.clone()),
        ("base", format!("{} ({} sites)", info.base, info.n_sites)),
        ("id", info.base_id.to_string()),
        ("slots", format!("{} of {} bytes", info.n_slots, grouped(info.slot_bytes))),
        (
            "arena",
            format!("{} bytes, {} needed", grouped(info.arena_bytes), grouped(info.arena_bytes_needed)),
        ),
        ("applied", active),
    ])
}

fn slots_text(slots: &[Slot]) -> String {
    let mut table = Table::new(2, &["slot", "task", "sequence", "sites", "head", "bytes"]);
    for slot in slots {
        match &slot.adapter {
            None => table.row(&[&slot.slot, &"-"]),
            Some(adapter) => table.row(&[
                &slot.slot,
                &adapter.task,
                &adapter.sequence,
                &adapter.n_patches,
                &adapter.head_outputs,
                &grouped(adapter.file_bytes),
            ]),
        }
    }
    table.to_string()
}

fn pushed_text(pushed: &Pushed) -> String {
    let Pushed { payload_bytes, file_bytes, wire_bytes, seconds, upload, activation } = pushed;
    let resumed = if upload.resumed_at > 0 {
        format!(", resumed at {}", grouped(upload.resumed_at))
    } else {
        String::new()
    };
    let repeated = if upload.repeated_chunks > 0 {
        format!(", {} repeated", upload.repeated_chunks)
    } else {
        String::new()
    };
    let text = fields(&[
        (
            "slot",
            format!("{} ({}, sequence {})", upload.slot, upload.installed.task, upload.installed.sequence),
        ),
        ("payload", format!("{} bytes", grouped(*payload_bytes))),
        ("file", format!("{} bytes", grouped(*file_bytes))),
        (
            "wire",
            format!(
                "{} bytes ({} sent, {} received) in {seconds:.2} s",
                grouped(*wire_bytes),
                grouped(upload.wire.sent_bytes),
                grouped(upload.wire.received_bytes)
            ),
        ),
        ("chunks", format!("{}{repeated}{resumed}", upload.chunks)),
    ]);
    text + &activation.as_ref().map_or(String::new(), Activation::text)
}

fn statistics_text(statistics: &Statistics) -> String {
    fields(&[
        (
            "frames",
            format!("{} accepted, {} refused", grouped(statistics.frames), grouped(statistics.bad_frames)),
        ),
        ("rows run", format!("{} in {} ticks", grouped(statistics.rows), grouped(statistics.run_ticks))),
        ("installed", grouped(statistics.installs)),
        ("activated", grouped(statistics.activations)),
        ("detached", grouped(statistics.detaches)),
        ("failed self-tests", grouped(statistics.failed_self_tests)),
        ("peak stack", format!("{} bytes", grouped(statistics.peak_stack_bytes))),
    ])
}
