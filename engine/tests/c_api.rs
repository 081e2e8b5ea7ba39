//! The C interface, called as C would call it: what works, and every wrong use that it can tell.

// All pointers are to live values or null, and every wrong use here is one that the interface tells.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::mpsc;

use tandem_engine::c_api::tandem_status::*;
use tandem_engine::c_api::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures")
        .join(name)
}

fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

fn message() -> String {
    let message = unsafe { CStr::from_ptr(tandem_error_message()) };
    message.to_str().unwrap().to_string()
}

/// The status of a failure whose message has `part` in it.
#[track_caller]
fn fails(found: tandem_status, status: tandem_status, part: &str) {
    assert_eq!(
        (found, message().contains(part)),
        (status, true),
        "{}",
        message()
    );
}

fn model() -> *mut tandem_model {
    let mut model = null_mut();
    let path = c_path(&fixture("pocket-q8_0.gguf"));
    let status = unsafe { tandem_model_open(path.as_ptr(), &mut model) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    model
}

fn bundle() -> *mut tandem_bundle {
    let mut bundle = null_mut();
    let path = c_path(&fixture("pocket.tandem"));
    let status = unsafe { tandem_bundle_open(path.as_ptr(), &mut bundle) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    bundle
}

/// A session with a composition; model and bundle are freed, as it keeps what it needs.
fn session(composition: &CStr) -> *mut tandem_session {
    let (model, bundle, mut session) = (model(), bundle(), null_mut());
    let options = options();
    let name = composition.as_ptr();
    let status = unsafe { tandem_session_new(model, bundle, name, &options, &mut session) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    assert_eq!(tandem_model_free(model), TANDEM_OK);
    assert_eq!(tandem_bundle_free(bundle), TANDEM_OK);
    session
}

fn options() -> tandem_session_options {
    let mut options = tandem_session_options {
        n_ctx: 7,
        n_batch: 7,
        n_threads: 7,
        n_threads_decode: 7,
        exact: 7,
        level: null(),
    };
    unsafe { tandem_session_defaults(&mut options) };
    assert_eq!((options.n_ctx, options.exact), (0, 0));
    options.n_threads = 1;
    options
}

fn greedy() -> tandem_generate_options {
    let mut options = unsafe { std::mem::zeroed() };
    unsafe { tandem_generate_defaults(&mut options) };
    assert_eq!((options.max_tokens, options.top_k), (256, 40));
    options.temperature = 0.0;
    options.max_tokens = 32;
    options
}

/// Pieces of text, and whether to go on after one.
struct Reply<'a> {
    pieces: Vec<String>,
    go_on: &'a mut dyn FnMut(usize) -> bool,
}

unsafe extern "C" fn on_text(text: *const c_char, n_bytes: usize, user: *mut c_void) -> i32 {
    let reply = unsafe { &mut *user.cast::<Reply<'_>>() };
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), n_bytes + 1) };
    assert_eq!(bytes[n_bytes], 0);
    let text = std::str::from_utf8(&bytes[..n_bytes]).expect("whole characters");
    reply.pieces.push(text.to_string());
    i32::from(!(reply.go_on)(reply.pieces.len()))
}

const INPUT: &str = "This package provides the shared library.";
/// What `tandem run` answers with `summarize-fr`.
const ANSWER: &str = " bibliothèque partagée pour libsoup";

fn generate(
    session: *const tandem_session,
    text: &[u8],
    options: &tandem_generate_options,
    mut go_on: impl FnMut(usize) -> bool,
) -> (tandem_status, Vec<String>, tandem_result) {
    let mut reply = Reply {
        pieces: Vec::new(),
        go_on: &mut go_on,
    };
    let mut result = tandem_result {
        n_prompt: 0,
        n_generated: 0,
        stop: tandem_stop::TANDEM_STOP_END_OF_TEXT,
    };
    let status = unsafe {
        tandem_generate(
            session,
            text.as_ptr().cast(),
            text.len(),
            options,
            Some(on_text),
            (&raw mut reply).cast(),
            &mut result,
        )
    };
    (status, reply.pieces, result)
}

#[test]
fn answers_as_the_command_does() {
    let session = session(c"summarize-fr");
    // Twice: the second time the prompt is known.
    for _ in 0..2 {
        let (status, pieces, result) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
        assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
        assert!(pieces.len() > 2);
        assert_eq!((result.n_prompt, result.n_generated), (12, 7));
        assert_eq!(result.stop, tandem_stop::TANDEM_STOP_END_OF_TEXT);
    }
    let options = tandem_generate_options {
        max_tokens: 2,
        ..greedy()
    };
    let (status, _, result) = generate(session, INPUT.as_bytes(), &options, |_| true);
    assert_eq!((status, result.n_generated), (TANDEM_OK, 2));
    assert_eq!(result.stop, tandem_stop::TANDEM_STOP_MAX_TOKENS);
    // Without options, and without a place for the result.
    let mut reply = Reply {
        pieces: Vec::new(),
        go_on: &mut |_| true,
    };
    let (text, user) = (INPUT.as_ptr().cast(), (&raw mut reply).cast());
    let none = null_mut();
    let status = unsafe {
        let on_text = Some(on_text as _);
        tandem_generate(session, text, INPUT.len(), null(), on_text, user, none)
    };
    assert_eq!((status, reply.pieces.is_empty()), (TANDEM_OK, false));
    assert_eq!(tandem_session_free(session), TANDEM_OK);
}

