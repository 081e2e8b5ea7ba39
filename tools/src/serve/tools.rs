//! Tools: what a request offers, how the model writes a call, and the grammar that holds it to that.

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use tandem_engine::constraint::Grammar;

use super::call_grammar::CallGrammar;
use super::error::ApiError;
use super::fields::Fields;
use super::{Served, grammar_error};
use crate::calls;
use crate::calls::reader::{CallForm, ToolForm};
use crate::calls::syntax::{CallBody, CallObject, CallSyntax};

const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 64;
/// The tools of a request, and whether they must, may or must not be called.
pub(super) struct Tools {
    tools: Vec<Tool>,
    /// As the client gave them, for the template.
    pub json: Value,
    pub choice: ToolChoice,
    pub parallel: bool,
}

pub(super) struct Tool {
    pub name: String,
    pub parameters: Value,
    /// Whether all of the schema is to be enforced.
    pub is_strict: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ToolChoice {
    Auto,
    /// Any tool.
    Required,
    /// The tool of this place.
    Named(usize),
}

impl Tools {
    /// Those of a request; none where it has none, or wants none to be called.
    pub(super) fn read(fields: &Fields<'_>) -> Result<Option<Tools>, ApiError> {
        let parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        let items = fields.array("tools")?.unwrap_or(&[]);
        if items.len() > MAX_TOOLS {
            return fields.wrong("tools", "must be at most 128");
        }
        let mut tools = Vec::new();
        let mut names = HashSet::new();
        for (i, item) in items.iter().enumerate() {
            let tool = read_tool(item, format!("tools[{i}]"))?;
            if !names.insert(tool.name.clone()) {
                return fields.wrong("tools", "must have different names");
            }
            tools.push(tool);
        }
        let choice = read_choice(fields, &tools)?;
        Ok(choice.filter(|_| !tools.is_empty()).map(|choice| Tools {
            tools,
            json: Value::Array(items.to_vec()),
            choice,
            parallel,
        }))
    }

    /// Those that may be called.
    fn callable(&self) -> impl Iterator<Item = &Tool> {
        let tools = self.tools.iter().enumerate();
        let callable =
            tools.filter(|(i, _)| !matches!(self.choice, ToolChoice::Named(named) if named != *i));
        callable.map(|(_, tool)| tool)
    }

    /// How the calls are read.
    pub(super) fn form(&self, syntax: &CallSyntax) -> CallForm {
        let tool = |tool: &Tool| ToolForm::of(&tool.name, &tool.parameters, syntax);
        CallForm {
            syntax: syntax.clone(),
            tools: self.callable().map(tool).collect(),
        }
    }

    /// The grammar of a call: of the JSON where it is an object, else of all that follows the mark.
    pub(super) fn grammar(&self, served: &Served) -> Result<Grammar, ApiError> {
        let grammars = served.grammars()?;
        let grammar = match &served.calls.body {
            CallBody::Object(object) => grammars.json_schema(&self.schema(object).to_string()),
            _ => {
                let tools: Vec<&Tool> = self.callable().collect();
                let text = CallGrammar::of(&served.calls, &tools, served.tokenizer()?)?;
                grammars.lark(&text)
            }
        };
        grammar.map_err(|error| grammar_error("tools", &error))
    }

    /// The schema of a call that is an object.
    fn schema(&self, object: &CallObject) -> Value {
        let mut definitions = Map::new();
        let mut calls = Vec::new();
        for (i, tool) in self.callable().enumerate() {
            let key = format!("tool{i}");
            let mut parameters = tool.parameters.clone();
            move_references(&mut parameters, &format!("#/$defs/{key}"));
            let arguments = format!("#/$defs/{key}");
            definitions.insert(key, parameters);
            let mut call = json!({
                "type": "object",
                "properties": {"name": {"const": tool.name}, object.arguments: {"$ref": arguments}},
                "required": ["name", object.arguments],
                "additionalProperties": false,
            });
            if object.has_id {
                call["properties"]["id"] = json!({"type": "string", "pattern": "^[a-zA-Z0-9]{9}$"});
                call["required"] = json!(["name", object.arguments, "id"]);
            }
            calls.push(call);
        }
        match &calls[..] {
            [one] => {
                let mut one = one.clone();
                one["$defs"] = Value::Object(definitions);
                one
            }
            _ => json!({"$defs": definitions, "anyOf": calls}),
        }
    }

