//! Ollama's interface, for clients that know no other.

use serde_json::{Map, Value, json};

use super::Job;
use super::Served;
use super::access::Caller;
use super::answer::{Answer, Style, now};
use super::catalog::{Entry, base_name};
use super::chat;
use super::completions;
use super::error::ApiError;
use super::fields::Fields;
use super::task::FinishReason;

/// A version of Ollama's whose clients are content.
const VERSION: &str = "0.12.0";
/// A time that never comes.
const NEVER: &str = "2318-01-01T00:00:00Z";

pub(super) fn version() -> Value {
    json!({"version": VERSION, "tandem": env!("CARGO_PKG_VERSION")})
}

/// A model's name with and without its tag.
fn untagged(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

fn details(served: &Served) -> Value {
    let architecture = architecture(served);
    json!({
        "format": "gguf",
        "family": architecture,
        "families": [architecture],
        "parameter_size": parameter_size(served),
        "quantization_level": base_name(served.file_name.as_ref()).rsplit(['.', '-']).next(),
        "parent_model": "",
    })
}

fn architecture(served: &Served) -> String {
    let gguf = served.model.gguf().ok();
    let name = gguf.and_then(|gguf| gguf.get_str("general.architecture").ok().flatten());
    name.unwrap_or_default().to_string()
}

fn parameter_size(served: &Served) -> String {
    let catalog = served.catalog();
    let base = catalog.base();
    let listed = base.to_json(base, &served.model, served.n_ctx);
    let n = listed["meta"]["n_params"].as_f64().unwrap_or(0.0);
    match n {
        n if n >= 1e9 => format!("{:.1}B", n / 1e9),
        n => format!("{:.1}M", n / 1e6),
    }
}

fn listed(served: &Served, entry: &Entry) -> Value {
    let name = format!("{}:latest", entry.id);
    let digest = blake3::hash(name.as_bytes()).to_hex();
    json!({
        "name": name,
        "model": name,
        "modified_at": timestamp(entry.created),
        "size": served.model.n_bytes(),
        "digest": digest.as_str(),
        "details": details(served),
    })
}

pub(super) fn tags(served: &Served) -> Value {
    let catalog = served.catalog();
    let models = catalog.entries().iter().map(|entry| listed(served, entry));
    json!({ "models": models.collect::<Vec<_>>() })
}

pub(super) fn running(served: &Served) -> Value {
    let catalog = served.catalog();
    let open = catalog.entries().iter().filter(|entry| entry.is_open());
    let models = open.map(|entry| {
        let mut model = listed(served, entry);
        model["context_length"] = served.n_ctx.into();
        model["expires_at"] = NEVER.into();
        model["size_vram"] = 0.into();
        model
    });
    json!({ "models": models.collect::<Vec<_>>() })
}

/// The model that a request names, in either of Ollama's fields.
fn named<'a>(fields: &Fields<'a>) -> Result<Option<&'a str>, ApiError> {
    let name = match fields.text("model")? {
        Some(name) => Some(name),
        None => fields.text("name")?,
    };
    Ok(name.map(untagged))
}

pub(super) fn show(fields: &Fields<'_>, served: &Served) -> Result<Value, ApiError> {
    served.catalog().choose(named(fields)?)?;
    let architecture = architecture(served);
    let mut info = Map::new();
    let context = format!("{architecture}.context_length");
    info.insert("general.architecture".to_string(), architecture.into());
    info.insert(context, served.n_ctx.into());
    let gguf = served.model.gguf().map_err(|_| ApiError::internal())?;
    let template = gguf
        .get_str(super::info::TEMPLATE)
        .ok()
        .flatten()
        .unwrap_or_default();
    Ok(json!({
        "capabilities": ["completion", "tools"],
        "details": details(served),
        "model_info": info,
        "template": template,
        "parameters": "",
        "modified_at": timestamp(served.catalog().base().created),
    }))
}

