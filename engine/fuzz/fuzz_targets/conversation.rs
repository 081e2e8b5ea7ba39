//! Conversations as a server's clients send them: whatever they contain is plain text, so that the control
//! tokens of a prompt are the template's own.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tandem_engine::Model;
use tandem_engine::chat::{Chat, Conversation, TemplateArgs};

/// Begins each message with the control token of texts' beginnings, and writes all that is in it.
const TEMPLATE: &str = "{% for m in messages %}<s>{{ m.role }}{{ m.content }}{{ m | tojson }}{% endfor %}";

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        Model::from_static(include_bytes!("../../../fixtures/pocket-q8_0.gguf")).expect("the fixture runs")
    })
}

fuzz_target!(|json: &str| {
    let tokenizer = model().tokenizer().expect("it has a vocabulary");
    let bos = tokenizer.vocab().bos().expect("it has a beginning of texts");
    let chat = Chat::new(TEMPLATE, tokenizer.vocab()).expect("the template is one");
    let args = TemplateArgs::new();
    let conversation = |continue_last| Conversation {
        messages: json,
        args: &args,
        continue_last,
    };
    let _ = chat.encode_conversation(tokenizer, &conversation(true));
    let _ = chat.render_conversation(&conversation(false));
    if let Ok(ids) = chat.encode_conversation(tokenizer, &conversation(false)) {
        let messages: Vec<serde_json::Value> = serde_json::from_str(json).expect("it was read as such");
        let n_begin = ids.iter().filter(|id| **id == bos).count();
        assert_eq!(n_begin, messages.len(), "{json}");
    }
});
