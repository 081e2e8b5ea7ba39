//! Four floats on x86, the same on all its levels.

// Safety: see `Quad`. The intrinsics are unsafe here only for want of the features, which the
// functions that these are inlined into have.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]

use core::arch::x86_64::*;

use super::Quad;
use crate::input::INTEGER;

impl Quad for __m128 {
    type Ints = __m128i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m128 {
        _mm_set1_ps(x)
    }

    #[inline(always)]
    unsafe fn mul(self, b: __m128) -> __m128 {
        _mm_mul_ps(self, b)
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: __m128, c: __m128) -> __m128 {
        _mm_fmadd_ps(self, b, c)
    }

    #[inline(always)]
    unsafe fn centered(n: __m128i, added: u8, start: i32) -> __m128 {
        let sum = _mm_sub_epi32(
            _mm_set1_epi32(start),
            _mm_set1_epi32(INTEGER.to_bits() as i32),
        );
        _mm_cvtepi32_ps(match added {
            0 => n,
            4 => _mm_add_epi32(n, _mm_srai_epi32::<5>(sum)),
            8 => _mm_add_epi32(n, _mm_srai_epi32::<4>(sum)),
            16 => _mm_add_epi32(n, _mm_srai_epi32::<3>(sum)),
            32 => _mm_add_epi32(n, _mm_srai_epi32::<2>(sum)),
            128 => _mm_add_epi32(n, sum),
            _ => unreachable!("{added}"),
        })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        _mm_storeu_ps(p, self);
    }
}

/// See [`Simd::byte_quads`](super::Simd::byte_quads).
#[inline(always)]
pub(super) unsafe fn bytes([a, b, c, d]: [[u8; 8]; 4]) -> [__m128; 8] {
    let row = |bytes: [u8; 8]| i64::from_le_bytes(bytes);
    let ab = _mm_unpacklo_epi8(_mm_cvtsi64_si128(row(a)), _mm_cvtsi64_si128(row(b)));
    let cd = _mm_unpacklo_epi8(_mm_cvtsi64_si128(row(c)), _mm_cvtsi64_si128(row(d)));
    let fours = [_mm_unpacklo_epi16(ab, cd), _mm_unpackhi_epi16(ab, cd)];
    eight!(i => {
        let v = fours[i / 4];
        let v = match i % 4 {
            0 => v,
            1 => _mm_srli_si128::<4>(v),
            2 => _mm_srli_si128::<8>(v),
            _ => _mm_srli_si128::<12>(v),
        };
        _mm_cvtepi32_ps(_mm_cvtepi8_epi32(v))
    })
}

/// See [`Simd::half_quad`](super::Simd::half_quad).
#[inline(always)]
pub(super) unsafe fn halves([a, b, c, d]: [*const u8; 4]) -> __m128 {
    let word = |p: *const u8| u64::from(p.cast::<u16>().read_unaligned());
    let words = word(a) | word(b) << 16 | word(c) << 32 | word(d) << 48;
    _mm_cvtph_ps(_mm_cvtsi64_si128(words as i64))
}
