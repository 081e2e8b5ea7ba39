//! Arithmetic in a form that the compiler vectorizes: loops over independent lanes, no branches.
//!
//! All of it is inlined, so that it takes the instructions of whoever calls it.

/// Sums that are kept apart, so that additions need not wait for each other.
const LANES: usize = 16;

/// `sum_i a[i] b[i]` over the shorter of the two.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    reduce(a, b, |a, b| a * b)
}

/// `sum_i f(a[i], b[i])` over the shorter of the two, lane by lane.
#[inline(always)]
pub fn reduce(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let n = a.len().min(b.len());
    let (a, a_rest) = a[..n].as_chunks::<LANES>();
    let (b, b_rest) = b[..n].as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += f(a[i], b[i]);
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[i] += f(*a, *b);
    }
    across(sums, |a, b| a + b)
}

/// All lanes brought together by `f`, halves with halves.
#[inline(always)]
pub(crate) fn across(mut v: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            v[i] = f(v[i], v[i + n]);
        }
    }
    v[0]
}

/// `e^x` to about two units in the last place: 0 below -87.3, infinite above 88.3.
///
/// `e^x = 2^n e^r` with `r` between plus and minus half of ln 2, `e^r` by the polynomial of the
/// Cephes library's `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4; // few bits, so that its multiples are exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // Comparisons, as `clamp` does not let a NaN through on every CPU alike.
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < -87.3 { -87.3 } else { clamped };
    let shifted = clamped * core::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let e_r = p * (r * r) + r + 1.0;
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127);
    let e_x = e_r * f32::from_bits(exponent << 23);
    if x < -87.3 { 0.0 } else { e_x }
}

/// The f16 of these bits.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    // Exponent and fraction move into place; the exponent's bias differs by 112.
    let shifted = (bits & 0x7fff) << 13;
    let finite = f32::from_bits(shifted) * f32::from_bits((127 + 112) << 23);
    let is_finite = shifted < 0x1f << 23;
    let magnitude = if is_finite {
        finite.to_bits()
    } else {
        shifted | 0xff << 23
    };
    f32::from_bits(magnitude | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_near_the_library_s() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let (found, truth) = (exp(x), libm::exp(f64::from(x)) as f32);
            assert!((found / truth - 1.0).abs() < 3e-7, "{x}: {found} {truth}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(-88.0), exp(f32::NEG_INFINITY)), (0.0, 0.0));
        assert_eq!(
            (exp(89.0), exp(f32::INFINITY)),
            (f32::INFINITY, f32::INFINITY)
        );
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn every_f16_converts_as_half_does() {
        for bits in 0..=u16::MAX {
            let (found, truth) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32_const());
            assert!(
                found.to_bits() == truth.to_bits() || (found.is_nan() && truth.is_nan()),
                "{bits:#x}"
            );
        }
    }

    #[test]
    fn dot_covers_every_length() {
        for n in 0..70 {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let expected: f32 = a.iter().map(|x| x * 2.0).sum();
            assert_eq!(dot(&a, &vec![2.0; n]), expected);
        }
    }
}
