//! The requests that wait or are at work: how many there may be, and whose.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::ApiError;

/// Seconds after which a refused request is worth another try, before any was answered.
const FIRST_GUESS: Duration = Duration::from_secs(5);

/// Who may come in.
#[derive(Debug)]
pub(super) struct Line {
    /// The most that wait or are at work.
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    n: usize,
    /// How many are whose.
    by_caller: HashMap<u64, usize>,
    last_left: Option<Instant>,
    /// How long it takes as a rule, while there are some, until the next one leaves.
    gap: Option<Duration>,
}

impl Line {
    pub(super) fn new(most: usize) -> Line {
        Line {
            most,
            state: Mutex::default(),
        }
    }

    /// A place for a request of this caller, until it is dropped. While others are in the line, too, nobody gets
    /// more than half of it; where one has more, as nobody else was there, others come in besides.
    ///
    /// # Errors
    ///
    /// When to come again.
    pub(super) fn enter(self: &Arc<Self>, caller: u64) -> Result<Place, ApiError> {
        let mut state = self.lock();
        let half = self.most.div_ceil(2);
        let own = state.by_caller.get(&caller).copied().unwrap_or(0);
        let greatest = state.by_caller.values().copied().max().unwrap_or(0);
        let beyond_half = greatest.saturating_sub(half);
        let fits = match own < half {
            true => state.n < self.most + beyond_half,
            false => own == state.n && state.n < self.most,
        };
        if !fits {
            let gap = state.gap.unwrap_or(FIRST_GUESS);
            return Err(ApiError::overloaded(gap.as_secs_f64().ceil() as u64));
        }
        if state.n == 0 {
            state.last_left = Some(Instant::now());
        }
        state.n += 1;
        *state.by_caller.entry(caller).or_default() += 1;
        Ok(Place {
            line: Arc::clone(self),
            caller,
        })
    }

    fn leave(&self, caller: u64) {
        let mut state = self.lock();
        state.n -= 1;
        if let Some(own) = state.by_caller.get_mut(&caller) {
            *own -= 1;
            if *own == 0 {
                state.by_caller.remove(&caller);
            }
        }
        let now = Instant::now();
        if let Some(last) = state.last_left.replace(now) {
            let gap = now - last;
            state.gap = Some(state.gap.map_or(gap, |before| (before * 7 + gap) / 8));
        }
    }

    /// Counts stay right when a thread panics.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line.
#[derive(Debug)]
pub(super) struct Place {
    line: Arc<Line>,
    caller: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.leave(self.caller);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_holds_more_than_half_of_it_beside_others() {
        let line = Arc::new(Line::new(4));
        let mut places: Vec<_> = (0..4).map(|_| line.enter(1).unwrap()).collect();
        // Alone one may have all of it, and keeps out no others.
        assert_eq!(line.enter(1).unwrap_err().code, Some("overloaded"));
        let others: Vec<_> = (0..2).map(|_| line.enter(2).unwrap()).collect();
        assert!(line.enter(2).is_err() && line.enter(3).is_err());
        places.truncate(2);
        // Half of it is the most now.
        assert!(line.enter(1).is_err() && line.enter(3).is_err());
        places.truncate(1);
        places.push(line.enter(1).unwrap());
        drop(others);
        places.push(line.enter(1).unwrap());
        assert_eq!(line.lock().n, 3);
        drop(places);
        assert_eq!(line.lock().n, 0);
        assert!(line.lock().by_caller.is_empty());
    }

    #[test]
    fn it_tells_when_to_come_again() {
        let line = Arc::new(Line::new(1));
        let place = line.enter(1).unwrap();
        assert_eq!(line.enter(1).unwrap_err().retry_after, Some(5));
        drop(place);
        line.lock().gap = Some(Duration::from_millis(12_300));
        let _place = line.enter(1).unwrap();
        assert_eq!(line.enter(2).unwrap_err().retry_after, Some(13));
    }
}
