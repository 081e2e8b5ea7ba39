//! The prefill tiles of the three NEON levels.

// Safety: see `Simd::multiply`.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]
#![allow(clippy::needless_range_loop)] // indices name lanes, rows and tokens of several arrays at once

use core::arch::aarch64::*;
use core::arch::asm;

use super::{BASE, DOTPROD, I8MM, Neon, dot_32, products, products_32};
use crate::simd::load::Kind;
use crate::simd::{PANEL_ROWS, Panel, scale, sum};
use crate::{Q8_BLOCK, Q8Super};

/// What sums with a token are multiplied with.
struct Factors {
    /// The token's scale.
    scale: f32,
    /// The sum of its integers, times that; for minima.
    sum: f32,
}

impl Factors {
    /// Those of block `b` of the input, for its whole or its second half.
    #[inline(always)]
    unsafe fn of(x: *const Q8Super, b: usize, half: usize) -> Factors {
        Factors {
            scale: scale(x, b),
            sum: sum(x, 2 * b + half),
        }
    }
}

/// Half of a block of 32 columns, and eight rows of a panel.
#[derive(Clone, Copy)]
struct Part {
    b: usize,
    half: usize,
    octet: usize,
}

impl Part {
    /// The group of 16 columns that it is.
    #[inline(always)]
    fn group(self) -> usize {
        2 * self.b + self.half
    }
}

/// Inputs of tokens in pairs; of an odd number the last is its own partner.
#[derive(Clone, Copy)]
struct Pairs {
    x: *const Q8Super,
    /// The number of the last token.
    last: usize,
}

impl Pairs {
    /// The input of token `t`.
    #[inline(always)]
    unsafe fn token(self, t: usize) -> *const Q8Super {
        self.x.add(self.last.min(t))
    }
}

/// 16 columns of the input from column `c` on.
#[inline(always)]
unsafe fn sixteen(x: *const Q8Super, c: usize) -> int8x16_t {
    vld1q_s8((&raw const (*x).q).cast::<i8>().add(c))
}

/// Four outputs at `y`, or zeros if nothing was written there.
#[inline(always)]
unsafe fn before(y: *const f32, first: bool) -> float32x4_t {
    match first {
        true => vdupq_n_f32(0.0),
        false => vld1q_f32(y),
    }
}

/// What four sums of a kind begin with: those of integer scales are still to be multiplied with the step
/// at their end.
#[inline(always)]
unsafe fn initial<K: Kind>(y: *const f32, first: bool) -> float32x4_t {
    before(y, first || K::INTEGER_SCALES)
}

/// Puts four sums to `y`.
#[inline(always)]
unsafe fn finish<K: Kind>(acc: float32x4_t, step: float32x4_t, y: *mut f32, first: bool) {
    match K::INTEGER_SCALES {
        true => vst1q_f32(y, vfmaq_f32(before(y, first), acc, step)),
        false => vst1q_f32(y, acc),
    }
}

/// Sums of products times their rows' scales, of the second half with those of the first.
#[inline(always)]
unsafe fn scaled<K: Kind>(
    sums: int32x4_t,
    scale: float32x4_t,
    half: usize,
    first_half: float32x4_t,
) -> float32x4_t {
    match K::INTEGER_SCALES && half == 1 {
        // Integers, and so is the sum.
        true => vfmaq_f32(first_half, vcvtq_f32_s32(sums), scale),
        false => vmulq_f32(vcvtq_f32_s32(sums), scale),
    }
}

/// `acc + token.scale products + min token.sum` of four rows with these minima.
#[inline(always)]
unsafe fn add_scaled<K: Kind>(
    acc: float32x4_t,
    products: float32x4_t,
    min: float32x4_t,
    token: Factors,
) -> float32x4_t {
    let acc = vfmaq_n_f32(acc, products, token.scale);
    // Offsets are off the integers.
    match K::OFFSET.is_none() {
        true => vfmaq_n_f32(acc, min, token.sum),
        false => acc,
    }
}

// The tiles are functions of their own, or every format would have a copy.

