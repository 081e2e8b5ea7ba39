//! How a model writes calls of tools: learned from its chat template.
//!
//! The template is shown calls, and what it writes around their parts is cut out. Three kinds are known: JSON
//! objects with a name and arguments (Hermes, Llama, Mistral's lists), a name before the arguments' JSON (later
//! ones of Mistral), and arguments one by one between marks (Qwen 3.5, GLM, Gemma 4, LFM2).

use serde_json::{Map, Value, json};
use tandem_engine::chat::{Chat, Conversation, TemplateArgs};
use tandem_engine::tokenizer::{ControlTokens, TokenKind, Tokenizer};

use super::WRITTEN;

/// The most bytes that a template may write in one place of a call.
const MAX_MARK_BYTES: usize = 1024;

/// How calls stand in what the model writes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CallSyntax {
    /// What tells of a call: where it comes, one begins.
    pub mark: String,
    /// All that stands before the object or the name, the mark included unless that is a part of the object.
    pub begin: String,
    pub body: CallBody,
    pub end: String,
    /// Whether the template tells the model of the tools; else the system's message has to.
    pub in_template: bool,
}

/// What stands between a call's beginning and end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CallBody {
    Object(CallObject),
    Named {
        /// Between the name and the arguments' JSON.
        between: String,
    },
    Tagged(Box<CallTags>),
}

/// A call that is a JSON object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CallObject {
    /// What the arguments are called in it.
    pub arguments: &'static str,
    /// Whether the call has an identifier of nine letters and digits.
    pub has_id: bool,
}

/// Marks around the parts of a call: a name, then `open`, and for each argument its key, a `..._value` and the
/// value, with `join` before the next key or `close` after the last value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CallTags {
    pub open: String,
    /// Between a key and a text, which is written as it is.
    pub text_value: String,
    /// After a text; empty where the end of an argument is the same for all.
    pub text_end: String,
    /// Whether a text's end, backslashes and line breaks in it stand behind a backslash, as in Python.
    pub escapes: bool,
    /// Between a key and another value, which is JSON.
    pub json_value: String,
    pub join: String,
    pub close: String,
    /// All that follows the name where there are no arguments.
    pub empty: String,
}

impl CallSyntax {
    /// Hermes's, which many models know.
    pub(crate) fn hermes() -> CallSyntax {
        CallSyntax {
            mark: "<tool_call>".to_string(),
            begin: "<tool_call>\n".to_string(),
            body: CallBody::Object(CallObject {
                arguments: "arguments",
                has_id: false,
            }),
            end: "\n</tool_call>".to_string(),
            in_template: false,
        }
    }

    /// Learns from a template how it writes calls; where that is none of the known kinds, they are Hermes's.
    pub(crate) fn learn(chat: Option<&Chat>, tokenizer: &Tokenizer) -> CallSyntax {
        let learned = chat.and_then(|chat| Lesson::begin(chat)?.learn());
        let Some(mut syntax) = learned else {
            return CallSyntax::hermes();
        };
        syntax.mark = mark(&syntax, tokenizer);
        syntax
    }

    /// What follows the mark before the name or the JSON.
    pub(crate) fn after_mark(&self) -> &str {
        self.begin.strip_prefix(&*self.mark).unwrap_or("")
    }
}

/// The mark of a call: a control token, where the call begins with one; else its first line, as models may write
/// other white space after it.
fn mark(syntax: &CallSyntax, tokenizer: &Tokenizer) -> String {
    let vocab = tokenizer.vocab();
    let ids = tokenizer.encode(syntax.begin.as_bytes(), WRITTEN);
    let first = ids.ok().and_then(|ids| ids.first().copied());
    if let Some(id) = first
        && vocab.kind(id) == Some(TokenKind::Control)
        && let Ok(bytes) = vocab.token_bytes(id, ControlTokens::Show)
        && let Ok(text) = String::from_utf8(bytes)
        && syntax.begin.starts_with(&text)
    {
        return text;
    }
    let line = syntax.begin.lines().next().unwrap_or("").trim_end();
    match (line, &syntax.body) {
        ("", CallBody::Object(_)) => "{\"name\": ".to_string(),
        (line, _) => line.to_string(),
    }
}

