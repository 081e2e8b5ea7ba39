//! Methods of texts, lists and dictionaries, as Python has them.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use super::call::Arguments;
use super::format::{FormatArgs, format_method};
use super::lexer::is_space;
use super::operators::equal;
use super::repr::is_printable;
use super::value::{Entry, Method, Value};
use super::{Budget, Error};

const STR: [&str; 45] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
    "encode",
];
const LIST: [&str; 10] = [
    "append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "sort",
];
const DICT: [&str; 10] = [
    "clear",
    "copy",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];

/// Whether `value` has a method of this name.
pub(crate) fn has(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => STR.contains(&name),
        Value::List(_) => LIST.contains(&name),
        Value::Tuple(_) => matches!(name, "count" | "index"),
        Value::Dict(_) => DICT.contains(&name),
        Value::Loop(_) => matches!(name, "cycle" | "changed"),
        _ => false,
    }
}

/// Calls a method, but for those of loops.
pub(crate) fn call(method: &Method, args: &Arguments, budget: &mut Budget) -> Result<Value, Error> {
    match &method.of {
        Value::Str(text) => str_method(text, &method.name, args, budget),
        Value::List(items) | Value::Tuple(items) => list_method(items, &method.name, args, budget),
        Value::Dict(_) => dict_method(&method.of, &method.name, args, budget),
        of => Err(Error::new(format!("{} has no methods", of.type_name()))),
    }
}

/// The method would change its value, which the sandbox of Hugging Face's templates refuses.
fn unsafe_method(name: &str) -> Error {
    Error::new(format!(
        "'{name}' would change its value, which a template may not"
    ))
}

fn list_method(
    items: &[Value],
    name: &str,
    args: &Arguments,
    budget: &mut Budget,
) -> Result<Value, Error> {
    match name {
        "copy" => Value::list(items.to_vec(), budget),
        "count" => {
            let wanted = args.need(0, "value")?;
            let mut n = 0;
            for item in items {
                n += i64::from(equal(item, wanted, budget)?);
            }
            Ok(Value::Int(n))
        }
        "index" => {
            let wanted = args.need(0, "value")?;
            for (i, item) in items.iter().enumerate() {
                if equal(item, wanted, budget)? {
                    return Ok(Value::Int(i as i64));
                }
            }
            Err(Error::new("the value is not in the list"))
        }
        _ => Err(unsafe_method(name)),
    }
}

fn dict_method(
    of: &Value,
    name: &str,
    args: &Arguments,
    budget: &mut Budget,
) -> Result<Value, Error> {
    let Value::Dict(dict) = of else {
        return Err(Error::new("not a dictionary"));
    };
    let entries = dict.entries();
    match name {
        "get" => {
            let found = dict.get(args.need(0, "key")?, budget)?;
            let default = args.get(1, "default").unwrap_or(&Value::None);
            Ok(found.unwrap_or(default).clone())
        }
        "items" => items(entries, budget),
        "keys" => Value::list(
            entries.iter().map(|entry| entry.key.clone()).collect(),
            budget,
        ),
        "values" => Value::list(
            entries.iter().map(|entry| entry.value.clone()).collect(),
            budget,
        ),
        "copy" => Ok(of.clone()),
        _ => Err(unsafe_method(name)),
    }
}

/// The entries as a list of pairs.
pub(crate) fn items(entries: &[Entry], budget: &mut Budget) -> Result<Value, Error> {
    let mut pairs = Vec::new();
    for entry in entries {
        pairs.push(Value::tuple(
            Vec::from([entry.key.clone(), entry.value.clone()]),
            budget,
        )?);
    }
    Value::list(pairs, budget)
}