/// Armv8.0: products along the rows, four rows at a time, whose sums are then brought together.
#[inline(never)]
pub(super) unsafe fn multiply<K: Kind, const N: usize>(
    panel: &Panel<Neon<BASE>>,
    x: *const Q8Super,
    n_blocks: usize,
    first: bool,
    y: [*mut f32; N],
) {
    for quad in 0..PANEL_ROWS / 4 {
        let mut acc = [vdupq_n_f32(0.0); N];
        for i in 0..N {
            acc[i] = initial::<K>(y[i].add(4 * quad), first);
        }
        for b in 0..n_blocks {
            let mut w = [[vdupq_n_s8(0); 2]; 4];
            for r in 0..4 {
                let row = &panel.q[b / 2][4 * quad + r];
                w[r] = [row[2 * (b % 2)], row[2 * (b % 2) + 1]];
            }
            let c = b * Q8_BLOCK;
            if K::WIDE {
                for i in 0..N {
                    let q = [sixteen(x.add(i), c), sixteen(x.add(i), c + 16)];
                    let sums = quad_32::<K>(w, q);
                    let (scale, min) = (panel.scale[2 * b][quad], panel.min[2 * b][quad]);
                    let products = scaled::<K>(sums, scale, 0, min);
                    let token = Factors::of(x.add(i), b, 0);
                    acc[i] = add_scaled::<K>(acc[i], products, min, token);
                }
                continue;
            }
            let mut first_half = [vdupq_n_f32(0.0); N];
            for half in 0..2 {
                let w = [w[0][half], w[1][half], w[2][half], w[3][half]];
                for i in 0..N {
                    let sums = quad_16::<K>(w, sixteen(x.add(i), c + 16 * half));
                    let group = 2 * b + half;
                    let (scale, min) = (panel.scale[group][quad], panel.min[group][quad]);
                    let products = scaled::<K>(sums, scale, half, first_half[i]);
                    if K::INTEGER_SCALES && half == 0 {
                        first_half[i] = products;
                        continue;
                    }
                    let token = Factors::of(x.add(i), b, half);
                    acc[i] = add_scaled::<K>(acc[i], products, min, token);
                }
            }
        }
        for i in 0..N {
            finish::<K>(acc[i], panel.step[quad], y[i].add(4 * quad), first);
        }
    }
}

/// The products of 32 weights of four rows with the same inputs, a row in each lane.
#[inline(always)]
unsafe fn quad_32<K: Kind>(w: [[int8x16_t; 2]; 4], x: [int8x16_t; 2]) -> int32x4_t {
    if K::BITS <= 4 {
        // All 32 products fit 16 bits: 16 * 15 * 127 in each of the last sums.
        let a = vpaddq_s16(products_32(w[0], x), products_32(w[1], x));
        let b = vpaddq_s16(products_32(w[2], x), products_32(w[3], x));
        return vpaddlq_s16(vpaddq_s16(a, b));
    }
    let a = vpaddq_s32(dot_32::<K>(w[0], x), dot_32::<K>(w[1], x));
    let b = vpaddq_s32(dot_32::<K>(w[2], x), dot_32::<K>(w[3], x));
    vpaddq_s32(a, b)
}

/// As [`quad_32`] for 16 weights.
#[inline(always)]
unsafe fn quad_16<K: Kind>(w: [int8x16_t; 4], x: int8x16_t) -> int32x4_t {
    if K::BITS < 8 {
        // In 16 bits: 8 * 32 * 127 in each of the last sums, as offsets are off.
        let a = vpaddq_s16(products(w[0], x), products(w[1], x));
        let b = vpaddq_s16(products(w[2], x), products(w[3], x));
        return vpaddlq_s16(vpaddq_s16(a, b));
    }
    let mut sums = [vdupq_n_s32(0); 4];
    for r in 0..4 {
        sums[r] = vpaddlq_s16(products(w[r], x));
    }
    let (a, b) = (vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3]));
    vpaddq_s32(a, b)
}

