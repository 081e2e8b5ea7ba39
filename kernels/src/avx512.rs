//! Int8 matmul for AVX-512 with VNNI, for every quantized format: one dot-product body for decode
//! and one tile for prefill, both fed by [`load`], which reads 256 weights of any format into
//! registers.

#![allow(clippy::needless_range_loop)] // indices name lanes, rows and tokens of several arrays at once

mod load;

use core::arch::x86_64::*;

use crate::level::Avx512;
use crate::{DType, Matrix, Q8_BLOCK, Q8_GROUP, Q8Rows, TileMut};
use load::{Format, Super, super_bytes};

/// Weights read at once.
const SUPER: usize = 256;
/// How far ahead of the weights in use decode asks for those to come.
const PREFETCH_BYTES: usize = 2048;
/// Rows of a prefill tile: the lanes of a register.
const TILE_ROWS: usize = 16;
/// Tokens whose accumulators are held in registers at once.
const TILE_TOKENS: usize = 8;
/// From this many tokens on a tile is faster than a dot product for each.
const MIN_TILE_TOKENS: usize = 4;

/// `y[t][r] = w[r] . x[t]` for quantized `w` `[n_rows, n_cols]` and int8 `x` `[n_tokens, n_cols]`;
/// the caller checked the shapes.
pub(crate) fn matmul_q8(_: Avx512, w: &Matrix<'_>, x: &Q8Rows<'_>, y: &mut TileMut<'_>) {
    macro_rules! dispatch {
        ($($dtype:ident $format:ident),* $(,)?) => {
            match w.dtype() {
                // SAFETY: the token proves that the CPU has the features.
                $(DType::$dtype => unsafe { matmul::<load::$format>(w, x, y) },)*
                other => unreachable!("{other} is not quantized"),
            }
        };
    }
    dispatch!(
        Q4_0 Q40, Q4_1 Q41, Q5_0 Q50, Q5_1 Q51, Q8_0 Q80, Q8_1 Q81,
        Q2_K Q2K, Q3_K Q3K, Q4_K Q4K, Q5_K Q5K, Q6_K Q6K, Q8_K Q8K,
        IQ1_S Iq1S, IQ1_M Iq1M, IQ2_XXS Iq2Xxs, IQ2_XS Iq2Xs, IQ2_S Iq2S,
        IQ3_XXS Iq3Xxs, IQ3_S Iq3S, IQ4_NL Iq4Nl, IQ4_XS Iq4Xs,
        TQ1_0 Tq10, TQ2_0 Tq20, MXFP4 Mxfp4,
    );
}

/// The rest of a row that is no multiple of 256 long, filled up with zeros.
struct Tail {
    q: [i8; SUPER],
    scale: [f32; SUPER / Q8_BLOCK],
    sum: [f32; SUPER / Q8_GROUP],
}

/// One token's input; the slices hold whole multiples of 256 elements.
struct Row<'a> {
    q: &'a [i8],
    scale: &'a [f32],
    sum: &'a [f32],
    tail: Tail,
}

