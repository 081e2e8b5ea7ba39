//! 256 weights of a row, from any format, into registers: small integers with a scale and a
//! minimum for each 16, `w = scale q + min`.
//!
//! Written once for all levels in terms of [`Simd`]. Formats whose integers have an offset keep
//! them unsigned; it is taken off by the products, exactly. Formats with blocks of 32 are read eight
//! blocks at a time, so that all kernels see the same shape.

use bytemuck::AnyBitPattern;

use super::{Quad, Simd, ahead};
use crate::DType;
use crate::lanes::f16_to_f32;
use crate::quant::{
    Unpacked, iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs, iq4_nl, mxfp4, q3_k, q4_k,
    q8_1, q8_k, tq1_0, tq2_0,
};

/// What products must know of a format: those of one kind share their code.
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

/// MXFP4: its scales are powers of two that go up to the end of what a float can be.
pub(super) struct Powers;

impl Kind for Powers {
    const BITS: u32 = 8;
    const WIDE: bool = true;
    const OFFSET: Option<u8> = Some(0);
    type Centered = Self;
    #[cfg(target_arch = "x86_64")]
    const SHORT_SCALE: bool = false;
}

/// The scales and minima of 256 weights.
pub(super) struct Scales<S: Simd> {
    /// A scale for each 16 weights.
    pub scale: S::Floats,
    /// Minima, to be multiplied with [`Q8Rows::sum`](crate::Q8Rows): in the even lanes that of the
    /// first 16 weights of each 32, in the odd lanes what that of the second 16 has more. Not used, and
    /// of any value, in kinds without.
    pub min: S::Floats,
    /// What scales are still to be multiplied with, of kinds with [`Kind::INTEGER_SCALES`].
    pub step: f32,
}

/// The scales and minima of 256 weights of four rows.
pub(super) struct Quads<S: Simd> {
    /// Of each 16 weights; of wide kinds the first eight, of each 32.
    pub scale: [[S::Quad; 8]; 2],
    /// As [`Scales::min`] has them; not used, and of any value, in kinds without.
    pub min: [[S::Quad; 8]; 2],
    /// What integer scales are still to be multiplied with; of any value in kinds with others.
    pub step: S::Quad,
}

impl<S: Simd> Quads<S> {
    /// Of wide kinds.
    #[inline(always)]
    unsafe fn wide(scale: [S::Quad; 8], min: [S::Quad; 8]) -> Quads<S> {
        Quads {
            scale: [scale; 2],
            min: [min; 2],
            step: scale[0],
        }
    }
}

/// How one format is read.
///
/// Implementations are inlined into functions that have the level's target features.
pub(super) trait Format {
    /// The type; none where it is any without a format of its own.
    const DTYPE: Option<DType>;
    /// What its integers are like.
    type Kind: Kind;

    /// Where the other functions read the 256 weights of a type at `p`: there, or unpacked in `space`.
    ///
    /// # Safety
    ///
    /// `p` points to [`super_bytes`] readable bytes, and the CPU has the level's features.
    #[inline(always)]
    unsafe fn open<S: Simd>(_: DType, p: *const u8, _space: &mut Unpacked) -> *const u8 {
        p
    }

    /// Weights 64 i to 64 i + 63 in order, in the range of [`Kind::BITS`].
    ///
    /// # Safety
    ///
    /// `p` is what [`Format::open`] gave, `i` below 4, and the CPU has the level's features.
    unsafe fn q<S: Simd>(p: *const u8, i: usize) -> S::Bytes;

    /// # Safety
    ///
    /// As [`Format::q`].
    unsafe fn scales<S: Simd>(p: *const u8) -> Scales<S>;

    /// The scales and minima of four rows.
    ///
    /// # Safety
    ///
    /// As [`Format::q`].
    unsafe fn quads<S: Simd>(rows: [*const u8; 4]) -> Quads<S>;
}

/// Bytes of 256 weights.
pub(super) const fn super_bytes(dtype: DType) -> usize {
    256 / dtype.block_len() * dtype.block_bytes()
}

