//! Finding a compiler for the boards, and building with it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use object::elf::{EM_AARCH64, FileHeader64, PT_DYNAMIC, PT_INTERP, PT_LOAD};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

const GNU: &str = "aarch64-unknown-linux-gnu";
const MUSL: &str = "aarch64-unknown-linux-musl";
const GCC: &str = "aarch64-linux-gnu-gcc";

const INSTALL_GCC: &str = "`apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross`";
const INSTALL_STD: &str = "`rustup target add aarch64-unknown-linux-musl`, which needs nothing \
    else; or on Debian `dpkg --add-architecture arm64 && apt update && apt install rustc-web \
    libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross`";

/// A compiler with the standard library of a target, and what links for it.
#[derive(Debug)]
pub(super) struct Toolchain {
    rustc: PathBuf,
    version: String,
    target: &'static str,
    linker: Linker,
}

#[derive(Debug)]
enum Linker {
    /// Builds by `cargo zigbuild`.
    Zig,
    Program(PathBuf),
}

impl Toolchain {
    /// The first that is whole, of every `rustc` in `PATH` (rustup's as a rule, then Debian's):
    /// for glibc with the cross compiler as linker, for musl with cargo-zigbuild or the linker
    /// that comes with Rust.
    pub(super) fn find() -> Result<Toolchain> {
        let mut missing = Vec::new();
        let mut lacks_linker = false;
        let mut seen = HashSet::new();
        for rustc in compilers() {
            let Some(version) = output(&rustc, &["--version"]) else {
                continue;
            };
            let Some(sysroot) = output(&rustc, &["--print", "sysroot"]).map(PathBuf::from) else {
                continue;
            };
            // Rustup's directory has links to one program, which are one compiler.
            if !seen.insert(sysroot.clone()) {
                continue;
            }
            if !is_new_enough(&version) {
                let wanted = env!("CARGO_PKG_RUST_VERSION");
                missing.push(format!("{version} is older than {wanted}"));
                continue;
            }
            let mut has_std = false;
            for target in [GNU, MUSL].into_iter().filter(|t| has_target(&sysroot, t)) {
                has_std = true;
                match linker(target, &sysroot) {
                    Ok(linker) => {
                        return Ok(Toolchain {
                            rustc,
                            version,
                            target,
                            linker,
                        });
                    }
                    Err(what) => {
                        lacks_linker = true;
                        missing.push(what);
                    }
                }
            }
            if !has_std {
                let place = rustc.display();
                missing.push(format!("{place} has no standard library for aarch64"));
            }
        }
        if lacks_linker {
            bail!("cannot link for aarch64: {}", missing.join("; "));
        }
        if missing.is_empty() {
            missing.push("there is no rustc in PATH".to_string());
        }
        bail!(
            "cannot compile for aarch64: {}; install {INSTALL_STD}",
            missing.join("; ")
        )
    }

    /// What it is, for the user.
    pub(super) fn describe(&self) -> String {
        let linker = match &self.linker {
            Linker::Zig => "cargo-zigbuild".to_string(),
            Linker::Program(path) => path.display().to_string(),
        };
        let (version, target) = (&self.version, self.target);
        format!("{version} for {target}, linked by {linker}")
    }

    /// Builds the boards' `tandem` of a source tree, checks it, and tells where it is.
    pub(super) fn build(&self, source: &Path) -> Result<PathBuf> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        // Apart from other builds, so that it disturbs none, also when `cargo run` started us.
        let folder = source.join("target/boards");
        let mut command = Command::new(&cargo);
        command
            .arg(match self.linker {
                Linker::Zig => "zigbuild",
                Linker::Program(_) => "build",
            })
            .args(["--profile", "board", "--target", self.target])
            .args([
                "--package",
                "tandem",
                "--no-default-features",
                "--features",
                "serve",
            ])
            .current_dir(source)
            .env("CARGO_TARGET_DIR", &folder)
            .env("RUSTC", &self.rustc)
            // The flags of the user's own builds are for another machine.
            .env_remove("RUSTFLAGS")
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags().join("\x1f"));
        if let Linker::Program(linker) = &self.linker {
            let target = self.target.to_uppercase().replace('-', "_");
            command.env(format!("CARGO_TARGET_{target}_LINKER"), linker);
        }
        let status = command
            .status()
            .with_context(|| format!("cannot start {}: install cargo", cargo.display()))?;
        ensure!(status.success(), "cargo could not build it, see above");
        let binary = folder.join(self.target).join("board/tandem");
        let bytes = std::fs::read(&binary)
            .with_context(|| format!("cargo built no {}", binary.display()))?;
        check(&bytes).with_context(|| format!("{} is not fit for boards", binary.display()))?;
        Ok(binary)
    }

    /// Armv8.0 is what the targets assume unless told otherwise; higher levels are chosen at run
    /// time. Nothing unwinds, so tables for it would be ballast.
    fn flags(&self) -> Vec<&'static str> {
        let mut flags = vec![
            "-Ctarget-feature=+crt-static",
            "-Crelocation-model=static",
            "-Cforce-unwind-tables=no",
        ];
        if let (MUSL, Linker::Program(_)) = (self.target, &self.linker) {
            flags.push("-Clink-self-contained=yes");
        }
        flags
    }
}

