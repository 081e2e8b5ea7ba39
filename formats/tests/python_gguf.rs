//! Another reader and writer, the Python package `gguf`, agrees with this one in both directions.
//! Skipped with a message where Python or the package is missing.

#![cfg(feature = "std")]

mod common;

use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::shared;
use tandem_formats::{DType, Gguf, Value, Writer};

/// Runs `python_gguf.py`; `None` where it cannot run.
fn python(args: &[&OsStr]) -> Option<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python_gguf.py");
    // Without bytecode files next to the script.
    let run = Command::new("python3")
        .arg("-B")
        .arg(script)
        .args(args)
        .output();
    let output = match run {
        Ok(output) => output,
        Err(e) => {
            eprintln!("skipped: python3 does not run: {e}");
            return None;
        }
    };
    let text = String::from_utf8(output.stdout).unwrap();
    if output.status.code() == Some(77) {
        eprintln!("skipped: python package {text}");
        return None;
    }
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(text)
}

/// CRC-32 as zlib's.
fn crc32(bytes: &[u8]) -> u32 {
    let table: Vec<u32> = (0..256u32)
        .map(|i| {
            (0..8).fold(i, |c, _| {
                if c & 1 == 1 {
                    c >> 1 ^ 0xEDB8_8320
                } else {
                    c >> 1
                }
            })
        })
        .collect();
    !bytes
        .iter()
        .fold(!0, |c: u32, b| table[(c as u8 ^ b) as usize] ^ (c >> 8))
}

fn hex(s: &str) -> String {
    s.bytes().map(|b| format!("{b:02x}")).collect()
}

/// What `python_gguf.py dump` prints.
fn dump(bytes: &[u8]) -> String {
    let file = Gguf::parse(bytes).unwrap();
    let mut out = format!("file {}\n", file.alignment());
    for (key, value) in file.metadata() {
        let ty = value.value_type() as u32;
        let (types, n, raw) = match value {
            Value::Array(a) => {
                let types = format!("{ty},{}", a.element_type() as u32);
                (types, a.len(), a.as_bytes().to_vec())
            }
            Value::Str(s) => {
                let raw = [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat();
                (ty.to_string(), 1, raw)
            }
            Value::F32(v) => (ty.to_string(), 1, v.to_le_bytes().to_vec()),
            Value::F64(v) => (ty.to_string(), 1, v.to_le_bytes().to_vec()),
            Value::Bool(v) => (ty.to_string(), 1, vec![u8::from(*v)]),
            integer => {
                let raw = integer.as_integer().unwrap().to_le_bytes();
                let size = value.value_type().size().unwrap();
                (ty.to_string(), 1, raw[..size].to_vec())
            }
        };
        writeln!(out, "key {} {types} {n} {}", hex(key), crc32(&raw)).unwrap();
    }
    for t in file.tensors() {
        let dims: Vec<String> = t.shape().iter().map(usize::to_string).collect();
        let (name, dims) = (hex(t.name), dims.join(","));
        writeln!(
            out,
            "tensor {name} {} {dims} {}",
            t.dtype as u32,
            crc32(t.data)
        )
        .unwrap();
    }
    out
}

fn assert_agrees(paths: &[PathBuf]) {
    let mut args = vec![OsStr::new("dump")];
    args.extend(paths.iter().map(|p| p.as_os_str()));
    let Some(theirs) = python(&args) else {
        return;
    };
    let ours: String = paths
        .iter()
        .map(|p| dump(&std::fs::read(p).unwrap()))
        .collect();
    for (a, b) in ours.lines().zip(theirs.lines()) {
        assert_eq!(a, b);
    }
    assert_eq!(ours.lines().count(), theirs.lines().count());
}

#[test]
fn reads_real_files_as_python_does() {
    let files = [
        "peer/logits/gemma3-f16.gguf",
        "peer/logits/llama-q4_k.gguf",
        "peer/logits/llama-iq4_xs.gguf",
        "peer/vocab/ggml-vocab-llama-spm.gguf",
    ];
    let paths: Vec<PathBuf> = files.iter().filter_map(|f| shared(f)).collect();
    if !paths.is_empty() {
        assert_agrees(&paths);
    }
}

#[test]
fn reads_what_python_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &folder.path().join("python.gguf");
    if python(&[OsStr::new("write"), path.as_os_str()]).is_none() {
        return;
    }
    assert_agrees(&[path.to_path_buf()]);
    let bytes = std::fs::read(path).unwrap();
    let file = Gguf::parse(&bytes).unwrap();
    assert_eq!(file.alignment(), 64);
    assert_eq!(file.get("a.i64"), Some(&Value::I64(i64::MIN)));
    assert_eq!(file.get_f32("a.f32").unwrap(), Some(0.1));
    assert_eq!(file.get_str("a.str").unwrap(), Some("größer 🦀\n"));
    assert_eq!(file.tensor("t.f32").unwrap().shape(), [5, 3]);
    assert_eq!(file.tensor("t.i8").unwrap().shape(), [4, 3, 2]);
    assert_eq!(file.tensor("t.q8_0").unwrap().shape(), [64, 2]);
}

#[test]
fn python_reads_what_we_write() {
    let mut w = Writer::new();
    w.add("general.architecture", Value::Str("llama")).unwrap();
    w.add("general.alignment", Value::U32(8)).unwrap();
    w.add("a.u8", Value::U8(200)).unwrap();
    w.add("a.i8", Value::I8(-100)).unwrap();
    w.add("a.u16", Value::U16(60_000)).unwrap();
    w.add("a.i16", Value::I16(-30_000)).unwrap();
    w.add("a.u32", Value::U32(u32::MAX)).unwrap();
    w.add("a.i32", Value::I32(i32::MIN)).unwrap();
    w.add("a.f32", Value::F32(0.1)).unwrap();
    w.add("a.true", Value::Bool(true)).unwrap();
    w.add("a.false", Value::Bool(false)).unwrap();
    w.add("a.u64", Value::U64(u64::MAX)).unwrap();
    w.add("a.i64", Value::I64(i64::MIN)).unwrap();
    w.add("a.f64", Value::F64(0.1)).unwrap();
    w.add_array("b.u8", &[1u8, 2]).unwrap();
    w.add_array("b.i16", &[-1i16]).unwrap();
    w.add_array("b.u64", &[u64::MAX, 0]).unwrap();
    w.add_array("b.f64", &[0.1f64]).unwrap();
    w.add_array("b.bool", &[true, false]).unwrap();
    w.add_strings("b.str", ["eins", "", "zwölf"]).unwrap();
    let mut data = Vec::new();
    // The package takes a Q8_1 block for 40 bytes, as it was before ggml made its scales F16; types
    // added to ggml lately are unknown to older versions of the package.
    let known = |t: &DType| *t != DType::Q8_1 && (*t as u32) < 34;
    for dtype in DType::ALL.into_iter().filter(known) {
        let dims: &[usize] = if dtype.is_quantized() {
            &[256, 3]
        } else {
            &[5, 2, 3, 1]
        };
        w.add_tensor(dtype.name(), dims, dtype).unwrap();
        let n = dtype.row_bytes(dims.iter().product()).unwrap();
        data.push((0..n).map(|i| (i * 7) as u8).collect::<Vec<u8>>());
    }
    let slices: Vec<&[u8]> = data.iter().map(|d| &d[..]).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ours.gguf");
    std::fs::write(&path, w.to_vec(&slices).unwrap()).unwrap();
    assert_agrees(&[path]);
}

#[test]
fn crc_is_zlibs() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
}
