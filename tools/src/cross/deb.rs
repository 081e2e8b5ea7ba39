//! A Debian package for boards: the program, its service, completions for shells and manual pages, and if wanted
//! a model and a bundle. The format is that of deb(5): an archive by `ar` of two by `tar`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use clap::CommandFactory as _;
use clap_complete::Shell;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;

use super::package::{Content, name, parent, tell_of_space};
use super::units::{self, Place, SERVICE, SOCKET};
use crate::Cli;

const PLACE: Place = Place {
    binary: "/usr/bin/tandem",
    folder: "/usr/share/tandem",
    model: "/var/lib/tandem/model.gguf",
    note: "Other flags: `systemctl edit tandem.service`; see /usr/share/doc/tandem/README.",
};

/// Commands that builds for boards do not have.
const NOT_ON_BOARDS: [&str; 3] = ["calibrate", "cross", "train-lora"];

/// The most bytes of one member: its size has ten digits.
const MAX_MEMBER: u64 = 9_999_999_999;

/// A Debian package that is to be written.
pub(super) struct Deb {
    path: PathBuf,
    version: String,
    /// When it was made, in seconds since 1970.
    time: u64,
}

impl Deb {
    /// One at `out`, or of the usual name in that folder, or here.
    pub(super) fn new(out: Option<&Path>) -> Result<Deb> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        // The way to the same bytes twice: reproducible-builds.org/specs/source-date-epoch.
        let time = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(time) => time
                .parse()
                .context("SOURCE_DATE_EPOCH is no number of seconds")?,
            Err(_) => now,
        };
        let made = Timestamp::from_second(i64::try_from(time)?).context("SOURCE_DATE_EPOCH")?;
        // Whoever packs another model has a later version, which apt installs.
        let version = format!(
            "{}-{}",
            env!("CARGO_PKG_VERSION"),
            made.strftime("%Y%m%d%H%M%S")
        );
        let file_name = format!("tandem_{version}_arm64.deb");
        let path = match out {
            None => PathBuf::from(file_name),
            Some(out) if out.is_dir() => out.join(file_name),
            Some(out) => out.to_path_buf(),
        };
        let folder = parent(&path);
        ensure!(
            folder.is_dir(),
            "there is no folder {}: make it, or choose another --out",
            folder.display()
        );
        let is_deb = path.extension().is_some_and(|ending| ending == "deb");
        ensure!(
            is_deb,
            "{} must end in .deb, or be a folder that is there",
            path.display()
        );
        Ok(Deb {
            path,
            version,
            time,
        })
    }

    /// Writes it, whole or not at all.
    pub(super) fn write(&self, binary: &Path, content: &Content) -> Result<()> {
        let cannot = || format!("cannot write {}", self.path.display());
        let written = tandem_formats::write_atomically(&self.path, |file| -> Result<()> {
            self.write_to(file, binary, content)
        });
        written.with_context(cannot).map_err(tell_of_space)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn write_to(&self, file: &mut dyn Write, binary: &Path, content: &Content) -> Result<()> {
        let mut tree = Tree::default();
        tree.add("usr/bin/tandem", Source::Program(binary.to_path_buf()));
        for path in content.paths() {
            let place = format!("{}/{}", &PLACE.folder[1..], name(path)?);
            tree.add(&place, Source::File(path.to_path_buf()));
        }
        tree.add_folder("var/lib/tandem");
        let units = "usr/lib/systemd/system";
        tree.add_text(&format!("{units}/{SOCKET}"), units::socket(&PLACE, content));
        tree.add_text(
            &format!("{units}/{SERVICE}"),
            units::service(&PLACE, content)?,
        );
        let doc = "usr/share/doc/tandem";
        tree.add_text(&format!("{doc}/README"), readme(content)?);
        tree.add_text(&format!("{doc}/copyright"), copyright());
        tree.add(
            &format!("{doc}/changelog.Debian.gz"),
            Source::Bytes(gzip(self.changelog()?.as_bytes())?),
        );
        add_completions(&mut tree);
        add_manual(&mut tree)?;

        let has_model = content.paths().next().is_some();
        let mut members = ar::Builder::new(file);
        self.member(&mut members, "debian-binary", b"2.0\n")?;
        self.member(&mut members, "control.tar.gz", &self.control(&tree)?)?;
        // Beside its place: a temporary folder may be in memory.
        let data = tempfile::tempfile_in(parent(&self.path))?;
        // A model would not get smaller.
        let (name, mut data) = match has_model {
            true => ("data.tar", tree.write(data, self.time)?),
            false => {
                let gz = GzEncoder::new(data, Compression::best());
                ("data.tar.gz", tree.write(gz, self.time)?.finish()?)
            }
        };
        let n_bytes = data.seek(SeekFrom::End(0))?;
        data.rewind()?;
        ensure!(
            n_bytes <= MAX_MEMBER,
            "a Debian package holds 9.9 GB: pack it without the model, and copy that by itself"
        );
        let header = self.header(name, n_bytes);
        members.append(&header, &mut data)?;
        Ok(())
    }

    fn header(&self, name: &str, n_bytes: u64) -> ar::Header {
        let mut header = ar::Header::new(name.as_bytes().to_vec(), n_bytes);
        header.set_mode(0o100644);
        header.set_mtime(self.time);
        header
    }

    fn member<W: Write>(
        &self,
        members: &mut ar::Builder<W>,
        name: &str,
        bytes: &[u8],
    ) -> io::Result<()> {
        members.append(&self.header(name, bytes.len() as u64), bytes)
    }

    /// What dpkg reads: what it is, and what runs when it comes and goes.
    fn control(&self, tree: &Tree) -> Result<Vec<u8>> {
        let kilobytes = tree.n_bytes()?.div_ceil(1024);
        let control = format!(
            "Package: tandem
Version: {version}
Architecture: arm64
Maintainer: {maintainer}
Installed-Size: {kilobytes}
Pre-Depends: init-system-helpers (>= 1.50)
Section: science
Priority: optional
Homepage: {homepage}
Description: language models on small machines, several adapters in one pass
 Runs models in the GGUF format on 64-bit Arm boards, by themselves or with
 compositions of LoRA adapters, from the shell and over HTTP: as OpenAI's and
 Ollama's clients expect it, and with a page for the browser.
 .
 The program is linked statically and chooses what the CPU has at start.
",
            version = self.version,
            maintainer = maintainer(),
            homepage = env!("CARGO_PKG_REPOSITORY"),
        );
        let mut files = Tree::default();
        files.add_text("control", control);
        for (name, script) in [("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)] {
            files.add(name, Source::Script(script));
        }
        Ok(files
            .write(GzEncoder::new(Vec::new(), Compression::best()), self.time)?
            .finish()?)
    }

    fn changelog(&self) -> Result<String> {
        let made = Timestamp::from_second(i64::try_from(self.time)?)?;
        let date = made.strftime("%a, %d %b %Y %H:%M:%S +0000");
        let (version, maintainer) = (&self.version, maintainer());
        let changes = "  * Packed by `tandem cross --deb`.";
        Ok(format!(
            "tandem ({version}) stable; urgency=low\n\n{changes}\n\n -- {maintainer}  {date}\n"
        ))
    }
}

/// As Debian's own tools know them.
fn maintainer() -> String {
    let var = |name| std::env::var(name).ok().filter(|text| is_line(text));
    let name = var("DEBFULLNAME").unwrap_or_else(|| "Tandem".to_string());
    let address = var("DEBEMAIL").unwrap_or_else(|| "root@localhost".to_string());
    format!("{name} <{address}>")
}

fn is_line(text: &str) -> bool {
    !text.trim().is_empty() && !text.contains(|c: char| c.is_control() || "<>".contains(c))
}

/// The socket is started where systemd runs; an update ends the service, and the next request starts the new one.
const POSTINST: &str = r#"#!/bin/sh
set -e
if [ "$1" = configure ]; then
    deb-systemd-helper unmask tandem.socket >/dev/null || true
    if deb-systemd-helper --quiet was-enabled tandem.socket; then
        deb-systemd-helper enable tandem.socket >/dev/null || true
    else
        deb-systemd-helper update-state tandem.socket >/dev/null || true
    fi
    if [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload >/dev/null || true
        deb-systemd-invoke start tandem.socket >/dev/null || true
    fi
fi
"#;

const PRERM: &str = r#"#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    deb-systemd-invoke stop tandem.socket tandem.service >/dev/null || true
fi
"#;

const POSTRM: &str = r#"#!/bin/sh
set -e
if [ "$1" = remove ]; then
    deb-systemd-helper mask tandem.socket >/dev/null || true
fi
if [ "$1" = purge ]; then
    deb-systemd-helper purge tandem.socket >/dev/null || true
    deb-systemd-helper unmask tandem.socket >/dev/null || true
    rm -rf /var/cache/private/tandem /var/cache/tandem
fi
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
fi
"#;

fn readme(content: &Content) -> Result<String> {
    let flags = content.serve_flags(&format!("{}/", PLACE.folder))?;
    let model = match flags.is_empty() {
        true => format!(
            "No model is in this package: put one at {model}, then

    sudo systemctl start {SOCKET}
",
            model = PLACE.model
        ),
        false => format!("The package's model is in {}.\n", PLACE.folder),
    };
    Ok(format!(
        "Tandem {version}

{model}
The service starts at the first request to http://127.0.0.1:8080, which is also a page for the browser, and ends
after {minutes} minutes without one. Clients want http://127.0.0.1:8080/v1 as OpenAI's address, or
http://127.0.0.1:8080 as Ollama's.

Another model, bundle or flag: `sudo systemctl edit tandem.service`, with

    [Service]
    ExecStart=
    ExecStart={binary} serve --model ... --exit-idle {idle} --cache-dir /var/cache/tandem

For other machines `sudo systemctl edit {SOCKET}`, with

    [Socket]
    ListenStream=
    ListenStream=0.0.0.0:8080

and in the service their addresses in IPAddressAllow= and a key by --api-key-file: whoever reaches the port can
use the model otherwise.

`man tandem` and `tandem help` tell of the rest.
",
        version = env!("CARGO_PKG_VERSION"),
        minutes = units::EXIT_IDLE / 60,
        idle = units::EXIT_IDLE,
        binary = PLACE.binary,
    ))
}

fn copyright() -> String {
    format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Tandem
Source: {}

Files: *
Copyright: Tandem's authors
License: MIT or Apache-2.0

License: MIT
{}
License: Apache-2.0
 On Debian systems the whole text is in /usr/share/common-licenses/Apache-2.0.
",
        env!("CARGO_PKG_REPOSITORY"),
        field(include_str!("../../../LICENSE")),
    )
}

/// A text of several lines as a field of a control file.
fn field(text: &str) -> String {
    let line = |line: &str| match line.trim_end() {
        "" => " .\n".to_string(),
        line => format!(" {line}\n"),
    };
    text.trim().lines().map(line).collect()
}

/// The command as boards have it.
fn command() -> clap::Command {
    let all = Cli::command();
    let mut kept = clap::Command::new("tandem")
        .version(env!("CARGO_PKG_VERSION"))
        .max_term_width(100);
    if let Some(about) = all.get_about() {
        kept = kept.about(about.clone());
    }
    let on_boards = |command: &&clap::Command| !NOT_ON_BOARDS.contains(&command.get_name());
    kept.subcommands(all.get_subcommands().filter(on_boards).cloned())
}

fn add_completions(tree: &mut Tree) {
    let places = [
        (Shell::Bash, "usr/share/bash-completion/completions/tandem"),
        (Shell::Zsh, "usr/share/zsh/vendor-completions/_tandem"),
        (
            Shell::Fish,
            "usr/share/fish/vendor_completions.d/tandem.fish",
        ),
    ];
    for (shell, place) in places {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command(), "tandem", &mut script);
        tree.add(place, Source::Bytes(script));
    }
}

