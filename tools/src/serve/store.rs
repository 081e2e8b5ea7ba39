//! What was evaluated before, in files, so that it outlives the server.
//!
//! A file holds one sequence as [`Sequence::save`] writes it: with a checksum, and a hash of the model, the
//! composition and the cache's form. It is written beside its place and renamed; one that is torn, old or of
//! something else is passed over, and replaced in time. Names tell whose it is. A thread of its own reads and
//! writes: cards are slow, and answers do not wait for them.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use tandem_engine::{Composition, Model, Sequence, SessionError, SessionOptions, Snapshot};
use tandem_formats::write_atomically;

use super::cache::{Entry, Group, n_common};
use super::task::Message;

const ENDING: &str = "sequence";
/// Digits of a name that tell the group, and those that tell the tokens.
const NAME_DIGITS: usize = 32;

/// The thread that reads and writes the files.
pub(super) struct Store {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
    /// Groups whose files were asked for, those of which something came, and those of which all did.
    asked: HashSet<Group>,
    known: HashSet<Group>,
    whole: HashSet<Group>,
    /// Whether the thread has something to write.
    is_writing: Arc<AtomicBool>,
}

/// What is to be done.
enum Order {
    Load(Wanted),
    Save(Kept),
}

/// What is to stand in the files.
struct Kept {
    entries: Vec<Entry>,
    /// Groups whose other files are given up, as they were taken in and are not kept any more.
    whole: HashSet<Group>,
}

/// Whose files are to be read.
pub(super) struct Wanted {
    pub group: Group,
    pub composition: Option<Composition>,
    /// What is to be gone on with first.
    pub prompt: Arc<[u32]>,
}

impl Store {
    /// Begins to work on a folder. What is read goes to `inbox`.
    pub(super) fn start(folder: Folder, inbox: Sender<Message>) -> io::Result<Store> {
        let (orders, taken) = channel();
        let thread = std::thread::Builder::new().name("cache-files".to_string());
        Ok(Store {
            orders,
            is_writing: Arc::clone(&folder.is_writing),
            thread: thread.spawn(move || folder.work(&taken, &inbox))?,
            asked: HashSet::new(),
            known: HashSet::new(),
            whole: HashSet::new(),
        })
    }

    /// Whether a group's files have to be waited for, which are asked for then.
    pub(super) fn must_wait(&mut self, wanted: Wanted) -> bool {
        let group = wanted.group;
        if self.known.contains(&group) || self.thread.is_finished() {
            return false;
        }
        // Where the thread is gone, nothing would come.
        !self.asked.insert(group) || self.orders.send(Order::Load(wanted)).is_ok()
    }

    /// Something of a group came, or `all` of it: nobody waits for it any more. Whether it is the first, which has
    /// most of what is asked for.
    pub(super) fn came(&mut self, group: Group, all: bool) -> bool {
        if all {
            self.whole.insert(group);
        }
        self.known.insert(group)
    }

    /// Whether what was to be written last is not written yet.
    pub(super) fn is_busy(&self) -> bool {
        self.is_writing.load(Relaxed)
    }

    /// Has these written, and the files of others removed that were read.
    pub(super) fn save(&mut self, entries: Vec<Entry>) {
        self.is_writing.store(true, Relaxed);
        let whole = self.whole.clone();
        // The thread tells of its troubles itself.
        let _ = self.orders.send(Order::Save(Kept { entries, whole }));
    }

    /// Waits until all is written, these last.
    pub(super) fn close(mut self, entries: Option<Vec<Entry>>) {
        if let Some(entries) = entries {
            self.save(entries);
        }
        drop(self.orders);
        if self.thread.join().is_err() {
            tell!("error: the thread for the cache's files failed");
        }
    }
}

/// A folder of sequences.
pub(super) struct Folder {
    path: PathBuf,
    model: Model,
    options: SessionOptions,
    max_bytes: usize,
    /// What results depend on beside the model and the composition.
    form: String,
    is_writing: Arc<AtomicBool>,
}

