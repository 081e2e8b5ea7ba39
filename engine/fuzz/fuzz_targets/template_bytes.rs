//! Chat templates of any bytes: an error or a text, in bounded time and on a small stack.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem_engine::chat::{ChatTemplate, Message, TemplateArgs};

fuzz_target!(|data: &[u8]| {
    if let Ok(source) = std::str::from_utf8(data)
        && let Ok(template) = ChatTemplate::from_source(source)
    {
        let _ = template.render(&[Message::user("Hi")], &TemplateArgs::new());
    }
});