/// With `sdot`: four columns of four rows in a register, times four columns of a token.
#[target_feature(enable = "neon,dotprod")]
#[inline(never)]
pub(super) unsafe fn multiply_dotprod<K: Kind, const N: usize>(
    panel: &Panel<Neon<DOTPROD>>,
    x: *const Q8Super,
    n_blocks: usize,
    first: bool,
    y: [*mut f32; N],
) {
    // Eight rows at a time.
    for octet in 0..PANEL_ROWS / 8 {
        let mut acc = [[vdupq_n_f32(0.0); 2]; N];
        for i in 0..N {
            for j in 0..2 {
                acc[i][j] = initial::<K>(y[i].add(8 * octet + 4 * j), first);
            }
        }
        for b in 0..n_blocks {
            let zero = [[vdupq_n_s32(0); 2]; N];
            let part = |half| Part { b, half, octet };
            let mut sums = sixteen_dotprod(zero, panel, x, part(0));
            let mut products = [[vdupq_n_f32(0.0); 2]; N];
            if !K::WIDE {
                products = scaled_dotprod::<K, N>(sums, products, panel, part(0));
                if !K::INTEGER_SCALES {
                    acc = add_dotprod::<K, N>(acc, products, panel, x, part(0));
                }
                sums = zero;
            }
            sums = sixteen_dotprod(sums, panel, x, part(1));
            let half = if K::WIDE { 0 } else { 1 };
            products = scaled_dotprod::<K, N>(sums, products, panel, part(half));
            acc = add_dotprod::<K, N>(acc, products, panel, x, part(half));
        }
        for i in 0..N {
            for j in 0..2 {
                let step = panel.step[2 * octet + j];
                finish::<K>(acc[i][j], step, y[i].add(8 * octet + 4 * j), first);
            }
        }
    }
}

/// Adds the products of 16 columns, a half of block `b`, of eight rows and `N` tokens.
#[inline(always)] // into functions with the level's features
unsafe fn sixteen_dotprod<const N: usize>(
    mut sums: [[int32x4_t; 2]; N],
    panel: &Panel<Neon<DOTPROD>>,
    x: *const Q8Super,
    Part { b, half, octet }: Part,
) -> [[int32x4_t; 2]; N] {
    let w = &panel.q[b / 2][8 * (b % 2) + 4 * half..][..4];
    for i in 0..N {
        let x = sixteen(x.add(i), b * Q8_BLOCK + 16 * half);
        for j in 0..2 {
            let w = |k: usize| w[k][2 * octet + j];
            let sum = sdot_lane::<0>(sums[i][j], w(0), x);
            let sum = sdot_lane::<1>(sum, w(1), x);
            let sum = sdot_lane::<2>(sum, w(2), x);
            sums[i][j] = sdot_lane::<3>(sum, w(3), x);
        }
    }
    sums
}

/// The sums, scaled, of a half of block `b`, or of all of it.
#[inline(always)]
unsafe fn scaled_dotprod<K: Kind, const N: usize>(
    sums: [[int32x4_t; 2]; N],
    mut products: [[float32x4_t; 2]; N],
    panel: &Panel<Neon<DOTPROD>>,
    part: Part,
) -> [[float32x4_t; 2]; N] {
    for i in 0..N {
        for j in 0..2 {
            let scale = panel.scale[part.group()][2 * part.octet + j];
            products[i][j] = scaled::<K>(sums[i][j], scale, part.half, products[i][j]);
        }
    }
    products
}

/// Adds them.
#[inline(always)]
unsafe fn add_dotprod<K: Kind, const N: usize>(
    mut acc: [[float32x4_t; 2]; N],
    products: [[float32x4_t; 2]; N],
    panel: &Panel<Neon<DOTPROD>>,
    x: *const Q8Super,
    part: Part,
) -> [[float32x4_t; 2]; N] {
    for i in 0..N {
        for j in 0..2 {
            let min = panel.min[part.group()][2 * part.octet + j];
            let token = Factors::of(x.add(i), part.b, part.half);
            acc[i][j] = add_scaled::<K>(acc[i][j], products[i][j], min, token);
        }
    }
    acc
}

/// With `smmla`: eight columns of two rows in a register, times eight columns of two tokens.
#[target_feature(enable = "neon,dotprod,i8mm")]
#[inline(never)]
pub(super) unsafe fn multiply_i8mm<K: Kind, const N: usize>(
    panel: &Panel<Neon<I8MM>>,
    x: *const Q8Super,
    n_blocks: usize,
    first: bool,
    y: [*mut f32; N],
) {
    for i in (0..N).step_by(4) {
        let x = x.add(i);
        match N - i {
            1 => tokens_i8mm::<K, 1>(panel, x, n_blocks, first, &y[i..]),
            _ => tokens_i8mm::<K, 2>(panel, x, n_blocks, first, &y[i..]),
        }
    }
}

