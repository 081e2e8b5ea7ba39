//! Generation as C has it: from a text, a conversation or token ids.

use std::ffi::{c_char, c_void};
use std::format;
use std::ops::ControlFlow;
use std::string::String;
use std::sync::Arc;
use std::time::SystemTime;
use std::vec::Vec;

use super::arguments::{argument, flag, null, sampling, slice_at, text_at};
use super::failure::Failure;
use super::objects::{Asked, Form, Outcome, Runner};
use super::{call, handles, tandem_session, tandem_status};
use crate::{Message, Prompt, Sampling, StopReason};

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
    /// One of the options' `stop` was next.
    TANDEM_STOP_STRING = 4,
    /// The answer is complete in the options' `json_schema` or `regex`.
    TANDEM_STOP_COMPLETE = 5,
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
    /// The most tokens, up to 15, that are guessed from what the text said before and evaluated beside the next
    /// one; 0 is off. The text is the same. Default: 15.
    pub max_draft: u32,
    /// How many texts `stop` has. Default: 0.
    pub n_stop: u32,
    /// Texts in UTF-8, each with a zero at its end, that end the answer and are not part of it. They are
    /// read when the call begins. Default: NULL.
    pub stop: *const *const c_char,
    /// A JSON schema in UTF-8, with a zero at its end: the answer is JSON that it allows. It is read when the call
    /// begins, and kept for the next ones. A schema that cannot be enforced gives `TANDEM_ARGUMENT`. An answer
    /// that another stop ends is not whole. Default: NULL.
    pub json_schema: *const c_char,
    /// The same by a regular expression, which the whole answer is a match of; not both. Default: NULL.
    pub regex: *const c_char,
}

/// One message of a conversation. Both texts are UTF-8 and end with a zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct tandem_message {
    /// Who speaks: "system", "user" or "assistant", or another role that the model's chat template
    /// knows. It is for the program to say: what comes from outside is `content`.
    pub role: *const c_char,
    /// What is said. The texts of control tokens in it stay plain text.
    pub content: *const c_char,
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
/// after them. They are gone when it returns. It runs on the thread that asked for it.
/// It must return, by neither `longjmp` nor a C++ exception: 0 to go on, anything else to stop.
pub type tandem_on_text =
    Option<unsafe extern "C" fn(text: *const c_char, n_bytes: usize, user: *mut c_void) -> i32>;

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
    let (s, time) = (Sampling::default(), SystemTime::UNIX_EPOCH.elapsed());
    tandem_generate_options {
        max_tokens: s.max_tokens as u32,
        raw: 0,
        seed: time.map_or(0, |time| time.as_nanos() as u64),
        temperature: s.temperature,
        top_k: s.top_k as u32,
        top_p: s.top_p,
        min_p: s.min_p,
        typical_p: s.typical_p,
        repeat_penalty: s.repeat_penalty,
        frequency_penalty: s.frequency_penalty,
        presence_penalty: s.presence_penalty,
        penalty_window: s.penalty_window as u32,
        max_draft: s.max_draft as u32,
        n_stop: 0,
        stop: std::ptr::null(),
        json_schema: std::ptr::null(),
        regex: std::ptr::null(),
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
        let text = unsafe { slice_at(text.cast(), n_bytes, "text")? };
        // SAFETY: as the caller promises.
        let answer = unsafe { Answer::new(options, on_text, user, result)? };
        let prompt = match answer.raw {
            true => Prompt::Raw(text),
            false => Prompt::Input(text),
        };
        answer.generate(&session, prompt)
    })
}

