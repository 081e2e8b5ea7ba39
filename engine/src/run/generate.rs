//! The generation loop.

use alloc::string::String;
use alloc::vec::Vec;
#[cfg(feature = "std")]
use std::time::{Duration, Instant};

use super::sampler::{Sampler, Sampling};
use super::session::Session;
use super::stop::StopStrings;
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

/// An answer as it is generated: an iterator of its text, in whole characters. What is not asked for is
/// not computed.
///
/// It evaluates the prompt when the first piece is asked for, or piece by piece in
/// [`Generation::prefill`], then picks tokens. It stops at an end-of-text token, after
/// [`Sampling::max_tokens`], before one of [`Sampling::stop`], and when the context is full.
#[derive(Debug)]
pub struct Generation<'s> {
    session: &'s mut Session,
    sampler: Sampler,
    decoder: StreamDecoder,
    stop_strings: StopStrings,
    n_prompt: usize,
    /// What of the prompt is left to evaluate.
    rest: Vec<u32>,
    tokens: Vec<u32>,
    max_tokens: usize,
    stop_reason: Option<StopReason>,
    /// Which of the stop strings it was.
    stopped_by: Option<usize>,
    #[cfg(feature = "std")]
    clock: Clock,
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
        let rest = session.keep_prefix(prompt).to_vec();
        Generation {
            session,
            sampler,
            decoder,
            stop_strings: StopStrings::new(&sampling.stop),
            n_prompt: prompt.len(),
            rest,
            tokens: Vec::new(),
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
        if self.stop_reason.is_none() && self.rest.len() > n_batch {
            match self.session.feed(&self.rest[..n_batch]) {
                Ok(()) => drop(self.rest.drain(..n_batch)),
                Err(SessionError::Interrupted) => self.cancel(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.rest.len())
    }

    /// Tokens of the prompt.
    pub fn n_prompt(&self) -> usize {
        self.n_prompt
    }

    /// Tokens of the prompt that are still to be evaluated.
    pub fn n_left(&self) -> usize {
        self.rest.len()
    }

    /// The tokens generated so far, one that ends the text included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
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
        while self.rest.len() > n_batch && self.stop_reason.is_none() {
            self.prefill()?;
        }
        if self.stop_reason.is_some() {
            return Ok(None);
        }
        let logits = match self.tokens.last() {
            None => self.session.eval(&self.rest),
            Some(_) if self.session.is_full() => {
                self.stop_reason = Some(StopReason::ContextFull);
                return Ok(None);
            }
            Some(token) => self.session.step(*token),
        };
        let logits = match logits {
            Ok(logits) => logits,
            Err(SessionError::Interrupted) => {
                self.stop_reason = Some(StopReason::Cancelled);
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        self.rest.clear();
        if self.max_tokens == 0 {
            self.stop_reason = Some(StopReason::MaxTokens);
            return Ok(None);
        }
        let token = self.sampler.pick(logits);
        self.sampler.accept_all(&[token]);
        self.tokens.push(token);
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
