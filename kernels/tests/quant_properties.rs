//! What encoding must keep, for every type that can be encoded: errors on Gaussian data, exact
//! round trips where the format has room, and inputs that are no ordinary weights.

use std::panic::catch_unwind;
use tandem_kernels::{DType, quant};

/// A deterministic generator: xorshift64*.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 up to, but not including, 1.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 32) % n
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f32 {
        let r = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        (r * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }
}

fn gaussian(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = Rng(seed);
    (0..n).map(|_| rng.normal()).collect()
}

fn encodable() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|t| quant::can_encode(*t))
}

fn encode(dtype: DType, x: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xaa; dtype.row_bytes(x.len()).unwrap()];
    quant::quantize(dtype, x, &mut bytes);
    bytes
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let n = bytes.len() / dtype.block_bytes() * dtype.block_len();
    let mut x = vec![f32::NAN; n];
    quant::dequantize(dtype, bytes, &mut x);
    x
}

fn round_trip(dtype: DType, x: &[f32]) -> Vec<f32> {
    decode(dtype, &encode(dtype, x))
}

/// Root mean square of the error, relative to that of `x`.
fn relative_error(x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len());
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = x.iter().zip(y).map(|(x, y)| square(x - y)).sum();
    let norm: f64 = x.iter().map(|x| square(*x)).sum();
    (error / norm).sqrt()
}

/// No more than these, and no less than 0.9 times as much: an error that is too small means that
/// the test, or the decoder, is wrong.
const GAUSSIAN_ERROR: [(DType, f64); 19] = [
    (DType::F32, 0.0),
    (DType::F16, 0.000_22),
    (DType::BF16, 0.001_7),
    (DType::Q4_0, 0.0865),
    (DType::Q4_1, 0.0788),
    (DType::Q5_0, 0.0430),
    (DType::Q5_1, 0.0382),
    (DType::Q8_0, 0.0054),
    (DType::Q8_1, 0.0054),
    (DType::Q2_K, 0.2635),
    (DType::Q3_K, 0.1445),
    (DType::Q4_K, 0.0703),
    (DType::Q5_K, 0.0347),
    (DType::Q6_K, 0.0174),
    (DType::Q8_K, 0.0071),
    (DType::IQ4_NL, 0.0741),
    (DType::IQ4_XS, 0.0749),
    (DType::TQ1_0, 0.815),
    (DType::TQ2_0, 0.815),
];

#[test]
fn gaussian_data_keeps_its_accuracy_at_any_magnitude() {
    assert!(
        encodable().eq(DType::ALL
            .into_iter()
            .filter(|t| GAUSSIAN_ERROR.iter().any(|(u, _)| u == t)))
    );
    // Weights of language models are around 0.02.
    for sigma in [1.0, 0.02, 300.0] {
        let x: Vec<f32> = gaussian(1, 1 << 16).iter().map(|x| x * sigma).collect();
        for (dtype, limit) in GAUSSIAN_ERROR {
            let error = relative_error(&x, &round_trip(dtype, &x));
            // At 0.02, the f16 scales of Q4_K and its like are subnormal: a little is lost.
            let slack = if sigma < 1.0 { 1.01 } else { 1.0 };
            assert!(error <= slack * limit, "{dtype}, sigma {sigma}: {error}");
            assert!(error >= 0.9 * limit, "{dtype}, sigma {sigma}: {error}");
        }
    }
}

/// Formats that put their largest element on an integer exactly find it there again.
#[test]
fn encoding_twice_changes_nothing() {
    let x = gaussian(2, 1 << 13);
    for dtype in [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q4_0,
        DType::Q5_0,
        DType::Q8_0,
        DType::TQ1_0,
        DType::TQ2_0,
    ] {
        let once = encode(dtype, &x);
        assert!(encode(dtype, &decode(dtype, &once)) == once, "{dtype}");
    }
}

