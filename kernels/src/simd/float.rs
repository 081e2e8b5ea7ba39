//! Float products: weights of any type, decoded to float32 in runs, with float32 input.

use super::{Lanes, on_float_level};
use crate::quant::{self, plain};
use crate::{DType, Level, Matrix, TileMut};

/// Columns decoded at once: a multiple of every format's block.
const RUN: usize = 1024;
/// Rows decoded at once.
const ROWS: usize = 4;

/// `y[t][r] = w[r] . x[t]` for `w` `[n_rows, n_cols]` and `x` `[n_tokens, n_cols]`; the caller
/// checked the shapes. False, and nothing done, at the scalar level.
pub(crate) fn matmul(level: Level, w: &Matrix<'_>, x: &[f32], y: &mut TileMut<'_>) -> bool {
    macro_rules! run {
        ($simd:ty, $features:literal) => {{
            #[inline(never)] // as the int8 products' entry
            #[target_feature(enable = $features)]
            fn entry(w: &Matrix<'_>, x: &[f32], y: &mut TileMut<'_>) {
                // SAFETY: this function has the level's features.
                unsafe { matmul_runs::<$simd>(w, x, y) }
            }
            // SAFETY: the level's token proves that the CPU has the features.
            unsafe { entry(w, x, y) }
        }};
    }
    on_float_level!(level, run, return false);
    true
}

/// # Safety
///
/// The CPU has the level's features, with which the caller is compiled.
#[inline(always)]
unsafe fn matmul_runs<S: Lanes>(w: &Matrix<'_>, x: &[f32], y: &mut TileMut<'_>) {
    let (n_cols, n_tokens) = (w.n_cols(), y.n_rows());
    let run_bytes = RUN / w.dtype().block_len() * w.dtype().block_bytes();
    let mut decoded = [[0.0; RUN]; ROWS];
    y.fill(0.0);
    for r in (0..w.n_rows()).step_by(ROWS) {
        let n_rows = ROWS.min(w.n_rows() - r);
        for (run, c) in (0..n_cols).step_by(RUN).enumerate() {
            let n = RUN.min(n_cols - c);
            for (i, decoded) in decoded[..n_rows].iter_mut().enumerate() {
                let row = w.row(r + i);
                let bytes = &row[run * run_bytes..row.len().min((run + 1) * run_bytes)];
                // SAFETY: the caller's.
                unsafe { decode::<S>(w.dtype(), bytes, &mut decoded[..n]) };
            }
            // Tokens and rows at once: as many sums as registers hold.
            let mut t = 0;
            while t < n_tokens {
                let inputs = Columns {
                    values: &x[t * n_cols + c..],
                    n,
                    stride: n_cols,
                };
                // SAFETY: the caller's.
                t += unsafe {
                    match (n_rows, n_tokens - t) {
                        (ROWS, 4..) if S::WIDE_TILE => {
                            multiply::<S, 4, 4>(&decoded, inputs, y, t, r)
                        }
                        (ROWS, 2..) => {
                            multiply::<S, 2, 2>(&decoded, inputs, y, t, r);
                            multiply::<S, 2, 2>(&decoded[2..], inputs, y, t, r + 2)
                        }
                        (ROWS, _) => multiply::<S, 4, 1>(&decoded, inputs, y, t, r),
                        _ => {
                            for i in 0..n_rows {
                                let row = &decoded[i..];
                                multiply::<S, 1, 1>(row, inputs, y, t, r + i);
                            }
                            1
                        }
                    }
                };
            }
        }
    }
}

/// Decodes whole blocks to floats.
///
/// # Safety
///
/// As [`matmul_runs`].
#[inline(always)]
pub(crate) unsafe fn decode<S: Lanes>(dtype: DType, bytes: &[u8], floats: &mut [f32]) {
    if dtype == DType::Q8_0 {
        let blocks = bytes.as_chunks::<{ DType::Q8_0.block_bytes() }>().0;
        for (block, floats) in blocks.iter().zip(floats.as_chunks_mut::<32>().0) {
            let (p, floats) = (block.as_ptr(), floats.as_mut_ptr());
            // SAFETY: the caller's; a block is a scale and 32 integers.
            unsafe {
                let scale = S::half(p);
                S::store(S::mul(scale, S::from_i8(p.add(2).cast())), floats);
                S::store(S::mul(scale, S::from_i8(p.add(18).cast())), floats.add(16));
            }
        }
        return;
    }
    if !matches!(dtype, DType::F16 | DType::BF16) {
        return match dtype.is_quantized() {
            true => quant::dequantize(dtype, bytes, floats),
            false => plain::decode(dtype, bytes, floats),
        };
    }
    let n = floats.len() / 16 * 16;
    assert!(bytes.len() == 2 * floats.len());
    for i in (0..n).step_by(16) {
        // SAFETY: the caller's; 16 elements from `i` on are in both slices.
        unsafe {
            let p = bytes.as_ptr().add(2 * i);
            let v = match dtype {
                DType::F16 => S::from_f16(p),
                _ => S::from_bf16(p),
            };
            S::store(v, floats.as_mut_ptr().add(i));
        }
    }
    plain::decode(dtype, &bytes[2 * n..], &mut floats[n..]);
}

/// Some columns of the input from a token on.
#[derive(Clone, Copy)]
struct Columns<'a> {
    values: &'a [f32],
    /// Columns.
    n: usize,
    /// From one token to the next.
    stride: usize,
}

/// Adds the products of decoded columns of `R` rows and of `T` tokens to the outputs from token `t` and
/// row `r` on. Gives `T`.
///
/// # Safety
///
/// As [`matmul_runs`].
#[inline(always)]
unsafe fn multiply<S: Lanes, const R: usize, const T: usize>(
    w: &[[f32; RUN]],
    x: Columns<'_>,
    y: &mut TileMut<'_>,
    t: usize,
    r: usize,
) -> usize {
    let Columns {
        values: x,
        n,
        stride,
    } = x;
    assert!(w.len() >= R && n <= RUN && x.len() >= (T - 1) * stride + n);
    let n_whole = n / 16 * 16;
    // SAFETY: the caller's; 16 elements from `c` on are in each row of `w` and token of `x`.
    unsafe {
        let mut sums = [[S::splat_float(0.0); T]; R];
        for c in (0..n_whole).step_by(16) {
            let mut inputs = [S::splat_float(0.0); T];
            for (j, input) in inputs.iter_mut().enumerate() {
                *input = S::floats(x.as_ptr().add(j * stride + c));
            }
            for i in 0..R {
                let w = S::floats(w[i].as_ptr().add(c));
                for j in 0..T {
                    sums[i][j] = S::mul_add(w, inputs[j], sums[i][j]);
                }
            }
        }
        for j in 0..T {
            let y = &mut y.row(t + j)[r..][..R];
            for i in 0..R {
                let rest = w[i][n_whole..n].iter().zip(&x[j * stride + n_whole..]);
                y[i] += S::sum(sums[i][j]) + rest.map(|(w, x)| w * x).sum::<f32>();
            }
        }
    }
    T
}
