//! An answer at work: what it has evaluated, and how its tokens are picked and told.

use std::time::{Duration, Instant};

use hyper::StatusCode;
use tandem_engine::constraint::Constraint;
use tandem_engine::tokenizer::Vocab;
use tandem_engine::{Drafts, Model, Sampler, Sequence, TokenFilter as _};

use super::error::ApiError;
use super::logprobs::{Logprob, logprob};
use super::metrics::Metrics;
use super::output::{Output, Pushed};
use super::task::{Begin, Bias, EVENTS_A_ROUND, End, Event, FinishReason, Progress, Task};
use crate::calls::Delta;

/// How long an answer pauses for a client that does not read before it is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer at work.
pub(super) struct Slot {
    pub task: Task,
    /// What the rest of the answer must be.
    constraint: Option<Constraint>,
    pub sequence: Sequence,
    sampler: Sampler,
    output: Output,
    /// The prompt and what was generated.
    pub text: Vec<u32>,
    /// Tokens of the prompt that were known.
    pub n_cached: usize,
    /// Logits after the last rows of the last pass, `[n, n_vocab]`.
    pub logits: Vec<f32>,
    pub drafts: Drafts,
    /// Numbers of the prompt's tokens after which what was evaluated is kept, ascending.
    pub boundaries: Vec<usize>,
    /// The text's last token and guesses of what follows, where a pass evaluates such; else nothing.
    pub ahead: Vec<u32>,
    pub prompt_logprobs: Vec<Logprob>,
    /// Of tokens whose text is not out yet.
    logprobs: Vec<Logprob>,
    /// The answer writes a call of a tool.
    in_call: bool,
    pub began: bool,
    started_at: Instant,
    first_at: Option<Instant>,
    /// Since when its client does not read.
    paused_at: Option<Instant>,
    pub end: Option<Ending>,
}

pub(super) enum Ending {
    Finished(FinishReason),
    Failed(ApiError),
    /// Its client has left.
    Gone,
}

impl Slot {
    /// A task at work, on a sequence that has a part of its prompt.
    pub(super) fn new(task: Task, sequence: Sequence, vocab: &Vocab) -> Slot {
        let mut sampler = Sampler::new(task.sampling.clone(), vocab.n_tokens());
        sampler.accept_all(&task.prompt);
        Slot {
            sampler,
            constraint: task.grammar.as_ref().map(|grammar| grammar.constraint()),
            drafts: Drafts::new(&task.prompt, task.sampling.max_draft),
            output: Output::new(vocab, &task.form),
            in_call: task.form.is_call,
            text: task.prompt.to_vec(),
            n_cached: sequence.tokens().len(),
            task,
            sequence,
            logits: Vec::new(),
            boundaries: Vec::new(),
            ahead: Vec::new(),
            prompt_logprobs: Vec::new(),
            logprobs: Vec::new(),
            began: false,
            started_at: Instant::now(),
            first_at: None,
            paused_at: None,
            end: None,
        }
    }

    /// Tokens of its text that are still to be evaluated.
    pub(super) fn n_left(&self) -> usize {
        let n_done = self.sequence.tokens().len();
        self.text.len().saturating_sub(n_done)
    }

    /// Tokens until the next place where what was evaluated is kept.
    pub(super) fn n_to_boundary(&self) -> usize {
        let n_done = self.sequence.tokens().len();
        self.boundaries
            .first()
            .map_or(usize::MAX, |at| at.saturating_sub(n_done))
    }

    /// Tokens of its answer.
    pub(super) fn n_generated(&self) -> usize {
        self.text.len() - self.task.prompt.len()
    }

    /// Whether its client is too far behind to go on.
    pub(super) fn is_paused(&mut self) -> bool {
        if self.task.events.capacity() > EVENTS_A_ROUND {
            self.paused_at = None;
            return false;
        }
        let since = *self.paused_at.get_or_insert_with(Instant::now);
        if since.elapsed() > PATIENCE {
            self.end = Some(Ending::Gone);
        }
        true
    }

    /// Tells its client something.
    pub(super) fn send(&self, event: Event) {
        // Who has left is found at the next round; who is behind has room left for this.
        let _ = self.task.events.try_send(event);
    }

    /// Tells that the prompt was read.
    pub(super) fn begin(&mut self) {
        self.began = true;
        let prompt_logprobs = std::mem::take(&mut self.prompt_logprobs);
        self.send(Event::Begin(Begin {
            choice: self.task.choice,
            n_cached: self.n_cached,
            prompt_logprobs,
        }));
    }

