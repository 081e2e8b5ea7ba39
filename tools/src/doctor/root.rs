//! Reading what a system tells of itself in `/proc`, `/sys` and `/etc`. None of it is trusted to be
//! there, or to be what it should be.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// The most bytes that are read of a file, and the most names of a folder: more than any has.
const MAX_BYTES: u64 = 1 << 20;
const MAX_NAMES: usize = 4096;

/// The folder that stands for `/`.
pub(super) struct Root<'a>(pub &'a Path);

impl Root<'_> {
    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// The bytes of a file.
    pub(super) fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let path = self.path(path);
        // A pipe would keep us waiting.
        if !path.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        let file = File::open(path).ok()?;
        file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The text of a file, without white space and zeros around it, if there is any.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.bytes(path)?).into_owned();
        let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
        (!text.is_empty()).then(|| text.to_string())
    }

    /// The whole number that is all of a file.
    pub(super) fn number(&self, path: &str) -> Option<i64> {
        self.text(path)?.parse().ok()
    }

    /// The names in a folder, in order; none where there is no folder.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path)).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names
            .filter_map(|name| name.into_string().ok())
            .take(MAX_NAMES)
            .collect();
        names.sort();
        names
    }
}

/// The value of a key in lines like `key: value`, white space around both being left out.
pub(super) fn field<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(k, _)| k.trim() == key)?;
    Some(value.trim())
}
