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

/// Eight bytes of each row: of each byte the four rows'.
#[inline(always)]
pub(super) unsafe fn fours([a, b, c, d]: [[u8; 8]; 4]) -> [__m128i; 2] {
    let row = |bytes: [u8; 8]| i64::from_le_bytes(bytes);
    let ab = _mm_unpacklo_epi8(_mm_cvtsi64_si128(row(a)), _mm_cvtsi64_si128(row(b)));
    let cd = _mm_unpacklo_epi8(_mm_cvtsi64_si128(row(c)), _mm_cvtsi64_si128(row(d)));
    [_mm_unpacklo_epi16(ab, cd), _mm_unpackhi_epi16(ab, cd)]
}

/// See [`Simd::half_quad`](super::Simd::half_quad).
#[inline(always)]
pub(super) unsafe fn halves([a, b, c, d]: [*const u8; 4]) -> __m128 {
    let word = |p: *const u8| u64::from(p.cast::<u16>().read_unaligned());
    let words = word(a) | word(b) << 16 | word(c) << 32 | word(d) << 48;
    _mm_cvtph_ps(_mm_cvtsi64_si128(words as i64))
}

/// The integer scales and minima of a block of Q4_K or Q5_K of four rows, `[8 blocks][4 rows]` of bytes each,
/// and what they are to be multiplied with.
pub(super) struct KScales {
    pub sc: [__m128i; 2],
    pub m: [__m128i; 2],
    pub d: __m128,
    /// Less than zero: minima are subtracted.
    pub less: __m128,
}

/// See [`Simd::k_quads`](super::Simd::k_quads). As `q4_k::unpack_scales` does it, four rows at once.
#[inline(always)]
pub(super) unsafe fn k_scales(rows: [*const u8; 4]) -> KScales {
    // Of each row d and dmin and three words of packed ones, transposed.
    let [a, b, c, d] = four!(i => _mm_loadu_si128(rows[i].cast()));
    let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
    let (halves, first) = (_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd));
    let (ab, cd) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
    let (second, third) = (_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd));
    let (six, low, high) = (
        _mm_set1_epi8(0x3f),
        _mm_set1_epi8(0x0f),
        _mm_set1_epi8(0x30),
    );
    let upper = |v: __m128i, bits: __m128i| {
        // SAFETY: of instructions that every x86-64 CPU has.
        unsafe { _mm_or_si128(v, _mm_and_si128(_mm_srli_epi32::<2>(bits), high)) }
    };
    let by_row = [
        _mm_and_si128(first, six),
        upper(_mm_and_si128(third, low), first),
        _mm_and_si128(second, six),
        upper(_mm_and_si128(_mm_srli_epi32::<4>(third), low), second),
    ];
    let by_block = _mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    let [sc_first, sc_last, m_first, m_last] = four!(i => _mm_shuffle_epi8(by_row[i], by_block));
    // The f16s of all rows: those of d, then those of dmin.
    let words = _mm_set_epi8(15, 14, 11, 10, 7, 6, 3, 2, 13, 12, 9, 8, 5, 4, 1, 0);
    let halves = _mm_shuffle_epi8(halves, words);
    let dmin = _mm_cvtph_ps(_mm_srli_si128::<8>(halves));
    KScales {
        sc: [sc_first, sc_last],
        m: [m_first, m_last],
        d: _mm_cvtph_ps(halves),
        less: _mm_mul_ps(dmin, _mm_set1_ps(-1.0)),
    }
}
