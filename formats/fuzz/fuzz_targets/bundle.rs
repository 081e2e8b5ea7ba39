//! `cargo +nightly fuzz run bundle` in `formats`: any bytes give an error or a bundle whose
//! contents can be written again. The checksum of the header is made right first, as the fuzzer
//! would hardly find it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_formats::Gguf;
use tandem_formats::bundle::Bundle;
use xxhash_rust::xxh3::xxh3_128;

fuzz_target!(|bytes: &[u8]| {
    let mut file = bytes.to_vec();
    seal(&mut file);
    let bundle = match Bundle::parse(file.clone()) {
        Ok(bundle) => bundle,
        Err(e) => {
            assert!(!e.to_string().is_empty());
            return;
        }
    };
    let contents = bundle.contents();
    for composition in &contents.compositions {
        let _ = bundle.parts(&composition.name);
    }
    let _ = bundle.verify();
    let copy = contents.to_vec().expect("valid contents");
    let copy = Bundle::parse(copy.clone()).expect("the writer writes valid bundles");
    assert_eq!(copy.contents(), contents);
    copy.verify().expect("checksums of what was written");
});

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
