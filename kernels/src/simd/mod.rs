//! Matrix products on every level with vector instructions.
//!
//! A level is an implementation of [`Simd`]. The products are written once in terms of it, in
//! [`int8`] (fed by [`load`], which reads 256 weights of any format into registers) and [`float`];
//! for each level [`on_level`] makes an entry point, the function with the target features, into
//! which everything else is inlined.

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

/// The same for `i` from 0 to 7.
macro_rules! eight {
    ($i:ident => $value:expr) => {{
        let [a, b, c, d] = four!(j => {
            let $i: usize = j;
            $value
        });
        let [e, f, g, h] = four!(j => {
            let $i: usize = 4 + j;
            $value
        });
        [a, b, c, d, e, f, g, h]
    }};
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod factors;
pub(crate) mod float;
pub(crate) mod int8;
mod load;
pub(crate) mod low_rank;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
mod plain;
#[cfg(target_arch = "x86_64")]
mod quad;

pub(crate) use plain::Plain;

use core::mem::MaybeUninit;

use crate::quant::{Unpacked, q4_k};
use crate::{DType, Q8_GROUP, Q8Super};
use load::Kind;

/// Weights read at once.
const SUPER: usize = 256;
/// Rows of a panel: as many as [`Lanes`] there are.
const PANEL_ROWS: usize = 16;
/// Rows that [`Simd::multiply`] computes at once: two panels.
const PAIR_ROWS: usize = 2 * PANEL_ROWS;
/// Pairs of panels that a tile of prefill has at most. All tokens' inputs come by for each tile; the
/// panels, 12 to 21 kB a pair, should leave room beside them in the nearest cache. (Arm: not measured.)
const TILE_PAIRS: usize = if cfg!(target_arch = "x86_64") { 2 } else { 1 };
/// Rows of weights that [`matmul`](crate::matmul) takes at once for many tokens.
pub const TILE_ROWS: usize = TILE_PAIRS * PAIR_ROWS;

/// 16 floats, in as many registers as that takes.
///
/// # Safety
///
/// Every function needs a CPU with the level's features, and is inlined into one compiled with
/// them; those with pointers read or write as many elements as they say.
pub(crate) trait Lanes: Sized {
    /// 16 floats.
    type Floats: Copy;
    /// Whether 16 of them and some more fit the registers, else 4.
    const WIDE_TILE: bool;

    /// 16 floats at `p`.
    unsafe fn floats(p: *const f32) -> Self::Floats;
    unsafe fn store(v: Self::Floats, p: *mut f32);
    unsafe fn splat_float(x: f32) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a b + c`.
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The sum of the lanes.
    unsafe fn sum(v: Self::Floats) -> f32;
    /// The f16 at `p` in all lanes.
    unsafe fn half(p: *const u8) -> Self::Floats;
    /// 16 f16s at `p`.
    unsafe fn from_f16(p: *const u8) -> Self::Floats;
    /// 16 bfloat16s at `p`.
    unsafe fn from_bf16(p: *const u8) -> Self::Floats;
    /// 16 integers at `p`.
    unsafe fn from_i8(p: *const i8) -> Self::Floats;
}

/// Four floats, a row's in each: what decode computes with.
///
/// # Safety
///
/// As [`Lanes`].
trait Quad: Copy {
    /// Four integers of 32 bits.
    type Ints: Copy;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    /// `self b + c`.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `n + start / (128 / added)`, where `start` is as in [`Q8Super::start`]: what products come to without
    /// that which was added to their weights.
    unsafe fn centered(n: Self::Ints, added: u8, start: i32) -> Self;
    unsafe fn store(self, p: *mut f32);
}

/// A level's vectors for integers: 64 bytes, in as many registers as that takes, besides its
/// [`Lanes`].
///
/// # Safety
///
/// As [`Lanes`].
trait Simd: Lanes {
    /// 64 integers of 8 bits.
    type Bytes: Copy;
    /// Four rows' numbers.
    type Quad: Quad;
    /// The second halves of a panel's 64 columns, where [`Simd::arrange`] parts their integers.
    type Halves;
    /// Whether a tile's sums of products start from the bits of [`INTEGER`](crate::input::INTEGER), as
    /// those of [`Q8Super::start`] do, so that they end as the bits of floats.
    const HIGH_STARTS: bool = false;

    /// 32 bytes at `a`, then 32 at `b`.
    unsafe fn load_two(a: *const u8, b: *const u8) -> Self::Bytes;
    /// 32 bytes at `p`, twice.
    unsafe fn load_twice(p: *const u8) -> Self::Bytes;
    /// The half bytes of the 16 bytes at `a`, low ones first, then those at `b`.
    unsafe fn nibbles(a: *const u8, b: *const u8) -> Self::Bytes;
    /// Of eight blocks of `N` bytes, 18 or 20, the half bytes of the last 16 of blocks 2 i and 2 i + 1, as
    /// [`Simd::nibbles`] has them.
    #[inline(always)]
    unsafe fn nibble_blocks<const N: usize>(p: *const u8, i: usize) -> Self::Bytes {
        let p = p.wrapping_add(2 * N * i);
        // SAFETY: the caller's.
        unsafe { Self::nibbles(p.add(N - 16), p.add(2 * N - 16)) }
    }
    /// The f16s at the start of these blocks, each in two lanes, and those after them, where the format has
    /// such.
    #[inline(always)]
    unsafe fn nibble_halves<const N: usize>(p: *const u8) -> [Self::Floats; 2] {
        // SAFETY: the caller's.
        unsafe { [Self::halves(p, N), Self::halves(p.add(2), N)] }
    }
    unsafe fn splat(byte: u8) -> Self::Bytes;
    unsafe fn and(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// `v`, which has none of the bits of `mask`, with those of `bits`.
    unsafe fn insert(v: Self::Bytes, bits: Self::Bytes, mask: u8) -> Self::Bytes;
    /// Shifts each 32 bytes right by their count, left where that is negative. What comes into a
    /// byte from its neighbour is undefined.
    unsafe fn shift(v: Self::Bytes, counts: [i8; 2]) -> Self::Bytes;
    /// `v`, of half bytes, with the 32 bits at `a` as the fifth of the first 32, those at `b` as that of the
    /// others.
    unsafe fn fifth_bits(v: Self::Bytes, a: *const u8, b: *const u8) -> Self::Bytes;
    /// `table[i]` for each index, all below 16.
    unsafe fn look_up(table: &[i8; 16], indices: Self::Bytes) -> Self::Bytes;

    /// The f16s at `p`, `p + stride`, ..., eight of them, each in two lanes.
    unsafe fn halves(p: *const u8, stride: usize) -> Self::Floats;
    /// Eight integers, each in two lanes.
    unsafe fn each_twice(bytes: [u8; 8]) -> Self::Floats;
    /// Zero in the odd lanes.
    unsafe fn even(v: Self::Floats) -> Self::Floats;
    /// In the odd lanes the difference from the lane before.
    unsafe fn differences(v: Self::Floats) -> Self::Floats;

    /// [`load::unpack`], a function of its own.
    unsafe fn unpack(dtype: DType, bytes: &[u8], all: &mut Unpacked);
    /// What is added to the integers of a kind in the products of [`Simd::dots_32`] and
    /// [`Simd::dots_16`]: none, or a power of two.
    fn added<K: Kind>() -> u8;
    /// The products of 64 columns of four rows with the inputs at `x`, summed up by blocks of 32.
    unsafe fn dots_32<K: Kind>(
        w: &[Self::Bytes; 4],
        x: *const i8,
    ) -> [<Self::Quad as Quad>::Ints; 2];
    /// The same by groups of 16 columns.
    unsafe fn dots_16<K: Kind>(
        w: &[Self::Bytes; 4],
        x: *const i8,
    ) -> [<Self::Quad as Quad>::Ints; 4];
    /// Transposes 4 by 16.
    unsafe fn quads(rows: [Self::Floats; 4]) -> [[Self::Quad; 8]; 2];
    /// Of eight bytes of four rows the integers, signed.
    unsafe fn byte_quads(rows: [[u8; 8]; 4]) -> [Self::Quad; 8];
    /// The f16s at the four pointers.
    unsafe fn half_quad(rows: [*const u8; 4]) -> Self::Quad;
    /// [`Simd::nibble_halves`] of four rows.
    #[inline(always)]
    unsafe fn nibble_quads<const N: usize>(rows: [*const u8; 4]) -> [[Self::Quad; 8]; 2] {
        // SAFETY: the caller's.
        unsafe {
            [
                eight!(b => Self::half_quad(ahead(rows, b * N))),
                eight!(b => Self::half_quad(ahead(rows, b * N + 2))),
            ]
        }
    }

    /// The scales and the minima of a block of Q4_K or Q5_K of four rows.
    #[inline(always)]
    unsafe fn k_quads(rows: [*const u8; 4]) -> [[Self::Quad; 8]; 2] {
        // SAFETY: the caller's; they are in the first 16 bytes: d, dmin, the packed ones.
        unsafe {
            let packed = four!(i => q4_k::unpack_scales(&*rows[i].add(4).cast::<[u8; 12]>()));
            let sc = Self::byte_quads(four!(i => packed[i].0));
            let m = Self::byte_quads(four!(i => packed[i].1));
            let d = Self::half_quad(rows);
            let less = Self::half_quad(ahead(rows, 2)).mul(Self::Quad::splat(-1.0));
            [eight!(b => d.mul(sc[b])), eight!(b => less.mul(m[b]))]
        }
    }

    /// Brings 64 columns of 16 rows, a row in each vector, into the order that
    /// [`Simd::multiply`] wants, with the upper halves of the integers in `high` if it wants them apart.
    unsafe fn arrange<K: Kind>(
        q: &mut [Self::Bytes; PANEL_ROWS],
        high: &mut MaybeUninit<Self::Halves>,
    );
    /// Brings integer scales, `[16 groups][16 rows]` of floats, into the form that
    /// [`Simd::multiply`] wants, with what it wants in place of minima.
    unsafe fn arrange_scales(
        _scale: &mut [Self::Floats; PANEL_ROWS],
        _min: &mut [Self::Floats; PANEL_ROWS],
    ) {
    }
    /// Transposes 16 by 16 floats.
    unsafe fn transpose(m: &mut [Self::Floats; PANEL_ROWS]);
    /// `y[i][r] += sum_c w[r][c] x[i][c]` over the panels' first `n_blocks` blocks of 32 columns,
    /// for `N` tokens whose inputs begin at `x` and whose outputs, 32 each, begin at `y`. Where `first` is set `y` is
    /// overwritten instead. `N` is 1, 4 or, with [`Lanes::WIDE_TILE`] and for wide kinds, 6.
    unsafe fn multiply<K: Kind, const N: usize>(
        panels: &[Panel<Self>; 2],
        x: *const Q8Super,
        n_blocks: usize,
        first: bool,
        y: [*mut f32; N],
    );

    /// `sum_k b[o][k] h_i[k]` of 16 outputs and `T` tokens, for `n_groups` groups of 64 bytes,
    /// `[16 outputs][4]`; with `Q4` of eight columns each, plus 8, the first four in the low half
    /// bytes. `sums` are those of the `h_i`.
    unsafe fn group_dots<const Q4: bool, const T: usize>(
        groups: *const u8,
        n_groups: usize,
        h: [*const i8; T],
        sums: [i32; T],
    ) -> [Self::Floats; T];
}

/// Each pointer `n_bytes` on.
#[inline(always)]
fn ahead([a, b, c, d]: [*const u8; 4], n_bytes: usize) -> [*const u8; 4] {
    [
        a.wrapping_add(n_bytes),
        b.wrapping_add(n_bytes),
        c.wrapping_add(n_bytes),
        d.wrapping_add(n_bytes),
    ]
}

/// 256 columns of 16 rows of weights.
#[repr(C, align(64))]
struct Panel<S: Simd> {
    /// The integers of 64 columns each, arranged as the level wants them.
    q: [[S::Bytes; PANEL_ROWS]; SUPER / 64],
    /// Their upper halves, where the level wants them apart.
    high: [MaybeUninit<S::Halves>; SUPER / 64],
    /// `[16 groups][16 rows]`; integers as [`Simd::arrange_scales`] leaves them where that is used.
    scale: [S::Floats; SUPER / Q8_GROUP],
    /// As `scale`. Where there are none, what takes a high start off again, `-INTEGER scale`, with
    /// [`Simd::HIGH_STARTS`], what [`Simd::arrange_scales`] leaves, or zero.
    min: [S::Floats; SUPER / Q8_GROUP],
    /// For each row the step of integer scales, which these are still to be multiplied with; not used
    /// where scales are floats.
    step: S::Floats,
}

/// Where the products with block `b` of the input start, or with a half of it where the kind has
/// a scale for each.
///
/// # Safety
///
/// `x` is readable, and `b` one of its blocks.
#[inline(always)]
unsafe fn start<K: load::Kind>(x: *const Q8Super, b: usize, half: usize) -> i32 {
    let sum = if K::WIDE { 0 } else { 1 + half };
    // SAFETY: the caller's. By pointers: from an array's length the compiler would take that there
    // are eight blocks at most, and write them all out.
    unsafe { *(&raw const (*x).start).cast::<i32>().add(3 * b + sum) }
}

/// The scale of block `b` of the input.
///
/// # Safety
///
/// As [`start`].
#[inline(always)]
unsafe fn scale(x: *const Q8Super, b: usize) -> f32 {
    // SAFETY: the caller's.
    unsafe { *(&raw const (*x).scale).cast::<f32>().add(b) }
}

/// The input's sum for group `2 b`, or `2 b + 1`, of 16 columns; see [`Q8Super::sum`].
///
/// # Safety
///
/// As [`start`].
#[inline(always)]
unsafe fn sum(x: *const Q8Super, group: usize) -> f32 {
    // SAFETY: the caller's.
    unsafe { *(&raw const (*x).sum).cast::<f32>().add(group) }
}

/// Four integers of the input, from column `c` on, as one.
///
/// # Safety
///
/// `x` is readable, and `c + 3` one of its columns.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn four(x: *const Q8Super, c: usize) -> i32 {
    // SAFETY: the caller's.
    unsafe {
        (&raw const (*x).q)
            .cast::<i8>()
            .add(c)
            .cast::<i32>()
            .read_unaligned()
    }
}

/// Calls `$run!` with the level's [`Simd`] and its target features, or evaluates to `$scalar`.
macro_rules! on_level {
    ($level:expr, $run:ident, $scalar:expr) => {
        match $level {
            $crate::Level::Scalar => $scalar,
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx2(_) => $run!($crate::simd::avx2::Avx2<false>, "avx2,fma,f16c"),
            #[cfg(target_arch = "x86_64")]
            $crate::Level::AvxVnni(_) => {
                $run!($crate::simd::avx2::Avx2<true>, "avx2,fma,f16c,avxvnni")
            }
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx512(_) => $run!(
                $crate::simd::avx512::Avx512,
                "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
            ),
            #[cfg(target_arch = "aarch64")]
            $crate::Level::Neon(_) => {
                $run!(
                    $crate::simd::neon::Neon<{ $crate::simd::neon::BASE }>,
                    "neon"
                )
            }
            #[cfg(target_arch = "aarch64")]
            $crate::Level::Dotprod(_) => {
                $run!(
                    $crate::simd::neon::Neon<{ $crate::simd::neon::DOTPROD }>,
                    "neon,dotprod"
                )
            }
            #[cfg(target_arch = "aarch64")]
            $crate::Level::I8mm(_) => {
                $run!(
                    $crate::simd::neon::Neon<{ $crate::simd::neon::I8MM }>,
                    "neon,dotprod,i8mm"
                )
            }
        }
    };
}
pub(crate) use on_level;

/// As [`on_level`], with the level's [`Lanes`]: where no integers are multiplied, levels that differ
/// in nothing else share one body.
macro_rules! on_float_level {
    ($level:expr, $run:ident, $scalar:expr) => {
        match $level {
            $crate::Level::Scalar => $scalar,
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx2(_) | $crate::Level::AvxVnni(_) => {
                $run!($crate::simd::avx2::Avx2<false>, "avx2,fma,f16c")
            }
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx512(_) => $run!(
                $crate::simd::avx512::Avx512,
                "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
            ),
            #[cfg(target_arch = "aarch64")]
            $crate::Level::Neon(_) | $crate::Level::Dotprod(_) | $crate::Level::I8mm(_) => {
                $run!(
                    $crate::simd::neon::Neon<{ $crate::simd::neon::BASE }>,
                    "neon"
                )
            }
        }
    };
}
pub(crate) use on_float_level;
