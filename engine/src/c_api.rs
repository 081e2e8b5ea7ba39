//! The interface for C: what `include/tandem.h` declares, which a test makes from this file,
//! `session` and `generate`.
//!
//! `objects` is what it is about, `handles` how C holds on to it, `arguments` what it gives,
//! `failure` how it is told of errors. Here and in the two files of the header the four meet, and
//! panics become codes.

// Its functions are called by C and read memory that C names.
#![allow(unsafe_code)]
// The names are those of the header.
#![allow(non_camel_case_types)]

mod arguments;
mod failure;
mod generate;
mod handles;
mod objects;
mod session;

use std::ffi::{CString, c_char, c_void};
use std::format;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;
use std::sync::{Arc, OnceLock};

use tandem_formats::Mapping;

use self::arguments::{Out, Place, Room, argument, path_at, slice_at};
use self::failure::Failure;
pub use self::generate::*;
use self::objects::OpenBundle;
pub use self::session::*;
use self::tandem_status::*;
use crate::tokenizer::{ControlTokens, EncodeOptions};
use crate::{Error, Level, Model, SharedPool, ThreadPool};

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
    /// The session is at work in another call.
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
    /// The tokens do not fit the context.
    TANDEM_CONTEXT = 8,
    /// There is not enough memory.
    TANDEM_MEMORY = 9,
    /// A defect of Tandem.
    TANDEM_INTERNAL = 10,
}

/// An open model.
pub struct tandem_model {
    _private: (),
}

/// An open bundle of adapters.
pub struct tandem_bundle {
    _private: (),
}

/// Threads that several sessions share.
pub struct tandem_pool {
    _private: (),
}

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
        let opened = Model::open(path).map_err(|error| match error {
            // It names the file itself.
            Error::File(error) => error.into(),
            error => within(path, error.into()),
        })?;
        check_vocabulary(&opened).map_err(|failure| within(path, failure))?;
        out.set(handles::add(opened));
        Ok(())
    })
}

fn within(path: &std::path::Path, failure: Failure) -> Failure {
    failure.within(&format!("cannot use {}", path.display()))
}

/// Texts are what the interface is about: a model that has none is refused at once.
fn check_vocabulary(model: &Model) -> Result<(), Failure> {
    let tokenizer = model.tokenizer();
    tokenizer.map_or_else(|error| Err(Failure::of(TANDEM_MODEL, &error)), |_| Ok(()))
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
        let (out, bytes) = unsafe { (Out::new(model)?, slice_at(bytes.cast(), n_bytes, "bytes")?) };
        let opened = Model::from_static(bytes)?;
        check_vocabulary(&opened)?;
        out.set(handles::add(opened));
        Ok(())
    })
}

/// Frees a model; NULL is none. Sessions made from it keep what they need.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_model_free(model: *mut tandem_model) -> tandem_status {
    call(|| handles::remove::<Model, _>(model))
}

/// How many tokens the model's vocabulary has, which is how many logits there are; 0 for what is no
/// model. Token ids are below it.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_n_vocab(model: *const tandem_model) -> usize {
    value(|| Ok(handles::get::<Model, _>(model)?.config().n_vocab))
}

/// Turns a text into token ids, with BOS before and EOS after it where the model wants them. The
/// texts of control tokens in it become these tokens where `parse_special` is not 0. At most
/// `capacity` ids are written to `ids`; `n_ids` is set to how many there are, which may be more: call
/// again with more room then.
///
/// # Safety
///
/// `text` are `n_bytes` bytes that do not change meanwhile, `ids` has room for `capacity` ids (it
/// may be NULL where that is 0), `n_ids` can be written to.
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
        let text: &[u8] = unsafe { slice_at(text.cast(), n_bytes, "text")? };
        // SAFETY: as the caller promises.
        let (ids, n_ids) = unsafe {
            (
                Room::new(ids, capacity, "ids")?,
                Place::new(n_ids, "n_ids")?,
            )
        };
        let options = EncodeOptions {
            add_special: true,
            parse_special: parse_special != 0,
        };
        let found = model.tokenizer()?.encode(text, options)?;
        ids.write(&found);
        n_ids.set(found.len());
        Ok(())
    })
}

