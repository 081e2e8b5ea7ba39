//! Memory maps: the one module of this crate with unsafe code.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

/// A read-only memory map of a whole file: `&[u8]` by deref, aligned to a page.
///
/// # Hazard
/// The bytes are those of the file at the time of each access. If another process truncates the
/// file, reading beyond its new end kills this one (`SIGBUS` on Unix); if it writes to the file,
/// what was checked when the file was parsed may no longer hold. No program can rule that out:
/// do not change a model's file while it is open. Replacing it by rename, as
/// [`write_atomically`](crate::write_atomically) does, is safe: the map keeps the old file.
#[derive(Debug)]
pub struct Mapping {
    map: Mmap,
}

impl Mapping {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// Those of opening and mapping; [`InvalidInput`](io::ErrorKind::InvalidInput) for what is not
    /// a regular file, [`IsADirectory`](io::ErrorKind::IsADirectory) for a directory,
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) for an empty file, which cannot be mapped.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Mapping> {
        let path = path.as_ref();
        // Asked before opening, as opening a pipe would wait for its other end.
        let metadata = std::fs::metadata(path)?;
        let refuse = |kind, what: &str| Err(io::Error::new(kind, what));
        if metadata.is_dir() {
            return refuse(io::ErrorKind::IsADirectory, "is a directory");
        }
        if !metadata.is_file() {
            return refuse(io::ErrorKind::InvalidInput, "is not a regular file");
        }
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return refuse(io::ErrorKind::UnexpectedEof, "the file is empty");
        }
        // SAFETY: the map is only read. That the file does not change while it is mapped cannot be
        // checked; the documentation of `Mapping` asks it of the user.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file)? };
        // Linux then reads the file in pieces of 2 MB, and maps each by one entry where the file system
        // can (ext4 since 6.16, XFS, Btrfs). Elsewhere it reads further ahead at most.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Mapping { map })
    }

    /// The mapped bytes, which keep the map as long as they, or any slices of them, are in use.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}
