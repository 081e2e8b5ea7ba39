//! How many threads single tokens run on while other work comes and goes.

use std::vec::Vec;

use arrayvec::ArrayVec;

use super::threads::counts;

/// Tokens whose times tell what the chosen number of threads can do.
const N_RECENT: usize = 8;
/// Tokens of a trial.
const N_TRIAL: usize = 2;
/// Tokens from one trial to the next: at first, and at most for more and for fewer threads. The latter
/// cost more where they are no better, and what speaks for them shows in the times by itself.
const FIRST_WAIT: usize = 8;
const MOST_WAIT: [usize; 2] = [64, 256];
/// More threads must be so much faster that it is no accident: half of what they could be, or so much.
const GAIN: f64 = 0.95;
/// Fewer may be a little slower than the fastest was.
const TOLERANCE: f64 = 1.01;
/// A trial ends at once that takes so many times as long.
const HOPELESS: f64 = 1.2;
/// Times that are so much longer or shorter than before mean that other work has come or gone.
const CHANGE: f64 = 1.25;
/// The most numbers that are tried when it has.
const MAX_CANDIDATES: usize = 32;

/// Chooses the number of threads by the times that tokens take: it begins with a number, tries one more
/// and one less every so often, and all when the times change.
#[derive(Debug)]
pub(super) struct Follow {
    /// The numbers that are tried when the load changes; the last is the largest possible.
    counts: Vec<usize>,
    n: usize,
    /// Seconds of the last tokens on `n` threads.
    recent: ArrayVec<f64, N_RECENT>,
    /// The median of such tokens when `n` was last found to be best.
    usual: Option<f64>,
    /// The shortest time of any number since the load changed last.
    fastest: f64,
    /// Tokens until the next trial of one more and of one less, and how many there will be after it.
    wait: [usize; 2],
    next_wait: [usize; 2],
    trial: Option<Trial>,
}

/// Numbers of threads that are tried one after the other.
#[derive(Debug)]
struct Trial {
    /// The last is at work.
    candidates: ArrayVec<usize, MAX_CANDIDATES>,
    times: ArrayVec<f64, N_TRIAL>,
    best: Tried,
}

#[derive(Clone, Copy, Debug)]
struct Tried {
    n: usize,
    seconds: f64,
}

const MORE: usize = 0;
const FEWER: usize = 1;

impl Follow {
    /// Beginning with `n` threads, of at most `n_max`.
    pub(super) fn new(n: usize, n_max: usize) -> Follow {
        let mut counts = counts(n_max);
        counts.truncate(MAX_CANDIDATES - 1);
        counts.retain(|n| *n < n_max);
        counts.push(n_max);
        Follow {
            counts,
            n: n.clamp(1, n_max),
            recent: ArrayVec::new(),
            usual: None,
            fastest: f64::INFINITY,
            wait: MOST_WAIT,
            next_wait: MOST_WAIT,
            trial: None,
        }
    }

    fn n_max(&self) -> usize {
        self.counts.last().copied().unwrap_or(1)
    }

    /// What the next token runs on.
    pub(super) fn n_threads(&self) -> usize {
        let candidate = |trial: &Trial| trial.candidates.last().copied();
        self.trial.as_ref().and_then(candidate).unwrap_or(self.n)
    }

    /// The last token took so long.
    pub(super) fn record(&mut self, seconds: f64) {
        match self.trial.take() {
            Some(trial) => self.record_trial(trial, seconds),
            None => self.record_usual(seconds),
        }
    }

    fn record_usual(&mut self, seconds: f64) {
        if self.recent.is_full() {
            self.recent.remove(0);
        }
        self.recent.push(seconds);
        self.wait = self.wait.map(|wait| wait.saturating_sub(1));
        if !self.recent.is_full() {
            return;
        }
        let now = median(&self.recent);
        let usual = *self.usual.get_or_insert(now);
        let mut candidates = ArrayVec::new();
        if now > usual * CHANGE || now < usual / CHANGE {
            candidates.extend(self.counts.iter().copied().filter(|n| *n != self.n));
            self.fastest = f64::INFINITY;
            self.next_wait = [FIRST_WAIT; 2];
            self.wait = [FIRST_WAIT, 2 * FIRST_WAIT];
        } else if self.wait[MORE] == 0 && self.n < self.n_max() {
            candidates.push(self.n + 1);
            self.put_off(MORE);
        } else if self.wait[FEWER] == 0 && self.n > 1 {
            candidates.push(self.n - 1);
            self.put_off(FEWER);
        }
        if candidates.is_empty() {
            return;
        }
        self.usual = Some(now);
        self.fastest = self.fastest.min(now);
        self.trial = Some(Trial {
            candidates,
            times: ArrayVec::new(),
            best: Tried {
                n: self.n,
                seconds: now,
            },
        });
    }

