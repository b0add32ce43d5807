//! Keyword Transformers (KWT) from safetensors: post-norm encoders over MFCC frames with a class token.
//!
//! Tensors, f32, `[out, in]`: `embed.patch.{weight,bias}`, `embed.class_token`, `embed.position`,
//! `layers.N.attn.{q,k,v}.weight`, `layers.N.attn.o.{weight,bias}`, `layers.N.ffn.{up,down}.{weight,bias}`,
//! `layers.N.{norm1,norm2}.{weight,bias}`, `head.{weight,bias}`. `frontend.{window,mel,dct}`, if they are there, become the operator that
//! makes the frames from samples.

use std::collections::BTreeSet;
use std::path::Path;

use rankpatch_format::graph::{Op, ValueId};
use rankpatch_format::write::Network;
use safetensors::{Dtype, SafeTensors};

use super::build::{Builder, Frame};
use super::front_end::{self, Sampling};
use crate::{Error, Result};

/// Size of an attention head in every KWT (they differ in the number of heads).
const HEAD_SIZE: usize = 64;
const LAYER_NORM_EPS: f32 = 1e-6;
/// The front end of every KWT, which its file does not state: samples a second, and from one frame to the next.
const SAMPLING: Sampling = Sampling { rate: 16_000, hop: 160 };
/// The file beside the model that names the outputs, one a line.
const LABELS: &str = "labels.txt";

/// The power of two by which MFCC column `i` is multiplied before the patch embedding, whose weights are divided by it.
///
/// All columns of a frame share one int8 step, and c0 (the log energy) reaches -350 where c1 to c8 reach 26 to 8 and the
/// others 7 to 3. As in SmoothQuant the difficulty is divided between input and weight: the factor is
/// `2^-round(log2(max |column|) / 2)`, with the maxima of the 600 clips of KWT-1's golden file, times two. The product is
/// the same in exact arithmetic, and the factors change no mantissa. On the device this takes the difference to the float
/// logits from 0.020 to 0.014 (rms over these clips); exponents beside these differ by less than 0.001.
fn input_scale(column: usize) -> f32 {
    match column {
        0 => 0.125,
        1..=8 => 0.5,
        _ => 1.0,
    }
}

/// A checked view of the file that remembers what was read.
pub(super) struct Tensors<'a> {
    pub(super) path: &'a Path,
    file: SafeTensors<'a>,
    read: BTreeSet<String>,
}

impl Tensors<'_> {
    /// The shape of a tensor.
    fn shape(&self, name: &str, expected: &[usize]) -> Result<Vec<usize>> {
        let found = self.file.tensor(name).map_err(|_| Error::MissingTensor {
            path: self.path.to_path_buf(),
            tensor: name.into(),
            expected: expected.to_vec(),
            found: summary(&self.file.names()),
        })?;
        Ok(found.shape().to_vec())
    }

    /// Whether the file has a tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_ok()
    }

    /// The shape of a matrix of any size, named in errors as `expected`.
    pub(super) fn matrix_shape(&self, name: &str, expected: [usize; 2]) -> Result<[usize; 2]> {
        let found = self.shape(name, &expected)?;
        match found.as_slice() {
            &[rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
            _ => Err(self.wrong_shape(name, &expected, found)),
        }
    }

    /// The length of a vector of any length, named in errors as `expected`.
    pub(super) fn vector_len(&self, name: &str, expected: usize) -> Result<usize> {
        let found = self.shape(name, &[expected])?;
        match found.as_slice() {
            &[len] if len > 0 => Ok(len),
            _ => Err(self.wrong_shape(name, &[expected], found)),
        }
    }

    fn wrong_shape(&self, name: &str, expected: &[usize], found: Vec<usize>) -> Error {
        let (path, tensor) = (self.path.to_path_buf(), name.into());
        Error::TensorShape { path, tensor, expected: expected.to_vec(), found }
    }

    /// The numbers of a tensor of exactly this shape.
    pub(super) fn take(&mut self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let found = self.shape(name, expected)?;
        if found != expected {
            return Err(self.wrong_shape(name, expected, found));
        }
        let view = self.file.tensor(name).map_err(|source| not_safetensors(self.path, &source))?;
        if view.dtype() != Dtype::F32 {
            let (path, tensor) = (self.path.to_path_buf(), name.into());
            let found = format!("{:?}", view.dtype());
            return Err(Error::TensorType { path, tensor, expected: "F32", found });
        }
        self.read.insert(name.into());
        Ok(view.data().as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect())
    }

    /// Refuses a file with tensors that nothing has read: it holds another architecture.
    fn finish(self) -> Result<()> {
        let names = self.file.names();
        let left: Vec<&str> = names
            .into_iter()
            .filter(|name| !self.read.contains(*name) && !name.starts_with("frontend."))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::field(self.path, "tensors", "only those of a KWT", format!("also {}", summary(&left))))
    }
}

