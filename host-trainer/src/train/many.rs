//! Many tasks on one base, trained at once: a step takes one of each task, and their batches run over the base together.
//!
//! Everything that a task has is its own: data, factors, head, rates, seed, evaluations, checkpoints, early stopping. What it
//! learns does not depend on which others train beside it. A task that ends or fails leaves; the others go on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::TrainError;
use super::learner::{Drawn, FrozenBase, Learner, StepOutcome};
use super::pass::{self, Found, Member};
use super::report::{Event, ManyReporter};
use crate::Result;
use crate::executor::Model;

/// Steps over which the loss that a run ends with is averaged.
const FINAL_STEPS: u64 = 50;

/// Rows of input of one pass, unless [`ManyTrainer::limit_rows`] says otherwise.
const ROWS: usize = 8192;

/// Tasks that train together.
#[derive(Debug)]
pub struct ManyTrainer {
    base: FrozenBase,
    tasks: Vec<Running>,
    max_rows: usize,
    stop: Option<&'static AtomicBool>,
}

/// A task and how far this part of its run is.
#[derive(Debug)]
struct Running {
    learner: Learner,
    checkpoint: Option<PathBuf>,
    state: State,
    start: Instant,
    /// Rows of input so far.
    rows: usize,
    /// Sum of the losses of the last steps, and their number.
    recent: (f64, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Training,
    Ended,
}

impl Running {
    fn is_over(&self) -> bool {
        self.learner.step() >= self.learner.steps() || self.learner.is_out_of_patience()
    }
}

impl ManyTrainer {
    /// Tasks in this order, each where it stands. They are those of `base`.
    ///
    /// # Panics
    /// If one of several trains the base in full: the others would learn from a base that changes.
    pub fn new(base: FrozenBase, learners: Vec<Learner>) -> Self {
        assert!(
            learners.len() < 2 || !base.model.is_trainable(),
            "a task that trains its base in full is alone"
        );
        let running = |learner| Running {
            learner,
            checkpoint: None,
            state: State::Waiting,
            start: Instant::now(),
            rows: 0,
            recent: (0.0, 0),
        };
        Self { base, tasks: learners.into_iter().map(running).collect(), max_rows: ROWS, stop: None }
    }

    /// Has one pass take no more than so many rows of input, padding included: more need more memory for activations. A batch
    /// that is larger runs alone. It changes no result.
    pub fn limit_rows(&mut self, rows: usize) {
        self.max_rows = rows;
    }

    /// Writes checkpoints of a task there, every `save_steps` steps of its own and when it is stopped.
    ///
    /// # Panics
    /// If there is no such task.
    pub fn checkpoint_at(&mut self, task: usize, path: PathBuf) {
        self.tasks[task].checkpoint = Some(path);
    }

    /// Has [`advance`](Self::advance) stop all tasks after the step under way once `flag` is set.
    pub fn stop_on(&mut self, flag: &'static AtomicBool) {
        self.stop = Some(flag);
    }

    /// The base.
    pub fn base(&self) -> &FrozenBase {
        &self.base
    }

    /// A task.
    ///
    /// # Panics
    /// If there is no such task.
    pub fn learner(&self, task: usize) -> &Learner {
        &self.tasks[task].learner
    }

    pub(super) fn learner_mut(&mut self, task: usize) -> &mut Learner {
        &mut self.tasks[task].learner
    }

    /// Has [`advance`](Self::advance) go on with a task that was stopped.
    pub(super) fn take_up(&mut self, task: usize, checkpoint: Option<PathBuf>) {
        let task = &mut self.tasks[task];
        (task.checkpoint, task.state) = (checkpoint, State::Waiting);
    }

