//! From a float adapter to an adapter file, and back.
//!
//! Quantization happens here and nowhere else on the way out; what a device will make of the result is measured by whoever
//! calls [`export`], with the device's own code.

use std::path::Path;

use rankpatch_format::adapter::SelfTest;
use rankpatch_format::write::{AdapterData, HeadData, Network, PatchData};

use crate::lora::{Bias, BoundSite, FloatAdapter, HEAD, HeadWeights, LoraConfig, SiteFactors, row_scales};
use crate::train::TrainError;
use crate::{Error, Result, files, quant};

/// Rows of a self-test's input: enough that every site of a causal network sees earlier rows, few enough to be quick.
const SELF_TEST_ROWS: u32 = 8;

/// An adapter file.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// What is in it.
    pub data: AdapterData,
    /// The file.
    pub file: Vec<u8>,
}

impl Exported {
    /// Writes the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        files::write_atomically(path, &self.file)
    }
}

/// Quantizes an adapter and makes its file, self-test included. Same adapter, same bytes.
///
/// `network` is the quantized base. `digest` runs the self-test of an adapter file whose stated digest is not known yet, with
/// the device's code, and returns the digest that it finds.
///
/// # Errors
/// [`Error::Quant`] with the site's name, [`TrainError::Base`] if the adapter is of another base, and what `digest`
/// returns.
pub fn export(
    adapter: &FloatAdapter,
    network: &Network,
    sequence: u32,
    digest: impl FnOnce(&[u8]) -> Result<u64>,
) -> Result<Exported> {
    let mut data = quantize(adapter, network, sequence)?;
    data.self_test.digest = digest(&data.write()?)?;
    let file = data.write()?;
    Ok(Exported { data, file })
}

/// The codes of an adapter; the digest of its self-test is 0 until it is measured.
///
/// # Errors
/// As [`export`].
pub fn quantize(adapter: &FloatAdapter, network: &Network, sequence: u32) -> Result<AdapterData> {
    if adapter.base_id != network.id() {
        let (expected, found) = (network.id().to_string(), adapter.base_id.to_string());
        return Err(TrainError::Base { expected: format!("the adapter's, {found}"), found: expected }.into());
    }
    let patches = adapter.sites.iter().map(|factors| {
        let site = &factors.site;
        let (rank, inner, out) = (site.rank, site.in_features, site.out_features);
        let scales = site_scales(network, site)?;
        let codes = quant::quantize_lora(
            &factors.lora_a,
            &factors.lora_b,
            rank,
            inner,
            out,
            scales,
            site.scaling as f32,
        )
        .map_err(|source| Error::Quant { tensor: site.name.clone(), source })?;
        Ok(PatchData { site: site.index, scales: codes.c, lora_a: codes.a, lora_b: codes.b })
    });
    let patches = patches.collect::<Result<Vec<_>>>()?;
    let head = adapter.head.as_ref().map(|head| {
        let outputs = head.labels.len();
        let codes = quant::quantize_head(&head.weight, outputs, head.weight.len() / outputs.max(1))
            .map_err(|source| Error::Quant { tensor: HEAD.into(), source })?;
        Ok::<_, Error>(HeadData {
            pooling: head.pooling,
            codes: codes.codes,
            scales: codes.scales,
            bias: head.bias.clone(),
            labels: head.labels.clone(),
        })
    });
    Ok(AdapterData {
        task: adapter.task.clone(),
        base_id: adapter.base_id,
        sequence,
        alpha: adapter.config.alpha as f32,
        patches,
        biases: adapter.biases.clone(),
        head: head.transpose()?,
        self_test: SelfTest {
            seed: rankpatch_format::crc32(adapter.task.as_bytes()),
            rows: SELF_TEST_ROWS.min(network.max_rows) as u16,
            digest: 0,
        },
    })
}

