//! Renders chat templates: a JSON object a line comes in, and one goes out.
//!
//! ```text
//! echo '{"template": "{{ messages[0].content }}", "args": {"messages": [{"content": "Hi"}]}}' |
//!     cargo run --example template
//! ```
//!
//! `args` are whatever the template is given. What comes out has `text`, or `error`.

use std::io::{BufRead, stdin};

use serde_json::{Value, json};
use tandem_engine::chat::{ChatTemplate, ChatTemplateError, TemplateArgs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for line in stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let answer = match render(&request) {
            Ok(text) => json!({ "text": text }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        println!("{answer}");
    }
    Ok(())
}

fn render(request: &Value) -> Result<String, ChatTemplateError> {
    let mut args = TemplateArgs::new();
    for (name, value) in request["args"].as_object().into_iter().flatten() {
        args.set_json(name, &value.to_string())?;
    }
    let source = request["template"].as_str().unwrap_or_default();
    ChatTemplate::from_source(source)?.render(&[], &args)
}
