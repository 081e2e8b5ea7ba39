//! The largest of many values, as C++'s `nth_element` finds them.

use core::cmp::Reverse;

use crate::Level;
use crate::level::multilevel;

/// A magnitude and its place, which has no part in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed(u64);

/// The place's bits.
const PLACE: u64 = 0xffff_ffff;

impl Placed {
    /// The magnitude of `x`, NaN being above infinity, and the place `i`, of which 32 bits are kept.
    #[inline]
    pub fn new(x: f32, i: usize) -> Placed {
        // Bits of floats without a sign are in their order.
        Placed(u64::from(x.abs().to_bits()) << 32 | (i as u64 & PLACE))
    }

    /// The place.
    #[inline]
    pub fn place(self) -> usize {
        (self.0 & PLACE) as usize
    }

    #[inline(always)]
    fn magnitude(self) -> u64 {
        self.0 >> 32
    }
}

/// Brings the `n` largest before the others.
///
/// Adapters trained in 16 bits have many equal magnitudes, and which of them are kept changes the
/// result of a merge. PyTorch leaves that to C++'s `nth_element`; so this goes step by step as the
/// one of libstdc++ does, for results that are PEFT's.
///
/// # Panics
///
/// If there are fewer than `n`.
pub fn select_largest(level: Level, x: &mut [Placed], n: usize) {
    assert!(n <= x.len());
    if n == 0 {
        return;
    }
    let (mut first, mut last) = (0, x.len());
    let mut turns_left = 2 * x.len().ilog2();
    while last - first > 3 {
        if turns_left == 0 {
            // Where the pivots are bad the time would be too long; equal values are rare enough.
            x[first..last].select_nth_unstable_by_key(n - 1 - first, |x| Reverse(x.magnitude()));
            return;
        }
        turns_left -= 1;
        // The median of three becomes the pivot, at the front.
        let (a, b, c) = (first + 1, first + (last - first) / 2, last - 1);
        let comes_first = |a: usize, b: usize| x[a].magnitude() > x[b].magnitude();
        let median = match (comes_first(a, b), comes_first(b, c), comes_first(a, c)) {
            (true, true, _) | (false, false, false) => b,
            (true, false, true) | (false, true, false) => c,
            (true, false, false) | (false, _, true) => a,
        };
        x.swap(first, median);
        let mut cut = 0;
        partition(level, &mut x[first..last], &mut cut);
        match first + cut < n {
            true => first += cut,
            false => last = first + cut,
        }
    }
    // What are three at most, by insertion.
    for i in first + 1..last {
        let mut i = i;
        while i > first && x[i].magnitude() > x[i - 1].magnitude() {
            x.swap(i, i - 1);
            i -= 1;
        }
    }
}

/// Values of which the comparisons are the bits of a word.
const BLOCK: usize = 64;

multilevel! {
    /// Brings what is larger than the first value before what is smaller, and gives where the latter
    /// begins. From both sides it goes to the next value that is not on its side alone, and swaps the
    /// two, until the sides meet; there must be such values.
    ///
    /// In blocks while there are two: what is to be swapped is found without branches, of which every
    /// second would be mispredicted (Edelkamp, Weiss 2016, "BlockQuicksort"). The swaps are the same.
    fn partition(level: Level, x: &mut [Placed], cut: &mut usize) {
        let (upper, lower) = (x[0].0 | PLACE, x[0].0 & !PLACE);
        let (mut low, mut high) = (1, x.len());
        // What of the blocks at `low` and before `high` is still to be swapped.
        let (mut in_low, mut in_high) = (0_u64, 0_u64);
        while high - low >= 2 * BLOCK {
            if in_low == 0 {
                in_low = word(&x[low..], |x| x <= upper);
            }
            if in_high == 0 {
                in_high = word(&x[high - BLOCK..], |x| x >= lower);
            }
            for _ in 0..in_low.count_ones().min(in_high.count_ones()) {
                let (i, j) = (in_low.trailing_zeros(), 63 - in_high.leading_zeros());
                x.swap(low + i as usize, high - BLOCK + j as usize);
                in_low &= in_low - 1;
                in_high ^= 1 << j;
            }
            if in_low == 0 {
                low += BLOCK;
            }
            if in_high == 0 {
                high -= BLOCK;
            }
        }
        if in_low != 0 {
            low += in_low.trailing_zeros() as usize;
        }
        if in_high != 0 {
            high -= in_high.leading_zeros() as usize;
        }
        loop {
            while x[low].0 > upper {
                low += 1;
            }
            high -= 1;
            while x[high].0 < lower {
                high -= 1;
            }
            if low >= high {
                *cut = low;
                return;
            }
            x.swap(low, high);
            low += 1;
        }
    }
}

