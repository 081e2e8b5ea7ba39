//! The values of templates.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::operators::equal;
use super::{Budget, Error};

/// How deep a value may be nested.
pub(crate) const MAX_DEPTH: u8 = 60;

/// What a list's item and a dictionary's entry cost beside what is in them.
const ITEM_BYTES: usize = size_of::<Value>();

/// A value, with Python's meaning.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Nothing; the text says what is missing.
    Undefined(Arc<str>),
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    /// A text that is HTML already, Python's `Markup`: what `+` adds to it is escaped. It is this in
    /// variables and beside operators only, else a [`Value::Str`].
    Safe(Arc<str>),
    List(Arc<Items>),
    Tuple(Arc<Items>),
    Dict(Arc<Dict>),
    /// One of the rendering's namespaces.
    Namespace(usize),
    /// The `loop` of one of the rendering's loops.
    Loop(usize),
    /// One of the rendering's macros.
    Macro(usize),
    /// A function that every template has.
    Function(Function),
    /// A value's method, not yet called.
    Method(Arc<Method>),
}

/// The functions that every template has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Dict,
    Namespace,
    RaiseException,
    Range,
    StrftimeNow,
}

/// A method of a value.
#[derive(Debug)]
pub(crate) struct Method {
    pub of: Value,
    pub name: Arc<str>,
}

/// Items of a list or a tuple.
#[derive(Debug)]
pub(crate) struct Items {
    items: Vec<Value>,
    depth: u8,
    /// Whether Python has a generator here: it is true, and has no length and no items to ask for.
    is_generator: bool,
}

impl core::ops::Deref for Items {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.items
    }
}

/// A dictionary, in the order in which its keys came.
#[derive(Debug)]
pub(crate) struct Dict {
    entries: Vec<Entry>,
    depth: u8,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: Value,
    pub value: Value,
}

impl Dict {
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The value of a key that is a text.
    pub(crate) fn get_str(&self, key: &str, budget: &mut Budget) -> Result<Option<&Value>, Error> {
        budget.spend(self.entries.len())?;
        for entry in &self.entries {
            let Value::Str(other) = &entry.key else {
                continue;
            };
            if other.len() == key.len() {
                budget.spend(key.len() / 8)?;
                if **other == *key {
                    return Ok(Some(&entry.value));
                }
            }
        }
        Ok(None)
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &Value, budget: &mut Budget) -> Result<Option<&Value>, Error> {
        if let Value::Str(key) = key {
            return self.get_str(key, budget);
        }
        for entry in &self.entries {
            if equal(&entry.key, key, budget)? {
                return Ok(Some(&entry.value));
            }
        }
        Ok(None)
    }
}

/// The depth of what has parts of these depths.
fn depth_over(parts: impl Iterator<Item = u8>) -> Result<u8, Error> {
    let depth = parts.max().unwrap_or(0) + 1;
    match depth > MAX_DEPTH {
        true => Err(Error::new("a value is nested too deeply")),
        false => Ok(depth),
    }
}

impl Value {
    pub(crate) fn undefined(message: impl Into<String>) -> Value {
        Value::Undefined(message.into().into())
    }

    pub(crate) fn str(text: impl Into<String>, budget: &mut Budget) -> Result<Value, Error> {
        let text: String = text.into();
        budget.spend(text.len())?;
        Ok(Value::Str(text.into()))
    }

    pub(crate) fn list(items: Vec<Value>, budget: &mut Budget) -> Result<Value, Error> {
        Ok(Value::List(Self::items(items, false, budget)?))
    }

    pub(crate) fn tuple(items: Vec<Value>, budget: &mut Budget) -> Result<Value, Error> {
        Ok(Value::Tuple(Self::items(items, false, budget)?))
    }

    /// What filters give that are generators in Python: a list, but for what that has no length for.
    pub(crate) fn generator(items: Vec<Value>, budget: &mut Budget) -> Result<Value, Error> {
        Ok(Value::List(Self::items(items, true, budget)?))
    }

    fn items(
        items: Vec<Value>,
        is_generator: bool,
        budget: &mut Budget,
    ) -> Result<Arc<Items>, Error> {
        budget.spend_times(items.len() + 1, ITEM_BYTES)?;
        let depth = depth_over(items.iter().map(Value::depth))?;
        Ok(Arc::new(Items {
            items,
            depth,
            is_generator,
        }))
    }

    pub(crate) fn is_generator(&self) -> bool {
        matches!(self, Value::List(items) if items.is_generator)
    }

