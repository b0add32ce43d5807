//! llama2.c checkpoints (version 0) and their tokenizers: Llama-2-style decoders with grouped attention.
//!
//! Checkpoint, little-endian: seven `i32` (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a negative
//! vocab_size says that the classifier is a tensor of its own), then f32 tensors, `[out, in]` row-major, the layer
//! first. Tokenizer: `i32` longest piece, then score `f32`, length `i32` and bytes of each piece.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rankpatch_format::graph::{Op, ValueId};
use rankpatch_format::tokenizer::TokenizerInfo;
use rankpatch_format::write::{Network, Vocabulary};

use super::build::{Builder, Frame};
use crate::{Error, Result};

/// Fixed in llama2.c's `run.c`.
const RMS_EPS: f32 = 1e-5;
/// Base of the rotary frequencies, fixed in `run.c`.
const ROPE_BASE: f64 = 10_000.0;
/// Fixed by SentencePiece's Llama vocabulary: unknown, start (in these models also end of text), end, then the bytes.
const BOS: u16 = 1;
const EOS: u16 = 2;
const BYTE_BASE: u16 = 3;
/// The first id that encoding may look up.
pub(crate) const FIRST_PIECE: u16 = BYTE_BASE + 256;

/// The header of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Width of the residual stream.
    pub dim: usize,
    /// Width of the feed-forward part.
    pub hidden_dim: usize,
    /// Layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Token ids.
    pub vocab_size: usize,
    /// Longest sequence.
    pub seq_len: usize,
    /// Whether the classifier is the embedding.
    pub shared_classifier: bool,
}

impl Config {
    /// Bytes of the header.
    pub const BYTES: usize = 28;

    fn read(file: &mut Reader<'_>) -> Result<Self> {
        let path = file.path;
        let header = file.bytes(|| "header".into(), Self::BYTES)?;
        let fields: Vec<i32> =
            header.as_chunks::<4>().0.iter().map(|field| i32::from_le_bytes(*field)).collect();
        let names = ["dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"];
        for (name, value) in names.iter().zip(&fields) {
            let value = if *name == "vocab_size" { value.saturating_abs() } else { *value };
            if !(1..=65_535).contains(&value) {
                let found = format!("{value} (is this a llama2.c checkpoint of version 0?)");
                return Err(Error::field(path, *name, "1 to 65535", found));
            }
        }
        let field = |index: usize| fields[index].unsigned_abs() as usize;
        let config = Self {
            dim: field(0),
            hidden_dim: field(1),
            n_layers: field(2),
            n_heads: field(3),
            n_kv_heads: field(4),
            vocab_size: field(5),
            seq_len: field(6),
            shared_classifier: fields[5] > 0,
        };
        if !config.dim.is_multiple_of(2 * config.n_heads) {
            let expected = format!("a divisor of dim {} that leaves an even head size", config.dim);
            return Err(Error::field(path, "n_heads", expected, config.n_heads));
        }
        if !config.n_heads.is_multiple_of(config.n_kv_heads) {
            let expected = format!("a divisor of n_heads {}", config.n_heads);
            return Err(Error::field(path, "n_kv_heads", expected, config.n_kv_heads));
        }
        Ok(config)
    }

    fn head_size(&self) -> usize {
        self.dim / self.n_heads
    }
}

/// Reads the parts of a file one after the other.
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, rest: bytes }
    }

    fn length(&self, what: String, expected: usize, found: usize) -> Error {
        Error::Length { path: self.path.to_path_buf(), what, expected, found }
    }

    /// The next `count` bytes.
    fn bytes(&mut self, what: impl FnOnce() -> String, count: usize) -> Result<&'a [u8]> {
        let Some((bytes, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.length(what(), count, self.rest.len()));
        };
        self.rest = rest;
        Ok(bytes)
    }

    /// The next four bytes.
    fn word(&mut self, what: impl FnOnce() -> String) -> Result<[u8; 4]> {
        Ok(self.bytes(what, 4)?.first_chunk().copied().unwrap_or_default())
    }

    /// The next `count` numbers, a tensor.
    fn tensor(&mut self, name: &str, count: usize) -> Result<Vec<f32>> {
        let bytes = self.bytes(|| format!("tensor {name:?}"), count * 4)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect())
    }

    /// Refuses bytes that nothing has read.
    fn finish(self, what: &str) -> Result<()> {
        let found = self.bytes.len();
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.length(what.into(), found - self.rest.len(), found))
        }
    }
}

/// Whether a file is named like a tokenizer.
pub(super) fn is_tokenizer(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("tok"))
}

