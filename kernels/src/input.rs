//! The input `x` of a matmul: float rows, or rows rounded to int8.

use crate::TileMut;
use crate::level::multilevel;

/// Elements that share a scale in [`Q8Super`].
pub const Q8_BLOCK: usize = 32;
/// Elements for each sum in [`Q8Super`]: the narrowest group of any weight format.
pub const Q8_GROUP: usize = 16;
/// Elements of a [`Q8Super`].
pub const Q8_SUPER: usize = 256;
const N_BLOCKS: usize = Q8_SUPER / Q8_BLOCK;
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

/// 256 elements of a row rounded to int8: `x[i] = scale[i / 32] * q[i]`. Those past the row's end
/// are zero.
///
/// One layout serves every weight format: a scale for each 32 elements, which is the block of the
/// small formats and divides that of the large ones, and sums, with which a format's minimum (or the
/// start of its unsigned integers) is multiplied: of the 32 elements, and of their second half
/// for the formats whose minimum changes there.
#[derive(Clone, Copy, Debug, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Q8Super {
    /// Integers in -127..=127 (of what is not finite, any).
    pub q: [i8; Q8_SUPER],
    /// A scale for each block.
    pub scale: [f32; N_BLOCKS],
    /// The bits of the float 1.5 times 2^23, less 128 times the sum of each block's integers: of all
    /// 32, of the first 16, of the last 16. Products with weights that were made unsigned by adding
    /// 128 start there, and end as the bits of a float.
    pub start: [[i32; 3]; N_BLOCKS],
    /// For each block `scale` times the sum of its 32 integers, then that of the last 16.
    pub sum: [[f32; 2]; N_BLOCKS],
}

impl Default for Q8Super {
    /// Zeros.
    fn default() -> Q8Super {
        Q8Super {
            q: [0; Q8_SUPER],
            scale: [0.0; N_BLOCKS],
            start: [[INTEGER.to_bits() as i32; 3]; N_BLOCKS],
            sum: [[0.0; 2]; N_BLOCKS],
        }
    }
}

/// Rows rounded to int8, `[n_cols / 256, rounded up][n_tokens]`: the tokens' elements of the same
/// columns, which a tile of weights is multiplied with, lie together.
#[derive(Clone, Copy, Debug)]
pub struct Q8Rows<'a> {
    supers: &'a [Q8Super],
    /// Tokens from one 256 columns to the next.
    stride: usize,
    n_tokens: usize,
}

impl<'a> Q8Rows<'a> {
    /// The rows of `n_tokens` tokens, as [`quantize_q8`] writes them.
    pub fn new(supers: &'a [Q8Super], n_tokens: usize) -> Q8Rows<'a> {
        Q8Rows {
            supers,
            stride: n_tokens,
            n_tokens,
        }
    }

    /// The rows of the tokens `tokens` alone.
    ///
    /// # Panics
    ///
    /// If there are no such rows.
    pub(crate) fn tokens(&self, tokens: core::ops::Range<usize>) -> Q8Rows<'a> {
        assert!(tokens.start <= tokens.end && tokens.end <= self.n_tokens);
        Q8Rows {
            supers: &self.supers[tokens.start.min(self.supers.len())..],
            stride: self.stride,
            n_tokens: tokens.len(),
        }
    }

    /// Where the elements of token `t` begin, those of the `n` tokens from it on beside each other, of
    /// which there must be `n_supers` times 256, and how far it is from each 256 to the next.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub(crate) fn tokens_from(
        &self,
        t: usize,
        n: usize,
        n_supers: usize,
    ) -> (*const Q8Super, usize) {
        assert!(n > 0 && t + n <= self.n_tokens && n_supers > 0);
        let all = &self.supers[t..(n_supers - 1) * self.stride + t + n];
        (all.as_ptr(), self.stride)
    }

    /// Elements `256 s` and up of token `t`; those of the next tokens follow.
    ///
    /// # Panics
    ///
    /// If there are none.
    #[inline(always)]
    pub(crate) fn of(&self, s: usize, t: usize) -> &'a [Q8Super] {
        &self.supers[s * self.stride..][t..self.n_tokens]
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
            Input::Q8(x) => Input::Q8(x.tokens(tokens)),
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
                assert_eq!(x.n_tokens, n_tokens);
                let last = n_cols.div_ceil(Q8_SUPER).saturating_sub(1);
                assert!(n_cols == 0 || x.supers.len() >= last * x.stride + n_tokens);
            }
        }
    }
}

