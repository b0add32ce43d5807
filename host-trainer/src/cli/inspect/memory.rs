//! `rankpatch inspect --memory`: where every byte of RAM goes, and what applying an adapter costs in each way.

use std::path::{Path, PathBuf};

use rankpatch_format::adapter::Adapter;
use rankpatch_format::base::Base;
use rankpatch_runtime::merge::{Estimate, MergedType, estimate, loss_scratch_bytes, site_losses};
use rankpatch_runtime::{ArenaLayout, arena_layout};
use serde::Serialize;

use crate::Result;
use crate::cli::console::{Table, fields, grouped};
use crate::sim::words;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    kind: &'static str,
    file: PathBuf,
    context: usize,
    regions: Vec<Region>,
    arena_bytes: usize,
    /// What is kept for each token of context, bytes.
    bytes_per_token: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<AdapterCost>,
}

#[derive(Debug, Serialize)]
struct Region {
    name: &'static str,
    bytes: usize,
    what: &'static str,
}

#[derive(Debug, Serialize)]
struct AdapterCost {
    n_patches: u16,
    base_macs: u64,
    streamed_macs: u64,
    merge_macs: u64,
    merged: Vec<MergedCost>,
    sites: Vec<SiteLosses>,
}

#[derive(Debug, Serialize)]
struct MergedCost {
    merged_type: &'static str,
    bytes: usize,
    /// |W' - (W0 + s B A)| / |s B A| over all sites, Frobenius norms.
    loss: f64,
}

#[derive(Debug, Serialize)]
struct SiteLosses {
    name: String,
    /// |s B A| / |W0|.
    update: f64,
    int8: f64,
    int8_feedback: f64,
    int16: f64,
}

const TYPES: [(MergedType, &str); 3] =
    [(MergedType::Int8, "int8"), (MergedType::Int8Feedback, "int8-feedback"), (MergedType::Int16, "int16")];

/// The memory of `base` for `context` rows, and with an adapter also its costs.
pub(super) fn report(
    path: &Path,
    base: &Base<'_>,
    adapter: Option<&Adapter<'_>>,
    context: Option<usize>,
) -> Result<Report> {
    let longest = base.manifest().max_rows as usize;
    let context = context.unwrap_or(longest).clamp(1, longest);
    let arena = arena_layout(base, context);
    let ArenaLayout { values, codes, kernels, scores, kv_cache, samples, head } = arena;
    let region = |name, bytes, what| Region { name, bytes, what };
    // Sizes are rounded up and keys lie in pairs: the mean over many rows.
    let longer = arena_layout(base, context + 64);
    let bytes_per_token =
        if kv_cache > 0 { (longer.kv_cache + longer.scores - kv_cache - scores) / 64 } else { 0 };
    Ok(Report {
        kind: "memory",
        file: path.to_owned(),
        context,
        regions: vec![
            region("values", values, "f32 values between operators, as the base's arena plan places them"),
            region("codes", codes, "int8 activations of one operator and their scales"),
            region("kernels", kernels, "i32 sums of two rows, prepared activations, rank components"),
            region("attention", scores, "codes, scores and weights of one row"),
            region("kv cache", kv_cache, "keys and values of the context, 16 bits each"),
            region("samples", samples, "the last samples of a sound that comes in pieces, 16 bits each"),
            region("head", head, "pooled features and outputs of a task head"),
        ],
        arena_bytes: arena.total(),
        bytes_per_token,
        adapter: adapter.map(|adapter| cost(base, adapter)).transpose()?,
    })
}

fn cost(base: &Base<'_>, adapter: &Adapter<'_>) -> Result<AdapterCost> {
    let Estimate { n_patches, base_macs, streamed, int8, int16, merge_macs } = estimate(base, adapter);
    let mut scratch = words(loss_scratch_bytes(base));
    let mut of_types = Vec::new();
    for (kind, _) in TYPES {
        let mut losses = Vec::new();
        site_losses(base, adapter, kind, bytemuck::cast_slice_mut(&mut scratch), |site, loss| {
            losses.push((site, loss));
        })?;
        of_types.push(losses);
    }
    let merged = TYPES.iter().zip(&of_types).map(|((kind, name), losses)| {
        let (error, update) = losses
            .iter()
            .fold((0.0, 0.0), |(error, update), (_, loss)| (error + loss.error, update + loss.update));
        let bytes = if *kind == MergedType::Int16 { int16.memory } else { int8.memory };
        MergedCost { merged_type: name, bytes, loss: ratio(error, update) }
    });
    let merged = merged.collect();
    let sites = base.sites().filter_map(|site| {
        let at = of_types[0].iter().position(|(index, _)| *index == site.index)?;
        let [int8, feedback, int16] = [0, 1, 2].map(|kind: usize| of_types[kind][at].1);
        let relative = |loss: rankpatch_runtime::merge::SiteLoss| ratio(loss.error, loss.update);
        Some(SiteLosses {
            name: site.name.to_owned(),
            update: ratio(int8.update, int8.base),
            int8: relative(int8),
            int8_feedback: relative(feedback),
            int16: relative(int16),
        })
    });
    let sites = sites.collect();
    Ok(AdapterCost { n_patches, base_macs, streamed_macs: streamed.macs, merge_macs, merged, sites })
}

/// sqrt(a / b).
fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { (a / b).sqrt() } else { 0.0 }
}

pub(super) fn text(report: &Report) -> String {
    let mut table = Table::new(2, &["region", "what it holds", "bytes"]);
    for Region { name, bytes, what } in &report.regions {
        table.row(&[name, what, &grouped(*bytes)]);
    }
    table.row(&[&"arena", &format!("for {} rows", report.context), &grouped(report.arena_bytes)]);
    let mut text = table.to_string();
    if report.bytes_per_token > 0 {
        text.push_str("\nabout ");
        text.push_str(&grouped(report.bytes_per_token));
        text.push_str(" bytes for one row of context more or less\n");
    }
    let Some(cost) = &report.adapter else { return text };
    let share = |macs: u64| 100.0 * macs as f64 / cost.base_macs.max(1) as f64;
    text.push('\n');
    text += &fields(&[
        ("patches", cost.n_patches.to_string()),
        (
            "streamed",
            format!(
                "{} multiplications a token on top of {} ({:.2} %), no memory",
                grouped(cost.streamed_macs),
                grouped(cost.base_macs),
                share(cost.streamed_macs)
            ),
        ),
        ("merging", format!("{} multiplications, once", grouped(cost.merge_macs))),
    ]);
    let percent = |loss: f64| format!("{:.2}", 100.0 * loss);
    let mut table = Table::new(1, &["merged as", "bytes", "loss of the update, %"]);
    for MergedCost { merged_type, bytes, loss } in &cost.merged {
        table.row(&[merged_type, &grouped(*bytes), &percent(*loss)]);
    }
    text.push('\n');
    text.push_str(&table.to_string());
    text.push('\n');
    let mut table = Table::new(1, &["site", "update/base, %", "int8", "int8-feedback", "int16"]);
    for site in &cost.sites {
        let SiteLosses { name, update, int8, int8_feedback, int16 } = site;
        let [update, int8, feedback, int16] = [update, int8, int8_feedback, int16].map(|loss| percent(*loss));
        table.row(&[name, &update, &int8, &feedback, &int16]);
    }
    text + &table.to_string()
}
