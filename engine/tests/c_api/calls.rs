//! The calls as the tests make them, and what they are made with.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

use tandem_engine::c_api::tandem_status::*;
use tandem_engine::c_api::*;

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures")
        .join(name)
}

pub(crate) fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

pub(crate) fn message() -> String {
    let message = unsafe { CStr::from_ptr(tandem_error_message()) };
    message.to_str().unwrap().to_string()
}

/// The status of a failure whose message has `part` in it.
#[track_caller]
pub(crate) fn fails(found: tandem_status, status: tandem_status, part: &str) {
    assert_eq!(
        (found, message().contains(part)),
        (status, true),
        "{}",
        message()
    );
}

pub(crate) fn model() -> *mut tandem_model {
    let mut model = null_mut();
    let path = c_path(&fixture("pocket-q8_0.gguf"));
    let status = unsafe { tandem_model_open(path.as_ptr(), &mut model) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    model
}

pub(crate) fn bundle() -> *mut tandem_bundle {
    let mut bundle = null_mut();
    let path = c_path(&fixture("pocket.tandem"));
    let status = unsafe { tandem_bundle_open(path.as_ptr(), &mut bundle) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    bundle
}

/// A session with a composition; model and bundle are freed, as it keeps what it needs.
pub(crate) fn session(composition: &CStr) -> *mut tandem_session {
    let (model, bundle, mut session) = (model(), bundle(), null_mut());
    let options = options();
    let name = composition.as_ptr();
    let status = unsafe { tandem_session_new(model, bundle, name, &options, &mut session) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    assert_eq!(tandem_model_free(model), TANDEM_OK);
    assert_eq!(tandem_bundle_free(bundle), TANDEM_OK);
    session
}

pub(crate) fn options() -> tandem_session_options {
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

pub(crate) fn greedy() -> tandem_generate_options {
    let mut options = unsafe { std::mem::zeroed() };
    unsafe { tandem_generate_defaults(&mut options) };
    assert_eq!((options.max_tokens, options.top_k), (256, 40));
    options.temperature = 0.0;
    options.max_tokens = 32;
    options
}

/// Pieces of text, and whether to go on after one.
pub(crate) struct Reply<'a> {
    pub(crate) pieces: Vec<String>,
    pub(crate) go_on: &'a mut dyn FnMut(usize) -> bool,
}

pub(crate) unsafe extern "C" fn on_text(
    text: *const c_char,
    n_bytes: usize,
    user: *mut c_void,
) -> i32 {
    let reply = unsafe { &mut *user.cast::<Reply<'_>>() };
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), n_bytes + 1) };
    assert_eq!(bytes[n_bytes], 0);
    let text = std::str::from_utf8(&bytes[..n_bytes]).expect("whole characters");
    reply.pieces.push(text.to_string());
    i32::from(!(reply.go_on)(reply.pieces.len()))
}

pub(crate) const INPUT: &str = "This package provides the shared library.";
/// What `tandem run` answers with `summarize-fr`.
pub(crate) const ANSWER: &str = " bibliothèque partagée pour libsoup";

/// A status, the pieces of text and the result of what generates.
pub(crate) type Answer = (tandem_status, Vec<String>, tandem_result);

/// Calls `ask` with a callback and what it needs.
pub(crate) fn listen(
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

pub(crate) fn generate(
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
pub(crate) fn answer(session: *const tandem_session) -> String {
    let (status, pieces, _) = generate(session, INPUT.as_bytes(), &greedy(), |_| true);
    assert_eq!(status, TANDEM_OK, "{}", message());
    pieces.concat()
}

pub(crate) fn generate_tokens(session: *const tandem_session, ids: &[u32]) -> Answer {
    listen(
        |_| true,
        |on_text, user, result| unsafe {
            let (ids, n) = (ids.as_ptr(), ids.len());
            tandem_generate_tokens(session, ids, n, &greedy(), on_text, user, result)
        },
    )
}

pub(crate) fn chat(
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

pub(crate) fn tokens(session: *const tandem_session) -> Vec<u32> {
    let (mut ids, mut n) = (vec![0; tandem_n_tokens(session)], 0);
    let status = unsafe { tandem_tokens(session, ids.as_mut_ptr(), ids.len(), &mut n) };
    assert_eq!((status, n), (TANDEM_OK, ids.len()));
    ids
}

pub(crate) fn set_composition(
    session: *const tandem_session,
    bundle: *const tandem_bundle,
    name: Option<&CStr>,
) -> tandem_status {
    let name = name.map_or(null(), CStr::as_ptr);
    unsafe { tandem_session_set_composition(session, bundle, name) }
}

pub(crate) fn eval(
    session: *const tandem_session,
    ids: &[u32],
    logits: &mut [f32],
) -> tandem_status {
    let (place, capacity) = match logits.len() {
        0 => (null_mut(), 0),
        n => (logits.as_mut_ptr(), n),
    };
    unsafe { tandem_eval(session, ids.as_ptr(), ids.len(), place, capacity) }
}

pub(crate) fn rewind(session: *const tandem_session, n: usize) -> usize {
    let mut n_left = usize::MAX;
    let status = unsafe { tandem_rewind(session, n, &mut n_left) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    n_left
}

/// The model alone, with `change`d options.
pub(crate) fn plain(change: impl FnOnce(&mut tandem_session_options)) -> *mut tandem_session {
    let (model, mut session, mut options) = (model(), null_mut(), options());
    change(&mut options);
    let status = unsafe { tandem_session_new(model, null(), null(), &options, &mut session) };
    assert_eq!(status, TANDEM_OK, "{}", message());
    assert_eq!(tandem_model_free(model), TANDEM_OK);
    session
}

/// The same model on the Rust side, alone on one thread.
pub(crate) fn rust_session() -> tandem_engine::Session {
    let model = tandem_engine::Model::open(fixture("pocket-q8_0.gguf")).unwrap();
    model.session().threads(1).build().unwrap()
}