multilevel! {
    /// Rounds `x` `[n_tokens, n_cols]` to int8, as [`Q8Rows`] wants it: `out` becomes what stands
    /// there from number `first` on. So parts of it can be made apart.
    ///
    /// A scale is the block's largest magnitude over 127, and rounding is to nearest, ties to
    /// even, so that every level gives the same integers. Values that are not finite make their
    /// block's scale infinite or NaN, and so the outputs, which is how a broken model shows.
    ///
    /// # Panics
    ///
    /// If `n_cols` is no multiple of 32, or there are no such numbers.
    pub fn quantize_q8(level: Level, x: &[f32], n_cols: usize, first: usize, out: &mut [Q8Super]) {
        assert!(n_cols > 0 && n_cols.is_multiple_of(Q8_BLOCK));
        let n_tokens = x.len() / n_cols;
        for (i, out) in (first..).zip(out) {
            let (s, t) = (i / n_tokens, i % n_tokens);
            let x = &x[t * n_cols..][..n_cols][s * Q8_SUPER..];
            let x = x[..x.len().min(Q8_SUPER)].as_chunks::<Q8_BLOCK>().0;
            if x.len() < N_BLOCKS {
                *out = Q8Super::default();
            }
            for (b, x) in x.iter().enumerate() {
                quantize_super_block(x, b, out);
            }
        }
    }
}

multilevel! {
    /// [`quantize_q8`] of some columns of all tokens: `x` `[n_tokens, n]` are those from `first` on,
    /// and `out` `[n_supers, n_tokens]` is where column 0 and up belong. Blocks that no columns are
    /// rounded for must be those of [`Q8Super::default`].
    ///
    /// # Panics
    ///
    /// If `n` or `first` is no multiple of 32, or `out` has no such columns or fewer tokens.
    pub fn quantize_q8_columns(
        level: Level,
        x: &mut TileMut<'_>,
        first: usize,
        out: &mut TileMut<'_, Q8Super>,
    ) {
        assert!(first.is_multiple_of(Q8_BLOCK) && x.n_cols().is_multiple_of(Q8_BLOCK));
        for t in 0..x.n_rows() {
            let blocks = x.row(t).as_chunks::<Q8_BLOCK>().0;
            for (b, x) in (first / Q8_BLOCK..).zip(blocks) {
                quantize_super_block(x, b % N_BLOCKS, &mut out.row(b / N_BLOCKS)[t]);
            }
        }
    }
}

/// Block `b` of `out` from its numbers.
#[inline(always)]
fn quantize_super_block(x: &[f32; Q8_BLOCK], b: usize, out: &mut Q8Super) {
    let (scale, inverse) = q8_scale(x);
    // In an array of its own: written one by one to where the input might lie as well, for all that
    // the compiler knows, they would be computed one by one.
    let mut q = [0; Q8_BLOCK];
    for (q, x) in q.iter_mut().zip(x) {
        *q = round_q8(*x, inverse);
    }
    let total = |q: &[i8]| q.iter().map(|q| i32::from(*q)).sum::<i32>();
    let (first, last) = (total(&q[..Q8_GROUP]), total(&q[Q8_GROUP..]));
    out.q.as_chunks_mut::<Q8_BLOCK>().0[b] = q;
    out.scale[b] = scale;
    out.sum[b] = [scale * (first + last) as f32, scale * last as f32];
    out.start[b] = [first + last, first, last].map(|sum| INTEGER.to_bits() as i32 - 128 * sum);
}

/// The scale with which numbers are rounded to int8, the largest magnitude over 127, and what to
/// multiply them with for that.
#[inline(always)]
pub(crate) fn q8_scale(x: &[f32]) -> (f32, f32) {
    // Magnitudes order as their bits do, with NaN above infinity, so that none is lost.
    let amax = x
        .iter()
        .fold(0, |amax, x| amax.max(x.abs().to_bits() as i32));
    let amax = f32::from_bits(amax as u32);
    let inverse = if amax > 0.0 { 127.0 / amax } else { 0.0 };
    (amax / 127.0, inverse)
}

