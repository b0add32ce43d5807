//! Operators named after modules: what every importer puts its network together from.

use rankpatch_format::graph::{Op, ValueId};
use rankpatch_format::write::Network;
use rankpatch_format::{MAX_WIDTH, graph::TensorId};
use serde_json::Value;

use super::super::build::{Builder, Frame};
use super::config::Config;
use super::weights::Weights;
use crate::{Error, Result};

/// A network under construction, with where its options and tensors come from.
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) weights: Weights,
    pub(super) net: Builder,
    /// Before the modules of the body in a model with a head, and so in names of sites.
    prefix: &'static str,
    /// Before the same modules in this folder's tensors: a body that was saved alone has none.
    stored: &'static str,
    /// Starts of names of tensors that are known and of no use.
    unused: Vec<String>,
}

impl Parts {
    pub(super) fn new(config: Config, weights: Weights) -> Self {
        Self { config, weights, net: Builder::default(), prefix: "", stored: "", unused: Vec::new() }
    }

    /// Sets the prefix of the body's modules. `first` is a tensor that every folder has, without prefix.
    pub(super) fn set_prefix(&mut self, prefix: &'static str, first: &str) {
        self.prefix = prefix;
        self.stored = if self.weights.has(first) { "" } else { prefix };
    }

    /// Refuses a model with another head than those of `supported` or with none (`*Model`).
    pub(super) fn check_architecture(&self, supported: &[&str]) -> Result<()> {
        let Some(Value::Array(names)) = self.config.get("architectures") else { return Ok(()) };
        let known = |name: &Value| name.as_str().is_some_and(|name| supported.contains(&name));
        if names.iter().all(known) {
            return Ok(());
        }
        Err(self.config.refuse("architectures", supported.join(" or ")))
    }

    /// Says that tensors whose names begin so are of no use: those of the body, without prefix.
    pub(super) fn unused(&mut self, part: &str) {
        self.unused.push(format!("{}{part}", self.stored));
    }

    /// The same for tensors outside of the body.
    pub(super) fn unused_outside(&mut self, name: &str) {
        self.unused.push(name.to_owned());
    }

