//! The encoder of the K formats that have minima: Q2_K, Q4_K and Q5_K.
//!
//! In the spirit of ggml's `make_qkx2_quants`: for each of some candidate scales the elements of a
//! group are rounded, and scale and minimum refitted to the result by least squares; the best
//! stays. Then the scales and minima are themselves rounded to multiples of one f16 number each,
//! neighbours tried, and those numbers refitted. All elements weigh the same, which is right for
//! inputs of which nothing is known.

use super::search::{Sums, TINY, inverse, range, round_within, squared_error, sums_rounded};
use half::f16;

/// The candidates for a group's scale: this many steps more than there are span its range.
const CANDIDATES: [f32; 14] = [
    -1.6, -1.3, -1.1, -0.9, -0.7, -0.5, -0.35, -0.2, -0.05, 0.1, 0.25, 0.4, 0.6, 0.8,
];

/// How often the rounded scales and minima, and then their two factors, are improved.
const N_PASSES: usize = 2;

/// 256 elements, encoded: `w = (d * scales[g]) * q - (dmin * mins[g])`.
pub(super) struct Encoded<const N_GROUPS: usize> {
    pub(super) d: f16,
    pub(super) dmin: f16,
    pub(super) scales: [u8; N_GROUPS],
    pub(super) mins: [u8; N_GROUPS],
    pub(super) q: [u8; 256],
}

/// Encodes 256 finite elements in groups of 256 / `N_GROUPS`, with integers up to `q_max`, scales
/// and minima up to `scale_max`.
pub(super) fn encode<const N_GROUPS: usize>(
    x: &[f32; 256],
    q_max: u8,
    scale_max: u8,
) -> Encoded<N_GROUPS> {
    let len = 256 / N_GROUPS;
    let q_max = f32::from(q_max);
    let scale_max = f32::from(scale_max);
    let ideal: [_; N_GROUPS] = core::array::from_fn(|g| fit(&x[g * len..][..len], q_max));
    let largest_scale = ideal.iter().fold(0.0, |a: f32, (scale, _)| a.max(*scale));
    let largest_min = ideal.iter().fold(0.0, |a: f32, (_, min)| a.max(*min));

    let mut e = Encoded {
        d: f16::from_f32(largest_scale / scale_max),
        dmin: f16::from_f32(largest_min / scale_max),
        scales: [0; N_GROUPS],
        mins: [0; N_GROUPS],
        q: [0; 256],
    };
    for (g, (scale, min)) in ideal.into_iter().enumerate() {
        let inv = [e.d, e.dmin].map(|d| inverse(d.to_f32()));
        e.scales[g] = round_within(scale * inv[0], 0.0, scale_max) as u8;
        e.mins[g] = round_within(min * inv[1], 0.0, scale_max) as u8;
    }
    for _ in 0..N_PASSES {
        e.improve_scales(x, q_max, scale_max);
        e.round(x, q_max);
        e.refit(x);
    }
    e.round(x, q_max);
    e
}

/// Scale and minimum (to be subtracted, not negative) for a group.
fn fit(x: &[f32], q_max: f32) -> (f32, f32) {
    let (lo, hi) = range(x);
    // A minimum cannot be above zero: the formats have no sign for it.
    let lo = lo.min(0.0);
    if hi - lo < TINY {
        return (0.0, -lo);
    }
    // Fitted to `y = x - lo`, as the squares of an offset would drown those of the errors.
    let mut y = [0.0; 32];
    let y = &mut y[..x.len()];
    let n = x.len() as f32;
    let mut sum_y = 0.0;
    let mut sum_yy = 0.0;
    for (y, x) in y.iter_mut().zip(x) {
        *y = x - lo;
        sum_y += *y;
        sum_yy += *y * *y;
    }

    let mut best = ((hi - lo) / q_max, -lo);
    let mut best_error = f32::INFINITY;
    for extra in CANDIDATES {
        let Sums { q, qq, qx: qy } = sums_rounded(y, (q_max + extra) / (hi - lo), 0.0, q_max);
        let determinant = n * qq - q * q;
        if determinant <= 0.0 {
            continue; // all rounded to the same integer
        }
        let mut scale = (n * qy - q * sum_y) / determinant;
        let mut offset = (qq * sum_y - q * qy) / determinant;
        if lo + offset > 0.0 {
            offset = -lo;
            scale = (qy - offset * q) / qq;
        }
        let error = sum_yy - 2.0 * (scale * qy + offset * sum_y)
            + scale * (scale * qq + 2.0 * offset * q)
            + n * offset * offset;
        if error < best_error && scale > 0.0 {
            best_error = error;
            best = (scale, -(lo + offset));
        }
    }
    best
}

