//! The largest of many values, as C++'s `nth_element` finds them.

use core::cmp::Reverse;

use crate::Level;
use crate::level::multilevel;

/// The bits of the place in what is sorted: above them are the magnitude's.
const PLACE: u64 = 0xffff_ffff;

/// Sets all but the `n` largest magnitudes to zero, NaN being above infinity; of equal ones those are
/// kept that PyTorch keeps. `order` is scratch of at least the size of `x`.
///
/// Adapters trained in 16 bits have many equal magnitudes, and which of them are kept changes the
/// result of a merge. PyTorch leaves that to C++'s `nth_element`; so this goes step by step as the
/// one of libstdc++ does, for results that are PEFT's. (Where a 64th or less is kept it sorts these
/// instead, and other equal ones may be kept than here.)
///
/// # Panics
///
/// If `n` is 0 or above the number of values, that is above 2^32, or `order` is too small.
pub fn keep_largest_as_pytorch(level: Level, n: usize, order: &mut [u64], x: &mut [f32]) {
    assert!(n > 0 && n <= x.len() && x.len() as u64 <= PLACE + 1);
    let order = &mut order[..x.len()];
    place(level, x, order);
    select_largest(level, order, n);
    let (largest, others) = order.split_at(n);
    drop_others(level, largest[n - 1] & !PLACE, others, x);
}

multilevel! {
    /// The magnitude of each value above its place.
    fn place(level: Level, x: &[f32], order: &mut [u64]) {
        for (i, (x, placed)) in x.iter().zip(order).enumerate() {
            // Bits of floats without a sign are in their order.
            *placed = u64::from(x.abs().to_bits()) << 32 | i as u64;
        }
    }
}

multilevel! {
    /// Sets to zero every value smaller than `least`, and those that equal it and are among `others`,
    /// none of which is larger.
    fn drop_others(level: Level, least: u64, others: &[u64], x: &mut [f32]) {
        for x in x.iter_mut() {
            let kept = x.abs().to_bits() >= (least >> 32) as u32;
            *x = if kept { *x } else { 0.0 };
        }
        for run in others.chunks(BLOCK) {
            if run.iter().fold(false, |any, placed| any | (*placed >= least)) {
                for placed in run.iter().filter(|placed| **placed >= least) {
                    x[(placed & PLACE) as usize] = 0.0;
                }
            }
        }
    }
}

/// Brings the `n` largest before the others, the least of them last; places have no part in the order.
fn select_largest(level: Level, x: &mut [u64], n: usize) {
    let (mut first, mut last) = (0, x.len());
    let mut turns_left = 2 * x.len().ilog2();
    while last - first > 3 {
        if turns_left == 0 {
            // Where the pivots are bad the time would be too long; equal values are rare enough.
            x[first..last].select_nth_unstable_by_key(n - 1 - first, |x| Reverse(x >> 32));
            return;
        }
        turns_left -= 1;
        // The median of three becomes the pivot, at the front.
        let (a, b, c) = (first + 1, first + (last - first) / 2, last - 1);
        let comes_first = |a: usize, b: usize| x[a] >> 32 > x[b] >> 32;
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
        while i > first && x[i] >> 32 > x[i - 1] >> 32 {
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
    fn partition(level: Level, x: &mut [u64], cut: &mut usize) {
        let (upper, lower) = (x[0] | PLACE, x[0] & !PLACE);
        let (mut low, mut high) = (1, x.len());
        // What of the blocks at `low` and before `high` is still to be swapped; the latter from its end.
        let (mut in_low, mut in_high) = (0_u64, 0_u64);
        while high - low >= 2 * BLOCK {
            let (front, back) = x[low..high].split_at_mut(BLOCK);
            let front = front.as_mut_array().expect("a block is left");
            let back = back.last_chunk_mut().expect("another is left");
            if in_low == 0 {
                in_low = word(|i| front[i] <= upper);
            }
            if in_high == 0 {
                in_high = word(|i| back[BLOCK - 1 - i] >= lower);
            }
            while in_low != 0 && in_high != 0 {
                swap(front, back, in_low.trailing_zeros(), in_high.trailing_zeros());
                in_low &= in_low - 1;
                in_high &= in_high - 1;
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
            high -= in_high.trailing_zeros() as usize;
        }
        loop {
            while x[low] > upper {
                low += 1;
            }
            high -= 1;
            while x[high] < lower {
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

/// Swaps the `i`-th of `front` with the `j`-th of `back` from its end, both below 64.
#[inline(always)]
fn swap(front: &mut [u64; BLOCK], back: &mut [u64; BLOCK], i: u32, j: u32) {
    let i = i as usize % BLOCK;
    let j = BLOCK - 1 - j as usize % BLOCK;
    core::mem::swap(&mut front[i], &mut back[j]);
}

/// The bits of `is` for numbers below 64.
#[inline(always)]
fn word(is: impl Fn(usize) -> bool) -> u64 {
    (0..BLOCK).fold(0, |word, i| word | u64::from(is(i)) << i)
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
                let magnitude = |x: &f32| if x.is_nan() { f32::INFINITY } else { *x };
                for n_kept in [1, n / 3, n / 2, n - 1, n] {
                    if n_kept == 0 {
                        continue;
                    }
                    // What is dropped does not become a magnitude that there is.
                    let mut kept: Vec<f32> = values.iter().map(|x| x + 1.0).collect();
                    let mut order = vec![0; n + 3];
                    keep_largest_as_pytorch(level, n_kept, &mut order, &mut kept);
                    let (mut found, mut dropped) = (Vec::new(), Vec::new());
                    for (kept, value) in kept.iter().zip(&values) {
                        let is_kept = kept.is_nan() && value.is_nan() || *kept == value + 1.0;
                        assert!(is_kept || *kept == 0.0);
                        if is_kept { &mut found } else { &mut dropped }.push(magnitude(value));
                    }
                    assert_eq!(found.len(), n_kept);
                    let least = found.into_iter().fold(f32::INFINITY, f32::min);
                    assert!(dropped.into_iter().all(|x| x <= least));
                }
            }
        }
    }

    /// [`partition`] value by value, as the C++ library has it.
    fn plain_partition(x: &mut [u64]) -> usize {
        let pivot = x[0] >> 32;
        let (mut low, mut high) = (1, x.len());
        loop {
            while x[low] >> 32 > pivot {
                low += 1;
            }
            high -= 1;
            while pivot > x[high] >> 32 {
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
                let values: Vec<f32> = (0..n).map(|_| next()).collect();
                let mut x = vec![0; n];
                place(Level::Scalar, &values, &mut x);
                // A value on each side that ends the search, as the choice of the pivot leaves them.
                let least = *x.iter().min_by_key(|x| **x >> 32).unwrap();
                let largest = *x.iter().max_by_key(|x| **x >> 32).unwrap();
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