macro_rules! formats {
    ($($name:ident: $dtype:ident, $kind:ty, $q:expr, $scales:expr, $quads:expr;)*) => {$(
        pub(super) struct $name;
        impl Format for $name {
            const DTYPE: Option<DType> = Some(DType::$dtype);
            type Kind = $kind;
            #[inline(always)]
            unsafe fn q<S: Simd>(p: *const u8, i: usize) -> S::Bytes {
                // SAFETY: the trait's conditions are the function's.
                unsafe { $q(p, i) }
            }
            #[inline(always)]
            unsafe fn scales<S: Simd>(p: *const u8) -> Scales<S> {
                // SAFETY: likewise.
                unsafe { $scales(p) }
            }
            #[inline(always)]
            unsafe fn quads<S: Simd>(rows: [*const u8; 4]) -> Quads<S> {
                // SAFETY: likewise.
                unsafe { $quads(rows) }
            }
        }
    )*};
}

formats! {
    Q40: Q4_0, Symmetric<4, true, 8>, S::nibble_blocks::<18>, nibble_scales::<S, 18>, nibble_quads::<S, 18>;
    Q41: Q4_1, Affine<4, true>, S::nibble_blocks::<20>, nibble_scales::<S, 20>, nibble_quads::<S, 20>;
    Q50: Q5_0, Symmetric<5, true, 16>, five_bits::<S, 22>, half_scales::<S, 22>, half_quads::<S, 22>;
    Q51: Q5_1, Affine<5, true>, five_bits::<S, 24>, half_scales::<S, 24>, half_quads::<S, 24>;
    Q80: Q8_0, Symmetric<8, true, 0>, q8_0::<S>, half_scales::<S, 34>, half_quads::<S, 34>;
    Iq4Nl: IQ4_NL, Symmetric<8, true, 0>, iq4_nl::<S>, nibble_scales::<S, 18>, nibble_quads::<S, 18>;
    Mxfp4: MXFP4, Powers, mxfp4::<S>, mxfp4_scales, mxfp4_quads;
    Iq4Xs: IQ4_XS, Symmetric<8, true, 0>, iq4_xs::<S>, iq4_xs_scales, iq4_xs_quads;
    Q2K: Q2_K, Affine<4, false>, q2_k::<S>, q2_k_scales, q2_k_quads;
    Q3K: Q3_K, Symmetric<4, false, 4>, q3_k::<S>, q3_k_scales, q3_k_quads;
    Q4K: Q4_K, Affine<4, true>, q4_k::<S>, k_scales, k_quads;
    Q5K: Q5_K, Affine<5, true>, q5_k::<S>, k_scales, k_quads;
    Q6K: Q6_K, Symmetric<6, false, 32>, q6_k::<S>, q6_k_scales, q6_k_quads;
}

// The functions below are unsafe as `Format::q` is, with the same conditions: every read stays
// inside the 256 weights' bytes. They are bodies of it, not callable from elsewhere.

/// Four rows' [`Scales`], transposed.
#[inline(always)]
unsafe fn transposed<S: Simd>(rows: [Scales<S>; 4]) -> Quads<S> {
    // SAFETY: see above.
    unsafe {
        Quads {
            scale: S::quads(four!(i => rows[i].scale)),
            min: S::quads(four!(i => rows[i].min)),
            step: S::Quad::splat(1.0),
        }
    }
}

/// Of blocks of `N` bytes that begin with an f16, or two.
#[inline(always)]
unsafe fn half_scales<S: Simd, const N: usize>(p: *const u8) -> Scales<S> {
    // SAFETY: eight blocks.
    unsafe {
        Scales {
            scale: S::halves(p, N),
            min: S::even(S::halves(p.add(2), N)),
            step: 1.0,
        }
    }
}

#[inline(always)]
unsafe fn half_quads<S: Simd, const N: usize>(rows: [*const u8; 4]) -> Quads<S> {
    // SAFETY: eight blocks of each.
    unsafe {
        let first = eight!(b => S::half_quad(ahead(rows, N * b)));
        Quads::wide(first, eight!(b => S::half_quad(ahead(rows, N * b + 2))))
    }
}

/// Likewise, with 16 bytes of half bytes after that.
#[inline(always)]
unsafe fn nibble_scales<S: Simd, const N: usize>(p: *const u8) -> Scales<S> {
    // SAFETY: eight blocks.
    unsafe {
        let [first, second] = S::nibble_halves::<N>(p);
        Scales {
            scale: first,
            min: S::even(second),
            step: 1.0,
        }
    }
}

