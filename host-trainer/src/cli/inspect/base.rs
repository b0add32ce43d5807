//! The report on a base image.

use std::path::{Path, PathBuf};

use half::f16;
use rankpatch_format::base::{Base, HEADER_BYTES};
use rankpatch_format::write::Network;
use rankpatch_runtime::arena_layout;
use serde::Serialize;

use super::{Compared, Range, Section, sections, sections_text, version_text};
use crate::base::Image;
use crate::cli::console::{Table, fields, grouped};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    kind: &'static str,
    file: PathBuf,
    name: String,
    version: u8,
    pub(super) identity: Compared,
    crc32: String,
    file_bytes: usize,
    layout: String,
    input: String,
    max_rows: u32,
    pass_rows: u32,
    operators: usize,
    parameters: usize,
    sections: Vec<Section>,
    arena: Arena,
    labels: Vec<String>,
    vocab_size: u32,
    sites: Vec<Site>,
}

/// Bytes of the arena for the longest sequence.
#[derive(Debug, Serialize)]
struct Arena {
    values: usize,
    codes: usize,
    kernels: usize,
    scores: usize,
    kv_cache: usize,
    samples: usize,
    head: usize,
    total: usize,
}

#[derive(Debug, Serialize)]
struct Site {
    index: u16,
    name: String,
    out_features: usize,
    in_features: usize,
    code_bytes: usize,
    scales: Option<Range>,
}

/// Bytes of the header's checksum field, from the end of the header.
const CRC_BYTES: usize = 4;

pub(super) fn report(path: &Path, image: &Image, base: &Base<'_>) -> Report {
    let manifest = base.manifest();
    let (mut codes, mut scales, mut floats, mut parameters) = (0, 0, 0, 0);
    let mut layouts = Vec::new();
    for info in (0..base.n_tensors() as u16).filter_map(|id| base.tensor(id).ok()) {
        parameters += info.rows as usize * info.cols as usize;
        match info.layout {
            None => floats += info.section_bytes() as usize,
            Some(layout) => {
                codes += layout.bytes(info.rows, info.cols) as usize;
                scales += info.rows as usize * if info.halves { size_of::<f16>() } else { size_of::<f32>() };
                let layout = format!("{layout:?}");
                if !layouts.contains(&layout) {
                    layouts.push(layout);
                }
            }
        }
    }
    let tokenizer = manifest.tokenizer.map_or(0, |info| info.len as usize);
    let header = image.bytes().first_chunk::<HEADER_BYTES>().unwrap_or(&[0; HEADER_BYTES]);
    let [.., m0, m1, m2, m3, c0, c1, c2, c3] = *header;
    let manifest_bytes = u32::from_le_bytes([m0, m1, m2, m3]) as usize;
    const { assert!(CRC_BYTES == 4) };
    let arena = arena_layout(base, manifest.max_rows as usize);
    Report {
        kind: "base",
        file: path.to_owned(),
        name: manifest.name.to_owned(),
        version: rankpatch_format::VERSION,
        identity: Compared::new("identity", base.id(), Network::read(base).id()),
        crc32: format!("{:#010x}", u32::from_le_bytes([c0, c1, c2, c3])),
        file_bytes: image.bytes().len(),
        layout: layouts.join(", "),
        input: match (base.front_end(), base.feature_width()) {
            (Some(front_end), width) => format!(
                "samples at {} Hz, {} a frame every {}; feature rows of width {width}",
                front_end.sample_rate, front_end.frame, front_end.hop
            ),
            (None, 0) => format!("tokens of a vocabulary of {}", base.vocab_size()),
            (None, width) => format!("feature rows of width {width}"),
        },
        max_rows: manifest.max_rows,
        pass_rows: manifest.pass_rows,
        operators: base.n_ops(),
        parameters,
        sections: sections(
            image.bytes().len(),
            &[
                ("header", HEADER_BYTES),
                ("manifest", manifest_bytes),
                ("int8 codes", codes),
                ("row scales", scales),
                ("norms, biases, tables", floats),
                ("tokenizer", tokenizer),
            ],
        ),
        arena: Arena {
            values: arena.values,
            codes: arena.codes,
            kernels: arena.kernels,
            scores: arena.scores,
            kv_cache: arena.kv_cache,
            samples: arena.samples,
            head: arena.head,
            total: arena.total(),
        },
        labels: base.labels().map(str::to_owned).collect(),
        vocab_size: base.vocab_size(),
        sites: base
            .sites()
            .map(|site| Site {
                index: site.index,
                name: site.name.to_owned(),
                out_features: site.weight.rows,
                in_features: site.weight.cols,
                code_bytes: site.weight.codes.len(),
                scales: Range::of(site.weight.scales.iter()),
            })
            .collect(),
    }
}

pub(super) fn text(report: &Report) -> String {
    let rows = if report.pass_rows == report.max_rows {
        format!("{}, all in one pass", report.max_rows)
    } else {
        format!("at most {}, {} in a pass", report.max_rows, report.pass_rows)
    };
    let Arena { values, codes, kernels, scores, kv_cache, samples, head, total } = report.arena;
    let mut text = fields(&[
        ("base", format!("{}, {}", report.name, version_text())),
        ("id", report.identity.text()),
        ("checksum", format!("{} (correct)", report.crc32)),
        ("layout", report.layout.clone()),
        ("input", report.input.clone()),
        ("rows", rows),
        ("operators", format!("{}, {} of them sites", report.operators, report.sites.len())),
        ("parameters", grouped(report.parameters)),
        (
            "arena",
            format!(
                "{} bytes for {} rows: values {}, codes {}, kernels {}, scores {}, keys and values {}, samples {}, head {}",
                grouped(total),
                report.max_rows,
                grouped(values),
                grouped(codes),
                grouped(kernels),
                grouped(scores),
                grouped(kv_cache),
                grouped(samples),
                grouped(head)
            ),
        ),
    ]);
    if !report.labels.is_empty() {
        text += &fields(&[("labels", report.labels.join(", "))]);
    }
    text.push('\n');
    text += &sections_text(report.file_bytes, &report.sections);
    let mut sites = Table::new(2, &["site", "name", "out x in", "bytes", "row scales"]);
    for site in &report.sites {
        let shape = format!("{} x {}", site.out_features, site.in_features);
        let scales = site.scales.map_or(String::new(), |scales| scales.to_string());
        sites.row(&[&site.index, &site.name, &shape, &grouped(site.code_bytes), &scales]);
    }
    text.push('\n');
    text + &sites.to_string()
}
