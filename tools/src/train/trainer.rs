//! The course of training: batches, steps, validations, checkpoints.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::checkpoint::{self, Course, State};
use super::data::{Batch, Example};
use super::learned::Learned;
use super::network::Network;
use super::optimizer::{AdamW, Moments, clip, rate};
use super::random::{generator, shuffle};
use super::recipe::Train;
use super::watch::{Step, Validation, Watch};

/// The purposes of random numbers, see [`generator`]; epochs count up from the last.
pub(super) const FOR_VALUES: u64 = 0;
pub(super) const FOR_SPLIT: u64 = 1;
const FOR_EPOCHS: u64 = 2;

/// How long no checkpoint may be written.
const SAVE_EVERY: Duration = Duration::from_secs(180);

/// The most lines that a message names.
const MAX_LINES: usize = 16;

/// What is trained on what.
pub(super) struct Trainer<'a> {
    pub network: &'a Network,
    pub learned: &'a Learned,
    pub training: &'a [Example],
    pub validation: &'a [Example],
    pub train: &'a Train,
    /// At its highest.
    pub learning_rate: f64,
    pub optimizer: &'a AdamW,
    pub pool: &'a rayon::ThreadPool,
    /// Where the state is kept, at each validation and every few minutes.
    pub checkpoint: &'a Path,
    /// What tells this training from others, see [`checkpoint::save`].
    pub fingerprint: &'a str,
    /// Where it says so, training stops after the parts of a step that are under way.
    pub watch: &'a dyn Watch,
}

/// How training ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum End {
    Finished,
    /// The validation got no better.
    Early,
    Stopped,
}

/// How training ended, and how fast it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub end: End,
    pub pace: Pace,
}

/// What the steps of a run took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// That went through the network.
    n_tokens: usize,
    n_steps: u32,
    time: Duration,
}

impl Pace {
    fn add(&mut self, n_tokens: usize, time: Duration) {
        self.n_tokens += n_tokens;
        self.n_steps += 1;
        self.time += time;
    }

    /// 0 where there was no step.
    pub(super) fn tokens_per_second(&self) -> f64 {
        match self.n_steps {
            0 => 0.0,
            _ => self.n_tokens as f64 / self.time.as_secs_f64(),
        }
    }

    /// The mean time of a step.
    fn a_step(&self) -> Duration {
        self.time / self.n_steps.max(1)
    }
}

