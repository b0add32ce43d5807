//! Factors of sites as factors of the modules that PEFT knows, and back. A module is one site as a rule; one that is cut into
//! sites has one pair of factors in PEFT where each site has its own here.

use crate::import::hf::modules::{Module, Part};
use crate::lora::{BoundSite, LoraConfig, SiteFactors};

/// Factors of a module.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModuleFactors {
    /// Path of the module.
    pub(super) name: String,
    /// Rank of the update.
    pub(super) rank: usize,
    /// Alpha of the update.
    pub(super) alpha: f64,
    /// in_features and out_features.
    pub(super) shape: [usize; 2],
    /// `[rank, in_features]`.
    pub(super) lora_a: Vec<f32>,
    /// `[out_features, rank]`.
    pub(super) lora_b: Vec<f32>,
}

impl ModuleFactors {
    /// The factors of a module, exactly those of its sites; `None` if none of these is adapted.
    ///
    /// Sites with one lora_a share it. Otherwise the module's rank is the sum of theirs: lora_a one below the other, lora_b a
    /// block for each site and zero beside them.
    pub(super) fn of(module: &Module, sites: &[SiteFactors], config: &LoraConfig) -> Option<Self> {
        let found = |part: &Part| sites.iter().find(|factors| factors.site.index == part.site);
        let own: Vec<(&Part, &SiteFactors)> =
            module.sites.iter().filter_map(|part| Some((part, found(part)?))).collect();
        let (_, first) = *own.first()?;
        let same = |(_, factors): &(&Part, &SiteFactors)| {
            factors.lora_a == first.lora_a && factors.site.scaling == first.site.scaling
        };
        let shared = own.iter().all(same);
        let rank =
            if shared { first.site.rank } else { own.iter().map(|(_, factors)| factors.site.rank).sum() };
        let mut lora_a = if shared { first.lora_a.clone() } else { Vec::new() };
        let mut lora_b = vec![0.0; module.out_features * rank];
        let mut column = 0;
        for (part, SiteFactors { site, lora_a: a, lora_b: b }) in &own {
            // One scaling for the module: what differs goes into lora_b.
            let factor = (site.scaling / first.site.scaling) as f32;
            let rows = part.give(b, site.rank);
            let targets = lora_b[part.first_row * rank..].chunks_exact_mut(rank);
            for (row, to) in rows.chunks_exact(site.rank).zip(targets) {
                let to = &mut to[column..column + site.rank];
                to.iter_mut().zip(row).for_each(|(to, value)| *to = value * factor);
            }
            if !shared {
                lora_a.extend_from_slice(a);
                column += site.rank;
            }
        }
        let alpha = if shared { first.site.alpha } else { alpha_for(config, rank, first.site.scaling) };
        let shape = [module.in_features, module.out_features];
        Some(Self { name: module.name.clone(), rank, alpha, shape, lora_a, lora_b })
    }

    /// The factors of a module's sites. In a module with several, a site keeps the components that its rows of lora_b have, and a
    /// site without any is not adapted; if that leaves none (training has not begun), all keep everything.
    pub(super) fn sites(self, module: &Module, config: &LoraConfig) -> Vec<SiteFactors> {
        let Self { rank, alpha, lora_a, lora_b, .. } = self;
        let scaling = config.scaling(rank, alpha);
        let whole: Vec<usize> = (0..rank).collect();
        let untrained = lora_b.iter().all(|value| *value == 0.0);
        let mut sites = Vec::new();
        for part in &module.sites {
            let b = part.take(&lora_b, rank);
            let has = |component: &usize| b.chunks_exact(rank).any(|row| row[*component] != 0.0);
            let kept: Vec<usize> = if module.sites.len() == 1 || untrained {
                whole.clone()
            } else {
                whole.iter().copied().filter(has).collect()
            };
            if kept.is_empty() {
                continue;
            }
            let site = BoundSite {
                index: part.site,
                name: part.name.clone(),
                in_features: module.in_features,
                out_features: part.rows,
                rank: kept.len(),
                alpha: if kept.len() == rank { alpha } else { alpha_for(config, kept.len(), scaling) },
                scaling,
            };
            let rows = kept.iter().flat_map(|at| &lora_a[at * module.in_features..][..module.in_features]);
            let columns = b.chunks_exact(rank).flat_map(|row| kept.iter().map(|at| row[*at]));
            sites.push(SiteFactors { site, lora_a: rows.copied().collect(), lora_b: columns.collect() });
        }
        sites
    }
}

/// The alpha with which an update of this rank has this scaling.
fn alpha_for(config: &LoraConfig, rank: usize, scaling: f64) -> f64 {
    scaling / config.scaling(rank, 1.0)
}

#[cfg(test)]
mod tests {
    use rankpatch_format::write::Network;

    use super::*;
    use crate::data::test_data::carried;
    use crate::import::hf::modules::modules;
    use crate::rng::Rng;

    fn network(family: &str) -> Network {
        crate::import::load(&carried("hf-golden").join(family)).unwrap()
    }

