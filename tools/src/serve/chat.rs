//! Chat completions: conversations to prompts, and what is asked of the answer.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tandem_engine::chat::{Conversation, PromptError, TemplateArgs, fill};
use tandem_engine::constraint::Framed;
use tandem_engine::formats::bundle::INPUT_MARK;
use tandem_engine::tokenizer::TokenKind;
use tandem_engine::{Composition, Error};

use super::access::Caller;
use super::answer::{Answer, Style};
use super::asked::{Asked, MAX_LOGPROBS, check_length};
use super::cache::n_common;
use super::error::ApiError;
use super::fields::Fields;
use super::messages;
use super::output::{Form, Thinking};
use super::task::Calls;
use super::tools::{ToolChoice, Tools};
use super::{Job, Served, grammar_error};
use crate::calls::syntax::CallBody;
use crate::calls::{END_THINK, THINK, WRITTEN};

const MAX_TEMPLATE_ARGS: usize = 64;

/// A conversation that was read.
pub(super) struct ChatRequest {
    /// As the template takes them.
    messages: Vec<Value>,
    args: TemplateArgs,
    continue_last: bool,
    /// The last message of the user, which is what compositions with a prompt take.
    last_input: Option<String>,
}

impl ChatRequest {
    /// Reads `messages` and what goes with them.
    pub(super) fn read(fields: &Fields<'_>) -> Result<ChatRequest, ApiError> {
        let out = messages::read(fields)?;
        let last_input = out.iter().rfind(|message| message["role"] == "user");
        let last_input = last_input.and_then(|message| message["content"].as_str());
        let last_input = last_input.map(str::to_string);
        let continue_last = fields.boolean("continue_final_message")?.unwrap_or(false);
        let asks = fields
            .boolean("add_generation_prompt")?
            .unwrap_or(!continue_last);
        if continue_last && asks {
            let what = "cannot be true together with add_generation_prompt";
            return fields.wrong("continue_final_message", what);
        }
        let is_assistant = out.last().is_some_and(|last| last["role"] == "assistant");
        if continue_last && !is_assistant {
            let what = "needs a last message of the assistant";
            return fields.wrong("continue_final_message", what);
        }
        let mut args = template_args(fields)?;
        let prompt = if asks { "true" } else { "false" };
        args.set_json("add_generation_prompt", prompt)
            .map_err(refused)?;
        Ok(ChatRequest {
            messages: out,
            args,
            continue_last,
            last_input,
        })
    }

    /// Lets the template know of tools, or the model by a message where the template has no use for them.
    fn add_tools(&mut self, tools: &Tools, served: &Served) -> Result<(), ApiError> {
        if served.calls.in_template {
            return self
                .args
                .set_json("tools", &tools.json.to_string())
                .map_err(refused);
        }
        let text = tools.instructions();
        match self.messages.first_mut() {
            Some(first) if first["role"] == "system" => {
                let content = first["content"].as_str().unwrap_or_default();
                first["content"] = format!("{content}\n\n{text}").into();
            }
            _ => self
                .messages
                .insert(0, json!({"role": "system", "content": text})),
        }
        Ok(())
    }

    /// Calls and their results as text, for a template that has no use for them.
    fn write_calls_as_text(&mut self) {
        for message in &mut self.messages {
            let role = message["role"].as_str().unwrap_or_default().to_string();
            let content = message["content"].as_str().unwrap_or_default().to_string();
            let calls = message
                .as_object_mut()
                .and_then(|message| message.remove("tool_calls"));
            if let Some(Value::Array(calls)) = calls {
                let mut text = content.clone();
                for call in calls {
                    let function = &call["function"];
                    let call =
                        json!({"name": function["name"], "arguments": function["arguments"]});
                    if !text.is_empty() {
                        text.push('\n');
                    }
                    text.push_str(&format!("<tool_call>\n{call}\n</tool_call>"));
                }
                message["content"] = text.into();
            }
            if role == "tool" {
                message["role"] = "user".into();
                message["content"] = format!("<tool_response>\n{content}\n</tool_response>").into();
            }
        }
    }

