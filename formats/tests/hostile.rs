//! Truncated and mutated files: an error or a valid file, never a panic, and no allocation that
//! the file's size does not warrant.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{Bytes, Rng, walk};
use tandem_formats::{DType, Gguf, Value, Writer};

/// Counts the bytes that a thread holds, and their peak.
struct Counting;

thread_local! {
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(n: isize) {
    let _ = HELD.try_with(|held| {
        let (now, peak) = held.get();
        held.set((now + n, peak.max(now + n)));
    });
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those of this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are those of this function.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Parses, walks what is valid, and checks the peak of memory. Returns whether it was valid.
fn check(bytes: &[u8]) -> bool {
    HELD.set((0, 0));
    let valid = match Gguf::parse(bytes) {
        Ok(file) => {
            walk(&file);
            true
        }
        Err(e) => {
            assert!(!e.to_string().is_empty());
            false
        }
    };
    let (_, peak) = HELD.get();
    // The list entry of a key (60 bytes) stands for 14 bytes of file at least, that of a tensor
    // (some 200) for 33; an error's message quotes a key, escaped.
    let warranted = 16 * bytes.len() + 4096;
    assert!(
        peak <= warranted as isize,
        "{peak} bytes held for a file of {}",
        bytes.len()
    );
    valid
}

/// A file with every value type, several tensors and two alignments of data.
fn sample() -> Vec<u8> {
    let mut w = Writer::new();
    w.add("general.architecture", Value::Str("llama")).unwrap();
    w.add("general.alignment", Value::U32(16)).unwrap();
    w.add("a.u8", Value::U8(1)).unwrap();
    w.add("a.i8", Value::I8(-1)).unwrap();
    w.add("a.u16", Value::U16(2)).unwrap();
    w.add("a.i16", Value::I16(-2)).unwrap();
    w.add("a.i32", Value::I32(-3)).unwrap();
    w.add("a.f32", Value::F32(0.5)).unwrap();
    w.add("a.bool", Value::Bool(true)).unwrap();
    w.add("a.u64", Value::U64(4)).unwrap();
    w.add("a.i64", Value::I64(-4)).unwrap();
    w.add("a.f64", Value::F64(0.25)).unwrap();
    w.add_array("b.i32", &[1i32, -2, 3]).unwrap();
    w.add_array("b.bool", &[true, false]).unwrap();
    w.add_array("b.f64", &[1f64]).unwrap();
    w.add_strings("b.str", ["one", "", "three"]).unwrap();
    w.add_strings("b.none", [""; 0]).unwrap();
    w.add_tensor("t.f32", &[3, 2], DType::F32).unwrap();
    w.add_tensor("t.q4_0", &[64], DType::Q4_0).unwrap();
    w.add_tensor("t.i8", &[1, 1, 1, 1], DType::I8).unwrap();
    w.to_vec(&[&[1; 24], &[2; 36], &[3]]).unwrap()
}

#[test]
fn truncation_at_every_byte() {
    let file = sample();
    assert!(check(&file));
    let t = *Gguf::parse(&file).unwrap().tensor("t.i8").unwrap();
    // The padding after the last tensor may be missing, nothing before it.
    let end = t.data.as_ptr_range().end as usize - file.as_ptr() as usize;
    for n in 0..file.len() {
        assert_eq!(check(&file[..n]), n >= end, "cut to {n} bytes");
    }
}

#[test]
fn every_byte_set_to_extremes() {
    let mut file = sample();
    for i in 0..file.len() {
        let old = file[i];
        for new in [0, 1, 0x7F, 0x80, 0xFF, old ^ 1, old.wrapping_add(1)] {
            file[i] = new;
            check(&file);
        }
        file[i] = old;
    }
}

#[test]
fn random_flips_and_mutations() {
    let original = sample();
    let mut rng = Rng(1);
    let mut n_valid = 0;
    for _ in 0..60_000 {
        let mut file = original.clone();
        for _ in 0..1 + rng.below(4) {
            let i = rng.below(file.len());
            match rng.below(6) {
                0 | 1 => file[i] ^= 1 << rng.below(8),
                2 => file[i] = rng.next() as u8,
                // A count, length or offset of any magnitude.
                3 => {
                    let v = rng.next() >> rng.below(64);
                    let to = file.len().min(i + 8);
                    file[i..to].copy_from_slice(&v.to_le_bytes()[..to - i]);
                }
                4 => {
                    let n = rng.below(16).min(file.len() - i);
                    file.drain(i..i + n);
                }
                _ => {
                    let n = rng.below(16);
                    let extra: Vec<u8> = (0..n).map(|_| rng.next() as u8).collect();
                    file.splice(i..i, extra);
                }
            }
            if file.is_empty() {
                break;
            }
        }
        n_valid += usize::from(check(&file));
    }
    // Flips in values and in data leave a valid file: the walk is exercised, too.
    assert!((1_000..50_000).contains(&n_valid), "{n_valid} valid");
}

#[test]
fn random_bytes_after_a_valid_header() {
    let mut rng = Rng(2);
    for _ in 0..20_000 {
        let counts = [rng.below(4) as u64, rng.below(4) as u64];
        let n = rng.below(200);
        let noise: Vec<u8> = (0..n)
            .map(|_| {
                // Small numbers often, so that types and lengths are in range.
                let v = rng.next();
                if v & 7 < 5 {
                    (v >> 8) as u8 % 3
                } else {
                    (v >> 8) as u8
                }
            })
            .collect();
        check(&Bytes::header(counts[0], counts[1]).raw(&noise).0);
    }
}

#[test]
fn counts_of_any_size_allocate_nothing() {
    for shift in 0..64 {
        for n in [1u64 << shift, u64::MAX >> shift] {
            check(&Bytes::header(n, 0).raw(&[0; 64]).0);
            check(&Bytes::header(0, n).raw(&[0; 64]).0);
            check(&Bytes::header(0, 1).u64(n).raw(&[b'k'; 64]).0);
            for element in 0..13 {
                let b = Bytes::header(0, 1).key("k", 9).u32(element).u64(n);
                check(&b.raw(&[0; 64]).0);
            }
        }
    }
}
