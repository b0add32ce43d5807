//! What `train` and `eval` have in common: the task's file with overrides from the command line, its base, and adapters
//! as they lie on disk.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, error::Error as ClapError};
use rankpatch_format::adapter::Adapter;
use rankpatch_format::layout::Layout;
use rankpatch_format::write::{AdapterData, Network};

use super::exit::{At as _, Outcome};
use crate::base::{Image, quantize};
use crate::export::{dequantize, export};
use crate::lora::FloatAdapter;
use crate::report::SUMMARY;
use crate::sim::Simulator;
use crate::train::{TaskData, TrainConfig};
use crate::{Error, import, peft};

/// Folder of the PEFT adapter, in the output folder of a run.
pub(super) const PEFT: &str = "peft";

/// Every key of the configuration as an option, `--learning-rate 1e-3`.
#[derive(Debug, Clone, Default)]
pub(super) struct Overrides(pub(super) Vec<(String, String)>);

impl FromArgMatches for Overrides {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, ClapError> {
        let given = TrainConfig::keys()
            .filter_map(|(key, _)| Some((key.to_owned(), matches.get_one::<String>(key)?.clone())));
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), ClapError> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Overrides {
    fn augment_args(command: Command) -> Command {
        command.next_help_heading("Configuration (overrides the task's file)").args(TrainConfig::keys().map(
            |(key, expected)| {
                let alias = TrainConfig::aliases().find(|(name, _)| *name == key).map(|(_, alias)| alias);
                let names = [Some(key), alias].into_iter().flatten();
                // With dashes as options are written, with underscores as keys are.
                let names = names.flat_map(|name| [name.replace('_', "-"), name.to_owned()]);
                Arg::new(key)
                    .long(key.replace('_', "-"))
                    .aliases(names.skip(1))
                    .value_name("VALUE")
                    // So that what a key expects is said of a number below 0 too.
                    .allow_negative_numbers(true)
                    .help(expected)
            },
        ))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// A base as it trains and as it runs.
pub(super) struct LoadedBase {
    pub(super) network: Network,
    pub(super) image: Image,
}

/// A base that can be trained.
pub(super) enum Trainable {
    /// One that devices run.
    Device(Box<LoadedBase>),
    /// One with operators that only hosts run, quantized: there is no image. With what devices do not run.
    Host(Box<Network>, rankpatch_format::Error),
}

impl Trainable {
    pub(super) fn network(&self) -> &Network {
        match self {
            Self::Device(base) => &base.network,
            Self::Host(network, _) => network,
        }
    }

    /// A task's examples as this base takes them.
    pub(super) fn data(&self, config: &TrainConfig) -> crate::Result<TaskData> {
        match self {
            Self::Device(base) => TaskData::load(config, &base.image.base()?),
            Self::Host(network, _) => TaskData::load_on_host(config, network),
        }
    }

    /// The base with its image, for what needs the device's code; `path` is where it came from.
    ///
    /// # Errors
    /// Which operator devices do not run.
    pub(super) fn on_device(&self, path: &Path) -> Outcome<&LoadedBase> {
        match self {
            Self::Device(base) => Ok(base),
            Self::Host(_, reason) => Err(Error::from(*reason)).at(path),
        }
    }
}

/// Loads a base image, or imports and quantizes a model.
pub(super) fn load_trainable(path: &Path) -> Outcome<Trainable> {
    let is_image = path.extension().is_some_and(|extension| extension == "rpb");
    let mut tensor_names = None;
    let image = if is_image {
        Image::read(path)?
    } else {
        let network = import::load(path)?;
        if let Err(reason) = network.check_operators() {
            return Ok(Trainable::Host(Box::new(quantize(&network).at(path)?), reason));
        }
        // The layout of the host; adapters do not depend on it.
        let image = Image::build(&network, Layout::RowMajor, 16).at(path)?;
        tensor_names = Some(network.tensor_names);
        image
    };
    let mut network = Network::read(&image.base().at(path)?);
    if let Some(names) = tensor_names.filter(|names| names.len() == network.tensors.len()) {
        // An image has none of its own.
        network.tensor_names = names;
    }
    Ok(Trainable::Device(Box::new(LoadedBase { network, image })))
}

/// The same for what needs the device's code.
pub(super) fn load_base(path: &Path) -> Outcome<LoadedBase> {
    match load_trainable(path)? {
        Trainable::Device(base) => Ok(*base),
        Trainable::Host(_, reason) => Err(Error::from(reason)).at(path),
    }
}

/// An adapter in float and as a file.
pub(super) struct LoadedAdapter {
    pub(super) float: FloatAdapter,
    pub(super) file: Vec<u8>,
}

/// Loads an adapter file, a PEFT folder or the output folder of a run, whose PEFT folder is taken. The float factors of a file
/// are those that its codes stand for; the file of a folder is what exporting it gives.
pub(super) fn load_adapter(path: &Path, base: &LoadedBase) -> Outcome<LoadedAdapter> {
    let LoadedBase { network, image } = base;
    if path.is_dir() {
        let float = peft::read(&peft_folder(path), network)?;
        let file = export(&float, network, 0, |file| digest(image, file))?.file;
        return Ok(LoadedAdapter { float, file });
    }
    let file = std::fs::read(path).map_err(Error::io(path))?;
    let image = image.base()?;
    let adapter = Adapter::new(&file, &image).at(path)?;
    let float = dequantize(&AdapterData::read(&adapter, &image), network).at(path)?;
    Ok(LoadedAdapter { float, file })
}

/// Loads the float factors of an adapter for any base. A base that devices do not run has no adapter files.
pub(super) fn load_float_adapter(path: &Path, base: &Trainable) -> Outcome<FloatAdapter> {
    match base {
        Trainable::Device(base) => Ok(load_adapter(path, base)?.float),
        Trainable::Host(network, _) if path.is_dir() => Ok(peft::read(&peft_folder(path), network)?),
        Trainable::Host(..) => {
            let expected = "a PEFT folder or the output folder of a run: devices do not run this base".into();
            let found = if path.exists() { "a file" } else { "nothing" }.into();
            Err(Error::UnknownFile { path: path.to_owned(), expected, found }.into())
        }
    }
}

/// The PEFT folder in the output folder of a run, or the folder itself.
fn peft_folder(path: &Path) -> PathBuf {
    if path.join(SUMMARY).is_file() { path.join(PEFT) } else { path.to_path_buf() }
}

/// The digest of an adapter's self-test, measured with the device's code.
pub(super) fn digest(image: &Image, file: &[u8]) -> crate::Result<u64> {
    let mode = rankpatch_format::link::Mode::Streamed;
    Simulator::new(image.clone())?.with_adapter(file.to_vec(), mode)?.self_test_digest()
}
