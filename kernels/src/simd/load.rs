//! 256 weights of a row, from any format, into registers: small integers with a scale and a
//! minimum for each 16, `w = scale q + min`.
//!
//! Written once for all levels in terms of [`Simd`]. Formats whose integers have an offset keep
//! them unsigned, and the offset times the scale joins the minimum. Formats with blocks of 32 are
//! read eight blocks at a time, so that all kernels see the same shape.

use bytemuck::AnyBitPattern;

use super::Simd;
use crate::DType;
use crate::lanes::f16_to_f32;
use crate::quant::{
    Unpacked, iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs, iq4_nl, mxfp4, q3_k, q4_k,
    q8_1, q8_k, tq1_0, tq2_0,
};

/// What a dot product must know of a format: those of one kind share their code.
pub(super) trait Kind {
    /// Integers are in `0..1 << BITS`, or signed where this is 8.
    const BITS: u32;
    /// Whether both halves of each 32 weights have the same scale and minimum.
    const WIDE: bool;
    /// In a format without minima of its own, what is to be taken off the integers:
    /// `w = scale (q - offset)`.
    const OFFSET: Option<u8>;
    /// The kind once the offset is taken off.
    type Centered: Kind;

    /// Whether scales have at most 22 significant digits (others than Q8_K's have 19), so that
    /// their products with [`INTEGER`](crate::input::INTEGER) are exact.
    #[cfg(target_arch = "x86_64")]
    const SHORT_SCALE: bool = Self::BITS < 8 || Self::OFFSET.is_some();
    /// Whether the scale of each 16 weights is an integer of 8 bits times a step that all 256 share;
    /// [`Format::scales`] has both. Only where there is no minimum.
    const INTEGER_SCALES: bool = Self::OFFSET.is_some() && !Self::WIDE;
    /// Whether minima may differ from zero.
    const HAS_MIN: bool = !matches!(Self::OFFSET, Some(0));
}

/// Formats with a minimum for each scale: `w = scale q + min`.
pub(super) struct Affine<const BITS: u32, const WIDE: bool>;

impl<const BITS: u32, const WIDE: bool> Kind for Affine<BITS, WIDE> {
    const BITS: u32 = BITS;
    const WIDE: bool = WIDE;
    const OFFSET: Option<u8> = None;
    type Centered = Self;
}

/// Formats with a scale only: `w = scale (q - OFFSET)`.
pub(super) struct Symmetric<const BITS: u32, const WIDE: bool, const OFFSET: u8>;

impl<const BITS: u32, const WIDE: bool, const OFFSET: u8> Kind for Symmetric<BITS, WIDE, OFFSET> {
    const BITS: u32 = BITS;
    const WIDE: bool = WIDE;
    const OFFSET: Option<u8> = Some(OFFSET);
    type Centered = Symmetric<8, WIDE, 0>;
}

/// 256 weights.
pub(super) struct Super<S: Simd> {
    /// Weights 64 i to 64 i + 63 in order, in the range of [`Kind::BITS`].
    pub q: [S::Bytes; 4],
    /// A scale for each 16 weights.
    pub scale: S::Floats,
    /// Minima, to be multiplied with [`Q8Rows::sum`](crate::Q8Rows): in the even lanes that of the
    /// first 16 weights of each 32, in the odd lanes what that of the second 16 has more.
    pub min: S::Floats,
}

// Not derived: that would ask for a level that can be copied, where its vectors can.
impl<S: Simd> Clone for Super<S> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Simd> Copy for Super<S> {}

/// How one format is read.
///
/// Implementations are inlined into functions that have the level's target features.
pub(super) trait Format {
    /// The type.
    const DTYPE: DType;
    /// What its integers are like.
    type Kind: Kind;

    /// # Safety
    ///
    /// `p` points to [`super_bytes`] readable bytes, and the CPU has the level's features.
    unsafe fn load<S: Simd>(p: *const u8) -> Super<S>;

