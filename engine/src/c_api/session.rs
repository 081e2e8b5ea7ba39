//! Sessions as C has them: made, given another composition, and fed with tokens.

use std::ffi::c_char;
use std::format;
use std::string::ToString;
use std::sync::Arc;

use super::arguments::{Out, Place, Room, argument, flag, null, slice_at, text_at};
use super::failure::Failure;
use super::objects::{Choice, Runner, RunnerOptions};
use super::{call, handles, tandem_bundle, tandem_model, tandem_pool, tandem_status, value};
use crate::chat::TemplateArgs;
use crate::{Level, Model, SharedPool};

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
    /// Threads, never more than there are cores, or than `pool` has; 0: all of them.
    pub n_threads: u32,
    /// Threads for single tokens, which wait for memory more than they compute; 0: `n_threads`, or
    /// where that is 0 the fewest that reach full speed, measured in some milliseconds.
    pub n_threads_decode: u32,
    /// 1 keeps activations in float32 where they would be rounded to int8 for quantized weights.
    pub exact: u32,
    /// Instructions to use, a name as `tandem run --cpu` takes it; NULL: the best there are.
    pub level: *const c_char,
    /// Threads that other sessions use as well, of which this one uses `n_threads`; NULL: threads of
    /// its own.
    pub pool: *const tandem_pool,
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
    pool: core::ptr::null(),
};

/// Makes a session and sets `session`, to NULL on a failure. `bundle` and `composition` are both
/// NULL for the model alone; otherwise the bundle must be for the model, and is checked. `options`
/// NULL is the defaults. The session keeps what it needs of model, bundle and pool: they may be freed.
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
        // SAFETY: as the caller promises.
        let chosen = unsafe { chosen(bundle, composition)? };
        // SAFETY: as the caller promises.
        let options = unsafe { runner_options(options)? };
        out.set(handles::add(Runner::new(&model, chosen, options)?));
        Ok(())
    })
}

/// The composition that C names, if any.
///
/// # Safety
///
/// `composition` is NULL or ends with a zero, and stays unchanged for `'a`.
unsafe fn chosen<'a>(
    bundle: *const tandem_bundle,
    composition: *const c_char,
) -> Result<Option<Choice<'a>>, Failure> {
    match (bundle.is_null(), composition.is_null()) {
        (true, true) => Ok(None),
        (true, false) => Err(null("bundle")),
        (false, true) => Err(null("composition")),
        (false, false) => {
            // SAFETY: as the caller promises.
            let name = unsafe { text_at(composition, "composition")? };
            Ok(Some((handles::get(bundle)?, name)))
        }
    }
}

/// # Safety
///
/// `options` is NULL or can be read, the level in it is NULL or ends with a zero.
unsafe fn runner_options(options: *const tandem_session_options) -> Result<RunnerOptions, Failure> {
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
    let pool = match options.pool.is_null() {
        true => None,
        false => Some(handles::get::<SharedPool, _>(options.pool)?),
    };
    Ok(RunnerOptions {
        n_ctx: options.n_ctx as usize,
        n_batch: options.n_batch as usize,
        n_threads: options.n_threads as usize,
        n_threads_decode: options.n_threads_decode as usize,
        exact: flag(options.exact, "exact")?,
        level,
        pool: pool.as_deref().cloned(),
    })
}

/// Frees a session; NULL is none. A generation that is at work in it goes on to its end, with the
/// memory it needs; `tandem_cancel`, called before, stops it.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_session_free(session: *mut tandem_session) -> tandem_status {
    call(|| handles::remove::<Runner, _>(session))
}

/// Runs another composition from the next token on; `bundle` and `composition` are as for
/// `tandem_session_new`. What was evaluated is forgotten, unless the composition has the same content
/// as the one before. On a failure the session stays as it was. A merge that the bundle does not
/// store is computed each time.
///
/// # Safety
///
/// `composition` is NULL or ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_session_set_composition(
    session: *const tandem_session,
    bundle: *const tandem_bundle,
    composition: *const c_char,
) -> tandem_status {
    call(|| {
        let session: Arc<Runner> = handles::get(session)?;
        // SAFETY: as the caller promises.
        session.set_composition(unsafe { chosen(bundle, composition)? })
    })
}

