//! What can be asked about the models and their tokens.

use serde_json::{Value, json};
use tandem_engine::tokenizer::{ControlTokens, EncodeOptions};

use super::Served;
use super::answer::FINGERPRINT;
use super::asked::token_ids;
use super::chat::ChatRequest;
use super::error::ApiError;
use super::fields::Fields;

/// The metadata key of the chat template.
pub(super) const TEMPLATE: &str = "tokenizer.chat_template";

pub(super) fn models(served: &Served) -> Value {
    let catalog = served.catalog();
    let entries = catalog.entries().iter();
    let data = entries.map(|entry| entry.to_json(catalog.base(), &served.model, served.n_ctx));
    json!({"object": "list", "data": data.collect::<Vec<_>>()})
}

pub(super) fn model(served: &Served, id: &str) -> Result<Value, ApiError> {
    let catalog = served.catalog();
    let entry = catalog.choose(Some(id))?;
    Ok(entry.to_json(catalog.base(), &served.model, served.n_ctx))
}

pub(super) fn props(served: &Served) -> Result<Value, ApiError> {
    let vocab = served.tokenizer()?.vocab();
    let text = |id: Option<u32>| {
        let decoded = id.map(|id| vocab.decode(&[id], ControlTokens::Show));
        decoded.and_then(Result::ok).unwrap_or_default()
    };
    let gguf = served.model.gguf().map_err(|_| ApiError::internal())?;
    let template = gguf.get_str(TEMPLATE).ok().flatten().unwrap_or_default();
    let d = &served.defaults;
    let catalog = served.catalog();
    Ok(json!({
        "default_generation_settings": {
            "n_ctx": served.n_ctx,
            "params": {
                "temperature": d.temperature,
                "top_k": d.top_k,
                "top_p": d.top_p,
                "min_p": d.min_p,
                "typical_p": d.typical_p,
                "repeat_penalty": d.repeat_penalty,
                "repeat_last_n": d.penalty_window,
            },
        },
        "total_slots": served.n_parallel,
        "model_path": served.file_name,
        "model_alias": catalog.base().id,
        "chat_template": template,
        "chat_template_caps": {"supports_tools": served.calls.in_template},
        "bos_token": text(vocab.bos()),
        "eos_token": text(vocab.eot().or(vocab.eos())),
        "modalities": {"vision": false, "audio": false},
        "build_info": FINGERPRINT,
        "compositions": catalog.ids().skip(1).collect::<Vec<_>>(),
    }))
}

pub(super) fn tokenize(fields: &Fields<'_>, served: &Served) -> Result<Value, ApiError> {
    served.catalog().choose(fields.text("model")?)?;
    let content = fields.required("content", fields.text("content")?)?;
    let options = EncodeOptions {
        add_special: fields.boolean("add_special")?.unwrap_or(false),
        parse_special: fields.boolean("parse_special")?.unwrap_or(true),
    };
    let with_pieces = fields.boolean("with_pieces")?.unwrap_or(false);
    let tokenizer = served.tokenizer()?;
    let ids = tokenizer.encode(content.as_bytes(), options);
    let ids = ids.map_err(|error| ApiError::bad(error.to_string()))?;
    if !with_pieces {
        return Ok(json!({ "tokens": ids }));
    }
    let pieces = ids.iter().map(|id| {
        let bytes = tokenizer
            .vocab()
            .token_bytes(*id, ControlTokens::Show)
            .unwrap_or_default();
        let piece: Value = match String::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(error) => error.into_bytes().into(),
        };
        json!({"id": id, "piece": piece})
    });
    Ok(json!({ "tokens": pieces.collect::<Vec<_>>() }))
}

pub(super) fn detokenize(fields: &Fields<'_>, served: &Served) -> Result<Value, ApiError> {
    let items = fields.required("tokens", fields.array("tokens")?)?;
    let n_vocab = served.model.config().n_vocab;
    let Some(ids) = token_ids(items, n_vocab) else {
        return fields.wrong(
            "tokens",
            &format!("must be token ids from 0 to {}", n_vocab - 1),
        );
    };
    let vocab = served.tokenizer()?.vocab();
    // As the texts of answers: a space at the beginning is one.
    let mut decoder = vocab.stream_continuation(ControlTokens::Show);
    let mut content = String::new();
    for id in ids {
        let piece = decoder.push(id);
        content.push_str(piece.map_err(|error| ApiError::bad(error.to_string()))?);
    }
    content.push_str(decoder.finish());
    Ok(json!({ "content": content }))
}

pub(super) fn apply_template(fields: &Fields<'_>, served: &Served) -> Result<Value, ApiError> {
    let catalog = served.catalog();
    let entry = catalog.choose(fields.text("model")?)?;
    let talk = ChatRequest::read(fields)?;
    let composition = entry.composition()?;
    let prompt = match composition.and_then(|composition| composition.prompt()) {
        Some(prompt) => talk.fill(fields, prompt)?,
        None => talk.render(fields, served)?,
    };
    Ok(json!({ "prompt": prompt }))
}
