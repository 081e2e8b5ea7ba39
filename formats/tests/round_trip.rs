//! What the writer writes, the reader reads.

#![cfg(feature = "std")]

mod common;

use common::{shared_gguf, walk};
use tandem_formats::gguf::limits;
use tandem_formats::{Array, DType, DataWriter, Gguf, GgufError, Value, ValueType, Writer};

/// A writer with all metadata and tensors of `file`.
fn copy(file: &Gguf<'_>) -> Writer {
    let mut w = Writer::new();
    for (key, value) in file.metadata() {
        w.add(key, *value).unwrap();
    }
    for t in file.tensors() {
        w.add_tensor(t.name, t.shape(), t.dtype).unwrap();
    }
    w
}

fn assert_same(a: &Gguf<'_>, b: &Gguf<'_>) {
    assert_eq!(a.alignment(), b.alignment());
    let strip = |f: &Gguf<'_>| -> Vec<String> {
        // NaN is not equal to itself; its text is.
        f.metadata().map(|(k, v)| format!("{k} {v:?}")).collect()
    };
    assert_eq!(strip(a), strip(b));
    for (key, value) in a.metadata() {
        if let Value::Array(array) = value {
            assert_eq!(b.get_array(key).unwrap(), Some(array));
        }
    }
    assert_eq!(a.tensors(), b.tensors());
}

