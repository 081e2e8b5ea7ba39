//! What was evaluated before, to go on from: kept by composition and caller, never by name.

use std::sync::Arc;

use tandem_engine::adapters::ContentId;
use tandem_engine::{Sequence, Snapshot};

/// The most that are kept, as all are looked at for each request.
const MAX_ENTRIES: usize = 1024;
/// Fewer tokens than these are not worth a place.
const MIN_TOKENS: usize = 8;

/// What may share what was evaluated: the same composition's requests of the same caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Group {
    pub composition: Option<ContentId>,
    pub caller: u64,
}

/// What answers that are over had evaluated, the least recently used first.
pub(super) struct PrefixCache {
    entries: Vec<Entry>,
    max_bytes: usize,
    /// Whether what was evaluated can be gone on from at its end only.
    is_recurrent: bool,
    /// Whether it has anything that it had not when [`PrefixCache::saved`] was called.
    is_changed: bool,
}

/// What is kept of one text.
#[derive(Clone)]
pub(super) struct Entry {
    pub group: Group,
    pub snapshot: Arc<Snapshot>,
}

impl PrefixCache {
    pub(super) fn new(max_bytes: usize, is_recurrent: bool) -> PrefixCache {
        PrefixCache {
            entries: Vec::new(),
            max_bytes,
            is_recurrent,
            is_changed: false,
        }
    }

    pub(super) fn n_tokens(&self) -> usize {
        self.entries
            .iter()
            .map(|entry| entry.snapshot.tokens().len())
            .sum()
    }

    pub(super) fn n_bytes(&self) -> usize {
        self.entries
            .iter()
            .map(|entry| entry.snapshot.n_bytes())
            .sum()
    }

    pub(super) fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// All of it was saved.
    pub(super) fn saved(&mut self) {
        self.is_changed = false;
    }

    /// All of them, the least recently used first.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The place of the sequence that has most of `prompt` to go on from, and how much.
    pub(super) fn find(&self, group: Group, prompt: &[u32]) -> Option<Found> {
        let is_whole = |found: &Found| {
            let tokens = self.entries[found.place].snapshot.tokens();
            found.n_common == tokens.len()
        };
        self.with_common(group, prompt)
            .filter(|found| !self.is_recurrent || is_whole(found))
            .max_by_key(|found| found.n_common)
    }

    /// How much of `prompt` others began with.
    pub(super) fn longest_common(&self, group: Group, prompt: &[u32]) -> usize {
        let found = self.with_common(group, prompt);
        found.map(|found| found.n_common).max().unwrap_or(0)
    }

    fn with_common(&self, group: Group, prompt: &[u32]) -> impl Iterator<Item = Found> {
        let entries = self.entries.iter().enumerate();
        let found = entries
            .filter(move |(_, entry)| entry.group == group)
            .map(|(place, entry)| Found {
                place,
                n_common: n_common(entry.snapshot.tokens(), prompt),
            });
        found.filter(|found| found.n_common >= MIN_TOKENS)
    }

    /// Lets `sequence` go on from what was found; false where that cannot be.
    pub(super) fn restore(&mut self, found: Found, sequence: &mut Sequence) -> bool {
        // The latest goes last.
        let entry = self.entries.remove(found.place);
        let restored = sequence.restore_snapshot(&entry.snapshot);
        self.entries.push(entry);
        restored.is_ok()
    }

    /// Keeps what a sequence has evaluated, and gives up others where it is too much then.
    pub(super) fn put(&mut self, group: Group, sequence: &Sequence) {
        if sequence.tokens().len() < MIN_TOKENS {
            return;
        }
        if let Ok(snapshot) = sequence.snapshot() {
            self.insert(group, snapshot);
            self.is_changed = true;
        }
    }

    /// Keeps a snapshot that comes from a file where there is room, and gives it up first.
    pub(super) fn insert_oldest(&mut self, group: Group, snapshot: Snapshot) {
        let is_known = |entry: &Entry| {
            entry.group == group && entry.snapshot.tokens().starts_with(snapshot.tokens())
        };
        let fits = self.n_bytes() + snapshot.n_bytes() <= self.max_bytes;
        if fits && self.entries.len() < MAX_ENTRIES && !self.entries.iter().any(is_known) {
            let snapshot = Arc::new(snapshot);
            self.entries.insert(0, Entry { group, snapshot });
        }
    }

    /// Keeps a snapshot as the latest.
    pub(super) fn insert(&mut self, group: Group, snapshot: Snapshot) {
        if snapshot.n_bytes() > self.max_bytes {
            return;
        }
        // Whoever could use a beginning of this one can use this one, if that goes back.
        let tokens = snapshot.tokens();
        let is_recurrent = self.is_recurrent;
        self.entries.retain(|entry| {
            let known = entry.snapshot.tokens();
            let is_beginning = match is_recurrent {
                true => tokens == known,
                false => tokens.starts_with(known),
            };
            entry.group != group || !is_beginning
        });
        let snapshot = Arc::new(snapshot);
        self.entries.push(Entry { group, snapshot });
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
