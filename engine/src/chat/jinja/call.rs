//! The arguments of calls, filters and tests.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::Error;
use super::value::{Entry, Value};

/// Arguments as they were given; each is taken once.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    /// What is called, for messages.
    pub of: Arc<str>,
    pub positional: Vec<Value>,
    pub named: Vec<Entry>,
}

impl Arguments {
    /// The argument at place `i`, or with this name.
    pub(crate) fn get(&self, i: usize, name: &str) -> Option<&Value> {
        self.positional.get(i).or_else(|| self.named(name))
    }

    /// The argument with this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Value> {
        let found = self
            .named
            .iter()
            .find(|entry| entry.key.as_str() == Some(name));
        found.map(|entry| &entry.value)
    }

    /// As [`get`](Self::get), where it must be there.
    pub(crate) fn need(&self, i: usize, name: &str) -> Result<&Value, Error> {
        self.get(i, name)
            .ok_or_else(|| Error::new(format!("{} needs the argument '{name}'", self.of)))
    }

    pub(crate) fn str(&self, i: usize, name: &str) -> Result<&str, Error> {
        let value = self.need(i, name)?;
        value.as_str().ok_or_else(|| self.wrong(name, value))
    }

    /// A text, where it is given and is not none.
    pub(crate) fn str_or<'a>(
        &'a self,
        i: usize,
        name: &str,
        default: &'a str,
    ) -> Result<&'a str, Error> {
        match self.get(i, name) {
            None | Some(Value::None) => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.wrong(name, value)),
        }
    }

    pub(crate) fn int(&self, i: usize, name: &str) -> Result<i64, Error> {
        let value = self.need(i, name)?;
        value.as_int().ok_or_else(|| self.wrong(name, value))
    }

    /// A whole number, where it is given and is not none.
    pub(crate) fn int_or(&self, i: usize, name: &str, default: i64) -> Result<i64, Error> {
        match self.get(i, name) {
            None | Some(Value::None) => Ok(default),
            Some(value) => value.as_int().ok_or_else(|| self.wrong(name, value)),
        }
    }

    pub(crate) fn bool_or(&self, i: usize, name: &str, default: bool) -> bool {
        self.get(i, name).map_or(default, Value::is_true)
    }

    fn wrong(&self, name: &str, value: &Value) -> Error {
        Error::new(format!(
            "the argument '{name}' of {} is {}",
            self.of,
            value.type_name()
        ))
    }

    /// Refuses more than `n` arguments, and names other than `names`.
    pub(crate) fn check(&self, n: usize, names: &[&str]) -> Result<(), Error> {
        if self.positional.len() > n {
            return Err(Error::new(format!(
                "{} takes at most {n} arguments",
                self.of
            )));
        }
        for entry in &self.named {
            let name = entry.key.as_str().unwrap_or("?");
            if !names.contains(&name) {
                return Err(Error::new(format!("{} has no argument '{name}'", self.of)));
            }
        }
        Ok(())
    }
}
