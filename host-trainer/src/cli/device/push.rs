//! `rankpatch device push`: to one device, or to several at the same time.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use rankpatch_format::adapter::Preview;
use serde::Serialize;

use super::super::console::{Console, fields, grouped};
use super::super::exit::{At as _, BAD_INPUT, Failure, Outcome};
use super::super::inspect;
use super::super::progress::Bar;
use super::{Activation, ModeArg, Port, Trial, activate, open};
use crate::Error;
use crate::client::{Address, ClientError, Info, Upload};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The adapter file
    file: PathBuf,
    /// The slot to write; without it, an empty one that the device chooses, or the one with the same task
    #[arg(long, value_name = "N")]
    slot: Option<u8>,
    /// Apply the adapter afterwards, on trial
    #[arg(long)]
    activate: bool,
    #[command(flatten)]
    trial: Trial,
    /// How to apply it
    #[arg(long, value_enum, default_value_t, requires = "activate")]
    mode: ModeArg,
    /// Most chunks in flight; the device says how many it allows
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u8).range(1..=32))]
    window: u8,
}

/// What a push did.
#[derive(Debug, Serialize)]
struct Pushed {
    port: String,
    payload_bytes: usize,
    file_bytes: usize,
    wire_bytes: u64,
    seconds: f64,
    #[serde(flatten)]
    upload: Upload,
    activation: Option<Activation>,
}

pub(super) fn run(args: &super::Args, push: &Args, console: &mut Console<'_>) -> Outcome {
    // The file is read before a port is opened: a bad one costs no device anything.
    let file = std::fs::read(&push.file).map_err(Error::io(&push.file))?;
    let preview = Preview::new(&file).at(&push.file)?;
    match args.ports.as_slice() {
        [] => Err(Failure::usage("--port is missing: expected tcp:HOST:PORT or PATH[@BAUD]")),
        [address] => {
            let bar = Bar::new(console.interactive, file.len() as u64);
            let pushed = push_to(args, push, address, &file, &preview, |next| bar.set(next.into()))?;
            bar.finish();
            console.print(args.format, &pushed, pushed_text)
        }
        addresses => {
            let bar = Bar::new(console.interactive, (file.len() * addresses.len()) as u64);
            let bar = Mutex::new((bar, vec![0; addresses.len()]));
            let results = push_to_all(args, push, addresses, &file, &preview, &bar);
            if let Ok((bar, _)) = bar.into_inner() {
                bar.finish();
            }
            report_all(args, addresses, results, console)
        }
    }
}

/// A thread for each device: they wait for answers most of the time.
fn push_to_all(
    args: &super::Args,
    push: &Args,
    addresses: &[Address],
    file: &[u8],
    preview: &Preview<'_>,
    bar: &Mutex<(Bar, Vec<u64>)>,
) -> Vec<Outcome<Pushed>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = addresses
            .iter()
            .enumerate()
            .map(|(at, address)| {
                scope.spawn(move || {
                    push_to(args, push, address, file, preview, |next| {
                        if let Ok(mut bar) = bar.lock() {
                            bar.1[at] = next.into();
                            bar.0.set(bar.1.iter().sum());
                        }
                    })
                })
            })
            .collect();
        let failed = || Err(Failure::new(super::FAILURE, anyhow::anyhow!("the push broke off")));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| failed())).collect()
    })
}

/// Prints what was done, even if not everywhere; fails with the first failure.
fn report_all(
    args: &super::Args,
    addresses: &[Address],
    results: Vec<Outcome<Pushed>>,
    console: &mut Console<'_>,
) -> Outcome {
    let (mut pushed, mut first) = (Vec::new(), None);
    for (address, result) in addresses.iter().zip(results) {
        match result {
            Ok(report) => pushed.push(report),
            Err(failure) => {
                let failure = Failure { error: failure.error.context(address.to_string()), ..failure };
                if first.is_some() {
                    console.log(failure.render().trim_end());
                } else {
                    first = Some(failure);
                }
            }
        }
    }
    console.print(args.format, &pushed, |pushed| {
        let texts: Vec<String> =
            pushed.iter().map(|pushed| format!("{}\n{}", pushed.port, pushed_text(pushed))).collect();
        texts.concat()
    })?;
    first.map_or(Ok(()), Err)
}

fn push_to(
    args: &super::Args,
    push: &Args,
    address: &Address,
    file: &[u8],
    preview: &Preview<'_>,
    progress: impl FnMut(u32),
) -> Outcome<Pushed> {
    let mut device = open(args, address, push.window.into())?;
    let info = device.info()?;
    check_fit(&push.file, preview, &info)?;
    let slot = match push.slot {
        Some(slot) => Some(slot),
        None => choose_slot(&mut device, preview)?,
    };
    let start = Instant::now();
    let upload = device.upload(slot, file, progress)?;
    let seconds = start.elapsed().as_secs_f64();
    let slot = upload.slot;
    let activation =
        push.activate.then(|| activate(&mut device, slot, push.mode.into(), push.trial)).transpose()?;
    Ok(Pushed {
        port: address.to_string(),
        payload_bytes: inspect::payload_bytes(preview),
        file_bytes: file.len(),
        wire_bytes: upload.wire.total_bytes(),
        seconds,
        upload,
        activation,
    })
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

/// `None` where the device has an empty slot to choose, or the file already; otherwise a slot with the same task that is not in use:
/// no other task is given up without being named.
fn choose_slot(device: &mut Port, preview: &Preview<'_>) -> Outcome<Option<u8>> {
    let slots = device.slots()?;
    let adapters =
        || slots.iter().filter_map(|slot| slot.adapter.as_ref().map(|adapter| (slot.slot, adapter)));
    let task = preview.body.task;
    let is_there = |adapter: &crate::client::Installed| {
        adapter.task == task && adapter.sequence == preview.header.sequence
    };
    if adapters().count() < slots.len() || adapters().any(|(_, adapter)| is_there(adapter)) {
        return Ok(None);
    }
    let status = device.status()?;
    let in_use = [status.trial, status.confirmed];
    let same = adapters().find(|(slot, adapter)| adapter.task == task && !in_use.contains(&Some(*slot)));
    let no_slot = || ClientError::NoFreeSlot { task: task.to_owned(), n_slots: slots.len() as u8 };
    Ok(Some(same.ok_or_else(no_slot)?.0))
}

fn pushed_text(pushed: &Pushed) -> String {
    let Pushed { payload_bytes, file_bytes, wire_bytes, seconds, upload, activation, .. } = pushed;
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
