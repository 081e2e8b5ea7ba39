//! One tensor from several of the same shape: sums, means by sign, and the prunings before them.
//! What the merges of adapters are made of; the results are the same to the bit at every level.

use crate::Level;
use crate::level::multilevel;

/// Values that are worked on side by side, in registers.
const RUN: usize = 16;
/// Values that are looked at together.
const LANES: usize = 64;

multilevel! {
    /// `y[i] = sum_j weights[j] x[j][i]`.
    ///
    /// # Panics
    ///
    /// If the tensors are not of the size of `y`, or the weights of another number.
    pub fn weighted_sum(level: Level, x: &[&[f32]], weights: &[f32], y: &mut [f32]) {
        check(x, weights, y);
        let (runs, rest) = y.as_chunks_mut::<RUN>();
        let n_in_runs = runs.len() * RUN;
        for (i, y) in runs.iter_mut().enumerate() {
            *y = sums(x, weights, i * RUN);
        }
        for (i, y) in rest.iter_mut().enumerate() {
            [*y] = sums(x, weights, n_in_runs + i);
        }
    }
}

/// The weighted sums of the `N` values from `at` on.
#[inline(always)]
fn sums<const N: usize>(x: &[&[f32]], weights: &[f32], at: usize) -> [f32; N] {
    // Nothing changes when it is added to.
    let mut sums = [-0.0; N];
    for (x, w) in x.iter().zip(weights) {
        let x = run::<N>(x, at);
        for i in 0..N {
            sums[i] += x[i] * w;
        }
    }
    sums
}

multilevel! {
    /// For each `i` the mean of `weights[j] x[j][i]` over the `j` whose `x[j][i]` has the sign that
    /// `sum_j x[j][i]` has (Yadav et al., arXiv 2306.01708, section 3); zeros have no sign.
    ///
    /// # Panics
    ///
    /// If the tensors are not of the size of `y`, or the weights of another number.
    pub fn elected_mean(level: Level, x: &[&[f32]], weights: &[f32], y: &mut [f32]) {
        check(x, weights, y);
        if let (&[a, b], &[v, w]) = (x, weights) {
            return elected_means_of_two([a, b], [v, w], y);
        }
        let (runs, rest) = y.as_chunks_mut::<RUN>();
        let n_in_runs = runs.len() * RUN;
        for (i, y) in runs.iter_mut().enumerate() {
            *y = elected_means(x, weights, i * RUN);
        }
        for (i, y) in rest.iter_mut().enumerate() {
            [*y] = elected_means(x, weights, n_in_runs + i);
        }
    }
}

/// The elected means of the `N` values from `at` on.
#[inline(always)]
fn elected_means<const N: usize>(x: &[&[f32]], weights: &[f32], at: usize) -> [f32; N] {
    let mut totals = [0.0; N];
    for x in x {
        let x = run::<N>(x, at);
        for i in 0..N {
            totals[i] += x[i];
        }
    }
    let (mut sums, mut counts) = ([0.0; N], [0.0; N]);
    for (x, w) in x.iter().zip(weights) {
        let x = run::<N>(x, at);
        for i in 0..N {
            let towards = if totals[i] >= 0.0 { x[i] } else { -x[i] };
            sums[i] += if towards > 0.0 { x[i] * w } else { 0.0 };
            counts[i] += if towards > 0.0 { 1.0 } else { 0.0 };
        }
    }
    for i in 0..N {
        sums[i] /= if counts[i] > 1.0 { counts[i] } else { 1.0 };
    }
    sums
}

/// The same of two tensors, as most merges are: in one pass, and without divisions.
#[inline(always)]
fn elected_means_of_two([a, b]: [&[f32]; 2], [v, w]: [f32; 2], y: &mut [f32]) {
    let (a, b) = (&a[..y.len()], &b[..y.len()]);
    for (i, y) in y.iter_mut().enumerate() {
        let sign = if a[i] + b[i] >= 0.0 { 0 } else { 0x8000_0000 };
        let is_a_elected = f32::from_bits(a[i].to_bits() ^ sign) > 0.0;
        let is_b_elected = f32::from_bits(b[i].to_bits() ^ sign) > 0.0;
        let from_a = if is_a_elected { a[i] * v } else { 0.0 };
        let from_b = if is_b_elected { b[i] * w } else { 0.0 };
        let half = if is_a_elected & is_b_elected {
            0.5
        } else {
            1.0
        };
        *y = (from_a + from_b) * half;
    }
}

