//! `rankpatch verify`: what a device would say to an adapter file.

use std::path::PathBuf;

use rankpatch_format::ProductId;
use rankpatch_format::adapter::{Adapter, Preview};
use rankpatch_runtime::trust::Identity;
use serde::Serialize;

use super::console::{Console, Format, fields};
use super::exit::{At as _, Outcome};
use crate::base::Image;
use crate::keys;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The adapter file
    #[arg(value_name = "FILE.rpa")]
    file: PathBuf,
    /// A key file that the devices know; may be given twice, as devices have two places for keys
    #[arg(long = "key", value_name = "FILE.pub", required = true, num_args = 1)]
    keys: Vec<PathBuf>,
    /// Name of the product; any if left out
    #[arg(long, value_name = "NAME")]
    product: Option<String>,
    /// The base that the devices have: also checks the whole content against it
    #[arg(long, value_name = "BASE.rpb")]
    base: Option<PathBuf>,
    /// The devices' highest sequence number so far: also checks that this one comes next
    #[arg(long, value_name = "N")]
    floor: Option<u32>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Verified {
    file: PathBuf,
    task: String,
    key_id: String,
    product_id: String,
    base_id: String,
    sequence: u32,
    step_limit: u32,
}

pub(super) fn run(args: &Args, console: &mut Console<'_>) -> Outcome {
    let file = std::fs::read(&args.file).map_err(crate::Error::io(&args.file))?;
    let keys = args.keys.iter().map(|path| keys::read_public(path)).collect::<crate::Result<Vec<_>>>()?;
    let preview = Preview::new(&file).at(&args.file)?;
    let header = keys::verify(&file, &keys).at(&args.file)?;
    let mut identity = Identity { product: header.product, base_id: header.base_id };
    if let Some(name) = &args.product {
        identity.product = ProductId::of(name);
    }
    let image = args.base.as_ref().map(|path| Image::read(path).at(path)).transpose()?;
    let base = image.as_ref().map(Image::base).transpose()?;
    if let Some(base) = &base {
        identity.base_id = base.id();
        Adapter::new(&file, base).at(&args.file)?;
    }
    match args.floor {
        Some(floor) => identity.admit(&header, floor).at(&args.file)?,
        None => identity.belongs(&header).at(&args.file)?,
    }
    let verified = Verified {
        file: args.file.clone(),
        task: preview.body.task.to_owned(),
        key_id: header.key_id.to_string(),
        product_id: header.product.to_string(),
        base_id: header.base_id.to_string(),
        sequence: header.sequence,
        step_limit: header.step_limit,
    };
    console.print(args.format, &verified, |verified| {
        fields(&[
            ("signature", format!("correct, by key {}", verified.key_id)),
            ("task", verified.task.clone()),
            ("product", verified.product_id.clone()),
            ("base", verified.base_id.clone()),
            (
                "sequence",
                format!("{}, at most {} above the one before", verified.sequence, verified.step_limit),
            ),
        ])
    })
}
