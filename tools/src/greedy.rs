//! The most likely answer.

use std::ops::ControlFlow;

use anyhow::Result;
use tandem_engine::tokenizer::{ControlTokens, Tokenizer};
use tandem_engine::{Sampler, SamplerOptions, Session, generate};

/// What the session says to a prompt with the most likely token each time, and of how many tokens
/// it is, at most `max_tokens`. The session starts anew.
pub(crate) fn answer(
    session: &mut Session<'_, '_>,
    tokenizer: &Tokenizer<'_>,
    prompt: &[u32],
    max_tokens: usize,
) -> Result<(String, usize)> {
    session.truncate(0);
    let vocab = tokenizer.vocab();
    let options = SamplerOptions::default(); // always the most likely token
    let mut sampler = Sampler::new(options, session.model().config.n_vocab);
    let mut ids = Vec::new();
    generate(
        session,
        &mut sampler,
        prompt,
        max_tokens,
        |id| vocab.is_end_of_generation(id),
        |id| {
            ids.push(id);
            ControlFlow::Continue(())
        },
    )?;
    let text = vocab.decode(&ids, ControlTokens::Hide)?;
    Ok((text.trim().to_string(), ids.len()))
}
