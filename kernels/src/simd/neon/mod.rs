//! NEON, alone or with int8 dot products or int8 matrix products: 64 bytes or 16 floats in four
//! registers.

// Safety: see `Simd`. Pointers are read as far as the trait says.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]
#![allow(clippy::needless_range_loop)] // indices name lanes and rows of several arrays at once

mod tile;

use core::arch::aarch64::*;
use core::arch::asm;
use core::mem::MaybeUninit;

use super::load::{self, Kind};
use super::{Lanes, PANEL_ROWS, Panel, Quad, Simd};
use crate::input::INTEGER;
use crate::quant::Unpacked;
use crate::{DType, Q8Super};

/// Armv8.0.
pub(crate) const BASE: u8 = 0;
/// With `sdot`.
pub(crate) const DOTPROD: u8 = 1;
/// With `sdot` and `smmla`.
pub(crate) const I8MM: u8 = 2;

/// One of [`BASE`], [`DOTPROD`] and [`I8MM`].
pub(crate) struct Neon<const EXTENSION: u8>;

impl<const EXTENSION: u8> Lanes for Neon<EXTENSION> {
    type Floats = [float32x4_t; 4];
    const WIDE_TILE: bool = false;

    #[inline(always)]
    unsafe fn floats(p: *const f32) -> [float32x4_t; 4] {
        [
            vld1q_f32(p),
            vld1q_f32(p.add(4)),
            vld1q_f32(p.add(8)),
            vld1q_f32(p.add(12)),
        ]
    }

    #[inline(always)]
    unsafe fn splat_float(x: f32) -> [float32x4_t; 4] {
        [vdupq_n_f32(x); 4]
    }

    #[inline(always)]
    unsafe fn mul(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
        let mut y = a;
        for i in 0..4 {
            y[i] = vmulq_f32(a[i], b[i]);
        }
        y
    }

    #[inline(always)]
    unsafe fn mul_add(
        a: [float32x4_t; 4],
        b: [float32x4_t; 4],
        c: [float32x4_t; 4],
    ) -> [float32x4_t; 4] {
        let mut y = a;
        for i in 0..4 {
            y[i] = vfmaq_f32(c[i], a[i], b[i]);
        }
        y
    }

    #[inline(always)]
    unsafe fn half(p: *const u8) -> [float32x4_t; 4] {
        [from_halves(vdup_n_u16(p.cast::<u16>().read_unaligned())); 4]
    }

    #[inline(always)]
    unsafe fn from_f16(p: *const u8) -> [float32x4_t; 4] {
        let p = p.cast();
        let (a, b) = (vld1q_u16(p), vld1q_u16(p.add(8)));
        [
            from_halves(vget_low_u16(a)),
            from_halves(vget_high_u16(a)),
            from_halves(vget_low_u16(b)),
            from_halves(vget_high_u16(b)),
        ]
    }

    #[inline(always)]
    unsafe fn from_bf16(p: *const u8) -> [float32x4_t; 4] {
        let p = p.cast();
        let (a, b) = (vld1q_u16(p), vld1q_u16(p.add(8)));
        [
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(a))),
            vreinterpretq_f32_u32(vshll_high_n_u16::<16>(a)),
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(b))),
            vreinterpretq_f32_u32(vshll_high_n_u16::<16>(b)),
        ]
    }

    #[inline(always)]
    unsafe fn store(v: [float32x4_t; 4], p: *mut f32) {
        for i in 0..4 {
            vst1q_f32(p.add(4 * i), v[i]);
        }
    }

    #[inline(always)]
    unsafe fn sum([a, b, c, d]: [float32x4_t; 4]) -> f32 {
        vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)))
    }

    #[inline(always)]
    unsafe fn from_i8(p: *const i8) -> [float32x4_t; 4] {
        to_floats(vld1q_s8(p))
    }
}

