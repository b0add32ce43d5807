//! A run's report: one page that needs nothing but itself, light or dark as its reader likes.
//!
//! Whatever a user named (tasks, sites, paths) is text here and never markup; a policy in the page also forbids scripts and
//! everything from elsewhere. The same run gives the same page, apart from the times in it.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::plot::{Curve, Ink, Plot, PlotError, bars, smoothed, thinned};
use super::{AdapterFile, History, Metrics, Site, Summary};
use crate::lora::Bias;
use crate::train::{Method, MetricName, TrainConfig};
use crate::{Error, Result, files};

/// File of the report, in the output folder of a run.
pub const REPORT: &str = "report.html";

const STYLE: &str = include_str!("style.css");

/// Bytes of an f32.
const FLOAT: usize = 4;

/// Steps over which the loss is smoothed, as a part of the run.
const SMOOTHING: usize = 40;

/// Writes the report of a run into its output folder.
///
/// # Errors
/// [`Error::Io`].
pub fn write(folder: &Path, summary: &Summary, history: &History, config: &TrainConfig) -> Result<()> {
    let path = folder.join(REPORT);
    let page = page(summary, history, config)
        .map_err(|error| Error::field(&path, "plots", "numbers that can be drawn", error))?;
    files::write_atomically(&path, page.as_bytes())
}

/// The whole page.
pub(super) fn page(
    summary: &Summary,
    history: &History,
    config: &TrainConfig,
) -> std::result::Result<String, PlotError> {
    let mut colors = String::new();
    for (ink, name) in Ink::ALL {
        let code = ink.code();
        let _ = writeln!(
            colors,
            "svg [stroke=\"{code}\"] {{ stroke: var(--{name}); }}\nsvg [fill=\"{code}\"] {{ fill: var(--{name}); }}"
        );
    }
    let task = escaped(&summary.task);
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{task} - Rankpatch</title>\n<style>\n{STYLE}{colors}</style>\n</head>\n<body>\n<main>\n\
         {}{}{}{}{}</main>\n</body>\n</html>\n",
        head(summary),
        match summary.metric.adapter_device {
            _ if summary.method == Method::Full => weights(&summary.metric),
            Some(device) => rounding(&summary.metric, device),
            None => in_float(&summary.metric),
        },
        course(summary, history)?,
        if summary.method == Method::Full {
            String::new()
        } else {
            sizes(summary, config.lora.bias) + &sites(summary)?
        },
        configuration(config),
    ))
}

fn head(summary: &Summary) -> String {
    let metric = &summary.metric;
    let shown = |value: f64| shown(metric.name, value);
    let base = metric.base.map_or_else(String::new, |base| format!(", base alone {}", shown(base)));
    let ranks = match summary.ranks() {
        (low, high) if low < high => format!("{low}-{high}"),
        (rank, _) => rank.to_string(),
    };
    let (value, how) = metric.result();
    let mut cards = vec![
        (shown(value), format!("{} {how}{base}", title(metric.name))),
        match &summary.file {
            Some(AdapterFile { adapter_file_bytes, payload_bytes, .. }) => {
                (bytes(*adapter_file_bytes), format!("adapter file, payload {}", bytes(*payload_bytes)))
            }
            None => (bytes(summary.peft_bytes), "PEFT folder".into()),
        },
        (ranks, format!("rank at {} sites, alpha {}", summary.sites, summary.alpha)),
        (grouped(summary.trained as u64), "numbers trained".into()),
        (grouped(summary.steps), format!("steps in {}", duration(summary.training_seconds))),
    ];
    let full = summary.method == Method::Full;
    if full {
        // Neither a file nor ranks.
        cards.drain(1..3);
    }
    let what = if full { "All weights of" } else { "Adapter for" };
    let mut html = format!(
        "<h1>{}</h1>\n<p>{what} {} ({}), measured on {} examples that training did not see.</p>\n<div class=\"cards\">\n",
        escaped(&summary.task),
        escaped(&summary.base),
        escaped(&summary.base_id),
        grouped(metric.examples as u64),
    );
    for (at, (value, what)) in cards.iter().enumerate() {
        let class = if at == 0 { "card first" } else { "card" };
        let _ = writeln!(html, "<div class=\"{class}\"><b>{value}</b><span>{what}</span></div>");
    }
    html + "</div>\n"
}

