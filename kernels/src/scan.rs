//! The state-space recurrence of Mamba-2.

use crate::simd::{Lanes, on_float_level};
use crate::state::Update;
use crate::{Level, TileMut};

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

/// One step on columns of a head's state `h` `[n_state, n_columns]`, and what is found behind it:
///
/// ```text
/// h = decay h + b (dt x)^T,  y = h^T c + skip x
/// ```
///
/// (Dao and Gu, "Transformers are SSMs", equation 1 and section 7.) Sums go over the state's rows in their order.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn scan_step(level: Level, h: &mut TileMut<'_>, step: &ScanStep<'_>, y: &mut [f32]) {
    let n = y.len();
    assert!(h.n_rows() == step.b.len() && h.n_rows() == step.c.len());
    assert!(h.n_cols() == n && step.x.len() == n);
    macro_rules! run {
        ($simd:ty, $features:literal) => {{
            #[target_feature(enable = $features)]
            fn entry(h: &mut TileMut<'_>, step: &ScanStep<'_>, y: &mut [f32]) -> usize {
                // SAFETY: this function has the level's features.
                unsafe { all_columns::<$simd>(h, step, y) }
            }
            // SAFETY: the level's token proves that the CPU has the features.
            unsafe { entry(h, step, y) }
        }};
    }
    let done = on_float_level!(level, run, 0);
    for (j, y) in y.iter_mut().enumerate().skip(done) {
        let x = step.x[j];
        *y = step.update().column(h, j, step.dt * x, step.skip * x);
    }
}

impl ScanStep<'_> {
    fn update(&self) -> Update<'_> {
        Update {
            decay: self.decay,
            to: self.b,
            from: self.c,
        }
    }
}

/// All columns but the last few; gives how many they are.
///
/// # Safety
///
/// The CPU has the level's features, with which the caller is compiled.
#[inline(always)]
unsafe fn all_columns<S: Lanes>(h: &mut TileMut<'_>, step: &ScanStep<'_>, y: &mut [f32]) -> usize {
    let mut start = 0;
    while start + 16 <= y.len() {
        // SAFETY: the caller's.
        start += unsafe {
            match y.len() - start {
                64.. if S::WIDE_TILE => columns::<S, 4>(h, step, start, y),
                32.. => columns::<S, 2>(h, step, start, y),
                _ => columns::<S, 1>(h, step, start, y),
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
    h: &mut TileMut<'_>,
    step: &ScanStep<'_>,
    start: usize,
    y: &mut [f32],
) -> usize {
    let (x, y) = (&step.x[start..][..16 * N], &mut y[start..][..16 * N]);
    // SAFETY: the caller's; 16 N elements are in each slice.
    unsafe {
        let zero = S::splat_float(0.0);
        let (mut taken, mut sums) = ([zero; N], [zero; N]);
        for j in 0..N {
            let x = S::floats(x.as_ptr().add(16 * j));
            taken[j] = S::mul(S::splat_float(step.dt), x);
            sums[j] = S::mul(S::splat_float(step.skip), x);
        }
        step.update().columns::<S, N>(h, start, &taken, &mut sums);
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
        let (n_state, n) = (24, 64 + 32 + 16 + 5);
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
        for level in Level::available() {
            let mut h = start.clone();
            let mut y = vec![0.0; n];
            scan_step(level, &mut TileMut::new(&mut h, n), &step, &mut y);
            for j in 0..n {
                let x = f64::from(x[j]);
                let new = |i: usize| 0.9 * f64::from(start[i * n + j]) + 0.4 * x * f64::from(b[i]);
                let found: f64 = (0..n_state).map(|i| new(i) * f64::from(c[i])).sum();
                assert!((found + 1.5 * x - f64::from(y[j])).abs() < 1e-5);
                assert!((0..n_state).all(|i| (new(i) - f64::from(h[i * n + j])).abs() < 1e-5));
            }
        }
    }
}