/// A model that is here need not be fetched, and no other can be.
pub(super) fn pull(fields: &Fields<'_>, served: &Served) -> Result<Value, ApiError> {
    served.catalog().choose(named(fields)?)?;
    Ok(json!({"status": "success"}))
}

pub(super) fn chat(fields: &Fields<'_>, served: &Served, caller: Caller) -> Result<Job, ApiError> {
    let mut request = request(fields)?;
    let messages = fields.required("messages", fields.array("messages")?)?;
    for (i, message) in messages.iter().enumerate() {
        let message = Fields::of(message, format!("messages[{i}]"))?;
        refuse_images(&message)?;
    }
    request.insert("messages".to_string(), messages.into());
    if let Some(tools) = fields.get("tools") {
        request.insert("tools".to_string(), tools.clone());
    }
    chat::job(&Fields::new(&request), served, caller, Style::OllamaChat)
}

pub(super) fn generate(
    fields: &Fields<'_>,
    served: &Served,
    caller: Caller,
) -> Result<Job, ApiError> {
    let mut request = request(fields)?;
    refuse_images(fields)?;
    if fields
        .text("suffix")?
        .is_some_and(|suffix| !suffix.is_empty())
    {
        return Err(ApiError::field("suffix", "is not supported").code("unsupported_parameter"));
    }
    let prompt = fields.text("prompt")?.unwrap_or_default();
    if fields.boolean("raw")?.unwrap_or(false) {
        request.insert("prompt".to_string(), prompt.into());
        let mut job = completions::job(&Fields::new(&request), served, caller)?;
        job.answer.style = Style::OllamaText;
        return Ok(job);
    }
    let system = fields.text("system")?.filter(|system| !system.is_empty());
    let system = system.map(|system| json!({"role": "system", "content": system}));
    let user = json!({"role": "user", "content": prompt});
    let messages: Vec<Value> = system.into_iter().chain([user]).collect();
    request.insert("messages".to_string(), messages.into());
    chat::job(&Fields::new(&request), served, caller, Style::OllamaText)
}

/// Whether it only asks that the model be there.
pub(super) fn is_load(fields: &Fields<'_>) -> bool {
    let is_empty = |name: &str| match fields.get(name) {
        None => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    };
    is_empty("prompt") && is_empty("messages")
}

pub(super) fn loaded(fields: &Fields<'_>, served: &Served) -> Result<Value, ApiError> {
    let catalog = served.catalog();
    let entry = catalog.choose(named(fields)?)?;
    Ok(json!({
        "model": entry.id,
        "created_at": timestamp(now()),
        "response": "",
        "message": {"role": "assistant", "content": ""},
        "done": true,
        "done_reason": "load",
    }))
}

fn refuse_images(fields: &Fields<'_>) -> Result<(), ApiError> {
    let images = fields.array("images")?.unwrap_or(&[]);
    match images.is_empty() {
        true => Ok(()),
        false => {
            let error = ApiError::field(fields.path("images"), "cannot be seen by this model");
            Err(error.code("unsupported_content"))
        }
    }
}

