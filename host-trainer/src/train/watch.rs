//! Watches that every trained tensor receives a gradient: the guard against an adapter that silently learns nothing.

use std::collections::BTreeSet;

use super::TrainError;

/// Steps in which a tensor must have received a gradient that is not zero. In the first one lora_b is zero and so is the
/// gradient of every lora_a; from the second on nothing but a cut graph (or an input that is zero everywhere) explains a zero.
const WINDOW: u64 = 4;
/// Tensors that the error names.
const NAMED: usize = 4;

/// The tensors that have not received a gradient yet.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    waiting: BTreeSet<String>,
    steps: u64,
}

impl Watch {
    pub(crate) fn new(tensors: impl Iterator<Item = String>) -> Self {
        Self { waiting: tensors.collect(), steps: 0 }
    }

    /// Takes the gradients of a step: `largest` gives the largest magnitude of a tensor's gradient, `None` if it has none.
    ///
    /// # Errors
    /// [`TrainError::NoGradient`], naming the tensors, if some have received none in the first steps.
    pub(crate) fn step<E: From<TrainError>>(
        &mut self,
        mut largest: impl FnMut(&str) -> Result<Option<f32>, E>,
    ) -> Result<(), E> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut touched = Vec::new();
        for name in &self.waiting {
            if largest(name)?.is_some_and(|largest| largest > 0.0) {
                touched.push(name.clone());
            }
        }
        self.waiting.retain(|name| !touched.contains(name));
        self.steps += 1;
        if self.steps >= WINDOW { Ok(self.finish()?) } else { Ok(()) }
    }

    /// The end of a run, which may be shorter than the window. A run of one step proves nothing: lora_b is zero in it, and so
    /// is the gradient of every lora_a.
    ///
    /// # Errors
    /// As [`Watch::step`].
    pub(crate) fn finish(&self) -> Result<(), TrainError> {
        if self.waiting.is_empty() || self.steps < 2 {
            return Ok(());
        }
        let named: Vec<&str> = self.waiting.iter().map(String::as_str).take(NAMED).collect();
        let tensor = match self.waiting.len() - named.len() {
            0 => named.join(", "),
            more => format!("{} and {more} more", named.join(", ")),
        };
        Err(TrainError::NoGradient { tensor, steps: self.steps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(watch: &mut Watch, a: Option<f32>, b: Option<f32>) -> Result<(), TrainError> {
        watch.step(|name| Ok(if name == "a" { a } else { b }))
    }

    fn watch() -> Watch {
        Watch::new(["a", "b"].into_iter().map(String::from))
    }

    #[test]
    fn a_late_first_gradient_is_enough() {
        let mut watch = watch();
        step(&mut watch, Some(0.0), Some(1e-9)).unwrap();
        step(&mut watch, Some(2.0), Some(0.0)).unwrap();
        for _ in 0..10 {
            step(&mut watch, Some(0.0), None).unwrap();
        }
        watch.finish().unwrap();
    }

    #[test]
    fn a_tensor_without_a_gradient_is_named() {
        let mut watch = watch();
        for _ in 1..WINDOW {
            step(&mut watch, None, Some(1.0)).unwrap();
        }
        let error = watch.finish().unwrap_err();
        assert!(matches!(&error, TrainError::NoGradient { tensor, steps: 3 } if tensor == "a"), "{error}");
        let error = step(&mut watch, Some(0.0), Some(1.0)).unwrap_err();
        assert!(
            matches!(&error, TrainError::NoGradient { tensor, steps: WINDOW } if tensor == "a"),
            "{error}"
        );
    }
}
