//! The interface for C: what `include/tandem.h` declares, which a test makes from this file.
//!
//! `objects` is what it is about, `handles` how C holds on to it, `arguments` what it gives,
//! `failure` how it is told of errors. Here the four meet, and panics become codes.

// Its functions are called by C and read memory that C names.
#![allow(unsafe_code)]
// The names are those of the header.
#![allow(non_camel_case_types)]

mod arguments;
mod failure;
mod handles;
mod objects;

use std::ffi::{CString, c_char, c_void};
use std::format;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;
use std::vec::Vec;

use tandem_formats::{GgufFiles, Mapping};

use self::arguments::{Out, argument, bytes_at, flag, null, path_at, sampler_options, text_at};
use self::failure::Failure;
use self::objects::{BundleBytes, Model, ModelBytes, OpenBundle, Request, Runner, RunnerOptions};
use self::tandem_status::*;
use crate::tokenizer::EncodeOptions;
use crate::{Level, StopReason};

/// What a call came to. The message of a failure is `tandem_error_message`'s.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tandem_status {
    /// It worked.
    TANDEM_OK = 0,
    /// A null pointer where none may be, or a number out of its range.
    TANDEM_ARGUMENT = 1,
    /// A handle that was freed, is of another kind or never was one.
    TANDEM_HANDLE = 2,
    /// The session is at work in another `tandem_generate`.
    TANDEM_BUSY = 3,
    /// A file cannot be opened.
    TANDEM_IO = 4,
    /// The file is no model, a damaged one, or one that is not supported.
    TANDEM_MODEL = 5,
    /// The file is no bundle, damaged, or for another model; or there is no such composition.
    TANDEM_BUNDLE = 6,
    /// A text is not UTF-8 or cannot be expressed in the model's tokens, or the chat template cannot
    /// be read or refuses it.
    TANDEM_TEXT = 7,
    /// The prompt does not fit the context.
    TANDEM_CONTEXT = 8,
    /// There is not enough memory.
    TANDEM_MEMORY = 9,
    /// A defect of Tandem.
    TANDEM_INTERNAL = 10,
}

/// Why a generation ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum tandem_stop {
    /// The model said that the text ends.
    TANDEM_STOP_END_OF_TEXT = 0,
    /// As many tokens as were asked for.
    TANDEM_STOP_MAX_TOKENS = 1,
    /// The context is full.
    TANDEM_STOP_CONTEXT_FULL = 2,
    /// The callback or `tandem_cancel` stopped it.
    TANDEM_STOP_CANCELLED = 3,
}

/// An open model.
pub struct tandem_model {
    _private: (),
}

/// An open bundle of adapters.
pub struct tandem_bundle {
    _private: (),
}

/// A model at work on one text, alone or with a composition of a bundle.
pub struct tandem_session {
    _private: (),
}

/// How a session runs. Fill it by `tandem_session_defaults`, then change what you want.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tandem_session_options {
    /// Tokens of the context, prompt and reply together; 0: the model's, at most 4096.
    pub n_ctx: u32,
    /// Tokens of the prompt evaluated at once; 0: 256.
    pub n_batch: u32,
    /// Threads, never more than there are cores; 0: all cores.
    pub n_threads: u32,
    /// Threads for single tokens, which wait for memory more than they compute; 0: `n_threads`, or
    /// where that is 0 the fewest that reach full speed, measured in some milliseconds.
    pub n_threads_decode: u32,
    /// 1 keeps activations in float32 where they would be rounded to int8 for quantized weights.
    pub exact: u32,
    /// Instructions to use, a name as `tandem run --cpu` takes it; NULL: the best there are.
    pub level: *const c_char,
}

/// How a text is continued. Fill it by `tandem_generate_defaults`, then change what you want.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tandem_generate_options {
    /// The most tokens to generate. Default: 256.
    pub max_tokens: u32,
    /// 1 takes the text as it is, special tokens in it included, instead of as the input of the
    /// composition's prompt or as a user's message in the model's chat template (a model that has
    /// none takes every text as it is). Default: 0.
    pub raw: u32,
    /// Seed of the random numbers: the same one gives the same text. Default: by the clock.
    pub seed: u64,
    /// 0 always picks the most likely token. Default: 0.8.
    pub temperature: f32,
    /// Pick among so many most likely tokens; 0 is off. Default: 40.
    pub top_k: u32,
    /// Pick among the most likely tokens up to this probability; 1 is off. Default: 0.95.
    pub top_p: f32,
    /// Pick among tokens at least this times as likely as the most likely; 0 is off. Default: 0.05.
    pub min_p: f32,
    /// Pick among the most typical tokens up to this probability; 1 is off. Default: 1.
    pub typical_p: f32,
    /// The logits of recent tokens are divided by it; 1 is off. Default: 1.
    pub repeat_penalty: f32,
    /// Subtracted from a recent token's logit for each time it occurred. Default: 0.
    pub frequency_penalty: f32,
    /// Subtracted from a recent token's logit. Default: 0.
    pub presence_penalty: f32,
    /// How many tokens count as recent, at most 4096. Default: 64.
    pub penalty_window: u32,
}

