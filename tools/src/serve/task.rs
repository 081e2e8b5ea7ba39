//! What the threads of the clients and of the model tell each other: tasks and events.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tandem_engine::constraint::Framed;
use tandem_engine::{Composition, MAX_SPANS, Sampling, Snapshot};
use tokio::sync::mpsc;

use super::cache::Group;
use super::error::ApiError;
use super::line::Place;
use super::logprobs::Logprob;
use super::metrics::TokenCounts;
use super::output::Form;
use crate::calls::Delta;

/// Events that a client may be behind, and how many must have room for its answers to go on: a round makes
/// four of each answer at most.
pub(super) const MAX_EVENTS: usize = 512;
pub(super) const EVENTS_A_ROUND: usize = 4 * MAX_SPANS;

/// One choice that a request asks for.
pub(super) struct Task {
    pub choice: usize,
    /// Of its model's tokens.
    pub counts: Arc<TokenCounts>,
    pub composition: Option<Composition>,
    pub prompt: Arc<[u32]>,
    pub sampling: Sampling,
    /// Added to the logits of tokens before anything else; the ids are in the vocabulary.
    pub logit_bias: Arc<[Bias]>,
    /// How many tokens are told with their probabilities beside the one picked.
    pub logprobs: Option<usize>,
    /// Whether the prompt's own are told.
    pub prompt_logprobs: bool,
    pub form: Form,
    /// What the answer must be, where anything was asked for.
    pub grammar: Option<Arc<Framed>>,
    /// The tokens that end answers.
    pub ends: Arc<[u32]>,
    /// How a call of a tool goes on where the model begins one.
    pub calls: Option<Arc<Calls>>,
    pub group: Group,
    /// Whether the cache is used, and what was evaluated goes there.
    pub keep: bool,
    /// Where in the prompt others are likely to go on from, for models that cannot go back.
    pub boundary: Option<usize>,
    pub events: mpsc::Sender<Event>,
    /// Other choices of the same prompt, which begin when it has been read.
    pub followers: Vec<Task>,
    pub asked_at: Instant,
    /// The request's among those that wait or are at work; the first of its tasks has it.
    pub place: Option<Place>,
}

/// A token and what is added to its logit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bias {
    pub token: u32,
    pub value: f32,
}

/// How calls of tools are written.
pub(super) struct Calls {
    /// The mark itself, where it is a part of the JSON.
    pub json_mark: String,
    /// Whether white space may follow the mark that the grammar does not have.
    pub skips_space: bool,
    /// What follows the mark.
    pub call: Framed,
    /// Whether another may follow.
    pub several: bool,
}

/// What a client is told.
#[derive(Debug)]
pub(super) enum Event {
    /// An answer begins; so many tokens of the prompt were known.
    Begin(Begin),
    Progress(Progress),
    End(End),
    /// A request cannot be answered any more.
    Failed(ApiError),
}

#[derive(Debug)]
pub(super) struct Begin {
    pub choice: usize,
    pub n_cached: usize,
    /// Of the prompt's tokens, where they are told; the first has none.
    pub prompt_logprobs: Vec<Logprob>,
}

#[derive(Debug)]
pub(super) struct Progress {
    pub choice: usize,
    pub deltas: Vec<Delta>,
    pub logprobs: Vec<Logprob>,
}

#[derive(Debug)]
pub(super) struct End {
    pub choice: usize,
    pub reason: FinishReason,
    pub n_generated: usize,
    pub prompt_time: Duration,
    pub decode_time: Duration,
}

/// Why an answer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FinishReason {
    Stop,
    Length,
    ToolCalls,
}

/// What comes to the model's thread.
pub(super) enum Message {
    Task(Box<Task>),
    /// No new answers may begin: those that wait are refused.
    Ending,
    /// Answers at work are broken off.
    BreakOff,
    /// What a file had of a group; without a snapshot where no more will come.
    Loaded {
        group: Group,
        snapshot: Option<Snapshot>,
    },
    /// Nobody is there any more.
    End,
}

pub(super) type Inbox = Receiver<Message>;