/// `RUSTC`, or every `rustc` in `PATH`.
fn compilers() -> Vec<PathBuf> {
    match std::env::var_os("RUSTC") {
        Some(rustc) => vec![rustc.into()],
        None => in_path("rustc"),
    }
}

/// Every program of this name in `PATH`.
pub(super) fn in_path(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let files = std::env::split_paths(&path).map(|folder| folder.join(name));
    files.filter(|file| file.is_file()).collect()
}

/// What a program prints, where it succeeds.
fn output(program: &Path, args: &[&str]) -> Option<String> {
    let out = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    (out.status.success() && !text.trim().is_empty()).then(|| text.trim().to_string())
}

/// Whether a version like `rustc 1.96.0 (ac68faa20 2026-05-25)` is one that compiles Tandem.
fn is_new_enough(version: &str) -> bool {
    let parts = |version: &str| {
        let mut numbers = version.split(['.', '-']).map(|n| n.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    let version = version.split_whitespace().nth(1).and_then(parts);
    // A version that cannot be read is left for cargo to judge.
    version.is_none_or(|v| Some(v) >= parts(env!("CARGO_PKG_RUST_VERSION")))
}

fn has_target(sysroot: &Path, target: &str) -> bool {
    let folder = sysroot.join("lib/rustlib").join(target).join("lib");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = files.map(|file| file.file_name());
    names.into_iter().any(|name| is_std(&name))
}

fn is_std(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("libstd-") && name.ends_with(".rlib")
}

/// What links for a target, or what is missing and how to get it.
fn linker(target: &str, sysroot: &Path) -> Result<Linker, String> {
    if target == GNU {
        // On a board the compiler is no cross compiler.
        let names: &[&str] = match cfg!(target_arch = "aarch64") {
            true => &[GCC, "gcc"],
            false => &[GCC],
        };
        let found = names
            .iter()
            .find_map(|name| in_path(name).into_iter().next());
        let gcc = found.ok_or(format!("{GCC} is missing: {INSTALL_GCC}"))?;
        // The compiler repeats the name of a file that it does not have.
        let libc = output(&gcc, &["-print-file-name=libc.a"]);
        return match libc.is_some_and(|libc| Path::new(&libc).is_absolute()) {
            true => Ok(Linker::Program(gcc)),
            false => Err(format!("{GCC} has no static C library: {INSTALL_GCC}")),
        };
    }
    if !in_path("cargo-zigbuild").is_empty() {
        return Ok(Linker::Zig);
    }
    let hosts = std::fs::read_dir(sysroot.join("lib/rustlib"))
        .into_iter()
        .flatten()
        .flatten();
    let lld = hosts
        .map(|host| host.path().join("bin/rust-lld"))
        .find(|lld| lld.is_file());
    lld.map(Linker::Program).ok_or_else(|| {
        "there is no linker for musl: `cargo install cargo-zigbuild` and `pip install ziglang`"
            .to_string()
    })
}

/// Whether a program runs on every board: 64-bit Arm, static, and aligned so that kernels with
/// pages of 16 KiB (Raspberry Pi 5) can map it.
fn check(bytes: &[u8]) -> Result<()> {
    const PAGE: u64 = 1 << 14;
    let header = FileHeader64::<object::Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    ensure!(
        header.e_machine(endian) == EM_AARCH64,
        "it is for another machine than aarch64"
    );
    let segments = header.program_headers(endian, bytes)?;
    for segment in segments {
        let kind = segment.p_type(endian);
        ensure!(
            kind != PT_INTERP && kind != PT_DYNAMIC,
            "it is not linked statically"
        );
        let align = segment.p_align(endian);
        ensure!(
            kind != PT_LOAD || align >= PAGE && align.is_multiple_of(PAGE),
            "its segments are aligned to {align} bytes, which pages of 16 KiB do not allow"
        );
    }
    ensure!(!segments.is_empty(), "it has no segments");
    Ok(())
}
