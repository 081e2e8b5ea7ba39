//! `y = x W^T`: every linear layer, for one token (decode) or many (prefill).

use core::ops::Range;

use crate::input::{Input, Q8_BLOCK, Q8_SUPER, Q8Rows};
use crate::lanes::dot;
use crate::quant::{self, GROUP_LEN, MAX_BLOCK_LEN, Unpacked};
use crate::simd::int8::{MIN_TILE_TOKENS, Method};
use crate::simd::{float, int8};
use crate::{Level, Matrix, TileMut};

/// The rows `rows` of `w` `[n_rows, n_cols]` times every row of `x` `[n_tokens, n_cols]`:
/// `y[t][r - rows.start] = sum_c w[r][c] x[t][c]`, with `y` `[n_tokens, rows.len()]`.
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
    let method = match y.n_rows() < MIN_TILE_TOKENS {
        true => Method::Dots,
        false => Method::Tiles,
    };
    multiply(level, method, &w.rows(rows), x, y);
}

/// [`matmul`] as it multiplies many tokens, also where there are few: each token's result is to the bit
/// what it is among more.
///
/// # Panics
///
/// As [`matmul`].
pub fn matmul_tiles(
    level: Level,
    w: &Matrix<'_>,
    rows: Range<usize>,
    x: &Input<'_>,
    y: &mut TileMut<'_>,
) {
    multiply(level, Method::Tiles, &w.rows(rows), x, y);
}

/// [`matmul`] of each token as if it were alone, to the bit; weights are still read once for several
/// tokens. So a result does not depend on who else is there.
///
/// # Panics
///
/// As [`matmul`].
pub fn matmul_each(
    level: Level,
    w: &Matrix<'_>,
    rows: Range<usize>,
    x: &Input<'_>,
    y: &mut TileMut<'_>,
) {
    multiply(level, Method::Dots, &w.rows(rows), x, y);
}

fn multiply(level: Level, method: Method, w: &Matrix<'_>, x: &Input<'_>, y: &mut TileMut<'_>) {
    assert_eq!(y.n_cols(), w.n_rows());
    x.check(y.n_rows(), w.n_cols());
    match x {
        Input::F32(x) => {
            // Float sums are the same for any number of tokens.
            if !float::matmul(level, w, x, y) {
                matmul_f32(w, x, y);
            }
        }
        Input::Q8(x) => {
            if !int8::matmul(level, method, w, x, y) {
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

/// Quantized weights against int8 input: integer dot products of 16, then
/// `y += scale_w scale_x dot + min_w sum_x`.
fn matmul_q8(w: &Matrix<'_>, x: &Q8Rows<'_>, y: &mut TileMut<'_>) {
    let block_len = w.dtype().block_len();
    let mut block = Unpacked::ZERO;
    y.fill(0.0);
    for r in 0..w.n_rows() {
        for (b, bytes) in w.row(r).chunks_exact(w.dtype().block_bytes()).enumerate() {
            quant::unpack(w.dtype(), bytes, &mut block);
            for t in 0..y.n_rows() {
                let start = b * block_len;
                let mut acc = 0.0;
                for g in 0..block_len / GROUP_LEN {
                    let i = start + g * GROUP_LEN;
                    let (x, i) = (&x.of(i / Q8_SUPER, t)[0], i % Q8_SUPER);
                    let w_q = &block.q[g * GROUP_LEN..][..GROUP_LEN];
                    let x_q = &x.q[i..][..GROUP_LEN];
                    let products = w_q
                        .iter()
                        .zip(x_q)
                        .map(|(w, x)| i32::from(*w) * i32::from(*x));
                    acc += block.scale[g] * x.scale[i / Q8_BLOCK] * products.sum::<i32>() as f32;
                    // The sums are of 32 elements and of the second 16 of these.
                    let min = if g % 2 == 0 {
                        block.min[g]
                    } else {
                        block.min[g] - block.min[g - 1]
                    };
                    acc += min * x.sum[i / Q8_BLOCK][g % 2];
                }
                y.row(t)[r] += acc;
            }
        }
    }
}
