//! Opening files, with errors that name them.

use std::path::Path;

use anyhow::{Context as _, Result};
use tandem_engine::Model;
use tandem_engine::tokenizer::Tokenizer;
use tandem_formats::{Gguf, GgufFiles};

/// Maps a model's file or files.
pub(crate) fn files(path: &Path) -> Result<GgufFiles> {
    Ok(GgufFiles::open(path)?)
}

/// The model of opened files.
pub(crate) fn model<'a>(path: &Path, gguf: &Gguf<'a>) -> Result<Model<'a>> {
    Model::load(gguf).with_context(|| format!("cannot run {}", path.display()))
}

/// The tokenizer of opened files.
pub(crate) fn tokenizer<'a>(path: &Path, gguf: &Gguf<'a>) -> Result<Tokenizer<'a>> {
    Tokenizer::from_gguf(gguf)
        .with_context(|| format!("cannot use the vocabulary of {}", path.display()))
}

/// A file's bytes; `-` is standard input.
pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>> {
    if path == Path::new("-") {
        return stdin();
    }
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// All of standard input.
pub(crate) fn stdin() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes)
        .context("cannot read standard input")?;
    Ok(bytes)
}

/// A JSON array of token ids.
pub(crate) fn token_ids(path: &Path) -> Result<Vec<u32>> {
    serde_json::from_slice(&bytes(path)?)
        .with_context(|| format!("{} is no JSON array of token ids", path.display()))
}
