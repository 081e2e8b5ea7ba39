//! Answers as clients read them: whole, or piece by piece.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tandem_engine::tokenizer::{ControlTokens, Vocab};

use super::error::ApiError;
use super::logprobs::{Likely, Logprob};
use super::ollama;
use super::random_text;
use super::task::{Begin, End, Event, FinishReason, Progress};
use crate::calls::Delta;

pub(super) const FINGERPRINT: &str = concat!("tandem-", env!("CARGO_PKG_VERSION"));

/// Which interface an answer is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// OpenAI's chat completions.
    Chat,
    /// OpenAI's completions.
    Text,
    /// Ollama's `/api/chat`.
    OllamaChat,
    /// Ollama's `/api/generate`.
    OllamaText,
}

impl Style {
    pub(super) fn is_ollama(self) -> bool {
        matches!(self, Style::OllamaChat | Style::OllamaText)
    }
}

/// One choice, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// What is put before the answer: the prompt, where it is asked for.
    pub echo: String,
    pub text: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
    logprobs: Vec<Logprob>,
    /// Of the prompt, where they are asked for.
    prompt_logprobs: Vec<Logprob>,
    /// Characters of the text before the next token, for completions' logprobs.
    offset: usize,
    n_reasoning: usize,
    n_cached: usize,
    end: Option<End>,
}

#[derive(Debug)]
pub(super) struct Call {
    id: String,
    pub name: String,
    pub arguments: String,
}

/// An answer that is being gathered.
pub(super) struct Answer {
    pub style: Style,
    id: String,
    created: u64,
    pub name: String,
    pub vocab: Vocab,
    /// Choices of each prompt.
    pub n: usize,
    /// Tokens of all prompts.
    pub n_prompt: usize,
    /// First tokens of prompts, where the prompts' own logprobs are told; they have none.
    pub first_tokens: Vec<u32>,
    pub has_logprobs: bool,
    pub include_usage: bool,
    /// Whether pieces are told.
    pub streams: bool,
    /// What else is told: the seed, what was ignored.
    pub notes: Map<String, Value>,
    pub choices: Vec<Choice>,
    pub started: std::time::Instant,
}

impl Answer {
    pub(super) fn new(style: Style, name: &str, vocab: &Vocab, n_choices: usize) -> Answer {
        let prefix = match style {
            Style::Chat => "chatcmpl-",
            _ => "cmpl-",
        };
        Answer {
            style,
            id: prefix.to_string() + &random_text(24),
            created: now(),
            name: name.to_string(),
            vocab: vocab.clone(),
            n: n_choices,
            n_prompt: 0,
            first_tokens: Vec::new(),
            has_logprobs: false,
            include_usage: false,
            streams: false,
            notes: Map::new(),
            choices: (0..n_choices).map(|_| Choice::default()).collect(),
            started: std::time::Instant::now(),
        }
    }

    /// Whether all choices have ended.
    pub(super) fn is_over(&self) -> bool {
        self.choices.iter().all(|choice| choice.end.is_some())
    }