#[test]
fn the_seed_decides() {
    // In a new session each: a known prompt's last token is computed alone, which rounds otherwise.
    let text = |seed| {
        let session = session(c"summarize-fr");
        let options = tandem_generate_options {
            temperature: 1.5,
            seed,
            ..greedy()
        };
        let (status, pieces, _) = generate(session, b"A game.", &options, |_| true);
        assert_eq!(status, TANDEM_OK, "{}", message());
        assert_eq!(tandem_session_free(session), TANDEM_OK);
        pieces.concat()
    };
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}

/// The header promises that this much stack is enough.
#[test]
fn runs_on_a_small_stack() {
    let run = || {
        let session = session(c"summarize-fr");
        let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
        assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
        assert_eq!(tandem_session_free(session), TANDEM_OK);
    };
    let thread = std::thread::Builder::new().stack_size(512 << 10);
    thread.spawn(run).unwrap().join().unwrap();
}

#[test]
fn runs_from_memory_and_without_a_bundle() {
    let read = |name| -> &'static [u8] { std::fs::read(fixture(name)).unwrap().leak() };
    let bytes = read("pocket-q8_0.gguf");
    let (mut model, mut bundle) = (null_mut(), null_mut());
    let status =
        unsafe { tandem_model_open_memory(bytes.as_ptr().cast(), bytes.len(), &mut model) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    let bytes = read("pocket.tandem");
    let status =
        unsafe { tandem_bundle_open_memory(bytes.as_ptr().cast(), bytes.len(), &mut bundle) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    assert!(tandem_bundle_n_compositions(bundle) > 4);
    let name = unsafe { CStr::from_ptr(tandem_bundle_composition(bundle, 0)) };
    assert_eq!(name, c"summarize");
    assert!(tandem_bundle_composition(bundle, 1000).is_null());

    let answer = |bundle: *mut tandem_bundle, name: *const c_char| {
        let mut session = null_mut();
        let status = unsafe { tandem_session_new(model, bundle, name, null(), &mut session) };
        assert_eq!(status, TANDEM_OK, "{}", message());
        let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
        assert_eq!(status, TANDEM_OK);
        assert_eq!(tandem_session_free(session), TANDEM_OK);
        pieces.concat()
    };
    assert_eq!(answer(bundle, c"summarize-fr".as_ptr()), ANSWER);
    assert_ne!(answer(null_mut(), null()), ANSWER);

    let (mut ids, mut n_ids) = ([0; 4], 0);
    let mut tokenize = |capacity| {
        let (text, n) = (INPUT.as_ptr().cast(), INPUT.len());
        let ids = ids.as_mut_ptr();
        let status = unsafe { tandem_tokenize(model, text, n, 0, ids, capacity, &mut n_ids) };
        assert_eq!(status, TANDEM_OK);
        n_ids
    };
    assert_eq!((tokenize(0), tokenize(3)), (8, 8));
    assert_eq!(ids, [1, 529, 551, 0]);
    assert_eq!(tandem_bundle_free(bundle), TANDEM_OK);
    assert_eq!(tandem_model_free(model), TANDEM_OK);
}

#[test]
fn stops_when_told() {
    let session = session(c"summarize-fr");
    // By the callback's value.
    let (status, pieces, result) = generate(session, INPUT.as_bytes(), &greedy(), |n| n < 2);
    assert_eq!((status, pieces.len()), (TANDEM_OK, 2));
    assert_eq!(result.stop, tandem_stop::TANDEM_STOP_CANCELLED);

    // From another thread, while the callback waits for that to have happened.
    let handle = session.addr();
    let (begun, may_cancel) = mpsc::channel();
    let (cancelled, done) = mpsc::channel();
    let other = std::thread::spawn(move || {
        may_cancel.recv().unwrap();
        let session = std::ptr::without_provenance(handle);
        assert_eq!(tandem_cancel(session), TANDEM_OK);
        cancelled.send(()).unwrap();
    });
    let (status, pieces, result) = generate(session, INPUT.as_bytes(), &greedy(), |_| {
        begun.send(()).unwrap();
        done.recv().unwrap();
        true
    });
    other.join().unwrap();
    assert_eq!((status, pieces.len()), (TANDEM_OK, 1));
    assert_eq!(result.stop, tandem_stop::TANDEM_STOP_CANCELLED);

    // What came too late stops nothing.
    assert_eq!(tandem_cancel(session), TANDEM_OK);
    let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
    assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
    assert_eq!(tandem_session_free(session), TANDEM_OK);
}

#[test]
fn a_session_runs_one_generation_at_a_time() {
    let session = session(c"summarize-fr");
    let mut inner = Vec::new();
    let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |n| {
        if n == 1 {
            inner.push(generate(session, b"again", &greedy(), |_| true).0);
            // Freed at work, it ends its work first.
            inner.push(tandem_session_free(session));
            inner.push(tandem_session_free(session));
        }
        true
    });
    assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
    assert_eq!(inner, [TANDEM_BUSY, TANDEM_OK, TANDEM_HANDLE]);
}

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
    fails(change(|o| o.raw = 2), TANDEM_ARGUMENT, "raw");
    let status = generate(session, b"caf\xe9", &greedy(), |_| true).0;
    fails(status, TANDEM_TEXT, "UTF-8");
    let status = generate(session, "word ".repeat(5000).as_bytes(), &greedy(), |_| {
        true
    })
    .0;
    fails(status, TANDEM_CONTEXT, "the context has room for 512");
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
