//! Stop strings: texts that end an answer and are not part of it.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

/// Looks for stop strings in a text that comes in pieces, and holds back what may become one.
#[derive(Debug)]
pub(crate) struct StopStrings {
    strings: Vec<String>,
    held: String,
}

/// What of a text may go out.
#[derive(Debug, PartialEq)]
pub(crate) struct Released {
    pub text: String,
    /// Whether a stop string follows it: then there is no more.
    pub is_stopped: bool,
}

impl StopStrings {
    /// Empty strings, which would end every answer, are passed over.
    pub(crate) fn new(strings: &[String]) -> StopStrings {
        let strings = strings.iter().filter(|s| !s.is_empty());
        StopStrings {
            strings: strings.cloned().collect(),
            held: String::new(),
        }
    }

    /// What may go out after `piece`.
    pub(crate) fn push(&mut self, piece: &str) -> Released {
        self.held.push_str(piece);
        // The first in the text, whichever it is.
        let found = self.strings.iter().filter_map(|s| self.held.find(&**s));
        if let Some(at) = found.min() {
            let mut text = mem::take(&mut self.held);
            text.truncate(at);
            let is_stopped = true;
            return Released { text, is_stopped };
        }
        let n_held = self.strings.iter().map(|s| overlap(&self.held, s)).max();
        let rest = self.held.split_off(self.held.len() - n_held.unwrap_or(0));
        Released {
            text: mem::replace(&mut self.held, rest),
            is_stopped: false,
        }
    }

    /// What was held back; the text is over.
    pub(crate) fn finish(&mut self) -> String {
        mem::take(&mut self.held)
    }
}

/// The bytes at the end of `text` that `stop` begins with, `stop` itself not counted.
fn overlap(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len() - 1);
    let fits = |n: &usize| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n]);
    (1..=most).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of `pieces` up to a stop string, and what went out piece by piece.
    fn run(strings: &[&str], pieces: &[&str]) -> Vec<String> {
        let strings: Vec<String> = strings.iter().map(|s| String::from(*s)).collect();
        let mut stop = StopStrings::new(&strings);
        let mut out = Vec::new();
        for piece in pieces {
            let released = stop.push(piece);
            out.push(released.text);
            if released.is_stopped {
                return out;
            }
        }
        out.push(stop.finish());
        out
    }

    #[test]
    fn are_found_across_pieces_and_never_shown() {
        assert_eq!(
            run(&["END"], &["a", "bE", "N", "D", "x"]),
            ["a", "b", "", ""]
        );
        assert_eq!(run(&["END"], &["aEN", "x"]), ["a", "ENx", ""]);
        assert_eq!(run(&["END"], &["aEN"]), ["a", "EN"]);
        assert_eq!(run(&["aab"], &["aaa", "b"]), ["a", ""]);
        assert_eq!(run(&["\n\n", "c"], &["a\n", "bc"]), ["a", "\nb"]);
        assert_eq!(run(&["xyz", "y"], &["axyz"]), ["a"]);
        assert_eq!(run(&["é!"], &["aé", "!"]), ["a", ""]);
        assert_eq!(run(&["é!"], &["aé", "?"]), ["a", "é?", ""]);
        assert_eq!(run(&[""], &["a"]), ["a", ""]);
        assert_eq!(run(&[], &["a", "b"]), ["a", "b", ""]);
    }
}