    /// Trains until at least one task ends, and gives those that did with what came of them. Gives none once all have ended.
    ///
    /// A task ends with [`TrainError::Diverged`], [`TrainError::NoGradient`], [`TrainError::Interrupted`] or what the operators
    /// and the file system refuse; that of others is not changed by it.
    pub fn advance(&mut self, reporter: &mut dyn ManyReporter) -> Vec<(usize, Result<()>)> {
        self.start(reporter);
        loop {
            let mut ended = Vec::new();
            for index in self.training() {
                if self.tasks[index].is_over() {
                    ended.push((index, self.finish(index, reporter)));
                }
            }
            if ended.is_empty() {
                let training = self.training();
                if training.is_empty() {
                    return ended;
                }
                for index in training {
                    let task = &mut self.tasks[index];
                    let begun = task.learner.begin_quantized(&mut |event| reporter.event(index, event));
                    if let Err(error) = begun {
                        task.state = State::Ended;
                        ended.push((index, Err(error)));
                    }
                }
                for (index, outcome) in self.train_step() {
                    if let Err(error) = outcome.and_then(|outcome| self.after_step(index, &outcome, reporter))
                    {
                        ended.push((index, Err(error)));
                    }
                }
                if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                    let training = self.training();
                    let open = training.into_iter().filter(|index| !self.tasks[*index].is_over());
                    let failed = |(index, _): &(usize, _), other: usize| *index == other;
                    let open: Vec<usize> =
                        open.filter(|index| !ended.iter().any(|ended| failed(ended, *index))).collect();
                    ended.extend(open.into_iter().map(|index| (index, Err(self.interrupt(index, reporter)))));
                }
            }
            for (index, _) in &ended {
                self.tasks[*index].state = State::Ended;
            }
            if !ended.is_empty() {
                return ended;
            }
        }
    }