impl<'a> Row<'a> {
    fn new(x: &Q8Rows<'a>, t: usize, n_cols: usize) -> Row<'a> {
        let q = &x.q[t * n_cols..][..n_cols];
        let scale = &x.scale[t * (n_cols / Q8_BLOCK)..][..n_cols / Q8_BLOCK];
        let sum = &x.sum[t * (n_cols / Q8_GROUP)..][..n_cols / Q8_GROUP];
        let n = n_cols / SUPER * SUPER;
        let mut tail = Tail {
            q: [0; SUPER],
            scale: [0.0; SUPER / Q8_BLOCK],
            sum: [0.0; SUPER / Q8_GROUP],
        };
        tail.q[..n_cols - n].copy_from_slice(&q[n..]);
        tail.scale[..(n_cols - n) / Q8_BLOCK].copy_from_slice(&scale[n / Q8_BLOCK..]);
        tail.sum[..(n_cols - n) / Q8_GROUP].copy_from_slice(&sum[n / Q8_GROUP..]);
        Row {
            q: &q[..n],
            scale: &scale[..n / Q8_BLOCK],
            sum: &sum[..n / Q8_GROUP],
            tail,
        }
    }
}

/// The longest 256 weights of formats whose rows need not be a multiple of them: Q8_1's.
const MAX_TAIL_BYTES: usize = super_bytes(DType::Q8_1);

/// A row's last weights, filled up with zero bytes, which every format with blocks of 32 reads as
/// weights that are zero (as is the input there).
fn weight_tail(row: &[u8], n_whole: usize) -> [u8; MAX_TAIL_BYTES] {
    let mut tail = [0; MAX_TAIL_BYTES];
    let rest = &row[n_whole..];
    tail[..rest.len()].copy_from_slice(rest);
    tail
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn matmul<F: Format>(w: &Matrix<'_>, x: &Q8Rows<'_>, y: &mut TileMut<'_>) {
    let (n_rows, n_tokens) = (w.n_rows(), y.n_rows());
    let n_tiled = match n_tokens >= MIN_TILE_TOKENS {
        true => n_rows / TILE_ROWS * TILE_ROWS,
        false => 0,
    };
    for r in (0..n_tiled).step_by(TILE_ROWS) {
        tile::<F>(&w.rows(r..r + TILE_ROWS), x, y, r);
    }
    if n_tiled < n_rows {
        for t in 0..n_tokens {
            let x = Row::new(x, t, w.n_cols());
            let rows = n_tiled..n_rows;
            matvec::<F>(&w.rows(rows.clone()), &x, &mut y.row(t)[rows]);
        }
    }
}

/// Decode: `y[r] = w[r] . x`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn matvec<F: Format>(w: &Matrix<'_>, x: &Row<'_>, y: &mut [f32]) {
    let n_bytes = super_bytes(F::DTYPE);
    let n_super = w.n_cols() / SUPER;
    let has_tail = !w.n_cols().is_multiple_of(SUPER);
    assert!(
        x.q.len() == n_super * SUPER && x.scale.len() == n_super * 8 && x.sum.len() == n_super * 16
    );
    for (r, y) in y.iter_mut().enumerate() {
        let row = w.row(r);
        assert!(row.len() >= n_super * n_bytes);
        let mut acc = [_mm512_setzero_ps(); 3];
        for s in 0..n_super {
            // SAFETY: the row holds `n_super` times `n_bytes` and the input as many times 256
            // elements, by the assertions.
            unsafe {
                let here = row.as_ptr().add(s * n_bytes);
                // A hint, which may point past the weights: the next rows, as a rule.
                for line in (0..n_bytes).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(here.wrapping_add(PREFETCH_BYTES + line).cast());
                }
                let w = F::load(here);
                let (q, scale, sum) = (&x.q[s * SUPER..], &x.scale[s * 8..], &x.sum[s * 16..]);
                acc = dot(&w, q.as_ptr(), scale.as_ptr(), sum.as_ptr(), acc);
            }
        }
        if has_tail {
            let tail = weight_tail(row, n_super * n_bytes);
            // SAFETY: the buffers are as long as 256 weights of a format with blocks of 32; the
            // others have no tail.
            unsafe {
                let w = F::load(tail.as_ptr());
                let x = &x.tail;
                acc = dot(&w, x.q.as_ptr(), x.scale.as_ptr(), x.sum.as_ptr(), acc);
            }
        }
        *y = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), acc[2]));
    }
}

/// Adds the product of 256 weights and inputs to the accumulators, lane by lane.
///
/// # Safety
///
/// `q` points to 256 readable elements, `scale` to 8, `sum` to 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn dot(
    w: &Super,
    q: *const i8,
    scale: *const f32,
    sum: *const f32,
    acc: [__m512; 3],
) -> [__m512; 3] {
    let [mut even, mut odd, min] = acc;
    // SAFETY: the caller's.
    let (scale, sum) = unsafe { (_mm256_loadu_ps(scale), _mm512_loadu_ps(sum)) };
    let min = _mm512_fmadd_ps(w.min, sum, min);
    // The input's scales of 32, each in two lanes, times the weights' of 16.
    let twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    let scale = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(scale));
    let scale = _mm512_mul_ps(scale, w.scale);
    for i in 0..4 {
        // SAFETY: the caller's.
        let q = unsafe { _mm512_loadu_si512(q.add(64 * i).cast()) };
        let products = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.u[i], q);
        // Four lanes for each 16 elements.
        let lanes = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        let lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32(4 * i as i32));
        let scale = _mm512_permutexvar_ps(lanes, scale);
        let acc = if i % 2 == 0 { &mut even } else { &mut odd };
        *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, *acc);
    }
    [even, odd, min]
}

