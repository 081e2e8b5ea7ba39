//! The units by which systemd runs `tandem serve` on a board.

use anyhow::Result;

use super::package::Content;

pub(super) const SOCKET: &str = "tandem.socket";
pub(super) const SERVICE: &str = "tandem.service";

/// Seconds without a request after which the service gives its memory back; the socket stays.
pub(super) const EXIT_IDLE: u32 = 900;

/// Where things lie on a board.
pub(super) struct Place {
    pub binary: &'static str,
    /// The model's folder, where one came along.
    pub folder: &'static str,
    /// Where one is expected otherwise.
    pub model: &'static str,
    /// What the unit's reader should know of it.
    pub note: &'static str,
}

/// A word of a unit's command line: nothing in it is expanded.
fn quote(word: &str) -> String {
    let word = word.replace('\\', r"\\").replace('"', "\\\"");
    format!("\"{}\"", word.replace('%', "%%").replace('$', "$$"))
}

pub(super) fn socket(place: &Place, content: &Content) -> String {
    let condition = match content.paths().next() {
        Some(_) => String::new(),
        // Else each connection would start a service that must fail.
        None => format!("ConditionPathExists={}\n", place.model),
    };
    let note = place.note;
    format!(
        "[Unit]
Description=Tandem: language models over HTTP
{condition}
[Socket]
# This machine only; other machines come in by 0.0.0.0:8080, and then with a key: see README.
ListenStream=127.0.0.1:8080

[Install]
WantedBy=sockets.target

# {note}
"
    )
}

pub(super) fn service(place: &Place, content: &Content) -> Result<String> {
    let mut flags = content.serve_flags(&format!("{}/", place.folder))?;
    if flags.is_empty() {
        flags = vec!["--model".to_string(), place.model.to_string()];
    }
    let flags: Vec<_> = flags.iter().map(|flag| quote(flag)).collect();
    Ok(format!(
        "[Unit]
Description=Tandem: language models over HTTP
Requires={SOCKET}
After={SOCKET}

[Service]
Type=notify
ExecStart={binary} serve {flags} --exit-idle {EXIT_IDLE} --cache-dir /var/cache/tandem
# The bundles are read anew.
ExecReload=/bin/kill -HUP $MAINPID
TimeoutStartSec=300
TimeoutStopSec=40
DynamicUser=yes
# What prompts begin with outlives the service here.
CacheDirectory=tandem
CacheDirectoryMode=0700
NoNewPrivileges=yes
PrivateDevices=yes
PrivateTmp=yes
ProtectHome=yes
ProtectKernelTunables=yes
ProtectSystem=strict
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
# Others in the network: allow them here, too.
IPAddressDeny=any
IPAddressAllow=localhost
",
        binary = place.binary,
        flags = flags.join(" ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_units_are_not_expanded() {
        assert_eq!(quote("a b"), "\"a b\"");
        assert_eq!(quote(r#"50% of $HOME "\"#), r#""50%% of $$HOME \"\\""#);
    }
}