/// Two times `PAIRS` tokens, or a single one.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn tokens_i8mm<K: Kind, const PAIRS: usize>(
    panel: &Panel<Neon<I8MM>>,
    x: *const Q8Super,
    n_blocks: usize,
    first: bool,
    y: &[*mut f32],
) {
    let last = y.len() - 1;
    let x = Pairs { x, last };
    // Eight rows at a time: four pairs of them, with `PAIRS` pairs of tokens.
    for octet in 0..PANEL_ROWS / 8 {
        // Of each pair of tokens two quads of rows for the first, then for the second.
        let mut acc = [[vdupq_n_f32(0.0); 4]; PAIRS];
        for t in 0..PAIRS {
            for j in 0..4 {
                let y = y[last.min(2 * t + j / 2)];
                acc[t][j] = initial::<K>(y.add(8 * octet + 4 * (j % 2)), first);
            }
        }
        for b in 0..n_blocks {
            let zero = [[vdupq_n_s32(0); 4]; PAIRS];
            let part = |half| Part { b, half, octet };
            let mut sums = sixteen_i8mm(zero, panel, x, part(0));
            let mut products = [[vdupq_n_f32(0.0); 4]; PAIRS];
            if !K::WIDE {
                products = scaled_i8mm::<K, PAIRS>(sums, products, panel, part(0));
                if !K::INTEGER_SCALES {
                    acc = add_i8mm::<K, PAIRS>(acc, products, panel, x, part(0));
                }
                sums = zero;
            }
            sums = sixteen_i8mm(sums, panel, x, part(1));
            let half = if K::WIDE { 0 } else { 1 };
            products = scaled_i8mm::<K, PAIRS>(sums, products, panel, part(half));
            acc = add_i8mm::<K, PAIRS>(acc, products, panel, x, part(half));
        }
        for t in 0..PAIRS {
            // The last of an odd number of tokens goes twice.
            for j in 0..if 2 * t < last { 4 } else { 2 } {
                let y = y[2 * t + j / 2];
                let step = panel.step[2 * octet + j % 2];
                finish::<K>(acc[t][j], step, y.add(8 * octet + 4 * (j % 2)), first);
            }
        }
    }
}

/// Adds the products of 16 columns, a half of block `b`, of four pairs of rows and `PAIRS` of tokens.
#[inline(always)] // into functions with the level's features
unsafe fn sixteen_i8mm<const PAIRS: usize>(
    mut sums: [[int32x4_t; 4]; PAIRS],
    panel: &Panel<Neon<I8MM>>,
    x: Pairs,
    Part { b, half, octet }: Part,
) -> [[int32x4_t; 4]; PAIRS] {
    let (c, k) = (b * Q8_BLOCK + 16 * half, 8 * (b % 2) + 4 * half + octet);
    let w = [&panel.q[b / 2][k], &panel.q[b / 2][k + 2]];
    for t in 0..PAIRS {
        let x = |i: usize| vreinterpretq_s64_s8(sixteen(x.token(2 * t + i), c));
        let (low, high) = (vzip1q_s64(x(0), x(1)), vzip2q_s64(x(0), x(1)));
        for pair in 0..4 {
            let sum = smmla(sums[t][pair], w[0][pair], vreinterpretq_s8_s64(low));
            sums[t][pair] = smmla(sum, w[1][pair], vreinterpretq_s8_s64(high));
        }
    }
    sums
}

