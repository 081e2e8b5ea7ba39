//! The thread that owns the model: it evaluates what all answers at work need in passes that they share.
//!
//! A round takes in new requests, drops those whose clients have left, and runs one pass: a token of every
//! answer that is being written, and beside them pieces of prompts, the shortest first, so many rows that nobody
//! waits long for it. An answer alone guesses its next tokens, as the command does. What a sequence gets is to the bit what it would get alone, so that a text depends on
//! its request only.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use tandem_engine::adapters::ContentId;
use tandem_engine::{
    Composition, Drafts, MAX_DRAFT, MAX_SPANS, Model, Sampler, Sampling, Sequence, SessionError,
    SessionOptions, Span, TokenFilter as _, Worker,
};
use tokio::sync::mpsc;

use super::cache::{Group, PrefixCache, n_common};
use super::catalog::content_id;
use super::error::ApiError;
use super::metrics::Metrics;
use super::output::{Delta, Form, Output, Pushed};
use super::store::Store;
use crate::constraint::{Constraint, Grammar, Step};

/// Events that a client may be behind, and how many must have room for its answers to go on: a round makes
/// four of each answer at most.
pub(super) const MAX_EVENTS: usize = 512;
const EVENTS_A_ROUND: usize = 4 * MAX_SPANS;
/// How long an answer pauses for a client that does not read before it is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a pass may take beside an answer that is being written, and beside none.
const SHARED_PASS: Duration = Duration::from_millis(100);
const LONE_PASS: Duration = Duration::from_millis(200);
/// The fewest rows of a pass, where that many are wanted.
const MIN_ROWS: usize = 16;
/// Rows of a prompt whose logits are all wanted.
const LOGIT_ROWS: usize = 32;
/// How long nobody asks before what is cached is written to files.
const QUIET: Duration = Duration::from_secs(5);
/// Fewer common tokens than these are computed anew sooner than copied.
const MIN_COPY: usize = 16;

/// One choice that a request asks for.
pub(super) struct Task {
    pub choice: usize,
    /// Its model's place in the catalog.
    pub model: usize,
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
    pub constraint: Option<Constraint>,
    /// The tokens that end answers.
    pub ends: Arc<[u32]>,
    /// How a call of a tool goes on where the model begins one.
    pub calls: Option<Arc<Calls>>,
    pub group: Group,
    /// Whether the cache is used, and what was evaluated goes there.
    pub keep: bool,
    pub events: mpsc::Sender<Event>,
    /// Other choices of the same prompt, which begin when it has been read.
    pub followers: Vec<Task>,
    pub asked_at: Instant,
    /// Counts the request among those that wait or are at work; the first of its tasks has it.
    pub counted: Option<Counted>,
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
    /// What follows the mark, before the JSON.
    pub after_mark: Vec<u32>,
    pub grammar: Grammar,
    pub end: Vec<u32>,
    /// Whether another may follow.
    pub several: bool,
}

