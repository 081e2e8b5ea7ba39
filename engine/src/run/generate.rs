//! The generation loop.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
#[cfg(feature = "std")]
use std::time::{Duration, Instant};

use super::draft::{DraftCounts, Drafts, MAX_DRAFT};
use super::sampler::{Sampler, Sampling};
use super::session::Session;
use super::stop::StopStrings;
use crate::buffer::zeroed;
use crate::tokenizer::{ControlTokens, StreamDecoder};
use crate::{Error, Prompt, SessionError};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The model said that the text ends.
    EndOfText,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The caller stopped it.
    Cancelled,
    /// One of [`Sampling::stop`] was next.
    StopString,
    /// Nothing more could follow, see [`TokenFilter`].
    Complete,
}

impl StopReason {
    /// The reason in one word, as `--json` gives it.
    pub fn name(self) -> &'static str {
        match self {
            StopReason::EndOfText => "end_of_text",
            StopReason::MaxTokens => "max_tokens",
            StopReason::ContextFull => "context_full",
            StopReason::Cancelled => "cancelled",
            StopReason::StopString => "stop_string",
            StopReason::Complete => "complete",
        }
    }
}

/// What a generation took.
#[cfg(feature = "std")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timings {
    /// From the start to the first token.
    pub prompt: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// What holds an answer to a form, a schema for example, token by token.
pub trait TokenFilter {
    /// Makes the logits, `[n_vocab]`, of tokens that cannot be next minus infinity. False where nothing can
    /// follow: then the answer is complete.
    ///
    /// # Errors
    ///
    /// Why the form cannot be followed any more.
    fn restrict(&mut self, logits: &mut [f32]) -> Result<bool, String>;

    /// Notes the token that was picked.
    ///
    /// # Errors
    ///
    /// As [`TokenFilter::restrict`].
    fn accept(&mut self, token: u32) -> Result<(), String>;
}

/// Picks tokens, of those that a filter lets through.
struct Picker {
    sampler: Sampler,
    filter: Option<Box<dyn TokenFilter + Send>>,
}

impl Picker {
    /// The next token; `None` where nothing can follow.
    fn pick(&mut self, logits: &mut [f32]) -> Result<Option<u32>, SessionError> {
        let failed = |reason| SessionError::Filter { reason };
        if let Some(filter) = &mut self.filter
            && !filter.restrict(logits).map_err(failed)?
        {
            return Ok(None);
        }
        let token = self.sampler.pick(logits);
        if let Some(filter) = &mut self.filter {
            filter.accept(token).map_err(failed)?;
        }
        Ok(Some(token))
    }
}

impl core::fmt::Debug for Picker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.sampler.fmt(f)
    }
}

/// An answer as it is generated: an iterator of its text, in whole characters. What is not asked for is
/// not computed.
///
/// It evaluates the prompt when the first piece is asked for, or piece by piece in
/// [`Generation::prefill`], then picks tokens. It stops at an end-of-text token, after
/// [`Sampling::max_tokens`], before one of [`Sampling::stop`], and when the context is full.
#[derive(Debug)]
pub struct Generation<'s> {
    session: &'s mut Session,
    picker: Picker,
    decoder: StreamDecoder,
    stop_strings: StopStrings,
    n_prompt: usize,
    tokens: Vec<u32>,
    drafts: Drafts,
    pass: Pass,
    max_tokens: usize,
    stop_reason: Option<StopReason>,
    /// Which of the stop strings it was.
    stopped_by: Option<usize>,
    #[cfg(feature = "std")]
    clock: Clock,
}

/// The last pass: its guesses, and the logits of its rows that are still to be looked at.
#[derive(Debug, Default)]
struct Pass {
    /// What the rows after the first were evaluated for.
    draft: Vec<u32>,
    /// Of the rows, `[1 + draft.len(), n_vocab]`.
    logits: Vec<f32>,
    /// How many of the guesses have come.
    n_accepted: usize,
}

impl Pass {
    /// Makes room for the logits of the last token and the guesses; where there is none, there are no guesses.
    fn reserve(&mut self, n_vocab: usize) {
        let n_floats = (1 + self.draft.len()) * n_vocab;
        if self.draft.is_empty() || n_floats <= self.logits.len() {
            return;
        }
        match zeroed(n_floats) {
            Ok(logits) => self.logits = logits,
            Err(_) => self.draft.clear(),
        }
    }

