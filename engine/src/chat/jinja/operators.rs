//! Python's operators.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;

use super::ast::{BinaryOp, CompareOp};
use super::format::percent;
use super::repr::html;
use super::value::Value;
use super::{Budget, Error};

/// Whether two values are equal.
pub(crate) fn equal(a: &Value, b: &Value, budget: &mut Budget) -> Result<bool, Error> {
    budget.spend(8)?;
    Ok(match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => {
            budget.spend(a.len().min(b.len()) / 8)?;
            a == b
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (a, b) in a.iter().zip(b.iter()) {
                if !equal(a, b, budget)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(a), Value::Dict(b)) => {
            if a.entries().len() != b.entries().len() {
                return Ok(false);
            }
            for entry in a.entries() {
                match b.get(&entry.key, budget)? {
                    Some(other) if equal(&entry.value, other, budget)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Namespace(a), Value::Namespace(b))
        | (Value::Macro(a), Value::Macro(b))
        | (Value::Loop(a), Value::Loop(b)) => a == b,
        (Value::Function(a), Value::Function(b)) => a == b,
        _ => match (a.as_int(), b.as_int()) {
            (Some(a), Some(b)) => a == b,
            _ => matches!((a.as_float(), b.as_float()), (Some(a), Some(b)) if a == b),
        },
    })
}

/// The order of two values; `None` beside a number that is none.
pub(crate) fn order(a: &Value, b: &Value, budget: &mut Budget) -> Result<Option<Ordering>, Error> {
    budget.spend(8)?;
    a.defined()?;
    b.defined()?;
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => {
            budget.spend(a.len().min(b.len()) / 8)?;
            return Ok(Some(a.cmp(b)));
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (a, b) in a.iter().zip(b.iter()) {
                if !equal(a, b, budget)? {
                    return order(a, b, budget);
                }
            }
            return Ok(Some(a.len().cmp(&b.len())));
        }
        _ => {}
    }
    if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
        return Ok(Some(a.cmp(&b)));
    }
    match (a.as_float(), b.as_float()) {
        (Some(a), Some(b)) => Ok(a.partial_cmp(&b)),
        _ => Err(Error::new(format!(
            "{} and {} have no order",
            a.type_name(),
            b.type_name()
        ))),
    }
}

pub(crate) fn compare(
    op: CompareOp,
    a: &Value,
    b: &Value,
    budget: &mut Budget,
) -> Result<bool, Error> {
    Ok(match op {
        CompareOp::Eq => equal(a, b, budget)?,
        CompareOp::Ne => !equal(a, b, budget)?,
        CompareOp::Lt => order(a, b, budget)?.is_some_and(Ordering::is_lt),
        CompareOp::Le => order(a, b, budget)?.is_some_and(Ordering::is_le),
        CompareOp::Gt => order(a, b, budget)?.is_some_and(Ordering::is_gt),
        CompareOp::Ge => order(a, b, budget)?.is_some_and(Ordering::is_ge),
        CompareOp::In => contains(b, a, budget)?,
        CompareOp::NotIn => !contains(b, a, budget)?,
    })
}

