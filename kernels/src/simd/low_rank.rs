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
    for t in 0..y.n_rows() {
        let q = &h.q[t * h.stride..][..n_ranks];
        let sum = q.iter().map(|q| i32::from(*q)).sum();
        let scale = scale * h.scale[t * h.scale_stride];
        let outputs = y.row(t).chunks_mut(LOW_RANK_TILE);
        for (y, tile) in outputs.zip(tiles.data.chunks_exact(n_bytes)) {
            let (scales, groups) = tile.split_at(SCALE_BYTES);
            // SAFETY: the caller's; a tile has 16 scales and `n_groups` groups, and `q` as many
            // ranks as they have columns.
            unsafe {
                let dots = S::group_dots::<Q4>(groups.as_ptr(), tiles.n_groups, q.as_ptr(), sum);
                let scales = S::mul(S::from_f16(scales.as_ptr()), S::splat_float(scale));
                match y.first_chunk_mut::<LOW_RANK_TILE>() {
                    Some(y) => {
                        let sum = S::mul_add(dots, scales, S::floats(y.as_ptr()));
                        S::store(sum, y.as_mut_ptr());
                    }
                    None => {
                        let mut terms = [0.0; LOW_RANK_TILE];
                        S::store(S::mul(dots, scales), terms.as_mut_ptr());
                        y.iter_mut().zip(terms).for_each(|(y, term)| *y += term);
                    }
                }
            }
        }
    }
}
