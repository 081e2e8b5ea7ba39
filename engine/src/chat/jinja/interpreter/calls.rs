//! Calls of macros, of functions that every template has, and of methods.

use alloc::format;
use alloc::vec::Vec;
use core::mem;

use super::{Interpreter, LoopState, Variable};
use crate::chat::jinja::call::Arguments;
use crate::chat::jinja::operators::equal;
use crate::chat::jinja::repr::text;
use crate::chat::jinja::value::{Entry, Function, Value};
use crate::chat::jinja::{Error, methods};

/// The longest `range`, which is that of jinja2's sandbox.
const MAX_RANGE: i64 = 100_000;

impl Interpreter<'_> {
    #[inline(never)]
    pub(super) fn call(&mut self, callee: &Value, args: &Arguments) -> Result<Value, Error> {
        callee.defined()?;
        match callee {
            Value::Macro(i) => self.call_macro(*i, args),
            Value::Function(function) => self.function(*function, args),
            Value::Method(method) => match method.of {
                Value::Loop(i) => self.loop_method(i, &method.name, args),
                _ => methods::call(method, args, &mut self.budget),
            },
            _ => Err(Error::new(format!(
                "{} cannot be called",
                callee.type_name()
            ))),
        }
    }

    #[inline(never)]
    fn call_macro(&mut self, i: usize, args: &Arguments) -> Result<Value, Error> {
        let is = self.macros[i].is.clone();
        let outer = mem::replace(&mut self.scope, self.macros[i].scope);
        // The caller's scope is not below the macro's, so that it is told what to go back to.
        self.push_scope()?;
        for (at, param) in is.params.iter().enumerate() {
            let value = match (args.get(at, &param.name), &param.default) {
                (Some(value), _) => value.clone(),
                (None, Some(default)) => self.eval(default)?,
                (None, None) => {
                    Value::undefined(format!("parameter '{}' was not provided", param.name))
                }
            };
            self.set(&param.name, value)?;
        }
        let further = args.positional.get(is.params.len()..).unwrap_or_default();
        let has = |name: &str| is.params.iter().any(|param| &*param.name == name);
        if is.takes_varargs && !has("varargs") {
            let varargs = Value::tuple(further.to_vec(), &mut self.budget)?;
            self.set(&"varargs".into(), varargs)?;
        } else if !further.is_empty() {
            return Err(Error::new(format!(
                "'{}' takes {} arguments at most",
                is.name,
                is.params.len()
            )));
        }
        let is_param = |entry: &Entry| {
            is.params
                .iter()
                .any(|p| entry.key.as_str() == Some(&p.name))
        };
        let mut kwargs = Vec::new();
        for entry in args.named.iter().filter(|entry| !is_param(entry)) {
            match entry.key.as_str() {
                Some("caller") => self.set(&"caller".into(), entry.value.clone())?,
                _ if is.takes_kwargs => kwargs.push(entry.clone()),
                name => {
                    let name = name.unwrap_or("?");
                    return Err(Error::new(format!(
                        "'{}' has no parameter '{name}'",
                        is.name
                    )));
                }
            }
        }
        if is.takes_kwargs && !has("kwargs") {
            let kwargs = Value::dict(kwargs, &mut self.budget)?;
            self.set(&"kwargs".into(), kwargs)?;
        }
        let value = self.captured(&is.body)?;
        self.pop_scope(outer);
        Ok(value)
    }

    #[inline(never)]
    fn function(&mut self, function: Function, args: &Arguments) -> Result<Value, Error> {
        match function {
            Function::Range => {
                let (start, stop) = match args.positional.len() {
                    1 => (0, args.int(0, "stop")?),
                    _ => (args.int(0, "start")?, args.int(1, "stop")?),
                };
                let step = args.int_or(2, "step", 1)?;
                self.range([start, stop, step])
            }
            Function::Dict | Function::Namespace => {
                let mut entries = Vec::new();
                match args.positional.first() {
                    None => {}
                    Some(Value::Dict(dict)) => entries.extend_from_slice(dict.entries()),
                    Some(pairs) => {
                        for pair in pairs.iterate(&mut self.budget)? {
                            let [key, value] = &pair.iterate(&mut self.budget)?[..] else {
                                return Err(Error::new("dict needs pairs"));
                            };
                            let (key, value) = (key.clone(), value.clone());
                            entries.push(Entry { key, value });
                        }
                    }
                }
                entries.extend_from_slice(&args.named);
                let dict = Value::dict(entries, &mut self.budget)?;
                match (function, &dict) {
                    (Function::Namespace, Value::Dict(dict)) => {
                        let names = dict.entries().iter().cloned().filter_map(Variable::of);
                        let names = names.collect();
                        self.namespaces.push(names);
                        Ok(Value::Namespace(self.namespaces.len() - 1))
                    }
                    _ => Ok(dict),
                }
            }
            Function::RaiseException => {
                let message = text(args.need(0, "message")?, &mut self.budget)?;
                Err(Error::Refused(message))
            }
            Function::StrftimeNow => {
                let format = args.str(0, "format")?;
                self.budget.spend_times(format.len(), 64)?;
                let date = (self.strftime_now)(format).map_err(Error::new)?;
                Value::str(date, &mut self.budget)
            }
        }
    }

    /// `range(start, stop, step)`.
    fn range(&mut self, [start, stop, step]: [i64; 3]) -> Result<Value, Error> {
        let too_long = || Error::new(format!("a range has at most {MAX_RANGE} numbers"));
        let distance = match step {
            0 => return Err(Error::new("a range's step is not zero")),
            1.. => stop.checked_sub(start),
            _ => start.checked_sub(stop),
        };
        let distance = distance.ok_or_else(too_long)?.max(0) as u64;
        let n = distance.div_ceil(step.unsigned_abs());
        if n > MAX_RANGE as u64 {
            return Err(too_long());
        }
        self.budget.spend_times(n as usize, size_of::<Value>())?;
        let numbers = (0..n as i64).map(|i| Value::Int(start + i * step));
        Value::list(numbers.collect(), &mut self.budget)
    }

    fn loop_method(&mut self, i: usize, name: &str, args: &Arguments) -> Result<Value, Error> {
        let state = &mut self.loops[i];
        if name == "cycle" {
            let n = args.positional.len();
            let at = state.index.checked_rem(n);
            let at = at.ok_or_else(|| Error::new("cycle needs something to go through"))?;
            return Ok(args.positional[at].clone());
        }
        let same = match &state.last {
            Some(last) if last.len() == args.positional.len() => {
                let mut same = true;
                for (a, b) in last.iter().zip(&args.positional) {
                    same &= equal(a, b, &mut self.budget)?;
                }
                same
            }
            _ => false,
        };
        if !same {
            self.budget
                .spend_times(args.positional.len(), size_of::<Value>())?;
            state.last = Some(args.positional.clone());
        }
        Ok(Value::Bool(!same))
    }
}

impl LoopState {
    pub(super) fn attribute(&self, name: &str) -> Option<Value> {
        let (n, i) = (self.items.len(), self.index);
        let number = |n: usize| Value::Int(n as i64);
        let beside = |at: Option<usize>| {
            let item = at.and_then(|at| self.items.get(at)).cloned();
            item.unwrap_or_else(|| Value::undefined(format!("there is no {name}")))
        };
        Some(match name {
            "index" => number(i + 1),
            "index0" => number(i),
            "revindex" => number(n.saturating_sub(i)),
            "revindex0" => number(n.saturating_sub(i + 1)),
            "first" => Value::Bool(i == 0),
            "last" => Value::Bool(i + 1 == n),
            "length" => number(n),
            "depth" => number(self.depth + 1),
            "depth0" => number(self.depth),
            "previtem" => beside(i.checked_sub(1)),
            "nextitem" => beside(Some(i + 1)),
            _ => return None,
        })
    }
}