fn not_safetensors(path: &Path, source: &safetensors::SafeTensorError) -> Error {
    Error::UnknownFile {
        path: path.to_path_buf(),
        expected: "a safetensors file".into(),
        found: source.to_string(),
    }
}

/// The first few names, sorted, and how many more there are.
pub(super) fn summary(names: &[&str]) -> String {
    let mut names = names.to_vec();
    names.sort_unstable();
    let shown = names.iter().take(4).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "none".into(),
        1..=4 => shown,
        more => format!("{shown} and {} more", more - 4),
    }
}

/// Loads a model; `labels.txt` beside it names the outputs. Without `front_end`, or if the file has none, the network reads frames.
///
/// Sites: `embed.patch`, `layers.N.attn.q|k|v|o`, `layers.N.ffn.up|down`, `head`. A task head reads the class token's row
/// after the last layer.
///
/// # Errors
/// [`Error::Io`], [`Error::UnknownFile`] if it is no safetensors file, [`Error::MissingTensor`], [`Error::TensorShape`],
/// [`Error::TensorType`] with the tensor's name, [`Error::Field`] for tensors of another architecture or if the labels are
/// not as many as the outputs.
pub fn load(path: &Path, front_end: bool) -> Result<Network> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|source| not_safetensors(path, &source))?;
    let mut file = Tensors { path, file, read: BTreeSet::new() };

    // Sizes come from four tensors; those of KWT-1 stand in messages where the file says nothing.
    let [dim, n_mfcc] = file.matrix_shape("embed.patch.weight", [HEAD_SIZE, 40])?;
    let [positions, _] = file.matrix_shape("embed.position", [99, dim])?;
    let [hidden_dim, _] = file.matrix_shape("layers.0.ffn.up.weight", [4 * dim, dim])?;
    let [n_labels, _] = file.matrix_shape("head.weight", [12, dim])?;
    let n_tensors = file.file.len();
    let n_layers =
        (0..n_tensors).take_while(|n| file.file.tensor(&format!("layers.{n}.attn.q.weight")).is_ok()).count();
    if !dim.is_multiple_of(HEAD_SIZE) || positions < 2 {
        let expected = format!("[a multiple of {HEAD_SIZE}, ..] and at least 2 positions");
        let found = format!("[{dim}, {n_mfcc}] and {positions} positions");
        return Err(Error::field(path, "shape of embed.patch.weight", expected, found));
    }
    let labels = read_labels(&path.with_file_name(LABELS), n_labels)?;

    let mut net = Builder::default();
    let scale: Vec<f32> = (0..n_mfcc).map(input_scale).collect();
    let mut patch = file.take("embed.patch.weight", &[dim, n_mfcc])?;
    for row in patch.chunks_exact_mut(n_mfcc) {
        row.iter_mut().zip(&scale).for_each(|(weight, scale)| *weight /= scale);
    }
    let x = net.op(Op::Features { width: n_mfcc as u32 });
    let weight = net.floats("embed.scale", 1, scale);
    let x = net.op(Op::Scale { input: x, weight });
    let bias = file.take("embed.patch.bias", &[dim])?;
    let x = net.linear("embed.patch", x, dim, patch, Some(bias));
    let token = net.floats("embed.class_token", 1, file.take("embed.class_token", &[dim])?);
    let x = net.op(Op::PrependToken { input: x, token });
    let table = net.floats("embed.position", positions, file.take("embed.position", &[positions, dim])?);
    let mut x = net.op(Op::AddPosition { input: x, table });

    for layer in 0..n_layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let q = linear(&mut net, &mut file, &name("attn.q"), x, [dim, dim], false)?;
        let k = linear(&mut net, &mut file, &name("attn.k"), x, [dim, dim], false)?;
        let v = linear(&mut net, &mut file, &name("attn.v"), x, [dim, dim], false)?;
        let n_heads = (dim / HEAD_SIZE) as u16;
        let scale = 1.0 / (HEAD_SIZE as f32).sqrt();
        let mut a = net.op(Op::Attention { q, k, v, n_heads, n_kv_heads: n_heads, causal: false, scale });
        if layer + 1 == n_layers {
            // After the last attention rows no longer meet, and only the class token's is read: the others need not be
            // computed. That saves three quarters of this layer and changes no bit.
            a = net.op(Op::SelectRow { input: a, row: 0 });
            x = net.op(Op::SelectRow { input: x, row: 0 });
        }
        let o = linear(&mut net, &mut file, &name("attn.o"), a, [dim, dim], true)?;
        x = net.op(Op::Add { a: x, b: o });
        x = norm(&mut net, &mut file, &name("norm1"), x, dim)?;
        let up = linear(&mut net, &mut file, &name("ffn.up"), x, [hidden_dim, dim], true)?;
        let up = net.op(Op::Gelu { input: up });
        let down = linear(&mut net, &mut file, &name("ffn.down"), up, [dim, hidden_dim], true)?;
        x = net.op(Op::Add { a: x, b: down });
        x = norm(&mut net, &mut file, &name("norm2"), x, dim)?;
    }
    let output = linear(&mut net, &mut file, "head", x, [n_labels, dim], true)?;
    // Last, so that every other tensor has the same number in a network without.
    if front_end && file.has(front_end::MEL) {
        let input = front_end::mfcc(&mut net, &mut file, SAMPLING, n_mfcc)?;
        net.replace_input(input);
    }
    file.finish()?;
    net.finish(Frame {
        name: path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()),
        labels,
        output,
        features: x,
        max_rows: (positions - 1) as u32,
        vocabulary: None,
    })
}