/// `x` rounded to int8.
#[inline(always)]
pub(crate) fn round_q8(x: f32, inverse: f32) -> i8 {
    // The sum is rounded to an integer, which then stands in the low bits.
    (x * inverse + INTEGER).to_bits() as i8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    #[test]
    fn rounds_to_the_nearest_step() {
        // Two tokens of 320 elements: a whole 256 and two blocks.
        let n_cols = 320;
        let mut x = [0.0_f32; 640];
        for (i, x) in x.iter_mut().enumerate() {
            *x = (i as f32 * 0.37).sin() * 3.0;
        }
        let mut out = [Q8Super::default(); 4];
        // In two parts.
        let (first, last) = out.split_at_mut(1);
        quantize_q8(Level::Scalar, &x, n_cols, 0, first);
        quantize_q8(Level::Scalar, &x, n_cols, 1, last);
        for (i, x) in x.iter().enumerate() {
            let (t, c) = (i / n_cols, i % n_cols);
            let s = &out[c / Q8_SUPER * 2 + t];
            let c = c % Q8_SUPER;
            let step = s.scale[c / 32];
            assert!((step * f32::from(s.q[c]) - x).abs() <= step * 0.5001);
        }
        let s = &out[3];
        assert_eq!(s.q[..32].iter().map(|q| q.unsigned_abs()).max(), Some(127));
        let total = |q: &[i8]| q.iter().map(|q| i32::from(*q)).sum::<i32>();
        assert_eq!(s.sum[1][1], s.scale[1] * total(&s.q[48..64]) as f32);
        assert_eq!(s.sum[1][0], s.scale[1] * total(&s.q[32..64]) as f32);
        let sums = [32..64, 32..48, 48..64].map(|r| total(&s.q[r]));
        assert_eq!(
            s.start[1],
            sums.map(|sum| (INTEGER - 128.0 * sum as f32).to_bits() as i32)
        );
        // Past the row's end.
        assert_eq!((s.q[64..].iter().max(), s.scale[2]), (Some(&0), 0.0));
        assert_eq!(
            (s.start[2], s.sum[2]),
            (Q8Super::default().start[0], [0.0; 2])
        );
    }

    #[test]
    fn columns_at_a_time_are_the_same() {
        // Two tokens of 320 columns, in parts that begin and end inside 256 of them.
        let n_cols = 320;
        let x: [f32; 640] = core::array::from_fn(|i| (i as f32 * 0.61).sin());
        let (mut whole, mut parts) = ([Q8Super::default(); 4], [Q8Super::default(); 4]);
        quantize_q8(Level::Scalar, &x, n_cols, 0, &mut whole);
        for cols in [0..96, 96..288, 288..320] {
            let mut part: Vec<f32> = x
                .chunks(n_cols)
                .flat_map(|x| &x[cols.clone()])
                .copied()
                .collect();
            let mut part = TileMut::new(&mut part, cols.len());
            let mut out = TileMut::new(&mut parts, 2);
            quantize_q8_columns(Level::detect(), &mut part, cols.start, &mut out);
        }
        for (whole, parts) in whole.iter().zip(&parts) {
            assert_eq!((whole.q, whole.start), (parts.q, parts.start));
            assert_eq!((whole.scale, whole.sum), (parts.scale, parts.sum));
        }
    }

    #[test]
    fn zero_and_broken_blocks() {
        let mut x = [0.0_f32; 64];
        x[40] = f32::NAN;
        let mut out = [Q8Super::default()];
        out[0].q = [1; Q8_SUPER];
        quantize_q8(Level::Scalar, &x, 64, 0, &mut out);
        let [s] = out;
        assert_eq!(
            (
                s.scale[0],
                s.sum[0][0],
                s.q[0],
                f32::from_bits(s.start[0][0] as u32)
            ),
            (0.0, 0.0, 0, INTEGER)
        );
        assert!(s.scale[1].is_nan());
    }
}
