//! `include/tandem.h` is what cbindgen makes of `src/c_api.rs` and two files of its folder. After a
//! change there,
//! `TANDEM_WRITE_HEADER=1 cargo test -p tandem-engine --features c-api --test c_header` writes it.

use std::path::Path;

use cbindgen::{Builder, Config, DocumentationStyle, Language};

const HEAD: &str = "\
/* The C interface of Tandem, an inference engine for language models on small machines.
 *
 * Made by cbindgen from engine/src/c_api.rs; engine/examples/generate.c shows its use.
 *
 * Handles (tandem_model, tandem_bundle, tandem_pool, tandem_session) are made by a function that sets
 * a pointer, and freed by the one called ..._free, once. A model, a bundle or a pool may be freed
 * while sessions made from it live on. A handle is a number, not an address: one that was freed, is of
 * another kind or was made up gives TANDEM_HANDLE.
 *
 * Every function may be called from any thread, at any time, but not from a signal handler. A session
 * is in one call at a time: another one meanwhile, from the callback too, gives TANDEM_BUSY;
 * only tandem_cancel, which is for other threads, and tandem_session_free may come at any time.
 * Sessions of their own run side by side, also on one pool. A thread that calls needs 512 KiB of
 * stack.
 *
 * Texts that go in as a path, a name, a level or a message end with a zero, others have a length and
 * need not. Texts that come out end with a zero, and belong to the library; only tandem_detokenize
 * writes to memory of the caller, without one. What points to memory is NULL only
 * where that is said to be allowed.
 *
 * Functions that return a tandem_status give TANDEM_OK or a reason, and tandem_error_message then
 * says more, for the thread that made the call.
 */";

fn header() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = Config {
        language: Language::C,
        header: Some(HEAD.to_string()),
        include_guard: Some("TANDEM_H".to_string()),
        no_includes: true,
        sys_includes: vec!["stddef.h".to_string(), "stdint.h".to_string()],
        cpp_compat: true,
        usize_is_size_t: true,
        line_length: 100,
        documentation_style: DocumentationStyle::C99,
        ..Config::default()
    };
    config.function.args = cbindgen::Layout::Auto;
    let bindings = Builder::new()
        .with_config(config)
        .with_src(folder.join("src/c_api.rs"))
        .with_src(folder.join("src/c_api/session.rs"))
        .with_src(folder.join("src/c_api/generate.rs"))
        .generate()
        .expect("cbindgen reads the file");
    let mut text = Vec::new();
    bindings.write(&mut text);
    // The headings are for whoever reads the Rust.
    let text = String::from_utf8(text).expect("cbindgen writes UTF-8");
    text.replace("// # Safety\n//\n", "")
}

#[test]
fn the_header_is_of_today() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/tandem.h");
    let made = header();
    if std::env::var_os("TANDEM_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("the header can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "include/tandem.h is not what src/c_api.rs makes; the first lines of this file say how to \
         write it anew"
    );
}