    /// The scales as integers, and their step, of kinds with [`Kind::INTEGER_SCALES`].
    ///
    /// # Safety
    ///
    /// As [`Format::load`].
    unsafe fn scales<S: Simd>(_: *const u8) -> (S::Floats, f32) {
        unreachable!("{} has no integer scales", Self::DTYPE)
    }
}

/// Bytes of 256 weights.
pub(super) const fn super_bytes(dtype: DType) -> usize {
    256 / dtype.block_len() * dtype.block_bytes()
}

macro_rules! formats {
    ($($name:ident: $dtype:ident, $kind:ty, $load:ident $(, $scales:ident)?;)*) => {$(
        pub(super) struct $name;
        impl Format for $name {
            const DTYPE: DType = DType::$dtype;
            type Kind = $kind;
            #[inline(always)]
            unsafe fn load<S: Simd>(p: *const u8) -> Super<S> {
                // SAFETY: the trait's conditions are the function's.
                unsafe { $load(p) }
            }
            $(#[inline(always)]
            unsafe fn scales<S: Simd>(p: *const u8) -> (S::Floats, f32) {
                // SAFETY: likewise.
                unsafe { $scales::<S>(p) }
            })?
        }
    )*};
}

formats! {
    Q40: Q4_0, Symmetric<4, true, 8>, q4_0;
    Q41: Q4_1, Affine<4, true>, q4_1;
    Q50: Q5_0, Symmetric<5, true, 16>, q5_0;
    Q51: Q5_1, Affine<5, true>, q5_1;
    Q80: Q8_0, Symmetric<8, true, 0>, q8_0;
    Iq4Nl: IQ4_NL, Symmetric<8, true, 0>, iq4_nl;
    Iq4Xs: IQ4_XS, Symmetric<8, true, 0>, iq4_xs;
    Q2K: Q2_K, Affine<4, false>, q2_k;
    Q3K: Q3_K, Symmetric<4, false, 4>, q3_k, q3_k_scales;
    Q4K: Q4_K, Affine<4, true>, q4_k;
    Q5K: Q5_K, Affine<5, true>, q5_k;
    Q6K: Q6_K, Symmetric<6, false, 32>, q6_k, q6_k_scales;
}

// The functions below are unsafe as `Format::load` is, with the same conditions: every read stays
// inside the 256 weights' bytes. They are bodies of it, not callable from elsewhere.

#[inline(always)]
unsafe fn q4_0<S: Simd>(p: *const u8) -> Super<S> {
    // SAFETY: eight blocks of 18 bytes.
    unsafe {
        let blocks = S::nibble_blocks::<18>(p);
        Super {
            q: blocks.q,
            scale: blocks.first,
            min: S::even(S::mul(blocks.first, S::splat_float(-8.0))),
        }
    }
}

#[inline(always)]
unsafe fn q4_1<S: Simd>(p: *const u8) -> Super<S> {
    // SAFETY: eight blocks of 20 bytes.
    unsafe {
        let blocks = S::nibble_blocks::<20>(p);
        Super {
            q: blocks.q,
            scale: blocks.first,
            min: S::even(blocks.second),
        }
    }
}

/// Half bytes with a fifth bit: `bits` at `a` and `b`, the half bytes four bytes after them.
#[inline(always)]
unsafe fn five_bits<S: Simd>(a: *const u8, b: *const u8) -> S::Bytes {
    // SAFETY: see above.
    unsafe {
        let bits = |p: *const u8| u32::from_le_bytes(p.cast::<[u8; 4]>().read());
        S::or(
            S::nibbles(a.add(4), b.add(4)),
            S::where_bits(bits(a), bits(b), 16),
        )
    }
}