fn add_manual(tree: &mut Tree) -> Result<()> {
    let folder = tempfile::tempdir()?;
    clap_mangen::generate_to(command(), folder.path())?;
    let pages: BTreeSet<_> = fs::read_dir(folder.path())?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    for page in pages {
        let place = format!("usr/share/man/man1/{}.gz", name(&page)?);
        tree.add(&place, Source::Bytes(gzip(&fs::read(&page)?)?));
    }
    Ok(())
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = GzEncoder::new(Vec::new(), Compression::best());
    out.write_all(bytes)?;
    out.finish()
}

/// Files of an archive and where they go.
#[derive(Default)]
struct Tree {
    files: Vec<Entry>,
    folders: BTreeSet<String>,
}

struct Entry {
    /// From the root on, without its slash.
    place: String,
    source: Source,
}

enum Source {
    Bytes(Vec<u8>),
    /// A program that dpkg runs.
    Script(&'static str),
    File(PathBuf),
    Program(PathBuf),
}

impl Source {
    fn n_bytes(&self) -> io::Result<u64> {
        match self {
            Source::Bytes(bytes) => Ok(bytes.len() as u64),
            Source::Script(text) => Ok(text.len() as u64),
            Source::File(path) | Source::Program(path) => Ok(fs::metadata(path)?.len()),
        }
    }
}

impl Tree {
    fn add(&mut self, place: &str, source: Source) {
        self.add_parents(place);
        let place = place.to_string();
        self.files.push(Entry { place, source });
    }

