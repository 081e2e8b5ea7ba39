//! Files on the disk: maps, split models, atomic replacement.

#![cfg(feature = "std")]

mod common;

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tandem_formats::{
    DType, FileError, GgufError, GgufFiles, Mapping, Value, Writer, write_atomically,
};

/// Part `no` of a model split in 3, with a tensor called `tensor`.
fn part(no: u16, tensor: &str) -> Writer {
    let mut w = Writer::new();
    if no == 0 {
        w.add("general.architecture", Value::Str("llama")).unwrap();
    }
    w.add("split.no", Value::U16(no)).unwrap();
    w.add("split.count", Value::U16(3)).unwrap();
    w.add("split.tensors.count", Value::I32(3)).unwrap();
    w.add_tensor(tensor, &[2], DType::I8).unwrap();
    w
}

fn part_path(folder: &Path, no: usize) -> PathBuf {
    folder.join(format!("model-{:05}-of-00003.gguf", no + 1))
}

fn write_parts(folder: &Path, parts: &[Writer]) {
    for (no, w) in parts.iter().enumerate() {
        let bytes = w.to_vec(&[&[no as u8, 7]]).unwrap();
        fs::write(part_path(folder, no), bytes).unwrap();
    }
}

fn three_parts() -> [Writer; 3] {
    [part(0, "a"), part(1, "b"), part(2, "c")]
}

/// The error of opening and parsing the model whose first part is in `folder`.
fn error(folder: &Path) -> FileError {
    match GgufFiles::open(part_path(folder, 0)) {
        Ok(files) => files.parse().map(|_| ()).unwrap_err(),
        Err(e) => e,
    }
}

#[test]
fn one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("any name");
    let mut w = Writer::new();
    w.add("k", Value::U8(1)).unwrap();
    w.add_tensor("t", &[3], DType::I8).unwrap();
    fs::write(&path, w.to_vec(&[&[1, 2, 3]]).unwrap()).unwrap();
    let files = GgufFiles::open(&path).unwrap();
    assert_eq!(files.n_bytes(), fs::metadata(&path).unwrap().len());
    assert_eq!(files.paths().collect::<Vec<_>>(), [&path]);
    let file = files.parse().unwrap();
    assert_eq!(file.tensor("t").unwrap().data, [1, 2, 3]);
    assert_eq!(file.tensor("t").unwrap().data.as_ptr() as usize % 32, 0);
}