fn str_method(
    text: &str,
    name: &str,
    args: &Arguments,
    budget: &mut Budget,
) -> Result<Value, Error> {
    budget.spend(text.len())?;
    // What is looked for is gone over, too.
    for value in args
        .positional
        .iter()
        .chain(args.named.iter().map(|entry| &entry.value))
    {
        budget.spend(value.as_str().map_or(0, str::len))?;
    }
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let set = match args.get(0, "chars") {
                None | Some(Value::None) => None,
                Some(_) => Some(args.str(0, "chars")?),
            };
            budget.spend_times(text.len(), set.map_or(1, str::len))?;
            let is_stripped = |c: char| set.map_or(is_space(c), |set| set.contains(c));
            let stripped = match name {
                "lstrip" => text.trim_start_matches(is_stripped),
                "rstrip" => text.trim_end_matches(is_stripped),
                _ => text.trim_matches(is_stripped),
            };
            Value::str(stripped, budget)
        }
        "split" | "rsplit" | "splitlines" => split(text, name, args, budget),
        "partition" | "rpartition" => {
            let mark = args.str(0, "sep")?;
            if mark.is_empty() {
                return Err(Error::new("the separator is empty"));
            }
            let parts = match name {
                "partition" => text.split_once(mark).map(|(a, b)| [a, mark, b]),
                _ => text.rsplit_once(mark).map(|(a, b)| [a, mark, b]),
            };
            let parts = parts.unwrap_or(match name {
                "partition" => [text, "", ""],
                _ => ["", "", text],
            });
            texts_tuple(&parts, budget)
        }
        "removeprefix" => Value::str(
            text.strip_prefix(args.str(0, "prefix")?).unwrap_or(text),
            budget,
        ),
        "removesuffix" => Value::str(
            text.strip_suffix(args.str(0, "suffix")?).unwrap_or(text),
            budget,
        ),
        "replace" => {
            let count = args.int_or(2, "count", -1)?;
            replace(
                text,
                args.str(0, "old")?,
                args.str(1, "new")?,
                count,
                budget,
            )
        }
        "join" => {
            let mut out = String::new();
            for (i, item) in args
                .need(0, "iterable")?
                .iterate(budget)?
                .iter()
                .enumerate()
            {
                let item = item.as_str().ok_or_else(|| {
                    Error::new(format!(
                        "join: item {i} is {}, not a text",
                        item.type_name()
                    ))
                })?;
                budget.spend(text.len() + item.len())?;
                out.push_str(if i > 0 { text } else { "" });
                out.push_str(item);
            }
            Value::str(out, budget)
        }
        "startswith" | "endswith" => affix(text, name == "startswith", args, budget),
        "count" | "find" | "rfind" | "index" | "rindex" => search(text, name, args, budget),
        "center" | "ljust" | "rjust" => {
            let fill = args.str_or(1, "fillchar", " ")?;
            let fill = fill.chars().next().unwrap_or(' ');
            pad(text, name, args.int(0, "width")?, fill, budget)
        }
        "zfill" => {
            let (sign, digits) = match text.starts_with(['+', '-']) {
                true => text.split_at(1),
                false => ("", text),
            };
            let width = args.int(0, "width")?.saturating_sub(sign.len() as i64);
            let padded = pad(digits, "rjust", width, '0', budget)?;
            Value::str([sign, padded.as_str().unwrap_or_default()].concat(), budget)
        }
        "format" => {
            let args = FormatArgs {
                positional: &args.positional,
                named: &args.named,
            };
            format_method(text, &args, budget)
        }
        "format_map" => {
            let Value::Dict(dict) = args.need(0, "mapping")? else {
                return Err(Error::new("format_map needs a dictionary"));
            };
            let args = FormatArgs {
                positional: &[],
                named: dict.entries(),
            };
            format_method(text, &args, budget)
        }
        "expandtabs" => {
            let size = usize::try_from(args.int_or(0, "tabsize", 8)?).unwrap_or(0);
            budget.spend_times(text.matches('\t').count(), size)?;
            Value::str(expand_tabs(text, size), budget)
        }
        "encode" => Err(Error::new("bytes are not supported")),
        _ => match cased(text, name) {
            Some(text) => Value::str(text, budget),
            None => Ok(Value::Bool(is_all(text, name))),
        },
    }
}