/// The tokenizer `tok*.bin` in the folder of a checkpoint.
///
/// # Errors
/// [`Error::UnknownFile`] if there is none or more than one.
pub fn tokenizer_beside(checkpoint: &Path) -> Result<PathBuf> {
    let folder = checkpoint.parent().unwrap_or(Path::new(""));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut found: Vec<PathBuf> = super::files(folder)?
        .into_iter()
        .filter(|file| is_tokenizer(file) && file.extension().is_some_and(|extension| extension == "bin"))
        .collect();
    match (found.pop(), found.as_slice()) {
        (Some(tokenizer), []) => Ok(tokenizer),
        (last, others) => Err(Error::UnknownFile {
            path: folder.to_path_buf(),
            expected: "one tokenizer file (tok*.bin) beside the checkpoint".into(),
            found: format!("{} of them", others.len() + usize::from(last.is_some())),
        }),
    }
}

/// Loads a checkpoint and its tokenizer. The network is named after the checkpoint.
///
/// Sites: `layers.N.attn.q|k|v|o`, `layers.N.ffn.gate|up|down`, `lm_head`. A task head reads the last RMSNorm's output.
///
/// # Errors
/// [`Error::Io`], [`Error::Field`] for a bad header, [`Error::Length`] with the tensor's name for a short or long file.
pub fn load(checkpoint: &Path, tokenizer: &Path) -> Result<Network> {
    let bytes = std::fs::read(checkpoint).map_err(Error::io(checkpoint))?;
    let mut file = Reader::new(checkpoint, &bytes);
    let config = Config::read(&mut file)?;
    let vocabulary = read_vocabulary(tokenizer, config.vocab_size)?;
    let Config { dim, hidden_dim, n_layers, n_kv_heads, vocab_size, seq_len, .. } = config;
    let kv_dim = n_kv_heads * config.head_size();

    let mut weights: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    weights.insert("embed".into(), file.tensor("token_embedding", vocab_size * dim)?);
    let layers = [
        ("rms_att", "attn.norm", dim),
        ("wq", "attn.q", dim * dim),
        ("wk", "attn.k", kv_dim * dim),
        ("wv", "attn.v", kv_dim * dim),
        ("wo", "attn.o", dim * dim),
        ("rms_ffn", "ffn.norm", dim),
        ("w1", "ffn.gate", hidden_dim * dim),
        ("w2", "ffn.down", dim * hidden_dim),
        ("w3", "ffn.up", hidden_dim * dim),
    ];
    for (theirs, ours, count) in layers {
        for layer in 0..n_layers {
            let tensor = file.tensor(&format!("{theirs}.{layer}"), count)?;
            weights.insert(format!("layers.{layer}.{ours}"), tensor);
        }
    }
    weights.insert("norm".into(), file.tensor("rms_final", dim)?);
    // Tables of cosines and sines that llama2.c itself reads past.
    file.tensor("freq_cis_real", seq_len * config.head_size() / 2)?;
    file.tensor("freq_cis_imag", seq_len * config.head_size() / 2)?;
    if !config.shared_classifier {
        weights.insert("lm_head".into(), file.tensor("wcls", vocab_size * dim)?);
    }
    file.finish("checkpoint")?;
    let name = checkpoint.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    // The graph asks for what was read just now.
    graph(name, &config, vocabulary, |name, _| weights.remove(name).unwrap_or_default())
}

