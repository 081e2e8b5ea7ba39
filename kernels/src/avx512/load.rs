//! 256 weights of a row, from any format, into registers: unsigned integers with a scale and a
//! minimum for each 16.
//!
//! Signed formats are made unsigned by an offset, which VNNI's product wants; the offset times the
//! scale joins the minimum: `w = scale u + min`. Formats with blocks of 32 are read eight blocks
//! at a time, so that all kernels see the same shape.

use core::arch::x86_64::*;

use crate::DType;
use crate::quant::{self, Unpacked, iq4_nl, q3_k, q4_k};

/// 256 weights.
pub(super) struct Super {
    /// Weights 64 i to 64 i + 63 in order.
    pub u: [__m512i; 4],
    /// A scale for each 16 weights.
    pub scale: __m512,
    /// Minima, to be multiplied with [`Q8Rows::sum`](crate::Q8Rows): in the even lanes that of the
    /// first 16 weights of each 32, in the odd lanes what that of the second 16 has more.
    pub min: __m512,
}

/// An array of an expression for `i` from 0 to 3. Not a closure: that would be a function of its
/// own, without the target features of the one it is inlined into.
macro_rules! four {
    ($i:ident => $value:expr) => {
        [
            {
                let $i: usize = 0;
                $value
            },
            {
                let $i: usize = 1;
                $value
            },
            {
                let $i: usize = 2;
                $value
            },
            {
                let $i: usize = 3;
                $value
            },
        ]
    };
}

/// How one format is read.
///
/// Implementations are inlined into functions that have the target features.
pub(super) trait Format {
    /// The type.
    const DTYPE: DType;
    /// Whether both halves of each 32 weights have the same scale and minimum.
    const WIDE: bool;

    /// # Safety
    ///
    /// `p` points to [`super_bytes`] readable bytes, and the CPU has the level's features.
    unsafe fn load(p: *const u8) -> Super;
}

/// Bytes of 256 weights.
pub(super) const fn super_bytes(dtype: DType) -> usize {
    256 / dtype.block_len() * dtype.block_bytes()
}

macro_rules! formats {
    ($($name:ident: $dtype:ident, $wide:literal, $load:ident;)*) => {$(
        pub(super) struct $name;
        impl Format for $name {
            const DTYPE: DType = DType::$dtype;
            const WIDE: bool = $wide;
            #[inline(always)]
            unsafe fn load(p: *const u8) -> Super {
                // SAFETY: the trait's conditions are the function's.
                unsafe { $load(p) }
            }
        }
    )*};
}

formats! {
    Q40: Q4_0, true, q4_0;
    Q41: Q4_1, true, q4_1;
    Q50: Q5_0, true, q5_0;
    Q51: Q5_1, true, q5_1;
    Q80: Q8_0, true, q8_0;
    Iq4Nl: IQ4_NL, true, iq4_nl;
    Iq4Xs: IQ4_XS, true, iq4_xs;
    Q2K: Q2_K, false, q2_k;
    Q3K: Q3_K, false, q3_k;
    Q4K: Q4_K, true, q4_k;
    Q5K: Q5_K, true, q5_k;
    Q6K: Q6_K, false, q6_k;
}

// The functions below are unsafe as `Format::load` is, with the same conditions: every read stays
// inside the 256 weights' bytes. They are bodies of it, not callable from elsewhere.

/// The f16 at `p`.
#[inline(always)]
unsafe fn half_at(p: *const u8) -> __m512 {
    // SAFETY: see above.
    let h = unsafe { p.cast::<u16>().read_unaligned() };
    // SAFETY: the level has AVX-512.
    unsafe { _mm512_set1_ps(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(h))))) }
}

/// The f16s at `p`, `p + stride`, ... of eight blocks, each in two lanes.
#[inline(always)]
unsafe fn halves(p: *const u8, stride: usize) -> __m512 {
    // SAFETY: see above.
    unsafe {
        let h = |i: usize| p.add(i * stride).cast::<i16>().read_unaligned();
        let h = _mm_set_epi16(h(7), h(6), h(5), h(4), h(3), h(2), h(1), h(0));
        let twice = _mm256_set_m128i(_mm_unpackhi_epi16(h, h), _mm_unpacklo_epi16(h, h));
        _mm512_cvtph_ps(twice)
    }
}

