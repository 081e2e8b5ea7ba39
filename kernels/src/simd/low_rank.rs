//! `y += s B h` for the integer layouts of `B`, whose groups of four columns of 16 outputs are what
//! prefill's tiles are made of, with an int8 `h`.

use super::int8::{LINE_BYTES, prefetch};
use super::{Simd, on_level};
use crate::low_rank::{GROUP_BYTES, LOW_RANK_TILE, LowRankTerm, QuantizedRanks, SCALE_BYTES};
use crate::{Level, TileMut};

/// How far ahead of a tile decode asks for others. A task has some thousand bytes of `B` only.
pub(crate) const PREFETCH_BYTES: usize = 2048;

/// Tiles of `B`, one after the other: 16 scales and some groups each.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    pub data: &'a [u8],
    /// Groups of a tile.
    pub n_groups: usize,
    /// Whether a group has eight columns in half bytes instead of four in bytes.
    pub is_q4: bool,
}

/// Adds to `y` `[n_tokens, n_out]`, whose first output is number `start`, the terms whose ranks are
/// integers; the caller checked the shapes. False, and nothing done, at the scalar level.
pub(crate) fn add_tiles(
    level: Level,
    terms: &[LowRankTerm<'_>],
    start: usize,
    y: &mut TileMut<'_>,
) -> bool {
    macro_rules! run {
        ($simd:ty, $features:literal) => {{
            #[target_feature(enable = $features)]
            fn entry(terms: &[LowRankTerm<'_>], start: usize, y: &mut TileMut<'_>) {
                // SAFETY: this function has the level's features.
                unsafe { add::<$simd>(terms, start, y) }
            }
            // SAFETY: the level's token proves that the CPU has the features.
            unsafe { entry(terms, start, y) }
        }};
    }
    on_level!(level, run, return false);
    true
}

/// # Safety
///
/// The CPU has the level's features, with which the caller is compiled.
#[inline(always)]
unsafe fn add<S: Simd>(terms: &[LowRankTerm<'_>], start: usize, y: &mut TileMut<'_>) {
    let mut t = 0;
    while t < y.n_rows() {
        // SAFETY: the caller's.
        t += unsafe {
            match y.n_rows() - t {
                // Each product waits for the one before it of the same token.
                8.. if S::WIDE_TILE => add_tokens::<S, 8>(terms, start, y, t),
                4.. => add_tokens::<S, 4>(terms, start, y, t),
                _ => add_tokens::<S, 1>(terms, start, y, t),
            }
        };
    }
}

/// [`add`] for the `T` tokens from `t` on. Gives `T`.
///
/// # Safety
///
/// As [`add`].
#[inline(always)]
unsafe fn add_tokens<S: Simd, const T: usize>(
    terms: &[LowRankTerm<'_>],
    start: usize,
    y: &mut TileMut<'_>,
    t: usize,
) -> usize {
    for term in terms {
        let Some((tiles, h)) = term.tiles(start) else {
            continue;
        };
        let term = QuantizedTerm {
            tiles,
            h,
            scale: term.scale,
        };
        // SAFETY: the caller's.
        unsafe {
            match tiles.is_q4 {
                true => add_term::<S, true, T>(term, y, t),
                false => add_term::<S, false, T>(term, y, t),
            }
        }
    }
    T
}

/// A term whose factor and ranks are integers.
struct QuantizedTerm<'a> {
    tiles: Tiles<'a>,
    h: QuantizedRanks<'a>,
    scale: f32,
}

/// [`add_tokens`] of one term.
///
/// In decode each tile comes from memory, and the fewer instructions are between them, the more of
/// them the CPU asks for at once: what does not depend on the tile is done before.
///
/// # Safety
///
/// As [`add`].
#[inline(always)]
unsafe fn add_term<S: Simd, const Q4: bool, const T: usize>(
    QuantizedTerm { tiles, h, scale }: QuantizedTerm<'_>,
    y: &mut TileMut<'_>,
    t: usize,
) {
    let (first_q, first) = (
        &raw const h.q[t * h.stride],
        &raw const h.scale[t * h.scale_stride],
    );
    let (mut q, mut sums, mut outputs) = ([first_q; T], [0; T], [core::ptr::null_mut(); T]);
    // SAFETY: the caller's; the ranks of all tokens of `y` were checked to be there.
    let scales = unsafe {
        let mut scales = [S::splat_float(0.0); T];
        for i in 0..T {
            q[i] = first_q.add(i * h.stride);
            let of_token = *first.add(i * h.scale_stride);
            sums[i] = of_token.sum;
            scales[i] = S::splat_float(scale * of_token.scale);
            outputs[i] = y.row(t + i).as_mut_ptr();
        }
        scales
    };
    let n_bytes = SCALE_BYTES + tiles.n_groups * GROUP_BYTES;
    let n_whole = y.n_cols() / LOW_RANK_TILE;
    let n_rest = y.n_cols() % LOW_RANK_TILE;
    let data = &tiles.data[..y.n_cols().div_ceil(LOW_RANK_TILE) * n_bytes];
    let is_decode = y.n_rows() == 1;
    let mut b_scales = data.as_ptr();
    for i in 0..n_whole {
        // SAFETY: the caller's; a tile has 16 scales and `n_groups` groups, each `q` as many ranks
        // as they have columns, and `y` 16 outputs for each whole tile.
        unsafe {
            if is_decode {
                prefetch_tile(b_scales, n_bytes);
            }
            let groups = b_scales.add(SCALE_BYTES);
            let dots = S::group_dots::<Q4, T>(groups, tiles.n_groups, q, sums);
            let b = S::from_f16(b_scales);
            for k in 0..T {
                let y = outputs[k].add(i * LOW_RANK_TILE);
                S::store(S::mul_add(dots[k], S::mul(b, scales[k]), S::floats(y)), y);
            }
            b_scales = b_scales.add(n_bytes);
        }
    }
    if n_rest > 0 {
        // SAFETY: likewise, but for the outputs, of which only those that are there are touched.
        unsafe {
            let groups = b_scales.add(SCALE_BYTES);
            let dots = S::group_dots::<Q4, T>(groups, tiles.n_groups, q, sums);
            let b = S::from_f16(b_scales);
            for k in 0..T {
                let mut terms = [0.0; LOW_RANK_TILE];
                let term = S::mul_add(dots[k], S::mul(b, scales[k]), S::splat_float(0.0));
                S::store(term, terms.as_mut_ptr());
                let y = &mut y.row(t + k)[n_whole * LOW_RANK_TILE..];
                y.iter_mut().zip(terms).for_each(|(y, term)| *y += term);
            }
        }
    }
}

/// Asks for as many bytes as a tile has, some tiles after the one at `p`.
#[inline(always)]
fn prefetch_tile(p: *const u8, n_bytes: usize) {
    for i in (0..n_bytes).step_by(LINE_BYTES) {
        prefetch::<PREFETCH_BYTES>(p.wrapping_add(i), LINE_BYTES);
    }
}
