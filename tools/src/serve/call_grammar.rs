//! The grammar of calls that are no JSON as a whole, in llguidance's Lark.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use tandem_engine::constraint::JSON_SPACING;
use tandem_engine::tokenizer::{ControlTokens, TokenKind, Tokenizer};

use super::error::ApiError;
use super::tools::{Tool, move_references};
use crate::calls::WRITTEN;
use crate::calls::argument::{ArgumentForm, TextForm};
use crate::calls::syntax::{CallBody, CallSyntax, CallTags, escaped};

/// Properties of a tool's arguments where they are written one by one.
const MAX_PROPERTIES: usize = 64;
/// The longest grammar.
const MAX_GRAMMAR_BYTES: usize = 256 << 10;

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
                    let arguments = grammar.json(&tool.parameters, &tool.parameters)?;
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

    fn terminal(&mut self, body: &str) -> String {
        let name = format!("T{}", self.n_rules);
        self.n_rules += 1;
        let _ = writeln!(self.text, "{name}: {body}");
        name
    }

    /// JSON of a schema that stands inside of `root`, which it may refer to.
    fn json(&mut self, schema: &Value, root: &Value) -> Result<String, ApiError> {
        let mut schema = schema.clone();
        if refers(&schema) {
            let mut root = root.clone();
            for inner in [&mut schema, &mut root] {
                move_references(inner, "#/$defs/root");
            }
            schema = json!({"allOf": [schema], "$defs": {"root": root}});
        }
        if !schema.is_object() {
            schema = match schema {
                Value::Bool(false) => json!({"not": {}}),
                _ => json!({}),
            };
        }
        schema["x-guidance"] = serde_json::from_str(JSON_SPACING).unwrap_or_default();
        let rule = self.rule("", &format!("%json {schema}"));
        if self.text.len() > MAX_GRAMMAR_BYTES {
            let error = ApiError::field("tools", "are too large for this model's form of calls");
            return Err(error.code("schema_too_complex"));
        }
        Ok(rule)
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
            let form = ArgumentForm::of(key, schema, &tool.parameters);
            let value = self.argument(tool, &form, &Ends { tags, end })?;
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
        form: &ArgumentForm,
        ends: &Ends<'_>,
    ) -> Result<String, ApiError> {
        let Ends { tags, end } = ends;
        let mut alternatives = Vec::new();
        for schema in &form.json {
            let value = self.json(schema, &tool.parameters)?;
            let mark = self.marks(&tags.json_value);
            alternatives.push(format!("{mark} {value} {}", self.marks(end)));
        }
        if let Some(text) = &form.text {
            if let Some(keyword) = text.unenforced.filter(|_| tool.is_strict) {
                let param = format!("tools: the parameter {} of {}", form.key, tool.name);
                let what = format!(
                    "has a {keyword}, which cannot be enforced in the form that this model writes calls in"
                );
                return Err(ApiError::field(param, &what).code("invalid_schema"));
            }
            let mark = self.marks(&tags.text_value);
            let text = self.text(text, tags);
            alternatives.push(format!("{mark} {text}"));
        }
        Ok(format!("({})", alternatives.join(" | ")))
    }

    /// A text, which does not have its end in it, and that.
    fn text(&mut self, form: &TextForm, tags: &CallTags) -> String {
        let (end, escapes) = (tags.end_of_text(), tags.escapes);
        if !form.choices.is_empty() {
            let choices = form.choices.iter().map(|text| match escapes {
                true => plain(&escaped(end, text)),
                false => plain(text),
            });
            let choices: Vec<String> = choices.collect();
            return format!("({}) {}", choices.join(" | "), self.marks(end));
        }
        let most = form.most.map_or(String::new(), |most| most.to_string());
        let least = form.least;
        if escapes {
            let one = format!("(?:[^{}\\\\\\n]|\\\\(?s:.))", pattern(end));
            let text = self.terminal(&format!("/{one}{{{least},{most}}}/"));
            return format!("{text}? {}", self.marks(end));
        }
        let body = format!(
            "/(?s:.{{{least},{most}}})/ & ~/(?s:.*){}(?s:.*)/",
            pattern(end)
        );
        match self.control_tokens(end).is_empty() {
            true => self.rule(&format!("[suffix={}]", plain(end)), &body),
            false => {
                let text = self.terminal(&body);
                format!("{text}? {}", self.marks(end))
            }
        }
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
        let vocab = self.tokenizer.vocab();
        let ids = self
            .tokenizer
            .encode(text.as_bytes(), WRITTEN)
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

/// A regular expression of this text.
fn pattern(text: &str) -> String {
    let escaped = text.chars().map(|c| match c.is_ascii_alphanumeric() {
        true => c.to_string(),
        false => format!("\\x{{{:x}}}", u32::from(c)),
    });
    escaped.collect()
}

/// Whether a schema refers to others.
fn refers(schema: &Value) -> bool {
    match schema {
        Value::Object(object) => object.contains_key("$ref") || object.values().any(refers),
        Value::Array(items) => items.iter().any(refers),
        _ => false,
    }
}
