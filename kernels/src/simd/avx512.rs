//! AVX-512 with VNNI: 64 bytes or 16 floats in a register.
//!
//! VNNI's product wants one unsigned side, so signed weights get 128 added. That is taken off again
//! with the sums of the input, which products start from.

// Safety: see `Simd`. The intrinsics are unsafe here only for want of the features, which the
// functions that these are inlined into have; pointers are read as far as the trait says.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]
#![allow(clippy::needless_range_loop)] // indices name lanes, rows and tokens of several arrays at once

use core::arch::x86_64::*;
use core::mem::MaybeUninit;
use core::sync::atomic::{Ordering, compiler_fence};

use super::load::{self, Kind};
use super::{Lanes, PANEL_ROWS, Panel, Simd, four, quad, scale, start, sum};
use crate::input::INTEGER;
use crate::quant::Unpacked;
use crate::{DType, Q8_BLOCK, Q8Super};

pub(crate) struct Avx512;

/// Four shift counts of 4.
const FOURS: i64 = 0x0004_0004_0004_0004;

impl Lanes for Avx512 {
    type Floats = __m512;
    const WIDE_TILE: bool = true;

    #[inline(always)]
    unsafe fn floats(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }

    #[inline(always)]
    unsafe fn splat_float(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn half(p: *const u8) -> __m512 {
        // Inserting one f16 into a register would wait for what that held before.
        _mm512_cvtph_ps(_mm256_set1_epi16(p.cast::<i16>().read_unaligned()))
    }

    #[inline(always)]
    unsafe fn from_f16(p: *const u8) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
    }

    #[inline(always)]
    unsafe fn from_bf16(p: *const u8) -> __m512 {
        let v = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v))
    }

    #[inline(always)]
    unsafe fn store(v: __m512, p: *mut f32) {
        _mm512_storeu_ps(p, v);
    }

    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        _mm512_reduce_add_ps(v)
    }

    #[inline(always)]
    unsafe fn from_i8(p: *const i8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
    }
}

impl Simd for Avx512 {
    type Bytes = __m512i;
    type Quad = __m128;
    type Halves = ();
    const HIGH_STARTS: bool = true;

    #[inline(always)]
    unsafe fn load_two(a: *const u8, b: *const u8) -> __m512i {
        let a = _mm512_castsi256_si512(_mm256_loadu_si256(a.cast()));
        _mm512_inserti64x4::<1>(a, _mm256_loadu_si256(b.cast()))
    }

    #[inline(always)]
    unsafe fn load_twice(p: *const u8) -> __m512i {
        _mm512_broadcast_i64x4(_mm256_loadu_si256(p.cast()))
    }

    #[inline(always)]
    unsafe fn nibbles(a: *const u8, b: *const u8) -> __m512i {
        let a = _mm256_broadcastsi128_si256(_mm_loadu_si128(a.cast()));
        let b = _mm256_broadcastsi128_si256(_mm_loadu_si128(b.cast()));
        let v = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
        let counts = _mm512_set_epi64(FOURS, FOURS, 0, 0, FOURS, FOURS, 0, 0);
        Self::and(_mm512_srlv_epi16(v, counts), Self::splat(15))
    }

    /// From whole registers of the blocks' bytes: the ports for loads, and for what inserts a block or
    /// a scale into a register, would be the limit.
    #[inline(always)]
    unsafe fn nibble_blocks<const N: usize>(p: *const u8, i: usize) -> __m512i {
        // Larger blocks' last words would be past the first and the third register.
        const { assert!(N == 18 || N == 20) };
        let counts = _mm512_set_epi64(FOURS, FOURS, 0, 0, FOURS, FOURS, 0, 0);
        let v = _mm512_loadu_si512(p.add(Words::<N>::AT[i]).cast());
        let words = _mm512_loadu_si512(Words::<N>::NIBBLES[i].as_ptr().cast());
        let v = _mm512_permutexvar_epi16(words, v);
        Self::and(_mm512_srlv_epi16(v, counts), Self::splat(15))
    }

