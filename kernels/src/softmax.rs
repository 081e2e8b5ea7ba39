//! Softmax.

use crate::lanes::{across, exp, reduce};
use crate::level::multilevel;

multilevel! {
    /// `x[i] = exp(x[i] - max) / sum_j exp(x[j] - max)` in place. An empty slice stays empty.
    pub fn softmax(level: Level, x: &mut [f32]) {
        let max = largest(x);
        x.iter_mut().for_each(|x| *x = exp(*x - max));
        let sum = reduce(x, x, |x, _| x);
        x.iter_mut().for_each(|x| *x /= sum);
    }
}

/// Numbers whose sum is taken in float32: the parts are added in float64, so that a large vocabulary's is as
/// exact as a small one's.
const PART_LEN: usize = 4096;

multilevel! {
    /// `ln sum_i exp(x[i])`: the logit less this is the logarithm of a probability. Minus infinity for an
    /// empty slice.
    pub fn log_sum_exp(level: Level, x: &[f32]) -> f32 {
        let max = largest(x);
        if max == f32::NEG_INFINITY {
            return max;
        }
        let sums = x.chunks(PART_LEN).map(|x| f64::from(reduce(x, x, |x, _| exp(x - max))));
        max + libm::log(sums.sum()) as f32
    }
}

multilevel! {
    /// The largest of some numbers, NaN not counted; minus infinity where there is none.
    pub fn max(level: Level, x: &[f32]) -> f32 {
        largest(x)
    }
}

#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    // A comparison, as `f32::max` takes several instructions to be right for NaN on both sides.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (lanes, rest) = x.as_chunks::<16>();
    let mut found = [f32::NEG_INFINITY; 16];
    for x in lanes {
        for i in 0..16 {
            found[i] = larger(found[i], x[i]);
        }
    }
    rest.iter()
        .fold(across(found, larger), |max, x| larger(max, *x))
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

    #[test]
    fn the_sum_of_many_is_exact() {
        for level in Level::available() {
            let x: Vec<f32> = (0..262_147)
                .map(|i| (i as f32 * 0.37).sin() * 9.0)
                .collect();
            let truth = x.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
            assert!((f64::from(log_sum_exp(level, &x)) - truth).abs() < 2e-6);
            assert_eq!(log_sum_exp(level, &[]), f32::NEG_INFINITY);
            assert_eq!(log_sum_exp(level, &[3.0, f32::NEG_INFINITY]), 3.0);
        }
    }

    #[test]
    fn the_largest_is_found_anywhere_and_nan_is_not() {
        for level in Level::available() {
            for (n, at) in [(1, 0), (16, 15), (37, 5), (37, 34), (100, 99)] {
                let mut x = vec![-2.0; n];
                x[at] = -1.0;
                x[(at + 1) % n] = if n > 1 { f32::NAN } else { -1.0 };
                assert_eq!(max(level, &x), -1.0, "{n} {at}");
            }
            assert_eq!(max(level, &[f32::NAN]), f32::NEG_INFINITY);
        }
    }
}
