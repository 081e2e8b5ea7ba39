//! Products of vectors, element by element.

use crate::level::multilevel;

multilevel! {
    /// `y[i] = a[i] * b[i]`, all `[n]`.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn product(level: Level, a: &[f32], b: &[f32], y: &mut [f32]) {
        assert!(a.len() == y.len() && b.len() == y.len());
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = a * b;
        }
    }
}

multilevel! {
    /// `y[i] += a[i] * b[i]`, all `[n]`: rounded after the product and after the sum, on every level.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn add_product(level: Level, a: &[f32], b: &[f32], y: &mut [f32]) {
        assert!(a.len() == y.len() && b.len() == y.len());
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y += a * b;
        }
    }
}

multilevel! {
    /// `y[i] *= a[i]`, both `[n]`.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn multiply_by(level: Level, a: &[f32], y: &mut [f32]) {
        assert_eq!(a.len(), y.len());
        for (y, a) in y.iter_mut().zip(a) {
            *y *= a;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn every_level_gives_the_same_bits() {
        let a: Vec<f32> = (0..37).map(|i| (i as f32).sin()).collect();
        let b: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).cos()).collect();
        for level in Level::available() {
            let mut y = vec![0.0; 37];
            product(level, &a, &b, &mut y);
            add_product(level, &b, &b, &mut y);
            multiply_by(level, &a, &mut y);
            for i in 0..37 {
                let expected = (a[i] * b[i] + b[i] * b[i]) * a[i];
                assert_eq!(y[i], expected, "{level:?} {i}");
            }
        }
    }
}
