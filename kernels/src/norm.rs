//! Root-mean-square and layer normalization.

use crate::lanes::{dot, reduce};
use crate::level::multilevel;

multilevel! {
    /// `y[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]`, all `[n]`.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn rms_norm(level: Level, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == y.len());
        let scale = 1.0 / libm::sqrtf(dot(x, x) / x.len() as f32 + eps);
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * w;
        }
    }
}

multilevel! {
    /// [`rms_norm`] in place.
    pub fn rms_norm_in_place(level: Level, x: &mut [f32], weight: &[f32], eps: f32) {
        assert_eq!(x.len(), weight.len());
        let scale = 1.0 / libm::sqrtf(dot(x, x) / x.len() as f32 + eps);
        for (x, w) in x.iter_mut().zip(weight) {
            *x = *x * scale * w;
        }
    }
}

multilevel! {
    /// `y[i] = (x[i] - mean(x)) / sqrt(var(x) + eps) * weight[i] + bias[i]`, all `[n]`; an empty
    /// `bias` is none.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn layer_norm(level: Level, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == y.len());
        assert!(bias.is_empty() || bias.len() == x.len());
        let n = x.len() as f32;
        let mean = reduce(x, x, |x, _| x) / n;
        let variance = reduce(x, x, |x, _| (x - mean) * (x - mean)) / n;
        let scale = 1.0 / libm::sqrtf(variance + eps);
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = (x - mean) * scale * w;
        }
        for (y, b) in y.iter_mut().zip(bias) {
            *y += b;
        }
    }
}

multilevel! {
    /// `x[i] = max(x[i] - (mean(x) + z deviation(x)), 0)`, `[n]`: what is left are those far above the others.
    pub fn keep_outliers(level: Level, z: f32, x: &mut [f32]) {
        let n = x.len() as f32;
        let mean = reduce(x, x, |x, _| x) / n;
        let variance = reduce(x, x, |x, _| (x - mean) * (x - mean)) / n;
        let bound = mean + z * libm::sqrtf(variance);
        for x in x {
            // A comparison that lets a NaN through.
            let above = *x - bound;
            *x = if above < 0.0 { 0.0 } else { above };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn rms_of_known_values() {
        let mut y = [f32::NAN; 2];
        rms_norm(Level::Scalar, &[3.0, 4.0], &[1.0, 2.0], 0.0, &mut y);
        let rms = 12.5_f32.sqrt();
        assert!((y[0] - 3.0 / rms).abs() < 1e-6 && (y[1] - 8.0 / rms).abs() < 1e-6);
        let mut x = [3.0, 4.0];
        rms_norm_in_place(Level::Scalar, &mut x, &[1.0, 2.0], 0.0);
        assert!((x[0] - y[0]).abs() < 1e-6 && (x[1] - y[1]).abs() < 1e-6);
    }

    #[test]
    fn layer_norm_of_known_values() {
        let mut y = [f32::NAN; 4];
        layer_norm(
            Level::Scalar,
            &[1.0, 2.0, 3.0, 4.0],
            &[1.0; 4],
            &[10.0; 4],
            0.0,
            &mut y,
        );
        let sd = 1.25_f32.sqrt();
        for (i, y) in y.iter().enumerate() {
            assert!((y - (10.0 + (i as f32 - 1.5) / sd)).abs() < 1e-5);
        }
        layer_norm(Level::Scalar, &[5.0; 4], &[1.0; 4], &[], 1e-5, &mut y);
        assert_eq!(y, [0.0; 4]);
    }
}
