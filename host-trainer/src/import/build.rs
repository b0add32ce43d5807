//! Putting a network together operator by operator, with a name for every tensor and every site.

use rankpatch_format::graph::{Op, TensorId, ValueId};
use rankpatch_format::write::{Network, Tensor, Vocabulary};

use crate::Result;

/// A network under construction.
#[derive(Default)]
pub(crate) struct Builder {
    ops: Vec<Op>,
    tensors: Vec<Tensor>,
    tensor_names: Vec<String>,
    site_names: Vec<String>,
}

/// What a network has besides operators and tensors.
pub(crate) struct Frame {
    pub(crate) name: String,
    pub(crate) labels: Vec<String>,
    pub(crate) output: ValueId,
    pub(crate) features: ValueId,
    pub(crate) max_rows: u32,
    pub(crate) vocabulary: Option<Vocabulary>,
}

impl Builder {
    /// Appends an operator.
    pub(crate) fn op(&mut self, op: Op) -> ValueId {
        self.ops.push(op);
        (self.ops.len() - 1) as ValueId
    }

    /// Puts another input operator in the place of the first.
    pub(super) fn replace_input(&mut self, op: Op) {
        self.ops[0] = op;
    }

    /// Appends a tensor.
    fn tensor(&mut self, name: impl Into<String>, tensor: Tensor) -> TensorId {
        self.tensors.push(tensor);
        self.tensor_names.push(name.into());
        (self.tensors.len() - 1) as TensorId
    }

    /// Appends a matrix `[rows, data.len() / rows]` that is to be quantized.
    pub(crate) fn matrix(&mut self, name: impl Into<String>, rows: usize, data: Vec<f32>) -> TensorId {
        let cols = (data.len() / rows) as u32;
        self.tensor(name, Tensor::Matrix { rows: rows as u32, cols, data })
    }

    /// Appends a table `[rows, data.len() / rows]` that stays f32; a vector has one row.
    pub(crate) fn floats(&mut self, name: impl Into<String>, rows: usize, data: Vec<f32>) -> TensorId {
        let cols = (data.len() / rows) as u32;
        self.tensor(name, Tensor::Floats { rows: rows as u32, cols, data })
    }

    /// Appends the site `name`, with a weight that is there already.
    pub(crate) fn site(
        &mut self,
        name: impl Into<String>,
        input: ValueId,
        weight: TensorId,
        bias: Option<TensorId>,
    ) -> ValueId {
        self.site_names.push(name.into());
        self.op(Op::Linear { input, weight, bias })
    }

    /// Appends the site `name` with its weight `name.weight` `[rows, data.len() / rows]` and, if there is one, its bias
    /// `name.bias`.
    pub(crate) fn linear(
        &mut self,
        name: &str,
        input: ValueId,
        rows: usize,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
    ) -> ValueId {
        let weight = self.matrix(format!("{name}.weight"), rows, weight);
        let bias = bias.map(|bias| self.floats(format!("{name}.bias"), 1, bias));
        self.site(name, input, weight, bias)
    }

    /// The network, its shapes checked.
    pub(crate) fn finish(self, frame: Frame) -> Result<Network> {
        let Self { ops, tensors, tensor_names, site_names } = self;
        let Frame { name, labels, output, features, max_rows, vocabulary } = frame;
        let network = Network {
            name,
            ops,
            tensors,
            tensor_names,
            site_names,
            labels,
            output,
            features,
            max_rows,
            vocabulary,
        };
        network.shapes()?;
        Ok(network)
    }
}
