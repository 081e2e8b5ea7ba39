//! `y += s B h` for the integer layouts of `B`, whose groups of four columns of 16 outputs are what
//! prefill's tiles are made of, with an int8 `h`.

use super::int8::{PREFETCH_BYTES, prefetch};
use super::{Simd, on_level};
use crate::low_rank::{GROUP_BYTES, LOW_RANK_TILE, LowRankTerm, SCALE_BYTES};
use crate::{Level, TileMut};

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
    for o in (0..y.n_cols()).step_by(LOW_RANK_TILE) {
        let mut t = 0;
        while t < y.n_rows() {
            // SAFETY: the caller's.
            t += unsafe {
                match y.n_rows() - t {
                    // Each product waits for the one before it of the same token.
                    8.. if S::WIDE_TILE => add_tokens::<S, 8>(terms, (start, o), y, t),
                    4.. => add_tokens::<S, 4>(terms, (start, o), y, t),
                    _ => add_tokens::<S, 1>(terms, (start, o), y, t),
                }
            };
        }
    }
}

/// [`add`] for 16 outputs from column `o` of `y` on, and the `T` tokens from `t` on. Gives `T`.
///
/// # Safety
///
/// As [`add`].
#[inline(always)]
unsafe fn add_tokens<S: Simd, const T: usize>(
    terms: &[LowRankTerm<'_>],
    (start, o): (usize, usize),
    y: &mut TileMut<'_>,
    t: usize,
) -> usize {
    let is_whole = y.n_cols() - o >= LOW_RANK_TILE;
    // SAFETY: the caller's.
    let mut all = [unsafe { S::splat_float(0.0) }; T];
    if is_whole {
        for (i, all) in all.iter_mut().enumerate() {
            let y = &y.row(t + i)[o..][..LOW_RANK_TILE];
            // SAFETY: the caller's; there are 16 outputs.
            *all = unsafe { S::floats(y.as_ptr()) };
        }
    }
    for term in terms {
        let Some((tiles, h)) = term.tiles(start + o) else {
            continue;
        };
        let (mut q, mut sums, mut scales) = ([core::ptr::null(); T], [0; T], [0.0; T]);
        let (first_q, first) = (
            &raw const h.q[t * h.stride],
            &raw const h.scale[t * h.scale_stride],
        );
        // SAFETY: the ranks of all tokens of `y` were checked to be there.
        unsafe {
            for i in 0..T {
                q[i] = first_q.add(i * h.stride);
                let of_token = *first.add(i * h.scale_stride);
                sums[i] = of_token.sum;
                scales[i] = term.scale * of_token.scale;
            }
        }
        let n_bytes = SCALE_BYTES + tiles.n_groups * GROUP_BYTES;
        let (b_scales, groups) = tiles.data[..n_bytes].split_at(SCALE_BYTES);
        let (groups, n) = (groups.as_ptr(), tiles.n_groups);
        if y.n_rows() == 1 {
            // Decode reads each tile once, and so from memory.
            (0..n).for_each(|g| {
                prefetch::<PREFETCH_BYTES>(groups.wrapping_add(g * GROUP_BYTES), GROUP_BYTES)
            });
        }
        // SAFETY: a tile has 16 scales and `n` groups, and each `q` as many ranks as they have
        // columns, which was checked.
        unsafe {
            let dots = match tiles.is_q4 {
                true => S::group_dots::<true, T>(groups, n, q, sums),
                false => S::group_dots::<false, T>(groups, n, q, sums),
            };
            let b_scales = S::from_f16(b_scales.as_ptr());
            for i in 0..T {
                let scales = S::mul(b_scales, S::splat_float(scales[i]));
                all[i] = S::mul_add(dots[i], scales, all[i]);
            }
        }
    }
    for (i, all) in all.into_iter().enumerate() {
        let y = &mut y.row(t + i)[o..];
        match y.first_chunk_mut::<LOW_RANK_TILE>() {
            // SAFETY: the caller's; there are 16 outputs.
            Some(y) => unsafe { S::store(all, y.as_mut_ptr()) },
            None => {
                let mut terms = [0.0; LOW_RANK_TILE];
                // SAFETY: likewise.
                unsafe { S::store(all, terms.as_mut_ptr()) };
                y.iter_mut().zip(terms).for_each(|(y, term)| *y += term);
            }
        }
    }
    T
}
