//! Picking the next token from logits.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::draft::MAX_DRAFT;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use tandem_kernels::{Level, max, softmax};

/// The most recent tokens that penalties can look at.
pub const MAX_PENALTY_WINDOW: usize = 4096;

/// How a text is continued. [`Sampling::default`] is what the command takes where no flag says
/// otherwise, with the seed 0; [`Sampling::greedy`] always picks the most likely token.
///
/// Filters apply in the order of the fields from the penalties to `min_p`, then the temperature;
/// that is llama.cpp's order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// Texts that end the answer and are not part of it; empty ones are passed over.
    pub stop: Vec<String>,
    /// Divides the logits; 0 picks the most likely token.
    pub temperature: f32,
    /// Recent tokens that the penalties look at, at most [`MAX_PENALTY_WINDOW`].
    pub penalty_window: usize,
    /// Positive logits of recent tokens are divided by it, negative ones multiplied; 1 is off.
    pub repeat_penalty: f32,
    /// Subtracted for each time a token occurred; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once for a token that occurred; 0 is off.
    pub presence_penalty: f32,
    /// Keep the k most likely tokens; 0 is off.
    pub top_k: usize,
    /// Keep the tokens whose information is nearest to the entropy, up to this probability
    /// (Meister et al., arXiv 2202.00666); 1 is off.
    pub typical_p: f32,
    /// Keep the most likely tokens up to this probability (Holtzman et al., arXiv 1904.09751);
    /// 1 is off.
    pub top_p: f32,
    /// Keep tokens at least this times as likely as the most likely one; 0 is off.
    pub min_p: f32,
    /// Seed of the random numbers: the same seed gives the same text.
    pub seed: u64,
    /// The most tokens, up to 15, that are guessed from what the text said before and evaluated beside the next
    /// one; 0 is off. The text is the same; where it repeats itself or the prompt it comes sooner, and
    /// where guesses fail they are given up.
    pub max_draft: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            ..Sampling::greedy()
        }
    }
}

impl Sampling {
    /// Always the most likely token; every filter is off.
    pub fn greedy() -> Sampling {
        Sampling {
            max_tokens: 256,
            stop: Vec::new(),
            temperature: 0.0,
            penalty_window: 64,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            top_k: 0,
            typical_p: 1.0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            max_draft: MAX_DRAFT,
        }
    }

    /// The same with another text that ends the answer.
    pub fn stop(mut self, text: impl Into<String>) -> Sampling {
        self.stop.push(text.into());
        self
    }

    /// The same with at most `n` tokens.
    pub fn max_tokens(mut self, n: usize) -> Sampling {
        self.max_tokens = n;
        self
    }

    /// The same with at most `n` tokens guessed ahead.
    pub fn max_draft(mut self, n: usize) -> Sampling {
        self.max_draft = n;
        self
    }

    /// The same with another seed.
    pub fn seed(mut self, seed: u64) -> Sampling {
        self.seed = seed;
        self
    }
}

/// The id of the largest logit, the first of equals; NaN is never the largest.
pub fn argmax(logits: &[f32]) -> u32 {
    let largest = max(Level::detect(), logits);
    let id = logits.iter().position(|logit| *logit == largest);
    id.unwrap_or(0) as u32
}

/// Logits whose largest is looked at first.
const CHUNK_LEN: usize = 64;

/// Marks a token's count while penalties are applied; counts are below [`MAX_PENALTY_WINDOW`].
const DONE: u16 = 1 << 15;

/// Picks tokens by its options, remembering the recent ones.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: Sampling,
    level: Level,
    rng: Xoshiro256PlusPlus,
    recent: VecDeque<u32>,
    /// How often each token is in `recent`, `[n_vocab]`.
    counts: Vec<u16>,
    /// Tokens still in the running with their logits; the most likely first where it matters.
    candidates: Vec<(u32, f32)>,
    /// Probabilities of the candidates.
    p: Vec<f32>,
}

impl Sampler {
    /// A sampler for vocabularies of `n_vocab` tokens.
    pub fn new(mut options: Sampling, n_vocab: usize) -> Sampler {
        options.penalty_window = options.penalty_window.min(MAX_PENALTY_WINDOW);
        Sampler {
            level: Level::detect(),
            rng: Xoshiro256PlusPlus::seed_from_u64(options.seed),
            recent: VecDeque::with_capacity(options.penalty_window),
            counts: vec![0; n_vocab],
            candidates: Vec::with_capacity(n_vocab),
            p: Vec::with_capacity(n_vocab),
            options,
        }
    }

    /// Remembers tokens of the text, for the penalties.
    pub fn accept_all(&mut self, tokens: &[u32]) {
        let window = self.options.penalty_window;
        if window == 0 {
            return;
        }
        for token in &tokens[tokens.len().saturating_sub(window)..] {
            let oldest = match self.recent.len() == window {
                true => self.recent.pop_front(),
                false => None,
            };
            let mut count = |token: u32, change: fn(u16) -> u16| {
                if let Some(count) = self.counts.get_mut(token as usize) {
                    *count = change(*count);
                }
            };
            if let Some(oldest) = oldest {
                count(oldest, |n| n - 1);
            }
            count(*token, |n| n + 1);
            self.recent.push_back(*token);
        }
    }

