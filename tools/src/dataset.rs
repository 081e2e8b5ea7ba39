//! Examples of a task, one JSON object a line with the texts `input` and `target`.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::Deserialize;

/// One example.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Example {
    /// Its line in the file, from 1.
    pub line: usize,
    /// What the model gets.
    pub input: String,
    /// What it should say.
    pub target: String,
}

/// A line; what it holds besides is of no concern.
#[derive(Deserialize)]
struct Line {
    input: String,
    target: String,
}

/// Reads the first `limit` examples of a file; empty lines do not count. Errors tell the line.
pub(crate) fn read(path: &Path, limit: usize) -> Result<Vec<Example>> {
    let name = || path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot read {}", name()))?;
    let mut file = BufReader::new(file);
    let mut examples = Vec::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let n_bytes = file
            .read_until(b'\n', &mut bytes)
            .with_context(|| format!("cannot read {}", name()))?;
        if n_bytes == 0 || examples.len() == limit {
            break;
        }
        // Some editors begin a file with a byte order mark.
        let text = match line {
            1 => bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes),
            _ => &bytes,
        };
        if text.trim_ascii().is_empty() {
            continue;
        }
        let Line { input, target } =
            parse(text).with_context(|| format!("{}, line {line}", name()))?;
        examples.push(Example {
            line,
            input,
            target,
        });
    }
    ensure!(!examples.is_empty(), "{} has no examples", name());
    Ok(examples)
}

fn parse(bytes: &[u8]) -> Result<Line> {
    // An array of two texts would be taken for an object of them.
    let is_object = bytes.trim_ascii_start().starts_with(b"{");
    ensure!(is_object, "no object with texts `input` and `target`");
    let line: Line = serde_json::from_slice(bytes.trim_ascii_end()).map_err(|e| {
        // The parser sees one line only, and calls it the first.
        let text = e.to_string();
        let (what, _) = text.rsplit_once(" at line ").unwrap_or((&text, ""));
        let column = e.column();
        anyhow!("no object with texts `input` and `target`: {what} (column {column})")
    })?;
    ensure!(!line.input.trim().is_empty(), "the input is empty");
    ensure!(!line.target.trim().is_empty(), "the target is empty");
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        let text = b"\xef\xbb\xbf{\"input\": \"a\", \"target\": \"b\"}\n";
        assert_eq!(read_text(text, 9).unwrap().len(), 1);
    }

    fn read_text(text: &[u8], limit: usize) -> Result<Vec<Example>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path(), limit)
    }

    #[test]
    fn lines_are_counted_with_the_empty_ones() {
        let text = b"{\"input\": \"a\", \"target\": \"b\"}\n\n \r\n\
                     {\"target\": \"\\u00e9\\n\", \"id\": 7, \"input\": \"c\"}";
        let example = |line, input: &str, target: &str| Example {
            line,
            input: input.to_string(),
            target: target.to_string(),
        };
        let all = [example(1, "a", "b"), example(4, "c", "\u{e9}\n")];
        assert_eq!(read_text(text, 9).unwrap(), all);
        assert_eq!(read_text(text, 1).unwrap(), all[..1]);
    }

    #[test]
    fn errors_tell_the_line_and_what_is_wrong() {
        let good = "{\"input\": \"a\", \"target\": \"b\"}\n";
        for (bad, what) in [
            (&b"{\"input\": \"a\"}"[..], "missing field `target`"),
            (b"{\"target\": \"a\"}", "missing field `input`"),
            (
                b"{\"input\": \"a\", \"target\": 3}",
                "invalid type: integer `3`, expected a string (column 26)",
            ),
            (b"{\"input\": \"a\", \"target\": \"b\"", "EOF while parsing"),
            (
                b"{\"input\": \"a\", \"target\": \"b\"} x",
                "trailing characters",
            ),
            (
                b"{\"input\": \"a\", \"input\": \"a\", \"target\": \"b\"}",
                "duplicate field",
            ),
            (b"[\"a\", \"b\"]", "no object with texts"),
            (b"null", "no object with texts"),
            (
                b"{\"input\": \"\xff\", \"target\": \"b\"}",
                "invalid unicode",
            ),
            (
                b"{\"input\": \" \\n\", \"target\": \"b\"}",
                "the input is empty",
            ),
            (
                b"{\"input\": \"a\", \"target\": \"\"}",
                "the target is empty",
            ),
        ] {
            let text = [good.as_bytes(), b"\n", bad, b"\n", good.as_bytes()].concat();
            let e = format!("{:#}", read_text(&text, 9).unwrap_err());
            assert!(e.contains(", line 3: ") && e.contains(what), "{e}");
            assert!(!e.contains("at line 1"), "{e}");
            // What is behind the limit is not read.
            assert!(read_text(&text, 1).is_ok());
        }
        let e = read_text(b"\n\n", 9).unwrap_err().to_string();
        assert!(e.contains("has no examples"), "{e}");
    }
}
