//! Python's two ways to format: `'%s' % x` and `'{}'.format(x)`.

use alloc::format;
use alloc::string::{String, ToString};

use super::repr::{float, repr, text};
use super::value::{Entry, Value};
use super::{Budget, Error};

/// Digits behind the point that are written at most: an `f64` has some 1,100.
const MAX_PRECISION: usize = 1100;

/// How a value is written, as `format_spec` and the conversions of `%` say it.
#[derive(Clone, Debug, Default)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^` or `=`.
    align: Option<char>,
    /// `+`, `-` or a space.
    sign: Option<char>,
    alternate: bool,
    width: usize,
    /// `,` or `_` between groups of digits.
    grouping: Option<char>,
    precision: Option<usize>,
    /// The conversion: `d`, `s`, `f`, ...
    kind: Option<char>,
}

/// Reads digits, if there are any.
fn number(chars: &mut core::iter::Peekable<core::str::Chars<'_>>) -> Result<Option<usize>, Error> {
    let mut value = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        chars.next();
        let next = value.unwrap_or(0usize).checked_mul(10);
        let next = next.and_then(|n| n.checked_add(digit as usize));
        value = Some(next.ok_or(Error::Exhausted)?);
    }
    Ok(value)
}

impl Spec {
    /// `[[fill]align][sign][#][0][width][grouping][.precision][type]`
    fn parse(spec: &str) -> Result<Spec, Error> {
        let mut out = Spec::default();
        let mut chars = spec.chars().peekable();
        let is_align = |c: char| matches!(c, '<' | '>' | '^' | '=');
        let mut two = spec.chars();
        let (first, second) = (two.next(), two.next());
        if second.is_some_and(is_align) {
            out.fill = first;
            out.align = second;
            chars.next();
            chars.next();
        } else if first.is_some_and(is_align) {
            out.align = first;
            chars.next();
        }
        out.sign = chars.next_if(|c| matches!(c, '+' | '-' | ' '));
        out.alternate = chars.next_if_eq(&'#').is_some();
        if chars.next_if_eq(&'0').is_some() {
            out.fill = out.fill.or(Some('0'));
            out.align = out.align.or(Some('='));
        }
        out.width = number(&mut chars)?.unwrap_or(0);
        out.grouping = chars.next_if(|c| matches!(c, ',' | '_'));
        if chars.next_if_eq(&'.').is_some() {
            out.precision = Some(number(&mut chars)?.ok_or_else(|| bad(spec))?);
        }
        out.kind = chars.next();
        match chars.next() {
            Some(_) => Err(bad(spec)),
            None => Ok(out),
        }
    }

    /// `value` by this.
    fn format(&self, value: &Value, budget: &mut Budget) -> Result<String, Error> {
        budget.spend_times(self.width, 4)?;
        match self.kind {
            None if !matches!(value, Value::Int(_) | Value::Float(_)) => self.text(value, budget),
            Some('s') => self.text(value, budget),
            kind => self.number(value, kind),
        }
    }

    fn text(&self, value: &Value, budget: &mut Budget) -> Result<String, Error> {
        let text = text(value, budget)?;
        if self.sign.is_some() || self.align == Some('=') && self.fill != Some('0') {
            return Err(Error::new("a text has no sign to format"));
        }
        let cut: String = match self.precision {
            Some(n) => text.chars().take(n).collect(),
            None => text,
        };
        let align = self.align.filter(|c| *c != '=').unwrap_or('<');
        Ok(self.pad("", &cut, align))
    }

