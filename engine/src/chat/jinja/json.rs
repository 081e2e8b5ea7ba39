//! JSON, as Python's `json.dumps` writes it, and values from JSON.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};

use serde::Deserializer;
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};

use super::repr::float;
use super::value::{Entry, Value};
use super::{Budget, Error};

/// How JSON is written.
pub(crate) struct Style {
    /// Spaces, or whatever it is, of one level; on one line where there is none.
    pub indent: Option<String>,
    pub between_items: String,
    pub after_key: String,
    pub ensure_ascii: bool,
    pub sort_keys: bool,
}

/// A value as JSON.
pub(crate) fn write(value: &Value, style: &Style, budget: &mut Budget) -> Result<String, Error> {
    let mut writer = Writer {
        out: String::new(),
        style,
        budget,
    };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Writer<'a> {
    out: String,
    style: &'a Style,
    budget: &'a mut Budget,
}

impl Writer<'_> {
    /// Recurses as deep as the value is nested.
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.budget.spend(32)?;
        match value {
            Value::None => self.out.push_str("null"),
            Value::Bool(true) => self.out.push_str("true"),
            Value::Bool(false) => self.out.push_str("false"),
            Value::Int(n) => self.out.push_str(&n.to_string()),
            Value::Float(x) => self.out.push_str(&number(*x)),
            Value::Str(text) => self.string(text)?,
            _ if value.is_generator() => {
                return Err(Error::new("a generator cannot be written as JSON"));
            }
            Value::List(items) | Value::Tuple(items) => {
                self.out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.next(i, depth)?;
                    self.value(item, depth + 1)?;
                }
                self.end(items.len(), depth)?;
                self.out.push(']');
            }
            Value::Dict(dict) => {
                let mut entries: Vec<&Entry> = dict.entries().iter().collect();
                self.budget
                    .spend_times(entries.len(), size_of::<&Entry>())?;
                if self.style.sort_keys {
                    self.sort(&mut entries)?;
                }
                self.out.push('{');
                for (i, entry) in entries.iter().enumerate() {
                    self.next(i, depth)?;
                    self.key(&entry.key)?;
                    self.budget.spend(self.style.after_key.len())?;
                    self.out.push_str(&self.style.after_key);
                    self.value(&entry.value, depth + 1)?;
                }
                self.end(entries.len(), depth)?;
                self.out.push('}');
            }
            Value::Undefined(message) => return Err(Error::new(&**message)),
            _ => {
                let message = format!("{} cannot be written as JSON", value.type_name());
                return Err(Error::new(message));
            }
        }
        Ok(())
    }

    fn sort(&mut self, entries: &mut [&Entry]) -> Result<(), Error> {
        if !entries
            .iter()
            .all(|entry| matches!(entry.key, Value::Str(_)))
        {
            return Err(Error::new("tojson sorts keys that are texts only"));
        }
        let n_compared = entries
            .len()
            .saturating_mul(entries.len().max(1).ilog2() as usize + 1);
        let longest = entries
            .iter()
            .filter_map(|entry| entry.key.as_str())
            .map(str::len)
            .max();
        self.budget
            .spend_times(n_compared, 8 + longest.unwrap_or(0) / 8)?;
        entries.sort_by(|a, b| a.key.as_str().cmp(&b.key.as_str()));
        Ok(())
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key {
            Value::Str(text) => self.string(text),
            Value::None => self.string("null"),
            Value::Bool(b) => self.string(if *b { "true" } else { "false" }),
            Value::Int(n) => self.string(&n.to_string()),
            Value::Float(x) => self.string(&number(*x)),
            _ => Err(Error::new(format!(
                "{} cannot be a key in JSON",
                key.type_name()
            ))),
        }
    }

    /// What comes before item number `i`.
    fn next(&mut self, i: usize, depth: usize) -> Result<(), Error> {
        if i > 0 {
            self.budget.spend(self.style.between_items.len())?;
            self.out.push_str(&self.style.between_items);
        }
        self.line(depth + 1)
    }

    fn end(&mut self, n_items: usize, depth: usize) -> Result<(), Error> {
        match n_items {
            0 => Ok(()),
            _ => self.line(depth),
        }
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.style.indent {
            self.budget.spend_times(depth + 1, indent.len() + 1)?;
            self.out.push('\n');
            (0..depth).for_each(|_| self.out.push_str(indent));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.budget.spend_times(text.len() + 2, 2)?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || self.style.ensure_ascii && !(' '..='~').contains(&c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string does not fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }
}

fn number(x: f64) -> String {
    match x {
        _ if x.is_nan() => "NaN".into(),
        _ if x.is_infinite() => if x < 0.0 { "-Infinity" } else { "Infinity" }.into(),
        _ => float(x),
    }
}

/// A value from JSON; of equal keys the last counts.
pub(crate) fn value_of_json(json: &str) -> Result<Value, String> {
    // A few times its size, and what comparing the keys of objects takes.
    let mut budget = Budget::new((64 << 20) + 64 * json.len() as u64);
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let value = FromJson(&mut budget).deserialize(&mut deserializer);
    let value = value.map_err(|error| error.to_string())?;
    deserializer.end().map_err(|error| error.to_string())?;
    Ok(value)
}

/// Makes values of what a deserializer gives, their keys in its order.
struct FromJson<'b>(&'b mut Budget);

impl FromJson<'_> {
    fn made<E: de::Error>(value: Result<Value, Error>) -> Result<Value, E> {
        value.map_err(|error| match error {
            Error::Failed { message, .. } => E::custom(message),
            _ => E::custom("it is too large"),
        })
    }
}

impl<'de> DeserializeSeed<'de> for FromJson<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FromJson<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::None)
    }

    fn visit_bool<E: de::Error>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }

    fn visit_i64<E: de::Error>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Int(n))
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<Value, E> {
        let n = i64::try_from(n);
        n.map(Value::Int)
            .map_err(|_| E::custom("a number is larger than 64 bits"))
    }

    fn visit_f64<E: de::Error>(self, x: f64) -> Result<Value, E> {
        Ok(Value::Float(x))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(FromJson(self.0))? {
            list.push(item);
        }
        Self::made(Value::list(list, self.0))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key_seed(FromJson(self.0))? {
            let value = map.next_value_seed(FromJson(self.0))?;
            entries.push(Entry { key, value });
        }
        Self::made(Value::dict(entries, self.0))
    }
}
