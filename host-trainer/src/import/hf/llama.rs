//! The Llama family: pre-norm decoders with RMSNorm, rotary positions, grouped attention and a gated feed-forward part. Mistral
//! and Qwen2 are the same graph with other biases and a window.
//!
//! `transformers` turns the pairs (i, i + d/2) of a head by its rotary angles, the `Rope` operator the pairs (2i, 2i + 1). So rows
//! of q and k are put in the operator's order here: scores are sums over a head, which no order changes, and a device
//! needs one kind of pairs only. [`super::modules`] does the same to rows of PEFT's lora_b.

use rankpatch_format::graph::Op;
use serde_json::{Map, Value, json};

use super::config::Config;
use super::parts::{Parts, inner};
use super::{Ends, modules};
use crate::Result;

/// What differs within the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Llama,
    Mistral,
    Qwen2,
}

impl Kind {
    fn architectures(self) -> [&'static str; 2] {
        match self {
            Self::Llama => ["LlamaForCausalLM", "LlamaModel"],
            Self::Mistral => ["MistralForCausalLM", "MistralModel"],
            Self::Qwen2 => ["Qwen2ForCausalLM", "Qwen2Model"],
        }
    }
}

/// Builds the graph.
pub(super) fn build(parts: &mut Parts, kind: Kind) -> Result<Ends> {
    parts.check_architecture(&kind.architectures())?;
    parts.set_prefix("model.", "embed_tokens.weight");
    let config = &parts.config;
    let (vocab_size, dim) = (config.size("vocab_size")?, config.size("hidden_size")?);
    let hidden_dim = config.size("intermediate_size")?;
    let n_layers = config.size("num_hidden_layers")?;
    let n_heads = config.size("num_attention_heads")?;
    let n_kv_heads = config.optional_size("num_key_value_heads")?.unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) || u16::try_from(n_heads).is_err() {
        return Err(
            config.refuse("num_key_value_heads", format!("a divisor of num_attention_heads {n_heads}"))
        );
    }
    let head_size = match config.optional_size("head_dim")? {
        Some(size) => size,
        None if dim.is_multiple_of(n_heads) => dim / n_heads,
        None => return Err(config.refuse("num_attention_heads", format!("a divisor of hidden_size {dim}"))),
    };
    if !head_size.is_multiple_of(2) {
        return Err(config.refuse("head_dim", "an even number, for rotary positions"));
    }
    config.only("hidden_act", &[json!("silu")])?;
    config.only("pretraining_tp", &[json!(1)])?;
    // [q, k, v], o.
    let attention_bias = match kind {
        Kind::Llama => [config.switch("attention_bias", false)?; 2],
        Kind::Mistral => [false; 2],
        Kind::Qwen2 => [true, false],
    };
    let mlp_bias = kind == Kind::Llama && config.switch("mlp_bias", false)?;
    let eps = config.positive("rms_norm_eps", Some(1e-6))?;
    let tied = config.switch("tie_word_embeddings", false)?;
    let max_rows = longest(config, kind)?;
    let inv_freq = inv_freq(config, head_size)?;

    let (q_dim, kv_dim) = (n_heads * head_size, n_kv_heads * head_size);
    let table = parts.take("embed_tokens.weight", &[vocab_size, dim])?;
    let embedding = parts.net.matrix("model.embed_tokens.weight", vocab_size, table);
    let inv_freq = parts.net.floats("rope.inv_freq", 1, inv_freq);
    let mut x = parts.net.op(Op::Embedding { table: embedding });
    for layer in 0..n_layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        let h = parts.rms_norm(&name("input_layernorm"), x, dim, eps)?;
        let mut rotated = |part: &str, rows: usize| {
            let part = name(part);
            let order = modules::rotary_order(rows, head_size);
            let weight = parts.take(&format!("{part}.weight"), &[rows, dim])?;
            let weight = modules::gather_rows(&weight, dim, &order);
            let bias =
                if attention_bias[0] { Some(parts.take(&format!("{part}.bias"), &[rows])?) } else { None };
            let bias = bias.map(|bias| modules::gather_rows(&bias, 1, &order));
            let site = parts.site_name(&part);
            let input = parts.net.linear(&site, h, rows, weight, bias);
            Ok::<_, crate::Error>(input)
        };
        let q = rotated("self_attn.q_proj", q_dim)?;
        let k = rotated("self_attn.k_proj", kv_dim)?;
        let v = parts.linear(&name("self_attn.v_proj"), h, [kv_dim, dim], attention_bias[0])?;
        let q = parts.net.op(Op::Rope { input: q, inv_freq });
        let k = parts.net.op(Op::Rope { input: k, inv_freq });
        let attention = parts.net.op(Op::Attention {
            q,
            k,
            v,
            n_heads: n_heads as u16,
            n_kv_heads: n_kv_heads as u16,
            causal: true,
            scale: 1.0 / (head_size as f32).sqrt(),
        });
        let o = parts.linear(&name("self_attn.o_proj"), attention, [dim, q_dim], attention_bias[1])?;
        x = parts.net.op(Op::Add { a: x, b: o });
        let h = parts.rms_norm(&name("post_attention_layernorm"), x, dim, eps)?;
        let gate = parts.linear(&name("mlp.gate_proj"), h, [hidden_dim, dim], mlp_bias)?;
        let gate = parts.net.op(Op::Silu { input: gate });
        let up = parts.linear(&name("mlp.up_proj"), h, [hidden_dim, dim], mlp_bias)?;
        let gated = parts.net.op(Op::Mul { a: gate, b: up });
        let down = parts.linear(&name("mlp.down_proj"), gated, [dim, hidden_dim], mlp_bias)?;
        x = parts.net.op(Op::Add { a: x, b: down });
        // Old folders keep what the angles are made of.
        parts.unused(&name("self_attn.rotary_emb.inv_freq"));
    }
    let features = parts.rms_norm("norm", x, dim, eps)?;
    let headless = parts.config.get("architectures") == Some(&json!([kind.architectures()[1]]));
    let output = if headless && !tied && !parts.weights.has("lm_head.weight") {
        features
    } else {
        parts.lm_head(features, embedding, [vocab_size, dim], tied)?
    };
    Ok(Ends { output, features, max_rows, labels: Vec::new() })
}