    /// Takes one step of every task that has not ended, and gives what each did.
    pub fn train_step(&mut self) -> Vec<(usize, Result<StepOutcome>)> {
        let Self { base: FrozenBase { model, .. }, tasks, max_rows, .. } = self;
        let model = &*model;
        let mut drawn: Vec<(usize, Result<Drawn>)> = tasks
            .iter_mut()
            .enumerate()
            .filter(|(_, task)| task.state != State::Ended)
            .map(|(index, task)| (index, task.learner.draw(model)))
            .collect();
        let most = |drawn: &Result<Drawn>| drawn.as_ref().map_or(0, |drawn| drawn.parts.len());
        let rounds = drawn.iter().map(|(_, drawn)| most(drawn)).max().unwrap_or(0);
        for part in 0..rounds {
            // With its index in `drawn`.
            let members: Vec<(usize, Member<'_>)> = drawn
                .iter()
                .enumerate()
                .filter_map(|(at, (index, drawn))| {
                    let drawn = drawn.as_ref().ok().filter(|drawn| part < drawn.parts.len())?;
                    Some((at, Member { learner: &tasks[*index].learner, drawn, part }))
                })
                .collect();
            let mut results = Vec::with_capacity(members.len());
            for pass in passes(model, &members, *max_rows) {
                results.extend(run(model, &pass));
            }
            for (at, found) in results {
                let (_, drawn) = &mut drawn[at];
                let added = found.and_then(|Found { loss, grads }| match drawn {
                    Ok(drawn) => drawn.add(part, loss, grads),
                    Err(_) => Ok(()),
                });
                if let Err(error) = added {
                    *drawn = Err(error);
                }
            }
        }
        let learn = |(index, drawn): (usize, Result<Drawn>)| {
            let learner = &mut tasks[index].learner;
            (index, drawn.and_then(|drawn| learner.learn(drawn)))
        };
        drawn.into_iter().map(learn).collect()
    }

    /// Tasks under way.
    fn training(&self) -> Vec<usize> {
        (0..self.tasks.len()).filter(|index| self.tasks[*index].state == State::Training).collect()
    }

    fn start(&mut self, reporter: &mut dyn ManyReporter) {
        for (index, task) in
            self.tasks.iter_mut().enumerate().filter(|(_, task)| task.state == State::Waiting)
        {
            (task.state, task.start, task.rows, task.recent) = (State::Training, Instant::now(), 0, (0.0, 0));
            let learner = &task.learner;
            reporter.event(
                index,
                &Event::Started {
                    task: &learner.config().task,
                    base: &self.base.name,
                    sites: learner.sites().len(),
                    trained: learner.trained(),
                    examples: learner.data().train.len(),
                    test_examples: learner.data().test.len(),
                    first_step: learner.step(),
                    steps: learner.steps(),
                },
            );
        }
    }

    /// What a task does between two steps.
    fn after_step(
        &mut self,
        index: usize,
        outcome: &StepOutcome,
        reporter: &mut dyn ManyReporter,
    ) -> Result<()> {
        let task = &mut self.tasks[index];
        let learner = &mut task.learner;
        let (step, steps) = (learner.step(), learner.steps());
        task.rows += outcome.rows;
        if step + FINAL_STEPS > steps {
            task.recent.0 += outcome.loss;
            task.recent.1 += 1;
        }
        let seconds = task.start.elapsed().as_secs_f64();
        reporter.event(
            index,
            &Event::Step {
                step,
                steps,
                loss: outcome.loss,
                learning_rate: outcome.learning_rate,
                grad_norm: outcome.grad_norm,
                tokens_per_second: task.rows as f64 / seconds.max(1e-9),
                seconds,
            },
        );
        if every(learner.config().eval_steps, step) && step < steps {
            let metric = learner.evaluate(&self.base.model)?;
            reporter.event(index, &Event::Evaluated { step, metric });
        }
        if let Some(path) = task.checkpoint.as_ref().filter(|_| every(learner.config().save_steps, step)) {
            check_sound(learner, &self.base.model)?;
            learner.save(path)?;
            reporter.event(index, &Event::Saved { step });
        }
        Ok(())
    }

    /// The end of a task whose steps are taken.
    fn finish(&mut self, index: usize, reporter: &mut dyn ManyReporter) -> Result<()> {
        let task = &mut self.tasks[index];
        let learner = &mut task.learner;
        let step = learner.step();
        learner.check_gradients()?;
        if !learner.is_out_of_patience() {
            let metric = learner.evaluate(&self.base.model)?;
            reporter.event(index, &Event::Evaluated { step, metric });
        }
        if let Some(best) = learner.keep_best()? {
            reporter.event(index, &Event::EarlyStopped { step, best_step: best.step, value: best.value });
        }
        learner.trim_at_end(&self.base.model, &mut |event| reporter.event(index, event))?;
        let loss = task.recent.0 / f64::from(task.recent.1.max(1));
        let seconds = task.start.elapsed().as_secs_f64();
        reporter.event(index, &Event::Finished { steps: step, loss, seconds });
        Ok(())
    }

    /// Stops a task where it is.
    fn interrupt(&mut self, index: usize, reporter: &mut dyn ManyReporter) -> crate::Error {
        let Running { learner, checkpoint, .. } = &mut self.tasks[index];
        let (step, steps) = (learner.step(), learner.steps());
        if let Some(path) = checkpoint {
            if let Err(error) = check_sound(learner, &self.base.model).and_then(|()| learner.save(path)) {
                return error;
            }
            reporter.event(index, &Event::Saved { step });
        }
        TrainError::Interrupted { step, steps }.into()
    }
}

/// Puts members together that fit, in their order, as many as the rows allow.
fn passes<'a>(
    model: &Model,
    members: &[(usize, Member<'a>)],
    max_rows: usize,
) -> Vec<Vec<(usize, Member<'a>)>> {
    let mut passes: Vec<Vec<(usize, Member<'a>)>> = Vec::new();
    for (at, member) in members {
        let has_room = |pass: &&mut Vec<(usize, Member<'a>)>| {
            let rows: usize = pass.iter().map(|(_, member)| member.rows()).sum();
            rows + member.rows() <= max_rows && pass.iter().all(|(_, other)| other.fits(member, model))
        };
        match passes.iter_mut().find(has_room) {
            Some(pass) => pass.push((*at, *member)),
            None => passes.push(vec![(*at, *member)]),
        }
    }
    passes
}

/// Runs one pass. If it fails its members run one by one, so that each has its own result.
fn run(model: &Model, pass: &[(usize, Member<'_>)]) -> Vec<(usize, Result<Found>)> {
    let members: Vec<Member<'_>> = pass.iter().map(|(_, member)| *member).collect();
    if let Ok(found) = pass::run(model, &members) {
        return pass.iter().map(|(at, _)| *at).zip(found.into_iter().map(Ok)).collect();
    }
    let one = |(at, member): &(usize, Member<'_>)| {
        let found = pass::run(model, std::slice::from_ref(member));
        (*at, found.map(|mut found| found.remove(0)))
    };
    pass.iter().map(one).collect()
}

/// Refuses factors with which the next step has no finite loss, so that the last checkpoint is one to go on from.
fn check_sound(learner: &mut Learner, model: &Model) -> Result<()> {
    let drawn = learner.draw(model)?;
    let learner = &*learner;
    for part in 0..drawn.parts.len() {
        let found = pass::run(model, &[Member { learner, drawn: &drawn, part }])?;
        if let Some(Found { loss, .. }) = found.iter().find(|found| !found.loss.is_finite()) {
            return Err(TrainError::Diverged { step: learner.step(), loss: f64::from(*loss) }.into());
        }
    }
    Ok(())
}

fn every(steps: u64, step: u64) -> bool {
    steps > 0 && step.is_multiple_of(steps)
}