    #[inline(always)]
    unsafe fn nibble_halves<const N: usize>(p: *const u8) -> [__m512; 2] {
        // The first and the third register begin with four blocks each.
        let a = _mm512_loadu_si512(p.add(Words::<N>::AT[0]).cast());
        let b = _mm512_loadu_si512(p.add(Words::<N>::AT[2]).cast());
        let words = _mm512_loadu_si512(Words::<N>::HALVES.as_ptr().cast());
        let first = _mm512_permutex2var_epi16(a, words, b);
        let words = _mm512_add_epi16(words, _mm512_set1_epi16(1));
        let second = _mm512_permutex2var_epi16(a, words, b);
        [
            _mm512_cvtph_ps(_mm512_castsi512_si256(first)),
            _mm512_cvtph_ps(_mm512_castsi512_si256(second)),
        ]
    }

    #[inline(always)]
    unsafe fn splat(byte: u8) -> __m512i {
        _mm512_set1_epi8(byte as i8)
    }

    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        _mm512_and_si512(a, b)
    }

    #[inline(always)]
    unsafe fn shift(v: __m512i, [a, b]: [i8; 2]) -> __m512i {
        // The counts are known when this is inlined.
        match (a, b) {
            (0, 0) => v,
            _ if a >= 0 && b >= 0 => _mm512_srlv_epi16(v, halves(a, b)),
            _ if a <= 0 && b <= 0 => _mm512_sllv_epi16(v, halves(-a, -b)),
            _ => _mm512_sllv_epi16(_mm512_srlv_epi16(v, halves(a, b)), halves(-a, -b)),
        }
    }

    #[inline(always)]
    unsafe fn insert(v: __m512i, bits: __m512i, mask: u8) -> __m512i {
        _mm512_or_si512(v, Self::and(bits, Self::splat(mask)))
    }

    #[inline(always)]
    unsafe fn fifth_bits(v: __m512i, a: *const u8, b: *const u8) -> __m512i {
        let bits = |p: *const u8| u64::from(p.cast::<u32>().read_unaligned());
        let fifth = _mm512_maskz_set1_epi8(bits(a) | bits(b) << 32, 16);
        _mm512_or_si512(v, fifth)
    }

    #[inline(always)]
    unsafe fn look_up(table: &[i8; 16], indices: __m512i) -> __m512i {
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
        _mm512_shuffle_epi8(table, indices)
    }

    #[inline(always)]
    unsafe fn halves(p: *const u8, stride: usize) -> __m512 {
        let h = |i: usize| p.add(i * stride).cast::<i16>().read_unaligned();
        let h = _mm_set_epi16(h(7), h(6), h(5), h(4), h(3), h(2), h(1), h(0));
        let twice = _mm256_set_m128i(_mm_unpackhi_epi16(h, h), _mm_unpacklo_epi16(h, h));
        _mm512_cvtph_ps(twice)
    }

    #[inline(always)]
    unsafe fn each_twice(bytes: [u8; 8]) -> __m512 {
        let v = _mm_cvtsi64_si128(i64::from_le_bytes(bytes));
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_unpacklo_epi8(v, v)))
    }

    #[inline(always)]
    unsafe fn even(v: __m512) -> __m512 {
        _mm512_maskz_mov_ps(0x5555, v)
    }

    #[inline(always)]
    unsafe fn differences(v: __m512) -> __m512 {
        _mm512_mask_sub_ps(v, 0xaaaa, v, _mm512_moveldup_ps(v))
    }

    #[inline(always)]
    unsafe fn unpack(dtype: DType, bytes: &[u8], all: &mut Unpacked) {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        fn unpack(dtype: DType, bytes: &[u8], all: &mut Unpacked) {
            load::unpack(dtype, bytes, all)
        }
        unpack(dtype, bytes, all)
    }

    #[inline(always)]
    fn added<K: Kind>() -> u8 {
        match (K::BITS, K::OFFSET) {
            (8, _) => 128,
            (_, offset) => offset.unwrap_or(0),
        }
    }

    #[inline(always)]
    unsafe fn dots_32<K: Kind>(w: &[__m512i; 4], x: *const i8) -> [__m128i; 2] {
        let n = dots::<K>(w, x);
        let n = _mm512_add_epi32(n, _mm512_shuffle_i32x4::<0b10_11_00_01>(n, n));
        [_mm512_castsi512_si128(n), _mm512_extracti32x4_epi32::<2>(n)]
    }

    #[inline(always)]
    unsafe fn dots_16<K: Kind>(w: &[__m512i; 4], x: *const i8) -> [__m128i; 4] {
        let n = dots::<K>(w, x);
        [
            _mm512_castsi512_si128(n),
            _mm512_extracti32x4_epi32::<1>(n),
            _mm512_extracti32x4_epi32::<2>(n),
            _mm512_extracti32x4_epi32::<3>(n),
        ]
    }

    #[inline(always)]
    unsafe fn quads([a, b, c, d]: [__m512; 4]) -> [[__m128; 8]; 2] {
        let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let first = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        let second = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        let (ab, cd) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let third = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        let fourth = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        let v = [first, second, third, fourth];
        let quad = four!(i => lanes(v[i]));
        [
            eight!(i => quad[i % 4][i / 4]),
            eight!(i => quad[i % 4][2 + i / 4]),
        ]
    }

    #[inline(always)]
    unsafe fn byte_quads(rows: [[u8; 8]; 4]) -> [__m128; 8] {
        let one = _mm_set1_ps(1.0);
        let [first, last] = quad::fours(rows);
        let v = [scaled_bytes(first, one), scaled_bytes(last, one)];
        eight!(b => v[b / 4][b % 4])
    }

    #[inline(always)]
    unsafe fn half_quad(rows: [*const u8; 4]) -> __m128 {
        quad::halves(rows)
    }

    #[inline(always)]
    unsafe fn k_quads(rows: [*const u8; 4]) -> [[__m128; 8]; 2] {
        let k = quad::k_scales(rows);
        let scale = [scaled_bytes(k.sc[0], k.d), scaled_bytes(k.sc[1], k.d)];
        let min = [scaled_bytes(k.m[0], k.less), scaled_bytes(k.m[1], k.less)];
        [
            eight!(b => scale[b / 4][b % 4]),
            eight!(b => min[b / 4][b % 4]),
        ]
    }

    /// From the registers that the half bytes are taken from, too.
    #[inline(always)]
    unsafe fn nibble_quads<const N: usize>(rows: [*const u8; 4]) -> [[__m128; 8]; 2] {
        let halves = four!(i => Self::nibble_halves::<N>(rows[i]));
        let first = Self::quads(four!(i => halves[i][0]));
        let second = Self::quads(four!(i => halves[i][1]));
        [
            eight!(b => first[b / 4][b % 4 * 2]),
            eight!(b => second[b / 4][b % 4 * 2]),
        ]
    }

    /// `[columns / 4][rows][4]`: a row in each lane.
    #[inline(always)]
    unsafe fn arrange<K: Kind>(q: &mut [__m512i; PANEL_ROWS], _: &mut MaybeUninit<()>) {
        let offset = match K::OFFSET {
            Some(offset) => 128 - offset,
            None if K::BITS == 8 => 128,
            None => 0,
        };
        if offset > 0 {
            for q in q.iter_mut() {
                *q = _mm512_add_epi8(*q, Self::splat(offset));
            }
        }
        transpose_lanes(q);
    }

    #[inline(always)]
    unsafe fn transpose(m: &mut [__m512; PANEL_ROWS]) {
        let mut lanes = [_mm512_setzero_si512(); PANEL_ROWS];
        for i in 0..PANEL_ROWS {
            lanes[i] = _mm512_castps_si512(m[i]);
        }
        transpose_lanes(&mut lanes);
        for i in 0..PANEL_ROWS {
            m[i] = _mm512_castsi512_ps(lanes[i]);
        }
    }

    #[inline(always)]
    unsafe fn group_dots<const Q4: bool, const T: usize>(
        groups: *const u8,
        n_groups: usize,
        h: [*const i8; T],
        sums: [i32; T],
    ) -> [__m512; T] {
        let offset = if Q4 { 8 } else { 128 };
        let mut dots = [_mm512_setzero_si512(); T];
        for i in 0..T {
            dots[i] = _mm512_set1_epi32(-offset * sums[i]);
        }
        for g in 0..n_groups {
            let b = _mm512_loadu_si512(groups.add(64 * g).cast());
            if Q4 {
                let low = _mm512_and_si512(b, Self::splat(15));
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(b), Self::splat(15));
                for i in 0..T {
                    let h = h[i].add(8 * g).cast::<i32>();
                    let (first, second) = (h.read_unaligned(), h.add(1).read_unaligned());
                    dots[i] = _mm512_dpbusd_epi32(dots[i], low, _mm512_set1_epi32(first));
                    dots[i] = _mm512_dpbusd_epi32(dots[i], high, _mm512_set1_epi32(second));
                }
            } else {
                let b = _mm512_xor_si512(b, Self::splat(0x80));
                for i in 0..T {
                    let h = h[i].add(4 * g).cast::<i32>().read_unaligned();
                    dots[i] = _mm512_dpbusd_epi32(dots[i], b, _mm512_set1_epi32(h));
                }
            }
        }
        let mut floats = [_mm512_setzero_ps(); T];
        for i in 0..T {
            floats[i] = _mm512_cvtepi32_ps(dots[i]);
        }
        floats
    }

    #[inline(always)]
    unsafe fn multiply<K: Kind, const N: usize>(
        panels: &[Panel<Self>; 2],
        x: *const Q8Super,
        n_blocks: usize,
        first: bool,
        y: [*mut f32; N],
    ) {
        multiply::<K::Centered, N>(panels, x, n_blocks, first, y)
    }
}

