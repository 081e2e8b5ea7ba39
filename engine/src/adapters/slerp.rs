//! Spherical interpolation between two adapters (Shoemake, SIGGRAPH 1985).

use core::ops::Range;

use super::svd::LowRankProduct;

/// Above this cosine the arc is taken for a line, as in mergekit.
const LINE: f64 = 0.9995;

/// What to multiply two products with, of which the first is made of the first `n_first` ranks of
/// `product` and the other of the rest. With the share `t` of the second's weight, the weights' sum `w` and
/// the angle `o` between both: `w sin((1 - t) o) / sin o` and `w sin(t o) / sin o`. In one line, or where
/// one is zero, the weights stay.
pub(super) fn weights(product: &LowRankProduct, n_first: usize, weights: [f32; 2]) -> [f32; 2] {
    let total = weights[0] + weights[1];
    let (first, second) = (0..n_first, n_first..product.a.n_rows);
    let dot = |one: &Range<usize>, other: &Range<usize>| inner(product, one.clone(), other.clone());
    let lengths = libm::sqrt(dot(&first, &first) * dot(&second, &second));
    let cosine = dot(&first, &second) / lengths;
    // No number where one is zero.
    let is_arc = libm::fabs(cosine) < LINE;
    if !is_arc || total == 0.0 {
        return weights;
    }
    let angle = libm::acos(cosine);
    let share = f64::from(weights[1]) / f64::from(total);
    [1.0 - share, share].map(|share| total * (libm::sin(share * angle) / libm::sin(angle)) as f32)
}

/// The inner product of `B A` of some ranks with that of others: `sum (B^T B)_ij (A A^T)_ij`.
fn inner(product: &LowRankProduct, ranks: Range<usize>, others: Range<usize>) -> f64 {
    let LowRankProduct { a, b } = product;
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        let products = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y));
        products.sum()
    };
    let row = |i: usize| &a.values[i * a.n_cols..][..a.n_cols];
    let mut sum = 0.0;
    for i in ranks {
        for j in others.clone() {
            let columns = b.values.chunks_exact(b.n_cols);
            let of_b: f64 = columns.map(|b| f64::from(b[i]) * f64::from(b[j])).sum();
            sum += of_b * dot(row(i), row(j));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use tandem_formats::adapter::Floats;

    use super::*;

    /// A product `[2, 2]` of one rank each: `b a` and `d c`.
    fn product(a: [f32; 2], b: [f32; 2], c: [f32; 2], d: [f32; 2]) -> LowRankProduct {
        let floats = |values: [f32; 4]| Floats {
            n_rows: 2,
            n_cols: 2,
            values: values.to_vec(),
        };
        LowRankProduct {
            a: floats([a[0], a[1], c[0], c[1]]),
            b: floats([b[0], d[0], b[1], d[1]]),
        }
    }

    #[test]
    fn goes_along_the_arc() {
        // At right angles: on a circle the middle is at 45 degrees.
        let right = product([1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]);
        let half = weights(&right, 1, [0.5, 0.5]);
        assert!(half.iter().all(|w| (w - 0.5_f32.sqrt()).abs() < 1e-6));
        // The ends are the ends, and the weights' sum scales.
        assert!((weights(&right, 1, [2.0, 0.0])[0] - 2.0).abs() < 1e-6);
        assert!(weights(&right, 1, [2.0, 0.0])[1].abs() < 1e-6);
        // At 60 degrees, lengths do not matter: sin 40 / sin 60 and sin 20 / sin 60 of a third of the way.
        let sixty = product([1.0, 0.0], [2.0, 0.0], [0.5, 0.75_f32.sqrt()], [3.0, 0.0]);
        let third = weights(&sixty, 1, [2.0 / 3.0, 1.0 / 3.0]);
        assert!((third[0] - 0.742_227).abs() < 1e-5 && (third[1] - 0.394_931).abs() < 1e-5);
    }

    #[test]
    fn stays_on_the_line_where_there_is_no_arc() {
        let same = product([1.0, 2.0], [1.0, 1.0], [2.0, 4.0], [1.0, 1.0]);
        assert_eq!(weights(&same, 1, [0.3, 0.4]), [0.3, 0.4]);
        let opposite = product([1.0, 2.0], [1.0, 1.0], [-1.0, -2.0], [1.0, 1.0]);
        assert_eq!(weights(&opposite, 1, [0.3, 0.4]), [0.3, 0.4]);
        let zero = product([1.0, 2.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]);
        assert_eq!(weights(&zero, 1, [0.3, 0.4]), [0.3, 0.4]);
    }
}