/// A request's common fields, as OpenAI's interface calls them.
fn request(fields: &Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let mut out = Map::new();
    if let Some(name) = named(fields)? {
        out.insert("model".to_string(), name.into());
    }
    out.insert(
        "stream".to_string(),
        fields.boolean("stream")?.unwrap_or(true).into(),
    );
    match fields.get("format") {
        None => {}
        Some(Value::String(format)) if format.is_empty() => {}
        Some(Value::String(format)) if format == "json" => {
            out.insert(
                "response_format".to_string(),
                json!({"type": "json_object"}),
            );
        }
        Some(Value::Object(schema)) => {
            let format = json!({"type": "json_schema", "json_schema": {"schema": schema}});
            out.insert("response_format".to_string(), format);
        }
        Some(_) => return fields.wrong("format", "must be \"json\" or a JSON schema"),
    }
    match fields.get("think") {
        None => {}
        Some(Value::Bool(think)) => {
            let args = json!({ "enable_thinking": think });
            out.insert("chat_template_kwargs".to_string(), args);
        }
        Some(Value::String(effort)) => {
            out.insert("reasoning_effort".to_string(), effort.clone().into());
        }
        Some(_) => return fields.wrong("think", "must be true, false or an effort"),
    }
    let Some(options) = fields.object("options")? else {
        return Ok(out);
    };
    for (theirs, ours) in [
        ("temperature", "temperature"),
        ("top_k", "top_k"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("typical_p", "typical_p"),
        ("seed", "seed"),
        ("stop", "stop"),
        ("repeat_penalty", "repeat_penalty"),
        ("repeat_last_n", "repeat_last_n"),
        ("presence_penalty", "presence_penalty"),
        ("frequency_penalty", "frequency_penalty"),
    ] {
        if let Some(value) = options.get(theirs) {
            out.insert(ours.to_string(), value.clone());
        }
    }
    // Minus one is no limit there.
    let n = options.integer("num_predict", -2..=i64::MAX)?;
    if let Some(n) = n.filter(|n| *n >= 0) {
        out.insert("max_tokens".to_string(), n.into());
    }
    Ok(out)
}

fn head(answer: &Answer) -> Value {
    json!({"model": answer.name, "created_at": timestamp(now())})
}

/// A piece of a stream: a text, or an object with the message's members.
pub(super) fn line(answer: &Answer, shown: Value) -> Value {
    let mut out = head(answer);
    match answer.style {
        Style::OllamaText => out["response"] = shown,
        _ => {
            let mut message = json!({"role": "assistant", "content": ""});
            match shown {
                Value::Object(members) => {
                    for (key, value) in members {
                        message[key] = value;
                    }
                }
                text => message["content"] = text,
            }
            out["message"] = message;
        }
    }
    out["done"] = false.into();
    out
}

/// The last line, with calls of tools, which come whole.
pub(super) fn last_line(answer: &Answer) -> Value {
    let mut out = head(answer);
    let choice = &answer.choices[0];
    match answer.style {
        Style::OllamaText => out["response"] = "".into(),
        _ => {
            let mut message = json!({"role": "assistant", "content": ""});
            if !choice.calls.is_empty() {
                let calls = choice.calls.iter().map(|call| {
                    let arguments: Value =
                        serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
                    json!({"function": {"name": call.name, "arguments": arguments}})
                });
                message["tool_calls"] = calls.collect();
            }
            out["message"] = message;
        }
    }
    let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    out["done"] = true.into();
    out["done_reason"] = match answer.reason() {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::ToolCalls => "stop",
    }
    .into();
    out["total_duration"] = nanos(answer.started.elapsed()).into();
    out["load_duration"] = 0.into();
    out["prompt_eval_count"] = answer.n_prompt.into();
    out["prompt_eval_duration"] = nanos(answer.prompt_time()).into();
    out["eval_count"] = answer.n_generated().into();
    out["eval_duration"] = nanos(answer.decode_time()).into();
    out
}

/// The whole answer.
pub(super) fn whole(answer: &Answer) -> Value {
    let mut out = last_line(answer);
    let choice = &answer.choices[0];
    match answer.style {
        Style::OllamaText => out["response"] = choice.text.clone().into(),
        _ => {
            out["message"]["content"] = choice.text.clone().into();
            if !choice.reasoning.is_empty() {
                out["message"]["thinking"] = choice.reasoning.clone().into();
            }
        }
    }
    out
}

pub(super) fn push_line(out: &mut String, line: &Value) {
    out.push_str(&line.to_string());
    out.push('\n');
}

/// Seconds since 1970 as RFC 3339 writes them.
fn timestamp(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let timestamp = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    timestamp.to_string()
}
