//! A conversation to the text that a model was trained to continue, by the template in the file's
//! `tokenizer.chat_template`.
//!
//! Templates are programs, and as untrusted as the file: see [`jinja`](super::jinja) for what bounds them.
//! What Hugging Face's `apply_chat_template` passes is passed here: `messages`, `tools` and `documents`
//! (none, unless they are given), `add_generation_prompt`, the special tokens that the model has, and
//! whatever else the caller has to say, such as `enable_thinking`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::Message;
use super::jinja::{Budget, Entry, Error, Surroundings, Template, Value, value_of_json};

/// Longest template, in bytes. Real ones stay below 32 KB.
pub const MAX_SOURCE_BYTES: usize = 64 << 10;

/// What a rendering may make or look at, in bytes, beside what its conversation adds; a step of the
/// template is 64 of them. Real templates take some hundred steps, and a hundred a message.
const BASE_BYTES: u64 = 32 << 20;
/// Further bytes for each message,
const BYTES_PER_MESSAGE: u64 = 64 << 10;
/// and for each byte of the conversation, over which a template may go some times.
const BYTES_PER_BYTE: u64 = 64;
/// The most of all, which bounds memory and, at some 50 ns a step, time.
const MAX_BYTES: u64 = 256 << 20;
/// Longest output beside four times the conversation, in bytes.
const BASE_OUTPUT_BYTES: usize = 1 << 20;
/// Longest part of a message of an error that the template can choose, in characters.
const MAX_MESSAGE_CHARS: usize = 500;

/// Why a conversation could not be written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChatTemplateError {
    /// The template is longer than [`MAX_SOURCE_BYTES`].
    SourceTooLong {
        /// Bytes of the template.
        n_bytes: usize,
    },
    /// The template is not valid Jinja.
    Syntax {
        /// What is wrong, and in which line.
        message: String,
    },
    /// The template refuses the conversation, for example for the order of its roles.
    Refused {
        /// The reason it gives.
        message: String,
    },
    /// The template ran for too long or wanted too much memory.
    TooMuch,
    /// The output is longer than any use of the conversation explains.
    OutputTooLong {
        /// The limit, in bytes.
        max: usize,
    },
    /// An argument for the template is not valid.
    Argument {
        /// Its name.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// The template failed in another way.
    Render {
        /// What went wrong, and in which line.
        message: String,
    },
}

impl fmt::Display for ChatTemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChatTemplateError::SourceTooLong { n_bytes } => write!(
                f,
                "the chat template has {n_bytes} bytes; at most {MAX_SOURCE_BYTES} are accepted"
            ),
            ChatTemplateError::Syntax { message } => {
                write!(f, "the chat template is not valid: {message}")
            }
            ChatTemplateError::Refused { message } => {
                write!(f, "the chat template refuses the conversation: {message}")
            }
            ChatTemplateError::TooMuch => {
                f.write_str("the chat template takes too much time or memory")
            }
            ChatTemplateError::OutputTooLong { max } => {
                write!(f, "the chat template writes more than {max} bytes")
            }
            ChatTemplateError::Argument { name, message } => {
                write!(f, "the template argument {name} is not valid: {message}")
            }
            ChatTemplateError::Render { message } => {
                write!(f, "the chat template fails: {message}")
            }
        }
    }
}

impl core::error::Error for ChatTemplateError {}

/// What a template is given beside the messages, by name: special tokens, `enable_thinking`, `tools`, ...
#[derive(Clone, Debug, Default)]
pub struct TemplateArgs {
    entries: Vec<Entry>,
    /// Bytes of them all.
    n_bytes: usize,
}

impl TemplateArgs {
    /// None.
    pub fn new() -> TemplateArgs {
        TemplateArgs::default()
    }

    /// Gives `name` a text, in the place of what it was.
    pub fn set_text(&mut self, name: &str, text: &str) {
        self.set(name, text.into(), text.len());
    }

    /// Gives `name` a value in JSON, in the place of what it was.
    ///
    /// # Errors
    ///
    /// [`ChatTemplateError::Argument`] if `json` is not JSON, or nested more than 60 levels deep.
    pub fn set_json(&mut self, name: &str, json: &str) -> Result<(), ChatTemplateError> {
        let value = value_of_json(json).map_err(|message| ChatTemplateError::Argument {
            name: clip(name),
            message: clip(&message),
        })?;
        self.set(name, value, json.len());
        Ok(())
    }

    /// The members of a JSON object.
    ///
    /// # Errors
    ///
    /// As [`set_json`](Self::set_json), and JSON that is no object.
    pub fn from_json(json: &str) -> Result<TemplateArgs, ChatTemplateError> {
        let wrong = |message: &str| ChatTemplateError::Argument {
            name: "{}".into(),
            message: clip(message),
        };
        let value = value_of_json(json).map_err(|message| wrong(&message))?;
        let Value::Dict(dict) = value else {
            return Err(wrong("an object is wanted"));
        };
        Ok(TemplateArgs {
            entries: dict.entries().to_vec(),
            n_bytes: json.len(),
        })
    }