    fn conversation<'a>(&'a self, messages: &'a str) -> Conversation<'a> {
        Conversation {
            messages,
            args: &self.args,
            continue_last: self.continue_last,
        }
    }

    /// The template's text.
    pub(super) fn render(
        mut self,
        fields: &Fields<'_>,
        served: &Served,
    ) -> Result<String, ApiError> {
        if let Some(tools) = Tools::read(fields)? {
            self.add_tools(&tools, served)?;
        }
        self.prepare(served);
        let messages = Value::Array(self.messages.clone()).to_string();
        let rendered = served
            .chat()?
            .render_conversation(&self.conversation(&messages));
        rendered.map_err(prompt_error)
    }

    /// The text of a composition's prompt.
    pub(super) fn fill(&self, fields: &Fields<'_>, prompt: &str) -> Result<String, ApiError> {
        match &self.last_input {
            Some(input) => Ok(prompt.replace(INPUT_MARK, input)),
            None => fields.wrong("messages", "must have a message of the user"),
        }
    }

    fn prepare(&mut self, served: &Served) {
        if !served.calls.in_template {
            self.write_calls_as_text();
        }
    }

    /// How many of the prompt's tokens the next request of this conversation begins with, whatever it writes of the
    /// answer.
    fn n_lasting(&self, served: &Served, ids: &[u32]) -> Option<usize> {
        let mut args = self.args.clone();
        args.set_json("add_generation_prompt", "false").ok()?;
        let messages = Value::Array(self.messages.clone()).to_string();
        let conversation = Conversation {
            args: &args,
            ..self.conversation(&messages)
        };
        let chat = served.chat().ok()?;
        let lasting = chat.encode_conversation(served.tokenizer().ok()?, &conversation);
        Some(n_common(&lasting.ok()?, ids))
    }

    fn ids(&self, served: &Served) -> Result<Vec<u32>, ApiError> {
        let messages = Value::Array(self.messages.clone()).to_string();
        let conversation = self.conversation(&messages);
        let ids = served
            .chat()?
            .encode_conversation(served.tokenizer()?, &conversation);
        ids.map_err(prompt_error)
    }
}

/// A request for an answer in a conversation: what the model is to do, and how its answer is told.
pub(super) fn job(
    fields: &Fields<'_>,
    served: &Served,
    caller: Caller,
    style: Style,
) -> Result<Job, ApiError> {
    let asked_at = Instant::now();
    let mut talk = ChatRequest::read(fields)?;
    let asked = Asked::read(fields, served)?;
    let logprobs = logprobs(fields)?;
    let format = format_of(fields)?;
    let tools = Tools::read(fields)?;
    let model = Arc::clone(&asked.model);
    let composition = model.composition()?;
    let vocab = served.tokenizer()?.vocab();
    let mut answer = Answer::new(style, &asked.name, vocab, asked.n);
    answer.has_logprobs = logprobs.is_some();
    answer.include_usage = asked.include_usage;
    answer
        .notes
        .insert("seed".to_string(), asked.sampling.seed.into());
    let mut form = Form {
        stop: asked.sampling.stop.clone(),
        ..Form::default()
    };
    let prompt = composition.and_then(Composition::prompt);
    let mut boundary = None;
    let (ids, tools) = match prompt {
        Some(prompt) => {
            let ids = task_ids(&talk, fields, served, prompt)?;
            if tools
                .as_ref()
                .is_some_and(|tools| tools.choice != ToolChoice::Auto)
            {
                let what = "cannot be required of a composition with a prompt of its own";
                return fields.wrong("tool_choice", what);
            }
            let n_ignored = talk.messages.len() - 1;
            answer
                .notes
                .insert("ignored_messages".to_string(), n_ignored.into());
            if tools.is_some() {
                answer
                    .notes
                    .insert("ignored_tools".to_string(), true.into());
            }
            (ids, None)
        }
        None => {
            if let Some(tools) = &tools {
                talk.add_tools(tools, served)?;
            }
            talk.prepare(served);
            let ids = talk.ids(served)?;
            if served.model.config().is_recurrent() {
                boundary = talk.n_lasting(served, &ids);
            }
            if served.thinks {
                form.thinking = thinking(served, &ids);
                form.think_token = think_token(served);
            }
            (ids, tools)
        }
    };
    check_length(ids.len(), served.n_ctx)?;
    answer.n_prompt = ids.len();
    let mut job = Job::new(asked, ids.into(), composition.cloned(), answer);
    job.caller = caller;
    job.asked_at = asked_at;
    job.boundary = boundary;
    job.logprobs = logprobs;
    if let Some(tools) = tools {
        if format != Format::Text {
            let what = "cannot be given together with tools";
            return fields.wrong("response_format", what);
        }
        job.add_tools(&tools, served, &mut form)?;
    } else if let Some(grammar) = format.grammar(served)? {
        job.grammar = Some(grammar);
        // What is asked for comes at once, unless thoughts have begun in the prompt, or the model begins them by a
        // token of their own.
        if form.thinking == Thinking::Maybe && form.think_token.is_none() {
            form.thinking = Thinking::Never;
        }
    }
    job.form = form;
    Ok(job)
}

