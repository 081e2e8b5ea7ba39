//! AVX2, alone or with VNNI: 64 bytes or 16 floats in two registers.
//!
//! Products are of unsigned by signed bytes. AVX2 sums them in pairs to 16 bits, which must not
//! saturate: unsigned weights below 128 are multiplied as they are; of signed ones the magnitude is,
//! with an input that takes the sign over, or in tiles each half byte of what 128 more make. VNNI sums
//! four of them to 32 bits; signed weights get 128 added, which is taken off as for AVX-512.

// Safety: see `Simd`. The intrinsics are unsafe here only for want of the features, which the
// functions that these are inlined into have; pointers are read as far as the trait says.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]
#![allow(clippy::needless_range_loop)] // indices name lanes, rows and tokens of several arrays at once

mod tile;

use core::arch::x86_64::*;
use core::mem::MaybeUninit;

use super::load::{self, Kind};
use super::{Lanes, PANEL_ROWS, Panel, Simd, quad};
use crate::quant::Unpacked;
use crate::{DType, Q8Super};

/// AVX2, or AVX2 with VNNI.
pub(crate) struct Avx2<const VNNI: bool>;

impl<const VNNI: bool> Lanes for Avx2<VNNI> {
    type Floats = [__m256; 2];
    const WIDE_TILE: bool = false;

