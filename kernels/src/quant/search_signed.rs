//! The encoder of the K formats with signed integers and no minima: Q3_K and Q6_K.
//!
//! In the spirit of ggml's `make_qx_quants`: for each of some candidate scales the elements of a
//! group are rounded, and the scale refitted to the result by least squares; the best stays. Then
//! the scales are themselves rounded to multiples of one f16 number, neighbours tried, and that
//! number refitted. All elements weigh the same.

use super::search::{TINY, inverse, largest, round_within, squared_error, sums_rounded};
use half::f16;

/// The candidates for a group's scale: its largest element becomes the lowest integer, which has
/// no positive counterpart, less this.
const CANDIDATES: [f32; 15] = [
    -0.9, -0.75, -0.6, -0.45, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9,
];

const LEN: usize = 16;
const N_GROUPS: usize = 16;

/// 256 elements, encoded: `w = (d * scales[g]) * q`.
pub(super) struct Encoded {
    pub(super) d: f16,
    pub(super) scales: [i8; N_GROUPS],
    pub(super) q: [i8; 256],
}

/// Encodes 256 finite elements in groups of 16, with integers from `q_min` to `-q_min - 1` and
/// scales from `scale_min` to `-scale_min - 1`.
pub(super) fn encode(x: &[f32; 256], q_min: i8, scale_min: i8) -> Encoded {
    let q_min = f32::from(q_min);
    let scale_min = f32::from(scale_min);
    let ideal: [f32; N_GROUPS] = core::array::from_fn(|g| fit(&x[g * LEN..][..LEN], q_min));
    let mut e = Encoded {
        d: f16::from_f32(largest(&ideal) / scale_min),
        scales: [0; N_GROUPS],
        q: [0; 256],
    };
    let inv = inverse(e.d.to_f32());
    e.scales = ideal.map(|scale| round_within(scale * inv, scale_min, -scale_min - 1.0) as i8);
    e.improve_scales(x, q_min, scale_min);
    e.round(x, q_min);
    e.refit(x);
    e.round(x, q_min);
    e
}

/// The scale for a group; it has the sign opposite to the largest element's.
fn fit(x: &[f32], q_min: f32) -> f32 {
    let max = largest(x);
    if max.abs() < TINY {
        return 0.0;
    }
    let mut best = max / q_min;
    let mut best_gain = 0.0;
    for extra in CANDIDATES {
        let sums = sums_rounded(x, (q_min - extra) / max, q_min, -q_min - 1.0);
        // What the best scale for these integers takes off the squared error.
        let gain = sums.qx * sums.qx / sums.qq;
        if gain > best_gain {
            best_gain = gain;
            best = sums.qx / sums.qq;
        }
    }
    best
}

impl Encoded {
    /// Moves each rounded scale by one where this lessens the error.
    fn improve_scales(&mut self, x: &[f32; 256], q_min: f32, scale_min: f32) {
        let d = self.d.to_f32();
        for (best, x) in self.scales.iter_mut().zip(x.chunks_exact(LEN)) {
            let scale = f32::from(*best);
            let mut best_error = f32::INFINITY;
            for step in [0.0, -1.0, 1.0] {
                let sc = scale + step;
                if sc < scale_min || sc > -scale_min - 1.0 {
                    continue;
                }
                let error = squared_error(x, d * sc, q_min, -q_min - 1.0);
                if error < best_error {
                    best_error = error;
                    *best = sc as i8;
                }
            }
        }
    }

    /// Rounds the elements with the scales as they decode.
    fn round(&mut self, x: &[f32; 256], q_min: f32) {
        let d = self.d.to_f32();
        let groups = self.q.chunks_exact_mut(LEN).zip(x.chunks_exact(LEN));
        for ((q, x), sc) in groups.zip(self.scales) {
            let inv = inverse(d * f32::from(sc));
            for (q, x) in q.iter_mut().zip(x) {
                *q = round_within(x * inv, q_min, -q_min - 1.0) as i8;
            }
        }
    }

    /// Refits `d` by least squares to `x = d * (sc * q)`.
    fn refit(&mut self, x: &[f32; 256]) {
        let (mut aa, mut ax) = (0.0, 0.0);
        let groups = self.q.chunks_exact(LEN).zip(x.chunks_exact(LEN));
        for ((q, x), sc) in groups.zip(self.scales) {
            for (q, x) in q.iter().zip(x) {
                let a = f32::from(sc) * f32::from(*q);
                aa += a * a;
                ax += a * x;
            }
        }
        let d = ax / aa;
        if d.is_finite() {
            self.d = f16::from_f32(d);
        }
    }
}
