//! Speculation: tokens guessed from what the text said before, which one pass verifies.
//!
//! Whatever is guessed, the text stays as it would be: a token is picked from the logits that it would be
//! picked from, by the same random numbers, and these logits have the same bits among several rows as alone.
//! So guesses cost or save time only, and [`Drafts`] keeps count of both.

use alloc::vec::Vec;

/// The most tokens guessed at once.
pub const MAX_DRAFT: usize = 15;
/// Ends of the text that are looked for in it: of that many tokens at least, and at most.
const SHORTEST: usize = 2;
const LONGEST: usize = 8;
/// What a row more adds to the time of a pass, in times of a single token's, where nothing was measured.
const ROW_COST: f32 = 0.2;
/// How much of the time may be lost by guesses, in times of a single token's: at first, and for each token.
const FIRST_LOSS: f32 = 0.25;
const LOSS: f32 = 0.02;

/// Guesses of one generation: what [`Session::generate`](crate::Session::generate) makes, for whoever evaluates
/// sequences by a [`Worker`](crate::Worker) and picks tokens himself. A guess is evaluated after the text's last
/// token, each row's logits are picked from as long as the guesses come, and the rest is forgotten by
/// [`Sequence::rewind`](crate::Sequence::rewind).
#[derive(Debug)]
pub struct Drafts {
    /// The prompt and what was generated.
    text: Vec<u32>,
    n_prompt: usize,
    max_draft: usize,
    /// How often tokens were as guessed, by the length of what was found.
    accepted: [Share; LONGEST + 1],
    /// Seconds of a pass of so many rows; 0 where there was none.
    seconds: [f32; MAX_DRAFT + 2],
    /// Time saved so far, in times of a single token's.
    saved: f32,
    /// How long what was found for the last guess is.
    found: usize,
    n_drafted: usize,
    n_accepted: usize,
}

/// A share of hits, the older the less they count.
#[derive(Clone, Copy, Debug)]
struct Share {
    hits: f32,
    trials: f32,
}

impl Share {
    /// As if half of two trials had hit.
    const NEW: Share = Share {
        hits: 1.0,
        trials: 2.0,
    };

    fn note(&mut self, n_hits: usize, n_trials: usize) {
        // Some 20 trials are remembered.
        self.hits = 0.95 * self.hits + n_hits as f32;
        self.trials = 0.95 * self.trials + n_trials as f32;
    }

    fn get(self) -> f32 {
        self.hits / self.trials
    }
}

impl Drafts {
    /// For what follows `prompt`, at most `max_draft` at once and [`MAX_DRAFT`].
    pub fn new(prompt: &[u32], max_draft: usize) -> Drafts {
        Drafts {
            text: prompt.to_vec(),
            n_prompt: prompt.len(),
            max_draft: max_draft.min(MAX_DRAFT),
            accepted: [Share::NEW; LONGEST + 1],
            seconds: [0.0; MAX_DRAFT + 2],
            saved: 0.0,
            found: 0,
            n_drafted: 0,
            n_accepted: 0,
        }
    }

    /// Tokens guessed so far, and how many of them came.
    pub fn counts(&self) -> DraftCounts {
        DraftCounts {
            drafted: self.n_drafted,
            accepted: self.n_accepted,
        }
    }

    /// The prompt and what was generated.
    pub(super) fn text(&self) -> &[u32] {
        &self.text
    }

    /// Notes the next token of the text.
    pub fn push(&mut self, token: u32) {
        self.text.push(token);
    }

    /// Guesses at most `room` tokens after the text into `draft`: none where it would not pay.
    pub fn guess(&mut self, room: usize, draft: &mut Vec<u32>) {
        draft.clear();
        let most = self.max_draft.min(room);
        if most == 0 {
            return;
        }
        let Some(found) = find_end(&self.text) else {
            return;
        };
        let n = self.best_len(found.len, most);
        self.found = found.len;
        // Past the text's end it goes on as it began: what repeats itself, does so again.
        let period = self.text.len() - found.next;
        draft.extend((0..n).map(|i| self.text[found.next + i % period]));
    }

    /// How many tokens are best guessed after an end of `len` tokens that was found.
    fn best_len(&self, len: usize, most: usize) -> usize {
        let p = self.accepted[len].get();
        let n_generated = self.text.len() - self.n_prompt;
        let may_lose = FIRST_LOSS + LOSS * n_generated as f32 + self.saved;
        let (mut best, mut best_rate) = (0, 1.0);
        let (mut n_expected, mut chance) = (1.0, 1.0);
        for n in 1..=most {
            chance *= p;
            n_expected += chance;
            let cost = self.cost(1 + n);
            let rate = n_expected / cost;
            if rate > best_rate && cost - 1.0 <= may_lose {
                (best, best_rate) = (n, rate);
            }
        }
        best
    }

