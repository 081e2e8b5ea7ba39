//! Tools: what a request offers, how the model writes a call, and the grammar that holds it to that.

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use tandem_engine::chat::{Chat, Conversation, TemplateArgs};

use super::error::ApiError;
use super::fields::Fields;
use super::grammar_error;
use tandem_engine::constraint::{Grammar, Grammars};

const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 64;
/// The most bytes that a template may write before a call's JSON, and after it.
const MAX_FRAME_BYTES: usize = 1024;

/// How calls stand in what the model writes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CallSyntax {
    /// Before a call's JSON.
    pub begin: String,
    pub end: String,
    /// What the arguments are called in it.
    arguments: &'static str,
    /// Whether the template tells the model of the tools; else the system's message has to.
    pub in_template: bool,
}

impl CallSyntax {
    /// Hermes's, which many models know.
    fn hermes() -> CallSyntax {
        CallSyntax {
            begin: "<tool_call>\n".to_string(),
            end: "\n</tool_call>".to_string(),
            arguments: "arguments",
            in_template: false,
        }
    }

    /// Learns from a template how it writes calls: it is shown one, and what stands around it is cut out.
    /// Where it does not write them as JSON with a name and arguments, they are Hermes's.
    pub(super) fn learn(chat: Option<&Chat>) -> CallSyntax {
        let learned = chat.and_then(learn);
        learned.unwrap_or_else(CallSyntax::hermes)
    }

    /// The text that tells of a call: where it comes, one begins.
    pub(super) fn mark(&self) -> String {
        match self.begin.trim_end() {
            "" => "{\"name\": ".to_string(),
            begin => begin.to_string(),
        }
    }
}

fn learn(chat: &Chat) -> Option<CallSyntax> {
    let tools = r#"[{"type":"function","function":{"name":"@name@","description":"@what@",
        "parameters":{"type":"object","properties":{"@key@":{"type":"string"}}}}}]"#;
    let render = |messages: &Value, prompt: bool| {
        let mut args = TemplateArgs::new();
        args.set_json("tools", tools).ok()?;
        args.set_json(
            "add_generation_prompt",
            if prompt { "true" } else { "false" },
        )
        .ok()?;
        let conversation = Conversation {
            messages: &messages.to_string(),
            args: &args,
            continue_last: false,
        };
        chat.render_conversation(&conversation).ok()
    };
    let user = json!({"role": "user", "content": "@question@"});
    let prompt = render(&json!([user]), true)?;
    if !prompt.contains("@name@") {
        return None;
    }
    let said = json!({"role": "assistant", "content": "@answer@"});
    let said = render(&json!([user, said]), false)?;
    let after_answer = said.rsplit_once("@answer@")?.1;
    let function = json!({"name": "@name@", "arguments": {"@key@": "@value@"}});
    let call = json!([{"type": "function", "id": "call00000", "function": function}]);
    let called = json!({"role": "assistant", "content": "", "tool_calls": call});
    let called = render(&json!([user, called]), false)?;
    // From the beginning of the assistant's turn to the end of the call's JSON.
    let n_same = prompt
        .bytes()
        .zip(called.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    let n_same = called.floor_char_boundary(n_same);
    let turn = &called[n_same..];
    let open = turn[..turn.find("@name@")?].rfind('{')?;
    let mut objects =
        serde_json::Deserializer::from_str(&turn[open..]).into_iter::<Map<String, Value>>();
    let object = objects.next()?.ok()?;
    let close = open + objects.byte_offset();
    let arguments = ["arguments", "parameters"]
        .into_iter()
        .find(|key| object.contains_key(*key))?;
    let is_plain = object.len() == 2 && object.get("name").is_some_and(|name| name == "@name@");
    if !is_plain || !object[arguments].is_object() {
        return None;
    }
    let end = &turn[close..];
    if open > MAX_FRAME_BYTES || end.len() > MAX_FRAME_BYTES {
        return None;
    }
    let end = match end.strip_suffix(after_answer) {
        Some(end) => end,
        None => end.split('<').next().unwrap_or(""),
    };
    // Thoughts that the template writes for the model are its own affair.
    let begin = &turn[..open];
    let begin = begin
        .rsplit("</think>")
        .next()
        .unwrap_or(begin)
        .trim_start();
    Some(CallSyntax {
        begin: begin.to_string(),
        end: end.to_string(),
        arguments,
        in_template: true,
    })
}

/// The tools of a request, and whether they must, may or must not be called.
pub(super) struct Tools {
    tools: Vec<Tool>,
    /// As the client gave them, for the template.
    pub json: Value,
    pub choice: ToolChoice,
    pub parallel: bool,
}

