//! Where the sites of a network and the modules of `transformers` differ: rows in another order, several sites in one module, and
//! for llama2.c's networks, which are Llamas, the names. Names alone tell: no file keeps more of a model than those of its sites.
//!
//! A network of another origin has a module for each site, of the same name and order.

use std::collections::BTreeMap;

use rankpatch_format::graph::{HostOp, Op, TensorId, ValueId};
use rankpatch_format::write::Network;

/// The modules that are cut into sites, by the end of their names, and the names of the parts.
const FUSED: (&str, [&str; 3]) = ("attn.c_attn", ["q", "k", "v"]);
/// The sites of a layer of llama2.c, and what they are in a Llama of `transformers`.
const LLAMA2C: [(&str, &str); 7] = [
    ("attn.q", "self_attn.q_proj"),
    ("attn.k", "self_attn.k_proj"),
    ("attn.v", "self_attn.v_proj"),
    ("attn.o", "self_attn.o_proj"),
    ("ffn.gate", "mlp.gate_proj"),
    ("ffn.up", "mlp.up_proj"),
    ("ffn.down", "mlp.down_proj"),
];
/// Ends of names of modules whose rows are in another order.
const ROTATED: [&str; 2] = ["self_attn.q_proj", "self_attn.k_proj"];
/// What the body of a model is called in a model with a head, and the head that `transformers` puts on it for classes.
const BODIES: [(&str, &str); 5] = [
    ("model", "score"),
    ("transformer", "score"),
    ("bert", "classifier"),
    ("roberta", "classifier.out_proj"),
    ("deberta", "classifier"),
];

/// A module that PEFT knows, with the sites in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Path of the module, without PEFT's prefix.
    pub(crate) name: String,
    /// in_features.
    pub(crate) in_features: usize,
    /// out_features: those of all parts.
    pub(crate) out_features: usize,
    /// Its sites, one as a rule.
    pub(crate) sites: Vec<Part>,
}

/// A site in a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Index of the site.
    pub(crate) site: u16,
    /// The site's name.
    pub(crate) name: String,
    /// The module's row that is the site's first.
    pub(crate) first_row: usize,
    /// out_features of the site.
    pub(crate) rows: usize,
    /// Row i of the site is row `order[i]` of its part of the module; empty if rows are in one order.
    order: Vec<usize>,
}

impl Part {
    /// The rows of a module's `[out_features, cols]` that are the site's, in the site's order.
    pub(crate) fn take(&self, module: &[f32], cols: usize) -> Vec<f32> {
        let rows = &module[self.first_row * cols..(self.first_row + self.rows) * cols];
        if self.order.is_empty() { rows.to_vec() } else { gather_rows(rows, cols, &self.order) }
    }

    /// The site's rows in the module's order.
    pub(crate) fn give(&self, site: &[f32], cols: usize) -> Vec<f32> {
        if self.order.is_empty() {
            return site.to_vec();
        }
        let mut back = vec![0.0; site.len()];
        for (row, to) in site.chunks_exact(cols.max(1)).zip(&self.order) {
            back[to * cols..(to + 1) * cols].copy_from_slice(row);
        }
        back
    }
}

/// The module that a site is a part of, and which part; `None` for a site that is a whole module.
pub(crate) fn fused(site: &str) -> Option<(&str, usize)> {
    let (module, part) = site.rsplit_once('.')?;
    let part = FUSED.1.iter().position(|name| *name == part)?;
    module.ends_with(FUSED.0).then_some((module, part))
}

/// A name without that of the body: what a module is called in a model that was loaded without head. `None` if it has none.
pub(crate) fn without_body(name: &str) -> Option<&str> {
    let (body, rest) = name.split_once('.')?;
    BODIES.iter().any(|(known, _)| *known == body).then_some(rest)
}

/// The module of a task's head in a model of `transformers` for classes; `None` for a network of another origin.
pub(crate) fn head(network: &Network) -> Option<&'static str> {
    let body = network.site_names.first()?.split_once('.')?.0;
    let known = BODIES.iter().find(|(known, _)| *known == body);
    known.map(|(_, head)| *head)
}

/// Whether a task's head has a bias: `transformers` classifies with a `score` that has none, and a folder with one would not give
/// there what it gives here.
pub(crate) fn head_has_bias(network: &Network) -> bool {
    head(network) != Some("score")
}

/// Whether the layers of a network are `Conv1D`, whose weights lie the other way round: PEFT's `fan_in_fan_out`.
pub(crate) fn fan_in_fan_out(network: &Network) -> bool {
    network.site_names.iter().any(|name| fused(name).is_some())
}

/// The bias of a module that PEFT knows, or of several sites that are one module there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModuleBias {
    /// Path of the module, without PEFT's prefix.
    pub(crate) module: String,
    /// Its length.
    pub(crate) len: usize,
    /// The base's tensors in it, a part each.
    pub(crate) parts: Vec<(TensorId, Part)>,
}

