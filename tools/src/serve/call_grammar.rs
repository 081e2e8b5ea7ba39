//! The grammar of calls that are no JSON as a whole, in llguidance's Lark.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use tandem_engine::tokenizer::{ControlTokens, EncodeOptions, TokenKind, Tokenizer};

use super::call_reader::ArgumentKind;
use super::call_syntax::{CallBody, CallSyntax, CallTags};
use super::calls::Tool;
use super::error::ApiError;

/// Properties of a tool's arguments where they are written one by one.
const MAX_PROPERTIES: usize = 64;

/// The text of a grammar, rule by rule.
pub(super) struct CallGrammar<'a> {
    tokenizer: &'a Tokenizer,
    text: String,
    n_rules: usize,
}

impl<'a> CallGrammar<'a> {
    /// The grammar of what follows a call's mark.
    pub(super) fn of(
        syntax: &CallSyntax,
        tools: &[&Tool],
        tokenizer: &'a Tokenizer,
    ) -> Result<String, ApiError> {
        let mut grammar = CallGrammar {
            tokenizer,
            text: String::new(),
            n_rules: 0,
        };
        let mut calls = Vec::new();
        for tool in tools {
            let rest = match &syntax.body {
                CallBody::Named { between } => {
                    let arguments = grammar.json(&tool.parameters, &tool.parameters);
                    let (between, end) = (grammar.marks(between), grammar.marks(&syntax.end));
                    format!("{between} {arguments} {end}")
                }
                CallBody::Tagged(tags) => grammar.tagged(tool, tags)?,
                CallBody::Object(_) => return Err(ApiError::internal()),
            };
            calls.push(format!("{} {rest}", plain(&tool.name)));
        }
        let begin = grammar.marks(syntax.after_mark());
        let start = format!("start: {begin} ({})\n", calls.join(" | "));
        Ok(start + &grammar.text)
    }

    fn rule(&mut self, attributes: &str, body: &str) -> String {
        let name = format!("r{}", self.n_rules);
        self.n_rules += 1;
        // Writing into a text cannot fail.
        let _ = writeln!(self.text, "{name}{attributes}: {body}");
        name
    }

    /// JSON of a schema that stands inside of `root`, which it may refer to.
    fn json(&mut self, schema: &Value, root: &Value) -> String {
        let mut schema = match schema {
            Value::Object(object) => object.clone(),
            Value::Bool(false) => Map::from_iter([("not".to_string(), json!({}))]),
            _ => Map::new(),
        };
        for key in ["$defs", "definitions"] {
            if let (Some(definitions), false) = (root.get(key), schema.contains_key(key)) {
                schema.insert(key.to_string(), definitions.clone());
            }
        }
        let spaces =
            json!({"whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?"});
        schema.insert("x-guidance".to_string(), spaces);
        self.rule("", &format!("%json {}", Value::Object(schema)))
    }

    /// All that follows the name of a call whose arguments are written one by one, in the order of the schema.
    fn tagged(&mut self, tool: &Tool, tags: &CallTags) -> Result<String, ApiError> {
        let refuse = |what: &str| {
            let param = format!("tools: the parameters of {}", tool.name);
            Err(ApiError::field(param, what).code("invalid_schema"))
        };
        let none = Map::new();
        let properties = match tool.parameters.get("properties") {
            Some(Value::Object(properties)) => properties,
            _ => &none,
        };
        let mut others = ["$ref", "anyOf", "oneOf", "allOf"].into_iter();
        if let Some(other) = others.find(|key| tool.parameters.get(key).is_some()) {
            return refuse(&format!(
                "must be properties, not {other}: this model writes arguments one by one"
            ));
        }
        if properties.len() > MAX_PROPERTIES {
            return refuse("must be at most 64");
        }
        let required: Vec<&str> = match tool.parameters.get("required") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if let Some(name) = required
            .iter()
            .find(|name| !properties.contains_key(**name))
        {
            return refuse(&format!(
                "must have the property {name:?}, as it is required"
            ));
        }
        // Where all arguments have one end, that is a part of each, and not of what follows.
        let end = match tags.text_end.is_empty() {
            true => tags.end_of_text(),
            false => "",
        };
        let after = |mark: &str| mark.strip_prefix(end).unwrap_or(mark).to_string();
        let (join, close) = (
            self.marks(&after(&tags.join)),
            self.marks(&after(&tags.close)),
        );
        let (open, empty) = (self.marks(&tags.open), self.marks(&tags.empty));
        // From the last property to the first: what may follow, with arguments before it and without.
        let (mut more, mut first) = (close, empty);
        for (key, schema) in properties.iter().rev() {
            let value = self.argument(tool, schema, &Ends { tags, end })?;
            let argument = format!("{} {value} {more}", plain(key));
            let is_required = required.contains(&&**key);
            let or = |rest: &str| match is_required {
                true => String::new(),
                false => format!(" | {rest}"),
            };
            let next_more = self.rule("", &format!("{join} {argument}{}", or(&more)));
            first = self.rule("", &format!("{open} {argument}{}", or(&first)));
            more = next_more;
        }
        Ok(first)
    }

