//! Softmax.

use crate::lanes::exp;
use crate::level::multilevel;

multilevel! {
    /// `x[i] = exp(x[i] - max) / sum_j exp(x[j] - max)` in place. An empty slice stays empty.
    pub fn softmax(level: Level, x: &mut [f32]) {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        x.iter_mut().for_each(|x| *x = exp(*x - max));
        let sum: f32 = x.iter().sum();
        x.iter_mut().for_each(|x| *x /= sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn sums_to_one_and_survives_large_values() {
        let mut x = [1000.0, 1001.0, f32::NEG_INFINITY];
        softmax(Level::Scalar, &mut x);
        let e = core::f32::consts::E;
        assert!((x[1] - e / (1.0 + e)).abs() < 1e-6 && x[2] == 0.0);
        softmax(Level::Scalar, &mut []);
    }
}
