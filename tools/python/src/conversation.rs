//! What a session is asked: texts, tokens, conversations.

use pyo3::prelude::*;
use pyo3::types::PyMapping;
use serde_json::{Value, json};
use tandem_engine::Prompt;
use tandem_engine::chat::{Conversation, PromptError, TemplateArgs};
use tandem_tools::calls;

use crate::arguments::to_json;
use crate::error::{Result, argument};
use crate::model::text_bytes;

/// What a session is asked.
pub(crate) enum Asked {
    Input(Vec<u8>),
    Raw(Vec<u8>),
    Tokens(Vec<u32>),
    Conversation(Talk),
}

/// A conversation, and what the template is given beside it.
pub(crate) struct Talk {
    messages: Vec<Value>,
    /// A JSON object.
    args: String,
    tools: Vec<Value>,
}

impl Asked {
    /// A text, ids, or messages.
    pub(crate) fn read(prompt: &Bound<'_, PyAny>, raw: bool) -> Result<Asked> {
        if let Ok(text) = text_bytes(prompt) {
            return Ok(match raw {
                true => Asked::Raw(text),
                false => Asked::Input(text),
            });
        }
        let first = prompt.get_item(0);
        let are_messages = first.is_ok_and(|first| first.cast::<PyMapping>().is_ok());
        if are_messages && raw {
            return argument("messages go through the chat template, and cannot be raw");
        }
        if are_messages {
            return Ok(Asked::Conversation(Talk::read(prompt, None, None)?));
        }
        match prompt.extract() {
            Ok(tokens) => Ok(Asked::Tokens(tokens)),
            Err(_) => argument("a prompt is a text, a list of token ids, or one of messages"),
        }
    }

    /// The tokens, in a session as it is.
    pub(crate) fn ids(&self, session: &tandem_engine::Session) -> Result<Vec<u32>> {
        match self {
            Asked::Input(text) => Ok(session.prompt_ids(Prompt::Input(text))?),
            Asked::Raw(text) => Ok(session.prompt_ids(Prompt::Raw(text))?),
            Asked::Tokens(tokens) => Ok(tokens.clone()),
            Asked::Conversation(talk) => talk.ids(session.model()),
        }
    }

    /// What the model is offered.
    pub(crate) fn tools(self) -> Vec<Value> {
        match self {
            Asked::Conversation(talk) => talk.tools,
            _ => Vec::new(),
        }
    }
}

impl Talk {
    pub(crate) fn read(
        messages: &Bound<'_, PyAny>,
        tools: Option<&Bound<'_, PyAny>>,
        args: Option<&Bound<'_, PyAny>>,
    ) -> Result<Talk> {
        let mut messages = dictionaries(messages, "messages")?;
        for message in &mut messages {
            make_plain(message)?;
        }
        Ok(Talk {
            messages,
            tools: tools.map_or(Ok(Vec::new()), |tools| dictionaries(tools, "tools"))?,
            args: args.map_or(Ok("{}".to_string()), to_json)?,
        })
    }

    fn ids(&self, model: &tandem_engine::Model) -> Result<Vec<u32>> {
        let chat = model.chat()?.ok_or(PromptError::NoTemplate)?;
        let mut args = TemplateArgs::from_json(&self.args).map_err(PromptError::from)?;
        let mut messages = self.messages.clone();
        if !self.tools.is_empty() {
            if calls::are_in_template(model)? {
                let tools = Value::from(self.tools.clone()).to_string();
                args.set_json("tools", &tools).map_err(PromptError::from)?;
            } else {
                add_to_system(&mut messages, &calls::instructions(&self.tools));
            }
        }
        let conversation = Conversation {
            messages: &Value::from(messages).to_string(),
            args: &args,
            continue_last: false,
        };
        Ok(chat.encode_conversation(model.tokenizer()?, &conversation)?)
    }
}

/// A list of dictionaries as JSON.
fn dictionaries(list: &Bound<'_, PyAny>, name: &str) -> Result<Vec<Value>> {
    let list: std::result::Result<Vec<Value>, _> = serde_json::from_str(&to_json(list)?);
    match list {
        Ok(list) if list.iter().all(Value::is_object) => Ok(list),
        Ok(_) => argument(format!("{name} are a list of dictionaries")),
        Err(error) => argument(format!("{name} are a list of dictionaries: {error}")),
    }
}

/// Makes of a message in OpenAI's form what templates take: the content one text, arguments of calls objects.
fn make_plain(message: &mut Value) -> Result<()> {
    if let Some(Value::Array(parts)) = message.get("content") {
        let texts: Option<Vec<&str>> = parts
            .iter()
            .map(|part| part.get("text")?.as_str())
            .collect();
        let Some(texts) = texts else {
            return argument(
                "a part of a message's content is no text, and only text is understood",
            );
        };
        message["content"] = texts.join("\n").into();
    }
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let arguments = call.pointer_mut("/function/arguments");
        if let Some(arguments) = arguments
            && let Value::String(json) = &arguments
            && let Ok(object) = serde_json::from_str(json)
        {
            *arguments = object;
        }
    }
    Ok(())
}

/// Adds to what the model is told before the conversation begins.
fn add_to_system(messages: &mut Vec<Value>, text: &str) {
    match messages.first_mut() {
        Some(first) if first["role"] == "system" => {
            let content = first["content"].as_str().unwrap_or_default();
            first["content"] = format!("{content}\n\n{text}").into();
        }
        _ => messages.insert(0, json!({"role": "system", "content": text})),
    }
}
