//! A conversation to the text that a model was trained to continue, by the template in the file's
//! `tokenizer.chat_template`.
//!
//! Templates are programs in Jinja, and as untrusted as the file. They are run by `minijinja` on a
//! budget of fuel, which pays for each instruction and for each 64 bytes that are created: it
//! bounds time and memory alike. The source, the depth of calls and the output have limits too, and
//! the stack is large enough for what the fuel can build.
//!
//! Known gap: minijinja 3.1 adds and slices lists lazily without charging for it, so a template
//! that adds a list to itself some 33 times over, or slices a slice thousands of times, still
//! takes memory or time without bound.
//!
//! Where Hugging Face's `apply_chat_template` sets something, it is set the same here: white space
//! (`trim_blocks`, `lstrip_blocks`), loop controls, Python's string methods, `tojson` without
//! escapes for HTML, `raise_exception`, `strftime_now`. One thing differs: printing an undefined
//! name is an error instead of nothing, as a prompt with a hole in it goes unnoticed.

use core::fmt;
use std::io;
use std::string::{String, ToString};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};
use std::vec::Vec;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior};

use super::Message;

/// Longest template, in bytes. Real ones stay below 32 KB. The time to compile one can grow with the
/// square of its length.
pub const MAX_SOURCE_BYTES: usize = 64 << 10;

/// Fuel of a rendering beside what its conversation adds: some 50,000 instructions, or 3 MB. Real
/// templates take a few hundred, and a hundred a message.
const BASE_FUEL: u64 = 50_000;
/// Further fuel for each message.
const FUEL_PER_MESSAGE: u64 = 1_000;
/// Most fuel of all: memory for 64 MB.
const MAX_FUEL: u64 = 1_000_000;
/// minijinja goes down into a value and drops it by recursion, without a limit, so each unit of
/// fuel can make the stack deeper. One level of nesting takes three units and at most about a
/// kilobyte.
const STACK_BYTES_PER_FUEL: usize = 384;
/// In the same way each byte of source can make the parsed expression deeper: `1+1+1+`.
const STACK_BYTES_PER_SOURCE_BYTE: usize = 1024;
const BASE_STACK_BYTES: usize = 2 << 20;
/// Longest output beside four times the conversation, in bytes.
const BASE_OUTPUT_BYTES: usize = 1 << 20;
/// Deepest nesting of calls, and of values written as JSON.
const MAX_DEPTH: usize = 64;
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
    OutOfFuel,
    /// The output is longer than any use of the conversation explains.
    OutputTooLong {
        /// The limit, in bytes.
        max: usize,
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
            ChatTemplateError::OutOfFuel => {
                f.write_str("the chat template takes too much time or memory")
            }
            ChatTemplateError::OutputTooLong { max } => {
                write!(f, "the chat template writes more than {max} bytes")
            }
            ChatTemplateError::Render { message } => {
                write!(f, "the chat template fails: {message}")
            }
        }
    }
}

impl core::error::Error for ChatTemplateError {}

/// A chat template, ready to be used.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
}

const NAME: &str = "chat_template";

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
        let stack = BASE_STACK_BYTES + n_bytes * STACK_BYTES_PER_SOURCE_BYTE;
        let env = with_stack(stack, || environment(source))??;
        Ok(ChatTemplate { env })
    }

    /// Writes a conversation. `add_generation_prompt` ends it with the beginning of the
    /// assistant's next message; `bos` and `eos` are the texts of these tokens, empty where the
    /// model has none.
    ///
    /// The text holds the special tokens as text: encode it with
    /// [`parse_special`](crate::tokenizer::EncodeOptions::parse_special), and without
    /// [`add_special`](crate::tokenizer::EncodeOptions::add_special) where it begins with `bos`.
    /// Whatever a message contains is read as special tokens then, too.
    ///
    /// # Errors
    /// All but [`ChatTemplateError::SourceTooLong`] and [`ChatTemplateError::Syntax`].
    pub fn render(
        &self,
        messages: &[Message<'_>],
        add_generation_prompt: bool,
        bos: &str,
        eos: &str,
    ) -> Result<String, ChatTemplateError> {
        let sizes = messages.iter().map(|m| m.role.len() + m.content.len());
        let n_bytes: usize = sizes.sum();

        let max = BASE_OUTPUT_BYTES + 4 * n_bytes;
        let per_message = FUEL_PER_MESSAGE.saturating_mul(messages.len() as u64);
        // Half a unit a byte lets the template go over the conversation 32 times.
        let fuel = BASE_FUEL + per_message + n_bytes as u64 / 2;
        let fuel = fuel.min(MAX_FUEL);

        let run = || {
            let messages = messages
                .iter()
                .map(|m| Value::from_pairs([("role", m.role), ("content", m.content)]));
            let context = Value::from_pairs([
                ("messages", messages.collect::<Value>()),
                ("add_generation_prompt", Value::from(add_generation_prompt)),
                ("bos_token", Value::from(bos)),
                ("eos_token", Value::from(eos)),
                ("tools", Value::from(())),
            ]);
            let mut env = self.env.clone();
            env.set_fuel(Some(fuel));
            let mut output = Output {
                bytes: Vec::new(),
                max,
                full: false,
            };
            let template = env.get_template(NAME).map_err(failure)?;
            let result = template.render_captured_to(context, &mut output).map(drop);
            if output.full {
                return Err(ChatTemplateError::OutputTooLong { max });
            }
            result.map_err(failure)?;
            String::from_utf8(output.bytes).map_err(|e| ChatTemplateError::Render {
                message: e.to_string(),
            })
        };
        with_stack(BASE_STACK_BYTES + fuel as usize * STACK_BYTES_PER_FUEL, run)?
    }
}

