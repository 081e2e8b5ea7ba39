//! `cargo +nightly fuzz run adapter` in `formats`: any bytes give an error or an adapter of finite
//! factors that fit each other. The input is a configuration and a safetensors file, with a zero
//! byte between them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_formats::Gguf;
use tandem_formats::adapter::{Lora, calibration, lora_gguf, peft};

fuzz_target!(|bytes: &[u8]| {
    let split = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let (config, weights) = bytes.split_at(split);
    let weights = weights.get(1..).unwrap_or_default();
    if let Ok(loras) = peft::read(config, weights) {
        check(&loras);
    }
    if let Ok(file) = calibration::read(bytes) {
        assert!(file.values().all(|parts| parts != &Default::default()));
    }
    if let Ok(gguf) = Gguf::parse(bytes)
        && let Ok((_, loras)) = lora_gguf::read(&gguf)
    {
        check(&loras);
    }
});

fn check(loras: &[Lora]) {
    assert!(!loras.is_empty());
    for lora in loras {
        assert_eq!(lora.a.values.len(), lora.a.n_rows * lora.a.n_cols);
        assert_eq!(lora.b.values.len(), lora.b.n_rows * lora.a.n_rows);
        let values = lora.a.values.iter().chain(&lora.b.values);
        assert!(values.chain([&lora.scale]).all(|x| x.is_finite()));
    }
}
