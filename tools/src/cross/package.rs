//! The directory that is copied to a board.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use sha2::{Digest as _, Sha256};

use super::boards::Board;
use super::units::{self, EXIT_IDLE, Place, SERVICE, SOCKET};
use crate::adapters::bundle_for;
use crate::inspect::size;
use crate::open;

/// The files beside the model's.
const BINARY: &str = "tandem";
const README: &str = "README";
const SUMS: &str = "SHA256SUMS";

/// Where the units expect it all on the board.
const FOLDER: &str = "/opt/tandem";
const PLACE: Place = Place {
    binary: "/opt/tandem/tandem",
    folder: FOLDER,
    model: "/opt/tandem/model.gguf",
    note: "Installed with the rest in /opt/tandem; see README.",
};

/// What goes to the board besides the program.
pub(super) struct Content {
    /// The files of the model: several of a split one.
    model: Vec<PathBuf>,
    /// A bundle and one of its compositions.
    bundle: Option<(PathBuf, String)>,
}

impl Content {
    /// Opens what the flags name, as a board should get nothing that it cannot run.
    pub(super) fn open(
        model: Option<&Path>,
        bundle: Option<&Path>,
        compose: Option<&str>,
    ) -> Result<Content> {
        let Some(path) = model else {
            return Ok(Content {
                model: Vec::new(),
                bundle: None,
            });
        };
        let files = open::files(path)?;
        let model = open::model(path)?;
        let chosen = match (bundle, compose) {
            (Some(bundle_path), Some(name)) => {
                let unusable = || format!("cannot use {}", bundle_path.display());
                let bundle = bundle_for(bundle_path, &model)?;
                let bundle = bundle.file();
                bundle.verify().with_context(unusable)?;
                bundle.parts(name).with_context(unusable)?;
                Some((bundle_path.to_path_buf(), name.to_string()))
            }
            _ => None,
        };
        let content = Content {
            model: files.paths().map(Path::to_path_buf).collect(),
            bundle: chosen,
        };
        let mut names: HashSet<_> = [BINARY, SOCKET, SERVICE, README, SUMS]
            .map(str::to_string)
            .into();
        for path in content.paths() {
            let name = name(path)?;
            ensure!(
                !names.contains(&name),
                "two files would be named {name}: rename one"
            );
            names.insert(name);
        }
        Ok(content)
    }

    /// Bytes of the model's files.
    pub(super) fn model_bytes(&self) -> Result<u64> {
        let mut n_bytes = 0;
        for path in &self.model {
            let meta = fs::metadata(path);
            n_bytes += meta
                .with_context(|| format!("cannot read {}", path.display()))?
                .len();
        }
        Ok(n_bytes)
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        let bundle = self.bundle.iter().map(|(path, _)| path);
        self.model.iter().chain(bundle).map(PathBuf::as_path)
    }

    /// Flags of `run` and `doctor`, each as it is.
    fn flags(&self, folder: &str) -> Result<Vec<String>> {
        let mut flags = Vec::new();
        if let Some(path) = self.model.first() {
            flags.extend(["--model".to_string(), format!("{folder}{}", name(path)?)]);
        }
        if let Some((path, composition)) = &self.bundle {
            flags.extend(["--bundle".to_string(), format!("{folder}{}", name(path)?)]);
            flags.push(format!("--compose={composition}")); // which may begin with a dash
        }
        Ok(flags)
    }

    /// Flags of `serve`: the bundle's composition is what requests get that name no model.
    pub(super) fn serve_flags(&self, folder: &str) -> Result<Vec<String>> {
        let mut flags = self.flags(folder)?;
        if let Some((_, composition)) = &self.bundle {
            flags.pop();
            flags.push(format!("--default={composition}"));
        }
        Ok(flags)
    }
}

/// The name of a file, which may stand in units, checksums and commands.
pub(super) fn name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    let name = name.filter(|name| name.chars().all(is_plain) && !name.starts_with(['-', '.']));
    let name = name.map(str::to_string);
    name.ok_or_else(|| anyhow!("{}: name it by plain letters and digits", path.display()))
}

/// A directory that was written.
pub(super) struct Package {
    folder: PathBuf,
    /// Names of its files and their sizes.
    files: Vec<(String, u64)>,
    flags: Vec<String>,
}

impl Package {
    /// Paths of all files.
    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.files.iter().map(|(name, _)| self.folder.join(name))
    }

    /// Bytes of all files.
    pub(super) fn n_bytes(&self) -> u64 {
        self.files.iter().map(|(_, n)| n).sum()
    }

    /// Flags by which `tandem doctor` on the board looks at what was copied, for its shell.
    pub(super) fn doctor_flags(&self) -> String {
        shell(&self.flags)
    }

    /// What was written, for the user.
    pub(super) fn describe(&self) -> String {
        let files = self.files.iter().map(|(name, n)| {
            let n = usize::try_from(*n).unwrap_or(usize::MAX);
            format!("  {name:<24} {}\n", size(n))
        });
        format!("{}:\n{}", self.folder.display(), files.collect::<String>())
    }
}

/// Looks whether the directory can be written; asked before the build, which takes minutes.
pub(super) fn check_out(out: &Path) -> Result<()> {
    let parent = parent(out);
    ensure!(
        parent.is_dir(),
        "there is no folder {}: make it, or choose another --out",
        parent.display()
    );
    if !out.exists() {
        return Ok(());
    }
    let is_empty = fs::read_dir(out).is_ok_and(|mut files| files.next().is_none());
    ensure!(
        is_empty || out.join(SUMS).is_file() && out.join(BINARY).is_file(),
        "{} is there and was not written by `tandem cross`: choose another --out",
        out.display()
    );
    Ok(())
}