/// The biases of a network: those of linear layers, LayerNorms, convolutions and the norm of a table of positions.
pub(crate) fn biases(network: &Network) -> Vec<ModuleBias> {
    let linear: Vec<&Op> = network.ops.iter().filter(|op| matches!(op, Op::Linear { .. })).collect();
    let of_sites = modules(network).into_iter().filter_map(|module| {
        let bias = |part: Part| Some((linear.get(usize::from(part.site))?.bias()?, part));
        let parts: Vec<(TensorId, Part)> = module.sites.into_iter().filter_map(bias).collect();
        let whole = ModuleBias { module: module.name, len: module.out_features, parts };
        (!whole.parts.is_empty()).then_some(whole)
    });
    let mut norms = 0;
    let (mut before, mut sites) = (None, network.site_names.iter().map(String::as_str).peekable());
    let mut convolution = None;
    let mut all: Vec<ModuleBias> = of_sites.collect();
    for op in &network.ops {
        let body = before.or(sites.peek().copied()).and_then(|site| site.split_once('.'));
        let body = body.map_or("", |(body, _)| body);
        let (module, bias) = match *op {
            Op::Linear { .. } => {
                before = sites.next();
                continue;
            }
            Op::LayerNorm { bias, .. } => {
                norms += 1;
                let convolved = convolution.take().map(|module| format!("{module}.LayerNorm"));
                let norm = || norm(body, before, sites.peek().copied(), norms - 1);
                (convolved.unwrap_or_else(norm), bias)
            }
            Op::Host(HostOp::Convolution { bias, .. }) => {
                let module = format!("{body}.encoder.conv");
                let convolving = format!("{module}.conv");
                convolution = Some(module);
                (convolving, bias)
            }
            Op::Host(HostOp::AppendTable { bias: Some(bias), .. }) => {
                (format!("{body}.encoder.LayerNorm"), bias)
            }
            _ => continue,
        };
        // Every layer appends the same table.
        if all.iter().any(|known| known.module == module) {
            continue;
        }
        let rows = network.tensors.get(usize::from(bias)).map_or(0, |tensor| tensor.shape().cols);
        let rows = rows as usize;
        let whole = Part { site: 0, name: module.clone(), first_row: 0, rows, order: Vec::new() };
        all.push(ModuleBias { module, len: rows, parts: vec![(bias, whole)] });
    }
    all
}

/// The module of a LayerNorm, told by the sites before and behind it; a number in a network of another origin.
fn norm(body: &str, before: Option<&str>, behind: Option<&str>, number: usize) -> String {
    match body {
        "transformer" => {
            let in_layer = |end: &str, norm: &str| Some(format!("{}{norm}", behind?.strip_suffix(end)?));
            let first = in_layer("attn.c_attn.q", "ln_1").or_else(|| in_layer("mlp.c_fc", "ln_2"));
            first.unwrap_or_else(|| "transformer.ln_f".into())
        }
        "bert" | "roberta" | "deberta" => match before.and_then(|site| site.strip_suffix(".dense")) {
            Some(output) => format!("{output}.LayerNorm"),
            None => format!("{body}.embeddings.LayerNorm"),
        },
        _ => format!("norms.{number}"),
    }
}

/// The module of a site in a Llama of `transformers`, if it has the name of a site of llama2.c.
fn llama2c(site: &str) -> Option<String> {
    if site == "lm_head" {
        return Some(site.into());
    }
    let (layer, part) = site.strip_prefix("layers.")?.split_once('.')?;
    let (_, module) = LLAMA2C.iter().find(|(name, _)| *name == part)?;
    layer.bytes().all(|digit| digit.is_ascii_digit()).then(|| format!("model.layers.{layer}.{module}"))
}

/// The modules of a network, in the order of their first sites.
pub(crate) fn modules(network: &Network) -> Vec<Module> {
    let heads: BTreeMap<ValueId, usize> = network
        .ops
        .iter()
        .filter_map(|op| match *op {
            Op::Rope { input, inv_freq } => {
                let tensor = network.tensors.get(usize::from(inv_freq))?;
                Some((input, 2 * tensor.shape().cols as usize))
            }
            _ => None,
        })
        .collect();
    let values =
        (0..).zip(&network.ops).filter(|(_, op)| matches!(op, Op::Linear { .. })).map(|(value, _)| value);
    let mut modules: Vec<Module> = Vec::new();
    // A network of which this holds for every site, and not only for some, is a Llama.
    let renamed: Option<Vec<String>> = network.site_names.iter().map(|name| llama2c(name)).collect();
    for ((site, (name, weight)), value) in (0..).zip(network.sites()).zip(values) {
        let shape = weight.shape();
        let (rows, in_features) = (shape.rows as usize, shape.cols as usize);
        let own = renamed.as_ref().and_then(|names| names.get(usize::from(site)));
        let called = own.map_or(name, String::as_str);
        let rotated = ROTATED.iter().any(|end| called.ends_with(end));
        let head_size = heads.get(&value).filter(|_| rotated);
        let order = head_size.map_or_else(Vec::new, |head_size| rotary_order(rows, *head_size));
        let (module, part) = fused(name).unwrap_or((called, 0));
        let mut part_of = Part { site, name: name.into(), first_row: 0, rows, order };
        if let Some(last) = modules.last_mut().filter(|last| part > 0 && last.name == module) {
            part_of.first_row = last.out_features;
            last.out_features += rows;
            last.sites.push(part_of);
        } else {
            let (name, sites) = (module.into(), vec![part_of]);
            modules.push(Module { name, in_features, out_features: rows, sites });
        }
    }
    modules
}

/// For each row in the order of the `Rope` operator, whose pairs are (2i, 2i + 1), the row in that of `transformers`, whose pairs are
/// (i, i + `head_size` / 2).
pub(crate) fn rotary_order(rows: usize, head_size: usize) -> Vec<usize> {
    let half = head_size / 2;
    (0..rows).map(|row| row / head_size * head_size + row % 2 * half + row % head_size / 2).collect()
}

/// The rows `order[0]`, `order[1]`, .. of `[rows, cols]`.
pub(crate) fn gather_rows(values: &[f32], cols: usize, order: &[usize]) -> Vec<f32> {
    order.iter().flat_map(|row| &values[row * cols..(row + 1) * cols]).copied().collect()
}