/// A decoder of this shape. `weight` gives the numbers of each tensor by its name in the graph without `.weight`, and is told how
/// many there are.
pub(crate) fn graph(
    name: String,
    config: &Config,
    vocabulary: Vocabulary,
    mut weight: impl FnMut(&str, usize) -> Vec<f32>,
) -> Result<Network> {
    let &Config { dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len, .. } = config;
    let kv_dim = n_kv_heads * config.head_size();
    let mut net = Builder::default();
    let embedding = net.matrix("embed.weight", vocab_size, weight("embed", vocab_size * dim));
    let inv_freq = net.floats("rope.inv_freq", 1, inv_freq(config.head_size()));
    let mut x = net.op(Op::Embedding { table: embedding });
    for layer in 0..n_layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let mut norm = |net: &mut Builder, part: &str, input: ValueId| {
            let weight = net.floats(format!("{}.weight", name(part)), 1, weight(&name(part), dim));
            net.op(Op::RmsNorm { input, weight, eps: RMS_EPS })
        };
        let h = norm(&mut net, "attn.norm", x);
        let mut site = |net: &mut Builder, part: &str, input: ValueId, rows: usize, cols: usize| {
            net.linear(&name(part), input, rows, weight(&name(part), rows * cols), None)
        };
        let q = site(&mut net, "attn.q", h, dim, dim);
        let k = site(&mut net, "attn.k", h, kv_dim, dim);
        let v = site(&mut net, "attn.v", h, kv_dim, dim);
        let q = net.op(Op::Rope { input: q, inv_freq });
        let k = net.op(Op::Rope { input: k, inv_freq });
        let attention = net.op(Op::Attention {
            q,
            k,
            v,
            n_heads: n_heads as u16,
            n_kv_heads: n_kv_heads as u16,
            causal: true,
            scale: 1.0 / (config.head_size() as f32).sqrt(),
        });
        let o = site(&mut net, "attn.o", attention, dim, dim);
        x = net.op(Op::Add { a: x, b: o });
        let scale = net.floats(format!("{}.weight", name("ffn.norm")), 1, weight(&name("ffn.norm"), dim));
        let h = net.op(Op::RmsNorm { input: x, weight: scale, eps: RMS_EPS });
        let mut site = |net: &mut Builder, part: &str, input: ValueId, rows: usize, cols: usize| {
            net.linear(&name(part), input, rows, weight(&name(part), rows * cols), None)
        };
        let gate = site(&mut net, "ffn.gate", h, hidden_dim, dim);
        let gate = net.op(Op::Silu { input: gate });
        let up = site(&mut net, "ffn.up", h, hidden_dim, dim);
        let gated = net.op(Op::Mul { a: gate, b: up });
        let down = site(&mut net, "ffn.down", gated, dim, hidden_dim);
        x = net.op(Op::Add { a: x, b: down });
    }
    let norm = net.floats("norm.weight", 1, weight("norm", dim));
    let features = net.op(Op::RmsNorm { input: x, weight: norm, eps: RMS_EPS });
    let classifier = if config.shared_classifier {
        embedding
    } else {
        net.matrix("lm_head.weight", vocab_size, weight("lm_head", vocab_size * dim))
    };
    let output = net.site("lm_head", features, classifier, None);
    net.finish(Frame {
        name,
        labels: Vec::new(),
        output,
        features,
        max_rows: seq_len as u32,
        vocabulary: Some(vocabulary),
    })
}

/// `base^(-2i / head_size)` for each pair i of a head.
fn inv_freq(head_size: usize) -> Vec<f32> {
    (0..head_size / 2).map(|i| ROPE_BASE.powf(-((2 * i) as f64) / head_size as f64) as f32).collect()
}

/// Reads a tokenizer of `vocab_size` pieces. Byte tokens, which the file spells `<0x41>`, become the byte itself; they
/// and the special ids are not looked up by encoding.
pub(crate) fn read_vocabulary(path: &Path, vocab_size: usize) -> Result<Vocabulary> {
    if vocab_size < usize::from(FIRST_PIECE) {
        return Err(Error::field(path, "vocab_size", format!("at least {FIRST_PIECE}"), vocab_size));
    }
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let mut file = Reader::new(path, &bytes);
    file.word(|| "longest piece".into())?;
    let mut pieces = Vec::with_capacity(vocab_size);
    for id in 0..vocab_size {
        let score = f32::from_le_bytes(file.word(|| format!("score of piece {id}"))?);
        let len = i32::from_le_bytes(file.word(|| format!("length of piece {id}"))?);
        let len = usize::try_from(len)
            .map_err(|_| Error::field(path, format!("length of piece {id}"), "0 or more", len))?;
        pieces.push((file.bytes(|| format!("piece {id}"), len)?.to_vec(), score));
    }
    file.finish(&format!("tokenizer of {vocab_size} pieces"))?;
    for byte in 0..=u8::MAX {
        let id = usize::from(BYTE_BASE) + usize::from(byte);
        let spelled = format!("<0x{byte:02X}>");
        let piece = &mut pieces[id].0;
        if piece != spelled.as_bytes() {
            let found = piece.escape_ascii();
            return Err(Error::field(path, format!("piece {id} (a byte)"), &spelled, found));
        }
        *piece = vec![byte];
    }
    Ok(vocabulary(pieces))
}

/// The vocabulary of Llama's special ids, the bytes, and these pieces, which encoding puts together by their scores.
pub(crate) fn learned_vocabulary(learned: Vec<(Vec<u8>, f32)>) -> Vocabulary {
    let special = ["<unk>", "\n<s>\n", "\n</s>\n"].map(|piece| (piece.as_bytes().to_vec(), 0.0));
    let bytes = (0..=u8::MAX).map(|byte| (vec![byte], 0.0));
    vocabulary(special.into_iter().chain(bytes).chain(learned).collect())
}

fn vocabulary(pieces: Vec<(Vec<u8>, f32)>) -> Vocabulary {
    let vocab_size = pieces.len();
    Vocabulary {
        searchable: (FIRST_PIECE..=u16::MAX).take(vocab_size - usize::from(FIRST_PIECE)).collect(),
        pieces,
        info: TokenizerInfo {
            offset: 0,
            len: 0,
            vocab_size: vocab_size as u32,
            bos: BOS,
            eos: EOS,
            byte_base: BYTE_BASE,
            prefix_space: true,
        },
    }
}