    fn add_text(&mut self, place: &str, text: String) {
        self.add(place, Source::Bytes(text.into_bytes()));
    }

    fn add_folder(&mut self, place: &str) {
        self.add_parents(place);
        self.folders.insert(place.to_string());
    }

    fn add_parents(&mut self, place: &str) {
        let ends = place.match_indices('/').map(|(end, _)| end);
        self.folders
            .extend(ends.map(|end| place[..end].to_string()));
    }

    fn n_bytes(&self) -> io::Result<u64> {
        self.files.iter().map(|file| file.source.n_bytes()).sum()
    }

    /// Writes all as root's; a folder stands before what is in it.
    fn write<W: Write>(&self, out: W, time: u64) -> Result<W> {
        let mut tar = tar::Builder::new(out);
        let header = |mode: u32, n_bytes: u64| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(time);
            header.set_size(n_bytes);
            header
        };
        for folder in &self.folders {
            let mut header = header(0o755, 0);
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, format!("./{folder}/"), io::empty())?;
        }
        for Entry { place, source } in &self.files {
            let place = format!("./{place}");
            let n_bytes = source.n_bytes()?;
            match source {
                Source::Bytes(bytes) => {
                    tar.append_data(&mut header(0o644, n_bytes), place, &bytes[..])?
                }
                Source::Script(text) => {
                    tar.append_data(&mut header(0o755, n_bytes), place, text.as_bytes())?
                }
                Source::File(path) | Source::Program(path) => {
                    let is_program = matches!(source, Source::Program(_));
                    let mut header = header(if is_program { 0o755 } else { 0o644 }, n_bytes);
                    let mut file = File::open(path)?;
                    tar.append_data(&mut header, place, io::Read::take(&mut file, n_bytes))?;
                    let is_whole = file.stream_position()? == n_bytes;
                    ensure!(is_whole, "{} changed while it was read", path.display());
                }
            }
        }
        Ok(tar.into_inner()?)
    }
}