/// What there is instead of [`rounding`] on a base that devices do not run.
fn in_float(metric: &Metrics) -> String {
    let mut rows = String::new();
    let measured = [("Base alone", metric.base), ("Adapter", Some(metric.adapter_float))];
    for (what, value) in measured {
        let Some(value) = value else { continue };
        let _ =
            writeln!(rows, "<tr><td class=\"word\">{what}</td><td>{}</td></tr>", shown(metric.name, value));
    }
    format!(
        "<h2>Result</h2>\n<div class=\"table\"><table>\n<tr><th class=\"word\">Measured</th><th>In the trainer</th></tr>\n{rows}</table></div>\n\
         <p>The base has operators that devices do not run. So there is no file for devices and nothing was rounded but the base's \
         weights: the factors are float, in the PEFT folder.</p>\n"
    )
}

/// The result of a network that was trained in full.
fn weights(metric: &Metrics) -> String {
    let measured = [
        ("Before", metric.base),
        ("Trained, in the trainer in float", Some(metric.adapter_float)),
        ("Trained, in int8 with the device's code", metric.adapter_device),
    ];
    let mut rows = String::new();
    for (what, value) in measured {
        let Some(value) = value else { continue };
        let _ =
            writeln!(rows, "<tr><td class=\"word\">{what}</td><td>{}</td></tr>", shown(metric.name, value));
    }
    format!(
        "<h2>Result</h2>\n<div class=\"table\"><table>\n<tr><th class=\"word\">Measured</th><th>Result</th></tr>\n{rows}</table></div>\n"
    )
}

/// Float factors, codes made after training, and trained codes. `adapter_device` is the metric of the latter.
fn rounding(metric: &Metrics, adapter_device: f64) -> String {
    let shown = |value: f64| shown(metric.name, value);
    let cell = |value: Option<f64>| format!("<td>{}</td>", value.map_or_else(|| "-".into(), shown));
    let row = |what: &str, float: Option<f64>, float_device: Option<f64>, device: f64| {
        let from = float_device.or(float);
        let cost = from.map_or_else(|| "-".into(), |from| change(metric.name, from, device));
        let cells = [cell(float), cell(float_device), cell(Some(device))].concat();
        format!("<tr><td class=\"word\">{what}</td>{cells}<td>{cost}</td></tr>\n")
    };
    let mut rows = String::new();
    if let Some(base) = metric.base {
        rows += &row("Base alone", None, None, base);
    }
    let Metrics { adapter_float, adapter_float_device, .. } = *metric;
    let note = match metric.after_training {
        None => {
            let what = "Trained in float, rounded after training";
            rows += &row(what, Some(adapter_float), adapter_float_device, adapter_device);
            "The run had no quantization-aware part: its codes were made after training.".to_owned()
        }
        Some(after) => {
            let what = format!("Trained in float up to step {}, rounded after training", grouped(after.step));
            rows += &row(&what, Some(after.float), after.float_device, after.device);
            rows +=
                &row("Trained codes: the file", Some(adapter_float), adapter_float_device, adapter_device);
            let better = if metric.name.higher_is_better() { "higher" } else { "lower" };
            format!(
                "The quantization-aware part took the device from {} to {} ({better} is better); it has also had more steps. \
                 Rounding the final float factors gives the trained codes themselves.",
                shown(after.device),
                shown(adapter_device)
            )
        }
    };
    format!(
        "<h2>What rounding costs</h2>\n<div class=\"table\"><table>\n<tr><th class=\"word\">Factors</th><th>In the trainer</th>\
         <th>Device, hardly rounded</th><th>Device, as codes</th><th>Cost</th></tr>\n{rows}</table></div>\n<p>{note}</p>\n\
         <p>The trainer runs all of the network in float. The other columns are the device's own code: with factors of three times \
         the codes, which lose next to nothing, and with codes as a file holds them. Their difference is what rounding the factors \
         costs.</p>\n"
    )
}