#[test]
fn split_model() {
    let folder = tempfile::tempdir().unwrap();
    write_parts(folder.path(), &three_parts());
    let files = GgufFiles::open(part_path(folder.path(), 0)).unwrap();
    assert_eq!(files.paths().len(), 3);
    let file = files.parse().unwrap();
    let names: Vec<&str> = file.tensors().iter().map(|t| t.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    for (no, name) in names.iter().enumerate() {
        assert_eq!(file.tensor(name).unwrap().data, [no as u8, 7]);
    }
    let keys: Vec<&str> = file.metadata().map(|(k, _)| k).collect();
    assert_eq!(keys, ["general.architecture"]);
    assert!(file.get("general.architecture").is_some() && file.get("split.no").is_none());
}

#[test]
fn not_the_first_part() {
    let folder = tempfile::tempdir().unwrap();
    write_parts(folder.path(), &three_parts());
    let e = GgufFiles::open(part_path(folder.path(), 1)).unwrap_err();
    let first = part_path(folder.path(), 0);
    assert!(e.to_string().ends_with(&first.display().to_string()), "{e}");
    assert!(matches!(e, FileError::NotFirstPart { first: Some(f), .. } if f == first));

    let renamed = folder.path().join("renamed.gguf");
    fs::rename(part_path(folder.path(), 2), &renamed).unwrap();
    let e = GgufFiles::open(renamed).unwrap_err();
    assert!(matches!(e, FileError::NotFirstPart { first: None, .. }));
}

#[test]
fn first_part_renamed() {
    let folder = tempfile::tempdir().unwrap();
    write_parts(folder.path(), &three_parts());
    let renamed = folder.path().join("model.gguf");
    fs::rename(part_path(folder.path(), 0), &renamed).unwrap();
    let e = GgufFiles::open(renamed).unwrap_err();
    assert!(
        matches!(&e, FileError::PartName { wanted, .. } if wanted == "-00001-of-00003.gguf"),
        "{e}"
    );
}

#[test]
fn part_missing() {
    let folder = tempfile::tempdir().unwrap();
    write_parts(folder.path(), &three_parts());
    fs::remove_file(part_path(folder.path(), 2)).unwrap();
    match error(folder.path()) {
        FileError::Io { path, source } => {
            assert_eq!(path, part_path(folder.path(), 2));
            assert_eq!(source.kind(), io::ErrorKind::NotFound);
        }
        e => panic!("{e:?}"),
    }
}

#[test]
fn part_malformed() {
    let folder = tempfile::tempdir().unwrap();
    write_parts(folder.path(), &three_parts());
    fs::write(part_path(folder.path(), 1), b"GGML").unwrap();
    let e = error(folder.path());
    assert!(matches!(&e, FileError::Format { path, .. } if *path == part_path(folder.path(), 1)));
    assert!(e.source().unwrap().to_string().contains("GGML"));
}

fn split_error(parts: &[Writer]) -> GgufError {
    let folder = tempfile::tempdir().unwrap();
    write_parts(folder.path(), parts);
    match error(folder.path()) {
        FileError::Format { source, .. } => source,
        e => panic!("{e:?}"),
    }
}

#[test]
fn parts_in_wrong_places() {
    let e = split_error(&[part(0, "a"), part(2, "b"), part(1, "c")]);
    assert_eq!(
        e.to_string(),
        "part 2 of the split model has split.no = 2; 1 is needed"
    );
}

#[test]
fn part_of_another_model() {
    let mut other = Writer::new();
    other.add("split.no", Value::U16(1)).unwrap();
    other.add("split.count", Value::U16(2)).unwrap();
    other.add("split.tensors.count", Value::I32(3)).unwrap();
    other.add_tensor("b", &[2], DType::I8).unwrap();
    let e = split_error(&[part(0, "a"), other, part(2, "c")]);
    assert_eq!(
        e.to_string(),
        "part 2 of the split model has split.count = 2; 3 is needed"
    );
}

#[test]
fn part_without_split_keys() {
    let mut other = Writer::new();
    other.add_tensor("b", &[2], DType::I8).unwrap();
    let e = split_error(&[part(0, "a"), other, part(2, "c")]);
    assert_eq!(
        e.to_string(),
        "part 2 of the split model has no split.no; 1 is needed"
    );
}

#[test]
fn number_of_tensors_wrong() {
    let mut parts = three_parts();
    parts[2].add_tensor("d", &[1], DType::I8).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_parts(folder.path(), &parts[..2]);
    let bytes = parts[2].to_vec(&[&[1, 2], &[3]]).unwrap();
    fs::write(part_path(folder.path(), 2), bytes).unwrap();
    let e = error(folder.path());
    assert_eq!(
        e.source().unwrap().to_string(),
        "part 1 of the split model has split.tensors.count = 3; 4 is needed"
    );
}

#[test]
fn tensor_in_two_parts() {
    let e = split_error(&[part(0, "a"), part(1, "b"), part(2, "a")]);
    assert_eq!(
        e,
        GgufError::DuplicateTensor {
            name: "a".into(),
            offset: 0
        }
    );
}

#[test]
fn no_parts() {
    assert!(tandem_formats::Gguf::join(Vec::new()).is_err());
}

#[test]
fn too_many_parts() {
    let mut w = Writer::new();
    w.add("split.count", Value::U64(u64::MAX)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m-00001-of-00003.gguf");
    fs::write(&path, w.to_vec(&[]).unwrap()).unwrap();
    assert!(matches!(
        GgufFiles::open(path),
        Err(FileError::Format {
            source: GgufError::TooMany { .. },
            ..
        })
    ));
}

#[test]
fn what_cannot_be_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let kind = |path: &Path| Mapping::open(path).unwrap_err().kind();
    assert_eq!(kind(folder.path()), io::ErrorKind::IsADirectory);
    assert_eq!(kind(&folder.path().join("x")), io::ErrorKind::NotFound);
    let empty = folder.path().join("empty");
    fs::write(&empty, b"").unwrap();
    assert_eq!(kind(&empty), io::ErrorKind::UnexpectedEof);
    #[cfg(unix)]
    assert_eq!(kind(Path::new("/dev/null")), io::ErrorKind::InvalidInput);
    let e = GgufFiles::open(&empty).unwrap_err();
    assert!(e.to_string().contains("empty"));
    assert_eq!(e.source().unwrap().to_string(), "the file is empty");
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn atomic_write_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for content in ["first", "second"] {
        let n: usize = write_atomically::<_, io::Error>(&path, |out| {
            out.write_all(content.as_bytes())?;
            Ok(content.len())
        })
        .unwrap();
        assert_eq!(n, content.len());
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn what_killed_writers_left_is_removed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    let make = |name: &str, modified| {
        let file = fs::File::create(folder.path().join(name)).unwrap();
        file.set_modified(modified).unwrap();
        file
    };
    drop(make(".tandem-abandoned.tmp", old));
    drop(make(".tandem-young.tmp", std::time::SystemTime::now()));
    drop(make(".other-old.tmp", old));
    let alive = make(".tandem-alive.tmp", old);
    alive.lock().unwrap();
    write_atomically::<_, io::Error>(folder.path().join("file"), |out| out.write_all(b"x"))
        .unwrap();
    let left = [
        ".other-old.tmp",
        ".tandem-alive.tmp",
        ".tandem-young.tmp",
        "file",
    ];
    assert_eq!(names(folder.path()), left);
}

#[test]
fn atomic_write_that_fails_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for old in [None, Some("old")] {
        if let Some(old) = old {
            fs::write(&path, old).unwrap();
        }
        let result = write_atomically(&path, |out| -> io::Result<()> {
            // More than the buffer, so that the temporary file has some.
            out.write_all(&vec![1; 3 << 20])?;
            Err(io::Error::other("no more"))
        });
        assert_eq!(result.unwrap_err().to_string(), "no more");
        assert_eq!(fs::read_to_string(&path).ok().as_deref(), old);
    }
    assert_eq!(names(folder.path()), ["file"]);
}

#[test]
fn atomic_write_while_the_old_file_is_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, b"old").unwrap();
    let old = Mapping::open(&path).unwrap();
    write_atomically(&path, |out| out.write_all(b"a longer one")).unwrap();
    assert_eq!(&old[..], b"old");
    assert_eq!(&Mapping::open(&path).unwrap()[..], b"a longer one");
}

#[test]
fn atomic_write_refuses_what_is_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = |path: &Path| write_atomically::<(), io::Error>(path, |_| Ok(()));
    assert!(nothing(folder.path()).is_err());
    assert!(nothing(&folder.path().join("no/such/folder")).is_err());
    #[cfg(unix)]
    assert!(nothing(Path::new("/dev/null")).is_err());
    assert!(names(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn atomic_write_keeps_links_and_makes_ordinary_files() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    fs::write(&target, b"old").unwrap();
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
    let ordinary = mode(&target);
    std::os::unix::fs::symlink(&target, &link).unwrap();
    write_atomically(&link, |out| out.write_all(b"new")).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"new");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(mode(&target), ordinary);
}
