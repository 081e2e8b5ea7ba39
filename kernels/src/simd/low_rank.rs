//! `y += s B h` for the integer layouts of `B`, whose groups of four columns of 16 outputs are what
//! prefill's tiles are made of, with an int8 `h`.

use super::{Simd, on_level};
use crate::low_rank::{GROUP_BYTES, LOW_RANK_TILE, QuantizedRanks, SCALE_BYTES};
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

/// Adds to `y` `[n_tokens, n_out]` the product of the first tiles with the ranks `h`, times `scale`;
/// the caller checked the shapes. False, and nothing done, at the scalar level.
pub(crate) fn add_tiles(
    level: Level,
    tiles: Tiles<'_>,
    h: QuantizedRanks<'_>,
    scale: f32,
    y: &mut TileMut<'_>,
) -> bool {
    macro_rules! run {
        ($simd:ty, $features:literal) => {{
            #[target_feature(enable = $features)]
            fn entry(tiles: Tiles<'_>, h: QuantizedRanks<'_>, scale: f32, y: &mut TileMut<'_>) {
                // SAFETY: this function has the level's features.
                unsafe {
                    match tiles.is_q4 {
                        true => add::<$simd, true>(tiles, h, scale, y),
                        false => add::<$simd, false>(tiles, h, scale, y),
                    }
                }
            }
            // SAFETY: the level's token proves that the CPU has the features.
            unsafe { entry(tiles, h, scale, y) }
        }};
    }
    on_level!(level, run, return false);
    true
}

/// # Safety
///
/// The CPU has the level's features, with which the caller is compiled.
#[inline(always)]
unsafe fn add<S: Simd, const Q4: bool>(
    tiles: Tiles<'_>,
    h: QuantizedRanks<'_>,
    scale: f32,
    y: &mut TileMut<'_>,
) {
    let n_bytes = SCALE_BYTES + tiles.n_groups * GROUP_BYTES;
    let n_ranks = tiles.n_groups * if Q4 { 8 } else { 4 };
    assert!(tiles.data.len() >= y.n_cols().div_ceil(LOW_RANK_TILE) * n_bytes);
    let mut t = 0;
    while t < y.n_rows() {
        // SAFETY: the caller's.
        t += unsafe {
            match y.n_rows() - t {
                // Each product waits for the one before it of the same token.
                8.. if S::WIDE_TILE => {
                    add_tokens::<S, Q4, 8>(tiles.data, (n_bytes, n_ranks), h, scale, y, t)
                }
                4.. => add_tokens::<S, Q4, 4>(tiles.data, (n_bytes, n_ranks), h, scale, y, t),
                _ => add_tokens::<S, Q4, 1>(tiles.data, (n_bytes, n_ranks), h, scale, y, t),
            }
        };
    }
}

/// [`add`] for the `T` tokens from `t` on; tiles have `n_bytes` bytes and `n_ranks` columns. Gives
/// `T`.
///
/// # Safety
///
/// As [`add`].
#[inline(always)]
unsafe fn add_tokens<S: Simd, const Q4: bool, const T: usize>(
    tiles: &[u8],
    (n_bytes, n_ranks): (usize, usize),
    h: QuantizedRanks<'_>,
    scale: f32,
    y: &mut TileMut<'_>,
    t: usize,
) -> usize {
    let (mut q, mut sums, mut scales) = ([core::ptr::null(); T], [0; T], [0.0; T]);
    for i in 0..T {
        q[i] = h.q[(t + i) * h.stride..][..n_ranks].as_ptr();
        let of_token = h.scale[(t + i) * h.scale_stride];
        sums[i] = of_token.sum;
        scales[i] = scale * of_token.scale;
    }
    for (tile, o) in tiles
        .chunks_exact(n_bytes)
        .zip((0..y.n_cols()).step_by(LOW_RANK_TILE))
    {
        let (b_scales, groups) = tile.split_at(SCALE_BYTES);
        let n_groups = groups.len() / GROUP_BYTES;
        // SAFETY: the caller's; a tile has 16 scales and `n_groups` groups, and each `q` as many
        // ranks as they have columns.
        unsafe {
            let dots = S::group_dots::<Q4, T>(groups.as_ptr(), n_groups, q, sums);
            let b_scales = S::from_f16(b_scales.as_ptr());
            for i in 0..T {
                let scales = S::mul(b_scales, S::splat_float(scales[i]));
                let y = &mut y.row(t + i)[o..];
                match y.first_chunk_mut::<LOW_RANK_TILE>() {
                    Some(y) => {
                        let sum = S::mul_add(dots[i], scales, S::floats(y.as_ptr()));
                        S::store(sum, y.as_mut_ptr());
                    }
                    None => {
                        let mut terms = [0.0; LOW_RANK_TILE];
                        S::store(S::mul(dots[i], scales), terms.as_mut_ptr());
                        y.iter_mut().zip(terms).for_each(|(y, term)| *y += term);
                    }
                }
            }
        }
    }
    T
}
