//! Filters: those of jinja2, and `tojson` as Hugging Face has it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Ordering;

use super::call::Arguments;
use super::interpreter::Interpreter;
use super::json::{Style, write};
use super::lexer::is_space;
use super::methods::{cased, items, pad, replace, split_lines};
use super::operators::{binary, equal, order};
use super::repr::{html, text};
use super::value::Value;
use super::{Budget, Error, ast::BinaryOp, tests};

/// `value | name(args)`.
pub(crate) fn apply(
    at: &mut Interpreter<'_>,
    name: &str,
    value: &Value,
    args: &Arguments,
) -> Result<Value, Error> {
    match name {
        "map" | "select" | "reject" | "selectattr" | "rejectattr" => each(at, name, value, args),
        "sort" | "unique" | "min" | "max" | "sum" | "dictsort" => ordered(at, name, value, args),
        "batch" | "slice" => grouped(value, name, args, &mut at.budget),
        "first" | "last" | "list" | "length" | "count" | "reverse" | "items" | "join" => {
            collection(at, name, value, args)
        }
        "abs" | "round" | "int" | "float" => number(value, name, args, &mut at.budget),
        "attr" => at.attribute_only(value, args.str(0, "name")?),
        "default" | "d" => {
            let use_it =
                value.is_undefined() || args.bool_or(1, "boolean", false) && !value.is_true();
            let default = args.get(0, "default_value");
            Ok(match use_it {
                true => default.cloned().unwrap_or_else(|| "".into()),
                false => value.clone(),
            })
        }
        "tojson" => to_json(value, args, &mut at.budget),
        _ => of_text(value, name, args, &mut at.budget),
    }
}

/// Filters that apply a filter, a test or an attribute to each item.
fn each(
    at: &mut Interpreter<'_>,
    name: &str,
    value: &Value,
    args: &Arguments,
) -> Result<Value, Error> {
    let mut out = Vec::new();
    let by_attribute = name.ends_with("attr");
    // The arguments of the filter or the test, which are behind its name.
    let test = usize::from(by_attribute);
    let behind = args.positional.get(test + 1..).unwrap_or_default();
    let n_bytes = size_of_val(behind) + size_of_val(&args.named[..]);
    at.budget.spend(n_bytes)?;
    let inner = Arguments {
        of: match args.positional.get(test) {
            Some(Value::Str(name)) => name.clone(),
            _ => Arc::from(name),
        },
        positional: behind.to_vec(),
        named: args.named.clone(),
    };
    // As jinja2 asks `if seq`, none and zero are empty, too.
    let items = match value.is_true() {
        true => value.iterate(&mut at.budget)?,
        false => Vec::new(),
    };
    for item in items {
        at.budget.step()?;
        if name == "map" {
            out.push(match args.named("attribute") {
                Some(path) => {
                    let found = lookup(at, &item, path)?;
                    match (found.is_undefined(), args.named("default")) {
                        (true, Some(default)) => default.clone(),
                        _ => found,
                    }
                }
                None => {
                    // It may be this filter again.
                    at.enter()?;
                    let value = apply(at, args.str(0, "filter")?, &item, &inner)?;
                    at.leave();
                    value
                }
            });
            continue;
        }
        let tested = match by_attribute {
            true => lookup(at, &item, args.need(0, "attribute")?)?,
            false => item.clone(),
        };
        let found = match args.positional.get(test) {
            Some(_) => tests::apply(args.str(test, "test")?, &tested, &inner, &mut at.budget)?,
            None => tested.is_true(),
        };
        if found != name.starts_with("reject") {
            out.push(item);
        }
    }
    Value::generator(out, &mut at.budget)
}

/// What `path`, keys with points between them or a number, leads to in `value`.
fn lookup(at: &mut Interpreter<'_>, value: &Value, path: &Value) -> Result<Value, Error> {
    let Value::Str(path) = path else {
        return at.item(value, path);
    };
    let mut value = value.clone();
    for part in path.split('.') {
        at.budget.step()?;
        at.budget.spend(part.len())?;
        let key = match part.parse::<i64>() {
            Ok(n) => Value::Int(n),
            Err(_) => part.into(),
        };
        value = at.item(&value, &key)?;
    }
    Ok(value)
}