    /// Takes what became known. Of a stream, the pieces to send go to `out`.
    pub(super) fn take(&mut self, event: Event, out: &mut String) -> Result<(), ApiError> {
        match event {
            Event::Begin(begin) => self.begin(begin, out),
            Event::Progress(progress) => self.progress(progress, out),
            Event::End(end) => self.end(end, out),
            Event::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn begin(&mut self, begin: Begin, out: &mut String) {
        let Begin {
            choice: index,
            n_cached,
            prompt_logprobs,
        } = begin;
        let choice = &mut self.choices[index];
        choice.n_cached = n_cached;
        match self.style {
            Style::Chat => {
                let delta = json!({"role": "assistant", "content": ""});
                self.chunk(index, delta, Value::Null, out);
            }
            Style::Text => {
                let echo = choice.echo.clone();
                choice.prompt_logprobs = prompt_logprobs;
                let mut logprobs = Value::Null;
                if let Some(first) = self.first_tokens.get(index / self.n) {
                    let choice = &mut self.choices[index];
                    let mut table = LegacyLogprobs::default();
                    table.push_first(*first, &self.vocab, &mut choice.offset);
                    for entry in &choice.prompt_logprobs {
                        table.push(entry, &self.vocab, &mut choice.offset);
                    }
                    logprobs = table.to_json();
                }
                if !echo.is_empty() || !logprobs.is_null() {
                    self.chunk(index, echo.into(), logprobs, out);
                }
            }
            Style::OllamaChat | Style::OllamaText => {}
        }
    }

    fn progress(&mut self, progress: Progress, out: &mut String) {
        let Progress {
            choice: index,
            deltas,
            logprobs: entries,
        } = progress;
        let is_thinking = deltas
            .iter()
            .any(|delta| matches!(delta, Delta::Reasoning(_)));
        self.choices[index].n_reasoning += usize::from(is_thinking);
        let mut logprobs = self.logprobs_chunk(index, &entries);
        self.choices[index].logprobs.extend(entries);
        for delta in deltas {
            let shown = self.note(index, delta);
            let logprobs = std::mem::take(&mut logprobs);
            if let Some(shown) = shown {
                self.chunk(index, shown, logprobs, out);
            }
        }
        if !logprobs.is_null() {
            let nothing = match self.style {
                Style::Text => "".into(),
                _ => json!({}),
            };
            self.chunk(index, nothing, logprobs, out);
        }
    }

    /// Notes a piece, and gives it as the stream shows it.
    fn note(&mut self, index: usize, delta: Delta) -> Option<Value> {
        let choice = &mut self.choices[index];
        let n_calls = choice.calls.len();
        let is_chat = self.style == Style::Chat;
        match delta {
            Delta::Text(text) => {
                choice.text.push_str(&text);
                Some(match self.style {
                    Style::Chat => json!({ "content": text }),
                    _ => text.into(),
                })
            }
            Delta::Reasoning(text) => {
                choice.reasoning.push_str(&text);
                match self.style {
                    Style::Chat => Some(json!({ "reasoning_content": text })),
                    Style::OllamaChat => Some(json!({ "thinking": text })),
                    Style::Text | Style::OllamaText => None,
                }
            }
            Delta::Call(name) => {
                // Mistral's templates take no other ones back.
                let id = random_text(9);
                let function = json!({"name": name, "arguments": ""});
                let call =
                    json!({"index": n_calls, "id": id, "type": "function", "function": function});
                let arguments = String::new();
                choice.calls.push(Call {
                    id,
                    name,
                    arguments,
                });
                is_chat.then(|| json!({ "tool_calls": [call] }))
            }
            Delta::Arguments(text) => {
                if let Some(call) = choice.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
                let index = n_calls.saturating_sub(1);
                let call = json!({"index": index, "function": {"arguments": text}});
                is_chat.then(|| json!({ "tool_calls": [call] }))
            }
        }
    }

    fn end(&mut self, end: End, out: &mut String) {
        let index = end.choice;
        let reason = end.reason;
        self.choices[index].end = Some(end);
        if !self.streams {
            return;
        }
        let is_over = self.is_over();
        match self.style {
            Style::Chat | Style::Text => {
                let mut chunk = match self.style {
                    Style::Chat => self.chunk_json(index, json!({}), Value::Null),
                    _ => self.chunk_json(index, "".into(), Value::Null),
                };
                chunk["choices"][0]["finish_reason"] = word(reason).into();
                if is_over {
                    chunk["timings"] = self.timings();
                    if !self.notes.is_empty() {
                        chunk["tandem"] = Value::Object(self.notes.clone());
                    }
                }
                push_event(out, &chunk);
                if is_over && self.include_usage {
                    let mut last = self.chunk_json(index, Value::Null, Value::Null);
                    last["choices"] = json!([]);
                    last["usage"] = self.usage();
                    push_event(out, &last);
                }
                if is_over {
                    out.push_str("data: [DONE]\n\n");
                }
            }
            Style::OllamaChat | Style::OllamaText => {
                ollama::push_line(out, &ollama::last_line(self));
            }
        }
    }

    /// Adds a piece of a stream.
    fn chunk(&self, index: usize, shown: Value, logprobs: Value, out: &mut String) {
        match self.style {
            _ if !self.streams => {}
            Style::Chat | Style::Text => push_event(out, &self.chunk_json(index, shown, logprobs)),
            Style::OllamaChat | Style::OllamaText => {
                ollama::push_line(out, &ollama::line(self, shown));
            }
        }
    }

    fn chunk_json(&self, index: usize, shown: Value, logprobs: Value) -> Value {
        let (object, key) = match self.style {
            Style::Chat => ("chat.completion.chunk", "delta"),
            _ => ("text_completion", "text"),
        };
        let mut chunk = self.head(object);
        let mut choice = json!({"index": index});
        choice[key] = shown;
        choice["logprobs"] = logprobs;
        choice["finish_reason"] = Value::Null;
        chunk["choices"] = json!([choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn head(&self, object: &str) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.name,
            "system_fingerprint": FINGERPRINT,
        })
    }

    /// The logprobs that go with a piece; null where there are none.
    fn logprobs_chunk(&mut self, index: usize, entries: &[Logprob]) -> Value {
        if !self.has_logprobs || entries.is_empty() {
            return Value::Null;
        }
        match self.style {
            Style::Text => {
                let mut table = LegacyLogprobs::default();
                for entry in entries {
                    table.push(entry, &self.vocab, &mut self.choices[index].offset);
                }
                table.to_json()
            }
            _ => chat_logprobs(entries, &self.vocab),
        }
    }

    /// The whole answer.
    pub(super) fn whole(&self) -> Value {
        if self.style.is_ollama() {
            return ollama::whole(self);
        }
        let mut out = self.head(match self.style {
            Style::Chat => "chat.completion",
            _ => "text_completion",
        });
        let choices = self.choices.iter().enumerate();
        let choices: Vec<_> = choices
            .map(|(i, choice)| self.whole_choice(i, choice))
            .collect();
        out["choices"] = choices.into();
        out["usage"] = self.usage();
        out["timings"] = self.timings();
        if !self.notes.is_empty() {
            out["tandem"] = Value::Object(self.notes.clone());
        }
        out
    }

    fn whole_choice(&self, index: usize, choice: &Choice) -> Value {
        let reason = choice.end.as_ref().map_or("stop", |end| word(end.reason));
        if self.style == Style::Text {
            let mut logprobs = Value::Null;
            if self.has_logprobs {
                let mut table = LegacyLogprobs::default();
                let mut offset = 0;
                if let Some(first) = self.first_tokens.get(index / self.n) {
                    table.push_first(*first, &self.vocab, &mut offset);
                }
                for entry in choice.prompt_logprobs.iter().chain(&choice.logprobs) {
                    table.push(entry, &self.vocab, &mut offset);
                }
                logprobs = table.to_json();
            }
            return json!({
                "index": index,
                "text": format!("{}{}", choice.echo, choice.text),
                "logprobs": logprobs,
                "finish_reason": reason,
            });
        }
        let content = match choice.calls.is_empty() || !choice.text.is_empty() {
            true => choice.text.clone().into(),
            false => Value::Null,
        };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !choice.reasoning.is_empty() {
            message["reasoning_content"] = choice.reasoning.clone().into();
        }
        if !choice.calls.is_empty() {
            let calls = choice.calls.iter().map(|call| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": call.id, "type": "function", "function": function})
            });
            message["tool_calls"] = calls.collect();
        }
        let logprobs = match self.has_logprobs {
            true => chat_logprobs(&choice.logprobs, &self.vocab),
            false => Value::Null,
        };
        json!({
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": reason,
        })
    }

    fn ends(&self) -> impl Iterator<Item = &End> {
        self.choices.iter().filter_map(|choice| choice.end.as_ref())
    }

    pub(super) fn n_generated(&self) -> usize {
        self.ends().map(|end| end.n_generated).sum()
    }

    /// Tokens of all prompts that were known.
    pub(super) fn n_cached(&self) -> usize {
        self.choices
            .iter()
            .step_by(self.n)
            .map(|choice| choice.n_cached)
            .sum()
    }

    pub(super) fn prompt_time(&self) -> Duration {
        self.ends()
            .step_by(self.n)
            .map(|end| end.prompt_time)
            .max()
            .unwrap_or_default()
    }

    pub(super) fn decode_time(&self) -> Duration {
        self.ends()
            .map(|end| end.decode_time)
            .max()
            .unwrap_or_default()
    }

    pub(super) fn reason(&self) -> FinishReason {
        self.ends()
            .next()
            .map_or(FinishReason::Stop, |end| end.reason)
    }

    fn usage(&self) -> Value {
        let n_generated = self.n_generated();
        let n_reasoning: usize = self.choices.iter().map(|choice| choice.n_reasoning).sum();
        json!({
            "prompt_tokens": self.n_prompt,
            "completion_tokens": n_generated,
            "total_tokens": self.n_prompt + n_generated,
            "prompt_tokens_details": {"cached_tokens": self.n_cached()},
            "completion_tokens_details": {"reasoning_tokens": n_reasoning},
        })
    }

    /// As llama-server tells them.
    fn timings(&self) -> Value {
        let (n_cached, n_generated) = (self.n_cached(), self.n_generated());
        let n_computed = self.n_prompt.saturating_sub(n_cached);
        let (prompt, decode) = (self.prompt_time(), self.decode_time());
        json!({
            "cache_n": n_cached,
            "prompt_n": n_computed,
            "prompt_ms": millis(prompt),
            "prompt_per_second": rate(n_computed, prompt),
            "predicted_n": n_generated,
            "predicted_ms": millis(decode),
            "predicted_per_second": rate(n_generated.saturating_sub(1), decode),
        })
    }
}

pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn rate(n: usize, time: Duration) -> f64 {
    match time.is_zero() {
        true => 0.0,
        false => (n as f64 / time.as_secs_f64() * 10.0).round() / 10.0,
    }
}

fn word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}

