//! Spherical interpolation between two adapters (Shoemake, SIGGRAPH 1985).

/// Above this cosine the arc is taken for a line, as in mergekit.
const LINE: f64 = 0.9995;

/// What to multiply two products with, given the inner products of the first with itself, of both, and of
/// the second with itself. With the share `t` of the second's weight, the weights' sum `w` and the angle `o`
/// between both: `w sin((1 - t) o) / sin o` and `w sin(t o) / sin o`, where a negative weight turns its
/// product round. In one line, or where one is zero, the weights stay.
pub(super) fn weights(inner_products: [f64; 3], weights: [f32; 2]) -> [f32; 2] {
    let [first, both, second] = inner_products;
    let [sign, other_sign] = weights.map(|weight| 1.0_f64.copysign(weight.into()));
    let [weight, other_weight] = weights.map(|weight| f64::from(weight.abs()));
    let cosine = sign * other_sign * both / libm::sqrt(first * second);
    let total = weight + other_weight;
    // No number where one is zero.
    let is_arc = libm::fabs(cosine) < LINE;
    if !is_arc || total == 0.0 {
        return weights;
    }
    let angle = libm::acos(cosine);
    let on_arc = |weight: f64| total * libm::sin(weight / total * angle) / libm::sin(angle);
    [
        (sign * on_arc(weight)) as f32,
        (other_sign * on_arc(other_weight)) as f32,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(found: [f32; 2], expected: [f32; 2]) {
        for (weight, wanted) in found.iter().zip(expected) {
            assert!((weight - wanted).abs() < 1e-5, "{found:?}, {expected:?}");
        }
    }

    #[test]
    fn goes_along_the_arc() {
        // At right angles: on a circle the middle is at 45 degrees.
        let right = [4.0, 0.0, 9.0];
        let half = 0.5_f32.sqrt();
        assert_near(weights(right, [0.5, 0.5]), [half, half]);
        assert_near(weights(right, [1.0, -1.0]), [2.0 * half, -2.0 * half]);
        // The ends are the ends, and the weights' sum scales.
        assert_near(weights(right, [2.0, 0.0]), [2.0, 0.0]);
        assert_near(weights(right, [0.0, -3.0]), [0.0, -3.0]);
        // At 60 degrees, lengths do not matter: sin 40 / sin 60 and sin 20 / sin 60 at a third of the way.
        let sixty = [4.0, 3.0, 9.0];
        let third = [2.0 / 3.0, 1.0 / 3.0];
        assert_near(weights(sixty, third), [0.742_227, 0.394_931]);
        // Turned round, the angle is 120 degrees: sin 80 / sin 120 and sin 40 / sin 120.
        let turned = [2.0 / 3.0, -1.0 / 3.0];
        assert_near(weights(sixty, turned), [1.137_158, -0.742_227]);
    }

    #[test]
    fn stays_on_the_line_where_there_is_no_arc() {
        for line in [[1.0, 2.0, 4.0], [1.0, -2.0, 4.0], [1.0, 0.0, 0.0]] {
            assert_eq!(weights(line, [0.3, 0.4]), [0.3, 0.4]);
        }
        assert_eq!(weights([1.0, 0.0, 1.0], [0.0, 0.0]), [0.0, 0.0]);
    }
}
