//! The feed-forward networks' activation functions.

use crate::lanes::exp;
use crate::level::multilevel;

/// The function applied to the gate, or to what is inside where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// The tanh approximation of GELU, `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `max(x, 0)^2`.
    ReluSquared,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `x / (1 + exp(-1.702 x))`.
    QuickGelu,
}

impl Activation {
    /// The function at `x`.
    #[inline(always)]
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Activation::Silu => x / (1.0 + exp(-x)),
            Activation::GeluTanh => {
                const SQRT_2_OVER_PI: f32 = 0.797_884_6;
                // 1 + tanh(z) = 2 / (1 + exp(-2 z))
                let z = SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
                x / (1.0 + exp(-2.0 * z))
            }
            Activation::ReluSquared => {
                // A comparison that lets a NaN through.
                let x = if x < 0.0 { 0.0 } else { x };
                x * x
            }
            Activation::Sigmoid => 1.0 / (1.0 + exp(-x)),
            Activation::QuickGelu => x / (1.0 + exp(-1.702 * x)),
        }
    }
}

multilevel! {
    /// `gate[i] = activation(gate[i]) * up[i]`, both `[n]`.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn gate(level: Level, activation: Activation, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        let pairs = gate.iter_mut().zip(up);
        match activation {
            Activation::Silu => pairs.for_each(|(g, u)| *g = Activation::Silu.apply(*g) * u),
            Activation::GeluTanh => pairs.for_each(|(g, u)| *g = Activation::GeluTanh.apply(*g) * u),
            Activation::ReluSquared => {
                pairs.for_each(|(g, u)| *g = Activation::ReluSquared.apply(*g) * u);
            }
            Activation::Sigmoid => pairs.for_each(|(g, u)| *g = Activation::Sigmoid.apply(*g) * u),
            Activation::QuickGelu => pairs.for_each(|(g, u)| *g = Activation::QuickGelu.apply(*g) * u),
        }
    }
}

multilevel! {
    /// `x[i] = activation(x[i])`.
    pub fn activate(level: Level, activation: Activation, x: &mut [f32]) {
        match activation {
            Activation::Silu => x.iter_mut().for_each(|x| *x = Activation::Silu.apply(*x)),
            Activation::GeluTanh => x.iter_mut().for_each(|x| *x = Activation::GeluTanh.apply(*x)),
            Activation::ReluSquared => {
                x.iter_mut().for_each(|x| *x = Activation::ReluSquared.apply(*x));
            }
            Activation::Sigmoid => x.iter_mut().for_each(|x| *x = Activation::Sigmoid.apply(*x)),
            Activation::QuickGelu => x.iter_mut().for_each(|x| *x = Activation::QuickGelu.apply(*x)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn known_values() {
        assert!((Activation::Silu.apply(1.0) - 0.731_058_6).abs() < 1e-6);
        assert!((Activation::GeluTanh.apply(1.0) - 0.841_192).abs() < 1e-6);
        assert!((Activation::QuickGelu.apply(1.0) - 0.845_796).abs() < 1e-6);
        for a in [
            Activation::Silu,
            Activation::GeluTanh,
            Activation::QuickGelu,
        ] {
            assert_eq!(a.apply(0.0), 0.0);
            assert_eq!(a.apply(100.0), 100.0);
            assert!(a.apply(-100.0).abs() < 1e-6);
        }
        assert_eq!(Activation::ReluSquared.apply(-3.0), 0.0);
        let mut x = [-1.0, 3.0];
        activate(Level::detect(), Activation::ReluSquared, &mut x);
        assert_eq!(x, [0.0, 9.0]);
        let mut x = [1.0, 2.0];
        gate(Level::Scalar, Activation::Silu, &mut x, &[2.0, 0.0]);
        assert!((x[0] - 1.462_117).abs() < 1e-5 && x[1] == 0.0);
    }
}