/// Counts a request until it is dropped.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// `None` where there are `most` already.
    pub(super) fn new(count: &Arc<AtomicUsize>, most: usize) -> Option<Counted> {
        let more = |n: usize| (n < most).then_some(n + 1);
        let counted = count.fetch_update(Relaxed, Relaxed, more);
        counted.ok().map(|_| Counted(Arc::clone(count)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
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
    pub reason: Reason,
    pub n_generated: usize,
    pub prompt_time: Duration,
    pub decode_time: Duration,
}

/// Why an answer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Stop,
    Length,
    ToolCalls,
}

/// A token with the natural logarithm of its probability, and the most likely ones.
#[derive(Clone, Debug)]
pub(super) struct Logprob {
    pub token: u32,
    pub logprob: f32,
    pub top: Vec<(u32, f32)>,
}

/// What comes to the model's thread.
pub(super) enum Message {
    Task(Box<Task>),
    /// No new answers may begin: those that wait are refused.
    Ending,
    /// Nobody is there any more.
    End,
}

pub(super) type Inbox = Receiver<Message>;

/// An answer at work.
struct Slot {
    task: Task,
    sequence: Sequence,
    sampler: Sampler,
    output: Output,
    /// The prompt and what was generated.
    text: Vec<u32>,
    /// Tokens of the prompt that were known.
    n_cached: usize,
    /// Logits after the last rows of the last pass, `[n, n_vocab]`.
    logits: Vec<f32>,
    drafts: Drafts,
    /// The text's last token and guesses of what follows, where a pass evaluates such; else nothing.
    ahead: Vec<u32>,
    prompt_logprobs: Vec<Logprob>,
    /// Of tokens whose text is not out yet.
    logprobs: Vec<Logprob>,
    /// The answer writes a call of a tool.
    in_call: bool,
    began: bool,
    started_at: Instant,
    first_at: Option<Instant>,
    /// Since when its client does not read.
    paused_at: Option<Instant>,
    end: Option<Ending>,
}

enum Ending {
    Reason(Reason),
    Failed(ApiError),
    /// Its client has left.
    Gone,
}

impl Slot {
    fn n_left(&self) -> usize {
        let n_done = self.sequence.tokens().len();
        self.text.len().saturating_sub(n_done)
    }

    fn n_generated(&self) -> usize {
        self.text.len() - self.task.prompt.len()
    }

    /// Whether its client is too far behind to go on.
    fn is_paused(&mut self) -> bool {
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

    fn send(&self, event: Event) {
        // Who has left is found at the next round; who is behind has room left for this.
        let _ = self.task.events.try_send(event);
    }
}

/// Rows that a slot takes part in a pass with.
#[derive(Clone, Copy)]
struct Plan {
    slot: usize,
    n_rows: usize,
}

/// How long passes take, as measured last.
#[derive(Debug, Default)]
struct Pace {
    /// Seconds of a pass without prompts; 0 before there was one.
    writing: f64,
    /// Seconds that a prompt's row adds; 0 before there was one.
    row: f64,
}

impl Pace {
    fn note(&mut self, n_writing: usize, n_prompt: usize, seconds: f64) {
        if n_prompt == 0 && n_writing > 0 {
            self.writing = seconds;
        } else if n_prompt >= MIN_ROWS {
            // All weights are read for a token as they are for many rows, which computing hides where they are
            // many enough: no more than half is taken for that.
            let added = (seconds - self.writing).max(seconds / 2.0);
            self.row = added / n_prompt as f64;
        }
    }

    /// The rows of prompts that a pass may have which is to take so much longer for them.
    fn rows_in(&self, limit: Duration) -> usize {
        if self.row == 0.0 {
            return 2 * MIN_ROWS;
        }
        let n = (limit.as_secs_f64() / self.row) as usize;
        // Whole tiles are best.
        (n / MIN_ROWS * MIN_ROWS).max(MIN_ROWS)
    }
}

pub(super) struct Scheduler {
    model: Model,
    worker: Worker,
    options: SessionOptions,
    inbox: Inbox,
    queue: VecDeque<Task>,
    slots: Vec<Slot>,
    n_parallel: usize,
    /// Sequences that no answer uses.
    spare: Vec<Sequence>,
    cache: PrefixCache,
    /// Where the cache outlives the server.
    store: Option<Store>,
    metrics: Arc<Metrics>,
    pace: Pace,
    last_composition: Option<ContentId>,
}

impl Scheduler {
    pub(super) fn new(
        worker: Worker,
        options: SessionOptions,
        limits: Limits,
        inbox: Inbox,
        metrics: Arc<Metrics>,
    ) -> Scheduler {
        let model = worker.model().clone();
        Scheduler {
            cache: PrefixCache::new(limits.cache_bytes),
            model,
            worker,
            options,
            inbox,
            queue: VecDeque::new(),
            store: None,
            spare: Vec::new(),
            slots: Vec::new(),
            n_parallel: limits.n_parallel,
            metrics,
            pace: Pace::default(),
            last_composition: None,
        }
    }

    /// Keeps what was evaluated in files, too.
    pub(super) fn keep_in(&mut self, store: Store) {
        self.store = Some(store);
    }

    /// Answers until nobody can ask any more.
    pub(super) fn run(mut self) {
        while self.take_in() {
            self.drop_gone();
            self.start_waiting();
            self.round();
            self.drop_ended();
            self.tell_gauges();
        }
        self.save();
    }

    /// Writes what is cached to the store, if there is one.
    fn save(&mut self) {
        let Some(store) = self.store.as_ref().filter(|_| self.cache.is_changed()) else {
            return;
        };
        if let Err(error) = store.save(&self.cache) {
            tell!("warning: what was evaluated is not kept: {error:#}");
        }
        // What failed once is not tried again until there is something new.
        self.cache.saved();
    }

    /// Takes in new requests, waiting for one where there is nothing to do; false where there will be none.
    fn take_in(&mut self) -> bool {
        if self.slots.is_empty() && self.queue.is_empty() {
            let quiet = match self.store.is_some() && self.cache.is_changed() {
                true => QUIET,
                false => Duration::MAX,
            };
            match self.inbox.recv_timeout(quiet) {
                Ok(message) => {
                    if !self.take(message) {
                        return false;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.save(),
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        let all_paused = self.slots.iter_mut().all(|slot| slot.is_paused());
        if !self.slots.is_empty() && all_paused {
            // Their clients read nothing; others may come.
            match self.inbox.recv_timeout(Duration::from_millis(20)) {
                Ok(message) => {
                    if !self.take(message) {
                        return false;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(message) => {
                    if !self.take(message) {
                        return false;
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Takes a message; false where it is the last.
    fn take(&mut self, message: Message) -> bool {
        match message {
            Message::Task(task) => self.queue.push_back(*task),
            Message::Ending => {
                let waiting = std::mem::take(&mut self.queue).into_iter();
                for task in waiting {
                    // Further choices of requests that have begun are at work, too.
                    match task.counted {
                        None => self.queue.push_back(task),
                        Some(_) => {
                            let refusal = Event::Failed(ApiError::shutting_down());
                            let _ = task.events.try_send(refusal);
                        }
                    }
                }
            }
            Message::End => return false,
        }
        true
    }

    fn drop_gone(&mut self) {
        let n_waiting = self.queue.len();
        self.queue.retain(|task| !task.events.is_closed());
        let n_gone = (n_waiting - self.queue.len()) as u64;
        self.metrics.cancelled.fetch_add(n_gone, Relaxed);
        for slot in &mut self.slots {
            if slot.task.events.is_closed() {
                slot.end = Some(Ending::Gone);
            }
        }
        self.drop_ended();
    }

    fn start_waiting(&mut self) {
        while self.slots.len() < self.n_parallel
            && let Some(task) = self.queue.pop_front()
        {
            let events = task.events.clone();
            match self.start(task) {
                Ok(slot) => self.slots.push(slot),
                Err(error) => {
                    tell!("error: an answer cannot begin: {error}");
                    let _ = events.try_send(Event::Failed(ApiError::internal()));
                }
            }
        }
        self.tell_gauges();
    }

    fn start(&mut self, task: Task) -> Result<Slot, SessionError> {
        let n_vocab = self.model.config().n_vocab;
        if let Some(composition) = &task.composition {
            self.worker.reserve(composition)?;
        }
        let mut sequence = match self.spare.pop() {
            Some(sequence) => sequence,
            None => Sequence::new(&self.model, &self.options)?,
        };
        sequence.set_composition(task.composition.as_ref())?;
        self.go_on_from_known(&task, &mut sequence);
        sequence.keep_prefix(&task.prompt);
        let n_cached = sequence.tokens().len();
        self.metrics.add_cached(task.model, n_cached);
        let mut sampler = Sampler::new(task.sampling.clone(), n_vocab);
        sampler.accept_all(&task.prompt);
        let drafts = Drafts::new(&task.prompt, task.sampling.max_draft);
        let vocab = self.model.tokenizer().map(|tokenizer| tokenizer.vocab());
        let vocab = vocab.map_err(|_| SessionError::Options {
            reason: "the model has no vocabulary",
        })?;
        Ok(Slot {
            output: Output::new(vocab, &task.form),
            in_call: task.form.is_call,
            text: task.prompt.to_vec(),
            task,
            sequence,
            sampler,
            n_cached,
            logits: Vec::new(),
            drafts,
            ahead: Vec::new(),
            prompt_logprobs: Vec::new(),
            logprobs: Vec::new(),
            began: false,
            started_at: Instant::now(),
            first_at: None,
            paused_at: None,
            end: None,
        })
    }

    /// Lets a sequence that is empty go on from one that has a part of the prompt: one of the cache, or one
    /// at work. Where there is none it stays empty.
    fn go_on_from_known(&mut self, task: &Task, sequence: &mut Sequence) {
        if task.prompt_logprobs {
            return;
        }
        if let Some(store) = self.store.as_mut().filter(|_| task.keep) {
            let was_changed = self.cache.is_changed();
            store.load(task.group, sequence, &mut self.cache);
            if !was_changed {
                self.cache.saved();
            }
        }
        // Choices of one request share its prompt, whatever it says of the cache.
        let at_work = self.slots.iter().filter(|slot| {
            let is_same_request = slot.task.events.same_channel(&task.events);
            slot.task.group == task.group && (is_same_request || (slot.task.keep && task.keep))
        });
        let at_work = at_work
            .map(|slot| (n_common(slot.sequence.tokens(), &task.prompt), slot))
            .max_by_key(|(n, _)| *n);
        let found = match task.keep {
            true => self.cache.find(task.group, &task.prompt),
            false => None,
        };
        let n_found = found.map_or(0, |found| found.n_common);
        let went_on = match (at_work, found) {
            (Some((n, slot)), _) if n >= MIN_COPY && n > n_found => {
                sequence.copy_from(&slot.sequence).is_ok()
            }
            (_, Some(found)) => self.cache.restore(found, sequence),
            _ => return,
        };
        if !went_on {
            sequence.rewind(0);
        }
    }

    /// The most rows of a pass.
    fn row_limit(&self, n_writing: usize, n_reading: usize) -> usize {
        let limit = match n_writing + n_reading {
            0 | 1 => LONE_PASS,
            _ => SHARED_PASS,
        };
        (n_writing + self.pace.rows_in(limit)).min(self.worker.n_batch())
    }

    /// Which slots take part in the next pass with how many rows.
    fn plan(&mut self) -> Vec<Plan> {
        let mut ready: Vec<Plan> = Vec::new();
        for (slot, at) in self.slots.iter_mut().zip(0..) {
            if slot.end.is_none() && !slot.is_paused() {
                ready.push(Plan {
                    slot: at,
                    n_rows: slot.n_left(),
                });
            }
        }
        let n_writing = ready.iter().filter(|plan| plan.n_rows == 1).count();
        let mut left = self.row_limit(n_writing, ready.len() - n_writing);
        ready.sort_by_key(|plan| plan.n_rows);
        for plan in &mut ready {
            let slot = &self.slots[plan.slot];
            let most = match slot.task.prompt_logprobs && slot.n_generated() == 0 {
                true => LOGIT_ROWS,
                false => usize::MAX,
            };
            plan.n_rows = plan.n_rows.min(left).min(most);
            left -= plan.n_rows;
        }
        ready.retain(|plan| plan.n_rows > 0);
        if let [plan] = &mut ready[..] {
            let n_batch = self.worker.n_batch();
            let slot = &mut self.slots[plan.slot];
            slot.guess(n_batch.min(self.options.n_ctx));
            plan.n_rows = plan.n_rows.max(slot.ahead.len());
        }
        ready
    }

    fn round(&mut self) {
        let mut plans = self.plan();
        if plans.is_empty() {
            return;
        }
        let start = Instant::now();
        if let Err(error) = self.forward(&plans) {
            // One of them is to blame: each goes alone.
            let all = std::mem::take(&mut plans);
            let alone = all.len() == 1;
            for mut plan in all {
                // It may be the guesses that cannot be evaluated.
                let ahead = std::mem::take(&mut self.slots[plan.slot].ahead);
                plan.n_rows -= ahead.len().saturating_sub(1);
                let failed = match alone && ahead.is_empty() {
                    true => Some(error.clone()),
                    false => self.forward(&[plan]).err(),
                };
                match failed {
                    None => plans.push(plan),
                    Some(error) => {
                        tell!("error: an answer is broken off: {error}");
                        self.slots[plan.slot].end = Some(Ending::Failed(ApiError::internal()));
                    }
                }
            }
        }
        self.note_pass(&plans, start.elapsed());
        for plan in &plans {
            self.look_at(*plan);
        }
    }

    /// Runs a pass. The logits that are wanted go to the slots.
    fn forward(&mut self, plans: &[Plan]) -> Result<(), SessionError> {
        let n_vocab = self.model.config().n_vocab;
        let mut spans = Vec::with_capacity(plans.len());
        for (i, slot) in self.slots.iter_mut().enumerate() {
            let Some(plan) = plans.iter().find(|plan| plan.slot == i) else {
                continue;
            };
            let Slot {
                task,
                sequence,
                text,
                ahead,
                logits,
                ..
            } = slot;
            let n_done = sequence.tokens().len();
            let is_prompt = text.len() == task.prompt.len();
            let n_wanted = match n_done + plan.n_rows < text.len() {
                _ if task.prompt_logprobs && is_prompt => plan.n_rows,
                true => 0,
                false => ahead.len().max(1),
            };
            logits.resize(n_wanted * n_vocab, 0.0);
            let tokens = match ahead.is_empty() {
                true => &text[n_done..n_done + plan.n_rows],
                false => &ahead[..],
            };
            spans.push(Span {
                sequence,
                tokens,
                logits,
            });
        }
        self.worker.forward(&mut spans)
    }

    fn note_pass(&mut self, plans: &[Plan], time: Duration) {
        let n_rows: usize = plans.iter().map(|plan| plan.n_rows).sum();
        let mut n_prompt = 0;
        for plan in plans {
            let slot = &self.slots[plan.slot];
            if slot.n_generated() == 0 {
                n_prompt += plan.n_rows;
                self.metrics.add_prompt(slot.task.model, plan.n_rows);
            }
            let composition = content_id(slot.task.composition.as_ref());
            if composition != self.last_composition {
                self.last_composition = composition;
                self.metrics.switches.fetch_add(1, Relaxed);
            }
        }
        if n_rows > 0 {
            self.metrics.add_time(time, n_prompt as f64 / n_rows as f64);
        }
        let seconds = time.as_secs_f64();
        self.pace.note(n_rows - n_prompt, n_prompt, seconds);
        if let [plan] = plans
            && n_prompt == 0
        {
            let drafts = &mut self.slots[plan.slot].drafts;
            drafts.note_pass(plan.n_rows.min(1 + MAX_DRAFT), Some(seconds as f32));
        }
    }

    /// Looks at what a pass gave a slot: picks its next token, where it has read its prompt.
    fn look_at(&mut self, plan: Plan) {
        let slot = &mut self.slots[plan.slot];
        if slot.task.prompt_logprobs && slot.n_generated() == 0 {
            slot.note_prompt(plan.n_rows, self.model.config().n_vocab);
        }
        if slot.n_left() > 0 {
            return;
        }
        if !slot.began {
            slot.began = true;
            let prompt_logprobs = std::mem::take(&mut slot.prompt_logprobs);
            slot.send(Event::Begin(Begin {
                choice: slot.task.choice,
                n_cached: slot.n_cached,
                prompt_logprobs,
            }));
            // In front of all others, in their order.
            for task in std::mem::take(&mut slot.task.followers).into_iter().rev() {
                self.queue.push_front(task);
            }
        }
        slot.pick_all(&self.model, &self.metrics);
    }

    /// Takes leave of the answers that are over.
    fn drop_ended(&mut self) {
        let mut i = 0;
        while i < self.slots.len() {
            if self.slots[i].end.is_none() {
                i += 1;
                continue;
            }
            let mut slot = self.slots.remove(i);
            match slot.end.take() {
                Some(Ending::Reason(reason)) => slot.tell_end(reason),
                Some(Ending::Failed(error)) => slot.send(Event::Failed(error)),
                Some(Ending::Gone) | None => {
                    self.metrics.cancelled.fetch_add(1, Relaxed);
                }
            }
            let mut sequence = slot.sequence;
            if slot.task.keep {
                self.cache.put(slot.task.group, &sequence);
            }
            sequence.rewind(0);
            self.spare.push(sequence);
        }
    }

    fn tell_gauges(&self) {
        let metrics = &self.metrics;
        metrics.processing.store(self.slots.len() as i64, Relaxed);
        metrics.deferred.store(self.queue.len() as i64, Relaxed);
        metrics
            .cache_bytes
            .store(self.cache.n_bytes() as u64, Relaxed);
        metrics
            .cache_tokens
            .store(self.cache.n_tokens() as u64, Relaxed);
    }
}

/// How much is done at once, and kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub n_parallel: usize,
    pub cache_bytes: usize,
}

impl Slot {
    /// Notes the probabilities of the prompt's tokens that follow the last rows.
    fn note_prompt(&mut self, n_rows: usize, n_vocab: usize) {
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
    fn guess(&mut self, most: usize) {
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
    fn pick_all(&mut self, model: &Model, metrics: &Metrics) {
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
            // What was evaluated for guesses that did not come. Delta nets may go back farther; what is
            // missing then is evaluated with the next token.
            self.sequence.rewind(self.text.len() - 1);
        }
    }

    /// Picks the next token, and tells what became known by it; false where there is none.
    fn pick(&mut self, model: &Model, metrics: &Metrics) -> bool {
        if self.task.sampling.max_tokens == 0 {
            self.end = Some(Ending::Reason(Reason::Length));
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
        metrics.add_predicted(self.task.model);
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
            self.end = Some(Ending::Reason(self.reason()));
        } else if self.n_generated() >= self.task.sampling.max_tokens {
            self.end = Some(Ending::Reason(Reason::Length));
        }
        true
    }

    fn next_token(&mut self) -> Result<Option<u32>, String> {
        add_bias(&self.task.logit_bias, &mut self.logits);
        let raw = self.task.logprobs.map(|n| (n, self.logits.clone()));
        if self.task.constraint.is_some() && self.output.is_thinking() {
            // Thoughts are free, but must lead to what was asked for.
            for end in &*self.task.ends {
                if let Some(logit) = self.logits.get_mut(*end as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let mut constraint = self.task.constraint.as_mut();
        constraint = constraint.filter(|_| !self.output.is_thinking());
        if let Some(constraint) = &mut constraint
            && !constraint.restrict(&mut self.logits)?
        {
            return Ok(None);
        }
        if !self.logits.iter().any(|logit| *logit > f32::NEG_INFINITY) {
            return Err("logit_bias forbids all that may be next".to_string());
        }
        let token = self.sampler.pick(&mut self.logits);
        if let Some(constraint) = constraint {
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
        let mut matcher = calls.grammar.begin();
        let json = format!("{}{text}", calls.json_mark);
        let written = json.trim_start();
        let mut steps = Vec::new();
        if written.is_empty() {
            if text.is_empty() {
                steps.push(Step::tokens(calls.after_mark.clone()));
            }
        } else {
            let tokens = matcher
                .tok_env()
                .map(|env| env.tokenize_bytes(written.as_bytes()));
            let taken = tokens.and_then(|tokens| matcher.consume_tokens(&tokens));
            if taken.is_err() {
                return self.output.no_call(text, pushed);
            }
        }
        steps.push(Step::Grammar(Box::new(matcher)));
        steps.push(Step::tokens(calls.end.clone()));
        self.task.constraint = Some(Constraint::new(steps));
        self.in_call = true;
        self.output.begin_call(written, pushed);
    }

    /// Nothing more can follow: of the call that is being written, or of all.
    fn complete(&mut self) {
        if !self.in_call {
            self.end = Some(Ending::Reason(self.reason()));
            return;
        }
        self.in_call = false;
        self.output.end_call();
        self.task.constraint = None;
        let goes_on = self.task.calls.as_ref().is_some_and(|calls| calls.several);
        if !goes_on || self.n_generated() >= self.task.sampling.max_tokens {
            self.end = Some(Ending::Reason(self.reason()));
        }
        // Else the last token's logits were spoiled: it is evaluated once more.
        else {
            let n_done = self.text.len() - 1;
            self.sequence.rewind(n_done);
        }
    }

    fn reason(&self) -> Reason {
        match self.output.n_calls() {
            0 => Reason::Stop,
            _ => Reason::ToolCalls,
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

    fn tell_end(&mut self, reason: Reason) {
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
pub(super) const FORBIDS: f32 = -100.0;
pub(super) const FORCES: f32 = 100.0;
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

/// The logarithm of a token's probability, with the `n_top` most likely ones.
fn logprob(logits: &[f32], token: u32, n_top: usize) -> Logprob {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - max).exp())
        .sum();
    let log_sum = f64::from(max) + sum.ln();
    // JSON has no infinity.
    let of = |logit: f32| ((f64::from(logit) - log_sum) as f32).max(-9999.0);
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let n_top = n_top.min(order.len());
    let falling = |a: &u32, b: &u32| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then(a.cmp(b))
    };
    if n_top > 0 && n_top < order.len() {
        order.select_nth_unstable_by(n_top - 1, falling);
    }
    order.truncate(n_top);
    order.sort_by(falling);
    Logprob {
        token,
        logprob: of(logits
            .get(token as usize)
            .copied()
            .unwrap_or(f32::NEG_INFINITY)),
        top: order
            .into_iter()
            .map(|id| (id, of(logits[id as usize])))
            .collect(),
    }
}
