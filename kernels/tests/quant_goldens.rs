//! Decoding and encoding, bit for bit, against the Python package `gguf`.
//! The files and how they came to be: `fixtures/quants/README.md`.

use std::path::PathBuf;
use tandem_kernels::{DType, quant};

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures/quants")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (words, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    words.iter().map(|w| f32::from_le_bytes(*w)).collect()
}

/// Panics at the first float that differs in any bit.
fn assert_same_bits(dtype: DType, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert_eq!(g.to_bits(), e.to_bits(), "{dtype} [{i}]: {g} not {e}");
    }
}

#[test]
fn every_block_type_decodes_to_the_golden_bits() {
    let plain = [DType::F16, DType::BF16];
    let quantized = DType::ALL.into_iter().filter(|t| t.is_quantized());
    let mut n_types = 0;
    for dtype in quantized.chain(plain) {
        let blocks = fixture(&format!("{dtype}.blocks"));
        let expected = floats(&fixture(&format!("{dtype}.f32")));
        assert!(expected.len() >= 7 * dtype.block_len());
        let mut got = vec![f32::NAN; expected.len()];
        quant::dequantize(dtype, &blocks, &mut got);
        assert_same_bits(dtype, &got, &expected);
        n_types += 1;
    }
    assert_eq!(n_types, 26);
}

/// Blocks lie anywhere in a file: the same bytes at an odd address must decode the same.
#[test]
fn blocks_need_no_alignment() {
    for dtype in DType::ALL.into_iter().filter(|t| t.is_quantized()) {
        let blocks = fixture(&format!("{dtype}.blocks"));
        let expected = floats(&fixture(&format!("{dtype}.f32")));
        for shift in 1..4 {
            let mut moved = vec![0; shift];
            moved.extend_from_slice(&blocks);
            let mut got = vec![f32::NAN; expected.len()];
            quant::dequantize(dtype, &moved[shift..], &mut got);
            assert_same_bits(dtype, &got, &expected);
        }
    }
}

#[test]
fn encoders_with_an_oracle_write_its_bytes() {
    let x = floats(&fixture("encode.f32"));
    for dtype in [
        DType::F16,
        DType::BF16,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q8_1,
        DType::Q8_K,
        DType::TQ1_0,
        DType::TQ2_0,
    ] {
        let expected = fixture(&format!("{dtype}.encoded"));
        let mut got = vec![0xaa; expected.len()];
        quant::quantize(dtype, &x, &mut got);
        let n_bytes = dtype.block_bytes();
        for (i, (g, e)) in got
            .chunks(n_bytes)
            .zip(expected.chunks(n_bytes))
            .enumerate()
        {
            assert_eq!(g, e, "{dtype}, block {i}");
        }
    }
}