/// A template that is shown calls.
struct Lesson<'a> {
    chat: &'a Chat,
    /// The conversation as it stands before the answer.
    prompt: String,
    /// What the template writes after an answer.
    after_answer: String,
}

const TOOLS: &str = r#"[{"type": "function", "function": {"name": "@name@", "description": "@what@",
    "parameters": {"type": "object", "properties": {"@key@": {"type": "string"}, "@num@": {"type": "integer"}}}}}]"#;
const NAME: &str = "@name@";
const TEXT_KEY: &str = "@key@";
const TEXT: &str = "@value@";
const NUMBER_KEY: &str = "@num@";
const NUMBER: &str = "12345";

fn question() -> Value {
    json!({"role": "user", "content": "@question@"})
}

impl<'a> Lesson<'a> {
    /// `None` where the template has no use for tools.
    fn begin(chat: &'a Chat) -> Option<Lesson<'a>> {
        let prompt = render(chat, &json!([question()]), "true")?;
        let said = json!([question(), {"role": "assistant", "content": "@answer@"}]);
        let said = render(chat, &said, "false")?;
        prompt.contains(NAME).then(|| Lesson {
            chat,
            after_answer: said
                .rsplit_once("@answer@")
                .map_or("", |(_, after)| after)
                .to_string(),
            prompt,
        })
    }

    /// The assistant's turn with so many calls with these arguments.
    fn turn(&self, arguments: &Value, n_calls: usize) -> Option<String> {
        let function = json!({"name": NAME, "arguments": arguments});
        let call = json!({"type": "function", "id": "call00000", "function": function});
        let calls = vec![call; n_calls];
        let called = json!({"role": "assistant", "content": "", "tool_calls": calls});
        let called = render(self.chat, &json!([question(), called]), "false")?;
        let same = self.prompt.bytes().zip(called.bytes());
        let n_same = same.take_while(|(a, b)| a == b).count();
        let turn = &called[called.floor_char_boundary(n_same)..];
        // Thoughts that the template writes for the model are its own affair.
        let turn = turn.rsplit("</think>").next().unwrap_or(turn);
        Some(turn.trim_start().to_string())
    }

    fn learn(&self) -> Option<CallSyntax> {
        let turn = self.turn(&json!({TEXT_KEY: TEXT}), 1)?;
        let syntax = match self.object(&turn) {
            Some(syntax) => Some(syntax),
            None => self.named(&turn).or_else(|| self.tagged(&turn)),
        };
        let fits = |text: &String| text.len() <= MAX_MARK_BYTES;
        syntax.filter(|syntax| fits(&syntax.begin) && fits(&syntax.end))
    }

    /// A call that is a JSON object with a name and arguments.
    fn object(&self, turn: &str) -> Option<CallSyntax> {
        let open = turn[..turn.find(NAME)?].rfind('{')?;
        let Read { value, rest } = read_object(&turn[open..])?;
        let mut keys = ["arguments", "parameters"].into_iter();
        let arguments = keys.find(|key| value.contains_key(*key))?;
        let has_id = value.get("id").is_some_and(|id| id == "call00000");
        let is_plain = value.len() == 2 + usize::from(has_id);
        if !is_plain
            || value.get("name").is_none_or(|name| name != NAME)
            || !value[arguments].is_object()
        {
            return None;
        }
        let begin = &turn[..open];
        Some(CallSyntax {
            mark: String::new(),
            begin: begin.to_string(),
            end: self.end(begin, rest, &json!({TEXT_KEY: TEXT})),
            body: CallBody::Object(CallObject { arguments, has_id }),
            in_template: true,
        })
    }

    /// A name, and the arguments' JSON after it.
    fn named(&self, turn: &str) -> Option<CallSyntax> {
        let (begin, after_name) = turn.split_once(NAME)?;
        let open = after_name.find('{')?;
        let Read { value, rest } = read_object(&after_name[open..])?;
        if value.len() != 1 || value.get(TEXT_KEY).is_none_or(|value| value != TEXT) {
            return None;
        }
        let between = after_name[..open].to_string();
        (!begin.is_empty()).then(|| CallSyntax {
            mark: String::new(),
            begin: begin.to_string(),
            end: self.end(begin, rest, &json!({TEXT_KEY: TEXT})),
            body: CallBody::Named { between },
            in_template: true,
        })
    }

    /// A name, and arguments one by one.
    fn tagged(&self, turn: &str) -> Option<CallSyntax> {
        let (begin, after_name) = turn.split_once(NAME)?;
        let (open, after_key) = after_name.split_once(TEXT_KEY)?;
        let (text_value, after_text) = after_key.split_once(TEXT)?;
        let number = self.turn(&json!({NUMBER_KEY: 12345}), 1)?;
        let (_, after_key) = number.split_once(NAME)?.1.split_once(NUMBER_KEY)?;
        let (json_value, after_number) = after_key.split_once(NUMBER)?;
        let text_end = after_text.strip_suffix(after_number)?;
        let both = json!({TEXT_KEY: TEXT, NUMBER_KEY: 12345});
        let two = self.turn(&both, 1)?;
        let (_, after_text) = two.split_once(TEXT)?;
        let join = after_text
            .split_once(NUMBER_KEY)?
            .0
            .strip_prefix(text_end)?;
        let close = self.end(begin, after_number, &json!({NUMBER_KEY: 12345}));
        let none = self.turn(&json!({}), 1);
        let empty = none.and_then(|none| Some(none.split_once(NAME)?.1.to_string()));
        let empty = empty.map(|empty| self.end(begin, &empty, &json!({})));
        let tags = CallTags {
            open: open.to_string(),
            text_value: text_value.to_string(),
            text_end: text_end.to_string(),
            escapes: self.escapes(text_end),
            json_value: json_value.to_string(),
            join: join.to_string(),
            empty: empty.unwrap_or_else(|| format!("{open}{close}")),
            close,
        };
        let is_clear = !begin.is_empty()
            && !tags.join.is_empty()
            && !tags.open.is_empty()
            && !tags.text_value.is_empty()
            && !tags.json_value.is_empty()
            && !tags.end_of_text().is_empty();
        is_clear.then(|| CallSyntax {
            mark: String::new(),
            begin: begin.to_string(),
            end: String::new(),
            body: CallBody::Tagged(Box::new(tags)),
            in_template: true,
        })
    }

    /// Whether texts that end so are written with backslashes.
    fn escapes(&self, text_end: &str) -> bool {
        let text = format!("{TEXT}{text_end}\\\n{TEXT}");
        let turn = self.turn(&json!({TEXT_KEY: text}), 1);
        let wanted = format!(
            "{TEXT}{}{TEXT}",
            escaped(text_end, &format!("{text_end}\\\n"))
        );
        text_end.chars().count() == 1 && turn.is_some_and(|turn| turn.contains(&wanted))
    }

    /// The part of `rest`, which follows what a call says, that belongs to the call: what stands before the next call,
    /// or before the end of the answer.
    fn end(&self, begin: &str, rest: &str, arguments: &Value) -> String {
        let mark = begin.trim_end();
        if let Some(two) = self.turn(arguments, 2)
            && !mark.is_empty()
            && let Some(second) = two.get(mark.len()..).and_then(|rest| rest.find(mark))
        {
            // The same stands after the first.
            let first = &two[..mark.len() + second];
            let n_rest = (0..=rest.len())
                .rev()
                .filter(|n| rest.is_char_boundary(*n))
                .find(|n| first.trim_end().ends_with(&rest[..*n]));
            return rest[..n_rest.unwrap_or(0)].trim_end().to_string();
        }
        match rest.strip_suffix(&*self.after_answer) {
            Some(end) => end,
            None => rest.split('<').next().unwrap_or(""),
        }
        .to_string()
    }
}

/// A text with a backslash before its end, backslashes and line breaks.
pub(crate) fn escaped(end: &str, text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c => {
                if c == '\\' || end.contains(c) {
                    out.push('\\');
                }
                out.push(c);
            }
        }
    }
    out
}