pub(super) fn parent(out: &Path) -> &Path {
    match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes the directory, all of it or nothing.
pub(super) fn write(
    out: &Path,
    board: &Board,
    binary: &Path,
    content: &Content,
) -> Result<Package> {
    write_all(out, board, binary, content).map_err(tell_of_space)
}

/// Says what to do where the disk is full.
pub(super) fn tell_of_space(error: anyhow::Error) -> anyhow::Error {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    match causes.any(|error| error.kind() == io::ErrorKind::StorageFull) {
        true => error.context("no space on the disk: make some, or choose another --out"),
        false => error,
    }
}

fn write_all(out: &Path, board: &Board, binary: &Path, content: &Content) -> Result<Package> {
    let cannot = || format!("cannot write {}", out.display());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tandem-").suffix(".tmp");
    // Beside its place, so that it can be renamed; gone with all that is in it if we fail.
    let temp = builder.tempdir_in(parent(out)).with_context(cannot)?;
    let folder = temp.path().join("new");
    fs::create_dir(&folder).with_context(cannot)?;

    copy(binary, &folder.join(BINARY)).with_context(cannot)?;
    for path in content.paths() {
        copy(path, &folder.join(name(path)?)).with_context(cannot)?;
    }
    let text = |name: &str, text: String| fs::write(folder.join(name), text).with_context(cannot);
    text(SOCKET, units::socket(&PLACE, content))?;
    text(SERVICE, units::service(&PLACE, content)?)?;
    text(README, readme(board, content)?)?;
    let mut names = vec![BINARY.to_string()];
    names.extend(content.paths().map(name).collect::<Result<Vec<_>>>()?);
    names.extend([SOCKET, SERVICE, README].map(str::to_string));
    let mut sums = String::new();
    for name in &names {
        let sum = sha256(&folder.join(name)).with_context(cannot)?;
        sums += &format!("{sum}  {name}\n");
    }
    text(SUMS, sums)?;
    names.push(SUMS.to_string());

    if out.exists() {
        // Asked again: the build took minutes.
        check_out(out)?;
        fs::rename(out, temp.path().join("old")).with_context(cannot)?;
    }
    if let Err(error) = fs::rename(&folder, out) {
        // The old one was whole.
        let _ = fs::rename(temp.path().join("old"), out);
        return Err(error).with_context(cannot);
    }
    let n_bytes = |name: String| {
        let n = fs::metadata(out.join(&name)).with_context(cannot)?.len();
        Ok((name, n))
    };
    Ok(Package {
        folder: out.to_path_buf(),
        files: names.into_iter().map(n_bytes).collect::<Result<_>>()?,
        flags: content.flags("")?,
    })
}

/// Copies a file with its permissions, and has it on the disk: what is short of space shows here.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    File::open(to)?.sync_all()
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Flags for a shell.
fn shell(flags: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=.+".contains(c);
    let word = |flag: &String| match flag.chars().all(is_plain) {
        true => flag.clone(),
        false => format!("'{}'", flag.replace('\'', r"'\''")),
    };
    flags.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn readme(board: &Board, content: &Content) -> Result<String> {
    let (title, cpu, level, version) = (
        board.title,
        board.cpu,
        board.level(),
        env!("CARGO_PKG_VERSION"),
    );
    let flags = content.flags("")?;
    let (flags, model) = match flags.is_empty() {
        false => (shell(&flags), String::new()),
        true => (
            "--model model.gguf".to_string(),
            format!("\nNo model is here yet: the service looks for {FOLDER}/model.gguf.\n"),
        ),
    };
    Ok(format!(
        "Tandem {version} for {title}

The program is linked statically: it needs no library, whatever the system's glibc, and kernels with
pages of 4 and 16 KiB run it. It is the same for every 64-bit Arm board and chooses at start what
the CPU has; on this board ({cpu}) that is the level {level}.

    sha256sum -c {SUMS}      # the copy is whole
    ./tandem doctor {flags}
    ./tandem run {flags} --prompt 'Why is the sky blue?'
    ./tandem chat {flags}
{model}
As a service, which starts at the first request and ends after {minutes} minutes without one:

    sudo mkdir -p {FOLDER} && sudo cp -r . {FOLDER}/
    sudo cp {SOCKET} {SERVICE} /etc/systemd/system/
    sudo systemctl daemon-reload && sudo systemctl enable --now {SOCKET}
    curl http://127.0.0.1:8080/v1/chat/completions -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}}]}}'

Clients want http://127.0.0.1:8080/v1 as OpenAI's address, or http://127.0.0.1:8080 as Ollama's. For other
machines set ListenStream to 0.0.0.0:8080 in {SOCKET}, their addresses in IPAddressAllow of {SERVICE}, and
add --api-key-file there: whoever reaches the port can use the model otherwise.
",
        minutes = EXIT_IDLE / 60
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_need_no_quotes() {
        assert_eq!(name(Path::new("/a b/q4_0-1.gguf")).unwrap(), "q4_0-1.gguf");
        for path in ["a b", "a;b", "-a", ".a", "a\nb", "/", "ä"] {
            assert!(name(Path::new(path)).is_err(), "{path}");
        }
    }
}
