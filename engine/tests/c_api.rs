//! The C interface, called as C would call it: what works, and every wrong use that it can tell.

// All pointers are to live values or null, and every wrong use here is one that the interface tells.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::sync::mpsc;

use tandem_engine::c_api::tandem_status::*;
use tandem_engine::c_api::*;
use tandem_engine::formats::{Gguf, Value, Writer};

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
        pool: std::ptr::without_provenance(7),
    };
    unsafe { tandem_session_defaults(&mut options) };
    assert_eq!((options.n_ctx, options.exact), (0, 0));
    assert!(options.pool.is_null());
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

/// A status, the pieces of text and the result of what generates.
type Answer = (tandem_status, Vec<String>, tandem_result);

/// Calls `ask` with a callback and what it needs.
fn listen(
    mut go_on: impl FnMut(usize) -> bool,
    ask: impl FnOnce(tandem_on_text, *mut c_void, *mut tandem_result) -> tandem_status,
) -> Answer {
    let mut reply = Reply {
        pieces: Vec::new(),
        go_on: &mut go_on,
    };
    let mut result = tandem_result {
        n_prompt: 0,
        n_generated: 0,
        stop: tandem_stop::TANDEM_STOP_END_OF_TEXT,
    };
    let status = ask(Some(on_text), (&raw mut reply).cast(), &mut result);
    (status, reply.pieces, result)
}

fn generate(
    session: *const tandem_session,
    text: &[u8],
    options: &tandem_generate_options,
    go_on: impl FnMut(usize) -> bool,
) -> Answer {
    listen(go_on, |on_text, user, result| unsafe {
        let (text, n_bytes) = (text.as_ptr().cast(), text.len());
        tandem_generate(session, text, n_bytes, options, on_text, user, result)
    })
}

/// What a session answers to [`INPUT`].
#[track_caller]
fn answer(session: *const tandem_session) -> String {
    let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
    assert_eq!(status, TANDEM_OK, "{}", message());
    pieces.concat()
}

fn generate_tokens(session: *const tandem_session, ids: &[u32]) -> Answer {
    listen(
        |_| true,
        |on_text, user, result| unsafe {
            let (ids, n) = (ids.as_ptr(), ids.len());
            tandem_generate_tokens(session, ids, n, &greedy(), on_text, user, result)
        },
    )
}

fn chat(
    session: *const tandem_session,
    messages: &[tandem_message],
    options: &tandem_generate_options,
) -> Answer {
    listen(
        |_| true,
        |on_text, user, result| unsafe {
            let (messages, n) = (messages.as_ptr(), messages.len());
            tandem_chat(session, messages, n, options, on_text, user, result)
        },
    )
}

fn tokens(session: *const tandem_session) -> Vec<u32> {
    let (mut ids, mut n) = (vec![0; tandem_n_tokens(session)], 0);
    let status = unsafe { tandem_tokens(session, ids.as_mut_ptr(), ids.len(), &mut n) };
    assert_eq!((status, n), (TANDEM_OK, ids.len()));
    ids
}

fn set_composition(
    session: *const tandem_session,
    bundle: *const tandem_bundle,
    name: Option<&CStr>,
) -> tandem_status {
    let name = name.map_or(null(), CStr::as_ptr);
    unsafe { tandem_session_set_composition(session, bundle, name) }
}

fn eval(session: *const tandem_session, ids: &[u32], logits: &mut [f32]) -> tandem_status {
    let (place, capacity) = match logits.len() {
        0 => (null_mut(), 0),
        n => (logits.as_mut_ptr(), n),
    };
    unsafe { tandem_eval(session, ids.as_ptr(), ids.len(), place, capacity) }
}