/// What the model's chat template is given from now on beside the messages: the members of a JSON object,
/// such as `{"enable_thinking": false}`; `tools` and `documents` are given so, too. NULL is nothing.
///
/// JSON that is not valid, or no object, gives `TANDEM_ARGUMENT`.
///
/// # Safety
///
/// `json` is NULL or ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_session_set_template_args(
    session: *const tandem_session,
    json: *const c_char,
) -> tandem_status {
    call(|| {
        let session: Arc<Runner> = handles::get(session)?;
        let args = match json.is_null() {
            true => TemplateArgs::new(),
            false => {
                // SAFETY: as the caller promises.
                let json = unsafe { text_at(json, "json")? };
                TemplateArgs::from_json(json).map_err(|error| argument(error.to_string()))?
            }
        };
        session.session()?.set_template_args(args);
        Ok(())
    })
}

/// Evaluates token ids after those that the session has, and writes the logits for the token that
/// follows the last, `tandem_n_vocab` floats, to `logits`. `capacity` is the room there in floats: at
/// least so many, or 0 with `logits` NULL where none are wanted. On a failure nothing was evaluated.
///
/// Ids that are not in the vocabulary, none at all, or too little room give `TANDEM_ARGUMENT`; more
/// than the context has left `TANDEM_CONTEXT`. `tandem_cancel` does not stop it.
///
/// # Safety
///
/// `ids` are `n_ids` ids that do not change meanwhile, `logits` is NULL or has room for `capacity`
/// floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_eval(
    session: *const tandem_session,
    ids: *const u32,
    n_ids: usize,
    logits: *mut f32,
    capacity: usize,
) -> tandem_status {
    call(|| {
        let session: Arc<Runner> = handles::get(session)?;
        // SAFETY: as the caller promises.
        let (ids, logits) = unsafe {
            (
                slice_at(ids, n_ids, "ids")?,
                Room::new(logits, capacity, "logits")?,
            )
        };
        let mut session = session.session()?;
        if logits.is_null() {
            return Ok(session.feed(ids)?);
        }
        let (n, n_vocab) = (logits.capacity(), session.model().config().n_vocab);
        if n < n_vocab {
            let message = format!("logits has room for {n} floats, the vocabulary has {n_vocab}");
            return Err(argument(message));
        }
        logits.write(session.eval(ids)?);
        Ok(())
    })
}

/// How many tokens a session has evaluated; 0 for what is no session, and for one that is at work.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_n_tokens(session: *const tandem_session) -> usize {
    value(|| {
        let session: Arc<Runner> = handles::get(session)?;
        let n = session.session()?.tokens().len();
        Ok(n)
    })
}

/// Gives the tokens that a session has evaluated. At most `capacity` are written to `ids`; `n_ids` is
/// set to how many there are, which may be more. A generation's last token is not among them.
///
/// # Safety
///
/// `ids` has room for `capacity` ids (it may be NULL where that is 0), `n_ids` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_tokens(
    session: *const tandem_session,
    ids: *mut u32,
    capacity: usize,
    n_ids: *mut usize,
) -> tandem_status {
    call(|| {
        let session: Arc<Runner> = handles::get(session)?;
        // SAFETY: as the caller promises.
        let (ids, n_ids) = unsafe {
            (
                Room::new(ids, capacity, "ids")?,
                Place::new(n_ids, "n_ids")?,
            )
        };
        let session = session.session()?;
        ids.write(session.tokens());
        n_ids.set(session.tokens().len());
        Ok(())
    })
}

/// Forgets all tokens of a session but the first `n`, and sets `n_left` to how many are left: `n`, or
/// all where there are no more than `n`, or none where a layer has forgotten what the next token
/// sees. Layers with a window can go back by `n_batch` tokens at least, all others anywhere.
///
/// # Safety
///
/// `n_left` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_rewind(
    session: *const tandem_session,
    n: usize,
    n_left: *mut usize,
) -> tandem_status {
    call(|| {
        let session: Arc<Runner> = handles::get(session)?;
        // SAFETY: as the caller promises.
        let n_left = unsafe { Place::new(n_left, "n_left")? };
        n_left.set(session.session()?.rewind(n));
        Ok(())
    })
}
