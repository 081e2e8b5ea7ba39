//! From what the user says to token ids: by the prompt of a composition, by the file's chat template,
//! or as it is.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use aho_corasick::{AhoCorasick, MatchKind};
use tandem_formats::GgufError;
use tandem_formats::bundle::INPUT_MARK;

#[cfg(feature = "chat")]
use super::Message;
#[cfg(feature = "chat")]
use super::jinja::{Value, value_of_json};
#[cfg(feature = "chat")]
use super::template::{ChatTemplate, ChatTemplateError, TemplateArgs, dict_of, list_of, map_texts};
#[cfg(feature = "chat")]
use crate::tokenizer::ControlTokens;
use crate::tokenizer::{EncodeOptions, Part, TokenKind, Tokenizer, TokenizerError, Vocab};

/// Why a text was not turned into a prompt.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum PromptError {
    /// The text is not UTF-8.
    NotUtf8,
    /// The chat template's metadata could not be read.
    Gguf(GgufError),
    /// The chat template is not valid, or refuses the conversation.
    #[cfg(feature = "chat")]
    Template(ChatTemplateError),
    /// The model has no chat template, or this build has none.
    NoTemplate,
    /// The chat template does not write the messages as they are.
    Torn,
    /// The vocabulary has more control tokens than can be looked for.
    TooManyTokens,
    /// The text cannot be encoded.
    Tokenizer(TokenizerError),
}

impl fmt::Display for PromptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PromptError::NotUtf8 => f.write_str("the prompt is not UTF-8"),
            PromptError::Gguf(error) => error.fmt(f),
            #[cfg(feature = "chat")]
            PromptError::Template(error) => error.fmt(f),
            PromptError::NoTemplate => {
                f.write_str("there is no chat template to write a conversation by")
            }
            PromptError::Torn => f.write_str("the chat template tears its messages apart"),
            PromptError::TooManyTokens => f.write_str("the vocabulary has too many control tokens"),
            PromptError::Tokenizer(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for PromptError {
    // The message is that of the error inside, so the cause is what is behind that.
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            PromptError::Gguf(error) => error.source(),
            PromptError::Tokenizer(error) => error.source(),
            _ => None,
        }
    }
}

impl From<GgufError> for PromptError {
    fn from(error: GgufError) -> Self {
        PromptError::Gguf(error)
    }
}

#[cfg(feature = "chat")]
impl From<ChatTemplateError> for PromptError {
    fn from(error: ChatTemplateError) -> Self {
        PromptError::Template(error)
    }
}

impl From<TokenizerError> for PromptError {
    fn from(error: TokenizerError) -> Self {
        PromptError::Tokenizer(error)
    }
}

/// A conversation's form: the file's chat template with the texts of its special tokens.
#[cfg(feature = "chat")]
#[derive(Debug)]
pub struct Chat {
    template: ChatTemplate,
    /// Those that the model has, by the names that Hugging Face gives them.
    special: TemplateArgs,
    bos: String,
}

#[cfg(feature = "chat")]
impl Chat {
    /// The chat template `source`, for this vocabulary.
    ///
    /// # Errors
    ///
    /// A template that cannot be read.
    pub fn new(source: &str, vocab: &Vocab) -> Result<Chat, PromptError> {
        let mut special = TemplateArgs::new();
        let mut bos = String::new();
        for (name, id) in [
            ("bos_token", vocab.bos()),
            ("eos_token", vocab.eos()),
            ("unk_token", vocab.unknown()),
            ("sep_token", vocab.separator()),
            ("pad_token", vocab.padding()),
            ("cls_token", vocab.cls()),
            ("mask_token", vocab.mask()),
        ] {
            let Some(id) = id else { continue };
            let text = vocab.decode(&[id], ControlTokens::Show)?;
            special.set_text(name, &text);
            if name == "bos_token" {
                bos = text;
            }
        }
        special.set_json("add_generation_prompt", "true")?;
        Ok(Chat {
            template: ChatTemplate::from_source(source)?,
            special,
            bos,
        })
    }

