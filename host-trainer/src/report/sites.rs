//! What an adapter does to each site: size, spectrum and norm of its update.

use rankpatch_format::write::{Network, Tensor};
use serde::{Deserialize, Serialize};

use crate::lora::{FloatAdapter, SiteFactors};
use crate::{Result, spectrum};

/// One site of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// Dotted name.
    pub name: String,
    /// Inputs.
    pub in_features: usize,
    /// Outputs.
    pub out_features: usize,
    /// Rank.
    pub rank: usize,
    /// What lora_b lora_a is multiplied with.
    pub scaling: f64,
    /// Numbers of its factors, rank (in_features + out_features): as many bytes of codes where there is a file for devices.
    pub payload_bytes: usize,
    /// Singular values of delta_weight, descending.
    pub singular_values: Vec<f64>,
    /// |delta_weight|_F / |W0|_F; 0 where the base's weight is zero.
    pub norm_ratio: f64,
}

/// The sites of an adapter on the network that it was trained on.
///
/// # Errors
/// [`crate::Error::Quant`] if a factor is not finite.
pub fn sites(adapter: &FloatAdapter, network: &Network) -> Result<Vec<Site>> {
    let weights: Vec<&Tensor> = network.sites().map(|(_, weight)| weight).collect();
    let sites = adapter.sites.iter().map(|factors| {
        let SiteFactors { site, .. } = factors;
        let singular_values = spectrum::singular_values(factors)?;
        let base = weights.get(usize::from(site.index)).map_or(0.0, |weight| frobenius(weight));
        let norm = spectrum::norm(&singular_values);
        Ok(Site {
            name: site.name.clone(),
            in_features: site.in_features,
            out_features: site.out_features,
            rank: site.rank,
            scaling: site.scaling,
            payload_bytes: site.rank * (site.in_features + site.out_features),
            norm_ratio: if base > 0.0 { norm / base } else { 0.0 },
            singular_values,
        })
    });
    sites.collect()
}

/// |W0|_F, of the codes where there are codes.
fn frobenius(weight: &Tensor) -> f64 {
    let square = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
    let square = match weight {
        Tensor::Codes { cols, codes, scales, .. } => codes
            .chunks(*cols as usize)
            .zip(scales)
            .map(|(row, scale)| {
                let row: f64 = row.iter().map(|code| f64::from(*code).powi(2)).sum();
                row * f64::from(*scale).powi(2)
            })
            .sum(),
        Tensor::Matrix { data, .. } | Tensor::Floats { data, .. } => square(data),
    };
    square.sqrt()
}