/// The sums, scaled, of a half of block `b`, or of all of it.
#[inline(always)]
unsafe fn scaled_i8mm<K: Kind, const PAIRS: usize>(
    sums: [[int32x4_t; 4]; PAIRS],
    mut products: [[float32x4_t; 4]; PAIRS],
    panel: &Panel<Neon<I8MM>>,
    part: Part,
) -> [[float32x4_t; 4]; PAIRS] {
    for t in 0..PAIRS {
        // Sums of two rows and two tokens become sums of four rows.
        let sums = [
            vuzp1q_s32(sums[t][0], sums[t][1]),
            vuzp1q_s32(sums[t][2], sums[t][3]),
            vuzp2q_s32(sums[t][0], sums[t][1]),
            vuzp2q_s32(sums[t][2], sums[t][3]),
        ];
        for j in 0..4 {
            let scale = panel.scale[part.group()][2 * part.octet + j % 2];
            products[t][j] = scaled::<K>(sums[j], scale, part.half, products[t][j]);
        }
    }
    products
}

/// Adds them.
#[inline(always)]
unsafe fn add_i8mm<K: Kind, const PAIRS: usize>(
    mut acc: [[float32x4_t; 4]; PAIRS],
    products: [[float32x4_t; 4]; PAIRS],
    panel: &Panel<Neon<I8MM>>,
    x: Pairs,
    part: Part,
) -> [[float32x4_t; 4]; PAIRS] {
    for t in 0..PAIRS {
        for j in 0..4 {
            let min = panel.min[part.group()][2 * part.octet + j % 2];
            let token = Factors::of(x.token(2 * t + j / 2), part.b, part.half);
            acc[t][j] = add_scaled::<K>(acc[t][j], products[t][j], min, token);
        }
    }
    acc
}

/// `acc[i] += sum_j w[4 i + j] x[4 LANE + j]`. The standard library's intrinsic is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn sdot_lane<const LANE: usize>(
    mut acc: int32x4_t,
    w: int8x16_t,
    x: int8x16_t,
) -> int32x4_t {
    asm!(
        "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{lane}]",
        inout(vreg) acc, in(vreg) w, in(vreg) x, lane = const LANE,
        options(pure, nomem, nostack, preserves_flags)
    );
    acc
}

/// `acc[2 i + j] += sum_k w[8 i + k] x[8 j + k]`. The standard library's intrinsic is not stable.
#[inline]
#[target_feature(enable = "neon,i8mm")]
unsafe fn smmla(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    asm!(
        "smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
        inout(vreg) acc, in(vreg) w, in(vreg) x,
        options(pure, nomem, nostack, preserves_flags)
    );
    acc
}

/// Transposes 16 by 16 lanes of 32 bits: 16 squares of 4 by 4.
#[inline(always)]
pub(super) unsafe fn transpose_lanes(m: &mut [[int8x16_t; 4]; PANEL_ROWS]) {
    let from = *m;
    for i in 0..4 {
        for j in 0..4 {
            let row = |r: usize| vreinterpretq_s32_s8(from[4 * i + r][j]);
            let wide = vreinterpretq_s64_s32;
            let (a, b) = (vtrn1q_s32(row(0), row(1)), vtrn2q_s32(row(0), row(1)));
            let (c, d) = (vtrn1q_s32(row(2), row(3)), vtrn2q_s32(row(2), row(3)));
            m[4 * j][i] = vreinterpretq_s8_s64(vzip1q_s64(wide(a), wide(c)));
            m[4 * j + 1][i] = vreinterpretq_s8_s64(vzip1q_s64(wide(b), wide(d)));
            m[4 * j + 2][i] = vreinterpretq_s8_s64(vzip2q_s64(wide(a), wide(c)));
            m[4 * j + 3][i] = vreinterpretq_s8_s64(vzip2q_s64(wide(b), wide(d)));
        }
    }
}

/// `[columns / 8][rows / 2][2][8]` of 16 rows of 64 columns.
#[inline(always)]
pub(super) unsafe fn interleave_pairs(m: &mut [[int8x16_t; 4]; PANEL_ROWS]) {
    let from = *m;
    for pair in 0..8 {
        for part in 0..4 {
            let row = |r: usize| vreinterpretq_s64_s8(from[2 * pair + r][part]);
            let (even, odd) = (vzip1q_s64(row(0), row(1)), vzip2q_s64(row(0), row(1)));
            m[4 * part + pair / 4][pair % 4] = vreinterpretq_s8_s64(even);
            m[4 * part + 2 + pair / 4][pair % 4] = vreinterpretq_s8_s64(odd);
        }
    }
}