/// The methods that change letters.
pub(crate) fn cased(text: &str, name: &str) -> Option<String> {
    Some(match name {
        "upper" => text.to_uppercase(),
        "lower" | "casefold" => text.to_lowercase(),
        "capitalize" => {
            let mut chars = text.chars();
            let first: String = chars
                .next()
                .into_iter()
                .flat_map(char::to_uppercase)
                .collect();
            first + &chars.as_str().to_lowercase()
        }
        "title" => {
            let mut out = String::new();
            let mut in_word = false;
            for c in text.chars() {
                match in_word {
                    true => out.extend(c.to_lowercase()),
                    false => out.extend(c.to_uppercase()),
                }
                in_word = c.is_alphabetic();
            }
            out
        }
        "swapcase" => {
            let mut out = String::new();
            for c in text.chars() {
                match c.is_uppercase() {
                    true => out.extend(c.to_lowercase()),
                    false => out.extend(c.to_uppercase()),
                }
            }
            out
        }
        _ => return None,
    })
}

/// The methods that ask what a text consists of.
fn is_all(text: &str, name: &str) -> bool {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    let has_case = text.chars().any(|c| c.is_lowercase() || c.is_uppercase());
    match name {
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isascii" => text.is_ascii(),
        "islower" => has_case && !text.chars().any(char::is_uppercase),
        "isupper" => has_case && !text.chars().any(char::is_lowercase),
        "istitle" => has_case && cased(text, "title").as_deref() == Some(text),
        "isprintable" => text.chars().all(is_printable),
        "isidentifier" => {
            let is_part = |c: char| c == '_' || c.is_alphanumeric();
            all(is_part) && !text.starts_with(char::is_numeric)
        }
        _ => false,
    }
}

fn texts_tuple(texts: &[&str], budget: &mut Budget) -> Result<Value, Error> {
    let mut items = Vec::new();
    for text in texts {
        items.push(Value::str(*text, budget)?);
    }
    Value::tuple(items, budget)
}

fn split(text: &str, name: &str, args: &Arguments, budget: &mut Budget) -> Result<Value, Error> {
    // Parts may be a byte each.
    budget.spend_times(text.len(), size_of::<&str>())?;
    let parts: Vec<&str> = if name == "splitlines" {
        split_lines(text, args.bool_or(0, "keepends", false))
    } else {
        let max = usize::try_from(args.int_or(1, "maxsplit", -1)?).unwrap_or(usize::MAX);
        let max = max.saturating_add(1);
        match args.get(0, "sep") {
            None | Some(Value::None) => split_words(text, name == "rsplit", max),
            Some(_) => {
                let mark = args.str(0, "sep")?;
                if mark.is_empty() {
                    return Err(Error::new("the separator is empty"));
                }
                budget.spend_times(text.matches(mark).count(), size_of::<&str>())?;
                match name {
                    "split" => text.splitn(max, mark).collect(),
                    _ => {
                        let mut parts: Vec<_> = text.rsplitn(max, mark).collect();
                        parts.reverse();
                        parts
                    }
                }
            }
        }
    };
    let mut items = Vec::new();
    for part in parts {
        budget.spend(32)?;
        items.push(Value::str(part, budget)?);
    }
    Value::list(items, budget)
}

/// Words between white space, `max` parts at most: what is left is not split.
fn split_words(text: &str, from_end: bool, max: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = match from_end {
        true => text.trim_end_matches(is_space),
        false => text.trim_start_matches(is_space),
    };
    while !rest.is_empty() {
        let at = match from_end {
            true => rest.rfind(is_space),
            false => rest.find(is_space),
        };
        let Some(at) = at.filter(|_| parts.len() + 1 < max) else {
            parts.push(rest);
            break;
        };
        match from_end {
            true => {
                let len = rest[at..].chars().next().map_or(0, char::len_utf8);
                parts.push(&rest[at + len..]);
                rest = rest[..at].trim_end_matches(is_space);
            }
            false => {
                parts.push(&rest[..at]);
                rest = rest[at..].trim_start_matches(is_space);
            }
        }
    }
    if from_end {
        parts.reverse();
    }
    parts
}

pub(crate) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some(at) = rest.find(is_end) else {
            lines.push(rest);
            break;
        };
        let len = match rest[at..].starts_with("\r\n") {
            true => 2,
            false => rest[at..].chars().next().map_or(0, char::len_utf8),
        };
        lines.push(&rest[..if keep_ends { at + len } else { at }]);
        rest = &rest[at + len..];
    }
    lines
}