    /// What a model is told of the tools whose template does not.
    pub(super) fn instructions(&self) -> String {
        calls::instructions(self.json.as_array().into_iter().flatten())
    }
}

fn read_tool(item: &Value, path: String) -> Result<Tool, ApiError> {
    let tool = Fields::of(item, path)?;
    if tool.text("type")?.unwrap_or("function") != "function" {
        return tool.wrong("type", "must be \"function\"");
    }
    let function = tool.required("function", tool.object("function")?)?;
    let name = function.required("name", function.text("name")?)?;
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_plain) {
        return function.wrong(
            "name",
            "must have 1 to 64 letters, digits, '_', '-' and '.'",
        );
    }
    function.text("description")?;
    let parameters = match function.get("parameters") {
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(Value::Object(parameters)) => {
            let mut parameters = parameters.clone();
            // Arguments are an object, whether the schema says so or not.
            parameters.entry("type").or_insert_with(|| "object".into());
            if !parameters.contains_key("properties") {
                parameters.insert("properties".to_string(), json!({}));
                parameters
                    .entry("additionalProperties")
                    .or_insert(false.into());
            }
            Value::Object(parameters)
        }
        Some(_) => return function.wrong("parameters", "must be an object"),
    };
    Ok(Tool {
        name: name.to_string(),
        parameters,
        is_strict: function.boolean("strict")?.unwrap_or(false),
    })
}

fn read_choice(fields: &Fields<'_>, tools: &[Tool]) -> Result<Option<ToolChoice>, ApiError> {
    let what = "must be \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": ...}}";
    match fields.get("tool_choice") {
        None => Ok(Some(ToolChoice::Auto)),
        Some(Value::String(choice)) => match &**choice {
            "none" => Ok(None),
            "auto" => Ok(Some(ToolChoice::Auto)),
            "required" if !tools.is_empty() => Ok(Some(ToolChoice::Required)),
            "required" => fields.wrong("tool_choice", "needs tools"),
            _ => fields.wrong("tool_choice", what),
        },
        Some(Value::Object(_)) => {
            let choice = fields.required("tool_choice", fields.object("tool_choice")?)?;
            if choice.text("type")? != Some("function") {
                return fields.wrong("tool_choice", what);
            }
            let function = choice.required("function", choice.object("function")?)?;
            let name = function.required("name", function.text("name")?)?;
            match tools.iter().position(|tool| tool.name == name) {
                Some(place) => Ok(Some(ToolChoice::Named(place))),
                None => function.wrong("name", "is none of the tools'"),
            }
        }
        Some(_) => fields.wrong("tool_choice", what),
    }
}

/// Makes references into the schema itself ones into the place where it is put.
pub(super) fn move_references(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                match value {
                    Value::String(target) if key == "$ref" => {
                        if let Some(rest) = target.strip_prefix('#') {
                            *target = format!("{place}{rest}");
                        }
                    }
                    value => move_references(value, place),
                }
            }
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| move_references(item, place)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_stay_inside_of_their_schemas() {
        let mut schema =
            json!({"$ref": "#/$defs/a", "x": [{"$ref": "#"}], "y": {"$ref": "http://z"}});
        move_references(&mut schema, "#/$defs/tool0");
        let wanted = json!({"$ref": "#/$defs/tool0/$defs/a", "x": [{"$ref": "#/$defs/tool0"}], "y": {"$ref": "http://z"}});
        assert_eq!(schema, wanted);
    }
}