    /// The next token. `logits` `[n_vocab]` are spoiled.
    pub fn pick(&mut self, logits: &mut [f32]) -> u32 {
        let temperature = self.options.temperature;
        self.penalize(logits);
        if temperature <= 0.0 {
            return argmax(logits);
        }
        self.gather(logits);
        if self.candidates.is_empty() {
            return 0;
        }
        self.keep_top_k();
        self.keep_typical();
        self.keep_top_p();
        self.keep_min_p();
        for candidate in &mut self.candidates {
            candidate.1 /= temperature;
        }
        self.set_probabilities();
        // 24 bits are a float's worth of a uniform number in 0..1.
        let mut u = (self.rng.next_u64() >> 40) as f32 / (1 << 24) as f32;
        for ((id, _), p) in self.candidates.iter().zip(&self.p) {
            u -= p;
            if u < 0.0 {
                return *id;
            }
        }
        // Rounding left a little over: it belongs to the most likely token.
        let most_likely = self.candidates.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        most_likely.map_or(0, |(id, _)| *id)
    }

    /// Makes candidates of all tokens that may be among the `top_k` most likely. A broken model's NaN is none.
    fn gather(&mut self, logits: &[f32]) {
        self.candidates.clear();
        let k = self.options.top_k;
        let chunks = logits.chunks(CHUNK_LEN);
        let mut least = f32::NEG_INFINITY;
        // Each of the k chunks with the largest logits has one at least that is no smaller than theirs.
        if k > 0 && k < chunks.len() {
            self.p.clear();
            self.p
                .extend(chunks.clone().map(|chunk| max(self.level, chunk)));
            let maxima = &mut self.p[..];
            least = *maxima
                .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a))
                .1;
        }
        for (i, chunk) in chunks.enumerate() {
            let first = (i * CHUNK_LEN) as u32;
            let likely = (first..).zip(chunk).filter(|(_, logit)| **logit >= least);
            self.candidates
                .extend(likely.map(|(id, logit)| (id, *logit)));
        }
    }

    fn penalize(&mut self, logits: &mut [f32]) {
        let o = &self.options;
        if o.repeat_penalty == 1.0 && o.frequency_penalty == 0.0 && o.presence_penalty == 0.0 {
            return;
        }
        for token in &self.recent {
            let id = *token as usize;
            let (Some(count), Some(logit)) = (self.counts.get_mut(id), logits.get_mut(id)) else {
                continue;
            };
            // Each token once, at its first occurrence: then it is marked, until all are done.
            if *count & DONE != 0 {
                continue;
            }
            let n = *count;
            *count |= DONE;
            match *logit > 0.0 {
                true => *logit /= o.repeat_penalty,
                false => *logit *= o.repeat_penalty,
            }
            *logit -= f32::from(n) * o.frequency_penalty + o.presence_penalty;
        }
        for token in &self.recent {
            if let Some(count) = self.counts.get_mut(*token as usize) {
                *count &= !DONE;
            }
        }
    }

    fn keep_top_k(&mut self) {
        let k = self.options.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, likely_first);
            self.candidates.truncate(k);
        }
        // From here on the most likely comes first. Sorting a whole vocabulary takes longer than a
        // small model's step, so it is left out where no later filter needs the order.
        if k > 0 || self.options.typical_p < 1.0 || self.options.top_p < 1.0 {
            self.candidates.sort_unstable_by(likely_first);
        }
    }

    fn keep_typical(&mut self) {
        if self.options.typical_p >= 1.0 {
            return;
        }
        self.set_probabilities();
        let surprise = |p: f32| {
            if p > 0.0 {
                -libm::logf(p)
            } else {
                f32::INFINITY
            }
        };
        let entropy: f32 = self
            .p
            .iter()
            .filter(|p| **p > 0.0)
            .map(|p| p * surprise(*p))
            .sum();
        // The logit is kept beside the distance by which the candidates are ordered.
        let mut by_distance: Vec<_> = self
            .candidates
            .iter()
            .zip(&self.p)
            .map(|(candidate, p)| ((surprise(*p) - entropy).abs(), *p, *candidate))
            .collect();
        by_distance.sort_by(|a, b| a.0.total_cmp(&b.0));
        let n = count_up_to(
            by_distance.iter().map(|(_, p, _)| *p),
            self.options.typical_p,
        );
        self.candidates.clear();
        self.candidates
            .extend(by_distance[..n].iter().map(|(_, _, candidate)| *candidate));
        self.candidates.sort_unstable_by(likely_first);
    }

    fn keep_top_p(&mut self) {
        if self.options.top_p < 1.0 {
            self.set_probabilities();
            let n = count_up_to(self.p.iter().copied(), self.options.top_p);
            self.candidates.truncate(n);
        }
    }

    fn keep_min_p(&mut self) {
        let min_p = self.options.min_p;
        if min_p > 0.0 {
            let max = self
                .candidates
                .iter()
                .fold(f32::NEG_INFINITY, |max, c| max.max(c.1));
            // p / p_max = exp(logit - max). The most likely stays even for min_p > 1.
            let least = (max + libm::logf(min_p)).min(max);
            self.candidates.retain(|(_, logit)| *logit >= least);
        }
    }

    fn set_probabilities(&mut self) {
        self.p.clear();
        self.p
            .extend(self.candidates.iter().map(|(_, logit)| *logit));
        softmax(self.level, &mut self.p);
    }
}

