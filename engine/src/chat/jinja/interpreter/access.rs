//! Attributes, items and slices of values.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Interpreter, clip};
use crate::chat::jinja::ast::{Name, Slice};
use crate::chat::jinja::value::{Method, Value};
use crate::chat::jinja::{Error, methods};

impl Interpreter<'_> {
    /// `value.name`: the attribute, or the item where there is none.
    pub(crate) fn attribute(&mut self, value: &Value, name: &Name) -> Result<Value, Error> {
        let found = self.attribute_only(value, name)?;
        if !found.is_undefined() {
            return Ok(found);
        }
        if let Value::Dict(dict) = value
            && let Some(item) = dict.get_str(name, &mut self.budget)?
        {
            return Ok(item.clone());
        }
        Ok(found)
    }

    /// `value.name`, but no item.
    pub(crate) fn attribute_only(&mut self, value: &Value, name: &str) -> Result<Value, Error> {
        value.defined()?;
        match value {
            Value::Namespace(i) => {
                let names = &self.namespaces[*i];
                self.budget.spend(names.len())?;
                if let Some(found) = names.iter().find(|v| *v.name == *name) {
                    return Ok(found.value.clone());
                }
            }
            Value::Loop(i) => {
                if let Some(value) = self.loops[*i].attribute(name) {
                    return Ok(value);
                }
            }
            _ => {}
        }
        if methods::has(value, name) {
            self.budget.spend(size_of::<Method>() + name.len())?;
            let (of, name) = (value.clone(), name.into());
            return Ok(Value::Method(Arc::new(Method { of, name })));
        }
        let of = value.type_name();
        self.undefined(format!("{of} has no attribute '{}'", clip(name)))
    }

    /// `value[key]`: the item, or the attribute where there is none.
    pub(crate) fn item(&mut self, value: &Value, key: &Value) -> Result<Value, Error> {
        value.defined()?;
        let found = match value {
            Value::Dict(dict) => dict.get(key, &mut self.budget)?.cloned(),
            Value::List(items) | Value::Tuple(items) if !value.is_generator() => {
                let at = key.as_int().and_then(|i| place(i, items.len()));
                at.map(|at| items[at].clone())
            }
            Value::Str(text) => match key.as_int() {
                Some(i) => {
                    self.budget.spend(text.len())?;
                    let at = place(i, text.chars().count());
                    let c = at.and_then(|at| text.chars().nth(at));
                    c.map(|c| Value::Str((&*c.encode_utf8(&mut [0; 4])).into()))
                }
                None => None,
            },
            _ => None,
        };
        match (found, key) {
            (Some(found), _) => Ok(found),
            (None, Value::Str(name)) => self.attribute_only(value, name),
            (None, _) => Ok(Value::undefined(format!(
                "{} has no such item",
                value.type_name()
            ))),
        }
    }

    #[inline(never)]
    pub(super) fn slice(&mut self, value: &Value, slice: &Slice) -> Result<Value, Error> {
        value.defined()?;
        let mut bounds = [None; 3];
        for (bound, expr) in bounds
            .iter_mut()
            .zip([&slice.start, &slice.stop, &slice.step])
        {
            let Some(expr) = expr else { continue };
            *bound = match self.eval(expr)? {
                Value::None => None,
                other => {
                    let wrong = || Error::new(format!("a slice's bound is {}", other.type_name()));
                    Some(other.as_int().ok_or_else(wrong)?)
                }
            };
        }
        let len = match value {
            _ if value.is_generator() => return self.undefined("a generator has no slices".into()),
            Value::List(_) | Value::Tuple(_) | Value::Str(_) => value.len(&mut self.budget)?,
            _ => {
                return Ok(Value::undefined(format!(
                    "{} has no slices",
                    value.type_name()
                )));
            }
        };
        self.budget.spend_times(len, size_of::<usize>())?;
        let places = places(len, bounds)?;
        self.budget.spend_times(places.len(), size_of::<Value>())?;
        let pick = |items: &[Value]| places.iter().map(|at| items[*at].clone()).collect();
        match value {
            Value::List(items) => Value::list(pick(items), &mut self.budget),
            Value::Tuple(items) => Value::tuple(pick(items), &mut self.budget),
            Value::Str(text) => {
                self.budget.spend_times(len, size_of::<char>())?;
                let chars: Vec<char> = text.chars().collect();
                let text: String = places.iter().map(|at| chars[*at]).collect();
                Value::str(text, &mut self.budget)
            }
            _ => Ok(Value::None),
        }
    }
}

/// The place that an index, which counts from the end where it is negative, is of `len`.
fn place(index: i64, len: usize) -> Option<usize> {
    let len = i64::try_from(len).ok()?;
    let at = if index < 0 {
        index.checked_add(len)?
    } else {
        index
    };
    (0..len).contains(&at).then_some(at as usize)
}

/// The places that `[start:stop:step]` selects of `len`, as Python does.
fn places(len: usize, [start, stop, step]: [Option<i64>; 3]) -> Result<Vec<usize>, Error> {
    let len = len as i64;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::new("a slice's step is not zero"));
    }
    // Below 0 and above `len - 1`, where a walk backwards ends and begins.
    let (least, most) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |bound: i64| {
        let at = if bound < 0 {
            bound.saturating_add(len)
        } else {
            bound
        };
        at.clamp(least, most)
    };
    let (first, end) = if step > 0 {
        (least, most)
    } else {
        (most, least)
    };
    let mut at = start.map_or(first, bound);
    let end = stop.map_or(end, bound);
    let mut places = Vec::new();
    while if step > 0 { at < end } else { at > end } {
        places.push(at as usize);
        at = at.saturating_add(step);
    }
    Ok(places)
}