impl CallTags {
    /// What ends a text.
    pub(crate) fn end_of_text(&self) -> &str {
        if !self.text_end.is_empty() {
            return &self.text_end;
        }
        let same = self.join.bytes().zip(self.close.bytes());
        let n = same.take_while(|(a, b)| a == b).count();
        let same = &self.join[..self.join.floor_char_boundary(n)];
        // What begins a mark may begin a control token, of which no part is written.
        let open = same.rfind('<').filter(|open| !same[*open..].contains('>'));
        open.map_or(same, |open| &same[..open])
    }
}

fn render(chat: &Chat, messages: &Value, asks: &str) -> Option<String> {
    let mut args = TemplateArgs::new();
    args.set_json("tools", TOOLS).ok()?;
    args.set_json("add_generation_prompt", asks).ok()?;
    let conversation = Conversation {
        messages: &messages.to_string(),
        args: &args,
        continue_last: false,
    };
    chat.render_conversation(&conversation).ok()
}

struct Read<'a> {
    value: Map<String, Value>,
    rest: &'a str,
}

/// The JSON object that a text begins with.
fn read_object(text: &str) -> Option<Read<'_>> {
    let mut objects = serde_json::Deserializer::from_str(text).into_iter::<Map<String, Value>>();
    let value = objects.next()?.ok()?;
    let rest = &text[objects.byte_offset()..];
    Some(Read { value, rest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_engine::Model;

    fn learned(template: &str) -> CallSyntax {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/pocket-q8_0.gguf");
        let model = Model::open(fixture).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        let chat = Chat::new(template, tokenizer.vocab()).unwrap();
        CallSyntax::learn(Some(&chat), tokenizer)
    }

    /// Turns in ChatML, with tools and calls as `tools` and `calls` write them.
    fn chatml(tools: &str, calls: &str) -> String {
        format!(
            "{{% if tools %}}<|im_start|>system\n{tools}<|im_end|>\n{{% endif %}}\
             {{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n\
             {{% if m.tool_calls %}}{calls}\
             {{% else %}}{{{{ m.content }}}}{{% endif %}}<|im_end|>\n{{% endfor %}}\
             {{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        )
    }

    /// The same, with each call as `call` writes it.
    fn each(call: &str) -> String {
        chatml(
            TOOLS_JSON,
            &format!("{{% for c in m.tool_calls %}}{call}{{% endfor %}}"),
        )
    }

    const TOOLS_JSON: &str = "{{ tools | tojson }}";

    #[test]
    fn objects_are_learned() {
        let call = r#"<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>"#;
        let hermes = learned(&each(call));
        let in_template = true;
        let wanted = CallSyntax {
            in_template,
            ..CallSyntax::hermes()
        };
        assert_eq!(hermes, wanted);
        assert_eq!((&*hermes.mark, hermes.after_mark()), ("<tool_call>", "\n"));
        // Thoughts that a template writes are no part of the call.
        assert_eq!(
            learned(&each(&format!("<think>\n\n</think>\n\n{call}"))),
            hermes
        );
        // Llama's: nothing stands before, and the arguments are called otherwise.
        let call = r#"{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}"#;
        let llama = learned(&each(call));
        let body = CallBody::Object(CallObject {
            arguments: "parameters",
            has_id: false,
        });
        assert_eq!((&*llama.begin, &*llama.end, &llama.body), ("", "", &body));
        assert_eq!((&*llama.mark, llama.after_mark()), ("{\"name\": ", ""));
        // Mistral's first form: a list, with identifiers.
        let calls = r#"[TOOL_CALLS] [{% for c in m.tool_calls %}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}{{ ", " if not loop.last }}{% endfor %}]"#;
        let mistral = learned(&chatml(TOOLS_JSON, calls));
        let body = CallBody::Object(CallObject {
            arguments: "arguments",
            has_id: true,
        });
        assert_eq!(
            (&*mistral.begin, &*mistral.end, &mistral.body),
            ("[TOOL_CALLS] [", "]", &body)
        );
    }

    #[test]
    fn names_before_arguments_are_learned() {
        // Mistral's later form.
        let call = "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}";
        let named = learned(&each(call));
        let between = "[ARGS]".to_string();
        assert_eq!((&*named.begin, &*named.end), ("[TOOL_CALLS]", ""));
        assert_eq!(named.body, CallBody::Named { between });
        // A control token is the mark by itself.
        let call = "<s>call {{ c.function.name }}: {{ c.function.arguments | tojson }};";
        let named = learned(&each(call));
        assert_eq!(
            (&*named.mark, named.after_mark(), &*named.end),
            ("<s>", "call ", ";")
        );
    }

    fn tags(template: &str) -> (CallSyntax, CallTags) {
        let syntax = learned(template);
        match &syntax.body {
            CallBody::Tagged(tags) => (syntax.clone(), (**tags).clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn arguments_one_by_one_are_learned() {
        // As Qwen 3.5 has them.
        let call = "<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}\
                    <parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{{ \"\\n\" if not loop.last }}";
        let (syntax, xml) = tags(&each(call));
        assert_eq!(syntax.begin, "<tool_call>\n<function=");
        assert_eq!(
            (&*syntax.mark, syntax.after_mark()),
            ("<tool_call>", "\n<function=")
        );
        assert_eq!(
            (&*xml.open, &*xml.text_value, &*xml.text_end),
            (">\n<parameter=", ">\n", "")
        );
        assert_eq!(xml.join, "\n</parameter>\n<parameter=");
        assert_eq!(xml.close, "\n</parameter>\n</function>\n</tool_call>");
        assert_eq!(xml.empty, ">\n</function>\n</tool_call>");
        assert_eq!(xml.end_of_text(), "\n</parameter>\n");

        // As Gemma 4 has them: texts between marks of their own.
        let call = "<|tool_call>call:{{ c.function.name }}{{ \"{\" }}{% for k, v in c.function.arguments.items() %}\
                    {{ k }}:{% if v is string %}<|\"|>{{ v }}<|\"|>{% else %}{{ v }}{% endif %}{{ \",\" if not loop.last }}\
                    {% endfor %}{{ \"}\" }}<tool_call|>";
        let (syntax, marked) = tags(&each(call));
        assert_eq!(syntax.begin, "<|tool_call>call:");
        assert_eq!((&*marked.open, &*marked.join), ("{", ","));
        assert_eq!(
            (&*marked.text_value, &*marked.text_end),
            (":<|\"|>", "<|\"|>")
        );
        assert_eq!(
            (&*marked.json_value, &*marked.close),
            (":", "}<tool_call|>")
        );
        assert_eq!(marked.empty, "{}<tool_call|>");

        // As LFM2 has them: a list of Python's calls.
        let calls = "<|tool_call_start|>[{% for c in m.tool_calls %}{{ c.function.name }}(\
                     {% for k, v in c.function.arguments.items() %}{{ k }}={% if v is string %}'{{ v }}'{% else %}{{ v }}\
                     {% endif %}{{ \", \" if not loop.last }}{% endfor %}){{ \", \" if not loop.last }}{% endfor %}]<|tool_call_end|>";
        let (syntax, python) = tags(&chatml(TOOLS_JSON, calls));
        assert_eq!(syntax.begin, "<|tool_call_start|>[");
        assert_eq!(
            (&*python.open, &*python.text_value, &*python.text_end),
            ("(", "='", "'")
        );
        assert_eq!(python.close, ")]<|tool_call_end|>");
        assert!(!python.escapes);
        let quoted =
            r#"'{{ v | replace("\\", "\\\\") | replace("'", "\\'") | replace("\n", "\\n") }}'"#;
        let escaping = calls.replace("'{{ v }}'", quoted);
        assert!(tags(&chatml(TOOLS_JSON, &escaping)).1.escapes);
    }

    #[test]
    fn other_forms_are_written_as_hermes_writes_them() {
        let nameless = "<call>{{ c.function.arguments | tojson }}</call>";
        assert_eq!(learned(&each(nameless)), CallSyntax::hermes());
        // A template that has no use for tools.
        assert_eq!(learned(&chatml("", "")), CallSyntax::hermes());
    }
}