impl Job {
    /// Lets the model call tools, or makes it do so.
    fn add_tools(
        &mut self,
        tools: &Tools,
        served: &Served,
        form: &mut Form,
    ) -> Result<(), ApiError> {
        let grammar = tools.grammar(served)?;
        let tokens = |text: &str| {
            let tokens = served.tokenizer()?.encode(text.as_bytes(), WRITTEN);
            tokens.map_err(|_| ApiError::internal())
        };
        let syntax = &served.calls;
        let is_object = matches!(syntax.body, CallBody::Object(_));
        // Of calls that are no objects the grammar has all that follows the mark.
        let after_mark = if is_object { syntax.after_mark() } else { "" };
        let end = if is_object {
            tokens(&syntax.end)?
        } else {
            Vec::new()
        };
        form.call_form = Some(Arc::new(tools.form(syntax)));
        if tools.choice != ToolChoice::Auto {
            form.is_call = true;
            form.thinking = Thinking::Never;
            let begin = if is_object {
                &*syntax.begin
            } else {
                &*syntax.mark
            };
            self.grammar = Some(Arc::new(Framed {
                begin: tokens(begin)?,
                grammar,
                end,
            }));
            return Ok(());
        }
        let mark = &*syntax.mark;
        // A mark that is one control token, which no text shows.
        let vocab = served.tokenizer()?.vocab();
        if let [id] = tokens(mark)?[..]
            && vocab.kind(id) == Some(TokenKind::Control)
        {
            form.call_token = Some(id);
        }
        // Where nothing stands before an object, the mark is its beginning.
        let json_mark = if syntax.begin.trim().is_empty() {
            mark
        } else {
            ""
        };
        form.call_mark = Some(mark.to_string());
        self.calls = Some(Arc::new(Calls {
            json_mark: json_mark.to_string(),
            skips_space: is_object,
            call: Framed {
                begin: tokens(after_mark)?,
                grammar,
                end,
            },
            several: tools.parallel,
        }));
        Ok(())
    }
}

/// The prompt of a composition that is a task.
fn task_ids(
    talk: &ChatRequest,
    fields: &Fields<'_>,
    served: &Served,
    prompt: &str,
) -> Result<Vec<u32>, ApiError> {
    if talk.continue_last {
        let what = "makes no sense for a composition with a prompt of its own";
        return fields.wrong("continue_final_message", what);
    }
    let Some(input) = &talk.last_input else {
        return fields.wrong("messages", "must have a message of the user");
    };
    fill(served.tokenizer()?, prompt, input.as_bytes()).map_err(prompt_error)
}

/// Whether an answer to this prompt begins with thoughts.
fn thinking(served: &Served, ids: &[u32]) -> Thinking {
    let Ok(tokenizer) = served.tokenizer() else {
        return Thinking::Maybe;
    };
    let tail = &ids[ids.len().saturating_sub(8)..];
    let control = tandem_engine::tokenizer::ControlTokens::Show;
    let text = tokenizer.vocab().decode(tail, control).unwrap_or_default();
    match text.rfind(THINK) {
        Some(_) if text.trim_end().ends_with(THINK) => Thinking::Begun,
        // Templates close them where they are not wanted.
        Some(at) if text[at..].contains(END_THINK) => Thinking::Never,
        _ => Thinking::Maybe,
    }
}

