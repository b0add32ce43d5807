//! A run that can be taken up again: factors, optimizer and step number in one safetensors file.
//!
//! Everything random is a pure function of seed and step, so nothing else is needed to get the same bytes as a run that
//! was never stopped.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rankpatch_format::BaseId;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::TrainConfig;
use super::learner::Values;
use super::stopping::Best;
use crate::optim::{AdamWState, Moments};
use crate::{Error, Result, files};

/// The key of the header in the file's metadata. There is only one, since more would be written in no fixed order.
const HEADER: &str = "rankpatch.checkpoint";

/// What the header says.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    base_id: BaseId,
    step: u64,
    optimizer_step: u64,
    config: TrainConfig,
    /// What the run learns from.
    data: String,
    /// With early stopping: the best result.
    #[serde(default)]
    best: Option<Best>,
    /// Whether the ranks are trimmed.
    trimmed: bool,
}

const VERSION: u32 = 3;

/// A run at the end of a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Checkpoint {
    pub(crate) config: TrainConfig,
    pub(crate) base_id: BaseId,
    /// [`TaskData::digest`](super::TaskData) of what the run learns from.
    pub(crate) data: String,
    /// Steps taken.
    pub(crate) step: u64,
    /// The trained tensors.
    pub(crate) values: Values,
    pub(crate) state: AdamWState,
    pub(crate) best: Option<Best>,
    /// The trained tensors at the best result.
    pub(crate) best_values: BTreeMap<String, Vec<f32>>,
    /// The trained tensors before the quantization-aware part.
    pub(crate) unquantized: Values,
    pub(crate) trimmed: bool,
}

impl Checkpoint {
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let header = Header {
            version: VERSION,
            base_id: self.base_id,
            step: self.step,
            optimizer_step: self.state.step,
            config: self.config.clone(),
            data: self.data.clone(),
            best: self.best,
            trimmed: self.trimmed,
        };
        let header =
            serde_json::to_string(&header).map_err(|error| Error::field(path, "header", "JSON", error))?;
        let mut tensors = Vec::new();
        for (group, values) in [("value", &self.values), ("unquantized", &self.unquantized)] {
            for (name, (dims, values)) in values {
                tensors.push((format!("{group}/{name}"), dims.clone(), files::f32_bytes(values)));
            }
        }
        for (name, moments) in &self.state.moments {
            for (part, values) in [("m", &moments.m), ("v", &moments.v)] {
                tensors.push((format!("{part}/{name}"), vec![values.len()], files::f32_bytes(values)));
            }
        }
        for (name, values) in &self.best_values {
            tensors.push((format!("best/{name}"), vec![values.len()], files::f32_bytes(values)));
        }
        let views = tensors
            .iter()
            .map(|(name, dims, bytes)| Ok((name, TensorView::new(Dtype::F32, dims.clone(), bytes)?)))
            .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
        let metadata = HashMap::from([(HEADER.to_owned(), header)]);
        let bytes = views
            .and_then(|views| safetensors::serialize(views, Some(metadata)))
            .map_err(|error| Error::field(path, "tensors", "a serializable set", error))?;
        files::write_atomically(path, &bytes)
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let no_safetensors = |error| Error::field(path, "content", "safetensors", error);
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(no_safetensors)?;
        let header = metadata.metadata().as_ref().and_then(|metadata| metadata.get(HEADER));
        let header =
            header.ok_or_else(|| Error::field(path, "metadata", format!("a key {HEADER:?}"), "none"))?;
        let header: Header =
            serde_json::from_str(header).map_err(|error| Error::field(path, HEADER, "a header", error))?;
        if header.version != VERSION {
            return Err(Error::field(path, "version", VERSION, header.version));
        }
        let file = SafeTensors::deserialize(&bytes).map_err(no_safetensors)?;
        let (mut values, mut unquantized) = (Values::new(), Values::new());
        let mut best_values = BTreeMap::new();
        let mut moments: BTreeMap<String, Moments> = BTreeMap::new();
        for (name, view) in file.iter() {
            let numbers = files::f32_values(path, name, &view)?;
            match name.split_once('/') {
                Some(("value", name)) => {
                    values.insert(name.to_owned(), (view.shape().to_vec(), numbers));
                }
                Some(("unquantized", name)) => {
                    unquantized.insert(name.to_owned(), (view.shape().to_vec(), numbers));
                }
                Some(("best", name)) => {
                    best_values.insert(name.to_owned(), numbers);
                }
                Some((part @ ("m" | "v"), name)) => {
                    let empty = || Moments { m: Vec::new(), v: Vec::new() };
                    let moments = moments.entry(name.to_owned()).or_insert_with(empty);
                    *(if part == "m" { &mut moments.m } else { &mut moments.v }) = numbers;
                }
                _ => {
                    return Err(Error::field(
                        path,
                        "tensor name",
                        "value/, unquantized/, best/, m/ or v/ and a name",
                        name,
                    ));
                }
            }
        }
        let state = AdamWState { step: header.optimizer_step, moments };
        let Header { config, base_id, step, data, best, trimmed, .. } = header;
        Ok(Self { config, base_id, data, step, values, state, best, best_values, unquantized, trimmed })
    }

    /// Checks that this is a checkpoint of the run that `config` describes, on this base and these data.
    pub(crate) fn check(&self, path: &Path, config: &TrainConfig, base_id: BaseId, data: &str) -> Result<()> {
        if self.base_id != base_id {
            return Err(Error::field(path, "base of the saved run", base_id, self.base_id));
        }
        let fields = |config: &TrainConfig| serde_json::to_value(config).unwrap_or_default();
        let (own, saved) = (fields(config), fields(&self.config));
        // Where a run reads its files and where it computes may change; what it computes may not.
        let mut free = vec!["base", "data", "test_data", "device", "save_steps", "sequence"];
        // Early stopping depends on when it looks.
        if config.early_stopping_patience == 0 {
            free.push("eval_steps");
        }
        let own = own.as_object().into_iter().flatten().filter(|(key, _)| !free.contains(&key.as_str()));
        for (key, value) in own {
            if saved.get(key) != Some(value) {
                let found = saved.get(key).map_or_else(|| "nothing".into(), ToString::to_string);
                return Err(Error::field(path, format!("{key} of the saved run"), value, found));
            }
        }
        if self.data != data {
            return Err(Error::field(path, "digest of the saved run's data", data, &self.data));
        }
        Ok(())
    }
}