/// `text.replace(old, new, count)`.
pub(crate) fn replace(
    text: &str,
    old: &str,
    new: &str,
    count: i64,
    budget: &mut Budget,
) -> Result<Value, Error> {
    budget.spend(text.len())?;
    let n_found = match old.is_empty() {
        true => text.chars().count() + 1,
        false => text.matches(old).count(),
    };
    let n = n_found.min(usize::try_from(count).unwrap_or(usize::MAX));
    budget.spend_times(n, new.len())?;
    Value::str(text.replacen(old, new, n), budget)
}

/// `startswith` and `endswith`, of one text or any of a tuple.
fn affix(
    text: &str,
    at_start: bool,
    args: &Arguments,
    budget: &mut Budget,
) -> Result<Value, Error> {
    let text = &text[range_of(text, args, budget)?];
    let is_there = |affix: &Value| match (affix.as_str(), at_start) {
        (Some(affix), true) => Ok(text.starts_with(affix)),
        (Some(affix), false) => Ok(text.ends_with(affix)),
        _ => Err(Error::new(format!(
            "a text begins or ends with a text, not {}",
            affix.type_name()
        ))),
    };
    let affix = args.need(0, "prefix")?;
    affix.defined()?;
    Ok(Value::Bool(match affix {
        Value::Tuple(items) => {
            let mut found = false;
            for item in items.iter() {
                budget.spend(8 + item.as_str().map_or(0, str::len) / 8)?;
                found = found || is_there(item)?;
            }
            found
        }
        _ => is_there(affix)?,
    }))
}

/// The bytes of a text that the second and third argument, a start and an end, select.
fn range_of(text: &str, args: &Arguments, budget: &mut Budget) -> Result<Range<usize>, Error> {
    if args.positional.len() < 2 {
        return Ok(0..text.len());
    }
    budget.spend(text.len())?;
    let n = text.chars().count() as i64;
    let place = |i: i64| if i < 0 { (n + i).max(0) } else { i.min(n) } as usize;
    let start = place(args.int_or(1, "start", 0)?);
    let end = place(args.int_or(2, "end", n)?);
    let byte = |place: usize| {
        text.char_indices()
            .nth(place)
            .map_or(text.len(), |(at, _)| at)
    };
    let start = byte(start);
    Ok(start..byte(end).max(start))
}

fn search(text: &str, name: &str, args: &Arguments, budget: &mut Budget) -> Result<Value, Error> {
    let part = args.str(0, "sub")?;
    let range = range_of(text, args, budget)?;
    let within = &text[range.clone()];
    if name == "count" {
        let n = match part.is_empty() {
            true => within.chars().count() + 1,
            false => within.matches(part).count(),
        };
        return Ok(Value::Int(n as i64));
    }
    let found = match name.starts_with('r') {
        true => within.rfind(part),
        false => within.find(part),
    };
    match found {
        Some(at) => {
            let n_before = text[..range.start + at].chars().count();
            Ok(Value::Int(n_before as i64))
        }
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(Error::new("the text was not found")),
    }
}

/// Fills a text up to `width` characters.
pub(crate) fn pad(
    text: &str,
    name: &str,
    width: i64,
    fill: char,
    budget: &mut Budget,
) -> Result<Value, Error> {
    let len = text.chars().count();
    let width = usize::try_from(width).unwrap_or(0);
    let n = width.saturating_sub(len);
    budget.spend_times(n, fill.len_utf8())?;
    let left = match name {
        "ljust" => 0,
        "rjust" => n,
        // As CPython does it.
        _ => n / 2 + (n & width & 1),
    };
    let run = |n| String::from_iter(core::iter::repeat_n(fill, n));
    Value::str([&run(left), text, &run(n - left)].concat(), budget)
}

fn expand_tabs(text: &str, size: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let n = size - column % size;
                out.extend(core::iter::repeat_n(' ', n));
                column += n;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            _ => {
                out.push(c);
                column += 1;
            }
        }
    }
    out
}
