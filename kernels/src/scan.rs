//! The state-space recurrence of Mamba-2.

use crate::TileMut;
use crate::level::multilevel;

/// What one token does to a head's state.
#[derive(Clone, Copy, Debug)]
pub struct ScanStep<'a> {
    /// The value, `[n_columns]`.
    pub x: &'a [f32],
    /// Where the value goes, `[n_state]`.
    pub b: &'a [f32],
    /// What is asked for, `[n_state]`.
    pub c: &'a [f32],
    /// Multiplies the state before.
    pub decay: f32,
    /// How much of the value is taken up.
    pub dt: f32,
    /// How much of it passes by.
    pub skip: f32,
}

multilevel! {
    /// One step on columns of a head's state `h` `[n_state, n_columns]`, and what is found behind it:
    ///
    /// ```text
    /// h = decay h + b (dt x)^T,  y = h^T c + skip x
    /// ```
    ///
    /// Sums go over the state's rows in their order, each product and each sum rounded, so that tokens one by one
    /// give the same bits on every level (Dao and Gu, "Transformers are SSMs", equation 1 and section 7).
    ///
    /// # Panics
    ///
    /// If the shapes do not fit.
    pub fn scan_step(level: Level, h: &mut TileMut<'_>, step: &ScanStep<'_>, y: &mut [f32]) {
        let n = y.len();
        assert!(h.n_rows() == step.b.len() && h.n_rows() == step.c.len());
        assert!(h.n_cols() == n && step.x.len() == n);
        let mut start = 0;
        while start + 32 <= n {
            columns::<32>(h, step, start, y);
            start += 32;
        }
        while start + 4 <= n {
            columns::<4>(h, step, start, y);
            start += 4;
        }
        while start < n {
            columns::<1>(h, step, start, y);
            start += 1;
        }
    }
}

/// Columns `start` and up: so many that what they come to stays in registers.
#[inline(always)]
fn columns<const N: usize>(h: &mut TileMut<'_>, step: &ScanStep<'_>, start: usize, y: &mut [f32]) {
    let (mut taken, mut sums) = ([0.0; N], [0.0; N]);
    let x = &step.x[start..start + N];
    for ((taken, sum), x) in taken.iter_mut().zip(&mut sums).zip(x) {
        *taken = step.dt * x;
        *sum = step.skip * x;
    }
    for (i, (b, c)) in step.b.iter().zip(step.c).enumerate() {
        let row = &mut h.row(i)[start..start + N];
        for ((h, taken), sum) in row.iter_mut().zip(&taken).zip(&mut sums) {
            *h = step.decay * *h + b * taken;
            *sum += *h * c;
        }
    }
    y[start..start + N].copy_from_slice(&sums);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn every_level_steps_alike_and_as_the_formula_says() {
        let (n_state, n) = (24, 71);
        let wave = |i: usize, f: f32| (i as f32 * f).sin();
        let start: Vec<f32> = (0..n_state * n).map(|i| wave(i, 0.37)).collect();
        let [x, b, c] = [(n, 0.7), (n_state, 1.3), (n_state, 0.9)]
            .map(|(n, f)| (0..n).map(|i| wave(i, f)).collect::<Vec<f32>>());
        let step = ScanStep {
            x: &x,
            b: &b,
            c: &c,
            decay: 0.9,
            dt: 0.4,
            skip: 1.5,
        };
        let mut all = Vec::new();
        for level in Level::available() {
            let mut h = start.clone();
            let mut y = vec![0.0; n];
            scan_step(level, &mut TileMut::new(&mut h, n), &step, &mut y);
            all.push((h, y));
        }
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
        let (h, y) = &all[0];
        for j in 0..n {
            let x = f64::from(x[j]);
            let new = |i: usize| 0.9 * f64::from(start[i * n + j]) + 0.4 * x * f64::from(b[i]);
            let found: f64 = (0..n_state).map(|i| new(i) * f64::from(c[i])).sum();
            assert!((found + 1.5 * x - f64::from(y[j])).abs() < 1e-5);
            assert!((0..n_state).all(|i| (new(i) - f64::from(h[i * n + j])).abs() < 1e-5));
        }
    }
}