#[test]
fn every_value_type() {
    let values = [
        ("u8", Value::U8(u8::MAX)),
        ("i8", Value::I8(i8::MIN)),
        ("u16", Value::U16(u16::MAX)),
        ("i16", Value::I16(i16::MIN)),
        ("u32", Value::U32(u32::MAX)),
        ("i32", Value::I32(i32::MIN)),
        ("f32", Value::F32(f32::MIN_POSITIVE)),
        ("true", Value::Bool(true)),
        ("false", Value::Bool(false)),
        ("str", Value::Str("grün\n\0")),
        ("empty", Value::Str("")),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f64", Value::F64(f64::MAX)),
    ];
    let mut w = Writer::new();
    for (key, value) in values {
        w.add(key, value).unwrap();
    }
    let bytes = w.to_vec(&[]).unwrap();
    let file = Gguf::parse(&bytes).unwrap();
    let read: Vec<(&str, Value<'_>)> = file.metadata().map(|(k, v)| (k, *v)).collect();
    assert_eq!(read, values);
    walk(&file);
}

#[test]
fn every_array_type() {
    let mut w = Writer::new();
    w.add_array("u8", &[0u8, u8::MAX]).unwrap();
    w.add_array("i8", &[i8::MIN, i8::MAX]).unwrap();
    w.add_array("u16", &[0u16, u16::MAX]).unwrap();
    w.add_array("i16", &[i16::MIN, i16::MAX]).unwrap();
    w.add_array("u32", &[0u32, u32::MAX]).unwrap();
    w.add_array("i32", &[i32::MIN, i32::MAX]).unwrap();
    w.add_array("u64", &[0u64, u64::MAX]).unwrap();
    w.add_array("i64", &[i64::MIN, i64::MAX]).unwrap();
    w.add_array("f32", &[f32::NEG_INFINITY, 1.5]).unwrap();
    w.add_array("f64", &[f64::MIN, 1.5]).unwrap();
    w.add_array("bool", &[true, false, true]).unwrap();
    w.add_array::<u32>("none", &[]).unwrap();
    w.add_strings("str", [&b"a"[..], b"", b"\xFF"]).unwrap();
    let bytes = w.to_vec(&[]).unwrap();
    let file = Gguf::parse(&bytes).unwrap();
    walk(&file);
    let get = |key: &str| *file.get_array(key).unwrap().unwrap();

    for key in ["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"] {
        assert_eq!(get(key).len(), 2);
        assert_eq!(get(key).element_type().name(), key);
        assert!(get(key).iter_f32().is_none() && get(key).iter_bool().is_none());
    }
    assert_eq!(get("u8").iter_u32().unwrap().collect::<Vec<_>>(), [0, 255]);
    assert_eq!(
        get("i16").iter_i32().unwrap().collect::<Vec<_>>(),
        [i32::from(i16::MIN), i32::from(i16::MAX)]
    );
    assert_eq!(
        get("i64").iter_i64().unwrap().collect::<Vec<_>>(),
        [i64::MIN, i64::MAX]
    );
    // Some element does not fit.
    assert!(get("u64").iter_i64().is_none());
    assert!(get("i8").iter_u32().is_none());
    assert!(get("u32").iter_i32().is_none());

    assert_eq!(
        get("f32").iter_f32().unwrap().collect::<Vec<_>>(),
        [f32::NEG_INFINITY, 1.5]
    );
    assert_eq!(get("f64").iter_f32().unwrap().nth(1), Some(1.5));
    assert_eq!(
        get("bool").iter_bool().unwrap().collect::<Vec<_>>(),
        [true, false, true]
    );
    assert!(get("bool").iter_u32().is_none());
    assert_eq!(
        get("str").iter_str().unwrap().collect::<Vec<_>>(),
        [&b"a"[..], b"", b"\xFF"]
    );
    assert!(get("str").iter_values().is_none() && get("str").iter_u32().is_none());
    assert!(get("u8").iter_str().is_none());
    assert!(get("none").is_empty());
    assert_eq!(get("none").iter_i64().unwrap().count(), 0);

    assert_eq!(get("i32").get(1), Some(Value::I32(i32::MAX)));
    assert_eq!(get("i32").get(2), None);
    assert_eq!(get("i32").get(usize::MAX), None);
    assert_eq!(get("str").get(0), None);
    assert_same(
        &file,
        &Gguf::parse(&copy(&file).to_vec(&[]).unwrap()).unwrap(),
    );
}

#[test]
fn array_from_bytes_is_checked() {
    assert_eq!(
        Array::from_bytes(ValueType::U32, 1, &[1, 0, 0, 0, 9]),
        Err(GgufError::ArraySize {
            found: 5,
            wanted: 4
        })
    );
    assert!(Array::from_bytes(ValueType::U32, 2, &[0; 4]).is_err());
    assert!(Array::from_bytes(ValueType::Bool, 1, &[2]).is_err());
    assert!(Array::from_bytes(ValueType::Array, 0, &[]).is_err());
    assert!(Array::from_bytes(ValueType::Str, 1, &[1, 0, 0, 0, 0, 0, 0, 0]).is_err());
}

#[test]
fn tensors_of_every_type_and_alignment() {
    for alignment in [1, 8, 32, 4096] {
        let mut w = Writer::new();
        w.add("general.alignment", Value::U32(alignment)).unwrap();
        let mut data = Vec::new();
        for (i, dtype) in DType::ALL.into_iter().enumerate() {
            w.add_tensor(dtype.name(), &[256, 3], dtype).unwrap();
            data.push(vec![i as u8; dtype.row_bytes(768).unwrap()]);
        }
        let slices: Vec<&[u8]> = data.iter().map(|d| &d[..]).collect();
        let bytes = w.to_vec(&slices).unwrap();
        let file = Gguf::parse(&bytes).unwrap();
        assert_eq!(file.alignment(), alignment as usize);
        for (t, data) in file.tensors().iter().zip(&data) {
            assert_eq!((t.name, t.data), (t.dtype.name(), &data[..]));
            assert_eq!((t.shape(), t.n_cols(), t.n_rows()), (&[256, 3][..], 256, 3));
            let offset = t.data.as_ptr() as usize - bytes.as_ptr() as usize;
            assert_eq!(offset % alignment as usize, 0);
        }
        // Streamed in pieces, the same file.
        let mut out: DataWriter<Vec<u8>> = w.start(Vec::new()).unwrap();
        for (t, data) in file.tensors().iter().zip(&data) {
            for piece in data.chunks(100) {
                out.write(t.name, piece).unwrap();
            }
        }
        assert!(out.finish().unwrap() == bytes);
    }
}

#[test]
fn writer_refuses_what_the_reader_would() {
    let mut w = Writer::new();
    w.add("k", Value::U8(1)).unwrap();
    assert_eq!(
        w.add("k", Value::U8(1)),
        Err(GgufError::DuplicateKey {
            key: "k".into(),
            offset: 24 + 14
        })
    );
    assert!(matches!(
        w.add("", Value::U8(1)),
        Err(GgufError::EmptyName { .. })
    ));
    assert!(matches!(
        w.add(&"k".repeat(limits::MAX_KEY_BYTES + 1), Value::U8(1)),
        Err(GgufError::TooMany { .. })
    ));
    assert_eq!(
        w.add("general.alignment", Value::U32(24)),
        Err(GgufError::Alignment { found: 24 })
    );
    assert!(matches!(
        w.add("general.alignment", Value::U64(32)),
        Err(GgufError::AlignmentType { .. })
    ));
    w.add_tensor("t", &[32], DType::Q8_0).unwrap();
    assert!(matches!(
        w.add_tensor("t", &[32], DType::F32),
        Err(GgufError::DuplicateTensor { .. })
    ));
    assert!(matches!(
        w.add_tensor("u", &[31], DType::Q8_0),
        Err(GgufError::PartialBlock { .. })
    ));
    assert!(matches!(
        w.add_tensor("u", &[], DType::F32),
        Err(GgufError::TensorDims { found: 0, .. })
    ));
    assert!(matches!(
        w.add_tensor("u", &[1; 5], DType::F32),
        Err(GgufError::TensorDims { found: 5, .. })
    ));
    assert!(matches!(
        w.add_tensor("u", &[1, 0], DType::F32),
        Err(GgufError::ZeroDim { .. })
    ));
    assert!(matches!(
        w.add_tensor("u", &[usize::MAX, 2], DType::F32),
        Err(GgufError::TensorSize { .. })
    ));
    // What was refused has left no trace.
    let bytes = w.to_vec(&[&[0; 34]]).unwrap();
    let file = Gguf::parse(&bytes).unwrap();
    assert_eq!((file.metadata().len(), file.tensors().len()), (1, 1));
}

#[test]
fn all_tensors_together_may_not_overflow() {
    let mut w = Writer::new();
    for name in ["a", "b", "c"] {
        w.add_tensor(name, &[usize::MAX / 2], DType::I8).unwrap();
    }
    assert!(matches!(w.to_vec(&[]), Err(GgufError::TensorSize { .. })));
    assert!(w.start(Vec::new()).is_err());
}

#[test]
fn writer_checks_the_data() {
    let mut w = Writer::new();
    w.add_tensor("a", &[4], DType::I8).unwrap();
    w.add_tensor("b", &[2], DType::I8).unwrap();
    let wrong: [&[&[u8]]; 5] = [
        &[],
        &[&[0; 4]],
        &[&[0; 4], &[0; 3]],
        &[&[0; 3], &[0; 2]],
        &[&[0; 4], &[0; 2], &[]],
    ];
    for data in wrong {
        assert!(w.to_vec(data).is_err());
    }
    let mut out = w.start(Vec::new()).unwrap();
    let message = out.write("b", &[0]).unwrap_err().to_string();
    assert_eq!(message, "data of tensor \"b\" given where \"a\" is due");
    out.write("a", &[1, 2]).unwrap();
    let message = out.write("a", &[3, 4, 5]).unwrap_err().to_string();
    assert_eq!(message, "tensor \"a\" takes 4 bytes of data, 5 were given");
    out.write("a", &[3, 4]).unwrap();
    out.write("b", &[5]).unwrap();
    out.write("b", &[6]).unwrap();
    assert!(out.write("b", &[7]).is_err());
    let bytes = out.finish().unwrap();
    assert_eq!(Gguf::parse(&bytes).unwrap().tensors()[1].data, [5, 6]);

    let mut w = Writer::new();
    w.add_tensor("a", &[4], DType::I8).unwrap();
    let mut out = w.start(Vec::new()).unwrap();
    out.write("a", &[1]).unwrap();
    let message = out.finish().unwrap_err().to_string();
    assert_eq!(message, "tensor \"a\" takes 4 bytes of data, 1 were given");
}

#[test]
fn real_files_read_and_copy() {
    for folder in ["peer/logits", "peer/vocab", "models/pocket"] {
        for path in shared_gguf(folder) {
            let bytes = std::fs::read(&path).unwrap();
            let file = Gguf::parse(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            walk(&file);
            assert!(file.get_str("general.architecture").unwrap().is_some());
            let data: Vec<&[u8]> = file.tensors().iter().map(|t| t.data).collect();
            let copied = copy(&file).to_vec(&data).unwrap();
            assert_same(&file, &Gguf::parse(&copied).unwrap());
        }
    }
}
