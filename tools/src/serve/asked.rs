//! What requests for answers have in common: how texts are continued, for whom, and how they are told.

use std::sync::Arc;

use serde_json::Value;
use tandem_engine::{MAX_PENALTY_WINDOW, Model, Sampling};

use super::catalog::Entry;
use super::error::{ApiError, Lengths};
use super::fields::{Fields, whole};
use super::task::Bias;
use super::{Served, random};

/// The most choices of a prompt, stop strings and their bytes, biased tokens.
const MAX_CHOICES: usize = 16;
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;
const MAX_BIASES: usize = 1024;
/// The most tokens told beside each.
pub(super) const MAX_LOGPROBS: usize = 20;

/// The common part of a request, read and checked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The model's name as it was asked for, which is what the answer says.
    pub name: String,
    pub model: Arc<Entry>,
    pub stream: bool,
    pub include_usage: bool,
    /// `max_tokens` is `usize::MAX` where nobody said.
    pub sampling: Sampling,
    pub logit_bias: Arc<[Bias]>,
    pub n: usize,
    /// Whether the prefix cache is used.
    pub keep: bool,
}

impl Asked {
    pub(super) fn read(fields: &Fields<'_>, served: &Served) -> Result<Asked, ApiError> {
        let name = fields.text("model")?;
        let model = Arc::clone(served.catalog().choose(name)?);
        let name = name.unwrap_or(&model.id).to_string();
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let options = fields.object("stream_options")?;
        let include_usage = match options {
            Some(options) => options.boolean("include_usage")?.unwrap_or(false),
            None => false,
        };
        for unsupported in ["functions", "web_search_options", "audio"] {
            if fields.get(unsupported).is_some() {
                return Err(unsupported_field(fields.path(unsupported)));
            }
        }
        if let Some(modalities) = fields.array("modalities")?
            && modalities.iter().any(|modality| modality != "text")
        {
            return Err(unsupported_field(fields.path("modalities")));
        }
        Ok(Asked {
            name,
            model,
            stream,
            include_usage: include_usage && stream,
            sampling: sampling(fields, &served.defaults)?,
            logit_bias: logit_bias(fields, served.model.config().n_vocab)?,
            n: fields.count("n", 1..=MAX_CHOICES)?.unwrap_or(1),
            keep: fields.boolean("cache_prompt")?.unwrap_or(true),
        })
    }
}

fn unsupported_field(path: String) -> ApiError {
    ApiError::field(path, "is not supported").code("unsupported_parameter")
}

/// How a text is continued, `defaults` where the request says nothing.
pub(super) fn sampling(fields: &Fields<'_>, defaults: &Sampling) -> Result<Sampling, ApiError> {
    let mut sampling = defaults.clone();
    let max_tokens = |name| fields.count(name, 0..=usize::MAX);
    let (newer, older) = (
        max_tokens("max_completion_tokens")?,
        max_tokens("max_tokens")?,
    );
    sampling.max_tokens = newer.or(older).unwrap_or(usize::MAX);
    let set = |name, range, field: &mut f32| -> Result<(), ApiError> {
        if let Some(value) = fields.number(name, range)? {
            *field = value;
        }
        Ok(())
    };
    set("temperature", 0.0..=100.0, &mut sampling.temperature)?;
    set("top_p", 0.0..=1.0, &mut sampling.top_p)?;
    set("min_p", 0.0..=1.0, &mut sampling.min_p)?;
    set("typical_p", 0.0..=1.0, &mut sampling.typical_p)?;
    set(
        "frequency_penalty",
        -2.0..=2.0,
        &mut sampling.frequency_penalty,
    )?;
    set(
        "presence_penalty",
        -2.0..=2.0,
        &mut sampling.presence_penalty,
    )?;
    set(
        "repetition_penalty",
        0.0..=10.0,
        &mut sampling.repeat_penalty,
    )?;
    set("repeat_penalty", 0.0..=10.0, &mut sampling.repeat_penalty)?;
    if sampling.repeat_penalty <= 0.0 {
        return fields.wrong("repeat_penalty", "must be a number above 0 and up to 10");
    }
    if let Some(k) = fields.integer("top_k", -1..=i64::MAX)? {
        sampling.top_k = usize::try_from(k).unwrap_or(0);
    }
    if let Some(n) = fields.count("repeat_last_n", 0..=MAX_PENALTY_WINDOW)? {
        sampling.penalty_window = n;
    }
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    let seed = seed.and_then(|seed| u64::try_from(seed).ok());
    // JavaScript's clients cannot read all of 64 bits.
    sampling.seed = seed.unwrap_or_else(|| random() >> 11);
    sampling.stop = stop(fields)?;
    Ok(sampling)
}