fn push_event(out: &mut String, data: &Value) {
    out.push_str("data: ");
    out.push_str(&data.to_string());
    out.push_str("\n\n");
}

/// A failure in the middle of a stream.
pub(super) fn failure(style: Style, error: &ApiError) -> String {
    let mut out = String::new();
    match style.is_ollama() {
        true => ollama::push_line(&mut out, &json!({ "error": error.message })),
        false => push_event(&mut out, &error.to_json()),
    }
    out
}

fn bytes_of(vocab: &Vocab, token: u32, control: ControlTokens) -> Vec<u8> {
    vocab.token_bytes(token, control).unwrap_or_default()
}

fn chat_logprobs(entries: &[Logprob], vocab: &Vocab) -> Value {
    let one = |token: u32, logprob: f32, control| {
        let bytes = bytes_of(vocab, token, control);
        json!({
            "token": String::from_utf8_lossy(&bytes),
            "logprob": logprob,
            "bytes": bytes,
        })
    };
    let entries = entries.iter().map(|entry| {
        let top = entry.top.iter();
        let top: Vec<_> = top
            .map(|likely| one(likely.token, likely.logprob, ControlTokens::Show))
            .collect();
        let mut out = one(entry.token, entry.logprob, ControlTokens::Hide);
        out["top_logprobs"] = top.into();
        out
    });
    json!({ "content": entries.collect::<Vec<_>>() })
}