/// Larger logits first; equal ones by id, so that the result does not depend on the sort.
fn likely_first(a: &(u32, f32), b: &(u32, f32)) -> core::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// How many of the probabilities, at least one, reach `limit` together.
fn count_up_to(p: impl ExactSizeIterator<Item = f32>, limit: f32) -> usize {
    let n = p.len();
    let mut sum = 0.0;
    for (i, p) in p.enumerate() {
        sum += p;
        if sum >= limit {
            return i + 1;
        }
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which tokens come up in many draws, and how often, in per cent.
    fn draws(options: Sampling, logits: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(options, logits.len());
        let mut counts = alloc::vec![0; logits.len()];
        for _ in 0..10_000 {
            counts[sampler.pick(&mut logits.to_vec()) as usize] += 1;
        }
        counts.iter().map(|n| (n + 50) / 100).collect()
    }

    /// Logits of the probabilities 40, 30, 20 and 10 per cent, in another order.
    fn logits() -> Vec<f32> {
        [0.1_f32, 0.4, 0.2, 0.3].iter().map(|p| p.ln()).collect()
    }

    fn options() -> Sampling {
        Sampling {
            temperature: 1.0,
            seed: 7,
            ..Default::default()
        }
    }

    fn near(found: &[usize], expected: [usize; 4]) -> bool {
        found.iter().zip(expected).all(|(f, e)| f.abs_diff(e) <= 2)
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_no_nan() {
        let mut sampler = Sampler::new(Sampling::greedy(), 4);
        assert_eq!(sampler.pick(&mut [1.0, 3.0, f32::NAN, 3.0]), 1);
        assert_eq!(sampler.pick(&mut [f32::NAN; 4]), 0);
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_temperature() {
        assert!(near(&draws(options(), &logits()), [10, 40, 20, 30]));
        let cold = Sampling {
            temperature: 0.5, // probabilities squared: 1, 16, 4, 9 of 30
            ..options()
        };
        assert!(near(&draws(cold, &logits()), [3, 53, 13, 30]));
    }

    #[test]
    fn the_filters_keep_what_they_should() {
        let with = |f: fn(&mut Sampling)| {
            let mut o = options();
            f(&mut o);
            draws(o, &logits())
        };
        assert!(near(&with(|o| o.top_k = 2), [0, 57, 0, 43]));
        assert!(near(&with(|o| o.top_p = 0.6), [0, 57, 0, 43]));
        assert!(near(&with(|o| o.min_p = 0.45), [0, 44, 22, 33]));
        assert!(near(&with(|o| o.min_p = 2.0), [0, 100, 0, 0]));
        // Entropy 1.28: 30 % (1.20) is the most typical, then 20 % (1.61), then 40 % (0.92).
        assert!(near(&with(|o| o.typical_p = 0.4), [0, 0, 40, 60]));
    }

    #[test]
    fn the_most_likely_of_a_large_vocabulary_are_found() {
        // Equal ones, one NaN, and whole chunks without a number.
        let mut logits: Vec<f32> = (0..5003).map(|i| ((i * 7919) % 613) as f32).collect();
        logits[17] = f32::NAN;
        logits[640..768].fill(f32::NEG_INFINITY);
        let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
        all.retain(|(_, logit)| !logit.is_nan());
        all.sort_by(likely_first);
        for top_k in [1, 2, 40, 78, 79, 500, 4999] {
            let options = Sampling { top_k, ..options() };
            let mut sampler = Sampler::new(options, logits.len());
            sampler.gather(&logits);
            sampler.keep_top_k();
            assert_eq!(sampler.candidates, all[..top_k], "{top_k}");
        }
        assert_eq!(argmax(&logits), all[0].0);
    }

    #[test]
    fn penalties_push_recent_tokens_down() {
        let mut sampler = Sampler::new(
            Sampling {
                repeat_penalty: 2.0,
                frequency_penalty: 0.5,
                presence_penalty: 0.25,
                penalty_window: 3,
                ..Default::default()
            },
            4,
        );
        sampler.accept_all(&[0, 1, 2, 2, 9]); // 9 is outside the vocabulary, 0 and 1 outside the window
        let mut x = [1.0, 1.0, 4.0, -4.0];
        sampler.pick(&mut x);
        assert_eq!(x, [1.0, 1.0, 4.0 / 2.0 - 1.25, -4.0]);
    }

    #[test]
    fn a_seed_gives_the_same_tokens() {
        let run = |seed| {
            let mut s = Sampler::new(Sampling { seed, ..options() }, 4);
            (0..50).map(|_| s.pick(&mut logits())).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
