//! Reads calls of tools as the model writes them, and tells them as OpenAI's clients want them.

use std::sync::Arc;

use serde_json::Value;

use super::Delta;
use super::argument::ArgumentForm;
use super::syntax::{CallBody, CallSyntax, CallTags};

/// How calls are written, and of which tools.
#[derive(Debug)]
pub(crate) struct CallForm {
    pub syntax: CallSyntax,
    pub tools: Vec<ToolForm>,
}

impl Default for CallForm {
    fn default() -> CallForm {
        CallForm {
            syntax: CallSyntax::hermes(),
            tools: Vec::new(),
        }
    }
}

/// A tool, and how its arguments are written where they are between marks.
#[derive(Debug)]
pub(crate) struct ToolForm {
    pub name: String,
    pub arguments: Vec<ArgumentForm>,
}

impl ToolForm {
    pub(crate) fn of(name: &str, parameters: &Value, syntax: &CallSyntax) -> ToolForm {
        let is_tagged = matches!(syntax.body, CallBody::Tagged(_));
        let properties = parameters.get("properties").filter(|_| is_tagged);
        let properties = properties.and_then(Value::as_object).into_iter().flatten();
        let arguments = properties.map(|(key, schema)| ArgumentForm::of(key, schema, parameters));
        ToolForm {
            name: name.to_string(),
            arguments: arguments.collect(),
        }
    }
}

/// Reads a call as it comes. Arguments that are JSON are told piece by piece, those between marks at the end.
#[derive(Debug)]
pub(crate) struct CallReader {
    form: Arc<CallForm>,
    /// What came before the arguments.
    head: String,
    arguments: Option<Nesting>,
    is_told: bool,
}

/// How deep inside a JSON value a text is.
#[derive(Debug, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    is_over: bool,
}

impl CallReader {
    pub(crate) fn new(form: &Arc<CallForm>) -> CallReader {
        CallReader {
            form: Arc::clone(form),
            head: String::new(),
            arguments: None,
            is_told: false,
        }
    }

    pub(crate) fn push(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        if let Some(nesting) = &mut self.arguments {
            return nesting.push(text, deltas);
        }
        self.head.push_str(text);
        let syntax = &self.form.syntax;
        let found = match &syntax.body {
            CallBody::Object(_) => find_arguments(&self.head),
            CallBody::Named { between } => find_named(&self.head, syntax, between),
            CallBody::Tagged(_) => None,
        };
        if let Some(found) = found {
            let mut nesting = Nesting::default();
            deltas.push(Delta::Call(found.name));
            self.is_told = true;
            nesting.push(&self.head[found.at..], deltas);
            self.arguments = Some(nesting);
        }
    }

    /// Whether the call was told.
    #[cfg(feature = "serve")]
    pub(crate) fn is_told(&self) -> bool {
        self.is_told
    }

    /// The call is complete.
    pub(crate) fn finish(&mut self, deltas: &mut Vec<Delta>) {
        let CallBody::Tagged(tags) = &self.form.syntax.body else {
            return;
        };
        let head = std::mem::take(&mut self.head);
        let call = after_begin(&head, &self.form.syntax);
        // The longest, as one name may begin another.
        let tools = self
            .form
            .tools
            .iter()
            .filter(|tool| call.starts_with(&tool.name));
        if let Some(tool) = tools.max_by_key(|tool| tool.name.len()) {
            let arguments = read_tagged(&call[tool.name.len()..], tags, tool);
            deltas.push(Delta::Call(tool.name.clone()));
            self.is_told = true;
            deltas.push(Delta::Arguments(arguments));
        }
    }
}

/// What follows a call's beginning, of which the first part may have been taken already.
fn after_begin<'a>(text: &'a str, syntax: &CallSyntax) -> &'a str {
    // Vocabularies of SentencePiece's kind begin it with a space.
    let marked = text.trim_start().strip_prefix(&*syntax.mark);
    let text = marked.unwrap_or(text);
    text.strip_prefix(syntax.after_mark()).unwrap_or(text)
}

/// The name and the arguments' beginning where the name stands first.
fn find_named(head: &str, syntax: &CallSyntax, between: &str) -> Option<Arguments> {
    let call = after_begin(head, syntax);
    let (name, json) = match between.is_empty() {
        true => call.split_at(call.find('{')?),
        false => call.split_once(between)?,
    };
    (!json.is_empty()).then(|| Arguments {
        name: name.to_string(),
        at: head.len() - json.len(),
    })
}

