//! Copying the directory to a board, and asking the board whether all is well.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::package::Package;
use super::toolchain::in_path;

/// Where to copy to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// `user@host`, as ssh takes it.
    host: String,
    /// A folder there.
    folder: String,
}

/// Where it goes if no folder is named: in the user's home.
const FOLDER: &str = "tandem";

/// Reads `user@host` or `user@host:folder`. Both go through shells, and neither needs quotes.
pub(super) fn target(text: &str) -> Result<Target, String> {
    let (host, folder) = text.split_once(':').unwrap_or((text, FOLDER));
    let folder = folder.trim_end_matches('/');
    let is_plain = |text: &str, also: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
        !text.is_empty() && !text.starts_with('-') && text.chars().all(fits)
    };
    if !is_plain(host, "@._-") || !is_plain(folder, "/._-") {
        return Err("user@host or user@host:folder is wanted, of plain characters".to_string());
    }
    Ok(Target {
        host: host.to_string(),
        folder: folder.to_string(),
    })
}

impl Target {
    /// Whether the programs are here that copy; asked before the build, which takes minutes.
    pub(super) fn check_tools(&self) -> Result<()> {
        ensure!(
            !in_path("ssh").is_empty(),
            "ssh is missing: `apt install openssh-client`"
        );
        Ok(())
    }

    /// Copies the package, checks the copy and runs `tandem doctor` on it.
    pub(super) fn deploy(&self, package: &Package) -> Result<()> {
        let (host, folder) = (&self.host, &self.folder);
        let has_rsync = self.prepare(package)?;
        tell!("copying to {host}:{folder}");
        // From the root on: a relative one could be taken for a flag or, with a colon, for a host.
        let paths = package.paths().map(std::path::absolute);
        let paths: Vec<PathBuf> = paths.collect::<std::io::Result<_>>()?;
        let copied = match has_rsync && !in_path("rsync").is_empty() {
            // Each file is replaced when it is whole; what is there already, by checksum, stays.
            true => {
                let mut rsync = Command::new("rsync");
                rsync
                    .arg("-ac")
                    .arg(format!("--rsh=ssh {}", options().join(" ")));
                rsync.args(&paths).arg(format!("{host}:{folder}/"));
                run(&mut rsync)
            }
            false => {
                let mut scp = Command::new("scp");
                scp.arg("-q").args(options()).args(&paths);
                scp.arg(format!("{host}:{folder}/.partial/"));
                let moved = format!("cd {folder} && mv -f .partial/* . && rmdir .partial");
                run(&mut self.ssh(&format!("mkdir -p {folder}/.partial")))
                    .and_then(|()| run(&mut scp))
                    .and_then(|()| run(&mut self.ssh(&moved)))
            }
        };
        if let Err(error) = copied {
            // What was not copied whole does not stay; that this may fail, too, is no news.
            let _ = run(&mut self.ssh(&format!("rm -rf {folder}/.partial")));
            return Err(error.context(format!("cannot copy to {host}:{folder}")));
        }
        let check = format!("cd {folder} && sha256sum -c --quiet SHA256SUMS");
        run(&mut self.ssh(&check))
            .with_context(|| format!("the copy in {host}:{folder} is damaged, copy it again"))?;
        let doctor = format!("cd {folder} && ./tandem doctor {}", package.doctor_flags());
        let status = self.ssh(&doctor).status().context("cannot start ssh")?;
        ensure!(
            status.success(),
            "`tandem doctor` failed on {host}, see above"
        );
        Ok(())
    }

    /// Looks whether the board is one, has space, and has rsync; makes the folder.
    fn prepare(&self, package: &Package) -> Result<bool> {
        let (host, folder) = (&self.host, &self.folder);
        let ask = format!(
            "uname -m && (command -v rsync || echo none) && mkdir -p {folder} && \
             df -Pk {folder}"
        );
        let mut command = self.ssh(&ask);
        let out = output(&mut command)?;
        // 255 is ssh's own failure, all others are of what ran there.
        ensure!(
            out.status.code() != Some(255),
            "cannot reach {host}: {}; check name, network and key by `ssh {host}`",
            last_line(&out.stderr)
        );
        ensure!(
            out.status.success(),
            "cannot use {folder} on {host}: {}",
            last_line(&out.stderr)
        );
        let text = String::from_utf8_lossy(&out.stdout);
        let mut lines = text.lines();
        match lines.next() {
            Some("aarch64" | "arm64") => (),
            Some(machine) if machine.starts_with("armv") => bail!(
                "{host} runs a 32-bit kernel ({machine}): set arm_64bit=1 in its config.txt, or \
                 install the 64-bit system"
            ),
            machine => bail!(
                "{host} is no 64-bit Arm board, but {}",
                machine.unwrap_or("unknown")
            ),
        }
        let has_rsync = lines.next().is_some_and(|path| path != "none");
        let free = lines.next_back().and_then(|line| {
            let kilobytes = line.split_whitespace().nth(3)?;
            kilobytes.parse::<u64>().ok()?.checked_mul(1024)
        });
        if let Some(free) = free {
            let needed = package.n_bytes();
            ensure!(
                needed < free,
                "no space on {host}: {} MB are needed in {folder}, {} MB are free",
                needed.div_ceil(1_000_000),
                free / 1_000_000
            );
        }
        Ok(has_rsync)
    }

    fn ssh(&self, command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(options()).arg(&self.host).arg(command);
        ssh.stdin(Stdio::null());
        ssh
    }
}

/// Does not wait for a host forever, nor for a password that nobody can type.
fn options() -> Vec<&'static str> {
    let mut options = vec!["-oConnectTimeout=10"];
    if !std::io::stdin().is_terminal() {
        options.push("-oBatchMode=yes");
    }
    options
}

/// Runs to the end, and has the last line of its complaint as error.
fn run(command: &mut Command) -> Result<()> {
    let out = output(command)?;
    ensure!(out.status.success(), "{}", last_line(&out.stderr));
    Ok(())
}

fn output(command: &mut Command) -> Result<Output> {
    let name = Path::new(command.get_program()).display().to_string();
    command
        .output()
        .with_context(|| format!("cannot start {name}"))
}

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    line.map_or("no reason was told".to_string(), |line| {
        line.trim().to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_cannot_be_read_as_flags_or_commands() {
        let t = target("pi@board.local").unwrap();
        assert_eq!(
            (t.host.as_str(), t.folder.as_str()),
            ("pi@board.local", "tandem")
        );
        let t = target("board:/opt/tandem/").unwrap();
        assert_eq!(
            (t.host.as_str(), t.folder.as_str()),
            ("board", "/opt/tandem")
        );
        for text in [
            "",
            "-oProxyCommand=x",
            "a b",
            "a:$(x)",
            "a:",
            "a;b",
            "a:-x",
            "a:b'c",
        ] {
            assert!(target(text).is_err(), "{text}");
        }
    }
}