    #[inline(always)]
    unsafe fn floats(p: *const f32) -> [__m256; 2] {
        [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))]
    }

    #[inline(always)]
    unsafe fn splat_float(x: f32) -> [__m256; 2] {
        [_mm256_set1_ps(x); 2]
    }

    #[inline(always)]
    unsafe fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
    }

    #[inline(always)]
    unsafe fn mul_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        [
            _mm256_fmadd_ps(a[0], b[0], c[0]),
            _mm256_fmadd_ps(a[1], b[1], c[1]),
        ]
    }

    #[inline(always)]
    unsafe fn half(p: *const u8) -> [__m256; 2] {
        // Inserting one f16 into a register would wait for what that held before.
        [_mm256_cvtph_ps(_mm_set1_epi16(p.cast::<i16>().read_unaligned())); 2]
    }

    #[inline(always)]
    unsafe fn from_f16(p: *const u8) -> [__m256; 2] {
        let p = p.cast();
        [
            _mm256_cvtph_ps(_mm_loadu_si128(p)),
            _mm256_cvtph_ps(_mm_loadu_si128(p.add(1))),
        ]
    }

    #[inline(always)]
    unsafe fn from_bf16(p: *const u8) -> [__m256; 2] {
        let p = p.cast();
        let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p));
        let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(1)));
        [
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
        ]
    }

    #[inline(always)]
    unsafe fn store(v: [__m256; 2], p: *mut f32) {
        _mm256_storeu_ps(p, v[0]);
        _mm256_storeu_ps(p.add(8), v[1]);
    }

    #[inline(always)]
    unsafe fn sum(v: [__m256; 2]) -> f32 {
        let v = _mm256_add_ps(v[0], v[1]);
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }

    #[inline(always)]
    unsafe fn from_i8(p: *const i8) -> [__m256; 2] {
        let v = _mm_loadu_si128(p.cast());
        let low = _mm256_cvtepi8_epi32(v);
        let high = _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(v));
        [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
    }
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type Bytes = [__m256i; 2];
    type Quad = __m128;
    type Halves = [[__m256i; 2]; PANEL_ROWS];
    const HIGH_STARTS: bool = VNNI;

    #[inline(always)]
    unsafe fn load_two(a: *const u8, b: *const u8) -> [__m256i; 2] {
        [_mm256_loadu_si256(a.cast()), _mm256_loadu_si256(b.cast())]
    }

    #[inline(always)]
    unsafe fn load_twice(p: *const u8) -> [__m256i; 2] {
        Self::load_two(p, p)
    }

    #[inline(always)]
    unsafe fn nibbles(a: *const u8, b: *const u8) -> [__m256i; 2] {
        [nibbles(a), nibbles(b)]
    }

    #[inline(always)]
    unsafe fn splat(byte: u8) -> [__m256i; 2] {
        [_mm256_set1_epi8(byte as i8); 2]
    }

    #[inline(always)]
    unsafe fn and(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])]
    }

    #[inline(always)]
    unsafe fn shift(v: [__m256i; 2], counts: [i8; 2]) -> [__m256i; 2] {
        [shift(v[0], counts[0]), shift(v[1], counts[1])]
    }

    #[inline(always)]
    unsafe fn insert(v: [__m256i; 2], bits: [__m256i; 2], mask: u8) -> [__m256i; 2] {
        let bits = Self::and(bits, Self::splat(mask));
        [
            _mm256_or_si256(v[0], bits[0]),
            _mm256_or_si256(v[1], bits[1]),
        ]
    }

    #[inline(always)]
    unsafe fn fifth_bits(v: [__m256i; 2], a: *const u8, b: *const u8) -> [__m256i; 2] {
        [
            _mm256_or_si256(v[0], fifth_bits(a)),
            _mm256_or_si256(v[1], fifth_bits(b)),
        ]
    }

    #[inline(always)]
    unsafe fn look_up(table: &[i8; 16], indices: [__m256i; 2]) -> [__m256i; 2] {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        [
            _mm256_shuffle_epi8(table, indices[0]),
            _mm256_shuffle_epi8(table, indices[1]),
        ]
    }

    #[inline(always)]
    unsafe fn halves(p: *const u8, stride: usize) -> [__m256; 2] {
        let h = |i: usize| p.add(i * stride).cast::<i16>().read_unaligned();
        let h = _mm_set_epi16(h(7), h(6), h(5), h(4), h(3), h(2), h(1), h(0));
        [
            _mm256_cvtph_ps(_mm_unpacklo_epi16(h, h)),
            _mm256_cvtph_ps(_mm_unpackhi_epi16(h, h)),
        ]
    }

    #[inline(always)]
    unsafe fn each_twice(bytes: [u8; 8]) -> [__m256; 2] {
        let v = _mm_cvtsi64_si128(i64::from_le_bytes(bytes));
        let v = _mm_unpacklo_epi8(v, v);
        let low = _mm256_cvtepi8_epi32(v);
        let high = _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(v));
        [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
    }

    #[inline(always)]
    unsafe fn even(v: [__m256; 2]) -> [__m256; 2] {
        let zero = _mm256_setzero_ps();
        [
            _mm256_blend_ps::<0xaa>(v[0], zero),
            _mm256_blend_ps::<0xaa>(v[1], zero),
        ]
    }

    #[inline(always)]
    unsafe fn differences(v: [__m256; 2]) -> [__m256; 2] {
        let before = Self::even(v);
        let before = [
            _mm256_castsi256_ps(_mm256_slli_epi64::<32>(_mm256_castps_si256(before[0]))),
            _mm256_castsi256_ps(_mm256_slli_epi64::<32>(_mm256_castps_si256(before[1]))),
        ];
        [
            _mm256_sub_ps(v[0], before[0]),
            _mm256_sub_ps(v[1], before[1]),
        ]
    }

    #[inline(always)]
    unsafe fn unpack(dtype: DType, bytes: &[u8], all: &mut Unpacked) {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn unpack(dtype: DType, bytes: &[u8], all: &mut Unpacked) {
            load::unpack(dtype, bytes, all)
        }
        unpack(dtype, bytes, all)
    }

    #[inline(always)]
    fn added<K: Kind>() -> u8 {
        match (K::BITS, K::OFFSET) {
            (8, _) if VNNI => 128,
            (8, _) => 0,
            (_, offset) => offset.unwrap_or(0),
        }
    }

    #[inline(always)]
    unsafe fn dots_32<K: Kind>(w: &[[__m256i; 2]; 4], x: *const i8) -> [__m128i; 2] {
        let n = [dots::<K, VNNI>(w, 0, x), dots::<K, VNNI>(w, 1, x)];
        [
            _mm_add_epi32(
                _mm256_castsi256_si128(n[0]),
                _mm256_extracti128_si256::<1>(n[0]),
            ),
            _mm_add_epi32(
                _mm256_castsi256_si128(n[1]),
                _mm256_extracti128_si256::<1>(n[1]),
            ),
        ]
    }

    #[inline(always)]
    unsafe fn dots_16<K: Kind>(w: &[[__m256i; 2]; 4], x: *const i8) -> [__m128i; 4] {
        let n = [dots::<K, VNNI>(w, 0, x), dots::<K, VNNI>(w, 1, x)];
        [
            _mm256_castsi256_si128(n[0]),
            _mm256_extracti128_si256::<1>(n[0]),
            _mm256_castsi256_si128(n[1]),
            _mm256_extracti128_si256::<1>(n[1]),
        ]
    }

    #[inline(always)]
    unsafe fn quads([a, b, c, d]: [[__m256; 2]; 4]) -> [[__m128; 8]; 2] {
        [quads(a[0], b[0], c[0], d[0]), quads(a[1], b[1], c[1], d[1])]
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

    /// `[columns / 4][rows][4]`: a row in each lane. Without VNNI of signed integers plus 128 the lower
    /// and the upper half bytes.
    #[inline(always)]
    unsafe fn arrange<K: Kind>(
        q: &mut [[__m256i; 2]; PANEL_ROWS],
        high: &mut MaybeUninit<[[__m256i; 2]; PANEL_ROWS]>,
    ) {
        let offset = match K::OFFSET {
            _ if !VNNI => 0,
            Some(offset) => 128 - offset,
            None if K::BITS == 8 => 128,
            None => 0,
        };
        if offset > 0 {
            for q in q.iter_mut() {
                for q in q {
                    *q = _mm256_add_epi8(*q, _mm256_set1_epi8(offset as i8));
                }
            }
        }
        tile::transpose_lanes(q);
        if !VNNI && K::BITS == 8 {
            let high = high.as_mut_ptr().cast::<[__m256i; 2]>();
            let half = _mm256_set1_epi8(15);
            for i in 0..PANEL_ROWS {
                for j in 0..2 {
                    let u = _mm256_xor_si256(q[i][j], _mm256_set1_epi8(-128));
                    let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(u), half);
                    (&raw mut (*high.add(i))[j]).write(upper);
                    q[i][j] = _mm256_and_si256(u, half);
                }
            }
        }
    }

    /// Each scale twice in 16 bits, as sums of pairs of products lie. In place of the minimum of the first
    /// 16 of each 32 columns twice the scales of both, as [`offset_sums`](tile) lie.
    #[inline(always)]
    unsafe fn arrange_scales(
        scale: &mut [[__m256; 2]; PANEL_ROWS],
        min: &mut [[__m256; 2]; PANEL_ROWS],
    ) {
        if VNNI {
            return;
        }
        for (scale, min) in scale
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(min.chunks_exact_mut(2))
        {
            for j in 0..2 {
                for scale in &mut *scale {
                    let v = _mm256_cvtps_epi32(scale[j]);
                    let low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
                    let twice = _mm256_or_si256(low, _mm256_slli_epi32::<16>(v));
                    scale[j] = _mm256_castsi256_ps(twice);
                }
                let first = _mm256_castps_si256(scale[0][j]);
                let last = _mm256_castps_si256(scale[1][j]);
                let both = _mm256_blend_epi16::<0xaa>(first, last);
                min[0][j] = _mm256_castsi256_ps(_mm256_slli_epi16::<1>(both));
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose(m: &mut [[__m256; 2]; PANEL_ROWS]) {
        let mut lanes = [[_mm256_setzero_si256(); 2]; PANEL_ROWS];
        for i in 0..PANEL_ROWS {
            lanes[i] = [_mm256_castps_si256(m[i][0]), _mm256_castps_si256(m[i][1])];
        }
        tile::transpose_lanes(&mut lanes);
        for i in 0..PANEL_ROWS {
            m[i] = [
                _mm256_castsi256_ps(lanes[i][0]),
                _mm256_castsi256_ps(lanes[i][1]),
            ];
        }
    }

    #[inline(always)]
    unsafe fn group_dots<const Q4: bool, const T: usize>(
        groups: *const u8,
        n_groups: usize,
        h: [*const i8; T],
        sums: [i32; T],
    ) -> [[__m256; 2]; T] {
        let offset = match (Q4, VNNI) {
            (true, _) => 8,
            (false, true) => 128,
            (false, false) => 0,
        };
        let mut dots = [[_mm256_setzero_si256(); 2]; T];
        for i in 0..T {
            dots[i] = [_mm256_set1_epi32(-offset * sums[i]); 2];
        }
        for g in 0..n_groups {
            for j in 0..2 {
                let b = _mm256_loadu_si256(groups.add(64 * g + 32 * j).cast());
                if Q4 {
                    let low = _mm256_and_si256(b, _mm256_set1_epi8(15));
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(b), _mm256_set1_epi8(15));
                    for i in 0..T {
                        let h = h[i].add(8 * g).cast::<i32>();
                        let first = _mm256_set1_epi32(h.read_unaligned());
                        let second = _mm256_set1_epi32(h.add(1).read_unaligned());
                        dots[i][j] = add_products::<VNNI, false>(dots[i][j], low, first);
                        dots[i][j] = add_products::<VNNI, false>(dots[i][j], high, second);
                    }
                } else {
                    for i in 0..T {
                        let h = h[i].add(4 * g).cast::<i32>().read_unaligned();
                        dots[i][j] =
                            add_products::<VNNI, true>(dots[i][j], b, _mm256_set1_epi32(h));
                    }
                }
            }
        }
        let mut floats = [[_mm256_setzero_ps(); 2]; T];
        for i in 0..T {
            for j in 0..2 {
                floats[i][j] = _mm256_cvtepi32_ps(dots[i][j]);
            }
        }
        floats
    }

    #[inline(always)]
    unsafe fn multiply<K: Kind, const N: usize>(
        panels: &[Panel<Self>; 2],
        x: *const Q8Super,
        n_blocks: usize,
        first: bool,
        mut y: [*mut f32; N],
    ) {
        for panel in panels {
            // The panels differ in their type only.
            let p: *const Panel<Self> = panel;
            match VNNI {
                true => tile::multiply_vnni::<K::Centered, N>(&*p.cast(), x, n_blocks, first, y),
                false => tile::multiply::<K, N>(&*p.cast(), x, n_blocks, first, y),
            }
            for y in &mut y {
                *y = y.wrapping_add(PANEL_ROWS);
            }
        }
    }
}

/// The half bytes of the 16 bytes at `p`, low ones first.
#[inline(always)]
unsafe fn nibbles(p: *const u8) -> __m256i {
    let v = _mm_loadu_si128(p.cast());
    let v = _mm256_set_m128i(_mm_srli_epi16::<4>(v), v);
    _mm256_and_si256(v, _mm256_set1_epi8(15))
}

/// Shifts right by a count that is known when this is inlined, left where it is negative.
#[inline(always)]
unsafe fn shift(v: __m256i, count: i8) -> __m256i {
    let n = _mm_cvtsi32_si128(i32::from(count.unsigned_abs()));
    match count >= 0 {
        true => _mm256_srl_epi16(v, n),
        false => _mm256_sll_epi16(v, n),
    }
}

/// 16 for each of the 32 bits at `p` that is set.
#[inline(always)]
unsafe fn fifth_bits(p: *const u8) -> __m256i {
    let bits = p.cast::<i32>().read_unaligned();
    // Each byte of the bits in eight bytes, of which each tests another bit.
    let spread = _mm256_set_epi64x(
        0x0303_0303_0303_0303,
        0x0202_0202_0202_0202,
        0x0101_0101_0101_0101,
        0,
    );
    let v = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread);
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit);
    _mm256_and_si256(set, _mm256_set1_epi8(16))
}

