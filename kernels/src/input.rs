//! The input `x` of a matmul: float rows, or rows rounded to int8.

use crate::level::multilevel;

/// Elements that share a scale in [`Q8Rows`].
pub const Q8_BLOCK: usize = 32;
/// Elements for each sum in [`Q8Rows`]: the narrowest group of any weight format.
pub const Q8_GROUP: usize = 16;
/// Starts for each block in [`Q8Rows`].
pub const Q8_STARTS: usize = 3;
/// 1.5 times 2^23: its bits plus an integer below 2^22 are those of the sum of both.
pub(crate) const INTEGER: f32 = 12_582_912.0;

/// Input rows `x` `[n_tokens, n_cols]`.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Float32 as it is.
    F32(&'a [f32]),
    /// Rounded to int8 by [`quantize_q8`].
    Q8(Q8Rows<'a>),
}

/// Rows rounded to int8: `x[i] = scale[i / 32] * q[i]`.
///
/// One layout serves every weight format: a scale for each 32 elements, which is the block of the
/// small formats and divides that of the large ones, and sums, with which a format's minimum (or the
/// start of its unsigned integers) is multiplied: of the 32 elements, and of their second half
/// for the formats whose minimum changes there.
#[derive(Clone, Copy, Debug)]
pub struct Q8Rows<'a> {
    /// Integers in -127..=127, `[n_tokens, n_cols]`.
    pub q: &'a [i8],
    /// Scales, `[n_tokens, n_cols / 32]`.
    pub scale: &'a [f32],
    /// For each block `scale` times the sum of its 32 integers, then that of the last 16,
    /// `[n_tokens, n_cols / 32, 2]`.
    pub sum: &'a [f32],
    /// The bits of the float 1.5 times 2^23, less 128 times the sum of each block's integers: of all 32, of the first
    /// 16, of the last 16, `[n_tokens, n_cols / 32, 3]`. Products with weights that were made
    /// unsigned by adding 128 start there, and end as the bits of a float.
    pub start: &'a [i32],
}

impl<'a> Q8Rows<'a> {
    /// The rows of the tokens `tokens` alone.
    ///
    /// # Panics
    ///
    /// If there are no such rows.
    pub(crate) fn tokens(&self, tokens: core::ops::Range<usize>, n_cols: usize) -> Q8Rows<'a> {
        let rows = |n: usize| tokens.start * n..tokens.end * n;
        Q8Rows {
            q: &self.q[rows(n_cols)],
            scale: &self.scale[rows(n_cols / Q8_BLOCK)],
            sum: &self.sum[rows(n_cols / Q8_GROUP)],
            start: &self.start[rows(n_cols / Q8_BLOCK * Q8_STARTS)],
        }
    }
}

impl<'a> Input<'a> {
    /// The rows of the tokens `tokens` alone.
    ///
    /// # Panics
    ///
    /// If there are no such rows.
    pub fn tokens(&self, tokens: core::ops::Range<usize>, n_cols: usize) -> Input<'a> {
        match self {
            Input::F32(x) => Input::F32(&x[tokens.start * n_cols..tokens.end * n_cols]),
            Input::Q8(x) => Input::Q8(x.tokens(tokens, n_cols)),
        }
    }

    /// Checks that the buffers hold `[n_tokens, n_cols]`.
    ///
    /// # Panics
    ///
    /// If they do not: the caller's error.
    pub(crate) fn check(&self, n_tokens: usize, n_cols: usize) {
        match self {
            Input::F32(x) => assert_eq!(x.len(), n_tokens * n_cols),
            Input::Q8(x) => {
                assert!(n_cols.is_multiple_of(Q8_BLOCK));
                assert_eq!(x.q.len(), n_tokens * n_cols);
                assert_eq!(x.scale.len(), n_tokens * (n_cols / Q8_BLOCK));
                assert_eq!(x.sum.len(), n_tokens * (n_cols / Q8_GROUP));
                assert_eq!(x.start.len(), n_tokens * (n_cols / Q8_BLOCK) * Q8_STARTS);
            }
        }
    }
}