/// 256 columns of 16 rows of weights, a row in each lane.
#[repr(C, align(64))]
struct Panel {
    /// Weights `4 k` to `4 k + 3` of each row, `[64][16 rows][4]`.
    u: [__m512i; SUPER / 4],
    /// `[16 groups][16 rows]`.
    scale: [__m512; SUPER / Q8_GROUP],
    /// As `scale`.
    min: [__m512; SUPER / Q8_GROUP],
}

/// Prefill: 16 rows for all tokens, `y[t][first + r] = w[r] . x[t]`. The weights go through a panel
/// of 256 columns, so that they are unpacked once for all tokens; sums between panels are kept in
/// `y`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn tile<F: Format>(w: &Matrix<'_>, x: &Q8Rows<'_>, y: &mut TileMut<'_>, first: usize) {
    assert_eq!(w.n_rows(), TILE_ROWS);
    let (n_cols, n_tokens) = (w.n_cols(), y.n_rows());
    let n_bytes = super_bytes(F::DTYPE);
    let mut panel = Panel {
        u: [_mm512_setzero_si512(); SUPER / 4],
        scale: [_mm512_setzero_ps(); SUPER / Q8_GROUP],
        min: [_mm512_setzero_ps(); SUPER / Q8_GROUP],
    };
    for c in (0..n_cols).step_by(SUPER) {
        let tails;
        let start = c / SUPER * n_bytes;
        let rows: [*const u8; TILE_ROWS] = match n_cols - c >= SUPER {
            true => core::array::from_fn(|r| w.row(r)[start..][..n_bytes].as_ptr()),
            false => {
                tails = core::array::from_fn::<_, TILE_ROWS, _>(|r| weight_tail(w.row(r), start));
                core::array::from_fn(|r| tails[r].as_ptr())
            }
        };
        // SAFETY: each pointer is to 256 weights, in the row or in a tail filled up.
        unsafe { fill::<F>(&mut panel, rows) };
        let n_blocks = (n_cols - c).min(SUPER) / Q8_BLOCK;
        let mut t = 0;
        while t + TILE_TOKENS <= n_tokens {
            multiply::<F, TILE_TOKENS>(&panel, x, n_cols, c, n_blocks, y, t, first);
            t += TILE_TOKENS;
        }
        while t < n_tokens {
            multiply::<F, 1>(&panel, x, n_cols, c, n_blocks, y, t, first);
            t += 1;
        }
    }
}

/// Unpacks 256 weights of each row into the panel.
///
/// # Safety
///
/// Each pointer is to the bytes of 256 readable weights.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn fill<F: Format>(panel: &mut Panel, rows: [*const u8; TILE_ROWS]) {
    let zero = _mm512_setzero_si512();
    let mut u = [[zero; TILE_ROWS]; 4];
    let (mut scale, mut min) = ([zero; TILE_ROWS], [zero; TILE_ROWS]);
    for (r, row) in rows.into_iter().enumerate() {
        // SAFETY: the caller's.
        let w = unsafe { F::load(row) };
        for i in 0..4 {
            u[i][r] = w.u[i];
        }
        scale[r] = _mm512_castps_si512(w.scale);
        min[r] = _mm512_castps_si512(w.min);
    }
    for i in 0..4 {
        transpose(&mut u[i]);
        panel.u[16 * i..][..16].copy_from_slice(&u[i]);
    }
    transpose(&mut scale);
    transpose(&mut min);
    for g in 0..SUPER / Q8_GROUP {
        panel.scale[g] = _mm512_castsi512_ps(scale[g]);
        panel.min[g] = _mm512_castsi512_ps(min[g]);
    }
}