    /// Notes the probabilities of the prompt's tokens that follow the last rows.
    pub(super) fn note_prompt(&mut self, n_rows: usize, n_vocab: usize) {
        let first = self.sequence.tokens().len() - n_rows;
        let n_top = self.task.logprobs.unwrap_or(0);
        for (i, logits) in self.logits.chunks_exact_mut(n_vocab).enumerate() {
            if let Some(next) = self.task.prompt.get(first + i + 1) {
                add_bias(&self.task.logit_bias, logits);
                self.prompt_logprobs.push(logprob(logits, *next, n_top));
            }
        }
        let n_over = self.logits.len().saturating_sub(n_vocab);
        self.logits.drain(..n_over);
    }

    /// Guesses what follows the text, where a single token is to be evaluated next; `most` rows in all.
    pub(super) fn guess(&mut self, most: usize) {
        self.ahead.clear();
        let is_writing = self.n_left() == 1 && self.n_generated() > 0;
        if !is_writing || self.n_generated() >= self.task.sampling.max_tokens {
            return;
        }
        // The token after the last guess is picked, too, and all of them have their places.
        let n_wanted = self.task.sampling.max_tokens - self.n_generated();
        let room = n_wanted.min(most) - 1;
        self.drafts.guess(room, &mut self.ahead);
        if let Some(last) = self.text.last()
            && !self.ahead.is_empty()
        {
            self.ahead.insert(0, *last);
        }
    }

    /// Picks the next token, and those after it as long as they are as guessed.
    pub(super) fn pick_all(&mut self, model: &Model, metrics: &Metrics) {
        let n_vocab = model.config().n_vocab;
        let ahead = std::mem::take(&mut self.ahead);
        let logits = std::mem::take(&mut self.logits);
        let mut n_accepted = 0;
        for (row, logits) in logits.chunks_exact(n_vocab).enumerate() {
            self.logits.clear();
            self.logits.extend_from_slice(logits);
            if !self.pick(model, metrics) || self.end.is_some() {
                break;
            }
            match ahead.get(row + 1) {
                Some(guess) if self.text.last() == Some(guess) => n_accepted += 1,
                _ => break,
            }
        }
        if !ahead.is_empty() {
            self.drafts.note_outcome(n_accepted, ahead.len() - 1);
            // What was evaluated for guesses that did not come. Recurrent layers may go back farther; what is
            // missing then is evaluated with the next token.
            self.sequence.rewind(self.text.len() - 1);
        }
    }

    /// Picks the next token, and tells what became known by it; false where there is none.
    fn pick(&mut self, model: &Model, metrics: &Metrics) -> bool {
        if self.task.sampling.max_tokens == 0 {
            self.end = Some(Ending::Finished(FinishReason::Length));
            return false;
        }
        let token = match self.next_token() {
            Ok(Some(token)) => token,
            // What was asked for is complete.
            Ok(None) => {
                self.complete();
                return false;
            }
            Err(error) => {
                self.fail(&error);
                return false;
            }
        };
        self.text.push(token);
        self.drafts.push(token);
        self.sampler.accept_all(&[token]);
        metrics.add_predicted(&self.task.counts);
        let now = Instant::now();
        if self.first_at.is_none() {
            self.first_at = Some(now);
            metrics.add_first_token(now - self.task.asked_at);
        }
        let vocab = model.tokenizer().map(|tokenizer| tokenizer.vocab());
        if vocab.is_ok_and(|vocab| vocab.is_end_of_generation(token)) {
            self.logprobs.pop();
            self.complete();
            return true;
        }
        let Ok(mut pushed) = self.output.push(token) else {
            self.end = Some(Ending::Failed(ApiError::internal()));
            return true;
        };
        if let Some(text) = pushed.call.take() {
            self.begin_call(&text, &mut pushed);
        }
        let is_stopped = pushed.is_stopped;
        self.tell(pushed.deltas);
        if is_stopped {
            self.end = Some(Ending::Finished(self.reason()));
        } else if self.n_generated() >= self.task.sampling.max_tokens {
            self.end = Some(Ending::Finished(FinishReason::Length));
        }
        true
    }