    fn number(&self, value: &Value, kind: Option<char>) -> Result<String, Error> {
        let wrong = || {
            let kind = kind.unwrap_or(' ');
            Error::new(format!(
                "{} cannot be formatted as '{kind}'",
                value.type_name()
            ))
        };
        let (negative, prefix, digits) = match kind {
            Some(kind @ ('d' | 'n' | 'x' | 'X' | 'o' | 'b' | 'c')) => {
                let n = value.as_int().ok_or_else(wrong)?;
                let size = n.unsigned_abs();
                let (prefix, digits) = match kind {
                    'x' => ("0x", format!("{size:x}")),
                    'X' => ("0X", format!("{size:X}")),
                    'o' => ("0o", format!("{size:o}")),
                    'b' => ("0b", format!("{size:b}")),
                    'c' => {
                        let c = u32::try_from(n).ok().and_then(char::from_u32);
                        ("", c.ok_or_else(wrong)?.to_string())
                    }
                    _ => ("", size.to_string()),
                };
                (n < 0, if self.alternate { prefix } else { "" }, digits)
            }
            None if matches!(value, Value::Int(_) | Value::Bool(_)) => {
                let n = value.as_int().ok_or_else(wrong)?;
                (n < 0, "", n.unsigned_abs().to_string())
            }
            _ => {
                let x = value.as_float().ok_or_else(wrong)?;
                (
                    x.is_sign_negative(),
                    "",
                    self.float(x.abs(), kind).ok_or_else(wrong)?,
                )
            }
        };
        let digits = match self.grouping {
            Some(mark) => grouped(&digits, mark),
            None => digits,
        };
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        };
        let default = if kind == Some('c') { '<' } else { '>' };
        let head = [sign, prefix].concat();
        Ok(self.pad(&head, &digits, self.align.unwrap_or(default)))
    }

    /// A number that is not negative; `None` for conversions that there are not.
    fn float(&self, x: f64, kind: Option<char>) -> Option<String> {
        if !x.is_finite() {
            return Some(float(x));
        }
        let precision = self.precision.map(|n| n.min(MAX_PRECISION));
        Some(match kind {
            None if precision.is_none() => float(x),
            Some('f' | 'F') => format!("{x:.*}", precision.unwrap_or(6)),
            Some('%') => format!("{:.*}%", precision.unwrap_or(6), x * 100.0),
            Some('e') => exponent(&format!("{x:.*e}", precision.unwrap_or(6))),
            Some('E') => exponent(&format!("{x:.*e}", precision.unwrap_or(6))).to_uppercase(),
            None | Some('g' | 'G' | 'n') => {
                let general = general(x, precision.unwrap_or(6).max(1));
                match kind {
                    Some('G') => general.to_uppercase(),
                    _ => general,
                }
            }
            _ => return None,
        })
    }

    fn pad(&self, head: &str, body: &str, align: char) -> String {
        let len = head.chars().count() + body.chars().count();
        let n = self.width.saturating_sub(len);
        let fill = |n| String::from_iter(core::iter::repeat_n(self.fill.unwrap_or(' '), n));
        match align {
            '=' => [head, &fill(n), body].concat(),
            '<' => [head, body, &fill(n)].concat(),
            '^' => [&fill(n / 2), head, body, &fill(n - n / 2)].concat(),
            _ => [&fill(n), head, body].concat(),
        }
    }
}

/// Python's form of Rust's `1.5e-7`.
fn exponent(text: &str) -> String {
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    match exponent.strip_prefix('-') {
        Some(n) => format!("{digits}e-{n:0>2}"),
        None => format!("{digits}e+{exponent:0>2}"),
    }
}

/// `%g`: so many digits that count, without zeros at the end.
fn general(x: f64, precision: usize) -> String {
    let scientific = format!("{x:.*e}", precision - 1);
    let power: i32 = scientific
        .split_once('e')
        .and_then(|(_, e)| e.parse().ok())
        .unwrap_or(0);
    let without_zeros = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text.to_string(),
    };
    if (-4..precision as i32).contains(&power) {
        let n_behind = (precision as i32 - 1 - power).max(0) as usize;
        return without_zeros(&format!("{x:.n_behind$}"));
    }
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    exponent(&format!("{}e{power}", without_zeros(digits)))
}

/// Marks between groups of three digits before the point.
fn grouped(digits: &str, mark: char) -> String {
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    let (whole, rest) = digits.split_at(end);
    let mut out = String::new();
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(mark);
        }
        out.push(c);
    }
    out + rest
}

fn bad(spec: &str) -> Error {
    let spec: String = spec.chars().take(40).collect();
    Error::new(format!("the format '{spec}' is not valid"))
}

