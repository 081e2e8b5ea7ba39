//! A template's source to tokens, by the rules of jinja2's lexer with `trim_blocks` and `lstrip_blocks`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Error;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Data(String),
    BlockStart,
    BlockEnd,
    VariableStart,
    VariableEnd,
    Name(String),
    Str(String),
    Int(i64),
    Float(f64),
    /// An operator or a bracket.
    Op(&'static str),
    /// The source is over.
    End,
}

#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub kind: Kind,
    pub line: u32,
}

/// The operators, longer ones before those that they begin with.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// All tokens of `source`, the last of them [`Kind::End`].
pub(crate) fn tokens(source: &str) -> Result<Vec<Token>, Error> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer {
        source: &source,
        pos: 0,
        line: 1,
        starts_line: true,
        tokens: Vec::new(),
    };
    lexer.run()?;
    Ok(lexer.tokens)
}

/// What Python takes for white space in text.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

struct Lexer<'s> {
    source: &'s str,
    pos: usize,
    line: u32,
    /// Whether what was read last ended a line.
    starts_line: bool,
    tokens: Vec<Token>,
}

impl<'s> Lexer<'s> {
    fn run(&mut self) -> Result<(), Error> {
        while let Some(at) = self.next_tag() {
            let tag = &self.source[at..at + 2];
            let sign = self.source[at + 2..].chars().next();
            let text = &self.source[self.pos..at];
            let kept = match sign {
                Some('-') => text.trim_end_matches(is_space),
                Some('+') => text,
                _ if tag == "{{" => text,
                _ => self.without_indent(text),
            };
            self.data(kept);
            self.skip(at + 2);
            if let Some('-' | '+') = sign {
                self.skip(self.pos + 1);
            }
            match tag {
                "{#" => self.comment()?,
                "{{" => self.expression(Kind::VariableStart)?,
                _ => match self.raw_begin() {
                    Some(end) => self.raw(end)?,
                    None => self.expression(Kind::BlockStart)?,
                },
            }
        }
        self.data(&self.source[self.pos..]);
        self.push(Kind::End);
        Ok(())
    }

    /// Where the next tag begins.
    fn next_tag(&self) -> Option<usize> {
        let rest = &self.source.as_bytes()[self.pos..];
        let is_tag = |pair: &[u8]| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#');
        Some(self.pos + rest.windows(2).position(is_tag)?)
    }