/// `N` values from `at` on.
#[inline(always)]
fn run<const N: usize>(x: &[f32], at: usize) -> &[f32; N] {
    x[at..].first_chunk().expect("the tensors are of one size")
}

#[inline(always)]
fn check(x: &[&[f32]], weights: &[f32], y: &[f32]) {
    assert_eq!(x.len(), weights.len());
    assert!(x.iter().all(|x| x.len() == y.len()));
}

/// Bins of [`Magnitudes`]: the upper bits of a float without its sign.
const BINS: usize = 1 << (31 - BIN_SHIFT);
/// Exponent and 7 bits of the fraction remain: few magnitudes share a bin.
const BIN_SHIFT: u32 = 16;
/// Bins that are summed together on the way to the one that matters.
const BINS_AT_ONCE: usize = 128;

/// What is known of the `n` largest magnitudes of some values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Largest {
    /// The bits of the least of them.
    least: u32,
    /// How many of those that equal the least are among them.
    n_equal: usize,
    /// Whether there are more that equal it.
    pub is_ambiguous: bool,
}

/// A histogram of magnitudes.
#[derive(Clone, Debug)]
pub struct Magnitudes {
    counts: [u32; BINS],
}

impl Magnitudes {
    /// An empty one.
    pub const EMPTY: Magnitudes = Magnitudes { counts: [0; BINS] };
}

impl Magnitudes {
    /// Finds the `n` largest magnitudes of `x`, NaN being above infinity. `few` is scratch, of the
    /// size of `x`.
    ///
    /// # Panics
    ///
    /// If `n` is 0 or above the number of values, that is above `u32::MAX`, or `few` is too small.
    pub fn largest(&mut self, x: &[f32], n: usize, few: &mut [u32]) -> Largest {
        assert!(n > 0 && n <= x.len() && x.len() <= u32::MAX as usize);
        let counts = &mut self.counts;
        counts.fill(0);
        for x in x {
            counts[bin(*x)] += 1;
        }
        // From the largest down to the bin in which the last of the n lies.
        let mut n_left = n as u32;
        let mut bin_of_last = BINS;
        for bins in counts.as_chunks::<BINS_AT_ONCE>().0.iter().rev() {
            let total: u32 = bins.iter().sum();
            if total < n_left {
                n_left -= total;
                bin_of_last -= BINS_AT_ONCE;
                continue;
            }
            for count in bins.iter().rev() {
                bin_of_last -= 1;
                if *count >= n_left {
                    break;
                }
                n_left -= count;
            }
            break;
        }
        let few = &mut few[..counts[bin_of_last] as usize];
        let mut n_found = 0;
        for x in x.chunks(LANES) {
            if x.iter()
                .fold(false, |any, x| any | (bin(*x) == bin_of_last))
            {
                for x in x.iter().filter(|x| bin(**x) == bin_of_last) {
                    few[n_found] = x.abs().to_bits();
                    n_found += 1;
                }
            }
        }
        let n_left = n_left as usize;
        let (before, least, after) = few.select_nth_unstable_by(n_left - 1, |a, b| b.cmp(a));
        let n_larger = before.iter().filter(|x| *x > least).count();
        Largest {
            least: *least,
            n_equal: n_left - n_larger,
            is_ambiguous: after.contains(least),
        }
    }
}

#[inline(always)]
fn bin(x: f32) -> usize {
    (x.abs().to_bits() >> BIN_SHIFT) as usize
}

multilevel! {
    /// Sets all but the largest magnitudes to zero. Of those that equal the least of these the first
    /// are kept.
    pub fn keep_largest(level: Level, largest: &Largest, x: &mut [f32]) {
        let least = largest.least;
        for x in x.iter_mut() {
            let kept = x.abs().to_bits() >= least;
            *x = if kept { *x } else { 0.0 };
        }
        if !largest.is_ambiguous {
            return;
        }
        let mut n_left = largest.n_equal;
        for x in x.chunks_mut(LANES) {
            if x.iter().fold(false, |any, x| any | (x.abs().to_bits() == least)) {
                for x in x.iter_mut().filter(|x| x.abs().to_bits() == least) {
                    match n_left {
                        0 => *x = 0.0,
                        _ => n_left -= 1,
                    }
                }
            }
        }
    }
}

