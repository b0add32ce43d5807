//! The end of a run: the adapter in every form that its base has, what it is worth, and the pages about it.

use std::path::Path;

use rankpatch_format::adapter::Adapter;

use super::super::console::{fields, grouped};
use super::super::exit::Outcome;
use super::super::task::{PEFT, Trainable, digest};
use super::measure::{measure, measure_in_float};
use super::{MODEL, RUN, failed, weights};
use crate::executor::Model;
use crate::export::export;
use crate::report::{AdapterFile, AfterTraining, History, Metrics, REPORT, Summary, sites, write_report};
use crate::train::{Learner, Method, evaluate_float};
use crate::{Error, files, peft};

/// Exports the adapter, measures it and writes all that a finished run leaves.
pub(super) fn finish(
    learner: &Learner,
    model: &Model,
    base: &Trainable,
    history: &History,
    out: &Path,
) -> Outcome<Summary> {
    let network = base.network();
    let adapter = learner.adapter()?;
    if learner.config().method == Method::Full {
        let before = match adapter.head {
            None => {
                Some(evaluate_float(&Model::new(network, model.device())?, None, &learner.data().test)?.value)
            }
            Some(_) => None,
        };
        return weights::finish(learner, model, network, before, history, (&out.join(MODEL), out));
    }
    let (file_path, peft_path) = (out.join(format!("{}.rpa", adapter.task)), out.join(PEFT));
    let test = &learner.data().test;
    let (file, bytes, metric) = match base {
        Trainable::Device(base) => {
            let exported =
                export(&adapter, network, learner.config().sequence, |file| digest(&base.image, file))?;
            let metric = measure(model, &adapter, learner, &exported.file, base)?;
            let file = AdapterFile {
                adapter: file_path.clone(),
                adapter_file_bytes: exported.file.len(),
                payload_bytes: Adapter::new(&exported.file, &base.image.base()?)?.payload_bytes(),
                self_test_digest: format!("{:#018x}", exported.data.self_test.digest),
            };
            (Some(file), Some(exported.file), metric)
        }
        Trainable::Host(..) => (None, None, measure_in_float(model, &adapter, test)?),
    };
    let folder = peft::contents(&adapter, network, &peft_path)?;
    let summary = Summary {
        task: adapter.task.clone(),
        base: network.name.clone(),
        base_id: network.id().to_string(),
        sites: adapter.sites.len(),
        rank: adapter.config.rank,
        alpha: adapter.config.alpha,
        trained: learner.trained(),
        steps: learner.step(),
        file,
        metric,
        training_seconds: history.seconds,
        method: Method::Lora,
        peft: Some(peft_path),
        model: None,
        peft_bytes: folder.iter().map(|(_, bytes)| bytes.len()).sum(),
        per_site: sites(&adapter, network)?,
    };
    let run = out.join(RUN);
    // First, since what is being replaced is no longer what an earlier run finished.
    let mut written = vec![(run.clone(), b"unfinished\n".to_vec())];
    written.extend(folder);
    written.extend(bytes.map(|bytes| (file_path.clone(), bytes)));
    files::write_together(&written)?;
    if summary.file.is_none() && file_path.is_file() {
        // That of an earlier run on another base: beside this run's files it would be taken for its adapter.
        std::fs::remove_file(&file_path).map_err(Error::write(&file_path)).map_err(failed)?;
    }
    write_report(out, &summary, history, learner.config()).map_err(failed)?;
    // After them, since a folder with a summary is that of a finished run.
    summary.write(out).map_err(failed)?;
    files::write_atomically(&run, format!("{}\n", learner.identity()).as_bytes()).map_err(failed)?;
    Ok(summary)
}

/// What a person reads at the end of a run.
pub(super) fn text(summary: &Summary, out: &Path) -> String {
    if summary.method == Method::Full {
        return weights::text(summary, out);
    }
    let Metrics { name, examples, base, after_training, adapter_float, adapter_device, .. } = &summary.metric;
    let measured: Vec<String> =
        [("base", *base), ("adapter in float", Some(*adapter_float)), ("on the device", *adapter_device)]
            .into_iter()
            .filter_map(|(what, value)| Some(format!("{what} {:.4}", value?)))
            .collect();
    let rank = match summary.ranks() {
        (low, high) if low < high => format!("ranks {low} to {high}"),
        (rank, _) => format!("rank {rank}"),
    };
    let mut lines = vec![
        ("task", summary.task.clone()),
        ("base", format!("{} ({})", summary.base, summary.base_id)),
        ("sites", format!("{}, {rank}, alpha {}", summary.sites, summary.alpha)),
        (
            "file",
            match &summary.file {
                Some(AdapterFile { adapter_file_bytes, payload_bytes, .. }) => {
                    format!("{} bytes, payload {}", grouped(*adapter_file_bytes), grouped(*payload_bytes))
                }
                None => "none: devices do not run this base".into(),
            },
        ),
        (name.as_str(), format!("{} ({examples} examples)", measured.join(", "))),
    ];
    if let Some(AfterTraining { step, float, device, .. }) = after_training {
        lines.push((
            "after training",
            format!("step {step}: in float {float:.4}, rounded for the device {device:.4}"),
        ));
    }
    lines.push(("trained in", format!("{:.1} s", summary.training_seconds)));
    lines.extend(summary.file.as_ref().map(|file| ("adapter", file.adapter.display().to_string())));
    if let Some(peft) = &summary.peft {
        lines.push(("PEFT", format!("{}, {} bytes", peft.display(), grouped(summary.peft_bytes))));
        lines.push(("report", peft.with_file_name(REPORT).display().to_string()));
    }
    fields(&lines)
}
