//! From what a user says to token ids: by a composition's prompt, by the model's chat template, or as
//! it is.

#[cfg(feature = "chat")]
mod jinja;
mod prompt;
#[cfg(feature = "chat")]
mod template;

use alloc::string::String;
use alloc::vec::Vec;

#[cfg(feature = "chat")]
pub use prompt::{Chat, Conversation};
pub use prompt::{PromptError, encode_raw, fill};
#[cfg(feature = "chat")]
pub use template::{ChatTemplate, ChatTemplateError, MAX_SOURCE_BYTES, TemplateArgs};

use crate::{Error, Model};

/// One message of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Who speaks: `system`, `user` or `assistant`. It is the program's own word: unlike the content
    /// it goes into the chat template as it is.
    pub role: &'a str,
    /// What is said.
    pub content: &'a str,
}

impl<'a> Message<'a> {
    /// What the model is told before the conversation begins.
    pub fn system(content: &'a str) -> Message<'a> {
        let role = "system";
        Message { role, content }
    }

    /// What the user says.
    pub fn user(content: &'a str) -> Message<'a> {
        let role = "user";
        Message { role, content }
    }

    /// What the model said.
    pub fn assistant(content: &'a str) -> Message<'a> {
        let role = "assistant";
        Message { role, content }
    }
}

/// What a text is to go on from. A `&str` is [`Prompt::Input`], a slice of messages
/// [`Prompt::Messages`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Prompt<'p> {
    /// A text from outside, in UTF-8: the input of the composition's prompt where that has one, else a
    /// user's message in the model's chat template, else taken as it is.
    Input(&'p [u8]),
    /// A text as it is, special tokens in it included.
    Raw(&'p [u8]),
    /// A conversation, in the model's chat template.
    Messages(&'p [Message<'p>]),
    /// Token ids.
    Tokens(&'p [u32]),
}

impl<'p> From<&'p str> for Prompt<'p> {
    fn from(text: &'p str) -> Prompt<'p> {
        Prompt::Input(text.as_bytes())
    }
}

impl<'p> From<&'p String> for Prompt<'p> {
    fn from(text: &'p String) -> Prompt<'p> {
        Prompt::Input(text.as_bytes())
    }
}

impl<'p> From<&'p [Message<'p>]> for Prompt<'p> {
    fn from(messages: &'p [Message<'p>]) -> Prompt<'p> {
        Prompt::Messages(messages)
    }
}

impl<'p> From<&'p [u32]> for Prompt<'p> {
    fn from(tokens: &'p [u32]) -> Prompt<'p> {
        Prompt::Tokens(tokens)
    }
}

/// What turns a prompt into tokens beside the prompt itself.
#[derive(Clone, Copy, Default)]
pub(crate) struct PromptForm<'a> {
    /// The prompt of the composition, if it has one.
    pub composition: Option<&'a str>,
    /// What the chat template is given.
    #[cfg(feature = "chat")]
    pub template_args: Option<&'a TemplateArgs>,
}

/// The token ids of a prompt.
pub(crate) fn prompt_ids(
    model: &Model,
    form: PromptForm<'_>,
    prompt: Prompt<'_>,
) -> Result<Vec<u32>, Error> {
    let tokenizer = || model.tokenizer();
    Ok(match (prompt, form.composition) {
        (Prompt::Tokens(ids), _) => ids.to_vec(),
        (Prompt::Raw(text), _) => encode_raw(tokenizer()?, text)?,
        (Prompt::Input(text), Some(prompt)) => fill(tokenizer()?, prompt, text)?,
        (Prompt::Input(text), None) => user_ids(model, form, text)?,
        (Prompt::Messages(messages), _) => conversation_ids(model, form, messages)?,
    })
}

/// The ids of a user's message, where the model has a chat template, else of the text itself.
#[cfg(feature = "chat")]
fn user_ids(model: &Model, form: PromptForm<'_>, text: &[u8]) -> Result<Vec<u32>, Error> {
    if model.chat()?.is_none() {
        return Ok(encode_raw(model.tokenizer()?, text)?);
    }
    let content = core::str::from_utf8(text).map_err(|_| PromptError::NotUtf8)?;
    conversation_ids(model, form, &[Message::user(content)])
}

#[cfg(not(feature = "chat"))]
fn user_ids(model: &Model, _: PromptForm<'_>, text: &[u8]) -> Result<Vec<u32>, Error> {
    Ok(encode_raw(model.tokenizer()?, text)?)
}

#[cfg(feature = "chat")]
fn conversation_ids(
    model: &Model,
    form: PromptForm<'_>,
    messages: &[Message<'_>],
) -> Result<Vec<u32>, Error> {
    let chat = model.chat()?.ok_or(PromptError::NoTemplate)?;
    let none = TemplateArgs::new();
    let args = form.template_args.unwrap_or(&none);
    Ok(chat.encode(model.tokenizer()?, messages, args)?)
}

#[cfg(not(feature = "chat"))]
fn conversation_ids(_: &Model, _: PromptForm<'_>, _: &[Message<'_>]) -> Result<Vec<u32>, Error> {
    Err(PromptError::NoTemplate.into())
}
