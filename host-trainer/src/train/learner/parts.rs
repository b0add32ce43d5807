//! Where a task changes from one part of its run to the next: trimming of ranks, the factors that the quantization-aware part
//! starts from, and the way back from a checkpoint to either.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use rankpatch_format::write::Network;

use super::{Learner, factor_names};
use crate::executor::{Model, dequantize};
use crate::lora::{BoundSite, FloatAdapter, InitLora, LoraConfig, SiteFactors};
use crate::optim::{AdamW, Param};
use crate::train::evaluate_float;
use crate::train::report::{Event, Phase};
use crate::train::stopping::Patience;
use crate::{Result, spectrum};

/// Shape and row-major values of tensors, by name.
pub(crate) type Values = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Where the factors of a site started that do not start at an update of zero (PiSSA): `(lora_a, lora_b)`. The update is what
/// they have moved by.
pub(super) type Start = (Vec<f32>, Vec<f32>);

impl Learner {
    /// Before the first step of the quantization-aware part: trims ranks, and keeps the factors that training in float came to.
    ///
    /// A run that is quantization-aware from its start has no such factors, and nothing to trim yet.
    pub(in crate::train) fn begin_quantized(&mut self, tell: &mut dyn FnMut(&Event<'_>)) -> Result<()> {
        if self.step != self.quantized_from || self.step == 0 {
            return Ok(());
        }
        self.trim(tell)?;
        self.unquantized = self.values()?;
        tell(&Event::PhaseChanged { step: self.step, phase: Phase::QuantizationAware });
        Ok(())
    }

    /// At the end of a run that had no part to trim before: trims, and measures what that left.
    pub(in crate::train) fn trim_at_end(
        &mut self,
        model: &Model,
        tell: &mut dyn FnMut(&Event<'_>),
    ) -> Result<()> {
        if self.trim(tell)? {
            let metric = evaluate_float(model, Some(&self.adapter()?), &self.data.test)?;
            tell(&Event::Evaluated { step: self.step, metric });
        }
        Ok(())
    }

    /// Lowers the rank of each site to what explains `explained_variance` of its update; whether there was anything to do.
    ///
    /// The factors of lower rank are in another basis, so the optimizer starts anew, with zero moments; so does early stopping,
    /// whose best factors had other shapes.
    fn trim(&mut self, tell: &mut dyn FnMut(&Event<'_>)) -> Result<bool> {
        let Some(fraction) = self.config.explained_variance.filter(|_| !self.trimmed) else {
            return Ok(false);
        };
        let sites = self.adapter()?.sites;
        let trimmed: Vec<SiteFactors> = sites
            .iter()
            .map(|factors| spectrum::trim(factors, &self.config.lora, fraction))
            .collect::<Result<_>>()?;
        let sum = |sites: &[SiteFactors]| sites.iter().map(|factors| factors.site.rank).sum();
        let (ranks_before, ranks) = (sum(&sites), sum(&trimmed));
        self.set_factors(trimmed)?;
        self.patience = Patience::new(self.patience.limit);
        let (step, trained, explained_variance) = (self.step, self.trained(), fraction);
        tell(&Event::Trimmed { step, explained_variance, ranks_before, ranks, trained });
        Ok(true)
    }

    /// Puts trimmed factors in the place of those that were trained.
    fn set_factors(&mut self, factors: Vec<SiteFactors>) -> Result<()> {
        let mut params = self.optimizer.params().clone();
        let mut sites = Vec::with_capacity(factors.len());
        for SiteFactors { site, lora_a, lora_b } in factors {
            let (name_a, name_b) = factor_names(&site.name);
            let a = Var::from_vec(lora_a, (site.rank, site.in_features), &self.device)?;
            let b = Var::from_vec(lora_b, (site.out_features, site.rank), &self.device)?;
            params.insert(name_a, Param::new(a));
            params.insert(name_b, Param { rate_factor: self.config.loraplus_lr_ratio, ..Param::new(b) });
            sites.push(site);
        }
        self.optimizer = AdamW::new(params, self.config.optimizer)?;
        (self.sites, self.trimmed) = (sites, true);
        self.starts.clear();
        Ok(())
    }

    /// Gives the sites the ranks that a checkpoint of trimmed factors has. What does not fit is left for the check of shapes.
    pub(super) fn adopt_ranks(&mut self, values: &Values) -> Result<()> {
        let factors = self.sites.iter().map(|site| {
            let rank = values.get(&factor_names(&site.name).0).and_then(|(dims, _)| dims.first().copied());
            let rank = rank.filter(|rank| (1..=site.rank).contains(rank)).unwrap_or(site.rank);
            let alpha = self.config.lora.alpha_for(site.scaling, rank);
            let zeros = |width: usize| vec![0.0; rank * width];
            let (lora_a, lora_b) = (zeros(site.in_features), zeros(site.out_features));
            SiteFactors { site: BoundSite { rank, alpha, ..site.clone() }, lora_a, lora_b }
        });
        self.set_factors(factors.collect())
    }

    /// What training in float came to, before the quantization-aware part went on from there; `None` if the run has no such
    /// part, or nothing before it.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub fn unquantized(&self) -> Result<Option<FloatAdapter>> {
        if self.unquantized.is_empty() {
            return Ok(None);
        }
        let values =
            |name: &str| Ok(self.unquantized.get(name).map(|(_, values)| values.clone()).unwrap_or_default());
        self.adapter_of(&values).map(Some)
    }

    /// The factors of a site as an update of the whole base: those that are trained, and behind them those that they started
    /// from with lora_b negated. Concatenated that is lora_b lora_a - their start.
    pub(super) fn beside_start(&self, factors: SiteFactors) -> SiteFactors {
        let Some((start_a, start_b)) = self.starts.get(&factors.site.index) else { return factors };
        let SiteFactors { site, mut lora_a, lora_b } = factors;
        lora_a.extend_from_slice(start_a);
        let trained = site.rank / 2;
        let rows = lora_b.chunks(trained).zip(start_b.chunks(trained));
        let lora_b = rows.flat_map(|(row, start)| row.iter().copied().chain(start.iter().map(|x| -x)));
        SiteFactors { lora_b: lora_b.collect(), site, lora_a }
    }

    /// The part of a gradient that belongs to what is trained: of the first half of the rank where the second one is a start.
    pub(super) fn trained_part(&self, name: &str, grad: Tensor) -> Result<Tensor> {
        for site in self.sites.iter().filter(|site| self.starts.contains_key(&site.index)) {
            let (lora_a, lora_b) = factor_names(&site.name);
            for (dim, own) in [(0, lora_a), (1, lora_b)] {
                if own == name {
                    return Ok(grad.narrow(dim, 0, site.rank / 2)?.contiguous()?);
                }
            }
        }
        Ok(grad)
    }
}

/// The factors of a site that starts at the principal directions of its weight (PiSSA). `fresh` fills the rows of lora_a that
/// the weight is too small for.
pub(super) fn principal_start(network: &Network, site: &BoundSite, fresh: &[f32]) -> Result<Start> {
    let BoundSite { rank, in_features, out_features, scaling, .. } = *site;
    let weight = network.sites().nth(usize::from(site.index)).map(|(_, weight)| dequantize(weight));
    let weight = weight.unwrap_or_default();
    let (mut lora_a, lora_b) =
        spectrum::principal(&site.name, &weight, out_features, in_features, rank, scaling)?;
    for (row, fresh) in lora_a.chunks_mut(in_features).zip(fresh.chunks(in_features)) {
        if row.iter().all(|value| *value == 0.0) {
            row.copy_from_slice(fresh);
        }
    }
    Ok((lora_a, lora_b))
}

/// A site as it runs: with `pissa` of twice the rank and the same scaling, for the start beside the trained factors.
pub(super) fn running(site: BoundSite, config: &LoraConfig) -> BoundSite {
    if config.init_lora_weights != InitLora::Pissa {
        return site;
    }
    let rank = 2 * site.rank;
    BoundSite { rank, alpha: config.alpha_for(site.scaling, rank), ..site }
}
