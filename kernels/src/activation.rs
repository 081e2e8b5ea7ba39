//! The feed-forward networks' activation functions.

use crate::lanes::exp;
use crate::level::multilevel;

/// The function applied to the gate, or to what is inside where there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// Two curves that meet at 0.
    Xielu(Xielu),
}

/// xIELU (Huang and Schlag, arXiv 2411.13010): `positive x^2 + linear x` above 0, else
/// `negative (expm1(min(x, eps)) - x) + linear x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Xielu {
    /// The softplus of what is learned.
    pub positive: f32,
    /// The softplus of what is learned, and `linear`.
    pub negative: f32,
    /// The slope at 0.
    pub linear: f32,
    /// A bound, which keeps the exponential exact.
    pub eps: f32,
}

impl Xielu {
    #[inline(always)]
    fn apply(self, x: f32) -> f32 {
        let bounded = if x < self.eps { x } else { self.eps };
        let curve = match x > 0.0 {
            true => self.positive * x * x,
            false => self.negative * (exp(bounded) - 1.0 - x),
        };
        curve + self.linear * x
    }
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
            Activation::Xielu(xielu) => xielu.apply(x),
        }
    }
}

/// `ln(1 + exp(x))`; `x` itself where the exponential would be too large.
pub fn softplus(x: f32) -> f32 {
    match x > 20.0 {
        true => x,
        false => libm::log1pf(libm::expf(x)),
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
            Activation::Xielu(xielu) => pairs.for_each(|(g, u)| *g = xielu.apply(*g) * u),
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
            Activation::Xielu(xielu) => x.iter_mut().for_each(|x| *x = xielu.apply(*x)),
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
        // By hand: 0.5 4 + 0.25 2, and 2 (exp(-1) - 1 + 1) - 0.25.
        let xielu = Xielu {
            positive: 0.5,
            negative: 2.0,
            linear: 0.25,
            eps: -1e-6,
        };
        assert_eq!(Activation::Xielu(xielu).apply(2.0), 2.5);
        assert!((Activation::Xielu(xielu).apply(-1.0) - 0.485_758_9).abs() < 1e-6);
        assert!(Activation::Xielu(xielu).apply(0.0).abs() < 1e-5);
        let mut x = [-1.0, 3.0];
        activate(Level::detect(), Activation::ReluSquared, &mut x);
        assert_eq!(x, [0.0, 9.0]);
        let mut x = [1.0, 2.0];
        gate(Level::Scalar, Activation::Silu, &mut x, &[2.0, 0.0]);
        assert!((x[0] - 1.462_117).abs() < 1e-5 && x[1] == 0.0);
    }
}
