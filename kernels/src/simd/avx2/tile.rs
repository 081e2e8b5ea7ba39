//! The prefill tiles of AVX2, with and without VNNI.

// Safety: see `Simd::multiply`.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]
#![allow(clippy::needless_range_loop)] // indices name lanes, rows and tokens of several arrays at once

use core::arch::asm;
use core::arch::x86_64::*;
use core::sync::atomic::{Ordering, compiler_fence};

use super::{Avx2, products};
use crate::input::INTEGER;
use crate::simd::load::Kind;
use crate::simd::{Lanes, PANEL_ROWS, Panel, four, scale, start, sum};
use crate::{Q8_BLOCK, Q8Super};

/// Has the value computed by here, of what was loaded last. The compiler would rather compute one sum
/// after the other, with all that goes into them loaded before and put by.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn hold(v: &mut __m256i) {
    // SAFETY: there is no instruction.
    unsafe {
        asm!(
            "/* {0} */",
            inout(ymm_reg) * v,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// [`Simd::multiply`] without VNNI, a function of its own for each kind of format.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply<K: Kind, const N: usize>(
    panel: &Panel<Avx2<false>>,
    x: *const Q8Super,
    n_blocks: usize,
    first: bool,
    y: [*mut f32; N],
) {
    // The sums of 16 rows for two tokens, and what goes into them, are what the registers hold.
    let (pairs, rest) = y.as_chunks::<2>();
    for (i, y) in pairs.iter().enumerate() {
        let x = x.add(2 * i);
        match K::BITS {
            8 => multiply_halves::<K, 2>(panel, x, n_blocks, first, *y),
            _ => multiply_tokens::<K, 2>(panel, x, n_blocks, first, *y),
        }
    }
    for (i, y) in rest.iter().enumerate() {
        let x = x.add(2 * pairs.len() + i);
        match K::BITS {
            8 => multiply_halves::<K, 1>(panel, x, n_blocks, first, [*y]),
            _ => multiply_tokens::<K, 1>(panel, x, n_blocks, first, [*y]),
        }
    }
}

/// [`multiply`] of signed integers, for as many tokens as go at once.
///
/// The products of their half bytes are so small that 16 bits hold the sums of a block: two
/// operations of the multiplying ports for each four columns of eight rows. Whole bytes would take
/// three: their products with the input's magnitude, its sign, and sums of 32 bits each time.
#[inline(always)]
unsafe fn multiply_halves<K: Kind, const N: usize>(
    panel: &Panel<Avx2<false>>,
    x: *const Q8Super,
    n_blocks: usize,
    first: bool,
    y: [*mut f32; N],
) {
    let low = panel.q.as_ptr().cast::<[__m256i; 2]>();
    let high = panel.high.as_ptr().cast::<[__m256i; 2]>();
    let (scales, mins) = (panel.scale.as_ptr(), panel.min.as_ptr());
    let halves = if K::WIDE { 1 } else { 2 };
    // Four columns at a time: at most 8 * 2 * 15 * 127 in a sum of pairs.
    let n_steps = 8 / halves;
    let mut acc = [[_mm256_setzero_ps(); 2]; N];
    if !first {
        for i in 0..N {
            acc[i] = Avx2::<false>::floats(y[i]);
        }
    }
    for b in 0..n_blocks {
        for half in 0..halves {
            let group = 2 * b + half;
            let mut pairs = [[[_mm256_setzero_si256(); 2]; 2]; N];
            for k in 0..n_steps {
                let k = half * n_steps + k + 8 * b;
                for i in 0..N {
                    let x = _mm256_set1_epi32(four(x.add(i), 4 * k));
                    for j in 0..2 {
                        let products = _mm256_maddubs_epi16((*low.add(k))[j], x);
                        pairs[i][j][0] = _mm256_add_epi16(pairs[i][j][0], products);
                        let products = _mm256_maddubs_epi16((*high.add(k))[j], x);
                        pairs[i][j][1] = _mm256_add_epi16(pairs[i][j][1], products);
                    }
                }
                for i in 0..N {
                    for j in 0..2 {
                        hold(&mut pairs[i][j][0]);
                        hold(&mut pairs[i][j][1]);
                    }
                }
            }
            let (w_scale, w_min) = (*scales.add(group), *mins.add(group));
            for i in 0..N {
                let start = _mm256_set1_epi32(start::<K>(x.add(i), b, half));
                let x_scale = _mm256_set1_ps(scale(x.add(i), b));
                for j in 0..2 {
                    let low = _mm256_madd_epi16(pairs[i][j][0], _mm256_set1_epi16(1));
                    let high = _mm256_madd_epi16(pairs[i][j][1], _mm256_set1_epi16(16));
                    // The start takes off what 128 too much make, and the sum is the bits of a float.
                    let sum = _mm256_add_epi32(_mm256_add_epi32(low, high), start);
                    let sum = _mm256_sub_ps(_mm256_castsi256_ps(sum), _mm256_set1_ps(INTEGER));
                    acc[i][j] = _mm256_fmadd_ps(_mm256_mul_ps(sum, w_scale[j]), x_scale, acc[i][j]);
                }
                if K::OFFSET.is_none() {
                    let sum = _mm256_set1_ps(sum(x.add(i), group));
                    for j in 0..2 {
                        acc[i][j] = _mm256_fmadd_ps(w_min[j], sum, acc[i][j]);
                    }
                }
            }
        }
    }
    for i in 0..N {
        Avx2::<false>::store(acc[i], y[i]);
    }
}

/// [`multiply`] for as many tokens as go at once.
#[inline(always)]
unsafe fn multiply_tokens<K: Kind, const N: usize>(
    panel: &Panel<Avx2<false>>,
    x: *const Q8Super,
    n_blocks: usize,
    first: bool,
    y: [*mut f32; N],
) {
    let w = panel.q.as_ptr().cast::<[__m256i; 2]>();
    let (scales, mins) = (panel.scale.as_ptr(), panel.min.as_ptr());
    let halves = if K::WIDE { 1 } else { 2 };
    // Four columns at a time; so many of their sums of pairs fit 16 bits.
    let n_steps = 8 / halves;
    let n_safe = match K::BITS {
        ..=4 => 8,
        5 => 4,
        6 => 2,
        _ => 1,
    };
    let n_safe = n_safe.min(n_steps);
    let mut acc = [[_mm256_setzero_ps(); 2]; N];
    if !first && !K::INTEGER_SCALES {
        for i in 0..N {
            acc[i] = Avx2::<false>::floats(y[i]);
        }
    }
    for b in 0..n_blocks {
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        if K::WIDE && K::OFFSET.is_some() {
            for i in 0..N {
                sums[i] = [_mm256_set1_epi32(offset_sum::<K>(x.add(i), b, 0)); 2];
            }
        }
        for half in 0..halves {
            let group = 2 * b + half;
            let w_scale = *scales.add(group);
            for run in 0..n_steps / n_safe {
                let mut pairs = [[_mm256_setzero_si256(); 2]; N];
                for k in 0..n_safe {
                    let k = half * n_steps + run * n_safe + k + 8 * b;
                    let w = *w.add(k);
                    for i in 0..N {
                        let x = _mm256_set1_epi32(four(x.add(i), 4 * k));
                        for j in 0..2 {
                            let products = products::<K>(w[j], x);
                            pairs[i][j] = _mm256_add_epi16(pairs[i][j], products);
                        }
                    }
                    for i in 0..N {
                        for j in 0..2 {
                            hold(&mut pairs[i][j]);
                        }
                    }
                }
                for i in 0..N {
                    for j in 0..2 {
                        let factor = match K::INTEGER_SCALES {
                            true => _mm256_castps_si256(w_scale[j]),
                            false => _mm256_set1_epi16(1),
                        };
                        let wide = _mm256_madd_epi16(pairs[i][j], factor);
                        sums[i][j] = _mm256_add_epi32(sums[i][j], wide);
                    }
                }
            }
            let w_min = *mins.add(group);
            for i in 0..N {
                // Scales that are integers are in the sums, and those go on for the other half.
                if !K::INTEGER_SCALES || half == 1 {
                    let x_scale = _mm256_set1_ps(scale(x.add(i), b));
                    if K::INTEGER_SCALES {
                        let offset = offset_sums::<K>(x.add(i), b);
                        for j in 0..2 {
                            let scales = _mm256_castps_si256((*mins.add(2 * b))[j]);
                            let wide = _mm256_madd_epi16(scales, offset);
                            sums[i][j] = _mm256_add_epi32(sums[i][j], wide);
                        }
                    }
                    for j in 0..2 {
                        // Below 2^24 with integer scales too, so exact.
                        let products = _mm256_cvtepi32_ps(sums[i][j]);
                        let products = match K::INTEGER_SCALES {
                            true => products,
                            false => _mm256_mul_ps(products, w_scale[j]),
                        };
                        acc[i][j] = _mm256_fmadd_ps(products, x_scale, acc[i][j]);
                        sums[i][j] = _mm256_setzero_si256();
                    }
                }
                if K::OFFSET.is_none() {
                    let sum = _mm256_set1_ps(sum(x.add(i), group));
                    for j in 0..2 {
                        acc[i][j] = _mm256_fmadd_ps(w_min[j], sum, acc[i][j]);
                    }
                }
            }
        }
    }
    for i in 0..N {
        if K::INTEGER_SCALES {
            let before = match first {
                true => [_mm256_setzero_ps(); 2],
                false => Avx2::<false>::floats(y[i]),
            };
            acc[i] = Avx2::<false>::mul_add(acc[i], panel.step, before);
        }
        Avx2::<false>::store(acc[i], y[i]);
    }
}

/// For each half of block `b` of the input its sum times half of what the kind's integers have too
/// much: -16 * 16 * 127 fits 16 bits, twice as much would not.
#[inline(always)]
unsafe fn offset_sums<K: Kind>(x: *const Q8Super, b: usize) -> __m256i {
    let (first, last) = (offset_sum::<K>(x, b, 0) / 2, offset_sum::<K>(x, b, 1) / 2);
    _mm256_set1_epi32(first & 0xffff | last << 16)
}

/// What the offset of the kind's integers adds to their products with block `b` of the input, or a half of
/// it where the kind has a scale for each; negative.
#[inline(always)]
unsafe fn offset_sum<K: Kind>(x: *const Q8Super, b: usize, half: usize) -> i32 {
    // 128 times the sum, negative, lies in the start.
    let sum = start::<K>(x, b, half).wrapping_sub(INTEGER.to_bits() as i32);
    match K::OFFSET {
        Some(offset @ 1..) => sum >> (128 / u32::from(offset)).trailing_zeros(),
        _ => 0,
    }
}

/// Sums that are the bits of a float, [`INTEGER`] more, times the weights' scale; `min` is that of the panel.
#[inline(always)]
unsafe fn scaled<K: Kind>(sums: __m256i, scale: __m256, min: __m256) -> __m256 {
    match K::SHORT_SCALE {
        // `scale (INTEGER + n) - scale INTEGER` for the sum `n`, exact but for one rounding.
        true => {
            let zero = match K::OFFSET {
                Some(_) => min,
                None => _mm256_mul_ps(scale, _mm256_set1_ps(-INTEGER)),
            };
            _mm256_fmadd_ps(_mm256_castsi256_ps(sums), scale, zero)
        }
        false => {
            let sums = _mm256_sub_ps(_mm256_castsi256_ps(sums), _mm256_set1_ps(INTEGER));
            _mm256_mul_ps(sums, scale)
        }
    }
}

/// [`multiply`] with VNNI: all 16 rows at a time, as eight sums keep its latency hidden.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn multiply_vnni<K: Kind, const N: usize>(
    panel: &Panel<Avx2<true>>,
    x: *const Q8Super,
    n_blocks: usize,
    first: bool,
    y: [*mut f32; N],
) {
    let mut acc = [[_mm256_setzero_ps(); 2]; N];
    if !first && !K::INTEGER_SCALES {
        for i in 0..N {
            acc[i] = Avx2::<true>::floats(y[i]);
        }
    }
    let w = panel.q.as_ptr().cast::<[__m256i; 2]>();
    let (scales, mins) = (panel.scale.as_ptr(), panel.min.as_ptr());
    for b in 0..n_blocks {
        let mut first_half = [[_mm256_setzero_ps(); 2]; N];
        for half in 0..if K::WIDE { 1 } else { 2 } {
            let mut sums = [[_mm256_castps_si256(_mm256_set1_ps(INTEGER)); 2]; N];
            if K::OFFSET.is_some() || K::BITS == 8 {
                for i in 0..N {
                    sums[i] = [_mm256_set1_epi32(start::<K>(x.add(i), b, half)); 2];
                }
            }
            let n_steps = if K::WIDE { 8 } else { 4 };
            for k in half * n_steps..(half + 1) * n_steps {
                let w = *w.add(8 * b + k);
                for i in 0..N {
                    let x = _mm256_set1_epi32(four(x.add(i), b * Q8_BLOCK + 4 * k));
                    for j in 0..2 {
                        sums[i][j] = _mm256_dpbusd_avx_epi32(sums[i][j], w[j], x);
                    }
                }
                // As for AVX-512: no chains of products that wait for each other.
                compiler_fence(Ordering::SeqCst);
            }
            let group = 2 * b + half;
            let w_scale = *scales.add(group);
            let w_min = *mins.add(group);
            for i in 0..N {
                let scale = scale(x.add(i), b);
                let sum = sum(x.add(i), group);
                for j in 0..2 {
                    let mut products = scaled::<K>(sums[i][j], w_scale[j], w_min[j]);
                    // With integer scales products are integers, and so is the sum of both halves.
                    if K::INTEGER_SCALES {
                        if half == 0 {
                            first_half[i][j] = products;
                            continue;
                        }
                        products = _mm256_add_ps(first_half[i][j], products);
                    }
                    acc[i][j] = _mm256_fmadd_ps(products, _mm256_set1_ps(scale), acc[i][j]);
                    if K::OFFSET.is_none() {
                        acc[i][j] = _mm256_fmadd_ps(w_min[j], _mm256_set1_ps(sum), acc[i][j]);
                    }
                }
            }
        }
    }
    for i in 0..N {
        if K::INTEGER_SCALES {
            let before = match first {
                true => [_mm256_setzero_ps(); 2],
                false => Avx2::<true>::floats(y[i]),
            };
            acc[i] = Avx2::<true>::mul_add(acc[i], panel.step, before);
        }
        Avx2::<true>::store(acc[i], y[i]);
    }
}

