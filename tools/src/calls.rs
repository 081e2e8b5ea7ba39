//! Calls of tools: how a model writes them, and what they say.

pub(crate) mod argument;
pub(crate) mod reader;
pub(crate) mod syntax;

use std::sync::Arc;

use anyhow::Result;
use serde_json::Value;
use tandem_engine::Model;
use tandem_engine::tokenizer::{ControlTokens, EncodeOptions};

use reader::{CallForm, CallReader, ToolForm};
use syntax::{CallBody, CallSyntax};

/// How what a model writes is encoded.
pub(crate) const WRITTEN: EncodeOptions = EncodeOptions {
    add_special: false,
    parse_special: true,
};

/// What becomes known of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Delta {
    #[cfg(feature = "serve")]
    Text(String),
    #[cfg(feature = "serve")]
    Reasoning(String),
    /// A call of this tool begins.
    Call(String),
    /// More of the last call's arguments, which are JSON.
    Arguments(String),
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The tool's name.
    pub name: String,
    /// JSON, if the model wrote it so.
    pub arguments: String,
}

/// The calls in an answer, as the model's chat template writes them; `tools` are what it was offered, in
/// OpenAI's form.
///
/// # Errors
///
/// A model whose vocabulary cannot be used.
pub fn read(model: &Model, tools: &[Value], tokens: &[u32]) -> Result<Vec<Call>> {
    let tokenizer = model.tokenizer()?;
    let syntax = CallSyntax::learn(model.chat()?, tokenizer);
    let mut decoder = tokenizer.vocab().stream_continuation(ControlTokens::Show);
    let mut text = String::new();
    for token in tokens {
        text += decoder.push(*token)?;
    }
    text += decoder.finish();
    let form = |tool: &Value| {
        let function = tool.get("function").unwrap_or(tool);
        let name = function.get("name")?.as_str()?;
        let parameters = function.get("parameters").unwrap_or(&Value::Null);
        Some(ToolForm::of(name, parameters, &syntax))
    };
    let form = Arc::new(CallForm {
        tools: tools.iter().filter_map(form).collect(),
        syntax,
    });
    Ok(calls_in(&text, &form))
}

fn calls_in(text: &str, form: &Arc<CallForm>) -> Vec<Call> {
    // What a model thinks of calling is no call.
    let mut rest = text.rsplit_once(END_THINK).map_or(text, |(_, rest)| rest);
    if rest.trim_start().starts_with(THINK) {
        return Vec::new();
    }
    let (mark, mut calls) = (&*form.syntax.mark, Vec::new());
    if mark.is_empty() {
        // A template that writes nothing before the name: all of the answer may be a call.
        calls.extend(one_call(rest, form));
        return calls;
    }
    while let Some(at) = rest.find(mark) {
        let after = &rest[at + mark.len()..];
        rest = match &form.syntax.body {
            CallBody::Object(_) => {
                // The mark may be the beginning of the object itself.
                let json = if mark.starts_with('{') {
                    &rest[at..]
                } else {
                    after
                };
                let n = objects(json, &mut calls);
                if n == 0 { after } else { &json[n..] }
            }
            CallBody::Named { .. } | CallBody::Tagged(_) => {
                let end = after.find(mark).unwrap_or(after.len());
                calls.extend(one_call(&after[..end], form));
                &after[end..]
            }
        };
    }
    calls
}

/// The call after a mark.
fn one_call(text: &str, form: &Arc<CallForm>) -> Option<Call> {
    let (mut reader, mut deltas) = (CallReader::new(form), Vec::new());
    reader.push(&form.syntax.mark, &mut deltas);
    reader.push(text, &mut deltas);
    reader.finish(&mut deltas);
    let mut call: Option<Call> = None;
    for delta in deltas {
        match (delta, &mut call) {
            (Delta::Call(name), _) => {
                call = Some(Call {
                    name,
                    arguments: String::new(),
                });
            }
            (Delta::Arguments(more), Some(call)) => call.arguments += &more,
            // A reader of calls gives nothing else, and a name first.
            _ => {}
        }
    }
    call
}

/// Adds the calls that are JSON objects, one after the other or in lists, from the beginning of a text on, and gives
/// how many bytes that is.
fn objects(text: &str, calls: &mut Vec<Call>) -> usize {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut n_bytes = 0;
    while let Some(Ok(value)) = values.next() {
        match &value {
            Value::Array(list) => calls.extend(list.iter().filter_map(call_of)),
            value => match call_of(value) {
                Some(call) => calls.push(call),
                None => break,
            },
        }
        n_bytes = values.byte_offset();
    }
    n_bytes
}