    /// The name of a site in the body.
    pub(super) fn site_name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }

    /// Whether the body has a tensor.
    pub(super) fn has(&self, part: &str) -> bool {
        self.weights.has(&format!("{}{part}", self.stored))
    }

    /// The numbers of a tensor of the body.
    pub(super) fn take(&self, part: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.weights.take(&format!("{}{part}", self.stored), shape)
    }

    /// A vector of the body that stays f32.
    pub(super) fn vector(&mut self, part: &str, width: usize) -> Result<TensorId> {
        let values = self.take(part, &[width])?;
        Ok(self.net.floats(self.site_name(part), 1, values))
    }

    /// The site `part` of the body with `part.weight` `[out, in]` and, if `biased`, `part.bias`.
    pub(super) fn linear(
        &mut self,
        part: &str,
        input: ValueId,
        shape: [usize; 2],
        biased: bool,
    ) -> Result<ValueId> {
        let weight = self.take(&format!("{part}.weight"), &shape)?;
        let bias = if biased { Some(self.take(&format!("{part}.bias"), &shape[..1])?) } else { None };
        Ok(self.net.linear(&self.site_name(part), input, shape[0], weight, bias))
    }

    /// The same for a module outside of the body, with a bias.
    pub(super) fn outside_linear(
        &mut self,
        name: &str,
        input: ValueId,
        shape: [usize; 2],
    ) -> Result<ValueId> {
        let weight = self.weights.take(&format!("{name}.weight"), &shape)?;
        let bias = self.weights.take(&format!("{name}.bias"), &shape[..1])?;
        Ok(self.net.linear(name, input, shape[0], weight, Some(bias)))
    }

    /// y = RMSNorm(x) with `part.weight`.
    pub(super) fn rms_norm(&mut self, part: &str, input: ValueId, width: usize, eps: f64) -> Result<ValueId> {
        let weight = self.vector(&format!("{part}.weight"), width)?;
        Ok(self.net.op(Op::RmsNorm { input, weight, eps: eps as f32 }))
    }

    /// y = LayerNorm(x) with `part.weight` and `part.bias`.
    pub(super) fn layer_norm(
        &mut self,
        part: &str,
        input: ValueId,
        width: usize,
        eps: f64,
    ) -> Result<ValueId> {
        let weight = self.vector(&format!("{part}.weight"), width)?;
        let bias = self.vector(&format!("{part}.bias"), width)?;
        Ok(self.net.op(Op::LayerNorm { input, weight, bias, eps: eps as f32 }))
    }

    /// The activation that `key` names.
    pub(super) fn activation(&mut self, key: &str, input: ValueId) -> Result<ValueId> {
        let op = match self.config.text(key)? {
            "silu" | "swish" => Op::Silu { input },
            "gelu" => Op::GeluErf { input },
            // One formula under four names.
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => Op::Gelu { input },
            "tanh" => Op::Tanh { input },
            _ => {
                let known = "silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast or tanh";
                return Err(self.config.refuse(key, known));
            }
        };
        Ok(self.net.op(op))
    }

    /// What follows the attention `a` in a layer of a post-norm encoder (BERT's names): its output projection, the feed-forward
    /// part, and both norms. In the `last` layer only for the first row: rows do not meet after it, and a task reads the first.
    pub(super) fn after_attention(
        &mut self,
        layer: usize,
        mut a: ValueId,
        mut x: ValueId,
        [dim, hidden_dim]: [usize; 2],
        eps: f64,
        last: bool,
    ) -> Result<ValueId> {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        if last {
            a = self.net.op(Op::SelectRow { input: a, row: 0 });
            x = self.net.op(Op::SelectRow { input: x, row: 0 });
        }
        let o = self.linear(&name("attention.output.dense"), a, [dim, dim], true)?;
        x = self.net.op(Op::Add { a: x, b: o });
        x = self.layer_norm(&name("attention.output.LayerNorm"), x, dim, eps)?;
        let up = self.linear(&name("intermediate.dense"), x, [hidden_dim, dim], true)?;
        let up = self.activation("hidden_act", up)?;
        let down = self.linear(&name("output.dense"), up, [dim, hidden_dim], true)?;
        x = self.net.op(Op::Add { a: x, b: down });
        self.layer_norm(&name("output.LayerNorm"), x, dim, eps)
    }

    /// The output of a language model: over the embedding's table, or over a weight of its own.
    pub(super) fn lm_head(
        &mut self,
        input: ValueId,
        embedding: TensorId,
        [vocab_size, width]: [usize; 2],
        tied: bool,
    ) -> Result<ValueId> {
        const NAME: &str = "lm_head.weight";
        if tied {
            // A copy of the table, where the folder has one.
            self.weights.pass_over(NAME);
            return Ok(self.net.site("lm_head", input, embedding, None));
        }
        let weight = self.weights.take(NAME, &[vocab_size, width])?;
        let weight = self.net.matrix(NAME, vocab_size, weight);
        Ok(self.net.site("lm_head", input, weight, None))
    }

    /// The network, once every option and every tensor is accounted for.
    pub(super) fn finish(
        self,
        name: String,
        output: ValueId,
        features: ValueId,
        max_rows: usize,
        labels: Vec<String>,
    ) -> Result<Network> {
        self.config.finish()?;
        self.weights.finish(|name| self.unused.iter().any(|unused| name.starts_with(unused)))?;
        // A position is at most what the format's longest sequence has.
        let max_rows = max_rows.min(MAX_WIDTH as usize) as u32;
        self.net.finish(Frame { name, labels, output, features, max_rows, vocabulary: None })
    }

    /// A number of attention heads, which divides `width`.
    pub(super) fn heads(&self, key: &str, width: usize) -> Result<usize> {
        let heads = self.config.size(key)?;
        if width.is_multiple_of(heads) && u16::try_from(heads).is_ok() {
            Ok(heads)
        } else {
            Err(self.config.refuse(key, format!("a divisor of the width {width}")))
        }
    }
}

/// `[cols, rows]` of `[rows, cols]`, from column `from` to column `to`.
pub(super) fn transposed(matrix: &[f32], cols: usize, columns: std::ops::Range<usize>) -> Vec<f32> {
    let rows = matrix.len() / cols.max(1);
    columns.flat_map(|col| (0..rows).map(move |row| matrix[row * cols + col])).collect()
}

/// An error about an option inside of another one.
pub(super) fn inner(config: &Config, key: &str, expected: &str, found: Option<&Value>) -> Error {
    Error::field(config.path(), key, expected, found.map_or("nothing".into(), Value::to_string))
}
