//! `rankpatch sign`: gives an adapter file its product, its sequence number and a signature.

use std::path::PathBuf;

use rankpatch_format::ProductId;
use rankpatch_format::header::{self, MAX_STEP_LIMIT};
use serde::Serialize;

use super::console::{Console, Format, fields, grouped};
use super::exit::{At as _, Failure, Outcome};
use crate::files;
use crate::keys::SecretKey;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The adapter file, signed or not
    #[arg(value_name = "FILE.rpa")]
    file: PathBuf,
    /// The secret key file
    #[arg(long, value_name = "FILE.key")]
    key: PathBuf,
    /// Name of the product whose devices may install it, as their firmware was built with
    #[arg(long, value_name = "NAME")]
    product: String,
    /// Sequence number: devices accept rising numbers only; the file's own if left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    sequence: Option<u32>,
    /// How far above a device's highest sequence number this one may be
    #[arg(long, value_name = "N", default_value_t = MAX_STEP_LIMIT,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_STEP_LIMIT)))]
    step_limit: u32,
    /// The signed file; the file itself if left out
    #[arg(short, long, value_name = "FILE.rpa")]
    output: Option<PathBuf>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Signed {
    file: PathBuf,
    key_id: String,
    product: String,
    product_id: String,
    sequence: u32,
    step_limit: u32,
    file_bytes: u32,
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    let mut file = std::fs::read(&args.file).map_err(crate::Error::io(&args.file))?;
    let key = SecretKey::read(&args.key)?;
    let own = header::check(&file).at(&args.file)?;
    if args.product.is_empty() {
        return Err(Failure::usage("--product is empty: expected the name of a product"));
    }
    let product = ProductId::of(&args.product);
    let sequence = args.sequence.unwrap_or(own.sequence);
    let header = key.sign(&mut file, product, sequence, args.step_limit).at(&args.file)?;
    let output = args.output.as_ref().unwrap_or(&args.file);
    files::write_atomically(output, &file)?;
    let signed = Signed {
        file: output.clone(),
        key_id: header.key_id.to_string(),
        product: args.product.clone(),
        product_id: product.to_string(),
        sequence,
        step_limit: header.step_limit,
        file_bytes: header.file_bytes,
    };
    console.print(args.format, &signed, |signed| {
        fields(&[
            ("signed", signed.file.display().to_string()),
            ("key", signed.key_id.clone()),
            ("product", format!("{} ({})", signed.product, signed.product_id)),
            (
                "sequence",
                format!("{}, at most {} above the one before", signed.sequence, grouped(signed.step_limit)),
            ),
            ("file", format!("{} bytes", grouped(signed.file_bytes))),
        ])
    })
}