/// Blocks of random numbers made at once, four words each.
const BLOCKS: usize = 16;
/// Their words; each decides about two values.
const WORDS: usize = 4 * BLOCKS;

/// Keeps each value with the probability `density` and sets the others to zero.
///
/// The numbers are those of Philox 4x32-10 with the key `seed`: which values are kept depends on
/// seed, stream and density alone. Of the `i`-th run of 128 values, value `16 j + k` is kept if the
/// low half of word `j` of the stream's block `16 i + k` is below `density * 2^16`, and value
/// `64 + 16 j + k` if its high half is.
pub fn keep_random(level: Level, density: f64, seed: u64, stream: u64, x: &mut [f32]) {
    if density >= 1.0 {
        return;
    }
    let limit = ((density * 65_536.0) as u32).max(1);
    let mut words = [0; WORDS];
    for (i, x) in x.chunks_mut(2 * WORDS).enumerate() {
        random_words(level, (i * BLOCKS) as u64, seed, stream, &mut words);
        match x.as_mut_array() {
            Some(x) => drop_values(level, &words, limit, x),
            None => {
                // The last values, in a run that is filled up.
                let mut run = [0.0; 2 * WORDS];
                run[..x.len()].copy_from_slice(x);
                drop_values(level, &words, limit, &mut run);
                x.copy_from_slice(&run[..x.len()]);
            }
        }
    }
}

multilevel! {
    /// The words of the stream's 16 blocks from `first` on, `[word][block]`.
    fn random_words(
        level: Level,
        first: u64,
        seed: u64,
        stream: u64,
        words: &mut [u32; WORDS],
    ) {
        let (mut low, mut high) = ([0; BLOCKS], [0; BLOCKS]);
        for k in 0..BLOCKS {
            let block = first + k as u64;
            (low[k], high[k]) = (block & LOW, block >> 32);
        }
        let stream = [[stream & LOW; BLOCKS], [stream >> 32; BLOCKS]];
        let made = philox([low, high, stream[0], stream[1]], seed);
        for j in 0..4 {
            for k in 0..BLOCKS {
                words[j * BLOCKS + k] = made[j][k] as u32;
            }
        }
    }
}

multilevel! {
    /// Sets each value to zero whose half of a word is not below `limit`.
    fn drop_values(level: Level, words: &[u32; WORDS], limit: u32, x: &mut [f32; 2 * WORDS]) {
        let (low, high) = x.split_at_mut(WORDS);
        for (x, word) in low.iter_mut().zip(words) {
            *x = f32::from_bits(x.to_bits() & ones_below(word & 0xffff, limit));
        }
        for (x, word) in high.iter_mut().zip(words) {
            *x = f32::from_bits(x.to_bits() & ones_below(word >> 16, limit));
        }
    }
}

/// All ones if `x` is below `limit`, else zero, for numbers of 17 bits: arithmetic, as comparisons
/// become branches here.
#[inline(always)]
fn ones_below(x: u32, limit: u32) -> u32 {
    (x.wrapping_sub(limit) as i32 >> 31) as u32
}

/// The bits of a word.
const LOW: u64 = 0xffff_ffff;

/// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"):
/// the four words of each counter, `N` counters side by side. Words stand in 64 bits, so that vectors
/// hold whole products.
#[inline(always)]
fn philox<const N: usize>(mut c: [[u64; N]; 4], key: u64) -> [[u64; N]; 4] {
    let (mut k0, mut k1) = (key & LOW, key >> 32);
    for _ in 0..10 {
        let mut next = [[0; N]; 4];
        for i in 0..N {
            let p0 = (c[0][i] & LOW) * 0xd251_1f53;
            let p1 = (c[2][i] & LOW) * 0xcd9e_8d57;
            next[0][i] = (p1 >> 32) ^ c[1][i] ^ k0;
            next[1][i] = p1 & LOW;
            next[2][i] = (p0 >> 32) ^ c[3][i] ^ k1;
            next[3][i] = p0 & LOW;
        }
        c = next;
        k0 = (k0 + 0x9e37_79b9) & LOW;
        k1 = (k1 + 0xbb67_ae85) & LOW;
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123, the authors' library.
    #[test]
    fn philox_gives_the_known_answers() {
        for (counter, key, expected) in [
            (
                [0; 4],
                0,
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [LOW; 4],
                u64::MAX,
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                0x299f_31d0_a409_3822,
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter.map(|c| [c]), key).map(|w| w[0]), expected);
        }
    }
}
