//! From tokens to what a client reads: text, thoughts, calls of tools.

use std::sync::Arc;

use tandem_engine::StopStrings;
use tandem_engine::tokenizer::{ControlTokens, StreamDecoder, TokenizerError, Vocab};

use crate::calls::reader::{CallForm, CallReader};
use crate::calls::{Delta, END_THINK, THINK};

/// What is to be looked for in an answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Form {
    pub stop: Vec<String>,
    pub thinking: Thinking,
    /// The text that a call begins with, where the model may make one.
    pub call_mark: Option<String>,
    /// The token that is all of the mark, where it is one that no text shows.
    pub call_token: Option<u32>,
    /// How calls are read, where the model may make one.
    pub call_form: Option<Arc<CallForm>>,
    /// The answer is a call from its first token on.
    pub is_call: bool,
    /// The token that is all of the mark of thoughts, where there is one.
    pub think_token: Option<u32>,
}

/// Where thoughts stand in an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Thinking {
    /// Nowhere.
    #[default]
    Never,
    /// At its beginning, if it begins with the mark.
    Maybe,
    /// At its beginning: the mark is in the prompt.
    Begun,
}

/// Reads one answer.
#[derive(Debug)]
pub(super) struct Output {
    decoder: StreamDecoder,
    /// Shows control tokens, of which calls may be made.
    call_decoder: StreamDecoder,
    call_form: Arc<CallForm>,
    think_token: Option<u32>,
    stop: StopStrings,
    state: State,
    call_mark: Option<String>,
    call_token: Option<u32>,
    mark: StopStrings,
    n_calls: usize,
    /// Nothing of the answer's text came yet, or a call came last: white space is left out.
    skips_space: bool,
    is_stopped: bool,
}

#[derive(Debug)]
enum State {
    /// Held until it is known whether thoughts come.
    Undecided(String),
    Thinking(StopStrings),
    Text,
    Call(CallReader),
}

/// What a token did.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    pub deltas: Vec<Delta>,
    /// A stop string came: the answer is over.
    pub is_stopped: bool,
    /// A call began, with so much of its text.
    pub call: Option<String>,
}

impl Output {
    pub(super) fn new(vocab: &Vocab, form: &Form) -> Output {
        let call_form = form.call_form.clone().unwrap_or_default();
        let state = match (form.is_call, form.thinking) {
            (true, _) => State::Call(CallReader::new(&call_form)),
            (_, Thinking::Never) => State::Text,
            (_, Thinking::Maybe) => State::Undecided(String::new()),
            (_, Thinking::Begun) => State::Thinking(end_of_thoughts()),
        };
        let mark = form.call_mark.clone();
        Output {
            decoder: vocab.stream_continuation(ControlTokens::Hide),
            call_decoder: vocab.stream_continuation(ControlTokens::Show),
            call_form,
            think_token: form.think_token,
            stop: StopStrings::new(&form.stop),
            state,
            mark: StopStrings::new(mark.as_slice()),
            call_mark: mark,
            call_token: form.call_token,
            n_calls: 0,
            skips_space: false,
            is_stopped: false,
        }
    }

    /// Whether thoughts are being written.
    pub(super) fn is_thinking(&self) -> bool {
        matches!(self.state, State::Thinking(_))
    }

    /// Calls that are complete.
    pub(super) fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// Whether a call may begin here: in a text, or where nothing but white space came.
    fn is_before_text(&self) -> bool {
        match &self.state {
            State::Text => true,
            State::Undecided(held) => held.trim().is_empty(),
            State::Thinking(_) | State::Call(_) => false,
        }
    }

    /// Whether thoughts may begin with the next token.
    pub(super) fn may_think(&self) -> bool {
        matches!(&self.state, State::Undecided(held) if held.is_empty())
    }

    pub(super) fn push(&mut self, token: u32) -> Result<Pushed, TokenizerError> {
        let mut pushed = Pushed::default();
        if self.may_think() && self.think_token == Some(token) {
            self.state = State::Thinking(end_of_thoughts());
            return Ok(pushed);
        }
        let decoder = match self.state {
            State::Call(_) => &mut self.call_decoder,
            _ => &mut self.decoder,
        };
        let piece = decoder.push(token)?.to_string();
        self.take(piece, &mut pushed);
        let is_mark = self.call_token == Some(token) && self.is_before_text();
        if is_mark {
            self.state = State::Text;
        }
        if is_mark && !pushed.is_stopped {
            pushed.call = Some(String::new());
        }
        Ok(pushed)
    }