/// The float factors in the clothes of codes: a file that the device's code runs with hardly any rounding of the factors, to
/// measure what rounding costs. Nothing else is different; the codes of a task head are those of [`quantize`].
///
/// With a', b' for what the codes of a site stand for, lora_b lora_a = b' a' + (b - b') a' + b' (a - a') + a product of two
/// rounding errors, which is left out. Each of the three terms has codes of its own, so the rank is three times that of the
/// adapter; a device may have no room for it.
///
/// # Errors
/// As [`quantize`].
pub fn hardly_rounded(adapter: &FloatAdapter, network: &Network) -> Result<Vec<u8>> {
    let mut data = quantize(adapter, network, 0)?;
    for (patch, factors) in data.patches.iter_mut().zip(&adapter.sites) {
        let SiteFactors { site, lora_a, lora_b } = factors;
        let (rank, inner, out) = (site.rank, site.in_features, site.out_features);
        let (scales, scaling) = (site_scales(network, site)?, site.scaling as f32);
        let codes = |a: &[f32], b: &[f32]| {
            quant::quantize_lora(a, b, rank, inner, out, scales, scaling)
                .map_err(|source| Error::Quant { tensor: site.name.clone(), source })
        };
        let rounded = codes(lora_a, lora_b)?;
        let (a, b) = rounded.dequantize(scales, scaling);
        let left = |values: &[f32], rounded: &[f32]| -> Vec<f32> {
            values.iter().zip(rounded).map(|(value, rounded)| value - rounded).collect()
        };
        let terms = [rounded, codes(&a, &left(lora_b, &b))?, codes(&left(lora_a, &a), &b)?];
        *patch = PatchData {
            site: site.index,
            scales: terms.iter().flat_map(|term| term.c.iter().copied()).collect(),
            lora_a: terms.iter().flat_map(|term| term.a.iter().copied()).collect(),
            lora_b: (0..out)
                .flat_map(|row| terms.iter().flat_map(move |term| &term.b[row * rank..][..rank]))
                .copied()
                .collect(),
        };
    }
    Ok(data.write()?)
}

/// The float adapter that an adapter file stands for: its product of factors is that of the codes, and the scaling is
/// alpha / rank again.
///
/// # Errors
/// [`TrainError::Base`] if the network is not quantized or lacks a site.
pub fn dequantize(data: &AdapterData, network: &Network) -> Result<FloatAdapter> {
    let alpha = f64::from(data.alpha);
    let config = LoraConfig { alpha, ..LoraConfig::default() };
    let known: Vec<_> = network.sites().collect();
    let mut sites = Vec::new();
    for patch in &data.patches {
        let Some((name, weight)) = known.get(usize::from(patch.site)) else {
            return Err(Error::UnknownSite { found: patch.site, n_sites: known.len() });
        };
        let rank = patch.scales.len();
        let shape = weight.shape();
        let site = BoundSite {
            index: patch.site,
            name: (*name).to_owned(),
            in_features: shape.cols as usize,
            out_features: shape.rows as usize,
            rank,
            alpha,
            scaling: config.scaling(rank, alpha),
        };
        let scales = site_scales(network, &site)?;
        // Of a component's scale, 1/127 goes to lora_a and the rest to lora_b.
        let lora_a = patch.lora_a.iter().map(|code| f32::from(*code) / 127.0).collect();
        let lora_b = patch.lora_b.iter().enumerate().map(|(at, code)| {
            let (row, component) = (at / rank, at % rank);
            let scale = f64::from(scales[row]) * patch.scales[component].to_f64() * 127.0 / site.scaling;
            (f64::from(*code) * scale) as f32
        });
        let lora_b = lora_b.collect();
        sites.push(SiteFactors { site, lora_a, lora_b });
    }
    let head = data.head.as_ref().map(|head| {
        let codes = quant::HeadCodes { codes: head.codes.clone(), scales: head.scales.clone() };
        let outputs = head.scales.len();
        let labels = if head.labels.is_empty() {
            (0..outputs).map(|output| output.to_string()).collect()
        } else {
            head.labels.clone()
        };
        HeadWeights { pooling: head.pooling, weight: codes.dequantize(), bias: head.bias.clone(), labels }
    });
    let config = LoraConfig {
        rank: sites.first().map_or(config.rank, |factors| factors.site.rank),
        target_modules: sites.iter().map(|factors| factors.site.name.clone()).collect(),
        rank_pattern: sites.iter().map(|factors| (factors.site.name.clone(), factors.site.rank)).collect(),
        modules_to_save: head.iter().map(|_| HEAD.to_owned()).collect(),
        bias: Bias::found(network, &data.biases, &sites),
        ..config
    };
    let biases = data.biases.clone();
    Ok(FloatAdapter { task: data.task.clone(), base_id: data.base_id, config, sites, biases, head })
}

fn site_scales<'a>(network: &'a Network, site: &BoundSite) -> Result<&'a [f32]> {
    let scales = row_scales(network, site.index).filter(|scales| scales.len() == site.out_features);
    let wrong = || TrainError::Base {
        expected: format!("{} int8 rows at {}", site.out_features, site.name),
        found: "another weight".into(),
    };
    Ok(scales.ok_or_else(wrong)?)
}