/// `template % value`.
pub(crate) fn percent(template: &str, value: &Value, budget: &mut Budget) -> Result<Value, Error> {
    let args: &[Value] = match value {
        Value::Tuple(items) => items,
        other => core::slice::from_ref(other),
    };
    budget.spend(template.len())?;
    let mut args_left = args.iter();
    let mut out = String::new();
    let mut uses_names = false;
    let mut chars = template.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        budget.spend(16)?;
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let mut key = String::new();
            loop {
                match chars.next() {
                    Some(')') => break,
                    Some(c) => key.push(c),
                    None => return Err(bad(template)),
                }
            }
            let Value::Dict(dict) = value else {
                return Err(Error::new("a format with names needs a dict"));
            };
            let missing = || Error::new(format!("the format names '{key}', which is not there"));
            named = Some(dict.get_str(&key, budget)?.ok_or_else(missing)?);
            uses_names = true;
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '0' | '+' | ' ' | '#')) {
            match flag {
                '-' => spec.align = Some('<'),
                '0' => spec.fill = Some('0'),
                '#' => spec.alternate = true,
                '+' => spec.sign = Some('+'),
                _ => spec.sign = spec.sign.or(Some(' ')),
            }
        }
        let mut next_arg = || {
            args_left
                .next()
                .ok_or_else(|| Error::new("the format has too few values"))
        };
        let mut star =
            |chars: &mut core::iter::Peekable<core::str::Chars<'_>>| match chars.next_if_eq(&'*') {
                Some(_) => {
                    let n = next_arg()?.as_int().and_then(|n| usize::try_from(n).ok());
                    n.ok_or_else(|| bad(template)).map(Some)
                }
                None => number(chars),
            };
        spec.width = star(&mut chars)?.unwrap_or(0);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(star(&mut chars)?.unwrap_or(0));
        }
        while chars.next_if(|c| matches!(c, 'l' | 'h' | 'L')).is_some() {}
        let kind = chars.next().ok_or_else(|| bad(template))?;
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => next_arg()?,
        };
        out.push_str(&spec.percent(value, kind, budget)?);
        budget.spend(out.len() / 64)?;
    }
    let is_over = uses_names || matches!(value, Value::Dict(_)) || args_left.next().is_none();
    match is_over {
        true => Value::str(out, budget),
        false => Err(Error::new("the format has too many values")),
    }
}

impl Spec {
    /// One conversion of `%`.
    fn percent(mut self, value: &Value, kind: char, budget: &mut Budget) -> Result<String, Error> {
        // A minus goes before a zero, and texts are not filled with zeros.
        if self.align == Some('<') || matches!(kind, 's' | 'r' | 'a' | 'c') {
            self.fill = None;
        }
        let default = if self.fill == Some('0') { '=' } else { '>' };
        self.align = self.align.or(Some(default));
        self.sign = self.sign.filter(|_| !matches!(kind, 's' | 'r' | 'a' | 'c'));
        budget.spend_times(self.width, 4)?;
        match kind {
            's' => self.text(value, budget),
            'r' | 'a' => {
                let text = repr(value, budget)?;
                self.text(&Value::Str(text.into()), budget)
            }
            'c' if matches!(value, Value::Str(_)) => self.text(value, budget),
            'd' | 'i' | 'u' => match value {
                Value::Float(x) if x.abs() < 9e18 => self.integer(&Value::Int(*x as i64), 'd'),
                _ => self.integer(value, 'd'),
            },
            'x' | 'X' | 'o' | 'c' => self.integer(value, kind),
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => self.number(value, Some(kind)),
            _ => Err(Error::new(format!("there is no conversion '%{kind}'"))),
        }
    }

    /// A whole number, whose precision is its fewest digits.
    fn integer(mut self, value: &Value, kind: char) -> Result<String, Error> {
        let least = self.precision.take().unwrap_or(0).min(MAX_PRECISION);
        if least == 0 {
            return self.number(value, Some(kind));
        }
        let bare = Spec {
            kind: Some(kind),
            ..Spec::default()
        }
        .number(value, Some(kind))?;
        let (sign, digits) = match bare.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("", &*bare),
        };
        let padded = format!("{digits:0>least$}");
        Ok(self.pad(sign, &padded, self.align.unwrap_or('>')))
    }
}

/// What `str.format` is given.
pub(crate) struct FormatArgs<'a> {
    pub positional: &'a [Value],
    pub named: &'a [Entry],
}