    /// What follows the key of an argument, up to its end.
    fn argument(
        &mut self,
        tool: &Tool,
        schema: &Value,
        ends: &Ends<'_>,
    ) -> Result<String, ApiError> {
        let Ends { tags, end } = ends;
        if kind(schema, &tool.parameters) == ArgumentKind::Json {
            let (mark, value) = (
                self.marks(&tags.json_value),
                self.json(schema, &tool.parameters),
            );
            return Ok(format!("{mark} {value} {}", self.marks(end)));
        }
        let schema = resolved(schema, &tool.parameters);
        let mut unenforced = ["pattern", "format"].into_iter();
        if let Some(key) = unenforced.find(|key| tool.is_strict && schema.get(key).is_some()) {
            let param = format!("tools: a parameter of {}", tool.name);
            let what = format!(
                "has a {key}, which cannot be enforced in the form that this model writes calls in"
            );
            return Err(ApiError::field(param, &what).code("invalid_schema"));
        }
        let mark = self.marks(&tags.text_value);
        let end = match tags.text_end.is_empty() {
            true => end,
            false => &*tags.text_end,
        };
        if let Some(choices) = choices(schema) {
            let choices: Vec<String> = choices.iter().map(|text| plain(text)).collect();
            return Ok(format!(
                "{mark} ({}) {}",
                choices.join(" | "),
                self.marks(end)
            ));
        }
        let length = |key| schema.get(key).and_then(Value::as_u64);
        let text = match (length("minLength"), length("maxLength")) {
            (None, None) => "/(?s:.*)/".to_string(),
            (least, most) => {
                let most = most.map_or(String::new(), |most| most.to_string());
                format!("/(?s:.{{{},{most}}})/", least.unwrap_or(0))
            }
        };
        let text = match self.control_tokens(end).is_empty() {
            // The shortest that the end follows, which is part of it.
            true => self.rule(&format!("[suffix={}]", plain(end)), &text),
            false => {
                let text = self.rule("", &text);
                format!("{text} {}", self.marks(end))
            }
        };
        Ok(format!("{mark} {text}"))
    }

    /// A text of the template's, in which the texts of control tokens are these.
    fn marks(&self, text: &str) -> String {
        let mut out = Vec::new();
        let mut rest = text;
        for control in self.control_tokens(text) {
            if let Some((before, after)) = rest.split_once(&*control.text) {
                out.push(plain(before));
                out.push(format!("<[{}]>", control.id));
                rest = after;
            }
        }
        out.push(plain(rest));
        out.retain(|part| part != "\"\"");
        match out.is_empty() {
            true => "\"\"".to_string(),
            false => out.join(" "),
        }
    }

    /// The control tokens in a text of the template's, in their order.
    fn control_tokens(&self, text: &str) -> Vec<Control> {
        let options = EncodeOptions {
            add_special: false,
            parse_special: true,
        };
        let vocab = self.tokenizer.vocab();
        let ids = self
            .tokenizer
            .encode(text.as_bytes(), options)
            .unwrap_or_default();
        let is_control = |id: &u32| vocab.kind(*id) == Some(TokenKind::Control);
        let controls = ids.into_iter().filter(is_control).filter_map(|id| {
            let bytes = vocab.token_bytes(id, ControlTokens::Show).ok()?;
            let text = String::from_utf8(bytes).ok()?;
            Some(Control { id, text })
        });
        controls.collect()
    }
}

struct Control {
    id: u32,
    text: String,
}

/// What ends arguments.
struct Ends<'a> {
    tags: &'a CallTags,
    /// The end that all of them have, or nothing.
    end: &'a str,
}

/// A text of which nothing is a control token.
fn plain(text: &str) -> String {
    Value::from(text).to_string()
}

/// A schema, or the one that it refers to.
fn resolved<'a>(mut schema: &'a Value, root: &'a Value) -> &'a Value {
    // Those that refer to each other in a circle have no meaning.
    for _ in 0..8 {
        let target = schema.get("$ref").and_then(Value::as_str);
        let target = target.and_then(|target| target.strip_prefix('#'));
        match target.and_then(|pointer| root.pointer(pointer)) {
            Some(found) => schema = found,
            None => break,
        }
    }
    schema
}

/// The texts that a schema allows, where it lists them.
fn choices(schema: &Value) -> Option<Vec<&str>> {
    let all = match (schema.get("const"), schema.get("enum")) {
        (Some(one), _) => std::slice::from_ref(one),
        (None, Some(Value::Array(all))) => &all[..],
        _ => return None,
    };
    let texts: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
    (!texts.is_empty()).then_some(texts)
}

/// What an argument of a schema is.
pub(super) fn kind(schema: &Value, root: &Value) -> ArgumentKind {
    let schema = resolved(schema, root);
    match schema.get("type") {
        Some(Value::String(name)) if name == "string" => return ArgumentKind::Text,
        Some(Value::Array(names)) if names.iter().any(|name| name == "string") => {
            return ArgumentKind::TextOrJson;
        }
        Some(_) => return ArgumentKind::Json,
        None => {}
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(Value::Array(all)) = schema.get(key) {
            let is_text = all.iter().any(|one| kind(one, root) != ArgumentKind::Json);
            return if is_text {
                ArgumentKind::TextOrJson
            } else {
                ArgumentKind::Json
            };
        }
    }
    match choices(schema) {
        Some(_) => ArgumentKind::Text,
        None => ArgumentKind::Json,
    }
}
