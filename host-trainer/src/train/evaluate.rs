//! Measures a task with the float executor.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use rankpatch_format::write::BiasData;
use rankpatch_runtime::Spans;

use super::batches::{Example, Tagged, Target, Targets};
use super::metric::{Metric, MetricName, Tally, negative_log_likelihood};
use crate::Result;
use crate::data::text::TextSpan;
use crate::executor::{Factors, Model, TaskHead};
use crate::lora::FloatAdapter;

/// Input rows of one batch; more would only need more memory.
const BATCH_ROWS: usize = 4096;

/// Measures `examples` on the float executor, with an adapter or on the base alone.
///
/// Texts are measured in bits per character, classes in accuracy (of the base alone: of its own outputs), classes of words by the spans
/// that they make.
///
/// # Errors
/// If an example or the adapter does not fit the network.
pub fn evaluate_float(model: &Model, adapter: Option<&FloatAdapter>, examples: &[Example]) -> Result<Metric> {
    let (factors, head) = match adapter {
        Some(adapter) => (factors(adapter, model.device())?, task_head(adapter, model.device())?),
        None => (BTreeMap::new(), None),
    };
    let labels = adapter.and_then(|adapter| adapter.head.as_ref()).map_or(&[][..], |head| &head.labels);
    let model = adapter.map_or(Ok(Cow::Borrowed(model)), |adapter| with_biases(model, adapter))?;
    let width = model.input_width();
    let mut order: Vec<&Example> = examples.iter().collect();
    order.sort_by_key(|example| example.rows(width));
    let mut tally = Tally::new(metric_of(examples));
    let mut rest = order.as_slice();
    while let Some(first) = rest.first() {
        // In ascending order the first is the shortest, so this is never more than the rows allow by much.
        let count = (BATCH_ROWS / first.rows(width).max(1)).clamp(1, rest.len());
        let (batch, after) = rest.split_at(count);
        rest = after;
        measure(&model, &factors, head.as_ref().map(|head| (head, labels)), batch, width, &mut tally)?;
    }
    Ok(tally.metric())
}

/// What examples of this kind are measured by.
pub(crate) fn metric_of(examples: &[Example]) -> MetricName {
    match examples.first().map(|example| &example.target) {
        Some(Target::Next { .. }) => MetricName::BitsPerCharacter,
        Some(Target::Words(_)) => MetricName::SpanF1,
        _ => MetricName::Accuracy,
    }
}

fn measure(
    model: &Model,
    factors: &BTreeMap<u16, Factors>,
    head: Option<(&TaskHead, &[String])>,
    examples: &[&Example],
    width: usize,
    tally: &mut Tally,
) -> Result<()> {
    let Targets { batch, targets, weights } = Targets::new(examples.iter().copied(), width);
    let labels = head.map_or(&[][..], |(_, labels)| labels);
    let outputs = model.forward(&batch, factors, head.map(|(head, _)| head))?;
    let n_out = outputs.dim(1)?;
    let outputs: Vec<f32> = outputs.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
    let mut rows = outputs.chunks_exact(n_out).zip(targets.iter().zip(&weights));
    for example in examples {
        match &example.target {
            Target::Class(class) => {
                let outputs = rows.next().map_or(&[][..], |(outputs, _)| outputs);
                tally.answer(outputs, *class);
            }
            Target::Words(tagged) => {
                let outputs: Vec<&[f32]> =
                    rows.by_ref().take(batch.rows).map(|(outputs, _)| outputs).collect();
                tally.spans(&spans(tagged, &outputs, labels), &tagged.spans);
            }
            Target::Next { characters, .. } => {
                let counted = rows.by_ref().take(batch.rows).filter(|(_, (_, weight))| **weight > 0.0);
                let nats = counted
                    .map(|(logits, (target, _))| negative_log_likelihood(logits, *target as usize))
                    .sum();
                tally.text(nats, *characters);
            }
        }
    }
    Ok(())
}

/// The spans that the outputs after each row tell, joined as a device joins them.
fn spans(tagged: &Tagged, outputs: &[&[f32]], labels: &[String]) -> Vec<TextSpan> {
    let mut spans = Spans::default();
    let labels = || labels.iter().map(String::as_str);
    let found = tagged.words.iter().filter_map(|word| spans.push(word.word, outputs[word.row], labels()));
    let found: Vec<TextSpan> = found.map(TextSpan::from).collect();
    found.into_iter().chain(spans.finish().map(TextSpan::from)).collect()
}

/// An adapter's factors as the executor takes them.
///
/// # Errors
/// If the device refuses a tensor.
pub fn factors(adapter: &FloatAdapter, device: &Device) -> Result<BTreeMap<u16, Factors>> {
    let factors = adapter.sites.iter().map(|factors| {
        let site = &factors.site;
        Ok((
            site.index,
            Factors {
                lora_a: Tensor::from_slice(&factors.lora_a, (site.rank, site.in_features), device)?,
                lora_b: Tensor::from_slice(&factors.lora_b, (site.out_features, site.rank), device)?,
                scaling: site.scaling,
                dropout_mask: None,
            },
        ))
    });
    factors.collect()
}

/// The network with an adapter's biases in it.
///
/// # Errors
/// If the device refuses a tensor.
pub fn with_biases<'m>(model: &'m Model, adapter: &FloatAdapter) -> Result<Cow<'m, Model>> {
    if adapter.biases.is_empty() {
        return Ok(Cow::Borrowed(model));
    }
    let biases = adapter.biases.iter().map(|BiasData { tensor, values }| {
        Ok((*tensor, Tensor::from_slice(values, values.len(), model.device())?))
    });
    Ok(Cow::Owned(model.with_biases(biases.collect::<Result<Vec<_>>>()?)))
}

/// An adapter's head as the executor takes it.
///
/// # Errors
/// If the device refuses a tensor.
pub fn task_head(adapter: &FloatAdapter, device: &Device) -> Result<Option<TaskHead>> {
    let head = adapter.head.as_ref().map(|head| {
        let outputs = head.labels.len();
        Ok(TaskHead {
            pooling: head.pooling,
            weight: Tensor::from_slice(&head.weight, (outputs, head.weight.len() / outputs.max(1)), device)?,
            bias: if head.bias.is_empty() {
                None
            } else {
                Some(Tensor::from_slice(&head.bias, outputs, device)?)
            },
        })
    });
    head.transpose()
}