#[inline(always)]
unsafe fn q5_0<S: Simd>(p: *const u8) -> Super<S> {
    // SAFETY: eight blocks of 22 bytes.
    unsafe {
        let scale = S::halves(p, 22);
        Super {
            q: four!(i => five_bits::<S>(p.add(44 * i + 2), p.add(44 * i + 24))),
            scale,
            min: S::even(S::mul(scale, S::splat_float(-16.0))),
        }
    }
}

#[inline(always)]
unsafe fn q5_1<S: Simd>(p: *const u8) -> Super<S> {
    // SAFETY: eight blocks of 24 bytes.
    unsafe {
        Super {
            q: four!(i => five_bits::<S>(p.add(48 * i + 4), p.add(48 * i + 28))),
            scale: S::halves(p, 24),
            min: S::even(S::halves(p.add(2), 24)),
        }
    }
}

#[inline(always)]
unsafe fn q8_0<S: Simd>(p: *const u8) -> Super<S> {
    // SAFETY: eight blocks of 34 bytes.
    unsafe {
        Super {
            q: four!(i => S::load_two(p.add(68 * i + 2), p.add(68 * i + 36))),
            scale: S::halves(p, 34),
            min: S::splat_float(0.0),
        }
    }
}

#[inline(always)]
unsafe fn iq4_nl<S: Simd>(p: *const u8) -> Super<S> {
    // SAFETY: eight blocks of 18 bytes.
    unsafe {
        let blocks = S::nibble_blocks::<18>(p);
        Super {
            q: four!(i => S::look_up(&iq4_nl::LEVELS, blocks.q[i])),
            scale: blocks.first,
            min: S::splat_float(0.0),
        }
    }
}

#[inline(always)]
unsafe fn iq4_xs<S: Simd>(p: *const u8) -> Super<S> {
    // SAFETY: one block: d at 0, the scales' high bits at 2, their low bits at 4, indices at 8.
    unsafe {
        // Eight fields of 2 and of 4 bits, spread to a byte each.
        let high = u64::from(u16::from_le_bytes(p.add(2).cast::<[u8; 2]>().read()));
        let high = (high | high << 24) & 0x0000_00ff_0000_00ff;
        let high = (high | high << 12) & 0x000f_000f_000f_000f;
        let high = (high | high << 6) & 0x0303_0303_0303_0303;
        let low = u64::from(u32::from_le_bytes(p.add(4).cast::<[u8; 4]>().read()));
        let low = (low | low << 16) & 0x0000_ffff_0000_ffff;
        let low = (low | low << 8) & 0x00ff_00ff_00ff_00ff;
        let low = (low | low << 4) & 0x0f0f_0f0f_0f0f_0f0f;
        let sc = S::each_twice((low | high << 4).to_le_bytes());
        let d = S::half(p);
        Super {
            q: four!(i => {
                let indices = S::nibbles(p.add(8 + 32 * i), p.add(24 + 32 * i));
                S::look_up(&iq4_nl::LEVELS, indices)
            }),
            scale: S::mul_add(d, sc, S::mul(d, S::splat_float(-32.0))),
            min: S::splat_float(0.0),
        }
    }
}

/// Scales and minima of Q4_K and Q5_K: d at 0, dmin at 2, the packed ones at 4.
#[inline(always)]
unsafe fn k_scales<S: Simd>(p: *const u8) -> (S::Floats, S::Floats) {
    // SAFETY: 16 bytes of the block.
    unsafe {
        let (sc, m) = q4_k::unpack_scales(&*p.add(4).cast::<[u8; 12]>());
        let scale = S::mul(S::half(p), S::each_twice(sc));
        let min = S::mul(S::half(p.add(2)), S::each_twice(m));
        (scale, S::even(S::mul(min, S::splat_float(-1.0))))
    }
}

#[inline(always)]
unsafe fn q4_k<S: Simd>(p: *const u8) -> Super<S> {
    // SAFETY: one block: scales in 16 bytes, then 128 bytes of half bytes.
    unsafe {
        let (scale, min) = k_scales::<S>(p);
        let q = four!(i => {
            let v = S::shift(S::load_twice(p.add(16 + 32 * i)), [0, 4]);
            S::and(v, S::splat(15))
        });
        Super { q, scale, min }
    }
}