    /// The ids of a conversation, ready for the assistant's next message. `args` are what the template is
    /// given besides, and may be in the place of what it is given anyhow.
    ///
    /// # Errors
    ///
    /// A template that fails or refuses the conversation; a text that the vocabulary cannot express.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message<'_>],
        args: &TemplateArgs,
    ) -> Result<Vec<u32>, PromptError> {
        let mut hidden = Hidden::new(tokenizer.vocab())?;
        let contents: Vec<_> = messages.iter().map(|m| hidden.hide(m.content)).collect();
        let messages = messages.iter().zip(&contents);
        let messages: Vec<_> = messages
            .map(|(m, content)| Message {
                role: m.role,
                content,
            })
            .collect();
        let text = self.template.render(&messages, &self.special.with(args))?;
        self.ids(tokenizer, &hidden, &text)
    }

    /// The ids of a conversation with more than roles and contents. All texts in it and in its arguments are
    /// plain text: control tokens are those of the template only.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode), and messages that are no JSON array of objects.
    pub fn encode_conversation(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation<'_>,
    ) -> Result<Vec<u32>, PromptError> {
        let mut hidden = Hidden::new(tokenizer.vocab())?;
        let text = self.write(conversation, &mut |text| hidden.hide(text))?;
        self.ids(tokenizer, &hidden, &text)
    }

    /// The text that the template makes of a conversation.
    ///
    /// # Errors
    ///
    /// As [`encode_conversation`](Self::encode_conversation).
    pub fn render_conversation(
        &self,
        conversation: &Conversation<'_>,
    ) -> Result<String, PromptError> {
        self.write(conversation, &mut |text| text.into())
    }

    /// What the template makes of a conversation with `f` of all its texts.
    fn write(
        &self,
        conversation: &Conversation<'_>,
        f: &mut dyn FnMut(&str) -> String,
    ) -> Result<String, PromptError> {
        let Conversation {
            messages: json,
            args,
            continue_last,
        } = *conversation;
        let wrong = |message: String| ChatTemplateError::Argument {
            name: "messages".into(),
            message,
        };
        let messages = value_of_json(json).map_err(wrong)?;
        let mut messages = map_texts(&messages, f)?;
        if !are_messages(&messages) {
            return Err(wrong("an array of objects is wanted".into()).into());
        }
        let mut args = args.map_texts(f)?;
        if continue_last {
            args.set_json("add_generation_prompt", "false")?;
            messages = with_end_mark(&messages)?;
        }
        let n_bytes = json.len() + args.n_bytes();
        let args = self.special.with(&args);
        let mut text = self.template.render_values(messages, &args, n_bytes)?;
        if continue_last {
            text.truncate(text.rfind(END_MARK).ok_or(PromptError::Torn)?);
        }
        Ok(text)
    }

    /// The ids of what the template wrote.
    fn ids(
        &self,
        tokenizer: &Tokenizer,
        hidden: &Hidden,
        text: &str,
    ) -> Result<Vec<u32>, PromptError> {
        let vocab = tokenizer.vocab();
        let mut ids = Vec::new();
        // The template writes the BOS itself as a rule; where it does not, the file's flag decides.
        if vocab.add_bos() && (self.bos.is_empty() || !text.starts_with(&self.bos)) {
            ids.extend(vocab.bos());
        }
        hidden.encode(tokenizer, text, &mut ids)?;
        Ok(ids)
    }
}

/// A conversation whose messages have more than a role and a content, as clients of a server send them.
#[cfg(feature = "chat")]
#[derive(Clone, Copy, Debug)]
pub struct Conversation<'a> {
    /// The messages: a JSON array of objects, with whatever the template reads of them (`role`, `content`,
    /// `tool_calls`, ...).
    pub messages: &'a str,
    /// What the template is given besides: `tools`, `enable_thinking`, ...
    pub args: &'a TemplateArgs,
    /// Go on with the last message, instead of answering it.
    pub continue_last: bool,
}

/// What stands where a message ends that is to be gone on with: a character for private use.
#[cfg(feature = "chat")]
const END_MARK: char = '\u{f8fe}';

/// Whether `messages` are a list of dictionaries, one at least.
#[cfg(feature = "chat")]
fn are_messages(messages: &Value) -> bool {
    let is_dict = |item: &Value| matches!(item, Value::Dict(_));
    matches!(messages, Value::List(items) if !items.is_empty() && items.iter().all(is_dict))
}

/// The same messages with [`END_MARK`] behind the last one's content.
#[cfg(feature = "chat")]
fn with_end_mark(messages: &Value) -> Result<Value, ChatTemplateError> {
    let Value::List(items) = messages else {
        return Ok(messages.clone());
    };
    let mut items = items.to_vec();
    if let Some(Value::Dict(last)) = items.last() {
        let mut entries = last.entries().to_vec();
        for entry in &mut entries {
            if let ("content", Some(text)) =
                (entry.key.as_str().unwrap_or(""), entry.value.as_str())
            {
                entry.value = Value::from(&*format!("{text}{END_MARK}"));
            }
        }
        let dict = dict_of(entries)?;
        if let Some(last) = items.last_mut() {
            *last = dict;
        }
    }
    list_of(items)
}

/// What stands for a hidden text: a private-use character before and after its number.
const MARK: char = '\u{f8ff}';

/// Texts of control tokens that were replaced by marks, so that what a user says cannot end his turn or
/// begin another's: the template is read with control tokens, they are not.
struct Hidden {
    hide: Hide,
    texts: Vec<String>,
}

impl Hidden {
    fn new(vocab: &Vocab) -> Result<Hidden, PromptError> {
        let control = (0..vocab.n_tokens() as u32)
            .filter(|id| {
                matches!(
                    vocab.kind(*id),
                    Some(TokenKind::Control | TokenKind::Unknown)
                )
            })
            .filter_map(|id| vocab.token_text(id))
            .filter(|text| !text.is_empty());
        Ok(Hidden {
            hide: Hide::new(control)?,
            texts: Vec::new(),
        })
    }