    /// Waits for the next trial, longer each time.
    fn put_off(&mut self, direction: usize) {
        self.wait[direction] = self.next_wait[direction];
        self.next_wait[direction] = (2 * self.next_wait[direction]).min(MOST_WAIT[direction]);
    }

    fn record_trial(&mut self, mut trial: Trial, seconds: f64) {
        let best = trial.best;
        trial.times.push(seconds);
        if seconds <= best.seconds * HOPELESS && !trial.times.is_full() {
            self.trial = Some(trial);
            return;
        }
        let mean = trial.times.iter().sum::<f64>() / trial.times.len() as f64;
        trial.times.clear();
        let n = trial.candidates.pop().unwrap_or(best.n);
        let limit = match n < best.n {
            true => TOLERANCE * self.fastest,
            false => best.seconds * GAIN.max(1.0 - 0.5 * (n - best.n) as f64 / n as f64),
        };
        if mean < limit {
            self.fastest = self.fastest.min(mean);
            trial.best = Tried { n, seconds: mean };
        }
        if !trial.candidates.is_empty() {
            self.trial = Some(trial);
        } else if trial.best.n != self.n {
            self.n = trial.best.n;
            self.recent.clear();
            self.usual = None;
            // What is one better may be two better.
            self.next_wait = [FIRST_WAIT; 2];
            self.wait = [FIRST_WAIT; 2];
        }
    }
}

/// Of times there is at least one.
fn median(times: &[f64]) -> f64 {
    let mut sorted: ArrayVec<f64, N_RECENT> = times.iter().copied().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a token takes on `n` threads of four cores, `n_busy` of which others use half of: the slowest
    /// thread is waited for.
    fn seconds(n: usize, n_busy: usize) -> f64 {
        match n + n_busy > 4 {
            true => 2.2 / n as f64,
            false => 1.0 / n.min(3) as f64, // memory is full by three
        }
    }

    fn run(follow: &mut Follow, n_tokens: usize, n_busy: usize) -> f64 {
        let mut sum = 0.0;
        for i in 0..n_tokens {
            let noise = 1.0 + 0.02 * ((i * 7) % 5) as f64 / 5.0;
            let time = noise * seconds(follow.n_threads(), n_busy);
            follow.record(time);
            sum += time;
        }
        sum / n_tokens as f64
    }

    #[test]
    fn the_number_follows_what_others_do() {
        let mut follow = Follow::new(3, 4);
        run(&mut follow, 300, 0);
        assert_eq!(follow.n, 3);
        // Two cores are half lost, and two threads are fastest, though four are faster than three.
        run(&mut follow, 40, 2);
        assert_eq!(follow.n, 2);
        // They are free again.
        run(&mut follow, 140, 0);
        assert_eq!(follow.n, 3);
        // All but one: all four get their halves.
        run(&mut follow, 80, 3);
        assert!(seconds(follow.n, 3) < 0.6, "{}", follow.n);
    }

    #[test]
    fn a_number_that_is_best_costs_next_to_nothing() {
        for n in 1..=3 {
            let mut follow = Follow::new(n, n);
            let mean = run(&mut follow, 4000, 0);
            let best = run(&mut Follow::new(n, n), 8, 0);
            assert!(mean < 1.01 * best, "{n}: {mean} {best}");
            assert_eq!(follow.n, n);
        }
    }

    /// Where each thread more gains a little, the number does not creep down.
    #[test]
    fn small_losses_do_not_add_up() {
        for n in [8, 16, 32] {
            let mut follow = Follow::new(n, n);
            let seconds = |n: usize| (n as f64).powf(-0.2);
            for i in 0..20_000 {
                let noise = 1.0 + 0.01 * ((i * 7) % 5) as f64 / 5.0;
                follow.record(noise * seconds(follow.n_threads()));
            }
            assert!(seconds(follow.n) < 1.04 * seconds(n), "{n}: {}", follow.n);
        }
    }

    #[test]
    fn fewer_threads_are_taken_that_are_no_slower() {
        let mut follow = Follow::new(4, 4);
        run(&mut follow, 600, 0);
        assert_eq!(follow.n, 3);
    }
}
