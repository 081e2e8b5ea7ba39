//! What was evaluated before, in files, so that it outlives the server.
//!
//! A file holds one sequence as [`Sequence::save`] writes it: with a checksum, and a hash of the model, the
//! composition and the cache's form. It is written beside its place and renamed; one that is torn, old or of
//! something else is passed over, and replaced in time. Names tell whose it is.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use tandem_engine::{Model, Sequence, SessionOptions};
use tandem_formats::write_atomically;

use super::cache::{Group, PrefixCache};

const ENDING: &str = "sequence";
/// Digits of a name that tell the group, and those that tell the tokens.
const NAME_DIGITS: usize = 32;

/// A folder of sequences.
pub(super) struct Store {
    folder: PathBuf,
    max_bytes: usize,
    /// What results depend on beside the model and the composition.
    form: String,
    /// Groups whose files were read.
    loaded: HashSet<String>,
}

impl Store {
    pub(super) fn open(
        folder: &Path,
        model: &Model,
        options: &SessionOptions,
        max_bytes: usize,
    ) -> Result<Store> {
        let name = || format!("cannot use the folder {}", folder.display());
        // What was said is nobody else's business.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(folder).with_context(name)?;
        fs::read_dir(folder).with_context(name)?;
        Ok(Store {
            folder: folder.to_path_buf(),
            max_bytes,
            form: format!(
                "{} {} {} {} {} {:?}",
                options.level.name(),
                options.exact,
                options.kv_type.name(),
                options.n_ctx,
                options.n_batch,
                model.fingerprint()?
            ),
            loaded: HashSet::new(),
        })
    }

    /// What the names of a group's files begin with.
    fn group_name(&self, group: Group) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&group.composition.map_or([0; 32], |id| id.0));
        hasher.update(&[u8::from(group.composition.is_some())]);
        hasher.update(&group.caller.to_le_bytes());
        hasher.update(self.form.as_bytes());
        hasher.finalize().to_hex()[..NAME_DIGITS].to_string()
    }

    fn file_name(&self, group: Group, tokens: &[u32]) -> String {
        let mut hasher = blake3::Hasher::new();
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        let tokens = hasher.finalize().to_hex();
        format!(
            "{}-{}.{ENDING}",
            self.group_name(group),
            &tokens[..NAME_DIGITS]
        )
    }

    /// Takes the files of a group into the cache, when it is first asked for, by way of `sequence`.
    pub(super) fn load(&mut self, group: Group, sequence: &mut Sequence, cache: &mut PrefixCache) {
        let prefix = self.group_name(group);
        if !self.loaded.insert(prefix.clone()) {
            return;
        }
        for file in self.files().iter().filter(|file| file.is_of(&prefix)) {
            if file.n_bytes > self.max_bytes as u64 {
                continue;
            }
            let Ok(bytes) = fs::read(&file.path) else {
                continue;
            };
            match sequence.restore(&bytes) {
                Ok(()) => cache.put(group, sequence),
                Err(error) => {
                    tell!("note: {} is not used: {error}", file.path.display());
                    let _ = fs::remove_file(&file.path);
                }
            }
        }
        sequence.rewind(0);
    }

    /// Writes what is not there yet, and removes the oldest where it is too much.
    pub(super) fn save(&self, cache: &PrefixCache) -> Result<()> {
        let mut kept = HashSet::new();
        for (group, snapshot) in cache.snapshots() {
            let name = self.file_name(group, snapshot.tokens());
            let path = self.folder.join(&name);
            kept.insert(OsString::from(name));
            if path.exists() {
                continue;
            }
            let bytes = snapshot.save()?;
            let write = write_atomically(&path, |file| -> Result<()> {
                Ok(std::io::Write::write_all(file, &bytes)?)
            });
            write.with_context(|| format!("cannot write {}", path.display()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        }
        let mut files = self.files();
        // Those of groups that were read and are not kept any more, then the oldest.
        files.retain(|file| {
            let is_given_up = self.loaded.iter().any(|prefix| file.is_of(prefix))
                && file
                    .path
                    .file_name()
                    .is_some_and(|name| !kept.contains(name));
            if is_given_up {
                let _ = fs::remove_file(&file.path);
            }
            !is_given_up
        });
        let mut n_bytes: u64 = files.iter().map(|file| file.n_bytes).sum();
        for file in files {
            if n_bytes <= self.max_bytes as u64 {
                break;
            }
            n_bytes -= file.n_bytes;
            let _ = fs::remove_file(&file.path);
        }
        Ok(())
    }

    /// The folder's sequences, the oldest first.
    fn files(&self) -> Vec<StoredFile> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries.filter_map(|entry| StoredFile::of(&entry)).collect();
        files.sort_by_key(|file| file.written_at);
        files
    }
}

struct StoredFile {
    path: PathBuf,
    n_bytes: u64,
    written_at: SystemTime,
}

impl StoredFile {
    /// A file that is one of ours by its name.
    fn of(entry: &fs::DirEntry) -> Option<StoredFile> {
        let path = entry.path();
        let stem = path.file_stem()?.to_str()?;
        let is_ours = path.extension()? == ENDING
            && stem.len() == 2 * NAME_DIGITS + 1
            && stem.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        let metadata = entry
            .metadata()
            .ok()
            .filter(|metadata| is_ours && metadata.is_file())?;
        Some(StoredFile {
            n_bytes: metadata.len(),
            written_at: metadata.modified().ok()?,
            path,
        })
    }

    fn is_of(&self, prefix: &str) -> bool {
        let name = self.path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(prefix))
    }
}