/// Minima of wide formats: the odd lanes have nothing more.
#[inline(always)]
unsafe fn even(min: __m512) -> __m512 {
    // SAFETY: the level has AVX-512.
    unsafe { _mm512_maskz_mov_ps(0x5555, min) }
}

/// Minima of narrow formats: in the odd lanes the difference from the lane before.
#[inline(always)]
unsafe fn differences(min: __m512) -> __m512 {
    // SAFETY: the level has AVX-512.
    unsafe { _mm512_mask_sub_ps(min, 0xaaaa, min, _mm512_moveldup_ps(min)) }
}

/// Shifts right the 16-bit lanes of each 128 bits by another count.
#[inline(always)]
unsafe fn shift(v: __m512i, counts: [i16; 4]) -> __m512i {
    let [a, b, c, d] = counts.map(|n| i64::from(n) * 0x0001_0001_0001_0001);
    // SAFETY: the level has AVX-512.
    unsafe { _mm512_srlv_epi16(v, _mm512_set_epi64(d, d, c, c, b, b, a, a)) }
}

/// The half bytes of the 16 bytes at `a`, low ones first, then those at `b`.
#[inline(always)]
unsafe fn nibbles(a: *const u8, b: *const u8) -> __m512i {
    // SAFETY: see above.
    unsafe {
        let a = _mm256_broadcastsi128_si256(_mm_loadu_si128(a.cast()));
        let b = _mm256_broadcastsi128_si256(_mm_loadu_si128(b.cast()));
        let v = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
        _mm512_and_si512(shift(v, [0, 4, 0, 4]), _mm512_set1_epi8(15))
    }
}

/// The 32 bytes at `p`, twice.
#[inline(always)]
unsafe fn twice(p: *const u8) -> __m512i {
    // SAFETY: see above.
    unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(p.cast())) }
}

#[inline(always)]
unsafe fn q4_0(p: *const u8) -> Super {
    // SAFETY: eight blocks of 18 bytes.
    unsafe {
        let scale = halves(p, 18);
        Super {
            u: four!(i => nibbles(p.add(36 * i + 2), p.add(36 * i + 20))),
            scale,
            min: even(_mm512_mul_ps(scale, _mm512_set1_ps(-8.0))),
        }
    }
}

#[inline(always)]
unsafe fn q4_1(p: *const u8) -> Super {
    // SAFETY: eight blocks of 20 bytes.
    unsafe {
        Super {
            u: four!(i => nibbles(p.add(40 * i + 4), p.add(40 * i + 24))),
            scale: halves(p, 20),
            min: even(halves(p.add(2), 20)),
        }
    }
}

/// Half bytes with a fifth bit: `bits` at `a` and `b`, the half bytes `skip` bytes after them.
#[inline(always)]
unsafe fn five_bits(a: *const u8, b: *const u8) -> __m512i {
    // SAFETY: see above.
    unsafe {
        let bits = |p: *const u8| u64::from(p.cast::<u32>().read_unaligned());
        let high = bits(a) | bits(b) << 32;
        let low = nibbles(a.add(4), b.add(4));
        _mm512_mask_add_epi8(low, high, low, _mm512_set1_epi8(16))
    }
}

#[inline(always)]
unsafe fn q5_0(p: *const u8) -> Super {
    // SAFETY: eight blocks of 22 bytes.
    unsafe {
        let scale = halves(p, 22);
        Super {
            u: four!(i => five_bits(p.add(44 * i + 2), p.add(44 * i + 24))),
            scale,
            min: even(_mm512_mul_ps(scale, _mm512_set1_ps(-16.0))),
        }
    }
}