fn environment(source: &str) -> Result<Environment<'static>, ChatTemplateError> {
    let syntax_error = |e: Error| ChatTemplateError::Syntax {
        message: clip(&e.to_string()),
    };
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    let syntax = syntax.trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.map_err(syntax_error)?);
    env.set_recursion_limit(MAX_DEPTH);
    env.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    env.set_unknown_method_callback(python_method);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    env.add_filter("tojson", to_json);
    // Errors shall name the undefined value. The dumps of variables that come with that are not
    // paid for, and "pprint" indents by the depth, which makes its output grow with the square of
    // what has been.
    env.set_debug(true);
    env.remove_global("debug");
    env.remove_filter("pprint");
    env.add_template_owned(NAME, source.to_string())
        .map_err(syntax_error)?;
    Ok(env)
}

/// The methods of Python's strings, lists and dictionaries, but not `str.format`: the width in
/// `'{:1000000000}'` is not paid for, and templates do without.
fn python_method(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if method == "format" {
        return Err(Error::from(ErrorKind::UnknownMethod));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Runs `f` on a thread with a stack of its own: what it needs is decided by the template, not by
/// the thread that the caller happens to be on. Only the pages that are touched take memory.
fn with_stack<T: Send>(
    n_bytes: usize,
    f: impl FnOnce() -> T + Send,
) -> Result<T, ChatTemplateError> {
    let failed = |message: String| ChatTemplateError::Render { message };
    thread::scope(|scope| {
        let builder = thread::Builder::new().stack_size(n_bytes);
        let running = builder
            .spawn_scoped(scope, f)
            .map_err(|e| failed(std::format!("no thread to run it on: {e}")))?;
        running
            .join()
            .map_err(|_| failed("the template library panicked".to_string()))
    })
}

/// The rendering's error, by its innermost cause: errors in macros and blocks are wrapped.
fn failure(error: Error) -> ChatTemplateError {
    let mut cause: Option<&(dyn core::error::Error + 'static)> = Some(&error);
    while let Some(e) = cause {
        if let Some(Refusal(message)) = e.downcast_ref() {
            let message = clip(message);
            return ChatTemplateError::Refused { message };
        }
        let inner = e.downcast_ref::<Error>();
        if inner.is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return ChatTemplateError::OutOfFuel;
        }
        cause = e.source();
    }
    let message = clip(&error.to_string());
    ChatTemplateError::Render { message }
}

fn clip(message: &str) -> String {
    message.chars().take(MAX_MESSAGE_CHARS).collect()
}

struct Output {
    bytes: Vec<u8>,
    max: usize,
    full: bool,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.max - self.bytes.len() {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The argument of `raise_exception`, carried through minijinja's error.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Refusal {}

fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "raise_exception");
    Err(error.with_source(Refusal(message)))
}

/// The date in Coordinated Universal Time: std does not know the local time zone.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    strftime(format, now.map_or(0, |d| d.as_secs()))
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = [
    "Thursday", // 1 January 1970
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    let weekday = WEEKDAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        // glibc's "%-d": no leading zero.
        let padded = directive != Some('-');
        if !padded {
            directive = chars.next();
        }
        let number = |n: u64| match padded {
            true => std::format!("{n:02}"),
            false => n.to_string(),
        };
        out.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100),
            Some('m') => number(month),
            Some('B') => month_name.to_string(),
            Some('b') => month_name[..3].to_string(),
            Some('d') => number(day),
            Some('A') => weekday.to_string(),
            Some('a') => weekday[..3].to_string(),
            Some('H') => number(hour),
            Some('I') => number((hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
            Some('M') => number(minute),
            Some('S') => number(second),
            Some('F') => std::format!("{year}-{month:02}-{day:02}"),
            Some('T') => std::format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_string(),
            other => {
                let directive = other.map_or(String::new(), |c| c.to_string());
                let message = std::format!("strftime_now: unknown directive %{directive}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(out)
}

/// Year, month from 1 and day from 1 of a day counted from 1 January 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut days = days;
    // 400 years have the same number of days wherever they begin.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// JSON as Python's `json.dumps` writes it: a space after commas and colons, or lines where an
/// `indent` is given; characters outside ASCII as they are.
fn to_json(state: &State, value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // `ensure_ascii`, `separators` and `sort_keys` are accepted by Hugging Face's filter; the
    // first is false there by default, the others no known template sets.
    let mut json = Json {
        state,
        out: String::new(),
        indent: indent.map(|n| n.min(16)),
    };
    json.value(&value, 0)?;
    Ok(Value::from(json.out))
}

struct Json<'s, 't, 'e> {
    state: &'s State<'t, 'e>,
    out: String,
    indent: Option<usize>,
}

impl Json<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let refuse = |message| Err(Error::new(ErrorKind::InvalidOperation, message));
        if depth > MAX_DEPTH {
            return refuse("tojson: the value is nested too deeply");
        }
        // A value can hold another many times over without taking the memory, so what is written
        // is paid for here.
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool if value.is_true() => self.out.push_str("true"),
            ValueKind::Bool => self.out.push_str("false"),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut first = true;
                for item in value.try_iter()? {
                    self.between(&mut first, depth)?;
                    self.value(&item, depth + 1)?;
                }
                self.end(first, depth, ']')?;
            }
            ValueKind::Map => {
                self.out.push('{');
                let mut first = true;
                for key in value.try_iter()? {
                    self.between(&mut first, depth)?;
                    self.string(&key.to_string())?;
                    self.out.push_str(": ");
                    self.value(&value.get_item(&key)?, depth + 1)?;
                }
                self.end(first, depth, '}')?;
            }
            _ => return refuse("tojson: the value cannot be written as JSON"),
        }
        Ok(())
    }

    fn between(&mut self, first: &mut bool, depth: usize) -> Result<(), Error> {
        if !std::mem::take(first) {
            let comma = if self.indent.is_some() { "," } else { ", " };
            self.out.push_str(comma);
        }
        self.line(depth + 1)
    }

    fn end(&mut self, empty: bool, depth: usize, bracket: char) -> Result<(), Error> {
        if !empty {
            self.line(depth)?;
        }
        self.out.push(bracket);
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = self.indent {
            let n_spaces = indent * depth;
            self.state.consume_fuel((n_spaces / 64) as u64)?;
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', n_spaces));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel((text.len() / 64) as u64)?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{C}' => self.out.push_str("\\f"),
                c if c < ' ' => self.out.push_str(&std::format!("\\u{:04x}", u32::from(c))),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let format = "%d %b %Y, %A %-d %B %y, %H:%M:%S, %-I %p, %F %T, 100%%";
        assert_eq!(
            strftime(format, 0).unwrap(),
            "01 Jan 1970, Thursday 1 January 70, 00:00:00, 12 AM, 1970-01-01 00:00:00, 100%"
        );
        // 29 February 2024, 13:02:03
        assert_eq!(
            strftime(format, 1_709_211_723).unwrap(),
            "29 Feb 2024, Thursday 29 February 24, 13:02:03, 1 PM, 2024-02-29 13:02:03, 100%"
        );
        assert_eq!(strftime("%F", 4_102_444_799).unwrap(), "2099-12-31");
        assert_eq!(strftime("%F", 4_107_542_400).unwrap(), "2100-03-01");
        assert_eq!(strftime("%F", 13_569_465_600).unwrap(), "2400-01-01");
        for bad in ["%", "%Q", "%-", "%-Q"] {
            assert!(strftime(bad, 0).is_err(), "{bad}");
        }
        assert!(strftime("%F %T", u64::MAX).is_ok());
    }
}
