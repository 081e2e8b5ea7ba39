//! Answers of `tandem serve` that are held to a form: schemas, calls of tools, thoughts.
#![cfg(feature = "serve")]

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;
#[expect(dead_code, reason = "as above")]
#[path = "common/pocket.rs"]
mod pocket;
#[expect(dead_code, reason = "as above")]
#[path = "common/server.rs"]
mod server;

use std::thread;

use pocket::pocket_with;
use serde_json::{Value, json};
use server::*;
use tandem_formats::Value as GgufValue;

#[test]
fn answers_are_of_the_form_that_was_asked_for() {
    let server = Server::start(&[]);
    let schema = json!({
        "type": "object",
        "properties": {"kind": {"enum": ["game", "tool"]}, "n": {"type": "integer", "minimum": 3, "maximum": 9}},
        "required": ["kind", "n"],
        "additionalProperties": false,
    });
    let mut body = asks("summarize", TEXTS[2]);
    body["max_tokens"] = 100.into();
    let format = |schema: &Value| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    body["response_format"] = format(&schema);
    for temperature in [0, 2] {
        body["temperature"] = temperature.into();
        let value: Value = serde_json::from_str(&server.chat(&body)).unwrap();
        assert!(
            matches!(value["kind"].as_str(), Some("game" | "tool")),
            "{value}"
        );
        assert!((3..=9).contains(&value["n"].as_i64().unwrap()), "{value}");
    }
    body["response_format"] = json!({"type": "regex", "pattern": "[0-9]{3}-[ab]{1,9}!"});
    let text = server.chat(&body);
    assert!(
        text.len() > 5 && text.as_bytes()[3] == b'-' && text.ends_with('!'),
        "{text}"
    );
    body["response_format"] = format(&json!({"type": "array", "uniqueItems": true}));
    server
        .post("/v1/chat/completions", &body)
        .refuses(400, "invalid_schema");
    body["response_format"] = json!({"type": "regex", "pattern": "(["});
    server
        .post("/v1/chat/completions", &body)
        .refuses(400, "invalid_schema");

    // Stop strings are looked for across tokens, and never shown.
    let text = server.chat(&asks("summarize", TEXTS[0]));
    let stop = &text[text.len() / 2..text.len() / 2 + 3];
    let mut body = asks("summarize", TEXTS[0]);
    body["stop"] = json!([stop, "\u{2603}"]);
    assert_eq!(server.chat(&body), text[..text.find(stop).unwrap()]);
    body["stream"] = true.into();
    let streamed = server.post("/v1/chat/completions", &body).streamed();
    assert_eq!(
        streamed,
        (
            text[..text.find(stop).unwrap()].to_string(),
            "stop".to_string()
        )
    );

    // The prompt's own probabilities, as evaluation harnesses ask for them.
    let body =
        json!({"model": "base", "prompt": TEXTS[1], "echo": true, "logprobs": 1, "max_tokens": 0});
    let answer = server.post("/v1/completions", &body).json();
    let logprobs = &answer["choices"][0]["logprobs"];
    let n = logprobs["tokens"].as_array().unwrap().len();
    assert_eq!(n as u64, answer["usage"]["prompt_tokens"].as_u64().unwrap());
    let values = logprobs["token_logprobs"].as_array().unwrap();
    assert!(
        values[0].is_null() && values[1..].iter().all(|v| v.as_f64().unwrap() <= 0.0),
        "{logprobs}"
    );
}

