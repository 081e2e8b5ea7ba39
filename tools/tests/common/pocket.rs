//! The pocket model, changed.

use tandem_formats::{GgufFiles, Value, Writer};

/// Turns with their roles before them.
pub(crate) const TEMPLATE: &str = "{% for m in messages %}{{ bos_token if loop.first }}{{ m.role }}: {{ m.content }}\
                        {{ eos_token }}{% endfor %}{% if add_generation_prompt %}=> {% endif %}";

/// The pocket model with other metadata added.
pub(crate) fn pocket_with(key: &str, value: Value<'_>) -> tempfile::NamedTempFile {
    let files = GgufFiles::open(crate::common::fixture("pocket-q8_0.gguf")).unwrap();
    let gguf = files.parse().unwrap();
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata().filter(|(k, _)| *k != key) {
        writer.add(key, *value).unwrap();
    }
    writer.add(key, value).unwrap();
    for t in gguf.tensors() {
        writer.add_tensor(t.name, t.shape(), t.dtype).unwrap();
    }
    let data: Vec<_> = gguf.tensors().iter().map(|t| t.data).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), writer.to_vec(&data).unwrap()).unwrap();
    file
}
