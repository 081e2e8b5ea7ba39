//! The gated delta rule: a matrix that remembers by keys what values they had.

use crate::simd::{Lanes, on_float_level};
use crate::state::Update;
use crate::{Level, TileMut};

/// What one token does to a head's state.
#[derive(Clone, Copy, Debug)]
pub struct DeltaStep<'a> {
    /// What is asked for, `[n_keys]`.
    pub q: &'a [f32],
    /// Where the value goes, `[n_keys]`.
    pub k: &'a [f32],
    /// The value, `[n_columns]`.
    pub v: &'a [f32],
    /// Multiplies the state before.
    pub decay: f32,
    /// How much of the difference from what the key had is taken up.
    pub beta: f32,
}

/// One step on columns of a head's state `m` `[n_keys, n_columns]`, and what the query finds behind it:
///
/// ```text
/// m = decay m,  m = m + k (beta (v - m^T k))^T,  y = m^T q
/// ```
///
/// (Yang et al., "Gated Delta Networks", equation 10.) Sums go over the keys in an order that does not hang on the
/// values.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn delta_step(level: Level, m: &mut TileMut<'_>, step: &DeltaStep<'_>, y: &mut [f32]) {
    let n = y.len();
    assert!(m.n_rows() == step.k.len() && m.n_rows() == step.q.len());
    assert!(m.n_cols() == n && step.v.len() == n);
    macro_rules! run {
        ($simd:ty, $features:literal) => {{
            #[target_feature(enable = $features)]
            fn entry(m: &mut TileMut<'_>, step: &DeltaStep<'_>, y: &mut [f32]) -> usize {
                // SAFETY: this function has the level's features.
                unsafe { all_columns::<$simd>(m, step, y) }
            }
            // SAFETY: the level's token proves that the CPU has the features.
            unsafe { entry(m, step, y) }
        }};
    }
    let done = on_float_level!(level, run, 0);
    for (j, y) in y.iter_mut().enumerate().skip(done) {
        let mut found = 0.0;
        for (i, k) in step.k.iter().enumerate() {
            found += m.row(i)[j] * k;
        }
        let change = step.beta * (step.v[j] - step.decay * found);
        *y = step.update().column(m, j, change, 0.0);
    }
}

impl DeltaStep<'_> {
    fn update(&self) -> Update<'_> {
        Update {
            decay: self.decay,
            to: self.k,
            from: self.q,
        }
    }
}

/// All columns but the last few; gives how many they are.
///
/// # Safety
///
/// The CPU has the level's features, with which the caller is compiled.
#[inline(always)]
unsafe fn all_columns<S: Lanes>(m: &mut TileMut<'_>, step: &DeltaStep<'_>, y: &mut [f32]) -> usize {
    let mut start = 0;
    while start + 16 <= y.len() {
        // SAFETY: the caller's.
        start += unsafe {
            match y.len() - start {
                64.. if S::WIDE_TILE => columns::<S, 4>(m, step, start, y),
                32.. => columns::<S, 2>(m, step, start, y),
                _ => columns::<S, 1>(m, step, start, y),
            }
        };
    }
    start
}

/// The 16 `N` columns from `start` on: so many that what they come to stays in registers. Gives their number.
///
/// # Safety
///
/// As [`all_columns`].
#[inline(always)]
unsafe fn columns<S: Lanes, const N: usize>(
    m: &mut TileMut<'_>,
    step: &DeltaStep<'_>,
    start: usize,
    y: &mut [f32],
) -> usize {
    let (v, y) = (&step.v[start..][..16 * N], &mut y[start..][..16 * N]);
    // SAFETY: the caller's; 16 N elements are in each slice.
    unsafe {
        let zero = S::splat_float(0.0);
        // Two rows at once: additions would wait for each other.
        let mut found = [[zero; N]; 2];
        let (pairs, rest) = step.k.as_chunks::<2>();
        for (i, pair) in pairs.iter().enumerate() {
            for (r, k) in pair.iter().enumerate() {
                let row = m.row(2 * i + r)[start..][..16 * N].as_ptr();
                let k = S::splat_float(*k);
                for (j, found) in found[r].iter_mut().enumerate() {
                    *found = S::mul_add(S::floats(row.add(16 * j)), k, *found);
                }
            }
        }
        for k in rest {
            let row = m.row(2 * pairs.len())[start..][..16 * N].as_ptr();
            let k = S::splat_float(*k);
            for (j, found) in found[0].iter_mut().enumerate() {
                *found = S::mul_add(S::floats(row.add(16 * j)), k, *found);
            }
        }
        // beta (v - decay found)
        let forgotten = S::splat_float(-step.beta * step.decay);
        let mut change = [zero; N];
        for j in 0..N {
            let v = S::mul(S::splat_float(step.beta), S::floats(v.as_ptr().add(16 * j)));
            let both = S::mul_add(S::splat_float(1.0), found[0][j], found[1][j]);
            change[j] = S::mul_add(forgotten, both, v);
        }
        let mut sums = [zero; N];
        step.update().columns::<S, N>(m, start, &change, &mut sums);
        for (j, sum) in sums.into_iter().enumerate() {
            S::store(sum, y.as_mut_ptr().add(16 * j));
        }
    }
    16 * N
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn every_level_steps_as_the_formula_says() {
        let (n_keys, n) = (25, 64 + 32 + 16 + 5);
        let wave = |i: usize, f: f32| (i as f32 * f).sin();
        let start: Vec<f32> = (0..n_keys * n).map(|i| wave(i, 0.37)).collect();
        let [q, k, v] = [(n_keys, 0.7), (n_keys, 1.3), (n, 0.9)]
            .map(|(n, f)| (0..n).map(|i| wave(i, f)).collect::<Vec<f32>>());
        let step = DeltaStep {
            q: &q,
            k: &k,
            v: &v,
            decay: 0.9,
            beta: 0.4,
        };
        for level in Level::available() {
            let mut m = start.clone();
            let mut y = vec![0.0; n];
            delta_step(level, &mut TileMut::new(&mut m, n), &step, &mut y);
            for j in 0..n {
                let old = |i: usize| 0.9 * f64::from(start[i * n + j]);
                let found: f64 = (0..n_keys).map(|i| old(i) * f64::from(k[i])).sum();
                let change = 0.4 * (f64::from(v[j]) - found);
                let new = |i: usize| old(i) + f64::from(k[i]) * change;
                let answer: f64 = (0..n_keys).map(|i| new(i) * f64::from(q[i])).sum();
                assert!((answer - f64::from(y[j])).abs() < 1e-5);
                assert!((0..n_keys).all(|i| (new(i) - f64::from(m[i * n + j])).abs() < 1e-5));
            }
        }
    }
}
