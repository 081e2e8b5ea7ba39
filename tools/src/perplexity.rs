//! `tandem perplexity`: how well a model predicts a text.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use rayon::prelude::*;
use tandem_engine::tokenizer::EncodeOptions;
use tandem_engine::{Level, Session};
use tandem_kernels::log_sum_exp;

use crate::args::ModelArgs;
use crate::open;
use crate::progress::Progress;
use crate::quantize::Advance;

/// Measure how well a model predicts a text
///
/// The text is cut into chunks of the context's size; the second half of each chunk's tokens is
/// predicted, so that every prediction has at least half a context to go by (the way of llama.cpp's
/// tool, whose figures it can be compared with).
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text; - is standard input
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Stop after this many chunks [default: all]
    #[arg(long, value_name = "N")]
    chunks: Option<NonZeroUsize>,
}

pub(crate) fn perplexity_command(args: &Args) -> Result<()> {
    let model = args.model.open()?;
    open::tokenizer(args.model.path(), &model)?;
    let n_ctx = args
        .model
        .session
        .ctx
        .map_or(model.config().n_ctx_train.min(512), |n| n.get());
    let text = open::bytes(&args.text)?;
    let mut session = args.model.session_of(&model, Some(n_ctx))?;
    let progress = Progress::new(0, "evaluating");
    let n_chunks = args.chunks.map_or(usize::MAX, NonZeroUsize::get);
    let found = perplexity(&mut session, &text, n_chunks, &mut |n_done, n| {
        progress.set(n_done, n);
        Ok(())
    });
    drop(progress);
    let Perplexity {
        value,
        error,
        n_tokens,
        n_chunks,
    } = found?;
    let mut out = std::io::stdout();
    Ok(writeln!(
        out,
        "perplexity {value:.4} +- {error:.4} ({n_tokens} tokens in {n_chunks} chunks of {n_ctx})"
    )?)
}

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug)]
pub struct Perplexity {
    /// The exponential of the mean loss.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
    /// Tokens that were predicted.
    pub n_tokens: usize,
    /// Chunks of the session's context that they are in.
    pub n_chunks: usize,
}

/// Measures as `tandem perplexity` does, in chunks of the session's context, at most `n_chunks`.
///
/// # Errors
///
/// A text or a context that is too short, or what [`Session::eval`] gives; what `advance` gives.
pub fn perplexity(
    session: &mut Session,
    text: &[u8],
    n_chunks: usize,
    advance: &mut Advance<'_>,
) -> Result<Perplexity> {
    let (model, n_ctx) = (session.model().clone(), session.n_ctx());
    let tokenizer = model.tokenizer()?;
    let options = EncodeOptions {
        add_special: true,
        parse_special: false,
    };
    let ids = tokenizer.encode(text, options)?;
    ensure!(
        n_ctx >= 3,
        "a context of {n_ctx} leaves nothing to predict: give a larger --ctx"
    );
    ensure!(
        ids.len() >= n_ctx,
        "the text has {} tokens, fewer than one chunk of {n_ctx}: give a longer one or a smaller --ctx",
        ids.len()
    );
    let n_chunks = (ids.len() / n_ctx).min(n_chunks);
    let (level, n_vocab) = (session.level(), model.config().n_vocab);
    let mut losses = Vec::new();
    for (i, chunk) in ids.chunks_exact(n_ctx).take(n_chunks).enumerate() {
        let mut chunk = chunk.to_vec();
        if let (true, Some(bos)) = (tokenizer.vocab().add_bos(), tokenizer.vocab().bos()) {
            chunk[0] = bos;
        }
        session.rewind(0);
        session.eval_rows(&chunk, n_ctx / 2, |first, rows| {
            // What comes after the chunk's last token is not in it.
            let rows = rows.par_chunks_exact(n_vocab);
            let wanted = chunk[first + 1..].par_iter();
            let loss = |(row, token): (&[f32], &u32)| loss(level, row, *token);
            losses.par_extend(rows.zip(wanted).map(loss));
        })?;
        advance(i as u64 + 1, n_chunks as u64)?;
    }
    let n = losses.len() as f64;
    let mean = losses.iter().sum::<f64>() / n;
    let variance = losses.iter().map(|l| (l - mean) * (l - mean)).sum::<f64>() / n;
    let value = mean.exp();
    Ok(Perplexity {
        value,
        // The error of the mean loss, carried through the exponential.
        error: value * (variance / n).sqrt(),
        n_tokens: losses.len(),
        n_chunks,
    })
}

/// `-ln p(token)`.
fn loss(level: Level, logits: &[f32], token: u32) -> f64 {
    f64::from(log_sum_exp(level, logits)) - f64::from(logits[token as usize])
}

#[cfg(test)]
mod tests {
    #[test]
    fn loss_of_known_probabilities() {
        let logits = [0.25_f32.ln() + 100.0, 0.75_f32.ln() + 100.0];
        let loss = |token| super::loss(super::Level::detect(), &logits, token);
        assert!((loss(0) - 4.0_f64.ln()).abs() < 1e-4);
    }
}
