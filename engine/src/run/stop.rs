//! Stop strings: texts that end an answer and are not part of it.

use alloc::string::String;
use alloc::vec::Vec;
use core::mem;

/// Looks for stop strings in a text that comes in pieces, and holds back what may become one.
#[derive(Debug)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
}

/// What of a text may go out.
#[derive(Debug, PartialEq)]
pub struct Released {
    /// The text.
    pub text: String,
    /// The stop string that follows it, by its place among all: then there is no more.
    pub stopped_by: Option<usize>,
}

impl StopStrings {
    /// Empty strings, which would end every answer, are passed over.
    pub fn new(strings: &[String]) -> StopStrings {
        StopStrings {
            strings: strings.to_vec(),
            held: String::new(),
        }
    }

    /// What may go out after `piece`: nothing that belongs to a stop string, or may do so with what
    /// follows.
    pub fn push(&mut self, piece: &str) -> Released {
        self.held.push_str(piece);
        // The first in the text, whichever it is.
        let strings = self.strings.iter().enumerate();
        let found = strings.filter(|(_, s)| !s.is_empty());
        let found = found.filter_map(|(i, s)| Some((self.held.find(&**s)?, i)));
        if let Some((at, i)) = found.min() {
            let rest = self.held.split_off(at + self.strings[i].len());
            let mut text = mem::replace(&mut self.held, rest);
            text.truncate(at);
            return Released {
                text,
                stopped_by: Some(i),
            };
        }
        let n_held = self.strings.iter().map(|s| overlap(&self.held, s)).max();
        let rest = self.held.split_off(self.held.len() - n_held.unwrap_or(0));
        Released {
            text: mem::replace(&mut self.held, rest),
            stopped_by: None,
        }
    }

    /// The stop string of this place.
    pub fn get(&self, i: usize) -> Option<&str> {
        self.strings.get(i).map(|s| &**s)
    }

    /// What was held back, where the text is over; what followed the stop string, where one was found.
    pub fn finish(&mut self) -> String {
        mem::take(&mut self.held)
    }
}

/// The bytes at the end of `text` that `stop` begins with, `stop` itself not counted.
fn overlap(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len().saturating_sub(1));
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
            if released.stopped_by.is_some() {
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