/// What a generation came to.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tandem_result {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Tokens generated, one that ends the text included.
    pub n_generated: usize,
    /// Why it ended.
    pub stop: tandem_stop,
}

/// Gets the text as it is generated, in whole characters of UTF-8: `n_bytes` bytes, and a zero
/// after them. They are gone when it returns. It runs on the thread that called `tandem_generate`.
/// It must return, by neither `longjmp` nor a C++ exception: 0 to go on, anything else to stop.
pub type tandem_on_text =
    Option<unsafe extern "C" fn(text: *const c_char, n_bytes: usize, user: *mut c_void) -> i32>;

/// The version of the library, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn tandem_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// The name of the best instructions that this CPU has and Tandem uses, such as "neon" or "avx2":
/// what sessions run on that ask for nothing else.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_level() -> *const c_char {
    static NAME: OnceLock<CString> = OnceLock::new();
    NAME.get_or_init(|| CString::new(Level::detect().name()).unwrap_or_default())
        .as_ptr()
}

/// The message of the last call that failed on this thread, in English, "" where none has. It stays
/// until the next failure on the thread.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_error_message() -> *const c_char {
    failure::message()
}

/// Opens the model at `path`, a GGUF file (of a split model, the first part), and sets `model`,
/// to NULL on a failure. The file is mapped, not copied: it must not change while it is open.
///
/// # Safety
///
/// `path` ends with a zero, `model` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_model_open(
    path: *const c_char,
    model: *mut *mut tandem_model,
) -> tandem_status {
    call(|| {
        // SAFETY: as the caller promises.
        let (out, path) = unsafe { (Out::new(model)?, path_at(path)?) };
        let files = GgufFiles::open(path)?;
        let what = format!("cannot run {}", path.display());
        let model = Model::new(ModelBytes::Files(files)).map_err(|f| f.within(&what))?;
        out.set(handles::add(model));
        Ok(())
    })
}

/// Opens a model that lies in memory, a GGUF file of `n_bytes`, and sets `model`, to NULL on a
/// failure. The bytes are used where they are: they must stay, unchanged, until the model and all
/// sessions made from it are freed and every call that was given one of them has returned.
///
/// # Safety
///
/// `bytes` are `n_bytes` that stay as said, `model` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_model_open_memory(
    bytes: *const c_void,
    n_bytes: usize,
    model: *mut *mut tandem_model,
) -> tandem_status {
    call(|| {
        // SAFETY: as the caller promises.
        let (out, bytes) = unsafe { (Out::new(model)?, bytes_at(bytes.cast(), n_bytes, "bytes")?) };
        out.set(handles::add(Model::new(ModelBytes::Memory(bytes))?));
        Ok(())
    })
}

/// Frees a model; NULL is none. Sessions made from it keep what they need.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_model_free(model: *mut tandem_model) -> tandem_status {
    call(|| handles::remove::<Model, _>(model))
}

/// Turns a text into token ids, with BOS before and EOS after it where the model wants them. The
/// texts of control tokens in it become these tokens where `parse_special` is not 0. At most `capacity` ids are written to
/// `ids`; `n_ids` is set to how many there are, which may be more: call again with more room then.
///
/// # Safety
///
/// `text` are `n_bytes` bytes that do not change meanwhile, `ids` has room for `capacity` ids (it may be NULL where that is 0),
/// `n_ids` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_tokenize(
    model: *const tandem_model,
    text: *const c_char,
    n_bytes: usize,
    parse_special: i32,
    ids: *mut u32,
    capacity: usize,
    n_ids: *mut usize,
) -> tandem_status {
    call(|| {
        let model: Arc<Model> = handles::get(model)?;
        // SAFETY: as the caller promises.
        let text = unsafe { bytes_at(text.cast(), n_bytes, "text")? };
        if n_ids.is_null() || (ids.is_null() && capacity > 0) {
            return Err(null(if n_ids.is_null() { "n_ids" } else { "ids" }));
        }
        let options = EncodeOptions {
            add_special: true,
            parse_special: parse_special != 0,
        };
        let found = model.with_tokenizer(|tokenizer| tokenizer.encode(text, options))?;
        let n = found.len().min(capacity);
        // SAFETY: there is room for `capacity` ids, which are no fewer, and for their number.
        unsafe {
            if n > 0 {
                core::ptr::copy_nonoverlapping(found.as_ptr(), ids, n);
            }
            n_ids.write(found.len());
        }
        Ok(())
    })
}