/// What items are ordered by.
fn sort_key(
    at: &mut Interpreter<'_>,
    item: &Value,
    attribute: Option<&Value>,
    case_sensitive: bool,
) -> Result<Value, Error> {
    let key = match attribute {
        None | Some(Value::None) => item.clone(),
        Some(path) => lookup(at, item, path)?,
    };
    match &key {
        Value::Str(text) if !case_sensitive => Value::str(text.to_lowercase(), &mut at.budget),
        _ => Ok(key),
    }
}

/// An item with what it is ordered by.
#[derive(Clone)]
struct Keyed {
    key: Value,
    item: Value,
}

/// Filters that compare items.
fn ordered(
    at: &mut Interpreter<'_>,
    name: &str,
    value: &Value,
    args: &Arguments,
) -> Result<Value, Error> {
    let all = match value {
        Value::Dict(dict) if name == "dictsort" => {
            items(dict.entries(), &mut at.budget)?.iterate(&mut at.budget)?
        }
        _ => value.iterate(&mut at.budget)?,
    };
    let by_value = name == "dictsort" && args.str_or(1, "by", "key")? == "value";
    let second = Value::Int(i64::from(by_value));
    let (case, attribute, reverse) = match name {
        "dictsort" => (
            args.bool_or(0, "case_sensitive", false),
            Some(&second),
            args.bool_or(2, "reverse", false),
        ),
        "sort" => (
            args.bool_or(1, "case_sensitive", false),
            args.get(2, "attribute"),
            args.bool_or(0, "reverse", false),
        ),
        "sum" => (true, args.get(0, "attribute"), false),
        _ => (
            args.bool_or(0, "case_sensitive", false),
            args.get(1, "attribute"),
            false,
        ),
    };
    let mut keyed = Vec::new();
    for item in all {
        at.budget.step()?;
        let key = sort_key(at, &item, attribute, case)?;
        keyed.push(Keyed { key, item });
    }
    let budget = &mut at.budget;
    match name {
        "sum" => {
            let mut sum = args.get(1, "start").cloned().unwrap_or(Value::Int(0));
            for Keyed { key, .. } in &keyed {
                sum = binary(BinaryOp::Add, &sum, key, budget)?;
            }
            Ok(sum)
        }
        "unique" => {
            let mut out: Vec<Keyed> = Vec::new();
            for next in keyed {
                let mut is_new = true;
                for other in &out {
                    is_new &= !equal(&other.key, &next.key, budget)?;
                }
                if is_new {
                    out.push(next);
                }
            }
            Value::generator(out.into_iter().map(|k| k.item).collect(), budget)
        }
        "min" | "max" => {
            let mut best: Option<Keyed> = None;
            for next in keyed {
                let is_better = match &best {
                    None => true,
                    Some(best) => {
                        let order = order(&next.key, &best.key, budget)?;
                        order
                            == Some(if name == "min" {
                                Ordering::Less
                            } else {
                                Ordering::Greater
                            })
                    }
                };
                if is_better {
                    best = Some(next);
                }
            }
            let none = || Value::undefined("an empty sequence has no least or largest item");
            Ok(best.map_or_else(none, |k| k.item))
        }
        _ => {
            // Equal items keep their order, reversed or not.
            if reverse {
                keyed.reverse();
            }
            let mut keyed = sorted(keyed, budget)?;
            if reverse {
                keyed.reverse();
            }
            Value::list(keyed.into_iter().map(|k| k.item).collect(), budget)
        }
    }
}

/// A stable sort, which stops at keys that have no order: those of `core` may panic there.
fn sorted(mut items: Vec<Keyed>, budget: &mut Budget) -> Result<Vec<Keyed>, Error> {
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        for pair in items.chunks(2 * width) {
            let (mut a, mut b) = pair.split_at(width.min(pair.len()));
            while let (Some(first), Some(second)) = (a.first(), b.first()) {
                let order = order(&second.key, &first.key, budget)?;
                let order = order.ok_or_else(|| Error::new("nan has no place in an order"))?;
                budget.spend(size_of::<Keyed>())?;
                match order {
                    Ordering::Less => {
                        merged.push(second.clone());
                        b = &b[1..];
                    }
                    _ => {
                        merged.push(first.clone());
                        a = &a[1..];
                    }
                }
            }
            merged.extend_from_slice(a);
            merged.extend_from_slice(b);
        }
        items = merged;
        width *= 2;
    }
    Ok(items)
}

