//! Requests to `tandem serve`: whatever a client sends is read, or refused by name.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, unreachable_pub)]
mod serve {
    #[path = "../../../src/serve/error.rs"]
    pub(super) mod error;
    #[path = "../../../src/serve/fields.rs"]
    pub(super) mod fields;
    #[path = "../../../src/serve/messages.rs"]
    pub(super) mod messages;

    /// Reads a request as far as no model is needed for it.
    pub(super) fn read(body: &[u8]) -> Result<(), error::ApiError> {
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
}

fuzz_target!(|body: &[u8]| {
    if let Err(error) = serve::read(body) {
        // What the client gets is JSON, whatever he sent.
        let told = error.to_json().to_string();
        assert!(serde_json::from_str::<serde_json::Value>(&told).is_ok());
    }
});