/// The arguments between marks, as far as they are there, as one JSON object. What is JSON already stays as it is: a
/// long number would not survive being read.
fn read_tagged(mut text: &str, tags: &CallTags, tool: &ToolForm) -> String {
    let mut arguments = Vec::new();
    let mut before = &*tags.open;
    while let Some(rest) = text.strip_prefix(before) {
        let argument = tool.arguments.iter().filter(|argument| {
            let rest = rest.strip_prefix(&*argument.key);
            rest.is_some_and(|rest| {
                rest.starts_with(&tags.text_value) || rest.starts_with(&tags.json_value)
            })
        });
        let Some(argument) = argument.max_by_key(|argument| argument.key.len()) else {
            break;
        };
        let Some(read) = read_value(&rest[argument.key.len()..], tags, argument) else {
            break;
        };
        arguments.push(format!("{}:{}", Value::from(&*argument.key), read.json));
        text = read.rest;
        before = &tags.join;
    }
    format!("{{{}}}", arguments.join(","))
}

struct ReadValue<'a> {
    json: String,
    /// What follows, from the end that all arguments have on.
    rest: &'a str,
}

fn read_value<'a>(
    text: &'a str,
    tags: &CallTags,
    argument: &ArgumentForm,
) -> Option<ReadValue<'a>> {
    // Where marks tell texts from others, they do.
    let is_marked = tags.text_value != tags.json_value;
    let as_text = argument.text.as_ref().and_then(|form| {
        let body = text.strip_prefix(&*tags.text_value)?;
        let end = tags.end_of_text();
        if tags.escapes {
            return read_escaped(body, end);
        }
        let is_here = |choice: &&String| {
            body.strip_prefix(&***choice)
                .is_some_and(|rest| rest.starts_with(end))
        };
        // A choice may have the end in it.
        let chosen = form
            .choices
            .iter()
            .filter(is_here)
            .max_by_key(|choice| choice.len());
        let n = chosen.map_or_else(|| body.find(end), |choice| Some(choice.len()))?;
        let json = Value::from(&body[..n]).to_string();
        let rest = &body[n + tags.text_end.len()..];
        Some(ReadValue { json, rest })
    });
    let as_json = || {
        let body = text.strip_prefix(&*tags.json_value)?;
        let n = json_len(body)?;
        let value: Value = serde_json::from_str(&body[..n]).ok()?;
        let rest = &body[n..];
        let is_over = is_marked || rest.starts_with(tags.end_of_text());
        let json = body[..n].to_string();
        (argument.allows(&value, &json) && is_over).then_some(ReadValue { json, rest })
    };
    match is_marked {
        true => as_text.or_else(as_json),
        false => as_json().or(as_text),
    }
}

/// A text with backslashes, up to its end.
fn read_escaped<'a>(body: &'a str, end: &str) -> Option<ReadValue<'a>> {
    let mut text = String::new();
    let mut chars = body.char_indices();
    while let Some((i, c)) = chars.next() {
        if body[i..].starts_with(end) {
            return Some(ReadValue {
                json: Value::from(text).to_string(),
                rest: &body[i + end.len()..],
            });
        }
        match c {
            '\\' => match chars.next()?.1 {
                'n' => text.push('\n'),
                'r' => text.push('\r'),
                't' => text.push('\t'),
                c if c == '\\' || c == '"' || end.contains(c) => text.push(c),
                c => text.extend(['\\', c]),
            },
            c => text.push(c),
        }
    }
    None
}

/// Bytes of the JSON value that a text begins with.
fn json_len(text: &str) -> Option<usize> {
    if text.starts_with(['{', '[', '"']) {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        values.next()?.ok()?;
        return Some(values.byte_offset());
    }
    let is_scalar = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    text.find(|c| !is_scalar(c)).or(Some(text.len()))
}

impl Nesting {
    /// Gives out what of `text` belongs to the value.
    fn push(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        if self.is_over {
            return;
        }
        let mut end = text.len();
        for (i, c) in text.char_indices() {
            match c {
                _ if self.is_escaped => self.is_escaped = false,
                '\\' if self.in_string => self.is_escaped = true,
                '"' => self.in_string = !self.in_string,
                '{' | '[' if !self.in_string => self.depth += 1,
                '}' | ']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        self.is_over = true;
                        end = i + 1;
                        break;
                    }
                }
                _ => {}
            }
        }
        if end > 0 {
            deltas.push(Delta::Arguments(text[..end].to_string()));
        }
    }
}