    /// `text` before a block without the white space at the start of the block's line.
    fn without_indent(&self, text: &'s str) -> &'s str {
        let line = text.rfind('\n').map_or(0, |at| at + 1);
        if (line > 0 || self.starts_line) && text[line..].chars().all(is_space) {
            return &text[..line];
        }
        text
    }

    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Kind::Data(text.into()));
        }
    }

    fn push(&mut self, kind: Kind) {
        let line = self.line;
        self.tokens.push(Token { kind, line });
    }

    /// Goes on to `to`.
    fn skip(&mut self, to: usize) {
        let passed = &self.source[self.pos..to];
        self.line += passed.matches('\n').count() as u32;
        self.starts_line = passed.ends_with('\n');
        self.pos = to;
    }

    /// Goes on behind the white space that the end of a tag takes along.
    fn end_tag(&mut self, sign: Option<char>) {
        let rest = &self.source[self.pos..];
        let n_bytes = match sign {
            Some('-') => rest.len() - rest.trim_start_matches(is_space).len(),
            Some('+') => 0,
            _ => usize::from(rest.starts_with('\n')),
        };
        if n_bytes > 0 {
            self.skip(self.pos + n_bytes);
        }
    }

    fn comment(&mut self) -> Result<(), Error> {
        let rest = &self.source[self.pos..];
        let Some(len) = rest.find("#}") else {
            return Err(Error::new("a comment has no end").at(self.line));
        };
        let sign = rest[..len].chars().next_back();
        self.skip(self.pos + len + 2);
        self.end_tag(sign);
        Ok(())
    }

    /// Where `raw %}` ends, if that is what follows.
    fn raw_begin(&self) -> Option<usize> {
        let rest = self.source[self.pos..].trim_start_matches(is_space);
        let rest = rest.strip_prefix("raw")?.trim_start_matches(is_space);
        let rest = match rest.strip_prefix("-%}") {
            Some(rest) => rest.trim_start_matches(is_space),
            None => rest.strip_prefix("%}")?,
        };
        Some(self.source.len() - rest.len())
    }

    /// Text as it is from `start` up to `{% endraw %}`.
    fn raw(&mut self, start: usize) -> Result<(), Error> {
        self.skip(start);
        let mut from = start;
        while let Some(at) = self.source[from..].find("{%") {
            let at = from + at;
            let (sign, rest) = match self.source[at + 2..].chars().next() {
                Some(sign @ ('-' | '+')) => (Some(sign), &self.source[at + 3..]),
                _ => (None, &self.source[at + 2..]),
            };
            from = at + 2;
            let rest = rest.trim_start_matches(is_space);
            let Some(rest) = rest.strip_prefix("endraw") else {
                continue;
            };
            let rest = rest.trim_start_matches(is_space);
            let end_sign = rest.chars().next().filter(|c| matches!(c, '-' | '+'));
            let rest = &rest[usize::from(end_sign.is_some())..];
            let Some(rest) = rest.strip_prefix("%}") else {
                continue;
            };
            let text = &self.source[start..at];
            let kept = match sign {
                Some('-') => text.trim_end_matches(is_space),
                Some(_) => text,
                None => self.without_indent(text),
            };
            self.data(kept);
            self.skip(self.source.len() - rest.len());
            self.end_tag(end_sign);
            return Ok(());
        }
        Err(Error::new("a raw block has no end").at(self.line))
    }

    /// The tokens of a block or a variable, with its start and end.
    fn expression(&mut self, start: Kind) -> Result<(), Error> {
        let (close, end) = match start {
            Kind::VariableStart => ("}}", Kind::VariableEnd),
            _ => ("%}", Kind::BlockEnd),
        };
        self.push(start);
        let mut brackets = Vec::new();
        loop {
            let rest = &self.source[self.pos..];
            let space = rest.len() - rest.trim_start_matches(is_space).len();
            self.skip(self.pos + space);
            let rest = &self.source[self.pos..];
            if brackets.is_empty() {
                let sign = rest.chars().next().filter(|c| matches!(c, '-' | '+'));
                // A variable ends with a minus only: `+}}` is an operator without an operand.
                let sign = sign.filter(|c| *c == '-' || close == "%}");
                let signed = usize::from(sign.is_some());
                if rest[signed..].starts_with(close) {
                    self.push(end);
                    self.skip(self.pos + signed + 2);
                    if close == "%}" || sign.is_some() {
                        self.end_tag(sign);
                    }
                    return Ok(());
                }
            }
            self.token(&mut brackets)?;
        }
    }

    /// One token inside a tag.
    fn token(&mut self, brackets: &mut Vec<&'static str>) -> Result<(), Error> {
        let rest = &self.source[self.pos..];
        let Some(first) = rest.chars().next() else {
            return Err(Error::new("a tag has no end").at(self.line));
        };
        if first.is_ascii_digit() {
            return self.number();
        }
        if first == '_' || first.is_alphabetic() {
            let is_part = |c: char| c == '_' || c.is_alphanumeric();
            let len = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            self.push(Kind::Name(rest[..len].into()));
            self.skip(self.pos + len);
            return Ok(());
        }
        if first == '"' || first == '\'' {
            return self.string(first);
        }
        let Some(op) = OPERATORS.into_iter().find(|op| rest.starts_with(op)) else {
            return Err(Error::new(format!("unexpected character {first:?}")).at(self.line));
        };
        match op {
            "(" => brackets.push(")"),
            "[" => brackets.push("]"),
            "{" => brackets.push("}"),
            ")" | "]" | "}" if brackets.pop() != Some(op) => {
                return Err(Error::new(format!("unexpected '{op}'")).at(self.line));
            }
            _ => {}
        }
        self.push(Kind::Op(op));
        self.skip(self.pos + op.len());
        Ok(())
    }

    fn number(&mut self) -> Result<(), Error> {
        let rest = &self.source[self.pos..];
        let radix = match rest.get(..2) {
            Some("0x" | "0X") => 16,
            Some("0o" | "0O") => 8,
            Some("0b" | "0B") => 2,
            _ => 10,
        };
        let wrong = |line| Error::new("a number is not valid, or larger than 64 bits").at(line);
        if radix != 10 {
            let digits = &rest[2..];
            let len = digits.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let len = len.unwrap_or(digits.len());
            let text = digits[..len].replace('_', "");
            let value = i64::from_str_radix(&text, radix).map_err(|_| wrong(self.line))?;
            self.push(Kind::Int(value));
            self.skip(self.pos + 2 + len);
            return Ok(());
        }
        let digits = |text: &str| {
            let is_part = |c: char| c.is_ascii_digit() || c == '_';
            text.find(|c| !is_part(c)).unwrap_or(text.len())
        };
        let mut len = digits(rest);
        let mut is_float = false;
        // `message.0.text` has no float in it.
        let follows_dot = matches!(
            self.tokens.last(),
            Some(Token {
                kind: Kind::Op("."),
                ..
            })
        );
        let starts_with_digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        if !follows_dot {
            if let Some(fraction) = rest[len..].strip_prefix('.')
                && starts_with_digit(fraction)
            {
                len += 1 + digits(fraction);
                is_float = true;
            }
            if let Some(exponent) = rest[len..].strip_prefix(['e', 'E']) {
                let sign = usize::from(exponent.starts_with(['+', '-']));
                if starts_with_digit(&exponent[sign..]) {
                    len += 1 + sign + digits(&exponent[sign..]);
                    is_float = true;
                }
            }
        }
        let text = rest[..len].replace('_', "");
        let kind = match is_float {
            true => Kind::Float(text.parse().map_err(|_| wrong(self.line))?),
            false => Kind::Int(text.parse().map_err(|_| wrong(self.line))?),
        };
        self.push(kind);
        self.skip(self.pos + len);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<(), Error> {
        let mut at = self.pos + 1;
        let mut text = String::new();
        loop {
            let Some(c) = self.source[at..].chars().next() else {
                return Err(Error::new("a string has no end").at(self.line));
            };
            at += c.len_utf8();
            if c == quote {
                self.push(Kind::Str(text));
                self.skip(at);
                return Ok(());
            }
            if c == '\\' {
                let n_bytes = unescape(&self.source[at..], &mut text);
                at += n_bytes.ok_or_else(|| {
                    Error::new("an escape in a string is not valid").at(self.line)
                })?;
            } else {
                text.push(c);
            }
        }
    }
}

/// Adds what the escape at the start of `rest`, behind its backslash, stands for in Python, and gives the
/// bytes it takes.
fn unescape(rest: &str, text: &mut String) -> Option<usize> {
    let first = rest.chars().next()?;
    let n_digits = match first {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        '0'..='7' => {
            let is_octal = |c: &u8| (b'0'..=b'7').contains(c);
            let len = rest.bytes().take(3).take_while(is_octal).count();
            text.push(char::from_u32(u32::from_str_radix(&rest[..len], 8).ok()?)?);
            return Some(len);
        }
        _ => 0,
    };
    if n_digits > 0 {
        let digits = rest.get(1..1 + n_digits)?;
        if !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        text.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
        return Some(1 + n_digits);
    }
    match first {
        '\n' => {}
        'n' => text.push('\n'),
        't' => text.push('\t'),
        'r' => text.push('\r'),
        'a' => text.push('\x07'),
        'b' => text.push('\x08'),
        'f' => text.push('\x0c'),
        'v' => text.push('\x0b'),
        '\\' | '\'' | '"' => text.push(first),
        'N' => return None,
        other => text.extend(['\\', other]),
    }
    Some(first.len_utf8())
}