multilevel! {
    /// Rounds `x` `[n]` to int8: `q` `[n]`, `scale` `[n / 32]`, `sum` `[n / 16]`, `start`
    /// `[n / 32, 3]`; see [`Q8Rows`].
    ///
    /// The scale is the block's largest magnitude over 127, and rounding is to nearest, ties to
    /// even, so that every level gives the same integers. Values that are not finite make their
    /// block's scale infinite or NaN, and so the outputs, which is how a broken model shows.
    ///
    /// # Panics
    ///
    /// If `n` is no multiple of 32 or the buffers do not fit it.
    pub fn quantize_q8(
        level: Level,
        x: &[f32],
        q: &mut [i8],
        scale: &mut [f32],
        sum: &mut [f32],
        start: &mut [i32],
    ) {
        let (x, []) = x.as_chunks::<Q8_BLOCK>() else {
            panic!("{} elements are no whole number of blocks", x.len());
        };
        let (q, sum) = (q.as_chunks_mut::<Q8_BLOCK>().0, sum.as_chunks_mut::<2>().0);
        let start = start.as_chunks_mut::<Q8_STARTS>().0;
        assert!(q.len() == x.len() && scale.len() == x.len());
        assert!(sum.len() == x.len() && start.len() == x.len());
        for ((((x, q), scale), sum), start) in x.iter().zip(q).zip(scale).zip(sum).zip(start) {
            quantize_block(x, q, scale);
            let total = |q: &[i8]| q.iter().map(|q| i32::from(*q)).sum::<i32>();
            let (first, last) = (total(&q[..Q8_GROUP]), total(&q[Q8_GROUP..]));
            *sum = [*scale * (first + last) as f32, *scale * last as f32];
            *start = [first + last, first, last].map(|sum| INTEGER.to_bits() as i32 - 128 * sum);
        }
    }
}

/// Rounds numbers to int8 with one scale, the largest magnitude over 127.
#[inline(always)]
pub(crate) fn quantize_block(x: &[f32], q: &mut [i8], scale: &mut f32) {
    // Magnitudes order as their bits do, with NaN above infinity, so that none is lost.
    let amax = x
        .iter()
        .fold(0, |amax, x| amax.max(x.abs().to_bits() as i32));
    let amax = f32::from_bits(amax as u32);
    *scale = amax / 127.0;
    let inverse = if amax > 0.0 { 127.0 / amax } else { 0.0 };
    for (q, x) in q.iter_mut().zip(x) {
        // The sum is rounded to an integer, which then stands in the low bits.
        *q = (x * inverse + INTEGER).to_bits() as i8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn rounds_to_the_nearest_step() {
        let mut x = [0.0_f32; 64];
        for (i, x) in x.iter_mut().enumerate() {
            *x = (i as f32 * 0.37).sin() * 3.0;
        }
        let (mut q, mut scale, mut sum) = ([0; 64], [f32::NAN; 2], [f32::NAN; 4]);
        let mut start = [0; 6];
        quantize_q8(Level::Scalar, &x, &mut q, &mut scale, &mut sum, &mut start);
        for (i, x) in x.iter().enumerate() {
            let step = scale[i / 32];
            assert!((step * f32::from(q[i]) - x).abs() <= step * 0.5001);
        }
        assert_eq!(q[..32].iter().map(|q| q.unsigned_abs()).max(), Some(127));
        let expected = scale[1] * q[48..].iter().map(|q| i32::from(*q)).sum::<i32>() as f32;
        assert_eq!(sum[3], expected);
        let expected = scale[1] * q[32..].iter().map(|q| i32::from(*q)).sum::<i32>() as f32;
        assert_eq!(sum[2], expected);
        let sums =
            [32..64, 32..48, 48..64].map(|r| q[r].iter().map(|q| i32::from(*q)).sum::<i32>());
        assert_eq!(
            start[3..],
            sums.map(|sum| (INTEGER - 128.0 * sum as f32).to_bits() as i32)
        );
    }

    #[test]
    fn zero_and_broken_blocks() {
        let mut x = [0.0_f32; 64];
        x[40] = f32::NAN;
        let (mut q, mut scale, mut sum) = ([1; 64], [f32::NAN; 2], [f32::NAN; 4]);
        let mut start = [1; 6];
        quantize_q8(Level::Scalar, &x, &mut q, &mut scale, &mut sum, &mut start);
        assert_eq!(
            (scale[0], sum[0], q[0], f32::from_bits(start[0] as u32)),
            (0.0, 0.0, 0, INTEGER)
        );
        assert!(scale[1].is_nan());
    }
}
