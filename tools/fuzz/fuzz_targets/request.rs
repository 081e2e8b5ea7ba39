//! Requests to `tandem serve`: whatever a client sends is read, or refused by name.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../src/serve/error.rs"]
mod error;
#[allow(dead_code)]
#[path = "../../src/serve/fields.rs"]
mod fields;
#[path = "../../src/serve/messages.rs"]
mod messages;

/// Reads a request as far as no model is needed for it.
fn read(body: &[u8]) -> Result<(), error::ApiError> {
    let object = fields::parse(body)?;
    let fields = fields::Fields::new(&object);
    for name in object.keys() {
        let _ = fields.integer(name, -5..=i64::MAX);
        let _ = fields.count(name, 0..=usize::MAX);
        let _ = fields.number(name, 0.0..=2.0);
        let _ = fields.text(name);
        let _ = fields.boolean(name);
    }
    let messages = messages::read(&fields)?;
    assert!(messages.iter().all(|message| message["content"].is_string()));
    Ok(())
}

fuzz_target!(|body: &[u8]| {
    if let Err(error) = read(body) {
        // What the client gets is JSON, whatever he sent.
        let told = error.to_json().to_string();
        assert!(serde_json::from_str::<serde_json::Value>(&told).is_ok());
    }
});