/// Opens the bundle at `path` and sets `bundle`, to NULL on a failure. The file is mapped, not
/// copied: it must not change while it is open.
///
/// # Safety
///
/// `path` ends with a zero, `bundle` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_bundle_open(
    path: *const c_char,
    bundle: *mut *mut tandem_bundle,
) -> tandem_status {
    call(|| {
        // SAFETY: as the caller promises.
        let (out, path) = unsafe { (Out::new(bundle)?, path_at(path)?) };
        let what = format!("cannot use {}", path.display());
        let mapping =
            Mapping::open(path).map_err(|error| Failure::of(TANDEM_IO, &error).within(&what))?;
        let bundle = OpenBundle::new(BundleBytes::File(mapping)).map_err(|f| f.within(&what))?;
        out.set(handles::add(bundle));
        Ok(())
    })
}

/// Opens a bundle that lies in memory, and sets `bundle`, to NULL on a failure. The bytes are used
/// where they are: they must stay, unchanged, until the bundle and all sessions made with it are
/// freed and every call that was given one of them has returned.
///
/// # Safety
///
/// `bytes` are `n_bytes` that stay as said, `bundle` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_bundle_open_memory(
    bytes: *const c_void,
    n_bytes: usize,
    bundle: *mut *mut tandem_bundle,
) -> tandem_status {
    call(|| {
        // SAFETY: as the caller promises.
        let (out, bytes) =
            unsafe { (Out::new(bundle)?, bytes_at(bytes.cast(), n_bytes, "bytes")?) };
        out.set(handles::add(OpenBundle::new(BundleBytes::Memory(bytes))?));
        Ok(())
    })
}

/// Frees a bundle; NULL is none. Sessions made with it keep what they need.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_bundle_free(bundle: *mut tandem_bundle) -> tandem_status {
    call(|| handles::remove::<OpenBundle, _>(bundle))
}

/// How many compositions a bundle has; 0 for what is no bundle.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_bundle_n_compositions(bundle: *const tandem_bundle) -> usize {
    let mut n = 0;
    call(|| {
        n = handles::get::<OpenBundle, _>(bundle)?.names().len();
        Ok(())
    });
    n
}

/// The name of a bundle's composition, counted from 0; NULL where there is none. It stays until
/// the bundle is freed.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_bundle_composition(
    bundle: *const tandem_bundle,
    index: usize,
) -> *const c_char {
    let mut name = core::ptr::null();
    call(|| {
        let bundle: Arc<OpenBundle> = handles::get(bundle)?;
        let found = bundle.names().get(index);
        let no_such = || argument("the bundle has fewer compositions");
        name = found.ok_or_else(no_such)?.as_ptr();
        Ok(())
    });
    name
}

/// Fills in the defaults: zeros.
///
/// # Safety
///
/// `options` can be written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_session_defaults(options: *mut tandem_session_options) {
    if !options.is_null() {
        // SAFETY: as the caller promises.
        unsafe { options.write(SESSION_DEFAULTS) };
    }
}

const SESSION_DEFAULTS: tandem_session_options = tandem_session_options {
    n_ctx: 0,
    n_batch: 0,
    n_threads: 0,
    n_threads_decode: 0,
    exact: 0,
    level: core::ptr::null(),
};

/// Makes a session and sets `session`, to NULL on a failure. `bundle` and `composition` are both
/// NULL for the model alone; otherwise the bundle must be for the model, and is checked. `options`
/// NULL is the defaults. To switch compositions, make a session for each.
///
/// # Safety
///
/// `composition` and the level in `options` are NULL or end with zeros, `options` is NULL or can be
/// read, `session` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_session_new(
    model: *const tandem_model,
    bundle: *const tandem_bundle,
    composition: *const c_char,
    options: *const tandem_session_options,
    session: *mut *mut tandem_session,
) -> tandem_status {
    call(|| {
        // SAFETY: as the caller promises.
        let out = unsafe { Out::new(session)? };
        let model: Arc<Model> = handles::get(model)?;
        let chosen = match (bundle.is_null(), composition.is_null()) {
            (true, true) => None,
            (true, false) => return Err(null("bundle")),
            (false, true) => return Err(null("composition")),
            (false, false) => {
                // SAFETY: as the caller promises.
                let name = unsafe { text_at(composition, "composition")? };
                Some((handles::get::<OpenBundle, _>(bundle)?, name))
            }
        };
        let options = match options.is_null() {
            true => SESSION_DEFAULTS,
            // SAFETY: as the caller promises.
            false => unsafe { options.read() },
        };
        let level = match options.level.is_null() {
            true => Level::detect(),
            false => {
                // SAFETY: as the caller promises.
                let name = unsafe { text_at(options.level, "level")? };
                let missing = || argument(format!("this CPU has no level {name:?}"));
                Level::from_name(name).ok_or_else(missing)?
            }
        };
        let options = RunnerOptions {
            n_ctx: options.n_ctx as usize,
            n_batch: options.n_batch as usize,
            n_threads: options.n_threads as usize,
            n_threads_decode: options.n_threads_decode as usize,
            exact: flag(options.exact, "exact")?,
            level,
        };
        out.set(handles::add(Runner::new(model, chosen, &options)?));
        Ok(())
    })
}

