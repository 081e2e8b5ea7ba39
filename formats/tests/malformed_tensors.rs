//! One test for each way in which a file's tensors can be wrong.

mod common;

use common::Bytes;
use tandem_formats::gguf::limits;
use tandem_formats::{DType, GgufError};

const F32: u32 = 0;
const Q4_0: u32 = 2;

#[test]
fn alignment_is_honoured() {
    let mut b = Bytes::header(1, 1)
        .key("general.alignment", 4)
        .u32(256)
        .tensor("t", &[2], F32, 0);
    b.0.resize(256, 0);
    let b = b.raw(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let file = b.parse().unwrap();
    assert_eq!(file.alignment(), 256);
    assert_eq!(file.tensors()[0].data, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn alignment_beyond_the_file() {
    let b = Bytes::header(1, 1)
        .key("general.alignment", 4)
        .u32(1 << 31)
        .tensor("t", &[2], F32, 0)
        .data(8);
    assert!(matches!(
        b.error(),
        GgufError::OutOfFile { available: 0, .. }
    ));
}

#[test]
fn tensor_name_empty() {
    let b = Bytes::header(1, 0).tensor("", &[1], F32, 0).data(4);
    assert!(matches!(b.error(), GgufError::EmptyName { .. }));
}

#[test]
fn tensor_name_not_utf8() {
    let b = Bytes::header(1, 0)
        .str(b"\x80")
        .u32(1)
        .u64(1)
        .u32(F32)
        .u64(0)
        .data(4);
    assert_eq!(
        b.error(),
        GgufError::Utf8 {
            what: "tensor name",
            offset: 32
        }
    );
}

#[test]
fn tensor_name_too_long() {
    let name = "n".repeat(limits::MAX_NAME_BYTES + 1);
    let b = Bytes::header(1, 0).tensor(&name, &[1], F32, 0).data(4);
    assert!(matches!(b.error(), GgufError::TooMany { .. }));
}

#[test]
fn no_dimensions() {
    // Padded, as an entry without dimensions is shorter than the shortest valid one.
    let b = Bytes::header(1, 0).tensor("t", &[], F32, 0).data(64);
    assert_eq!(
        b.error(),
        GgufError::TensorDims {
            name: "t".into(),
            offset: 33,
            found: 0
        }
    );
}

#[test]
fn five_dimensions() {
    let b = Bytes::header(1, 0).tensor("t", &[1; 5], F32, 0).data(4);
    assert_eq!(
        b.error(),
        GgufError::TensorDims {
            name: "t".into(),
            offset: 33,
            found: 5
        }
    );
}

#[test]
fn number_of_dimensions_of_32_bits() {
    let b = Bytes::header(1, 0).str(b"t").u32(u32::MAX).data(64);
    assert!(matches!(
        b.error(),
        GgufError::TensorDims {
            found: 0xFFFF_FFFF,
            ..
        }
    ));
}

#[test]
fn zero_dimension() {
    let b = Bytes::header(1, 0).tensor("t", &[4, 0], F32, 0).data(4);
    assert_eq!(
        b.error(),
        GgufError::ZeroDim {
            name: "t".into(),
            offset: 45
        }
    );
}

#[test]
fn elements_overflow() {
    let dims: [&[u64]; 3] = [&[1 << 32, 1 << 32], &[u64::MAX, 2], &[1 << 16; 4]];
    for dims in dims {
        // A type of less than a byte an element: elements overflow before bytes do.
        for dtype in [F32, 19] {
            let b = Bytes::header(1, 0).tensor("t", dims, dtype, 0).data(4);
            assert!(matches!(
                b.error(),
                GgufError::TensorSize { .. } | GgufError::PartialBlock { .. }
            ));
        }
    }
}

#[test]
fn bytes_overflow() {
    let b = Bytes::header(1, 0).tensor("t", &[1 << 62], F32, 0).data(4);
    assert_eq!(
        b.error(),
        GgufError::TensorSize {
            name: "t".into(),
            offset: 37
        }
    );
}

#[test]
fn row_not_whole_blocks() {
    // 16 * 2 elements would be one block, but a row is not.
    let b = Bytes::header(1, 0).tensor("t", &[16, 2], Q4_0, 0).data(18);
    assert_eq!(
        b.error(),
        GgufError::PartialBlock {
            name: "t".into(),
            offset: 37,
            dtype: DType::Q4_0,
            n_cols: 16
        }
    );
}

#[test]
fn unknown_tensor_type() {
    // Retired ones (Q4_2, Q4_0_4_4) and numbers never used.
    for found in [4, 5, 31, 1000, u32::MAX] {
        let b = Bytes::header(1, 0).tensor("t", &[32], found, 0).data(32);
        assert_eq!(
            b.error(),
            GgufError::UnknownTensorType {
                name: "t".into(),
                offset: 45,
                found
            }
        );
    }
}

#[test]
fn duplicate_tensor() {
    let b = Bytes::header(2, 0)
        .tensor("t", &[1], F32, 0)
        .tensor("t", &[1], F32, 32)
        .data(64);
    assert_eq!(
        b.error(),
        GgufError::DuplicateTensor {
            name: "t".into(),
            offset: 57
        }
    );
}

#[test]
fn misaligned_data_offset() {
    let b = Bytes::header(1, 0).tensor("t", &[1], F32, 16).data(64);
    assert_eq!(
        b.error(),
        GgufError::Misaligned {
            name: "t".into(),
            data_offset: 16,
            alignment: 32
        }
    );
}

#[test]
fn data_out_of_file() {
    // The end, the start, and an offset at which the end overflows.
    for (offset, n) in [(0, 17), (32, 1), (96, 1), (u64::MAX - 31, 16)] {
        let b = Bytes::header(1, 0).tensor("t", &[n], F32, offset).data(32);
        let n_bytes = if n == 17 { 68 } else { 4 * n as usize };
        assert_eq!(
            b.error(),
            GgufError::OutOfFile {
                name: "t".into(),
                data_offset: offset,
                n_bytes,
                available: 32
            }
        );
    }
}

#[test]
fn data_up_to_the_last_byte_is_accepted() {
    let b = Bytes::header(1, 0).tensor("t", &[9], F32, 0).data(36);
    assert_eq!(b.parse().unwrap().tensors()[0].data.len(), 36);
}

#[test]
fn no_padding_before_the_data() {
    // The file ends within the padding.
    let b = Bytes::header(1, 0).tensor("t", &[1], F32, 0);
    assert!(matches!(
        b.error(),
        GgufError::OutOfFile { available: 0, .. }
    ));
}

#[test]
fn overlapping_tensors() {
    let b = Bytes::header(3, 0)
        .tensor("b", &[1], F32, 32)
        .tensor("c", &[1], F32, 64)
        .tensor("a", &[9], F32, 0)
        .data(68);
    // Header, three entries of 33 bytes, padding.
    let data_start = (24 + 3 * 33usize).next_multiple_of(32);
    assert_eq!(
        b.error(),
        GgufError::Overlap {
            first: "a".into(),
            second: "b".into(),
            offset: data_start + 32
        }
    );
}

#[test]
fn tensors_out_of_order_and_with_gaps_are_accepted() {
    let b = Bytes::header(2, 0)
        .tensor("b", &[1], F32, 64)
        .tensor("a", &[8], F32, 0)
        .data(68);
    let file = b.parse().unwrap();
    assert_eq!(file.tensors()[0].name, "b");
    assert_eq!(file.tensor("a").unwrap().data.len(), 32);
    assert!(file.tensor("c").is_none());
}

#[test]
fn two_tensors_at_one_place() {
    let b = Bytes::header(2, 0)
        .tensor("a", &[1], F32, 0)
        .tensor("b", &[1], F32, 0)
        .data(4);
    assert!(matches!(b.error(), GgufError::Overlap { .. }));
}
