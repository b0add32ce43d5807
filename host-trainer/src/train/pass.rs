//! One pass over the base, forward and backward, for the parts of batches of one task or of many.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Tensor, Var};

use super::batches::Targets;
use super::learner::{Drawn, Learner, factor_names, head_names};
use crate::executor::{Batch, Factors, Joins, Model, StackedFactors, StackedGroup};
use crate::{Result, ops};

/// A part of a task's batch.
#[derive(Clone, Copy)]
pub(super) struct Member<'a> {
    pub(super) learner: &'a Learner,
    pub(super) drawn: &'a Drawn,
    pub(super) part: usize,
}

/// What a pass found for one member.
pub(super) struct Found {
    /// Mean loss of the part, in nats.
    pub(super) loss: f32,
    /// Its gradients by the names of the variables.
    pub(super) grads: Vec<(String, Tensor)>,
}

impl Member<'_> {
    pub(super) fn targets(&self) -> &Targets {
        &self.drawn.parts[self.part]
    }

    /// Rows of input of the pass, padding included.
    pub(super) fn rows(&self) -> usize {
        self.targets().batch.sequences * self.targets().batch.rows
    }

    /// Whether this member may run together with another.
    pub(super) fn fits(&self, other: &Self, model: &Model) -> bool {
        let has_head = |member: &Self| !member.learner.data().labels.is_empty();
        let rows = |member: &Self| member.targets().batch.rows;
        let together = match model.joins() {
            Joins::All => true,
            Joins::OfOneLength => rows(self) == rows(other),
        };
        // Biases are added to all rows of a pass.
        let plain = |member: &Self| member.learner.biases().is_empty();
        together && has_head(self) == has_head(other) && plain(self) && plain(other)
    }
}

/// Runs the members over the base. Each gets the loss and the gradients that it gets alone, bit for bit on the CPU.
pub(super) fn run(model: &Model, members: &[Member<'_>]) -> Result<Vec<Found>> {
    match members {
        [one] => Ok(vec![alone(model, *one)?]),
        many => together(model, many),
    }
}

fn alone(model: &Model, member: Member<'_>) -> Result<Found> {
    let Member { learner, drawn: Drawn { variables, .. }, .. } = member;
    let part = member.targets();
    let (loss, grads) = ops::value_and_grad(|| {
        let mut factors = BTreeMap::new();
        for site in learner.sites() {
            let (lora_a, lora_b) = factor_names(&site.name);
            let rows = model.site_rows(site.index, &part.batch);
            factors.insert(
                site.index,
                Factors {
                    lora_a: variables[&lora_a].as_tensor().clone(),
                    lora_b: variables[&lora_b].as_tensor().clone(),
                    scaling: site.scaling,
                    dropout_mask: learner.dropout_mask(site, rows, member.part)?,
                },
            );
        }
        let base = learner.with_biases(model, variables);
        let outputs = base.forward(&part.batch, &factors, learner.head(variables).as_ref())?;
        let (targets, weights) = targets(model, [part])?;
        Ok::<_, crate::Error>(ops::cross_entropy(&outputs, &targets, &weights)?)
    })?;
    let found = variables.iter().filter_map(|(name, var)| Some((name.clone(), grads.get(var)?.clone())));
    Ok(Found { loss: loss.to_scalar()?, grads: found.collect() })
}

/// Targets and weights of parts, one behind the other.
fn targets<'a>(model: &Model, parts: impl IntoIterator<Item = &'a Targets>) -> Result<(Tensor, Tensor)> {
    let (mut targets, mut weights) = (Vec::new(), Vec::new());
    for part in parts {
        targets.extend_from_slice(&part.targets);
        weights.extend_from_slice(&part.weights);
    }
    let count = targets.len();
    let device = model.device();
    Ok((Tensor::from_vec(targets, count, device)?, Tensor::from_vec(weights, count, device)?))
}

/// The factors of one site in a pass of many.
struct Stack {
    lora_a: Var,
    lora_b: Var,
    /// For each member with factors here: its index, the names of its tensors, its rank and the ranks before it.
    places: Vec<(usize, (String, String), usize, usize)>,
    out_features: usize,
    groups: Vec<StackedGroup>,
}