/// Frees a session; NULL is none. A generation that is at work in it goes on to its end, with the
/// memory it needs; `tandem_cancel`, called before, stops it.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_session_free(session: *mut tandem_session) -> tandem_status {
    call(|| handles::remove::<Runner, _>(session))
}

/// Fills in the defaults.
///
/// # Safety
///
/// `options` can be written to, or is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_generate_defaults(options: *mut tandem_generate_options) {
    if !options.is_null() {
        // SAFETY: as the caller promises.
        unsafe { options.write(generate_defaults()) };
    }
}

fn generate_defaults() -> tandem_generate_options {
    let time = SystemTime::UNIX_EPOCH.elapsed();
    tandem_generate_options {
        max_tokens: 256,
        raw: 0,
        seed: time.map_or(0, |time| time.as_nanos() as u64),
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        typical_p: 1.0,
        repeat_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        penalty_window: 64,
    }
}

/// Answers a text, or continues it where `options` say raw, and gives the new text to `on_text`
/// piece by piece, with `user`. It begins a new conversation each time; what of the prompt is the
/// same as the last time is not evaluated again. `options` NULL is the defaults; `result`, which may
/// be NULL, is set where the call is `TANDEM_OK`. A cancelled generation is no failure.
///
/// # Safety
///
/// `text` are `n_bytes` bytes that do not change meanwhile, `options` can be read and `result`
/// written to unless they are NULL, `on_text` keeps the rules of its type.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_generate(
    session: *const tandem_session,
    text: *const c_char,
    n_bytes: usize,
    options: *const tandem_generate_options,
    on_text: tandem_on_text,
    user: *mut c_void,
    result: *mut tandem_result,
) -> tandem_status {
    call(|| {
        let session: Arc<Runner> = handles::get(session)?;
        // SAFETY: as the caller promises.
        let text = unsafe { bytes_at(text.cast(), n_bytes, "text")? };
        let on_text = on_text.ok_or_else(|| null("on_text"))?;
        let options = match options.is_null() {
            true => generate_defaults(),
            // SAFETY: as the caller promises.
            false => unsafe { options.read() },
        };
        let request = Request {
            text,
            raw: flag(options.raw, "raw")?,
            max_tokens: options.max_tokens as usize,
            sampler: sampler_options(&options)?,
        };
        let mut piece = Vec::new();
        let outcome = session.generate(&request, |text| {
            piece.clear();
            piece.extend_from_slice(text.as_bytes());
            piece.push(0);
            // SAFETY: the pointer is to so many bytes, which live until the call returns; the
            // caller of `tandem_generate` promises the rest.
            match unsafe { on_text(piece.as_ptr().cast(), text.len(), user) } {
                0 => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        })?;
        if !result.is_null() {
            let result_of_it = tandem_result {
                n_prompt: outcome.n_prompt,
                n_generated: outcome.n_generated,
                stop: match outcome.stop {
                    StopReason::EndOfText => tandem_stop::TANDEM_STOP_END_OF_TEXT,
                    StopReason::MaxTokens => tandem_stop::TANDEM_STOP_MAX_TOKENS,
                    StopReason::ContextFull => tandem_stop::TANDEM_STOP_CONTEXT_FULL,
                    StopReason::Cancelled => tandem_stop::TANDEM_STOP_CANCELLED,
                },
            };
            // SAFETY: as the caller promises.
            unsafe { result.write(result_of_it) };
        }
        Ok(())
    })
}

/// Stops the generation that is at work in a session, after the token or the part of the prompt
/// that is being evaluated. Does nothing where none is. May be called from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_cancel(session: *const tandem_session) -> tandem_status {
    call(|| {
        handles::get::<Runner, _>(session)?.cancel();
        Ok(())
    })
}

/// Runs what a function of the interface does: failures and panics become codes.
fn call(f: impl FnOnce() -> Result<(), Failure>) -> tandem_status {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => TANDEM_OK,
        Ok(Err(failure)) => failure.keep(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let message = format!("a defect of Tandem: {}", text.unwrap_or("a panic"));
            Failure::new(TANDEM_INTERNAL, message).keep()
        }
    }
}
