//! A task head that starts as the output layer of its base: for a task whose classes the base tells already.

use rankpatch_format::graph::Op;
use rankpatch_format::write::Network;

use crate::Result;
use crate::executor::dequantize;
use crate::train::TrainError;

/// Weight `[labels, width]` and bias `[labels]` of the base's output layer, whose outputs are named `outputs`, in the order of the
/// task's `labels`. A layer without a bias has zeros.
///
/// # Errors
/// [`TrainError::Base`] if the output is not a linear layer over the features, [`TrainError::BadValue`] if it has not as many
/// outputs as are named, or a label is none of them.
pub(super) fn of_base(
    network: &Network,
    labels: &[String],
    outputs: &[String],
) -> Result<(Vec<f32>, Vec<f32>)> {
    let layer = match network.ops.get(usize::from(network.output)) {
        Some(Op::Linear { input, weight, bias }) if *input == network.features => Some((*weight, *bias)),
        _ => None,
    };
    let tensor = |id: u16| network.tensors.get(usize::from(id));
    let Some((weight, bias)) =
        layer.and_then(|(weight, bias)| Some((tensor(weight)?, bias.and_then(tensor))))
    else {
        let expected = "a base whose output is a linear layer over its features, for output_labels".into();
        return Err(TrainError::Base { expected, found: network.name.clone() }.into());
    };
    let shape = weight.shape();
    let wrong =
        |expected: String, found: String| TrainError::BadValue { key: "output_labels", expected, found };
    if shape.rows as usize != outputs.len() {
        let expected = format!("{} names, one for each output of the base", shape.rows);
        return Err(wrong(expected, outputs.len().to_string()).into());
    }
    let (values, biases) = (dequantize(weight), bias.map(dequantize));
    let rows: Vec<&[f32]> = values.chunks_exact(shape.cols as usize).collect();
    let (mut head_weight, mut head_bias) = (Vec::new(), Vec::new());
    for label in labels {
        let output = outputs.iter().position(|output| output == label);
        let output = output.ok_or_else(|| {
            wrong(format!("{label}, a class of the task, among the names"), outputs.join(", "))
        })?;
        head_weight.extend_from_slice(rows[output]);
        head_bias.push(biases.as_ref().map_or(0.0, |biases| biases[output]));
    }
    Ok((head_weight, head_bias))
}
