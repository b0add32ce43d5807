//! What a finished run is worth: the file and what it was rounded from, with the device's code; or the factors in float, on a
//! base that devices do not run.

use rankpatch_format::Error as FormatError;
use rankpatch_format::link::Mode;

use super::super::exit::Outcome;
use super::super::task::{LoadedBase, Trainable};
use crate::Error;
use crate::executor::Model;
use crate::export::{export, hardly_rounded};
use crate::lora::FloatAdapter;
use crate::report::{AfterTraining, Metrics};
use crate::sim::Simulator;
use crate::train::{Example, Learner, Metric, evaluate_float};

/// Measures an adapter and its file, and what training in float had come to after so many steps if codes were trained then.
pub(super) fn measure(
    model: &Model,
    adapter: &FloatAdapter,
    learner: &Learner,
    file: &[u8],
    base: &LoadedBase,
) -> Outcome<Metrics> {
    let test = &learner.data().test;
    let unquantized = learner.unquantized()?.map(|before| (learner.first_quantized_step(), before));
    let alone = learner.base_alone(&base.network)?;
    let plain = Simulator::new(base.image.clone())?;
    let on_device = |file: Vec<u8>| -> crate::Result<f64> {
        Ok(plain.clone().with_adapter(file, Mode::Streamed)?.evaluate(test)?.value)
    };
    let float_device =
        |adapter: &FloatAdapter| match hardly_rounded(adapter, &base.network).and_then(on_device) {
            Err(error) if is_rank(&error) => Ok(None),
            measured => measured.map(Some),
        };
    let Metric { name, value: adapter_float, examples } = evaluate_float(model, Some(adapter), test)?;
    let after_training = match unquantized {
        None => None,
        Some((step, adapter)) => Some(AfterTraining {
            step,
            float: evaluate_float(model, Some(&adapter), test)?.value,
            float_device: float_device(&adapter)?,
            device: on_device(export(&adapter, &base.network, 0, |_| Ok(0))?.file)?,
        }),
    };
    Ok(Metrics {
        name,
        examples,
        base: match alone {
            Some(alone) => Some(on_device(export(&alone, &base.network, 0, |_| Ok(0))?.file)?),
            None if adapter.head.is_none() => Some(plain.evaluate(test)?.value),
            None => None,
        },
        after_training,
        adapter_float,
        adapter_float_device: float_device(adapter)?,
        adapter_device: Some(on_device(file.to_vec())?),
    })
}

/// Measures an adapter and its base in the trainer, where there is no device's code to measure with.
pub(super) fn measure_in_float(model: &Model, adapter: &FloatAdapter, test: &[Example]) -> Outcome<Metrics> {
    let Metric { name, value: adapter_float, examples } = evaluate_float(model, Some(adapter), test)?;
    let base = if adapter.head.is_none() { Some(evaluate_float(model, None, test)?.value) } else { None };
    Ok(Metrics {
        name,
        examples,
        base,
        after_training: None,
        adapter_float,
        adapter_float_device: None,
        adapter_device: None,
    })
}

/// Checks that the device has room for the ranks of an adapter, before time is spent on training it.
pub(super) fn check_room(learner: &Learner, base: &Trainable) -> Outcome {
    // Trimmed ranks are never above what a matrix can have, for which there always is room.
    let (Trainable::Device(base), None) = (base, learner.config().explained_variance) else { return Ok(()) };
    if learner.sites().is_empty() {
        return Ok(());
    }
    let adapter = &learner.adapter()?;
    let file = export(adapter, &base.network, 0, |_| Ok(0))?.file;
    let device = Simulator::new(base.image.clone())?.with_adapter(file, Mode::Streamed)?;
    Ok(device.session(|_| Ok(()))?)
}

/// Whether a rank is higher than a file or the device's arena has room for.
fn is_rank(error: &Error) -> bool {
    use rankpatch_runtime::Error as RuntimeError;
    let rank = |error: &FormatError| matches!(error, FormatError::RankOutOfRange { .. });
    match error {
        Error::Format(error) | Error::Runtime(RuntimeError::Format(error)) => rank(error),
        _ => false,
    }
}
