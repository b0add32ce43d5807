//! `rankpatch bundle`: partition images with many adapters, built, read back and planned.

use std::path::PathBuf;

use rankpatch_runtime::slots::MIN_JOURNAL_PAGES;

use super::console::{Console, Format, Table, fields, grouped};
use super::exit::{Failure, Outcome};
use crate::bundle::{self, Contents, Geometry, Plan};
use crate::{Error, files, keys};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["output", "read", "plan"]))]
pub(super) struct Args {
    /// The adapter files to bundle; for --plan, of which the largest counts
    #[arg(value_name = "FILE.rpa")]
    files: Vec<PathBuf>,
    /// Builds the image of the partition
    #[arg(short, long, value_name = "TASKS.rpk")]
    output: Option<PathBuf>,
    /// Lists what an image, built or dumped from a device, holds
    #[arg(long, value_name = "DUMP")]
    read: Option<PathBuf>,
    /// Shows how many tasks fit beside firmware and base
    #[arg(long, value_name = "FLASH_BYTES")]
    plan: Option<usize>,
    /// With --read: writes the adapters into this folder
    #[arg(long, value_name = "FOLDER", requires = "read")]
    extract: Option<PathBuf>,
    /// The task that runs from the first start on
    #[arg(long, value_name = "TASK", requires = "output")]
    active: Option<String>,
    /// A public key that must have signed every file
    #[arg(long, value_name = "FILE.pub", requires = "output")]
    key: Option<PathBuf>,
    /// Adapter slots
    #[arg(long, value_name = "N", default_value_t = 7)]
    slots: usize,
    /// Bytes per slot, whole pages
    #[arg(long, value_name = "BYTES", default_value_t = 65_536)]
    slot_bytes: usize,
    /// Bytes per page of the flash; those of the emulated M4 and M55 if left out
    #[arg(long, value_name = "BYTES", default_value_t = 2048)]
    page_bytes: usize,
    /// Bytes per word of the flash
    #[arg(long, value_name = "BYTES", default_value_t = 4)]
    word_bytes: usize,
    /// Pages of the journal behind the slots
    #[arg(long, value_name = "N", default_value_t = 8)]
    journal_pages: usize,
    /// Value of an erased byte
    #[arg(long, value_name = "0|255", default_value_t = 255, value_parser = erased)]
    erased: u8,
    /// For --plan: bytes of the firmware
    #[arg(long, value_name = "BYTES", default_value_t = 131_072)]
    firmware_bytes: usize,
    /// For --plan: the base image
    #[arg(long, value_name = "BASE.rpb")]
    base: Option<PathBuf>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn erased(text: &str) -> Result<u8, String> {
    text.parse().ok().filter(|value| [0, 255].contains(value)).ok_or_else(|| "expected 0 or 255".into())
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    let geometry = Geometry {
        slots: args.slots,
        slot_bytes: args.slot_bytes,
        journal_pages: args.journal_pages,
        page_bytes: args.page_bytes,
        word_bytes: args.word_bytes,
        erased: args.erased,
    };
    if let Some(flash) = args.plan {
        return plan(args, flash, console);
    }
    if let Some(path) = &args.read {
        let image = std::fs::read(path).map_err(Error::io(path))?;
        let contents = bundle::read(&geometry, &image)?;
        if let Some(folder) = &args.extract {
            for slot in contents.slots.iter().filter(|slot| !slot.file.is_empty()) {
                let task = slot.task.as_deref().unwrap_or("unknown");
                let name = format!("{task}-{}.rpa", slot.sequence.unwrap_or(0));
                files::write_atomically(&folder.join(name), &slot.file)?;
            }
        }
        return console.print(args.format, &contents, contents_text);
    }
    let read = |path: &PathBuf| std::fs::read(path).map_err(Error::io(path));
    let files = args.files.iter().map(read).collect::<crate::Result<Vec<_>>>()?;
    if let Some(key) = &args.key {
        let key = keys::read_public(key)?;
        for (path, file) in args.files.iter().zip(&files) {
            keys::verify(file, &[key]).map_err(|error| Failure::from(error).at(path))?;
        }
    }
    let image = bundle::build(&geometry, &files, args.active.as_deref())?;
    // What a device would see, from the bytes that it gets.
    let contents = bundle::read(&geometry, &image)?;
    if let Some(output) = &args.output {
        files::write_atomically(output, &image)?;
    }
    console.print(args.format, &contents, |contents| {
        format!("{} bytes\n{}", grouped(image.len()), contents_text(contents))
    })
}

fn plan(args: &Args, flash: usize, console: &mut Console<'_>) -> Outcome {
    let length = |path: &PathBuf| {
        std::fs::metadata(path).map(|metadata| metadata.len() as usize).map_err(Error::io(path))
    };
    let base = args.base.as_ref().map_or(Ok(0), length)?;
    let file = args.files.iter().map(length).collect::<crate::Result<Vec<_>>>()?.into_iter().max();
    let file = file.ok_or_else(|| Failure::usage("expected an adapter file to plan with, found none"))?;
    let plan = bundle::plan(flash, args.firmware_bytes, base, file, args.page_bytes)?;
    console.print(args.format, &plan, plan_text)
}

fn plan_text(plan: &Plan) -> String {
    let bytes = |bytes: usize| format!("{} bytes", grouped(bytes));
    fields(&[
        ("flash", bytes(plan.flash_bytes)),
        ("firmware", bytes(plan.firmware_bytes)),
        ("base", bytes(plan.base_bytes)),
        ("journal", format!("{}, {MIN_JOURNAL_PAGES} pages", bytes(plan.journal_bytes))),
        ("slot", bytes(plan.slot_bytes)),
        ("tasks", plan.slots.to_string()),
        ("free", bytes(plan.free_bytes)),
    ])
}

fn contents_text(contents: &Contents) -> String {
    let mut table = Table::new(3, &["slot", "state", "task", "sequence", "bytes", "erased"]);
    for slot in &contents.slots {
        let task = slot.task.as_deref().unwrap_or("-");
        let sequence = slot.sequence.map_or_else(String::new, |sequence| sequence.to_string());
        table.row(&[&slot.slot, &slot.life, &task, &sequence, &grouped(slot.file_bytes), &slot.wear]);
    }
    let active = contents.active.map_or_else(|| "the plain base".into(), |slot| format!("slot {slot}"));
    format!("{table}runs {active}; floor {}\n", contents.floor)
}
