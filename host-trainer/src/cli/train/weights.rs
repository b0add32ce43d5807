//! The end of a run that has trained weights: another network in a folder, what it is worth in float and with the device's code,
//! and the pages about it.

use std::path::{Path, PathBuf};

use rankpatch_format::layout::Layout;
use rankpatch_format::write::Network;

use super::super::console::{fields, grouped};
use super::super::exit::Outcome;
use super::{RUN, failed};
use crate::base::{Image, quantize};
use crate::executor::Model;
use crate::report::{History, Metrics, REPORT, Summary, write_report};
use crate::sim::Simulator;
use crate::train::{FullyTrained, Learner, Method, Metric, evaluate_float};
use crate::{files, import};

/// Writes the network that a run has come to into `folder`, measures it, and writes all else that a finished run leaves into
/// `out`. `base` is what it was before: its name and identity, and whether it could do the task.
pub(in crate::cli) fn finish(
    learner: &Learner,
    model: &Model,
    network: &Network,
    base: Option<f64>,
    history: &History,
    (folder, out): (&Path, &Path),
) -> Outcome<Summary> {
    let test = &learner.data().test;
    let adapter = learner.adapter()?;
    let Metric { name, value: adapter_float, examples } = evaluate_float(model, Some(&adapter), test)?;
    let trained = FullyTrained::of(learner, model, network)?;
    // A head beside the network has nothing on a device that would run it.
    let on_device = trained.head.is_none() && trained.network.check_operators().is_ok();
    let adapter_device = if on_device {
        let image = Image::build(&trained.network, Layout::RowMajor, 16)?;
        Some(Simulator::new(image)?.evaluate(test)?.value)
    } else {
        None
    };
    let config = learner.config();
    let base_id =
        if config.base.as_os_str().is_empty() { quantize(&trained.network)?.id() } else { network.id() };
    let summary = Summary {
        task: config.task.clone(),
        base: network.name.clone(),
        base_id: base_id.to_string(),
        method: Method::Full,
        sites: 0,
        rank: 0,
        alpha: 0.0,
        trained: learner.trained(),
        steps: learner.step(),
        file: None,
        metric: Metrics {
            name,
            examples,
            base,
            after_training: None,
            adapter_float,
            adapter_float_device: None,
            adapter_device,
        },
        training_seconds: history.seconds,
        peft: None,
        peft_bytes: 0,
        model: Some(folder.to_owned()),
        per_site: Vec::new(),
    };
    let run = out.join(RUN);
    let mut written = vec![(run.clone(), b"unfinished\n".to_vec())];
    if trained.network.check_operators().is_ok() {
        written.extend(import::network::contents(&trained.network, trained.head.as_ref(), folder)?);
    }
    files::write_together(&written)?;
    write_report(out, &summary, history, config).map_err(failed)?;
    summary.write(out).map_err(failed)?;
    files::write_atomically(&run, format!("{}\n", learner.identity()).as_bytes()).map_err(failed)?;
    Ok(summary)
}

/// What a person reads at the end of such a run.
pub(in crate::cli) fn text(summary: &Summary, out: &Path) -> String {
    let Metrics { name, examples, base, adapter_float, adapter_device, .. } = &summary.metric;
    let measured: Vec<String> =
        [("before", *base), ("in float", Some(*adapter_float)), ("in int8 on the device", *adapter_device)]
            .into_iter()
            .filter_map(|(what, value)| Some(format!("{what} {:.4}", value?)))
            .collect();
    let model = summary.model.as_ref().map_or_else(PathBuf::new, Clone::clone);
    fields(&[
        ("name", summary.task.clone()),
        ("base", format!("{} ({})", summary.base, summary.base_id)),
        ("trained", format!("{} numbers in {} steps", grouped(summary.trained), grouped(summary.steps))),
        (name.as_str(), format!("{} ({examples} examples)", measured.join(", "))),
        ("trained in", format!("{:.1} s", summary.training_seconds)),
        ("network", model.display().to_string()),
        ("report", out.join(REPORT).display().to_string()),
    ])
}
