//! Low-rank terms at every level against a naive oracle.

use tandem_kernels::{
    Level, LowRank, LowRankInput, LowRankTerm, LowRankType, MAX_RANK, RankScale, TileMut,
    add_low_rank, decode_low_rank, encode_low_rank, quantize_h,
};

/// Numbers between -1 and 1, the same in every run.
fn floats(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        // Splitmix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..n)
        .map(|_| (next() >> 40) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

fn pack(kind: LowRankType, b: &[f32], rank: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; kind.n_bytes(b.len() / rank, rank).unwrap()];
    encode_low_rank(Level::Scalar, kind, b, rank, 1.0, &mut bytes);
    bytes
}

/// `h` of several tokens with gaps between the rows, as floats and rounded.
struct Input {
    h: Vec<f32>,
    q: Vec<i8>,
    scale: Vec<RankScale>,
    stride: usize,
}

impl Input {
    fn new(h: &[f32], rank: usize) -> Input {
        let n_tokens = h.len() / rank;
        let stride = rank.next_multiple_of(8) + 8;
        const UNUSED: RankScale = RankScale {
            scale: f32::NAN,
            sum: i32::MIN,
        };
        let mut input = Input {
            // A value past the rank must not be used, whatever it is.
            h: vec![f32::NAN; n_tokens * stride],
            q: vec![77; n_tokens * stride],
            scale: vec![UNUSED; 2 * n_tokens],
            stride,
        };
        for (t, row) in h.chunks_exact(rank).enumerate() {
            input.h[t * stride..][..rank].copy_from_slice(row);
            quantize_h(
                Level::detect(),
                row,
                &mut input.q[t * stride..][..rank.next_multiple_of(8)],
                &mut input.scale[2 * t],
            );
        }
        input
    }

    fn f32(&self) -> LowRankInput<'_> {
        LowRankInput::F32 {
            h: &self.h,
            stride: self.stride,
        }
    }

    fn q8(&self) -> LowRankInput<'_> {
        LowRankInput::Q8 {
            q: &self.q,
            stride: self.stride,
            scale: &self.scale,
            scale_stride: 2,
        }
    }

    /// The value that the rounded input stands for.
    fn rounded(&self, t: usize, k: usize) -> f64 {
        f64::from(self.scale[2 * t].scale) * f64::from(self.q[t * self.stride + k])
    }
}

/// Checks the outputs from `start` up against sums in f64.
fn check(b: &[f32], rank: usize, h: &[f32], start: usize) {
    let (n_out, n_tokens) = (b.len() / rank, h.len() / rank);
    let input = Input::new(h, rank);
    for kind in LowRankType::ALL {
        // At any address.
        let bytes = [vec![0], pack(kind, b, rank)].concat();
        let packed = LowRank::new(kind, n_out, rank, &bytes[1..]).unwrap();
        let mut b = vec![f32::NAN; n_out * rank];
        decode_low_rank(Level::Scalar, &packed, 1.0, &mut b);
        let inputs = [Some(input.f32()), kind.is_quantized().then(|| input.q8())];
        for (is_rounded, h_input) in inputs.iter().enumerate() {
            let Some(h_input) = h_input else { continue };
            for level in Level::available() {
                let n_cols = n_out - start;
                let mut y = vec![0.5; n_tokens * n_cols];
                let mut tile = TileMut::new(&mut y, n_cols);
                // Twice, of which each is half: terms are added up.
                let term = LowRankTerm {
                    b: packed,
                    h: *h_input,
                    scale: -0.75,
                };
                add_low_rank(level, &[term; 2], start..n_out, &mut tile);
                for (i, y) in y.iter().enumerate() {
                    let (t, o) = (i / n_cols, start + i % n_cols);
                    let (mut truth, mut size) = (0.5, 0.5);
                    for k in 0..rank {
                        let h = match is_rounded {
                            0 => f64::from(h[t * rank + k]),
                            _ => input.rounded(t, k),
                        };
                        let product = -1.5 * f64::from(b[o * rank + k]) * h;
                        truth += product;
                        size += product.abs();
                    }
                    assert!(
                        (f64::from(*y) - truth).abs() <= 2e-6 * size,
                        "{kind:?} {} rounded {is_rounded} [{n_out}, {rank}] t{t} o{o}: {y} {truth}",
                        level.name()
                    );
                }
            }
        }
    }
}

