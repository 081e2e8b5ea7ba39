//! The thread that owns the model: it evaluates what all answers at work need in passes that they share.
//!
//! A round takes in new requests, drops those whose clients have left, and runs one pass: a token of every
//! answer that is being written, and beside them pieces of prompts, the shortest first, so many rows that nobody
//! waits long for it. An answer alone guesses its next tokens, as the command does. What a sequence gets is to
//! the bit what it would get alone, so that a text depends on its request only.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tandem_engine::adapters::ContentId;
use tandem_engine::{MAX_DRAFT, Model, Sequence, SessionError, SessionOptions, Span, Worker};

use super::cache::{PrefixCache, n_common};
use super::catalog::content_id;
use super::error::ApiError;
use super::metrics::Metrics;
use super::pace::{LONE_PASS, Pace, SHARED_PASS};
use super::slot::{Ending, Slot};
use super::store::{Store, Wanted};
use super::task::{Event, Inbox, Message, Task};

/// Rows of a prompt whose logits are all wanted.
const LOGIT_ROWS: usize = 32;
/// How long nobody asks before what is cached is written to files.
const QUIET: Duration = Duration::from_secs(5);
/// Fewer common tokens than these are computed anew sooner than copied.
const MIN_COPY: usize = 16;

/// Rows that a slot takes part in a pass with.
#[derive(Clone, Copy)]
struct Plan {
    slot: usize,
    n_rows: usize,
}

pub(super) struct Scheduler {
    model: Model,
    worker: Worker,
    options: SessionOptions,
    inbox: Inbox,
    queue: VecDeque<Task>,
    /// Those that wait for files.
    parked: Vec<Task>,
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
            cache: PrefixCache::new(limits.cache_bytes, model.config().is_recurrent()),
            model,
            worker,
            options,
            inbox,
            queue: VecDeque::new(),
            parked: Vec::new(),
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
        if let Some(store) = self.store {
            // All of it, whatever is being written.
            let changed = self
                .cache
                .is_changed()
                .then(|| self.cache.entries().to_vec());
            store.close(changed);
        }
    }

    /// Has what is cached written to the store, if there is one.
    fn save(&mut self) {
        if let Some(store) = self.store.as_mut().filter(|_| self.cache.is_changed()) {
            if store.is_busy() {
                return;
            }
            store.save(self.cache.entries().to_vec());
            // What failed once is not tried again until there is something new.
            self.cache.saved();
        }
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
            Message::Loaded { group, snapshot } => {
                let store = self.store.as_mut();
                let is_first = store.is_some_and(|store| store.came(group, snapshot.is_none()));
                match snapshot {
                    Some(snapshot) if is_first => self.cache.insert(group, snapshot),
                    Some(snapshot) => self.cache.insert_oldest(group, snapshot),
                    None => {}
                }
                // They came before all that wait now.
                let waiting = self.parked.extract_if(.., |task| task.group == group);
                let waiting: Vec<_> = waiting.collect();
                for task in waiting.into_iter().rev() {
                    self.queue.push_front(task);
                }
            }
            Message::Ending => {
                let parked = std::mem::take(&mut self.parked);
                let waiting = std::mem::take(&mut self.queue).into_iter().chain(parked);
                for task in waiting {
                    // Further choices of requests that have begun are at work, too.
                    match task.place {
                        None => self.queue.push_back(task),
                        Some(_) => {
                            let refusal = Event::Failed(ApiError::shutting_down());
                            let _ = task.events.try_send(refusal);
                        }
                    }
                }
            }
            Message::BreakOff => {
                let parked = std::mem::take(&mut self.parked);
                for task in self.queue.drain(..).chain(parked) {
                    let _ = task
                        .events
                        .try_send(Event::Failed(ApiError::shutting_down()));
                }
                for slot in &mut self.slots {
                    slot.end = Some(Ending::Failed(ApiError::shutting_down()));
                }
            }
            Message::End => return false,
        }
        true
    }

    fn drop_gone(&mut self) {
        let n_waiting = self.n_waiting();
        self.queue.retain(|task| !task.events.is_closed());
        self.parked.retain(|task| !task.events.is_closed());
        let n_gone = (n_waiting - self.n_waiting()) as u64;
        self.metrics.cancelled.fetch_add(n_gone, Relaxed);
        for slot in &mut self.slots {
            if slot.task.events.is_closed() {
                slot.end = Some(Ending::Gone);
            }
        }
        self.drop_ended();
    }

    fn n_waiting(&self) -> usize {
        self.queue.len() + self.parked.len()
    }

    fn start_waiting(&mut self) {
        while self.slots.len() < self.n_parallel
            && let Some(task) = self.queue.pop_front()
        {
            if task.keep
                && let Some(store) = &mut self.store
                && store.must_wait(Wanted {
                    group: task.group,
                    composition: task.composition.clone(),
                    prompt: Arc::clone(&task.prompt),
                })
            {
                self.parked.push(task);
                continue;
            }
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
        let vocab = self.model.tokenizer().map(|tokenizer| tokenizer.vocab());
        let vocab = vocab.map_err(|_| SessionError::Options {
            reason: "the model has no vocabulary",
        })?;
        let boundaries = self.boundaries(&task, sequence.tokens().len());
        let mut slot = Slot::new(task, sequence, vocab);
        slot.boundaries = boundaries;
        self.metrics.add_cached(&slot.task.counts, slot.n_cached);
        Ok(slot)
    }

    /// Lets a sequence that is empty go on from one that has a part of the prompt: one of the cache, or one
    /// at work. Where there is none it stays empty.
    fn go_on_from_known(&mut self, task: &Task, sequence: &mut Sequence) {
        if task.prompt_logprobs {
            return;
        }
        let is_recurrent = self.model.config().is_recurrent();
        // Choices of one request share its prompt, whatever it says of the cache.
        let at_work = self.slots.iter().filter(|slot| {
            let is_same_request = slot.task.events.same_channel(&task.events);
            slot.task.group == task.group && (is_same_request || (slot.task.keep && task.keep))
        });
        let at_work = at_work
            .map(|slot| (n_common(slot.sequence.tokens(), &task.prompt), slot))
            .filter(|(n, slot)| !is_recurrent || *n == slot.sequence.tokens().len())
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

    /// Where in a prompt of which `n_known` tokens are evaluated others may go on from: where it leaves what was
    /// asked before, and where the request says so. Models that go back anywhere need no such places.
    fn boundaries(&self, task: &Task, n_known: usize) -> Vec<usize> {
        if !task.keep || !self.model.config().is_recurrent() {
            return Vec::new();
        }
        let branch = self.cache.longest_common(task.group, &task.prompt);
        let mut boundaries = vec![branch];
        boundaries.extend(task.boundary);
        boundaries.retain(|at| *at > n_known && *at < task.prompt.len());
        boundaries.sort_unstable();
        boundaries.dedup();
        boundaries
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
            plan.n_rows = plan.n_rows.min(left).min(most).min(slot.n_to_boundary());
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
                self.metrics.add_prompt(&slot.task.counts, plan.n_rows);
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
        let n_done = slot.sequence.tokens().len();
        if slot.boundaries.first() == Some(&n_done) {
            slot.boundaries.remove(0);
            self.cache.put(slot.task.group, &slot.sequence);
        }
        if slot.n_left() > 0 {
            return;
        }
        if !slot.began {
            slot.begin();
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
                Some(Ending::Finished(reason)) => slot.tell_end(reason),
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
        metrics.deferred.store(self.n_waiting() as i64, Relaxed);
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