/// Logprobs as completions have them: one list for each property.
#[derive(Default)]
struct LegacyLogprobs {
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<usize>,
}

impl LegacyLogprobs {
    /// A prompt's first token, which nothing is before.
    fn push_first(&mut self, token: u32, vocab: &Vocab, offset: &mut usize) {
        self.push_token(token, vocab, offset);
        self.logprobs.push(Value::Null);
        self.top.push(Value::Null);
    }

    fn push(&mut self, entry: &Logprob, vocab: &Vocab, offset: &mut usize) {
        self.push_token(entry.token, vocab, offset);
        self.logprobs.push(entry.logprob.into());
        let picked = Likely {
            token: entry.token,
            logprob: entry.logprob,
        };
        let mut top = Map::new();
        for likely in entry.top.iter().chain([&picked]) {
            top.insert(key_of(vocab, likely.token), likely.logprob.into());
        }
        self.top.push(Value::Object(top));
    }

    fn push_token(&mut self, token: u32, vocab: &Vocab, offset: &mut usize) {
        let bytes = bytes_of(vocab, token, ControlTokens::Hide);
        let text = String::from_utf8_lossy(&bytes);
        self.offsets.push(*offset);
        *offset += text.chars().count();
        self.tokens.push(text.into());
    }

    fn to_json(&self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.logprobs,
            "top_logprobs": self.top,
            "text_offset": self.offsets,
        })
    }
}

/// A token's text as a key: of pieces of characters, their bytes, so that no two are the same.
fn key_of(vocab: &Vocab, token: u32) -> String {
    let bytes = bytes_of(vocab, token, ControlTokens::Show);
    match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
            format!("bytes:{}", bytes.collect::<String>())
        }
    }
}