#[test]
fn every_type_and_level_agrees_with_naive_sums() {
    for (n_out, rank, n_tokens, start) in [
        (1, 1, 1, 0),
        (16, 4, 1, 0),
        (17, 3, 2, 16),
        (31, 8, 3, 0),
        (48, 9, 5, 16),
        (64, 32, 4, 32),
        (40, 65, 7, 0),
        (33, 130, 2, 0),
    ] {
        let b = floats(1, n_out * rank);
        check(&b, rank, &floats(2, n_tokens * rank), start);
    }
}

#[test]
fn extreme_values_neither_overflow_nor_lose_their_sign() {
    for sign in [1.0, -1.0] {
        check(&vec![sign * 127.0; 20 * 100], 100, &vec![127.0; 3 * 100], 0);
        check(&vec![sign * 1e4; 20 * 7], 7, &[-1e20; 3 * 7], 0);
    }
    // Integers that no packer writes but a file may hold.
    let one = 0x3c00_u16.to_le_bytes().repeat(16);
    let rank = 1000;
    let h = Input::new(&vec![-1.0; rank], rank);
    for (kind, byte, value) in [(LowRankType::Q8, 0x80, -128.0), (LowRankType::Q4, 0, -8.0)] {
        let groups = vec![byte; kind.n_bytes(16, rank).unwrap() - 32];
        let bytes = [one.clone(), groups].concat();
        let b = LowRank::new(kind, 16, rank, &bytes).unwrap();
        for level in Level::available() {
            for h in [h.f32(), h.q8()] {
                let mut y = [0.0; 16];
                let term = LowRankTerm { b, h, scale: 1.0 };
                add_low_rank(level, &[term], 0..16, &mut TileMut::new(&mut y, 16));
                let truth = -value * rank as f32;
                assert!(y.iter().all(|y| (y / truth - 1.0).abs() < 1e-5), "{y:?}");
            }
        }
    }
}

#[test]
fn broken_values_show() {
    let b = pack(LowRankType::Q8, &[1.0; 16 * 4], 4);
    let b = LowRank::new(LowRankType::Q8, 16, 4, &b).unwrap();
    let h = Input::new(&[0.0, f32::NAN, 1.0, 1.0], 4);
    for h in [h.f32(), h.q8()] {
        let mut y = [0.0; 16];
        let term = LowRankTerm { b, h, scale: 1.0 };
        let y_tile = &mut TileMut::new(&mut y, 16);
        add_low_rank(Level::detect(), &[term], 0..16, y_tile);
        assert!(y.iter().all(|y| y.is_nan()));
    }
}

#[test]
fn rounding_is_within_half_a_step() {
    let (n_out, rank) = (37, 13);
    let b = floats(5, n_out * rank);
    for (kind, limit) in [
        (LowRankType::F32, 0.0),
        (LowRankType::F16, 5e-4),
        (LowRankType::Q8, 0.501 / 127.0),
        (LowRankType::Q4, 0.501 / 7.0),
    ] {
        let bytes = pack(kind, &b, rank);
        let mut decoded = vec![f32::NAN; b.len()];
        let packed = LowRank::new(kind, n_out, rank, &bytes).unwrap();
        decode_low_rank(Level::Scalar, &packed, 1.0, &mut decoded);
        for (row, found) in b.chunks_exact(rank).zip(decoded.chunks_exact(rank)) {
            let largest = row.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            for (x, y) in row.iter().zip(found) {
                assert!((x - y).abs() <= limit * largest, "{kind:?}: {x} {y}");
            }
        }
    }
}

#[test]
fn sizes_are_checked() {
    use LowRankType::*;
    assert_eq!(Q8.n_bytes(17, 5), Some(2 * (32 + 2 * 64)));
    assert_eq!(Q4.n_bytes(16, 9), Some(32 + 2 * 64));
    assert_eq!(F16.n_bytes(3, 5), Some(30));
    for kind in LowRankType::ALL {
        assert_eq!(kind.n_bytes(3, 0), None);
        assert_eq!(kind.n_bytes(3, MAX_RANK + 1), None);
        assert_eq!(kind.n_bytes(usize::MAX, 64), None);
        assert!(LowRank::new(kind, 3, 5, &[0; 7]).is_none());
    }
}
