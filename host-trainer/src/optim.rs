//! AdamW over named parameters, with global-norm clipping and a state that can be saved.
//!
//! candle's own AdamW hides its moments, so a run cannot be resumed. Here parameters are visited in the order of their
//! names, and a run that is stopped and resumed has the same bits as one that is not. On the CPU the arithmetic is one loop per
//! tensor; on a GPU everything stays there and all tensors are one launch (`device`).

#[cfg(feature = "cuda")]
mod device;

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use serde::{Deserialize, Serialize};

/// Hyperparameters of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay: each step multiplies a decayed parameter by `1 - rate * weight_decay`.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; larger ones are scaled down to it.
    pub max_grad_norm: Option<f64>,
}

impl Default for AdamWConfig {
    /// PyTorch's: betas 0.9 and 0.999, eps 1e-8, weight decay 0.01, no clipping.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, max_grad_norm: None }
    }
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// The variable, f32 and contiguous.
    pub var: Var,
    /// Factor of the learning rate (LoRA+ gives `lora_b` more than 1).
    pub rate_factor: f64,
    /// Whether weight decay applies.
    pub decay: bool,
}

impl Param {
    /// A parameter with the plain learning rate and weight decay.
    pub fn new(var: Var) -> Self {
        Self { var, rate_factor: 1.0, decay: true }
    }
}

/// First and second moment of one parameter, in its row-major order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// Running mean of the gradients.
    pub m: Vec<f32>,
    /// Running mean of their squares.
    pub v: Vec<f32>,
}

/// All that a run needs to go on: save it with the parameters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AdamWState {
    /// Steps taken.
    pub step: u64,
    /// By the names of the parameters.
    pub moments: BTreeMap<String, Moments>,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// Factor of the clipping; 1 if there was none.
    pub clip: f64,
}

/// What the optimizer refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptimError {
    /// A parameter has no gradient: the loss does not depend on it.
    #[error(
        "parameter {name} has no gradient, expected one for each of the {expected} parameters: is it bound to the model?"
    )]
    NoGradient {
        /// The parameter.
        name: String,
        /// Number of parameters.
        expected: usize,
    },
    /// The gradients are not finite. Nothing was changed.
    #[error(
        "the norm of the gradients is {found}, expected a finite number: lower the learning rate or clip"
    )]
    NotFinite {
        /// The norm.
        found: f64,
    },
    /// A parameter or its gradient has another type or shape than expected.
    #[error("parameter {name} is {found}, expected {expected}")]
    Shape {
        /// The parameter.
        name: String,
        /// Type and shape that would have fitted.
        expected: String,
        /// Type and shape that were found.
        found: String,
    },
    /// A saved state does not belong to these parameters.
    #[error("the saved optimizer state has {found} for parameter {name}, expected {expected}")]
    State {
        /// The parameter.
        name: String,
        /// What this run has.
        expected: String,
        /// What the state has.
        found: String,
    },
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The optimizer.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    params: BTreeMap<String, Param>,
    step: u64,
    moments: Store,
}

/// Where the moments live.
#[derive(Debug)]
enum Store {
    /// On the host, by name.
    Host(BTreeMap<String, Moments>),
    #[cfg(feature = "cuda")]
    Device(device::OnDevice),
}

impl Store {
    /// On the GPU if the parameters are there.
    #[cfg_attr(not(feature = "cuda"), expect(clippy::unnecessary_wraps, reason = "a GPU may refuse"))]
    fn new(
        params: &BTreeMap<String, Param>,
        moments: BTreeMap<String, Moments>,
    ) -> candle_core::Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(param) = params.values().next().filter(|param| param.var.device().is_cuda()) {
            return Ok(Self::Device(device::OnDevice::new(params, &moments, param.var.device())?));
        }
        let _ = params;
        Ok(Self::Host(moments))
    }
}