impl Trainer<'_> {
    /// Steps of the whole training.
    pub(super) fn n_steps(&self) -> usize {
        let n = self.training.len() as f64 / self.train.batch as f64;
        let by_epochs = (self.train.epochs * n).ceil().max(1.0) as usize;
        self.train.steps.unwrap_or(by_epochs)
    }

    /// The state before the first step.
    pub(super) fn start(&self) -> Result<State> {
        let values = self.learned.values()?;
        Ok(State {
            moments: Moments::zeros(&values),
            values,
            best: None,
            course: Course::default(),
        })
    }

    /// Trains from a state on; what is learned is left in it.
    pub(super) fn run(&self, state: &mut State) -> Result<Ended> {
        let n_steps = self.n_steps();
        let mut pace = Pace::default();
        self.watch.begin(state.course.losses.len(), n_steps);
        let n_warmup = (self.train.warmup * n_steps as f64).ceil() as usize;
        let mut order = Order::new(self.train.seed, self.training.len());
        self.learned.set(&state.values)?;
        let n_before = state.course.losses.len();
        let mut end = End::Finished;
        let mut saved = Instant::now();
        if state.course.losses.is_empty() && state.course.validations.is_empty() {
            // What it is without: training that only makes it worse leaves it at that.
            self.validate(state)?;
        }
        while state.course.losses.len() < n_steps {
            if self.is_stopped() {
                end = End::Stopped;
                break;
            }
            if state.course.n_worse >= self.train.patience {
                end = End::Early;
                break;
            }
            let step = state.course.losses.len();
            let first = step * self.train.batch;
            let examples: Vec<&Example> = (first..first + self.train.batch)
                .map(|i| &self.training[order.get(i)])
                .collect();
            let rate = rate(self.learning_rate, step, n_warmup, n_steps);
            let began = Instant::now();
            let Some(loss) = self.step(state, step, rate, &examples)? else {
                continue; // stopped in the middle of it
            };
            state.course.losses.push(loss);
            let n_done = step + 1;
            let n_tokens = examples.iter().map(|e| e.tokens.len()).sum();
            pace.add(n_tokens, began.elapsed());
            self.watch.step(&Step {
                n_done,
                n_steps,
                loss,
                tokens_per_second: pace.tokens_per_second(),
                left: pace.a_step().saturating_mul((n_steps - n_done) as u32),
            });
            if n_done.is_multiple_of(self.train.validate_every) || n_done == n_steps {
                self.validate(state)?;
                self.save(state)?;
                saved = Instant::now();
            } else if saved.elapsed() > SAVE_EVERY {
                self.save(state)?;
                saved = Instant::now();
            }
        }
        if end == End::Stopped && state.course.losses.len() > n_before {
            self.save(state)?;
        }
        self.learned
            .set(state.best.as_ref().unwrap_or(&state.values))?;
        Ok(Ended { end, pace })
    }

    fn save(&self, state: &State) -> Result<()> {
        let names = self.learned.names();
        checkpoint::save(self.checkpoint, &names, self.fingerprint, state)
    }

    fn is_stopped(&self) -> bool {
        self.watch.is_stopped()
    }

    /// One step of the optimizer; returns the loss a token. `None`, and nothing done, where it was stopped.
    fn step(
        &self,
        state: &mut State,
        step: usize,
        rate: f64,
        examples: &[&Example],
    ) -> Result<Option<f32>> {
        let (loss, mut gradients) = self.gradients(examples)?;
        if self.is_stopped() {
            return Ok(None);
        }
        let n_targets: usize = examples.iter().map(|e| e.n_targets()).sum();
        let loss = (loss / n_targets as f64) as f32;
        let scale = 1.0 / n_targets as f32;
        gradients.iter_mut().flatten().for_each(|g| *g *= scale);
        let norm = clip(&mut gradients, self.train.clip);
        ensure!(
            loss.is_finite() && norm.is_finite(),
            "the loss is no finite number any more in step {} ({}): try a lower learning rate; \
             nothing was written",
            step + 1,
            lines(examples)
        );
        let State {
            values, moments, ..
        } = state;
        self.optimizer
            .step(step + 1, rate, values, &gradients, moments);
        self.learned.set(values)?;
        Ok(Some(loss))
    }

    /// The loss of some examples, added up, and its gradients. The result does not depend on how
    /// many threads there are. It is worth nothing where training was stopped meanwhile.
    pub(super) fn gradients(&self, examples: &[&Example]) -> Result<(f64, Vec<Vec<f32>>)> {
        let part = |examples: &Vec<&Example>| -> candle_core::Result<(f64, Vec<Vec<f32>>)> {
            if self.is_stopped() {
                return Ok((0.0, Vec::new()));
            }
            let loss = self
                .network
                .loss(self.learned, &Batch::new(examples.iter().copied())?)?;
            let gradients = loss.backward()?;
            let of_var = |var: &candle_core::Var| match gradients.get(var) {
                Some(gradient) => gradient.flatten_all()?.to_vec1(),
                None => Ok(vec![0.0; var.elem_count()]),
            };
            let gradients = self.learned.vars().iter().map(of_var);
            let gradients = gradients.collect::<candle_core::Result<_>>()?;
            Ok((f64::from(loss.to_scalar::<f32>()?), gradients))
        };
        let parts = balanced(examples, self.train.micro_batch);
        let parts: candle_core::Result<Vec<_>> =
            self.pool.install(|| parts.par_iter().map(part).collect());
        let mut parts = parts?.into_iter();
        let (mut loss, mut sum) = parts.next().unwrap_or_default();
        for (part_loss, gradients) in parts {
            loss += part_loss;
            let pairs = sum.iter_mut().flatten().zip(gradients.iter().flatten());
            pairs.for_each(|(sum, g)| *sum += g);
        }
        Ok((loss, sum))
    }

    /// Measures the loss on the examples held out, and keeps what is learned where that is best.
    fn validate(&self, state: &mut State) -> Result<()> {
        let n_done = state.course.losses.len();
        let recent = &state.course.losses[n_done.saturating_sub(self.train.validate_every)..];
        let mean = recent.iter().sum::<f32>() / recent.len() as f32;
        let mut validation = Validation {
            n_done,
            training_loss: (!recent.is_empty()).then_some(mean),
            loss: None,
            is_best: false,
        };
        if self.validation.is_empty() {
            if n_done > 0 {
                self.watch.validated(&validation);
            }
            return Ok(());
        }
        let loss = self.loss(self.validation)?;
        if self.is_stopped() {
            return Ok(());
        }
        ensure!(
            loss.is_finite(),
            "the validation's loss is no finite number any more in step {n_done}: try a lower \
             learning rate; nothing was written"
        );
        let is_best = state.course.best().is_none_or(|(_, best)| loss < best);
        state.course.validations.push((n_done, loss));
        if is_best {
            state.best = Some(state.values.clone());
            state.course.n_worse = 0;
        } else {
            state.course.n_worse += 1;
        }
        validation.loss = Some(loss);
        validation.is_best = is_best;
        self.watch.validated(&validation);
        Ok(())
    }

    /// The loss a token; worth nothing where training was stopped meanwhile.
    fn loss(&self, examples: &[Example]) -> Result<f32> {
        let n_done = AtomicUsize::new(0);
        let examples: Vec<&Example> = examples.iter().collect();
        let loss_of = |part: &Vec<&Example>| -> candle_core::Result<f64> {
            if self.is_stopped() {
                return Ok(0.0);
            }
            let batch = Batch::new(part.iter().copied())?;
            let loss = self.network.loss(self.learned, &batch)?;
            let n_before = n_done.fetch_add(part.len(), Ordering::Relaxed);
            self.watch.validating(n_before + part.len(), examples.len());
            Ok(f64::from(loss.to_scalar::<f32>()?))
        };
        let parts = balanced(&examples, self.train.micro_batch);
        let losses: candle_core::Result<Vec<f64>> = self
            .pool
            .install(|| parts.par_iter().map(loss_of).collect());
        let n_targets: usize = examples.iter().map(|e| e.n_targets()).sum();
        Ok((losses?.iter().sum::<f64>() / n_targets as f64) as f32)
    }
}