impl Folder {
    pub(super) fn open(
        path: &Path,
        model: &Model,
        options: &SessionOptions,
        max_bytes: usize,
    ) -> Result<Folder> {
        let name = || format!("cannot use the folder {}", path.display());
        // What was said is nobody else's business.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(path).with_context(name)?;
        fs::read_dir(path).with_context(name)?;
        Ok(Folder {
            path: path.to_path_buf(),
            model: model.clone(),
            options: *options,
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
            is_writing: Arc::default(),
        })
    }

    fn work(self, orders: &Receiver<Order>, inbox: &Sender<Message>) {
        while let Ok(order) = orders.recv() {
            match order {
                Order::Load(wanted) => {
                    let group = wanted.group;
                    if let Err(error) = self.load(wanted, inbox) {
                        tell!("warning: what was kept is not used: {error}");
                    }
                    // Nobody waits for what did not come.
                    let _ = inbox.send(Message::Loaded {
                        group,
                        snapshot: None,
                    });
                }
                Order::Save(kept) => {
                    if let Err(error) = self.save(&kept) {
                        tell!("warning: what was evaluated is not kept: {error:#}");
                    }
                    self.is_writing.store(false, Relaxed);
                }
            }
        }
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

    /// Reads a group's files, first the one that has most of the prompt, then the others, the latest first, as far as
    /// they are kept.
    fn load(&self, wanted: Wanted, inbox: &Sender<Message>) -> Result<(), SessionError> {
        let prefix = self.group_name(wanted.group);
        let mut files = self.files();
        files.retain(|file| file.is_of(&prefix));
        files.reverse();
        let common = |file: &StoredFile| {
            let tokens = file.tokens(self.options.n_ctx).unwrap_or_default();
            n_common(&tokens, &wanted.prompt)
        };
        let best = files.iter().map(common).enumerate().max_by_key(|(_, n)| *n);
        if let Some((best, _)) = best {
            files[..=best].rotate_right(1);
        }
        let mut left = self.max_bytes as u64;
        for file in files {
            let fits = left.checked_sub(file.n_bytes);
            let Some(rest) = fits else { break };
            left = rest;
            match self.read(&file, wanted.composition.as_ref()) {
                Ok(snapshot) => {
                    let _ = inbox.send(Message::Loaded {
                        group: wanted.group,
                        snapshot: Some(snapshot),
                    });
                }
                Err(error) => {
                    tell!("note: {} is not used: {error:#}", file.path.display());
                    let is_unfit = matches!(error.downcast_ref(), Some(SessionError::Saved { .. }));
                    if is_unfit {
                        let _ = fs::remove_file(&file.path);
                    }
                }
            }
        }
        Ok(())
    }

    fn read(&self, file: &StoredFile, composition: Option<&Composition>) -> Result<Snapshot> {
        let bytes = fs::read(&file.path)?;
        let mut sequence = Sequence::new(&self.model, &self.options)?;
        sequence.set_composition(composition)?;
        sequence.restore(&bytes)?;
        Ok(sequence.snapshot()?)
    }

    /// Writes what is not there yet, and removes the oldest where it is too much.
    fn save(&self, all: &Kept) -> Result<()> {
        let mut kept = HashSet::new();
        for Entry { group, snapshot } in &all.entries {
            let name = self.file_name(*group, snapshot.tokens());
            let path = self.path.join(&name);
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
        let given_up: Vec<_> = all
            .whole
            .iter()
            .map(|group| self.group_name(*group))
            .collect();
        let mut files = self.files();
        // Those of groups that were read and are not kept any more, then the oldest.
        files.retain(|file| {
            let is_given_up = given_up.iter().any(|prefix| file.is_of(prefix))
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
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
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

    /// What it begins with, as it stands there.
    fn tokens(&self, n_ctx: usize) -> Option<Vec<u32>> {
        let most = (Sequence::SAVED_HEAD + 4 * n_ctx) as u64;
        let mut head = Vec::new();
        let file = File::open(&self.path).ok()?;
        file.take(most).read_to_end(&mut head).ok()?;
        Sequence::saved_tokens(&head)
    }

    fn is_of(&self, prefix: &str) -> bool {
        let name = self.path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(prefix))
    }
}