/// Whether `item` is in `container`.
pub(crate) fn contains(
    container: &Value,
    item: &Value,
    budget: &mut Budget,
) -> Result<bool, Error> {
    match container {
        Value::Str(text) => match item {
            Value::Str(part) => {
                budget.spend(text.len())?;
                Ok(text.contains(&**part))
            }
            _ => {
                item.defined()?;
                let found = item.type_name();
                Err(Error::new(format!(
                    "'in <string>' needs a string, not {found}"
                )))
            }
        },
        Value::List(items) | Value::Tuple(items) => {
            for other in items.iter() {
                if equal(other, item, budget)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Dict(dict) => Ok(dict.get(item, budget)?.is_some()),
        Value::Undefined(_) => Ok(false),
        _ => Err(Error::new(format!(
            "{} is not iterable",
            container.type_name()
        ))),
    }
}

/// `a op b`.
pub(crate) fn binary(
    op: BinaryOp,
    a: &Value,
    b: &Value,
    budget: &mut Budget,
) -> Result<Value, Error> {
    // `'text' % undefined` prints nothing where it stands.
    if !(op == BinaryOp::Mod && matches!(a, Value::Str(_))) {
        a.defined()?;
        b.defined()?;
    }
    if op != BinaryOp::Add && matches!((a, b), (Value::Safe(_), _) | (_, Value::Safe(_))) {
        return binary(op, &a.clone().plain(), &b.clone().plain(), budget);
    }
    if a.is_generator() || b.is_generator() {
        return Err(Error::new(format!(
            "a generator does not go with '{}'",
            symbol(op)
        )));
    }
    match (op, a, b) {
        (BinaryOp::Add, Value::Safe(_), _) | (BinaryOp::Add, _, Value::Safe(_)) => {
            let text: String = [html(a, budget)?, html(b, budget)?].concat();
            budget.spend(text.len())?;
            return Ok(Value::Safe(text.into()));
        }
        (BinaryOp::Add, Value::Str(a), Value::Str(b)) => {
            budget.spend(a.len() + b.len())?;
            let text: String = [&**a, &**b].concat();
            return Ok(Value::Str(text.into()));
        }
        (BinaryOp::Add, Value::List(a), Value::List(b)) => {
            let items: Vec<Value> = a.iter().chain(b.iter()).cloned().collect();
            return Value::list(items, budget);
        }
        (BinaryOp::Add, Value::Tuple(a), Value::Tuple(b)) => {
            let items: Vec<Value> = a.iter().chain(b.iter()).cloned().collect();
            return Value::tuple(items, budget);
        }
        (BinaryOp::Mul, Value::Str(_) | Value::List(_) | Value::Tuple(_), _) => {
            if let Some(n) = b.as_int() {
                return repeat(a, n, budget);
            }
        }
        (BinaryOp::Mul, _, Value::Str(_) | Value::List(_) | Value::Tuple(_)) => {
            if let Some(n) = a.as_int() {
                return repeat(b, n, budget);
            }
        }
        (BinaryOp::Mod, Value::Str(text), _) => return percent(text, b, budget),
        _ => {}
    }
    if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
        return integers(op, a, b);
    }
    match (a.as_float(), b.as_float()) {
        (Some(a), Some(b)) => floats(op, a, b),
        _ => Err(Error::new(format!(
            "{} and {} do not go with '{}'",
            a.type_name(),
            b.type_name(),
            symbol(op)
        ))),
    }
}

fn symbol(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::FloorDiv => "//",
        BinaryOp::Mod => "%",
        BinaryOp::Pow => "**",
    }
}

/// A text or items `n` times.
fn repeat(value: &Value, n: i64, budget: &mut Budget) -> Result<Value, Error> {
    let n = usize::try_from(n).unwrap_or(0);
    let repeated = |items: &[Value]| {
        let n = if items.is_empty() { 0 } else { n };
        (0..n).flat_map(|_| items).cloned().collect()
    };
    match value {
        Value::Str(text) => {
            budget.spend_times(n, text.len())?;
            Ok(Value::Str(text.repeat(n).into()))
        }
        Value::List(items) => {
            budget.spend_times(n, items.len() * size_of::<Value>())?;
            Value::list(repeated(items), budget)
        }
        Value::Tuple(items) => {
            budget.spend_times(n, items.len() * size_of::<Value>())?;
            Value::tuple(repeated(items), budget)
        }
        _ => Err(Error::new("only texts and lists can be repeated")),
    }
}

fn zero() -> Error {
    Error::new("division by zero")
}

fn integers(op: BinaryOp, a: i64, b: i64) -> Result<Value, Error> {
    let result = match op {
        BinaryOp::Add => a.checked_add(b),
        BinaryOp::Sub => a.checked_sub(b),
        BinaryOp::Mul => a.checked_mul(b),
        BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Mod if b == 0 => return Err(zero()),
        BinaryOp::Div => return Ok(Value::Float(a as f64 / b as f64)),
        // Rounded towards minus infinity, and the rest has the divisor's sign.
        BinaryOp::FloorDiv => a.checked_div(b).map(|q| {
            let is_below = a % b != 0 && (a < 0) != (b < 0);
            q - i64::from(is_below)
        }),
        BinaryOp::Mod => a
            .checked_rem(b)
            .map(|rest| match rest != 0 && (rest < 0) != (b < 0) {
                true => rest + b,
                false => rest,
            }),
        BinaryOp::Pow => match u32::try_from(b) {
            Ok(b) => a.checked_pow(b),
            Err(_) if b < 0 => return floats(op, a as f64, b as f64),
            Err(_) => None,
        },
    };
    let too_large = || Error::new("a number is larger than 64 bits");
    Ok(Value::Int(result.ok_or_else(too_large)?))
}

fn floats(op: BinaryOp, a: f64, b: f64) -> Result<Value, Error> {
    let is_division = matches!(op, BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Mod);
    if b == 0.0 && is_division || op == BinaryOp::Pow && a == 0.0 && b < 0.0 {
        return Err(zero());
    }
    let rest = |a: f64, b: f64| {
        let rest = libm::fmod(a, b);
        match rest != 0.0 && (rest < 0.0) != (b < 0.0) {
            true => rest + b,
            false => rest,
        }
    };
    Ok(Value::Float(match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::FloorDiv => libm::floor((a - rest(a, b)) / b + 0.5),
        BinaryOp::Mod => rest(a, b),
        BinaryOp::Pow => libm::pow(a, b),
    }))
}