#[inline(always)]
unsafe fn q5_k<S: Simd>(p: *const u8) -> Super<S> {
    // SAFETY: one block: scales in 16 bytes, 32 bytes of fifth bits, 128 of half bytes.
    unsafe {
        let (scale, min) = k_scales::<S>(p);
        let high = S::load_twice(p.add(16));
        let q = four!(i => {
            let v = S::shift(S::load_twice(p.add(48 + 32 * i)), [0, 4]);
            // Bits 2 i and 2 i + 1 move to bit 4.
            let n = 2 * i as i8;
            let fifth = S::shift(high, [n - 4, n - 3]);
            S::or(S::and(v, S::splat(15)), S::and(fifth, S::splat(16)))
        });
        Super { q, scale, min }
    }
}

#[inline(always)]
unsafe fn q6_k_scales<S: Simd>(p: *const u8) -> (S::Floats, f32) {
    // SAFETY: one block: 16 scales, and d, after 192 bytes of integers.
    unsafe { (S::from_i8(p.add(192).cast()), half(p.add(208))) }
}

#[inline(always)]
unsafe fn q6_k<S: Simd>(p: *const u8) -> Super<S> {
    // SAFETY: one block: 128 bytes of low half bytes, 64 of high bits, 16 scales, d.
    unsafe {
        let scale = S::mul(S::half(p.add(208)), S::from_i8(p.add(192).cast()));
        let q = four!(i => {
            let (half, upper) = (i / 2, 4 * (i % 2) as i8);
            let low = S::shift(S::load_two(p.add(64 * half), p.add(64 * half + 32)), [upper; 2]);
            // Their two bits move to bits 4 and 5.
            let high = S::load_twice(p.add(128 + 32 * half));
            let high = S::shift(high, [upper - 4, upper - 2]);
            S::or(S::and(low, S::splat(15)), S::and(high, S::splat(48)))
        });
        Super {
            q,
            scale,
            min: S::differences(S::mul(scale, S::splat_float(-32.0))),
        }
    }
}

/// The f16 at `p`.
#[inline(always)]
unsafe fn half(p: *const u8) -> f32 {
    // SAFETY: two bytes of the block.
    f16_to_f32(u16::from_le_bytes(unsafe { p.cast::<[u8; 2]>().read() }))
}

/// The 2-bit integers of Q2_K and Q3_K at `p`, weights 64 i to 64 i + 63.
#[inline(always)]
unsafe fn two_bits<S: Simd>(p: *const u8, i: usize) -> S::Bytes {
    let n = 4 * (i % 2) as i8;
    // SAFETY: 64 bytes of the block.
    unsafe {
        let v = S::shift(S::load_twice(p.add(32 * (i / 2))), [n, n + 2]);
        S::and(v, S::splat(3))
    }
}

#[inline(always)]
unsafe fn q2_k<S: Simd>(p: *const u8) -> Super<S> {
    // SAFETY: one block: 16 bytes of scales and minima, 64 of integers, d, dmin.
    unsafe {
        let both = u128::from_le_bytes(p.cast::<[u8; 16]>().read());
        let low_halves = |v: u128| (v & 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f).to_le_bytes();
        let (sc, m) = (low_halves(both), low_halves(both >> 4));
        let min = S::mul(S::half(p.add(82)), S::from_i8(m.as_ptr().cast()));
        Super {
            q: four!(i => two_bits::<S>(p.add(16), i)),
            scale: S::mul(S::half(p.add(80)), S::from_i8(sc.as_ptr().cast())),
            min: S::differences(S::mul(min, S::splat_float(-1.0))),
        }
    }
}