/// `template.format(args)`; `attribute` and `item` of a value are what the template's own are.
pub(crate) fn format_method(
    template: &str,
    args: &FormatArgs<'_>,
    budget: &mut Budget,
) -> Result<Value, Error> {
    budget.spend(template.len())?;
    let mut out = String::new();
    let mut n_automatic = 0;
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        budget.spend_times(args.named.len() + 1, 16)?;
        let (mark, after) = rest[at..].split_at(1);
        if after.starts_with(mark) {
            out.push_str(mark);
            rest = &after[1..];
            continue;
        }
        if mark == "}" {
            return Err(bad(template));
        }
        let field = field_end(after).ok_or_else(|| bad(template))?;
        rest = &after[field + 1..];
        let field = &after[..field];
        let mut selected = |name: &str, budget: &mut Budget| {
            let first = name.find(['.', '[']).unwrap_or(name.len());
            let (base, path) = name.split_at(first);
            let base = match base.parse::<usize>() {
                _ if base.is_empty() => {
                    n_automatic += 1;
                    args.positional.get(n_automatic - 1).cloned()
                }
                Ok(n) => args.positional.get(n).cloned(),
                Err(_) => named(args, base),
            };
            let missing = || Error::new(format!("the format names '{name}', which is not there"));
            follow(base.ok_or_else(missing)?, path, budget)
        };
        out.push_str(&replacement(field, &mut selected, budget)?);
        budget.spend(out.len() / 64)?;
    }
    out.push_str(rest);
    Value::str(out, budget)
}

fn named(args: &FormatArgs<'_>, name: &str) -> Option<Value> {
    let found = args
        .named
        .iter()
        .find(|entry| entry.key.as_str() == Some(name));
    found.map(|entry| entry.value.clone())
}

/// Where the field that begins at the start of `text` ends.
fn field_end(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.find(|c| {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        depth < 0
    })
}

/// Gives the value that a field names.
type Select<'a> = dyn FnMut(&str, &mut Budget) -> Result<Value, Error> + 'a;

/// What stands for the field `name!conversion:spec`.
fn replacement(field: &str, select: &mut Select<'_>, budget: &mut Budget) -> Result<String, Error> {
    let (head, spec) = field.split_once(':').unwrap_or((field, ""));
    let (name, conversion) = match head.split_once('!') {
        Some((name, conversion)) => (name, Some(conversion)),
        None => (head, None),
    };
    let value = select(name, budget)?;
    let value = match conversion {
        None => value,
        Some("s") => Value::str(text(&value, budget)?, budget)?,
        Some("r" | "a") => Value::str(repr(&value, budget)?, budget)?,
        Some(_) => return Err(bad(field)),
    };
    // A format in the format, for widths: one level, as in Python.
    let mut whole = String::new();
    let mut rest = spec;
    while let Some(at) = rest.find('{') {
        let end = rest[at..].find('}').ok_or_else(|| bad(field))? + at;
        whole.push_str(&rest[..at]);
        whole.push_str(&text(&select(&rest[at + 1..end], budget)?, budget)?);
        rest = &rest[end + 1..];
    }
    whole.push_str(rest);
    Spec::parse(&whole)?.format(&value, budget)
}

/// `base.a[b]...`, of which keys and numbers only are looked up.
fn follow(base: Value, path: &str, budget: &mut Budget) -> Result<Value, Error> {
    let mut value = base;
    let mut rest = path;
    while !rest.is_empty() {
        let key = if let Some(after) = rest.strip_prefix('[') {
            let end = after.find(']').ok_or_else(|| bad(path))?;
            rest = &after[end + 1..];
            &after[..end]
        } else {
            return Err(Error::new(format!(
                "a format looks up keys only, not '{rest}'"
            )));
        };
        let found = match (&value, key.parse::<usize>()) {
            (Value::List(items) | Value::Tuple(items), Ok(n)) => items.get(n).cloned(),
            (Value::Dict(dict), Ok(n)) if i64::try_from(n).is_ok() => {
                dict.get(&Value::Int(n as i64), budget)?.cloned()
            }
            (Value::Dict(dict), _) => dict.get_str(key, budget)?.cloned(),
            _ => None,
        };
        value = found.ok_or_else(|| Error::new(format!("the format finds no '{key}'")))?;
    }
    Ok(value)
}