/// Sixteen integers, times a factor for each row of four.
#[inline(always)]
unsafe fn scaled_bytes(bytes: __m128i, factor: __m128) -> [__m128; 4] {
    let factor = _mm256_set_m128(factor, factor);
    let v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    let first = _mm256_mul_ps(v, factor);
    let v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
    let last = _mm256_mul_ps(v, factor);
    [
        _mm256_castps256_ps128(first),
        _mm256_extractf128_ps::<1>(first),
        _mm256_castps256_ps128(last),
        _mm256_extractf128_ps::<1>(last),
    ]
}

/// Transposes 4 by 8.
#[inline(always)]
unsafe fn quads(a: __m256, b: __m256, c: __m256, d: __m256) -> [__m128; 8] {
    let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
    let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
    let first = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
    let second = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
    let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
    let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
    let third = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
    let fourth = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
    let v = [first, second, third, fourth];
    eight!(i => match i < 4 {
        true => _mm256_castps256_ps128(v[i % 4]),
        false => _mm256_extractf128_ps::<1>(v[i % 4]),
    })
}

/// The products of 32 columns of four rows, the first or the second of 64: of each 16 columns the four
/// rows' sums.
#[inline(always)]
unsafe fn dots<K: Kind, const VNNI: bool>(
    w: &[[__m256i; 2]; 4],
    part: usize,
    x: *const i8,
) -> __m256i {
    let x = _mm256_loadu_si256(x.add(32 * part).cast());
    let ones = _mm256_set1_epi16(1);
    let mut n = [_mm256_setzero_si256(); 4];
    for i in 0..4 {
        let w = w[i][part];
        n[i] = match (VNNI, K::BITS) {
            (true, 8) => {
                let u = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                _mm256_dpbusd_avx_epi32(n[i], u, x)
            }
            (true, _) => _mm256_dpbusd_avx_epi32(n[i], w, x),
            (false, ..6) => products::<K>(w, x),
            (false, _) => _mm256_madd_epi16(products::<K>(w, x), ones),
        };
    }
    let [a, b, c, d] = n;
    let (ab, cd) = (
        [_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)],
        [_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d)],
    );
    if !VNNI && K::BITS < 6 {
        // Four pairs come to 8 * 31 * 127 at most.
        let (ab, cd) = (
            _mm256_add_epi16(ab[0], ab[1]),
            _mm256_add_epi16(cd[0], cd[1]),
        );
        let (low, high) = (_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
        return _mm256_madd_epi16(_mm256_add_epi16(low, high), ones);
    }
    let (ab, cd) = (
        _mm256_add_epi32(ab[0], ab[1]),
        _mm256_add_epi32(cd[0], cd[1]),
    );
    _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd))
}

/// Products of bytes, summed in pairs.
#[inline(always)]
pub(super) unsafe fn products<K: Kind>(w: __m256i, x: __m256i) -> __m256i {
    match K::BITS {
        // At most 2 * 128 * 127: the input has no -128.
        8 => _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)),
        _ => _mm256_maddubs_epi16(w, x),
    }
}

/// Adds the products of four bytes each; signed `w` are taken as `w + 128` by VNNI.
#[inline(always)]
unsafe fn add_products<const VNNI: bool, const SIGNED: bool>(
    sums: __m256i,
    w: __m256i,
    x: __m256i,
) -> __m256i {
    match (VNNI, SIGNED) {
        (true, true) => {
            _mm256_dpbusd_avx_epi32(sums, _mm256_xor_si256(w, _mm256_set1_epi8(-128)), x)
        }
        (true, false) => _mm256_dpbusd_avx_epi32(sums, w, x),
        (false, _) => {
            let pairs = match SIGNED {
                true => _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)),
                false => _mm256_maddubs_epi16(w, x),
            };
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}
