//! Files: models in one part or several, and replacing a file atomically.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use crate::gguf::limits::MAX_PARTS;
use crate::{Gguf, GgufError, Mapping};

/// Why a model's files were not opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum FileError {
    /// The file could not be opened or mapped.
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file, or the model that begins with it, is not valid.
    Format {
        /// The file, the first one for what concerns all parts together.
        path: PathBuf,
        /// What is wrong.
        source: GgufError,
    },
    /// A part of a split model that is not the first one.
    NotFirstPart {
        /// The file given.
        path: PathBuf,
        /// The first part, by the names of parts; `None` where the file's name is not one.
        first: Option<PathBuf>,
    },
    /// The first part of a split model, under a name that does not tell those of the others.
    PartName {
        /// The file given.
        path: PathBuf,
        /// How its name must end.
        wanted: String,
    },
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The source is left to the chain of sources.
        match self {
            FileError::Io { path, .. } => write!(f, "cannot open {}", path.display()),
            FileError::Format { path, .. } => {
                write!(f, "{} is not a valid GGUF model", path.display())
            }
            FileError::NotFirstPart { path, first } => {
                write!(
                    f,
                    "{} is not the first part of its split model; open ",
                    path.display()
                )?;
                match first {
                    Some(first) => write!(f, "{}", first.display()),
                    None => f.write_str("the one whose name has -00001-of-"),
                }
            }
            FileError::PartName { path, wanted } => write!(
                f,
                "{} is the first part of a split model, but its name does not end in {wanted}, so the other parts cannot be found",
                path.display()
            ),
        }
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            FileError::Io { source, .. } => Some(source),
            FileError::Format { source, .. } => Some(source),
            FileError::NotFirstPart { .. } | FileError::PartName { .. } => None,
        }
    }
}

/// The mapped files of one model: one file, or all parts of a split model.
///
/// The parts of a model split in N are named `NAME-00001-of-0000N.gguf` and so on, and stand in one
/// folder. [`Mapping`] tells what must not happen to the files meanwhile.
#[derive(Debug)]
pub struct GgufFiles {
    parts: Vec<(PathBuf, Mapping)>,
}

impl GgufFiles {
    /// Maps the file at `path`, and the other parts where it is the first part of a split model.
    ///
    /// # Errors
    /// [`FileError`]; those of the first file's format included, as it tells of the other parts.
    pub fn open(path: impl AsRef<Path>) -> Result<GgufFiles, FileError> {
        let path = path.as_ref();
        let map = |path: PathBuf| match Mapping::open(&path) {
            Ok(mapping) => Ok((path, mapping)),
            Err(source) => Err(FileError::Io { path, source }),
        };
        let first = map(path.to_path_buf())?;
        let (no, count) = split_place(&first.1).map_err(|source| FileError::Format {
            path: path.to_path_buf(),
            source,
        })?;
        let mut parts = vec![first];
        if count > 1 {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let stem = name.strip_suffix(&part_suffix(no, count));
            if no != 0 {
                return Err(FileError::NotFirstPart {
                    path: path.to_path_buf(),
                    first: stem.map(|s| path.with_file_name(part_name(s, 0, count))),
                });
            }
            let stem = stem.ok_or_else(|| FileError::PartName {
                path: path.to_path_buf(),
                wanted: part_suffix(0, count),
            })?;
            for no in 1..count {
                parts.push(map(path.with_file_name(part_name(stem, no, count)))?);
            }
        }
        Ok(GgufFiles { parts })
    }

