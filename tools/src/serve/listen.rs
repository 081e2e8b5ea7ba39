//! Where clients come in: an address, a Unix socket, or what systemd hands over.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The first descriptor that systemd hands over.
const FIRST_FD: i32 = 3;

/// An open socket that clients connect to.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(Unix),
}

#[derive(Debug)]
pub(super) struct Unix {
    pub listener: UnixListener,
    /// Its file, which is removed at the end; none where it is systemd's.
    path: Option<PathBuf>,
}

impl Drop for Unix {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listener {
    /// What systemd hands over, else a socket of this address; a host with a slash is the path of a Unix
    /// socket.
    pub(super) fn bind(host: &str, port: u16, mode: u32) -> Result<Listener> {
        let listener = match handed_over() {
            Some(fd) => of_descriptor(fd)?,
            None if host.contains('/') => unix(Path::new(host), mode)?,
            None => {
                let name = || format!("cannot listen on {host}:{port}");
                // An address of version 6 may be in brackets.
                let host = host.trim_matches(['[', ']']);
                Listener::Tcp(TcpListener::bind((host, port)).with_context(name)?)
            }
        };
        match &listener {
            Listener::Tcp(tcp) => tcp.set_nonblocking(true)?,
            Listener::Unix(unix) => unix.listener.set_nonblocking(true)?,
        }
        Ok(listener)
    }

    /// Whether other machines can connect.
    pub(super) fn is_public(&self) -> bool {
        match self {
            Listener::Tcp(tcp) => tcp.local_addr().is_ok_and(|addr| !addr.ip().is_loopback()),
            Listener::Unix(_) => false,
        }
    }

    pub(super) fn is_unix(&self) -> bool {
        matches!(self, Listener::Unix(_))
    }

    /// Where the page is, or the socket.
    pub(super) fn address(&self) -> String {
        match self {
            Listener::Tcp(tcp) => match tcp.local_addr() {
                Ok(SocketAddr::V4(addr)) if addr.ip().is_unspecified() => {
                    format!("http://localhost:{} and all other addresses", addr.port())
                }
                Ok(addr) => format!("http://{addr}"),
                Err(_) => "an unknown address".to_string(),
            },
            Listener::Unix(unix) => match &unix.path {
                Some(path) => path.display().to_string(),
                None => "systemd's socket".to_string(),
            },
        }
    }
}

/// The descriptor that systemd hands over to this very process.
fn handed_over() -> Option<OwnedFd> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID")? != std::process::id() || number("LISTEN_FDS")? == 0 {
        return None;
    }
    // SAFETY: systemd's protocol says that this descriptor is open and ours; nothing else here knows it.
    Some(unsafe { OwnedFd::from_raw_fd(FIRST_FD) })
}

fn of_descriptor(fd: OwnedFd) -> Result<Listener> {
    let tcp = TcpListener::from(fd);
    if tcp.local_addr().is_ok() {
        return Ok(Listener::Tcp(tcp));
    }
    let listener = UnixListener::from(OwnedFd::from(tcp));
    listener
        .local_addr()
        .context("systemd's descriptor 3 is no socket")?;
    let path = None;
    Ok(Listener::Unix(Unix { listener, path }))
}

fn unix(path: &Path, mode: u32) -> Result<Listener> {
    let name = || format!("cannot listen on {}", path.display());
    // One that was left behind is removed; one that somebody answers on is not, nor is any other file.
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            bail!("{}: there is a file already that is no socket", name());
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).with_context(name)?;
            }
            _ => bail!("{}: the address is in use", name()),
        }
    }
    // Nobody may connect before the permissions are as they should be.
    // SAFETY: umask only sets the process's mask, and no other thread runs yet.
    let before = unsafe { libc::umask(0o177) };
    let listener = UnixListener::bind(path);
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    let listener = listener.with_context(name)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).with_context(name)?;
    let path = Some(path.to_path_buf());
    Ok(Listener::Unix(Unix { listener, path }))
}

/// Tells systemd, where it wants to know, that requests are answered from now on.
pub(super) fn tell_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = UnixDatagram::unbound().and_then(|socket| {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::net::SocketAddr;
        let bytes = path.as_encoded_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(b"READY=1", &address)
    });
    if let Err(error) = told {
        tell!("warning: the service manager could not be told: {error}");
    }
}
