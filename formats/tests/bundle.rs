//! Bundles: what is written is read, fits its base, and is refused once a byte is changed.

mod common;

use std::io;

use common::bundle::sample;
use tandem_formats::bundle::{BaseFingerprint, BaseMatch, Bundle, BundleError};
use tandem_formats::{DType, Gguf, Value, Writer, write_atomically};

#[test]
fn what_is_written_is_read() {
    let contents = sample();
    let file = contents.to_vec().unwrap();
    let bundle = Bundle::parse(file.clone()).unwrap();
    assert_eq!(bundle.contents(), &contents);
    bundle.verify().unwrap();

    let mut streamed = Vec::new();
    contents.write_to(&mut streamed).unwrap();
    assert_eq!(streamed, file);
}

#[test]
fn the_matrices_are_used_where_they_are() {
    let file = tandem_formats::Bytes::from(sample().to_vec().unwrap());
    let bundle = Bundle::parse(file.clone()).unwrap();
    for adapter in &bundle.contents().adapters {
        for f in &adapter.factors {
            for data in [&f.a, &f.b] {
                assert!(file.as_ptr_range().contains(&data.as_ptr()));
                assert_eq!((data.as_ptr() as usize - file.as_ptr() as usize) % 64, 0);
            }
        }
    }
}

#[test]
fn parts_are_those_of_the_composition() {
    let file = sample().to_vec().unwrap();
    let bundle = Bundle::parse(file.clone()).unwrap();
    let both = bundle.parts("both").unwrap();
    let members: Vec<_> = both
        .members
        .iter()
        .map(|(a, w, _)| (&*a.name, *w))
        .collect();
    assert_eq!(members, [("one", 0.5), ("two", 0.5)]);
    assert_eq!(both.calibration.unwrap().name, "lcpp");
    assert!(both.merged.is_none());

    let dare = bundle.parts("dare").unwrap();
    assert!(dare.members.is_empty());
    assert_eq!(dare.merged.unwrap().0.factors[0].rank, 2);

    let e = bundle.parts("neither").unwrap_err();
    assert_eq!(
        e.to_string(),
        "no composition \"neither\" in the bundle; it has one-plain, both, projected, dare"
    );
    assert!(bundle.adapter("both").is_err());
    assert!(bundle.calibration("one").is_err());
}

/// Any byte of any section, of the header and of the checksums: found.
#[test]
fn every_changed_byte_is_found() {
    let file = sample().to_vec().unwrap();
    for i in 0..file.len() {
        let mut changed = file.clone();
        changed[i] ^= 1 << (i % 8);
        let found = Bundle::parse(changed.clone()).and_then(|bundle| bundle.verify());
        assert!(found.is_err(), "byte {i}");
    }
}