/// Transposes 16 by 16 lanes of 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn transpose(m: &mut [__m512i; 16]) {
    let mut a = *m;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(m[2 * i], m[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(m[2 * i], m[2 * i + 1]);
    }
    // `b[4 i + j]`: lane j of each 128 bits, rows 4 i to 4 i + 3.
    let mut b = a;
    for i in 0..4 {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    // Now the four 128-bit parts of four registers are a 4 by 4 matrix to transpose.
    for j in 0..4 {
        let (r0, r1, r2, r3) = (b[j], b[4 + j], b[8 + j], b[12 + j]);
        let low01 = _mm512_shuffle_i32x4::<0x44>(r0, r1);
        let high01 = _mm512_shuffle_i32x4::<0xee>(r0, r1);
        let low23 = _mm512_shuffle_i32x4::<0x44>(r2, r3);
        let high23 = _mm512_shuffle_i32x4::<0xee>(r2, r3);
        m[j] = _mm512_shuffle_i32x4::<0x88>(low01, low23);
        m[4 + j] = _mm512_shuffle_i32x4::<0xdd>(low01, low23);
        m[8 + j] = _mm512_shuffle_i32x4::<0x88>(high01, high23);
        m[12 + j] = _mm512_shuffle_i32x4::<0xdd>(high01, high23);
    }
}

/// Adds the panel's product with columns `c..` of the tokens `t..t + N` to `y`.
#[inline(never)] // its registers are its own
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
#[allow(clippy::too_many_arguments)] // one place in a nest of loops
fn multiply<F: Format, const N: usize>(
    panel: &Panel,
    x: &Q8Rows<'_>,
    n_cols: usize,
    c: usize,
    n_blocks: usize,
    y: &mut TileMut<'_>,
    t: usize,
    first: usize,
) {
    assert!(n_blocks * Q8_BLOCK <= SUPER && c + n_blocks * Q8_BLOCK <= n_cols);
    assert!((t + N) * n_cols <= x.q.len());
    assert!((t + N) * (n_cols / Q8_BLOCK) <= x.scale.len());
    assert!((t + N) * (n_cols / Q8_GROUP) <= x.sum.len());
    let start = t * n_cols + c;
    let q = x.q[start..].as_ptr();
    let scale = x.scale[start / Q8_BLOCK..].as_ptr();
    let sum = x.sum[start / Q8_GROUP..].as_ptr();

    let mut acc = [_mm512_setzero_ps(); N];
    if c > 0 {
        for i in 0..N {
            let y: &[f32] = &y.row(t + i)[first..][..TILE_ROWS];
            // SAFETY: the slice has 16 elements.
            acc[i] = unsafe { _mm512_loadu_ps(y.as_ptr()) };
        }
    }
    let halves = if F::WIDE { 1 } else { 2 };
    for b in 0..n_blocks {
        for half in 0..halves {
            let mut products = [_mm512_setzero_si512(); N];
            for k in half * 8 / halves..(half + 1) * 8 / halves {
                let w = panel.u[8 * b + k];
                for i in 0..N {
                    // SAFETY: four of the 32 elements of block `b` of token `t + i`, all of which
                    // lie in `x.q` by the assertions; likewise for its scale and sums below.
                    let four = unsafe {
                        q.add(i * n_cols + b * Q8_BLOCK + 4 * k)
                            .cast::<i32>()
                            .read_unaligned()
                    };
                    products[i] = _mm512_dpbusd_epi32(products[i], w, _mm512_set1_epi32(four));
                }
            }
            let (w_scale, w_min) = (panel.scale[2 * b + half], panel.min[2 * b + half]);
            for i in 0..N {
                // SAFETY: as above.
                let (scale, sum) = unsafe {
                    let scale = *scale.add(i * (n_cols / Q8_BLOCK) + b);
                    (scale, *sum.add(i * (n_cols / Q8_GROUP) + 2 * b + half))
                };
                let scale = _mm512_mul_ps(w_scale, _mm512_set1_ps(scale));
                acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[i]), scale, acc[i]);
                acc[i] = _mm512_fmadd_ps(w_min, _mm512_set1_ps(sum), acc[i]);
            }
        }
    }
    for i in 0..N {
        let y = &mut y.row(t + i)[first..][..TILE_ROWS];
        // SAFETY: the slice has 16 elements.
        unsafe { _mm512_storeu_ps(y.as_mut_ptr(), acc[i]) };
    }
}