struct Arguments {
    name: String,
    /// Where they begin.
    at: usize,
}

/// The beginning of a call's arguments in a text, and the name before it.
fn find_arguments(head: &str) -> Option<Arguments> {
    let open = head.find('{')?;
    // A tool may be called so, too: the key is what a colon follows.
    let keys = ["\"arguments\"", "\"parameters\""].into_iter();
    let mut places = keys.flat_map(|key| head.match_indices(key));
    let (before, rest) = places.find_map(|(at, key)| {
        let rest = head[at + key.len()..].trim_start().strip_prefix(':')?;
        Some((at, rest.trim_start()))
    })?;
    let at = head.len() - rest.len();
    if rest.is_empty() {
        return None;
    }
    let call = format!("{}}}", head[open..before].trim_end().trim_end_matches(','));
    let call: Value = serde_json::from_str(&call).ok()?;
    let name = call.get("name")?.as_str()?.to_string();
    Some(Arguments { name, at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::syntax::CallObject;
    use serde_json::json;

    fn read(form: CallForm, pieces: &[&str]) -> Vec<Delta> {
        let mut reader = CallReader::new(&Arc::new(form));
        let mut deltas = Vec::new();
        for piece in pieces {
            reader.push(piece, &mut deltas);
        }
        reader.finish(&mut deltas);
        deltas
    }

    /// The name, and the arguments put together, of a text as a whole and character by character.
    fn call(form: impl Fn() -> CallForm, text: &str) -> Vec<Delta> {
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let pieces: Vec<&str> = chars.iter().map(|s| &**s).collect();
        let joined = |deltas: Vec<Delta>| {
            let mut out: Vec<Delta> = Vec::new();
            for delta in deltas {
                match (out.last_mut(), delta) {
                    (Some(Delta::Arguments(before)), Delta::Arguments(more)) => {
                        before.push_str(&more)
                    }
                    (_, delta) => out.push(delta),
                }
            }
            out
        };
        let whole = joined(read(form(), &[text]));
        assert_eq!(joined(read(form(), &pieces)), whole);
        whole
    }

    fn wanted(name: &str, arguments: &str) -> Vec<Delta> {
        vec![
            Delta::Call(name.to_string()),
            Delta::Arguments(arguments.to_string()),
        ]
    }

    #[test]
    fn objects_are_read_piece_by_piece() {
        let whole = r#"<tool_call>
{"name": "f", "arguments": {"a}": "\"}", "b": [{}]}}
</tool_call>"#;
        assert_eq!(
            call(CallForm::default, whole),
            wanted("f", r#"{"a}": "\"}", "b": [{}]}"#)
        );
        assert_eq!(call(CallForm::default, r#"{"name": "f", "arguments":"#), []);
        let odd = call(
            CallForm::default,
            r#"{"name": "arguments", "arguments": {}}"#,
        );
        assert_eq!(odd, wanted("arguments", "{}"));
        let with_id = || CallForm {
            syntax: CallSyntax {
                mark: "[TOOL_CALLS]".to_string(),
                begin: "[TOOL_CALLS] [".to_string(),
                body: CallBody::Object(CallObject {
                    arguments: "arguments",
                    has_id: true,
                }),
                end: "]".to_string(),
                in_template: true,
            },
            tools: Vec::new(),
        };
        let text = r#"[{"name": "f", "arguments": {"x": 1}, "id": "abcdefghi"}]"#;
        assert_eq!(call(with_id, text), wanted("f", r#"{"x": 1}"#));
    }

    #[test]
    fn names_before_arguments_are_read() {
        let form = || CallForm {
            syntax: CallSyntax {
                mark: "[TOOL_CALLS]".to_string(),
                begin: "[TOOL_CALLS]".to_string(),
                body: CallBody::Named {
                    between: "[ARGS]".to_string(),
                },
                end: String::new(),
                in_template: true,
            },
            tools: Vec::new(),
        };
        for text in [r#"f[ARGS]{"x": [1]}"#, r#"[TOOL_CALLS]f[ARGS]{"x": [1]}"#] {
            assert_eq!(call(form, text), wanted("f", r#"{"x": [1]}"#));
        }
    }

    fn tagged(mark: &str, begin: &str, tags: [&str; 7]) -> CallForm {
        let [open, text_value, text_end, json_value, join, close, empty] = tags.map(str::to_string);
        let argument = |key: &str, schema| ArgumentForm::of(key, &schema, &Value::Null);
        let tool = |name: &str| ToolForm {
            name: name.to_string(),
            arguments: vec![
                argument("a", json!({"type": "string"})),
                argument("ab", json!({"type": ["array", "boolean", "number"]})),
                argument("c", json!({"type": ["string", "null"]})),
                argument("d", json!({"enum": ["no", "don't know"]})),
            ],
        };
        CallForm {
            syntax: CallSyntax {
                mark: mark.to_string(),
                begin: begin.to_string(),
                body: CallBody::Tagged(Box::new(CallTags {
                    open,
                    text_value,
                    text_end,
                    escapes: false,
                    json_value,
                    join,
                    close,
                    empty,
                })),
                end: String::new(),
                in_template: true,
            },
            tools: vec![tool("f"), tool("f_more")],
        }
    }

    #[test]
    fn arguments_one_by_one_are_read() {
        let close = "\n</parameter>\n</function>\n</tool_call>";
        let (open, join) = (">\n<parameter=", "\n</parameter>\n<parameter=");
        let empty = ">\n</function>\n</tool_call>";
        let xml = || {
            tagged(
                "<tool_call>",
                "<tool_call>\n<function=",
                [open, ">\n", "", ">\n", join, close, empty],
            )
        };
        let text =
            format!("\n<function=f_more{open}a>\n5 < 6\n{join}ab>\n[1, {{}}]{join}c>\nnull{close}");
        let arguments = r#"{"a":"5 < 6\n","ab":[1, {}],"c":null}"#;
        assert_eq!(call(xml, &text), wanted("f_more", arguments));
        assert_eq!(
            call(xml, &format!("<tool_call>{text}")),
            wanted("f_more", arguments)
        );
        assert_eq!(
            call(xml, &format!("\n<function=f{empty}")),
            wanted("f", "{}")
        );

        let mark = "<|\"|>";
        let gemma = || {
            tagged(
                "<|tool_call>",
                "<|tool_call>call:",
                [
                    "{",
                    ":<|\"|>",
                    mark,
                    ":",
                    ",",
                    "}<tool_call|>",
                    "{}<tool_call|>",
                ],
            )
        };
        let text = "call:f{a:<|\"|>x, \"y\"}<|\"|>,ab:true,c:<|\"|>z<|\"|>}<tool_call|>";
        assert_eq!(
            call(gemma, text),
            wanted("f", r#"{"a":"x, \"y\"}","ab":true,"c":"z"}"#)
        );

        // As GLM writes them, and LFM2: numbers, texts that look like others, ends in choices.
        let (open, value, join) = (
            "\n<arg_key>",
            "</arg_key>\n<arg_value>",
            "</arg_value>\n<arg_key>",
        );
        let close = "</arg_value>\n</tool_call>";
        let glm = || {
            tagged(
                "<tool_call>",
                "<tool_call>",
                [open, value, "", value, join, close, "\n</tool_call>"],
            )
        };
        let text = format!("f{open}ab{value}-1.5e3{join}c{value}94103{join}a{value}null{close}");
        assert_eq!(
            call(glm, &text),
            wanted("f", r#"{"ab":-1.5e3,"c":"94103","a":"null"}"#)
        );
        let lfm2 = || {
            tagged(
                "<|tool_call_start|>",
                "<|tool_call_start|>[",
                ["(", "='", "'", "=", ", ", ")]", "()]"],
            )
        };
        let text = "[f(ab=12, d='don't know', c=null)]";
        assert_eq!(
            call(lfm2, text),
            wanted("f", r#"{"ab":12,"d":"don't know","c":null}"#)
        );
        let escaping = || {
            let mut form = lfm2();
            if let CallBody::Tagged(tags) = &mut form.syntax.body {
                tags.escapes = true;
            }
            form
        };
        let text = r"[f(a='it\'s\n\\ \d', d='don\'t know')]";
        let arguments = r#"{"a":"it's\n\\ \\d","d":"don't know"}"#;
        assert_eq!(call(escaping, text), wanted("f", arguments));
    }
}