    /// Random factors for some sites of a module.
    fn factors(module: &Module, ranks: &[Option<usize>], scalings: &[f64]) -> Vec<SiteFactors> {
        let mut rng = Rng::new(4, "module factors");
        let sites = module.sites.iter().zip(ranks).zip(scalings);
        sites
            .filter_map(|((part, rank), scaling)| {
                let rank = (*rank)?;
                let mut random = |count: usize| (0..count).map(|_| rng.normal()).collect();
                Some(SiteFactors {
                    site: BoundSite {
                        index: part.site,
                        name: part.name.clone(),
                        in_features: module.in_features,
                        out_features: part.rows,
                        rank,
                        alpha: scaling * rank as f64,
                        scaling: *scaling,
                    },
                    lora_a: random(rank * module.in_features),
                    lora_b: random(part.rows * rank),
                })
            })
            .collect()
    }

    fn delta(scaling: f64, lora_a: &[f32], lora_b: &[f32], rank: usize) -> Vec<f32> {
        let width = lora_a.len() / rank;
        let row = |row: &[f32], at: usize| -> f64 {
            row.iter().enumerate().map(|(j, b)| f64::from(*b) * f64::from(lora_a[j * width + at])).sum()
        };
        let rows = lora_b.chunks_exact(rank);
        rows.flat_map(|b| (0..width).map(move |at| (scaling * row(b, at)) as f32)).collect()
    }

    #[test]
    fn a_module_of_three_sites_has_their_updates_in_blocks() {
        let network = network("gpt2");
        let module = &modules(&network)[4];
        assert_eq!(module.name, "transformer.h.1.attn.c_attn");
        assert_eq!((module.in_features, module.out_features), (20, 60));
        let config = LoraConfig::default();
        for ranks in [[Some(2), Some(3), Some(1)], [Some(2), None, Some(4)]] {
            let sites = factors(module, &ranks, &[1.5, 1.5, 0.75]);
            let merged = ModuleFactors::of(module, &sites, &config).unwrap();
            assert_eq!(merged.rank, ranks.iter().flatten().sum::<usize>());
            let whole =
                delta(config.scaling(merged.rank, merged.alpha), &merged.lora_a, &merged.lora_b, merged.rank);
            for (index, part) in module.sites.iter().enumerate() {
                let rows = &whole[part.first_row * 20..(part.first_row + part.rows) * 20];
                let site = sites.iter().find(|factors| factors.site.index == part.site);
                assert_eq!(site.is_some(), ranks[index].is_some());
                let expected = site.map_or_else(
                    || vec![0.0; rows.len()],
                    |f| delta(f.site.scaling, &f.lora_a, &f.lora_b, f.site.rank),
                );
                let worst = rows.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-5, "{}: {worst}", part.name);
            }
            let back = merged.sites(module, &config);
            assert_eq!(back.len(), sites.len());
            for (found, expected) in back.iter().zip(&sites) {
                assert_eq!((found.site.rank, &found.site.name), (expected.site.rank, &expected.site.name));
                assert_eq!(found.lora_a, expected.lora_a);
                // What had another scaling has it in lora_b now: halved, without rounding.
                let factor = (expected.site.scaling / 1.5) as f32;
                assert!(found.lora_b.iter().zip(&expected.lora_b).all(|(a, b)| *a == b * factor));
                assert_eq!(found.site.scaling, 1.5);
            }
        }
    }

    #[test]
    fn a_shared_lora_a_stays_shared() {
        let network = network("gpt2");
        let module = &modules(&network)[0];
        let config = LoraConfig { use_rslora: true, ..LoraConfig::default() };
        let one = factors(module, &[Some(3), Some(3), Some(3)], &[0.5; 3]);
        let lora_b: Vec<f32> = one.iter().flat_map(|factors| factors.lora_b.clone()).collect();
        let original = ModuleFactors {
            name: module.name.clone(),
            rank: 3,
            alpha: 6.0,
            shape: [20, 60],
            lora_a: one[0].lora_a.clone(),
            lora_b,
        };
        let sites = original.clone().sites(module, &config);
        assert_eq!(sites.len(), 3);
        assert!(sites.iter().all(|f| f.site.scaling == config.scaling(3, 6.0) && f.site.alpha == 6.0));
        assert_eq!(ModuleFactors::of(module, &sites, &config), Some(original.clone()));
        let fresh = ModuleFactors { lora_b: vec![0.0; 180], ..original };
        assert_eq!(fresh.clone().sites(module, &config).len(), 3, "nothing is learned yet");
        assert_eq!(ModuleFactors::of(module, &fresh.clone().sites(module, &config), &config), Some(fresh));
    }

    #[test]
    fn rows_of_rotated_sites_are_put_in_order_and_back() {
        let network = network("llama");
        let modules = modules(&network);
        let config = LoraConfig::default();
        for (index, rotated) in [(0, true), (1, true), (2, false), (4, false)] {
            let module = &modules[index];
            let sites = factors(module, &[Some(2)], &[1.0]);
            let merged = ModuleFactors::of(module, &sites, &config).unwrap();
            assert_eq!(merged.lora_b == sites[0].lora_b, !rotated, "{}", module.name);
            if rotated {
                // Heads of six: rows 0, 3, 1, 4, 2, 5 of a module are 0 to 5 of its site.
                assert_eq!(merged.lora_b[3 * 2..4 * 2], sites[0].lora_b[2..4]);
                assert_eq!(merged.lora_b[7 * 2..8 * 2], sites[0].lora_b[8 * 2..9 * 2]);
            }
            assert_eq!(merged.sites(module, &config), sites);
        }
    }
}
