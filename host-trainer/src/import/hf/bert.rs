//! BERT and RoBERTa: post-norm encoders with learned positions and GELU in its exact form.
//!
//! A task reads the first token's row. So after the last attention, where rows no longer meet, only that row goes on; the
//! others would be computed for nothing. All tokens are of type 0, whose row is added to the table of positions; pairs of
//! texts with a type 1 are not supported. RoBERTa has one type, and its positions start behind the padding id.

use rankpatch_format::graph::{Op, ValueId};
use serde_json::json;

use super::Ends;
use super::parts::Parts;
use crate::Result;

/// Builds the graph of a BERT. A task head reads the pooler: tanh of a linear layer on the first row. A folder without one
/// (a language model) has the row itself read.
pub(super) fn build(parts: &mut Parts) -> Result<Ends> {
    const ARCHITECTURES: [&str; 4] =
        ["BertForSequenceClassification", "BertModel", "BertForMaskedLM", "BertForPreTraining"];
    parts.check_architecture(&ARCHITECTURES)?;
    parts.set_prefix("bert.", "embeddings.word_embeddings.weight");
    // The language model's head.
    parts.unused_outside("cls.");
    parts.config.without_effect(&["directionality", "pooler_fc_size", "pooler_num_attention_heads"]);
    parts.config.without_effect(&["pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"]);
    let Encoder { row, dim, max_rows } = encoder(parts, 0)?;
    let features = if parts.has("pooler.dense.weight") {
        let pooled = parts.linear("pooler.dense", row, [dim, dim], true)?;
        parts.net.op(Op::Tanh { input: pooled })
    } else {
        row
    };
    classified(parts, "classifier", features, dim, max_rows)
}

/// Builds the graph of a RoBERTa. A task head reads what a trained classifier's output layer reads, tanh of a linear layer on the first
/// row, or in a folder without classifier the row itself.
pub(super) fn build_roberta(parts: &mut Parts) -> Result<Ends> {
    parts.check_architecture(&["RobertaForSequenceClassification", "RobertaModel", "RobertaForMaskedLM"])?;
    parts.set_prefix("roberta.", "embeddings.word_embeddings.weight");
    // The language model's head, and a pooler that classifiers do not use.
    parts.unused_outside("lm_head.");
    parts.unused("pooler.");
    let padding = match parts.config.get("pad_token_id") {
        None => 1,
        Some(id) => match id.as_u64().filter(|id| *id < 1 << 31) {
            Some(id) => id as usize,
            None => return Err(parts.config.refuse("pad_token_id", "an id")),
        },
    };
    let Encoder { row, dim, max_rows } = encoder(parts, padding + 1)?;
    if !parts.weights.has("classifier.dense.weight") {
        return Ok(Ends { output: row, features: row, max_rows, labels: Vec::new() });
    }
    let dense = parts.outside_linear("classifier.dense", row, [dim, dim])?;
    let features = parts.net.op(Op::Tanh { input: dense });
    classified(parts, "classifier.out_proj", features, dim, max_rows)
}

/// The output over `features`: the layer `name` if the folder has one, else the features.
fn classified(parts: &mut Parts, name: &str, features: ValueId, dim: usize, max_rows: usize) -> Result<Ends> {
    let Some(outputs) = parts.weights.rows(&format!("{name}.weight")) else {
        return Ok(Ends { output: features, features, max_rows, labels: Vec::new() });
    };
    let output = parts.outside_linear(name, features, [outputs, dim])?;
    Ok(Ends { output, features, max_rows, labels: parts.config.labels(outputs) })
}

/// What layers give.
struct Encoder {
    /// The first token's row.
    row: ValueId,
    dim: usize,
    max_rows: usize,
}

/// Embeddings and layers, which BERT and RoBERTa share. The first position is row `first` of the table.
fn encoder(parts: &mut Parts, first: usize) -> Result<Encoder> {
    let config = &parts.config;
    let (vocab_size, dim) = (config.size("vocab_size")?, config.size("hidden_size")?);
    let hidden_dim = config.size("intermediate_size")?;
    let n_layers = config.size("num_hidden_layers")?;
    let n_heads = parts.heads("num_attention_heads", dim)?;
    let positions = config.size("max_position_embeddings")?;
    let types = config.size("type_vocab_size")?;
    let eps = config.positive("layer_norm_eps", Some(1e-12))?;
    config.only("position_embedding_type", &[json!("absolute")])?;
    config.only("is_decoder", &[json!(false)])?;
    config.only("add_cross_attention", &[json!(false)])?;
    // An output layer that is tied is one that is not read here.
    config.without_effect(&["tie_word_embeddings"]);
    if positions <= first {
        return Err(config.refuse("max_position_embeddings", format!("more than {first}")));
    }
    let head_size = dim / n_heads;

    let name = |part: &str| format!("embeddings.{part}");
    let table = parts.take(&name("word_embeddings.weight"), &[vocab_size, dim])?;
    let embedding = parts.net.matrix(parts.site_name(&name("word_embeddings.weight")), vocab_size, table);
    let kind = parts.take(&name("token_type_embeddings.weight"), &[types, dim])?;
    let mut table =
        parts.take(&name("position_embeddings.weight"), &[positions, dim])?.split_off(first * dim);
    for row in table.chunks_exact_mut(dim) {
        row.iter_mut().zip(&kind).for_each(|(position, kind)| *position += kind);
    }
    // Which position each row has, in old folders.
    parts.unused(&name("position_ids"));
    let max_rows = positions - first;
    let table = parts.net.floats(parts.site_name(&name("position_embeddings.weight")), max_rows, table);
    let x = parts.net.op(Op::Embedding { table: embedding });
    let x = parts.net.op(Op::AddPosition { input: x, table });
    let mut x = parts.layer_norm(&name("LayerNorm"), x, dim, eps)?;
    for layer in 0..n_layers {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let q = parts.linear(&name("attention.self.query"), x, [dim, dim], true)?;
        let k = parts.linear(&name("attention.self.key"), x, [dim, dim], true)?;
        let v = parts.linear(&name("attention.self.value"), x, [dim, dim], true)?;
        let (n_heads, causal) = (n_heads as u16, false);
        let scale = 1.0 / (head_size as f32).sqrt();
        let a = parts.net.op(Op::Attention { q, k, v, n_heads, n_kv_heads: n_heads, causal, scale });
        x = parts.after_attention(layer, a, x, [dim, hidden_dim], eps, layer + 1 == n_layers)?;
    }
    Ok(Encoder { row: x, dim, max_rows })
}