/// Turns token ids, from the beginning of a text, into that text. Control tokens are written, such as
/// `<|im_end|>`, where `show_special` is not 0, and left out otherwise; the space that some
/// vocabularies put before every text is taken away. At most `capacity` bytes are written to `buffer`, no zero after them;
/// `n_bytes` is set to how many there are, which may be more: call again with more room then.
///
/// The bytes are those of the tokens, which may be parts of characters: of a whole text's tokens
/// they are its UTF-8, of single ones they need not be. An id that is not in the vocabulary gives
/// `TANDEM_ARGUMENT`.
///
/// # Safety
///
/// `ids` are `n_ids` ids that do not change meanwhile, `buffer` has room for `capacity` bytes (it
/// may be NULL where that is 0), `n_bytes` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_detokenize(
    model: *const tandem_model,
    ids: *const u32,
    n_ids: usize,
    show_special: i32,
    buffer: *mut c_char,
    capacity: usize,
    n_bytes: *mut usize,
) -> tandem_status {
    call(|| {
        let model: Arc<Model> = handles::get(model)?;
        // SAFETY: as the caller promises.
        let ids = unsafe { slice_at(ids, n_ids, "ids")? };
        // SAFETY: as the caller promises.
        let (buffer, n_bytes) = unsafe {
            let buffer = Room::new(buffer.cast(), capacity, "buffer")?;
            (buffer, Place::new(n_bytes, "n_bytes")?)
        };
        let control = match show_special {
            0 => ControlTokens::Hide,
            _ => ControlTokens::Show,
        };
        let text = model.tokenizer()?.vocab().decode_bytes(ids, control);
        // The ids are the caller's, no text of anybody's.
        let text = text.map_err(|error| Failure::of(TANDEM_ARGUMENT, &error))?;
        buffer.write(&text);
        n_bytes.set(text.len());
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
        let mapping =
            Mapping::open(path).map_err(|error| within(path, Failure::of(TANDEM_IO, &error)))?;
        let bundle =
            OpenBundle::new(mapping.into_bytes()).map_err(|failure| within(path, failure))?;
        out.set(handles::add(bundle));
        Ok(())
    })
}

/// Opens a bundle that lies in memory, and sets `bundle`, to NULL on a failure. The bytes are used
/// where they are: they must stay, unchanged, until the bundle and all sessions that ever ran a
/// composition of it are freed and every call that was given one of them has returned.
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
        let (out, bytes): (_, &'static [u8]) =
            unsafe { (Out::new(bundle)?, slice_at(bytes.cast(), n_bytes, "bytes")?) };
        out.set(handles::add(OpenBundle::new(bytes)?));
        Ok(())
    })
}

/// Frees a bundle; NULL is none. Sessions that run a composition of it keep what they need.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_bundle_free(bundle: *mut tandem_bundle) -> tandem_status {
    call(|| handles::remove::<OpenBundle, _>(bundle))
}

/// How many compositions a bundle has; 0 for what is no bundle.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_bundle_n_compositions(bundle: *const tandem_bundle) -> usize {
    value(|| Ok(handles::get::<OpenBundle, _>(bundle)?.names().len()))
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

/// Starts threads for sessions to share, and sets `pool`, to NULL on a failure. `n_threads` counts the
/// thread that calls as well, and is never more than there are cores; 0: all cores. Name the pool in
/// `tandem_session_options`. What sessions compute at the same time takes turns, some microseconds
/// each.
///
/// # Safety
///
/// `pool` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_pool_new(
    n_threads: u32,
    pool: *mut *mut tandem_pool,
) -> tandem_status {
    call(|| {
        // SAFETY: as the caller promises.
        let out = unsafe { Out::new(pool)? };
        let pool: SharedPool = match n_threads {
            0 => crate::threads::all().into(),
            n => ThreadPool::new(n as usize).into(),
        };
        out.set(handles::add(pool));
        Ok(())
    })
}

/// Frees a pool; NULL is none. Sessions that use it keep it; with the last of them its threads end.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_pool_free(pool: *mut tandem_pool) -> tandem_status {
    call(|| handles::remove::<SharedPool, _>(pool))
}

/// What a function of the interface gives that has no status; on a failure 0.
fn value<T: Default>(f: impl FnOnce() -> Result<T, Failure>) -> T {
    let mut value = T::default();
    call(|| {
        value = f()?;
        Ok(())
    });
    value
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
