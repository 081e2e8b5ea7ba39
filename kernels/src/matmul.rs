//! `y = x W^T`: every linear layer, for one token (decode) or many (prefill).

use core::ops::Range;

use crate::input::{Input, Q8_BLOCK, Q8_SUPER, Q8Rows};
use crate::lanes::{dot, f16_to_f32};
use crate::quant::{self, GROUP_LEN, MAX_BLOCK_LEN, Unpacked, q3_k, q6_k};
use crate::simd::{float, int8};
use crate::{DType, Level, Matrix, Q8Super, TileMut};

/// The rows `rows` of `w` `[n_rows, n_cols]` times every row of `x` `[n_tokens, n_cols]`:
/// `y[t][r - rows.start] = sum_c w[r][c] x[t][c]`, with `y` `[n_tokens, rows.len()]`.
///
/// Sums have one order: what a row of `x` comes to does not depend on which others there are nor, for int8, on
/// the level.
///
/// # Panics
///
/// If the shapes do not fit, or `x` is int8 and the columns are no multiple of 32.
pub fn matmul(
    level: Level,
    w: &Matrix<'_>,
    rows: Range<usize>,
    x: &Input<'_>,
    y: &mut TileMut<'_>,
) {
    let w = &w.rows(rows);
    assert_eq!(y.n_cols(), w.n_rows());
    x.check(y.n_rows(), w.n_cols());
    match x {
        Input::F32(x) => {
            if !float::matmul(level, w, x, y) {
                matmul_f32(w, x, y);
            }
        }
        Input::Q8(x) => {
            if !int8::matmul(level, w, x, y) {
                matmul_q8(w, x, y);
            }
        }
    }
}

/// Weights of any type decoded to float32, some hundred at a time.
fn matmul_f32(w: &Matrix<'_>, x: &[f32], y: &mut TileMut<'_>) {
    let run_bytes = MAX_BLOCK_LEN / w.dtype().block_len() * w.dtype().block_bytes();
    let mut decoded = [0.0; MAX_BLOCK_LEN];
    y.fill(0.0);
    for r in 0..w.n_rows() {
        for (b, blocks) in w.row(r).chunks(run_bytes).enumerate() {
            let c = b * MAX_BLOCK_LEN;
            let w_run = &mut decoded[..MAX_BLOCK_LEN.min(w.n_cols() - c)];
            match w.dtype().is_quantized() {
                true => quant::dequantize(w.dtype(), blocks, w_run),
                false => quant::plain::decode(w.dtype(), blocks, w_run),
            }
            for t in 0..y.n_rows() {
                y.row(t)[r] += dot(w_run, &x[t * w.n_cols() + c..][..w_run.len()]);
            }
        }
    }
}

/// Quantized weights against int8 input, in the order that every level has. Of each block of 32 columns, one
/// after the other, the integers' products `n` are summed up exactly, and then, each time rounded once,
///
/// ```text
/// y = (scale_w n) scale_x + y, y = min_w sum_x + y
/// ```
///
/// of the block or, where the format has a scale for each 16 columns, of its halves one after the other. Formats
/// whose scales of 16 are integers times a step of 256 columns have the products with these summed up
/// exactly, too: `s = n scale_x + s` for each block, and at last `y = s step + y`.
fn matmul_q8(w: &Matrix<'_>, x: &Q8Rows<'_>, y: &mut TileMut<'_>) {
    let block_len = w.dtype().block_len();
    let mut block = Unpacked::ZERO;
    y.fill(0.0);
    for r in 0..w.n_rows() {
        for (b, bytes) in w.row(r).chunks_exact(w.dtype().block_bytes()).enumerate() {
            quant::unpack(w.dtype(), bytes, &mut block);
            let integers = integer_scales(w.dtype(), bytes);
            for t in 0..y.n_rows() {
                let y = &mut y.row(t)[r];
                let mut s = 0.0;
                for i in 0..block_len / Q8_BLOCK {
                    let c = b * block_len + i * Q8_BLOCK;
                    let pair = BlockPair {
                        weights: &block,
                        i,
                        x: &x.of(c / Q8_SUPER, t)[0],
                        j: c % Q8_SUPER / Q8_BLOCK,
                    };
                    match &integers {
                        Some(Integers { scales, .. }) => {
                            let n = [0, 1].map(|half| pair.dot(half) * scales[2 * i + half]);
                            s = libm::fmaf((n[0] + n[1]) as f32, pair.x.scale[pair.j], s);
                        }
                        None if has_wide_scales(w.dtype()) => *y = pair.add_whole(w.dtype(), *y),
                        None => *y = pair.add_halves(*y),
                    }
                }
                if let Some(Integers { step, .. }) = &integers {
                    *y = libm::fmaf(s, *step, *y);
                }
            }
        }
    }
}

