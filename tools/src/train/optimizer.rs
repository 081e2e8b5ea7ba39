//! AdamW (Loshchilov and Hutter, arXiv 1711.05101), its learning rate, and the gradient's limit.

use serde::{Deserialize, Serialize};

/// The optimizer's settings, as recipes name them.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> AdamW {
        AdamW {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// The running means of each tensor's gradient and of its square.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Moments {
    pub first: Vec<Vec<f32>>,
    pub second: Vec<Vec<f32>>,
}

impl Moments {
    /// Zeros for tensors of the sizes of `values`.
    pub(super) fn zeros(values: &[Vec<f32>]) -> Moments {
        let zeros: Vec<_> = values.iter().map(|v| vec![0.0; v.len()]).collect();
        Moments {
            first: zeros.clone(),
            second: zeros,
        }
    }
}

impl AdamW {
    /// Step number `step`, counted from 1: changes `values` by their gradients.
    pub(super) fn step(
        &self,
        step: usize,
        rate: f64,
        values: &mut [Vec<f32>],
        gradients: &[Vec<f32>],
        moments: &mut Moments,
    ) {
        // Means that began at zero are too small at first by these factors.
        let correction1 = 1.0 - self.beta1.powi(step as i32);
        let correction2 = 1.0 - self.beta2.powi(step as i32);
        let moments = moments.first.iter_mut().zip(&mut moments.second);
        for ((values, gradients), (m, v)) in values.iter_mut().zip(gradients).zip(moments) {
            let elements = values.iter_mut().zip(gradients).zip(m.iter_mut().zip(v));
            for ((x, g), (m, v)) in elements {
                let g = f64::from(*g);
                let first = self.beta1 * f64::from(*m) + (1.0 - self.beta1) * g;
                let second = self.beta2 * f64::from(*v) + (1.0 - self.beta2) * g * g;
                (*m, *v) = (first as f32, second as f32);
                let decayed = f64::from(*x) * (1.0 - rate * self.weight_decay);
                let size = (second / correction2).sqrt() + self.epsilon;
                *x = (decayed - rate * (first / correction1) / size) as f32;
            }
        }
    }
}

/// The learning rate of step `step` (counted from 0) of `n_steps`: up from 0 in a line for
/// `n_warmup` steps, then down to 0 in a cosine.
pub(super) fn rate(peak: f64, step: usize, n_warmup: usize, n_steps: usize) -> f64 {
    if step < n_warmup {
        return peak * (step + 1) as f64 / n_warmup as f64;
    }
    let n_down = n_steps.saturating_sub(n_warmup).max(1);
    let share = (step - n_warmup) as f64 / n_down as f64;
    peak * 0.5 * (1.0 + (std::f64::consts::PI * share.min(1.0)).cos())
}

/// Scales gradients down where all of them together are longer than `limit`; returns their length
/// before.
pub(super) fn clip(gradients: &mut [Vec<f32>], limit: f64) -> f64 {
    let square = |x: &f32| f64::from(*x) * f64::from(*x);
    let norm = gradients.iter().flatten().map(square).sum::<f64>().sqrt();
    if norm > limit {
        let scale = (limit / norm) as f32;
        gradients.iter_mut().flatten().for_each(|x| *x *= scale);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `torch.optim.AdamW` computes, by its documented formulas worked through by hand with
    /// lr 0.1, betas (0.9, 0.999), eps 1e-8, weight_decay 0.01: the first step goes by
    /// `lr g / (|g| + eps)`, whatever the gradient's size.
    #[test]
    fn two_steps_by_hand() {
        let adamw = AdamW {
            weight_decay: 0.01,
            ..AdamW::default()
        };
        let mut values = vec![vec![1.0, -2.0]];
        let mut moments = Moments::zeros(&values);
        adamw.step(1, 0.1, &mut values, &[vec![0.5, -4.0]], &mut moments);
        for (found, wanted) in values[0].iter().zip([0.999 - 0.1, -1.998 + 0.1]) {
            assert!((found - wanted).abs() < 1e-6, "{found} {wanted}");
        }
        assert!((moments.first[0][0] - 0.05).abs() < 1e-7);
        assert!((moments.second[0][0] - 0.000_25).abs() < 1e-9);
        // Second step, first element: m = 0.9 * 0.05 + 0.1 * 0.25 = 0.07, over 1 - 0.81;
        // v = 0.999 * 0.00025 + 0.001 * 0.0625 = 0.00031225, over 1 - 0.998001.
        adamw.step(2, 0.1, &mut values, &[vec![0.25, 0.0]], &mut moments);
        let size = (0.000_312_25_f64 / 0.001_999).sqrt();
        let wanted = 0.899 * 0.999 - 0.1 * (0.07 / 0.19) / size;
        assert!((f64::from(values[0][0]) - wanted).abs() < 1e-6);
    }

    #[test]
    fn the_rate_goes_up_and_down() {
        let rates: Vec<f64> = (0..12).map(|step| rate(2.0, step, 2, 12)).collect();
        assert_eq!(rates[..3], [1.0, 2.0, 2.0]);
        assert!((rates[7] - 1.0).abs() < 1e-12);
        assert!(rates.windows(2).skip(2).all(|w| w[1] < w[0]) && rates[11] > 0.0);
        assert_eq!(rate(2.0, 12, 2, 12), 0.0);
        assert_eq!(rate(2.0, 0, 0, 1), 2.0);
    }

    #[test]
    fn long_gradients_are_cut() {
        let mut gradients = vec![vec![3.0], vec![0.0, 4.0]];
        assert_eq!(clip(&mut gradients, 10.0), 5.0);
        assert_eq!(gradients, [vec![3.0], vec![0.0, 4.0]]);
        assert_eq!(clip(&mut gradients, 1.0), 5.0);
        assert!((gradients[0][0] - 0.6).abs() < 1e-6 && (gradients[1][1] - 0.8).abs() < 1e-6);
    }
}