    /// Reads the model: the metadata of the first part, the tensors of all; see [`Gguf::join`].
    ///
    /// # Errors
    /// [`FileError::Format`] for what is wrong with a part, or with all of them together.
    pub fn parse(&self) -> Result<Gguf<'_>, FileError> {
        let mut files = Vec::with_capacity(self.parts.len());
        for (path, bytes) in &self.parts {
            files.push(Gguf::parse(bytes).map_err(|source| FileError::Format {
                path: path.clone(),
                source,
            })?);
        }
        Gguf::join(files).map_err(|source| FileError::Format {
            path: self.parts.first().map(|p| p.0.clone()).unwrap_or_default(),
            source,
        })
    }

    /// The files' paths, in the order of the parts.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.parts.iter().map(|(path, _)| path.as_path())
    }

    /// The bytes of each part.
    pub fn into_bytes(self) -> Vec<Bytes> {
        let parts = self.parts.into_iter();
        parts.map(|(_, mapping)| mapping.into_bytes()).collect()
    }

    /// Bytes of all files together.
    pub fn n_bytes(&self) -> u64 {
        self.parts.iter().map(|(_, m)| m.len() as u64).sum()
    }
}

/// A file's `split.no` and `split.count`; 0 and 1 for a model in one file.
fn split_place(bytes: &[u8]) -> Result<(u64, u64), GgufError> {
    let file = Gguf::parse(bytes)?;
    let count = file.get_u64("split.count")?.unwrap_or(1);
    if count > MAX_PARTS as u64 {
        return Err(GgufError::TooMany {
            what: "split.count",
            offset: 0,
            found: count,
            max: MAX_PARTS as u64,
        });
    }
    Ok((file.get_u64("split.no")?.unwrap_or(0), count))
}

/// How the name of part `no` (from 0) of `count` ends.
fn part_suffix(no: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", no.saturating_add(1))
}

fn part_name(stem: &str, no: u64, count: u64) -> String {
    format!("{stem}{}", part_suffix(no, count))
}

/// How the names of temporary files begin and end.
const TEMPORARY: (&str, &str) = (".tandem-", ".tmp");

/// How old a temporary file must be before it can be taken for abandoned: its writer locks it directly after
/// making it.
const MIN_AGE: Duration = Duration::from_secs(10);

/// Removes the temporary files in a folder that no living process holds locked. What cannot be asked or
/// removed stays.
fn remove_abandoned(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let is_ours = name
            .to_str()
            .is_some_and(|name| name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1));
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if !is_ours || age().is_none_or(|age| age < MIN_AGE) {
            continue;
        }
        let file = File::open(entry.path());
        if file.is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Writes a file such that `path` holds either what it held before or all of the new content: the
/// content goes to a temporary file in the same folder, is flushed to the disk and renamed. A
/// symbolic link is kept, the file it points to is replaced.
///
/// A writer that was killed leaves its temporary file; the next one in the same folder removes it.
///
/// # Errors
/// Those of `write` and of the file system; [`InvalidInput`](io::ErrorKind::InvalidInput) where
/// `path` is something else than a regular file, such as a folder or a device. On any error the old
/// file stays and the temporary one is removed.
pub fn write_atomically<T, E: From<io::Error>>(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<T, E>,
) -> Result<T, E> {
    let path = path.as_ref();
    let target = match path.canonicalize() {
        Ok(target) => target,
        Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
        Err(e) => return Err(e.into()),
    };
    if target.exists() && !target.is_file() {
        let e = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        return Err(e.into());
    }
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    remove_abandoned(folder);
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY.0).suffix(TEMPORARY.1);
    // Temporary files are private; this one becomes an ordinary file, as the umask allows.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temp = builder.tempfile_in(folder)?;
    // Held as long as we live, so that others see that it is not abandoned. Not every file system can.
    let _ = temp.as_file().lock();
    // Of large writes Linux makes large pages, which are mapped faster.
    let mut out = BufWriter::with_capacity(1 << 22, temp.as_file());
    let value = write(&mut out)?;
    out.flush()?;
    drop(out);
    temp.as_file().sync_all()?;
    temp.persist(&target).map_err(|e| e.error)?;
    // The rename itself is on the disk once the folder is. Not every file system can do that, and
    // the file is whole either way.
    #[cfg(unix)]
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(value)
}