/// Data that a format can hold exactly, with scales that f16 can hold, comes back exactly.
#[test]
fn points_of_the_format_stay() {
    let mut rng = Rng(3);
    let signed = |min: i32| (min..-min).collect::<Vec<_>>();
    let iq4 = quant::iq4_nl::LEVELS.map(i32::from).to_vec();
    let cases = [
        (DType::Q4_0, 32, signed(-8)),
        (DType::Q5_0, 32, signed(-16)),
        (DType::Q8_0, 32, (-127..=127).collect()),
        (DType::Q8_K, 256, (-127..=127).collect()),
        (DType::Q3_K, 16, signed(-4)),
        (DType::Q6_K, 16, signed(-32)),
        (DType::IQ4_NL, 32, iq4.clone()),
        (DType::IQ4_XS, 32, iq4),
        (DType::TQ1_0, 256, vec![-1, 0, 1]),
        (DType::TQ2_0, 256, vec![-1, 0, 1]),
    ];
    for (dtype, group, levels) in cases {
        let mut x: Vec<f32> = (0..1024)
            .map(|_| 0.25 * levels[rng.below(levels.len() as u64) as usize] as f32)
            .collect();
        for group in x.chunks_exact_mut(group) {
            group[3] = 0.25 * levels[0] as f32; // the lowest fixes the scale
        }
        // `+ 0.0` makes negative zeros positive.
        let y: Vec<f32> = round_trip(dtype, &x).iter().map(|y| y + 0.0).collect();
        assert_eq!(x, y, "{dtype}");
    }
}

#[test]
fn zeros_stay_zeros() {
    for dtype in encodable() {
        for zero in [0.0, -0.0] {
            let y = round_trip(dtype, &[zero; 512]);
            assert!(y.iter().all(|y| *y == 0.0), "{dtype}");
        }
    }
}

#[test]
fn constants_keep_their_value() {
    for dtype in encodable() {
        for c in [1.0, -1.0, 0.37, -123.4] {
            let error = relative_error(&[c; 256], &round_trip(dtype, &[c; 256]));
            // Rounding of two f16 numbers, or of one bf16.
            assert!(error < 0.004, "{dtype}, {c}: {error}");
        }
    }
}

#[test]
fn one_outlier_is_kept() {
    for dtype in encodable() {
        for (at, outlier) in [(0, 1000.0), (255, -1000.0), (77, 1000.0)] {
            let mut x = gaussian(4, 256);
            x[at] = outlier;
            let y = round_trip(dtype, &x)[at];
            assert!((y / outlier - 1.0).abs() < 0.05, "{dtype}: {y}");
        }
    }
}

/// Too small for an f16 scale, down to subnormal: nothing larger than the input comes out.
#[test]
fn tiny_values_shrink_to_tiny_values() {
    for dtype in encodable() {
        for magnitude in [1e-6, 1e-8, 1e-12, 1e-20, 1e-38, 1e-42, f32::from_bits(1)] {
            let x: Vec<f32> = gaussian(5, 512).iter().map(|x| x * magnitude).collect();
            let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            for y in round_trip(dtype, &x) {
                // An f16 scale below its normal range may round up, to twice itself at most.
                assert!(y.abs() <= 2.0 * max, "{dtype}, {magnitude}: {y}");
            }
        }
    }
}

/// Far beyond f16 scales: the values are lost, the blocks beside them are not.
#[test]
fn huge_values_harm_their_block_only() {
    for dtype in encodable() {
        let n = dtype.block_len();
        let clean = gaussian(6, 3 * n);
        let expected = encode(dtype, &clean);
        for huge in [1e20, -1e30, f32::MAX, f32::MIN] {
            let mut x = clean.clone();
            x[n..2 * n].iter_mut().for_each(|x| *x *= huge);
            x[n] = huge;
            let got = encode(dtype, &x);
            let n_bytes = dtype.block_bytes();
            assert_eq!(got[..n_bytes], expected[..n_bytes], "{dtype}");
            assert_eq!(got[2 * n_bytes..], expected[2 * n_bytes..], "{dtype}");
        }
    }
}

#[test]
fn a_block_with_nan_or_infinity_becomes_nan_throughout() {
    for dtype in encodable().filter(|t| t.is_quantized()) {
        let n = dtype.block_len();
        let clean = gaussian(7, 3 * n);
        let expected = round_trip(dtype, &clean);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [n, n + 5, 2 * n - 1] {
                let mut x = clean.clone();
                x[at] = bad;
                let got = round_trip(dtype, &x);
                assert!(got[n..2 * n].iter().all(|y| y.is_nan()), "{dtype}, {bad}");
                assert_eq!(got[..n], expected[..n], "{dtype}, {bad}");
                assert_eq!(got[2 * n..], expected[2 * n..], "{dtype}, {bad}");
            }
        }
    }
}

