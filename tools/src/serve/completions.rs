//! Completions: texts gone on with as they are.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use tandem_engine::Composition;
use tandem_engine::chat::{encode_raw, fill};
use tandem_engine::tokenizer::ControlTokens;

use super::access::Caller;
use super::answer::{Answer, Style};
use super::asked::{Asked, MAX_LOGPROBS, check_length, token_ids};
use super::chat::{self, prompt_error};
use super::error::ApiError;
use super::fields::Fields;
use super::output::Form;
use super::{Job, Served};

const MAX_PROMPTS: usize = 64;

pub(super) fn job(fields: &Fields<'_>, served: &Served, caller: Caller) -> Result<Job, ApiError> {
    let asked_at = Instant::now();
    let asked = Asked::read(fields, served)?;
    if fields.get("suffix").is_some() {
        let error = ApiError::field("suffix", "is not supported");
        return Err(error.code("unsupported_parameter"));
    }
    if let Some(best_of) = fields.count("best_of", 1..=usize::MAX)?
        && best_of != asked.n
    {
        return fields.wrong("best_of", "must be n");
    }
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let logprobs = fields.count("logprobs", 0..=MAX_LOGPROBS)?;
    if echo && logprobs.is_some() && asked.n > 1 {
        return fields.wrong("n", "must be 1 where the prompt's logprobs are told");
    }
    let grammar = chat::grammar(fields, served)?;
    let model = Arc::clone(&asked.model);
    let composition = model.composition()?;
    let prompt = match fields.boolean("input")?.unwrap_or(false) {
        true => composition.and_then(Composition::prompt),
        false => None,
    };
    let prompts = prompts(fields, served, prompt)?;
    let vocab = served.tokenizer()?.vocab();
    let mut answer = Answer::new(Style::Text, &asked.name, vocab, prompts.len() * asked.n);
    answer.n = asked.n;
    answer.has_logprobs = logprobs.is_some();
    answer.include_usage = asked.include_usage;
    answer
        .notes
        .insert("seed".to_string(), asked.sampling.seed.into());
    answer.n_prompt = prompts.iter().map(Vec::len).sum();
    for (i, ids) in prompts.iter().enumerate() {
        check_length(ids.len(), served.n_ctx)?;
        if !echo {
            continue;
        }
        let text = vocab.decode(ids, ControlTokens::Hide).unwrap_or_default();
        for choice in &mut answer.choices[i * asked.n..][..asked.n] {
            choice.echo = text.clone();
        }
        if logprobs.is_some() {
            answer.first_tokens.extend(ids.first());
        }
    }
    let form = Form {
        stop: asked.sampling.stop.clone(),
        ..Form::default()
    };
    let mut prompts = prompts.into_iter();
    let first = prompts.next().unwrap_or_default();
    let mut job = Job::new(asked, first.into(), composition.cloned(), answer);
    job.more_prompts = prompts.map(Into::into).collect();
    job.caller = caller;
    job.asked_at = asked_at;
    job.logprobs = logprobs;
    job.prompt_logprobs = echo && logprobs.is_some();
    job.form = form;
    job.grammar = grammar;
    Ok(job)
}

/// The prompts' ids: of one text or several, or ids themselves. `prompt` is a composition's, which texts are
/// put into.
fn prompts(
    fields: &Fields<'_>,
    served: &Served,
    prompt: Option<&str>,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let what = "must be a string, an array of at most 64 strings, an array of token ids, or of such arrays";
    let n_vocab = served.model.config().n_vocab;
    let encode = |text: &str| {
        let ids = match prompt {
            Some(prompt) => fill(served.tokenizer()?, prompt, text.as_bytes()),
            None => encode_raw(served.tokenizer()?, text.as_bytes()),
        };
        ids.map_err(prompt_error)
    };
    let ids = |items: &[Value]| match token_ids(items, n_vocab) {
        Some(ids) => Ok(ids),
        None => {
            let what = format!("must have token ids from 0 to {}", n_vocab - 1);
            fields.wrong("prompt", &what)
        }
    };
    let items = match fields.required("prompt", fields.get("prompt"))? {
        Value::String(text) => return Ok(vec![encode(text)?]),
        Value::Array(items) => items,
        _ => return fields.wrong("prompt", what),
    };
    match items.first() {
        Some(Value::Number(_)) => Ok(vec![ids(items)?]),
        Some(first)
            if items.len() <= MAX_PROMPTS
                && items.iter().all(|i| i.is_array() == first.is_array()) =>
        {
            items
                .iter()
                .map(|item| match item {
                    Value::String(text) => encode(text),
                    Value::Array(items) => ids(items),
                    _ => fields.wrong("prompt", what),
                })
                .collect()
        }
        _ => fields.wrong("prompt", what),
    }
}
