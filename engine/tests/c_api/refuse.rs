//! Every wrong use that the interface can tell.

use std::ffi::CStr;
use std::path::Path;
use std::ptr::{null, null_mut};

use tandem_engine::c_api::tandem_status::*;
use tandem_engine::c_api::*;

use crate::calls::*;

#[test]
fn refuses_bad_handles() {
    let (model, bundle) = (model(), bundle());
    let mut session = std::ptr::without_provenance_mut(1);
    let name = c"summarize-fr".as_ptr();
    unsafe {
        // Null, made up, of another kind.
        for wrong in [0, 3_000_000_000, bundle.addr()] {
            let wrong = std::ptr::without_provenance(wrong);
            let status = tandem_session_new(wrong, bundle, name, null(), &mut session);
            fails(status, TANDEM_HANDLE, "handle of a model");
            assert!(session.is_null());
        }
        let status = tandem_session_new(model, model.cast(), name, null(), &mut session);
        fails(status, TANDEM_HANDLE, "handle of a bundle");
        let status = tandem_cancel(model.cast());
        fails(status, TANDEM_HANDLE, "handle of a session");
        assert_eq!(
            generate(model.cast(), b"", &greedy(), |_| true).0,
            TANDEM_HANDLE
        );
        fails(tandem_bundle_free(model.cast()), TANDEM_HANDLE, "bundle");
        assert_eq!(tandem_bundle_n_compositions(null()), 0);
        assert!(tandem_bundle_composition(model.cast(), 0).is_null());

        // Twice, and afterwards.
        assert_eq!(tandem_model_free(model), TANDEM_OK);
        fails(tandem_model_free(model), TANDEM_HANDLE, "freed");
        let status = tandem_session_new(model, bundle, name, null(), &mut session);
        fails(status, TANDEM_HANDLE, "freed");
        assert!(session.is_null());
        assert_eq!(tandem_bundle_free(bundle), TANDEM_OK);
        for status in [
            tandem_model_free(null_mut()),
            tandem_bundle_free(null_mut()),
            tandem_session_free(null_mut()),
        ] {
            assert_eq!(status, TANDEM_OK);
        }
    }
}

#[test]
fn refuses_null_and_senseless_arguments() {
    let (model, bundle) = (model(), bundle());
    let mut session = null_mut();
    let name = c"summarize-fr".as_ptr();
    unsafe {
        let mut out = null_mut();
        fails(tandem_model_open(null(), &mut out), TANDEM_ARGUMENT, "path");
        fails(
            tandem_model_open(c"x".as_ptr(), null_mut()),
            TANDEM_ARGUMENT,
            "handle",
        );
        fails(
            tandem_model_open_memory(null(), 9, &mut out),
            TANDEM_ARGUMENT,
            "bytes",
        );
        let status = tandem_model_open_memory(name.cast(), usize::MAX, &mut out);
        fails(status, TANDEM_ARGUMENT, "bytes");
        let status = tandem_session_new(model, bundle, null(), null(), &mut session);
        fails(status, TANDEM_ARGUMENT, "composition");
        let status = tandem_session_new(model, null(), name, null(), &mut session);
        fails(status, TANDEM_ARGUMENT, "bundle");
        fails(
            tandem_session_new(model, bundle, name, null(), null_mut()),
            TANDEM_ARGUMENT,
            "handle",
        );
        fails(
            tandem_session_new(model, bundle, c"\xff".as_ptr(), null(), &mut session),
            TANDEM_TEXT,
            "UTF-8",
        );
        let with = |options: tandem_session_options| {
            let mut session = null_mut();
            tandem_session_new(model, null(), null(), &options, &mut session)
        };
        let defaults = options();
        fails(
            with(tandem_session_options {
                exact: 2,
                ..defaults
            }),
            TANDEM_ARGUMENT,
            "exact",
        );
        let level = c"sse9".as_ptr();
        fails(
            with(tandem_session_options { level, ..defaults }),
            TANDEM_ARGUMENT,
            "sse9",
        );
        let n_ctx = u32::MAX;
        fails(
            with(tandem_session_options { n_ctx, ..defaults }),
            TANDEM_MEMORY,
            "context",
        );

        let mut n = 0;
        let status = tandem_tokenize(model, null(), 3, 0, null_mut(), 0, &mut n);
        fails(status, TANDEM_ARGUMENT, "text");
        let status = tandem_tokenize(model, name, 3, 0, null_mut(), 0, null_mut());
        fails(status, TANDEM_ARGUMENT, "n_ids");
        let status = tandem_tokenize(model, name, 3, 0, null_mut(), 1, &mut n);
        fails(status, TANDEM_ARGUMENT, "ids");
        tandem_session_defaults(null_mut());
        tandem_generate_defaults(null_mut());

        let status = tandem_session_new(model, bundle, name, &defaults, &mut session);
        assert_eq!(status, TANDEM_OK);
        let (text, user) = (c"x".as_ptr(), null_mut());
        let status = tandem_generate(session, null(), 0, null(), Some(on_text), user, null_mut());
        fails(status, TANDEM_ARGUMENT, "text");
        let status = tandem_generate(session, text, 1, null(), None, user, null_mut());
        fails(status, TANDEM_ARGUMENT, "on_text");
    }
    let change = |change: fn(&mut tandem_generate_options)| {
        let mut options = greedy();
        change(&mut options);
        generate(session, b"x", &options, |_| true).0
    };
    fails(
        change(|o| o.temperature = f32::NAN),
        TANDEM_ARGUMENT,
        "temperature",
    );
    fails(
        change(|o| o.temperature = -1.0),
        TANDEM_ARGUMENT,
        "temperature",
    );
    fails(change(|o| o.top_p = 1.5), TANDEM_ARGUMENT, "top_p");
    fails(
        change(|o| o.repeat_penalty = 0.0),
        TANDEM_ARGUMENT,
        "repeat_penalty",
    );
    fails(
        change(|o| o.presence_penalty = f32::INFINITY),
        TANDEM_ARGUMENT,
        "finite",
    );
    fails(
        change(|o| o.penalty_window = 5000),
        TANDEM_ARGUMENT,
        "penalty_window",
    );
    fails(change(|o| o.max_draft = 16), TANDEM_ARGUMENT, "max_draft");
    fails(change(|o| o.raw = 2), TANDEM_ARGUMENT, "raw");
    let status = generate(session, b"caf\xe9", &greedy(), |_| true).0;
    fails(status, TANDEM_TEXT, "UTF-8");
    let status = generate(session, "word ".repeat(5000).as_bytes(), &greedy(), |_| {
        true
    })
    .0;
    fails(status, TANDEM_CONTEXT, "512");
    // And still works.
    let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
    assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
    assert_eq!(tandem_session_free(session), TANDEM_OK);
    assert_eq!(tandem_bundle_free(bundle), TANDEM_OK);
    assert_eq!(tandem_model_free(model), TANDEM_OK);
}