/// The sums that integer kernels rely on and decoding does not look at.
#[test]
fn stored_sums_are_right() {
    let x = gaussian(8, 512);
    for block in encode(DType::Q8_1, &x).chunks_exact(36) {
        let block: &quant::q8_1::Block = bytemuck::from_bytes(block);
        let [d, s] = [block.d, block.s].map(|h| half::f16::from_le_bytes(h).to_f32());
        let sum: i32 = block.qs.iter().map(|q| i32::from(*q)).sum();
        // Both are rounded to f16, 11 bits.
        assert!((s - d * sum as f32).abs() <= 0.001 * s.abs());
    }
    for (block, x) in encode(DType::Q8_K, &x)
        .chunks_exact(292)
        .zip(x.chunks_exact(256))
    {
        let block: &quant::q8_k::Block = bytemuck::from_bytes(block);
        for (sum, qs) in block
            .bsums
            .as_chunks::<2>()
            .0
            .iter()
            .zip(block.qs.chunks(16))
        {
            let expected: i16 = qs.iter().map(|q| i16::from(*q)).sum();
            assert_eq!(i16::from_le_bytes(*sum), expected);
        }
        let largest = (0..256).max_by(|a, b| x[*a].abs().total_cmp(&x[*b].abs()));
        assert_eq!(block.qs[largest.unwrap()], -127);
    }
}

#[test]
fn unpack_fills_one_block_and_no_more() {
    for dtype in DType::ALL.into_iter().filter(|t| t.is_quantized()) {
        let mut rng = Rng(9);
        let block: Vec<u8> = (0..dtype.block_bytes()).map(|_| rng.next() as u8).collect();
        let [mut a, mut b] = [quant::Unpacked::ZERO, quant::Unpacked::ZERO];
        b.q = [99; 256];
        b.scale = [99.0; 16];
        b.min = [99.0; 16];
        quant::unpack(dtype, &block, &mut a);
        quant::unpack(dtype, &block, &mut b);
        let n = dtype.block_len();
        assert_eq!(a.q[..n], b.q[..n], "{dtype}");
        assert!(b.q[n..].iter().all(|q| *q == 99), "{dtype}");
        let bits = |s: &[f32]| s.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
        for (a, b) in [(a.scale, b.scale), (a.min, b.min)] {
            assert_eq!(bits(&a[..n / 16]), bits(&b[..n / 16]), "{dtype}");
            assert!(b[n / 16..].iter().all(|s| *s == 99.0), "{dtype}");
        }
    }
}

#[test]
fn plain_types_are_cast() {
    let cases: [(DType, Vec<u8>, f32); 6] = [
        (DType::F32, (-1.5f32).to_le_bytes().to_vec(), -1.5),
        (DType::F64, 0.1f64.to_le_bytes().to_vec(), 0.1),
        (DType::I8, vec![0x80], -128.0),
        (DType::I16, (-300i16).to_le_bytes().to_vec(), -300.0),
        (
            DType::I32,
            16_777_217i32.to_le_bytes().to_vec(),
            16_777_216.0,
        ),
        (
            DType::I64,
            (-1i64 << 40).to_le_bytes().to_vec(),
            -1_099_511_627_776.0,
        ),
    ];
    for (dtype, bytes, expected) in cases {
        let twice = [bytes.clone(), bytes].concat();
        assert_eq!(decode(dtype, &twice), [expected; 2], "{dtype}");
    }
}

#[test]
fn no_elements_are_no_error() {
    for dtype in DType::ALL {
        quant::dequantize(dtype, &[], &mut []);
        if quant::can_encode(dtype) {
            quant::quantize(dtype, &[], &mut []);
        }
    }
}

#[test]
fn wrong_lengths_and_types_panic() {
    for dtype in DType::ALL {
        let n = dtype.block_len();
        let bytes = vec![0; dtype.block_bytes()];
        let unpack = |bytes: &[u8]| {
            catch_unwind(|| quant::unpack(dtype, bytes, &mut quant::Unpacked::ZERO.clone()))
        };
        assert_eq!(unpack(&bytes).is_ok(), dtype.is_quantized(), "{dtype}");
        assert!(unpack(&bytes[1..]).is_err(), "{dtype}");

        let dequantize =
            |bytes: &[u8], n| catch_unwind(|| quant::dequantize(dtype, bytes, &mut vec![0.0; n]));
        assert!(dequantize(&bytes, n).is_ok(), "{dtype}");
        assert!(dequantize(&bytes, n - 1).is_err(), "{dtype}");
        assert!(dequantize(&bytes[1..], n).is_err(), "{dtype}");

        let quantize = |n, n_bytes| {
            catch_unwind(|| quant::quantize(dtype, &vec![0.0; n], &mut vec![0; n_bytes]))
        };
        let n_bytes = bytes.len();
        assert_eq!(
            quantize(n, n_bytes).is_ok(),
            quant::can_encode(dtype),
            "{dtype}"
        );
        assert!(quantize(n, n_bytes + 1).is_err(), "{dtype}");
        assert!(quantize(n + 1, n_bytes).is_err(), "{dtype}");
    }
}
