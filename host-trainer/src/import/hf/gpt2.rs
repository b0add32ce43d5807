//! GPT-2: pre-norm decoders with LayerNorm, learned positions, and biases everywhere.
//!
//! Its layers are `Conv1D`: weights lie `[in, out]` and are transposed here. `c_attn` is q, k and v in one matrix; it becomes
//! three sites, `c_attn.q`, `c_attn.k` and `c_attn.v`, since each is a value of its own in the graph.

use rankpatch_format::graph::{Op, ValueId};
use serde_json::json;

use super::Ends;
use super::parts::{Parts, transposed};
use crate::Result;

/// Builds the graph.
pub(super) fn build(parts: &mut Parts) -> Result<Ends> {
    parts.check_architecture(&["GPT2LMHeadModel", "GPT2Model"])?;
    parts.set_prefix("transformer.", "wte.weight");
    let config = &parts.config;
    let (vocab_size, dim) = (config.size("vocab_size")?, config.size("n_embd")?);
    let positions = config.size("n_positions")?;
    let n_layers = config.size("n_layer")?;
    let hidden_dim = config.optional_size("n_inner")?.unwrap_or(4 * dim);
    let n_heads = parts.heads("n_head", dim)?;
    let eps = config.positive("layer_norm_epsilon", Some(1e-5))?;
    config.only("scale_attn_weights", &[json!(true)])?;
    config.only("add_cross_attention", &[json!(false)])?;
    let by_layer = config.switch("scale_attn_by_inverse_layer_idx", false)?;
    let tied = config.switch("tie_word_embeddings", true)?;
    // Another order of the same roundings; the second name of n_positions; a head that is not read here.
    config.without_effect(&["reorder_and_upcast_attn", "n_ctx", "summary_type", "summary_use_proj"]);
    config.without_effect(&["summary_activation", "summary_proj_to_labels"]);
    let head_size = dim / n_heads;

    let table = parts.take("wte.weight", &[vocab_size, dim])?;
    let embedding = parts.net.matrix("transformer.wte.weight", vocab_size, table);
    let table = parts.take("wpe.weight", &[positions, dim])?;
    let position = parts.net.floats("transformer.wpe.weight", positions, table);
    let x = parts.net.op(Op::Embedding { table: embedding });
    let mut x = parts.net.op(Op::AddPosition { input: x, table: position });
    for layer in 0..n_layers {
        let name = |part: &str| format!("h.{layer}.{part}");
        let h = parts.layer_norm(&name("ln_1"), x, dim, eps)?;
        let [q, k, v] = conv1d(parts, &name("attn.c_attn"), h, [dim, 3 * dim], ["q", "k", "v"])?;
        let scale = 1.0 / (head_size as f32).sqrt();
        let scale = if by_layer { scale / (layer + 1) as f32 } else { scale };
        let (n_heads, causal) = (n_heads as u16, true);
        let attention = parts.net.op(Op::Attention { q, k, v, n_heads, n_kv_heads: n_heads, causal, scale });
        let [o] = conv1d(parts, &name("attn.c_proj"), attention, [dim, dim], [""])?;
        x = parts.net.op(Op::Add { a: x, b: o });
        let h = parts.layer_norm(&name("ln_2"), x, dim, eps)?;
        let [up] = conv1d(parts, &name("mlp.c_fc"), h, [dim, hidden_dim], [""])?;
        let up = parts.activation("activation_function", up)?;
        let [down] = conv1d(parts, &name("mlp.c_proj"), up, [hidden_dim, dim], [""])?;
        x = parts.net.op(Op::Add { a: x, b: down });
        // The causal mask, which old folders keep.
        parts.unused(&name("attn.bias"));
        parts.unused(&name("attn.masked_bias"));
    }
    let features = parts.layer_norm("ln_f", x, dim, eps)?;
    let headless = parts.config.get("architectures") == Some(&json!(["GPT2Model"]));
    let output = if headless && !tied {
        features
    } else {
        parts.lm_head(features, embedding, [vocab_size, dim], tied)?
    };
    Ok(Ends { output, features, max_rows: positions, labels: Vec::new() })
}

/// The `Conv1D` layer `part` with its weight `[in, out]`, cut into sites of equal width, `part.name` each; a part that stays
/// whole has the empty name.
fn conv1d<const N: usize>(
    parts: &mut Parts,
    part: &str,
    input: ValueId,
    [inner, out]: [usize; 2],
    names: [&str; N],
) -> Result<[ValueId; N]> {
    let weight = parts.take(&format!("{part}.weight"), &[inner, out])?;
    let bias = parts.take(&format!("{part}.bias"), &[out])?;
    let width = out / N;
    let site = parts.site_name(part);
    let mut start = 0;
    Ok(names.map(|name| {
        let columns = start..start + width;
        start += width;
        let site = if name.is_empty() { site.clone() } else { format!("{site}.{name}") };
        let bias = bias[columns.clone()].to_vec();
        parts.net.linear(&site, input, width, transposed(&weight, out, columns), Some(bias))
    }))
}