    fn set(&mut self, name: &str, value: Value, n_bytes: usize) {
        self.n_bytes += n_bytes;
        let key = Value::from(name);
        match self
            .entries
            .iter_mut()
            .find(|entry| entry.key.as_str() == Some(name))
        {
            Some(entry) => entry.value = value,
            None => self.entries.push(Entry { key, value }),
        }
    }

    /// The same with `f` of every text in the values.
    pub(crate) fn map_texts(
        &self,
        f: &mut dyn FnMut(&str) -> String,
    ) -> Result<TemplateArgs, ChatTemplateError> {
        let mut mapped = TemplateArgs::new();
        for Entry { key, value } in &self.entries {
            let name = key.as_str().unwrap_or_default();
            mapped.set(name, map_texts(value, f)?, 0);
        }
        mapped.n_bytes = self.n_bytes;
        Ok(mapped)
    }

    /// Bytes of them all.
    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// These, and those of `others` in the place of any of the same name.
    pub(crate) fn with(&self, others: &TemplateArgs) -> TemplateArgs {
        let mut all = self.clone();
        for entry in &others.entries {
            all.set(
                entry.key.as_str().unwrap_or_default(),
                entry.value.clone(),
                0,
            );
        }
        all.n_bytes += others.n_bytes;
        all
    }
}

/// A chat template, ready to be used.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    template: Template,
}

impl ChatTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// [`ChatTemplateError::SourceTooLong`], [`ChatTemplateError::Syntax`].
    pub fn from_source(source: &str) -> Result<ChatTemplate, ChatTemplateError> {
        let n_bytes = source.len();
        if n_bytes > MAX_SOURCE_BYTES {
            return Err(ChatTemplateError::SourceTooLong { n_bytes });
        }
        let template = Template::parse(source).map_err(|error| match failure(error) {
            ChatTemplateError::Render { message } => ChatTemplateError::Syntax { message },
            other => other,
        })?;
        Ok(ChatTemplate { template })
    }

    /// Writes a conversation, followed by the beginning of the assistant's next message where `args` have
    /// `add_generation_prompt`. `args` are the texts of the special tokens, too (`bos_token`, ...).
    ///
    /// The text holds the special tokens as text: encode it with
    /// [`parse_special`](crate::tokenizer::EncodeOptions::parse_special), and without
    /// [`add_special`](crate::tokenizer::EncodeOptions::add_special) where it begins with the BOS.
    /// Whatever a message contains is read as special tokens then, too.
    ///
    /// # Errors
    /// All but [`ChatTemplateError::SourceTooLong`] and [`ChatTemplateError::Syntax`].
    pub fn render(
        &self,
        messages: &[Message<'_>],
        args: &TemplateArgs,
    ) -> Result<String, ChatTemplateError> {
        let sizes = messages.iter().map(|m| m.role.len() + m.content.len());
        let n_bytes = sizes.sum::<usize>() + args.n_bytes;
        let mut budget = budget(messages.len(), n_bytes);
        let mut listed = Vec::with_capacity(messages.len());
        for message in messages {
            let entry = |key: &str, text: &str| Entry {
                key: key.into(),
                value: text.into(),
            };
            let fields = [
                entry("role", message.role),
                entry("content", message.content),
            ];
            let message = Value::dict(fields.into(), &mut budget);
            listed.push(message.map_err(failure)?);
        }
        let messages = Value::list(listed, &mut budget).map_err(failure)?;
        self.write(messages, args, budget, n_bytes)
    }

    /// As [`render`](Self::render), of messages with more than a role and a content; `n_bytes` are those of
    /// the messages and the arguments.
    pub(crate) fn render_values(
        &self,
        messages: Value,
        args: &TemplateArgs,
        n_bytes: usize,
    ) -> Result<String, ChatTemplateError> {
        let n_messages = match &messages {
            Value::List(items) => items.len(),
            _ => 0,
        };
        self.write(messages, args, budget(n_messages, n_bytes), n_bytes)
    }

    fn write(
        &self,
        messages: Value,
        args: &TemplateArgs,
        budget: Budget,
        n_bytes: usize,
    ) -> Result<String, ChatTemplateError> {
        let max_output = n_bytes.saturating_mul(4).saturating_add(BASE_OUTPUT_BYTES);
        let mut all = TemplateArgs::new();
        all.set("messages", messages, 0);
        all.set("tools", Value::None, 0);
        all.set("documents", Value::None, 0);
        let surroundings = Surroundings {
            budget,
            max_output,
            strftime_now: &strftime_now,
        };
        let rendered = self.template.render(all.with(args).entries, surroundings);
        rendered.map_err(|error| match error {
            Error::OutputTooLong => ChatTemplateError::OutputTooLong { max: max_output },
            other => failure(other),
        })
    }
}

