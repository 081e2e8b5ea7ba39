//! `tandem cross`, with programs in the place of compilers, ssh and scp that tell what they were
//! asked. That the real ones build a program that runs, `.ci/run` shows.
#![cfg(feature = "cross")]

#[expect(dead_code, reason = "of the shared helpers this needs some")]
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Run, fixture, tandem};
use tempfile::TempDir;

/// A folder that is all of `PATH`, a source tree, a place for the output, and a board's home.
struct World {
    folder: TempDir,
}

impl World {
    /// With a whole toolchain, whose cargo "builds" the file `built`.
    fn new() -> World {
        let world = World {
            folder: tempfile::tempdir().unwrap(),
        };
        for folder in ["bin", "out", "home", "source/tools/src", "source/target"] {
            fs::create_dir_all(world.path(folder)).unwrap();
        }
        fs::write(world.path("source/Cargo.toml"), "").unwrap();
        fs::write(world.path("source/tools/src/cross.rs"), "").unwrap();
        fs::write(world.path("built"), elf(0xb7, &[(1, 0x10000)])).unwrap();
        world.compiler("rustc", "1.96.0", &["aarch64-unknown-linux-gnu"]);
        world.program("aarch64-linux-gnu-gcc", "echo /usr/aarch64/lib/libc.a");
        world.cargo("");
        world
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// A shell script in `PATH`; it finds the system's programs, we do not.
    fn program(&self, name: &str, script: &str) {
        let (path, home) = (self.path("bin").join(name), self.path("home"));
        let (bin, home) = (
            self.path("bin").display().to_string(),
            home.display().to_string(),
        );
        let script =
            format!("#!/bin/sh\nPATH={bin}:/usr/bin:/bin\nHOME_OF_BOARD={home}\n{script}\n");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn compiler(&self, name: &str, version: &str, targets: &[&str]) {
        let sysroot = self.path(&format!("sysroot-{name}"));
        for target in targets {
            let folder = sysroot.join("lib/rustlib").join(target).join("lib");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("libstd-0123.rlib"), "").unwrap();
        }
        let sysroot = sysroot.display();
        self.program(
            name,
            &format!("case $1 in --version) echo 'rustc {version} (x 2026-01-01)';; *) echo {sysroot};; esac"),
        );
    }

    /// A cargo that notes how it was called, in `called`.
    fn cargo(&self, more: &str) {
        let (called, built) = (self.path("called"), self.path("built"));
        let (called, built) = (called.display(), built.display());
        let script = format!(
            "{more}\n\
             (echo \"$@\"; env) >{called}\n\
             for t in gnu musl; do\n\
             d=$CARGO_TARGET_DIR/aarch64-unknown-linux-$t/board; mkdir -p $d; cp {built} $d/tandem\n\
             done"
        );
        self.program("cargo", &script);
    }

    /// A board behind ssh and scp, with this much space.
    fn board(&self, machine: &str, free_kilobytes: u64) {
        self.program("uname", &format!("echo {machine}"));
        self.program(
            "df",
            &format!("echo Filesystem; echo /dev/root 9 9 {free_kilobytes} 1% /"),
        );
        // What was copied is no program of this machine.
        self.program(
            "ssh",
            "for last; do :; done\n\
             cd $HOME_OF_BOARD && echo \"$last\" | sed 's:\\./tandem:echo ran tandem:' | sh -e",
        );
        self.program(
            "scp",
            "for last; do :; done\n\
             for file; do case $file in -*|*:*) ;; *) cp \"$file\" \"$HOME_OF_BOARD/${last#*:}\" || exit 1;; esac; done",
        );
    }

    fn cross(&self, args: &[&str]) -> Run {
        self.cross_in(&self.path("source/tools"), args)
    }

    fn cross_in(&self, folder: &Path, args: &[&str]) -> Run {
        let out = Command::new(env!("CARGO_BIN_EXE_tandem"))
            .arg("cross")
            .args(args)
            .current_dir(folder)
            .env_remove("CARGO")
            .env_remove("RUSTC")
            .env("RUSTFLAGS", "-Ctarget-cpu=native")
            .env("SOURCE_DATE_EPOCH", "1795924594")
            .env("PATH", self.path("bin"))
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        Run {
            code: out.status.code(),
            stdout: out.stdout,
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }

    /// Builds into `out/new`.
    fn build(&self, more: &[&str]) -> Run {
        let out = self.path("out/new");
        self.cross(&[&["--board", "rpi4", "--out", out.to_str().unwrap()], more].concat())
    }

    /// Nothing was written, nor left half.
    fn has_no_output(&self) {
        let left: Vec<_> = fs::read_dir(self.path("out")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// The head of a 64-bit program with segments of these types and alignments.
fn elf(machine: u8, segments: &[(u8, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; 64 + 56 * segments.len()];
    bytes[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    (bytes[16], bytes[18], bytes[20]) = (2, machine, 1);
    (bytes[32], bytes[52], bytes[54]) = (64, 64, 56);
    bytes[56] = segments.len() as u8;
    for (i, (kind, align)) in segments.iter().enumerate() {
        let at = 64 + 56 * i;
        bytes[at] = *kind;
        bytes[at + 48..at + 56].copy_from_slice(&align.to_le_bytes());
    }
    bytes
}

#[test]
fn boards_are_listed_with_the_level_that_will_run() {
    let list = tandem!("cross", "--list").ok().text();
    let level = |name: &str| {
        let mut lines = list.lines().map(|line| line.split_whitespace());
        let mut line = lines
            .find(|line| line.clone().next() == Some(name))
            .unwrap();
        line.next_back().unwrap()
    };
    for name in ["rpi3", "zero2w", "rpi4", "jetson-nano", "xavier-nx"] {
        assert_eq!(level(name), "neon", "{name}");
    }
    for name in ["rpi5", "orin-nano", "orin-nx", "agx-orin"] {
        assert_eq!(level(name), "dotprod", "{name}");
    }
}

#[test]
fn bad_flags_are_refused() {
    tandem!("cross").fails(2, "--board");
    tandem!("cross", "--board", "rpi9").fails(2, "rpi3, zero2w, rpi4, rpi5");
    tandem!("cross", "--board", "rpi3-armv7").fails(2, "32-bit");
    tandem!("cross", "--board", "rpi4", "--deploy", "a;b").fails(2, "user@host");
    tandem!("cross", "--board", "rpi4", "--bundle", "x").fails(2, "--model");
    let world = World::new();
    let folder = world.path("out");
    let run = |args: &[&str]| world.cross_in(&folder, &[&["--board", "rpi4"], args].concat());
    run(&[]).fails(1, "not Tandem's source tree");
    run(&["--source", "/"]).fails(1, "not Tandem's source tree");
    run(&["--out", "/nonexistent/x"]).fails(1, "choose another --out");
    run(&["--model", "/nonexistent.gguf"]).fails(1, "/nonexistent.gguf");
    world.has_no_output();
}

#[test]
fn a_directory_is_written_that_checks_itself() {
    let world = World::new();
    let (model, bundle) = (fixture("pocket-q8_0.gguf"), fixture("pocket.tandem"));
    let (model, bundle) = (model.to_str().unwrap(), bundle.to_str().unwrap());
    let content = ["--model", model, "--bundle", bundle, "--compose"];
    let flags = [&content[..], &["summarize-fr"]].concat();
    world.build(&flags).ok();
    let out = world.path("out/new");
    let check = Command::new("sha256sum")
        .args(["-c", "SHA256SUMS"])
        .current_dir(&out)
        .output();
    let check = String::from_utf8(check.unwrap().stdout).unwrap();
    for name in [
        "tandem",
        "pocket-q8_0.gguf",
        "pocket.tandem",
        "tandem.socket",
        "tandem.service",
        "README",
    ] {
        assert!(check.contains(&format!("{name}: OK")), "{check}");
    }
    assert_eq!(check.lines().count(), 6);
    let mode = fs::metadata(&out).unwrap().permissions().mode();
    assert_eq!(mode & 0o055, 0o055, "others may read it");
    let service = fs::read_to_string(out.join("tandem.service")).unwrap();
    let start = r#"ExecStart=/opt/tandem/tandem serve "--model" "/opt/tandem/pocket-q8_0.gguf" "--bundle" "/opt/tandem/pocket.tandem" "--default=summarize-fr" --exit-idle 900 --cache-dir /var/cache/tandem"#;
    assert!(service.contains(start), "{service}");

    // The baseline build, by the compiler that has the target; no flag of the user's own.
    let called = fs::read_to_string(world.path("called")).unwrap();
    assert!(called.starts_with("build --profile board --target aarch64-unknown-linux-gnu --package tandem --no-default-features --features serve"));
    for part in [
        "RUSTC=",
        "target-feature=+crt-static",
        "_GNU_LINKER=",
        "/source/target/boards\n",
    ] {
        assert!(called.contains(part), "{part} not in {called}");
    }
    assert!(!called.contains("native"), "{called}");

    // It is replaced by the next one, and nothing else is.
    world.build(&[]).ok();
    assert!(!out.join("pocket.tandem").exists());
    assert_eq!(fs::read_dir(world.path("out")).unwrap().count(), 1);
    fs::remove_file(out.join("SHA256SUMS")).unwrap();
    world
        .build(&[])
        .fails(1, "was not written by `tandem cross`");
    assert!(out.join("tandem").exists());

    let odd = world.path("a b.gguf");
    fs::copy(model, &odd).unwrap();
    world
        .build(&["--model", odd.to_str().unwrap()])
        .fails(1, "choose another --out");
    fs::remove_dir_all(&out).unwrap();
    world
        .build(&["--model", odd.to_str().unwrap()])
        .fails(1, "plain letters");
    world
        .build(&[&content[..], &["nosuch"]].concat())
        .fails(1, "nosuch");
    world.has_no_output();
}

/// The archives in a Debian package: names of files, and texts of those that are texts.
fn unpack(deb: &[u8]) -> BTreeMap<String, String> {
    let mut members = ar::Archive::new(deb);
    let mut files = BTreeMap::new();
    while let Some(member) = members.next_entry() {
        let mut member = member.unwrap();
        let name = String::from_utf8(member.header().identifier().to_vec()).unwrap();
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).unwrap();
        if !name.contains(".tar") {
            files.insert(name, String::from_utf8(bytes).unwrap());
            continue;
        }
        if name.ends_with(".gz") {
            let packed = std::mem::take(&mut bytes);
            let mut reader = flate2::read::GzDecoder::new(&packed[..]);
            reader.read_to_end(&mut bytes).unwrap();
        }
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(
                (entry.header().uid().unwrap(), entry.header().gid().unwrap()),
                (0, 0)
            );
            let mode = entry.header().mode().unwrap();
            let place = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            files.insert(format!("{name} {mode:o} {place}"), text);
        }
    }
    files
}

#[test]
fn a_debian_package_has_all_that_belongs_to_it() {
    let world = World::new();
    let out = world.path("out");
    let deb = ["--board", "rpi4", "--deb", "--out", out.to_str().unwrap()];
    world.cross(&deb).ok();
    let path = out.join("tandem_0.1.0-20261129035634_arm64.deb");
    let bytes = fs::read(&path).unwrap();
    let files = unpack(&bytes);
    assert_eq!(files["debian-binary"], "2.0\n");
    let control = &files["control.tar.gz 644 control"];
    for line in [
        "Package: tandem",
        "Version: 0.1.0-20261129035634",
        "Architecture: arm64",
    ] {
        assert!(control.contains(&format!("{line}\n")), "{control}");
    }
    for script in ["postinst", "prerm", "postrm"] {
        assert!(files[&format!("control.tar.gz 755 {script}")].starts_with("#!/bin/sh\nset -e\n"));
    }
    let built = fs::read(world.path("built")).unwrap();
    assert_eq!(
        files["data.tar.gz 755 usr/bin/tandem"],
        String::from_utf8_lossy(&built)
    );
    let units = "data.tar.gz 644 usr/lib/systemd/system";
    let service = &files[&format!("{units}/tandem.service")];
    assert!(
        service
            .contains("ExecStart=/usr/bin/tandem serve \"--model\" \"/var/lib/tandem/model.gguf\"")
    );
    // Without a model nothing listens.
    let socket = &files[&format!("{units}/tandem.socket")];
    assert!(
        socket.contains("ConditionPathExists=/var/lib/tandem/model.gguf"),
        "{socket}"
    );
    let bash = &files["data.tar.gz 644 usr/share/bash-completion/completions/tandem"];
    assert!(bash.contains("--prompt-cache") && !bash.contains("--deploy"));
    for place in [
        "usr/share/zsh/vendor-completions/_tandem",
        "usr/share/fish/vendor_completions.d/tandem.fish",
        "usr/share/man/man1/tandem.1.gz",
        "usr/share/man/man1/tandem-serve.1.gz",
        "usr/share/doc/tandem/copyright",
    ] {
        assert!(
            files.contains_key(&format!("data.tar.gz 644 {place}")),
            "{place}"
        );
    }
    assert!(!files.keys().any(|name| name.contains("tandem-cross")));
    // Folders come before what is in them, else dpkg does not unpack it.
    assert!(files.contains_key("data.tar.gz 755 usr/share/man/man1/"));

    // The same again is the same to the byte; a model goes along as it is.
    world.cross(&deb).ok();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let model = fixture("pocket-q8_0.gguf");
    let named = world.path("out/x.deb");
    let flags = [
        "--board",
        "rpi4",
        "--deb",
        "--model",
        model.to_str().unwrap(),
        "--out",
    ];
    world
        .cross(&[&flags[..], &[named.to_str().unwrap()]].concat())
        .ok();
    let files = unpack(&fs::read(&named).unwrap());
    let packed = &files["data.tar 644 usr/share/tandem/pocket-q8_0.gguf"];
    assert_eq!(*packed, String::from_utf8_lossy(&fs::read(model).unwrap()));
    let service = &files["data.tar 644 usr/lib/systemd/system/tandem.service"];
    assert!(
        service.contains("serve \"--model\" \"/usr/share/tandem/pocket-q8_0.gguf\" --exit-idle")
    );
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2);

    let refused = |out: &str, why: &str| {
        world
            .cross(&["--board", "rpi4", "--deb", "--out", out])
            .fails(1, why);
    };
    refused("/nonexistent/x.deb", "choose another --out");
    refused("x.txt", "must end in .deb");
    let deploy = ["--board", "rpi4", "--deb", "--deploy", "a@b"];
    world.cross(&deploy).fails(2, "cannot be used with");
}

#[test]
fn what_is_missing_is_told_with_how_to_get_it() {
    let world = World::new();
    fs::remove_file(world.path("bin/aarch64-linux-gnu-gcc")).unwrap();
    world
        .build(&[])
        .fails(1, "apt install gcc-aarch64-linux-gnu");
    world.program("aarch64-linux-gnu-gcc", "echo libc.a");
    world.build(&[]).fails(1, "no static C library");

    world.compiler("rustc", "1.60.0", &[]);
    world.build(&[]).fails(1, "older than 1.95");
    let sysroot = world.path("sysroot-rustc");
    fs::remove_dir_all(&sysroot).unwrap();
    world.compiler("rustc", "1.96.0", &[]);
    world
        .build(&[])
        .fails(1, "rustup target add aarch64-unknown-linux-musl");
    fs::remove_file(world.path("bin/rustc")).unwrap();
    world.build(&[]).fails(1, "no rustc in PATH");

    let world = World::new();
    fs::remove_file(world.path("bin/cargo")).unwrap();
    world.build(&[]).fails(1, "install cargo");
    world.cargo("exit 1");
    world.build(&[]).fails(1, "could not build");
    world.has_no_output();
}

#[test]
fn musl_is_linked_by_rusts_own_linker_or_zig() {
    let world = World::new();
    fs::remove_dir_all(world.path("sysroot-rustc")).unwrap();
    world.compiler("rustc", "1.96.0", &["aarch64-unknown-linux-musl"]);
    world.build(&[]).fails(1, "cargo-zigbuild");
    let bin = world.path("sysroot-rustc/lib/rustlib/x86_64-unknown-linux-gnu/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::write(bin.join("rust-lld"), "").unwrap();
    world.build(&[]).ok();
    let called = fs::read_to_string(world.path("called")).unwrap();
    assert!(
        called.contains("_MUSL_LINKER=") && called.contains("/bin/rust-lld"),
        "{called}"
    );
    assert!(called.contains("link-self-contained=yes"), "{called}");
    world.program("cargo-zigbuild", "");
    world.build(&[]).ok();
    let called = fs::read_to_string(world.path("called")).unwrap();
    assert!(called.starts_with("zigbuild --profile board --target aarch64-unknown-linux-musl"));
}

#[test]
fn a_program_that_boards_cannot_run_is_refused() {
    let world = World::new();
    let built = |bytes: Vec<u8>| {
        fs::write(world.path("built"), bytes).unwrap();
        world.build(&[])
    };
    built(elf(0x3e, &[(1, 0x10000)])).fails(1, "another machine");
    built(elf(0xb7, &[(1, 0x10000), (3, 1)])).fails(1, "not linked statically");
    built(elf(0xb7, &[(1, 0x10000), (2, 8)])).fails(1, "not linked statically");
    built(elf(0xb7, &[(1, 0x1000)])).fails(1, "16 KiB");
    built(elf(0xb7, &[])).fails(1, "no segments");
    built(b"#!/bin/sh".to_vec()).fails(1, "not fit for boards");
    world.has_no_output();
    built(elf(0xb7, &[(1, 0x4000), (7, 8)])).ok();
}

#[test]
fn no_space_leaves_nothing() {
    let world = World::new();
    fs::write(
        world.path("built"),
        [elf(0xb7, &[(1, 0x10000)]), vec![0; 1 << 20]].concat(),
    )
    .unwrap();
    let (source, out) = (world.path("source"), world.path("out"));
    // A file system of 256 kB, in a namespace of mounts of our own.
    let script = format!(
        "mount -t tmpfs -o size=256k none {0} || {{ echo cannot mount >&2; exit 0; }}\n\
         cd {1}\nPATH={2} {3} cross --board rpi4 --out {0}/new\ncode=$?\n/bin/ls -A {0}\nexit $code",
        out.display(),
        source.display(),
        world.path("bin").display(),
        env!("CARGO_BIN_EXE_tandem")
    );
    let run = Command::new("unshare")
        .args(["-rm", "sh", "-c", &script])
        .env_remove("CARGO")
        .env_remove("RUSTC")
        .output();
    // Not every machine lets its users mount.
    let Ok(run) = run else {
        return eprintln!("skipped: there is no unshare");
    };
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    if stderr.contains("cannot mount") || stderr.starts_with("unshare:") {
        return eprintln!("skipped: {stderr}");
    }
    let stdout = run.stdout;
    Run {
        code: run.status.code(),
        stdout,
        stderr,
    }
    .fails(1, "no space");
}

#[test]
fn the_directory_is_deployed_and_the_doctor_asked() {
    for has_rsync in [false, true] {
        let world = World::new();
        world.board("aarch64", 1 << 20);
        if has_rsync {
            let copy = fs::read_to_string(world.path("bin/scp")).unwrap();
            world.program("rsync", &copy.replace(".partial/", ""));
            fs::remove_file(world.path("bin/scp")).unwrap();
        }
        let model = fixture("pocket-q8_0.gguf");
        let run = world.build(&["--deploy", "pi@board", "--model", model.to_str().unwrap()]);
        let text = run.ok().text();
        assert_eq!(
            text.trim_end(),
            "ran tandem doctor --model pocket-q8_0.gguf"
        );
        let copied = world.path("home/tandem");
        for name in ["tandem", "pocket-q8_0.gguf", "SHA256SUMS"] {
            assert!(copied.join(name).is_file(), "{name}");
        }
        assert!(!copied.join(".partial").exists());
    }
}

#[test]
fn what_fails_on_the_way_to_the_board_is_told() {
    let world = World::new();
    let deploy = |world: &World| world.build(&["--deploy", "pi@board:a/b"]);
    deploy(&world).fails(1, "apt install openssh-client");
    world.program(
        "ssh",
        "echo 'ssh: connect to host board: No route to host' >&2; exit 255",
    );
    deploy(&world).fails(
        1,
        "cannot reach pi@board: ssh: connect to host board: No route to host",
    );
    world.board("x86_64", 1 << 20);
    deploy(&world).fails(1, "no 64-bit Arm board, but x86_64");
    world.board("armv7l", 1 << 20);
    deploy(&world).fails(1, "arm_64bit=1");
    world.board("aarch64", 1);
    deploy(&world).fails(1, "no space on pi@board");
    world.board("aarch64", 1 << 20);
    world.program(
        "scp",
        "echo 'scp: write: No space left on device' >&2; exit 1",
    );
    deploy(&world).fails(1, "No space left on device");
    assert!(!world.path("home/a/b/.partial").exists());
    // A copy that is not what was sent.
    world.board("aarch64", 1 << 20);
    let scp = fs::read_to_string(world.path("bin/scp")).unwrap();
    world.program(
        "scp",
        &format!("{scp}\necho more >>\"$HOME_OF_BOARD/a/b/.partial/README\""),
    );
    deploy(&world).fails(1, "is damaged");
}