/// The call that a JSON object is.
fn call_of(value: &Value) -> Option<Call> {
    let arguments = value.get("arguments").or_else(|| value.get("parameters"));
    Some(Call {
        name: value.get("name")?.as_str()?.to_string(),
        arguments: match arguments {
            None | Some(Value::Null) => "{}".to_string(),
            // JSON in a text, as some models write it.
            Some(Value::String(json)) => json.clone(),
            Some(other) => other.to_string(),
        },
    })
}

/// What stands around thoughts.
pub(crate) const THINK: &str = "<think>";
pub(crate) const END_THINK: &str = "</think>";

/// Whether the chat template tells the model of tools; otherwise a message has to, see [`instructions`].
///
/// # Errors
///
/// A model whose vocabulary or template cannot be used.
pub fn are_in_template(model: &Model) -> Result<bool> {
    Ok(CallSyntax::learn(model.chat()?, model.tokenizer()?).in_template)
}

/// What a model is told of the tools whose template does not.
pub fn instructions<'t>(tools: impl IntoIterator<Item = &'t Value>) -> String {
    let mut out = String::from(
        "You may call one or more of these functions to answer. Their signatures are within \
         <tools></tools>:\n<tools>\n",
    );
    for tool in tools {
        out.push_str(&tool.to_string());
        out.push('\n');
    }
    out.push_str(
        "</tools>\n\nFor each call write a JSON object with the function's name and arguments within \
         <tool_call></tool_call>:\n<tool_call>\n{\"name\": <name>, \"arguments\": <arguments>}\n\
         </tool_call>",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, form: &Arc<CallForm>) -> Vec<String> {
        let calls = calls_in(text, form);
        let shown = calls
            .iter()
            .map(|call| format!("{}({})", call.name, call.arguments));
        shown.collect()
    }

    #[test]
    fn calls_of_an_answer_that_is_whole() {
        let form = Arc::new(CallForm::default());
        for (text, wanted) in [
            ("no call", &[][..]),
            (
                "<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": {\"y\": \"}\"}}}\n</tool_call>",
                &["a({\"x\":{\"y\":\"}\"}})"],
            ),
            (
                "Well. <tool_call>{\"name\": \"a\", \"arguments\": {}}</tool_call> <tool_call>\n{\"name\": \"b\"}",
                &["a({})", "b({})"],
            ),
            (
                "<tool_call>{\"arguments\": {\"x\": 1}, \"name\": \"a\"}\n{\"name\": \"b\"}</tool_call>",
                &["a({\"x\":1})", "b({})"],
            ),
            (
                "<tool_call>[{\"name\": \"a\"}, {\"name\": \"b\", \"parameters\": {\"x\": []}}]",
                &["a({})", "b({\"x\":[]})"],
            ),
            (
                "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"<tool_call> here\"}}",
                &["a({\"x\":\"<tool_call> here\"})"],
            ),
            (
                "<tool_call>{\"name\": \"a\", \"arguments\": \"{\\\"x\\\": 1}\"}",
                &["a({\"x\": 1})"],
            ),
            ("<tool_call>{\"name\": \"a\", \"argum", &[]),
            (
                "<think><tool_call>{\"name\": \"a\"}</think>No. <tool_call>{\"name\": \"b\"}",
                &["b({})"],
            ),
            ("<think><tool_call>{\"name\": \"a\"}", &[]),
            ("<tool_call>5 <tool_call>{\"name\": \"a\"}", &["a({})"]),
        ] {
            assert_eq!(found(text, &form), wanted, "{text}");
        }
        // A file's template may have no mark at all.
        let mut form = CallForm::default();
        form.syntax.mark = String::new();
        form.syntax.begin = String::new();
        form.syntax.body = CallBody::Named {
            between: " ".to_string(),
        };
        assert_eq!(found("a {\"x\": 1}", &Arc::new(form)), ["a({\"x\": 1})"]);
        let mut form = CallForm::default();
        form.syntax.mark = "{\"name\": ".to_string();
        let text = "{\"name\": \"a\", \"parameters\": {\"user\": {\"name\": \"Bob\"}}}";
        let wanted = ["a({\"user\":{\"name\":\"Bob\"}})"];
        assert_eq!(found(text, &Arc::new(form)), wanted);
    }
}