#[inline(always)]
unsafe fn nibble_quads<S: Simd, const N: usize>(rows: [*const u8; 4]) -> Quads<S> {
    // SAFETY: eight blocks of each.
    unsafe {
        let [first, second] = S::nibble_quads::<N>(rows);
        Quads::wide(first, second)
    }
}

/// Blocks of `N` bytes: half bytes in the last 16, a fifth bit of each in the four before them.
#[inline(always)]
unsafe fn five_bits<S: Simd, const N: usize>(p: *const u8, i: usize) -> S::Bytes {
    // SAFETY: two of eight blocks.
    unsafe {
        let (a, b) = (p.add(2 * N * i + N - 20), p.add(2 * N * i + 2 * N - 20));
        S::fifth_bits(S::nibbles(a.add(4), b.add(4)), a, b)
    }
}

#[inline(always)]
unsafe fn q8_0<S: Simd>(p: *const u8, i: usize) -> S::Bytes {
    // SAFETY: two of eight blocks of 34 bytes.
    unsafe { S::load_two(p.add(68 * i + 2), p.add(68 * i + 36)) }
}

#[inline(always)]
unsafe fn iq4_nl<S: Simd>(p: *const u8, i: usize) -> S::Bytes {
    // SAFETY: of eight blocks of 18 bytes.
    unsafe { S::look_up(&iq4_nl::LEVELS, S::nibble_blocks::<18>(p, i)) }
}

#[inline(always)]
unsafe fn mxfp4<S: Simd>(p: *const u8, i: usize) -> S::Bytes {
    // SAFETY: two of eight blocks of 17 bytes: an exponent, then indices.
    unsafe {
        let indices = S::nibbles(p.add(34 * i + 1), p.add(34 * i + 18));
        S::look_up(&mxfp4::LEVELS, indices)
    }
}

/// The eight blocks' scales.
#[inline(always)]
unsafe fn mxfp4_halves(p: *const u8) -> [f32; 8] {
    // SAFETY: eight blocks.
    eight!(b => mxfp4::half_scale(unsafe { p.add(17 * b).read() }))
}

#[inline(always)]
unsafe fn mxfp4_scales<S: Simd>(p: *const u8) -> Scales<S> {
    // SAFETY: eight blocks; 16 floats.
    unsafe {
        let twice: [[f32; 2]; 8] = mxfp4_halves(p).map(|scale| [scale; 2]);
        Scales {
            scale: S::floats(twice.as_ptr().cast()),
            min: S::splat_float(0.0),
            step: 1.0,
        }
    }
}

#[inline(always)]
unsafe fn mxfp4_quads<S: Simd>(rows: [*const u8; 4]) -> Quads<S> {
    // SAFETY: eight blocks of each; 16 floats, of which eight are of use.
    unsafe {
        let rows = four!(i => [mxfp4_halves(rows[i]); 2]);
        let [scale, _] = S::quads(four!(i => S::floats(rows[i].as_ptr().cast())));
        Quads::wide(scale, scale)
    }
}

#[inline(always)]
unsafe fn iq4_xs<S: Simd>(p: *const u8, i: usize) -> S::Bytes {
    // SAFETY: one block: d at 0, the scales' high bits at 2, their low bits at 4, indices at 8.
    unsafe {
        let indices = S::nibbles(p.add(8 + 32 * i), p.add(24 + 32 * i));
        S::look_up(&iq4_nl::LEVELS, indices)
    }
}

