//! The trainer's own form of a float network: a folder of `network.json`, the graph and its names, and `network.safetensors`,
//! every tensor by its name, and the pieces of the vocabulary, if there is one, under `vocabulary.`.
//!
//! What is trained in full or from scratch is written like this, and every importer's network can be.

use std::path::{Path, PathBuf};

use rankpatch_format::graph::Op;
use rankpatch_format::tokenizer::TokenizerInfo;
use rankpatch_format::write::{Network, Tensor, Vocabulary};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::lora::{HEAD, HeadWeights};
use crate::{Error, Result, files};

/// The graph.
const GRAPH: &str = "network.json";
/// Its tensors.
const TENSORS: &str = "network.safetensors";
/// The vocabulary's tensors: bytes of all pieces, one behind the other; length and score of each; ids that encoding may look up.
const VOCABULARY: [&str; 4] =
    ["vocabulary.bytes", "vocabulary.lengths", "vocabulary.scores", "vocabulary.searchable"];
/// Of this form.
const VERSION: u32 = 1;

/// `network.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Graph {
    version: u32,
    name: String,
    max_rows: u32,
    output: u16,
    features: u16,
    labels: Vec<String>,
    sites: Vec<String>,
    tensors: Vec<Info>,
    ops: Vec<Op>,
    /// Special ids, if there is a vocabulary.
    tokenizer: Option<TokenizerInfo>,
    /// Names of the classes of a head that is beside the graph, for whoever reads the folder; the network has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    head: Vec<String>,
}

/// A tensor of the graph.
#[derive(Debug, Serialize, Deserialize)]
struct Info {
    name: String,
    rows: u32,
    cols: u32,
    /// Whether a base image has it in int8.
    quantized: bool,
}

/// Whether a folder is one of these.
pub(super) fn is_folder(path: &Path) -> bool {
    path.join(GRAPH).is_file()
}

/// The files of a folder with a float network, and with a head that is not its output.
///
/// # Errors
/// [`Error::Field`] for an operator that only hosts run, which has no form in a file, for a quantized tensor, and for names that
/// are not one for each tensor.
pub fn contents(
    network: &Network,
    head: Option<&HeadWeights>,
    folder: &Path,
) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    network.check_operators()?;
    let path = folder.join(TENSORS);
    let wrong = |what: String, expected: &str, found: &dyn std::fmt::Display| {
        Error::field(&path, what, expected, found)
    };
    let mut infos = Vec::new();
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let float =
        |name: String, dims: Vec<usize>, data: &[f32]| (name, Dtype::F32, dims, files::f32_bytes(data));
    if network.tensor_names.len() != network.tensors.len() {
        let found = network.tensor_names.len();
        return Err(wrong("names of tensors".into(), &network.tensors.len().to_string(), &found));
    }
    for (name, tensor) in network.tensor_names.iter().zip(&network.tensors) {
        let shape = tensor.shape();
        let (Tensor::Floats { data, .. } | Tensor::Matrix { data, .. }) = tensor else {
            return Err(wrong(format!("tensor {name:?}"), "a float one", &"int8 codes"));
        };
        tensors.push(float(name.clone(), vec![shape.rows as usize, shape.cols as usize], data));
        let (rows, cols, quantized) = (shape.rows, shape.cols, shape.quantized);
        infos.push(Info { name: name.clone(), rows, cols, quantized });
    }
    if let Some(HeadWeights { weight, bias, labels, .. }) = head {
        let (outputs, width) = (labels.len(), weight.len() / labels.len().max(1));
        tensors.push(float(format!("task.{HEAD}.weight"), vec![outputs, width], weight));
        tensors.push(float(format!("task.{HEAD}.bias"), vec![outputs], bias));
    }
    if let Some(Vocabulary { pieces, searchable, .. }) = &network.vocabulary {
        let [bytes, lengths, scores, ids] = VOCABULARY.map(String::from);
        let all: Vec<u8> = pieces.iter().flat_map(|(piece, _)| piece.iter().copied()).collect();
        let each = pieces.iter().flat_map(|(piece, _)| (piece.len() as u32).to_le_bytes()).collect();
        let score: Vec<f32> = pieces.iter().map(|(_, score)| *score).collect();
        let looked_up = searchable.iter().flat_map(|id| id.to_le_bytes()).collect();
        tensors.push((bytes, Dtype::U8, vec![all.len()], all));
        tensors.push((lengths, Dtype::U32, vec![pieces.len()], each));
        tensors.push(float(scores, vec![pieces.len()], &score));
        tensors.push((ids, Dtype::U16, vec![searchable.len()], looked_up));
    }
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(wrong(format!("tensor {:?}", pair[0].0), "one of that name", &"two"));
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, dims, bytes)| Ok((name, TensorView::new(*dtype, dims.clone(), bytes)?)));
    let views = views.collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
    let serialized = views
        .and_then(|views| safetensors::serialize(views, None))
        .map_err(|error| wrong("tensors".into(), "a serializable set", &error))?;
    let graph = Graph {
        version: VERSION,
        name: network.name.clone(),
        max_rows: network.max_rows,
        output: network.output,
        features: network.features,
        labels: network.labels.clone(),
        sites: network.site_names.clone(),
        tensors: infos,
        ops: network.ops.clone(),
        tokenizer: network.vocabulary.as_ref().map(|vocabulary| vocabulary.info),
        head: head.map_or_else(Vec::new, |head| head.labels.clone()),
    };
    let json = serde_json::to_string_pretty(&graph)
        .map_err(|error| Error::field(&folder.join(GRAPH), "content", "plain values", error))?;
    Ok(vec![(folder.join(GRAPH), (json + "\n").into_bytes()), (path, serialized)])
}