/// The site `name` with the weight `[out, in]` and the bias of the file.
fn linear(
    net: &mut Builder,
    file: &mut Tensors<'_>,
    name: &str,
    input: ValueId,
    shape: [usize; 2],
    biased: bool,
) -> Result<ValueId> {
    let weight = file.take(&format!("{name}.weight"), &shape)?;
    let bias = if biased { Some(file.take(&format!("{name}.bias"), &shape[..1])?) } else { None };
    Ok(net.linear(name, input, shape[0], weight, bias))
}

fn norm(
    net: &mut Builder,
    file: &mut Tensors<'_>,
    name: &str,
    input: ValueId,
    dim: usize,
) -> Result<ValueId> {
    let weight_name = format!("{name}.weight");
    let weight = file.take(&weight_name, &[dim])?;
    let weight = net.floats(weight_name, 1, weight);
    let bias_name = format!("{name}.bias");
    let bias = file.take(&bias_name, &[dim])?;
    let bias = net.floats(bias_name, 1, bias);
    Ok(net.op(Op::LayerNorm { input, weight, bias, eps: LAYER_NORM_EPS }))
}

/// The names of the outputs, one a line.
fn read_labels(path: &Path, expected: usize) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let labels: Vec<String> =
        text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    if labels.len() == expected {
        Ok(labels)
    } else {
        Err(Error::field(path, "labels", expected, labels.len()))
    }
}