/// What a rendering of so many messages, of so many bytes together, may take.
fn budget(n_messages: usize, n_bytes: usize) -> Budget {
    let all = BASE_BYTES + BYTES_PER_MESSAGE * n_messages as u64;
    let all = all.saturating_add(BYTES_PER_BYTE * n_bytes as u64);
    Budget::new(all.min(MAX_BYTES))
}

/// A list of parts that were counted when they were made.
pub(crate) fn list_of(items: Vec<Value>) -> Result<Value, ChatTemplateError> {
    Value::list(items, &mut Budget::new(u64::MAX)).map_err(failure)
}

/// The same of a dictionary.
pub(crate) fn dict_of(entries: Vec<Entry>) -> Result<Value, ChatTemplateError> {
    Value::dict(entries, &mut Budget::new(u64::MAX)).map_err(failure)
}

/// `value`, one of JSON, with `f` of every text in it.
pub(crate) fn map_texts(
    value: &Value,
    f: &mut dyn FnMut(&str) -> String,
) -> Result<Value, ChatTemplateError> {
    match value {
        Value::Str(text) => Ok(Value::from(&*f(text))),
        Value::List(items) => {
            let items = items.iter().map(|item| map_texts(item, f));
            let items = items.collect::<Result<Vec<_>, _>>()?;
            list_of(items)
        }
        Value::Dict(dict) => {
            let mut entries = Vec::with_capacity(dict.entries().len());
            for Entry { key, value } in dict.entries() {
                let key = map_texts(key, f)?;
                let value = map_texts(value, f)?;
                entries.push(Entry { key, value });
            }
            dict_of(entries)
        }
        other => Ok(other.clone()),
    }
}

fn failure(error: Error) -> ChatTemplateError {
    match error {
        Error::Refused(message) => ChatTemplateError::Refused {
            message: clip(&message),
        },
        Error::Exhausted | Error::OutputTooLong => ChatTemplateError::TooMuch,
        Error::Failed { line, message } => ChatTemplateError::Render {
            message: match line {
                0 => clip(&message),
                _ => format!("line {line}: {}", clip(&message)),
            },
        },
    }
}

fn clip(message: &str) -> String {
    message.chars().take(MAX_MESSAGE_CHARS).collect()
}

/// The time on the wall, as Python's `datetime.now().strftime(format)` in the locale C.
#[cfg(feature = "std")]
fn strftime_now(format: &str) -> Result<String, String> {
    strftime(format, jiff::ZonedDateTime::now().datetime())
}

#[cfg(not(feature = "std"))]
fn strftime_now(_: &str) -> Result<String, String> {
    Err("strftime_now: there is no clock in this build".to_string())
}

#[cfg(feature = "std")]
fn strftime(format: &str, at: jiff::civil::DateTime) -> Result<String, String> {
    let mut expanded = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            expanded.push(c);
            continue;
        }
        match chars.next() {
            // What depends on the locale, as C has it; Python's time without a zone has none to print.
            Some('c') => expanded.push_str("%a %b %e %H:%M:%S %Y"),
            Some('x') => expanded.push_str("%m/%d/%y"),
            Some('X') => expanded.push_str("%H:%M:%S"),
            Some('r') => expanded.push_str("%I:%M:%S %p"),
            Some('z' | 'Z') => {}
            Some('f') => expanded.push_str(&format!("{:06}", at.subsec_nanosecond() / 1000)),
            Some(other) => expanded.extend(['%', other]),
            None => return Err("strftime_now: a '%' at the end".to_string()),
        }
    }
    let unknown = |error| format!("strftime_now: {error}");
    jiff::fmt::strtime::format(&expanded, at).map_err(unknown)
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    /// As Python prints them.
    #[test]
    fn dates() {
        let at = |y, m, d, h, min, s| jiff::civil::datetime(y, m, d, h, min, s, 0);
        let format = "%d %b %Y, %A %-d %B %y, %H:%M:%S, %-I %p, %F %T, 100%%";
        assert_eq!(
            strftime(format, at(1970, 1, 1, 0, 0, 0)).unwrap(),
            "01 Jan 1970, Thursday 1 January 70, 00:00:00, 12 AM, 1970-01-01 00:00:00, 100%"
        );
        let leap = at(2024, 2, 29, 13, 2, 3);
        assert_eq!(
            strftime(format, leap).unwrap(),
            "29 Feb 2024, Thursday 29 February 24, 13:02:03, 1 PM, 2024-02-29 13:02:03, 100%"
        );
        assert_eq!(
            strftime(
                "%c|%x|%X|%D|%R|%j|%e|%w|%u|%U|%W|%V|%G|%C|%h|%n|%t|%k|%l|%f|%z|%Z|",
                leap
            )
            .unwrap(),
            "Thu Feb 29 13:02:03 2024|02/29/24|13:02:03|02/29/24|13:02|060|29|4|4|08|09|09|2024|20|Feb|\n|\t|13| 1|000000|||"
        );
        for bad in ["%", "%-", "%-é"] {
            assert!(strftime(bad, leap).is_err(), "{bad}");
        }
    }
}