/// Calls come in the form that the template writes them in, and are told in OpenAI's.
#[test]
fn calls_are_written_as_the_template_has_them() {
    let objects = r#"{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}"#;
    let named = "<s>{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}";
    let xml = "<tool_call>\n<function={{ c.function.name }}>\n{% for k, v in c.function.arguments.items() %}\
               <parameter={{ k }}>\n{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>";
    let marked = "<s>call:{{ c.function.name }}{{ \"{\" }}{% for k, v in c.function.arguments.items() %}{{ k }}:\
                  {% if v is string %}<s>{{ v }}<s>{% else %}{{ v }}{% endif %}{{ \",\" if not loop.last }}\
                  {% endfor %}{{ \"}\" }}</s>";
    let glm = "<tool_call>{{ c.function.name }}\n{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\n\
               <arg_value>{{ v }}</arg_value>\n{% endfor %}</tool_call>";
    let lfm2 = "{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={% if v is string %}\
                '{{ v | replace(\"\\\\\", \"\\\\\\\\\") | replace(\"'\", \"\\\\'\") | replace(\"\\n\", \"\\\\n\") }}'{% else %}{{ v }}{% endif %}{{ \", \" if not loop.last }}{% endfor %})";
    let tools = json!([
        {"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {
            "room": {"enum": ["hall", "bath's"]}, "note": {"type": "string", "maxLength": 12},
            "level": {"type": "integer", "minimum": 10, "maximum": 99}, "on": {"$ref": "#/$defs/flag"},
            "who": {"anyOf": [{"type": "string", "minLength": 2, "maxLength": 20}, {"type": "null"}]}},
            "required": ["room", "level", "note"], "additionalProperties": false, "$defs": {"flag": {"type": "boolean"}}}}},
        {"type": "function", "function": {"name": "stop"}},
    ]);
    for (before, call, after) in [
        ("[CALLS] [", objects, "]"),
        ("", named, ""),
        ("", xml, ""),
        ("", marked, ""),
        ("", glm, ""),
        ("[CALL] [", lfm2, "]"),
    ] {
        let template = format!(
            "{{{{ tools | tojson }}}}{{% for m in messages %}}{{{{ m.content }}}}{{% if m.tool_calls %}}{before}\
             {{% for c in m.tool_calls %}}{call}{{% endfor %}}{after}{{% endif %}}</s>{{% endfor %}}"
        );
        let model = pocket_with("tokenizer.chat_template", GgufValue::Str(&template));
        let child = Server::spawn_with(model.path(), &["--ctx", "1024", "--port", "0"]);
        let (server, log) = Server::open(child);
        thread::spawn(move || log.for_each(drop));
        let ask = |choice: Value, seed: u64| {
            let body = json!({
                "messages": [{"role": "user", "content": TEXTS[0]}], "tools": tools, "tool_choice": choice,
                "seed": seed, "max_tokens": 600,
            });
            let answer = server.post("/v1/chat/completions", &body);
            assert_eq!(answer.status, 200, "{}", answer.body);
            let choice = answer.json()["choices"][0].clone();
            assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
            let call = choice["message"]["tool_calls"][0].clone();
            assert_eq!(call["id"].as_str().unwrap().len(), 9);
            let name = call["function"]["name"].as_str().unwrap().to_string();
            let arguments = call["function"]["arguments"].as_str().unwrap();
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            (name, arguments, call)
        };
        for seed in 0..6 {
            let light = json!({"type": "function", "function": {"name": "light"}});
            let (name, arguments, call) = ask(light, seed);
            assert_eq!(name, "light");
            assert!(
                ["hall", "bath's"].contains(&arguments["room"].as_str().unwrap()),
                "{arguments}"
            );
            assert!(
                (10..=99).contains(&arguments["level"].as_i64().unwrap()),
                "{arguments}"
            );
            assert!(
                arguments["note"].as_str().unwrap().chars().count() <= 12,
                "{arguments}"
            );
            let who = arguments.get("who");
            assert!(
                who.is_none_or(
                    |who| who.is_null() || who.as_str().is_some_and(|who| who.chars().count() > 1)
                ),
                "{arguments}"
            );
            assert!(
                arguments.get("on").is_none_or(Value::is_boolean),
                "{arguments}"
            );
            let (name, arguments, _) = ask("required".into(), seed);
            assert!(
                name == "light" || (name == "stop" && arguments == json!({})),
                "{name} {arguments}"
            );
            // The call goes back to the template as it was told.
            let messages = json!([
                {"role": "user", "content": "Light?"},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"], "content": "done"},
            ]);
            let body = json!({"messages": messages, "tools": tools});
            let prompt = server.post("/apply-template", &body).json()["prompt"].clone();
            assert!(prompt.as_str().unwrap().contains("light"), "{prompt}");
        }
        // Schemas that refer to themselves, and to each other in numbers, are looked at no longer than others.
        let mut definitions =
            json!({"a0": {"anyOf": [{"$ref": "#/$defs/a0"}, {"type": "string"}]}});
        for i in 1..40 {
            let before = json!({"$ref": format!("#/$defs/a{}", i - 1)});
            definitions[format!("a{i}")] = json!({"anyOf": [before, before]});
        }
        let mut chain = json!({"b2000": {"type": "array"}});
        for i in 0..2000 {
            chain[format!("b{i}")] = json!({"$ref": format!("#/$defs/b{}", i + 1)});
        }
        for (definitions, x, statuses) in [
            (definitions, "#/$defs/a39", &[200, 400][..]),
            (chain, "#/$defs/b0", &[400]),
        ] {
            let parameters = json!({"type": "object", "$defs": definitions,
                "properties": {"x": {"$ref": x}, "y": {"$ref": "#/properties/x"}}});
            let function = json!({"name": "f", "parameters": parameters});
            let body = json!({
                "messages": [{"role": "user", "content": "?"}], "max_tokens": 3,
                "tools": [{"type": "function", "function": function}], "tool_choice": "required",
            });
            let answer = server.post("/v1/chat/completions", &body);
            assert!(statuses.contains(&answer.status), "{}", answer.body);
        }
        let (name, arguments, _) =
            ask(json!({"type": "function", "function": {"name": "stop"}}), 1);
        assert_eq!((&*name, arguments), ("stop", json!({})));
    }
}

/// Whoever thinks before an answer may do so before one of a schema, too.
#[test]
fn thoughts_come_before_what_was_asked_for() {
    let template = "{% if thoughts %}<think>{% endif %}{% for m in messages %}{{ m.content }}</s>{% endfor %}\
                    {% if closed %}<think></think>{% endif %}";
    let model = pocket_with("tokenizer.chat_template", GgufValue::Str(template));
    let child = Server::spawn_with(model.path(), &["--ctx", "512", "--port", "0"]);
    let (server, log) = Server::open(child);
    thread::spawn(move || log.for_each(drop));
    let schema = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}});
    for args in [json!({}), json!({"closed": true})] {
        let body = json!({
            "messages": [{"role": "user", "content": "Well?"}], "response_format": schema, "temperature": 0,
            "chat_template_kwargs": args,
        });
        let content = server.chat(&body);
        assert!(["\"yes\"", "\"no\""].contains(&&*content), "{content}");
    }
}
