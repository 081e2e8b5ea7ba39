//! Who follows a training.

use std::time::Duration;

/// Is told how a training goes, from any of its threads, and may stop it.
pub trait Watch: Sync {
    /// Something that whoever trains should know.
    fn note(&self, line: &str);

    /// The first step comes after `n_done` of `n_steps`.
    fn begin(&self, n_done: usize, n_steps: usize);

    /// A step has been taken.
    fn step(&self, step: &Step);

    /// Of the examples held out, `n_done` of `n_examples` have been evaluated.
    fn validating(&self, n_done: usize, n_examples: usize);

    /// All of them have been.
    fn validated(&self, validation: &Validation);

    /// Whether to stop; what is best so far is kept, and the state to go on from.
    fn is_stopped(&self) -> bool;
}

/// A step of training.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Steps behind it, this one included.
    pub n_done: usize,
    /// Steps of the whole training.
    pub n_steps: usize,
    /// Of this step's examples, a token.
    pub loss: f32,
    /// Of the steps of this run.
    pub tokens_per_second: f64,
    /// What the other steps will take if they take as long as these.
    pub left: Duration,
}

/// What the examples held out say.
#[derive(Clone, Copy, Debug)]
pub struct Validation {
    /// Steps behind it.
    pub n_done: usize,
    /// The mean loss of the steps since the one before, a token; none before the first step.
    pub training_loss: Option<f32>,
    /// Of the examples held out, a token; none where there are no such.
    pub loss: Option<f32>,
    /// Whether no loss before was as low.
    pub is_best: bool,
}