impl Stack {
    /// Stacks the members' factors of a site into two variables, whose gradients are then cut into theirs.
    fn new(model: &Model, site: u16, members: &[Member<'_>]) -> Result<Self> {
        let (mut a, mut b, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let mut groups = Vec::with_capacity(members.len());
        let mut first = 0;
        for (index, member) in members.iter().enumerate() {
            let Some(bound) = member.learner.sites().iter().find(|bound| bound.index == site) else {
                groups.push(StackedGroup::default());
                continue;
            };
            let names = factor_names(&bound.name);
            a.push(member.drawn.variables[&names.0].as_tensor().detach());
            b.push(member.drawn.variables[&names.1].as_tensor().detach().flatten_all()?);
            places.push((index, names, bound.rank, first));
            first += bound.rank;
            let rows = model.site_rows(site, &member.targets().batch);
            groups.push(StackedGroup {
                rank: bound.rank,
                scaling: bound.scaling,
                dropout_mask: member.learner.dropout_mask(bound, rows, member.part)?,
            });
        }
        let (lora_a, lora_b) =
            (Var::from_tensor(&Tensor::cat(&a, 0)?)?, Var::from_tensor(&Tensor::cat(&b, 0)?)?);
        let out_features = lora_b.elem_count() / first;
        Ok(Self { lora_a, lora_b, places, out_features, groups })
    }

    fn factors(&self) -> StackedFactors {
        StackedFactors {
            lora_a: self.lora_a.as_tensor().clone(),
            lora_b: self.lora_b.as_tensor().clone(),
            groups: self.groups.clone(),
        }
    }
}

fn together(model: &Model, members: &[Member<'_>]) -> Result<Vec<Found>> {
    let sites: BTreeSet<u16> =
        members.iter().flat_map(|member| member.learner.sites()).map(|site| site.index).collect();
    let stacks: BTreeMap<u16, Stack> =
        sites.iter().map(|site| Ok((*site, Stack::new(model, *site, members)?))).collect::<Result<_>>()?;
    let factors = stacks.iter().map(|(site, stack)| (*site, stack.factors())).collect();
    let batches: Vec<&Batch> = members.iter().map(|member| &member.targets().batch).collect();
    let heads: Vec<_> =
        members.iter().filter_map(|member| member.learner.head(&member.drawn.variables)).collect();
    let mut losses = Vec::new();
    let (_, grads) = ops::value_and_grad(|| {
        let outputs = model.forward_many(&batches, &factors, !heads.is_empty())?;
        if heads.is_empty() {
            let parts = || members.iter().map(Member::targets);
            let (targets, weights) = targets(model, parts())?;
            let rows: Vec<usize> = parts().map(|part| part.targets.len()).collect();
            let found = ops::cross_entropy_groups(&outputs, &targets, &weights, &rows)?;
            losses = found.each;
            return Ok(found.total);
        }
        let mut total: Option<Tensor> = None;
        for (index, (member, head)) in members.iter().zip(&heads).enumerate() {
            let logits = model.head_of(&outputs, &batches, index, head)?;
            let (targets, weights) = targets(model, [member.targets()])?;
            let loss = ops::cross_entropy(&logits, &targets, &weights)?;
            losses.push(loss.detach());
            total = Some(match total {
                Some(total) => ops::add(&total, &loss)?,
                None => loss,
            });
        }
        total.ok_or_else(|| crate::Error::from(candle_core::Error::Msg("a pass of no tasks".into())))
    })?;

    let losses = losses.iter().map(|loss| Ok(Found { loss: loss.to_scalar()?, grads: Vec::new() }));
    let mut found = losses.collect::<Result<Vec<_>>>()?;
    for stack in stacks.values() {
        let out = stack.out_features;
        for (index, names, rank, first) in &stack.places {
            let grads_of = &mut found[*index].grads;
            if let Some(grad) = grads.get(&stack.lora_a) {
                grads_of.push((names.0.clone(), grad.narrow(0, *first, *rank)?.contiguous()?));
            }
            if let Some(grad) = grads.get(&stack.lora_b) {
                let grad = grad.narrow(0, out * first, out * rank)?.reshape((out, *rank))?;
                grads_of.push((names.1.clone(), grad));
            }
        }
    }
    if !heads.is_empty() {
        let (weight, bias) = head_names();
        for (member, found) in members.iter().zip(&mut found) {
            for name in [&weight, &bias] {
                let grad = member.drawn.variables.get(name).and_then(|var| grads.get(var)).cloned();
                found.grads.extend(grad.map(|grad| (name.clone(), grad)));
            }
        }
    }
    Ok(found)
}
