//! What `train` and `eval` have in common: the task's file with overrides from the command line, its base, and adapters
//! as they lie on disk.

use std::path::Path;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, error::Error as ClapError};
use rankpatch_format::adapter::Adapter;
use rankpatch_format::layout::Layout;
use rankpatch_format::write::{AdapterData, Network};

use super::exit::{At as _, Outcome};
use crate::base::{Image, quantize};
use crate::export::{dequantize, export};
use crate::lora::FloatAdapter;
use crate::sim::Simulator;
use crate::train::TrainConfig;
use crate::{Error, import, peft};

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
    /// One with operators that only hosts run, quantized: there is no image.
    Host(Box<Network>),
}

impl Trainable {
    pub(super) fn network(&self) -> &Network {
        match self {
            Self::Device(base) => &base.network,
            Self::Host(network) => network,
        }
    }
}

/// Loads a base image, or imports and quantizes a model.
pub(super) fn load_trainable(path: &Path) -> Outcome<Trainable> {
    let is_image = path.extension().is_some_and(|extension| extension == "rpb");
    let image = if is_image {
        Image::read(path)?
    } else {
        let network = import::load(path)?;
        if network.check_operators().is_err() {
            return Ok(Trainable::Host(Box::new(quantize(&network).at(path)?)));
        }
        // The layout of the host; adapters do not depend on it.
        Image::build(&network, Layout::RowMajor, 16).at(path)?
    };
    let network = Network::read(&image.base().at(path)?);
    Ok(Trainable::Device(Box::new(LoadedBase { network, image })))
}

/// The same for what needs the device's code.
pub(super) fn load_base(path: &Path) -> Outcome<LoadedBase> {
    match load_trainable(path)? {
        Trainable::Device(base) => Ok(*base),
        Trainable::Host(network) => match network.check_operators() {
            Err(error) => Err(Error::from(error)).at(path),
            Ok(()) => unreachable!("a network with other operators has an image"),
        },
    }
}

/// An adapter in float and as a file.
pub(super) struct LoadedAdapter {
    pub(super) float: FloatAdapter,
    pub(super) file: Vec<u8>,
}

/// Loads an adapter file or a PEFT folder. The float factors of a file are those that its codes stand for; the file of a
/// folder is what exporting it gives.
pub(super) fn load_adapter(path: &Path, base: &LoadedBase) -> Outcome<LoadedAdapter> {
    if path.is_dir() {
        let float = peft::read(path, &base.network)?;
        let file = export(&float, &base.network, 0, |file| digest(&base.image, file))?.file;
        return Ok(LoadedAdapter { float, file });
    }
    let file = std::fs::read(path).map_err(Error::io(path))?;
    let image = base.image.base()?;
    let adapter = Adapter::new(&file, &image).at(path)?;
    let float = dequantize(&AdapterData::read(&adapter, &image), &base.network).at(path)?;
    Ok(LoadedAdapter { float, file })
}

/// The digest of an adapter's self-test, measured with the device's code.
pub(super) fn digest(image: &Image, file: &[u8]) -> crate::Result<u64> {
    let mode = rankpatch_format::link::Mode::Streamed;
    Simulator::new(image.clone())?.with_adapter(file.to_vec(), mode)?.self_test_digest()
}
