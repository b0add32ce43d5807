//! DeBERTa v2 and v3: post-norm encoders whose attention also asks how far apart two tokens are.
//!
//! A relative position is a row of one table, normalized here once, that every layer projects with the matrices of its queries
//! and keys: it is appended to the tokens' rows, so that an adapter of `query_proj` or `key_proj` acts on both, as in PEFT.
//! The larger models of version 2 add a convolution over the embeddings to the first layer.
//!
//! Devices run none of this: see [`HostOp`].

use rankpatch_format::graph::{HostOp, Op, TensorId, ValueId};
use serde_json::{Value, json};

use super::Ends;
use super::parts::Parts;
use crate::Result;

/// Builds the graph. A task head reads the pooler, an activation of a linear layer on the first row; a folder without one
/// (a language model) has the row itself read.
pub(super) fn build(parts: &mut Parts) -> Result<Ends> {
    const ARCHITECTURES: [&str; 3] =
        ["DebertaV2ForSequenceClassification", "DebertaV2Model", "DebertaV2ForMaskedLM"];
    parts.check_architecture(&ARCHITECTURES)?;
    parts.set_prefix("deberta.", "embeddings.word_embeddings.weight");
    // Heads of language models.
    for head in ["cls.", "lm_predictions.", "mask_predictions."] {
        parts.unused_outside(head);
    }
    let sizes = Sizes::read(parts)?;
    let Sizes { dim, max_rows, .. } = sizes;
    let row = encoder(parts, &sizes)?;
    let features = if parts.weights.has("pooler.dense.weight") {
        let pooled = parts.outside_linear("pooler.dense", row, [dim, dim])?;
        activation(parts, "pooler_hidden_act", pooled, Op::GeluErf { input: pooled })?
    } else {
        parts.config.without_effect(&["pooler_hidden_act"]);
        row
    };
    let Some(outputs) = parts.weights.rows("classifier.weight") else {
        return Ok(Ends { output: features, features, max_rows, labels: Vec::new() });
    };
    let output = parts.outside_linear("classifier", features, [outputs, dim])?;
    Ok(Ends { output, features, max_rows, labels: parts.config.labels(outputs) })
}

/// The options that several parts read.
struct Sizes {
    dim: usize,
    n_heads: usize,
    hidden_dim: usize,
    n_layers: usize,
    max_rows: usize,
    eps: f64,
    positions: Positions,
}

/// Relative positions.
struct Positions {
    /// Whether a query is multiplied with the position of a key, and a key with that of a query.
    content_to_position: bool,
    position_to_content: bool,
    /// Buckets in one direction; 0: none.
    buckets: u16,
    max_distance: u16,
}

impl Sizes {
    fn read(parts: &Parts) -> Result<Self> {
        let config = &parts.config;
        let dim = config.size("hidden_size")?;
        let n_heads = parts.heads("num_attention_heads", dim)?;
        let max_rows = config.size("max_position_embeddings")?;
        config.only("attention_head_size", &[json!(dim / n_heads)])?;
        config.only("pooler_hidden_size", &[json!(dim)])?;
        // Form of a language model's head.
        config.without_effect(&["legacy", "tie_word_embeddings"]);
        Ok(Self {
            dim,
            n_heads,
            hidden_dim: config.size("intermediate_size")?,
            n_layers: config.size("num_hidden_layers")?,
            max_rows,
            eps: config.positive("layer_norm_eps", Some(1e-7))?,
            positions: Positions::read(parts, max_rows)?,
        })
    }
}

impl Positions {
    fn read(parts: &Parts, max_rows: usize) -> Result<Self> {
        let config = &parts.config;
        for key in ["relative_attention", "share_att_key"] {
            if !config.switch(key, false)? {
                return Err(config.refuse(key, "true: nothing else is supported"));
            }
        }
        let kinds = words(parts, "pos_att_type", &["c2p", "p2c"])?;
        if kinds.is_empty() {
            return Err(config.refuse("pos_att_type", "c2p, p2c or both"));
        }
        // Numbers below one stand for none.
        let optional = |key: &str| match config.get(key).map(Value::as_i64) {
            None => Ok(0),
            Some(Some(number)) if number <= i64::from(u16::MAX) => Ok(number.max(0) as u16),
            Some(_) => Err(config.refuse(key, "a whole number up to 65535")),
        };
        let (buckets, mut max_distance) =
            (optional("position_buckets")?, optional("max_relative_positions")?);
        if max_distance == 0 {
            max_distance = u16::try_from(max_rows)
                .map_err(|_| config.refuse("max_position_embeddings", "a whole number up to 65535"))?;
        }
        let has = |kind: &str| kinds.iter().any(|found| found == kind);
        Ok(Self { content_to_position: has("c2p"), position_to_content: has("p2c"), buckets, max_distance })
    }