    /// A call that [`Pushed::call`] told of follows the grammar from here on.
    pub(super) fn begin_call(&mut self, text: &str, pushed: &mut Pushed) {
        let mut reader = CallReader::new(&self.call_form);
        reader.push(text, &mut pushed.deltas);
        self.state = State::Call(reader);
    }

    /// It was no call, but text.
    pub(super) fn no_call(&mut self, text: &str, pushed: &mut Pushed) {
        let mark = self.call_mark.clone().unwrap_or_default();
        self.give(mark + text, pushed);
    }

    /// The call is complete: what is told only then.
    pub(super) fn end_call(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if let State::Call(reader) = &mut self.state {
            reader.finish(&mut deltas);
            self.n_calls += usize::from(reader.is_told());
        }
        self.skips_space = true;
        self.state = State::Text;
        self.mark = StopStrings::new(self.call_mark.as_slice());
        deltas
    }

    fn take(&mut self, piece: String, pushed: &mut Pushed) {
        match &mut self.state {
            State::Undecided(held) => {
                held.push_str(&piece);
                let begun = held.trim_start();
                if THINK.starts_with(begun) && begun.len() < THINK.len() {
                    return;
                }
                let rest = begun.strip_prefix(THINK).map(str::to_string);
                let held = std::mem::take(held);
                self.state = match rest {
                    Some(_) => State::Thinking(end_of_thoughts()),
                    None => State::Text,
                };
                self.take(rest.unwrap_or(held), pushed);
            }
            State::Thinking(end) => {
                let released = end.push(&piece);
                if !released.text.is_empty() {
                    pushed.deltas.push(Delta::Reasoning(released.text));
                }
                if released.stopped_by.is_some() {
                    let rest = end.finish();
                    self.state = State::Text;
                    self.skips_space = true;
                    self.take(rest, pushed);
                }
            }
            State::Text => {
                if self.call_mark.is_none() {
                    return self.give(piece, pushed);
                }
                let released = self.mark.push(&piece);
                self.give(released.text, pushed);
                if released.stopped_by.is_some() && !pushed.is_stopped {
                    pushed.call = Some(self.mark.finish());
                }
            }
            State::Call(reader) => reader.push(&piece, &mut pushed.deltas),
        }
    }

    /// Text that is the answer's own, which stop strings are looked for in.
    fn give(&mut self, mut text: String, pushed: &mut Pushed) {
        if self.skips_space {
            text = text.trim_start().to_string();
            self.skips_space = text.is_empty();
        }
        let released = self.stop.push(&text);
        if !released.text.is_empty() {
            pushed.deltas.push(Delta::Text(released.text));
        }
        self.is_stopped |= released.stopped_by.is_some();
        pushed.is_stopped = self.is_stopped;
    }

    /// The answer is over: what was held back, and no stop string is part of.
    pub(super) fn finish(&mut self) -> Vec<Delta> {
        if self.is_stopped {
            return Vec::new();
        }
        let mut pushed = Pushed::default();
        let rest = self.decoder.finish().to_string();
        self.take(rest, &mut pushed);
        match &mut self.state {
            State::Undecided(held) => {
                let held = std::mem::take(held);
                self.give(held, &mut pushed);
            }
            State::Thinking(end) => pushed.deltas.push(Delta::Reasoning(end.finish())),
            State::Text if !self.is_stopped => {
                let held = self.mark.finish();
                self.give(held, &mut pushed);
            }
            State::Text | State::Call(_) => {}
        }
        if !self.is_stopped {
            pushed.deltas.push(Delta::Text(self.stop.finish()));
        }
        pushed.deltas.retain(
            |delta| !matches!(delta, Delta::Text(text) | Delta::Reasoning(text) if text.is_empty()),
        );
        pushed.deltas
    }
}

fn end_of_thoughts() -> StopStrings {
    StopStrings::new(&[END_THINK.to_string()])
}
