//! `tandem logits`: logits at every position, for comparisons.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use npyz::WriterBuilder as _;
use tandem_formats::write_atomically;

use crate::args::ModelArgs;
use crate::open;
use crate::progress::Progress;

/// Write the logits at every position of a sequence of token ids
///
/// The result is a NumPy array of float32, one row a position.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The ids: a JSON array; - is standard input
    #[arg(long, value_name = "IDS.json")]
    tokens: PathBuf,
    /// Where to write
    #[arg(long, short, value_name = "FILE.npy")]
    out: PathBuf,
}

pub(crate) fn logits(args: &Args) -> Result<()> {
    let model = args.model.open()?;
    let tokens = open::token_ids(&args.tokens)?;
    ensure!(!tokens.is_empty(), "there are no tokens to evaluate");
    // As long as the sequence, where no context is asked for.
    let mut session = args.model.session_of(&model, Some(tokens.len()))?;
    let progress = Progress::new(tokens.len() as u64, "evaluating");
    let shape = [tokens.len() as u64, model.config().n_vocab as u64];
    write_atomically(&args.out, |file| -> Result<()> {
        let mut npy = npyz::WriteOptions::new()
            .default_dtype()
            .shape(&shape)
            .writer(file)
            .begin_nd()?;
        let mut result = Ok(());
        session.eval_rows(&tokens, 0, |_, rows| {
            if result.is_ok() {
                result = npy.extend(rows.iter().copied());
            }
            progress.add((rows.len() / model.config().n_vocab) as u64);
        })?;
        result?;
        Ok(npy.finish()?)
    })
    .with_context(|| format!("cannot write {}", args.out.display()))
}
