//! Messages of conversations, from the forms that clients send to the one that templates take.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::Fields;

const MAX_MESSAGES: usize = 4096;

/// The messages of a request.
pub(super) fn read(fields: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let messages = fields.required("messages", fields.array("messages")?)?;
    if !(1..=MAX_MESSAGES).contains(&messages.len()) {
        return fields.wrong("messages", "must have 1 to 4096 messages");
    }
    let messages = messages.iter().enumerate();
    messages
        .map(|(i, message)| read_message(message, format!("messages[{i}]")))
        .collect()
}

/// One message, as templates take them: the content one text, arguments of calls objects.
fn read_message(message: &Value, path: String) -> Result<Value, ApiError> {
    let fields = Fields::of(message, path)?;
    let role = fields.required("role", fields.text("role")?)?;
    let role = match role {
        "system" | "developer" => "system",
        "user" | "assistant" | "tool" => role,
        _ => {
            let what = "must be system, developer, user, assistant or tool";
            return fields.wrong("role", what);
        }
    };
    let calls = fields.array("tool_calls")?.unwrap_or(&[]);
    let content = match content(&fields)? {
        Some(content) => content,
        None if role == "assistant" && !calls.is_empty() => String::new(),
        None => return fields.wrong("content", "is required"),
    };
    let mut out = Map::new();
    out.insert("role".to_string(), role.into());
    out.insert("content".to_string(), content.into());
    for name in ["name", "reasoning_content", "tool_call_id"] {
        if let Some(text) = fields.text(name)? {
            out.insert(name.to_string(), text.into());
        }
    }
    if !calls.is_empty() {
        let path = fields.path("tool_calls");
        let calls = calls.iter().enumerate();
        let calls = calls.map(|(i, call)| read_call(call, format!("{path}[{i}]")));
        let calls = calls.collect::<Result<Vec<_>, _>>()?;
        out.insert("tool_calls".to_string(), calls.into());
    }
    Ok(Value::Object(out))
}

fn content(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    let parts = match fields.get("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text.clone())),
        Some(Value::Array(parts)) => parts,
        Some(_) => return fields.wrong("content", "must be a string or an array of parts"),
    };
    let path = fields.path("content");
    let mut texts = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        let part = Fields::of(part, format!("{path}[{i}]"))?;
        let kind = part.required("type", part.text("type")?)?;
        if !matches!(kind, "text" | "input_text" | "output_text") {
            let kind: String = kind.chars().take(50).collect();
            let what = format!("is {kind:?}: only text is understood");
            let error = ApiError::field(part.path("type"), &what);
            return Err(error.code("unsupported_content"));
        }
        texts.push(part.required("text", part.text("text")?)?);
    }
    Ok(Some(texts.join("\n")))
}

fn read_call(call: &Value, path: String) -> Result<Value, ApiError> {
    let call = Fields::of(call, path)?;
    let function = call.required("function", call.object("function")?)?;
    let name = function.required("name", function.text("name")?)?;
    // Clients send a text with JSON, Ollama's the object; templates want the object.
    let arguments = match function.get("arguments") {
        None => json!({}),
        Some(Value::String(text)) => {
            serde_json::from_str(text).unwrap_or_else(|_| text.clone().into())
        }
        Some(Value::Object(object)) => Value::Object(object.clone()),
        Some(_) => return function.wrong("arguments", "must be a string of JSON"),
    };
    let mut out = json!({
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    });
    if let Some(id) = call.text("id")? {
        out["id"] = id.into();
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::fields::parse;

    fn messages(json: &str) -> Result<Vec<Value>, ApiError> {
        let object = parse(format!("{{\"messages\":{json}}}").as_bytes()).unwrap();
        read(&Fields::new(&object))
    }

    #[test]
    fn all_forms_become_one() {
        let read = messages(
            r#"[{"role":"developer","content":"a"},
                {"role":"user","name":"n","content":[{"type":"text","text":"b"},{"type":"text","text":"c"}]},
                {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function",
                    "function":{"name":"f","arguments":"{\"x\":1}"}}]},
                {"role":"tool","tool_call_id":"1","content":"d"}]"#,
        );
        let call = json!({"type": "function", "function": {"name": "f", "arguments": {"x": 1}}, "id": "1"});
        let wanted = [
            json!({"role": "system", "content": "a"}),
            json!({"role": "user", "content": "b\nc", "name": "n"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call]}),
            json!({"role": "tool", "content": "d", "tool_call_id": "1"}),
        ];
        assert_eq!(read.unwrap(), wanted);
    }

    #[test]
    fn what_is_wrong_is_told_by_its_path() {
        for (json, param) in [
            ("[]", "messages"),
            ("[5]", "messages[0]"),
            (r#"[{"role":"user"}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":null}]"#, "messages[0].content"),
            (r#"[{"role":"function","content":"x"}]"#, "messages[0].role"),
            (
                r#"[{"role":"user","content":[{"type":"text"}]}]"#,
                "messages[0].content[0].text",
            ),
            (
                r#"[{"role":"user","content":[{"type":"image_url"}]}]"#,
                "messages[0].content[0].type",
            ),
            (
                r#"[{"role":"assistant","tool_calls":[{"function":{}}]}]"#,
                "messages[0].tool_calls[0].function.name",
            ),
        ] {
            let error = messages(json).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{json}");
        }
    }
}
