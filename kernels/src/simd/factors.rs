//! Decoding of whole factors in Q8_0 and its tiles. The compiler would make a gather of every byte
//! of plain loops over blocks.

use super::{Lanes, on_float_level};
use crate::low_rank::{GROUP_BYTES, LOW_RANK_TILE, SCALE_BYTES};
use crate::{DType, Level};

/// Bytes and elements of a block of Q8_0.
const BLOCK_BYTES: usize = DType::Q8_0.block_bytes();
const BLOCK_LEN: usize = DType::Q8_0.block_len();

/// Decodes blocks of Q8_0, times `factor`. False, and nothing done, at the scalar level.
pub(crate) fn decode_q8_0(level: Level, src: &[u8], factor: f32, dst: &mut [f32]) -> bool {
    macro_rules! run {
        ($simd:ty, $features:literal) => {{
            #[target_feature(enable = $features)]
            fn entry(src: &[u8], factor: f32, dst: &mut [f32]) {
                // SAFETY: this function has the level's features.
                unsafe { blocks::<$simd>(src, factor, dst) }
            }
            // SAFETY: the level's token proves that the CPU has the features.
            unsafe { entry(src, factor, dst) }
        }};
    }
    on_float_level!(level, run, return false);
    true
}

/// # Safety
///
/// The CPU has the level's features, with which the caller is compiled.
#[inline(always)]
unsafe fn blocks<S: Lanes>(src: &[u8], factor: f32, dst: &mut [f32]) {
    let src = src.as_chunks::<BLOCK_BYTES>().0;
    for (block, dst) in src.iter().zip(dst.as_chunks_mut::<BLOCK_LEN>().0) {
        let (block, dst) = (block.as_ptr(), dst.as_mut_ptr());
        // SAFETY: the caller's; a block is an f16 and 32 integers, and becomes as many floats.
        unsafe {
            let (d, factor) = (S::half(block), S::splat_float(factor));
            for i in [0, 16] {
                let q = S::from_i8(block.add(2 + i).cast());
                S::store(S::mul(S::mul(d, q), factor), dst.add(i));
            }
        }
    }
}

/// Decodes whole tiles of int8, times `factor`, whose outputs' `rank` is a multiple of 4. False, and
/// nothing done, at the scalar level.
pub(crate) fn decode_tiles(
    level: Level,
    src: &[u8],
    rank: usize,
    factor: f32,
    dst: &mut [f32],
) -> bool {
    macro_rules! run {
        ($simd:ty, $features:literal) => {{
            #[target_feature(enable = $features)]
            fn entry(src: &[u8], rank: usize, factor: f32, dst: &mut [f32]) {
                // SAFETY: this function has the level's features.
                unsafe { tiles::<$simd>(src, rank, factor, dst) }
            }
            // SAFETY: the level's token proves that the CPU has the features.
            unsafe { entry(src, rank, factor, dst) }
        }};
    }
    assert!(rank > 0 && rank.is_multiple_of(4));
    on_float_level!(level, run, return false);
    true
}

/// # Safety
///
/// The CPU has the level's features, with which the caller is compiled.
#[inline(always)]
unsafe fn tiles<S: Lanes>(src: &[u8], rank: usize, factor: f32, dst: &mut [f32]) {
    let n_bytes = SCALE_BYTES + rank / 4 * GROUP_BYTES;
    let src = src.chunks_exact(n_bytes);
    for (tile, rows) in src.zip(dst.chunks_exact_mut(LOW_RANK_TILE * rank)) {
        let (f16s, groups) = tile.split_at(SCALE_BYTES);
        let mut scales = [0.0; LOW_RANK_TILE];
        // SAFETY: the caller's; a tile has 16 scales.
        unsafe { S::store(S::from_f16(f16s.as_ptr()), scales.as_mut_ptr()) };
        // Each scale for four ranks.
        let mut each_four = [[0.0; 4]; LOW_RANK_TILE];
        for o in 0..LOW_RANK_TILE {
            each_four[o] = [scales[o]; 4];
        }
        for (g, group) in groups.as_chunks::<GROUP_BYTES>().0.iter().enumerate() {
            // `[16 outputs][4 ranks]`.
            let mut fours = [[0.0_f32; 4]; LOW_RANK_TILE];
            for o in [0, 4, 8, 12] {
                // SAFETY: the caller's; four outputs' integers, scales and floats.
                unsafe {
                    let q = S::from_i8(group.as_ptr().add(4 * o).cast());
                    let scale = S::floats(each_four.as_ptr().add(o).cast());
                    let x = S::mul(S::mul(scale, q), S::splat_float(factor));
                    S::store(x, fours.as_mut_ptr().add(o).cast());
                }
            }
            for o in 0..LOW_RANK_TILE {
                rows[o * rank + 4 * g..][..4].copy_from_slice(&fours[o]);
            }
        }
    }
}
