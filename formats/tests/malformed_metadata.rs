//! One test for each way in which a file's header or metadata can be wrong.

mod common;

use common::Bytes;
use tandem_formats::gguf::limits;
use tandem_formats::{Gguf, GgufError, Value, ValueType, Writer};

#[test]
fn smallest_file_is_accepted() {
    let b = Bytes::header(0, 0);
    let file = b.parse().unwrap();
    assert_eq!((file.version(), file.alignment()), (3, 32));
    assert_eq!(file.metadata().len(), 0);
    assert!(file.tensors().is_empty());
}

#[test]
fn version_2_is_accepted() {
    let b = Bytes::default().raw(b"GGUF").u32(2).u64(0).u64(0);
    assert_eq!(b.parse().unwrap().version(), 2);
}

#[test]
fn wrong_magic() {
    let b = Bytes::default().raw(b"GGML").u32(3).u64(0).u64(0);
    assert_eq!(b.error(), GgufError::Magic { found: *b"GGML" });
}

#[test]
fn big_endian() {
    for version in [2u32, 3] {
        let b = Bytes::default()
            .raw(b"GGUF")
            .u32(version.swap_bytes())
            .u64(0)
            .u64(0);
        assert_eq!(b.error(), GgufError::BigEndian);
    }
}

#[test]
fn version_1() {
    let b = Bytes::default().raw(b"GGUF").u32(1).u32(0).u32(0);
    assert_eq!(b.error(), GgufError::Version1);
}

#[test]
fn other_versions() {
    for found in [0, 4, 300, u32::MAX] {
        let b = Bytes::default().raw(b"GGUF").u32(found).u64(0).u64(0);
        assert_eq!(b.error(), GgufError::Version { found });
    }
}

#[test]
fn empty_file() {
    assert!(matches!(
        Bytes::default().error(),
        GgufError::Truncated {
            what: "magic",
            offset: 0,
            needed: 4,
            left: 0
        }
    ));
}

#[test]
fn too_many_keys() {
    let b = Bytes::header(0, limits::MAX_KEYS as u64 + 1);
    assert!(matches!(
        b.error(),
        GgufError::TooMany {
            what: "number of keys",
            offset: 16,
            ..
        }
    ));
}

#[test]
fn more_keys_than_the_file_can_hold() {
    let b = Bytes::header(0, 1000).key("a", 0).raw(&[1]);
    assert!(matches!(b.error(), GgufError::Truncated { .. }));
}

#[test]
fn too_many_tensors() {
    for n in [limits::MAX_TENSORS as u64 + 1, u64::MAX] {
        assert!(matches!(
            Bytes::header(n, 0).error(),
            GgufError::TooMany {
                what: "number of tensors",
                offset: 8,
                ..
            }
        ));
    }
}

#[test]
fn more_tensors_than_the_file_can_hold() {
    let b = Bytes::header(1 << 20, 0).tensor("a", &[1], 0, 0).data(4);
    assert!(matches!(b.error(), GgufError::Truncated { .. }));
}

#[test]
fn key_length_beyond_the_file() {
    let b = Bytes::header(0, 1).u64(500).raw(&[b'a'; 100]);
    assert!(matches!(
        b.error(),
        GgufError::Truncated {
            what: "key",
            offset: 32,
            needed: 500,
            left: 100
        }
    ));
}

#[test]
fn key_too_long() {
    for n in [limits::MAX_KEY_BYTES as u64 + 1, u64::MAX] {
        let b = Bytes::header(0, 1).u64(n).raw(&[b'a'; 1 << 17]);
        assert!(matches!(b.error(), GgufError::TooMany { what: "key", .. }));
    }
}

#[test]
fn key_empty() {
    let b = Bytes::header(0, 1).key("", 0).raw(&[0; 8]);
    assert_eq!(
        b.error(),
        GgufError::EmptyName {
            what: "key",
            offset: 24
        }
    );
}

#[test]
fn key_not_utf8() {
    let b = Bytes::header(0, 1).str(b"ab\xFFc").u32(0).raw(&[1]);
    assert_eq!(
        b.error(),
        GgufError::Utf8 {
            what: "key",
            offset: 34
        }
    );
}

#[test]
fn string_value_not_utf8() {
    let b = Bytes::header(0, 1).key("k", 8).str(b"\xC3");
    let gguf = b.parse().unwrap();
    assert_eq!(gguf.get("k"), Some(&Value::Bytes(b"\xC3")));
    let key = "k".to_string();
    assert_eq!(gguf.get_str("k"), Err(GgufError::ValueUtf8 { key }));
    // It is written as it was read.
    let mut writer = Writer::new();
    writer.add("k", Value::Bytes(b"\xC3")).unwrap();
    let file = writer.to_vec(&[]).unwrap();
    let written = Gguf::parse(&file).unwrap();
    assert_eq!(written.get("k"), Some(&Value::Bytes(b"\xC3")));
}

#[test]
fn string_value_too_long() {
    let b = Bytes::header(0, 1).key("k", 8).u64(u64::MAX);
    assert!(matches!(b.error(), GgufError::TooMany { .. }));
}

#[test]
fn string_array_may_hold_any_bytes() {
    let b = Bytes::header(0, 1)
        .key("k", 9)
        .u32(8)
        .u64(2)
        .str(b"\xFF\x00")
        .str(b"");
    let file = b.parse().unwrap();
    let array = file.get_array("k").unwrap().unwrap();
    let strings: Vec<&[u8]> = array.iter_str().unwrap().collect();
    assert_eq!(strings, [&b"\xFF\x00"[..], b""]);
}