/// The longest sequence: as many positions as the model has seen, or a window of attention if that is shorter. Within the window
/// attention is the same with and without it.
fn longest(config: &Config, kind: Kind) -> Result<usize> {
    let positions = config.size("max_position_embeddings")?;
    let windowed = match kind {
        Kind::Llama => false,
        Kind::Mistral => true,
        Kind::Qwen2 => config.switch("use_sliding_window", false)?,
    };
    if kind == Kind::Llama {
        return Ok(positions);
    }
    // They say which layers have the window.
    config.without_effect(&["max_window_layers", "layer_types"]);
    let window = config.optional_size("sliding_window")?.filter(|_| windowed);
    Ok(window.map_or(positions, |window| positions.min(window)))
}

/// The rotary frequencies `theta^(-2i / head_size)`, scaled as the options say.
fn inv_freq(config: &Config, head_size: usize) -> Result<Vec<f32>> {
    // One object in newer folders, two options in older ones.
    let mut options = Map::new();
    let mut source = "rope_parameters";
    for key in ["rope_scaling", "rope_parameters"] {
        match config.get(key) {
            None => {}
            Some(Value::Object(stated)) => {
                options.extend(stated.clone());
                source = key;
            }
            Some(_) => return Err(config.refuse(key, "an object")),
        }
    }
    let number = |key: &str| {
        let found = options.get(key);
        let value = found.and_then(Value::as_f64).filter(|value| *value > 0.0);
        value.ok_or_else(|| inner(config, &format!("{source}.{key}"), "a number above 0", found))
    };
    let theta = match options.get("rope_theta") {
        Some(_) => number("rope_theta")?,
        None => config.positive("rope_theta", Some(10_000.0))?,
    };
    config.without_effect(&["rope_theta"]);
    let base = (0..head_size / 2).map(|i| theta.powf(-((2 * i) as f64) / head_size as f64));
    let kind = options.get("rope_type").or(options.get("type"));
    let known: &[&str] = match kind.and_then(Value::as_str) {
        None if kind.is_none() => &["rope_theta"],
        Some("default") => &["rope_theta"],
        Some("linear") => &["rope_theta", "factor"],
        Some("llama3") => &[
            "rope_theta",
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ],
        _ => return Err(inner(config, &format!("{source}.rope_type"), "default, linear or llama3", kind)),
    };
    let named = ["rope_type", "type"];
    let stray = options.iter().find(|(key, value)| {
        let whole = key.as_str() == "partial_rotary_factor" && value.as_f64() == Some(1.0);
        !known.contains(&key.as_str()) && !named.contains(&key.as_str()) && !whole && !value.is_null()
    });
    if let Some((key, value)) = stray {
        return Err(inner(config, &format!("{source}.{key}"), "no such option", Some(value)));
    }
    Ok(match kind.and_then(Value::as_str) {
        Some("linear") => {
            let factor = number("factor")?;
            base.map(|frequency| (frequency / factor) as f32).collect()
        }
        Some("llama3") => {
            let (factor, old) = (number("factor")?, number("original_max_position_embeddings")?);
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            // Waves that fit into the old context high times stay, those that fit less than low times are stretched, and
            // between the two it changes smoothly.
            let scaled = |frequency: f64| {
                let turns = old * frequency / (2.0 * std::f64::consts::PI);
                let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                ((1.0 - smooth) * frequency / factor + smooth * frequency) as f32
            };
            base.map(scaled).collect()
        }
        _ => base.map(|frequency| frequency as f32).collect(),
    })
}