impl<const N_GROUPS: usize> Encoded<N_GROUPS> {
    const LEN: usize = 256 / N_GROUPS;

    /// Moves each rounded scale and minimum by one where this lessens the error.
    fn improve_scales(&mut self, x: &[f32; 256], q_max: f32, scale_max: f32) {
        let [d, dmin] = [self.d, self.dmin].map(f16::to_f32);
        let mut shifted = [0.0; 32];
        for (g, x) in x.chunks_exact(Self::LEN).enumerate() {
            let (scale, min) = (f32::from(self.scales[g]), f32::from(self.mins[g]));
            let mut best_error = f32::INFINITY;
            for step in [0.0, -1.0, 1.0] {
                let m = min + step;
                if m < 0.0 || m > scale_max {
                    continue;
                }
                let shifted = &mut shifted[..Self::LEN];
                for (shifted, x) in shifted.iter_mut().zip(x) {
                    *shifted = x + dmin * m;
                }
                for step in [0.0, -1.0, 1.0] {
                    let sc = scale + step;
                    if sc < 0.0 || sc > scale_max {
                        continue;
                    }
                    let error = squared_error(shifted, d * sc, 0.0, q_max);
                    if error < best_error {
                        best_error = error;
                        self.scales[g] = sc as u8;
                        self.mins[g] = m as u8;
                    }
                }
            }
        }
    }

    /// Rounds the elements with the scales as they decode.
    fn round(&mut self, x: &[f32; 256], q_max: f32) {
        let [d, dmin] = [self.d, self.dmin].map(f16::to_f32);
        let groups = self.q.chunks_exact_mut(Self::LEN);
        for (g, (q, x)) in groups.zip(x.chunks_exact(Self::LEN)).enumerate() {
            let inv = inverse(d * f32::from(self.scales[g]));
            let min = dmin * f32::from(self.mins[g]);
            for (q, x) in q.iter_mut().zip(x) {
                *q = round_within((x + min) * inv, 0.0, q_max) as u8;
            }
        }
    }

    /// Refits `d` and `dmin` by least squares to `x = d * (sc * q) - dmin * m`.
    fn refit(&mut self, x: &[f32; 256]) {
        // Sums of products of a = sc * q, m and x.
        let (mut aa, mut am, mut mm, mut ax, mut mx) = (0.0, 0.0, 0.0, 0.0, 0.0);
        let groups = self.q.chunks_exact(Self::LEN);
        for (g, (q, x)) in groups.zip(x.chunks_exact(Self::LEN)).enumerate() {
            let (sc, m) = (f32::from(self.scales[g]), f32::from(self.mins[g]));
            let (mut q_sum, mut qq_sum, mut qx_sum, mut x_sum) = (0.0, 0.0, 0.0, 0.0);
            for (q, x) in q.iter().zip(x) {
                let q = f32::from(*q);
                q_sum += q;
                qq_sum += q * q;
                qx_sum += q * x;
                x_sum += x;
            }
            aa += sc * sc * qq_sum;
            am += sc * m * q_sum;
            mm += m * m * Self::LEN as f32;
            ax += sc * qx_sum;
            mx += m * x_sum;
        }
        let determinant = aa * mm - am * am;
        let (d, dmin) = if determinant > 1e-3 * aa * mm {
            (
                (mm * ax - am * mx) / determinant,
                (am * ax - aa * mx) / determinant,
            )
        } else if mm == 0.0 && aa > 0.0 {
            (ax / aa, 0.0)
        } else {
            return;
        };
        if d > 0.0 && dmin >= 0.0 && d.is_finite() && dmin.is_finite() {
            self.d = f16::from_f32(d);
            self.dmin = f16::from_f32(dmin);
        }
    }
}
