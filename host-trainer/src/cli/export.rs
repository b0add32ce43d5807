//! `rankpatch export`: adapters between their two forms, PEFT folders and files for devices.

use std::path::PathBuf;

use clap::ValueEnum;
use rankpatch_format::adapter::{Adapter, MAX_TASK_BYTES, Pooling};
use serde::Serialize;

use super::console::{Console, Format, fields, grouped};
use super::exit::{At as _, BAD_INPUT, Failure, Outcome};
use super::task::{LoadedBase, digest, load_adapter, load_base};
use crate::export::export;
use crate::{files, peft};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The adapter: a PEFT folder or an .rpa file
    #[arg(long, value_name = "ADAPTER", alias = "peft")]
    from: PathBuf,
    /// The base that it is for: an image or a model
    #[arg(long, value_name = "BASE")]
    base: PathBuf,
    /// What to write: an .rpa file, or a PEFT folder if the name has another end
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Name of the task, if not the adapter's own (of a folder by PEFT: the folder's name)
    #[arg(long)]
    task: Option<String>,
    /// What the task head reads, where the folder does not say: PEFT has no word for it
    #[arg(long, value_enum)]
    pooling: Option<Pool>,
    /// Names of the head's outputs, between commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    labels: Option<Vec<String>>,
    /// Sequence number of the file
    #[arg(long, default_value_t = 1)]
    sequence: u32,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pool {
    /// The mean over the rows
    Mean,
    /// The last row
    Last,
    /// Each row, after which it answers
    Every,
    /// Each row at a second reading
    Reread,
}

#[derive(Debug, Serialize)]
struct Written {
    output: PathBuf,
    task: String,
    base: String,
    base_id: String,
    sites: usize,
    ranks: Vec<usize>,
    labels: Vec<String>,
    payload_bytes: usize,
    adapter_file_bytes: usize,
    self_test_digest: String,
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    let base = load_base(&args.base)?;
    let mut float = load_adapter(&args.from, &base)?.float;
    if let Some(task) = &args.task {
        if !(1..=MAX_TASK_BYTES).contains(&task.len()) {
            return Err(Failure::usage(format!(
                "--task: expected 1 to {MAX_TASK_BYTES} bytes, found {task:?}"
            )));
        }
        float.task.clone_from(task);
    }
    if let Some(head) = &mut float.head {
        match args.pooling {
            None => {}
            Some(Pool::Mean) => head.pooling = Pooling::Mean,
            Some(Pool::Last) => head.pooling = Pooling::Last,
            Some(Pool::Every) => head.pooling = Pooling::Every,
            Some(Pool::Reread) => head.pooling = Pooling::Reread,
        }
        if let Some(labels) = &args.labels {
            if labels.len() != head.labels.len() {
                let (expected, found) = (head.labels.len(), labels.len());
                return Err(Failure::usage(format!("--labels: expected {expected} names, found {found}")));
            }
            head.labels.clone_from(labels);
        }
    } else if args.pooling.is_some() || args.labels.is_some() {
        let error =
            anyhow::anyhow!("expected an adapter with a task head, for --pooling and --labels, found none");
        return Err(Failure::new(BAD_INPUT, error).at(&args.from));
    }
    let LoadedBase { network, image } = &base;
    console.note("measuring with the device's code");
    let exported = export(&float, network, args.sequence, |file| digest(image, file)).at(&args.from)?;
    if args.output.extension().is_some_and(|extension| extension == "rpa") {
        files::write_atomically(&args.output, &exported.file)?;
    } else {
        peft::write(&float, network, &args.output)?;
    }
    let payload_bytes = Adapter::new(&exported.file, &image.base()?)?.payload_bytes();
    let written = Written {
        output: args.output.clone(),
        task: float.task,
        base: network.name.clone(),
        base_id: network.id().to_string(),
        sites: float.sites.len(),
        ranks: float.sites.iter().map(|factors| factors.site.rank).collect(),
        labels: float.head.map(|head| head.labels).unwrap_or_default(),
        payload_bytes,
        adapter_file_bytes: exported.file.len(),
        self_test_digest: format!("{:#018x}", exported.data.self_test.digest),
    };
    console.print(args.format, &written, |written| {
        let (least, most) = (written.ranks.iter().min(), written.ranks.iter().max());
        let ranks = match (least, most) {
            (Some(least), Some(most)) if least == most => format!("rank {most}"),
            (Some(least), Some(most)) => format!("rank {least} to {most}"),
            _ => "a head only".into(),
        };
        fields(&[
            ("adapter", written.output.display().to_string()),
            ("task", written.task.clone()),
            ("base", format!("{} ({})", written.base, written.base_id)),
            ("sites", format!("{}, {ranks}", written.sites)),
            (
                "file",
                format!(
                    "{} bytes, payload {}",
                    grouped(written.adapter_file_bytes),
                    grouped(written.payload_bytes)
                ),
            ),
            ("self-test", written.self_test_digest.clone()),
        ])
    })
}