fn rewind(session: *const tandem_session, n: usize) -> usize {
    let mut n_left = usize::MAX;
    let status = unsafe { tandem_rewind(session, n, &mut n_left) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    n_left
}

/// The model alone, with `change`d options.
fn plain(change: impl FnOnce(&mut tandem_session_options)) -> *mut tandem_session {
    let (model, mut session, mut options) = (model(), null_mut(), options());
    change(&mut options);
    let status = unsafe { tandem_session_new(model, null(), null(), &options, &mut session) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    assert_eq!(tandem_model_free(model), TANDEM_OK);
    session
}

/// The same model on the Rust side, alone on one thread.
fn rust_session() -> tandem_engine::Session {
    let model = tandem_engine::Model::open(fixture("pocket-q8_0.gguf")).unwrap();
    model.session().threads(1).build().unwrap()
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

#[test]
fn a_session_changes_its_composition() {
    let names = [c"summarize-fr", c"translate-de", c"summarize"].map(Some);
    let fresh = names.map(|name| {
        let session = session(name.unwrap());
        let text = answer(session);
        assert_eq!(tandem_session_free(session), TANDEM_OK);
        text
    });
    let alone = plain(|_| ());
    let alone_text = answer(alone);
    assert!(fresh[0] == ANSWER && fresh[0] != fresh[1] && alone_text != fresh[0]);

    let bundle = bundle();
    for i in [0, 1, 0, 2, 1] {
        assert_eq!(set_composition(alone, bundle, names[i]), TANDEM_OK);
        assert_eq!(tandem_n_tokens(alone), 0);
        assert_eq!(answer(alone), fresh[i]);
    }
    assert_eq!(set_composition(alone, null(), None), TANDEM_OK);
    assert_eq!((tandem_n_tokens(alone), answer(alone)), (0, alone_text));

    // The same content keeps what was evaluated, also from another bundle.
    assert_eq!(set_composition(alone, bundle, names[0]), TANDEM_OK);
    assert_eq!(answer(alone), ANSWER);
    let known = tokens(alone);
    let other = self::bundle();
    assert_eq!(set_composition(alone, other, names[0]), TANDEM_OK);
    assert_eq!(tandem_bundle_free(other), TANDEM_OK);
    assert_eq!(tokens(alone), known);

    // What fails changes nothing.
    let status = set_composition(alone, bundle, Some(c"no-such"));
    fails(status, TANDEM_BUNDLE, "no-such");
    fails(
        set_composition(alone, bundle, None),
        TANDEM_ARGUMENT,
        "composition is NULL",
    );
    fails(
        set_composition(alone, null(), names[0]),
        TANDEM_ARGUMENT,
        "bundle is NULL",
    );
    let status = set_composition(alone, bundle, Some(c"\xff"));
    fails(status, TANDEM_TEXT, "UTF-8");
    fails(
        set_composition(alone, alone.cast(), names[0]),
        TANDEM_HANDLE,
        "handle of a bundle",
    );
    assert_eq!((tokens(alone), answer(alone)), (known, ANSWER.into()));
    assert_eq!(tandem_bundle_free(bundle), TANDEM_OK);
    fails(
        set_composition(alone, bundle, names[0]),
        TANDEM_HANDLE,
        "freed",
    );
    assert_eq!(tandem_session_free(alone), TANDEM_OK);
    fails(set_composition(alone, null(), None), TANDEM_HANDLE, "freed");
}

#[test]
fn sessions_share_a_pool() {
    let (model, bundle) = (model(), bundle());
    let mut pool = null_mut();
    assert_eq!(unsafe { tandem_pool_new(0, &mut pool) }, TANDEM_OK);
    let make = |name: &CStr, pool: *const tandem_pool, n_threads| {
        let mut session = null_mut();
        let options = tandem_session_options {
            pool,
            n_threads,
            ..options()
        };
        let name = name.as_ptr();
        let status = unsafe { tandem_session_new(model, bundle, name, &options, &mut session) };
        assert_eq!(status, TANDEM_OK, "{}", message());
        session
    };
    let names = [c"summarize-fr", c"translate-de"];
    // A known prompt's last token is computed alone, which rounds otherwise: each is asked anew.
    let anew = |session| {
        assert_eq!(rewind(session, 0), 0);
        answer(session)
    };
    let wanted = names.map(|name| {
        let session = make(name, null(), 1);
        let text = anew(session);
        assert_eq!(tandem_session_free(session), TANDEM_OK);
        text
    });
    let sessions = [0, 1].map(|i| make(names[i], pool, [0, 2][i]).addr());
    for status in [
        tandem_pool_free(pool),
        tandem_bundle_free(bundle),
        tandem_model_free(model),
    ] {
        assert_eq!(status, TANDEM_OK);
    }
    fails(tandem_pool_free(pool), TANDEM_HANDLE, "handle of a pool");
    let threads = sessions.map(|session| {
        let work = move || {
            let session = std::ptr::without_provenance_mut(session);
            let texts: Vec<_> = (0..8).map(|_| anew(session)).collect();
            assert_eq!(tandem_session_free(session), TANDEM_OK);
            texts
        };
        // The stack that the header asks for.
        let thread = std::thread::Builder::new().stack_size(512 << 10);
        thread.spawn(work).unwrap()
    });
    for (thread, wanted) in threads.into_iter().zip(wanted) {
        assert!(thread.join().unwrap().iter().all(|text| *text == wanted));
    }
}

#[test]
fn refuses_what_is_no_pool() {
    let (model, mut pool) = (model(), null_mut());
    fails(
        unsafe { tandem_pool_new(1, null_mut()) },
        TANDEM_ARGUMENT,
        "handle",
    );
    assert_eq!(unsafe { tandem_pool_new(u32::MAX, &mut pool) }, TANDEM_OK);
    let with = |pool| {
        let mut session = std::ptr::without_provenance_mut(1);
        let options = tandem_session_options { pool, ..options() };
        let status = unsafe { tandem_session_new(model, null(), null(), &options, &mut session) };
        assert!(session.is_null());
        status
    };
    fails(with(model.cast()), TANDEM_HANDLE, "handle of a pool");
    fails(tandem_pool_free(model.cast()), TANDEM_HANDLE, "pool");
    fails(tandem_model_free(pool.cast()), TANDEM_HANDLE, "model");
    assert_eq!(tandem_pool_free(pool), TANDEM_OK);
    fails(with(pool), TANDEM_HANDLE, "freed");
    assert_eq!(tandem_pool_free(null_mut()), TANDEM_OK);
    assert_eq!(tandem_model_free(model), TANDEM_OK);
}

/// The model with a chat template, which its file has not.
fn model_with_chat() -> Vec<u8> {
    let bytes = std::fs::read(fixture("pocket-q8_0.gguf")).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata() {
        writer.add(key, *value).unwrap();
    }
    let template = "{{ bos_token }}{% for m in messages %}\
                    {% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\
                    [{{ m.role }}]\n{{ m.content }}</s>{% endfor %}\
                    {% if add_generation_prompt %}[assistant]\n{% endif %}";
    let template = Value::Str(template);
    writer.add("tokenizer.chat_template", template).unwrap();
    for t in gguf.tensors() {
        writer.add_tensor(t.name, t.shape(), t.dtype).unwrap();
    }
    let data: Vec<_> = gguf.tensors().iter().map(|t| t.data).collect();
    writer.to_vec(&data).unwrap()
}

fn said(role: &CStr, content: &CStr) -> tandem_message {
    tandem_message {
        role: role.as_ptr(),
        content: content.as_ptr(),
    }
}

#[test]
fn a_chat_is_that_of_the_rust_side() {
    let bytes = model_with_chat();
    let (mut model, mut session) = (null_mut(), null_mut());
    unsafe {
        let status = tandem_model_open_memory(bytes.as_ptr().cast(), bytes.len(), &mut model);
        assert_eq!(status, TANDEM_OK, "{}", message());
        let status = tandem_session_new(model, null(), null(), &options(), &mut session);
        assert_eq!(status, TANDEM_OK, "{}", message());
    }
    let texts = [
        (c"system", c"You are brief."),
        (c"user", c"Which library?</s>"),
        (c"assistant", c"libsoup"),
        (c"user", c"Which language?"),
    ];
    let messages = texts.map(|(role, content)| said(role, content));
    let (status, pieces, result) = chat(session, &messages, &greedy());
    assert_eq!(status, TANDEM_OK, "{}", message());

    let messages_of_rust = texts.map(|(role, content)| tandem_engine::Message {
        role: role.to_str().unwrap(),
        content: content.to_str().unwrap(),
    });
    let rust = tandem_engine::Model::from_bytes(bytes.clone()).unwrap();
    let mut rust = rust.session().threads(1).build().unwrap();
    let wanted = rust.prompt_ids(&messages_of_rust[..]).unwrap();
    assert_eq!(tokens(session)[..result.n_prompt], wanted);
    let sampling = tandem_engine::Sampling::greedy().max_tokens(32);
    let text = rust.generate(&messages_of_rust[..], &sampling).unwrap();
    let text: Vec<_> = text.map(Result::unwrap).collect();
    assert_eq!(pieces, text);

    // A conversation that goes on keeps what was evaluated; a text of one message is `user`'s.
    let (status, _, first) = chat(session, &messages[..2], &greedy());
    assert_eq!(status, TANDEM_OK);
    let known = tokens(session)[..first.n_prompt].to_vec();
    let (status, _, second) = chat(session, &messages, &greedy());
    assert_eq!(status, TANDEM_OK);
    // The assistant's turn has begun in both.
    assert!(second.n_prompt > known.len() && tokens(session).starts_with(&known));
    let (_, _, chatted) = chat(session, &messages[3..], &greedy());
    let by_chat = tokens(session)[..chatted.n_prompt].to_vec();
    let (_, _, asked) = generate(session, b"Which language?", &greedy(), |_| true);
    assert_eq!(tokens(session)[..asked.n_prompt], by_chat);

    // Wrong ones.
    let refused = |messages: &[tandem_message]| chat(session, messages, &greedy()).0;
    fails(refused(&[]), TANDEM_ARGUMENT, "no messages");
    let null_role = tandem_message {
        role: null(),
        ..messages[1]
    };
    fails(
        refused(&[messages[0], null_role]),
        TANDEM_ARGUMENT,
        "the role of message 1 is NULL",
    );
    let null_content = tandem_message {
        content: null(),
        ..messages[0]
    };
    fails(
        refused(&[null_content]),
        TANDEM_ARGUMENT,
        "the content of message 0 is NULL",
    );
    fails(refused(&[said(c"tool", c"4")]), TANDEM_TEXT, "no tools");
    fails(
        refused(&[said(c"user", c"caf\xe9")]),
        TANDEM_TEXT,
        "the content of message 0 is not UTF-8",
    );
    let raw = tandem_generate_options { raw: 1, ..greedy() };
    fails(chat(session, &messages, &raw).0, TANDEM_ARGUMENT, "raw");
    unsafe {
        let (user, none) = (null_mut(), null_mut());
        let on_text = Some(on_text as _);
        let status = tandem_chat(session, null(), 1, null(), on_text, user, none);
        fails(status, TANDEM_ARGUMENT, "messages is NULL");
        let n = usize::MAX / 8;
        let status = tandem_chat(session, messages.as_ptr(), n, null(), on_text, user, none);
        fails(status, TANDEM_ARGUMENT, "messages");
        let status = tandem_chat(session, messages.as_ptr(), 1, null(), None, user, none);
        fails(status, TANDEM_ARGUMENT, "on_text");
    }
    assert_eq!(tandem_session_free(session), TANDEM_OK);
    fails(refused(&messages), TANDEM_HANDLE, "freed");
    assert_eq!(tandem_model_free(model), TANDEM_OK);
    let without = plain(|_| ());
    let status = chat(without, &messages, &greedy()).0;
    fails(status, TANDEM_TEXT, "no chat template");
    assert_eq!(tandem_session_free(without), TANDEM_OK);
}

#[test]
fn evaluates_tokens_and_rewinds() {
    let session = plain(|options| options.n_ctx = 16);
    let mut rust = rust_session();
    let n_vocab = rust.model().config().n_vocab;
    let mut logits = vec![f32::NAN; n_vocab + 1];
    assert_eq!(eval(session, &[1, 529], &mut []), TANDEM_OK);
    assert_eq!(eval(session, &[551, 3], &mut logits), TANDEM_OK);
    rust.feed(&[1, 529]).unwrap();
    assert_eq!(logits[..n_vocab], *rust.eval(&[551, 3]).unwrap());
    assert!(logits[n_vocab].is_nan());
    assert_eq!(tokens(session), [1, 529, 551, 3]);

    // Back, and on another way.
    assert_eq!((rewind(session, 9), rewind(session, 2)), (4, 2));
    assert_eq!(tokens(session), [1, 529]);
    let first = logits.clone();
    assert_eq!(eval(session, &[4, 5], &mut logits), TANDEM_OK);
    rust.rewind(2);
    assert_eq!(logits[..n_vocab], *rust.eval(&[4, 5]).unwrap());
    assert_eq!(rewind(session, 2), 2);
    assert_eq!(eval(session, &[551, 3], &mut logits), TANDEM_OK);
    assert_eq!(logits[..n_vocab], first[..n_vocab]);
    let mut n = 0;
    let mut two = [0; 2];
    let status = unsafe { tandem_tokens(session, two.as_mut_ptr(), 2, &mut n) };
    assert_eq!((status, n, two), (TANDEM_OK, 4, [1, 529]));

    // What fails evaluates nothing.
    let (status, room) = (
        eval(session, &[7], &mut logits[..n_vocab - 1]),
        format!("{} floats", n_vocab - 1),
    );
    fails(status, TANDEM_ARGUMENT, &room);
    fails(eval(session, &[], &mut []), TANDEM_ARGUMENT, "no tokens");
    let status = eval(session, &[7, n_vocab as u32], &mut logits);
    fails(status, TANDEM_ARGUMENT, "outside the vocabulary");
    let status = eval(session, &[7; 13], &mut logits);
    fails(status, TANDEM_CONTEXT, "13 more do not fit");
    unsafe {
        let ids = [7, 8];
        let floats = logits.as_mut_ptr();
        let status = tandem_eval(session, null(), 1, null_mut(), 0);
        fails(status, TANDEM_ARGUMENT, "ids is NULL");
        let status = tandem_eval(session, ids.as_ptr(), usize::MAX, null_mut(), 0);
        fails(status, TANDEM_ARGUMENT, "ids");
        let status = tandem_eval(session, ids.as_ptr().byte_add(1), 1, null_mut(), 0);
        fails(status, TANDEM_ARGUMENT, "ids is not aligned");
        let status = tandem_eval(session, ids.as_ptr(), 2, null_mut(), n_vocab);
        fails(status, TANDEM_ARGUMENT, "logits is NULL");
        let status = tandem_eval(session, ids.as_ptr(), 2, floats, 0);
        fails(status, TANDEM_ARGUMENT, "0 floats");
        let status = tandem_eval(session, ids.as_ptr(), 2, floats, usize::MAX);
        fails(status, TANDEM_ARGUMENT, "logits");
        fails(
            tandem_rewind(session, 0, null_mut()),
            TANDEM_ARGUMENT,
            "n_left is NULL",
        );
        let status = tandem_tokens(session, null_mut(), 1, &mut n);
        fails(status, TANDEM_ARGUMENT, "ids is NULL");
        let status = tandem_tokens(session, null_mut(), 0, null_mut());
        fails(status, TANDEM_ARGUMENT, "n_ids is NULL");
    }
    assert_eq!(tokens(session), [1, 529, 551, 3]);
    assert_eq!(eval(session, &[7; 12], &mut logits), TANDEM_OK);
    fails(eval(session, &[7], &mut []), TANDEM_CONTEXT, "full");
    assert_eq!((rewind(session, 0), tandem_n_tokens(session)), (0, 0));
    assert_eq!(tandem_session_free(session), TANDEM_OK);
}

#[test]
fn continues_tokens() {
    let session = session(c"summarize-fr");
    let (_, _, result) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
    let prompt = tokens(session)[..result.n_prompt].to_vec();
    assert_eq!(rewind(session, 0), 0);
    let (status, pieces, result) = generate_tokens(session, &prompt);
    assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
    assert_eq!((result.n_prompt, result.n_generated), (12, 7));

    let refused = |ids: &[u32]| generate_tokens(session, ids).0;
    fails(refused(&[]), TANDEM_ARGUMENT, "no tokens");
    fails(refused(&[1, u32::MAX]), TANDEM_ARGUMENT, "vocabulary");
    fails(refused(&[1; 513]), TANDEM_CONTEXT, "512");
    unsafe {
        let (user, none) = (null_mut(), null_mut());
        let on_text = Some(on_text as _);
        let status = tandem_generate_tokens(session, null(), 1, null(), on_text, user, none);
        fails(status, TANDEM_ARGUMENT, "ids is NULL");
        let ids = prompt.as_ptr();
        let status = tandem_generate_tokens(session, ids, 1, null(), None, user, none);
        fails(status, TANDEM_ARGUMENT, "on_text");
    }
    let (_, pieces, _) = generate_tokens(session, &prompt);
    assert_eq!(pieces.concat(), ANSWER);
    assert_eq!(tandem_session_free(session), TANDEM_OK);
    fails(refused(&prompt), TANDEM_HANDLE, "freed");
}

#[test]
fn tokens_become_text() {
    let model = model();
    let n_vocab = tandem_n_vocab(model);
    assert_eq!(n_vocab, rust_session().model().config().n_vocab);
    assert_eq!((tandem_n_vocab(null()), tandem_n_vocab(2 as _)), (0, 0));
    let text = "caf\u{e9} \u{1f980}\n";
    let (mut ids, mut n_ids) = ([0; 32], 0);
    let status = unsafe {
        let (text, n) = (text.as_ptr().cast(), text.len());
        tandem_tokenize(model, text, n, 0, ids.as_mut_ptr(), 32, &mut n_ids)
    };
    assert_eq!(status, TANDEM_OK);
    let ids = &ids[..n_ids];

    let detokenize = |ids: &[u32], show, buffer: &mut [u8]| {
        let mut n = usize::MAX;
        let place = buffer.as_mut_ptr().cast();
        let (room, ids, n_ids) = (buffer.len(), ids.as_ptr(), ids.len());
        let status = unsafe { tandem_detokenize(model, ids, n_ids, show, place, room, &mut n) };
        (status, n)
    };
    let mut buffer = [b'#'; 64];
    assert_eq!(detokenize(ids, 0, &mut buffer), (TANDEM_OK, text.len()));
    assert_eq!(buffer[..text.len()], *text.as_bytes());
    assert_eq!(buffer[text.len()], b'#');
    // With too little room what fits, and how much there is.
    let mut little = [b'#'; 3];
    assert_eq!(detokenize(ids, 0, &mut little), (TANDEM_OK, text.len()));
    assert_eq!(&little, b"caf");
    assert_eq!(detokenize(ids, 0, &mut []), (TANDEM_OK, text.len()));
    // The BOS is seen where that is wanted.
    let (status, n) = detokenize(ids, 1, &mut buffer);
    assert_eq!((status, &buffer[..4]), (TANDEM_OK, &b"<s> "[..]));
    assert!(n > text.len());
    assert_eq!(detokenize(&[], 0, &mut buffer), (TANDEM_OK, 0));

    let (status, _) = detokenize(&[1, n_vocab as u32], 0, &mut buffer);
    fails(status, TANDEM_ARGUMENT, &n_vocab.to_string());
    unsafe {
        let (mut n, one) = (0, ids.as_ptr());
        let status = tandem_detokenize(model, null(), 1, 0, null_mut(), 0, &mut n);
        fails(status, TANDEM_ARGUMENT, "ids is NULL");
        let status = tandem_detokenize(model, one, usize::MAX, 0, null_mut(), 0, &mut n);
        fails(status, TANDEM_ARGUMENT, "ids");
        let status = tandem_detokenize(model, one, 1, 0, null_mut(), 1, &mut n);
        fails(status, TANDEM_ARGUMENT, "buffer is NULL");
        let status = tandem_detokenize(model, one, 1, 0, null_mut(), 0, null_mut());
        fails(status, TANDEM_ARGUMENT, "n_bytes is NULL");
        assert_eq!(tandem_model_free(model), TANDEM_OK);
        let status = tandem_detokenize(model, one, 1, 0, null_mut(), 0, &mut n);
        fails(status, TANDEM_HANDLE, "freed");
    }
}

#[test]
fn a_session_at_work_is_busy_for_all_calls() {
    let (session, bundle) = (session(c"summarize-fr"), bundle());
    let mut found = Vec::new();
    let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |n| {
        if n == 1 {
            let mut n = 7;
            found.extend([
                set_composition(session, bundle, Some(c"summarize")),
                eval(session, &[1], &mut []),
                generate_tokens(session, &[1]).0,
                chat(session, &[said(c"user", c"x")], &greedy()).0,
            ]);
            unsafe {
                found.push(tandem_rewind(session, 0, &mut n));
                found.push(tandem_tokens(session, null_mut(), 0, &mut n));
            }
            assert_eq!((n, tandem_n_tokens(session)), (7, 0));
            assert!(message().contains("at work"));
        }
        true
    });
    assert_eq!((status, pieces.concat().as_str()), (TANDEM_OK, ANSWER));
    assert_eq!(found, [TANDEM_BUSY; 6]);
    assert_eq!(answer(session), ANSWER);
    assert_eq!(tandem_bundle_free(bundle), TANDEM_OK);
    assert_eq!(tandem_session_free(session), TANDEM_OK);
}