    /// The time of a pass of `n_rows`, in times of a single token's.
    fn cost(&self, n_rows: usize) -> f32 {
        let one = self.seconds[1];
        if n_rows <= 1 || one == 0.0 {
            return 1.0 + ROW_COST * (n_rows.max(1) - 1) as f32;
        }
        if self.seconds[n_rows] > 0.0 {
            return self.seconds[n_rows] / one;
        }
        // From the nearest number of rows below that was measured.
        let below = (2..n_rows).rev().find(|n| self.seconds[*n] > 0.0);
        let (n, cost) = below.map_or((1, 1.0), |n| (n, self.seconds[n] / one));
        let row_cost = match n {
            1 => ROW_COST,
            _ => ((cost - 1.0) / (n - 1) as f32).max(0.0),
        };
        cost + row_cost * (n_rows - n) as f32
    }

    /// Notes that a pass of `n_rows` took that long, where there is a clock.
    pub fn note_pass(&mut self, n_rows: usize, seconds: Option<f32>) {
        if let (Some(seconds), Some(mean)) = (seconds, self.seconds.get_mut(n_rows)) {
            *mean = match *mean > 0.0 {
                true => 0.8 * *mean + 0.2 * seconds,
                false => seconds,
            };
        }
        if n_rows > 1 {
            self.saved += 1.0 - self.cost(n_rows);
        }
    }

    /// Notes that of `n_drafted` tokens `n_accepted` came.
    pub fn note_outcome(&mut self, n_accepted: usize, n_drafted: usize) {
        let n_trials = n_drafted.min(n_accepted + 1);
        self.accepted[self.found].note(n_accepted, n_trials);
        self.saved += n_accepted as f32;
        self.n_drafted += n_drafted;
        self.n_accepted += n_accepted;
    }
}

/// How a generation's guesses went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DraftCounts {
    /// Tokens guessed.
    pub drafted: usize,
    /// Those of them that came.
    pub accepted: usize,
}

/// An earlier place where the text was as it is at its end.
struct Found {
    /// For how many tokens.
    len: usize,
    /// Where the text went on.
    next: usize,
}

/// The longest, of several as long the last.
fn find_end(text: &[u32]) -> Option<Found> {
    let mut best: Option<Found> = None;
    for next in (SHORTEST..text.len()).rev() {
        let before = text[..next].iter().rev();
        let same = before.zip(text.iter().rev()).take_while(|(a, b)| a == b);
        let len = same.take(LONGEST).count();
        if len >= best.as_ref().map_or(SHORTEST, |best| best.len + 1) {
            best = Some(Found { len, next });
        }
        if len == LONGEST {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_longest_end_is_guessed() {
        let mut drafts = Drafts::new(&[1, 2, 3, 4, 5, 9, 3, 4, 7, 2, 3, 4], 4);
        drafts.accepted[3] = Share {
            hits: 9.0,
            trials: 9.0,
        };
        let mut draft = Vec::new();
        drafts.saved = 10.0;
        drafts.guess(4, &mut draft);
        assert_eq!(draft, [5, 9, 3, 4]);
        drafts.guess(2, &mut draft);
        assert_eq!(draft, [5, 9]);
        drafts.guess(0, &mut draft);
        assert!(draft.is_empty());
        drafts.push(8);
        drafts.guess(4, &mut draft);
        assert!(draft.is_empty());
    }

    #[test]
    fn a_repetition_goes_on() {
        let mut drafts = Drafts::new(&[1, 2, 3, 1, 2, 3, 1, 2, 3], 7);
        drafts.accepted[6].note(100, 100);
        drafts.saved = 10.0;
        let mut draft = Vec::new();
        drafts.guess(7, &mut draft);
        assert_eq!(draft, [1, 2, 3, 1, 2, 3, 1]);
    }

    /// Guesses that never come: what they cost stays within the limit, whatever a row costs.
    #[test]
    fn bad_guesses_are_given_up() {
        for row_seconds in [0.001, 0.02, 0.2, 1.0] {
            let mut drafts = Drafts::new(&[1, 2, 3, 4, 1, 2], MAX_DRAFT);
            let (mut draft, mut seconds) = (Vec::new(), 0.0);
            let n_tokens = 400;
            for i in 0..n_tokens {
                drafts.guess(MAX_DRAFT, &mut draft);
                let pass = 1.0 + row_seconds * draft.len() as f32;
                seconds += pass;
                drafts.note_pass(1 + draft.len(), Some(pass));
                if !draft.is_empty() {
                    drafts.note_outcome(0, draft.len());
                }
                // The end is always one that was there, and what follows never the same.
                drafts.push([1, 2, 10 + i][i as usize % 3]);
            }
            let most = n_tokens as f32 * (1.0 + LOSS) + 2.0 + FIRST_LOSS;
            assert!(seconds <= most, "{row_seconds}: {seconds} of {most}");
        }
    }
}