    /// Rows of the table: a bucket or a distance in either direction.
    fn table_rows(&self) -> usize {
        2 * usize::from(if self.buckets > 0 { self.buckets } else { self.max_distance })
    }

    /// The factor of a score: one over the root of the products that it is a sum of, times the size of a head.
    fn scale(&self, head_size: usize) -> f32 {
        let products = 1 + usize::from(self.content_to_position) + usize::from(self.position_to_content);
        1.0 / ((head_size * products) as f32).sqrt()
    }
}

/// The first token's row after the last layer.
fn encoder(parts: &mut Parts, sizes: &Sizes) -> Result<ValueId> {
    let &Sizes { dim, n_heads, hidden_dim, n_layers, eps, ref positions, .. } = sizes;
    let embedded = embeddings(parts, sizes)?;
    let (table, bias) = position_table(parts, sizes)?;
    let scale = positions.scale(dim / n_heads);
    let mut x = embedded;
    for layer in 0..n_layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let tabled = parts.net.op(Op::Host(HostOp::AppendTable { input: x, table, bias }));
        let with = |table: bool| if table { tabled } else { x };
        let queries = with(positions.position_to_content);
        let keys = with(positions.content_to_position);
        let q = parts.linear(&name("attention.self.query_proj"), queries, [dim, dim], true)?;
        let k = parts.linear(&name("attention.self.key_proj"), keys, [dim, dim], true)?;
        let v = parts.linear(&name("attention.self.value_proj"), x, [dim, dim], true)?;
        let (n_heads, buckets, max_distance) = (n_heads as u16, positions.buckets, positions.max_distance);
        let attention = HostOp::RelativeAttention { q, k, v, n_heads, scale, buckets, max_distance };
        let a = parts.net.op(Op::Host(attention));
        let last = layer + 1 == n_layers;
        x = parts.after_attention(layer, a, x, [dim, hidden_dim], eps, last)?;
        if layer == 0
            && let Some(mut convolved) = convolution(parts, embedded, dim)?
        {
            if last {
                convolved = parts.net.op(Op::SelectRow { input: convolved, row: 0 });
            }
            x = parts.net.op(Op::Add { a: x, b: convolved });
            x = parts.layer_norm("encoder.conv.LayerNorm", x, dim, eps)?;
        }
    }
    Ok(x)
}

/// Words, perhaps with positions and type 0, perhaps made wider; normalized.
fn embeddings(parts: &mut Parts, sizes: &Sizes) -> Result<ValueId> {
    const WORDS: &str = "embeddings.word_embeddings.weight";
    const POSITIONS: &str = "embeddings.position_embeddings.weight";
    let &Sizes { dim, max_rows, eps, .. } = sizes;
    let config = &parts.config;
    let vocab_size = config.size("vocab_size")?;
    let width = config.optional_size("embedding_size")?.unwrap_or(dim);
    let types = config.get("type_vocab_size").map_or(Some(0), Value::as_u64);
    let types = types.ok_or_else(|| config.refuse("type_vocab_size", "a whole number"))?;
    let with_positions = config.switch("position_biased_input", true)?;

    let mut table = parts.take(WORDS, &[vocab_size, width])?;
    let kind = match types as usize {
        0 => vec![0.0; width],
        types => parts.take("embeddings.token_type_embeddings.weight", &[types, width])?,
    };
    let add_kind = |rows: &mut [f32]| {
        for row in rows.chunks_exact_mut(width) {
            row.iter_mut().zip(&kind).for_each(|(value, kind)| *value += kind);
        }
    };
    let positions = if with_positions {
        let mut positions = parts.take(POSITIONS, &[max_rows, width])?;
        add_kind(&mut positions);
        Some(positions)
    } else {
        // Some folders have a table that their model does not read.
        parts.unused(POSITIONS);
        add_kind(&mut table);
        None
    };
    let table = parts.net.matrix(parts.site_name(WORDS), vocab_size, table);
    let mut x = parts.net.op(Op::Embedding { table });
    if let Some(positions) = positions {
        let table = parts.net.floats(parts.site_name(POSITIONS), max_rows, positions);
        x = parts.net.op(Op::AddPosition { input: x, table });
    }
    if width != dim {
        x = parts.linear("embeddings.embed_proj", x, [dim, width], false)?;
    }
    parts.layer_norm("embeddings.LayerNorm", x, dim, eps)
}