/// The integers of the scales, plus 32.
#[inline(always)]
unsafe fn iq4_xs_integers(p: *const u8) -> [u8; 8] {
    // SAFETY: six bytes of the block.
    let (high, low) = unsafe {
        let high = u16::from_le_bytes(p.add(2).cast::<[u8; 2]>().read());
        let low = u32::from_le_bytes(p.add(4).cast::<[u8; 4]>().read());
        (u64::from(high), u64::from(low))
    };
    // Eight fields of 2 and of 4 bits, spread to a byte each.
    let high = (high | high << 24) & 0x0000_00ff_0000_00ff;
    let high = (high | high << 12) & 0x000f_000f_000f_000f;
    let high = (high | high << 6) & 0x0303_0303_0303_0303;
    let low = (low | low << 16) & 0x0000_ffff_0000_ffff;
    let low = (low | low << 8) & 0x00ff_00ff_00ff_00ff;
    let low = (low | low << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    (low | high << 4).to_le_bytes()
}

#[inline(always)]
unsafe fn iq4_xs_quads<S: Simd>(rows: [*const u8; 4]) -> Quads<S> {
    // SAFETY: one block of each.
    unsafe {
        let sc = S::byte_quads(four!(i => iq4_xs_integers(rows[i])));
        let d = S::half_quad(rows);
        let start = d.mul(S::Quad::splat(-32.0));
        let scale = eight!(b => d.mul_add(sc[b], start));
        Quads::wide(scale, scale)
    }
}

#[inline(always)]
unsafe fn iq4_xs_scales<S: Simd>(p: *const u8) -> Scales<S> {
    // SAFETY: one block.
    unsafe {
        let (d, sc) = (S::half(p), S::each_twice(iq4_xs_integers(p)));
        Scales {
            scale: S::mul_add(d, sc, S::mul(d, S::splat_float(-32.0))),
            min: S::splat_float(0.0),
            step: 1.0,
        }
    }
}

/// Scales and minima of Q4_K and Q5_K: d at 0, dmin at 2, the packed ones at 4.
#[inline(always)]
unsafe fn k_scales<S: Simd>(p: *const u8) -> Scales<S> {
    // SAFETY: 16 bytes of the block.
    unsafe {
        let (sc, m) = q4_k::unpack_scales(&*p.add(4).cast::<[u8; 12]>());
        let min = S::mul(S::half(p.add(2)), S::each_twice(m));
        Scales {
            scale: S::mul(S::half(p), S::each_twice(sc)),
            min: S::even(S::mul(min, S::splat_float(-1.0))),
            step: 1.0,
        }
    }
}

#[inline(always)]
unsafe fn k_quads<S: Simd>(rows: [*const u8; 4]) -> Quads<S> {
    // SAFETY: 16 bytes of each block.
    unsafe {
        let [scale, min] = S::k_quads(rows);
        Quads::wide(scale, min)
    }
}

#[inline(always)]
unsafe fn q4_k<S: Simd>(p: *const u8, i: usize) -> S::Bytes {
    // SAFETY: one block: scales in 16 bytes, then 128 bytes of half bytes.
    unsafe {
        let v = S::shift(S::load_twice(p.add(16 + 32 * i)), [0, 4]);
        S::and(v, S::splat(15))
    }
}

#[inline(always)]
unsafe fn q5_k<S: Simd>(p: *const u8, i: usize) -> S::Bytes {
    // SAFETY: one block: scales in 16 bytes, 32 bytes of fifth bits, 128 of half bytes.
    unsafe {
        let v = S::shift(S::load_twice(p.add(48 + 32 * i)), [0, 4]);
        // Bits 2 i and 2 i + 1 move to bit 4.
        let n = 2 * i as i8;
        let fifth = S::shift(S::load_twice(p.add(16)), [n - 4, n - 3]);
        S::insert(S::and(v, S::splat(15)), fifth, 16)
    }
}

#[inline(always)]
unsafe fn q6_k_scales<S: Simd>(p: *const u8) -> Scales<S> {
    // SAFETY: one block: 16 scales, and d, after 192 bytes of integers.
    unsafe {
        Scales {
            scale: S::from_i8(p.add(192).cast()),
            min: S::splat_float(0.0),
            step: half(p.add(208)),
        }
    }
}

/// 16 integer scales of each row, and the f16s at `steps`.
#[inline(always)]
unsafe fn integer_quads<S: Simd>(rows: [[[u8; 8]; 2]; 4], steps: [*const u8; 4]) -> Quads<S> {
    // SAFETY: see above.
    unsafe {
        let first = S::byte_quads(four!(i => rows[i][0]));
        let scale = [first, S::byte_quads(four!(i => rows[i][1]))];
        Quads {
            scale,
            min: scale,
            step: S::half_quad(steps),
        }
    }
}

#[inline(always)]
unsafe fn q6_k_quads<S: Simd>(rows: [*const u8; 4]) -> Quads<S> {
    // SAFETY: 18 bytes at the end of each block.
    unsafe {
        let sc = four!(i => rows[i].add(192).cast::<[[u8; 8]; 2]>().read());
        integer_quads(sc, ahead(rows, 208))
    }
}

#[inline(always)]
unsafe fn q6_k<S: Simd>(p: *const u8, i: usize) -> S::Bytes {
    // SAFETY: one block: 128 bytes of low half bytes, 64 of high bits, 16 scales, d.
    unsafe {
        let (half, upper) = (i / 2, 4 * (i % 2) as i8);
        let low = S::shift(
            S::load_two(p.add(64 * half), p.add(64 * half + 32)),
            [upper; 2],
        );
        // Their two bits move to bits 4 and 5.
        let high = S::load_twice(p.add(128 + 32 * half));
        let high = S::shift(high, [upper - 4, upper - 2]);
        S::insert(S::and(low, S::splat(15)), high, 48)
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
unsafe fn q2_k<S: Simd>(p: *const u8, i: usize) -> S::Bytes {
    // SAFETY: one block: 64 bytes of integers after 16 of scales.
    unsafe { two_bits::<S>(p.add(16), i) }
}

#[inline(always)]
unsafe fn q2_k_scales<S: Simd>(p: *const u8) -> Scales<S> {
    // SAFETY: one block: 16 bytes of scales and minima, 64 of integers, d, dmin.
    unsafe {
        let both = u128::from_le_bytes(p.cast::<[u8; 16]>().read());
        let low_halves = |v: u128| (v & 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f).to_le_bytes();
        let (sc, m) = (low_halves(both), low_halves(both >> 4));
        let min = S::mul(S::half(p.add(82)), S::from_i8(m.as_ptr().cast()));
        Scales {
            scale: S::mul(S::half(p.add(80)), S::from_i8(sc.as_ptr().cast())),
            min: S::differences(S::mul(min, S::splat_float(-1.0))),
            step: 1.0,
        }
    }
}

#[inline(always)]
unsafe fn q2_k_quads<S: Simd>(rows: [*const u8; 4]) -> Quads<S> {
    // SAFETY: one block of each, as above.
    unsafe {
        let d = S::half_quad(ahead(rows, 80));
        let less = S::half_quad(ahead(rows, 82)).mul(S::Quad::splat(-1.0));
        let [sc, m] = q2_k_integers::<S>(rows);
        let [more_sc, more_m] = q2_k_integers::<S>(ahead(rows, 8));
        Quads {
            scale: [eight!(b => d.mul(sc[b])), eight!(b => d.mul(more_sc[b]))],
            min: [
                eight!(b => less.mul(m[b])),
                eight!(b => less.mul(more_m[b])),
            ],
            step: d,
        }
    }
}

/// Eight integer scales of each row, and minima: in the odd places their differences, since the products with
/// dmin are exact.
#[inline(always)]
unsafe fn q2_k_integers<S: Simd>(rows: [*const u8; 4]) -> [[S::Quad; 8]; 2] {
    const LOW: u64 = 0x0f0f_0f0f_0f0f_0f0f;
    const EVEN: u64 = 0x00ff_00ff_00ff_00ff;
    const TOP: u64 = 0x8080_8080_8080_8080;
    // SAFETY: eight bytes of each row.
    unsafe {
        let both = four!(i => u64::from_le_bytes(rows[i].cast::<[u8; 8]>().read()));
        let m = four!(i => both[i] >> 4 & LOW);
        let differences = four!(i => ((m[i] | TOP) - ((m[i] & EVEN) << 8)) ^ TOP);
        [
            S::byte_quads(four!(i => (both[i] & LOW).to_le_bytes())),
            S::byte_quads(four!(i => differences[i].to_le_bytes())),
        ]
    }
}

#[inline(always)]
unsafe fn q3_k_scales<S: Simd>(p: *const u8) -> Scales<S> {
    // SAFETY: one block: scales at 96, d at 108.
    unsafe {
        let sc = q3_k::unpack_scales(&*p.add(96).cast::<[u8; 12]>());
        Scales {
            scale: S::from_i8(sc.as_ptr()),
            min: S::splat_float(0.0),
            step: half(p.add(108)),
        }
    }
}

#[inline(always)]
unsafe fn q3_k_quads<S: Simd>(rows: [*const u8; 4]) -> Quads<S> {
    // SAFETY: 14 bytes at the end of each block.
    unsafe {
        let sc = four!(i => q3_k::unpack_scales(&*rows[i].add(96).cast::<[u8; 12]>()));
        integer_quads(four!(i => bytemuck::cast(sc[i])), ahead(rows, 108))
    }
}

#[inline(always)]
unsafe fn q3_k<S: Simd>(p: *const u8, i: usize) -> S::Bytes {
    // SAFETY: one block: 32 bytes of third bits, 64 of integers, 12 of scales, d.
    unsafe {
        // Bits 2 i and 2 i + 1 move to bit 2.
        let n = 2 * i as i8;
        let third = S::shift(S::load_twice(p), [n - 2, n - 1]);
        S::insert(two_bits::<S>(p.add(32), i), third, 4)
    }
}

/// Every type without a body of its own here, by way of the scalar unpacker.
pub(super) struct Others;

impl Format for Others {
    const DTYPE: Option<DType> = None;
    type Kind = Affine<8, false>;

    #[inline(always)]
    unsafe fn open<S: Simd>(dtype: DType, p: *const u8, space: &mut Unpacked) -> *const u8 {
        // SAFETY: the trait's conditions.
        unsafe {
            let bytes = core::slice::from_raw_parts(p, super_bytes(dtype));
            S::unpack(dtype, bytes, space);
        }
        (&raw const *space).cast()
    }

    #[inline(always)]
    unsafe fn q<S: Simd>(p: *const u8, i: usize) -> S::Bytes {
        // SAFETY: `open` gave an `Unpacked`, which begins with 256 integers.
        unsafe { S::load_two(p.add(64 * i), p.add(64 * i + 32)) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(p: *const u8) -> Scales<S> {
        // SAFETY: likewise; the arrays have 16 floats.
        unsafe {
            let all = &*p.cast::<Unpacked>();
            Scales {
                scale: S::floats(all.scale.as_ptr()),
                min: S::differences(S::floats(all.min.as_ptr())),
                step: 1.0,
            }
        }
    }

    #[inline(always)]
    unsafe fn quads<S: Simd>(rows: [*const u8; 4]) -> Quads<S> {
        // SAFETY: likewise.
        unsafe { transposed(four!(i => Self::scales::<S>(rows[i]))) }
    }
}

/// Unpacks 256 weights of these formats. Each level compiles it once.
#[inline(always)]
pub(super) fn unpack(dtype: DType, bytes: &[u8], all: &mut Unpacked) {
    match dtype {
        DType::Q8_1 => unpack_small(dtype, bytes, all, q8_1::unpack),
        DType::Q8_K => q8_k::unpack(bytemuck::from_bytes(bytes), all),
        DType::IQ1_S => iq1_s::unpack(bytemuck::from_bytes(bytes), all),
        DType::IQ1_M => iq1_m::unpack(bytemuck::from_bytes(bytes), all),
        DType::IQ2_XXS => iq2_xxs::unpack(bytemuck::from_bytes(bytes), all),
        DType::IQ2_XS => iq2_xs::unpack(bytemuck::from_bytes(bytes), all),
        DType::IQ2_S => iq2_s::unpack(bytemuck::from_bytes(bytes), all),
        DType::IQ3_XXS => iq3_xxs::unpack(bytemuck::from_bytes(bytes), all),
        DType::IQ3_S => iq3_s::unpack(bytemuck::from_bytes(bytes), all),
        DType::TQ1_0 => tq1_0::unpack(bytemuck::from_bytes(bytes), all),
        DType::TQ2_0 => tq2_0::unpack(bytemuck::from_bytes(bytes), all),
        _ => unreachable!("{dtype} has a body of its own"),
    }
}

/// Eight blocks of 32.
#[inline(always)]
fn unpack_small<B: AnyBitPattern>(
    dtype: DType,
    bytes: &[u8],
    all: &mut Unpacked,
    unpack: impl Fn(&B, &mut Unpacked),
) {
    let mut one = Unpacked::ZERO;
    for (b, bytes) in bytes.chunks_exact(dtype.block_bytes()).enumerate() {
        unpack(bytemuck::from_bytes(bytes), &mut one);
        all.q[32 * b..][..32].copy_from_slice(&one.q[..32]);
        all.scale[2 * b..][..2].copy_from_slice(&one.scale[..2]);
        all.min[2 * b..][..2].copy_from_slice(&one.min[..2]);
    }
}