    /// `content` with marks in the place of control tokens.
    fn hide(&mut self, content: &str) -> String {
        self.hide.hide(content, &mut self.texts)
    }

    /// The ids of a text with marks: what they hide as plain text, the rest with control tokens.
    fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), PromptError> {
        let mut parts = Vec::new();
        for (i, part) in text.split(MARK).enumerate() {
            let parse_special = i % 2 == 0;
            let text = match parse_special {
                true => part,
                false => {
                    let hidden = part.parse::<usize>().ok().and_then(|n| self.texts.get(n));
                    hidden.ok_or(PromptError::Torn)?
                }
            };
            parts.push(Part {
                text,
                parse_special,
            });
        }
        ids.extend(tokenizer.encode_parts(parts.into_iter())?);
        Ok(())
    }
}

/// Finds the texts to hide: those of control tokens, and marks that a message contains itself.
struct Hide(AhoCorasick);

impl Hide {
    fn new<'t>(control: impl Iterator<Item = &'t [u8]>) -> Result<Hide, PromptError> {
        let texts = control.chain(["\u{f8ff}".as_bytes()]); // MARK
        // One pass however many texts there are; of several at a place the longest.
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .map_err(|_| PromptError::TooManyTokens)?;
        Ok(Hide(finder))
    }

    /// `content` with marks in the place of what is hidden, which goes to `texts`.
    fn hide(&self, content: &str, texts: &mut Vec<String>) -> String {
        let mut out = String::new();
        let mut end = 0;
        for found in self.0.find_iter(content) {
            // A token's text need not be whole characters: all that it touches is hidden. The last
            // one may have hidden the first of these characters already.
            let from = content.floor_char_boundary(found.start()).max(end);
            let to = content.ceil_char_boundary(found.end());
            if let (Some(before), Some(hidden)) = (content.get(end..from), content.get(from..to))
                && !hidden.is_empty()
            {
                out.push_str(before);
                out.push_str(&format!("{MARK}{}{MARK}", texts.len()));
                texts.push(hidden.into());
                end = to;
            }
        }
        out.push_str(content.get(end..).unwrap_or_default());
        out
    }
}

/// The ids of a text as it is, special tokens in it included.
///
/// # Errors
///
/// A text that the vocabulary cannot express.
pub fn encode_raw(tokenizer: &Tokenizer, text: &[u8]) -> Result<Vec<u32>, PromptError> {
    let options = EncodeOptions {
        add_special: true,
        parse_special: true,
    };
    Ok(tokenizer.encode(text, options)?)
}

/// The ids of a composition's prompt with `input` in it, which is plain text: special tokens are
/// those of the prompt only.
///
/// # Errors
///
/// An input that is not UTF-8, a text that the vocabulary cannot express.
pub fn fill(tokenizer: &Tokenizer, prompt: &str, input: &[u8]) -> Result<Vec<u32>, PromptError> {
    let content = core::str::from_utf8(input).map_err(|_| PromptError::NotUtf8)?;
    let vocab = tokenizer.vocab();
    let mut hidden = Hidden::new(vocab)?;
    let text = prompt.replace(INPUT_MARK, &hidden.hide(content));
    let mut ids = Vec::new();
    if vocab.add_bos() {
        ids.extend(vocab.bos());
    }
    hidden.encode(tokenizer, &text, &mut ids)?;
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_control_tokens_and_marks() {
        let mut texts = Vec::new();
        let content = format!("a<|end|>b<|end|>>{MARK}1{MARK}<s>");
        let control = ["<|end|>", "<|end|>>", "<s>"].map(str::as_bytes);
        let hide = Hide::new(control.into_iter()).unwrap();
        let hidden = hide.hide(&content, &mut texts);
        assert_eq!(
            texts,
            ["<|end|>", "<|end|>>", "\u{f8ff}", "\u{f8ff}", "<s>"]
        );
        let mut back = String::new();
        for (i, part) in hidden.split(MARK).enumerate() {
            match i % 2 {
                0 => back.push_str(part),
                _ => back.push_str(&texts[part.parse::<usize>().unwrap()]),
            }
        }
        assert_eq!(back, content);
    }

    #[test]
    fn hides_whole_characters() {
        // The last byte of "é" (c3 a9) and its first, and bytes across two characters.
        let control: [&[u8]; 3] = [b"\xa9>", b"<\xc3", b"\x82\xe2\x82"];
        let hide = Hide::new(control.into_iter()).unwrap();
        for (content, wanted) in [
            ("aé>b", &["é>"][..]),
            ("a<éb", &["<é"]),
            ("<é>", &["<é", ">"]),
            ("a\u{20a2}\u{2082}", &[]),
            ("a\u{2082}\u{20ac}b", &["\u{2082}\u{20ac}"]),
        ] {
            let mut texts = Vec::new();
            hide.hide(content, &mut texts);
            assert_eq!(texts, wanted, "{content}");
        }
    }
}
