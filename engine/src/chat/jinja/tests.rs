//! What `is` asks.

use alloc::format;

use super::ast::CompareOp;
use super::call::Arguments;
use super::operators::{compare, contains, equal};
use super::value::Value;
use super::{Budget, Error};

/// `value is name args`.
pub(crate) fn apply(
    name: &str,
    value: &Value,
    args: &Arguments,
    budget: &mut Budget,
) -> Result<bool, Error> {
    let op = match name {
        "eq" | "==" | "equalto" => Some(CompareOp::Eq),
        "ne" | "!=" => Some(CompareOp::Ne),
        "lt" | "<" | "lessthan" => Some(CompareOp::Lt),
        "le" | "<=" => Some(CompareOp::Le),
        "gt" | ">" | "greaterthan" => Some(CompareOp::Gt),
        "ge" | ">=" => Some(CompareOp::Ge),
        _ => None,
    };
    if let Some(op) = op {
        return compare(op, value, args.need(0, "other")?, budget);
    }
    let whole = || {
        value.defined()?;
        let wrong = || {
            Error::new(format!(
                "'{name}' asks a whole number, not {}",
                value.type_name()
            ))
        };
        value.as_int().ok_or_else(wrong)
    };
    Ok(match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        // Python's bool is a number, too.
        "number" => value.as_float().is_some(),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        // Whatever has a length and can be indexed; an undefined value pretends to.
        "sequence" if value.is_generator() => false,
        "iterable" | "sequence" => matches!(
            value,
            Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_) | Value::Undefined(_)
        ),
        "callable" => matches!(
            value,
            Value::Macro(_) | Value::Function(_) | Value::Method(_) | Value::Undefined(_)
        ),
        "even" | "odd" if matches!(value, Value::Float(_)) => {
            let rest = value
                .as_float()
                .map_or(0.0, |x| libm::fabs(libm::fmod(x, 2.0)));
            rest == if name == "even" { 0.0 } else { 1.0 }
        }
        "even" => whole()?.rem_euclid(2) == 0,
        "odd" => whole()?.rem_euclid(2) == 1,
        "divisibleby" => match args.int(0, "num")? {
            0 => return Err(Error::new("division by zero")),
            n => whole()?.checked_rem(n) == Some(0),
        },
        "in" => contains(args.need(0, "seq")?, value, budget)?,
        "sameas" => {
            let other = args.need(0, "other")?;
            value.type_name() == other.type_name() && equal(value, other, budget)?
        }
        "lower" | "upper" => {
            let text = super::repr::text(value, budget)?;
            let has_case = text.chars().any(|c| c.is_lowercase() || c.is_uppercase());
            let other = |c: char| {
                if name == "lower" {
                    c.is_uppercase()
                } else {
                    c.is_lowercase()
                }
            };
            has_case && !text.chars().any(other)
        }
        "escaped" => false,
        _ => return Err(Error::new(format!("there is no test '{name}' here"))),
    })
}
