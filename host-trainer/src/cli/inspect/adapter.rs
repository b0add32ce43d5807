//! The report on an adapter file, with its base or without.

use std::path::{Path, PathBuf};

use rankpatch_format::ProductId;
use rankpatch_format::adapter::{
    Adapter, BiasEntries, Body, Entries, HEADER_BYTES, Method, PAYLOAD_ALIGN, Pooling, Preview, TRAILER_BYTES,
};
use rankpatch_format::base::Base;
use rankpatch_format::link::Mode;
use serde::Serialize;

use super::{Compared, Range, Section, percent, sections, sections_text, version_text};
use crate::base::Image;
use crate::cli::console::{Table, fields, grouped};
use crate::cli::exit::{At as _, Outcome};
use crate::cli::labels::names;
use crate::sim::Simulator;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    kind: &'static str,
    file: PathBuf,
    task: String,
    version: u8,
    base_id: String,
    /// Name of the base, if it was given.
    base: Option<String>,
    sequence: u32,
    step_limit: u32,
    /// `None` for a file that names none.
    product: Option<String>,
    /// The key that signed it; `None` for a file that is not signed. Whether it did is for `rankpatch verify` to say.
    key_id: Option<String>,
    method: String,
    alpha: f32,
    crc32: String,
    file_bytes: usize,
    payload_bytes: usize,
    overhead_bytes: usize,
    /// Everything that is not payload, in percent of the payload.
    overhead_percent: f64,
    sections: Vec<Section>,
    self_test: SelfTest,
    head: Option<Head>,
    sites: Vec<Site>,
    /// Biases in the place of the base's.
    biases: Vec<Bias>,
}

#[derive(Debug, Serialize)]
struct Bias {
    /// The base's tensor.
    tensor: u16,
    length: u32,
}

#[derive(Debug, Serialize)]
struct SelfTest {
    seed: u32,
    rows: u16,
    digest: String,
    /// The digest computed by the device's code, if the base was given.
    check: Option<Compared>,
}

#[derive(Debug, Serialize)]
struct Head {
    pooling: &'static str,
    outputs: usize,
    /// Bytes of its codes, if the base was given.
    payload_bytes: Option<usize>,
    bias: bool,
    scales: Option<Range>,
    labels: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Site {
    index: u16,
    rank: u16,
    scales: Option<Range>,
    /// What only the base knows.
    #[serde(flatten)]
    shape: Option<Shape>,
}

#[derive(Debug, Serialize)]
struct Shape {
    name: String,
    out_features: usize,
    in_features: usize,
    payload_bytes: usize,
}

impl Report {
    /// A failure if the self-test has another digest on the device's code.
    pub(super) fn check(&self, path: &Path) -> Outcome {
        self.self_test.check.as_ref().map_or(Ok(()), |check| check.check(path))
    }
}

pub(super) fn report(path: &Path, file: Vec<u8>, base: Option<Image>) -> Outcome<Report> {
    let without_base = preview(path, &Preview::new(&file).at(path)?);
    let Some(image) = base else { return Ok(without_base) };
    let simulator = Simulator::new(image)?.with_adapter(file, Mode::Streamed).at(path)?;
    let base = simulator.base()?;
    let Some(adapter) = simulator.adapter()? else { return Ok(without_base) };
    let digest = format!("{:#018x}", simulator.self_test_digest()?);
    Ok(with_base(without_base, &adapter, &base, digest))
}

fn preview(path: &Path, preview: &Preview<'_>) -> Report {
    let body = &preview.body;
    let file_bytes = preview.file.len();
    let body_bytes = body_bytes(body);
    let payload_bytes = payload_bytes(preview);
    let header = &preview.header;
    let trailer = preview.file.last_chunk::<TRAILER_BYTES>().and_then(|trailer| trailer.first_chunk());
    let crc = trailer.map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let mut entries = Entries(body.sites);
    let mut sites = Vec::new();
    while let Ok(Some(entry)) = entries.try_next() {
        let scales = Range::of(f16s(entry.scales));
        sites.push(Site { index: entry.site, rank: entry.rank, scales, shape: None });
    }
    let scale_bytes: usize = sites.iter().map(|site| usize::from(site.rank) * 2).sum();
    let mut entries = BiasEntries::of(body.method);
    let (entry_bytes, bias_bytes) = (entries.0.len(), entries.payload_bytes());
    let mut biases = Vec::new();
    while let Ok(Some(entry)) = entries.try_next() {
        biases.push(Bias { tensor: entry.tensor, length: entry.len });
    }
    let head_bytes = body.head.map_or(0, |head| head.scales.len() + head.bias.len() + head.labels.len());
    Report {
        kind: "adapter",
        file: path.to_owned(),
        task: body.task.to_owned(),
        version: rankpatch_format::VERSION,
        base_id: header.base_id.to_string(),
        base: None,
        sequence: header.sequence,
        step_limit: header.step_limit,
        product: (header.product != ProductId::NONE).then(|| header.product.to_string()),
        key_id: header.is_signed().then(|| header.key_id.to_string()),
        method: match body.method {
            Method::LoraInt8 => "LoraInt8".into(),
            Method::LoraInt8Biases(_) => "LoraInt8Biases".into(),
        },
        alpha: body.alpha,
        crc32: format!("{crc:#010x}"),
        file_bytes,
        payload_bytes,
        overhead_bytes: file_bytes - payload_bytes,
        overhead_percent: percent(file_bytes - payload_bytes, payload_bytes),
        sections: sections(
            file_bytes,
            &[
                ("payload", payload_bytes),
                ("component scales", scale_bytes),
                ("biases", bias_bytes + entry_bytes),
                ("head scales, bias, labels", head_bytes),
                ("other fields", body_bytes.saturating_sub(scale_bytes + entry_bytes + head_bytes)),
                ("header, checksum, signature", HEADER_BYTES + TRAILER_BYTES),
            ],
        ),
        self_test: SelfTest {
            seed: body.self_test.seed,
            rows: body.self_test.rows,
            digest: format!("{:#018x}", body.self_test.digest),
            check: None,
        },
        head: body.head.map(|head| Head {
            pooling: match head.pooling {
                Pooling::Last => "last",
                Pooling::Mean => "mean",
                Pooling::Every => "every",
                Pooling::Reread => "reread",
            },
            outputs: head.scales.len() / 2,
            payload_bytes: None,
            bias: !head.bias.is_empty(),
            scales: Range::of(f16s(head.scales)),
            labels: names(head.labels),
        }),
        sites,
        biases,
    }
}

fn with_base(report: Report, adapter: &Adapter<'_>, base: &Base<'_>, digest: String) -> Report {
    let sites = report.sites.into_iter().zip(adapter.patches(base)).map(|(site, patch)| {
        let rank = patch.rank.max(1);
        let shape = Shape {
            name: base
                .sites()
                .find(|site| site.index == patch.site)
                .map_or(String::new(), |site| site.name.into()),
            out_features: patch.lora_b.len() / rank,
            in_features: patch.lora_a.len() / rank,
            payload_bytes: patch.lora_a.len() + patch.lora_b.len(),
        };
        Site { shape: Some(shape), ..site }
    });
    let head = report
        .head
        .zip(adapter.head())
        .map(|(report, head)| Head { payload_bytes: Some(head.codes.len()), ..report });
    let check = Compared::new("self-test digest", &report.self_test.digest, digest);
    Report {
        base: Some(base.manifest().name.to_owned()),
        sites: sites.collect(),
        head,
        self_test: SelfTest { check: Some(check), ..report.self_test },
        ..report
    }
}

/// Bytes of the payload without biases, which lies between the padded body and the checksum.
pub fn payload_bytes(preview: &Preview<'_>) -> usize {
    let start = (HEADER_BYTES + body_bytes(&preview.body)).next_multiple_of(PAYLOAD_ALIGN);
    let biases = BiasEntries::of(preview.body.method).payload_bytes();
    preview.file.len().saturating_sub(start + TRAILER_BYTES).saturating_sub(biases)
}

/// Bytes of a body as it is written: postcard has one encoding of a value.
fn body_bytes(body: &Body<'_>) -> usize {
    postcard::to_allocvec(body).map_or(0, |bytes| bytes.len())
}

fn f16s(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<2>().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).to_f32())
}