/// The bits of `is` for the first 64 values.
#[inline(always)]
fn word(x: &[Placed], is: impl Fn(u64) -> bool) -> u64 {
    let x: &[Placed; BLOCK] = x.first_chunk().expect("a block is left");
    let mut word = 0;
    for (i, x) in x.iter().enumerate() {
        word |= u64::from(is(x.0)) << i;
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers below `n`, the same in every run.
    fn numbers(n: u64) -> impl FnMut() -> f32 {
        let mut state = 1_u64;
        move || {
            // Xorshift (Marsaglia 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % n) as f32
        }
    }

    #[test]
    fn the_largest_are_selected_among_many_equal_ones() {
        let levels = Level::available();
        for (level, n) in levels
            .into_iter()
            .flat_map(|level| [1, 2, 3, 4, 5, 10, 100, 1000, 3000].map(|n| (level, n)))
        {
            for n_values in [1, 2, 7, 1_000_000] {
                let mut next = numbers(n_values);
                let mut values: Vec<f32> = (0..n).map(|_| next()).collect();
                // NaN is above all.
                values[n / 2] = f32::NAN;
                for n_kept in [1, n / 3, n / 2, n - 1] {
                    let new = |i| Placed::new(values[i], i);
                    let mut order: Vec<Placed> = (0..n).map(new).collect();
                    select_largest(level, &mut order, n_kept);
                    let value = |x: &Placed| match values[x.place()] {
                        x if x.is_nan() => f32::INFINITY,
                        x => x,
                    };
                    let least = order[..n_kept]
                        .iter()
                        .map(value)
                        .fold(f32::INFINITY, f32::min);
                    assert!(order[n_kept..].iter().all(|x| value(x) <= least));
                    let mut places: Vec<usize> = order.iter().map(|x| x.place()).collect();
                    places.sort();
                    assert!(places.into_iter().eq(0..n));
                }
            }
        }
    }

    /// [`partition`] value by value, as the C++ library has it.
    fn plain_partition(x: &mut [Placed]) -> usize {
        let pivot = x[0].magnitude();
        let (mut low, mut high) = (1, x.len());
        loop {
            while x[low].magnitude() > pivot {
                low += 1;
            }
            high -= 1;
            while pivot > x[high].magnitude() {
                high -= 1;
            }
            if low >= high {
                return low;
            }
            x.swap(low, high);
            low += 1;
        }
    }

    #[test]
    fn blocks_are_swapped_as_single_values_are() {
        for n in (3..600).chain([5000, 70_000]) {
            for n_values in [1, 3, 40, u64::MAX] {
                let mut next = numbers(n_values);
                let mut x: Vec<Placed> = (0..n).map(|i| Placed::new(next(), i)).collect();
                // A value on each side that ends the search, as the choice of the pivot leaves them.
                let least = *x.iter().min_by_key(|x| x.magnitude()).unwrap();
                let largest = *x.iter().max_by_key(|x| x.magnitude()).unwrap();
                (x[n - 1], x[1]) = (least, largest);
                let mut expected = x.clone();
                let cut = plain_partition(&mut expected);
                for level in Level::available() {
                    let (mut x, mut found) = (x.clone(), 0);
                    partition(level, &mut x, &mut found);
                    assert_eq!(found, cut);
                    assert!(x == expected, "{n} {n_values} {}", level.name());
                }
            }
        }
    }
}
