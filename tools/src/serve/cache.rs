//! What was evaluated before, to go on from: kept by composition and caller, never by name.

use tandem_engine::Sequence;
use tandem_engine::adapters::ContentId;

/// The most sequences kept: each of them reserves addresses for a whole context.
const MAX_ENTRIES: usize = 64;
/// Fewer tokens than these are not worth a place.
const MIN_TOKENS: usize = 8;

/// What may share what was evaluated: the same composition's requests of the same caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub composition: Option<ContentId>,
    pub caller: u64,
}

/// Sequences of answers that are over, the least recently used first.
pub(super) struct PrefixCache {
    entries: Vec<Entry>,
    max_bytes: usize,
    /// Whether it has anything that it had not when [`PrefixCache::saved`] was called.
    is_changed: bool,
}

struct Entry {
    group: Group,
    sequence: Sequence,
}

impl PrefixCache {
    pub(super) fn new(max_bytes: usize) -> PrefixCache {
        PrefixCache {
            entries: Vec::new(),
            max_bytes,
            is_changed: false,
        }
    }

    pub(super) fn n_tokens(&self) -> usize {
        self.entries
            .iter()
            .map(|entry| entry.sequence.tokens().len())
            .sum()
    }

    pub(super) fn n_bytes(&self) -> usize {
        self.entries
            .iter()
            .map(|entry| entry.sequence.used_bytes())
            .sum()
    }

    pub(super) fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// All of it was saved.
    pub(super) fn saved(&mut self) {
        self.is_changed = false;
    }

    /// The sequences, the least recently used first.
    pub(super) fn sequences(&self) -> impl Iterator<Item = (Group, &Sequence)> {
        self.entries
            .iter()
            .map(|entry| (entry.group, &entry.sequence))
    }

    /// The place of the sequence that has most of `prompt`, and how much.
    pub(super) fn find(&self, group: Group, prompt: &[u32]) -> Option<Found> {
        let entries = self.entries.iter().enumerate();
        entries
            .filter(|(_, entry)| entry.group == group)
            .map(|(place, entry)| Found {
                place,
                n_common: n_common(entry.sequence.tokens(), prompt),
            })
            .filter(|found| found.n_common >= MIN_TOKENS)
            .max_by_key(|found| found.n_common)
    }

    /// A sequence that goes on from what was found: that one itself, where nothing of it would be forgotten,
    /// else a copy; `None` where there is no memory for one.
    pub(super) fn take(&mut self, found: Found) -> Option<Sequence> {
        let entry = self.entries.remove(found.place);
        if entry.sequence.tokens().len() == found.n_common {
            return Some(entry.sequence);
        }
        let copy = entry.sequence.fork().ok();
        self.entries.push(entry);
        copy
    }

    /// Keeps a sequence, and gives up others where there are too many then.
    pub(super) fn put(&mut self, group: Group, sequence: Sequence) {
        let tokens = sequence.tokens();
        if tokens.len() < MIN_TOKENS || sequence.used_bytes() > self.max_bytes {
            return;
        }
        // Whoever could use a beginning of this one can use this one.
        self.entries
            .retain(|entry| entry.group != group || !tokens.starts_with(entry.sequence.tokens()));
        self.is_changed = true;
        self.entries.push(Entry { group, sequence });
        while self.n_bytes() > self.max_bytes || self.entries.len() > MAX_ENTRIES {
            self.entries.remove(0);
        }
    }
}

/// A sequence that has a part of a prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    place: usize,
    pub n_common: usize,
}

/// Tokens that can be gone on from: those at both beginnings, but for the prompt's last, whose logits are
/// needed.
pub(super) fn n_common(tokens: &[u32], prompt: &[u32]) -> usize {
    let same = tokens.iter().zip(prompt).take_while(|(a, b)| a == b);
    same.count().min(prompt.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_token_of_a_prompt_is_always_computed() {
        assert_eq!(n_common(&[1, 2, 3], &[1, 2, 4]), 2);
        assert_eq!(n_common(&[1, 2, 3], &[1, 2, 3]), 2);
        assert_eq!(n_common(&[1, 2, 3, 4], &[1, 2, 3]), 2);
        assert_eq!(n_common(&[1], &[]), 0);
    }
}