pub(super) fn text(report: &Report) -> String {
    let base = report.base.as_ref().map_or(String::new(), |name| format!(" ({name})"));
    let SelfTest { seed, rows, digest, check } = &report.self_test;
    let digest = check.as_ref().map_or_else(|| digest.clone(), Compared::text);
    let mut lines = vec![
        ("adapter", format!("{}, {}", report.task, version_text())),
        ("for base", format!("{}{base}", report.base_id)),
        ("product", report.product.clone().unwrap_or_else(|| "none".into())),
        (
            "sequence",
            format!("{}, at most {} above the one before", report.sequence, grouped(report.step_limit)),
        ),
        (
            "signed",
            report
                .key_id
                .as_ref()
                .map_or_else(|| "no".into(), |key| format!("by key {key} (not verified here)")),
        ),
        ("method", format!("{}, alpha {}", report.method, report.alpha)),
        ("checksum", format!("{} (correct)", report.crc32)),
        ("self-test", format!("seed {seed}, {rows} rows, digest {digest}")),
        (
            "overhead",
            format!(
                "{} bytes, {:.2} % of the payload's {}",
                grouped(report.overhead_bytes),
                report.overhead_percent,
                grouped(report.payload_bytes)
            ),
        ),
    ];
    if let Some(head) = &report.head {
        let scales = head.scales.map_or(String::new(), |scales| format!(", scales {scales}"));
        let bias = if head.bias { "with" } else { "without" };
        let labels =
            if head.labels.is_empty() { String::new() } else { format!(": {}", head.labels.join(", ")) };
        lines.push((
            "head",
            format!("{} outputs {bias} bias, pooling {}{scales}{labels}", head.outputs, head.pooling),
        ));
    }
    if !report.biases.is_empty() {
        let numbers = report.biases.iter().map(|bias| bias.length as usize).sum::<usize>();
        lines.push(("biases", format!("{} of the base, {} numbers", report.biases.len(), grouped(numbers))));
    }
    let mut text = fields(&lines);
    text.push('\n');
    text += &sections_text(report.file_bytes, &report.sections);
    if report.sites.is_empty() {
        return text;
    }
    let mut table = match report.base {
        Some(_) => Table::new(2, &["site", "name", "out x in", "rank", "r(d+k) bytes", "component scales"]),
        None => Table::new(1, &["site", "rank", "component scales"]),
    };
    for site in &report.sites {
        let scales = site.scales.map_or(String::new(), |scales| scales.to_string());
        match &site.shape {
            None => table.row(&[&site.index, &site.rank, &scales]),
            Some(Shape { name, out_features, in_features, payload_bytes }) => {
                let shape = format!("{out_features} x {in_features}");
                table.row(&[&site.index, name, &shape, &site.rank, &grouped(*payload_bytes), &scales]);
            }
        }
    }
    text.push('\n');
    text + &table.to_string()
}