impl Quad for float32x4_t {
    type Ints = int32x4_t;

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        vdupq_n_f32(x)
    }

    #[inline(always)]
    unsafe fn mul(self, b: float32x4_t) -> float32x4_t {
        vmulq_f32(self, b)
    }

    #[inline(always)]
    unsafe fn mul_add(self, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        vfmaq_f32(c, self, b)
    }

    #[inline(always)]
    unsafe fn centered(n: int32x4_t, added: u8, start: i32) -> float32x4_t {
        let sum = vsubq_s32(vdupq_n_s32(start), vdupq_n_s32(INTEGER.to_bits() as i32));
        vcvtq_f32_s32(match added {
            0 => n,
            4 => vsraq_n_s32::<5>(n, sum),
            8 => vsraq_n_s32::<4>(n, sum),
            16 => vsraq_n_s32::<3>(n, sum),
            32 => vsraq_n_s32::<2>(n, sum),
            _ => unreachable!("{added}"),
        })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        vst1q_f32(p, self);
    }
}

impl<const EXTENSION: u8> Simd for Neon<EXTENSION> {
    type Bytes = [int8x16_t; 4];
    type Quad = float32x4_t;
    type Halves = ();

    #[inline(always)]
    unsafe fn load_two(a: *const u8, b: *const u8) -> [int8x16_t; 4] {
        let (a, b) = (a.cast(), b.cast());
        [
            vld1q_s8(a),
            vld1q_s8(a.add(16)),
            vld1q_s8(b),
            vld1q_s8(b.add(16)),
        ]
    }

    #[inline(always)]
    unsafe fn load_twice(p: *const u8) -> [int8x16_t; 4] {
        Self::load_two(p, p)
    }

    #[inline(always)]
    unsafe fn nibbles(a: *const u8, b: *const u8) -> [int8x16_t; 4] {
        let (a, b) = (vld1q_u8(a), vld1q_u8(b));
        let low = vdupq_n_u8(15);
        [
            vreinterpretq_s8_u8(vandq_u8(a, low)),
            vreinterpretq_s8_u8(vshrq_n_u8::<4>(a)),
            vreinterpretq_s8_u8(vandq_u8(b, low)),
            vreinterpretq_s8_u8(vshrq_n_u8::<4>(b)),
        ]
    }

    #[inline(always)]
    unsafe fn splat(byte: u8) -> [int8x16_t; 4] {
        [vdupq_n_s8(byte as i8); 4]
    }

    #[inline(always)]
    unsafe fn and(a: [int8x16_t; 4], b: [int8x16_t; 4]) -> [int8x16_t; 4] {
        let mut y = a;
        for i in 0..4 {
            y[i] = vandq_s8(a[i], b[i]);
        }
        y
    }

    #[inline(always)]
    unsafe fn insert(v: [int8x16_t; 4], bits: [int8x16_t; 4], mask: u8) -> [int8x16_t; 4] {
        four!(i => vbslq_s8(vdupq_n_u8(mask), bits[i], v[i]))
    }

    #[inline(always)]
    unsafe fn shift(v: [int8x16_t; 4], counts: [i8; 2]) -> [int8x16_t; 4] {
        let mut y = v;
        for i in 0..4 {
            y[i] = shift(v[i], counts[i / 2]);
        }
        y
    }

    #[inline(always)]
    unsafe fn fifth_bits(v: [int8x16_t; 4], a: *const u8, b: *const u8) -> [int8x16_t; 4] {
        let bits = [vld1q_dup_u32(a.cast()), vld1q_dup_u32(b.cast())];
        let spread = [
            vcombine_u8(vdup_n_u8(0), vdup_n_u8(1)),
            vcombine_u8(vdup_n_u8(2), vdup_n_u8(3)),
        ];
        // What moves bits 0 to 7 to bit 4.
        let counts = vcreate_s8(0xfdfe_ff00_0102_0304);
        let counts = vcombine_s8(counts, counts);
        four!(i => {
            let bytes = vqtbl1q_u8(vreinterpretq_u8_u32(bits[i / 2]), spread[i % 2]);
            let moved = vreinterpretq_s8_u8(vshlq_u8(bytes, counts));
            vbslq_s8(vdupq_n_u8(16), moved, v[i])
        })
    }