#[test]
fn unknown_value_type() {
    let b = Bytes::header(0, 1).key("k", 13).raw(&[0; 8]);
    assert_eq!(
        b.error(),
        GgufError::UnknownValueType {
            key: "k".into(),
            offset: 33,
            found: 13
        }
    );
}

#[test]
fn unknown_element_type() {
    let b = Bytes::header(0, 1).key("k", 9).u32(99).u64(0);
    assert_eq!(
        b.error(),
        GgufError::UnknownValueType {
            key: "k".into(),
            offset: 37,
            found: 99
        }
    );
}

#[test]
fn array_of_arrays() {
    let mut b = Bytes::header(0, 1).key("k", 9);
    for _ in 0..100_000 {
        b = b.u32(9).u64(1);
    }
    assert_eq!(
        b.error(),
        GgufError::NestedArray {
            key: "k".into(),
            offset: 37
        }
    );
}

#[test]
fn array_too_long() {
    for len in [limits::MAX_ARRAY_LEN as u64 + 1, u64::MAX, u64::MAX / 8 + 1] {
        let b = Bytes::header(0, 1).key("k", 9).u32(10).u64(len);
        assert!(matches!(
            b.error(),
            GgufError::TooMany {
                what: "array length",
                offset: 41,
                ..
            }
        ));
    }
}

#[test]
fn array_longer_than_the_file() {
    for element in [0, 2, 4, 6, 7, 8, 10, 12] {
        let b = Bytes::header(0, 1)
            .key("k", 9)
            .u32(element)
            .u64(1 << 20)
            .raw(&[0; 1000]);
        assert!(matches!(b.error(), GgufError::Truncated { .. }));
    }
}

#[test]
fn string_in_array_longer_than_the_file() {
    let b = Bytes::header(0, 1)
        .key("k", 9)
        .u32(8)
        .u64(2)
        .str(b"ok")
        .u64(100);
    assert!(matches!(
        b.error(),
        GgufError::Truncated {
            what: "string in array",
            ..
        }
    ));
}

#[test]
fn bool_neither_0_nor_1() {
    let b = Bytes::header(0, 1).key("k", 7).raw(&[2]);
    assert_eq!(
        b.error(),
        GgufError::Bool {
            key: "k".into(),
            offset: 37,
            found: 2
        }
    );
}

#[test]
fn bool_in_array_neither_0_nor_1() {
    let b = Bytes::header(0, 1)
        .key("k", 9)
        .u32(7)
        .u64(3)
        .raw(&[0, 1, 255]);
    assert_eq!(
        b.error(),
        GgufError::Bool {
            key: "k".into(),
            offset: 51,
            found: 255
        }
    );
}

#[test]
fn duplicate_key() {
    let b = Bytes::header(0, 3)
        .key("b", 0)
        .raw(&[1])
        .key("a", 0)
        .raw(&[1])
        .key("b", 7)
        .raw(&[1]);
    assert_eq!(
        b.error(),
        GgufError::DuplicateKey {
            key: "b".into(),
            offset: 52
        }
    );
}

#[test]
fn alignment_of_wrong_type() {
    let b = Bytes::header(0, 1).key("general.alignment", 10).u64(32);
    assert_eq!(
        b.error(),
        GgufError::AlignmentType {
            found: ValueType::U64
        }
    );
}

#[test]
fn alignment_zero_or_not_a_power_of_two() {
    for found in [0, 3, 24, 33, u32::MAX] {
        let b = Bytes::header(0, 1).key("general.alignment", 4).u32(found);
        assert_eq!(b.error(), GgufError::Alignment { found });
    }
}

#[test]
fn getters_name_key_and_types() {
    let b = Bytes::header(0, 3)
        .key("neg", 11)
        .u64(-5i64 as u64)
        .key("big", 10)
        .u64(1 << 40)
        .key("pi", 12)
        .u64(3.25f64.to_bits());
    let file = b.parse().unwrap();
    assert_eq!(file.get_u32("absent").unwrap(), None);
    assert_eq!(file.get_i32("neg").unwrap(), Some(-5));
    assert_eq!(file.get_u64("big").unwrap(), Some(1 << 40));
    assert_eq!(file.get_f32("pi").unwrap(), Some(3.25));
    assert_eq!(
        file.get_u32("neg").unwrap_err().to_string(),
        "key \"neg\" is -5, which does not fit u32"
    );
    assert_eq!(
        file.get_u32("big").unwrap_err().to_string(),
        "key \"big\" is 1099511627776, which does not fit u32"
    );
    assert_eq!(
        file.get_str("big").unwrap_err().to_string(),
        "key \"big\" has type u64; str is needed"
    );
    assert_eq!(
        file.get_f32("neg").unwrap_err().to_string(),
        "key \"neg\" has type i64; f32 or f64 is needed"
    );
    assert!(file.get_bool("pi").is_err());
    assert!(file.get_array("pi").is_err());
    assert_eq!(file.get("big"), Some(&Value::U64(1 << 40)));
}

#[test]
fn names_are_escaped_in_messages() {
    let b = Bytes::header(0, 1).key("a\x1b[31m\n", 77).raw(&[0; 8]);
    let message = b.error().to_string();
    assert!(!message.chars().any(char::is_control), "{message:?}");
}