impl AdamW {
    /// An optimizer at step 0 with zero moments.
    ///
    /// # Errors
    /// If a parameter is not f32.
    pub fn new(params: BTreeMap<String, Param>, config: AdamWConfig) -> Result<Self, OptimError> {
        let mut moments = BTreeMap::new();
        for (name, param) in &params {
            if param.var.dtype() != DType::F32 {
                let found = format!("{:?} {:?}", param.var.dtype(), param.var.dims());
                return Err(OptimError::Shape { name: name.clone(), expected: "F32".into(), found });
            }
            let count = param.var.elem_count();
            moments.insert(name.clone(), Moments { m: vec![0.0; count], v: vec![0.0; count] });
        }
        Ok(Self { config, step: 0, moments: Store::new(&params, moments)?, params })
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// If the state's names or sizes are not those of the parameters. The optimizer is then unchanged.
    pub fn restore(&mut self, state: AdamWState) -> Result<(), OptimError> {
        for (name, param) in &self.params {
            let count = param.var.elem_count();
            let expected = format!("{count} values");
            let found = match state.moments.get(name) {
                Some(saved) if saved.m.len() == count && saved.v.len() == count => continue,
                Some(saved) => format!("{} and {} values", saved.m.len(), saved.v.len()),
                None => "nothing".into(),
            };
            return Err(OptimError::State { name: name.clone(), expected, found });
        }
        if let Some(name) = state.moments.keys().find(|name| !self.params.contains_key(*name)) {
            let (expected, found) = ("no such parameter".into(), "moments".into());
            return Err(OptimError::State { name: name.clone(), expected, found });
        }
        self.moments = Store::new(&self.params, state.moments)?;
        self.step = state.step;
        Ok(())
    }

    /// The state to save.
    ///
    /// # Errors
    /// If the device cannot be read.
    pub fn state(&self) -> Result<AdamWState, OptimError> {
        let moments = match &self.moments {
            Store::Host(moments) => moments.clone(),
            #[cfg(feature = "cuda")]
            Store::Device(moments) => moments.moments(&self.params)?,
        };
        Ok(AdamWState { step: self.step, moments })
    }

    /// The parameters, in the order in which they are visited.
    pub fn params(&self) -> &BTreeMap<String, Param> {
        &self.params
    }

    /// One step at learning rate `rate`.
    ///
    /// With `g` the clipped gradient and `t` the step from 1: `p *= 1 - rate * weight_decay`; `m = beta1 m + (1 - beta1) g`;
    /// `v = beta2 v + (1 - beta2) g^2`; `p -= rate * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)`.
    ///
    /// # Errors
    /// If a parameter has no gradient, or a gradient is not finite or has another shape. Nothing is changed then.
    pub fn step(&mut self, grads: &GradStore, rate: f64) -> Result<StepReport, OptimError> {
        let grads = self.gradients(grads)?;
        let host = match &self.moments {
            Store::Host(_) => to_host(grads.iter())?,
            #[cfg(feature = "cuda")]
            Store::Device(_) => Vec::new(),
        };
        let square = match &self.moments {
            Store::Host(_) => {
                let squares =
                    |grad: &Vec<f32>| grad.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
                host.iter().map(squares).sum::<f64>()
            }
            #[cfg(feature = "cuda")]
            Store::Device(moments) => moments.square(&self.params, &grads)?,
        };
        let grad_norm = square.sqrt();
        if !grad_norm.is_finite() {
            return Err(OptimError::NotFinite { found: grad_norm });
        }
        let clip = match self.config.max_grad_norm {
            Some(limit) if grad_norm > limit => limit / grad_norm,
            _ => 1.0,
        };

        let AdamWConfig { beta1, beta2, eps, weight_decay, .. } = self.config;
        let t = (self.step + 1) as f64;
        let (correct1, correct2) = (1.0 - beta1.powf(t), 1.0 - beta2.powf(t));
        let updates = self.params.values().map(|param| {
            let rate = rate * param.rate_factor;
            Update {
                clip: clip as f32,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                keep: if param.decay { (1.0 - rate * weight_decay) as f32 } else { 1.0 },
                rate: (rate / correct1) as f32,
                root: (1.0 / correct2) as f32,
                eps: eps as f32,
            }
        });
        let updates: Vec<Update> = updates.collect();
        match &mut self.moments {
            Store::Host(moments) => {
                let mut values = to_host(self.params.values().map(|param| param.var.as_tensor()))?;
                let each = updates.iter().zip(moments.values_mut()).zip(&host).zip(&mut values);
                for (((update, moments), grad), values) in each {
                    update.apply(values, moments, grad);
                }
                for (param, values) in self.params.values().zip(values) {
                    param.var.set(&Tensor::from_vec(values, param.var.shape(), param.var.device())?)?;
                }
            }
            #[cfg(feature = "cuda")]
            Store::Device(moments) => moments.update(&self.params, &grads, &updates)?,
        }
        self.step += 1;
        Ok(StepReport { grad_norm, clip })
    }

    /// The gradients, contiguous, in the order of the names.
    fn gradients(&self, grads: &GradStore) -> Result<Vec<Tensor>, OptimError> {
        let expected = self.params.len();
        let mut found = Vec::with_capacity(expected);
        for (name, param) in &self.params {
            let grad = grads
                .get(&param.var)
                .ok_or_else(|| OptimError::NoGradient { name: name.clone(), expected })?;
            if grad.dims() != param.var.dims() || grad.dtype() != DType::F32 {
                return Err(OptimError::Shape {
                    name: name.clone(),
                    expected: format!("F32 {:?}", param.var.dims()),
                    found: format!("{:?} {:?} (its gradient)", grad.dtype(), grad.dims()),
                });
            }
            found.push(grad.contiguous()?);
        }
        Ok(found)
    }
}

/// The values of some tensors, in one transfer if they are on another device.
fn to_host<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> candle_core::Result<Vec<Vec<f32>>> {
    let flat = tensors.map(Tensor::flatten_all).collect::<candle_core::Result<Vec<_>>>()?;
    if flat.iter().all(|tensor| tensor.device().is_cpu()) {
        return flat.iter().map(Tensor::to_vec1).collect();
    }
    let all: Vec<f32> = Tensor::cat(&flat, 0)?.to_vec1()?;
    let mut rest = all.as_slice();
    let mut parts = Vec::with_capacity(flat.len());
    for tensor in &flat {
        let (part, after) = rest.split_at(tensor.elem_count());
        parts.push(part.to_vec());
        rest = after;
    }
    Ok(parts)
}

/// The numbers of one step for one parameter.
#[derive(Clone, Copy)]
struct Update {
    clip: f32,
    beta1: f32,
    beta2: f32,
    /// `1 - rate * weight_decay`.
    keep: f32,
    /// `rate / (1 - beta1^t)`.
    rate: f32,
    /// `1 / (1 - beta2^t)`.
    root: f32,
    eps: f32,
}

impl Update {
    fn apply(&self, values: &mut [f32], moments: &mut Moments, grad: &[f32]) {
        let moments = moments.m.iter_mut().zip(&mut moments.v);
        for ((value, (m, v)), grad) in values.iter_mut().zip(moments).zip(grad) {
            let grad = grad * self.clip;
            *m = self.beta1 * *m + (1.0 - self.beta1) * grad;
            *v = self.beta2 * *v + (1.0 - self.beta2) * grad * grad;
            *value = *value * self.keep - self.rate * *m / ((*v * self.root).sqrt() + self.eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{device, on_each_device};
    use crate::rng::Rng;

    on_each_device!(
        follows_the_formula,
        resuming_has_the_same_bits_as_going_on,
        rate_factor_and_decay_are_per_parameter,
        refuses_what_does_not_fit,
    );

    fn problem() -> (BTreeMap<String, Param>, impl Fn(&BTreeMap<String, Param>) -> GradStore) {
        let mut rng = Rng::new(1, "optim");
        let mut params = BTreeMap::new();
        for (name, rows, cols) in [("b", 3, 5), ("a", 2, 7)] {
            let values: Vec<f32> = (0..rows * cols).map(|_| rng.normal()).collect();
            let var = Var::from_vec(values, (rows, cols), &device()).unwrap();
            params.insert(name.to_string(), Param::new(var));
        }
        let loss = |params: &BTreeMap<String, Param>| {
            let square = |p: &Param| p.var.powf(4.0).unwrap().sum_all().unwrap();
            (square(&params["a"]) + (square(&params["b"]) * 3.0).unwrap()).unwrap().backward().unwrap()
        };
        (params, loss)
    }

    fn values(params: &BTreeMap<String, Param>) -> Vec<f32> {
        params.values().flat_map(|p| p.var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
    }

    fn follows_the_formula() {
        let (params, loss) = problem();
        let config = AdamWConfig { weight_decay: 0.1, max_grad_norm: Some(2.0), ..AdamWConfig::default() };
        let mut optim = AdamW::new(params.clone(), config).unwrap();
        // The same in f64, written from the definition.
        let mut p: Vec<f64> = values(&params).iter().map(|&x| f64::from(x)).collect();
        let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
        for t in 1..=20 {
            let grads = loss(&params);
            let g: Vec<f64> = params
                .values()
                .flat_map(|p| grads.get(&p.var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
                .map(f64::from)
                .collect();
            let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
            let report = optim.step(&grads, 0.05).unwrap();
            // A GPU sums squares in f32 within a chunk.
            let exact = if device().is_cpu() { 1e-9 } else { 1e-6 };
            assert!((report.grad_norm - norm).abs() < exact * norm);
            assert!((report.clip - (2.0 / norm).min(1.0)).abs() < exact);
            for i in 0..p.len() {
                let g = g[i] * report.clip;
                p[i] *= 1.0 - 0.05 * 0.1;
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                p[i] -= 0.05 * (m[i] / (1.0 - 0.9f64.powi(t)))
                    / ((v[i] / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
            }
        }
        for (found, expected) in values(&params).iter().zip(&p) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    fn resuming_has_the_same_bits_as_going_on() {
        let (params, loss) = problem();
        let mut optim = AdamW::new(params.clone(), AdamWConfig::default()).unwrap();
        for _ in 0..5 {
            optim.step(&loss(&params), 0.01).unwrap();
        }
        let saved_state: AdamWState =
            serde_json::from_str(&serde_json::to_string(&optim.state().unwrap()).unwrap()).unwrap();
        assert_eq!(saved_state, optim.state().unwrap());
        let copies: BTreeMap<String, Param> = params
            .iter()
            .map(|(name, p)| {
                (name.clone(), Param::new(Var::from_tensor(&p.var.detach().copy().unwrap()).unwrap()))
            })
            .collect();
        let mut resumed = AdamW::new(copies.clone(), AdamWConfig::default()).unwrap();
        resumed.restore(saved_state).unwrap();
        for _ in 0..5 {
            optim.step(&loss(&params), 0.01).unwrap();
            resumed.step(&loss(&copies), 0.01).unwrap();
        }
        assert_eq!(values(&params), values(&copies));
        assert_eq!(optim.state().unwrap(), resumed.state().unwrap());
    }

    fn rate_factor_and_decay_are_per_parameter() {
        let (mut params, loss) = problem();
        params.get_mut("b").unwrap().rate_factor = 0.0;
        params.get_mut("a").unwrap().decay = false;
        let before = params["b"].var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let config = AdamWConfig { weight_decay: 0.5, ..AdamWConfig::default() };
        let mut optim = AdamW::new(params.clone(), config).unwrap();
        let a: Vec<f32> = params["a"].var.flatten_all().unwrap().to_vec1().unwrap();
        optim.step(&loss(&params), 0.01).unwrap();
        assert_eq!(before, params["b"].var.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        // The first step of Adam moves each value by the rate, whatever the gradient.
        for (before, after) in a.iter().zip(params["a"].var.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        {
            assert!(((before - after).abs() - 0.01).abs() < 1e-5);
        }
    }

    fn refuses_what_does_not_fit() {
        let (params, loss) = problem();
        let mut optim = AdamW::new(params.clone(), AdamWConfig::default()).unwrap();
        let before = values(&params);
        let only_a = params["a"].var.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let error = optim.step(&only_a, 0.1).unwrap_err();
        assert!(matches!(&error, OptimError::NoGradient { name, .. } if name == "b"), "{error}");
        let mut bad = loss(&params);
        bad.insert(&params["a"].var, (params["a"].var.zeros_like().unwrap() / 0.0).unwrap());
        assert!(matches!(optim.step(&bad, 0.1), Err(OptimError::NotFinite { .. })));
        assert_eq!(before, values(&params), "a refused step changes nothing");
        assert_eq!(optim.state().unwrap().step, 0);
        let mut state = optim.state().unwrap();
        state.moments.remove("a");
        assert!(matches!(optim.restore(state), Err(OptimError::State { .. })));
        let mut state = optim.state().unwrap();
        state.moments.insert("c".into(), Moments { m: vec![], v: vec![] });
        assert!(matches!(optim.restore(state), Err(OptimError::State { .. })));
    }
}
