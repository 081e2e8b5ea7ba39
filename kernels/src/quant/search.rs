//! What the encoders share: ranges of a block, and the search for its best scales.

/// `1 / d`, or 0 for 0.
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The element of largest magnitude, with its sign; the first of several.
pub(super) fn largest(x: &[f32]) -> f32 {
    x.iter().fold(
        0.0,
        |max: f32, x| if x.abs() > max.abs() { *x } else { max },
    )
}

/// The least and the greatest element; (infinity, -infinity) of none.
pub(super) fn range(x: &[f32]) -> (f32, f32) {
    x.iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), x| {
            (min.min(*x), max.max(*x))
        })
}

/// Below this magnitude a group counts as zero: far below what an f16 scale can express, and far
/// enough from the smallest f32 for squares and inverses to be ordinary numbers.
pub(super) const TINY: f32 = 1e-15;

/// Elements summed side by side, so that sums vectorize.
const LANES: usize = 8;

/// `x` limited to `lo..=hi` and rounded to an integer, halves to even; NaN stays NaN. The limits
/// are integers below 2^22.
pub(super) fn round_within(x: f32, lo: f32, hi: f32) -> f32 {
    /// 1.5 * 2^23: next to it a float has no bits for a fraction.
    const MAGIC: f32 = 12_582_912.0;
    // Comparisons instead of f32::clamp: two instructions, no branch.
    let x = if x < lo { lo } else { x };
    let x = if x > hi { hi } else { x };
    (x + MAGIC) - MAGIC
}

/// Sums over a group of terms in `x` and the integers `q` it is rounded to.
#[derive(Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) q: f32,
    pub(super) qq: f32,
    pub(super) qx: f32,
}

/// The sums of `x`, `[16]` or `[32]`, rounded to `q = x * inv` within `lo..=hi`.
pub(super) fn sums_rounded(x: &[f32], inv: f32, lo: f32, hi: f32) -> Sums {
    let mut sums = [[0.0; LANES]; 3];
    for x in x.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let q = round_within(x[i] * inv, lo, hi);
            sums[0][i] += q;
            sums[1][i] += q * q;
            sums[2][i] += q * x[i];
        }
    }
    let [q, qq, qx] = sums.map(|s| s.iter().sum());
    Sums { q, qq, qx }
}

/// The squared error of `x`, `[16]` or `[32]`, if encoded as `q = x / scale` within `lo..=hi`.
pub(super) fn squared_error(x: &[f32], scale: f32, lo: f32, hi: f32) -> f32 {
    let inv = inverse(scale);
    let mut sums = [0.0; LANES];
    for x in x.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            let e = x[i] - scale * round_within(x[i] * inv, lo, hi);
            sums[i] += e * e;
        }
    }
    sums.iter().sum()
}