    #[inline(always)]
    unsafe fn look_up(table: &[i8; 16], indices: [int8x16_t; 4]) -> [int8x16_t; 4] {
        let table = vld1q_s8(table.as_ptr());
        let mut y = indices;
        for i in 0..4 {
            y[i] = vqtbl1q_s8(table, vreinterpretq_u8_s8(indices[i]));
        }
        y
    }

    #[inline(always)]
    unsafe fn halves(p: *const u8, stride: usize) -> [float32x4_t; 4] {
        let h = vdupq_n_u16(0);
        let h = vld1q_lane_u16::<0>(p.cast(), h);
        let h = vld1q_lane_u16::<1>(p.add(stride).cast(), h);
        let h = vld1q_lane_u16::<2>(p.add(2 * stride).cast(), h);
        let h = vld1q_lane_u16::<3>(p.add(3 * stride).cast(), h);
        let h = vld1q_lane_u16::<4>(p.add(4 * stride).cast(), h);
        let h = vld1q_lane_u16::<5>(p.add(5 * stride).cast(), h);
        let h = vld1q_lane_u16::<6>(p.add(6 * stride).cast(), h);
        let h = vld1q_lane_u16::<7>(p.add(7 * stride).cast(), h);
        let (low, high) = (vzip1q_u16(h, h), vzip2q_u16(h, h));
        [
            from_halves(vget_low_u16(low)),
            from_halves(vget_high_u16(low)),
            from_halves(vget_low_u16(high)),
            from_halves(vget_high_u16(high)),
        ]
    }

    #[inline(always)]
    unsafe fn each_twice(bytes: [u8; 8]) -> [float32x4_t; 4] {
        let v = vcreate_s8(u64::from_le_bytes(bytes));
        to_floats(vcombine_s8(vzip1_s8(v, v), vzip2_s8(v, v)))
    }

    #[inline(always)]
    unsafe fn even(v: [float32x4_t; 4]) -> [float32x4_t; 4] {
        let mut y = v;
        for i in 0..4 {
            y[i] = vtrn1q_f32(v[i], vdupq_n_f32(0.0));
        }
        y
    }

    #[inline(always)]
    unsafe fn differences(v: [float32x4_t; 4]) -> [float32x4_t; 4] {
        let mut y = v;
        for i in 0..4 {
            y[i] = vsubq_f32(v[i], vtrn1q_f32(vdupq_n_f32(0.0), v[i]));
        }
        y
    }

    #[inline(always)]
    unsafe fn unpack(dtype: DType, bytes: &[u8], all: &mut Unpacked) {
        #[inline(never)]
        fn unpack(dtype: DType, bytes: &[u8], all: &mut Unpacked) {
            load::unpack(dtype, bytes, all)
        }
        unpack(dtype, bytes, all)
    }

    #[inline(always)]
    fn added<K: Kind>() -> u8 {
        K::OFFSET.unwrap_or(0)
    }

    #[inline(always)]
    unsafe fn dots_32<K: Kind>(w: &[[int8x16_t; 4]; 4], x: *const i8) -> [int32x4_t; 2] {
        [
            Self::block_dots::<K>(four!(r => [w[r][0], w[r][1]]), x),
            Self::block_dots::<K>(four!(r => [w[r][2], w[r][3]]), x.add(32)),
        ]
    }