    /// A dictionary; of equal keys the last counts.
    pub(crate) fn dict(entries: Vec<Entry>, budget: &mut Budget) -> Result<Value, Error> {
        budget.spend_times(entries.len() + 1, 2 * ITEM_BYTES)?;
        let mut unique: Vec<Entry> = Vec::with_capacity(entries.len());
        for entry in entries {
            entry.key.check_key(budget)?;
            budget.spend(unique.len())?;
            let mut at = None;
            for (i, other) in unique.iter().enumerate() {
                if equal(&other.key, &entry.key, budget)? {
                    at = Some(i);
                }
            }
            match at {
                Some(i) => unique[i].value = entry.value,
                None => unique.push(entry),
            }
        }
        let depth = depth_over(
            unique
                .iter()
                .map(|entry| entry.value.depth().max(entry.key.depth())),
        )?;
        let entries = unique;
        Ok(Value::Dict(Arc::new(Dict { entries, depth })))
    }

    /// Whether this can be a key, which lists and dictionaries cannot.
    fn check_key(&self, budget: &mut Budget) -> Result<(), Error> {
        budget.spend(8)?;
        match self {
            Value::List(_) | Value::Dict(_) => {
                Err(Error::new(format!("{} cannot be a key", self.type_name())))
            }
            Value::Tuple(items) => {
                let mut items = items.iter();
                items.try_for_each(|item| item.check_key(budget))
            }
            _ => Ok(()),
        }
    }

    fn depth(&self) -> u8 {
        match self {
            Value::List(items) | Value::Tuple(items) => items.depth,
            Value::Dict(dict) => dict.depth,
            Value::Method(method) => method.of.depth(),
            _ => 0,
        }
    }

    /// Python's name of the type.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "an undefined value",
            Value::None => "None",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) | Value::Safe(_) => "str",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::Namespace(_) => "namespace",
            Value::Loop(_) => "loop",
            Value::Macro(_) => "macro",
            Value::Function(_) => "function",
            Value::Method(_) => "method",
        }
    }

    pub(crate) fn is_true(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(b) => *b,
            Value::Int(n) => *n != 0,
            Value::Float(x) => *x != 0.0,
            Value::Str(text) | Value::Safe(text) => !text.is_empty(),
            Value::List(items) | Value::Tuple(items) => items.is_generator || !items.is_empty(),
            Value::Dict(dict) => !dict.entries.is_empty(),
            _ => true,
        }
    }

    pub(crate) fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) | Value::Safe(text) => Some(text),
            _ => None,
        }
    }

    /// A text as any other, also where it was HTML.
    pub(crate) fn plain(self) -> Value {
        match self {
            Value::Safe(text) => Value::Str(text),
            other => other,
        }
    }

    /// The integer that this is, as a bool is one, too.
    pub(crate) fn as_int(&self) -> Option<i64> {
        match self {
            Value::Bool(b) => Some(i64::from(*b)),
            Value::Int(n) => Some(*n),
            _ => None,
        }
    }

    pub(crate) fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(x) => Some(*x),
            _ => self.as_int().map(|n| n as f64),
        }
    }

    /// An error that says what this is, if it is undefined.
    pub(crate) fn defined(&self) -> Result<(), Error> {
        match self {
            Value::Undefined(message) => Err(Error::new(&**message)),
            _ => Ok(()),
        }
    }

    /// The items that a loop over this goes through.
    pub(crate) fn iterate(&self, budget: &mut Budget) -> Result<Vec<Value>, Error> {
        match self {
            Value::Undefined(_) => Ok(Vec::new()),
            Value::List(items) | Value::Tuple(items) => {
                budget.spend_times(items.len(), ITEM_BYTES)?;
                Ok(items.to_vec())
            }
            Value::Dict(dict) => {
                budget.spend_times(dict.entries.len(), ITEM_BYTES)?;
                Ok(dict.entries.iter().map(|entry| entry.key.clone()).collect())
            }
            Value::Str(text) => {
                // Each is a text of its own.
                budget.spend_times(text.len(), ITEM_BYTES + 32)?;
                let mut buffer = [0; 4];
                let mut char = |c: char| Value::Str((&*c.encode_utf8(&mut buffer)).into());
                Ok(text.chars().map(&mut char).collect())
            }
            _ => Err(Error::new(format!("{} is not iterable", self.type_name()))),
        }
    }

    /// The number of items, or of characters.
    pub(crate) fn len(&self, budget: &mut Budget) -> Result<usize, Error> {
        match self {
            Value::Undefined(_) => Ok(0),
            Value::List(items) if items.is_generator => {
                Err(Error::new("a generator has no length"))
            }
            Value::List(items) | Value::Tuple(items) => Ok(items.len()),
            Value::Dict(dict) => Ok(dict.entries.len()),
            Value::Str(text) => {
                budget.spend(text.len())?;
                Ok(text.chars().count())
            }
            _ => Err(Error::new(format!("{} has no length", self.type_name()))),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Str(text.into())
    }
}