/// `batch`: rows of `n` items; `slice`: `n` rows.
fn grouped(
    value: &Value,
    name: &str,
    args: &Arguments,
    budget: &mut Budget,
) -> Result<Value, Error> {
    let all = value.iterate(budget)?;
    let n = args.int(
        0,
        if name == "batch" {
            "linecount"
        } else {
            "slices"
        },
    )?;
    let n = usize::try_from(n).ok().filter(|n| *n > 0);
    let n = n.ok_or_else(|| Error::new(format!("{name} needs a number above 0")))?;
    let fill = args
        .get(1, "fill_with")
        .filter(|fill| !matches!(fill, Value::None));
    let mut rows = Vec::new();
    if name == "batch" {
        for chunk in all.chunks(n) {
            let mut row = chunk.to_vec();
            if let Some(fill) = fill {
                budget.spend_times(n - row.len(), size_of::<Value>())?;
                row.resize(n, fill.clone());
            }
            rows.push(Value::list(row, budget)?);
        }
        return Value::generator(rows, budget);
    }
    budget.spend_times(n, 2 * size_of::<Value>())?;
    let (short, n_long) = (all.len() / n, all.len() % n);
    let mut rest = &all[..];
    for i in 0..n {
        let (row, others) = rest.split_at(short + usize::from(i < n_long));
        rest = others;
        let mut row = row.to_vec();
        if let Some(fill) = fill.filter(|_| n_long > 0 && i >= n_long) {
            row.push(fill.clone());
        }
        rows.push(Value::list(row, budget)?);
    }
    Value::generator(rows, budget)
}

fn collection(
    at: &mut Interpreter<'_>,
    name: &str,
    value: &Value,
    args: &Arguments,
) -> Result<Value, Error> {
    match name {
        "length" | "count" => Ok(Value::Int(value.len(&mut at.budget)? as i64)),
        "list" => {
            let items = value.iterate(&mut at.budget)?;
            Value::list(items, &mut at.budget)
        }
        "last" if value.is_generator() => Err(Error::new("a generator cannot be reversed")),
        "first" | "last" => {
            let items = value.iterate(&mut at.budget)?;
            let item = if name == "first" {
                items.first()
            } else {
                items.last()
            };
            let none =
                || Value::undefined(format!("there is no {name} item, the sequence is empty"));
            Ok(item.cloned().unwrap_or_else(none))
        }
        "reverse" => {
            if let Value::Str(text) = value {
                at.budget.spend(text.len())?;
                return Value::str(text.chars().rev().collect::<String>(), &mut at.budget);
            }
            let mut items = value.iterate(&mut at.budget)?;
            items.reverse();
            // Only what is there as a whole can be gone through backwards without a list of its own.
            match value.is_generator() {
                true => Value::list(items, &mut at.budget),
                false => Value::generator(items, &mut at.budget),
            }
        }
        "items" => match value {
            Value::Dict(dict) => {
                let pairs = items(dict.entries(), &mut at.budget)?;
                let pairs = pairs.iterate(&mut at.budget)?;
                Value::generator(pairs, &mut at.budget)
            }
            Value::Undefined(_) => Value::generator(Vec::new(), &mut at.budget),
            _ => Err(Error::new(format!("{} has no items", value.type_name()))),
        },
        _ => {
            let between = match args.get(0, "d") {
                Some(d) => text(d, &mut at.budget)?,
                None => String::new(),
            };
            let mut out = String::new();
            for (i, item) in value.iterate(&mut at.budget)?.iter().enumerate() {
                let item = match args.get(1, "attribute") {
                    None | Some(Value::None) => text(item, &mut at.budget)?,
                    Some(path) => {
                        let item = lookup(at, item, path)?;
                        text(&item, &mut at.budget)?
                    }
                };
                at.budget.spend(between.len() + item.len())?;
                out.push_str(if i > 0 { &between } else { "" });
                out.push_str(&item);
            }
            Value::str(out, &mut at.budget)
        }
    }
}