    fn next_token(&mut self) -> Result<Option<u32>, String> {
        add_bias(&self.task.logit_bias, &mut self.logits);
        let raw = self.task.logprobs.map(|n| (n, self.logits.clone()));
        if self.constraint.is_some() && self.output.is_thinking() {
            // Thoughts are free, but must lead to what was asked for.
            for end in &*self.task.ends {
                if let Some(logit) = self.logits.get_mut(*end as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let mut constraint = self.constraint.as_mut();
        constraint = constraint.filter(|_| !self.output.is_thinking());
        // Thoughts may come before what was asked for.
        let think = self
            .task
            .form
            .think_token
            .filter(|_| self.output.may_think());
        let think_logit = think.and_then(|id| self.logits.get(id as usize).copied());
        if let Some(constraint) = &mut constraint
            && !constraint.restrict(&mut self.logits)?
        {
            return Ok(None);
        }
        if let (Some(id), Some(logit)) = (think, think_logit) {
            self.logits[id as usize] = logit;
        }
        if !self.logits.iter().any(|logit| *logit > f32::NEG_INFINITY) {
            return Err("logit_bias forbids all that may be next".to_string());
        }
        let token = self.sampler.pick(&mut self.logits);
        if let Some(constraint) = constraint.filter(|_| think != Some(token)) {
            constraint.accept(token)?;
        }
        if let Some((n, raw)) = raw {
            self.logprobs.push(logprob(&raw, token, n));
        }
        Ok(Some(token))
    }

    /// The model began a call: from here on it follows the tools' grammar, unless what it wrote already does
    /// not.
    fn begin_call(&mut self, text: &str, pushed: &mut Pushed) {
        let Some(calls) = self.task.calls.clone() else {
            return self.output.no_call(text, pushed);
        };
        // White space before JSON is nothing.
        let text_after = if calls.skips_space {
            text.trim_start()
        } else {
            text
        };
        let written = format!("{}{text_after}", calls.json_mark);
        let Some(constraint) = calls.call.go_on_from(&written) else {
            return self.output.no_call(text, pushed);
        };
        self.constraint = Some(constraint);
        self.in_call = true;
        self.output.begin_call(&written, pushed);
    }

    /// Nothing more can follow: of the call that is being written, or of all.
    fn complete(&mut self) {
        if !self.in_call {
            self.end = Some(Ending::Finished(self.reason()));
            return;
        }
        self.in_call = false;
        let deltas = self.output.end_call();
        self.tell(deltas);
        self.constraint = None;
        let goes_on = self.task.calls.as_ref().is_some_and(|calls| calls.several);
        if !goes_on || self.n_generated() >= self.task.sampling.max_tokens {
            self.end = Some(Ending::Finished(self.reason()));
            return;
        }
        // The last token's logits were spoiled: it is evaluated once more.
        self.sequence.rewind(self.text.len() - 1);
    }

    fn reason(&self) -> FinishReason {
        match self.output.n_calls() {
            0 => FinishReason::Stop,
            _ => FinishReason::ToolCalls,
        }
    }

    fn fail(&mut self, reason: &str) {
        let message = format!("the answer cannot be held to what was asked for: {reason}");
        let error = ApiError::new(StatusCode::BAD_REQUEST, message).code("schema_too_complex");
        self.end = Some(Ending::Failed(error));
    }

    /// Tells what became known; probabilities go with the text of their tokens.
    fn tell(&mut self, deltas: Vec<Delta>) {
        if deltas.is_empty() {
            return;
        }
        let logprobs = std::mem::take(&mut self.logprobs);
        self.send(Event::Progress(Progress {
            choice: self.task.choice,
            deltas,
            logprobs,
        }));
    }

    /// Tells what was held back, and that the answer is over.
    pub(super) fn tell_end(&mut self, reason: FinishReason) {
        let deltas = self.output.finish();
        let logprobs = std::mem::take(&mut self.logprobs);
        if !deltas.is_empty() || !logprobs.is_empty() {
            self.send(Event::Progress(Progress {
                choice: self.task.choice,
                deltas,
                logprobs,
            }));
        }
        let now = Instant::now();
        let first = self.first_at.unwrap_or(now);
        self.send(Event::End(End {
            choice: self.task.choice,
            reason,
            n_generated: self.n_generated(),
            prompt_time: first - self.started_at,
            decode_time: now - first,
        }));
    }
}

/// The bias that forbids a token, and the one that forces it.
const FORBIDS: f32 = -100.0;
const FORCES: f32 = 100.0;
/// What forces a token: more than logits differ by.
const FORCE: f32 = 1e5;

fn add_bias(bias: &[Bias], logits: &mut [f32]) {
    for Bias { token, value } in bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            match *value {
                value if value <= FORBIDS => *logit = f32::NEG_INFINITY,
                value if value >= FORCES => *logit += FORCE,
                value => *logit += value,
            }
        }
    }
}
