//! `rankpatch device log`: the device's defmt log over the link that requests use, decoded with the tables of its firmware.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use defmt_decoder::{DecodeError, Table};
use serde::Serialize;

use super::super::console::{Console, Format};
use super::super::exit::{BAD_INPUT, Failure, Outcome};
use super::connect;
use crate::Error;

/// How long the wire is watched at a time.
const WATCH: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The firmware's ELF file, whose tables the log is decoded with
    #[arg(long, value_name = "FIRMWARE.elf")]
    elf: PathBuf,
    /// Seconds to listen; until interrupted if left out
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    seconds: Option<f32>,
}

/// A line of the log.
#[derive(Debug, Serialize)]
struct Line {
    /// Device time, as the board prints it.
    timestamp: String,
    level: String,
    text: String,
}

pub(super) fn run(args: &super::Args, log: &Args, console: &mut Console<'_>) -> Outcome {
    let elf = std::fs::read(&log.elf).map_err(Error::io(&log.elf))?;
    let no_tables = |found: String| {
        let error =
            anyhow::anyhow!("{}: expected a firmware with defmt tables, found {found}", log.elf.display());
        Failure::new(BAD_INPUT, error)
    };
    let table = Table::parse(&elf).map_err(|error| no_tables(error.to_string()))?;
    let table = table.ok_or_else(|| no_tables("none".into()))?;
    let mut device = connect(args)?;
    device.set_log(true)?;
    let end = log.seconds.map(|seconds| Instant::now() + Duration::from_secs_f32(seconds));
    let mut decoder = table.new_stream_decoder();
    let mut lost = 0;
    while end.is_none_or(|end| Instant::now() < end) {
        let (bytes, lost_now) = device.log(Instant::now() + WATCH)?;
        if lost_now != lost {
            console.log(&format!("{} bytes of the log were lost", lost_now.wrapping_sub(lost)));
            lost = lost_now;
        }
        decoder.received(&bytes);
        loop {
            match decoder.decode() {
                Ok(frame) => {
                    let line = Line {
                        timestamp: frame.display_timestamp().map(|time| time.to_string()).unwrap_or_default(),
                        level: frame.level().map_or("", |level| level.as_str()).to_owned(),
                        text: frame.display_message().to_string(),
                    };
                    match args.format {
                        Format::Text => {
                            writeln!(console.out, "{:>9} {:<5} {}", line.timestamp, line.level, line.text)?;
                        }
                        Format::Json => {
                            serde_json::to_writer(&mut *console.out, &line).map_err(std::io::Error::from)?;
                            writeln!(console.out)?;
                        }
                    }
                    console.out.flush()?;
                }
                Err(DecodeError::UnexpectedEof) => break,
                // The stream was joined in the middle of a frame, or bytes were lost: the next frame is whole again.
                Err(DecodeError::Malformed) if table.encoding().can_recover() => {}
                Err(DecodeError::Malformed) => return Err(no_tables("those of another firmware".into())),
            }
        }
    }
    device.set_log(false)?;
    Ok(())
}