fn number(
    value: &Value,
    name: &str,
    args: &Arguments,
    budget: &mut Budget,
) -> Result<Value, Error> {
    if let Value::Str(text) = value {
        budget.spend(text.len())?;
    }
    let wrong = || Error::new(format!("{name} needs a number, not {}", value.type_name()));
    value.defined()?;
    match name {
        "int" => {
            let default = args.get(0, "default").cloned().unwrap_or(Value::Int(0));
            let base = u32::try_from(args.int_or(1, "base", 10)?).ok();
            let base = base.filter(|base| (2..=36).contains(base));
            let base = base.ok_or_else(|| Error::new("int: the base is not valid"))?;
            let whole = |x: f64| (x.is_finite() && x.abs() < 9.2e18).then_some(x as i64);
            let found = match value {
                Value::Str(text) => {
                    let text = text.trim_matches(is_space).replace('_', "").to_lowercase();
                    let prefix = match base {
                        16 => "0x",
                        8 => "0o",
                        2 => "0b",
                        _ => "",
                    };
                    let digits = text.strip_prefix(prefix).unwrap_or(&text);
                    let whole_text = i64::from_str_radix(digits, base).ok();
                    whole_text.or_else(|| text.parse().ok().and_then(whole))
                }
                Value::Float(x) => whole(*x),
                _ => value.as_int(),
            };
            Ok(found.map_or(default, Value::Int))
        }
        "float" => {
            let default = args.get(0, "default").cloned().unwrap_or(Value::Float(0.0));
            let found = match value {
                Value::Str(text) => text.trim_matches(is_space).replace('_', "").parse().ok(),
                _ => value.as_float(),
            };
            Ok(found.map_or(default, Value::Float))
        }
        "abs" => match (value.as_int(), value.as_float()) {
            (Some(n), _) => Ok(Value::Int(n.checked_abs().ok_or_else(wrong)?)),
            (_, Some(x)) => Ok(Value::Float(x.abs())),
            _ => Err(wrong()),
        },
        _ => {
            let precision = args.int_or(0, "precision", 0)?.clamp(-300, 300);
            let method = args.str_or(1, "method", "common")?;
            if let (Some(n), "common", 0..) = (value.as_int(), method, precision) {
                return Ok(Value::Int(n));
            }
            let x = value.as_float().ok_or_else(wrong)?;
            let power = libm::pow(10.0, precision as f64);
            Ok(Value::Float(match method {
                "common" if precision >= 0 => {
                    format!("{x:.0$}", precision as usize).parse().unwrap_or(x)
                }
                "common" => libm::rint(x * power) / power,
                "ceil" => libm::ceil(x * power) / power,
                "floor" => libm::floor(x * power) / power,
                _ => return Err(Error::new(format!("round has no method '{method}'"))),
            }))
        }
    }
}

fn to_json(value: &Value, args: &Arguments, budget: &mut Budget) -> Result<Value, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    args.check(names.len(), &names)?;
    let indent = match args.get(1, "indent") {
        None | Some(Value::None) => None,
        Some(Value::Str(indent)) => Some(indent.to_string()),
        Some(_) => {
            let n = usize::try_from(args.int(1, "indent")?).unwrap_or(0);
            budget.spend(n)?;
            Some(" ".repeat(n))
        }
    };
    let between = if indent.is_some() { "," } else { ", " };
    let mut style = Style {
        indent,
        between_items: between.into(),
        after_key: ": ".into(),
        ensure_ascii: args.bool_or(0, "ensure_ascii", false),
        sort_keys: args.bool_or(3, "sort_keys", false),
    };
    if let Some(separators) = args
        .get(2, "separators")
        .filter(|s| !matches!(s, Value::None))
    {
        let both = separators.iterate(budget)?;
        let [Value::Str(between), Value::Str(after)] = &both[..] else {
            return Err(Error::new("tojson: separators are two texts"));
        };
        style.between_items = between.to_string();
        style.after_key = after.to_string();
    }
    let json = write(value, &style, budget)?;
    Value::str(json, budget)
}