    #[inline(always)]
    unsafe fn dots_16<K: Kind>(w: &[[int8x16_t; 4]; 4], x: *const i8) -> [int32x4_t; 4] {
        four!(g => {
            let x = vld1q_s8(x.add(16 * g));
            match (EXTENSION, K::BITS) {
                // In 16 bits, at most 4 * 63 * 127.
                (BASE, ..8) => {
                    let [a, b, c, d] = four!(r => products(w[r][g], x));
                    let (ab, cd) = (vpaddq_s16(a, b), vpaddq_s16(c, d));
                    vpaddq_s32(vpaddlq_s16(ab), vpaddlq_s16(cd))
                }
                _ => rows(four!(r => Self::dot_16(w[r][g], x))),
            }
        })
    }

    #[inline(always)]
    unsafe fn quads(rows: [[float32x4_t; 4]; 4]) -> [[float32x4_t; 8]; 2] {
        let [a, b, c, d] = four!(i => {
            let [a, b, c, d] = four!(r => rows[r][i]);
            let (ac, bd) = (vzip1q_f32(a, c), vzip1q_f32(b, d));
            let (first, second) = (vzip1q_f32(ac, bd), vzip2q_f32(ac, bd));
            let (ac, bd) = (vzip2q_f32(a, c), vzip2q_f32(b, d));
            [first, second, vzip1q_f32(ac, bd), vzip2q_f32(ac, bd)]
        });
        [
            [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]],
            [c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]],
        ]
    }

    #[inline(always)]
    unsafe fn byte_quads(rows: [[u8; 8]; 4]) -> [float32x4_t; 8] {
        let row = four!(r => vcreate_u8(u64::from_le_bytes(rows[r])));
        let [a, b, c, d] = four!(r => vcombine_u8(row[r], row[r]));
        let ab = vreinterpretq_u16_u8(vzip1q_u8(a, b));
        let cd = vreinterpretq_u16_u8(vzip1q_u8(c, d));
        let fours = [
            vreinterpretq_u8_u16(vzip1q_u16(ab, cd)),
            vreinterpretq_u8_u16(vzip2q_u16(ab, cd)),
        ];
        eight!(b => {
            // Four bytes, each the highest of an integer, whose other bytes are fractions.
            let highest = vld1q_u8(HIGHEST[b % 4].as_ptr());
            let v = vqtbl1q_u8(fours[b / 4], highest);
            vcvtq_n_f32_s32::<24>(vreinterpretq_s32_u8(v))
        })
    }

    #[inline(always)]
    unsafe fn half_quad([a, b, c, d]: [*const u8; 4]) -> float32x4_t {
        // Not lane by lane: vectors have enough to do.
        let word = |p: *const u8| u64::from(p.cast::<u16>().read_unaligned());
        let words = word(a) | word(b) << 16 | word(c) << 32 | word(d) << 48;
        from_halves(vcreate_u16(words))
    }

    #[inline(always)]
    unsafe fn arrange<K: Kind>(q: &mut [[int8x16_t; 4]; PANEL_ROWS], _: &mut MaybeUninit<()>) {
        if let Some(offset @ 1..) = K::OFFSET {
            for q in q.iter_mut() {
                for q in q {
                    *q = vsubq_s8(*q, vdupq_n_s8(offset as i8));
                }
            }
        }
        match EXTENSION {
            // As they are: this level's products sum along a row.
            BASE => {}
            DOTPROD => tile::transpose_lanes(q),
            _ => tile::interleave_pairs(q),
        }
    }

    #[inline(always)]
    unsafe fn transpose(m: &mut [[float32x4_t; 4]; PANEL_ROWS]) {
        let mut lanes = [[vdupq_n_s8(0); 4]; PANEL_ROWS];
        for i in 0..PANEL_ROWS {
            for j in 0..4 {
                lanes[i][j] = vreinterpretq_s8_f32(m[i][j]);
            }
        }
        tile::transpose_lanes(&mut lanes);
        for i in 0..PANEL_ROWS {
            for j in 0..4 {
                m[i][j] = vreinterpretq_f32_s8(lanes[i][j]);
            }
        }
    }

    #[inline(always)]
    unsafe fn group_dots<const Q4: bool, const T: usize>(
        groups: *const u8,
        n_groups: usize,
        h: [*const i8; T],
        sums: [i32; T],
    ) -> [[float32x4_t; 4]; T] {
        let offset = if Q4 { 8 } else { 0 };
        let mut dots = [[vdupq_n_s32(0); 4]; T];
        for i in 0..T {
            dots[i] = [vdupq_n_s32(-offset * sums[i]); 4];
        }
        for g in 0..n_groups {
            for j in 0..4 {
                let b = groups.add(64 * g + 16 * j);
                if Q4 {
                    let b = vld1q_u8(b);
                    let low = vreinterpretq_s8_u8(vandq_u8(b, vdupq_n_u8(15)));
                    let high = vreinterpretq_s8_u8(vshrq_n_u8::<4>(b));
                    for i in 0..T {
                        let h = h[i].add(8 * g);
                        let sum = Self::add_fours(dots[i][j], low, h);
                        dots[i][j] = Self::add_fours(sum, high, h.add(4));
                    }
                } else {
                    let b = vld1q_s8(b.cast());
                    for i in 0..T {
                        dots[i][j] = Self::add_fours(dots[i][j], b, h[i].add(4 * g));
                    }
                }
            }
        }
        let mut floats = [[vdupq_n_f32(0.0); 4]; T];
        for i in 0..T {
            for j in 0..4 {
                floats[i][j] = vcvtq_f32_s32(dots[i][j]);
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
            match EXTENSION {
                BASE => tile::multiply::<K, N>(&*p.cast(), x, n_blocks, first, y),
                DOTPROD => {
                    tile::multiply_dotprod::<K::Centered, N>(&*p.cast(), x, n_blocks, first, y)
                }
                _ => tile::multiply_i8mm::<K::Centered, N>(&*p.cast(), x, n_blocks, first, y),
            }
            for y in &mut y {
                *y = y.wrapping_add(PANEL_ROWS);
            }
        }
    }
}

