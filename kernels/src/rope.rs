//! Rotary position embedding: pairs of a head's elements turned by an angle that grows with the
//! position (Su et al., arXiv 2104.09864).

use core::f32::consts::PI;

use crate::level::multilevel;

/// Which elements of a head form the pair that is turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(2 i, 2 i + 1)`: GGUF files of the `llama` architecture.
    Normal,
    /// `(i, i + n_rot / 2)`: GPT-NeoX, and most others.
    Neox,
}

/// How angles are changed for contexts longer than the model was trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// By how much the context grows.
        factor: f32,
    },
    /// YaRN (Peng et al., arXiv 2309.00071): slow pairs as in `Linear`, fast ones left alone, a
    /// ramp between them.
    Yarn {
        /// By how much the context grows.
        factor: f32,
        /// The context the model was trained on, in tokens.
        n_ctx_orig: usize,
        /// Turns within `n_ctx_orig` above which a pair is left alone; 32 as a rule.
        beta_fast: f32,
        /// Turns below which a pair is interpolated; 1 as a rule.
        beta_slow: f32,
        /// Multiplies the magnitude `1 + 0.1 ln(factor)`; 1 as a rule.
        attn_factor: f32,
        /// Whether the ramp begins and ends at whole pairs, as it does for most models.
        whole_pairs: bool,
    },
}