/// A composition does not run on a damaged section, and runs if the damage is elsewhere.
#[test]
fn damage_stops_the_compositions_that_use_it_and_no_others() {
    let file = sample().to_vec().unwrap();
    let whole = Gguf::parse(&file).unwrap();
    for (tensor, what, name, stopped) in [
        (
            "adapter.one.blk.1.ffn_up.lora_b",
            "adapter",
            "one",
            &["one-plain", "both", "projected"][..],
        ),
        ("adapter.four.blk.0.attn_q.lora_a", "adapter", "four", &[]),
        (
            "calibration.lcpp.attn_q.p2",
            "calibration",
            "lcpp",
            &["both"],
        ),
        ("calibration.lc.attn_q.p", "calibration", "lc", &["dare"]),
        (
            "merged.dare.blk.0.attn_q.lora_a",
            "composition",
            "dare",
            &["dare"],
        ),
    ] {
        let data = whole.tensor(tensor).unwrap().data;
        let at = data.as_ptr() as usize - file.as_ptr() as usize + data.len() - 1;
        let mut changed = file.clone();
        changed[at] ^= 0x10;
        let bundle = Bundle::parse(changed.clone()).unwrap();
        let damaged = BundleError::Damaged {
            what,
            name: name.to_string(),
        };
        assert_eq!(bundle.verify(), Err(damaged.clone()));
        for composition in &bundle.contents().compositions {
            let parts = bundle.parts(&composition.name);
            match stopped.contains(&&*composition.name) {
                true => assert_eq!(parts.unwrap_err(), damaged),
                false => drop(parts.unwrap()),
            }
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = sample().to_vec().unwrap();
    let checksums = Gguf::parse(&file).unwrap();
    let last = checksums.tensor("bundle.checksums").unwrap().data;
    let end = last.as_ptr_range().end as usize - file.as_ptr() as usize;
    for n in 0..file.len() {
        // The padding after the last tensor may be missing, as GGUF says.
        assert_eq!(
            Bundle::parse(file[..n].to_vec()).is_ok(),
            n >= end,
            "cut to {n}"
        );
    }
}

/// A base with the linears of the sample.
fn base(dtype: DType, norm: f32, last: u8) -> Vec<u8> {
    let mut w = Writer::new();
    w.add("general.architecture", Value::Str("llama")).unwrap();
    w.add("llama.attention.head_count", Value::U32(4)).unwrap();
    w.add_tensor("blk.0.attn_q.weight", &[32, 18], dtype)
        .unwrap();
    w.add_tensor("blk.1.ffn_up.weight", &[64, 16], dtype)
        .unwrap();
    w.add_tensor("output_norm.weight", &[2], DType::F32)
        .unwrap();
    let size = |n: usize| dtype.row_bytes(n).unwrap();
    let (q, mut up) = (vec![1; size(32 * 18)], vec![2; size(64 * 16)]);
    *up.last_mut().unwrap() = last;
    w.to_vec(&[&q, &up, bytemuck::cast_slice(&[norm, 1.0f32])])
        .unwrap()
}

#[test]
fn a_bundle_fits_its_base_in_any_quantization_and_no_other_base() {
    let mut contents = sample();
    let original = base(DType::F32, 1.0, 0);
    contents.base = BaseFingerprint::of(&Gguf::parse(&original).unwrap()).unwrap();
    let check = |base: &[u8]| contents.check_base(&Gguf::parse(base).unwrap());
    assert_eq!(check(&original), Ok(BaseMatch::Same));
    assert_eq!(check(&base(DType::F32, 1.0, 1)), Ok(BaseMatch::OtherBytes));
    assert_eq!(check(&base(DType::Q8_0, 1.0, 0)), Ok(BaseMatch::OtherBytes));
    for (other, differs) in [
        (base(DType::F32, 1.5, 0), "the values of norms or biases"),
        (
            {
                let mut w = Writer::new();
                w.add("general.architecture", Value::Str("llama")).unwrap();
                w.add("llama.attention.head_count", Value::U32(4)).unwrap();
                w.to_vec(&[]).unwrap()
            },
            "architecture, number of layers or heads, or the tensors' shapes",
        ),
    ] {
        let wanted = "tiny".to_string();
        assert_eq!(
            check(&other),
            Err(BundleError::OtherBase { wanted, differs })
        );
    }
}

/// A fingerprint that agrees does not excuse linears that the base does not have.
#[test]
fn linears_that_the_base_lacks_are_refused() {
    let original = base(DType::F32, 1.0, 0);
    let gguf = Gguf::parse(&original).unwrap();
    let mut contents = sample();
    contents.base = BaseFingerprint::of(&gguf).unwrap();
    for linear in ["blk.7.attn_q", "output_norm"] {
        let mut other = contents.clone();
        other.adapters[3].factors[1].linear = linear.into();
        let e = other.check_base(&gguf).unwrap_err();
        assert!(
            matches!(&e, BundleError::BaseLinear { linear: l, .. } if l == linear),
            "{e}"
        );
    }
    let mut other = contents.clone();
    other.calibrations[0].corrections[0].module = "attn_v".into();
    assert!(matches!(
        other.check_base(&gguf),
        Err(BundleError::BaseLinear { .. })
    ));
    let mut other = contents;
    other.adapters[2].factors[0].n_out = 17;
    assert!(matches!(
        other.check_base(&gguf),
        Err(BundleError::BaseLinear { .. })
    ));
}

/// A fingerprint is defined by BUNDLE.md, not by this code: computed here by its text.
#[test]
fn the_fingerprint_is_as_specified() {
    let file = base(DType::Q8_0, 0.25, 9);
    let found = BaseFingerprint::of(&Gguf::parse(&file).unwrap()).unwrap();
    let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let mut structure = [
        text("llama"),
        vec![4, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    for (name, dims) in [
        ("blk.0.attn_q.weight", &[32u64, 18][..]),
        ("blk.1.ffn_up.weight", &[64, 16]),
        ("output_norm.weight", &[2]),
    ] {
        structure.extend(text(name));
        structure.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| structure.extend(d.to_le_bytes()));
    }
    let xxh3 = xxhash_rust::xxh3::xxh3_128;
    assert_eq!(found.structure, xxh3(&structure));
    let mut vectors = text("output_norm.weight");
    vectors.extend([0.25f32, 1.0].iter().flat_map(|v| v.to_le_bytes()));
    assert_eq!(found.vectors, xxh3(&vectors));
    let mut content = text("blk.0.attn_q.weight");
    content.extend([8, 0, 0, 0]);
    content.extend([1; 18 * 34]);
    content.extend(text("blk.1.ffn_up.weight"));
    content.extend([8, 0, 0, 0]);
    content.extend([2; 32 * 34 - 1]);
    content.push(9);
    content.extend(text("output_norm.weight"));
    content.extend([0; 4]);
    content.extend([0.25f32, 1.0].iter().flat_map(|v| v.to_le_bytes()));
    assert_eq!(found.content, xxh3(&content));
}

/// An output that breaks after a number of bytes, as a full disk does.
struct Breaking(usize);

impl io::Write for Breaking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.min(bytes.len()) {
            0 if !bytes.is_empty() => Err(io::ErrorKind::StorageFull.into()),
            n => {
                self.0 -= n;
                Ok(n)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_that_breaks_anywhere_is_told_of() {
    let contents = sample();
    let n_bytes = contents.to_vec().unwrap().len();
    for n in 0..n_bytes {
        let e = contents.write_to(Breaking(n)).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::StorageFull, "after {n} bytes");
    }
    contents.write_to(Breaking(n_bytes)).unwrap();
}

/// Whatever stops the writing, the old bundle stays.
#[test]
fn a_write_that_fails_leaves_the_old_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.tandem");
    let old = sample();
    let save =
        |c: &tandem_formats::bundle::Contents| write_atomically(&path, |out| c.write_to(out));
    save(&old).unwrap();
    let mut new = sample();
    new.adapters.clear();
    assert_eq!(save(&new).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    let fails: io::Result<()> = write_atomically(&path, |out| {
        old.write_to(&mut *out)?;
        Err(io::ErrorKind::StorageFull.into())
    });
    assert!(fails.is_err());
    let file = std::fs::read(&path).unwrap();
    assert_eq!(Bundle::parse(file.clone()).unwrap().contents(), &old);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