#[inline(always)]
unsafe fn q5_1(p: *const u8) -> Super {
    // SAFETY: eight blocks of 24 bytes.
    unsafe {
        Super {
            u: four!(i => five_bits(p.add(48 * i + 4), p.add(48 * i + 28))),
            scale: halves(p, 24),
            min: even(halves(p.add(2), 24)),
        }
    }
}

#[inline(always)]
unsafe fn q8_0(p: *const u8) -> Super {
    // SAFETY: eight blocks of 34 bytes.
    unsafe {
        let scale = halves(p, 34);
        let u = four!(i => {
            let a = _mm256_loadu_si256(p.add(68 * i + 2).cast());
            let b = _mm256_loadu_si256(p.add(68 * i + 36).cast());
            let v = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
            _mm512_xor_si512(v, _mm512_set1_epi8(-128)) // plus 128
        });
        Super {
            u,
            scale,
            min: even(_mm512_mul_ps(scale, _mm512_set1_ps(-128.0))),
        }
    }
}

/// Half bytes as indices into IQ4's levels, which are made unsigned by adding 128.
#[inline(always)]
unsafe fn levels(indices: __m512i) -> __m512i {
    const TABLE: [u8; 16] = {
        let mut table = [0; 16];
        let mut i = 0;
        while i < 16 {
            table[i] = (iq4_nl::LEVELS[i] as u8) ^ 128;
            i += 1;
        }
        table
    };
    // SAFETY: the table has the 16 bytes that are read.
    unsafe {
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(TABLE.as_ptr().cast()));
        _mm512_shuffle_epi8(table, indices)
    }
}

#[inline(always)]
unsafe fn iq4_nl(p: *const u8) -> Super {
    // SAFETY: eight blocks of 18 bytes.
    unsafe {
        let scale = halves(p, 18);
        Super {
            u: four!(i => levels(nibbles(p.add(36 * i + 2), p.add(36 * i + 20)))),
            scale,
            min: even(_mm512_mul_ps(scale, _mm512_set1_ps(-128.0))),
        }
    }
}

/// The integers of `n_bits` packed in `v`, each in two lanes.
#[inline(always)]
unsafe fn bits_of_groups(v: u32, n_bits: i32, mask: i32) -> __m512i {
    // SAFETY: the level has AVX-512.
    unsafe {
        let group = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
        let shifts = _mm512_mullo_epi32(group, _mm512_set1_epi32(n_bits));
        let shifted = _mm512_srlv_epi32(_mm512_set1_epi32(v as i32), shifts);
        _mm512_and_si512(shifted, _mm512_set1_epi32(mask))
    }
}

#[inline(always)]
unsafe fn iq4_xs(p: *const u8) -> Super {
    // SAFETY: one block: d at 0, the scales' high bits at 2, their low bits at 4, indices at 8.
    unsafe {
        let high = u32::from(p.add(2).cast::<u16>().read_unaligned());
        let low = p.add(4).cast::<u32>().read_unaligned();
        let sc = _mm512_or_si512(
            bits_of_groups(low, 4, 15),
            _mm512_slli_epi32::<4>(bits_of_groups(high, 2, 3)),
        );
        let sc = _mm512_sub_epi32(sc, _mm512_set1_epi32(32));
        let scale = _mm512_mul_ps(half_at(p), _mm512_cvtepi32_ps(sc));
        Super {
            u: four!(i => levels(nibbles(p.add(8 + 32 * i), p.add(24 + 32 * i)))),
            scale,
            min: even(_mm512_mul_ps(scale, _mm512_set1_ps(-128.0))),
        }
    }
}

/// Eight bytes, each in two lanes, as floats.
#[inline(always)]
unsafe fn each_twice(bytes: [u8; 8]) -> __m512 {
    // SAFETY: the level has AVX-512.
    unsafe {
        let v = _mm_cvtsi64_si128(i64::from_le_bytes(bytes));
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(v, v)))
    }
}