/// Filters that take whatever it is as a text.
fn of_text(
    value: &Value,
    name: &str,
    args: &Arguments,
    budget: &mut Budget,
) -> Result<Value, Error> {
    let s = text(value, budget)?;
    budget.spend_times(s.len(), 2)?;
    match name {
        "string" => Value::str(s, budget),
        "safe" => Ok(Value::Safe(s.into())),
        "upper" | "lower" | "capitalize" => Value::str(cased(&s, name).unwrap_or_default(), budget),
        "title" => Value::str(title(&s), budget),
        "trim" => {
            let set = args.str_or(0, "chars", "")?;
            budget.spend_times(s.len(), set.len())?;
            let is_trimmed = |c: char| match set.is_empty() {
                true => is_space(c),
                false => set.contains(c),
            };
            Value::str(s.trim_matches(is_trimmed), budget)
        }
        "replace" => {
            let old = text(args.need(0, "old")?, budget)?;
            let new = text(args.need(1, "new")?, budget)?;
            replace(&s, &old, &new, args.int_or(2, "count", -1)?, budget)
        }
        "indent" => indent(&s, args, budget),
        "center" => pad(&s, "center", args.int_or(0, "width", 80)?, ' ', budget),
        "escape" | "e" | "forceescape" => Ok(Value::Safe(html(value, budget)?.into())),
        "format" => {
            let values = match args.named.is_empty() {
                true => Value::tuple(args.positional.clone(), budget)?,
                false => Value::dict(args.named.clone(), budget)?,
            };
            super::format::percent(&s, &values, budget)
        }
        "truncate" => truncate(&s, args, budget),
        "wordcount" => {
            let words = s.split(|c: char| c != '_' && !c.is_alphanumeric());
            Ok(Value::Int(
                words.filter(|word| !word.is_empty()).count() as i64
            ))
        }
        "urlencode" => {
            let mut out = String::new();
            for byte in s.bytes() {
                match byte {
                    b'/' | b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
                    _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
                    _ => out.push_str(&format!("%{byte:02X}")),
                }
            }
            Value::str(out, budget)
        }
        _ => Err(Error::new(format!("there is no filter '{name}' here"))),
    }
}

/// Words that begin with a capital, as jinja2 finds them.
fn title(text: &str) -> String {
    let mut out = String::new();
    let mut in_word = false;
    for c in text.chars() {
        let is_between = c == '-' || is_space(c) || matches!(c, '(' | '{' | '[' | '<');
        match in_word {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        in_word = !is_between;
    }
    out
}

fn indent(text: &str, args: &Arguments, budget: &mut Budget) -> Result<Value, Error> {
    let by = match args.get(0, "width") {
        Some(Value::Str(by)) => by.to_string(),
        _ => {
            let width = usize::try_from(args.int_or(0, "width", 4)?).unwrap_or(0);
            budget.spend(width)?;
            " ".repeat(width)
        }
    };
    let (first, blank) = (
        args.bool_or(1, "first", false),
        args.bool_or(2, "blank", false),
    );
    budget.spend_times(text.len(), 16)?;
    budget.spend_times(split_lines(text, false).len() + 2, by.len())?;
    let mut out = String::new();
    // As jinja2 has it: an end of a line is added, so that one at the end makes a line.
    let text = [text, "\n"].concat();
    for (i, line) in split_lines(&text, false).into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let wanted = match i {
            0 => first,
            _ => blank || !line.is_empty(),
        };
        out.push_str(if wanted { &by } else { "" });
        out.push_str(line);
    }
    Value::str(out, budget)
}

fn truncate(text: &str, args: &Arguments, budget: &mut Budget) -> Result<Value, Error> {
    let length = usize::try_from(args.int_or(0, "length", 255)?).unwrap_or(0);
    let end = args.str_or(2, "end", "...")?;
    let leeway = usize::try_from(args.int_or(3, "leeway", 5)?).unwrap_or(0);
    if text.chars().count() <= length.saturating_add(leeway) {
        return Value::str(text, budget);
    }
    let kept: String = text
        .chars()
        .take(length.saturating_sub(end.chars().count()))
        .collect();
    let kept = match args.bool_or(1, "killwords", false) {
        true => &kept,
        false => kept.rsplit_once(' ').map_or(&*kept, |(before, _)| before),
    };
    Value::str([kept, end].concat(), budget)
}