    /// Evaluates `last` and the guesses after it.
    fn evaluate(&mut self, session: &mut Session, last: u32) -> Result<(), SessionError> {
        let n_rows = 1 + self.draft.len();
        let n_floats = n_rows * session.model().config().n_vocab;
        self.n_accepted = 0;
        let mut tokens = [0; 1 + MAX_DRAFT];
        tokens[0] = last;
        tokens[1..n_rows].copy_from_slice(&self.draft);
        session.eval_few(&tokens[..n_rows], &mut self.logits[..n_floats])
    }

    /// The logits after the guess that came last, `[n_vocab]`.
    fn next_row(&mut self, n_vocab: usize) -> Option<&mut [f32]> {
        match self.draft.is_empty() {
            true => None,
            false => Some(&mut self.logits[self.n_accepted * n_vocab..][..n_vocab]),
        }
    }
}

/// Seconds since it was made, where there is a clock.
struct Stopwatch {
    #[cfg(feature = "std")]
    start: Instant,
}

impl Stopwatch {
    fn start() -> Stopwatch {
        Stopwatch {
            #[cfg(feature = "std")]
            start: Instant::now(),
        }
    }

    #[cfg(feature = "std")]
    fn seconds(&self) -> Option<f32> {
        Some(self.start.elapsed().as_secs_f32())
    }

    #[cfg(not(feature = "std"))]
    fn seconds(&self) -> Option<f32> {
        None
    }
}

/// When what happened.
#[cfg(feature = "std")]
#[derive(Debug)]
struct Clock {
    start: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Session {
    /// Answers a prompt: an iterator of the answer's text. What of the prompt is the same as what was
    /// evaluated before, as the conversation so far is, is not evaluated again.
    ///
    /// ```no_run
    /// # use tandem_engine::{Model, Sampling};
    /// # let model = Model::open("model.gguf")?;
    /// # let mut session = model.session().build()?;
    /// let mut answer = session.generate("Why is the sky blue?", &Sampling::default())?;
    /// for piece in &mut answer {
    ///     print!("{}", piece?);
    /// }
    /// println!("\n{} tokens", answer.tokens().len());
    /// # Ok::<(), tandem_engine::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// A prompt that has no tokens, more than the context or ids outside the vocabulary, that the
    /// vocabulary cannot express or that the chat template refuses; a model without a vocabulary. Then
    /// the session stays as it was.
    pub fn generate<'p>(
        &mut self,
        prompt: impl Into<Prompt<'p>>,
        sampling: &Sampling,
    ) -> Result<Generation<'_>, Error> {
        let ids = self.prompt_ids(prompt)?;
        let vocab = self.model().tokenizer()?.vocab();
        let decoder = vocab.stream_continuation(ControlTokens::Hide);
        if ids.is_empty() {
            return Err(SessionError::Empty.into());
        }
        if ids.len() > self.n_ctx() {
            return Err(SessionError::PromptTooLong {
                n_prompt: ids.len(),
                n_ctx: self.n_ctx(),
            }
            .into());
        }
        self.check_ids(&ids)?;
        Ok(Generation::new(self, decoder, &ids, sampling))
    }
}