/// The table of relative positions, normalized if the options say so, and the bias of that norm, which may be trained.
fn position_table(parts: &mut Parts, sizes: &Sizes) -> Result<(TensorId, Option<TensorId>)> {
    const TABLE: &str = "encoder.rel_embeddings.weight";
    let &Sizes { dim, eps, ref positions, .. } = sizes;
    let rows = positions.table_rows();
    let mut table = parts.take(TABLE, &[rows, dim])?;
    let mut bias = None;
    if words(parts, "norm_rel_ebd", &["none", "layer_norm"])?.iter().any(|word| word == "layer_norm") {
        let weight = parts.take("encoder.LayerNorm.weight", &[dim])?;
        bias = Some(parts.vector("encoder.LayerNorm.bias", dim)?);
        for row in table.chunks_exact_mut(dim) {
            normalize(row, &weight, eps);
        }
    }
    Ok((parts.net.floats(parts.site_name(TABLE), rows, table), bias))
}

/// The convolution over the embeddings and its activation, if there is one.
fn convolution(parts: &mut Parts, input: ValueId, dim: usize) -> Result<Option<ValueId>> {
    const WEIGHT: &str = "encoder.conv.conv.weight";
    let config = &parts.config;
    config.only("conv_groups", &[json!(1)])?;
    if config.get("conv_kernel_size").and_then(Value::as_i64).is_some_and(|size| size <= 0) {
        config.without_effect(&["conv_act"]);
        return Ok(None);
    }
    let Some(kernel) = config.optional_size("conv_kernel_size")? else {
        config.without_effect(&["conv_act"]);
        return Ok(None);
    };
    // A kernel of even size would shorten the sequence.
    let reach = u8::try_from(kernel / 2).ok().filter(|_| kernel % 2 == 1);
    let Some(reach) = reach else { return Err(config.refuse("conv_kernel_size", "an odd number up to 511")) };
    let stored = parts.take(WEIGHT, &[dim, dim, kernel])?;
    // `[out, in, kernel]` to `[out, kernel, in]`.
    let weight = stored
        .chunks_exact(dim * kernel)
        .flat_map(|out| (0..kernel).flat_map(move |part| out.iter().skip(part).step_by(kernel)));
    let weight = weight.copied().collect();
    let weight = parts.net.matrix(parts.site_name(WEIGHT), dim, weight);
    let bias = parts.vector("encoder.conv.conv.bias", dim)?;
    let x = parts.net.op(Op::Host(HostOp::Convolution { input, weight, bias, reach }));
    activation(parts, "conv_act", x, Op::Tanh { input: x }).map(Some)
}

/// The activation that `key` names, or `default` if it is not stated.
fn activation(parts: &mut Parts, key: &str, input: ValueId, default: Op) -> Result<ValueId> {
    match parts.config.get(key) {
        None => Ok(parts.net.op(default)),
        Some(_) => parts.activation(key, input),
    }
}

/// The words of an option that is a list, or one text with bars; each one of `known`.
fn words(parts: &Parts, key: &str, known: &[&str]) -> Result<Vec<String>> {
    let expected = || format!("some of {}", known.join(", "));
    let words: Option<Vec<String>> = match parts.config.get(key) {
        None => Some(Vec::new()),
        Some(Value::String(text)) => Some(text.split('|').map(|word| word.trim().to_lowercase()).collect()),
        Some(Value::Array(values)) => values.iter().map(|word| word.as_str().map(str::to_owned)).collect(),
        Some(_) => None,
    };
    let words = words.filter(|words| words.iter().all(|word| known.contains(&word.as_str())));
    words.ok_or_else(|| parts.config.refuse(key, expected()))
}

/// y = (x - mean) / sqrt(variance + eps) * weight.
fn normalize(row: &mut [f32], weight: &[f32], eps: f64) {
    let len = row.len() as f64;
    let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / len;
    let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / len;
    let factor = 1.0 / (variance + eps).sqrt();
    for (x, weight) in row.iter_mut().zip(weight) {
        *x = ((f64::from(*x) - mean) * factor * f64::from(*weight)) as f32;
    }
}