/// Loads the network of a folder.
///
/// # Errors
/// [`Error::Io`]; [`Error::Field`] for another version or a graph that is none; [`Error::MissingTensor`],
/// [`Error::TensorShape`], [`Error::TensorType`] with the tensor's name; what the shapes of the graph refuse.
pub fn load(folder: &Path) -> Result<Network> {
    let path = folder.join(GRAPH);
    let text = std::fs::read(&path).map_err(Error::io(&path))?;
    let graph: Graph = serde_json::from_slice(&text)
        .map_err(|error| Error::field(&path, "content", "a graph of operators that devices run", error))?;
    if graph.version != VERSION {
        return Err(Error::field(&path, "version", VERSION, graph.version));
    }
    let path = folder.join(TENSORS);
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| Error::field(&path, "content", "safetensors", error))?;
    let tensors = graph.tensors.iter().map(|Info { name, rows, cols, quantized }| {
        let expected = vec![*rows as usize, *cols as usize];
        let view = file.tensor(name).map_err(|_| Error::MissingTensor {
            path: path.clone(),
            tensor: name.clone(),
            expected: expected.clone(),
            found: super::kwt::summary(&file.names()),
        })?;
        if view.shape() != expected {
            let (path, tensor, found) = (path.clone(), name.clone(), view.shape().to_vec());
            return Err(Error::TensorShape { path, tensor, expected, found });
        }
        let data = files::f32_values(&path, name, &view)?;
        let (rows, cols) = (*rows, *cols);
        Ok(if *quantized { Tensor::Matrix { rows, cols, data } } else { Tensor::Floats { rows, cols, data } })
    });
    let tensors = tensors.collect::<Result<Vec<_>>>()?;
    let vocabulary = graph.tokenizer.map(|info| vocabulary(&path, &file, info)).transpose()?;
    let Graph { name, max_rows, output, features, labels, sites, ops, .. } = graph;
    let network = Network {
        name,
        ops,
        tensors,
        tensor_names: graph.tensors.into_iter().map(|info| info.name).collect(),
        site_names: sites,
        labels,
        output,
        features,
        max_rows,
        vocabulary,
    };
    network.shapes()?;
    Ok(network)
}

fn vocabulary(path: &Path, file: &SafeTensors<'_>, info: TokenizerInfo) -> Result<Vocabulary> {
    let bytes = |index: usize, expected: &'static str, dtype: Dtype| {
        let name = VOCABULARY[index];
        let view = file.tensor(name).map_err(|_| Error::MissingTensor {
            path: path.to_owned(),
            tensor: name.into(),
            expected: vec![info.vocab_size as usize],
            found: super::kwt::summary(&file.names()),
        })?;
        if view.dtype() != dtype {
            let (path, tensor, found) = (path.to_owned(), name.into(), format!("{:?}", view.dtype()));
            return Err(Error::TensorType { path, tensor, expected, found });
        }
        Ok(view.data().to_vec())
    };
    let (all, lengths) = (bytes(0, "U8", Dtype::U8)?, bytes(1, "U32", Dtype::U32)?);
    let (scores, searchable) = (bytes(2, "F32", Dtype::F32)?, bytes(3, "U16", Dtype::U16)?);
    let (lengths, scores) = (lengths.as_chunks::<4>().0, scores.as_chunks::<4>().0);
    let mut rest = all.as_slice();
    let mut pieces = Vec::with_capacity(lengths.len());
    for (length, score) in lengths.iter().zip(scores) {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((piece, after)) = rest.split_at_checked(length) else { break };
        pieces.push((piece.to_vec(), f32::from_le_bytes(*score)));
        rest = after;
    }
    if pieces.len() != info.vocab_size as usize || !rest.is_empty() {
        let found = format!("{} pieces and {} bytes behind them", pieces.len(), rest.len());
        return Err(Error::field(path, "vocabulary", format!("{} pieces", info.vocab_size), found));
    }
    let searchable = searchable.as_chunks().0.iter().map(|id| u16::from_le_bytes(*id)).collect();
    Ok(Vocabulary { pieces, searchable, info })
}
