//! Opening files, with errors that name them.

use std::path::Path;

use anyhow::{Context as _, Result};
use tandem_engine::tokenizer::Tokenizer;
use tandem_engine::{Error, Model, SessionError};
use tandem_formats::{Gguf, GgufFiles};

/// Maps a GGUF file, or all parts of a split one.
pub(crate) fn files(path: &Path) -> Result<GgufFiles> {
    Ok(GgufFiles::open(path)?)
}

/// Opens a model, and says what about it gives doubtful results.
pub(crate) fn model(path: &Path) -> Result<Model> {
    checked(path, Model::open(path))
}

/// The same of a file that is read instead of mapped.
pub(crate) fn model_in_memory(path: &Path) -> Result<Model> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot open {}", path.display()))?;
    checked(path, Model::from_bytes(bytes))
}

fn checked(path: &Path, model: Result<Model, Error>) -> Result<Model> {
    let model = model.map_err(|error| match error {
        // Those name the file.
        Error::File(error) => error.into(),
        error => anyhow::Error::from(error).context(format!("cannot run {}", path.display())),
    });
    let model = model.map_err(|error| match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => error.context(
            "a model is a GGUF file; one of safetensors is converted by llama.cpp's convert_hf_to_gguf.py",
        ),
        _ => error,
    })?;
    let vocab = model.tokenizer().map(Tokenizer::vocab);
    if vocab.is_ok_and(|vocab| !vocab.names_pre_tokenizer()) {
        tell!(
            "warning: the file names no pre-tokenizer (tokenizer.ggml.pre), so that the default is used: \
             texts may be cut otherwise than the model was trained on"
        );
    }
    Ok(model)
}

/// The error, with what to do about it.
pub(crate) fn with_hint(error: Error) -> anyhow::Error {
    let hint = match &error {
        Error::Session(SessionError::PromptTooLong { .. } | SessionError::ContextFull { .. }) => {
            ": give a larger --ctx"
        }
        _ => return error.into(),
    };
    anyhow::anyhow!("{error}{hint}")
}

/// The tokenizer of a model.
pub(crate) fn tokenizer<'m>(path: &Path, model: &'m Model) -> Result<&'m Tokenizer> {
    model.tokenizer().with_context(|| unusable(path))
}

/// The tokenizer of a file, which may have no weights.
pub(crate) fn vocabulary(path: &Path, gguf: &Gguf<'_>) -> Result<Tokenizer> {
    Tokenizer::from_gguf(gguf).with_context(|| unusable(path))
}

fn unusable(path: &Path) -> String {
    format!("cannot use the vocabulary of {}", path.display())
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