/// Transposes 16 by 16 lanes of 32 bits: four squares of 8 by 8.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn transpose_lanes(m: &mut [[__m256i; 2]; PANEL_ROWS]) {
    let mut squares = [[[_mm256_setzero_si256(); 8]; 2]; 2];
    for i in 0..PANEL_ROWS {
        for j in 0..2 {
            squares[j][i / 8][i % 8] = m[i][j];
        }
    }
    for j in 0..2 {
        for i in 0..2 {
            let square = transpose_square(squares[j][i]);
            for r in 0..8 {
                m[8 * j + r][i] = square[r];
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transpose_square(m: [__m256i; 8]) -> [__m256i; 8] {
    let mut a = m;
    for i in 0..4 {
        a[2 * i] = _mm256_unpacklo_epi32(m[2 * i], m[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(m[2 * i], m[2 * i + 1]);
    }
    // `b[4 i + j]`: lane j of each 128 bits, rows 4 i to 4 i + 3.
    let mut b = a;
    for i in 0..2 {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    let mut t = b;
    for j in 0..4 {
        t[j] = _mm256_permute2x128_si256::<0x20>(b[j], b[4 + j]);
        t[4 + j] = _mm256_permute2x128_si256::<0x31>(b[j], b[4 + j]);
    }
    t
}