/// Whether both halves of each 32 columns have one scale.
fn has_wide_scales(dtype: DType) -> bool {
    use DType::*;
    let wide = [
        Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, IQ4_XS, MXFP4, Q4_K, Q5_K,
    ];
    wide.contains(&dtype)
}

/// Scales of 16 columns each as integers, and the step that they are multiples of.
struct Integers {
    scales: [i32; MAX_BLOCK_LEN / GROUP_LEN],
    step: f32,
}

/// Those of a block, of formats that have such and no minima.
fn integer_scales(dtype: DType, bytes: &[u8]) -> Option<Integers> {
    let (scales, d) = match dtype {
        DType::Q6_K => {
            let block: &q6_k::Block = bytemuck::from_bytes(bytes);
            (block.scales, block.d)
        }
        DType::Q3_K => {
            let block: &q3_k::Block = bytemuck::from_bytes(bytes);
            (q3_k::unpack_scales(&block.scales), block.d)
        }
        _ => return None,
    };
    Some(Integers {
        scales: scales.map(i32::from),
        step: f16_to_f32(u16::from_le_bytes(d)),
    })
}

/// The same 32 columns twice: block `i` of the unpacked weights, block `j` of the input.
struct BlockPair<'a> {
    weights: &'a Unpacked,
    i: usize,
    x: &'a Q8Super,
    j: usize,
}

impl BlockPair<'_> {
    /// The products of a half.
    fn dot(&self, half: usize) -> i32 {
        let at = |block: usize| block * Q8_BLOCK + half * GROUP_LEN;
        let w = &self.weights.q[at(self.i)..][..GROUP_LEN];
        let x = &self.x.q[at(self.j)..][..GROUP_LEN];
        let products = w.iter().zip(x).map(|(w, x)| i32::from(*w) * i32::from(*x));
        products.sum()
    }

    /// `y` with all columns, which have one scale and one minimum.
    fn add_whole(&self, dtype: DType, y: f32) -> f32 {
        let n = self.dot(0) + self.dot(1);
        let y = libm::fmaf(
            n as f32 * self.weights.scale[2 * self.i],
            self.x.scale[self.j],
            y,
        );
        match [DType::Q4_1, DType::Q5_1, DType::Q4_K, DType::Q5_K].contains(&dtype) {
            true => libm::fmaf(self.weights.min[2 * self.i], self.x.sum[self.j][0], y),
            false => y,
        }
    }

    /// `y` with each half. The input's sums are of all columns and of the second half.
    fn add_halves(&self, mut y: f32) -> f32 {
        let Unpacked { scale, min, .. } = self.weights;
        let mins = [min[2 * self.i], min[2 * self.i + 1] - min[2 * self.i]];
        for (half, min) in mins.into_iter().enumerate() {
            let n = self.dot(half) as f32 * scale[2 * self.i + half];
            y = libm::fmaf(n, self.x.scale[self.j], y);
            y = libm::fmaf(min, self.x.sum[self.j][half], y);
        }
        y
    }
}
