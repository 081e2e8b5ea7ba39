//! Mutated bundles: an error or a valid bundle, never a panic, and no allocation that the file's
//! size does not warrant. (Cut and flipped bytes: `bundle.rs`; whole malformations:
//! `malformed_bundle.rs`.)

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::Rng;
use common::bundle::{Raw, floats, sample, strings};
use tandem_formats::Bytes;
use tandem_formats::bundle::Bundle;
use tandem_formats::{Gguf, Value};
use xxhash_rust::xxh3::xxh3_128;

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

/// Opens the file, uses all of what is valid, and checks the peak of memory. Returns whether the
/// bundle was valid, its data included.
fn check(file: &[u8]) -> bool {
    let file = Bytes::copy_from_slice(file);
    HELD.set((0, 0));
    let valid = match Bundle::parse(file.clone()) {
        Ok(bundle) => {
            for c in &bundle.contents().compositions {
                let _ = bundle.parts(&c.name).map(|parts| parts.members.len());
            }
            bundle.verify().is_ok()
        }
        Err(e) => {
            assert!(!e.to_string().is_empty());
            false
        }
    };
    let (_, peak) = HELD.get();
    // GGUF's own lists, then a few words for each linear, all of which have names in the file.
    let warranted = 32 * file.len() + 8192;
    assert!(
        peak <= warranted as isize,
        "{peak} bytes held for a file of {}",
        file.len()
    );
    // What is valid can be written again, and is then the same.
    if valid {
        let bundle = Bundle::parse(file).expect("valid before");
        let copy = bundle.contents().to_vec().expect("valid contents");
        let copy = Bundle::parse(copy.clone()).expect("a valid file");
        assert_eq!(copy.contents(), bundle.contents());
    }
    valid
}

/// Makes the header's checksum right, where the file is a GGUF file with one.
fn seal(file: &mut [u8]) {
    let place = |file: &[u8]| {
        let gguf = Gguf::parse(file).ok()?;
        let at = |data: &[u8]| data.as_ptr() as usize - file.as_ptr() as usize;
        let first = at(gguf.tensors().first()?.data);
        Some((first, at(gguf.tensor("bundle.checksums")?.data)))
    };
    if let Some((n_header, table)) = place(file)
        && let Some(header) = file.get(..n_header)
    {
        let hash = xxh3_128(header).to_be_bytes();
        if let Some(to) = file.get_mut(table..table + 16) {
            to.copy_from_slice(&hash);
        }
    }
}

#[test]
fn random_flips_and_mutations_with_a_checksum_that_is_right() {
    let original = sample().to_vec().unwrap();
    assert!(check(&original));
    let n_header = {
        let gguf = Gguf::parse(&original).unwrap();
        gguf.tensors()[0].data.as_ptr() as usize - original.as_ptr() as usize
    };
    let mut rng = Rng(3);
    let (mut n_opened, mut n_valid) = (0, 0);
    for _ in 0..60_000 {
        let mut file = original.clone();
        for _ in 0..1 + rng.below(3) {
            let i = rng.below(n_header.min(file.len()));
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
        }
        seal(&mut file);
        n_opened += usize::from(Bundle::parse(file.clone()).is_ok());
        n_valid += usize::from(check(&file));
    }
    // Changes of names, scales and texts leave a valid bundle.
    assert!((500..40_000).contains(&n_valid), "{n_valid} valid");
    assert!(n_opened >= n_valid);
}

/// Keys and shapes replaced by others of the right form, which the header's bytes seldom become.
#[test]
fn values_and_shapes_of_any_kind() {
    let sample = Raw::sample();
    let mut rng = Rng(4);
    let mut n_valid = 0;
    for _ in 0..4_000 {
        let mut raw = sample.clone();
        for _ in 0..1 + rng.below(2) {
            let i = rng.below(raw.metadata.len());
            let value = match rng.below(6) {
                0 => Value::Str(["", "one", "lc", "both", "q8_0", "cat", "low_rank"][rng.below(7)]),
                1 => strings(&["one", "two", "blk.0.attn_q", "attn_q"][..rng.below(5)]),
                2 => floats(&[1.0, -0.0, f32::MAX, f32::NAN][..rng.below(5)]),
                3 => Value::U32(rng.next() as u32 >> rng.below(32)),
                4 => Value::F32(0.5),
                _ => raw.metadata[rng.below(sample.metadata.len())].1,
            };
            if raw.metadata[i].0 != "general.alignment" {
                raw.metadata[i].1 = value;
            }
            let i = rng.below(raw.tensors.len());
            let from = &sample.tensors[rng.below(sample.tensors.len())];
            let is_table = |name: &str| name == "bundle.checksums";
            if rng.below(4) == 0 && !is_table(&from.name) && !is_table(&raw.tensors[i].name) {
                let to = &mut raw.tensors[i];
                (to.shape, to.dtype) = (from.shape.clone(), from.dtype);
                to.data.clone_from(&from.data);
            }
        }
        n_valid += usize::from(check(&raw.to_vec()));
    }
    assert!((20..3_000).contains(&n_valid), "{n_valid} valid");
}