#[test]
fn refuses_wrong_files() {
    let open_model = |path: &Path| {
        let mut model = std::ptr::without_provenance_mut(1);
        let status = unsafe { tandem_model_open(c_path(path).as_ptr(), &mut model) };
        assert!(model.is_null());
        status
    };
    let open_bundle = |path: &Path| {
        let mut bundle = std::ptr::without_provenance_mut(1);
        let status = unsafe { tandem_bundle_open(c_path(path).as_ptr(), &mut bundle) };
        assert!(bundle.is_null());
        status
    };
    let missing = fixture("no-such-file");
    fails(open_model(&missing), TANDEM_IO, "no-such-file");
    fails(open_bundle(&missing), TANDEM_IO, "no-such-file");
    fails(
        open_model(&fixture("pocket.toml")),
        TANDEM_MODEL,
        "pocket.toml",
    );
    fails(
        open_model(&fixture("pocket.tandem")),
        TANDEM_MODEL,
        "pocket.tandem",
    );
    fails(
        open_bundle(&fixture("pocket-q8_0.gguf")),
        TANDEM_BUNDLE,
        "bundle",
    );

    // A bundle with a damaged adapter opens, but its composition does not run; nor does one that
    // it lacks.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.tandem");
    let mut bytes = std::fs::read(fixture("pocket.tandem")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut damaged = null_mut();
    let status = unsafe { tandem_bundle_open(c_path(&path).as_ptr(), &mut damaged) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    let (model, whole) = (model(), bundle());
    let with = |bundle: *mut tandem_bundle, name: &CStr| {
        let mut session = null_mut();
        unsafe { tandem_session_new(model, bundle, name.as_ptr(), null(), &mut session) }
    };
    let n_damaged = [c"summarize", c"translate-fr", c"translate-de"]
        .into_iter()
        .filter(|name| with(damaged, name) == TANDEM_BUNDLE && message().contains("damaged"))
        .count();
    assert_eq!(n_damaged, 1);
    fails(with(whole, c"no-such"), TANDEM_BUNDLE, "no-such");
    for bundle in [damaged, whole] {
        assert_eq!(tandem_bundle_free(bundle), TANDEM_OK);
    }
    assert_eq!(tandem_model_free(model), TANDEM_OK);
}

#[test]
fn messages_are_for_the_thread() {
    fails(tandem_cancel(null()), TANDEM_HANDLE, "session");
    std::thread::spawn(|| assert_eq!(message(), ""))
        .join()
        .unwrap();
    assert!(message().contains("session"));
    let level = unsafe { CStr::from_ptr(tandem_level()) }.to_str().unwrap();
    assert_eq!(level, tandem_engine::Level::detect().name());
    let version = unsafe { CStr::from_ptr(tandem_version()) }
        .to_str()
        .unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
}