/// The curves over the steps, and the spectra of all sites.
fn course(summary: &Summary, history: &History) -> std::result::Result<String, PlotError> {
    let curve = |points, ink, width, dots| Curve { points, ink, width, dots };
    let shade_from = history.quantized_from.map(|step| step as f64);
    let over_steps = |value: fn(&super::Step) -> f64| -> Vec<(f64, f64)> {
        history.steps.iter().map(|step| (step.step as f64, value(step))).collect()
    };
    let loss = over_steps(|step| step.loss);
    let smooth = smoothed(&loss, (loss.len() / SMOOTHING).max(2));
    let loss = Plot {
        curves: vec![
            curve(thinned(&loss), Ink::Faint, 3, false),
            curve(thinned(&smooth), Ink::Main, 5, false),
        ],
        shade_from,
        ..Plot::default()
    };
    let rate = Plot {
        curves: vec![curve(thinned(&over_steps(|step| step.learning_rate)), Ink::Main, 5, false)],
        shade_from,
        from_zero: true,
        ..Plot::default()
    };
    let name = summary.metric.name;
    let evaluated: Vec<(f64, f64)> =
        history.evaluations.iter().map(|found| (found.step as f64, found.metric.value)).collect();
    let dots = evaluated.len() < 40;
    let device = summary.metric.adapter_device;
    let mut rules: Vec<(f64, Ink)> = device.map(|value| (value, Ink::Other)).into_iter().collect();
    rules.extend(summary.metric.base.map(|base| (base, Ink::Rule)));
    let metric =
        Plot { curves: vec![curve(evaluated, Ink::Main, 5, dots)], rules, shade_from, ..Plot::default() };
    let spectra = summary.per_site.iter().filter(|site| site.singular_values.len() > 1).map(|site| {
        let first = site.singular_values.first().copied().filter(|first| *first > 0.0).unwrap_or(1.0);
        let points = (1..).map(f64::from).zip(site.singular_values.iter().map(|value| value / first));
        curve(points.collect(), Ink::Faint, 3, true)
    });
    let spectrum = Plot { curves: spectra.collect(), from_zero: true, ..Plot::default() };

    let shade = ("shade", "quantization-aware part");
    let legend = |mut keys: Vec<(&'static str, &'static str)>| {
        keys.extend(history.quantized_from.map(|_| shade));
        keys
    };
    let mut compared = vec![("main", "float factors")];
    compared.extend(device.map(|_| ("other", "the file on the device")));
    compared.extend(summary.metric.base.map(|_| ("rule", "base alone")));
    let figures = [
        figure(
            "Loss",
            "nats, over the steps",
            &legend(vec![("faint", "batches"), ("main", "smoothed")]),
            &loss,
        )?,
        figure("Learning rate", "over the steps", &legend(Vec::new()), &rate)?,
        figure(title(name), "over the steps", &legend(compared), &metric)?,
        figure("Singular values", "of each site's update, by component, the first as 1", &[], &spectrum)?,
    ];
    Ok(format!("<h2>Course</h2>\n<div class=\"plots\">\n{}</div>\n", figures.concat()))
}

fn figure(
    title: &str,
    what: &str,
    legend: &[(&str, &str)],
    plot: &Plot,
) -> std::result::Result<String, PlotError> {
    let Some(svg) = plot.svg()? else { return Ok(String::new()) };
    let mut keys = String::new();
    for (class, text) in legend {
        let _ =
            write!(keys, "<span><i class=\"{class}\" style=\"background: var(--{class})\"></i>{text}</span>");
    }
    Ok(format!(
        "<figure role=\"img\" aria-label=\"{title}, {what}\"><figcaption><b>{title}</b><span>{what}</span>{keys}</figcaption>\n{svg}</figure>\n"
    ))
}

/// What the bytes are: of the file for devices, or of the PEFT folder where there is none.
fn sizes(summary: &Summary, bias: Bias) -> String {
    let numbers: usize = summary.per_site.iter().map(|site| site.payload_bytes).sum();
    let (kind, factors, payload, rest, total, file) = match &summary.file {
        Some(AdapterFile { adapter_file_bytes, payload_bytes, .. }) => (
            "Codes of the",
            numbers,
            *payload_bytes,
            "Everything else: header, scales, names, self-test",
            "File",
            *adapter_file_bytes,
        ),
        None => (
            "Floats of the",
            FLOAT * numbers,
            FLOAT * summary.trained.max(numbers),
            "Everything else: configuration, names",
            "PEFT folder",
            summary.peft_bytes,
        ),
    };
    let percent = |part: usize| format!("{:.1} %", 100.0 * part as f64 / file.max(1) as f64);
    let row = |what: &str, part: usize, class: &str| {
        format!(
            "<tr{class}><td class=\"word\">{what}</td><td>{}</td><td>{}{}</td></tr>\n",
            grouped(part as u64),
            percent(part),
            bar(part as f64 / file.max(1) as f64)
        )
    };
    let mut rows = row(&format!("{kind} factors"), factors, "");
    if payload > factors {
        // Biases lie in the folder as the head does; in a file for devices they are beside the codes.
        let others =
            if summary.file.is_none() && bias != Bias::None { "task head, biases" } else { "task head" };
        rows += &row(&format!("{kind} {others}"), payload - factors, "");
    }
    rows += &row(rest, file.saturating_sub(payload), "");
    rows += &row(total, file, " class=\"sum\"");
    format!(
        "<h2>Size</h2>\n<div class=\"table\"><table>\n<tr><th class=\"word\">Part</th><th>Bytes</th><th>Share</th></tr>\n{rows}</table></div>\n"
    )
}

