//! The generation loop.

use core::ops::ControlFlow;

use crate::{Sampler, Session, SessionError};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model said that the text ends.
    EndOfText,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The caller stopped it.
    Cancelled,
}

impl StopReason {
    /// The reason in one word, as `--json` gives it.
    pub fn name(self) -> &'static str {
        match self {
            StopReason::EndOfText => "end_of_text",
            StopReason::MaxTokens => "max_tokens",
            StopReason::ContextFull => "context_full",
            StopReason::Cancelled => "cancelled",
        }
    }
}

/// Evaluates `prompt`, then picks tokens until one `is_end`s the text, `n_predict` are there, the
/// context is full or `on_token` breaks off. `on_token` gets every token, the end included; none is
/// picked where `n_predict` is 0.
///
/// # Errors
///
/// Those of [`Session::eval`] for the prompt; a context that fills up later is no error but
/// [`StopReason::ContextFull`].
pub fn generate(
    session: &mut Session<'_, '_>,
    sampler: &mut Sampler,
    prompt: &[u32],
    n_predict: usize,
    is_end: impl Fn(u32) -> bool,
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<StopReason, SessionError> {
    sampler.accept_all(session.tokens());
    sampler.accept_all(prompt);
    let mut logits = session.eval(prompt)?;
    for n in 1..=n_predict {
        let token = sampler.pick(logits);
        sampler.accept_all(&[token]);
        let go_on = on_token(token);
        if is_end(token) {
            return Ok(StopReason::EndOfText);
        }
        if go_on.is_break() {
            return Ok(StopReason::Cancelled);
        }
        if n == n_predict {
            break;
        }
        if session.tokens().len() == session.n_ctx() {
            return Ok(StopReason::ContextFull);
        }
        logits = session.step(token)?;
    }
    Ok(StopReason::MaxTokens)
}