/// Answers a conversation, as `tandem_generate` does a text: `n_messages` messages in the model's chat
/// template, whatever prompt the composition has. The first one may be the system's, the last one is
/// as a rule the user's. To go on, call again with the answer and the next message added: what was
/// evaluated is not evaluated again.
///
/// A model without a chat template, or one that refuses the conversation, gives `TANDEM_TEXT`; no
/// messages, or `raw` in the options, `TANDEM_ARGUMENT`.
///
/// # Safety
///
/// `messages` are `n_messages` messages that, with their texts, do not change meanwhile and whose
/// texts end with zeros; the rest as for `tandem_generate`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_chat(
    session: *const tandem_session,
    messages: *const tandem_message,
    n_messages: usize,
    options: *const tandem_generate_options,
    on_text: tandem_on_text,
    user: *mut c_void,
    result: *mut tandem_result,
) -> tandem_status {
    call(|| {
        let session: Arc<Runner> = handles::get(session)?;
        // SAFETY: as the caller promises.
        let messages = unsafe { messages_at(messages, n_messages)? };
        // SAFETY: as the caller promises.
        let answer = unsafe { Answer::new(options, on_text, user, result)? };
        if answer.raw {
            return Err(argument("raw must be 0 for messages"));
        }
        answer.generate(&session, Prompt::Messages(&messages))
    })
}

/// Continues token ids, as `tandem_generate` does a text; `raw` in the options makes no difference.
/// The ids are the whole prompt: what they begin with and the session has is not evaluated again.
///
/// An id that is not in the vocabulary, or none at all, gives `TANDEM_ARGUMENT`.
///
/// # Safety
///
/// `ids` are `n_ids` ids that do not change meanwhile; the rest as for `tandem_generate`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tandem_generate_tokens(
    session: *const tandem_session,
    ids: *const u32,
    n_ids: usize,
    options: *const tandem_generate_options,
    on_text: tandem_on_text,
    user: *mut c_void,
    result: *mut tandem_result,
) -> tandem_status {
    call(|| {
        let session: Arc<Runner> = handles::get(session)?;
        // SAFETY: as the caller promises.
        let ids = unsafe { slice_at(ids, n_ids, "ids")? };
        // SAFETY: as the caller promises.
        let answer = unsafe { Answer::new(options, on_text, user, result)? };
        answer.generate(&session, Prompt::Tokens(ids))
    })
}

/// The messages that C names.
///
/// # Safety
///
/// The pointer is null or to `n` messages, which with their texts stay unchanged for `'a`; the texts
/// are null or end with zeros.
unsafe fn messages_at<'a>(
    messages: *const tandem_message,
    n: usize,
) -> Result<Vec<Message<'a>>, Failure> {
    // SAFETY: as the caller promises.
    let messages = unsafe { slice_at(messages, n, "messages")? };
    if messages.is_empty() {
        return Err(argument("there are no messages"));
    }
    let read = |(i, m): (usize, &tandem_message)| {
        // SAFETY: as the caller promises.
        let role = unsafe { text_at(m.role, &format!("the role of message {i}"))? };
        // SAFETY: as the caller promises.
        let content = unsafe { text_at(m.content, &format!("the content of message {i}"))? };
        Ok(Message { role, content })
    };
    messages.iter().enumerate().map(read).collect()
}

/// The options' stop strings.
///
/// # Safety
///
/// `stop` is null or points to `n_stop` texts, each null or with a zero at its end.
unsafe fn stop_at(options: &tandem_generate_options) -> Result<Vec<String>, Failure> {
    if options.n_stop == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: as the caller promises.
    let texts = unsafe { slice_at(options.stop, options.n_stop as usize, "stop")? };
    let mut strings = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        // SAFETY: as the caller promises.
        let text = unsafe { text_at(*text, &format!("stop string {i}"))? };
        if text.is_empty() {
            return Err(argument("a stop string is empty"));
        }
        strings.push(text.into());
    }
    Ok(strings)
}

