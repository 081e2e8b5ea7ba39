//! `tandem tokenize` and `tandem detokenize`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tandem_engine::tokenizer::{ControlTokens, EncodeOptions};

use crate::open;

/// Turn text into token ids
///
/// Reads standard input, byte for byte, and prints the ids as a JSON array.
#[derive(clap::Args)]
pub(crate) struct TokenizeArgs {
    /// The GGUF file with the vocabulary; it needs no weights
    #[arg(long, short, value_name = "FILE")]
    model: PathBuf,
    /// Add no BOS or EOS, and read the texts of special tokens as plain text
    #[arg(long)]
    no_special: bool,
}

/// Turn token ids into text
///
/// Reads a JSON array of token ids from standard input and prints their text.
#[derive(clap::Args)]
pub(crate) struct DetokenizeArgs {
    /// The GGUF file with the vocabulary; it needs no weights
    #[arg(long, short, value_name = "FILE")]
    model: PathBuf,
    /// Leave out the texts of control tokens such as BOS and EOS
    #[arg(long)]
    no_special: bool,
}

pub(crate) fn tokenize(args: &TokenizeArgs) -> Result<()> {
    let files = open::files(&args.model)?;
    let gguf = files.parse()?;
    let tokenizer = open::vocabulary(&args.model, &gguf)?;
    let options = EncodeOptions {
        add_special: !args.no_special,
        parse_special: !args.no_special,
    };
    let ids = tokenizer.encode(open::stdin()?, options)?;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &ids)?;
    Ok(writeln!(out)?)
}

pub(crate) fn detokenize(args: &DetokenizeArgs) -> Result<()> {
    let files = open::files(&args.model)?;
    let gguf = files.parse()?;
    let tokenizer = open::vocabulary(&args.model, &gguf)?;
    let ids: Vec<u32> = serde_json::from_slice(&open::stdin()?)
        .context("standard input is no JSON array of token ids")?;
    let control = match args.no_special {
        true => ControlTokens::Hide,
        false => ControlTokens::Show,
    };
    let bytes = tokenizer.vocab().decode_bytes(&ids, control)?;
    let mut out = std::io::stdout().lock();
    out.write_all(&bytes)?;
    Ok(out.flush()?)
}