#[inline(always)]
unsafe fn q3_k_scales<S: Simd>(p: *const u8) -> (S::Floats, f32) {
    // SAFETY: one block: scales at 96, d at 108.
    unsafe {
        let sc = q3_k::unpack_scales(&*p.add(96).cast::<[u8; 12]>());
        (S::from_i8(sc.as_ptr()), half(p.add(108)))
    }
}

#[inline(always)]
unsafe fn q3_k<S: Simd>(p: *const u8) -> Super<S> {
    // SAFETY: one block: 32 bytes of third bits, 64 of integers, 12 of scales, d.
    unsafe {
        let sc = q3_k::unpack_scales(&*p.add(96).cast::<[u8; 12]>());
        let scale = S::mul(S::half(p.add(108)), S::from_i8(sc.as_ptr()));
        let high = S::load_twice(p);
        let q = four!(i => {
            // Bits 2 i and 2 i + 1 move to bit 2.
            let n = 2 * i as i8;
            let third = S::shift(high, [n - 2, n - 1]);
            S::or(two_bits::<S>(p.add(32), i), S::and(third, S::splat(4)))
        });
        Super {
            q,
            scale,
            min: S::differences(S::mul(scale, S::splat_float(-4.0))),
        }
    }
}

/// Formats without a body of their own here, by way of the scalar unpacker.
macro_rules! unpacked_formats {
    ($($name:ident: $dtype:ident, $module:ident;)*) => {$(
        pub(super) struct $name;
        impl Format for $name {
            const DTYPE: DType = DType::$dtype;
            type Kind = Affine<8, false>;
            #[inline(always)]
            unsafe fn load<S: Simd>(p: *const u8) -> Super<S> {
                // SAFETY: the trait's conditions are the function's.
                unsafe { unpacked(DType::$dtype, p, $module::unpack) }
            }
        }
    )*};
}

unpacked_formats! {
    Q81: Q8_1, q8_1;
    Q8K: Q8_K, q8_k;
    Iq1S: IQ1_S, iq1_s;
    Iq1M: IQ1_M, iq1_m;
    Iq2Xxs: IQ2_XXS, iq2_xxs;
    Iq2Xs: IQ2_XS, iq2_xs;
    Iq2S: IQ2_S, iq2_s;
    Iq3Xxs: IQ3_XXS, iq3_xxs;
    Iq3S: IQ3_S, iq3_s;
    Tq10: TQ1_0, tq1_0;
    Tq20: TQ2_0, tq2_0;
    Mxfp4: MXFP4, mxfp4;
}

/// By the function that unpacks a block `B`.
#[inline(always)]
unsafe fn unpacked<S: Simd, B: AnyBitPattern>(
    dtype: DType,
    p: *const u8,
    unpack: impl Fn(&B, &mut Unpacked),
) -> Super<S> {
    // SAFETY: the bytes of 256 weights are readable.
    let bytes = unsafe { core::slice::from_raw_parts(p, super_bytes(dtype)) };
    let mut all = Unpacked::ZERO;
    if dtype.block_len() == 256 {
        unpack(bytemuck::from_bytes(bytes), &mut all);
    } else {
        let mut one = Unpacked::ZERO;
        for (b, bytes) in bytes.chunks_exact(dtype.block_bytes()).enumerate() {
            unpack(bytemuck::from_bytes(bytes), &mut one);
            all.q[32 * b..][..32].copy_from_slice(&one.q[..32]);
            all.scale[2 * b..][..2].copy_from_slice(&one.scale[..2]);
            all.min[2 * b..][..2].copy_from_slice(&one.min[..2]);
        }
    }
    // SAFETY: the arrays have 256 bytes and 16 floats.
    unsafe {
        let q = all.q.as_ptr().cast::<u8>();
        Super {
            q: four!(i => S::load_two(q.add(64 * i), q.add(64 * i + 32))),
            scale: S::floats(all.scale.as_ptr()),
            min: S::differences(S::floats(all.min.as_ptr())),
        }
    }
}
