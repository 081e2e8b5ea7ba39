//! `cargo +nightly fuzz run recipe` in `tools`: any bytes give an error of one line or a recipe, of bundles and
//! of training, whose numbers are what training can use. The sources are the command's own, which is no
//! library.

#![no_main]
#![allow(dead_code, unreachable_pub, clippy::undocumented_unsafe_blocks)]

use libfuzzer_sys::fuzz_target;

#[path = "../../src/recipe.rs"]
mod recipe;

#[path = "../../src/train"]
mod train {
    mod optimizer;
    mod recipe;

    /// Reads a recipe of training, as `calibrate` and `train-lora` do.
    pub fn read(text: &str) {
        match crate::recipe::parse_toml::<recipe::Recipe>(text) {
            Err(error) => crate::is_one_line(&error),
            Ok(recipe) => {
                if recipe.check().is_ok() {
                    assert!(recipe.train.epochs.is_finite() && recipe.train.batch > 0);
                    assert!(recipe.adapters.iter().all(|m| m.weight.is_finite()));
                }
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    train::read(text);
    match recipe::parse_toml::<recipe::Recipe>(text) {
        Err(error) => is_one_line(&error),
        Ok(recipe) => {
            let calibrations = recipe.composition.iter().filter_map(|c| c.calibration.as_ref());
            for calibration in calibrations {
                assert!(calibration.is_same(calibration));
                drop(calibration.file_name());
            }
        }
    }
});

fn is_one_line(error: &anyhow::Error) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}