/// Examples in parts of at most `size`, each of about as many tokens.
fn balanced<'e>(examples: &[&'e Example], size: usize) -> Vec<Vec<&'e Example>> {
    let mut parts = vec![Vec::new(); examples.len().div_ceil(size)];
    let mut sorted = examples.to_vec();
    sorted.sort_by_key(|e| std::cmp::Reverse((e.tokens.len(), e.line)));
    let n = parts.len();
    // There and back: the part that got the longest of a round gets the shortest of the next.
    for (i, example) in sorted.into_iter().enumerate() {
        let place = match i / n % 2 {
            0 => i % n,
            _ => n - 1 - i % n,
        };
        parts[place].push(example);
    }
    parts
}

/// The order of examples, another in each epoch.
struct Order {
    seed: u64,
    epoch: usize,
    order: Vec<usize>,
}

impl Order {
    fn new(seed: u64, n: usize) -> Order {
        let mut order = Order {
            seed,
            epoch: 0,
            order: (0..n).collect(),
        };
        order.begin(0);
        order
    }

    fn begin(&mut self, epoch: usize) {
        self.epoch = epoch;
        self.order.sort_unstable();
        let mut random = generator(self.seed, FOR_EPOCHS + epoch as u64);
        shuffle(&mut random, &mut self.order);
    }

    /// The example at place `i` of all epochs, one after the other.
    fn get(&mut self, i: usize) -> usize {
        let epoch = i / self.order.len();
        if epoch != self.epoch {
            self.begin(epoch);
        }
        self.order[i % self.order.len()]
    }
}

/// Where examples stand in their file, for messages.
fn lines(examples: &[&Example]) -> String {
    let mut lines: Vec<usize> = examples.iter().map(|e| e.line).collect();
    lines.sort_unstable();
    let named: Vec<String> = lines.iter().take(MAX_LINES).map(usize::to_string).collect();
    let more = if lines.len() > MAX_LINES { ", ..." } else { "" };
    format!("lines {}{more} of the data", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_example_in_another_order() {
        let mut order = Order::new(3, 10);
        let epochs: Vec<Vec<usize>> = (0..3)
            .map(|e| (e * 10..e * 10 + 10).map(|i| order.get(i)).collect())
            .collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
        // Going on in the middle is the same as having come there.
        assert_eq!(Order::new(3, 10).get(25), epochs[2][5]);
    }

    #[test]
    fn parts_are_balanced() {
        let example = |n: usize| Example {
            line: n,
            tokens: vec![0; n],
            n_prompt: 1,
        };
        let examples: Vec<Example> = [9, 2, 8, 3, 7, 4].map(example).into();
        let examples: Vec<&Example> = examples.iter().collect();
        let parts = balanced(&examples, 3);
        let sums: Vec<usize> = parts
            .iter()
            .map(|p| p.iter().map(|e| e.line).sum())
            .collect();
        assert_eq!((sums.len(), sums[0] + sums[1]), (2, 33));
        assert!(sums[0].abs_diff(sums[1]) <= 3 && parts.iter().all(|p| p.len() == 3));
        assert_eq!(balanced(&examples, 4).len(), 2);
    }
}