impl<const EXTENSION: u8> Neon<EXTENSION> {
    /// Adds the products of four weights in each lane with the four inputs at `x`.
    #[inline(always)]
    unsafe fn add_fours(sums: int32x4_t, w: int8x16_t, x: *const i8) -> int32x4_t {
        let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
        match EXTENSION {
            BASE => {
                let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
                let high = vpaddlq_s16(vmull_high_s8(w, x));
                vaddq_s32(sums, vpaddq_s32(low, high))
            }
            _ => sdot(sums, w, x),
        }
    }

    /// The product of 16 weights and inputs, in four sums.
    #[inline(always)]
    unsafe fn dot_16(w: int8x16_t, x: int8x16_t) -> int32x4_t {
        match EXTENSION {
            // At most 2 * 128 * 127 in 16 bits: the input has no -128.
            BASE => vpaddlq_s16(products(w, x)),
            _ => sdot(vdupq_n_s32(0), w, x),
        }
    }

    /// The products of 32 columns of four rows with the inputs at `x`.
    #[inline(always)]
    unsafe fn block_dots<K: Kind>(w: [[int8x16_t; 2]; 4], x: *const i8) -> int32x4_t {
        let x = [vld1q_s8(x), vld1q_s8(x.add(16))];
        match (EXTENSION, K::BITS) {
            // In 16 bits, at most 16 * 15 * 127.
            (BASE, ..5) => {
                let [a, b, c, d] = four!(r => products_32(w[r], x));
                vpaddlq_s16(vpaddq_s16(vpaddq_s16(a, b), vpaddq_s16(c, d)))
            }
            // At most 8 * 31 * 127.
            (BASE, 5) => {
                let [a, b, c, d] = four!(r => products_32(w[r], x));
                let (ab, cd) = (vpaddq_s16(a, b), vpaddq_s16(c, d));
                vpaddq_s32(vpaddlq_s16(ab), vpaddlq_s16(cd))
            }
            _ => rows(four!(r => Self::dot_32::<K>(w[r], x))),
        }
    }