/// Scales and minima of Q4_K and Q5_K: d at 0, dmin at 2, the packed ones at 4.
#[inline(always)]
unsafe fn k_scales(p: *const u8) -> (__m512, __m512) {
    // SAFETY: 16 bytes of the block.
    unsafe {
        let (sc, m) = q4_k::unpack_scales(&*p.add(4).cast::<[u8; 12]>());
        let scale = _mm512_mul_ps(half_at(p), each_twice(sc));
        let min = _mm512_mul_ps(half_at(p.add(2)), each_twice(m));
        (scale, even(_mm512_sub_ps(_mm512_setzero_ps(), min)))
    }
}

#[inline(always)]
unsafe fn q4_k(p: *const u8) -> Super {
    // SAFETY: one block: scales in 16 bytes, then 128 bytes of half bytes.
    unsafe {
        let (scale, min) = k_scales(p);
        let u = four!(i => {
            let v = shift(twice(p.add(16 + 32 * i)), [0, 0, 4, 4]);
            _mm512_and_si512(v, _mm512_set1_epi8(15))
        });
        Super { u, scale, min }
    }
}

/// Bytes `a` in the lower half, `b` in the upper.
#[inline(always)]
unsafe fn two_bytes(a: u8, b: u8) -> __m512i {
    // SAFETY: the level has AVX-512.
    unsafe {
        let low = _mm512_castsi256_si512(_mm256_set1_epi8(a as i8));
        _mm512_inserti64x4::<1>(low, _mm256_set1_epi8(b as i8))
    }
}

#[inline(always)]
unsafe fn q5_k(p: *const u8) -> Super {
    // SAFETY: one block: scales in 16 bytes, 32 bytes of fifth bits, 128 of half bytes.
    unsafe {
        let (scale, min) = k_scales(p);
        let high = twice(p.add(16));
        let u = four!(i => {
            let v = shift(twice(p.add(48 + 32 * i)), [0, 0, 4, 4]);
            let v = _mm512_and_si512(v, _mm512_set1_epi8(15));
            let bits = _mm512_test_epi8_mask(high, two_bytes(1 << (2 * i), 2 << (2 * i)));
            _mm512_mask_add_epi8(v, bits, v, _mm512_set1_epi8(16))
        });
        Super { u, scale, min }
    }
}

#[inline(always)]
unsafe fn q6_k(p: *const u8) -> Super {
    // SAFETY: one block: 128 bytes of low half bytes, 64 of high bits, 16 scales, d.
    unsafe {
        let sc = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.add(192).cast()));
        let scale = _mm512_mul_ps(half_at(p.add(208)), _mm512_cvtepi32_ps(sc));
        let u = four!(i => {
            let (half, upper) = (i / 2, 4 * (i % 2) as i16);
            let low = shift(_mm512_loadu_si512(p.add(64 * half).cast()), [upper; 4]);
            let low = _mm512_and_si512(low, _mm512_set1_epi8(15));
            let shifts = [upper, upper, upper + 2, upper + 2];
            let high = shift(twice(p.add(128 + 32 * half)), shifts);
            let high = _mm512_slli_epi16::<4>(_mm512_and_si512(high, _mm512_set1_epi8(3)));
            _mm512_or_si512(low, high)
        });
        Super {
            u,
            scale,
            min: differences(_mm512_mul_ps(scale, _mm512_set1_ps(-32.0))),
        }
    }
}

/// The 2-bit integers of Q2_K and Q3_K at `p`, weights 64 i to 64 i + 63.
#[inline(always)]
unsafe fn two_bits(p: *const u8, i: usize) -> __m512i {
    let first = 4 * (i % 2) as i16;
    // SAFETY: 64 bytes of the block.
    unsafe {
        let v = shift(
            twice(p.add(32 * (i / 2))),
            [first, first, first + 2, first + 2],
        );
        _mm512_and_si512(v, _mm512_set1_epi8(3))
    }
}

/// The low half of each byte as a float.
#[inline(always)]
unsafe fn low_halves(bytes: __m128i) -> __m512 {
    // SAFETY: the level has AVX-512.
    unsafe {
        let low = _mm_and_si128(bytes, _mm_set1_epi8(15));
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(low))
    }
}