/// The token that begins thoughts, where there is one.
fn think_token(served: &Served) -> Option<u32> {
    let ids = served.tokenizer().ok()?.encode(THINK.as_bytes(), WRITTEN);
    match ids.ok()?[..] {
        [id] => Some(id),
        _ => None,
    }
}

fn logprobs(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=MAX_LOGPROBS)?;
    if top.is_some_and(|n| n > 0) && !wanted {
        return fields.wrong("top_logprobs", "needs logprobs to be true");
    }
    Ok(wanted.then(|| top.unwrap_or(0)))
}

fn template_args(fields: &Fields<'_>) -> Result<TemplateArgs, ApiError> {
    let mut args = TemplateArgs::new();
    if let Some(effort) = fields.text("reasoning_effort")? {
        match effort {
            "none" => args.set_json("enable_thinking", "false").map_err(refused)?,
            effort => args.set_text("reasoning_effort", effort),
        }
    }
    match fields.get("chat_template_kwargs") {
        None => {}
        Some(Value::Object(object)) if object.len() <= MAX_TEMPLATE_ARGS => {
            for (name, value) in object {
                args.set_json(name, &value.to_string()).map_err(refused)?;
            }
        }
        Some(_) => {
            let what = "must be an object of at most 64 members";
            return fields.wrong("chat_template_kwargs", what);
        }
    }
    Ok(args)
}

fn refused(error: tandem_engine::chat::ChatTemplateError) -> ApiError {
    ApiError::bad(error.to_string())
}

pub(super) fn prompt_error(error: PromptError) -> ApiError {
    match error {
        PromptError::NoTemplate => no_template(),
        error => ApiError::bad(Error::from(error).to_string()),
    }
}

pub(super) fn no_template() -> ApiError {
    let message =
        "the model has no chat template: use /v1/completions, or a composition with a prompt";
    ApiError::bad(message).code("no_chat_template")
}

/// What `response_format` asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Format {
    Text,
    /// JSON of this schema, which the request has at this path.
    Schema {
        schema: Value,
        path: String,
    },
    /// A text of this regular expression.
    Regex {
        pattern: String,
        path: String,
    },
}

impl Format {
    fn grammar(&self, served: &Served) -> Result<Option<Arc<Framed>>, ApiError> {
        let (grammar, path) = match self {
            Format::Text => return Ok(None),
            Format::Schema { schema, path } => {
                (served.grammars()?.json_schema(&schema.to_string()), path)
            }
            Format::Regex { pattern, path } => (served.grammars()?.regex(pattern), path),
        };
        let grammar = grammar.map_err(|error| grammar_error(path, &error))?;
        Ok(Some(Arc::new(Framed::alone(grammar))))
    }
}

/// The grammar that `response_format` asks for, if it does.
pub(super) fn grammar(
    fields: &Fields<'_>,
    served: &Served,
) -> Result<Option<Arc<Framed>>, ApiError> {
    format_of(fields)?.grammar(served)
}

fn format_of(fields: &Fields<'_>) -> Result<Format, ApiError> {
    let Some(format) = fields.object("response_format")? else {
        return Ok(Format::Text);
    };
    match format.required("type", format.text("type")?)? {
        "text" => Ok(Format::Text),
        "json_object" => Ok(Format::Schema {
            schema: format
                .get("schema")
                .cloned()
                .unwrap_or_else(|| json!({"type": "object"})),
            path: format.path("schema"),
        }),
        "json_schema" => {
            let inner = format.required("json_schema", format.object("json_schema")?)?;
            let schema = inner.required("schema", inner.get("schema"))?;
            Ok(Format::Schema {
                schema: schema.clone(),
                path: inner.path("schema"),
            })
        }
        // Ours, as OpenAI's interface has none.
        "regex" => {
            let pattern = format.required("pattern", format.text("pattern")?)?;
            Ok(Format::Regex {
                pattern: pattern.to_string(),
                path: format.path("pattern"),
            })
        }
        _ => format.wrong("type", "must be text, json_object, json_schema or regex"),
    }
}