/// The angle of each pair at position 1, in radians, into `inv_freq` `[n_rot / 2]`; returns the
/// factor for the length of the turned vectors, 1 but for YaRN.
///
/// `theta_i = base^(-2 i / n_rot)`, divided by `factors[i]` where `factors` is not empty
/// (Llama 3's and LongRoPE's frequency factors), then scaled.
///
/// # Panics
///
/// If `factors` is neither empty nor as long as `inv_freq`.
pub fn rope_frequencies(
    base: f32,
    scaling: RopeScaling,
    factors: &[f32],
    inv_freq: &mut [f32],
) -> f32 {
    assert!(factors.is_empty() || factors.len() == inv_freq.len());
    let n_rot = 2.0 * inv_freq.len() as f32;
    for (i, f) in inv_freq.iter_mut().enumerate() {
        *f = libm::powf(base, -2.0 * i as f32 / n_rot) / factors.get(i).copied().unwrap_or(1.0);
    }
    match scaling {
        RopeScaling::None => 1.0,
        RopeScaling::Linear { factor } => {
            for f in inv_freq {
                *f /= factor;
            }
            1.0
        }
        RopeScaling::Yarn {
            factor,
            n_ctx_orig,
            beta_fast,
            beta_slow,
            attn_factor,
            whole_pairs,
        } => {
            // The (fractional) pair that makes `beta` turns within the original context.
            let pair_of = |beta: f32| {
                n_rot * libm::logf(n_ctx_orig as f32 / (beta * 2.0 * PI)) / (2.0 * libm::logf(base))
            };
            let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
            if whole_pairs {
                (low, high) = (libm::floorf(low), libm::ceilf(high));
            }
            let (low, high) = (low.max(0.0), high.min(n_rot - 1.0));
            for (i, f) in inv_freq.iter_mut().enumerate() {
                let ramp = ((i as f32 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                *f = *f / factor * ramp + *f * (1.0 - ramp);
            }
            attn_factor * (1.0 + 0.1 * libm::logf(factor))
        }
    }
}

/// Cosine and sine of every pair's angle at `position`, each `[n_rot / 2]`, times `magnitude`.
///
/// # Panics
///
/// If the lengths differ.
pub fn rope_angles(
    position: usize,
    inv_freq: &[f32],
    magnitude: f32,
    cos: &mut [f32],
    sin: &mut [f32],
) {
    assert!(cos.len() == inv_freq.len() && sin.len() == inv_freq.len());
    for ((f, cos), sin) in inv_freq.iter().zip(cos).zip(sin) {
        let (s, c) = libm::sincosf(position as f32 * f);
        (*cos, *sin) = (c * magnitude, s * magnitude);
    }
}

multilevel! {
    /// Turns the first `2 cos.len()` elements of one head in place; the others are left as they are
    /// (partial rotation).
    ///
    /// # Panics
    ///
    /// If the head is shorter than that, or `cos` and `sin` differ in length.
    pub fn rope(level: Level, style: RopeStyle, head: &mut [f32], cos: &[f32], sin: &[f32]) {
        assert_eq!(cos.len(), sin.len());
        let turn = |a: &mut f32, b: &mut f32, cos: f32, sin: f32| {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        };
        let head = &mut head[..2 * cos.len()];
        let angles = cos.iter().zip(sin);
        match style {
            RopeStyle::Normal => {
                for ([a, b], (cos, sin)) in head.as_chunks_mut().0.iter_mut().zip(angles) {
                    turn(a, b, *cos, *sin);
                }
            }
            RopeStyle::Neox => {
                let (first, second) = head.split_at_mut(cos.len());
                for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                    turn(a, b, *cos, *sin);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    fn frequencies(scaling: RopeScaling, factors: &[f32]) -> ([f32; 4], f32) {
        let mut f = [f32::NAN; 4];
        let magnitude = rope_frequencies(10000.0, scaling, factors, &mut f);
        (f, magnitude)
    }

    #[test]
    fn frequencies_and_factors() {
        let (f, magnitude) = frequencies(RopeScaling::None, &[]);
        for (f, expected) in f.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!((f / expected - 1.0).abs() < 1e-5);
        }
        assert_eq!(magnitude, 1.0);
        let (halved, _) = frequencies(RopeScaling::Linear { factor: 2.0 }, &[1.0, 1.0, 4.0, 1.0]);
        assert!((halved[0] / 0.5 - 1.0).abs() < 1e-5 && (halved[2] / 0.00125 - 1.0).abs() < 1e-5);
    }

    #[test]
    fn yarn_leaves_fast_pairs_and_interpolates_slow_ones() {
        let yarn = |whole_pairs| RopeScaling::Yarn {
            factor: 4.0,
            n_ctx_orig: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attn_factor: 1.0,
            whole_pairs,
        };
        let (f, magnitude) = frequencies(yarn(true), &[]);
        // By hand: pairs are 1.31 (32 turns) and 2.81 (one turn), so the ramp goes from 1 to 3.
        for (f, expected) in f.iter().zip([1.0, 0.1, 0.01 * 0.625, 0.001 * 0.25]) {
            assert!((f / expected - 1.0).abs() < 1e-4, "{f} {expected}");
        }
        assert!((magnitude - (1.0 + 0.1 * 4.0_f32.ln())).abs() < 1e-6);
        // The same from 1.309 to 2.814.
        let (f, _) = frequencies(yarn(false), &[]);
        for (f, expected) in f.iter().zip([1.0, 0.1, 0.01 * 0.65569, 0.001 * 0.25]) {
            assert!((f / expected - 1.0).abs() < 1e-4, "{f} {expected}");
        }
    }

    #[test]
    fn turns_pairs_and_leaves_the_rest() {
        let (cos, sin) = ([0.0, 1.0], [1.0, 0.0]); // first pair by a right angle, second not
        let mut x = [1.0, 2.0, 3.0, 4.0, 5.0];
        rope(Level::Scalar, RopeStyle::Normal, &mut x, &cos, &sin);
        assert_eq!(x, [-2.0, 1.0, 3.0, 4.0, 5.0]);
        let mut x = [1.0, 2.0, 3.0, 4.0, 5.0];
        rope(Level::Scalar, RopeStyle::Neox, &mut x, &cos, &sin);
        assert_eq!(x, [-3.0, 2.0, 1.0, 4.0, 5.0]);
    }

    #[test]
    fn angles_grow_with_the_position() {
        let (mut cos, mut sin) = ([f32::NAN], [f32::NAN]);
        rope_angles(3, &[0.5], 2.0, &mut cos, &mut sin);
        assert!((cos[0] - 2.0 * 1.5_f32.cos()).abs() < 1e-6);
        assert!((sin[0] - 2.0 * 1.5_f32.sin()).abs() < 1e-6);
    }
}