/// What the options hold the answer to.
///
/// # Safety
///
/// Both texts are null, or end with zeros and stay unchanged for `'a`.
unsafe fn form_at<'a>(options: &tandem_generate_options) -> Result<Option<Form<'a>>, Failure> {
    match (options.json_schema.is_null(), options.regex.is_null()) {
        (true, true) => Ok(None),
        // SAFETY: as the caller promises.
        (false, true) => Ok(Some(Form::JsonSchema(unsafe {
            text_at(options.json_schema, "json_schema")?
        }))),
        // SAFETY: as the caller promises.
        (true, false) => Ok(Some(Form::Regex(unsafe {
            text_at(options.regex, "regex")?
        }))),
        (false, false) => Err(argument("json_schema and regex cannot both be given")),
    }
}

/// What functions that generate are given besides the prompt.
struct Answer<'a> {
    raw: bool,
    sampling: Sampling,
    form: Option<Form<'a>>,
    on_text: unsafe extern "C" fn(*const c_char, usize, *mut c_void) -> i32,
    user: *mut c_void,
    result: *mut tandem_result,
}

impl<'a> Answer<'a> {
    /// # Safety
    ///
    /// `options` is NULL or can be read, as can the texts in it; `result` is NULL or can be written to, and `on_text` keeps
    /// the rules of its type, for as long as this lives.
    unsafe fn new(
        options: *const tandem_generate_options,
        on_text: tandem_on_text,
        user: *mut c_void,
        result: *mut tandem_result,
    ) -> Result<Answer<'a>, Failure> {
        let on_text = on_text.ok_or_else(|| null("on_text"))?;
        let options = match options.is_null() {
            true => generate_defaults(),
            // SAFETY: as the caller promises.
            false => unsafe { options.read() },
        };
        let mut sampling = sampling(&options)?;
        // SAFETY: as the caller promises.
        sampling.stop = unsafe { stop_at(&options)? };
        Ok(Answer {
            raw: flag(options.raw, "raw")?,
            sampling,
            // SAFETY: as the caller promises.
            form: unsafe { form_at(&options)? },
            on_text,
            user,
            result,
        })
    }

    fn generate(&self, session: &Runner, prompt: Prompt<'_>) -> Result<(), Failure> {
        let mut piece = Vec::new();
        let asked = Asked {
            prompt,
            sampling: &self.sampling,
            form: self.form,
        };
        let outcome = session.generate(asked, |text| {
            piece.clear();
            piece.extend_from_slice(text.as_bytes());
            piece.push(0);
            // SAFETY: the pointer is to so many bytes, which live until the call returns; who made
            // this promised the rest.
            match unsafe { (self.on_text)(piece.as_ptr().cast(), text.len(), self.user) } {
                0 => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        })?;
        if !self.result.is_null() {
            // SAFETY: who made this promised that it can be written to, and it is not null.
            unsafe { self.result.write(outcome.into()) };
        }
        Ok(())
    }
}

impl From<Outcome> for tandem_result {
    fn from(outcome: Outcome) -> tandem_result {
        tandem_result {
            n_prompt: outcome.n_prompt,
            n_generated: outcome.n_generated,
            stop: match outcome.stop {
                StopReason::EndOfText => tandem_stop::TANDEM_STOP_END_OF_TEXT,
                StopReason::Complete => tandem_stop::TANDEM_STOP_COMPLETE,
                StopReason::MaxTokens => tandem_stop::TANDEM_STOP_MAX_TOKENS,
                StopReason::ContextFull => tandem_stop::TANDEM_STOP_CONTEXT_FULL,
                StopReason::Cancelled => tandem_stop::TANDEM_STOP_CANCELLED,
                StopReason::StopString => tandem_stop::TANDEM_STOP_STRING,
            },
        }
    }
}

/// Stops the generation that is at work in a session, after the layer that is being evaluated. Does nothing where none is. May be called from any thread.
#[unsafe(no_mangle)]
pub extern "C" fn tandem_cancel(session: *const tandem_session) -> tandem_status {
    call(|| {
        handles::get::<Runner, _>(session)?.cancel();
        Ok(())
    })
}