/// Sixteen integers, times a factor for each row of four.
#[inline(always)]
unsafe fn scaled_bytes(bytes: __m128i, factor: __m128) -> [__m128; 4] {
    let v = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    lanes(_mm512_mul_ps(v, _mm512_broadcast_f32x4(factor)))
}

/// The four vectors of four lanes.
#[inline(always)]
unsafe fn lanes(v: __m512) -> [__m128; 4] {
    [
        _mm512_castps512_ps128(v),
        _mm512_extractf32x4_ps::<1>(v),
        _mm512_extractf32x4_ps::<2>(v),
        _mm512_extractf32x4_ps::<3>(v),
    ]
}

/// The products of 64 columns of four rows: of each 16 columns the four rows' sums.
#[inline(always)]
unsafe fn dots<K: Kind>(w: &[__m512i; 4], x: *const i8) -> __m512i {
    let x = _mm512_loadu_si512(x.cast());
    let mut n = [_mm512_setzero_si512(); 4];
    for i in 0..4 {
        let u = match K::BITS {
            8 => _mm512_xor_si512(w[i], Avx512::splat(0x80)),
            _ => w[i],
        };
        n[i] = _mm512_dpbusd_epi32(n[i], u, x);
    }
    let [a, b, c, d] = n;
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// Eight blocks of `N` bytes in four registers, as `Simd::nibble_blocks` takes them apart.
struct Words<const N: usize>;

impl<const N: usize> Words<N> {
    /// Where the registers begin: at each second block, but the last where it ends with the blocks.
    const AT: [usize; 4] = [0, 2 * N, 4 * N, 8 * N - 64];

    /// Of each register, the words of two blocks' half bytes, each block's twice.
    const NIBBLES: [[i16; 32]; 4] = {
        let mut words = [[0; 32]; 4];
        let mut i = 0;
        while i < 4 {
            let start = 2 * N * i - Self::AT[i] + N - 16;
            let mut k = 0;
            while k < 32 {
                words[i][k] = (start / 2 + k / 16 * (N / 2) + k % 8) as i16;
                k += 1;
            }
            i += 1;
        }
        words
    };

    /// Of the first and the third register, the words that four blocks begin with, each twice.
    const HALVES: [i16; 32] = {
        let mut words = [0; 32];
        let mut k = 0;
        while k < 16 {
            words[k] = (k / 2 % 4 * (N / 2) + k / 8 * 32) as i16;
            k += 1;
        }
        words
    };
}

/// Shift counts: `a` in the lower half, `b` in the upper, 0 for negative ones.
#[inline(always)]
unsafe fn halves(a: i8, b: i8) -> __m512i {
    let low = _mm512_castsi256_si512(_mm256_set1_epi16(i16::from(a.max(0))));
    _mm512_inserti64x4::<1>(low, _mm256_set1_epi16(i16::from(b.max(0))))
}

/// [`Simd::multiply`], a function of its own for each kind of format.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn multiply<K: Kind, const N: usize>(
    panels: &[Panel<Avx512>; 2],
    x: *const Q8Super,
    n_blocks: usize,
    first: bool,
    y: [*mut f32; N],
) {
    let mut acc = [[_mm512_setzero_ps(); 2]; N];
    if !first && !K::INTEGER_SCALES {
        for i in 0..N {
            acc[i] = [_mm512_loadu_ps(y[i]), _mm512_loadu_ps(y[i].add(16))];
        }
    }
    // By pointers: from an array's length the compiler would take that there are eight blocks at
    // most, and write them all out.
    let w = [
        panels[0].q.as_ptr().cast::<__m512i>(),
        panels[1].q.as_ptr().cast::<__m512i>(),
    ];
    let scales = [panels[0].scale.as_ptr(), panels[1].scale.as_ptr()];
    let mins = [panels[0].min.as_ptr(), panels[1].min.as_ptr()];
    for b in 0..n_blocks {
        let mut first_half = [[_mm512_setzero_ps(); 2]; N];
        for half in 0..if K::WIDE { 1 } else { 2 } {
            let mut products = [[_mm512_castps_si512(_mm512_set1_ps(INTEGER)); 2]; N];
            if K::OFFSET.is_some() || K::BITS == 8 {
                for i in 0..N {
                    products[i] = [_mm512_set1_epi32(start::<K>(x.add(i), b, half)); 2];
                }
            }
            let n_steps = if K::WIDE { 8 } else { 4 };
            if half == 0 {
                // What the next tokens need, a line of each for each block.
                for i in N..2 * N {
                    _mm_prefetch::<_MM_HINT_T0>(
                        x.wrapping_add(i).cast::<i8>().wrapping_add(64 * b),
                    );
                }
            }
            for k in half * n_steps..(half + 1) * n_steps {
                let w = [*w[0].add(8 * b + k), *w[1].add(8 * b + k)];
                for i in 0..N {
                    let four = _mm512_set1_epi32(four(x.add(i), b * Q8_BLOCK + 4 * k));
                    for j in 0..2 {
                        products[i][j] = _mm512_dpbusd_epi32(products[i][j], w[j], four);
                    }
                }
                // Or the compiler would sum up one token after the other, in chains of products
                // that wait for each other.
                compiler_fence(Ordering::SeqCst);
            }
            let group = 2 * b + half;
            let w_scale = [*scales[0].add(group), *scales[1].add(group)];
            let w_min = [*mins[0].add(group), *mins[1].add(group)];
            for i in 0..N {
                let scale = _mm512_set1_ps(scale(x.add(i), b));
                for j in 0..2 {
                    let products = match K::SHORT_SCALE {
                        // `w_scale (INTEGER + n) - w_scale INTEGER` for the sum `n`, exact but for
                        // one rounding.
                        true => {
                            let zero = match K::OFFSET {
                                Some(_) => w_min[j],
                                None => _mm512_mul_ps(w_scale[j], _mm512_set1_ps(-INTEGER)),
                            };
                            let products = _mm512_castsi512_ps(products[i][j]);
                            _mm512_fmadd_ps(products, w_scale[j], zero)
                        }
                        false => {
                            let products = _mm512_castsi512_ps(products[i][j]);
                            let products = _mm512_sub_ps(products, _mm512_set1_ps(INTEGER));
                            _mm512_mul_ps(products, w_scale[j])
                        }
                    };
                    // With integer scales products are integers, and so is the sum of both halves.
                    match (K::INTEGER_SCALES, half) {
                        (false, _) => acc[i][j] = _mm512_fmadd_ps(products, scale, acc[i][j]),
                        (true, 0) => first_half[i][j] = products,
                        (true, _) => {
                            let both = _mm512_add_ps(first_half[i][j], products);
                            acc[i][j] = _mm512_fmadd_ps(both, scale, acc[i][j]);
                        }
                    }
                }
            }
            if K::OFFSET.is_none() {
                for i in 0..N {
                    let sum = sum(x.add(i), group);
                    for j in 0..2 {
                        acc[i][j] = _mm512_fmadd_ps(w_min[j], _mm512_set1_ps(sum), acc[i][j]);
                    }
                }
            }
        }
    }
    for i in 0..N {
        for j in 0..2 {
            let y = y[i].add(16 * j);
            if K::INTEGER_SCALES {
                let before = match first {
                    true => _mm512_setzero_ps(),
                    false => _mm512_loadu_ps(y),
                };
                acc[i][j] = _mm512_fmadd_ps(acc[i][j], panels[j].step, before);
            }
            _mm512_storeu_ps(y, acc[i][j]);
        }
    }
}

/// Transposes 16 by 16 lanes of 32 bits.
///
/// # Safety
///
/// The CPU has the level's features.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn transpose_lanes(m: &mut [__m512i; 16]) {
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
