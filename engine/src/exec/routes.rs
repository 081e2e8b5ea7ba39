//! Which rows go to which experts.

use alloc::vec::Vec;
use core::ops::Range;

use crate::SessionError;
use crate::buffer::zeroed;

/// The experts of a batch's rows. A row has a slot for each of its experts; slots of one expert lie beside each
/// other, by rows.
#[derive(Debug)]
pub(crate) struct Routes {
    /// Experts, `[n_rows, n_used]`.
    pub chosen: Vec<u32>,
    /// What their outputs are multiplied with, `[n_rows, n_used]`.
    pub weights: Vec<f32>,
    /// Their slots, `[n_rows, n_used]`.
    pub slots: Vec<u32>,
    /// The row of each slot.
    pub rows: Vec<u32>,
    /// Where each expert's slots begin, and the last one's end.
    starts: Vec<u32>,
}

impl Routes {
    /// Room for `n_rows` rows with `n_used` of `n_experts` each.
    pub(super) fn new(
        n_rows: usize,
        n_used: usize,
        n_experts: usize,
    ) -> Result<Routes, SessionError> {
        let n_slots = n_rows.saturating_mul(n_used);
        Ok(Routes {
            chosen: zeroed(n_slots)?,
            weights: zeroed(n_slots)?,
            slots: zeroed(n_slots)?,
            rows: zeroed(n_slots)?,
            starts: zeroed(n_experts + 1)?,
        })
    }

    /// Bytes of a row with `n_used` experts.
    pub(super) const fn row_bytes(n_used: usize) -> usize {
        4 * size_of::<u32>() * n_used
    }

    /// Gives the experts chosen by `n_rows` rows slots.
    pub(crate) fn gather(&mut self, n_rows: usize, n_used: usize) {
        let n_slots = n_rows * n_used;
        self.starts.fill(0);
        for e in &self.chosen[..n_slots] {
            self.starts[*e as usize + 1] += 1;
        }
        for e in 1..self.starts.len() {
            self.starts[e] += self.starts[e - 1];
        }
        // `starts` counts up while slots are given away, and is put back behind.
        for i in 0..n_slots {
            let next = &mut self.starts[self.chosen[i] as usize];
            self.slots[i] = *next;
            self.rows[*next as usize] = (i / n_used) as u32;
            *next += 1;
        }
        let n = self.starts.len();
        self.starts.copy_within(..n - 1, 1);
        self.starts[0] = 0;
    }

    /// The experts that somebody chose, each with its slots.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let ranges = self.starts.windows(2);
        let ranges = ranges.map(|range| range[0] as usize..range[1] as usize);
        ranges.enumerate().filter(|(_, slots)| !slots.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_gathered_by_expert() {
        let mut routes = Routes::new(4, 2, 5).unwrap();
        routes.chosen[..6].copy_from_slice(&[3, 0, 0, 4, 3, 4]);
        routes.gather(3, 2);
        let groups: Vec<_> = routes.groups().collect();
        assert_eq!(groups, [(0, 0..2), (3, 2..4), (4, 4..6)]);
        assert_eq!(routes.rows[..6], [0, 1, 0, 2, 1, 2]);
        assert_eq!(routes.slots[..6], [2, 0, 1, 4, 3, 5]);
        // Again, with fewer rows.
        routes.chosen[..2].copy_from_slice(&[1, 0]);
        routes.gather(1, 2);
        let groups: Vec<_> = routes.groups().collect();
        assert_eq!(groups, [(0, 0..1), (1, 1..2)]);
    }
}