#[inline(always)]
unsafe fn q2_k(p: *const u8) -> Super {
    // SAFETY: one block: 16 bytes of scales and minima, 64 of integers, d, dmin.
    unsafe {
        let both = _mm_loadu_si128(p.cast());
        let min = _mm512_mul_ps(half_at(p.add(82)), low_halves(_mm_srli_epi16::<4>(both)));
        Super {
            u: four!(i => two_bits(p.add(16), i)),
            scale: _mm512_mul_ps(half_at(p.add(80)), low_halves(both)),
            min: differences(_mm512_sub_ps(_mm512_setzero_ps(), min)),
        }
    }
}

#[inline(always)]
unsafe fn q3_k(p: *const u8) -> Super {
    // SAFETY: one block: 32 bytes of third bits, 64 of integers, 12 of scales, d.
    unsafe {
        let sc = q3_k::unpack_scales(&*p.add(96).cast::<[u8; 12]>());
        let sc = _mm512_cvtepi8_epi32(_mm_loadu_si128(sc.as_ptr().cast()));
        let scale = _mm512_mul_ps(half_at(p.add(108)), _mm512_cvtepi32_ps(sc));
        let high = twice(p);
        let u = four!(i => {
            let v = two_bits(p.add(32), i);
            let bits = _mm512_test_epi8_mask(high, two_bytes(1 << (2 * i), 2 << (2 * i)));
            _mm512_mask_add_epi8(v, bits, v, _mm512_set1_epi8(4))
        });
        Super {
            u,
            scale,
            min: differences(_mm512_mul_ps(scale, _mm512_set1_ps(-4.0))),
        }
    }
}

/// Formats without a body of their own here, by way of the scalar unpacker.
macro_rules! unpacked_formats {
    ($($name:ident: $dtype:ident;)*) => {$(
        pub(super) struct $name;
        impl Format for $name {
            const DTYPE: DType = DType::$dtype;
            const WIDE: bool = false;
            #[inline(always)]
            unsafe fn load(p: *const u8) -> Super {
                // SAFETY: the trait's conditions are the function's.
                unsafe { unpacked(DType::$dtype, p) }
            }
        }
    )*};
}

unpacked_formats! {
    Q81: Q8_1;
    Q8K: Q8_K;
    Iq1S: IQ1_S;
    Iq1M: IQ1_M;
    Iq2Xxs: IQ2_XXS;
    Iq2Xs: IQ2_XS;
    Iq2S: IQ2_S;
    Iq3Xxs: IQ3_XXS;
    Iq3S: IQ3_S;
    Tq10: TQ1_0;
    Tq20: TQ2_0;
    Mxfp4: MXFP4;
}

#[inline(always)]
unsafe fn unpacked(dtype: DType, p: *const u8) -> Super {
    // SAFETY: the bytes of 256 weights are readable.
    let bytes = unsafe { core::slice::from_raw_parts(p, super_bytes(dtype)) };
    let mut all = Unpacked::ZERO;
    if dtype.block_len() == 256 {
        quant::unpack(dtype, bytes, &mut all);
    } else {
        let mut one = Unpacked::ZERO;
        for (b, bytes) in bytes.chunks_exact(dtype.block_bytes()).enumerate() {
            quant::unpack(dtype, bytes, &mut one);
            all.q[32 * b..][..32].copy_from_slice(&one.q[..32]);
            all.scale[2 * b..][..2].copy_from_slice(&one.scale[..2]);
            all.min[2 * b..][..2].copy_from_slice(&one.min[..2]);
        }
    }
    // SAFETY: the arrays have 256 bytes and 16 floats.
    unsafe {
        let u = four!(i => {
            let q = _mm512_loadu_si512(all.q.as_ptr().add(64 * i).cast());
            _mm512_xor_si512(q, _mm512_set1_epi8(-128)) // plus 128
        });
        let scale = _mm512_loadu_ps(all.scale.as_ptr());
        let min = _mm512_loadu_ps(all.min.as_ptr());
        Super {
            u,
            scale,
            min: differences(_mm512_fnmadd_ps(scale, _mm512_set1_ps(128.0), min)),
        }
    }
}
