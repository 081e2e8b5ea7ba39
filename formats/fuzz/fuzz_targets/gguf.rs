//! `cargo +nightly fuzz run gguf` in `formats`: any bytes give an error or a file of which every
//! value, element and tensor can be read, and whose copy by the writer is the same file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_formats::{Gguf, Value, Writer};

fuzz_target!(|bytes: &[u8]| {
    let file = match Gguf::parse(bytes) {
        Ok(file) => file,
        Err(e) => {
            assert!(!e.to_string().is_empty());
            return;
        }
    };
    walk(&file);

    let mut w = Writer::new();
    for (key, value) in file.metadata() {
        w.add(key, *value)
            .expect("valid in one file, valid in another");
    }
    let mut data = Vec::new();
    for t in file.tensors() {
        w.add_tensor(t.name, t.shape(), t.dtype)
            .expect("valid in one file, valid in another");
        data.push(t.data);
    }
    let copy = w.to_vec(&data).expect("sizes are those of the file");
    let copy = Gguf::parse(&copy).expect("the writer writes valid files");
    assert_eq!(copy.alignment(), file.alignment());
    assert_eq!(copy.tensors(), file.tensors());
    for (a, b) in copy.metadata().zip(file.metadata()) {
        // As text, in which NaN is equal to itself.
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
    }

    // As a split model of one part; its split.* keys may be anything.
    if let Ok(joined) = Gguf::join(vec![file]) {
        walk(&joined);
    }
});

fn walk(file: &Gguf<'_>) {
    for (key, value) in file.metadata() {
        assert!(file.get(key).is_some());
        let _ = (file.get_u32(key), file.get_u64(key), file.get_f32(key));
        let _ = (file.get_bool(key), file.get_str(key), file.get_array(key));
        if let Value::Array(a) = value {
            if let Some(strings) = a.iter_str() {
                assert_eq!(strings.count(), a.len());
            }
            if let Some(values) = a.iter_values() {
                assert_eq!(values.count(), a.len());
            }
            let n = a.iter_i64().map(|i| i.count());
            assert!(n.is_none_or(|n| n == a.len()));
            let n = a.iter_f32().map(|i| i.count());
            assert!(n.is_none_or(|n| n == a.len()));
            let _ = (a.iter_u32().map(|i| i.count()), a.get(a.len() / 2));
        }
    }
    for t in file.tensors() {
        assert_eq!(file.tensor(t.name), Some(t));
        assert_eq!(t.n_rows() * t.n_cols(), t.n_elements());
        assert_eq!(t.dtype.row_bytes(t.n_elements()), Some(t.data.len()));
    }
}