fn stop(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let what = "must be a string or an array of at most 16, each of 1 to 256 bytes";
    let wrong = || fields.wrong("stop", what);
    let texts = match fields.get("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(items)) if items.len() <= MAX_STOPS => {
            let texts = items.iter().map(|item| item.as_str().map(str::to_string));
            match texts.collect::<Option<Vec<_>>>() {
                Some(texts) => texts,
                None => return wrong(),
            }
        }
        Some(_) => return wrong(),
    };
    match texts
        .iter()
        .all(|text| (1..=MAX_STOP_BYTES).contains(&text.len()))
    {
        true => Ok(texts),
        false => wrong(),
    }
}

fn logit_bias(fields: &Fields<'_>, n_vocab: usize) -> Result<Arc<[Bias]>, ApiError> {
    let what = "must be an object of at most 1024 token ids with numbers from -100 to 100";
    let Some(Value::Object(object)) = fields.get("logit_bias") else {
        return match fields.get("logit_bias") {
            None => Ok([].into()),
            Some(_) => fields.wrong("logit_bias", what),
        };
    };
    let bias = object.iter().map(|(id, value)| {
        let token = id
            .parse::<u32>()
            .ok()
            .filter(|id| (*id as usize) < n_vocab)?;
        let value = value
            .as_f64()
            .filter(|value| (-100.0..=100.0).contains(value))?;
        let value = value as f32;
        Some(Bias { token, value })
    });
    let bias: Option<Arc<[Bias]>> = bias.collect();
    match bias.filter(|bias| bias.len() <= MAX_BIASES) {
        Some(bias) => Ok(bias),
        None => fields.wrong("logit_bias", what),
    }
}

/// Token ids of an array; `None` where one is none of the vocabulary's.
pub(super) fn token_ids(items: &[Value], n_vocab: usize) -> Option<Vec<u32>> {
    let ids = items.iter().map(|item| {
        let id = u32::try_from(whole(item)?).ok()?;
        ((id as usize) < n_vocab).then_some(id)
    });
    ids.collect()
}

/// Refuses a prompt that leaves no room for an answer.
pub(super) fn check_length(n_prompt: usize, n_ctx: usize) -> Result<(), ApiError> {
    if n_prompt == 0 {
        return Err(ApiError::bad("the prompt has no tokens"));
    }
    if n_prompt < n_ctx {
        return Ok(());
    }
    let message = format!(
        "This model's maximum context length is {n_ctx} tokens. However, your messages resulted in \
         {n_prompt} tokens."
    );
    Err(ApiError {
        lengths: Some(Box::new(Lengths { n_prompt, n_ctx })),
        ..ApiError::bad(message).code("context_length_exceeded")
    })
}

/// What the model's file recommends, else what is usual.
pub(super) fn defaults(model: &Model) -> Sampling {
    let mut sampling = Sampling::default();
    let Ok(gguf) = model.gguf() else {
        return sampling;
    };
    let number = |key: &str| gguf.get_f32(key).ok().flatten().filter(|x| *x >= 0.0);
    if let Some(temperature) = number("general.sampling.temp").filter(|t| *t <= 100.0) {
        sampling.temperature = temperature;
    }
    if let Some(p) = number("general.sampling.top_p").filter(|p| *p <= 1.0) {
        sampling.top_p = p;
    }
    if let Some(p) = number("general.sampling.min_p").filter(|p| *p <= 1.0) {
        sampling.min_p = p;
    }
    let k = gguf.get_i32("general.sampling.top_k").ok().flatten();
    if let Some(k) = k.and_then(|k| usize::try_from(k).ok()) {
        sampling.top_k = k;
    }
    sampling
}
