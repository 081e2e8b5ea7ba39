//! The gated delta rule: a matrix that remembers by keys what values they had.

use crate::TileMut;
use crate::level::multilevel;

/// The most columns of a state that [`delta_step`] takes.
pub const MAX_DELTA_COLUMNS: usize = 256;

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

multilevel! {
    /// One step on columns of a head's state `m` `[n_keys, n_columns]`, and what the query finds behind it:
    ///
    /// ```text
    /// m = decay m,  m = m + k (beta (v - m^T k))^T,  y = m^T q
    /// ```
    ///
    /// Sums go over the keys in their order, each product and each sum rounded, so that tokens one by one
    /// give the same bits on every level (Yang et al., "Gated Delta Networks", equation 10).
    ///
    /// # Panics
    ///
    /// If the shapes do not fit, or there are more than [`MAX_DELTA_COLUMNS`] columns.
    pub fn delta_step(level: Level, m: &mut TileMut<'_>, step: &DeltaStep<'_>, y: &mut [f32]) {
        let DeltaStep { q, k, v, decay, beta } = *step;
        let n = y.len();
        assert!(m.n_rows() == k.len() && m.n_rows() == q.len());
        assert!(m.n_cols() == n && v.len() == n && n <= MAX_DELTA_COLUMNS);
        let mut buffer = [0.0; MAX_DELTA_COLUMNS];
        let change = &mut buffer[..n];
        for (i, k) in k.iter().enumerate() {
            for (m, c) in m.row(i).iter_mut().zip(&mut *change) {
                *m *= decay;
                *c += *m * k;
            }
        }
        for (c, v) in change.iter_mut().zip(v) {
            *c = beta * (v - *c);
        }
        y.fill(0.0);
        for (i, (k, q)) in k.iter().zip(q).enumerate() {
            for ((m, c), y) in m.row(i).iter_mut().zip(&*change).zip(&mut *y) {
                *m += k * c;
                *y += *m * q;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn every_level_steps_alike_and_as_the_formula_says() {
        let (n_keys, n) = (24, 37);
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
        let mut all = Vec::new();
        for level in Level::available() {
            let mut m = start.clone();
            let mut y = vec![0.0; n];
            delta_step(level, &mut TileMut::new(&mut m, n), &step, &mut y);
            all.push((m, y));
        }
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
        let (m, y) = &all[0];
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