fn sites(summary: &Summary) -> std::result::Result<String, PlotError> {
    let sites = &summary.per_site;
    // As many bytes as numbers where they are codes.
    let count = if summary.file.is_some() { "Bytes" } else { "Numbers" };
    let largest = sites.iter().map(|site| site.norm_ratio).fold(0.0, f64::max);
    let mut rows = String::new();
    for site in sites {
        let Site {
            name,
            in_features,
            out_features,
            rank,
            scaling,
            payload_bytes,
            singular_values,
            norm_ratio,
        } = site;
        let share = if largest > 0.0 { norm_ratio / largest } else { 0.0 };
        let _ = writeln!(
            rows,
            "<tr><td class=\"word\">{}</td><td>{out_features} x {in_features}</td><td>{rank}</td><td>{}</td><td>{}</td><td>{:.2} %{}</td><td>{}</td></tr>",
            escaped(name),
            decimal(*scaling),
            grouped(*payload_bytes as u64),
            100.0 * norm_ratio,
            bar(share),
            bars(singular_values)?,
        );
    }
    Ok(format!(
        "<h2>Sites</h2>\n<div class=\"table\"><table>\n<tr><th class=\"word\">Site</th><th>Out x in</th><th>Rank</th><th>Scaling</th>\
         <th>{count}</th><th>Norm of the update</th><th class=\"word\">Singular values</th></tr>\n{rows}</table></div>\n\
         <p>Norm of the update: its Frobenius norm as a part of the base weight's. Singular values: those of the update, in \
         descending order, each site on its own scale.</p>\n"
    ))
}

fn configuration(config: &TrainConfig) -> String {
    let mut rows = String::new();
    let value = serde_json::to_value(config).unwrap_or_default();
    flatten("", &value, &mut |key, value| {
        let _ = writeln!(
            rows,
            "<tr><td class=\"word\">{}</td><td class=\"word\">{}</td></tr>",
            escaped(key),
            escaped(value)
        );
    });
    format!(
        "<details><summary>Configuration</summary>\n<div class=\"table\"><table>\n{rows}</table></div></details>\n"
    )
}

/// Every value of an object that is none itself, under the names that lead to it.
fn flatten(key: &str, value: &Value, each: &mut impl FnMut(&str, &str)) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(&key, value, each);
            }
        }
        Value::String(text) => each(key, text),
        other => each(key, &other.to_string()),
    }
}

fn bar(share: f64) -> String {
    format!("<span class=\"bar\"><span style=\"width: {:.0}%\"></span></span>", 100.0 * share.clamp(0.0, 1.0))
}

fn title(metric: MetricName) -> &'static str {
    match metric {
        MetricName::Accuracy => "Accuracy",
        MetricName::BitsPerCharacter => "Bits per character",
        MetricName::SpanF1 => "F1 of spans",
    }
}

fn shown(metric: MetricName, value: f64) -> String {
    match metric {
        MetricName::Accuracy | MetricName::SpanF1 => format!("{:.2} %", 100.0 * value),
        MetricName::BitsPerCharacter => format!("{value:.4}"),
    }
}

fn change(metric: MetricName, from: f64, to: f64) -> String {
    match metric {
        MetricName::Accuracy | MetricName::SpanF1 => format!("{:+.2} points", 100.0 * (to - from)),
        MetricName::BitsPerCharacter => format!("{:+.4}", to - from),
    }
}

fn decimal(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn bytes(count: usize) -> String {
    format!("{}\u{a0}B", grouped(count as u64))
}

/// A count with a thin space between groups of three digits.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join("\u{202f}")
}

fn duration(seconds: f64) -> String {
    match seconds {
        ..60.0 => format!("{seconds:.1} s"),
        ..3600.0 => format!("{:.1} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

/// Text that a browser shows as it is.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}