struct Tool {
    name: String,
    parameters: Value,
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

    /// The grammar of a call's JSON.
    pub(super) fn grammar(
        &self,
        form: &CallSyntax,
        grammars: &Grammars,
    ) -> Result<Grammar, ApiError> {
        let mut definitions = Map::new();
        let mut calls = Vec::new();
        for (i, tool) in self.tools.iter().enumerate() {
            if matches!(self.choice, ToolChoice::Named(named) if named != i) {
                continue;
            }
            let key = format!("tool{i}");
            let mut parameters = tool.parameters.clone();
            move_references(&mut parameters, &format!("#/$defs/{key}"));
            let arguments = format!("#/$defs/{key}");
            definitions.insert(key, parameters);
            calls.push(json!({
                "type": "object",
                "properties": {"name": {"const": tool.name}, form.arguments: {"$ref": arguments}},
                "required": ["name", form.arguments],
                "additionalProperties": false,
            }));
        }
        let schema = match &calls[..] {
            [one] => {
                let mut one = one.clone();
                one["$defs"] = Value::Object(definitions);
                one
            }
            _ => json!({"$defs": definitions, "anyOf": calls}),
        };
        let grammar = grammars.json_schema(&schema.to_string());
        grammar.map_err(|error| grammar_error("tools", &error))
    }

    /// What a model is told of the tools whose template does not.
    pub(super) fn instructions(&self) -> String {
        let mut out = String::from(
            "You may call one or more of these functions to answer. Their signatures are within \
             <tools></tools>:\n<tools>\n",
        );
        for tool in self.json.as_array().into_iter().flatten() {
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
fn move_references(schema: &mut Value, place: &str) {
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
    use tandem_engine::Model;

    fn form(template: &str) -> CallSyntax {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/pocket-q8_0.gguf");
        let model = Model::open(fixture).unwrap();
        let chat = Chat::new(template, model.tokenizer().unwrap().vocab()).unwrap();
        CallSyntax::learn(Some(&chat))
    }

    /// Turns in ChatML, with tools and calls as `tools` and `call` write them.
    fn chatml(tools: &str, call: &str) -> String {
        format!(
            "{{% if tools %}}<|im_start|>system\n{tools}<|im_end|>\n{{% endif %}}\
             {{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n\
             {{% if m.tool_calls %}}{{% for c in m.tool_calls %}}{call}{{% endfor %}}\
             {{% else %}}{{{{ m.content }}}}{{% endif %}}<|im_end|>\n{{% endfor %}}\
             {{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        )
    }

    const TOOLS: &str = "{{ tools | tojson }}";

    #[test]
    fn forms_are_learned_from_templates() {
        let call = r#"<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>"#;
        let hermes = form(&chatml(TOOLS, call));
        assert_eq!(
            hermes,
            CallSyntax {
                in_template: true,
                ..CallSyntax::hermes()
            }
        );
        assert_eq!(hermes.mark(), "<tool_call>");
        // Thoughts that a template writes are no part of the call.
        let thoughts = format!("<think>\n\n</think>\n\n{call}");
        assert_eq!(form(&chatml(TOOLS, &thoughts)), hermes);
        // Llama's: nothing stands before, and the arguments are called otherwise.
        let call = r#"{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}"#;
        let llama = form(&chatml(TOOLS, call));
        assert_eq!(
            (&*llama.begin, &*llama.end, llama.arguments),
            ("", "", "parameters")
        );
        assert_eq!(llama.mark(), "{\"name\": ");
    }

    #[test]
    fn other_forms_are_written_as_hermes_writes_them() {
        let xml = "<function={{ c.function.name }}>{{ c.function.arguments | tojson }}</function>";
        assert_eq!(form(&chatml(TOOLS, xml)), CallSyntax::hermes());
        // A template that has no use for tools.
        assert_eq!(form(&chatml("", "")), CallSyntax::hermes());
        assert_eq!(CallSyntax::learn(None), CallSyntax::hermes());
    }

    #[test]
    fn references_stay_inside_of_their_schemas() {
        let mut schema =
            json!({"$ref": "#/$defs/a", "x": [{"$ref": "#"}], "y": {"$ref": "http://z"}});
        move_references(&mut schema, "#/$defs/tool0");
        let wanted = json!({"$ref": "#/$defs/tool0/$defs/a", "x": [{"$ref": "#/$defs/tool0"}], "y": {"$ref": "http://z"}});
        assert_eq!(schema, wanted);
    }
}
