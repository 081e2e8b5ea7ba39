//! Values as Python prints them.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::Write;

use super::value::Value;
use super::{Budget, Error};

/// `str(value)`.
pub(crate) fn text(value: &Value, budget: &mut Budget) -> Result<String, Error> {
    let mut out = String::new();
    match value {
        Value::Undefined(_) => {}
        Value::Str(text) | Value::Safe(text) => {
            budget.spend(text.len())?;
            out.push_str(text);
        }
        _ => write_repr(value, &mut out, budget)?,
    }
    Ok(out)
}

/// `repr(value)`.
pub(crate) fn repr(value: &Value, budget: &mut Budget) -> Result<String, Error> {
    let mut out = String::new();
    write_repr(value, &mut out, budget)?;
    Ok(out)
}

/// Recurses as deep as the value is nested.
fn write_repr(value: &Value, out: &mut String, budget: &mut Budget) -> Result<(), Error> {
    budget.spend(32)?;
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(n) => out.push_str(&n.to_string()),
        Value::Float(x) => out.push_str(&float(*x)),
        Value::Str(text) | Value::Safe(text) => {
            budget.spend_times(text.len(), 2)?;
            quote(text, out);
        }
        Value::List(items) => {
            out.push('[');
            write_items(items, out, budget)?;
            out.push(']');
        }
        Value::Tuple(items) => {
            out.push('(');
            write_items(items, out, budget)?;
            out.push_str(if items.len() == 1 { ",)" } else { ")" });
        }
        Value::Dict(dict) => {
            out.push('{');
            for (i, entry) in dict.entries().iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write_repr(&entry.key, out, budget)?;
                out.push_str(": ");
                write_repr(&entry.value, out, budget)?;
            }
            out.push('}');
        }
        // Python prints addresses and the like.
        _ => {
            let message = format!("{} cannot be printed", value.type_name());
            return Err(Error::new(message));
        }
    }
    Ok(())
}

fn write_items(items: &[Value], out: &mut String, budget: &mut Budget) -> Result<(), Error> {
    for (i, item) in items.iter().enumerate() {
        out.push_str(if i > 0 { ", " } else { "" });
        write_repr(item, out, budget)?;
    }
    Ok(())
}

/// A text in quotes, with escapes.
fn quote(text: &str, out: &mut String) {
    let mark = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    out.push(mark);
    for c in text.chars() {
        let code = u32::from(c);
        // Writing to a string does not fail.
        let _ = match c {
            '\\' => out.write_str("\\\\"),
            '\n' => out.write_str("\\n"),
            '\r' => out.write_str("\\r"),
            '\t' => out.write_str("\\t"),
            _ if c == mark => write!(out, "\\{c}"),
            _ if is_printable(c) => out.write_char(c),
            _ if code < 0x100 => write!(out, "\\x{code:02x}"),
            _ if code < 0x10000 => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
    }
    out.push(mark);
}

/// Whether Python prints a character as it is. Characters for private use, with which texts are hidden
/// from the template, and unassigned ones are taken for printable.
pub(crate) fn is_printable(c: char) -> bool {
    let is_space = c != ' ' && c.is_whitespace();
    let is_format = matches!(c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0001}'..='\u{e007f}');
    !c.is_control() && !is_space && !is_format
}

/// `repr` of a float: the shortest digits that give it back, with an exponent where Python has one.
pub(crate) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x < 0.0 { "-inf" } else { "inf" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) || x == 0.0 {
        let plain = format!("{x}");
        return match plain.contains('.') {
            true => plain,
            false => plain + ".0",
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// The texts of `values` one after the other.
pub(crate) fn concat(values: &[Value], budget: &mut Budget) -> Result<Value, Error> {
    let mut out = String::new();
    for value in values {
        out.push_str(&text(value, budget)?);
    }
    Value::str(out, budget)
}

/// A value's text as HTML.
pub(crate) fn html(value: &Value, budget: &mut Budget) -> Result<String, Error> {
    let text = text(value, budget)?;
    if matches!(value, Value::Safe(_)) {
        return Ok(text);
    }
    budget.spend_times(text.len(), 5)?;
    let escaped = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    Ok(escaped.replace('\'', "&#39;").replace('"', "&#34;"))
}