impl<'s> Generation<'s> {
    /// Goes on from what of `prompt` the session has already.
    fn new(
        session: &'s mut Session,
        decoder: StreamDecoder,
        prompt: &[u32],
        sampling: &Sampling,
    ) -> Generation<'s> {
        let mut sampler = Sampler::new(sampling.clone(), session.model().config().n_vocab);
        sampler.accept_all(prompt);
        session.keep_prefix(prompt);
        Generation {
            session,
            picker: Picker {
                sampler,
                filter: None,
            },
            decoder,
            stop_strings: StopStrings::new(&sampling.stop),
            n_prompt: prompt.len(),
            tokens: Vec::new(),
            drafts: Drafts::new(prompt, sampling.max_draft),
            pass: Pass::default(),
            max_tokens: sampling.max_tokens,
            stop_reason: None,
            stopped_by: None,
            #[cfg(feature = "std")]
            clock: Clock {
                start: Instant::now(),
                first: None,
                last: None,
            },
        }
    }

    /// Evaluates the prompt's next piece, but for the last one, and returns how many of its tokens are
    /// left then. To tell how far it is, or to stop in between, call this until it returns the same
    /// twice; [`Iterator::next`] does what is left.
    ///
    /// # Errors
    ///
    /// Those of [`Session::eval`].
    pub fn prefill(&mut self) -> Result<usize, Error> {
        let n_batch = self.session.n_batch();
        if self.stop_reason.is_none() && self.n_left() > n_batch {
            let n_done = self.session.tokens().len();
            match self.session.feed(&self.drafts.text()[n_done..][..n_batch]) {
                Ok(()) => {}
                Err(SessionError::Interrupted) => self.cancel(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.n_left())
    }

    /// Holds the answer to a form from here on.
    pub fn set_filter(&mut self, filter: Box<dyn TokenFilter + Send>) {
        self.picker.filter = Some(filter);
    }

    /// The session that it is generated in.
    pub fn session(&self) -> &Session {
        self.session
    }

    /// Tokens of the prompt.
    pub fn n_prompt(&self) -> usize {
        self.n_prompt
    }

    /// Tokens of the prompt that are still to be evaluated.
    pub fn n_left(&self) -> usize {
        let n_done = self.session.tokens().len();
        self.n_prompt.saturating_sub(n_done)
    }

    /// The tokens generated so far, one that ends the text included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many tokens were guessed ahead so far, see [`Sampling::max_draft`].
    pub fn draft_counts(&self) -> DraftCounts {
        self.drafts.counts()
    }

    /// Why it ended; `None` while it goes on.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop_reason
    }

    /// The stop string that ended it, if one did.
    pub fn stop_string(&self) -> Option<&str> {
        self.stop_strings.get(self.stopped_by?)
    }

    fn stop_by(&mut self, stop_string: Option<usize>) {
        if stop_string.is_some() {
            self.stop_reason = Some(StopReason::StopString);
            self.stopped_by = stop_string;
        }
    }

    /// Ends it: no more tokens are picked.
    pub fn cancel(&mut self) {
        self.stop_reason.get_or_insert(StopReason::Cancelled);
    }

    /// What it took so far.
    #[cfg(feature = "std")]
    pub fn timings(&self) -> Timings {
        let Clock { start, first, last } = self.clock;
        let first = first.unwrap_or_else(Instant::now);
        Timings {
            prompt: first - start,
            decode: last.map_or(Duration::ZERO, |last| last - first),
        }
    }

    /// Picks the next token; none where the generation has ended.
    ///
    /// # Errors
    ///
    /// Those of [`Session::eval`].
    pub fn next_token(&mut self) -> Result<Option<u32>, Error> {
        let n_batch = self.session.n_batch();
        while self.tokens.is_empty() && self.n_left() > n_batch && self.stop_reason.is_none() {
            self.prefill()?;
        }
        if self.stop_reason.is_some() {
            return Ok(None);
        }
        let n_vocab = self.session.model().config().n_vocab;
        let picked = match self.pass.next_row(n_vocab) {
            Some(logits) => self.picker.pick(logits),
            None => self.evaluate_next(),
        };
        let token = match picked {
            Ok(Some(token)) => token,
            Ok(None) => {
                self.stop_reason.get_or_insert(StopReason::Complete);
                return Ok(None);
            }
            Err(SessionError::Interrupted) => {
                self.stop_reason = Some(StopReason::Cancelled);
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        self.picker.sampler.accept_all(&[token]);
        self.tokens.push(token);
        self.drafts.push(token);
        self.check_draft(token);
        #[cfg(feature = "std")]
        {
            let now = Instant::now();
            self.clock.first.get_or_insert(now);
            self.clock.last = Some(now);
        }
        if self.decoder.vocab().is_end_of_generation(token) {
            self.stop_reason = Some(StopReason::EndOfText);
        } else if self.tokens.len() == self.max_tokens {
            self.stop_reason = Some(StopReason::MaxTokens);
        }
        Ok(Some(token))
    }

    /// Evaluates the last token, or what is left of the prompt, with guesses beside it where that pays, and
    /// picks the next one. Where there is none it notes why.
    fn evaluate_next(&mut self) -> Result<Option<u32>, SessionError> {
        let (text, n_done) = (self.drafts.text(), self.session.tokens().len());
        if text.len() > self.session.n_ctx() {
            self.stop_reason = Some(StopReason::ContextFull);
            return Ok(None);
        }
        let last = match &text[n_done..] {
            [last] if !self.tokens.is_empty() => *last,
            // The prompt's end, or what a delta net had to forget with guesses that failed.
            several => {
                let logits = self.session.eval(several)?;
                if self.max_tokens == 0 {
                    self.stop_reason = Some(StopReason::MaxTokens);
                    return Ok(None);
                }
                return self.picker.pick(logits);
            }
        };
        // The token after the last guess is picked, too.
        let n_free = self.session.n_ctx() - n_done;
        let most = (self.max_tokens - self.tokens.len()).min(n_free);
        let room = most.min(self.session.n_batch()) - 1;
        let n_vocab = self.session.model().config().n_vocab;
        self.drafts.guess(room, &mut self.pass.draft);
        self.pass.reserve(n_vocab);
        let n_rows = 1 + self.pass.draft.len();
        let clock = Stopwatch::start();
        if n_rows == 1 {
            let logits = self.session.step(last)?;
            self.drafts.note_pass(1, clock.seconds());
            return self.picker.pick(logits);
        }
        match self.pass.evaluate(self.session, last) {
            Ok(()) => {}
            Err(SessionError::Interrupted) => {
                self.pass.draft.clear();
                return Err(SessionError::Interrupted);
            }
            // What failed may be the guesses': nothing was evaluated, and the token goes alone.
            Err(_) => {
                self.pass.draft.clear();
                return self.picker.pick(self.session.step(last)?);
            }
        }
        self.drafts.note_pass(n_rows, clock.seconds());
        self.picker.pick(&mut self.pass.logits[..n_vocab])
    }

    /// Compares the token just picked with its guess, if there is one; ends the pass where that failed, or
    /// was the last.
    fn check_draft(&mut self, token: u32) {
        if self.pass.draft.get(self.pass.n_accepted) == Some(&token) {
            self.pass.n_accepted += 1;
        } else {
            self.end_pass();
        }
    }

    /// Forgets what was evaluated for guesses that did not come.
    fn end_pass(&mut self) {
        if self.pass.draft.is_empty() {
            return;
        }
        self.drafts
            .note_outcome(self.pass.n_accepted, self.pass.draft.len());
        self.pass.draft.clear();
        let n = self.n_prompt + self.tokens.len() - 1;
        if self.session.tokens().len() > n {
            // Recurrent layers may go back farther; what is missing is evaluated with the next token.
            self.session.rewind(n);
        }
    }

    /// The text that becomes whole by the next tokens; `None` at the end.
    fn next_piece(&mut self) -> Result<Option<String>, Error> {
        while let Some(token) = self.next_token()? {
            let released = self.stop_strings.push(self.decoder.push(token)?);
            self.stop_by(released.stopped_by);
            if !released.text.is_empty() {
                return Ok(Some(released.text));
            }
        }
        // Of a text that somebody broke off nothing more is wanted.
        if let Some(StopReason::Cancelled | StopReason::StopString) = self.stop_reason {
            return Ok(None);
        }
        let released = self.stop_strings.push(self.decoder.finish());
        let mut rest = released.text;
        match released.stopped_by {
            Some(_) => self.stop_by(released.stopped_by),
            None => rest.push_str(&self.stop_strings.finish()),
        }
        Ok(Some(rest).filter(|rest| !rest.is_empty()))
    }
}

impl Drop for Generation<'_> {
    /// The session has what was evaluated of the text, and no guesses.
    fn drop(&mut self) {
        self.end_pass();
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<String, Error>;

    /// The next piece of text, never empty. After an error there is no more.
    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.next_piece();
        if piece.is_err() {
            self.cancel();
        }
        piece.transpose()
    }
}
