//! Jinja as chat templates are written in it: what Hugging Face's `apply_chat_template` runs, which is
//! jinja2 in its `ImmutableSandboxedEnvironment` with `trim_blocks`, `lstrip_blocks`, loop controls and
//! `generation` blocks.
//!
//! Templates are programs by strangers, so what one can take is bounded, whatever it does:
//!
//! - Values cannot be changed once they are made, but for the attributes of namespaces, which belong to
//!   the rendering and not to each other: nothing can hold itself alive.
//! - A value knows how deep it is nested, and none is nested deeper than [`value::MAX_DEPTH`]. Expressions,
//!   statements and calls together are bounded by [`MAX_DEPTH`]. So the stack is.
//! - Each step and each byte that is made are paid for out of one [`Budget`], before they are made where
//!   that is more than a small multiple of what is there. So time and memory are.
//!
//! No library does this: `minijinja` bounds neither a namespace that refers to itself nor lists that are added
//! to themselves, and it is Jinja, but not Python: what an undefined name is equal to, whether a string is a
//! sequence, what methods strings have.
//!
//! What is left out is refused by name: inheritance and inclusion, `autoescape`, recursive loops, `cycler`
//! and `joiner`, filters for HTML beside `escape`, `groupby`, `pprint`, `wordwrap` and `filesizeformat`, random
//! choices, bytes, integers beyond 64 bits. What is a generator in Python can be gone through twice here.

mod ast;
mod call;
mod filters;
mod format;
mod interpreter;
mod json;
mod lexer;
mod methods;
mod operators;
mod parser;
mod repr;
mod tests;
mod value;

use alloc::string::String;
use alloc::vec::Vec;

pub(crate) use json::value_of_json;
pub(crate) use value::{Entry, Value};

use self::ast::Stmt;
use self::interpreter::Interpreter;

/// How deep expressions, statements and calls may be in each other, all together, while a template runs.
/// Real templates reach some 40.
const MAX_DEPTH: usize = 250;

/// Why a template could not be read, or stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// The template called `raise_exception` with this.
    Refused(String),
    /// The [`Budget`] is spent.
    Exhausted,
    /// The output is longer than it may be.
    OutputTooLong,
    /// Anything else.
    Failed {
        /// The line of the template, from 1; 0 where it is not known yet.
        line: u32,
        message: String,
    },
}

impl Error {
    fn new(message: impl Into<String>) -> Error {
        Error::Failed {
            line: 0,
            message: message.into(),
        }
    }

    /// The error with its line, where it has none.
    fn at(self, at: u32) -> Error {
        match self {
            Error::Failed { line: 0, message } => Error::Failed { line: at, message },
            other => other,
        }
    }
}

/// What a rendering may still take: bytes, and steps at [`STEP`](Budget::STEP) bytes each.
#[derive(Debug)]
pub(crate) struct Budget {
    left: u64,
}

impl Budget {
    /// What a step costs: it takes some 50 ns.
    const STEP: usize = 64;

    pub(crate) fn new(n_bytes: u64) -> Budget {
        Budget { left: n_bytes }
    }

    /// Pays for `n_bytes` that are made or looked at.
    fn spend(&mut self, n_bytes: usize) -> Result<(), Error> {
        let left = self.left.checked_sub(n_bytes as u64);
        self.left = left.ok_or(Error::Exhausted)?;
        Ok(())
    }

    /// Pays for `n` pieces of `n_bytes` each.
    fn spend_times(&mut self, n: usize, n_bytes: usize) -> Result<(), Error> {
        self.spend(n.checked_mul(n_bytes).ok_or(Error::Exhausted)?)
    }

    fn step(&mut self) -> Result<(), Error> {
        self.spend(Self::STEP)
    }
}

/// What a template is given beside its variables.
pub(crate) struct Surroundings<'a> {
    pub budget: Budget,
    /// The longest output, in bytes.
    pub max_output: usize,
    /// What `strftime_now` gives for a format.
    pub strftime_now: &'a dyn Fn(&str) -> Result<String, String>,
}

/// A template, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    body: Vec<Stmt>,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    ///
    /// Source that is not Jinja, or nested too deeply.
    pub(crate) fn parse(source: &str) -> Result<Template, Error> {
        let tokens = lexer::tokens(source)?;
        let body = parser::parse(tokens)?;
        Ok(Template { body })
    }

    /// What the template writes, given these variables.
    ///
    /// # Errors
    ///
    /// Whatever the template does wrong, or says is wrong; what takes too much.
    pub(crate) fn render(
        &self,
        variables: Vec<Entry>,
        surroundings: Surroundings<'_>,
    ) -> Result<String, Error> {
        Interpreter::new(variables, surroundings).run(&self.body)
    }
}
