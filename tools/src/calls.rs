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
use syntax::CallSyntax;

/// How what a model writes is encoded.
pub(crate) const WRITTEN: EncodeOptions = EncodeOptions {
    add_special: false,
    parse_special: true,
};

/// What becomes known of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Delta {
    Text(String),
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
    let mut calls: Vec<Call> = Vec::new();
    for part in text.split(&*form.syntax.mark).skip(1) {
        let mut deltas = Vec::new();
        let mut reader = CallReader::new(form);
        reader.push(&form.syntax.mark, &mut deltas);
        reader.push(part, &mut deltas);
        reader.finish(&mut deltas);
        for delta in deltas {
            match (delta, calls.last_mut()) {
                (Delta::Call(name), _) => calls.push(Call {
                    name,
                    arguments: String::new(),
                }),
                (Delta::Arguments(more), Some(call)) => call.arguments += &more,
                _ => {}
            }
        }
    }
    calls
}

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

    #[test]
    fn calls_of_an_answer_that_is_whole() {
        let form = Arc::new(CallForm::default());
        let text = "Well. <tool_call>\n{\"name\": \"lamp\", \"arguments\": {\"on\": {\"a\": \"}\"}}}\n</tool_call>\
            \n<tool_call>{\"name\": \"b\", \"arguments\": {}}</tool_call> Done. <tool_call>\n{\"name\": \"c";
        let calls = calls_in(text, &form);
        let found: Vec<_> = calls.iter().map(|c| (&*c.name, &*c.arguments)).collect();
        assert_eq!(found, [("lamp", "{\"on\": {\"a\": \"}\"}}"), ("b", "{}")]);
        assert_eq!(calls_in("no call", &form), []);
    }
}