    /// The product of 32 weights and inputs, in four sums.
    #[inline(always)]
    unsafe fn dot_32<K: Kind>(w: [int8x16_t; 2], x: [int8x16_t; 2]) -> int32x4_t {
        match EXTENSION {
            BASE => dot_32::<K>(w, x),
            _ => sdot(sdot(vdupq_n_s32(0), w[0], x[0]), w[1], x[1]),
        }
    }
}

/// Of each four bytes of a register, four highest bytes.
static HIGHEST: [[u8; 16]; 4] = {
    let mut bytes = [[255; 16]; 4];
    let mut i = 0;
    while i < 16 {
        bytes[i / 4][4 * (i % 4) + 3] = i as u8;
        i += 1;
    }
    bytes
};

/// The sums of four rows.
#[inline(always)]
unsafe fn rows([a, b, c, d]: [int32x4_t; 4]) -> int32x4_t {
    vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d))
}

/// Products of bytes, summed in pairs that are eight apart.
#[inline(always)]
pub(super) unsafe fn products(w: int8x16_t, x: int8x16_t) -> int16x8_t {
    let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
    vmlal_high_s8(low, w, x)
}

/// The product of 32 weights and inputs, in four sums.
#[inline(always)]
pub(super) unsafe fn dot_32<K: Kind>(w: [int8x16_t; 2], x: [int8x16_t; 2]) -> int32x4_t {
    match K::BITS {
        8 => vpadalq_s16(vpaddlq_s16(products(w[0], x[0])), products(w[1], x[1])),
        // At most 4 * 63 * 127.
        _ => vpaddlq_s16(products_32(w, x)),
    }
}

/// Products of 32 weights below 64 with inputs, in eight sums.
#[inline(always)]
pub(super) unsafe fn products_32(w: [int8x16_t; 2], x: [int8x16_t; 2]) -> int16x8_t {
    let sums = vmlal_s8(products(w[0], x[0]), vget_low_s8(w[1]), vget_low_s8(x[1]));
    vmlal_high_s8(sums, w[1], x[1])
}

/// `acc[i] += sum_j w[4 i + j] x[4 i + j]`. The standard library's intrinsic is not stable.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    asm!(
        "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
        inout(vreg) acc, in(vreg) w, in(vreg) x,
        options(pure, nomem, nostack, preserves_flags)
    );
    acc
}

/// Shifts right by a count that is known when this is inlined, left where it is negative.
#[inline(always)]
unsafe fn shift(v: int8x16_t, count: i8) -> int8x16_t {
    let v = vreinterpretq_u8_s8(v);
    vreinterpretq_s8_u8(match count {
        1 => vshrq_n_u8::<1>(v),
        2 => vshrq_n_u8::<2>(v),
        3 => vshrq_n_u8::<3>(v),
        4 => vshrq_n_u8::<4>(v),
        5 => vshrq_n_u8::<5>(v),
        6 => vshrq_n_u8::<6>(v),
        _ => vshlq_u8(v, vdupq_n_s8(-count)),
    })
}

/// Four f16 as floats. The standard library's intrinsic is not stable.
#[inline(always)]
unsafe fn from_halves(h: uint16x4_t) -> float32x4_t {
    let y: float32x4_t;
    // SAFETY: a conversion in registers, which every Armv8 CPU has.
    asm!(
        "fcvtl {0:v}.4s, {1:v}.4h",
        out(vreg) y, in(vreg) h,
        options(pure, nomem, nostack, preserves_flags)
    );
    y
}

#[inline(always)]
unsafe fn to_floats(v: int8x16_t) -> [float32x4_t; 4] {
    let (low, high) = (vmovl_s8(vget_low_s8(v)), vmovl_high_s8(v));
    [
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
        vcvtq_f32_s32(vmovl_high_s16(low)),
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
        vcvtq_f32_s32(vmovl_high_s16(high)),
    ]
}
