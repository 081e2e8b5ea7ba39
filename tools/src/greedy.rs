//! The most likely answer.

use anyhow::Result;
use tandem_engine::tokenizer::ControlTokens;
use tandem_engine::{Sampling, Session};

/// What the session says to a prompt with the most likely token each time, and of how many tokens
/// it is, at most `max_tokens`. The session starts anew.
pub(crate) fn answer(
    session: &mut Session,
    prompt: &[u32],
    max_tokens: usize,
) -> Result<(String, usize)> {
    session.rewind(0);
    let sampling = Sampling::greedy().max_tokens(max_tokens);
    let mut generation = session.generate(prompt, &sampling)?;
    while generation.next_token()?.is_some() {}
    let ids = generation.tokens().to_vec();
    drop(generation);
    let vocab = session.model().tokenizer()?.vocab();
    let text = vocab.decode(&ids, ControlTokens::Hide)?;
    Ok((text.trim().to_string(), ids.len()))
}
