//! Which token has a text.

#[cfg(feature = "std")]
use core::hash::BuildHasher as _;

use alloc::vec::Vec;

use super::vocab::Vocab;

/// Finds tokens by their texts, which stay where they are: by a hash table where there is a source of
/// the random numbers that one needs, else by a search in the sorted texts.
pub(super) struct TextIndex {
    vocab: Vocab,
    #[cfg(feature = "std")]
    table: hashbrown::HashTable<u32>,
    #[cfg(feature = "std")]
    hasher: std::hash::RandomState,
    /// Ids in the order of their texts.
    #[cfg(not(feature = "std"))]
    sorted: Vec<u32>,
    longest: usize,
}

impl TextIndex {
    /// Of all tokens whose texts are not empty. Of several with the same text the last is found, as in
    /// llama.cpp.
    pub(super) fn new(vocab: &Vocab) -> TextIndex {
        // Several empty texts do no harm: nothing is ever looked up by them.
        let text = |id: &u32| vocab.token_text(*id).filter(|text| !text.is_empty());
        let all = 0..vocab.n_tokens() as u32;
        let ids: Vec<u32> = all.filter(|id| text(id).is_some()).collect();
        let longest = ids.iter().filter_map(text).map(<[u8]>::len).max();
        TextIndex::of(vocab, ids, longest.unwrap_or(0))
    }

    #[cfg(feature = "std")]
    fn of(vocab: &Vocab, ids: Vec<u32>, longest: usize) -> TextIndex {
        use hashbrown::hash_table::Entry;

        let hasher = std::hash::RandomState::new();
        let text = |id: &u32| vocab.token_text(*id).unwrap_or_default();
        let hash = |id: &u32| hasher.hash_one(text(id));
        let mut table = hashbrown::HashTable::with_capacity(ids.len());
        for id in ids {
            match table.entry(hash(&id), |other| text(other) == text(&id), hash) {
                Entry::Occupied(mut first) => *first.get_mut() = id,
                Entry::Vacant(place) => drop(place.insert(id)),
            }
        }
        TextIndex {
            vocab: vocab.clone(),
            table,
            hasher,
            longest,
        }
    }

    #[cfg(not(feature = "std"))]
    fn of(vocab: &Vocab, mut ids: Vec<u32>, longest: usize) -> TextIndex {
        // The last of equal ones comes first, and stays.
        ids.sort_unstable_by(|a, b| (vocab.token_text(*a), b).cmp(&(vocab.token_text(*b), a)));
        ids.dedup_by(|b, a| vocab.token_text(*a) == vocab.token_text(*b));
        TextIndex {
            vocab: vocab.clone(),
            sorted: ids,
            longest,
        }
    }

    /// The token of this text.
    #[cfg(feature = "std")]
    pub(super) fn get(&self, text: &[u8]) -> Option<u32> {
        let is_it = |id: &u32| self.vocab.token_text(*id) == Some(text);
        self.table.find(self.hasher.hash_one(text), is_it).copied()
    }

    /// The token of this text.
    #[cfg(not(feature = "std"))]
    pub(super) fn get(&self, text: &[u8]) -> Option<u32> {
        let order = |id: &u32| self.vocab.token_text(*id).unwrap_or_default().cmp(text);
        let place = self.sorted.binary_search_by(order).ok()?;
        self.sorted.get(place).copied()
    }

    /// Bytes of the longest text.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// The vocabulary.
    pub(super) fn vocab(&self) -> &Vocab {
        &self.vocab
    }
}
